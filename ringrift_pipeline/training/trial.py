"""A training that lands nothing: the data of a plan, some settings changed, another seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ringrift_pipeline.selfplay.plan import Plan
from ringrift_pipeline.training.run import TrainingRun
from ringrift_pipeline.training.threads import reproducible, torch_threads
from ringrift_pipeline.training.window import Window

if TYPE_CHECKING:
    from ringrift_pipeline.network import RingRiftNetwork
    from ringrift_pipeline.training.hard_examples import HardRows


def train_trial(
    plan: Plan,
    window: Window,
    changes: Mapping[str, Any],
    seed: int,
    *,
    parent: RingRiftNetwork | None = None,
    game_scores: Mapping[str, float] | None = None,
    hard_examples: HardRows | None = None,
    validation: NDArray[np.int64] | None = None,
    before_step: Callable[[TrainingRun], None] | None = None,
) -> TrainingRun:
    """Train to the end, in memory, and return the finished run.

    Depends on the arguments alone: the same ones give the same weights on the same machine.

    Parameters
    ----------
    changes:
        Settings by their dotted names, over the plan's.
    seed:
        Root of everything random in the run, in place of the plan's.
    parent, game_scores, hard_examples:
        As :class:`TrainingRun` takes them; scores and examples are used as far as the settings
        say. The parent is trained in place.
    validation:
        Rows that choose the best of the run's averages; None for all held-out ones.
    before_step:
        Called before every step; what it raises ends the run.

    Raises
    ------
    ConfigError
        for a change that is no setting, or out of bounds.
    """
    settings = plan.settings.with_overrides(dict(changes))
    trial = Plan.from_dict({**plan.raw, "settings": settings.to_dict(), "seed": seed})
    with torch_threads(1), reproducible(trial.seed_for("torch")):
        run = TrainingRun(
            trial,
            window,
            game_scores if settings.quality.enabled else None,
            hard_examples if settings.mining.enabled else None,
            parent,
        )
        if validation is not None:
            run.holdout = validation
        while not run.finished:
            if before_step is not None:
                before_step(run)
            run.step()
    return run
