"""Settings of the next generation, as the trend of the ratings so far asks for them.

Nothing is remembered outside the store: the evaluations and plans of the earlier generations say
it all, so that asking again, on any machine, gives the same answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ringrift_pipeline.enhancements.evaluation_feedback import (
    EvaluationFeedbackHandler,
    FeedbackDecision,
    bounded_scale,
)
from ringrift_pipeline.store import StoreError
from ringrift_pipeline.store.kinds import RATING, RATING_OVER_RANDOM

if TYPE_CHECKING:
    from ringrift_pipeline.enhancements.config_groups import FeedbackConfig
    from ringrift_pipeline.enhancements.training_config import TrainingConfig
    from ringrift_pipeline.store import Store

KIND = "evaluation"


@dataclass(frozen=True)
class NextSettings:
    """``settings`` of a generation, the ``decision`` that changed them (None where there was
    nothing to judge), and in ``note`` why, as one sentence.
    """

    settings: TrainingConfig
    decision: FeedbackDecision | None
    note: str


def next_settings(
    store: Store, config: str, generation: int, settings: TrainingConfig
) -> NextSettings:
    """``settings`` with the three factors of ``feedback`` that ``generation`` is to start with.

    A factor starts from that of the generation before, unless ``settings`` were made with one, and
    is multiplied by what :class:`EvaluationFeedbackHandler` decides from the ratings of the earlier
    generations, within the bounds of ``feedback``. A decision is taken only if the generation
    before was itself evaluated: otherwise its ratings were judged already.

    Raises:
        StoreError: the plan of the generation before is damaged.
    """
    earlier = [number for number in store.generations(config) if number < generation]
    if not earlier:
        return NextSettings(settings, None, "the first generation has no rating to go by")
    if not settings.feedback.enabled:
        return NextSettings(settings, None, "feedback.enabled is off")
    settings = _carried(settings, _settings(store, config, earlier[-1]).feedback)
    handler = _handler(config, settings.feedback)
    judged: list[int] = []
    for rated in _ratings(store, config, earlier):
        try:
            handler.on_evaluation(**rated)
        except ValueError:  # no rating with an interval: a gap
            continue
        judged.append(rated["number"])
        if len(judged) == handler.elo_history_window:
            break
    if earlier[-1] not in judged:
        note = f"generation {earlier[-1]:04d} has no rating with an interval: nothing changes"
        return NextSettings(settings, None, note)
    decision = handler.decision
    return NextSettings(_changed(settings, decision), decision, decision.reason)


def _settings(store: Store, config: str, generation: int) -> TrainingConfig:
    from ringrift_pipeline.enhancements.training_config import TrainingConfig

    return TrainingConfig.from_dict(store.read_plan(config, generation)["settings"])


def _carried(settings: TrainingConfig, before: FeedbackConfig) -> TrainingConfig:
    """With the factors of the generation before, but for those that were given, 1 as well."""
    return settings.with_overrides(
        {
            f"feedback.{name}": getattr(before, name)
            for name in ("rate_factor", "exploration_factor", "selfplay_factor")
            if name not in settings.feedback.model_fields_set
        }
    )


def _handler(config: str, feedback: FeedbackConfig) -> EvaluationFeedbackHandler:
    return EvaluationFeedbackHandler(
        None,
        config,
        elo_history_window=feedback.window,
        lr_increase_factor=feedback.rising_rate,
        lr_decrease_factor=feedback.falling_rate,
        lr_plateau_factor=feedback.plateau_rate,
        elo_rising_threshold=feedback.rising_threshold,
        elo_falling_threshold=feedback.falling_threshold,
        exploration_plateau_factor=feedback.plateau_exploration,
        selfplay_plateau_factor=feedback.plateau_selfplay,
        selfplay_falling_factor=feedback.falling_selfplay,
        confidence=feedback.confidence,
        min_evaluations=feedback.min_evaluations,
        plateau_slack=feedback.plateau_slack,
    )


def _changed(settings: TrainingConfig, decision: FeedbackDecision) -> TrainingConfig:
    feedback = settings.feedback
    changes = {
        "rate_factor": (decision.rate_factor, feedback.min_rate_factor, feedback.max_rate_factor),
        "exploration_factor": (decision.exploration_factor, 0.0, feedback.max_exploration_factor),
        "selfplay_factor": (decision.selfplay_factor, 0.0, feedback.max_selfplay_factor),
    }
    new = {}
    for name, (factor, low, high) in changes.items():
        value = getattr(feedback, name)
        new[f"feedback.{name}"] = value * bounded_scale(factor, value, value, low, high)
    return settings.with_overrides(new)


def _ratings(store: Store, config: str, earlier: list[int]) -> Iterator[dict[str, Any]]:
    """What :meth:`EvaluationFeedbackHandler.on_evaluation` takes, newest first.

    Ends at a change of how evaluations are played: before it ratings have another meaning.
    """
    alike = None
    for generation in reversed(earlier):
        try:
            evaluation = store.current(config, generation, KIND, verify=False)
            played = _settings(store, config, generation).evaluation
        except (StoreError, ValueError):  # a gap: damaged, or of a version we cannot read
            continue
        if evaluation is None:
            continue
        how = (played.simulations, "heuristic" in played.opponents)  # the second: the anchor
        if alike is not None and how != alike:
            return
        alike = how
        # versions before gave both one name
        name = RATING_OVER_RANDOM if RATING_OVER_RANDOM in evaluation.metadata else RATING
        yield {
            "evaluation_id": f"{generation:04d}/{evaluation.digest}",
            "elo": evaluation.metadata.get(name),
            "low": evaluation.metadata.get(f"{name}_low"),
            "high": evaluation.metadata.get(f"{name}_high"),
            "number": generation,
            "confidence": played.confidence,
        }


__all__ = ["NextSettings", "next_settings"]
