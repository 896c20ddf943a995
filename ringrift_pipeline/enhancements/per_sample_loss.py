"""One loss a sample, and a record of how each sample's loss went.

``compute_per_sample_loss`` gives the differentiable loss of every sample of a batch; its policy and
value parts come from ``loss_parts``.

``PerSampleLossTracker`` keeps the losses of a bounded number of samples, each with a short history
and its learning curve (learned early, learned late, forgotten, never learned; after Toneva et al.
2019, "An empirical study of example forgetting", arXiv:1812.05159).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ringrift_pipeline.enhancements import state_forms as forms
from ringrift_pipeline.enhancements.argument_checks import (
    check_choice,
    check_keys,
    check_number,
    check_whole,
    whole_state,
)
from ringrift_pipeline.enhancements.batch_measures import LARGEST_MEASURE
from ringrift_pipeline.enhancements.loss_parts import LossParts, ValueKind, compute_loss_parts
from ringrift_pipeline.enhancements.sample_slots import (
    MAX_INDEX,
    SampleSlots,
    as_floats,
    as_indices,
    run_starts,
)

Reduction = Literal["none", "mean", "sum"]
LearningCurve = Literal["unseen", "unknown", "never_learned", "forgotten", "early", "late"]
CURVES: tuple[LearningCurve, ...] = ("never_learned", "forgotten", "early", "late")

MAX_HISTORY = 10_000  # epochs: a history is an array of so many columns


def compute_per_sample_loss(
    policy_logits: Tensor,
    policy_targets: Tensor,
    value_pred: Tensor,
    value_targets: Tensor,
    policy_weight: float = 1.0,
    reduction: Reduction = "none",
    *,
    value_weight: float = 1.0,
    legal_mask: Tensor | None = None,
    value_kind: ValueKind = "auto",
    validate: bool | None = None,
) -> Tensor:
    """Policy and value loss of each sample, weighted and added, with their gradient.

    Args:
        policy_logits: (B, A) floating point, ``-inf`` where an action is not legal.
        policy_targets: (B, A) floating-point probabilities, or (B,) integer actions.
        value_pred: (B,), (B, 1) or (B, seats) floating point, by ``value_kind``.
        value_targets: (B,), (B, 1) or (B, seats), by ``value_kind``.
        policy_weight: factor of the policy loss (cross-entropy, nats), >= 0.
        reduction: ``none``, ``mean`` or ``sum``.
        value_weight: factor of the value loss, >= 0; not 0 as well.
        legal_mask: (B, A) bool, True where legal; None for ``-inf`` alone.
        value_kind: form of the value head, see :func:`compute_loss_parts`.
        validate: whether to look into the targets; None: on the CPU.

    Returns:
        (B,) in the dtype of the logits (float32 for half precision), or a 0-d tensor for ``mean``
        and ``sum``.

    Raises:
        ValueError: as :func:`compute_loss_parts`, an unknown reduction, or the mean of no samples.
    """
    check_choice("reduction", reduction, get_args(Reduction))
    total = compute_loss_parts(
        policy_logits,
        policy_targets,
        value_pred,
        value_targets,
        policy_weight,
        value_weight=value_weight,
        legal_mask=legal_mask,
        value_kind=value_kind,
        validate=validate,
    ).total
    if reduction == "mean":
        if total.numel() == 0:
            raise ValueError(
                "reduction 'mean' of no samples: policy_logits and the others are empty"
            )
        return total.mean()
    return total.sum() if reduction == "sum" else total


@dataclass(frozen=True)
class PerSampleLossRecord:
    """The newest losses of one sample; ``policy_loss`` and ``value_loss`` NaN if not recorded."""

    sample_idx: int
    loss: float
    policy_loss: float
    value_loss: float
    epoch: int
    batch_idx: int


# columns of the two tables, one row a tracked sample; and a row of a sample not seen yet
LOSS, POLICY, VALUE = range(3)
_NEW_LOSSES = (math.nan, math.nan, math.nan)
(
    EPOCH,
    BATCH,
    IN_EPOCH,  # 1: recorded since reset_epoch
    ENTRIES,  # history entries ever written
    FIRST_EPOCH,
    LEARNED_EPOCH,  # first epoch with a loss at or below the threshold, -1: none
    LEARNED,  # 1: the newest loss is
    FORGETTINGS,
) = range(8)
_NEW_FACTS = (-1, -1, 0, 0, -1, -1, 0, 0)


class PerSampleLossTracker:
    """Losses of up to ``max_samples`` samples; the least recently seen is dropped for a new one.

    Every array has one row a slot; recording a batch of B costs O(B). A sample counts as learned
    while its loss is at or below ``learned_loss``.

    Args:
        max_samples: samples tracked, at least 1.
        history_epochs: epochs of history kept a sample (one loss an epoch, the newest), 1 to
            10,000.
        percentile_hard: percentile of the current losses reported as the threshold of "hard".
        learned_loss: loss at or below which a sample is learned. None: half of the mean loss of
            the first epoch recorded, fixed when that epoch ends.
        early_epochs: a sample first learned within this many epochs of being first seen, and
            not forgotten since, was learned early.
    """

    def __init__(
        self,
        max_samples: int = 10_000,
        history_epochs: int = 3,
        percentile_hard: float = 90.0,
        *,
        learned_loss: float | None = None,
        early_epochs: int = 2,
    ) -> None:
        self.max_samples = check_whole("max_samples", max_samples, 1, MAX_INDEX + 1)
        self.history_epochs = check_whole("history_epochs", history_epochs, 1, MAX_HISTORY + 1)
        self.percentile_hard = check_number("percentile_hard", percentile_hard, 0.0, 100.0)
        self.early_epochs = check_whole("early_epochs", early_epochs, 1)
        self._given_learned_loss = (
            None if learned_loss is None else check_number("learned_loss", learned_loss)
        )
        self.reset()

    def reset(self) -> None:
        """Forget every sample."""
        self._slots = SampleSlots(self.max_samples)
        self._losses = np.tile(np.array(_NEW_LOSSES), (self.max_samples, 1))  # float64
        self._facts = np.tile(np.array(_NEW_FACTS, dtype=np.int64), (self.max_samples, 1))
        self._stamp = np.full(self.max_samples, -1, dtype=np.int64)  # touches before the last one
        shape = (self.max_samples, self.history_epochs)
        self._history_epoch = np.full(shape, -1, dtype=np.int64)
        self._history_loss = np.full(shape, math.nan, dtype=np.float64)
        self._queue = np.zeros((2, 4 * self.max_samples), dtype=np.int64)  # slot; stamp when queued
        self._head = self._tail = 0
        self._touches = 0
        self._total_samples = 0
        self._skipped = 0
        self._first_epoch: int | None = None
        self._learned_loss = self._given_learned_loss

    @property
    def learned_loss(self) -> float | None:
        """Threshold of "learned"; None until the first epoch has ended."""
        return self._learned_loss

    def record_batch(
        self,
        batch_indices: Sequence[int] | np.ndarray | Tensor,
        losses: Sequence[float] | np.ndarray | Tensor,
        epoch: int,
        batch_idx: int = 0,
        *,
        policy_losses: Sequence[float] | np.ndarray | Tensor | None = None,
        value_losses: Sequence[float] | np.ndarray | Tensor | None = None,
    ) -> int:
        """Record the losses (B,) of the data-set rows ``batch_indices`` (B,).

        A loss that is not finite, or beyond 1e150, is skipped and counted in ``get_statistics``. Of an index that
        occurs more than once the last loss counts.

        Returns:
            The number of losses recorded.

        Raises:
            ValueError: lengths that differ, indices, epoch or batch that are negative or not whole.
        """
        epoch = check_whole("epoch", epoch, 0)
        batch_idx = check_whole("batch_idx", batch_idx, 0)
        indices = as_indices(batch_indices, "batch_indices")
        loss = as_floats(losses, indices.size, "losses")
        absent = np.full(indices.size, math.nan)
        policy = (
            absent
            if policy_losses is None
            else as_floats(policy_losses, indices.size, "policy_losses")
        )
        value = (
            absent
            if value_losses is None
            else as_floats(value_losses, indices.size, "value_losses")
        )
        finite = np.abs(loss) <= LARGEST_MEASURE
        recorded = int(np.count_nonzero(finite))
        self._skipped += indices.size - recorded
        if recorded == 0:
            return 0
        if recorded < indices.size:
            indices, loss, policy, value = (a[finite] for a in (indices, loss, policy, value))
        self._total_samples += recorded
        if self._first_epoch is None:
            self._first_epoch = epoch
        elif epoch != self._first_epoch and self._learned_loss is None:
            self._fix_learned_loss()

        # distinct indices, the last of each, in order of that last occurrence
        order = np.argsort(indices, kind="stable")
        ordered = indices[order]
        is_last = run_starts(ordered[::-1])[::-1]
        if indices.size > self.max_samples or not is_last.all():
            last = np.sort(order[is_last])[-self.max_samples :]
            indices, loss, policy, value = (a[last] for a in (indices, loss, policy, value))
        slots = self._claim(indices)

        rows = np.empty((slots.size, 3))
        rows[:, LOSS], rows[:, POLICY], rows[:, VALUE] = loss, policy, value
        self._losses[slots] = rows
        facts = self._facts[slots]
        facts[:, BATCH] = batch_idx
        facts[:, IN_EPOCH] = 1
        facts[:, ENTRIES] += facts[:, EPOCH] != epoch
        facts[:, EPOCH] = epoch
        facts[facts[:, FIRST_EPOCH] < 0, FIRST_EPOCH] = epoch
        column = (facts[:, ENTRIES] - 1) % self.history_epochs
        self._history_epoch[slots, column] = epoch
        self._history_loss[slots, column] = loss
        if self._learned_loss is not None:
            _mark_learned(facts, loss <= self._learned_loss)
        self._facts[slots] = facts
        return recorded

    def _claim(self, indices: np.ndarray) -> np.ndarray:
        """Slots of distinct indices: those held are touched, others take the place of the oldest."""
        slots = self._slots.lookup(indices)
        new = slots < 0
        number = int(np.count_nonzero(new))
        if number < slots.size:
            self._touch(slots[~new])
        if number == 0:
            return slots
        if number > self._slots.room:
            self._evict(number - self._slots.room)
        fresh = self._slots.assign(indices[new])
        self._facts[fresh] = _NEW_FACTS
        self._touch(fresh)
        slots[new] = fresh
        return slots

    def _touch(self, slots: np.ndarray) -> None:
        """Mark as seen now: queue (slot, stamp); older entries of the slot are stale from now on."""
        if slots.size > self._queue.shape[1] - self._tail:
            live = self._live()
            self._queue[:, : live.shape[1]] = live
            self._head, self._tail = 0, live.shape[1]
        stamps = self._touches + np.arange(slots.size)
        self._stamp[slots] = stamps
        self._queue[0, self._tail : self._tail + slots.size] = slots
        self._queue[1, self._tail : self._tail + slots.size] = stamps
        self._tail += slots.size
        self._touches += slots.size

    def _live(self) -> np.ndarray:
        """The queue's entries that are not stale, (2, K)."""
        queued = self._queue[:, self._head : self._tail]
        return queued[:, self._stamp[queued[0]] == queued[1]]

    def _evict(self, number: int) -> None:
        while number > 0:
            entries = self._queue[:, self._head : min(self._head + number, self._tail)]
            live = entries[0, self._stamp[entries[0]] == entries[1]]
            self._head += entries.shape[1]
            self._stamp[live] = -1
            self._slots.release(live)
            number -= live.size

    def _fix_learned_loss(self) -> None:
        """The first epoch has ended: set the threshold, and see who was learned in it."""
        used = self._slots.used()
        if used.size == 0:
            return
        loss = self._losses[used, LOSS]
        self._learned_loss = 0.5 * float(loss.mean())
        facts = self._facts[used]
        _mark_learned(facts, loss <= self._learned_loss)
        self._facts[used] = facts

    def get_statistics(self) -> dict[str, float]:
        """Statistics of the losses recorded since ``reset_epoch``, and counts since the start.

        Keys: ``mean_loss``, ``std_loss``, ``min_loss``, ``max_loss``, ``mean_policy_loss``,
        ``mean_value_loss`` (NaN if never recorded), ``percentile_threshold``, ``total_samples``,
        ``tracked_samples``, ``current_samples``, ``skipped_non_finite``.
        """
        used = self._slots.used()
        current = used[self._facts[used, IN_EPOCH] == 1]
        loss = self._losses[current, LOSS]
        if loss.size == 0:
            loss = np.zeros(1)
        return {
            "mean_loss": float(loss.mean()),
            "std_loss": float(loss.std()),
            "min_loss": float(loss.min()),
            "max_loss": float(loss.max()),
            "mean_policy_loss": _mean_known(self._losses[current, POLICY]),
            "mean_value_loss": _mean_known(self._losses[current, VALUE]),
            "percentile_threshold": float(np.percentile(loss, self.percentile_hard)),
            "total_samples": self._total_samples,
            "tracked_samples": self._slots.count,
            "current_samples": int(current.size),
            "skipped_non_finite": self._skipped,
        }

    def get_hardest_samples(self, n: int = 100) -> list[tuple[int, float]]:
        """The ``n`` samples of the current epoch with the highest loss: (index, loss), descending."""
        n = check_whole("n", n, 0)
        used = self._slots.used()
        current = used[self._facts[used, IN_EPOCH] == 1]
        loss, indices = self._losses[current, LOSS], self._slots.index_of[current]
        order = np.lexsort((indices, -loss))[:n]
        return list(zip(indices[order].tolist(), loss[order].tolist(), strict=True))

    def get_sample_history(self, sample_idx: int) -> list[tuple[int, float]]:
        """(epoch, loss) of a sample, oldest first, at most ``history_epochs``; O(history)."""
        slot = self._slot(sample_idx)
        if slot < 0:
            return []
        entries = int(self._facts[slot, ENTRIES])
        columns = np.arange(max(0, entries - self.history_epochs), entries) % self.history_epochs
        epochs = self._history_epoch[slot, columns].tolist()
        return list(zip(epochs, self._history_loss[slot, columns].tolist(), strict=True))

    def get_record(self, sample_idx: int) -> PerSampleLossRecord | None:
        """The newest record of a sample, or None when it is not tracked."""
        slot = self._slot(sample_idx)
        if slot < 0:
            return None
        epoch, batch = self._facts[slot, [EPOCH, BATCH]].tolist()
        loss, policy, value = self._losses[slot].tolist()
        return PerSampleLossRecord(int(sample_idx), loss, policy, value, epoch, batch)

    def get_learning_curve(self, sample_idx: int) -> LearningCurve:
        """How a sample was learned.

        ``unseen`` (not tracked), ``unknown`` (the first epoch has not ended), ``never_learned``,
        ``forgotten`` (learned once, not now), ``early`` or ``late`` (learned now).
        """
        if self._slot(sample_idx) < 0:
            return "unseen"
        if self._learned_loss is None:
            return "unknown"
        return CURVES[int(self._curve(np.array([self._slot(sample_idx)]))[0])]

    def learning_curves(self) -> dict[LearningCurve, np.ndarray]:
        """The tracked samples by learning curve.

        Returns:
            Curve (``never_learned``, ``forgotten``, ``early`` or ``late``; ``unknown`` alone until
            ``learned_loss`` is known) -> data-set indices (K,), int64, ascending; every tracked
            sample is in one of them.
        """
        used = self._slots.used()
        indices = self._slots.index_of[used]
        if self._learned_loss is None:
            return {"unknown": np.sort(indices)}
        curve = self._curve(used)
        return {name: np.sort(indices[curve == code]) for code, name in enumerate(CURVES)}

    def _curve(self, slots: np.ndarray) -> np.ndarray:
        """Position in ``CURVES`` of each slot."""
        facts = self._facts[slots]
        delay = facts[:, LEARNED_EPOCH] - facts[:, FIRST_EPOCH]
        early = (delay < self.early_epochs) & (facts[:, FORGETTINGS] == 0)
        unlearned = np.where(facts[:, LEARNED_EPOCH] >= 0, 1, 0)
        return np.where(facts[:, LEARNED] == 1, np.where(early, 2, 3), unlearned)

    def get_forgetting_count(self, sample_idx: int) -> int:
        """How often a sample went from learned to not learned; 0 when not tracked."""
        slot = self._slot(sample_idx)
        return 0 if slot < 0 else int(self._facts[slot, FORGETTINGS])

    def reset_epoch(self) -> None:
        """Begin an epoch: statistics and hardest samples start anew, history stays."""
        if self._learned_loss is None:
            self._fix_learned_loss()
        self._facts[:, IN_EPOCH] = 0

    def _slot(self, sample_idx: int) -> int:
        index = check_whole("sample_idx", sample_idx, 0, MAX_INDEX + 1)
        return int(self._slots.lookup(np.array([index]))[0])

    def state_dict(self) -> dict[str, Any]:
        """Everything as tensors and plain numbers; size follows the samples tracked."""
        top = self._slots.high_water
        return {
            "slots": self._slots.state_dict(),
            "losses": torch.from_numpy(self._losses[:top].copy()),
            "facts": torch.from_numpy(self._facts[:top].copy()),
            "stamp": torch.from_numpy(self._stamp[:top].copy()),
            "history_epoch": torch.from_numpy(self._history_epoch[:top].copy()),
            "history_loss": torch.from_numpy(self._history_loss[:top].copy()),
            "queue": torch.from_numpy(self._live().copy()),
            "touches": self._touches,
            "total_samples": self._total_samples,
            "skipped": self._skipped,
            "first_epoch": self._first_epoch,
            "learned_loss": self._learned_loss,
        }

    @whole_state
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`; ``ValueError`` for other sizes or damage changes nothing."""
        check_keys(state, self.state_dict(), "PerSampleLossTracker")
        forms.numbers(None, None, finite=False)("history_loss", state["history_loss"])
        history = np.asarray(state["history_loss"], dtype=np.float64)
        if history.shape[1] != self.history_epochs:
            raise ValueError(
                f"history_loss has {history.shape[1]} epochs of history, this tracker "
                f"{self.history_epochs}: construct it with the same history_epochs"
            )
        slots = SampleSlots(self.max_samples)
        with forms.naming("slots"):
            slots.load_state_dict(state["slots"])
        top = slots.high_water
        with forms.naming(f"after index_of, of {top} slots"):
            forms.record(
                losses=forms.numbers(top, len(_NEW_LOSSES), finite=False),
                facts=forms.numbers(top, len(_NEW_FACTS), low=-1, whole=True),
                stamp=forms.numbers(top, low=-1, whole=True),
                history_epoch=forms.numbers(top, self.history_epochs, low=-1, whole=True),
                history_loss=forms.numbers(top, self.history_epochs, finite=False),
                queue=forms.numbers(2, None, low=0, whole=True),
            )("", state)
        losses, epochs = np.asarray(state["losses"]), np.asarray(state["history_epoch"])
        if not np.isfinite(losses[slots.used(), LOSS]).all():
            raise ValueError("losses must be finite where a sample is tracked")
        if not np.array_equal(np.isfinite(history), epochs >= 0):
            raise ValueError("history_loss must be finite where history_epoch tells an epoch")
        queue = np.asarray(state["queue"], dtype=np.int64)
        stamp = np.asarray(state["stamp"], dtype=np.int64)
        touches = check_whole("touches", state["touches"], 0)
        used = slots.used()
        # or else dropping the oldest would look for them for ever
        if not np.array_equal(np.sort(queue[0]), used) or (np.diff(queue[1]) <= 0).any():
            raise ValueError("queue must name every slot in use once, the oldest first")
        if (
            not np.array_equal(stamp[queue[0]], queue[1])
            or np.count_nonzero(stamp >= 0) != used.size
        ):
            raise ValueError("stamp must be that of queue where a slot is in use, else -1")
        if (stamp >= touches).any():
            raise ValueError(f"touches must be above every stamp, got {touches}")
        self.reset()
        self._slots = slots
        self._losses[:top] = losses
        self._facts[:top] = np.asarray(state["facts"])
        self._stamp[:top] = stamp
        self._history_epoch[:top] = epochs
        self._history_loss[:top] = history
        self._queue[:, : queue.shape[1]] = queue
        self._tail = queue.shape[1]
        self._touches = touches
        self._total_samples = check_whole("total_samples", state["total_samples"], 0)
        self._skipped = check_whole("skipped", state["skipped"], 0)
        first, learned = state["first_epoch"], state["learned_loss"]
        self._first_epoch = None if first is None else check_whole("first_epoch", first, 0)
        self._learned_loss = None if learned is None else check_number("learned_loss", learned)


def _mark_learned(facts: np.ndarray, now: np.ndarray) -> None:
    """Note in rows of facts (K, 8) whether their samples are learned now, (K,) bool."""
    facts[:, FORGETTINGS] += (facts[:, LEARNED] == 1) & ~now
    first = now & (facts[:, LEARNED_EPOCH] < 0)
    facts[first, LEARNED_EPOCH] = facts[first, EPOCH]
    facts[:, LEARNED] = now


def _mean_known(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan


__all__ = [
    "LearningCurve",
    "LossParts",
    "PerSampleLossRecord",
    "PerSampleLossTracker",
    "ValueKind",
    "compute_loss_parts",
    "compute_per_sample_loss",
]
