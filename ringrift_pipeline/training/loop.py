"""Training of one generation: from the window to a checkpoint, resumable at any time."""

from __future__ import annotations

import json
import math
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringrift_pipeline.selfplay.plan import Plan, open_model
from ringrift_pipeline.selfplay.stopping import Interrupted, Progress, Reporter, ShouldStop
from ringrift_pipeline.training.consolidation import measure_fisher, source_losses
from ringrift_pipeline.training.inputs import reuse, sealed_inputs
from ringrift_pipeline.training.window import build_window, open_window

if TYPE_CHECKING:
    from ringrift_pipeline.enhancements.replicas import Replicas
    from ringrift_pipeline.network import RingRiftNetwork
    from ringrift_pipeline.store import Artefact, Store
    from ringrift_pipeline.training.run import TrainingRun
    from ringrift_pipeline.training.saving import StateSaver

KIND = "checkpoint"
STATE_KIND = "training_state"
METRICS = "metrics.jsonl"
PATIENCE = 30.0
"""Seconds that another process's training of the same generation is waited for: one whose run was
killed ends by itself within seconds."""
BEST = "best"
"""Sub-folder of a checkpoint: the averaged model with the lowest held-out loss; without averaging
the last weights."""


class ResumeError(ValueError):
    """The state to resume from does not fit this plan; the message says what differs."""


def train(
    store: Store,
    plan: Plan,
    resume: str | Path = "auto",
    progress: Progress | None = None,
    should_stop: ShouldStop | None = None,
) -> Artefact:
    """Train the generation's network and land its checkpoint.

    Reads the window, the quality scores and the hard examples (as far as the settings use them)
    and starts from the plan's parent model, or from fresh weights where there is none or its
    shape is not the one the settings ask for. With ``finetune.ewc_weight``, leaving what the model
    of another config needs, from which this one began, is penalised (a ``fisher`` artefact tells,
    measured here the first time). The steps are taken by ``training.processes`` processes that this
    one starts, if not by itself alone; or by those of a ``torchrun``, which all call this. Every ``checkpoint_every`` steps the whole state
    is saved as a ``training_state``, beside the training (:class:`StateSaver`), so that a killed
    run loses no more than that and what was about to land; resumed, it ends in the same checkpoint
    bit for bit (on the CPU).

    Files of the checkpoint: ``model.safetensors`` and ``model.json`` (the last weights),
    ``best/`` (the averaged model at its lowest held-out loss, without averaging the last weights
    again, and its auxiliary heads if it has any), ``state.safetensors`` and ``state.json``
    (optimizer, schedule, sampler, miner, averages, random states) and ``metrics.jsonl``. Metadata
    holds ``train/…`` and ``val/…`` numbers and the parent.

    Parameters
    ----------
    resume:
        ``auto`` returns a checkpoint that is there and goes on with a state that is there;
        ``never`` trains from the start; a path names the folder of a training state.

    Raises
    ------
    MissingArtefactError
        if scores, hard examples or a shard have not been made.
    ResumeError
        if ``resume`` names a state of another plan or window, or the state has a tensor that is
        not finite.
    FinetuneError
        if the penalty cannot be had: the network's shape is no longer the source's.
    NonFiniteStepError
        with ``stability.on_non_finite`` "halt", for the first row, loss or gradient that is not
        finite, naming the rows; the last state saved stays.
    NonFiniteModelError
        if the parent, or what is to be saved, has a weight that is not finite.
    Interrupted
        if ``should_stop`` says so, after the state was saved.
    LockedError
        if another process trains this generation, and goes on doing so.
    ProcessesError
        if there are fewer devices, or rows in a batch, than processes, or one of another machine does
        not see what the first one reads.
    ReplicaError
        in one of several processes: for another that failed or was killed.
    """
    from ringrift_pipeline.training.together import beside, torchrun_rank

    if torchrun_rank():
        return beside(store, plan, resume, should_stop)
    with store.lock(plan.config, f"training-{plan.generation:04d}", PATIENCE):
        return _train(store, plan, resume, progress, should_stop)


