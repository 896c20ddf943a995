"""Matches in rotated sets, ratings with intervals, and the gate that promotes.

Names load on first use: importing this room costs neither numba nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ringrift_pipeline.evaluation.ablation import AblationError, AblationFailed, ablate
    from ringrift_pipeline.evaluation.evaluating import evaluate
    from ringrift_pipeline.evaluation.feedback import NextSettings, next_settings
    from ringrift_pipeline.evaluation.gate import (
        Floor,
        GateDecision,
        SprtResult,
        decide,
        set_interval,
        sprt,
        wilson_interval,
    )
    from ringrift_pipeline.evaluation.matches import (
        GAMES_SCHEMA,
        MatchError,
        play_sets,
        set_scores,
    )
    from ringrift_pipeline.evaluation.opponents import EvaluationError
    from ringrift_pipeline.evaluation.ratings import (
        RatingError,
        Ratings,
        expected_share,
        fit_ratings,
    )
    from ringrift_pipeline.evaluation.tournament import (
        Entrant,
        Match,
        TournamentError,
        play_matches,
    )

_MODULES = {
    "ablation": ("AblationError", "AblationFailed", "ablate"),
    "evaluating": ("evaluate",),
    "feedback": ("NextSettings", "next_settings"),
    "gate": (
        "Floor",
        "GateDecision",
        "SprtResult",
        "decide",
        "set_interval",
        "sprt",
        "wilson_interval",
    ),
    "matches": ("GAMES_SCHEMA", "MatchError", "play_sets", "set_scores"),
    "opponents": ("EvaluationError",),
    "ratings": ("RatingError", "Ratings", "expected_share", "fit_ratings"),
    "tournament": ("Entrant", "Match", "TournamentError", "play_matches"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "GAMES_SCHEMA",
    "AblationError",
    "AblationFailed",
    "Entrant",
    "EvaluationError",
    "Floor",
    "GateDecision",
    "Match",
    "MatchError",
    "NextSettings",
    "RatingError",
    "Ratings",
    "SprtResult",
    "TournamentError",
    "ablate",
    "decide",
    "evaluate",
    "expected_share",
    "fit_ratings",
    "next_settings",
    "play_matches",
    "play_sets",
    "set_interval",
    "set_scores",
    "sprt",
    "wilson_interval",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
