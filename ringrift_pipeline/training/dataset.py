"""Batches of a window as tensors: rows gathered from the memory map, moves padded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ringrift_pipeline.selfplay.ragged import flat_positions
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
        Share of the search's value in the value target, the rest is the outcome; in [0, 1].

    A batch is what the training facade takes: ``features`` (the dictionary of tensors that the
    network reads), ``policy_targets`` (B, L) float32 (all zero for cheap searches: no policy
    loss), ``value_targets`` (B, 4) float32 mover first, ``legal_mask`` (B, L) bool and
    ``indices`` (B,) int64. L is the largest number of legal moves among the rows.
    """

    def __init__(
        self,
        window: Window,
        device: str | torch.device = "cpu",
        search_value_share: float = 0.0,
    ) -> None:
        if not 0.0 <= search_value_share <= 1.0:
            raise ValueError(f"search_value_share must lie in [0, 1], not {search_value_share}")
        self.window = window
        self.device = torch.device(device)
        self.search_value_share = search_value_share
        # Small columns live in memory; planes and moves are read from the map.
        self._offsets = np.array(window.offsets)
        self._full_search = np.array(window.full_search)
        value = np.array(window.outcome)
        if search_value_share:
            value = (1.0 - search_value_share) * value + search_value_share * window.search_value
        self._value = np.zeros((len(window), MAX_SEATS), np.float32)
        self._value[:, : window.players] = value

    def __len__(self) -> int:
        return len(self.window)

    def batch(self, indices: ArrayLike) -> dict[str, Any]:
        """The rows at ``indices`` (B,), in that order, repeats allowed.

        Raises
        ------
        WindowError
            if there are none, or one lies outside the window.
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
            padded[legal] = column[inner]
            return padded

        policy = spread(self.window.policy, 0.0)
        policy[~self._full_search[rows]] = 0.0
        features: dict[str, NDArray] = {
            "planes": self.window.planes[rows],
            "globals": self.window.globals[rows],
            "move_kind": spread(self.window.move_kind, 0),
            "move_cells": spread(self.window.move_cells, -1),
            "move_rank": spread(self.window.move_rank, 0),
            "legal_mask": legal,
        }
        tensors = {name: self._tensor(array) for name, array in features.items()}
        return {
            "features": tensors,
            "policy_targets": self._tensor(policy),
            "value_targets": self._tensor(self._value[rows]),
            "legal_mask": tensors["legal_mask"],
            "indices": self._tensor(rows),
        }

    def batches(self, indices: ArrayLike, batch_size: int) -> Iterator[dict[str, Any]]:
        """Batches over ``indices`` in order; the last may be smaller."""
        rows = np.asarray(indices, np.int64)
        for start in range(0, len(rows), batch_size):
            yield self.batch(rows[start : start + batch_size])

    def _tensor(self, array: NDArray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, non_blocking=True)
