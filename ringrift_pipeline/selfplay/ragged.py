"""Rows of unequal length, kept as one flat array and the offsets of its rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def offsets_of(counts: NDArray[np.integer]) -> NDArray[np.int64]:
    """Offsets (R+1,) int64 of rows with the given lengths (R,)."""
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def flat_positions(starts: NDArray[np.integer], counts: NDArray[np.integer]) -> NDArray[np.int64]:
    """Positions in the flat array of all elements of the rows, row after row.

    ``starts`` and ``counts`` are (R,); the result has ``counts.sum()`` elements.
    """
    counts = np.asarray(counts, np.int64)
    inner = np.arange(int(counts.sum()), dtype=np.int64)
    inner -= np.repeat(offsets_of(counts)[:-1], counts)
    return inner + np.repeat(np.asarray(starts, np.int64), counts)


def pad(
    flat: NDArray, starts: NDArray[np.integer], counts: NDArray[np.integer], width: int, fill: float
) -> NDArray:
    """The rows as a rectangle (R, width, *flat.shape[1:]), filled up with ``fill``."""
    out = np.full((len(counts), width, *flat.shape[1:]), fill, flat.dtype)
    out[np.arange(width) < np.asarray(counts)[:, None]] = flat[flat_positions(starts, counts)]
    return out


def unpad(padded: NDArray, counts: NDArray[np.integer]) -> NDArray:
    """The first ``counts[r]`` elements of every row r of ``padded`` (R, L, ...), flat."""
    return padded[np.arange(padded.shape[1]) < np.asarray(counts)[:, None]]
