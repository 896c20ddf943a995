"""Putting many numbers into random order, in pieces that fit the processor's cache."""

from __future__ import annotations

import numpy as np
import torch

PIECE = 2**20  # so many are worked on at once
_PILE = 2**16  # of more, so many are shuffled at once


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
    pile = _piles(number, piles, rng)
    return np.argsort(pile, kind="stable"), pile


def _piles(number: int, piles: int, rng: np.random.Generator) -> np.ndarray:
    if not 1 <= piles <= 2**16 or piles & (piles - 1):
        raise ValueError(f"piles must be a power of two up to 65,536, got {piles}")
    # numpy sorts these by counting
    return rng.integers(0, piles, number, dtype=np.uint8 if piles <= 2**8 else np.uint16)


def shuffled(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Whole numbers (N,) in uniformly random order, as a new int64 array.

    Beyond a million it deals to piles of about 65,536 and shuffles each (Rao 1961, Sandelius 1962):
    a shuffle of all at once would miss the cache, and torch's permutations take 32-bit numbers
    modulo what is left, whose unevenness (what is left / 2^32) stays below 2^-12 like this.
    """
    generator = torch.Generator().manual_seed(int(rng.integers(0, 2**63)))
    ends = np.array([values.size])
    if values.size > PIECE:
        values, ends = _on_piles(values, rng)
    source = torch.from_numpy(np.ascontiguousarray(values))
    mixed = np.empty(values.size, dtype=np.int64)
    start = 0
    for end in ends.tolist():
        # int32 positions fit the cache, and torch draws them faster than numpy
        order = torch.randperm(end - start, generator=generator, dtype=torch.int32)
        mixed[start:end] = source[start:end].index_select(0, order).numpy()
        start = end
    return mixed


def _on_piles(values: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Values dealt to piles, pile by pile; and where each pile ends."""
    number = 1 << min(16, (values.size // _PILE).bit_length())
    piles = _piles(values.size, number, rng)
    pieces = range(0, values.size, PIECE)
    counts = np.array([np.bincount(piles[at : at + PIECE], minlength=number) for at in pieces])
    ends = np.cumsum(counts.sum(axis=0))
    # where on its pile each piece's share begins
    begins = ends - counts.sum(axis=0) + np.cumsum(counts, axis=0) - counts
    dealt_values = np.empty_like(values)
    for at, begin, count in zip(pieces, begins, counts, strict=True):
        order = np.argsort(piles[at : at + PIECE], kind="stable")
        piece = values[at : at + PIECE].take(order)
        start = 0
        for target, share in zip(begin.tolist(), count.tolist(), strict=True):
            dealt_values[target : target + share] = piece[start : start + share]
            start += share
    return dealt_values, ends


__all__ = ["PIECE", "dealt", "shuffled"]
