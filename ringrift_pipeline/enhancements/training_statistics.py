"""What a training step and an epoch report, and the counts behind it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ringrift_pipeline.enhancements import state_forms as forms
from ringrift_pipeline.enhancements.argument_checks import (
    check_any_number,
    check_number,
    whole_state,
)
from ringrift_pipeline.enhancements.loss_parts import LossParts

# rows of the (4 or 5, B) tensor of one batch's losses
TOTAL, POLICY, VALUE, WEIGHT, ENTROPY = range(5)


class TrainStepStats:
    """Report of one ``train_step``.

    ``loss``, ``policy_loss`` and ``value_loss`` are the batch's weighted means. They are read from
    the device when first asked for, so a loop that does not ask does not wait.

    Attributes:
        step: optimizer steps taken so far, this one included.
        samples: samples of the batch (of the rest, for ``flush``).
        lr: rate of the first parameter group in this step.
        grad_norm: total L2 norm before clipping; NaN when no step was due or its loss was refused.
        penalty: of the regularizer, not part of ``loss``; 0 without one or when no step was due.
        stepped: whether the optimizer stepped.
        should_stop: whether to end training, and ``stop_reason`` why ("" otherwise).
        anomaly: ``spike``, ``non_finite``, ``bad_data``, ``divergence`` or None; ``message`` says
            it in words.
        rows: data-set rows that what is not finite comes from, as far as they are known.
    """

    __slots__ = (
        "_losses",
        "_means",
        "anomaly",
        "grad_norm",
        "lr",
        "message",
        "penalty",
        "rows",
        "samples",
        "step",
        "stepped",
        "stop_reason",
    )

    def __init__(
        self,
        losses: Tensor | None,
        *,
        step: int,
        samples: int,
        lr: float,
        grad_norm: float = math.nan,
        stepped: bool = False,
        stop_reason: str = "",
        anomaly: str | None = None,
        message: str = "",
        penalty: float = 0.0,
        rows: tuple[int, ...] = (),
    ) -> None:
        self._losses = losses
        self._means: tuple[float, ...] | None = None
        self.step = step
        self.samples = samples
        self.lr = lr
        self.grad_norm = grad_norm
        self.stepped = stepped
        self.stop_reason = stop_reason
        self.anomaly = anomaly
        self.message = message
        self.penalty = penalty
        self.rows = rows

    @property
    def should_stop(self) -> bool:
        """Whether to end training."""
        return bool(self.stop_reason)

    @property
    def loss(self) -> float:
        """Weighted mean of the samples' losses."""
        return self._mean(TOTAL)

    @property
    def policy_loss(self) -> float:
        """Weighted mean policy loss, nats; NaN from a loss function that does not tell."""
        return self._mean(POLICY)

    @property
    def value_loss(self) -> float:
        """Weighted mean value loss; NaN from a loss function that does not tell."""
        return self._mean(VALUE)

    def _mean(self, row: int) -> float:
        if self._losses is None:
            return math.nan
        if self._means is None:
            self._means = weighted_means(self._losses)
        return self._means[row]

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        names = [name for name in self.__slots__ if not name.startswith("_")]
        return {name: getattr(self, name) for name in names} | {
            "loss": self.loss,
            "policy_loss": self.policy_loss,
            "value_loss": self.value_loss,
            "should_stop": self.should_stop,
        }

    def __repr__(self) -> str:
        return f"TrainStepStats({', '.join(f'{k}={v!r}' for k, v in self.as_dict().items())})"


def pack_losses(parts: LossParts, weights: Tensor | None) -> Tensor:
    """(4, B), or (5, B) with entropy: total, policy, value, weight, entropy; no graph."""
    total = parts.total.detach()
    rows = [total, parts.policy.detach(), parts.value.detach()]
    rows.append(torch.ones_like(total) if weights is None else weights.detach())
    if parts.entropy is not None:
        rows.append(parts.entropy.detach())
    return torch.stack([row.to(total.dtype) for row in rows])


