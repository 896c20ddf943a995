"""Evaluations kept for a while: the next decision of a game meets positions of the last one again.

What a search evaluated below the move that was played is evaluated anew from there, and moves
transpose. Measured in selfplay of square8_2p (64 and 16 simulations): one position in eleven. The
tree itself is not kept: sequential halving spends its visits by its own schedule, and a root that
has some would not be searched as the paper says.
"""

from __future__ import annotations

import numpy as np

from ringrift_pipeline.game.compile import kernel

_ODD = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER = np.uint64(0xD6E8FEB86659FD93)
_HALF = np.uint64(32)
_ZERO = np.uint64(0)
_ONE = np.uint64(1)

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
        Indices of the words of a state that the evaluator looks at, (N,) int64.
    players:
        Values an evaluation has.
    width:
        Logits an entry has room for on average. They lie in a ring, oldest overwritten first.

    Attributes
    ----------
    keys: (entries,) uint64, 0 = empty; ``starts`` (entries,) int64, where the logits begin in the
        endless sequence of which ``ring`` (entries * width,) float32 is the end; ``counts``
        (entries,) int64, how many there are; ``values`` (entries, players) float32.
    """

    def __init__(self, entries: int, seen: np.ndarray, players: int, width: int = 64) -> None:
        self.seen = np.ascontiguousarray(seen, dtype=np.int64)
        self.keys = np.zeros(entries, dtype=np.uint64)
        self.starts = np.zeros(entries, dtype=np.int64)
        self.counts = np.zeros(entries, dtype=np.int64)
        self.values = np.zeros((entries, players), dtype=np.float32)
        self.ring = np.empty(entries * width, dtype=np.float32)
        self.head = np.zeros(1, dtype=np.int64)


@kernel
def key_of(state: np.ndarray, seen: np.ndarray, count: int) -> np.uint64:
    """uint64 hash, never 0, of the words ``seen`` of a state and its number of legal moves."""
    even = np.uint64(count) + _ODD
    odd = _MULTIPLIER
    for i in range(0, seen.size - 1, 2):  # two chains at a time, as each step waits for the last
        even = (even ^ np.uint64(state[seen[i]])) * _MULTIPLIER
        even ^= even >> _HALF
        odd = (odd ^ np.uint64(state[seen[i + 1]])) * _ODD
        odd ^= odd >> _HALF
    if seen.size % 2 == 1:
        even = (even ^ np.uint64(state[seen[seen.size - 1]])) * _MULTIPLIER
        even ^= even >> _HALF
    mixed = (even ^ (odd * _MULTIPLIER)) * _ODD
    mixed ^= mixed >> _HALF
    return mixed | _ONE if mixed == _ZERO else mixed


@kernel
def look_up(
    key: np.uint64,
    count: int,
    keys: np.ndarray,
    starts: np.ndarray,
    counts: np.ndarray,
    ring: np.ndarray,
    head: np.ndarray,
) -> int:
    """The table's row that holds ``key``, -1 if there is none or its logits are overwritten."""
    row = np.int64(key & np.uint64(keys.size - 1))
    if keys[row] != key or counts[row] != count or head[HEAD] - starts[row] > ring.size:
        return -1
    return int(row)


@kernel
def keep(
    key: np.uint64,
    count: int,
    new_logits: np.ndarray,
    new_values: np.ndarray,
    keys: np.ndarray,
    starts: np.ndarray,
    counts: np.ndarray,
    values: np.ndarray,
    ring: np.ndarray,
    head: np.ndarray,
) -> None:
    """Keep an evaluation: its first ``count`` logits (L,) and values (players,)."""
    if count > ring.size:
        return
    start = head[HEAD]
    place = start % ring.size
    if place + count > ring.size:  # in one piece
        start += ring.size - place
        place = 0
    for a in range(count):
        ring[place + a] = new_logits[a]
    head[HEAD] = start + count
    row = np.int64(key & np.uint64(keys.size - 1))
    keys[row] = key
    starts[row] = start
    counts[row] = count
    for p in range(values.shape[1]):
        values[row, p] = new_values[p]
