"""What a generation came to, read from the store: the closing table's rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ringrift_pipeline.store import Artefact, CorruptArtefactError, Store
from ringrift_pipeline.store.kinds import EVALUATION, RATING_LIST

# field of the summary -> (artefact kind, name in its metadata)
_FIELDS: dict[str, tuple[str, str]] = {
    "games": ("selfplay_shards", "selfplay/games"),
    "positions": ("selfplay_shards", "selfplay/positions"),
    "games_per_s": ("selfplay_shards", "selfplay/games_per_s"),
    "train_policy_loss": ("checkpoint", "train/loss_policy"),
    "train_value_loss": ("checkpoint", "train/loss_value"),
    "val_policy_loss": ("checkpoint", "val/loss_policy"),
    "val_value_loss": ("checkpoint", "val/loss_value"),
    "ece_before": ("calibration_report", "val/ece_before"),
    "ece_after": ("calibration_report", "val/ece_after"),
    "rating": ("evaluation", "eval/elo"),
    "rating_low": ("evaluation", "eval/elo_low"),
    "rating_high": ("evaluation", "eval/elo_high"),
    "win_rate_random": ("evaluation", "eval/win_rate_random"),
    "win_rate_random_low": ("evaluation", "eval/win_rate_random_low"),
    "win_rate_random_high": ("evaluation", "eval/win_rate_random_high"),
    "win_rate_heuristic": ("evaluation", "eval/win_rate_heuristic"),
    "win_rate_heuristic_low": ("evaluation", "eval/win_rate_heuristic_low"),
    "win_rate_heuristic_high": ("evaluation", "eval/win_rate_heuristic_high"),
}

Listed = Mapping[int, tuple[str, tuple[float, float, float]]]
"""By generation the digest of its evaluation, and rating, low and high on a list of all ratings."""


@dataclass(frozen=True)
class GenerationSummary:
    """One generation; None wherever it did not get so far.

    ``promoted`` and ``reasons`` are the sensor's decision where there is one, else what the gate
    says in the evaluation's report (``decided`` tells which). The rating, with its interval, is that
    of the list of all ratings where one was given, else by the evaluation's own games. Times are
    seconds.
    """

    config: str
    generation: int
    games: int | None
    positions: int | None
    games_per_s: float | None
    train_policy_loss: float | None
    train_value_loss: float | None
    val_policy_loss: float | None
    val_value_loss: float | None
    ece_before: float | None
    ece_after: float | None
    rating: float | None
    rating_low: float | None
    rating_high: float | None
    win_rate_random: float | None
    win_rate_random_low: float | None
    win_rate_random_high: float | None
    win_rate_heuristic: float | None
    win_rate_heuristic_low: float | None
    win_rate_heuristic_high: float | None
    promoted: bool | None
    reasons: list[str]
    decided: bool
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def listed(store: Store, config: str) -> Listed:
    """The newest list of all ratings, the heuristic at 1200: what its metadata say of the newest
    generations. Nothing where there is none such.
    """
    try:
        newest = store.newest(config, RATING_LIST)
        found = None if newest is None else store.current(config, newest, RATING_LIST, verify=False)
    except CorruptArtefactError:
        return {}
    if found is None or found.metadata.get("anchor") != "heuristic":
        return {}
    evaluations = {
        generation: digest
        for generation, kind, digest in found.metadata["inputs"]
        if kind == EVALUATION
    }
    return {
        int(key): (evaluations[int(key)], (rating, low, high))
        for key, (rating, low, high) in found.metadata.get("ratings", {}).items()
        if int(key) in evaluations
    }


def summarize(
    store: Store,
    config: str,
    generation: int,
    seconds: dict[str, float] | None = None,
    ratings: Listed | None = None,
) -> GenerationSummary:
    """Read a generation's numbers from its artefacts' metadata; ``seconds`` is wall time by asset,
    ``ratings`` the list of all ratings.
    """
    artefacts: dict[str, Artefact | None] = {}

    def metadata(kind: str) -> dict[str, Any]:
        if kind not in artefacts:
            try:
                artefacts[kind] = store.current(config, generation, kind, verify=False)
            except CorruptArtefactError:
                artefacts[kind] = None
        artefact = artefacts[kind]
        return artefact.metadata if artefact is not None else {}

    values: dict[str, Any] = {
        field: metadata(kind).get(name) for field, (kind, name) in _FIELDS.items()
    }
    evaluated = artefacts["evaluation"]
    if ratings and evaluated is not None and generation in ratings:
        digest, bounds = ratings[generation]
        if digest == evaluated.digest:  # else evaluated anew, and on no list yet
            values |= zip(("rating", "rating_low", "rating_high"), bounds, strict=True)
    decision, evaluation = metadata("decision"), metadata("evaluation")
    source = decision or {
        "promoted": evaluation.get("promote"),
        "reasons": evaluation.get("reasons", []),
    }
    return GenerationSummary(
        config=config,
        generation=generation,
        **values,
        promoted=source.get("promoted"),
        reasons=list(source.get("reasons", [])),
        decided=bool(decision),
        seconds=dict(seconds or {}),
    )
