"""Drawing distinct rows one after the other, each in proportion to the weights of those left.

Successive sampling by rejection: draw with replacement by a binary search in the cumulative
weights and discard what came before. That costs O(draws * log rows) and has the same distribution
as the Gumbel top-k of all rows (Efraimidis and Spirakis 2006), which is what it falls back on
where rejection would take long. Rows whose weight changed since the cumulative sum was made are
kept apart, with their weight of now.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from ringrift_pipeline.enhancements import state_forms as forms
from ringrift_pipeline.enhancements.example_selection import first_of_each, top_with_limit

_SMALL_POOL = 2048  # a pool of so many is drawn from directly
_ROUNDS = 4
_LARGEST_EXPONENT = 600.0


class RowPool:
    """Rows of a table, each with the logarithm of its weight at the time it was put in.

    Args:
        rows: (R,) int64 distinct rows.
        keys: (R,) log weight of each.
        capacity: rows of the table.
    """

    def __init__(self, rows: np.ndarray, keys: np.ndarray, capacity: int) -> None:
        self._changed = np.zeros(capacity, dtype=bool)
        self._pieces: list[np.ndarray] = []
        self._put(rows, keys)

    def _put(self, rows: np.ndarray, keys: np.ndarray) -> None:
        self.rows, self.keys = rows, keys
        self._reference = float(keys.max()) if keys.size else 0.0
        self._cumulative = np.cumsum(self._weights(keys))
        self._fresh: tuple[np.ndarray, np.ndarray] | None = None

    def keep(self, usable: np.ndarray) -> None:
        """Drop the rows that are not usable, (R,) bool of :attr:`rows`; O(R)."""
        self._put(self.rows[usable], self.keys[usable])

    def _weights(self, keys: np.ndarray) -> np.ndarray:
        return np.exp(np.minimum(keys - self._reference, _LARGEST_EXPONENT))

    def note_changes(self, rows: np.ndarray) -> None:
        """Tell that the weights of distinct ``rows`` have changed, or that they are new."""
        new = rows[~self._changed[rows]]
        self._changed[new] = True
        self._pieces.append(new)
        self._fresh = None

    def changed_rows(self) -> np.ndarray:
        """Rows noted so far, int64, in the order they were noted."""
        if len(self._pieces) != 1:
            joined = np.concatenate([np.zeros(0, dtype=np.int64), *self._pieces])
            self._pieces = [joined]
        return self._pieces[0]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The pool as tensors: :meth:`from_state` makes one that draws the same."""
        arrays = {"rows": self.rows, "keys": self.keys, "changed": self.changed_rows()}
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], capacity: int) -> RowPool:
        """A pool as :meth:`state_dict` saved it; ``ValueError`` for a damaged one."""
        forms.record(
            rows=forms.numbers(None, low=0, whole=True),
            keys=forms.numbers(None),
            changed=forms.numbers(None, low=0, whole=True),
        )("pool", state)
        rows, changed = (np.asarray(state[name], dtype=np.int64) for name in ("rows", "changed"))
        keys = np.asarray(state["keys"], dtype=np.float64)
        for name, found in (("rows", rows), ("changed", changed)):
            if np.unique(found).size != found.size or (found >= capacity).any():
                raise ValueError(f"pool.{name} must be distinct rows below {capacity}")
        if rows.shape != keys.shape:
            raise ValueError(f"pool.rows and pool.keys differ: {rows.shape} and {keys.shape}")
        pool = cls(rows, keys, capacity)
        pool.note_changes(changed)
        return pool

    def draw(
        self,
        number: int,
        limit: int,
        keys: np.ndarray,
        threshold: float,
        groups: np.ndarray,
        allowed: Callable[[np.ndarray], np.ndarray],
        generator: np.random.Generator,
    ) -> tuple[np.ndarray, bool]:
        """Draw up to ``number`` distinct rows, at most ``limit`` of a group.

        Args:
            number: rows wanted, >= 1.
            limit: most rows of any group, >= 1; rows of group -1 are not limited.
            keys: log weight now, of every row of the table.
            threshold: changed rows take part from this key on.
            groups: group of every row of the table, int64.
            allowed: says of rows (K,) which may be drawn, (K,) bool.
            generator: source of randomness.

        Returns:
            (K,) int64 rows in the order drawn, fewer than ``number`` only where no more are
            allowed; and whether most of the pool is no longer allowed.
        """
        if self._fresh is None:
            changed = self.changed_rows()
            key = keys[changed]
            hard = key >= threshold
            if not self.rows.size and hard.any():
                self._reference = float(key.max())
            self._fresh = changed[hard], np.cumsum(self._weights(key[hard]))
        fresh, cumulative = self._fresh
        chosen = np.zeros(0, dtype=np.int64)
        if self.rows.size + fresh.size > max(_SMALL_POOL, 4 * number):
            own = float(self._cumulative[-1]) if self.rows.size else 0.0
            total = own + (float(cumulative[-1]) if fresh.size else 0.0)
            for _ in range(_ROUNDS):
                missing = number - chosen.size
                points = generator.random(missing + missing // 4 + 16) * total
                found = np.empty(points.size, dtype=np.int64)
                old = points < own
                at = np.searchsorted(self._cumulative, points[old], side="right")
                found[old] = self.rows[np.minimum(at, self.rows.size - 1)]
                old[old] = self._changed[found[old]]  # these take part with their weight of now
                new = points >= own
                if fresh.size:
                    at = np.searchsorted(cumulative, points[new] - own, side="right")
                    found[new] = fresh[np.minimum(at, fresh.size - 1)]
                else:  # rounding put a point on the very end
                    old |= new
                found = found[~old]
                chosen = first_of_each(np.concatenate([chosen, found[allowed(found)]]))
                chosen = within_limit(chosen, groups[chosen], limit)[:number]
                if chosen.size == number:
                    return chosen, False
        pool = np.concatenate([self.rows[~self._changed[self.rows]], fresh])
        usable = allowed(pool)
        usable_share = int(np.count_nonzero(usable)) / max(pool.size, 1)
        pool = pool[usable & ~np.isin(pool, chosen)]
        scores = keys[pool] + generator.gumbel(size=pool.size)
        pool = np.concatenate([chosen, pool])
        scores = np.concatenate([np.full(chosen.size, np.inf), scores])
        best = top_with_limit(scores, groups[pool], number, limit)
        return pool[best], usable_share < 0.5


def within_limit(rows: np.ndarray, groups: np.ndarray, limit: int) -> np.ndarray:
    """Rows (K,) without those that have ``limit`` of their group (K,) before them; -1 is free."""
    if limit >= rows.size:
        return rows
    return rows[top_with_limit(np.arange(rows.size, 0, -1.0), groups, rows.size, limit)]


__all__ = ["RowPool", "within_limit"]
