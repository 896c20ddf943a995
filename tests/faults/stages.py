"""The writers of a generation, one after the other, as the loop calls them, on tiny games; and those
that work on a finished one.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars  # noqa: F401
from tiny import TRAINED
from waiting import until

from ringrift_pipeline import evaluation, training
from ringrift_pipeline.enhancements import TrainingConfig
from ringrift_pipeline.evaluation.ablation_runs import VARIANTS
from ringrift_pipeline.evaluation.rating_list import play_anchors, rate_all
from ringrift_pipeline.selfplay import (
    Interrupted,
    Plan,
    collect,
    load_plan,
    plan_generation,
    play_shards,
)
from ringrift_pipeline.selfplay.warm_up import warm_up
from ringrift_pipeline.store import Store
from ringrift_pipeline.training.run import TrainingRun

from . import writers

CONFIG = "square8_2p"
TARGET = "square8_3p"  # begins with the model of the other
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TINY = {
    **TRAINED,
    "seed": 7,
    "training.max_steps": 9,
    "evaluation.games": 6,
    "evaluation.max_games": 6,
    "evaluation.simulations": 2,
    "evaluation.anchor_games": 2,
}


def plan(store: Store, generation: int) -> Plan:
    settings = TrainingConfig().with_overrides(TINY)
    return plan_generation(store, CONFIG, generation, settings, NOW)


def _selfplay(store: Store, plan: Plan) -> None:
    play_shards(store, plan)
    collect(store, plan)


def _rate(store: Store, plan: Plan) -> None:
    play_anchors(store, plan)
    rate_all(store, plan.config, plan.generation)


def _promote(store: Store, plan: Plan) -> None:
    model = store.require(CONFIG, plan.generation, "ema_model")
    store.promote(CONFIG, plan.generation, model, {"why": "a test"})


LONG_TRAINING = {
    "training.max_steps": 40,
    "training.sample_reuse": 40.0,
    "training.sample_reuse_limit": 40,
    "training.early_stopping_patience": 0,
    "training.checkpoint_every": 1,
}


Work = Callable[[Store, Plan], Any]
STAGES: dict[str, Work] = {
    "selfplay": _selfplay,
    "score_games": training.score_games,
    "mine_hard_examples": training.mine_hard_examples,
    "train": training.train,
    "average": training.average,
    "build_ensemble": training.build_ensemble,
    "calibrate": training.calibrate,
    "evaluate": evaluation.evaluate,
    "rate": _rate,
    "promote": _promote,
}
NAMES = ("plan", *STAGES)


# -- what works on a finished generation ----------------------------------------------------------


@dataclass(frozen=True)
class Later:
    """A stage beside the loop: what it does, after which other, and what must be done before."""

    work: Work
    after: str = "end"
    before: Work = lambda store, plan: None


def _anchors_are_gone(store: Store, plan: Plan) -> None:
    store.remove(CONFIG, 0, "anchor_games")


def _gauntlet(store: Store, plan: Plan) -> None:
    from ringrift_pipeline.orchestration.gauntlet import Baseline, GauntletConfig, run_gauntlet
    from ringrift_pipeline.orchestration.step import Step

    step = Step(CONFIG, plan.generation, store, lambda *_: None, lambda: False)
    wanted = {"config": CONFIG, "games": 2, "predecessors": 1, "baselines": [Baseline.random]}
    if store.current(CONFIG, plan.generation, "gauntlet") is None:
        run_gauntlet(step, GauntletConfig(**wanted))


def _plan_finetuning(store: Store, plan: Plan) -> None:
    changed = {"finetune.source": CONFIG, "finetune.ewc_samples": 60, "finetune.ewc_weight": 1.0}
    settings = TrainingConfig().with_overrides({**TINY, **changed})
    plan_generation(store, TARGET, 0, settings, NOW)


def _measure_fisher(store: Store, plan: Plan) -> None:
    training.measure_fisher(store, load_plan(store, TARGET, 0))


def _ablate_in_part(store: Store, plan: Plan) -> None:
    """All runs but two, which do as the others do: so there are a few events to try, not a thousand."""

    def all_but_two() -> bool:
        runs = [k for k in store.kinds(CONFIG, plan.generation) if k.startswith("ablation-run-")]
        return len(runs) >= 2 * len(VARIANTS) - 2

    with contextlib.suppress(Interrupted):
        evaluation.ablate(store, plan, seeds=2, steps=1, workers=1, should_stop=all_but_two)


def _ablate(store: Store, plan: Plan) -> None:
    evaluation.ablate(store, plan, seeds=2, steps=1, workers=1)


def _ablate_by_two(store: Store, plan: Plan) -> None:
    evaluation.ablate(store, plan, seeds=2, steps=1, workers=2)


def _export(store: Store, plan: Plan) -> None:
    from ringrift_pipeline.game import get_rules
    from ringrift_pipeline.network import load_model
    from ringrift_pipeline.network.export import export_model

    folder = store.root / "exported" / "model"
    if not folder.exists():
        model = load_model(store.require(CONFIG, plan.generation, "ema_model").path)
        export_model(folder, model, get_rules(CONFIG), {"generation": plan.generation})


def _with_two_workers(work: Work) -> Work:
    def by_two(store: Store, plan: Plan) -> Any:
        shared = replace(plan)
        # not part of the plan, which says the same for any number
        shared.__dict__["settings"] = plan.settings.with_overrides({"selfplay.workers": 2})
        return work(store, shared)

    return by_two


LATER: dict[str, Later] = {
    "anchors": Later(play_anchors, before=_anchors_are_gone),
    "gauntlet": Later(_gauntlet),
    "fisher": Later(_measure_fisher, before=_plan_finetuning),
    "ablate": Later(_ablate, before=_ablate_in_part),
    "export": Later(_export),
    "selfplay by two": Later(_with_two_workers(_selfplay), "selfplay"),
    "evaluate by two": Later(_with_two_workers(evaluation.evaluate), "evaluate"),
    "ablate by two": Later(_ablate_by_two, before=_ablate_in_part),
}
MULTI = (
    "selfplay by two",
    "evaluate by two",
    "ablate by two",
)  # how many events there are is up to chance
KINDS = {  # of artefacts, and the stage that makes each
    "selfplay-shard-": "selfplay",
    "selfplay_shards": "selfplay",
    "quality_scores": "score_games",
    "hard_examples": "mine_hard_examples",
    "window": "train",
    "training_state": "train",
    "checkpoint": "train",
    "ema_model": "average",
    "ensemble": "build_ensemble",
    "calibration_report": "calibrate",
    "evaluation-part-": "evaluate",
    "evaluation": "evaluate",
    "anchor_games": "anchors",
    "rating_list": "rate",
    "gauntlet": "gauntlet",
    "fisher": "fisher",
    "ablation-run-": "ablate",
    "ablation": "ablate",
    "decision": "write: a decision",
}


def work(root: Path, stage: str, generation: int) -> None:
    """One stage of a generation; ``loop``: all stages of all generations up to it."""
    if stage.startswith("write: "):
        return writers.WRITERS[stage.removeprefix("write: ")].write(root)
    if stage.startswith("prepare: "):
        return writers.WRITERS[stage.removeprefix("prepare: ")].prepare(root)
    store = Store(root)
    if stage == "plan":
        plan(store, generation)
    elif stage == "loop":
        for number in range(generation + 1):
            for name in NAMES:
                work(root, name, number)
    elif stage.startswith("train until step "):
        number, _, saved = stage.removeprefix("train until step ").partition(", ")
        made = load_plan(store, CONFIG, generation)
        _die_at_step(int(number), store, made if saved else None)
        training.train(store, made)
    elif stage == "plan a long training":
        settings = TrainingConfig().with_overrides({**TINY, **LONG_TRAINING})
        plan_generation(store, CONFIG, generation, settings, NOW)
    elif stage.startswith("before "):
        LATER[stage.removeprefix("before ")].before(store, load_plan(store, CONFIG, generation))
    elif stage in LATER:
        LATER[stage].work(store, load_plan(store, CONFIG, generation))
    else:
        STAGES[stage](store, load_plan(store, CONFIG, generation))


def _die_at_step(number: int, store: Store, plan: Plan | None) -> None:
    """From now on this process is killed when a training has made that step; of a ``plan`` once the
    state that was due before it has landed, which happens in a thread beside the training.
    """
    step = TrainingRun.step

    def last(run: TrainingRun) -> None:
        step(run)
        if run.iteration < number:
            return
        if plan is not None:
            every = plan.settings.training.checkpoint_every
            due = (run.iteration - 1) // every * every
            until(lambda: landed_step(store, plan.generation) >= due, f"state of step {due}")
        os.kill(os.getpid(), signal.SIGKILL)

    TrainingRun.step = last  # type: ignore[method-assign]


def landed_step(store: Store, generation: int) -> int:
    """The step of the training state that is there, 0 if there is none."""
    state = store.current(CONFIG, generation, "training_state", verify=False)
    return 0 if state is None else int(state.metadata["step"])


def prepare() -> None:
    """What forked processes then need not do again."""
    import hypothesis  # noqa: F401
    import matplotlib.backends.backend_svg  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import openvino  # noqa: F401
    import pandera.polars  # noqa: F401
    import PIL.PngImagePlugin  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import rich.progress  # noqa: F401
    import torch._dynamo  # noqa: F401

    from ringrift_pipeline.evaluation import rating_curve  # noqa: F401

    torch.set_num_threads(1)
    warm_up(CONFIG)
    for room in (training, evaluation):
        for name in room.__all__:
            getattr(room, name)  # they load what they need when they are first asked for
    writers.load()
