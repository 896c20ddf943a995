"""The table of the samples that mining tracks: one row each, the least hard dropped for new ones.

Hardness fades by one factor a sample seen, so the table holds ``log hardness + fading * samples
seen when it was measured``: an order that fading does not change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ringrift_pipeline.enhancements import state_forms as forms
from ringrift_pipeline.enhancements.argument_checks import check_keys, whole_state
from ringrift_pipeline.enhancements.batch_measures import BatchMeasures
from ringrift_pipeline.enhancements.draw_counts import DrawCounts
from ringrift_pipeline.enhancements.sample_slots import SampleSlots

LEAST_HARDNESS = 1e-30  # so that its logarithm exists

# columns of the two tables; and a row of a sample not seen yet
KEY, LOSS, UNCERTAINTY, SURPRISE = range(4)
STEP, GAME = range(2)
_NEW_MEASURES = (-math.inf, math.nan, 0.0, 0.0)
_NEW_FACTS = (0, -1)


def keys_of(hardness: np.ndarray, faded: float) -> np.ndarray:
    """Keys of (K,) hardness measured when the logarithm of everything had faded by ``faded``."""
    return np.log(np.maximum(hardness, LEAST_HARDNESS)) + faded


@dataclass(frozen=True)
class HardExample:
    """One tracked sample."""

    index: int  # row of the data set
    loss: float  # smoothed; NaN if only loaded, never recorded
    uncertainty: float
    times_sampled: int = 0  # times drawn as a hard example
    last_seen_step: int = 0  # number of the record_batch call
    surprise: float = 0.0
    hardness: float = 0.0  # faded up to now
    game: int = -1  # -1: not known


class TrackedExamples:
    """Measures and facts of up to ``buffer_size`` samples, and some more between prunings.

    Args:
        buffer_size: samples left after :meth:`prune`.
        smoothing: weight of a new measure against the smoothed one of the same sample, (0, 1].
        uncertainty_weight, surprise_weight: factors in the hardness, >= 0.

    Attributes:
        spare: rows beyond ``buffer_size``, so that pruning, O(buffer), is rare; no more than these
            can be claimed at a time.
        slots: which sample sits in which row.
        measures: (buffer_size + spare, 4) float64: key, loss, uncertainty, surprise.
        facts: (buffer_size + spare, 2) int64: step last recorded, game (-1: not known).
    """

    def __init__(
        self, buffer_size: int, smoothing: float, uncertainty_weight: float, surprise_weight: float
    ) -> None:
        self.buffer_size = buffer_size
        self.spare = max(buffer_size // 4, 1024)
        self._smoothing = smoothing
        self._weights = ((UNCERTAINTY, uncertainty_weight), (SURPRISE, surprise_weight))
        capacity = buffer_size + self.spare
        self.slots = SampleSlots(capacity)
        self.measures = np.tile(np.array(_NEW_MEASURES), (capacity, 1))
        self.facts = np.tile(np.array(_NEW_FACTS, dtype=np.int64), (capacity, 1))

    def record(self, slots: np.ndarray, shown: BatchMeasures, step: int, faded: float) -> None:
        """Blend what a batch showed into the rows ``slots`` (B,) of its samples."""
        loss = shown.loss
        measures = self.measures[slots]
        old = measures[:, LOSS]
        known = old == old  # not NaN
        kept = np.where(known, 1.0 - self._smoothing, 0.0)  # share of what was measured before
        shift = kept * np.where(known, old - loss, 0.0)
        hardness = np.maximum(shown.excess + shift, 0.0)
        for column, weight in self._weights:
            if column in shown.extra:
                new = shown.extra[column]
                measures[:, column] = new + kept * (measures[:, column] - new)
            if weight:
                hardness += weight * np.maximum(measures[:, column], 0.0)
        measures[:, LOSS] = loss + shift
        measures[:, KEY] = keys_of(hardness, faded)
        self.measures[slots] = measures
        self.facts[slots, STEP] = step
        if shown.games is not None:
            self.facts[slots, GAME] = shown.games

    def load(
        self, slots: np.ndarray, hardness: np.ndarray, games: np.ndarray | None, faded: float
    ) -> None:
        """Overwrite rows ``slots`` (B,) with a known hardness (B,) and no loss."""
        self.measures[slots] = _NEW_MEASURES
        self.facts[slots] = _NEW_FACTS
        self.measures[slots, KEY] = keys_of(hardness, faded)
        if games is not None:
            self.facts[slots, GAME] = games

    def claim(self, indices: np.ndarray) -> tuple[np.ndarray, bool]:
        """Rows (B,) of distinct data-set indices, at most ``spare``; and whether it had to prune."""
        slots = self.slots.lookup(indices)
        new = slots < 0
        number = int(np.count_nonzero(new))
        pruned = number > self.slots.room
        if pruned:
            self.prune()
            slots = self.slots.lookup(indices)
            new = slots < 0
            number = int(np.count_nonzero(new))
        if number:
            fresh = self.slots.assign(indices[new])
            self.measures[fresh] = _NEW_MEASURES
            self.facts[fresh] = _NEW_FACTS
            slots[new] = fresh
        return slots, pruned

    def prune(self) -> np.ndarray:
        """Drop the least hard beyond ``buffer_size``; the rows left, int64, in no special order."""
        used = self.slots.used()
        surplus = used.size - self.buffer_size
        if surplus <= 0:
            return used
        order = np.argpartition(self.measures[used, KEY], surplus)
        self.slots.release(used[order[:surplus]])
        return used[order[surplus:]]

    def kept(self) -> np.ndarray:
        """The rows that :meth:`prune` would leave, int64; changes nothing."""
        used = self.slots.used()
        surplus = used.size - self.buffer_size
        if surplus <= 0:
            return used
        return used[np.argpartition(self.measures[used, KEY], surplus)[surplus:]]

    def hardest(self, number: int, faded: float, drawn: DrawCounts) -> list[HardExample]:
        """The ``number`` hardest of the rows that :meth:`prune` would leave, hardest first."""
        slots = self.kept()
        indices = self.slots.index_of[slots]
        order = np.lexsort((indices, -self.measures[slots, KEY]))[:number]
        slots, indices = slots[order], indices[order]
        hardness = np.exp(self.measures[slots, KEY] - faded)
        columns = (
            indices,
            self.measures[slots, LOSS],
            self.measures[slots, UNCERTAINTY],
            drawn.of(indices),
            self.facts[slots, STEP],
            self.measures[slots, SURPRISE],
            hardness,
            self.facts[slots, GAME],
        )
        return [HardExample(*row) for row in zip(*(c.tolist() for c in columns), strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """Everything as tensors."""
        top = self.slots.high_water
        return {
            "slots": self.slots.state_dict(),
            "measures": torch.from_numpy(self.measures[:top].copy()),
            "facts": torch.from_numpy(self.facts[:top].copy()),
        }

    @whole_state
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`; ``ValueError`` for another size leaves everything as it was."""
        check_keys(state, self.state_dict(), "TrackedExamples")
        slots = SampleSlots(self.slots.capacity)
        with forms.naming("slots"):
            slots.load_state_dict(state["slots"])
        top = slots.high_water
        with forms.naming(f"after index_of, of {top} slots"):
            forms.record(
                measures=forms.numbers(top, 4, finite=False),
                facts=forms.numbers(top, 2, low=-1, whole=True),
            )("", state)
        measures = np.asarray(state["measures"], dtype=np.float64)
        facts = np.asarray(state["facts"], dtype=np.int64)
        known = measures[:, [KEY, UNCERTAINTY, SURPRISE]]  # a loss is NaN until it is recorded
        if np.isnan(known).any() or (known == math.inf).any() or np.isinf(measures[:, LOSS]).any():
            raise ValueError("measures must be finite")
        self.slots = slots
        self.measures[:] = _NEW_MEASURES
        self.facts[:] = _NEW_FACTS
        self.measures[:top] = measures
        self.facts[:top] = facts


__all__ = [
    "GAME",
    "KEY",
    "LEAST_HARDNESS",
    "LOSS",
    "STEP",
    "SURPRISE",
    "UNCERTAINTY",
    "HardExample",
    "TrackedExamples",
    "keys_of",
]
