"""Putting many numbers into random order, in pieces that fit the processor's cache."""

from __future__ import annotations

import numpy as np
import torch

_WHOLE = 2**20  # so many are shuffled at once
_PILE = 2**16  # of more, so many


def dealt(number: int, piles: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Deal positions to piles at random.

    Args:
        number: positions 0 .. number-1, each put on a pile of its own choice.
        piles: a power of two, at most 65,536.
        rng: source of randomness.

    Returns:
        The positions pile by pile, ascending in each, int64 (number,); and the pile that each
        position was put on, (number,) uint8 or uint16.
    """
    if not 1 <= piles <= 2**16 or piles & (piles - 1):
        raise ValueError(f"piles must be a power of two up to 65,536, got {piles}")
    kind = np.uint8 if piles <= 2**8 else np.uint16  # numpy sorts these by counting
    pile = rng.integers(0, piles, number, dtype=kind)
    return np.argsort(pile, kind="stable"), pile


def shuffled(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``values`` (N,) in uniformly random order, as a new array.

    Beyond a million it deals to piles of about 65,536 and shuffles each (Rao 1961, Sandelius 1962):
    a shuffle of all at once would miss the cache, and torch's permutations take 32-bit numbers
    modulo what is left, whose unevenness (what is left / 2^32) stays below 2^-12 like this.
    """
    generator = torch.Generator().manual_seed(int(rng.integers(0, 2**63)))
    number = values.size
    ends = np.array([number])
    if number > _WHOLE:
        piles = 1 << min(16, (number // _PILE).bit_length())
        order, pile = dealt(number, piles, rng)
        ends = np.cumsum(np.bincount(pile, minlength=piles))
        values = values.take(order)
    dealt_values = torch.from_numpy(np.ascontiguousarray(values))
    mixed = torch.empty_like(dealt_values)
    start = 0
    for end in ends.tolist():
        # int32 indices fit the cache, and torch draws them faster than numpy
        order_in_pile = torch.randperm(end - start, generator=generator, dtype=torch.int32)
        torch.index_select(dealt_values[start:end], 0, order_in_pile, out=mixed[start:end])
        start = end
    return mixed.numpy()


__all__ = ["dealt", "shuffled"]
