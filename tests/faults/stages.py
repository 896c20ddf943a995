"""The writers of a generation, one after the other, as the loop calls them, on tiny games."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars  # noqa: F401
import torch

from ringrift_pipeline import evaluation, training
from ringrift_pipeline.enhancements import TrainingConfig
from ringrift_pipeline.selfplay import Plan, collect, load_plan, plan_generation, play_shards
from ringrift_pipeline.selfplay.warm_up import warm_up
from ringrift_pipeline.store import Store
from ringrift_pipeline.training.run import TrainingRun

CONFIG = "square8_2p"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TINY = {
    "seed": 7,
    "device": "cpu",
    "selfplay.games": 12,
    "selfplay.games_per_shard": 6,
    "selfplay.parallel_games": 6,
    "selfplay.workers": 1,
    "selfplay.full_search_fraction": 0.5,
    "search.simulations": 4,
    "search.cheap_simulations": 2,
    "search.max_considered": 4,
    "network.blocks": 1,
    "network.channels": 8,
    "network.value_channels": 8,
    "training.batch_size": 32,
    "training.sample_reuse": 1.0,
    "training.max_steps": 9,
    "training.checkpoint_every": 4,
    "training.holdout_fraction": 0.3,
    "training.threads": 1,
    "training.precision": "float32",
    "quality.enabled": True,
    "gradients.clipping": True,
    "mining.enabled": True,
    "mining.min_samples_before_mining": 64,
    "schedule.warmup_steps": 2,
    "calibration.min_games": 2,
    "calibration.bootstrap": 20,
    "calibration.bins": 5,
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


def _promote(store: Store, plan: Plan) -> None:
    model = store.require(CONFIG, plan.generation, "ema_model")
    store.promote(CONFIG, plan.generation, model, {"why": "a test"})


STAGES: dict[str, Callable[[Store, Plan], Any]] = {
    "selfplay": _selfplay,
    "score_games": training.score_games,
    "mine_hard_examples": training.mine_hard_examples,
    "train": training.train,
    "average": training.average,
    "build_ensemble": training.build_ensemble,
    "calibrate": training.calibrate,
    "evaluate": evaluation.evaluate,
    "promote": _promote,
}
NAMES = ("plan", *STAGES)


def work(root: Path, stage: str, generation: int) -> None:
    """One stage of a generation; ``loop``: all stages of all generations up to it."""
    store = Store(root)
    if stage == "plan":
        plan(store, generation)
    elif stage == "loop":
        for number in range(generation + 1):
            for name in NAMES:
                work(root, name, number)
    elif stage.startswith("train until step "):
        _die_at_step(int(stage.rpartition(" ")[2]))
        work(root, "train", generation)
    else:
        STAGES[stage](store, load_plan(store, CONFIG, generation))


def _die_at_step(number: int) -> None:
    """From now on this process is killed when a training has made that step."""
    step = TrainingRun.step

    def last(run: TrainingRun) -> None:
        step(run)
        if run.iteration >= number:
            os.kill(os.getpid(), signal.SIGKILL)

    TrainingRun.step = last  # type: ignore[method-assign]


def prepare() -> None:
    """What forked processes then need not do again."""
    torch.set_num_threads(1)
    warm_up(CONFIG)
    for room in (training, evaluation):
        for name in room.__all__:
            getattr(room, name)  # they load what they need when they are first asked for
