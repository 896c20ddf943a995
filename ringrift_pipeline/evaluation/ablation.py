"""Does each enhancement help? Trainings with and without it, on the same data."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from ringrift_pipeline.evaluation.ablation_budget import SEEDS, STEPS
from ringrift_pipeline.evaluation.ablation_runs import (
    VARIANTS,
    AblationError,
    Material,
    Trial,
    TrialResult,
    run_trial,
    split_window,
)
from ringrift_pipeline.evaluation.processes import (
    WorkerDiedError,
    asked_to_stop,
    tell,
    work_through,
)
from ringrift_pipeline.selfplay.stopping import Interrupted, Reporter
from ringrift_pipeline.store.locks import hold
from ringrift_pipeline.training.inputs import Parts, reuse, sealed_inputs

if TYPE_CHECKING:
    from ringrift_pipeline.selfplay.plan import Plan
    from ringrift_pipeline.selfplay.stopping import Progress, ShouldStop
    from ringrift_pipeline.store import Artefact, Store

__all__ = ["KIND", "AblationError", "AblationFailed", "ablate"]

KIND = "ablation"
PART = "ablation-run-"
FORMAT = 2
"""Of what a run is and keeps, and of what the report says; those of another one are made anew."""
FIGURES = "figures.npz"
REPORT, TABLE, FRAME = "report.json", "table.md", "table.parquet"

PATIENCE = 30.0
"""Seconds that another process's ablation of the same generation is waited for: one whose run was
killed ends by itself within seconds."""


class AblationFailed(WorkerDiedError):
    """An ablation ended before it was done; the message says what to do."""


def ablate(
    store: Store,
    plan: Plan,
    *,
    seeds: int = SEEDS,
    steps: int = STEPS,
    fresh: bool = False,
    workers: int = 0,
    resume: str = "auto",
    progress: Progress | None = None,
    should_stop: ShouldStop | None = None,
) -> Artefact:
    """Train with and without each enhancement on a generation's data, and compare.

    Quality weighting, mining, clipping and the schedule, each off in turn and on alone, the moving
    average against the last weights, and the ensemble with the earlier models against the model
    alone: 10 trainings a seed. They start from the generation's parent and read the window of its
    plan, less the games that judge (`split_window`). Finished runs are kept, so that an ablation
    that was stopped goes on, and one with more seeds trains only those. The figures depend on the
    plan, the seeds' number and the steps, not on the workers.

    Scores and hard examples that the generation does not have yet are made first, as training
    makes them.

    Files: ``report.json`` (``comparisons`` with intervals, ``verdicts``, ``rule``), ``table.md``,
    ``table.parquet`` (`tables.ABLATION`), ``ablation.png`` with the whole picture beside it, and
    ``runs/`` (the figures).
    Metadata: ``verdicts``, ``ablation/seconds`` (of all runs), ``ablation/rows_per_s``.

    Args:
        store, plan: a generation that has been played.
        seeds: paired seeds, at least 2.
        steps: optimizer steps of every run, at least 1.
        fresh: start from fresh weights even where there is a parent.
        workers: processes, one thread each; 0 means one a core. On another device than the CPU
            there is one.
        resume: ``never`` trains everything anew.
        progress: called with steps made and planned over all runs.
        should_stop: asked at least every half second.

    Returns:
        Artefact of kind ``ablation``; the current one if it was made from the same inputs.

    Raises:
        AblationError: for arguments out of range, or too few games.
        MissingArtefactError: if a shard or the parent is not there.
        AblationFailed: if a worker dies or hangs; finished runs are kept.
        Interrupted: if asked to stop.
        LockedError: if another process is at it.
    """
    from ringrift_pipeline.training import build_window

    for name, value, least in (("seeds", seeds, 2), ("steps", steps, 1), ("workers", workers, 0)):
        if value < least:
            raise AblationError(f"{name} must be at least {least}, got {value}")
    with ExitStack() as stack:
        stack.enter_context(store.lock(plan.config, f"ablation-{plan.generation:04d}", PATIENCE))
        hooks: dict[str, Any] = {"progress": progress, "should_stop": should_stop}
        window = build_window(store, plan, **hooks)
        stack.callback(os.close, hold(window.path))  # between two runs nobody has it open
        material = _material(store, plan, window, steps, fresh, hooks)
        work = _Work(store, material, seeds, Reporter(progress, should_stop))
        if resume == "never":
            work.parts.clear()
        else:
            existing = reuse(store, plan, KIND, work.inputs, REPORT, FRAME)
            if existing is not None:
                work.parts.clear()
                return existing
            work.recall()
        work.finish(workers)
        artefact = _land(store, work)
        work.parts.clear()
        return artefact


def _material(
    store: Store, plan: Plan, window: Artefact, steps: int, fresh: bool, hooks: dict[str, Any]
) -> Material:
    """The artefacts that runs read, made where they are missing."""
    from ringrift_pipeline.selfplay.plan import open_model
    from ringrift_pipeline.training import mine_hard_examples, score_games
    from ringrift_pipeline.training.ensembling import earlier_members

    return Material(
        plan,
        window,
        score_games(store, plan, **hooks),
        mine_hard_examples(store, plan, in_full=True, **hooks),
        None if fresh or plan.parent is None else open_model(store, plan.parent),
        tuple(earlier_members(store, plan).values()),
        steps,
    )


class _Work:
    """All runs of an ablation: those kept, and those still to be made."""

    def __init__(self, store: Store, material: Material, seeds: int, reporter: Reporter) -> None:
        from ringrift_pipeline.network import resolve_device

        plan = material.plan
        self.material, self.seeds, self.reporter = material, seeds, reporter
        self.device = str(resolve_device(plan.settings.device))
        run_inputs = sealed_inputs(plan, KIND, material.artefacts) | {
            "format": FORMAT,
            "steps": material.steps,
            "fresh": material.parent is None,
            "device": self.device,
        }
        self.run_inputs, self.inputs = run_inputs, run_inputs | {"seeds": seeds}
        self.parts = Parts(store, plan, PART, run_inputs, FIGURES)
        self._store = store
        self.trials = [
            Trial(number, variant, seed)
            for number, (seed, variant) in enumerate(
                (seed, variant) for seed in range(seeds) for variant in VARIANTS
            )
        ]
        self.results: dict[tuple[str, int], TrialResult] = {}
        self._steps: dict[int, int] = {}
        self._began = 0

    def recall(self) -> None:
        """Take the runs that were kept: as parts, or in an ablation with other seeds."""
        earlier = _current(self._store, self.material.plan)
        for trial in self.trials:
            kept = self.parts.find(trial.name)
            if kept is not None:
                found = TrialResult.load(kept.file(FIGURES), kept.metadata["facts"])
            elif earlier is not None and earlier.metadata["run_inputs"] == self.run_inputs:
                facts = earlier.metadata["runs"].get(trial.name)
                if facts is None:
                    continue
                found = TrialResult.load(earlier.file(f"runs/{trial.name}.npz"), facts)
            else:
                continue
            self._take(trial, found)
        self._began = sum(self._steps.values())

    def finish(self, workers: int) -> None:
        """Make the missing runs."""
        from ringrift_pipeline.selfplay.workers import cores

        missing = [trial for trial in self.trials if self.wanted(trial)]
        count = min(workers or cores(), len(missing)) if self.device == "cpu" else 1
        self._report("")
        if count <= 1:
            for trial in missing:
                self.land(trial, run_trial(self.material, trial, self._stepper(trial)))
            return
        try:
            work_through(missing, partial(_run_in_worker, self.material), count, self)
        except WorkerDiedError as error:
            raise AblationFailed(
                f"ablation: {error}; run again to make the runs that are missing, with fewer --workers "
                "if memory is short"
            ) from error

    def wanted(self, trial: Trial) -> bool:
        """Whether a run has not been made."""
        return (trial.variant, trial.seed) not in self.results

    def land(self, trial: Trial, result: TrialResult) -> None:
        """Keep a run's figures."""
        with self.parts.create(trial.name) as draft:
            draft.metadata["facts"] = result.save(draft / FIGURES)
        self._take(trial, result)
        self._report(trial.name)

    def hear(self, message: tuple[int, int]) -> None:
        """Note how many steps a run, by its number, has made; the last one is done when it lands."""
        number, steps = message
        self._steps[number] = min(steps, self.material.steps - 1)
        self._report(self.trials[number].name)

    def check(self) -> None:
        """Raise Interrupted if asked to stop."""
        self.reporter.check("ablation: stopped; finished runs are kept, run again to go on")

    def _stepper(self, trial: Trial) -> Any:
        def before_step(run: Any) -> None:
            self.check()
            self.hear((trial.number, run.iteration))

        return before_step

    def _take(self, trial: Trial, result: TrialResult) -> None:
        self.results[trial.variant, trial.seed] = result
        self._steps[trial.number] = self.material.steps

    def _report(self, name: str) -> None:
        done, total = sum(self._steps.values()), len(self.trials) * self.material.steps
        rate = (done - self._began) / self.reporter.seconds
        left = f", {(total - done) / rate / 60:.0f} min left" if rate > 0.0 else ""
        self.reporter.report(
            done,
            total,
            f"{len(self.results)}/{len(self.trials)} runs{name and f', at {name}'}, "
            f"{rate:.1f} steps/s{left}",
        )


