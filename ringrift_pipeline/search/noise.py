"""Counter-based randomness: every game draws from its own seed and from nothing else.

A draw is a pure function of ``(seed, index)``, so a game's result cannot depend on which other
games share its batch, on their number or on the order in which they are searched.
"""

from __future__ import annotations

import math

import numpy as np

from ringrift_pipeline.game.compile import kernel

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S27 = np.uint64(27)
_S30 = np.uint64(30)
_S31 = np.uint64(31)
_S11 = np.uint64(11)
_ONE = np.uint64(1)


@kernel
def mix(seed: np.uint64, index: int | np.uint64) -> np.uint64:
    """The ``index``-th output of SplitMix64 started at ``seed`` (uint64 in, uint64 out)."""
    z = np.uint64(seed) + (np.uint64(index) + _ONE) * _GAMMA
    z = (z ^ (z >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    return z ^ (z >> _S31)


@kernel
def uniform(seed: np.uint64, index: int) -> float:
    """A float64 in the open interval (0, 1), a multiple of 2**-54."""
    return (np.float64(mix(seed, index) >> _S11) + 0.5) * (1.0 / 9007199254740992.0)


@kernel
def gumbel(seed: np.uint64, index: int) -> float:
    """A standard Gumbel variate: -log(-log(u))."""
    return -math.log(-math.log(uniform(seed, index)))


@kernel
def hash_row(row: np.ndarray, seed: np.uint64) -> np.uint64:
    """uint64 hash of an int64 row, different for every ``seed``."""
    value = mix(seed, 0)
    for i in range(row.size):
        value = mix(value ^ np.uint64(row[i]), i)
    return value


def derive_seeds(seed: int, start: int, count: int) -> np.ndarray:
    """``count`` uint64 seeds, the ``start``-th onwards of the stream that ``seed`` begins."""
    base = np.uint64(seed % (1 << 64))
    return np.array([mix(base, start + i) for i in range(count)], dtype=np.uint64)
