"""Tree search and the players built on it.

The names below are imported on first use: importing this package compiles nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ringrift_pipeline.search.errors import (
        EvaluationError,
        NonFiniteOutputError,
        PlayerSpecError,
        SearchError,
        SearchStopped,
    )
    from ringrift_pipeline.search.evaluators import Evaluator, RolloutEvaluator, UniformEvaluator
    from ringrift_pipeline.search.gumbel import GumbelSearch
    from ringrift_pipeline.search.heuristic import (
        heuristic_scores,
        policy_from_scores,
        score_batch,
    )
    from ringrift_pipeline.search.loading import VALID_SPECS, load_player
    from ringrift_pipeline.search.noise import derive_seeds
    from ringrift_pipeline.search.players import (
        Analysis,
        HeuristicPlayer,
        NetworkPlayer,
        Opinion,
        Player,
        RandomPlayer,
        RolloutPlayer,
    )
    from ringrift_pipeline.search.pool import SearchPool, SearchResult, SearchSettings
    from ringrift_pipeline.search.readout import Readout
    from ringrift_pipeline.search.stopping import stoppable

_MODULE_OF = {
    "Analysis": "players",
    "EvaluationError": "errors",
    "Evaluator": "evaluators",
    "GumbelSearch": "gumbel",
    "HeuristicPlayer": "players",
    "NetworkPlayer": "players",
    "NonFiniteOutputError": "errors",
    "Opinion": "players",
    "Player": "players",
    "PlayerSpecError": "errors",
    "RandomPlayer": "players",
    "Readout": "readout",
    "RolloutEvaluator": "evaluators",
    "RolloutPlayer": "players",
    "SearchError": "errors",
    "SearchPool": "pool",
    "SearchResult": "pool",
    "SearchSettings": "pool",
    "SearchStopped": "errors",
    "UniformEvaluator": "evaluators",
    "VALID_SPECS": "loading",
    "derive_seeds": "noise",
    "heuristic_scores": "heuristic",
    "load_player": "loading",
    "policy_from_scores": "heuristic",
    "score_batch": "heuristic",
    "stoppable": "stopping",
}

__all__ = [
    "VALID_SPECS",
    "Analysis",
    "EvaluationError",
    "Evaluator",
    "GumbelSearch",
    "HeuristicPlayer",
    "NetworkPlayer",
    "NonFiniteOutputError",
    "Opinion",
    "Player",
    "PlayerSpecError",
    "RandomPlayer",
    "Readout",
    "RolloutEvaluator",
    "RolloutPlayer",
    "SearchError",
    "SearchPool",
    "SearchResult",
    "SearchSettings",
    "SearchStopped",
    "UniformEvaluator",
    "derive_seeds",
    "heuristic_scores",
    "load_player",
    "policy_from_scores",
    "score_batch",
    "stoppable",
]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
