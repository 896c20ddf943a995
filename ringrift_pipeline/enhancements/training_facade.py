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

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ringrift_pipeline.enhancements.argument_checks import (
    check_dense,
    check_flag,
    check_keys,
    check_type,
    check_whole,
)
from ringrift_pipeline.enhancements.checkpoint_averaging import build_loaded
from ringrift_pipeline.enhancements.facade_config import FacadeConfig
from ringrift_pipeline.enhancements.facade_state import (
    check_facade_state,
    copied,
    pending_from,
    pending_state,
    random_state,
    set_random_state,
)
from ringrift_pipeline.enhancements.per_sample_loss import Reduction, compute_per_sample_loss
from ringrift_pipeline.enhancements.sample_slots import as_floats, as_indices
from ringrift_pipeline.enhancements.state_forms import naming
from ringrift_pipeline.enhancements.training_batch import (
    TrainingBatch,
    check_weights,
)
from ringrift_pipeline.enhancements.training_statistics import (
    EpochStatistics,
    TrainingProgress,
    TrainStepStats,
    check_figures,
)
from ringrift_pipeline.enhancements.training_step import TrainingStep

STATE_FORMAT = 2


class TrainingEnhancementsFacade(TrainingStep):
    """Trains a model step by step, with the enhancements that the config switches on.

    Args:
        model: ``model(features) -> (policy_logits (B, A), value)``, or any model with a
            ``loss_fn``. It stays the caller's, on the caller's device.
        optimizer: over the model's parameters, built with the peak learning rate; with a
            ``loss_fn`` it may have further ones.
        config: what to use and how; None for the defaults.
        loss_fn: ``loss_fn(model, batch)`` -> (B,) differentiable losses, or ``LossParts``; gets
            the batch as a dict with its tensors on the device. None: policy and value loss.
        ewc: its penalty's gradient is added once an optimizer step, before clipping; ``stats``
            report it as ``penalty``, apart from the loss.
        replicas: the processes that train this model together, each with a facade of the same
            arguments; None for one alone. Each gives its share of every batch, and all take the
            steps that one would take with the whole: ``DistributedDataParallel`` adds the gradients
            up, losses and indices are gathered in the order of ranks, and the state is the same
            everywhere, and that of one. Not for models with random layers, such as dropout, whose
            shares would all draw alike.

    Raises:
        ReplicaError: another process is gone.
        ValueError: a model without parameters, an optimizer of another model, a config that does
            not fit the optimizer, or an ``ewc`` of a model with other parameters.

    Attributes:
        miner, tracker, averager, clipper, scheduler, accumulator, monitor, ewc: the parts; None
            where switched off.
    """

    # --- learning rate ----------------------------------------------------------------------

    def set_total_epochs(self, total_epochs: int) -> None:
        """Epochs of the run, by which ``get_curriculum_lr_scale`` knows the progress."""
        self.progress.total_epochs = check_whole("total_epochs", total_epochs, 1)
        self._rate.apply_curriculum(self.progress)

    def get_curriculum_lr_scale(self, progress: float | None = None) -> float:
        """Factor of the learning rate at a share of the run; 1 unless ``enable_curriculum_lr``.

        Linear from ``curriculum_lr_min_scale`` to 1 over ``curriculum_warmup_fraction``, then
        linear to ``curriculum_lr_max_scale``.

        Args:
            progress: share of the run in [0, 1] (clamped); None: the steps taken of
                ``total_steps``, or without these the epochs ended of those set.
        """
        return self._rate.curriculum(self.progress, progress)

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
        self._sample_weights.set_quality(scores, temperature)

    def get_hard_indices(self, num_samples: int) -> np.ndarray:
        """Draw up to ``num_samples`` hard examples; see ``HardExampleMiner``.

        Returns:
            (K,) int64 data-set rows, K <= num_samples; empty before mining is active or when it is
            off.

        Raises:
            ValueError: ``num_samples`` is no whole number from 0.
        """
        if self.miner is None:
            check_whole("num_samples", num_samples, 0)
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
        check_whole("n", n, 0)
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
        """Differentiable losses with the config's weights; see ``per_sample_loss``.

        Args:
            policy_logits: (B, A) floating point.
            policy_targets: (B, A) probabilities or (B,) integer actions.
            value_pred, value_targets: (B,), (B, 1) or (B, seats), by the config's ``value_kind``.
            reduction: ``none``, ``mean`` or ``sum``.
            legal_mask: (B, A) bool, True where legal.

        Returns:
            (B,) floating point with its graph, or 0-d for ``mean`` and ``sum``.
        """
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
            weights: (B,) further weights, a tensor, >= 0 and not all 0.

        Raises:
            ValueError: losses that are not (B,), other arguments that do not fit them; by name.
        """
        check_dense("per_sample_losses", per_sample_losses)
        if per_sample_losses.dim() != 1 or not per_sample_losses.is_floating_point():
            raise ValueError(
                "per_sample_losses must be floating point (B,), "
                f"got {per_sample_losses.dtype} {tuple(per_sample_losses.shape)}"
            )
        if len(per_sample_losses) == 0:
            raise ValueError("per_sample_losses must have data")
        indices = None if batch_indices is None else as_indices(batch_indices, "batch_indices")
        size = per_sample_losses.shape[0]
        if indices is not None and indices.size != size:
            raise ValueError(f"batch_indices has {indices.size} entries, the losses {size}")
        if weights is not None:
            check_type("weights", weights, Tensor)
            check_weights(weights, indices)
            weights = weights.to(per_sample_losses.device)
        batch = TrainingBatch({}, indices, weights, {})
        combined = self._weights(batch, size, per_sample_losses, count=False)
        if combined is None:
            return per_sample_losses.mean()
        return (per_sample_losses * combined).sum() / combined.sum()

    def record_batch(
        self, batch_indices: Any, per_sample_losses: Any, uncertainties: Any = None
    ) -> None:
        """Tell miner, tracker and statistics the losses (B,) of data-set rows (B,).

        ``train_step`` does by itself; this is for the steps of a loop of one's own. The epoch's mean
        takes every finite loss with weight 1, its policy and value loss are then not known (NaN).

        Raises:
            ValueError: lengths that differ or what is no such number, by name; nothing changes.
        """
        rows = as_indices(batch_indices, "batch_indices")
        losses = as_floats(per_sample_losses, rows.size, "per_sample_losses")
        if uncertainties is not None:
            uncertainties = as_floats(uncertainties, rows.size, "uncertainties")
        if self.miner is not None:
            self.miner.record_batch(rows, losses, uncertainties)
        if self.tracker is not None:
            self.tracker.record_batch(rows, losses, self.progress.epoch, self.progress.steps)
        self.progress.add_losses(losses)

    # --- epochs -----------------------------------------------------------------------------

    def get_epoch_statistics(self) -> EpochStatistics:
        """The epoch so far."""
        stats = self.progress.statistics()
        stats.lr = self._rate.value
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

        Raises:
            ValueError: a figure that is no number; nothing changes.
        """
        check_figures(val_loss, current_elo)
        self.flush()
        if val_loss is not None or self.progress.epoch_samples:
            self.on_validation(val_loss, current_elo=current_elo)
        stats = self.get_epoch_statistics()
        self.progress.begin_epoch()
        if self.tracker is not None:
            self.tracker.reset_epoch()
        self._rate.apply_curriculum(self.progress)
        return stats

    def on_validation(self, val_loss: float | None, *, current_elo: float | None = None) -> bool:
        """Take note of a validation within or at the end of an epoch.

        A loss that is not finite counts as one without progress. After
        ``early_stopping_patience`` of these in a row, reports say ``should_stop``.

        Returns:
            Whether the loss is the best so far.
        """
        check_figures(val_loss, current_elo)
        value = None if val_loss is None else float(val_loss)
        finite = value is not None and math.isfinite(value)
        if self.scheduler is not None and self.progress.epoch_samples:
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
        self._recovery.reset()
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
        check_flag("include_model", include_model)
        quality = self._sample_weights.quality
        random, device_random = random_state(self.device)
        state: dict[str, Any] = {
            "format": STATE_FORMAT,
            "parts": {n: copied(part.state_dict()) for n, part in self._parts.present().items()},
            "progress": self.progress.state_dict(),
            **self._recovery.state_dict(),
            "quality": None if quality is None else torch.from_numpy(quality.copy()),
            "pending": pending_state(self._pending),
            "gradients": [None if p.grad is None else p.grad.clone() for p in self._parameters()]
            if self._pending
            else [],
            "unaveraged": list(self._unaveraged),
            "curriculum_scale": self._rate.curriculum_scale,
            "random": random,
            "device_random": device_random,
        }
        if include_model:
            state["model"] = copied(self.model.state_dict())
            state["optimizer"] = copied(self.optimizer.state_dict())
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`.

        Raises:
            ValueError: another format, a facade with other enhancements switched on, or a state
                that is damaged or of another model; nothing changes.
        """
        check_type("state", state, Mapping)
        try:
            self._check(state)
        except Exception as error:  # as below
            raise ValueError(f"state of the facade does not fit: {error}") from error
        before = self.state_dict()
        try:
            self._load(state)
        except Exception as error:  # whatever a damaged state makes torch or numpy raise
            self._load(before)
            raise ValueError(f"state of the facade does not fit: {error}") from error

    def _check(self, state: Mapping[str, Any]) -> None:
        if state.get("format") != STATE_FORMAT:
            raise ValueError(
                f"not a facade state of format {STATE_FORMAT}: {state.get('format')!r}"
            )
        check_facade_state(state, self.model, self.optimizer, self._parameters())
        parts = self._parts.present()
        if parts.keys() != state["parts"].keys():
            odd = sorted(parts.keys() ^ state["parts"].keys())
            raise ValueError(
                f"the state was saved with another config: parts {', '.join(odd)} only on one side"
            )
        accumulator = state["parts"]["accumulator"]
        check_keys(accumulator, self.accumulator.state_dict(), "parts.accumulator")
        saved = accumulator["accumulation_steps"]
        if saved != self.config.gradient_accumulation_steps:
            raise ValueError(
                f"the state was saved with gradient_accumulation_steps={saved}, "
                f"the config has {self.config.gradient_accumulation_steps}"
            )
        if len(state["pending"]) != accumulator["batches"]:
            raise ValueError("pending does not hold the batches that the accumulator has counted")
        if self.averager is not None:
            with naming("parts.averager"):
                self.averager.check_state(state["parts"]["averager"], self.model)

    def _load(self, state: Mapping[str, Any]) -> None:
        parts = self._parts.present()
        self._discard_pending()
        if "model" in state:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(copied(state["optimizer"]))
        for name, part in parts.items():
            with naming(f"parts.{name}"):
                part.load_state_dict(copied(state["parts"][name]))
        if self.averager is not None:
            build_loaded(self.averager, self.model)
        self._recovery.load_state_dict(state)
        quality = state["quality"]
        self._sample_weights.quality = None if quality is None else np.asarray(quality).copy()
        with naming("progress"):
            self.progress.load_state_dict(state["progress"])
        self._unaveraged = list(state["unaveraged"])
        self._rate.curriculum_scale = float(state["curriculum_scale"])
        self._pending = pending_from(state["pending"], self.device)
        for parameter, gradient in zip(self._parameters(), state["gradients"], strict=False):
            parameter.grad = None if gradient is None else gradient.to(parameter.device, copy=True)
        set_random_state(self.device, state["random"], state["device_random"])


__all__ = [
    "EpochStatistics",
    "FacadeConfig",
    "TrainStepStats",
    "TrainingEnhancementsFacade",
]
