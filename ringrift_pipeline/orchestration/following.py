"""The generation after one that has been evaluated: its settings and its run, or why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dagster import DagsterInstance, RunRequest

from ringrift_pipeline.enhancements.training_config import TrainingConfig
from ringrift_pipeline.evaluation.feedback import NextSettings, next_settings
from ringrift_pipeline.orchestration.decisions import LIMIT, PLAN, STARTED
from ringrift_pipeline.orchestration.generation_runs import generation_runs
from ringrift_pipeline.orchestration.names import (
    CONFIG_TAG,
    FACTORS_TAG,
    PARTITION_TAG,
    TREND_TAG,
    generation_key,
    job_name,
)
from ringrift_pipeline.orchestration.settings import carried_on
from ringrift_pipeline.store import Store, StoreError


@dataclass(frozen=True)
class Following:
    """The next generation: its run, or why there is none (``end``, as in `decisions`)."""

    generation: int
    note: str
    feedback: dict[str, Any] | None
    request: RunRequest | None = None
    end: str | None = None


def following_run(
    instance: DagsterInstance,
    store: Store,
    config: str,
    generation: int,
    values: Mapping[str, Any],
    last: int | None,
) -> Following:
    """The generation after ``generation``, unless the loop ends there.

    Its settings are this generation's, changed as the trend of the ratings asks for.

    Args:
        values: what this generation's run was launched with.
        last: the last generation asked for, None for no limit.
    """
    following = generation + 1
    key = generation_key(following)
    try:
        planned = TrainingConfig.from_dict(store.read_plan(config, generation)["settings"])
        changed = next_settings(store, config, following, carried_on(planned, values, config))
    except (StoreError, ValueError) as error:  # its plan cannot be used
        return Following(following, f"no next generation: {error}", None, end=PLAN)
    feedback = _feedback(changed)
    if last is not None and following > last:
        note = f"{config}: generation {generation_key(last)} was the last asked for"
        return Following(following, note, feedback, end=LIMIT)
    if generation_runs(instance, config, following):
        note = f"{config}: generation {key} has been started already"
        return Following(following, note, feedback, end=STARTED)
    carried = {"last_generation": last} if last is not None else {}
    config_of_run = {**changed.settings.to_dict(), **carried}
    request = RunRequest(
        run_key=f"{config}/{key}",
        job_name=job_name(config),
        partition_key=key,
        run_config={"resources": {"settings": {"config": config_of_run}}},
        tags={
            CONFIG_TAG: config,
            PARTITION_TAG: key,
            TREND_TAG: feedback["trend"],
            FACTORS_TAG: feedback["factors"],
        },
    )
    note = f"{config} generation {key}: {changed.note}; {feedback['factors']}"
    return Following(following, note, feedback, request)


def _feedback(changed: NextSettings) -> dict[str, Any]:
    """What the feedback saw and came to, for the decision artefact and the run's tags."""
    factors = changed.settings.feedback
    decision = changed.decision.to_dict() if changed.decision is not None else {}
    return {
        **decision,
        "trend": decision.get("trend", "undecided"),
        "reason": changed.note,
        "factors": f"rate x{factors.rate_factor:.3g}, "
        f"exploration x{factors.exploration_factor:.3g}, "
        f"selfplay x{factors.selfplay_factor:.3g}",
        "learning_rate": changed.settings.effective_learning_rate,
        "temperature": changed.settings.effective_temperature,
        "games": changed.settings.effective_games,
    }


def not_followed(
    instance: DagsterInstance, config: str, decided: tuple[int, dict[str, Any]] | None
) -> str | None:
    """Why nothing follows the newest generation that was decided, where somebody else had started
    the next one and no run is left that makes it. None where nothing of the kind is to be seen.
    """
    if decided is None or decided[1].get("end") != STARTED:
        return None
    following = decided[0] + 1
    if generation_runs(instance, config, following):
        return None
    key = generation_key(following)
    return f"generation {key} had been started by somebody else, and no run of it is left"
