"""Where a data-set index lives in a fixed-size array: lookup, assignment, release, all vectorised.

Mining and loss tracking keep a bounded number of samples of a data set that may be far larger.
The map is addressed directly by the index (four bytes a data-set row, committed page by page as
rows are touched), so a batch costs O(batch), whatever the size of the data set or the buffer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ringrift_pipeline.enhancements import state_forms as forms
from ringrift_pipeline.enhancements.argument_checks import host_array, number_array, whole_state

MAX_INDEX = 2**30  # a direct-address map of 4 GiB; data-set rows are numbered from 0


def as_indices(indices: Any, name: str = "indices") -> np.ndarray:
    """Data-set indices as an int64 array of shape (B,).

    Raises:
        ValueError: not one-dimensional, not whole numbers, negative or above ``MAX_INDEX``.
    """
    array = host_array(name, indices)
    if array.ndim != 1:
        raise ValueError(f"{name} must have shape (B,), got {array.shape}")
    if array.size == 0:
        return np.zeros(0, dtype=np.int64)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers, got dtype {array.dtype}")
    given, array = array, array.astype(np.int64, copy=False)
    if int(array.view(np.uint64).max()) > MAX_INDEX:  # negative ones are huge there
        bad = given[(array < 0) | (array > MAX_INDEX)][0]
        raise ValueError(f"{name} must be data-set rows in [0, {MAX_INDEX}], got {bad}")
    return array


def as_floats(values: Any, size: int, name: str) -> np.ndarray:
    """Numbers as a float64 array of shape (size,), NaN and infinity let through.

    Raises:
        ValueError: another shape or not numbers.
    """
    array = number_array(name, values)
    if array.shape != (size,):
        raise ValueError(f"{name} must have shape ({size},) as the indices do, got {array.shape}")
    return array


def as_games(games: Any, size: int) -> np.ndarray:
    """Game numbers (size,) int64, from whole numbers >= 0 below 2**64 (a hash will do).

    They are only compared: of a number from 2**63 on the lower 63 bits count.

    Raises:
        ValueError: another shape, not whole numbers, or negative.
    """
    array = host_array("games", games)
    if array.shape != (size,) or (size and array.dtype.kind not in "iu"):
        raise ValueError(f"games must be integers ({size},), got {array.dtype} {array.shape}")
    if array.dtype.kind == "u" and array.dtype.itemsize == 8:
        array = array & np.uint64(2**63 - 1)
    array = array.astype(np.int64, copy=False)
    if size and int(array.min()) < 0:
        raise ValueError(f"games must not be negative, got {int(array.min())}")
    return array


def run_starts(ordered: np.ndarray) -> np.ndarray:
    """(B,) bool: where a run of equal values begins in sorted (B,) values."""
    starts = np.ones(ordered.size, dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=starts[1:])
    return starts


class SampleSlots:
    """Maps data-set indices to slots 0 .. capacity-1.

    Attributes:
        index_of: (capacity,) int64, the data-set index a slot holds, -1 when free.
        count: number of slots in use.
        high_water: slots below this have been used at some time; arrays need saving up to here.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self.capacity = int(capacity)
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.index_of = np.full(self.capacity, -1, dtype=np.int64)
        self.count = 0
        self.high_water = 0
        self._slot_of = np.zeros(1024, dtype=np.int32)  # slot + 1, so that untouched pages stay 0
        self._free = np.zeros(self.capacity, dtype=np.int32)  # stack of released slots
        self._num_free = 0

    @property
    def room(self) -> int:
        """Slots still free."""
        return self.capacity - self.count

    def lookup(self, indices: np.ndarray) -> np.ndarray:
        """Slots (B,) int64 of data-set indices (B,), -1 where not held."""
        if indices.size and int(indices.max()) >= self._slot_of.size:
            inside = indices < self._slot_of.size
            slots = np.full(indices.shape, -1, dtype=np.int64)
            slots[inside] = self._slot_of[indices[inside]] - 1
            return slots
        return self._slot_of[indices].astype(np.int64) - 1

    def assign(self, indices: np.ndarray) -> np.ndarray:
        """New slots (B,) int64 for distinct indices (B,) that are not held; needs ``room``."""
        number = indices.size
        if number > self.room:
            raise ValueError(f"{number} slots asked for, {self.room} free")
        if number == 0:
            return np.zeros(0, dtype=np.int64)
        self._grow(int(indices.max()) + 1)
        reused = min(number, self._num_free)
        fresh = number - reused
        slots = np.empty(number, dtype=np.int64)
        slots[:reused] = self._free[self._num_free - reused : self._num_free]
        slots[reused:] = np.arange(self.high_water, self.high_water + fresh)
        self._num_free -= reused
        self.high_water += fresh
        self.count += number
        self.index_of[slots] = indices
        self._slot_of[indices] = slots + 1
        return slots

    def release(self, slots: np.ndarray) -> None:
        """Give back distinct slots that are in use."""
        self._slot_of[self.index_of[slots]] = 0
        self.index_of[slots] = -1
        self._free[self._num_free : self._num_free + slots.size] = slots
        self._num_free += slots.size
        self.count -= slots.size

    def used(self) -> np.ndarray:
        """All slots in use, ascending, int64."""
        return np.flatnonzero(self.index_of[: self.high_water] >= 0)

    def _grow(self, size: int) -> None:
        if size > self._slot_of.size:
            grown = np.zeros(max(size, 2 * self._slot_of.size), dtype=np.int32)
            grown[: self._slot_of.size] = self._slot_of
            self._slot_of = grown

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors: loading it continues with the same slots in the same order."""
        return {
            "capacity": self.capacity,
            "index_of": torch.from_numpy(self.index_of[: self.high_water].copy()),
            "free": torch.from_numpy(self._free[: self._num_free].copy()),
        }

    @whole_state
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`; ``ValueError`` for another capacity or damage changes nothing."""
        forms.record(
            capacity=forms.whole(1),
            index_of=forms.numbers(None, low=-1, whole=True),
            free=forms.numbers(None, low=0, whole=True),
        )("", state)
        if int(state["capacity"]) != self.capacity:
            raise ValueError(
                f"the state was saved with a capacity of {state['capacity']} samples, "
                f"this object has {self.capacity}: construct it with the same size"
            )
        index_of = np.asarray(state["index_of"], dtype=np.int64)
        free = np.asarray(state["free"], dtype=np.int32)
        rows = index_of[index_of >= 0]
        if index_of.size > self.capacity or np.unique(rows).size != rows.size:
            raise ValueError(f"index_of must be distinct rows, at most {self.capacity}")
        if not np.array_equal(np.sort(free), np.flatnonzero(index_of < 0)):
            raise ValueError("free must be the slots that index_of leaves free")
        self.clear()
        self.high_water = index_of.size
        self.index_of[: index_of.size] = index_of
        self._free[: free.size] = free
        self._num_free = free.size
        held = np.flatnonzero(index_of >= 0)
        self.count = held.size
        if held.size:
            self._grow(int(index_of.max()) + 1)
            self._slot_of[index_of[held]] = held + 1


__all__ = ["MAX_INDEX", "SampleSlots", "as_floats", "as_games", "as_indices", "run_starts"]
