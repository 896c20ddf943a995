"""The rules on arrays: what search and selfplay call, from Python or from their own kernels."""

from __future__ import annotations

from ringrift_pipeline.game.playout import (
    next_random,
    random_below,
    random_games,
    random_playout,
)
from ringrift_pipeline.game.territory import region_rows
from ringrift_pipeline.game.turn import apply_move, initial_state, legal_moves
from ringrift_pipeline.game.victory import has_real_action, ranking_points

__all__ = [
    "apply_move",
    "has_real_action",
    "initial_state",
    "legal_moves",
    "next_random",
    "random_below",
    "random_games",
    "random_playout",
    "ranking_points",
    "region_rows",
]
