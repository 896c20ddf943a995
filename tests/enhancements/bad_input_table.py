"""What every public method takes: one `Row` a method, for `test_bad_input`.

To add a method, add a row: an object in use, good arguments, and what each argument is. What an
argument is says how it can be made bad, see `bad_values`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.torch import save_file
from torch import nn

import ringrift_pipeline.enhancements as library
from ringrift_pipeline.enhancements import FacadeConfig, GameQualityScore, TrainingConfig

from .bad_values import (
    DEEP,
    EMPTY,
    FRACTIONS,
    LONG,
    META,
    NONE,
    SHORT,
    TRUTHS,
    WORDS,
    Broken,
    Change,
    Kind,
    any_of,
    becomes,
    choice,
    damaged,
    flag,
    holding,
    number,
    of_class,
    rows,
    tensor,
    text,
    values,
    whole,
)
from .in_use import (
    ACTIONS,
    BATCH,
    ROWS,
    SEATS,
    USES,
    Net,
    adam,
    make_batch,
    plain_loss,
)

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One method of the library.

    Attributes:
        name: `Class.method`, `Class.__init__` or a function; what follows a colon tells rows of
            one method apart.
        good: the arguments of a call that works, given the object and a folder.
        takes: what each of the arguments is.
        use: name of the use in `in_use.USES` whose object is called; None for classes, functions.
        says: a pattern of what a refusal may name in place of the argument.
        call: how to call where arguments are not passed by name.
    """

    name: str
    takes: Mapping[str, Kind]
    good: Callable[[Any, Path], Arguments]
    use: str | None = None
    says: Mapping[str, str] = field(default_factory=dict)
    call: Callable[[Any, Arguments], Any] | None = None

    def new(self, folder: Path) -> Any:
        """The object, in use."""
        if self.use is None:
            return None
        things = USES[self.use].new(0, folder)
        USES[self.use].drive(things, 0, 6)
        return getattr(things["it"], "sampler", things["it"])

    def run(self, it: Any, arguments: Arguments) -> Any:
        if self.call is not None:
            return self.call(it, arguments)
        owner, _, method = self.name.partition(":")[0].partition(".")
        if not method or method == "__init__":
            return getattr(library, owner)(**arguments)
        return getattr(it if it is not None else getattr(library, owner), method)(**arguments)


def built(
    owner: str, takes: Mapping[str, Kind], *, says: Mapping[str, str] | None = None, **good: Any
) -> Row:
    """The row of a constructor; an argument without a good value is left out of good calls."""
    return Row(f"{owner}.__init__", takes, lambda it, folder: dict(good), says=says or {})


def losses() -> torch.Tensor:
    return torch.linspace(0.1, 2.0, BATCH)


def indices() -> np.ndarray:
    return np.arange(BATCH) * 5


def shares(seats: int = SEATS) -> np.ndarray:
    p = np.random.default_rng(0).random((BATCH, seats)) + 0.1
    return p / p.sum(axis=1, keepdims=True)


def unit() -> np.ndarray:
    return np.linspace(0.1, 0.9, BATCH)


def optimizer() -> torch.optim.Optimizer:
    return adam(Net())


def with_gradients() -> nn.Module:
    model = Net()
    plain_loss(model, 0).backward()
    return model


def one_gradient_short(good: Any) -> Any:
    return list(good)[:-1]


def games_frame() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "length": [50, 60],
            "winner": [1, 0],
            "policy_entropy": [1.0, 2.0],
            "surprise": [0.1, 0.2],
            "timestamp": [0.0, 5.0],
            "elos": [[1200.0, 1300.0], [1.0, 2.0]],
            "mean_values": [[0.5, 0.5], [0.2, 0.8]],
        }
    )


def column(name: str, *entries: Any) -> Change:
    series = pl.Series(name, entries, strict=False)
    return Change(f"{name} = {entries}", lambda good: good.with_columns(series))


def frame_changes() -> Kind:
    bad = [
        column("length", -1, 5),
        column("length", None, 5),
        column("length", math.nan, 5.0),
        column("length", "a", "b"),
        column("winner", 1, 5),
        column("winner", -1, 0),
        column("policy_entropy", -0.1, 1.0),
        column("surprise", math.inf, 1.0),
        column("timestamp", math.nan, 1.0),
        column("elos", [1.0, math.nan], [1.0, 2.0]),
        column("elos", [1.0], [1.0, 2.0]),
        column("mean_values", [0.0, 0.0], [0.5, 0.5]),
        column("mean_values", [-1.0, 2.0], [0.5, 0.5]),
        column("outcome", [1.0, 0.0, 0.0, 0.0, 0.0], [1.0, 0.0]),
        Change("has no length", lambda good: good.drop("length")),
        Change("has no rows", lambda good: good.head(0), fine=True),
    ]
    return any_of(*bad, *map(becomes, (None, "rubbish", {"length": [1]})))


def state_row(owner: str, use: str, argument: str = "state_dict", method: str = "") -> Row:
    """The row of a `load_state_dict`."""
    things = USES[use].new(0, Path("/nonexistent"))
    saved = getattr(things["it"], "sampler", things["it"]).state_dict()
    return Row(
        f"{owner}.{method or 'load_state_dict'}",
        {argument: damaged(saved, ("model",))},
        lambda it, folder: {argument: it.state_dict()},
        use,
        says={argument: "state"},
    )


def device() -> Kind:
    return any_of(*map(becomes, ("rubbish", 1.5, "cuda:x", object())), becomes("cpu", fine=True))


def write_model(folder: Path, name: str = "m.safetensors") -> str:
    save_file(Net(3).state_dict(), folder / name)
    return str(folder / name)


def build_rows() -> list[Row]:
    """Every row."""
    return [
        *gradient_rows(),
        *schedule_rows(),
        *calibration_rows(),
        *averaging_rows(),
        *quality_rows(),
        *sampler_rows(),
        *miner_rows(),
        *tracker_rows(),
        *loss_rows(),
        *ensemble_rows(),
        *ewc_rows(),
        *feedback_rows(),
        *seed_rows(),
        *config_rows(),
        *facade_rows(),
    ]