def _train(
    store: Store,
    plan: Plan,
    resume: str | Path,
    progress: Progress | None,
    should_stop: ShouldStop | None,
) -> Artefact:
    from ringrift_pipeline.enhancements.replicas import Replicas
    from ringrift_pipeline.network.checkpoint import SIDECAR_FILE, WEIGHTS_FILE
    from ringrift_pipeline.training.auxiliary import FILE, has_heads
    from ringrift_pipeline.training.together import in_processes

    sources = _sources(store, plan, progress, should_stop)
    inputs = sealed_inputs(plan, KIND, sources.values())
    needs = [
        f"{place}{name}" for place in ("", f"{BEST}/") for name in (WEIGHTS_FILE, SIDECAR_FILE)
    ]
    if has_heads(plan.settings.training):
        needs.append(f"{BEST}/{FILE}")
    existing = reuse(store, plan, KIND, inputs, *needs) if resume == "auto" else None
    if existing is not None:
        _remove_states(store, plan, keep=_current_state(store, plan))
    made = in_processes(store, plan, resume, sources, existing, progress, should_stop)
    if made is None:
        made = train_from(store, plan, resume, sources, Replicas(), progress, should_stop)
    assert made is not None
    return made


def train_from(
    store: Store,
    plan: Plan,
    resume: str | Path,
    sources: dict[str, Artefact],
    replicas: Replicas,
    progress: Progress | None,
    should_stop: ShouldStop | None,
) -> Artefact | None:
    """Train from what a run reads, by its role, and land the checkpoint.

    Of several processes all call it; the first one saves, lands and returns it, the others return
    None. Raises as :func:`train`.
    """
    from ringrift_pipeline.training.run import TrainingRun
    from ringrift_pipeline.training.saving import StateSaver
    from ringrift_pipeline.training.threads import reproducible, torch_threads

    reporter = Reporter(progress, should_stop)
    inputs = sealed_inputs(plan, KIND, sources.values())
    parent, parent_note = parent_model(plan, sources.get("parent"))
    with (
        torch_threads(1),
        reproducible(plan.seed_for("torch")),
        StateSaver(store, plan, inputs) as saver,
    ):
        run = TrainingRun(
            plan,
            open_window(sources["window"].path),
            _scores(sources),
            _hard_examples(sources),
            parent,
            sources.get("fisher"),
            replicas,
        )
        resumed_from, before = _restore(store, plan, run, resume, inputs)
        began, first = time.monotonic(), run.samples
        while not run.finished:
            seconds = time.monotonic() - began
            if replicas.any(should_stop is not None and should_stop()):
                replicas.from_first(partial(_save, saver, run, before + seconds))
                raise Interrupted(
                    f"training: stopped at step {run.iteration} of {run.total}; run again to go on"
                )
            run.step()
            rate = (run.samples - first) / max(time.monotonic() - began, 1e-9)
            reporter.report(
                run.iteration,
                run.total,
                f"step {run.iteration}/{run.total}, loss {run.last_loss:.3f}, "
                + (f"best held-out {run.best_loss:.3f}, " if run.best is not None else "")
                + f"{rate:.0f} rows/s",
            )
            due = run.iteration % plan.settings.training.checkpoint_every == 0
            if due and not run.finished and replicas.first:
                saver.save(run, before + time.monotonic() - began)
        saver.wait()
        if not replicas.first:
            return None
        seconds = time.monotonic() - began
        if "parent" in sources:  # read hours ago: a cache may have dropped it
            store.open(sources["parent"].path)
        metadata = _metadata(plan, run, inputs, sources, parent is not None)
        if "fisher" in sources:
            metadata |= source_losses(store, plan, run.best_model())
        metadata |= {
            "parent_note": parent_note,
            "resumed_from_step": resumed_from,
            "train/seconds": before + seconds,
            "train/rows_per_s": (run.samples - first) / max(seconds, 1e-9),
            "train/processes": replicas.count,
        }
        return _land(store, plan, run, metadata)


def _save(saver: StateSaver, run: TrainingRun, seconds: float) -> None:
    saver.save(run, seconds)
    saver.wait()