def _run_in_worker(material: Material, trial: Trial) -> TrialResult:
    told = -1.0

    def before_step(run: Any) -> None:
        nonlocal told
        if asked_to_stop():
            raise Interrupted("ablation: stopped")
        if monotonic() - told > 0.5:
            told = monotonic()
            tell((trial.number, run.iteration))

    return run_trial(material, trial, before_step)


# -- what came of it ------------------------------------------------------------------------


def _current(store: Store, plan: Plan) -> Artefact | None:
    from ringrift_pipeline.store import CorruptArtefactError

    try:
        return store.current(plan.config, plan.generation, KIND)
    except CorruptArtefactError:
        return None


def _land(store: Store, work: _Work) -> Artefact:
    import polars as pl

    from ringrift_pipeline.evaluation import ablation_report, tables
    from ringrift_pipeline.store import write_json_atomic
    from ringrift_pipeline.training.tables import polars_schema, write_table

    plan = work.material.plan
    report = _report(work)
    frame = pl.DataFrame(report["comparisons"], schema=polars_schema(tables.ABLATION))
    seconds = sum(result.seconds for result in work.results.values())
    metadata: dict[str, Any] = {
        "inputs": work.inputs,
        "run_inputs": work.run_inputs,
        "verdicts": report["verdicts"],
        "ablation/seconds": seconds,
        "ablation/rows_per_s": sum(result.rows for result in work.results.values()) / seconds,
    }
    with store.create(plan.config, plan.generation, KIND, metadata) as draft:
        write_json_atomic(draft / REPORT, report)
        ablation_report.write_table(draft / TABLE, report)
        write_table(draft / FRAME, frame, tables.ABLATION)
        ablation_report.draw_differences(draft, frame, plan.config, report["confidence"])
        draft.metadata["runs"] = {
            trial.name: work.results[trial.variant, trial.seed].save(
                draft / f"runs/{trial.name}.npz"
            )
            for trial in work.trials
        }
    return draft.artefact