def join_losses(batches: list[Tensor]) -> Tensor:
    """The packed losses of several batches side by side; entropy only where all have it."""
    if len(batches) == 1:
        return batches[0]
    rows = min(losses.shape[0] for losses in batches)
    return torch.cat([losses[:rows] for losses in batches], dim=1)


def weighted_means(losses: Tensor) -> tuple[float, ...]:
    """Weighted means (total, policy, value) of packed losses."""
    values = losses.detach().to(device="cpu", dtype=torch.float64)
    weights = values[WEIGHT]
    return tuple(((values[:WEIGHT] * weights).sum(dim=1) / weights.sum()).tolist())


@dataclass
class EpochStatistics:
    """Report of an epoch; also a mapping: ``stats["mean_loss"]``, ``dict(stats)``."""

    epoch: int = 0
    mean_loss: float = math.nan  # weighted, as trained; NaN before a step or record_batch
    mean_policy_loss: float = math.nan
    mean_value_loss: float = math.nan
    mean_per_sample_loss: float = math.nan  # every sample alike
    samples: int = 0
    steps: int = 0
    skipped_steps: int = 0
    rollbacks: int = 0  # since the start
    total_samples_seen: int = 0
    total_steps: int = 0
    mining_active: bool = False
    tracked_samples: int = 0
    hard_examples_fraction: float = 0.0  # hard ones among the tracked
    curriculum_lr_scale: float = 1.0
    lr: float = math.nan
    val_loss: float = math.nan
    best_val_loss: float = math.nan
    should_stop: bool = False
    stop_reason: str = ""

    def keys(self) -> Iterator[str]:
        """Names of the entries."""
        return (field.name for field in fields(self))

    def __getitem__(self, name: str) -> Any:
        if name not in self.keys():
            raise KeyError(name)
        return getattr(self, name)


