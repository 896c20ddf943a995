"""What one generation's selfplay was like, each figure with its standard error over games.

Measured of the games that the model plays against itself, so that whom it met besides changes
nothing: length, draws, each seat's share of the win, entropy of the search policy. Games are
independent of each other, the decisions of one game are not: the game is the unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["measure_play", "policy_entropies"]


def policy_entropies(policy: NDArray, counts: NDArray) -> NDArray[np.float64]:
    """Entropy (R,) in nats of the policies of rows, flat (M,), ``counts`` (R,) >= 1 moves each."""
    p = policy.astype(np.float64)
    terms = np.where(p > 0.0, -p * np.log(np.where(p > 0.0, p, 1.0)), 0.0)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
    return np.add.reduceat(terms, starts) if len(counts) else np.zeros(0)


def measure_play(
    plies: NDArray, outcome: NDArray, entropy: NDArray[np.float64], whole: NDArray[np.bool_]
) -> Mapping[str, dict[str, float]]:
    """``{"plies", "draw_rate", "policy_entropy", "seat_1_share", …: {"value", "error"}}``.

    Args:
        plies: (G,) length of each game.
        outcome: (G, P) share of the win per absolute seat; a game without a sole winner is drawn.
        entropy: (G,) mean entropy of the full searches of each game, nats; NaN where it has none.
        whole: (G,) which games were played to their end; those cut short are no draws, and no part
            of the draw rate.

    Errors are standard errors of the means. That of the draw rate counts half a draw and half a
    decided game more, so that it is not 0 where there was no draw. A figure that fewer than two
    games tell of is left out.
    """
    games = len(plies)
    figures: dict[str, dict[str, float]] = {}
    if games >= 2:
        figures["plies"] = _mean(plies)
        for seat in range(outcome.shape[1]):
            figures[f"seat_{seat + 1}_share"] = _mean(outcome[:, seat])
    ended = int(whole.sum())
    if ended >= 2:
        draws = int((outcome[whole].max(axis=1) <= 1.0 - 1e-6).sum())
        likely = (draws + 0.5) / (ended + 1.0)
        error = math.sqrt(likely * (1.0 - likely) / ended)
        figures["draw_rate"] = {"value": draws / ended, "error": error}
    known = entropy[np.isfinite(entropy)]
    if len(known) >= 2:
        figures["policy_entropy"] = _mean(known)
    return figures


def _mean(values: NDArray[Any]) -> dict[str, float]:
    values = values.astype(np.float64)
    return {
        "value": float(values.mean()),
        "error": float(values.std(ddof=1) / math.sqrt(len(values))),
    }