def _report(work: _Work) -> dict[str, Any]:
    from ringrift_pipeline.evaluation.ablation_report import RULE, compare, verdicts
    from ringrift_pipeline.training.loop import parent_model
    from ringrift_pipeline.training.window import open_window

    material = work.material
    plan = material.plan
    split = split_window(open_window(material.window.path), plan)
    confidence = plan.settings.evaluation.confidence
    rows = compare(work.results, work.seeds, bool(material.members), confidence)
    left_out = [] if material.members else ["the ensemble, as there are no earlier models"]
    return {
        "config": plan.config,
        "generation": plan.generation,
        "seeds": work.seeds,
        "steps": material.steps,
        "start": parent_model(plan, material.parent)[1],
        "confidence": confidence,
        "games": split.games,
        "rows": len(split.judges),
        "training_rows": len(split.window.training_rows),
        "ensemble_with": [f"generation {member.generation:04d}" for member in material.members],
        "ended_early": _ended_early(work.trials, work.results),
        "left_out": left_out,
        "comparisons": rows,
        "verdicts": verdicts(rows),
        "rule": RULE,
    }


def _ended_early(
    trials: Sequence[Trial], results: Mapping[tuple[str, int], TrialResult]
) -> dict[str, str]:
    """Runs that made fewer steps than planned, and why."""
    found = {}
    for trial in trials:
        result = results[trial.variant, trial.seed]
        if result.stop_reason:
            found[trial.name] = f"after {result.steps} steps: {result.stop_reason}"
    return found