def gradient_rows() -> list[Row]:
    above = number(0.0, above=True)
    gradients = any_of(
        Change("one parameter fewer", one_gradient_short),
        *map(becomes, (None, "rubbish", 3, [1, 2], [None] * 6)),
    )
    accumulator = "GradientAccumulator"
    clipper = "AdaptiveGradientClipper"
    return [
        built(
            accumulator,
            {
                "accumulation_steps": whole(1),
                "max_grad_norm": any_of(*map(becomes, ("1", -1.0, math.nan, math.inf, [1.0]))),
                "batch_size": whole(1),
            },
            accumulation_steps=2,
            max_grad_norm=1.0,
            batch_size=4,
        ),
        Row(
            f"{accumulator}.should_step",
            {"batch_idx": whole(0, 5, optional=True), "num_batches": whole(1, optional=True)},
            lambda it, folder: {"batch_idx": 3, "num_batches": 5},
            "accumulator",
        ),
        Row(
            f"{accumulator}.scale_loss",
            {
                "loss": any_of(
                    becomes(None),
                    becomes("rubbish"),
                    becomes(1.0),
                    becomes(torch.ones(2)),
                    becomes(torch.ones(0)),
                    becomes(torch.ones((), dtype=torch.int64)),
                ),
                "num_samples": whole(1, optional=True),
            },
            lambda it, folder: {"loss": torch.ones((), requires_grad=True), "num_samples": 3},
            "accumulator",
        ),
        Row(
            f"{accumulator}.step",
            {
                "optimizer": of_class(None, Net()),
                "model": of_class(optimizer(), optional=True),
                "scaler": of_class(1.0, optional=True),
                "clipper": of_class(optional=True),
            },
            lambda it, folder: {"optimizer": adam(with_gradients()), "model": None},
            "accumulator",
        ),
        state_row(accumulator, "accumulator"),
        built(
            clipper,
            {
                "initial_max_norm": above,
                "percentile": number(0.0, 100.0, above=True),
                "history_size": whole(1),
                "min_clip": above,
                "max_clip": above,
                "mode": choice(),
                "clip_factor": above,
                "agc_ratio": above,
                "agc_eps": above,
            },
            initial_max_norm=1.0,
            percentile=50.0,
            history_size=5,
            min_clip=0.1,
            max_clip=10.0,
            mode="agc",
            clip_factor=2.0,
            agc_ratio=0.1,
            agc_eps=1e-3,
        ),
        *(
            Row(
                f"{clipper}.update_and_clip:{mode}",
                {"parameters": gradients},
                lambda it, folder: {"parameters": list(with_gradients().parameters())},
                f"clipper-{mode}",
            )
            for mode in ("parameter", "agc", "global")
        ),
        state_row(clipper, "clipper-parameter"),
    ]


def schedule_rows() -> list[Row]:
    found = []
    for owner, use in (
        ("AdaptiveLRScheduler", "adaptive"),
        ("WarmRestartsScheduler", "warm-restarts"),
    ):
        figures = {
            "train_loss": number(),
            "val_loss": number(optional=True),
            "current_elo": number(optional=True),
        }
        found += [
            Row(
                f"{owner}.on_validation",
                figures,
                lambda it, folder: {"train_loss": 1.0, "val_loss": 1.0, "current_elo": 1.0},
                use,
            ),
            Row(
                f"{owner}.scale_lr",
                {"factor": number(0.0, above=True)},
                lambda it, folder: {"factor": 0.5},
                use,
            ),
            state_row(owner, use),
        ]
    warm = "WarmRestartsScheduler"
    adaptive = "AdaptiveLRScheduler"
    return [
        *found,
        Row(
            f"{adaptive}.step",
            {
                "train_loss": number(),
                "current_elo": number(optional=True),
                "val_loss": number(optional=True),
            },
            lambda it, folder: {"train_loss": 1.0, "current_elo": 1.0, "val_loss": 1.0},
            "adaptive",
        ),
        Row(
            f"{adaptive}.warm_restart",
            {"lr_factor": number(0.0, above=True)},
            lambda it, folder: {"lr_factor": 1.0},
            "adaptive",
        ),
        built(
            adaptive,
            {
                "optimizer": of_class(None, Net()),
                "base_lr": number(1e-5, 0.1),
                "min_lr": number(0.0),
                "max_lr": number(1e-5),
                "elo_lookback": whole(2),
                "loss_lookback": whole(3),
                "elo_stagnation_threshold": number(0.0),
                "loss_oscillation_threshold": number(0.0, above=True),
                "lr_increase_factor": number(1.0),
                "lr_decrease_factor": number(0.0, 1.0, above=True),
                "warmup_epochs": whole(0),
                "plateau_patience": whole(1),
                "plateau_threshold": number(0.0),
                "warmup_steps": whole(0),
            },
            optimizer=optimizer(),
            min_lr=1e-5,
            base_lr=0.01,
            max_lr=0.1,
        ),
        built(
            warm,
            {
                "optimizer": of_class(None, Net()),
                "T_0": whole(1),
                "T_mult": whole(1),
                "eta_min": number(0.0, 0.01),
                "eta_max": number(0.0, above=True, optional=True),
                "last_epoch": whole(-1),
                "warmup_steps": whole(0),
            },
            optimizer=optimizer(),
            eta_min=1e-6,
        ),
        Row(
            f"{warm}.step",
            {"epoch": number(0.0, optional=True)},
            lambda it, folder: {"epoch": 2.5},
            "warm-restarts",
        ),
        Row(
            "build_scheduler",
            {
                "optimizer": of_class(None, Net()),
                "schedule": of_class(None, TrainingConfig()),
                "total_steps": whole(1),
            },
            lambda it, folder: {
                "optimizer": optimizer(),
                "schedule": TrainingConfig().schedule,
                "total_steps": 20,
            },
        ),
    ]