def _sources(
    store: Store, plan: Plan, progress: Progress | None, should_stop: ShouldStop | None
) -> dict[str, Artefact]:
    """The artefacts that a run reads, by their role."""
    sources = {"window": build_window(store, plan, progress=progress, should_stop=should_stop)}
    if plan.settings.quality.enabled:
        sources["quality_scores"] = store.require(plan.config, plan.generation, "quality_scores")
    if plan.settings.mining.enabled:
        sources["hard_examples"] = store.require(plan.config, plan.generation, "hard_examples")
    if plan.parent is not None:
        sources["parent"] = open_model(store, plan.parent)
    if plan.finetune is not None and plan.settings.finetune.ewc_weight > 0.0:
        sources["fisher"] = measure_fisher(store, plan, progress, should_stop)
    return sources


def _scores(sources: dict[str, Artefact]) -> dict[str, float] | None:
    from ringrift_pipeline.training.quality import game_scores

    return game_scores(sources["quality_scores"]) if "quality_scores" in sources else None


def _hard_examples(sources: dict[str, Artefact]) -> Any:
    from ringrift_pipeline.training.hard_examples import read_hard_examples

    if "hard_examples" not in sources:
        return None
    return read_hard_examples(sources["hard_examples"])


def parent_model(plan: Plan, parent: Artefact | None) -> tuple[RingRiftNetwork | None, str]:
    """The model to start from, of the plan's shape and with auxiliary heads if the plan has them,
    and a line that says which; None for fresh weights.
    """
    from ringrift_pipeline.network import load_model
    from ringrift_pipeline.training.auxiliary import has_heads, load_heads
    from ringrift_pipeline.training.run import network_config

    if parent is None:
        return None, "fresh weights: there is no earlier model"
    model = load_model(parent.path)
    wanted = network_config(plan).to_dict()
    have = model.config.to_dict()
    differing = sorted(
        name for name in wanted if name != "players" and wanted[name] != have.get(name)
    )
    if differing:
        return None, f"fresh weights: the parent differs in {', '.join(differing)}"
    training = plan.settings.training
    if has_heads(training):
        load_heads(parent.path, model)
    whose = "" if parent.config == plan.config else f"{parent.config} "
    return model, f"weights of {whose}generation {parent.generation:04d}"


def _restore(
    store: Store, plan: Plan, run: TrainingRun, resume: str | Path, inputs: dict[str, Any]
) -> tuple[int, float]:
    """Load the state to go on from, if there is one; returns the step it was taken at, and the
    seconds that the training had taken by then.
    """
    from ringrift_pipeline.network import ModelError
    from ringrift_pipeline.training.state import load_state

    found = run.replicas.from_first(partial(_find_state, store, plan, resume, inputs))
    if found is None:
        return 0, 0.0
    artefact = store.open(found, verify=False)  # the first process has
    try:
        run.load_state_dict(load_state(artefact.path, run.largest_state))
    except (ValueError, ModelError) as error:
        raise ResumeError(
            f"the training state {artefact.path} cannot be gone on from: {error}; use --resume never"
        ) from error
    return run.iteration, float(artefact.metadata.get("seconds", 0.0))


def _find_state(
    store: Store, plan: Plan, resume: str | Path, inputs: dict[str, Any]
) -> Path | None:
    """The folder of the verified state to go on from; None to begin."""
    from ringrift_pipeline.training.state import TENSORS, TREE

    if resume == "never":
        return None
    if resume == "auto":
        artefact = reuse(store, plan, STATE_KIND, inputs, TENSORS, TREE)
        return None if artefact is None else artefact.path
    artefact = store.open(Path(resume))
    if artefact.metadata.get("inputs") != inputs:
        raise ResumeError(
            f"{resume} is the state of another plan, window or parent than those of "
            f"{plan.config} generation {plan.generation:04d}: use --resume auto or never"
        )
    return artefact.path


def _remove_states(store: Store, plan: Plan, keep: Path | None) -> None:
    store.remove(plan.config, plan.generation, STATE_KIND, keep)


