"""Batches of a window as tensors: rows gathered from the memory map, moves padded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ringrift_pipeline.game import get_rules
from ringrift_pipeline.network import BoardSymmetries
from ringrift_pipeline.selfplay.ragged import flat_positions
from ringrift_pipeline.training.game_ends import GameEnds
from ringrift_pipeline.training.row_checks import check_rows, check_surprise
from ringrift_pipeline.training.window import Window, WindowError

MAX_SEATS = 4
"""Columns of the value head, absent seats included."""


class WindowDataset:
    """Rows of a window as training batches.

    Parameters
    ----------
    window:
        The memory-mapped columns.
    device:
        Where the tensors go.
    search_value_share:
        Share of the search's value in the value target where it is the champion's (``valued``),
        the rest is the outcome; in [0, 1].
    surprise_share:
        Share of the policy loss's weight that follows the search's surprise, in [0, 1]: a row
        weighs ``1 - share + share * surprise / mean surprise``, the mean over the full searches
        of its generation (KataGo, Wu 2019, shares alike with one half).
    ends:
        Add the targets of the auxiliary heads: how the games end.

    A batch is what the training facade takes: ``features`` (the dictionary of tensors that the
    network reads), ``policy_targets`` (B, L) float32 (all zero for cheap searches: no policy
    loss), ``value_targets`` (B, 4) float32 mover first, ``legal_mask`` (B, L) bool and
    ``indices`` (B,) int64; with a ``surprise_share`` ``policy_weights`` (B,) float32, mean 1; with
    ``ends`` what :class:`GameEnds` tells. L is the largest number of legal moves among the rows.
    """

    def __init__(
        self,
        window: Window,
        device: str | torch.device = "cpu",
        search_value_share: float = 0.0,
        surprise_share: float = 0.0,
        ends: bool = False,
    ) -> None:
        for name, share in (
            ("search_value_share", search_value_share),
            ("surprise_share", surprise_share),
        ):
            if not 0.0 <= share <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], not {share}")
        self.window = window
        self.device = torch.device(device)
        self.search_value_share = search_value_share
        # Small columns live in memory; planes and moves are read from the map.
        self._offsets = np.array(window.offsets)
        self._full_search = np.array(window.full_search)
        value = np.array(window.outcome)
        if search_value_share:
            mixed = np.flatnonzero(window.valued)
            value[mixed] *= 1.0 - search_value_share
            value[mixed] += search_value_share * window.search_value[mixed]
        self.value_targets = np.zeros((len(window), MAX_SEATS), np.float32)
        self.value_targets[:, : window.players] = value
        self.policy_weights = surprise_weights(window, surprise_share) if surprise_share else None
        self._symmetries = BoardSymmetries(get_rules(window.config))
        self._ends = GameEnds(window) if ends else None

    def __len__(self) -> int:
        return len(self.window)

    @property
    def symmetries(self) -> int:
        """Symmetries of the board, the identity (number 0) included."""
        return self._symmetries.count

    def batch(
        self, indices: ArrayLike, symmetries: NDArray[np.int64] | None = None
    ) -> dict[str, Any]:
        """The rows at ``indices`` (B,), in that order, repeats allowed.

        ``symmetries`` (B,) in ``0..self.symmetries - 1`` turns each row's board; None: as played.

        Raises
        ------
        WindowError
            if there are none, or one lies outside the window.
        BadRowsError
            if a number of theirs is not finite or out of its range; it names the rows.
        ValueError
            if the symmetries do not fit the rows.
        """
        rows = np.asarray(indices, np.int64)
        if rows.ndim != 1 or len(rows) == 0:
            raise WindowError(f"a batch needs a list of row indices, got shape {rows.shape}")
        if rows.min() < 0 or rows.max() >= len(self):
            raise WindowError(f"row indices must lie in 0..{len(self) - 1}")
        starts = self._offsets[rows]
        counts = self._offsets[rows + 1] - starts
        width = int(counts.max())
        legal = np.arange(width) < counts[:, None]
        inner = flat_positions(starts, counts)

        def spread(column: NDArray, fill: float) -> NDArray:
            padded = np.full((*legal.shape, *column.shape[1:]), fill, column.dtype)
            padded[legal] = column
            return padded

        shares = self.window.policy[inner]
        planes, globals_ = self.window.planes[rows], self.window.globals[rows]
        check_rows(self.window, rows, planes, globals_, shares)
        policy = spread(shares, 0.0)
        policy[~self._full_search[rows]] = 0.0
        kinds = self.window.move_kind[inner]
        cells = self.window.move_cells[inner]
        if symmetries is not None:
            planes = self._symmetries.planes(planes, symmetries)
            cells = self._symmetries.cells(cells, kinds, np.repeat(symmetries, counts))
        features: dict[str, NDArray] = {
            "planes": planes,
            "globals": globals_,
            "move_kind": spread(kinds, 0),
            "move_cells": spread(cells, -1),
            "move_rank": spread(self.window.move_rank[inner], 0),
            "legal_mask": legal,
        }
        tensors = {name: self._tensor(array) for name, array in features.items()}
        batch = {
            "features": tensors,
            "policy_targets": self._tensor(policy),
            "value_targets": self._tensor(self.value_targets[rows]),
            "legal_mask": tensors["legal_mask"],
            "indices": self._tensor(rows),
        }
        if self.policy_weights is not None:
            batch["policy_weights"] = self._tensor(self.policy_weights[rows])
        if self._ends is not None:
            territory, margin = self._ends.targets(rows)
            if symmetries is not None:
                territory = self._symmetries.planes(territory[:, None], symmetries)[:, 0]
            batch["territory_targets"] = self._tensor(territory)
            batch["margin_targets"] = self._tensor(margin)
        return batch

    def batches(self, indices: ArrayLike, batch_size: int) -> Iterator[dict[str, Any]]:
        """Batches over ``indices`` in order; the last may be smaller."""
        rows = np.asarray(indices, np.int64)
        for start in range(0, len(rows), batch_size):
            yield self.batch(rows[start : start + batch_size])

    def _tensor(self, array: NDArray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)


def surprise_weights(window: Window, share: float) -> NDArray[np.float32]:
    """Weight of each row's policy loss (R,), mean 1 over each generation's full searches.

    ``1 - share + share * surprise / mean``; 1 in a generation that knows no surprise (the
    heuristic has no prior), 0 for cheap searches. Held-out rows count in no mean. Raises
    BadRowsError for a surprise that is not finite.
    """
    check_surprise(window)
    surprise = np.maximum(np.asarray(window.surprise, np.float64), 0.0)
    full = np.asarray(window.full_search)
    counted = full & ~np.asarray(window.holdout)
    generation = np.asarray(window.generation)
    rows = np.bincount(generation[counted], minlength=generation.max() + 1)
    sums = np.bincount(generation[counted], surprise[counted], minlength=len(rows))
    mean = np.divide(sums, rows, out=np.zeros(len(rows)), where=rows > 0)[generation]
    weights = np.ones(len(window))
    known = mean > 0.0
    weights[known] = 1.0 - share + share * surprise[known] / mean[known]
    weights[~full] = 0.0
    return weights.astype(np.float32)
