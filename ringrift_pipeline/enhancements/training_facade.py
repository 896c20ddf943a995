"""One training step with every enhancement: the facade over the other modules.

    facade = TrainingEnhancementsFacade(model=model, optimizer=optimizer, config=FacadeConfig())
    for batch in loader:
        stats = facade.train_step(batch)
        if stats.should_stop:
            break
    facade.on_epoch_end(val_loss=validate(facade.averaged_model))

A step's loss is the weighted mean of the differentiable losses of its samples, over all batches
of an accumulation alike. The losses of a step are read from the device once, when it is taken:
the anomaly monitor, the miner and the tracker see them then.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ringrift_pipeline.enhancements.data_quality_scoring import DataQualityScorer
from ringrift_pipeline.enhancements.facade_config import FacadeConfig
from ringrift_pipeline.enhancements.facade_parts import build_parts
from ringrift_pipeline.enhancements.loss_parts import LossParts, compute_loss_parts
from ringrift_pipeline.enhancements.per_sample_loss import Reduction, compute_per_sample_loss
from ringrift_pipeline.enhancements.sample_slots import as_indices
from ringrift_pipeline.enhancements.training_batch import REQUIRED, TrainingBatch, read_batch
from ringrift_pipeline.enhancements.training_stability import Snapshot, StepGuard
from ringrift_pipeline.enhancements.training_statistics import (
    ENTROPY,
    POLICY,
    TOTAL,
    VALUE,
    WEIGHT,
    EpochStatistics,
    TrainingProgress,
    TrainStepStats,
    join_losses,
    pack_losses,
)

logger = logging.getLogger(__name__)

LossFunction = Callable[[nn.Module, dict[str, Any]], Tensor | LossParts]
STATE_FORMAT = 1


class TrainingEnhancementsFacade:
    """Trains a model step by step, with the enhancements that the config switches on.

    Args:
        model: ``model(features) -> (policy_logits (B, A), value)``, or any model with a
            ``loss_fn``. It stays the caller's, on the caller's device.
        optimizer: over the model's parameters, built with the peak learning rate.
        config: what to use and how; None for the defaults.
        loss_fn: ``loss_fn(model, batch)`` -> (B,) differentiable losses, or ``LossParts``; gets
            the batch as a dict with its tensors on the device. None: policy and value loss.

    Raises:
        ValueError: a model without parameters, or a config that does not fit the optimizer.

    Attributes:
        miner, tracker, averager, clipper, scheduler, accumulator, monitor: the parts; None where
            switched off.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: FacadeConfig | None = None,
        *,
        loss_fn: LossFunction | None = None,
    ) -> None:
        if next(model.parameters(), None) is None:
            raise ValueError("the model has no parameters")
        self.model = model
        self.optimizer = optimizer
        self.config = config = config or FacadeConfig()
        self._loss_fn = loss_fn
        self._parts, self._forward_context = parts, _ = build_parts(optimizer, config, self.device)
        self.accumulator = parts.accumulator
        self.clipper = parts.clipper
        self.scheduler = parts.scheduler
        self.miner = parts.miner
        self.tracker = parts.tracker
        self.averager = parts.averager
        self.monitor = parts.monitor
        self.scaler = parts.scaler
        self.progress = TrainingProgress()
        self._snapshot = Snapshot(model, optimizer)
        self._snapshot_extra: dict[str, Any] = {}  # averager and monitor, as of the snapshot
        self._steps_since_snapshot = 0
        self._unaveraged = [0, 0]  # steps and samples that the averager has not seen yet
        self._quality: np.ndarray | None = None  # (N,) weights by data-set index, mean 1
        self._curriculum_scale = 1.0
        self._warned: set[str] = set()
        self._pending: list[tuple[Tensor, TrainingBatch]] = []  # packed losses of each batch
        self._apply_curriculum()

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return next(self.model.parameters()).device

    @property
    def averaged_model(self) -> nn.Module | None:
        """The averaged model in eval mode; None before the first step or when switched off.

        As of the last multiple of ``averaging_interval`` steps; ``update_average`` brings it up
        to date. Reading it changes nothing.
        """
        return None if self.averager is None else self.averager.averaged_model

    @property
    def steps(self) -> int:
        """Optimizer steps taken (not undone by a rollback)."""
        return self.progress.steps

    @property
    def epoch(self) -> int:
        """Epochs ended."""
        return self.progress.epoch

    @property
    def is_mining_active(self) -> bool:
        """Whether hard examples are being mined."""
        return self.miner is not None and self.miner.mining_active

    # --- one step ---------------------------------------------------------------------------

    def train_step(self, batch: Any) -> TrainStepStats:
        """Forward, backward and, when the accumulation is full, an optimizer step.

        Args:
            batch: a mapping of ``features`` (a tensor or a nested dict, list or tuple of tensors),
                ``policy_targets`` ((B, A) probabilities or (B,) indices) and ``value_targets``
                ((B,) or (B, seats)), and optionally ``indices`` (B,) (data-set rows: mining,
                tracking and quality need them), ``weights`` (B,), ``legal_mask`` (B, A) bool,
                ``games`` (B,), ``surprise`` (B,), ``reference_loss`` (B,); or the tuple of the
                first three. Tensors or numpy arrays, on any device.

        Returns:
            The step's report. A loss or gradient out of bounds is not an error: the step is left
            out or, when the model has diverged, undone, and the report says so.

        Raises:
            ValueError: a batch that does not fit, named; nothing has changed then.
        """
        required = REQUIRED if self._loss_fn is None else ()
        read = read_batch(batch, self.device, required)
        if not self.model.training:
            self.model.train()
        if not self._pending and any(p.grad is not None for p in self._parameters()):
            self.optimizer.zero_grad(set_to_none=True)  # the caller's; ours are cleared
        parts = self._losses(read)
        size = parts.total.shape[0]
        if size == 0:
            raise ValueError("the batch is empty")
        if read.indices is not None and read.indices.size != size:
            raise ValueError(f"indices has {read.indices.size} entries, the batch {size} samples")
        weights = self._weights(read, size, parts.total, count=True)
        if weights is None:
            mean = parts.total.mean()
        elif self.config.gradient_accumulation_steps == 1:
            mean = (parts.total * weights).sum() / weights.sum()
        else:  # what the weights sum to is known when all batches are there
            mean = (parts.total * weights).sum() / size
        losses = pack_losses(parts, weights)
        try:
            loss = self.accumulator.scale_loss(mean, size)
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        except BaseException:
            self._discard_pending()
            raise
        self._pending.append((losses, read))
        if self.accumulator.should_step():
            return self._step(losses, size)
        return TrainStepStats(
            losses,
            step=self.progress.steps,
            samples=size,
            lr=self._lr(),
            stop_reason=self.progress.stop_reason,
        )

    def flush(self) -> TrainStepStats | None:
        """Step with the batches accumulated so far, if any; called by ``on_epoch_end`` too."""
        if not self._pending:
            return None
        losses = join_losses([losses for losses, _ in self._pending])
        return self._step(losses, losses.shape[1])

    def update_average(self) -> None:
        """Take the steps since the last multiple of ``averaging_interval`` into the average."""
        if self.averager is not None and self._unaveraged[1]:
            self.averager.update(self.model, self._unaveraged[1])
            self._unaveraged = [0, 0]

    def _losses(self, batch: TrainingBatch) -> LossParts:
        config = self.config
        with self._forward_context():
            if self._loss_fn is not None:
                result = self._loss_fn(self.model, batch.tensors)
            else:
                result = self.model(batch.tensors["features"])
        if self._loss_fn is not None:
            if isinstance(result, LossParts):
                return result
            if not isinstance(result, Tensor) or result.dim() != 1:
                shape = tuple(result.shape) if isinstance(result, Tensor) else type(result)
                raise ValueError(f"loss_fn must give losses (B,), one a sample, got {shape}")
            unknown = torch.full_like(result.detach(), math.nan)
            return LossParts(result, unknown, unknown)
        if not (isinstance(result, (tuple, list)) and len(result) == 2):
            raise ValueError(
                "the model must return (policy_logits, value); for another model give a loss_fn"
            )
        return compute_loss_parts(
            result[0],
            batch.tensors["policy_targets"],
            result[1],
            batch.tensors["value_targets"],
            config.policy_weight,
            value_weight=config.value_weight,
            legal_mask=batch.tensors.get("legal_mask"),
            value_kind=config.value_kind,
            validate=config.validate_targets,
            with_entropy=self.miner is not None
            and config.hard_uncertainty_weight > 0.0
            and batch.indices is not None,
        )

    def _weights(self, batch: TrainingBatch, size: int, like: Tensor, count: bool) -> Tensor | None:
        """The samples' weights (B,) on the device: given, quality and mining; None when all 1."""
        weights = batch.weights
        if weights is not None:
            if weights.shape[0] != size:
                raise ValueError(f"weights has {weights.shape[0]} entries, the batch {size}")
            weights = weights.to(like.dtype)
        host = self._host_weights(batch.indices, count)
        if host is not None:
            ours = torch.from_numpy(host).to(device=like.device, dtype=like.dtype)
            weights = ours if weights is None else weights * ours
        return weights

    def _host_weights(self, indices: np.ndarray | None, count: bool) -> np.ndarray | None:
        config = self.config
        if indices is None:
            for name, part in (("hard mining", self.miner), ("quality scores", self._quality)):
                if part is not None and name not in self._warned:
                    self._warned.add(name)
                    logger.warning("batches carry no indices: %s cannot be used", name)
            return None
        weights = None
        if self._quality is not None:
            if indices.size and int(indices.max()) >= self._quality.size:
                raise ValueError(
                    f"index {int(indices.max())} has no quality score: {self._quality.size} given"
                )
            weights = self._quality[indices]
        if self.miner is not None and config.hard_upweight != config.hard_base_weight:
            mined = self.miner.get_sample_weights(
                indices, config.hard_base_weight, config.hard_upweight, count=count
            )
            weights = mined if weights is None else weights * mined
        return weights

    def _step(self, losses: Tensor, samples: int) -> TrainStepStats:
        pending, self._pending = self._pending, []
        packed = join_losses([losses for losses, _ in pending])
        host = packed.to(device="cpu", dtype=torch.float64).numpy()
        weights = host[WEIGHT]
        with np.errstate(invalid="ignore", divide="ignore"):
            loss = float((host[TOTAL] @ weights) / weights.sum())
        # One batch alone was divided by its weights already, see train_step.
        accumulated = self.config.gradient_accumulation_steps > 1
        mean_weight = packed[WEIGHT].mean() if accumulated and (weights != 1.0).any() else None
        if self.monitor is not None and not self._snapshot.taken:
            self._take_snapshot()
        guard = StepGuard(loss, self.monitor, self.clipper, mean_weight, self._before_change)
        lr = self._lr()
        try:
            norm = self.accumulator.step(self.optimizer, None, self.scaler, guard)  # type: ignore[arg-type]
        except BaseException:
            self._discard_pending()
            raise
        stepped = not self.accumulator.last_step_skipped
        anomaly: str | None = guard.verdict
        message = ""
        if stepped:
            self._after_step(pending, host)
        else:
            self.progress.add_skip()
            if anomaly is None and self.scaler is None:
                anomaly = "non_finite"
                if self.monitor is not None:
                    anomaly = self.monitor.note_bad("non_finite")
            message = self._report_skip(anomaly, loss, norm)
        return TrainStepStats(
            losses,
            step=self.progress.steps,
            samples=samples,
            lr=lr,
            grad_norm=guard.norm,
            stepped=stepped,
            stop_reason=self.progress.stop_reason,
            anomaly=anomaly,
            message=message,
        )

    def _after_step(self, pending: list[tuple[Tensor, TrainingBatch]], host: np.ndarray) -> None:
        self.progress.add_step(host)
        self._steps_since_snapshot += 1
        if self.averager is not None:
            self._unaveraged = [self._unaveraged[0] + 1, self._unaveraged[1] + host.shape[1]]
            if self._unaveraged[0] >= self.config.averaging_interval or self.progress.steps == 1:
                self.update_average()
        if self.scheduler is not None:
            self.scheduler.on_optimizer_step()
        self._apply_curriculum()
        start = 0
        for losses, batch in pending:
            end = start + losses.shape[1]
            if batch.indices is not None:
                self._record(batch.indices, host[:, start:end], batch.facts)
            start = end

    def _record(
        self, indices: np.ndarray, rows: np.ndarray, facts: Mapping[str, np.ndarray]
    ) -> None:
        if self.miner is not None:
            self.miner.record_batch(
                indices,
                rows[TOTAL],
                rows[ENTROPY] if rows.shape[0] > ENTROPY else None,
                surprises=facts.get("surprise"),
                reference_losses=facts.get("reference_loss"),
                games=facts.get("games"),
            )
        if self.tracker is not None:
            self.tracker.record_batch(
                indices,
                rows[TOTAL],
                self.progress.epoch,
                self.progress.steps - 1,
                policy_losses=rows[POLICY],
                value_losses=rows[VALUE],
            )

    def _report_skip(self, anomaly: str | None, loss: float, norm: float) -> str:
        if anomaly is None:  # a loss scale that was too high, lowered now
            return "step left out: the gradient overflowed its loss scale, which is now lower"
        if anomaly == "spike":
            assert self.monitor is not None
            message = (
                f"step left out: loss {loss:.4g} is a spike, the running median is "
                f"{self.monitor.median:.4g}"
            )
        elif anomaly == "non_finite":
            what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient norm is {norm}"
            message = f"step left out: the {what}"
        else:
            message = self._roll_back(loss)
        logger.warning("%s", message)
        return message

    def _roll_back(self, loss: float) -> str:
        progress, config = self.progress, self.config
        progress.rollbacks += 1
        extra = self._snapshot_extra
        self._snapshot.restore()
        if self.averager is not None:
            self.averager.load_state_dict(extra["averager"])
            self._unaveraged = list(extra["unaveraged"])
        if self.monitor is not None:
            self.monitor.load_state_dict(extra["monitor"])
        self._steps_since_snapshot = 0
        self._scale_lr(config.lr_backoff)
        if progress.rollbacks > config.max_rollbacks:
            progress.stop_reason = (
                f"diverged {progress.rollbacks} times, more than max_rollbacks "
                f"({config.max_rollbacks})"
            )
        return (
            f"training diverged at step {progress.steps} (loss {loss:.4g}): back to the state of "
            f"step {extra['step']}, learning rate times {config.lr_backoff:g}, now "
            f"{self._lr():.3g} (rollback {progress.rollbacks})"
        )

    def _before_change(self) -> None:
        """The present weights have just shown a good loss: the time for a snapshot."""
        if (
            self.monitor is not None
            and self._steps_since_snapshot >= self.config.snapshot_every
            and self.monitor.healthy
        ):
            self._take_snapshot()

    def _take_snapshot(self) -> None:
        averager, monitor = self.averager, self.monitor
        self._snapshot.take()
        self._snapshot_extra = {
            "step": self.progress.steps,
            "averager": None if averager is None else averager.state_dict(),
            "unaveraged": list(self._unaveraged),
            "monitor": None if monitor is None else monitor.state_dict(),
        }
        self._steps_since_snapshot = 0

    def _discard_pending(self) -> None:
        self._pending = []
        self.accumulator.discard()
        self.optimizer.zero_grad(set_to_none=True)

    # --- learning rate ----------------------------------------------------------------------

    def _lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def _scale_lr(self, factor: float) -> None:
        if factor == 1.0:
            return
        if self.scheduler is not None:
            self.scheduler.scale_lr(factor)
            return
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].mul_(factor)
            else:
                group["lr"] *= factor

    def set_total_epochs(self, total_epochs: int) -> None:
        """Epochs of the run, by which ``get_curriculum_lr_scale`` knows the progress."""
        if total_epochs < 1:
            raise ValueError(f"total_epochs must be at least 1, got {total_epochs}")
        self.progress.total_epochs = int(total_epochs)
        self._apply_curriculum()

    def get_curriculum_lr_scale(self, progress: float | None = None) -> float:
        """Factor of the learning rate at a share of the run; 1 unless ``enable_curriculum_lr``.

        Linear from ``curriculum_lr_min_scale`` to 1 over ``curriculum_warmup_fraction``, then
        linear to ``curriculum_lr_max_scale``.

        Args:
            progress: share of the run in [0, 1] (clamped); None: the steps taken of
                ``total_steps``, or without these the epochs ended of those set.
        """
        config = self.config
        if not config.enable_curriculum_lr:
            return 1.0
        if progress is None:
            if config.total_steps:
                progress = self.progress.steps / config.total_steps
            else:
                progress = self.progress.epoch / self.progress.total_epochs
        progress = min(max(float(progress), 0.0), 1.0)
        warmup = config.curriculum_warmup_fraction
        if progress < warmup:
            low = config.curriculum_lr_min_scale
            return low + (1.0 - low) * progress / warmup
        if warmup == 1.0:
            return 1.0
        high = config.curriculum_lr_max_scale
        return 1.0 + (high - 1.0) * (progress - warmup) / (1.0 - warmup)

    def _apply_curriculum(self) -> None:
        if self.config.enable_curriculum_lr:
            scale = self.get_curriculum_lr_scale()
            self._scale_lr(scale / self._curriculum_scale)
            self._curriculum_scale = scale

    # --- data -------------------------------------------------------------------------------

    def set_quality_scores(self, scores: Any, temperature: float | None = None) -> None:
        """Weight samples by quality: score ** (1 / temperature), scaled to mean 1.

        Not for data drawn by a ``QualityWeightedSampler``, which has weighted it already.

        Args:
            scores: (N,) in [0, 1], the quality of each data-set row; None: no weighting.
            temperature: None for the config's.

        Raises:
            ValueError: ``enable_quality_scoring`` is off, scores out of range.
        """
        if scores is None:
            self._quality = None
            return
        if not self.config.enable_quality_scoring:
            raise ValueError("quality scores were given but enable_quality_scoring is off")
        weights = DataQualityScorer().compute_sample_weights(
            scores, self.config.quality_temperature if temperature is None else temperature
        )
        self._quality = weights * weights.size

    def get_hard_indices(self, num_samples: int) -> np.ndarray:
        """Draw up to ``num_samples`` hard examples (int64 rows); see ``HardExampleMiner``."""
        if self.miner is None:
            return np.zeros(0, dtype=np.int64)
        indices = self.miner.get_hard_indices(num_samples)
        assert isinstance(indices, np.ndarray)
        return indices

    def create_mixed_batch_indices(self, batch_size: int, all_indices: Any) -> np.ndarray:
        """A batch of hard and random rows, (batch_size,) int64; needs ``enable_hard_mining``."""
        if self.miner is None:
            raise ValueError("enable_hard_mining is off: there is no miner to draw from")
        return self.miner.create_mixed_batch_indices(batch_size, all_indices)

    def get_hardest_samples(self, n: int = 100) -> list[tuple[int, float]]:
        """(row, loss) of the ``n`` highest losses of this epoch, highest first."""
        return [] if self.tracker is None else self.tracker.get_hardest_samples(n)

    # --- the parts, for a loop of one's own -------------------------------------------------

    def compute_per_sample_loss(
        self,
        policy_logits: Tensor,
        policy_targets: Tensor,
        value_pred: Tensor,
        value_targets: Tensor,
        reduction: Reduction = "none",
        *,
        legal_mask: Tensor | None = None,
    ) -> Tensor:
        """Differentiable losses (B,) with the config's weights; see ``per_sample_loss``."""
        return compute_per_sample_loss(
            policy_logits,
            policy_targets,
            value_pred,
            value_targets,
            self.config.policy_weight,
            reduction,
            value_weight=self.config.value_weight,
            legal_mask=legal_mask,
            value_kind=self.config.value_kind,
            validate=self.config.validate_targets,
        )

    def get_weighted_loss(
        self, per_sample_losses: Tensor, batch_indices: Any = None, weights: Tensor | None = None
    ) -> Tensor:
        """Weighted mean, scalar, of losses (B,); the gradient flows through every one of them.

        Args:
            per_sample_losses: (B,) with their graph.
            batch_indices: (B,) data-set rows, for quality and mining weights.
            weights: (B,) further weights.
        """
        if per_sample_losses.dim() != 1:
            raise ValueError(
                f"per_sample_losses must be (B,), got {tuple(per_sample_losses.shape)}"
            )
        indices = None if batch_indices is None else as_indices(batch_indices, "batch_indices")
        size = per_sample_losses.shape[0]
        if indices is not None and indices.size != size:
            raise ValueError(f"batch_indices has {indices.size} entries, the losses {size}")
        batch = TrainingBatch({}, indices, weights, {})
        combined = self._weights(batch, size, per_sample_losses, count=False)
        if combined is None:
            return per_sample_losses.mean()
        return (per_sample_losses * combined).sum() / combined.sum()

    def record_batch(
        self, batch_indices: Any, per_sample_losses: Any, uncertainties: Any = None
    ) -> None:
        """Tell miner and tracker the losses (B,) of data-set rows (B,); ``train_step`` does."""
        if self.miner is not None:
            self.miner.record_batch(batch_indices, per_sample_losses, uncertainties)
        if self.tracker is not None:
            self.tracker.record_batch(
                batch_indices, per_sample_losses, self.progress.epoch, self.progress.steps
            )

    # --- epochs -----------------------------------------------------------------------------

    def get_epoch_statistics(self) -> EpochStatistics:
        """The epoch so far."""
        stats = self.progress.statistics()
        stats.lr = self._lr()
        stats.curriculum_lr_scale = self.get_curriculum_lr_scale()
        stats.mining_active = self.is_mining_active
        if self.miner is not None:
            mined = self.miner.get_statistics()
            stats.tracked_samples = mined["tracked_examples"]
            if stats.tracked_samples:
                stats.hard_examples_fraction = mined["hard_examples"] / stats.tracked_samples
        elif self.tracker is not None:
            stats.tracked_samples = int(self.tracker.get_statistics()["tracked_samples"])
        return stats

    def on_epoch_end(
        self, val_loss: float | None = None, *, current_elo: float | None = None
    ) -> EpochStatistics:
        """End an epoch: step with what is left, validate, begin the next.

        Args:
            val_loss: held-out loss, for early stopping and the adaptive schedule.
            current_elo: rating, for the adaptive schedule.
        """
        self.flush()
        if val_loss is not None or self.progress.epoch_steps:
            self.on_validation(val_loss, current_elo=current_elo)
        stats = self.get_epoch_statistics()
        self.progress.begin_epoch()
        if self.tracker is not None:
            self.tracker.reset_epoch()
        self._apply_curriculum()
        return stats

    def on_validation(self, val_loss: float | None, *, current_elo: float | None = None) -> bool:
        """Take note of a validation within or at the end of an epoch.

        A loss that is not finite counts as one without progress. After
        ``early_stopping_patience`` of these in a row, reports say ``should_stop``.

        Returns:
            Whether the loss is the best so far.
        """
        value = None if val_loss is None else float(val_loss)
        finite = value is not None and math.isfinite(value)
        if self.scheduler is not None and self.progress.epoch_steps:
            self.scheduler.on_validation(
                self.progress.mean_loss, value if finite else None, current_elo
            )
        if value is None:
            return False
        return self.progress.add_validation(
            value, self.config.early_stopping_patience, self.config.early_stopping_min_delta
        )

    def reset(self) -> None:
        """Forget the data and the run's counts; model, optimizer, rate and average stay."""
        self._discard_pending()
        for part in (self.miner, self.tracker, self.clipper, self.monitor):
            if part is not None:
                part.reset()
        self._snapshot.load_state_dict(None)
        self._steps_since_snapshot = 0
        self.progress = TrainingProgress(total_epochs=self.progress.total_epochs)

    # --- saving -----------------------------------------------------------------------------

    def state_dict(self, include_model: bool = True) -> dict[str, Any]:
        """Everything training goes on from, a copy: tensors, plain values, dicts and lists.

        A fresh facade of the same config over a fresh model and optimizer that loads it goes on
        bit for bit (on the CPU), in the middle of an accumulation too. torch's random state is in
        it, for dropout.

        Args:
            include_model: with the model's and the optimizer's state; False where the caller
                keeps them.
        """
        state: dict[str, Any] = {
            "format": STATE_FORMAT,
            "parts": {n: _copy(part.state_dict()) for n, part in self._parts.present().items()},
            "progress": self.progress.state_dict(),
            "snapshot": self._snapshot.state_dict(),
            "snapshot_extra": _copy(self._snapshot_extra),
            "steps_since_snapshot": self._steps_since_snapshot,
            "quality": None if self._quality is None else torch.from_numpy(self._quality.copy()),
            "pending": [
                {
                    "losses": losses.clone(),
                    "indices": None if b.indices is None else torch.from_numpy(b.indices.copy()),
                    "facts": {k: torch.from_numpy(v.copy()) for k, v in b.facts.items()},
                }
                for losses, b in self._pending
            ],
            "gradients": [None if p.grad is None else p.grad.clone() for p in self._parameters()]
            if self._pending
            else [],
            "unaveraged": list(self._unaveraged),
            "curriculum_scale": self._curriculum_scale,
            "random": torch.get_rng_state(),
            "device_random": torch.cuda.get_rng_state(self.device)
            if self.device.type == "cuda"
            else None,
        }
        if include_model:
            state["model"] = _copy(self.model.state_dict())
            state["optimizer"] = _copy(self.optimizer.state_dict())
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`.

        Raises:
            ValueError: another format, or a facade with other enhancements switched on.
        """
        if state.get("format") != STATE_FORMAT:
            raise ValueError(
                f"not a facade state of format {STATE_FORMAT}: {state.get('format')!r}"
            )
        parts = self._parts.present()
        if parts.keys() != state["parts"].keys():
            odd = sorted(parts.keys() ^ state["parts"].keys())
            raise ValueError(
                f"the state was saved with another config: {', '.join(odd)} only on one side"
            )
        saved = state["parts"]["accumulator"]["accumulation_steps"]
        if saved != self.config.gradient_accumulation_steps:
            raise ValueError(
                f"the state was saved with gradient_accumulation_steps={saved}, "
                f"the config has {self.config.gradient_accumulation_steps}"
            )
        self._discard_pending()
        if "model" in state:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(_copy(state["optimizer"]))
        for name, part in parts.items():
            part.load_state_dict(_copy(state["parts"][name]))
        self._snapshot.load_state_dict(state["snapshot"])
        self._snapshot_extra = _copy(state["snapshot_extra"])
        self._steps_since_snapshot = int(state["steps_since_snapshot"])
        quality = state["quality"]
        self._quality = None if quality is None else quality.numpy().copy()
        self.progress.load_state_dict(state["progress"])
        self._unaveraged = list(state["unaveraged"])
        self._curriculum_scale = float(state["curriculum_scale"])
        for entry in state["pending"]:
            losses = entry["losses"].to(self.device, copy=True)
            indices = None if entry["indices"] is None else entry["indices"].numpy().copy()
            facts = {name: values.numpy().copy() for name, values in entry["facts"].items()}
            self._pending.append((losses, TrainingBatch({}, indices, None, facts)))
            self.accumulator.scale_loss(torch.zeros(()), losses.shape[1])
        for parameter, gradient in zip(self._parameters(), state["gradients"], strict=False):
            parameter.grad = None if gradient is None else gradient.to(parameter.device, copy=True)
        torch.set_rng_state(state["random"].cpu())
        if state["device_random"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["device_random"].cpu(), self.device)

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]


def _copy(tree: Any) -> Any:
    """A deep copy of nested containers; tensors keep their strides."""
    if isinstance(tree, Tensor):
        return tree.detach().clone()
    if isinstance(tree, Mapping):
        return {key: _copy(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_copy(value) for value in tree)
    return tree


__all__ = [
    "EpochStatistics",
    "FacadeConfig",
    "TrainStepStats",
    "TrainingEnhancementsFacade",
]
