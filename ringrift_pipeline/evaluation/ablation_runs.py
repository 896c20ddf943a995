"""The runs of an ablation: which settings each trains with, on which games it is judged.

An enhancement is tried off in turn, against everything on, and on alone, against nothing on.
Quality weighting, mining, clipping and the schedule need trainings of their own. The moving average
and the ensemble do not: they are ways to read weights that have been trained, and every run keeps
its last weights and its average.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ringrift_pipeline.store import read_bounded
from ringrift_pipeline.training.split import hash_fraction
from ringrift_pipeline.training.window import Window, open_window

if TYPE_CHECKING:
    from ringrift_pipeline.enhancements.training_config import TrainingConfig
    from ringrift_pipeline.network import RingRiftNetwork
    from ringrift_pipeline.selfplay.plan import Plan
    from ringrift_pipeline.store import Artefact
    from ringrift_pipeline.training.run import TrainingRun

__all__ = [
    "EVERYTHING",
    "NOTHING",
    "VARIANTS",
    "AblationError",
    "Figures",
    "Material",
    "Split",
    "Trial",
    "TrialResult",
    "run_trial",
    "settings_of",
    "split_window",
]

TRAINED = ("quality", "mining", "clipping", "schedule")
"""Enhancements that need trainings of their own."""

EVERYTHING, NOTHING = "everything", "nothing"
VARIANTS: dict[str, frozenset[str]] = {
    EVERYTHING: frozenset(TRAINED),
    **{f"without_{name}": frozenset(TRAINED) - {name} for name in TRAINED},
    NOTHING: frozenset(),
    **{f"only_{name}": frozenset({name}) for name in TRAINED},
}
"""The trainings of a seed: which of `TRAINED` are on in each."""

JUDGES = 600
"""Games that judge, if there are so many. With 75 the games' part in the standard error of a
difference was 0.0015 nats of value log loss and 0.009 of calibration error; 600 make it a third."""
VALIDATION_ROWS = 4096
"""Rows, at most, by which a run chooses the best of its averages."""
BOOTSTRAP = 1000
"""Draws of the games for the spread of calibration errors."""
LARGEST_FIGURES = 4 << 20
"""Bytes of a run's figures that are read; those of three models over `JUDGES` games are 60 kB."""


class AblationError(ValueError):
    """An ablation cannot be had; the message says why, and what to do."""


@dataclass(frozen=True)
class Split:
    """Who trains and who judges.

    Attributes:
        window: with ``holdout`` true for every game that is not trained on.
        judges: (K,) int64, rows of the games that judge.
        validation: (V,) int64, rows that choose the best average of a run.
        games: how many games judge.
    """

    window: Window
    judges: NDArray[np.int64]
    validation: NDArray[np.int64]
    games: int


