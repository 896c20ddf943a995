"""Evaluations kept for a while: the next decision of a game meets positions of the last one again.

What a search evaluated below the move that was played is evaluated anew from there, and moves
transpose. Measured in selfplay of square8_2p (64 and 16 simulations): one position in eleven. The
tree itself is not kept: sequential halving spends its visits by its own schedule, and a root that
has some would not be searched as the paper says.
"""

from __future__ import annotations

import numpy as np

from ringrift_pipeline.game.compile import inline_kernel, kernel

_ODD = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER = np.uint64(0xD6E8FEB86659FD93)
_HALF = np.uint64(32)
_ZERO = np.uint64(0)
_ONE = np.uint64(1)

# Columns of EvaluationCache.table.
KEY = 0  # the hash, 0 = empty
START = 1  # numbers ever written to the ring before this evaluation, gaps included
SIZE = 2  # legal moves
TABLE_FIELDS = 4  # one left free: a row lies within a cache line

# Index into EvaluationCache.head.
HEAD = 0  # numbers ever written to the ring, gaps included


class EvaluationCache:
    """A table of the newest evaluations by the hash of what the evaluator sees of a position.

    Parameters
    ----------
    entries:
        Rows of the table, a power of two; a new evaluation takes the place of the one whose hash
        falls on the same row. 0 keeps nothing.
    seen:
        Indices of the words of a state that the evaluator looks at, (N,) int64; words that others
        of them determine may be left out.
    width:
        Numbers an entry has room for on average: the values of all players, then the logits. They
        lie in a ring, oldest overwritten first: too few, and the ring forgets what the table
        still names.

    Attributes
    ----------
    table: (entries, TABLE_FIELDS) int64. ``ring`` (entries * width,) float32 is the end of the
        endless sequence in which START counts.
    """

    def __init__(self, entries: int, seen: np.ndarray, width: int) -> None:
        self.seen = np.ascontiguousarray(seen, dtype=np.int64)
        self.table = np.zeros((entries, TABLE_FIELDS), dtype=np.int64)
        self.ring = np.empty(entries * width, dtype=np.float32)
        self.head = np.zeros(1, dtype=np.int64)


@inline_kernel
def _stir(chain: np.uint64, word: np.uint64) -> np.uint64:
    chain = (chain ^ word) * _MULTIPLIER
    return chain ^ (chain >> _HALF)


@kernel
def key_of(state: np.ndarray, seen: np.ndarray, count: int) -> np.uint64:
    """uint64 hash, never 0, of the words ``seen`` of a state and its number of legal moves."""
    first = np.uint64(count) + _ODD
    second = third = fourth = _ODD
    whole = seen.size - seen.size % 4
    for i in range(0, whole, 4):  # four chains at a time, as each step waits for the last
        first = _stir(first, np.uint64(state[seen[i]]))
        second = _stir(second, np.uint64(state[seen[i + 1]]))
        third = _stir(third, np.uint64(state[seen[i + 2]]))
        fourth = _stir(fourth, np.uint64(state[seen[i + 3]]))
    for i in range(whole, seen.size):
        first = _stir(first, np.uint64(state[seen[i]]))
    for chain in (second, third, fourth):
        first = _stir(first, chain)
    return _ONE if first == _ZERO else first


@kernel
def look_up(
    key: np.uint64, count: int, table: np.ndarray, ring: np.ndarray, head: np.ndarray
) -> int:
    """Where the evaluation of ``key`` lies in the ring; -1 if it is not there or overwritten."""
    row = np.int64(key & np.uint64(table.shape[0] - 1))
    start = table[row, START]
    if np.uint64(table[row, KEY]) != key or table[row, SIZE] != count:
        return -1
    return -1 if head[HEAD] - start > ring.size else start % ring.size


@kernel
def keep(
    key: np.uint64,
    count: int,
    new_logits: np.ndarray,
    new_values: np.ndarray,
    table: np.ndarray,
    ring: np.ndarray,
    head: np.ndarray,
) -> None:
    """Keep an evaluation: its first ``count`` logits (L,) and values (players,)."""
    players = new_values.size
    size = players + count
    if size > ring.size:
        return
    start = head[HEAD]
    place = start % ring.size
    if place + size > ring.size:  # in one piece
        start += ring.size - place
        place = 0
    for p in range(players):
        ring[place + p] = new_values[p]
    for a in range(count):
        ring[place + players + a] = new_logits[a]
    head[HEAD] = start + size
    row = np.int64(key & np.uint64(table.shape[0] - 1))
    table[row, KEY] = np.int64(key)
    table[row, START] = start
    table[row, SIZE] = count
