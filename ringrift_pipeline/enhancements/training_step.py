"""The optimizer step of a run with every enhancement: what the training facade stands on."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ringrift_pipeline.enhancements.argument_checks import check_type
from ringrift_pipeline.enhancements.ewc_regularization import EWCRegularizer
from ringrift_pipeline.enhancements.facade_config import FacadeConfig
from ringrift_pipeline.enhancements.facade_learning_rate import LearningRate
from ringrift_pipeline.enhancements.facade_parts import build_parts
from ringrift_pipeline.enhancements.facade_recovery import Recovery
from ringrift_pipeline.enhancements.facade_state import (
    random_state,
    set_random_state,
)
from ringrift_pipeline.enhancements.gradient_norms import check_gradients
from ringrift_pipeline.enhancements.loss_parts import (
    LossParts,
    check_loss_parts,
    compute_loss_parts,
)
from ringrift_pipeline.enhancements.model_views import nonfinite_tensor
from ringrift_pipeline.enhancements.non_finite import NonFiniteStepError
from ringrift_pipeline.enhancements.sample_weights import SampleWeights
from ringrift_pipeline.enhancements.step_faults import Fault, gradient_fault, loss_fault
from ringrift_pipeline.enhancements.training_batch import (
    REQUIRED,
    TrainingBatch,
    features_fit,
    read_batch,
)
from ringrift_pipeline.enhancements.training_stability import Snapshot, StepGuard
from ringrift_pipeline.enhancements.training_statistics import (
    ENTROPY,
    POLICY,
    TOTAL,
    VALUE,
    WEIGHT,
    TrainingProgress,
    TrainStepStats,
    join_losses,
    pack_losses,
)

logger = logging.getLogger(__name__)

LossFunction = Callable[[nn.Module, dict[str, Any]], Tensor | LossParts]


class TrainingStep:
    """Takes the steps of a run; see ``TrainingEnhancementsFacade``, which adds what is around."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: FacadeConfig | None = None,
        *,
        loss_fn: LossFunction | None = None,
        ewc: EWCRegularizer | None = None,
    ) -> None:
        check_type("model", model, nn.Module)
        check_type("optimizer", optimizer, torch.optim.Optimizer)
        if config is not None:
            check_type("config", config, FacadeConfig)
        if loss_fn is not None and not callable(loss_fn):
            raise ValueError(f"loss_fn must be a function, got {loss_fn!r:.80}")
        if next(model.parameters(), None) is None:
            raise ValueError("the model has no parameters")
        _check_parameters(model, optimizer, others=loss_fn is not None)
        if ewc is not None:
            check_type("ewc", ewc, EWCRegularizer)
            with torch.no_grad():
                ewc.penalty(model)  # refuses a model that does not fit
        self.model = model
        self.optimizer = optimizer
        self.config = config = config or FacadeConfig()
        self._loss_fn = loss_fn
        self._parts, self._forward_context = parts, _ = build_parts(optimizer, config, self.device)
        self.ewc = parts.ewc = ewc
        self.accumulator = parts.accumulator
        self.clipper = parts.clipper
        self.scheduler = parts.scheduler
        self.miner = parts.miner
        self.tracker = parts.tracker
        self.averager = parts.averager
        self.monitor = parts.monitor
        self.scaler = parts.scaler
        self.progress = TrainingProgress()
        self._recovery = Recovery(
            Snapshot(model, optimizer), self.averager, self.monitor, config.snapshot_every
        )
        self._unaveraged = [0, 0]  # steps and samples that the averager has not seen yet
        self._sample_weights = SampleWeights(config, self.miner)
        self._rate = LearningRate(optimizer, self.scheduler, config)
        self._pending: list[tuple[Tensor, TrainingBatch]] = []  # packed losses of each batch
        self._rate.apply_curriculum(self.progress)

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return next(self.model.parameters()).device

    @property
    def averaged_model(self) -> nn.Module | None:
        """The averaged model in eval mode; None before the first step or when switched off.

        As of the last multiple of ``averaging_interval`` steps; ``update_average`` brings it up
        to date. A loaded state brings its own along. Reading it changes nothing.
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
                ``games`` (B,), ``surprise`` (B,), ``uncertainty`` (B,), which takes the place of the
                predicted policy's entropy, ``reference_loss`` (B,); or the tuple of the
                first three. Tensors or numpy arrays, on any device.

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
        """
        if self.scheduler is not None:
            self.scheduler.check_groups()
        required = REQUIRED if self._loss_fn is None else ()
        read = read_batch(batch, self.device, required)
        if not self.model.training:
            self.model.train()
        if not self._pending and any(p.grad is not None for p in self._parameters()):
            self.optimizer.zero_grad(set_to_none=True)  # the caller's; ours are cleared
        random = random_state(self.device)
        try:
            parts = self._losses(read)
            check_loss_parts("the model" if self._loss_fn is None else "loss_fn", parts)
            size = parts.total.shape[0]
            if size == 0:
                raise ValueError("the batch is empty: features, targets have no rows")
            for name, values in {"indices": read.indices, **read.facts}.items():
                if values is not None and len(values) != size:
                    raise ValueError(f"{name} has {len(values)} entries, the batch {size} samples")
            weights = self._weights(read, size, parts.total, count=True)
        except ValueError:
            set_random_state(self.device, *random)
            raise
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
            check_gradients(self._parameters())
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
            lr=self._rate.value,
            stop_reason=self.progress.stop_reason,
        )

    def flush(self) -> TrainStepStats | None:
        """Step with the batches accumulated so far, if any; called by ``on_epoch_end`` too."""
        if not self._pending:
            return None
        if self.scheduler is not None:
            self.scheduler.check_groups()
        losses = join_losses([losses for losses, _ in self._pending])
        return self._step(losses, losses.shape[1])

    def refuse_batch(self, what: str, rows: tuple[int, ...] = ()) -> TrainStepStats:
        """Leave out the step of a batch that cannot be trained on, for its data.

        The batches accumulated for it are dropped. It counts as a bad step: after
        ``divergence_patience`` in a row training goes back to the last good state.

        Args:
            what: what is wrong with the batch, for the report.
            rows: its data-set rows where the fault lies, for the report.

        Raises:
            NonFiniteStepError: ``on_non_finite`` is "halt"; nothing else has changed then.
        """
        self._discard_pending()
        if self.config.on_non_finite == "halt":
            raise NonFiniteStepError(f"training halted before step {self.steps + 1}: {what}", rows)
        self.progress.add_skip()
        anomaly, message = "bad_data", f"step left out: {what}"
        if self.monitor is not None:
            if not self._recovery.ready:
                self._recovery.keep(self.progress.steps, self._unaveraged)
            if self.monitor.note_bad("non_finite") == "divergence":
                anomaly, message = "divergence", self._roll_back(f"batches cannot be used: {what}")
        logger.warning("%s", message)
        return TrainStepStats(
            None,
            step=self.progress.steps,
            samples=0,
            lr=self._rate.value,
            stop_reason=self.progress.stop_reason,
            anomaly=anomaly,
            message=message,
            rows=rows,
        )

    def roll_back(self, what: str, rows: tuple[int, ...] = ()) -> str:
        """Go back to the last good state for what was found outside of a step; says so.

        Args:
            what: what is not as it should be, such as "held-out loss is nan"; for the message.
            rows: data-set rows that it comes from.

        Raises:
            NonFiniteStepError: ``on_non_finite`` is "halt", or there is no state to go back to.
        """
        self._discard_pending()
        if self.config.on_non_finite == "halt":
            raise NonFiniteStepError(f"training halted after step {self.steps}: the {what}", rows)
        if not self._recovery.ready:
            raise NonFiniteStepError(
                f"the {what} after step {self.steps}, and there is no good state to go back to "
                "(anomaly detection is off, or no step was made)",
                rows,
            )
        message = self._roll_back(what)
        logger.warning("%s", message)
        return message

    def update_average(self) -> None:
        """Take the steps since the last multiple of ``averaging_interval`` into the average.

        Weights that are not finite are left out, with a warning.
        """
        if self.averager is None or not self._unaveraged[1]:
            return
        bad = nonfinite_tensor(self.model)
        if bad is not None:  # a divergence, which the monitor is about to see
            logger.warning("the average stays as it was: %s of the model is not finite", bad)
            return
        self.averager.update(self.model, self._unaveraged[1], check_finite=False)
        self._unaveraged = [0, 0]

    def _losses(self, batch: TrainingBatch) -> LossParts:
        config = self.config
        with self._forward_context():
            if self._loss_fn is not None:
                result = self._loss_fn(self.model, batch.tensors)
            else:
                with features_fit("the model"):
                    result = self.model(batch.tensors["features"])
        if self._loss_fn is not None:
            if isinstance(result, LossParts):
                return result
            if not isinstance(result, Tensor):
                raise ValueError(f"loss_fn must give losses (B,), one a sample, got {type(result)}")
            unknown = torch.full(result.shape, math.nan, device=result.device)
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
            and batch.indices is not None
            and "uncertainty" not in batch.facts,
        )

    def _weights(self, batch: TrainingBatch, size: int, like: Tensor, count: bool) -> Tensor | None:
        """The samples' weights (B,) on the device: given, quality and mining; None when all 1."""
        weights = batch.weights
        if weights is not None:
            if weights.shape[0] != size:
                raise ValueError(f"weights has {weights.shape[0]} entries, the batch {size}")
            weights = weights.to(device=like.device, dtype=like.dtype)
        host = self._sample_weights.of(batch.indices, count)
        if host is not None:
            ours = torch.from_numpy(host).to(device=like.device, dtype=like.dtype)
            weights = ours if weights is None else weights * ours
        return weights

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
            if anomaly is None and not self._scale_overflowed():
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

    def _gradient_fault(self, pending: list[tuple[Tensor, TrainingBatch]], bad: list[int]) -> Fault:
        """Where a gradient comes from that is not finite, at the weights as they are."""

        def loss_of(batch: TrainingBatch) -> Tensor:
            total = self._losses(batch).total.sum()
            return total if self.scaler is None else self.scaler.scale(total)

        random = random_state(self.device)
        buffers = [(buffer, buffer.detach().clone()) for buffer in self.model.buffers()]
        try:
            return gradient_fault(self.model, self._parameters(), bad, pending, loss_of)
        finally:
            set_random_state(self.device, *random)
            with torch.no_grad():
                for buffer, saved in buffers:
                    buffer.copy_(saved)

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

    def _scale_overflowed(self) -> bool:
        """Whether a loss scale above 1 may be why a gradient is not finite; it is lowered by now."""
        return self.scaler is not None and self.scaler.get_scale() >= 1.0

    def _report_skip(
        self, anomaly: str | None, loss: float, norm: float, judged: bool, fault: Fault
    ) -> str:
        if anomaly is None:  # a loss scale that was too high, lowered now
            return "step left out: the gradient overflowed its loss scale, which is now lower"
        what = f"loss is {loss:.4g}" if judged else f"gradient norm is {norm}"
        if anomaly == "spike":
            assert self.monitor is not None
            message = (
                f"step left out: loss {loss:.4g} is a spike, the running median is "
                f"{self.monitor.median:.4g}"
            )
        elif anomaly == "non_finite":
            message = f"step left out: the {what}{fault.text}"
        else:
            message = self._roll_back(what) + fault.text
        logger.warning("%s", message)
        return message

    def _roll_back(self, what: str) -> str:
        progress, config = self.progress, self.config
        progress.rollbacks += 1
        step, self._unaveraged = self._recovery.restore()
        self._rate.scale(config.lr_backoff)
        if progress.rollbacks > config.max_rollbacks:
            progress.stop_reason = (
                f"diverged {progress.rollbacks} times, more than max_rollbacks "
                f"({config.max_rollbacks})"
            )
        return (
            f"training diverged at step {progress.steps}, the {what}: back to the state of "
            f"step {step}, learning rate times {config.lr_backoff:g}, now "
            f"{self._rate.value:.3g} (rollback {progress.rollbacks})"
        )

    def _discard_pending(self) -> None:
        self._pending = []
        self.accumulator.discard()
        self.optimizer.zero_grad(set_to_none=True)

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]


def _check_parameters(model: nn.Module, optimizer: torch.optim.Optimizer, others: bool) -> None:
    """ValueError when the optimizer is another model's; ``others``: it may have more to train."""
    own = {id(parameter) for parameter in model.parameters()}
    theirs = [p for group in optimizer.param_groups for p in group["params"]]
    foreign = sum(id(parameter) not in own for parameter in theirs)
    if foreign == len(theirs) or (foreign and not others):
        raise ValueError(
            f"optimizer: {foreign} of its {len(theirs)} parameters are not the model's; build it "
            "over model.parameters()"
        )


__all__ = ["LossFunction", "TrainingStep"]