def split_window(window: Window, plan: Plan) -> Split:
    """Hold out more games than training does, by the hash of their ids.

    The games that the loop holds out choose the best average, as they do there. `JUDGES` more of
    the generation's own games, at most half of those it trains on, are taken from training and
    judge: no model of an earlier generation has seen them.

    Raises:
        AblationError: fewer than 2 games can judge.
    """
    games = len(window.games)
    generation, held_out = np.zeros(games, np.int64), np.zeros(games, np.bool_)
    generation[window.game], held_out[window.game] = window.generation, window.holdout
    own = np.flatnonzero((generation == plan.generation) & ~held_out)
    count = min(JUDGES, len(own) // 2)
    if count < 2:
        raise AblationError(
            f"{plan.config} generation {plan.generation:04d} has {len(own)} games to train on, "
            "too few to take 2 of them as judges: raise selfplay.games"
        )
    hashes = [hash_fraction(window.games[game]) for game in own]
    judging = np.zeros(games, np.bool_)
    judging[own[np.argsort(hashes, kind="stable")[:count]]] = True
    validation = np.flatnonzero(window.holdout)
    return Split(
        replace(window, holdout=(held_out | judging)[window.game]),
        np.flatnonzero(judging[window.game]),
        validation[:: max(1, len(validation) // VALIDATION_ROWS)],
        count,
    )


def settings_of(settings: TrainingConfig, variant: str, steps: int) -> dict[str, Any]:
    """What a variant changes in the plan's settings, by dotted name.

    All runs make ``steps`` steps (fewer if ``training.sample_reuse_limit`` asks for it) in one
    thread and never stop early. A plan with a constant rate tries the default schedule.
    """
    on = VARIANTS[variant]
    schedule = settings.schedule.name
    if schedule == "constant":
        schedule = type(settings.schedule)().name
    bound = settings.gradients.max_grad_norm
    return {
        "training.max_steps": steps,
        "training.sample_reuse": float(steps * settings.effective_batch_size),  # the cap decides
        "training.early_stopping_patience": 0,
        "training.threads": 1,
        "finetune.ewc_weight": 0.0,
        "averaging.enabled": True,  # what it does is read off every run
        "quality.enabled": "quality" in on,
        "mining.enabled": "mining" in on,
        "gradients.clipping": "clipping" in on,
        "gradients.max_grad_norm": bound if "clipping" in on else 0.0,
        "schedule.name": schedule if "schedule" in on else "constant",
    }


@dataclass(frozen=True)
class Material:
    """What all runs of an ablation work with.

    Attributes:
        plan: of the generation.
        window, scores, hard_examples: its artefacts.
        parent: model that runs start from; None for fresh weights.
        members: earlier models that the ensemble adds to a run's own, maybe none.
        steps: optimizer steps of a run.
    """

    plan: Plan
    window: Artefact
    scores: Artefact
    hard_examples: Artefact
    parent: Artefact | None
    members: tuple[Artefact, ...]
    steps: int

    @property
    def artefacts(self) -> list[Artefact]:
        """All artefacts that the result depends on."""
        parent = [] if self.parent is None else [self.parent]
        return [self.window, self.scores, self.hard_examples, *parent, *self.members]


@dataclass(frozen=True)
class Trial:
    """One run: a variant with one of the paired seeds, both from 0."""

    number: int
    variant: str
    seed: int

    @property
    def name(self) -> str:
        """``without_mining-0003``."""
        return f"{self.variant}-{self.seed:04d}"


@dataclass(frozen=True)
class Figures:
    """What one model makes of the G games that judge, in the order of the window.

    Attributes:
        policy_loss: (G,) mean over a game's full searches, nats; NaN where it has none.
        value_log_loss: (G,) mean over a game's rows, nats.
        calibration_error: debiased, over all games.
        replicates: (B,) the same over games drawn with replacement, the same draws for all models.
    """

    policy_loss: NDArray[np.float64]
    value_log_loss: NDArray[np.float64]
    calibration_error: float
    replicates: NDArray[np.float64]


@dataclass(frozen=True)
class TrialResult:
    """A finished run.

    Attributes:
        models: figures by model: ``averaged``, ``last``, ``ensemble``, as far as they are compared.
        steps, rows: optimizer steps made, rows trained on.
        stop_reason: why it ended before its last step, "" if it did not.
        seconds: of training and judging.
    """

    models: dict[str, Figures]
    steps: int
    rows: int
    stop_reason: str
    seconds: float

    def save(self, path: Path) -> dict[str, Any]:
        """Write the figures as NumPy archive and return the rest, for metadata."""
        arrays: dict[str, Any] = {
            f"{model}.{item.name}": np.asarray(getattr(figures, item.name))
            for model, figures in self.models.items()
            for item in fields(Figures)
        }
        np.savez(path, **arrays)
        facts = ("steps", "rows", "stop_reason", "seconds")
        return {name: getattr(self, name) for name in facts}

    @classmethod
    def load(cls, path: Path, facts: dict[str, Any]) -> TrialResult:
        """What `save` wrote and returned. Raises AblationError for what it cannot have written."""
        models: dict[str, dict[str, Any]] = {}
        try:
            for name, values in _read_arrays(path).items():
                model, _, field = name.partition(".")
                models.setdefault(model, {})[field] = values
            for found in models.values():
                found["calibration_error"] = float(found["calibration_error"])
            return cls({model: Figures(**found) for model, found in models.items()}, **facts)
        except (OSError, EOFError, LookupError, TypeError, ValueError, *_NO_ARCHIVE) as error:
            raise AblationError(
                f"the figures of a run in {path} cannot be read ({error}): remove the artefact that "
                "they are of, and the run is made again"
            ) from error


_NO_ARCHIVE = (zipfile.BadZipFile, RuntimeError)  # the latter of an encrypted one


def _read_arrays(path: Path) -> dict[str, NDArray[np.float64]]:
    """The arrays of an archive as `TrialResult.save` writes it, whose sizes are known before any is
    made: neither the archive nor a header in it is trusted.
    """
    found = {}
    with zipfile.ZipFile(io.BytesIO(read_bounded(path, LARGEST_FIGURES))) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > LARGEST_FIGURES:
            raise ValueError(f"it would unpack to more than {LARGEST_FIGURES} bytes")
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{entry.filename} is packed")
            data = io.BytesIO(archive.read(entry))
            np.lib.format.read_magic(data)
            shape, _, dtype = np.lib.format.read_array_header_1_0(data)
            values = data.read()
            if dtype != np.float64 or len(values) != 8 * math.prod(shape):
                raise ValueError(f"{entry.filename} does not hold the numbers that it says")
            found[entry.filename.removesuffix(".npy")] = np.frombuffer(values).reshape(shape)
    return found


def run_trial(
    material: Material, trial: Trial, before_step: Callable[[TrainingRun], None]
) -> TrialResult:
    """Train one run and judge what came of it.

    Depends on the material, the variant and the seed alone, not on where or when it runs.

    Args:
        before_step: called before every step and, with the finished run, before every batch that
            is judged; what it raises ends the work.
    """
    from time import monotonic

    from ringrift_pipeline.training.hard_examples import HardRows, read_hard_examples
    from ringrift_pipeline.training.loop import parent_model
    from ringrift_pipeline.training.quality import game_scores
    from ringrift_pipeline.training.threads import torch_threads
    from ringrift_pipeline.training.trial import train_trial

    began = monotonic()
    plan = material.plan
    split = split_window(open_window(material.window.path), plan)
    hard = read_hard_examples(material.hard_examples)
    kept = ~split.window.holdout[hard.rows]  # those that judge are not mined
    parent, _ = parent_model(plan, material.parent)
    run = train_trial(
        plan,
        split.window,
        settings_of(plan.settings, trial.variant, material.steps),
        plan.seed_for(f"ablation {trial.seed}"),
        parent=parent,
        game_scores=game_scores(material.scores),
        hard_examples=HardRows(hard.rows[kept], hard.hardness[kept], hard.uncertainty[kept]),
        validation=split.validation,
        before_step=before_step,
    )
    with torch_threads(1):
        models = _judge(material, trial.variant, split, run, lambda: before_step(run))
    reason = run.stop_reason if run.iteration < run.total else ""
    return TrialResult(models, run.iteration, run.samples, reason, monotonic() - began)


def _judge(
    material: Material,
    variant: str,
    split: Split,
    run: TrainingRun,
    check: Callable[[], None],
) -> dict[str, Figures]:
    """Figures of the models of a run that are compared with others."""
    from ringrift_pipeline.enhancements.model_ensemble import ModelEnsemble
    from ringrift_pipeline.network import load_model
    from ringrift_pipeline.training.dataset import WindowDataset
    from ringrift_pipeline.training.judging import by_ensemble, by_network, row_losses

    averaged = run.best_model().to(run.device)
    models: dict[str, RingRiftNetwork] = {"averaged": averaged, "last": run.model.eval()}
    if variant not in (EVERYTHING, NOTHING):
        unread = "last" if variant.startswith("without") else "averaged"
        del models[unread]
    predicted = {name: by_network(model) for name, model in models.items()}
    if material.members and variant in (EVERYTHING, NOTHING):
        pooled = ModelEnsemble(device=run.device, value_kind="logits")
        pooled.add_model(models["averaged" if variant == EVERYTHING else "last"])
        for member in material.members:
            pooled.add_model(load_model(member.path, run.device))
        predicted["ensemble"] = by_ensemble(pooled)
    dataset = WindowDataset(split.window, run.device)
    return {
        name: _figures(
            material.plan, split, row_losses(predict, dataset, split.judges, check=check)
        )
        for name, predict in predicted.items()
    }


def _figures(plan: Plan, split: Split, losses: Any) -> Figures:
    from ringrift_pipeline.enhancements.calibration_measures import (
        Forecasts,
        game_draws,
        reliability,
    )
    from ringrift_pipeline.training.judging import by_game

    window, rows = split.window, split.judges
    games = window.game[rows]
    forecasts = Forecasts.check(
        np.clip(losses.chances, 0.0, 1.0), window.outcome[rows].astype(np.float64), games
    )
    bins = reliability(forecasts, plan.settings.calibration.bins)
    draws = game_draws(forecasts.num_games, BOOTSTRAP, plan.seed_for("ablation games"))
    return Figures(
        by_game(losses.policy, games),
        by_game(losses.value, games),
        bins.error(),
        bins.resampled(draws)[0],
    )
