"""How often each row of a data set was drawn, however large the data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ringrift_pipeline.enhancements.argument_checks import check_keys, whole_state
from ringrift_pipeline.enhancements.sample_slots import as_indices


class DrawCounts:
    """Counts by data-set index; four bytes a row, up to the highest one counted."""

    def __init__(self) -> None:
        self._times = np.zeros(1024, dtype=np.uint32)

    def of(self, indices: np.ndarray) -> np.ndarray:
        """How often each of ``indices`` (K,) was drawn, (K,) uint32; takes up no memory."""
        if indices.size and int(indices.max()) >= self._times.size:
            times = np.zeros(indices.shape, dtype=np.uint32)
            inside = indices < self._times.size
            times[inside] = self._times[indices[inside]]
            return times
        return self._times[indices]

    def add(self, indices: np.ndarray) -> None:
        """Count one more draw of each of ``indices`` (K,); a repeated one counts once."""
        self._reach(indices)
        self._times[indices] += 1

    def _reach(self, indices: np.ndarray) -> None:
        top = int(indices.max(initial=0)) + 1
        if top > self._times.size:
            grown = np.zeros(max(top, 2 * self._times.size), dtype=np.uint32)
            grown[: self._times.size] = self._times
            self._times = grown

    def state_dict(self) -> dict[str, Any]:
        """The rows drawn and how often, as tensors."""
        drawn = np.flatnonzero(self._times)
        return {
            "drawn_indices": torch.from_numpy(drawn.astype(np.int64)),
            "drawn_times": torch.from_numpy(self._times[drawn].astype(np.int64)),
        }

    @whole_state
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`; ``ValueError`` for a damaged one changes nothing."""
        check_keys(state, self.state_dict(), "DrawCounts")
        drawn = as_indices(state["drawn_indices"], "drawn_indices")
        times = as_indices(state["drawn_times"], "drawn_times")
        if drawn.shape != times.shape or np.unique(drawn).size != drawn.size or (times < 1).any():
            raise ValueError("drawn_indices must be distinct, each with one of drawn_times above 0")
        self._times = np.zeros(1024, dtype=np.uint32)
        self._reach(drawn)
        self._times[drawn] = times


__all__ = ["DrawCounts"]