@dataclass
class TrainingProgress:
    """Counts of a run and of its epoch, and the validations by which it stops early."""

    epoch: int = 0  # epochs ended
    total_epochs: int = 1
    steps: int = 0  # optimizer steps; a rollback does not take them back
    skipped: int = 0
    rollbacks: int = 0
    samples_seen: int = 0
    epoch_steps: int = 0
    epoch_skipped: int = 0
    epoch_samples: int = 0
    # weighted sums of total, policy and value loss; of the weights; plain sum of the total loss
    epoch_sums: list[float] = field(default_factory=lambda: [0.0] * 5)
    val_loss: float | None = None
    best_val_loss: float | None = None
    stale_validations: int = 0
    stop_reason: str = ""

    def add_step(self, losses: np.ndarray) -> None:
        """Count a step with the packed losses (4 or 5, samples) of its batches."""
        weights = losses[WEIGHT]
        sums = [*(losses[:WEIGHT] @ weights).tolist(), weights.sum(), losses[TOTAL].sum()]
        self.epoch_sums = [float(a + b) for a, b in zip(self.epoch_sums, sums, strict=True)]
        self.steps += 1
        self.epoch_steps += 1
        self.samples_seen += losses.shape[1]
        self.epoch_samples += losses.shape[1]

    def add_losses(self, losses: np.ndarray) -> None:
        """Count losses (B,) of a step taken elsewhere, weight 1 each; those not finite are not."""
        losses = losses[np.isfinite(losses)]
        if losses.size:
            total, size = float(losses.sum()), float(losses.size)
            added = [total, math.nan, math.nan, size, total]  # the parts are not known
            self.epoch_sums = [a + b for a, b in zip(self.epoch_sums, added, strict=True)]
            self.samples_seen += losses.size
            self.epoch_samples += losses.size

    def add_skip(self) -> None:
        """Count a step left out."""
        self.skipped += 1
        self.epoch_skipped += 1

    @property
    def mean_loss(self) -> float:
        """Weighted mean loss of the epoch so far, NaN before a step."""
        return self.epoch_sums[0] / self.epoch_sums[3] if self.epoch_sums[3] else math.nan

    def begin_epoch(self) -> None:
        """Count an epoch as ended."""
        self.epoch += 1
        self.epoch_steps = self.epoch_skipped = self.epoch_samples = 0
        self.epoch_sums = [0.0] * 5

    def add_validation(self, val_loss: float, patience: int, min_delta: float) -> bool:
        """Take note of a held-out loss: whether it is the best; may set ``stop_reason``."""
        self.val_loss = val_loss
        best = self.best_val_loss
        if math.isfinite(val_loss) and (best is None or val_loss < best - min_delta):
            self.best_val_loss = val_loss
            self.stale_validations = 0
            return True
        self.stale_validations += 1
        if patience and self.stale_validations >= patience and not self.stop_reason:
            self.stop_reason = (
                f"{self.stale_validations} validations in a row were no better than "
                f"{math.nan if best is None else best:.6g}, the last with loss {val_loss:.6g}"
            )
        return False

    def statistics(self) -> EpochStatistics:
        """The epoch so far, as far as it is known here."""
        stats = EpochStatistics(
            epoch=self.epoch,
            samples=self.epoch_samples,
            steps=self.epoch_steps,
            skipped_steps=self.epoch_skipped,
            rollbacks=self.rollbacks,
            total_samples_seen=self.samples_seen,
            total_steps=self.steps,
            val_loss=math.nan if self.val_loss is None else self.val_loss,
            best_val_loss=math.nan if self.best_val_loss is None else self.best_val_loss,
            should_stop=bool(self.stop_reason),
            stop_reason=self.stop_reason,
        )
        if self.epoch_samples:
            total, policy, value, weight, plain = self.epoch_sums
            stats.mean_loss = total / weight
            stats.mean_policy_loss = policy / weight
            stats.mean_value_loss = value / weight
            stats.mean_per_sample_loss = plain / self.epoch_samples
        return stats

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @whole_state
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`; ValueError for a damaged one changes nothing."""
        _PROGRESS("", state)
        unknown = [name for name in state if name not in self.__dict__]
        if unknown:
            raise ValueError(f"state_dict has what no progress has: {', '.join(map(str, unknown))}")
        total, _, _, weight, plain = state["epoch_sums"]  # the parts may not be known
        if not (math.isfinite(total) and math.isfinite(plain) and weight >= 0.0):
            raise ValueError(f"epoch_sums must be finite, got {state['epoch_sums']}")
        if bool(weight) != bool(state["epoch_samples"]):
            raise ValueError("epoch_sums and epoch_samples do not fit")
        if state["epoch_steps"] > state["epoch_samples"]:
            raise ValueError("epoch_steps are more than epoch_samples")
        fresh = TrainingProgress(**state)
        fresh.epoch_sums = list(fresh.epoch_sums)
        self.__dict__.update(fresh.__dict__)


_PROGRESS = forms.record(
    epoch=forms.whole(),
    total_epochs=forms.whole(1),
    steps=forms.whole(),
    skipped=forms.whole(),
    rollbacks=forms.whole(),
    samples_seen=forms.whole(),
    epoch_steps=forms.whole(),
    epoch_skipped=forms.whole(),
    epoch_samples=forms.whole(),
    epoch_sums=forms.listed(forms.any_number, exactly=5),
    val_loss=forms.optional(forms.any_number),
    best_val_loss=forms.optional(forms.number()),
    stale_validations=forms.whole(),
    stop_reason=forms.text,
)


def check_figures(val_loss: Any, current_elo: Any) -> None:
    """ValueError by name for what is no number; ``val_loss`` may be NaN or infinite."""
    if val_loss is not None:
        check_any_number("val_loss", val_loss)
    if current_elo is not None:
        check_number("current_elo", current_elo)


__all__ = [
    "EpochStatistics",
    "TrainStepStats",
    "TrainingProgress",
    "check_figures",
    "join_losses",
    "pack_losses",
    "weighted_means",
]
