"""The optimizer step of a run with every enhancement: what the training facade stands on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ringrift_pipeline.enhancements.batch_shares import RefusedBatch, failure, join_shares
from ringrift_pipeline.enhancements.facade_state import (
    random_state,
    set_random_state,
)
from ringrift_pipeline.enhancements.gradient_norms import check_gradients
from ringrift_pipeline.enhancements.loss_parts import (
    LossParts,
    check_loss_parts,
)
from ringrift_pipeline.enhancements.non_finite import NonFiniteStepError
from ringrift_pipeline.enhancements.step_faults import Fault, loss_fault
from ringrift_pipeline.enhancements.training_batch import (
    ALL_ZERO,
    REQUIRED,
    TrainingBatch,
    read_batch,
)
from ringrift_pipeline.enhancements.training_parts import TrainingParts
from ringrift_pipeline.enhancements.training_stability import StepGuard
from ringrift_pipeline.enhancements.training_statistics import (
    ENTROPY,
    POLICY,
    TOTAL,
    VALUE,
    WEIGHT,
    TrainStepStats,
    join_losses,
    pack_losses,
)


class TrainingStep(TrainingParts):
    """Takes the steps of a run; see ``TrainingEnhancementsFacade``, which adds what is around."""

    # --- one step ---------------------------------------------------------------------------

    def train_step(self, batch: Any) -> TrainStepStats:
        """Forward, backward and, when the accumulation is full, an optimizer step.

        Args:
            batch: a mapping of ``features`` (a tensor or a nested dict, list or tuple of tensors),
                ``policy_targets`` ((B, A) probabilities or (B,) indices) and ``value_targets``
                ((B,) or (B, seats)), and optionally ``indices`` (B,) (data-set rows: mining,
                tracking and quality need them), ``weights`` (B,), ``legal_mask`` (B, A) bool,
                ``games`` (B,), ``surprise`` (B,), ``uncertainty`` (B,), which takes the place of the
                predicted policy's entropy, ``reference_loss`` (B,); or the tuple of the
                first three. Tensors or numpy arrays, on any device. Where several processes train
                together it is this process's share; all call in step, and all get the report of
                the whole.

        Returns:
            The step's report. A loss or gradient out of bounds is not an error: the step is left
            out or, when the model has diverged, undone, and the report says so. Where it is not
            finite, the report names the samples and parameters that this comes from.

        Raises:
            NonFiniteStepError: a loss or gradient that is not finite, with ``on_non_finite``
                "halt"; weights and optimizer are as they were.
            ValueError: a batch that does not fit, named, or losses of another form; nothing has
                changed then, the random state included (but for what the model's own forward pass
                keeps, as batch norm does). Or gradients that are sparse or complex: the batches
                accumulated so far are dropped then, weights and history are as they were.
            ReplicaError: another process has failed or is gone.
        """
        random = random_state(self.device)
        with self.replicas.failures_told(failure):
            read, parts = self._own_losses(batch)
        whole, sizes = read, [len(parts.total)]
        try:
            if not self.replicas.alone:
                joined = join_shares(self.replicas, read, len(parts.total))
                if isinstance(joined, RefusedBatch):
                    return self._leave_out(joined.what, joined.rows)
                whole, sizes = joined
            weights = self._weights(whole, len(parts.total), parts.total, count=True)
        except ValueError:
            set_random_state(self.device, *random)
            raise
        losses = self.replicas.gather(pack_losses(parts, weights), sizes)
        size = losses.shape[1]
        mean = self._mean(parts.total, weights, losses)
        try:
            loss = self.accumulator.scale_loss(mean, size)
            with self.replicas.connected():
                (loss if self.scaler is None else self.scaler.scale(loss)).backward()
            check_gradients(self._parameters())
        except BaseException:
            self._discard_pending()
            raise
        self._pending.append((losses, whole))
        if self.accumulator.should_step():
            return self._step(losses, size)
        return TrainStepStats(
            losses,
            step=self.progress.steps,
            samples=size,
            lr=self._rate.value,
            stop_reason=self.progress.stop_reason,
        )

    def _own_losses(self, batch: Any) -> tuple[TrainingBatch, LossParts]:
        """A batch, or this process's share of one, read and passed forward."""
        if self.scheduler is not None:
            self.scheduler.check_groups()
        required = REQUIRED if self._loss_fn is None else ()
        read = read_batch(batch, self.device, required, whole=self.replicas.alone)
        if not self.model.training:
            self.model.train()
        if not self._pending and any(p.grad is not None for p in self._parameters()):
            self.optimizer.zero_grad(set_to_none=True)  # the caller's; ours are cleared
        random = random_state(self.device)
        try:
            parts = self._forward(read)
            check_loss_parts("the model" if self._loss_fn is None else "loss_fn", parts)
            size = parts.total.shape[0]
            if size == 0:
                raise ValueError("the batch is empty: features, targets have no rows")
            for name, values in {"indices": read.indices, **read.facts}.items():
                if values is not None and len(values) != size:
                    raise ValueError(f"{name} has {len(values)} entries, the batch {size} samples")
        except ValueError:
            set_random_state(self.device, *random)
            raise
        return read, parts

    def _mean(self, total: Tensor, weights: Tensor | None, losses: Tensor) -> Tensor:
        """The batch's mean loss, to go backward from; of several processes this one's part in it,
        times their number, for gradients are their mean.

        Args:
            total: (b,) losses of this process's samples.
            weights: (b,) theirs; None when all are 1.
            losses: (4 or 5, B) packed losses of the whole batch.
        """
        # what the weights of an accumulation sum to is known when all its batches are there
        by_weights = weights is not None and self.config.gradient_accumulation_steps == 1
        weighted = total if weights is None else total * weights
        if self.replicas.alone:
            if weights is None:
                return total.mean()
            return weighted.sum() / (weights.sum() if by_weights else total.shape[0])
        if by_weights and losses.device.type == "cpu" and not losses[WEIGHT].any():
            raise ValueError(ALL_ZERO)
        over = losses[WEIGHT].sum() if by_weights else losses.shape[1]
        return weighted.sum() * self.replicas.count / over

    def flush(self) -> TrainStepStats | None:
        """Step with the batches accumulated so far, if any; called by ``on_epoch_end`` too."""
        if not self._pending:
            return None
        if self.scheduler is not None:
            self.scheduler.check_groups()
        losses = join_losses([losses for losses, _ in self._pending])
        return self._step(losses, losses.shape[1])

    def _step(self, losses: Tensor, samples: int) -> TrainStepStats:
        try:
            return self._step_with_pending(losses, samples)
        except BaseException:
            self._discard_pending()
            raise

    def _step_with_pending(self, losses: Tensor, samples: int) -> TrainStepStats:
        pending, self._pending = self._pending, []
        packed = join_losses([losses for losses, _ in pending])
        host = packed.to(device="cpu", dtype=torch.float64).numpy()
        weights = host[WEIGHT]
        with np.errstate(invalid="ignore", divide="ignore"):
            loss = float((host[TOTAL] @ weights) / weights.sum())
        # One batch alone was divided by its weights already, see train_step.
        accumulated = self.config.gradient_accumulation_steps > 1
        mean_weight = packed[WEIGHT].mean() if accumulated and (weights != 1.0).any() else None
        if self.monitor is not None and not self._recovery.ready:
            self._recovery.keep(self.progress.steps, self._unaveraged)
        guard = StepGuard(
            loss,
            self.monitor,
            self.clipper,
            mean_weight,
            partial(self._recovery.keep_if_due, self.progress.steps, self._unaveraged),
            None if self.ewc is None else partial(self.ewc.add_gradient, self.model),
        )
        lr = self._rate.value
        norm = self.accumulator.step(self.optimizer, None, self.scaler, guard)  # type: ignore[arg-type]
        stepped = not self.accumulator.last_step_skipped
        anomaly: str | None = guard.verdict
        message = ""
        fault = Fault()
        if stepped:
            self._after_step(pending, host)
        else:
            self.progress.add_skip()
            judged = guard.verdict is not None or not math.isfinite(loss)
            # no loss scale makes a loss that is not finite, which without a monitor nobody judged
            if anomaly is None and not (math.isfinite(loss) and self._scale_overflowed()):
                anomaly = "non_finite"
                if self.monitor is not None:
                    anomaly = self.monitor.note_bad("non_finite")
            if not math.isfinite(loss):
                fault = loss_fault(pending, host)
            elif anomaly is not None and not judged:
                fault = self._gradient_fault(pending, guard.bad_parameters)
            halts = anomaly is not None and not (judged and math.isfinite(loss))
            if halts and self.config.on_non_finite == "halt":
                what = f"loss is {loss:.4g}" if judged else f"gradient norm is {norm}"
                raise NonFiniteStepError(
                    f"training halted before step {self.steps + 1}: the {what}{fault.text}",
                    fault.rows,
                )
            message = self._report_skip(anomaly, loss, norm, judged, fault)
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
            penalty=0.0 if guard.penalty is None else float(guard.penalty),
            rows=fault.rows,
        )

    def _after_step(self, pending: list[tuple[Tensor, TrainingBatch]], host: np.ndarray) -> None:
        self.progress.add_step(host)
        self._recovery.count_step()
        if self.averager is not None:
            self._unaveraged = [self._unaveraged[0] + 1, self._unaveraged[1] + host.shape[1]]
            if self._unaveraged[0] >= self.config.averaging_interval or self.progress.steps == 1:
                self.update_average()
        if self.scheduler is not None:
            self.scheduler.on_optimizer_step()
        self._rate.apply_curriculum(self.progress)
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
            entropy = rows[ENTROPY] if rows.shape[0] > ENTROPY else None
            self.miner.record_batch(
                indices,
                rows[TOTAL],
                facts.get("uncertainty", entropy),
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


__all__ = ["TrainingStep"]
