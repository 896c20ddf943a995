"""Uniformly random play inside the kernels, one game or many at once."""

from __future__ import annotations

import numpy as np

from ringrift_pipeline.game.compile import kernel
from ringrift_pipeline.game.layout import OVER, PHASE, REASON, WINNER
from ringrift_pipeline.game.turn import apply_move, initial_state, legal_moves

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_A = np.uint64(0xBF58476D1CE4E5B9)
_MIX_B = np.uint64(0x94D049BB133111EB)
_SHIFT_A, _SHIFT_B, _SHIFT_C = np.uint64(30), np.uint64(27), np.uint64(31)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


@kernel
def next_random(rng):
    """Next 64 random bits of a SplitMix64 stream (Steele, Lea, Flood 2014).

    ``rng`` is a uint64 array of one element, the stream's state, advanced in place.
    """
    rng[0] += _GOLDEN
    z = rng[0]
    z = (z ^ (z >> _SHIFT_A)) * _MIX_A
    z = (z ^ (z >> _SHIFT_B)) * _MIX_B
    return z ^ (z >> _SHIFT_C)


@kernel
def random_below(rng, n):
    """Random int64 in [0, n), n below 2^31, by the high part of a product (bias under 2^-32 n)."""
    high = next_random(rng) >> _HALF
    return np.int64((high * np.uint64(n)) >> _HALF)


@kernel
def random_playout(b, s, rng, out):
    """Play ``s`` to its end with uniformly random legal moves.

    Args:
        b: int64 board constants.
        s: int64 (S,) state row; holds the finished position afterwards.
        rng: uint64 (1,) stream state, advanced.
        out: int64 move buffer of ``Rules.max_moves``.

    Returns:
        Number of plies played, bookkeeping included.
    """
    plies = 0
    while s[PHASE] != OVER:
        n = legal_moves(b, s, out)
        move = out[0]
        if n > 1:
            move = out[random_below(rng, n)]
        apply_move(b, s, move)
        plies += 1
    return plies


@kernel
def random_games(b, s, seeds, out, swap_rule, plies, winners, reasons):
    """Play one uniformly random game per seed in the scratch row ``s``.

    Args:
        b: int64 board constants.
        s: int64 (S,) scratch row.
        seeds: uint64 (games,) one seed a game.
        out: int64 move buffer.
        swap_rule: 0 or 1.
        plies, winners, reasons: int64 (games,) results, written.
    """
    rng = np.empty(1, dtype=np.uint64)
    for game in range(len(seeds)):
        rng[0] = seeds[game]
        initial_state(b, s, swap_rule)
        plies[game] = random_playout(b, s, rng, out)
        winners[game] = s[WINNER]
        reasons[game] = s[REASON]
