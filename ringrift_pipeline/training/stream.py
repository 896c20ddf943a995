"""Which rows make the next batch: drawn by quality, mixed with hard examples, none too often."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ringrift_pipeline.enhancements.data_quality_scoring import QualityWeightedSampler
from ringrift_pipeline.enhancements.hard_example_mining import HardExampleMiner

# Where an epoch's draw had no more than this share of rows that could still be visited, the next
# would mostly name rows of high quality that are spent: what is left is drawn alike.
NEARLY_ALL_SPENT = 0.1


class RowsExhausted(RuntimeError):
    """Every row has been visited as often as it may be."""


class BatchStream:
    """An endless stream of batches of window rows, resumable at any batch.

    Parameters
    ----------
    rows:
        (K,) int64, the rows that may be trained on.
    scores:
        (K,) in (0, 1], quality of each row's game; None draws uniformly.
    temperature:
        Of the draw by quality, see :class:`QualityWeightedSampler`.
    reuse_limit:
        Most visits of a row, over the whole run.
    seed:
        Of the draws; epoch ``e`` depends on the seed and ``e`` alone.
    miner:
        Draws its share of every batch once it is active; None for none.
    """

    def __init__(
        self,
        rows: NDArray[np.int64],
        scores: NDArray[np.float64] | None,
        temperature: float,
        reuse_limit: float,
        seed: int,
        miner: HardExampleMiner | None = None,
    ) -> None:
        if len(rows) == 0:
            raise ValueError("there are no rows to train on")
        self._rows = np.array(rows, np.int64)
        self._limit = int(reuse_limit)
        self._seed = seed
        uniform = np.ones(len(rows))
        self._sampler = (
            QualityWeightedSampler(None, weights=uniform, seed=seed)
            if scores is None
            else QualityWeightedSampler(scores, temperature=temperature, seed=seed)
        )
        self._miner = miner
        # Visits of every window row up to the last one that may be drawn.
        self._visits = np.zeros(int(rows.max()) + 1, np.int32)
        self.epoch = 0
        self._offset = 0
        self._served = 0  # rows of this epoch's draw that could still be visited
        self._order = self._draw(0)

    @property
    def max_visits(self) -> int:
        """Visits of the most visited row so far."""
        return int(self._visits.max())

    @property
    def visited(self) -> int:
        """Rows visited at least once."""
        return int(np.count_nonzero(self._visits))

    def next(self, size: int) -> NDArray[np.int64]:
        """The next batch, (size,) int64 window rows.

        Raises
        ------
        RowsExhausted
            when no row may be visited any more.
        """
        parts = []
        missing = size
        if self._miner is not None:
            hard = self._miner.get_hard_indices(int(size * self._miner.hard_fraction))
            assert isinstance(hard, np.ndarray)
            parts.append(self._visit(hard))
            missing -= len(parts[0])
        while missing:
            if self._offset < len(self._order):
                piece = self._order[self._offset : self._offset + missing]
                self._offset += len(piece)
                fresh = self._visit(piece)
                self._served += len(fresh)
            elif self._served > NEARLY_ALL_SPENT * len(self._order):
                self.epoch += 1
                self._offset = self._served = 0
                self._order = self._draw(self.epoch)
                continue
            else:
                fresh = self._visit(self._left_over(missing))
                if not len(fresh):
                    raise RowsExhausted("every row has been visited sample_reuse_limit times")
            parts.append(fresh)
            missing -= len(fresh)
        return np.concatenate(parts)

    def _left_over(self, most: int) -> NDArray[np.int64]:
        """Rows that may be visited once more, by chance; of the seed and the visits so far."""
        left = self._rows[self._visits[self._rows] < self._limit]
        generator = np.random.default_rng((self._seed, int(self._visits.sum())))
        return generator.choice(left, min(most, len(left)), replace=False)

    def _draw(self, epoch: int) -> NDArray[np.int64]:
        return self._rows[self._sampler.draw(epoch)]

    def _visit(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the rows that may be visited once more, counted as visited."""
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        # How often each row has come before within this very piece.
        begins = np.flatnonzero(np.diff(ordered, prepend=-1))
        before = np.arange(len(rows)) - np.repeat(begins, np.diff(begins, append=len(rows)))
        allowed = np.zeros(len(rows), np.bool_)
        allowed[order] = self._visits[ordered] + before < self._limit
        kept = rows[allowed]
        np.add.at(self._visits, kept, 1)
        return kept

    def state_dict(self) -> dict[str, Any]:
        """Position and visit counts; the miner's state is its own."""
        return {
            "epoch": self.epoch,
            "offset": self._offset,
            "served": self._served,
            "visits": self._visits.copy(),
            "sampler": self._sampler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken; ValueError if it is of other rows."""
        if state["visits"].shape != self._visits.shape:
            raise ValueError("the saved stream is of another window")
        self._sampler.load_state_dict(state["sampler"])
        self._visits = np.array(state["visits"], np.int32)
        self.epoch = int(state["epoch"])
        self._order = self._draw(self.epoch)
        self._offset = int(state["offset"])
        self._served = int(state.get("served", len(self._order)))  # not said before