def calibration_rows() -> list[Row]:
    owner = "CalibrationAutomation"
    names = any_of(
        SHORT, LONG, becomes("rubbish"), becomes(7), EMPTY, becomes(None, fine=True)
    )  # any ids will do, as long as there is one a row

    def logits_of(it: Any, folder: Path) -> Arguments:
        targets = torch.from_numpy(shares()).float()
        model = torch.randn(BATCH, SEATS, generator=torch.Generator().manual_seed(0))
        return {"model": model, "dataloader": targets, "games": indices() // 10}

    def loader_of(it: Any, folder: Path) -> Arguments:
        batches = [make_batch(i) for i in range(2)]
        pairs = [(b["features"], b["value_targets"]) for b in batches]
        return {"model": Net(), "dataloader": pairs, "device": None, "games": np.arange(16) // 2}

    return [
        built(
            owner,
            {
                "deviation_threshold": number(0.0, 1.0, above=True),
                "check_interval": whole(1),
                "min_samples": whole(1),
                "window_size": whole(1),
                "min_games": whole(1),
                "bins": whole(1, 1001),
                "bootstrap": whole(20),
                "confidence": number(0.0, 1.0, above=True),
                "seed": whole(0),
                "value_range": any_of(
                    *map(
                        becomes, (None, 1, "ab", (1.0, 0.0), (0.0,), (0.0, math.nan), (0, math.inf))
                    )
                ),
            },
            deviation_threshold=0.05,
            min_samples=10,
            window_size=100,
        ),
        Row(
            f"{owner}.add_samples",
            {
                "predictions": values(0.0, 1.0),
                "outcomes": values(0.0, 1.0),
                "games": names,
                "phases": names,
            },
            lambda it, folder: {
                "predictions": torch.from_numpy(unit()),
                "outcomes": torch.from_numpy(unit().round()),
                "games": indices(),
                "phases": np.array(["a"] * BATCH),
            },
            "calibration",
        ),
        Row(
            f"{owner}.should_recalibrate",
            {"epoch": whole(0, optional=True)},
            lambda it, folder: {"epoch": 30},
            "calibration",
        ),
        Row(
            f"{owner}.compute_optimal_temperature:logits",
            {
                "model": tensor(holding(math.nan), holding(math.inf)),
                "dataloader": tensor(holding(math.nan), holding(-1.0), holding(2.0)),
                "games": names,
            },
            logits_of,
            "calibration",
            says={"model": "logits|model", "dataloader": "targets|dataloader"},
        ),
        Row(
            f"{owner}.compute_optimal_temperature:model",
            {
                "model": of_class(None, Broken(), Broken((torch.ones(BATCH, 5),) * 3)),
                "dataloader": any_of(
                    *map(becomes, ([], None, 3, "rubbish", [1], [{}], [{"features": 1}], [()]))
                ),
                "device": device(),
                "games": names,
            },
            loader_of,
            "calibration",
            says={"model": "model|logits|dataloader", "dataloader": "dataloader|targets|loader"},
        ),
        Row(
            f"{owner}.report",
            {"path": any_of(becomes(3), becomes([]), becomes(None, fine=True))},
            lambda it, folder: {"path": None},
            "calibration",
        ),
        state_row(owner, "calibration", "state"),
    ]


def averaging_rows() -> list[Row]:
    owner = "CheckpointAverager"
    broken_weights = any_of(
        Change("lacks a tensor", lambda good: dict(list(good.items())[1:])),
        Change("another shape", lambda good: {**good, "body.bias": torch.ones(2)}),
        Change("NaN", lambda good: {**good, "body.bias": torch.full((7,), math.nan)}),
        Change("on meta", lambda good: {**good, "body.bias": torch.ones(7, device="meta")}),
        *map(becomes, (None, "rubbish", 3, {}, [1], {"a": 1}, {3: torch.ones(1)})),
    )
    return [
        built(
            owner,
            {
                "num_checkpoints": whole(1),
                "checkpoint_dir": any_of(becomes(3), becomes(object()), becomes(None, fine=True)),
                "keep_on_disk": flag(),
                "half_life_samples": number(0.0, above=True),
                "warmup_fraction": number(0.0, 1.0, above=True),
                "device": device(),
            },
            num_checkpoints=2,
        ),
        Row(
            f"{owner}.update",
            {
                "model": of_class(None, nn.Linear(2, 2), nn.Identity(), optimizer()),
                "num_samples": whole(1),
            },
            lambda it, folder: {"model": Net(), "num_samples": 4},
            "averager-memory",
        ),
        Row(
            f"{owner}.decay",
            {"num_samples": whole(1)},
            lambda it, folder: {"num_samples": 4},
            "averager-memory",
        ),
        *(
            Row(
                f"{owner}.add_checkpoint:{where}",
                {"state_dict": broken_weights, "epoch": whole(0, optional=True)},
                lambda it, folder: {"state_dict": Net().state_dict(), "epoch": 4},
                f"averager-{where}",
                says={"state_dict": "state_dict|checkpoint"},
            )
            for where in ("memory", "disk")
        ),
        Row(
            f"{owner}.get_averaged_state_dict",
            {"kind": choice(optional=True)},
            lambda it, folder: {"kind": "ema"},
            "averager-memory",
        ),
        state_row(owner, "averager-memory"),
        Row(
            "average_checkpoints",
            {
                "checkpoint_paths": any_of(
                    *map(becomes, ([], None, 3, "nothing", ["nothing"], [3], [__file__]))
                ),
                "device": device(),
            },
            lambda it, folder: {"checkpoint_paths": [write_model(folder)], "device": "cpu"},
            says={"checkpoint_paths": "checkpoint"},
        ),
    ]


def quality_rows() -> list[Row]:
    owner = "DataQualityScorer"
    above = number(0.0, above=True)
    seats = [[], [0.5], [0.5] * 5, [0.5, math.nan], [0.5, math.inf], ["a", "b"], 3, "rubbish"]
    ratings = any_of(*map(becomes, seats), becomes(None, fine=True))
    parts = any_of(*map(becomes, [*seats, [0.0, 0.0], [-1.0, 2.0]]), becomes(None, fine=True))
    scores = values(0.0, 1.0, any_length=True)
    game = {
        "game_id": "g",
        "game_length": 50,
        "winner": 1,
        "elo_p1": 1200.0,
        "elo_p2": 1300.0,
        "move_entropy": 1.0,
        "game_timestamp": 0.0,
        "pre_computed_quality": None,
        "players": 2,
        "surprise": 0.3,
        "current_time": 10.0,
    }
    return [
        built(
            owner,
            {
                "min_game_length": above,
                "max_game_length": above,
                "optimal_game_length": above,
                "max_elo_diff": above,
                "decisive_bonus": number(0.0),
                "draw_penalty": number(0.0),
                "freshness_decay_hours": above,
                "freshness_weight": number(0.0, 1.0),
                "weights": any_of(
                    *map(
                        becomes,
                        (3, "rubbish", [], {}, {"lenght": 1.0}, {"length": -1.0}, {"length": 0.0}),
                    ),
                    becomes({"length": math.nan}),
                    becomes(None, fine=True),
                ),
                "max_entropy": above,
                "surprise_scale": above,
            },
            min_game_length=20,
        ),
        Row(
            f"{owner}.for_lengths",
            {"lengths": values(0.0, any_length=True)},
            lambda it, folder: {"lengths": np.arange(20.0, 60.0)},
        ),
        Row(
            f"{owner}.compute_freshness_score",
            {"game_timestamp": number(optional=True), "current_time": number(optional=True)},
            lambda it, folder: {"game_timestamp": 0.0, "current_time": 9.0},
            "scorer",
        ),
        Row(
            f"{owner}.score_game",
            {
                "game_id": text(),
                "game_length": number(0.0),
                "winner": any_of(
                    *map(becomes, (-1, 3, 1.5, "1", math.nan, [])), becomes(None, fine=True)
                ),
                "elo_p1": number(optional=True),
                "elo_p2": number(optional=True),
                "move_entropy": number(0.0, optional=True),
                "game_timestamp": number(optional=True),
                "pre_computed_quality": number(0.0, 1.0, optional=True),
                "players": whole(2, 5),
                "surprise": number(0.0, optional=True),
                "current_time": number(optional=True),
            },
            lambda it, folder: dict(game),
            "scorer",
        ),
        Row(
            f"{owner}.score_game:seats",
            {"elos": ratings, "outcome": parts, "mean_values": parts},
            lambda it, folder: {
                "game_id": "g",
                "game_length": 50,
                "elos": None,
                "outcome": [1.0, 0.0],
                "mean_values": [0.5, 0.5],
            },
            "scorer",
        ),
        Row(
            f"{owner}.expression",
            {
                "columns": any_of(*map(becomes, ([], ["winner"], None, 3))),
                "current_time": number(),
            },
            lambda it, folder: {"columns": ["length"], "current_time": 0.0},
            "scorer",
            says={"columns": "column"},
        ),
        Row(
            f"{owner}.score_frame",
            {"games": frame_changes(), "current_time": number()},
            lambda it, folder: {"games": games_frame(), "current_time": 100.0},
            "scorer",
            says={"games": "games|column"},
        ),
        Row(
            f"{owner}.compute_sample_weights",
            {"scores": scores, "temperature": number(0.0, above=True)},
            lambda it, folder: {"scores": unit(), "temperature": 1.0},
            "scorer",
        ),
        Row(
            f"{owner}.compute_sample_weights:records",
            {"scores": any_of(becomes([GameQualityScore("g", math.nan, 1, 1, 1, 1)]), EMPTY)},
            lambda it, folder: {"scores": [GameQualityScore("g", 0.5, 1, 1, 1, 1)] * 3},
            "scorer",
        ),
        state_row(owner, "scorer", "state"),
    ]


def sampler_rows() -> list[Row]:
    owner = "QualityWeightedSampler"
    return [
        built(
            owner,
            {
                "scores": values(0.0, 1.0, any_length=True),
                "num_samples": whole(1, optional=True),
                "replacement": flag(),
                "temperature": number(0.0, above=True),
                "seed": whole(0),
                "rank": whole(0, 2),
                "world_size": whole(1),
            },
            scores=unit(),
            num_samples=5,
            temperature=1.0,
            world_size=2,
        ),
        Row(
            f"{owner}.__init__:weights",
            {
                "weights": values(0.0, any_length=True, others=(becomes(np.zeros(4)),)),
                "num_samples": whole(1, 9, optional=True),
            },
            lambda it, folder: {
                "scores": None,
                "weights": torch.from_numpy(unit()),
                "num_samples": 3,
                "replacement": False,
            },
        ),
        Row(f"{owner}.set_epoch", {"epoch": whole(0)}, lambda it, folder: {"epoch": 3}, "sampler"),
        Row(
            f"{owner}.draw",
            {"epoch": whole(0, optional=True)},
            lambda it, folder: {"epoch": 3},
            "sampler",
        ),
        Row(
            f"{owner}.importance_weights",
            {
                "indices": any_of(
                    FRACTIONS,
                    TRUTHS,
                    META,
                    WORDS,
                    holding(-1.0),
                    becomes("rubbish"),
                    becomes(np.array([20])),
                    becomes(np.array([-1])),
                    becomes(torch.tensor([20])),
                    becomes(np.array([[3]]), fine=True),
                    becomes(None, fine=True),
                ),
                "beta": number(0.0, 1.0),
            },
            lambda it, folder: {"indices": np.arange(5), "beta": 0.5},
            "sampler",
        ),
        Row(
            f"{owner}.state_dict",
            {"consumed": whole(0, 16)},
            lambda it, folder: {"consumed": 3},
            "sampler",
        ),
        state_row(owner, "sampler", "state"),
    ]


def miner_rows() -> list[Row]:
    owner = "HardExampleMiner"
    share = number(0.0, 1.0, above=True)
    facts = values(finite=False, optional=True)
    return [
        built(
            owner,
            {
                "buffer_size": whole(1),
                "hard_fraction": number(0.0, 1.0),
                "loss_threshold_percentile": number(0.0, 100.0),
                "uncertainty_weight": number(0.0),
                "decay_rate": share,
                "min_samples_before_mining": whole(0),
                "max_times_sampled": whole(1),
                "surprise_weight": number(0.0),
                "max_game_share": share,
                "smoothing": share,
                "seed": any_of(*map(becomes, ("rubbish", -1, 1.5, object(), math.nan))),
            },
            buffer_size=10,
        ),
        Row(
            f"{owner}.record_batch",
            {
                "indices": rows(),
                "losses": values(finite=False),
                "uncertainties": facts,
                "surprises": facts,
                "reference_losses": facts,
                "games": rows(optional=True),
            },
            lambda it, folder: {
                "indices": torch.from_numpy(indices()),
                "losses": losses(),
                "uncertainties": unit(),
                "surprises": unit(),
                "reference_losses": unit(),
                "games": indices(),
            },
            "miner",
        ),
        Row(
            f"{owner}.load_examples",
            {
                "indices": rows(changes=(becomes([1] * BATCH),)),
                "hardness": values(0.0),
                "games": rows(optional=True),
            },
            lambda it, folder: {"indices": indices(), "hardness": losses(), "games": indices()},
            "miner",
        ),
        Row(
            f"{owner}.get_hard_indices",
            {"num_samples": whole(0), "return_scores": flag()},
            lambda it, folder: {"num_samples": 2},
            "miner",
        ),
        Row(f"{owner}.hardest", {"n": whole(0)}, lambda it, folder: {"n": 2}, "miner"),
        Row(
            f"{owner}.get_sample_weights",
            {
                # any number of rows, also none
                "indices": any_of(
                    DEEP,
                    META,
                    WORDS,
                    FRACTIONS,
                    TRUTHS,
                    NONE,
                    becomes(3),
                    becomes([-1]),
                    becomes([2**31]),
                    Change("empty", lambda good: good[:0], fine=True),
                ),
                "base_weight": number(0.0),
                "hard_weight": number(0.0),
                "count": flag(),
            },
            lambda it, folder: {"indices": indices(), "base_weight": 1.0, "hard_weight": 2.0},
            "miner",
        ),
        Row(
            f"{owner}.create_mixed_batch_indices",
            {
                "batch_size": whole(1),
                "all_indices": any_of(
                    *map(becomes, (0, -5, None, 1.5, "rubbish", [], 2**40, [1.0, 2.0])),
                    becomes(np.ones((2, 2), dtype=int)),
                    becomes(torch.arange(9, device="meta")),
                    becomes(range(-3, 4)),
                    becomes(range(3), fine=True),
                    becomes(torch.arange(40), fine=True),
                ),
            },
            lambda it, folder: {"batch_size": 4, "all_indices": 40},
            "miner",
        ),
        state_row(owner, "miner", "state"),
    ]


def tracker_rows() -> list[Row]:
    owner = "PerSampleLossTracker"
    row = whole(0, 2**30 + 1)
    parts = values(finite=False, optional=True)
    return [
        built(
            owner,
            {
                "max_samples": whole(1),
                "history_epochs": whole(1),
                "percentile_hard": number(0.0, 100.0),
                "learned_loss": number(optional=True),
                "early_epochs": whole(1),
            },
            max_samples=10,
        ),
        Row(
            f"{owner}.record_batch",
            {
                "batch_indices": rows(),
                "losses": values(finite=False),
                "epoch": whole(0, 2**63),
                "batch_idx": whole(0, 2**63),
                "policy_losses": parts,
                "value_losses": parts,
            },
            lambda it, folder: {
                "batch_indices": indices(),
                "losses": losses(),
                "epoch": 3,
                "batch_idx": 2,
                "policy_losses": unit(),
                "value_losses": unit(),
            },
            "tracker",
            says={"batch_indices": "batch_indices|losses"},
        ),
        Row(
            f"{owner}.get_hardest_samples", {"n": whole(0)}, lambda it, folder: {"n": 3}, "tracker"
        ),
        *(
            Row(
                f"{owner}.{name}",
                {"sample_idx": row},
                lambda it, folder: {"sample_idx": 3},
                "tracker",
            )
            for name in (
                "get_sample_history",
                "get_record",
                "get_learning_curve",
                "get_forgetting_count",
            )
        ),
        state_row(owner, "tracker", "state"),
    ]


def loss_arguments(it: Any, folder: Path) -> Arguments:
    policy = torch.softmax(
        torch.randn(BATCH, ACTIONS, generator=torch.Generator().manual_seed(1)), 1
    )
    return {
        "policy_logits": policy.log().requires_grad_(),
        "policy_targets": policy,
        "value_pred": torch.zeros(BATCH, SEATS),
        "value_targets": torch.from_numpy(shares()).float(),
        "legal_mask": torch.ones(BATCH, ACTIONS, dtype=torch.bool),
    }


def loss_kinds() -> dict[str, Kind]:
    integers = Change("int64", lambda good: good.detach().long())
    return {
        "policy_logits": tensor(integers),
        "policy_targets": tensor(holding(math.nan), holding(-0.5), holding(9.0), holding(math.inf)),
        "value_pred": tensor(integers),
        "value_targets": tensor(holding(math.nan), holding(-0.5), holding(9.0), holding(math.inf)),
        "legal_mask": any_of(
            SHORT, META, becomes("rubbish"), becomes(3), becomes(torch.ones(BATCH, ACTIONS)),
            becomes(torch.zeros(BATCH, ACTIONS, dtype=torch.bool)), becomes(None, fine=True),
        ),
    }  # fmt: skip


# of two shapes that differ, either may be named
SHAPES = {
    "policy_logits": "policy_logits|policy_targets|legal_mask|value_pred",
    "policy_targets": "policy_targets",
    "value_pred": "value_pred|value_targets",
    "value_targets": "value_pred|value_targets",
    "legal_mask": "legal_mask|illegal",
}


def loss_rows() -> list[Row]:
    return [
        Row(
            "compute_per_sample_loss",
            {
                **loss_kinds(),
                "policy_weight": number(0.0),
                "value_weight": number(0.0),
                "reduction": choice(),
                "value_kind": choice(),
                "validate": any_of(becomes(True, fine=True), becomes(None, fine=True)),
            },
            lambda it, folder: {
                **loss_arguments(it, folder),
                "policy_weight": 1.0,
                "value_weight": 1.0,
                "reduction": "none",
                "value_kind": "logits",
            },
            says=SHAPES,
        ),
        Row(
            "TrainingEnhancementsFacade.compute_per_sample_loss",
            {**loss_kinds(), "reduction": choice()},
            lambda it, folder: {**loss_arguments(it, folder), "reduction": "none"},
            "facade",
            says=SHAPES,
        ),
    ]


def ensemble_rows() -> list[Row]:
    owner = "ModelEnsemble"

    def batches(it: Any, folder: Path) -> Arguments:
        student = Net(9)
        return {
            "student": student,
            "batches": [make_batch(1)["features"]],
            "optimizer": torch.optim.SGD(student.parameters(), lr=0.1),
            "value_weight": 1.0,
        }

    name = any_of(*map(becomes, ("rubbish", "", None, 3, [])))
    return [
        built(
            owner,
            {
                "model_class": of_class(Net(), optional=True),
                "model_kwargs": any_of(
                    becomes(3), becomes("rubbish"), becomes([1]), becomes(None, fine=True)
                ),
                "device": device(),
                "value_kind": choice(),
                "seed": whole(0),
            },
            model_class=Net,
        ),
        Row(
            f"{owner}.add_model",
            {
                "model_or_path": any_of(*map(becomes, (None, 3, "nothing", __file__, [], Net))),
                "weight": number(0.0),
                "name": any_of(becomes("m1"), becomes(3), becomes([]), becomes(None, fine=True)),
            },
            lambda it, folder: {"model_or_path": Net(), "weight": 1.0, "name": "free"},
            "ensemble",
        ),
        Row(
            f"{owner}.get_model",
            {"name": any_of(becomes("rubbish", fine=True), becomes(None, fine=True))},
            lambda it, folder: {"name": "m1"},
            "ensemble",
        ),
        Row(
            f"{owner}.update_weight",
            {"name": name, "weight": number(0.0)},
            lambda it, folder: {"name": "m1", "weight": 2.0},
            "ensemble",
        ),
        Row(
            f"{owner}.predict",
            {
                "features": any_of(
                    *map(becomes, (None, "rubbish", 3)), META, becomes(torch.ones(3, 9))
                ),
                "legal_mask": any_of(
                    SHORT,
                    META,
                    becomes("rubbish"),
                    becomes(torch.ones(BATCH, ACTIONS)),
                    becomes(torch.zeros(BATCH, ACTIONS, dtype=torch.bool)),
                    becomes(None, fine=True),
                ),
            },
            lambda it, folder: {
                "features": make_batch(0)["features"],
                "legal_mask": torch.ones(BATCH, ACTIONS, dtype=torch.bool),
            },
            "ensemble",
        ),
        Row(
            f"{owner}.sample_model",
            {"generator": of_class(optional=True), "mode": choice(), "curve": choice()},
            lambda it, folder: {
                "generator": np.random.default_rng(0),
                "mode": "pfsp",
                "curve": "hard",
            },
            "ensemble",
        ),
        Row(
            f"{owner}.record_result",
            {"name": name, "score": number(0.0, 2.0), "games": number(0.0, above=True)},
            lambda it, folder: {"name": "m1", "score": 1.0, "games": 2.0},
            "ensemble",
        ),
        Row(
            f"{owner}.pfsp_priorities",
            {"curve": choice()},
            lambda it, folder: {"curve": "even"},
            "ensemble",
        ),
        Row(
            f"{owner}.distill",
            {
                "student": of_class(None, Broken(), Broken((torch.ones(BATCH, 4), torch.ones(3)))),
                "batches": any_of(*map(becomes, ([], None, 3, ["rubbish"], [None]))),
                "optimizer": of_class(None, Net()),
                "value_weight": number(0.0),
            },
            batches,
            "ensemble",
            says={"batches": "batches|features"},
        ),
        state_row(owner, "ensemble"),
    ]


def ewc_rows() -> list[Row]:
    owner = "EWCRegularizer"
    other = nn.Linear(2, 2)
    another_shape = Net()
    another_shape.body = nn.Linear(3, 7)
    another_model = of_class(None, optimizer(), other, another_shape)

    def batch_with(**changes: Any) -> Change:
        return Change(f"a batch with {changes}", lambda good: [make_batch(1) | changes])

    return [
        built(
            owner,
            {
                "model": of_class(None, nn.Identity(), optimizer()),
                "lambda_ewc": number(0.0),
                "normalize_fisher": any_of(*map(becomes, ("rubbish", 3, None))),
                "gamma": number(0.0, 1.0, above=True),
                "anchor": choice(),
                "seed": whole(0, 2**63),
                "heads": any_of(
                    *map(becomes, (3, "rubbish", {"policy": "rubbish"})), becomes(None, fine=True)
                ),
            },
            model=Net(),
        ),
        Row(
            f"{owner}.compute_fisher",
            {
                "dataloader": any_of(
                    *map(becomes, (None, 3, "rubbish", [], [None], [3], [{}], [()])),
                    batch_with(features=torch.ones(3, 9)),
                    batch_with(features=torch.full((BATCH, 6), math.nan)),
                    batch_with(features=torch.ones(BATCH, 6, device="meta")),
                    batch_with(legal_mask=torch.ones(BATCH, 5)),
                ),
                "criterion": any_of(becomes(3), becomes("rubbish"), becomes(None, fine=True)),
                "num_samples": whole(1),
                "device": device(),
            },
            lambda it, folder: {
                "dataloader": [make_batch(1)],
                "criterion": None,
                "num_samples": BATCH,
                "device": None,
            },
            "ewc",
            says={"dataloader": "dataloader|features|legal_mask|batch|gradient"},
        ),
        Row(
            f"{owner}.penalty", {"model": another_model}, lambda it, folder: {"model": Net()}, "ewc"
        ),
        Row(
            f"{owner}.add_gradient",
            {"model": another_model},
            lambda it, folder: {"model": Net()},
            "ewc",
        ),
        Row(
            f"{owner}.unprotected",
            {"model": of_class(None, optimizer())},
            lambda it, folder: {"model": Net()},
            "ewc",
        ),
        Row(
            f"{owner}.save_state",
            {"path": any_of(*map(becomes, (None, 3, [], object())))},
            lambda it, folder: {"path": folder / "ewc.safetensors"},
            "ewc",
        ),
        Row(
            f"{owner}.load_state",
            {"path": any_of(*map(becomes, (None, 3, [], object(), "nothing", __file__)))},
            lambda it, folder: (
                it.save_state(folder / "ewc.safetensors") or {"path": folder / "ewc.safetensors"}
            ),
            "ewc",
        ),
        state_row(owner, "ewc", "state"),
    ]


def feedback_rows() -> list[Row]:
    owner = "EvaluationFeedbackHandler"
    above = number(0.0, above=True)
    share = number(0.0, 1.0, above=True)
    settings = {
        "optimizer": of_class(Net(), optional=True),
        "config_key": any_of(*map(becomes, (None, 3, "", []))),
        "min_lr": number(0.0),
        "max_lr": number(1e-6),
        "elo_history_window": whole(2),
        "lr_increase_factor": number(1.0),
        "lr_decrease_factor": share,
        "lr_plateau_factor": share,
        "elo_rising_threshold": number(0.0),
        "elo_falling_threshold": number(high=0.0),
        "exploration_plateau_factor": above,
        "selfplay_plateau_factor": above,
        "selfplay_falling_factor": above,
        "confidence": share,
        "min_evaluations": whole(2, 6),
        "plateau_slack": number(1.0),
    }
    good = {"optimizer": optimizer(), "config_key": "hex8_2p"}
    wide = 1e7  # Elo
    return [
        built(owner, settings, **good),
        Row(
            "create_evaluation_feedback_handler",
            {name: settings[name] for name in good},
            lambda it, folder: dict(good),
        ),
        Row(
            f"{owner}.on_evaluation",
            {
                "evaluation_id": any_of(*map(becomes, (None, 3, "", []))),
                "elo": number(-wide, wide),
                "low": number(-wide, 1200.0),
                "high": number(1200.0, wide),
                "number": whole(0, optional=True),
                "confidence": share,
            },
            lambda it, folder: {
                "evaluation_id": "new",
                "elo": 1200.0,
                "low": 1190.0,
                "high": 1210.0,
                "number": 9,
                "confidence": 0.95,
            },
            "feedback",
            says={"elo": "elo|low|high"},
        ),
        Row(
            f"{owner}.apply_lr_adjustment",
            {"current_epoch": whole(0)},
            lambda it, folder: {"current_epoch": 3},
            "feedback",
        ),
        state_row(owner, "feedback"),
    ]


def seed_rows() -> list[Row]:
    owner = "SeedManager"
    word = whole(0, 2**32)
    return [
        built(
            owner,
            {"seed": whole(0, 2**128, optional=True), "deterministic": flag(), "benchmark": flag()},
            seed=3,
        ),
        *(
            Row(f"{owner}.{name}", {"offset": word}, lambda it, folder: {"offset": 3}, "seeds")
            for name in ("seed_sequence", "get_numpy_generator", "fork")
        ),
        Row(
            f"{owner}.get_generator",
            {"offset": word, "device": device()},
            lambda it, folder: {"offset": 3, "device": "cpu"},
            "seeds",
        ),
        Row(f"{owner}.advance", {"steps": whole(0, 2**32)}, lambda it, folder: {"steps": 3}, "seeds",
            says={"steps": "steps|position"}),
        state_row(owner, "seeds"),
        state_row(owner, "seeds", "state", "load_state"),
        Row(
            "set_reproducible_seed",
            {"seed": whole(0, 2**128), "deterministic": flag()},
            lambda it, folder: {"seed": 3, "deterministic": False},
        ),
    ]  # fmt: skip


def config_rows() -> list[Row]:
    owner = "TrainingConfig"
    settings = any_of(
        *map(
            becomes,
            (
                3,
                "rubbish",
                [1],
                {"training.batch_size": -4},
                {"training": {"batch_size": math.nan}},
                {"training": 3},
                {"seed": []},
                {"rubbish": 1},
                {3: 4},
                {"optimizer.betas": (1.0,)},
                {"optimizer.learning_rate": math.inf},
            ),
        )
    )
    named = "settings|training|batch_size|seed|rubbish|3|betas|learning_rate"
    presets = any_of(*map(becomes, ("rubbish", "", 3, [], object())))
    bounds = {
        "policy_weight": number(0.0),
        "gradient_accumulation_steps": whole(1),
        "hard_fraction": number(0.0, 1.0),
        "lr_backoff": number(0.0, 1.0, above=True),
        "precision": choice(),
        "value_kind": choice(),
        "clip_mode": choice(),
        "schedule": of_class(TrainingConfig(), optional=True),
        "total_steps": whole(1),
        "validate_targets": any_of(*map(becomes, ("rubbish", 3, [])), becomes(None, fine=True)),
        "enable_hard_mining": any_of(*map(becomes, ("rubbish", 3, None))),
        "seed": whole(0),
        "min_clip": number(0.0, 10.0, above=True),
    }
    return [
        Row(
            f"{owner}.load",
            {
                "preset": any_of(*map(becomes, ("rubbish", "", 3, [])), becomes(None, fine=True)),
                "file": any_of(
                    *map(becomes, ("nothing.toml", __file__, 3, [])), becomes(None, fine=True)
                ),
                "environ": any_of(
                    *map(
                        becomes,
                        (
                            3,
                            "rubbish",
                            {"RINGRIFT_TRAINING__BATCH_SIZE": "-4"},
                            {"RINGRIFT_TRAINING__BATCH_SIZES": "4"},
                            {"RINGRIFT_SEED": "x"},
                        ),
                    ),
                    becomes({"RINGRIFT": "x"}, fine=True),
                ),
                "overrides": settings,
            },
            lambda it, folder: {"preset": "smoke", "environ": {}, "overrides": {"seed": 3}},
            says={
                "file": "file",
                "environ": "environ|batch_size|BATCH_SIZE|seed",
                "overrides": f"overrides|{named}",
            },
        ),
        Row(f"{owner}.preset", {"name": presets}, lambda it, folder: {"name": "smoke"},
            says={"name": "preset"}),
        Row(
            f"{owner}.from_dict",
            {"data": settings},
            lambda it, folder: {"data": {"seed": 3}},
            says={"data": f"data|{named}"},
        ),
        Row(
            f"{owner}.with_overrides",
            {"overrides": settings},
            lambda it, folder: {"overrides": {"seed": 3}},
            says={"overrides": f"overrides|{named}"},
            call=lambda it, arguments: TrainingConfig().with_overrides(**arguments),
        ),
        built(
            "FacadeConfig",
            bounds,
            says={"total_steps": "total_steps"},
            schedule=TrainingConfig().schedule,
            total_steps=10,
        ),
        Row(
            "FacadeConfig.from_training_config",
            {"config": of_class(None, FacadeConfig()), "total_steps": whole(1)},
            lambda it, folder: {"config": TrainingConfig(), "total_steps": 10},
        ),
    ]  # fmt: skip


def facade_rows() -> list[Row]:
    owner = "TrainingEnhancementsFacade"
    weights = values(0.0, lists=False, optional=True, others=(becomes(torch.zeros(BATCH)),))
    facts = values(finite=False, optional=True)
    return [
        Row(
            f"{owner}.__init__",
            {
                "model": of_class(None, nn.Identity(), optimizer()),
                "optimizer": of_class(None, Net()),
                "config": of_class(TrainingConfig(), optional=True),
                "loss_fn": any_of(becomes(3), becomes("rubbish"), becomes(None, fine=True)),
                "ewc": of_class(optional=True),
            },
            lambda it, folder: (lambda model: {"model": model, "optimizer": adam(model)})(Net()),
        ),
        Row(
            f"{owner}.train_step:parts",
            {
                "features": any_of(SHORT, META, NONE, EMPTY),
                "policy_targets": tensor(becomes(torch.full((BATCH,), 99)), FRACTIONS),
                "value_targets": tensor(holding(math.nan), holding(-0.5)),
                "indices": rows(optional=True, changes=(becomes(np.full(BATCH, ROWS)),)),
                "weights": weights,
                "legal_mask": loss_kinds()["legal_mask"],
                "games": rows(optional=True),
                "surprise": facts,
                "reference_loss": facts,
            },
            lambda it, folder: make_batch(3),
            "facade",
            says={**SHAPES, "features": "features|policy_targets|legal_mask"},
            call=lambda it, arguments: it.train_step(arguments),
        ),
        Row(
            f"{owner}.train_step",
            {
                "batch": any_of(
                    *map(becomes, (None, 3, "rubbish", [], {}, (1, 2), {"features": torch.ones(1)})),
                    Change("a tuple", lambda b: tuple(list(b.values())[:3]), fine=True),
                )
            },
            lambda it, folder: {"batch": make_batch(3)},
            "facade",
        ),
        Row(
            f"{owner}.set_total_epochs",
            {"total_epochs": whole(1)},
            lambda it, folder: {"total_epochs": 3},
            "facade",
        ),
        Row(
            f"{owner}.get_curriculum_lr_scale",
            {"progress": any_of(*map(becomes, ("1", math.nan, [1.0], True)),
                                *(becomes(x, fine=True) for x in (-1.0, 2.0, None)))},
            lambda it, folder: {"progress": 0.5},
            "facade",
        ),
        Row(
            f"{owner}.set_quality_scores",
            {"scores": values(0.0, 1.0, optional=True, any_length=True), "temperature": number(0.0, above=True, optional=True)},
            lambda it, folder: {"scores": np.linspace(0.1, 0.9, ROWS), "temperature": 2.0},
            "facade",
        ),
        Row(
            f"{owner}.get_hard_indices",
            {"num_samples": whole(0)},
            lambda it, folder: {"num_samples": 2},
            "facade",
        ),
        Row(
            f"{owner}.create_mixed_batch_indices",
            {"batch_size": whole(1), "all_indices": any_of(*map(becomes, (0, -5, None, "rubbish", [])))},
            lambda it, folder: {"batch_size": 4, "all_indices": ROWS},
            "facade",
        ),
        Row(f"{owner}.get_hardest_samples", {"n": whole(0)}, lambda it, folder: {"n": 2}, "facade"),
        Row(
            f"{owner}.get_weighted_loss",
            {
                "per_sample_losses": tensor(EMPTY),
                "batch_indices": rows(optional=True),
                "weights": weights,
            },
            lambda it, folder: {
                "per_sample_losses": losses(),
                "batch_indices": indices(),
                "weights": torch.ones(BATCH),
            },
            "facade",
            says={"per_sample_losses": "per_sample_losses|batch_indices",
                  "batch_indices": "batch_indices"},
        ),
        Row(
            f"{owner}.record_batch",
            {
                "batch_indices": rows(),
                "per_sample_losses": values(finite=False),
                "uncertainties": facts,
            },
            lambda it, folder: {
                "batch_indices": indices(),
                "per_sample_losses": losses(),
                "uncertainties": unit(),
            },
            "facade",
            says={"batch_indices": "batch_indices|per_sample_losses"},
        ),
        Row(
            f"{owner}.on_epoch_end",
            {
                "val_loss": any_of(*map(becomes, ("1", [1.0], 1j, True)),
                                   *(becomes(x, fine=True) for x in (math.nan, math.inf, None))),
                "current_elo": number(optional=True),
            },
            lambda it, folder: {"val_loss": 1.0, "current_elo": 1200.0},
            "facade",
        ),
        Row(
            f"{owner}.on_validation",
            {
                "val_loss": any_of(*map(becomes, ("1", [1.0], 1j, True)),
                                   *(becomes(x, fine=True) for x in (math.nan, math.inf, None))),
                "current_elo": number(optional=True),
            },
            lambda it, folder: {"val_loss": 1.0, "current_elo": 1200.0},
            "facade",
        ),
        Row(
            f"{owner}.state_dict",
            {"include_model": flag()},
            lambda it, folder: {"include_model": True},
            "facade",
        ),
        state_row(owner, "facade", "state"),
    ]  # fmt: skip


ROWS_OF_THE_TABLE = build_rows()
