"""Which games of a training window are held out: by the hash of their ids, and never one that an
earlier generation trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ringrift_pipeline.selfplay.plan import Plan

__all__ = ["hash_fraction", "is_held_out", "split_games", "split_of"]


def is_held_out(game_id: str, fraction: float) -> bool:
    """Whether a game belongs to the held-out set, by the hash of its id alone."""
    return hash_fraction(game_id) < fraction


def hash_fraction(game_id: str) -> float:
    """The BLAKE2 hash of a game's id as a number in [0, 1)."""
    digest = hashlib.blake2b(game_id.encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / float(1 << 53)


def split_games(
    game_ids: Sequence[str],
    fraction: float | NDArray[np.float64],
    fresh: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    """Held-out flag of every game, (games,) bool; of two or more, at least one lies on either side.

    The hash decides. Only when it leaves one side empty (very few games), the game with the
    smallest (or largest) hash changes sides; to be held out it must be ``fresh``.

    Parameters
    ----------
    fraction:
        Share held out, of all games or (games,) of each.
    fresh:
        (games,) which no model was trained on; None for all.
    """
    hashes = np.array([hash_fraction(game) for game in game_ids])
    held_out = hashes < fraction
    if not held_out.any():
        held_out[(hashes if fresh is None else np.where(fresh, hashes, 1.0)).argmin()] = True
    elif held_out.all():
        held_out[hashes.argmax()] = False
    return held_out


def split_of(plan: Plan, game_ids: Sequence[str], generations: Sequence[int]) -> NDArray[np.bool_]:
    """`split_games` of a plan's window, whose games were played in these ``generations``."""
    played = np.array(generations)
    numbers, places = np.unique(played, return_inverse=True)
    fractions = np.array([plan.holdout_fraction(int(number)) for number in numbers])[places]
    # plans of earlier versions keep the windows that they had
    fresh = None if plan.holdout is None else played == plan.generation
    return split_games(game_ids, fractions, fresh)
