"""What a run with every enhancement consists of, and what becomes of a step that is not taken."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ringrift_pipeline.enhancements.argument_checks import check_type
from ringrift_pipeline.enhancements.batch_shares import refuse_share
from ringrift_pipeline.enhancements.ewc_regularization import EWCRegularizer
from ringrift_pipeline.enhancements.facade_config import FacadeConfig
from ringrift_pipeline.enhancements.facade_learning_rate import LearningRate
from ringrift_pipeline.enhancements.facade_parts import build_parts
from ringrift_pipeline.enhancements.facade_recovery import Recovery
from ringrift_pipeline.enhancements.facade_state import random_state, set_random_state
from ringrift_pipeline.enhancements.loss_parts import LossParts, compute_loss_parts
from ringrift_pipeline.enhancements.model_views import nonfinite_tensor
from ringrift_pipeline.enhancements.non_finite import NonFiniteStepError
from ringrift_pipeline.enhancements.replicas import Replicas
from ringrift_pipeline.enhancements.sample_slots import as_indices
from ringrift_pipeline.enhancements.sample_weights import SampleWeights
from ringrift_pipeline.enhancements.step_faults import Fault, gradient_fault, guilty_in
from ringrift_pipeline.enhancements.training_batch import TrainingBatch, features_fit
from ringrift_pipeline.enhancements.training_stability import Snapshot
from ringrift_pipeline.enhancements.training_statistics import TrainingProgress, TrainStepStats

logger = logging.getLogger(__name__)

LossFunction = Callable[[nn.Module, dict[str, Any]], Tensor | LossParts]


class TrainingParts:
    """A model, its optimizer and the enhancements; ``TrainingStep`` takes the steps."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: FacadeConfig | None = None,
        *,
        loss_fn: LossFunction | None = None,
        ewc: EWCRegularizer | None = None,
        replicas: Replicas | None = None,
    ) -> None:
        check_type("model", model, nn.Module)
        check_type("optimizer", optimizer, torch.optim.Optimizer)
        if config is not None:
            check_type("config", config, FacadeConfig)
        if loss_fn is not None and not callable(loss_fn):
            raise ValueError(f"loss_fn must be a function, got {loss_fn!r:.80}")
        if next(model.parameters(), None) is None:
            raise ValueError("the model has no parameters")
        if replicas is not None:
            check_type("replicas", replicas, Replicas)
        self.replicas = replicas or Replicas()
        _check_parameters(model, optimizer, others=loss_fn is not None and self.replicas.alone)
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
        self._forward: Callable[[TrainingBatch], LossParts] = self._losses
        if not self.replicas.alone:
            self._forward = self.replicas.parallel(_LossModule(model, self._losses))

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

    def refuse_batch(self, what: str, rows: Any = ()) -> TrainStepStats:
        """Leave out the step of a batch that cannot be trained on, for its data.

        The batches accumulated for it are dropped. It counts as a bad step: after
        ``divergence_patience`` in a row training goes back to the last good state. Of several
        processes those whose share is sound call ``train_step``: all leave the step out.

        Args:
            what: what is wrong with the batch, for the report.
            rows: its data-set rows where the fault lies, for the report.

        Raises:
            NonFiniteStepError: ``on_non_finite`` is "halt"; nothing else has changed then.
            ReplicaError: another process has failed.
            ValueError: ``what`` is no text, or ``rows`` no whole numbers (N,) from 0.
        """
        check_type("what", what, str)
        faulty = tuple(as_indices(rows, "rows").tolist())
        if not self.replicas.alone:
            refused = refuse_share(self.replicas, what, faulty)
            what, faulty = refused.what, refused.rows
        return self._leave_out(what, faulty)

    def _leave_out(self, what: str, faulty: tuple[int, ...]) -> TrainStepStats:
        self._discard_pending()
        if self.config.on_non_finite == "halt":
            raise NonFiniteStepError(
                f"training halted before step {self.steps + 1}: {what}", faulty
            )
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
            rows=faulty,
        )

    def roll_back(self, what: str, rows: Any = ()) -> str:
        """Go back to the last good state for what was found outside of a step; says so.

        Args:
            what: what is not as it should be, such as "held-out loss is nan"; for the message.
            rows: data-set rows that it comes from.

        Raises:
            NonFiniteStepError: ``on_non_finite`` is "halt", or there is no state to go back to.
            ValueError: ``what`` is no text, or ``rows`` no whole numbers (N,) from 0.
        """
        check_type("what", what, str)
        faulty = tuple(as_indices(rows, "rows").tolist())
        self._discard_pending()
        if self.config.on_non_finite == "halt":
            raise NonFiniteStepError(f"training halted after step {self.steps}: the {what}", faulty)
        if not self._recovery.ready:
            raise NonFiniteStepError(
                f"the {what} after step {self.steps}, and there is no good state to go back to "
                "(anomaly detection is off, or no step was made)",
                faulty,
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
        """The weights (``size``,) on the device of the samples whose data the batch holds: given,
        quality and mining; None when all 1.
        """
        weights = batch.weights
        if weights is not None:
            if weights.shape[0] != size:
                raise ValueError(f"weights has {weights.shape[0]} entries, the batch {size}")
            weights = weights.to(device=like.device, dtype=like.dtype)
        host = self._sample_weights.of(batch.indices, count)
        if host is not None:
            host = host if batch.share is None else host[batch.share]
            ours = torch.from_numpy(host).to(device=like.device, dtype=like.dtype)
            weights = ours if weights is None else weights * ours
        return weights

    def _gradient_fault(self, pending: list[tuple[Tensor, TrainingBatch]], bad: list[int]) -> Fault:
        """Where a gradient comes from that is not finite, at the weights as they are."""

        def loss_of(batch: TrainingBatch) -> Tensor:
            total = self._losses(batch).total.sum()
            return total if self.scaler is None else self.scaler.scale(total)

        random = random_state(self.device)
        buffers = [(buffer, buffer.detach().clone()) for buffer in self.model.buffers()]
        try:
            found = self.replicas.exchange(guilty_in(pending, self._parameters(), loss_of))
            # of each batch, the shares go by rank
            guilty = [list(chain.from_iterable(each)) for each in zip(*found, strict=True)]
            return gradient_fault(self.model, self._parameters(), bad, pending, guilty)
        finally:
            set_random_state(self.device, *random)
            with torch.no_grad():
                for buffer, saved in buffers:
                    buffer.copy_(saved)

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


class _LossModule(nn.Module):
    """A model's losses as a module's output, which is what gradients over processes are made of."""

    def __init__(self, model: nn.Module, losses: Callable[[TrainingBatch], LossParts]) -> None:
        super().__init__()
        self.model = model
        self._losses = losses

    def forward(self, batch: TrainingBatch) -> LossParts:
        return self._losses(batch)


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


__all__ = ["LossFunction", "TrainingParts"]