def _metadata(
    plan: Plan,
    run: TrainingRun,
    inputs: dict[str, Any],
    sources: dict[str, Artefact],
    started_from_parent: bool,
) -> dict[str, Any]:
    from ringrift_pipeline.network import load_model
    from ringrift_pipeline.training.improvement import gain
    from ringrift_pipeline.training.loss import newest_losses
    from ringrift_pipeline.training.row_checks import check_outputs_of_rows

    losses = run.held_out(run.best_model().to(run.device))
    check_outputs_of_rows(
        f"the model trained for generation {plan.generation:04d}",
        run.dataset.window,
        run.holdout,
        losses.by_row,
    )
    gained: dict[str, float] = {}
    if started_from_parent:
        before = run.held_out(load_model(sources["parent"].path, run.device))
        name = f"the parent ({sources['parent'].path})"
        check_outputs_of_rows(name, run.dataset.window, run.holdout, before.by_row)
        games = run.dataset.window.game[run.holdout]
        gained = {"val/parent_loss": before.loss, **gain(before.by_row, losses.by_row, games)}
    last: dict[str, Any] = {}
    for record in run.records:
        last |= record
    parent = plan.parent or {}
    return {
        "inputs": inputs,
        "plan": plan.digest,
        "window": sources["window"].digest,
        "parent_generation": parent.get("generation"),
        "parent_digest": parent.get("digest"),
        **({"parent_config": parent["config"]} if "config" in parent else {}),
        "parameters": run.model.num_parameters,
        "stop_reason": run.stop_reason or "all steps made",
        "train/steps": run.iteration,
        "train/planned_steps": run.total,
        "train/samples": run.samples,
        "train/rows": len(run.dataset) - len(run.holdout),
        "train/holdout_rows": len(run.holdout),
        "train/new_rows": run.new_rows,
        "train/reuse": run.samples / max(1, run.new_rows),
        "train/passes": run.samples / max(1, len(run.dataset) - len(run.holdout)),
        "train/max_visits": run.stream.max_visits,
        "train/rows_visited": run.stream.visited,
        "train/best_step": run.kept_step,
        **newest_losses(run.records, run.validate_every / 2),
        **{
            name: last[name]
            for name in ("train/epoch_loss_territory", "train/epoch_loss_margin")
            if name in last
        },
        "train/learning_rate": plan.settings.effective_learning_rate,
        "train/rollbacks": run.facade.progress.rollbacks,
        "train/steps_left_out": run.facade.progress.skipped,
        "on_non_finite": plan.settings.stability.on_non_finite,
        "anomalies": run.anomalies,
        **({"train/penalty": last["train/penalty"]} if "train/penalty" in last else {}),
        **losses.metrics(),
        **gained,
        # The last weights are not what is played with: where they say nothing, training stands.
        **{
            name: value if math.isfinite(value) else None
            for name, value in run.held_out(run.model).metrics("val/last_").items()
        },
    }


def _land(store: Store, plan: Plan, run: TrainingRun, metadata: dict[str, Any]) -> Artefact:
    from ringrift_pipeline.network import save_model
    from ringrift_pipeline.training.auxiliary import save_heads
    from ringrift_pipeline.training.pictures import draw_losses
    from ringrift_pipeline.training.state import save_state

    # What the sidecars say must not depend on the clock: same plan, same bytes.
    about = {
        "config": plan.config,
        "generation": plan.generation,
        "parent_generation": metadata["parent_generation"],
        "parent_digest": metadata["parent_digest"],
    }
    if "parent_config" in metadata:
        about["parent_config"] = metadata["parent_config"]
    averaged = plan.settings.averaging.enabled
    kept_loss = run.best_loss if averaged else metadata["val/loss"]
    with store.create(plan.config, plan.generation, KIND, metadata=metadata) as draft:
        save_model(draft, run.model, {**about, "step": run.iteration})
        save_model(
            draft.folder(BEST),
            run.best_model(),
            {**about, "step": run.kept_step, "val_loss": kept_loss},
        )
        save_heads(draft.folder(BEST), run.kept or {})
        save_state(draft, run.state_dict())
        lines = [json.dumps(record, allow_nan=False) for record in run.records]
        (draft / METRICS).write_text("\n".join(lines) + "\n")
        draw_losses(draft, run.records, averaged=averaged)
    _remove_states(store, plan, keep=_current_state(store, plan))
    return draft.artefact


def _current_state(store: Store, plan: Plan) -> Path | None:
    artefact = store.current(plan.config, plan.generation, STATE_KIND, verify=False)
    return None if artefact is None else artefact.path
