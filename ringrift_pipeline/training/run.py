"""One training run in memory: model, optimizer, facade, data and counters, with its state."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ringrift_pipeline.enhancements.facade_config import FacadeConfig, Precision
from ringrift_pipeline.enhancements.non_finite import NonFiniteStepError
from ringrift_pipeline.enhancements.replicas import Replicas
from ringrift_pipeline.enhancements.training_facade import (
    TrainingEnhancementsFacade,
    TrainStepStats,
)
from ringrift_pipeline.network import (
    NetworkConfig,
    RingRiftNetwork,
    resolve_device,
    resolve_precision,
)
from ringrift_pipeline.network.checkpoint import check_finite
from ringrift_pipeline.selfplay.plan import Plan
from ringrift_pipeline.training.auxiliary import without_heads
from ringrift_pipeline.training.consolidation import open_regularizer
from ringrift_pipeline.training.dataset import WindowDataset
from ringrift_pipeline.training.forward import HeldOut, held_out_losses
from ringrift_pipeline.training.loss import TrainingLoss
from ringrift_pipeline.training.row_checks import BadRowsError, name_rows
from ringrift_pipeline.training.state import check_training
from ringrift_pipeline.training.stream import BatchStream, RowsExhausted
from ringrift_pipeline.training.window import Window, WindowError

if TYPE_CHECKING:
    from ringrift_pipeline.store import Artefact
    from ringrift_pipeline.training.hard_examples import HardRows

MOST_ANOMALIES = 20
"""Lines that a checkpoint's metadata has of steps left out and undone."""
MOST_RECORDED = 1000
"""Of these in ``metrics.jsonl``; a state that is saved holds them, and must not grow without end."""
VALIDATIONS = 4
"""Validations of a run at least, each a chance to be its best model."""


def planned_steps(plan: Plan, rows: int, new_rows: int) -> int:
    """Optimizer steps of a run over ``rows`` training rows, ``new_rows`` of them not seen before.

    ``ceil(sample_reuse * new_rows / effective batch)``, at most what ``sample_reuse_limit``
    visits a row allow, and at most ``max_steps`` where that is not 0; at least 1.
    """
    training = plan.settings.training
    batch = plan.settings.effective_batch_size
    steps = math.ceil(training.sample_reuse * new_rows / batch)
    steps = min(steps, int(training.sample_reuse_limit) * rows // batch)
    if training.max_steps:
        steps = min(steps, training.max_steps)
    return max(1, steps)


def _check_rows(plan: Plan, rows: int) -> None:
    """WindowError where ``rows`` training rows do not make a single batch."""
    training = plan.settings.training
    if int(training.sample_reuse_limit) * rows < training.batch_size:
        raise WindowError(
            f"the window of {plan.config} generation {plan.generation:04d} has {rows} training rows, "
            f"visited {int(training.sample_reuse_limit)} times at most (training.sample_reuse_limit): "
            f"not enough for one batch of {training.batch_size}; play more games, or lower "
            "training.batch_size"
        )


def new_rows(plan: Plan, window: Window, fresh: bool) -> int:
    """Training rows of the window that the network has not been trained on before.

    Those of the generations after the parent's; all of them for fresh weights, and for a parent
    of another config.
    """
    parent = plan.parent
    if fresh or parent is None or "config" in parent:
        return len(window.training_rows)
    return int((window.generation[window.training_rows] > parent["generation"]).sum())


def network_config(plan: Plan) -> NetworkConfig:
    """The network that the plan's settings ask for, on the plan's board."""
    from ringrift_pipeline.game import get_rules

    rules = get_rules(plan.config)
    shape = plan.settings.network
    return NetworkConfig(
        blocks=shape.blocks,
        channels=shape.channels,
        value_channels=shape.value_channels,
        geometry=rules.geometry,
        players=rules.players,
    )


class TrainingRun:
    """Trains on a window step by step.

    Parameters
    ----------
    plan, window:
        What to train on, and how.
    game_scores:
        Quality by game id; None draws rows uniformly.
    hard_examples:
        What the miner begins with; None for none.
    parent:
        Network to start from, with its auxiliary heads if it had any; it is trained in place. None
        starts from fresh weights.
    fisher:
        Artefact by which leaving the fine-tuning's source is penalised with
        ``finetune.ewc_weight``; None for no penalty.
    replicas:
        The processes that train together, each with a run of the same arguments, on a device of its
        own: of every batch each takes its share of rows, and all have the state that one has. None
        for one alone.

    Attributes
    ----------
    iteration, total:
        Optimizer steps made (skipped ones included), and planned.
    new_rows:
        Training rows that the network has not been trained on before (:func:`new_rows`).
    stop_reason:
        Why the run ended before ``total``, "" if it did not.
    records:
        Metrics so far, one dictionary a line of ``metrics.jsonl``.
    best:
        State dict of the averaged model (without averaging, of the network itself) with the lowest
        held-out loss so far; one that is not finite is none.
    anomalies:
        What was left out or undone, and why, a line each: the first :data:`MOST_ANOMALIES`.
    """

    def __init__(
        self,
        plan: Plan,
        window: Window,
        game_scores: Mapping[str, float] | None = None,
        hard_examples: HardRows | None = None,
        parent: RingRiftNetwork | None = None,
        fisher: Artefact | None = None,
        replicas: Replicas | None = None,
    ) -> None:
        settings = plan.settings
        self.replicas = replicas or Replicas()
        self.plan = plan
        self.settings = settings
        self.device = resolve_device(settings.device)
        training = settings.training
        self.loss = TrainingLoss(training, self.replicas)
        self.dataset = WindowDataset(
            window,
            self.device,
            training.search_value_share,
            training.surprise_share,
            self.loss.auxiliary,
        )
        self._judged = WindowDataset(window, self.device)  # against outcomes alone
        rows = window.training_rows
        self.holdout = window.holdout_rows
        _check_rows(plan, len(rows))
        self.new_rows = new_rows(plan, window, fresh=parent is None)
        self.total = planned_steps(plan, len(rows), self.new_rows)
        if parent is None:
            parent = RingRiftNetwork(network_config(plan), seed=plan.seed_for("weights") % 2**63)
        if not self.loss.auxiliary:
            parent.auxiliary = None
        elif parent.auxiliary is None:
            parent.attach_auxiliary()
        self.model = parent.to(self.device).requires_grad_(True).train()
        if training.threads > 1 and self.device.type == "cpu":
            self.loss.on_threads(self.model, training.threads)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=settings.effective_learning_rate,
            betas=settings.optimizer.betas,
            weight_decay=settings.optimizer.weight_decay,
        )
        config = dataclasses.replace(
            FacadeConfig.from_training_config(settings, self.total),
            seed=plan.seed_for("mining"),
            precision=self._precision(),
        )
        ewc = None
        if fisher is not None:
            ewc = open_regularizer(fisher, self.model, settings.finetune.ewc_weight)
        self.facade = TrainingEnhancementsFacade(
            self.model,
            self.optimizer,
            config,
            loss_fn=self.loss,
            ewc=ewc,
            replicas=self.replicas,
        )
        miner = self.facade.miner
        self._uncertainty = np.zeros(len(window), np.float32)
        if miner is not None and hard_examples is not None and len(hard_examples.rows):
            hard = hard_examples.rows
            miner.load_examples(hard, hard_examples.hardness, games=window.game[hard])
            self._uncertainty[hard] = hard_examples.uncertainty
        scores = None
        if game_scores is not None:
            by_game = np.array([game_scores[game] for game in window.games])
            scores = by_game[window.game[rows]]
        self.stream = BatchStream(
            rows,
            scores,
            settings.quality.temperature,
            settings.training.sample_reuse_limit,
            plan.seed_for("sampling") % 2**32,
            miner,
        )
        per_pass = max(1, math.ceil(len(rows) / settings.effective_batch_size))
        self.validate_every = min(
            per_pass, settings.training.checkpoint_every, math.ceil(self.total / VALIDATIONS)
        )
        self._log_every = max(1, self.total // 2000)
        # the miner's alone: to make it takes several times the memory of the window's policy
        self._reference_loss = self._search_losses(window) if miner is not None else None
        self._surprise = np.array(window.surprise)
        self._game = np.array(window.game)
        self.iteration = 0
        self.samples = 0
        self.stop_reason = ""
        self.records: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] | None = None
        self.best_step = 0
        self.best_loss = math.inf
        self.last_loss = math.nan
        self.anomalies: list[str] = []

    def _search_losses(self, window: Window) -> NDArray[np.float32]:
        """What the search itself would lose on each row (R,), weighted as the loss is, nats.

        Its policy loses its own entropy, its value the cross-entropy with the value target. So a
        hard row is one where the network is behind the search, as in the mined hard examples, and
        not one where the game's result surprised both. The heuristic's games have no such value:
        there the reference is chance.
        """
        policy = np.asarray(window.policy, np.float64)
        terms = policy * np.log(np.maximum(policy, 1e-300))
        entropy = -np.add.reduceat(terms, window.offsets[:-1])
        entropy[~window.full_search] = 0.0
        if self.dataset.policy_weights is not None:
            entropy *= self.dataset.policy_weights
        searched = np.log(np.clip(window.search_value, 1e-3, 1.0, dtype=np.float64))
        surprised = -(self.dataset.value_targets[:, : window.players] * searched).sum(axis=1)
        training = self.settings.training
        least = training.policy_weight * entropy + training.value_weight * surprised
        return least.astype(np.float32)

    def _precision(self) -> Precision:
        """``auto`` is bfloat16 wherever the device computes with it: 1.3 times as fast on a CPU."""
        precision = self.settings.training.precision
        if precision != "auto":
            return precision
        return "bfloat16" if resolve_precision("auto", self.device) == "bfloat16" else "float32"

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return bool(self.stop_reason) or self.iteration >= self.total

    def step(self) -> None:
        """One optimizer step; validates when that is due.

        Raises
        ------
        NonFiniteStepError
            with ``stability.on_non_finite`` "halt", for a row, loss, gradient or held-out loss
            that is not finite; it names the rows.
        ReplicaError
            if another process failed, is gone, or has other weights than this one.
        """
        sums = self.loss.state_dict()
        try:
            stats = self._train_step()
        except NonFiniteStepError as error:
            raise self._explained(error) from error
        if stats is None:
            return
        self.iteration += 1
        self.stop_reason = self.stop_reason or stats.stop_reason
        self.last_loss = stats.loss
        message = stats.message
        if stats.anomaly:
            self.loss.load_state_dict(sums)  # no part of the epoch's means
            if stats.rows:
                message += f": {name_rows(self.dataset.window, stats.rows)}"
            self._note(f"step {self.iteration}: {message}")
        self.loss.settle()
        told = bool(stats.anomaly) and self._recorded < MOST_RECORDED
        if self.iteration % self._log_every == 0 or told or self.finished:
            record: dict[str, Any] = {
                "step": self.iteration,
                "train/loss": _number(stats.loss),
                "train/loss_policy": _number(self.loss.policy_loss),
                "train/loss_value": _number(stats.value_loss),
                "train/grad_norm": _number(stats.grad_norm),
                "train/lr": stats.lr,
            }
            if self.facade.ewc is not None:
                record["train/penalty"] = _number(stats.penalty)
            if stats.anomaly:
                record |= {"train/anomaly": stats.anomaly, "message": message}
            self.records.append(record)
        if self.iteration % self.validate_every == 0 or self.finished:
            try:
                self._validate()
            except NonFiniteStepError as error:
                raise self._explained(error) from error

    def _train_step(self) -> TrainStepStats | None:
        """Forward and backward of the batches of a step; None when no row may be visited."""
        stats = None
        for _ in range(self.settings.gradients.accumulation_steps):
            try:
                rows = self.stream.next(self.settings.training.batch_size)
            except RowsExhausted as error:
                self.stop_reason = str(error)
                break
            symmetries = self._symmetries(len(rows))
            self.samples += len(rows)
            share = self.replicas.share(len(rows))
            rows = rows[share]
            symmetries = None if symmetries is None else symmetries[share]
            try:
                batch = self.dataset.batch(rows, symmetries)
            except BadRowsError as error:
                return self.facade.refuse_batch(error.what, error.rows)
            batch["indices"] = rows
            batch["games"] = self._game[rows]
            batch["surprise"] = self._surprise[rows]
            batch["uncertainty"] = self._uncertainty[rows]
            if self._reference_loss is not None:
                batch["reference_loss"] = self._reference_loss[rows]
            stats = self.facade.train_step(batch)
            if stats.anomaly:
                break  # left out by all processes, and the rest of the step with it
        return stats

    @property
    def _recorded(self) -> int:
        return sum("train/anomaly" in record for record in self.records)

    def _note(self, line: str) -> None:
        if len(self.anomalies) < MOST_ANOMALIES:
            self.anomalies.append(line)

    def _explained(self, error: NonFiniteStepError) -> NonFiniteStepError:
        """The error with this run's step and the names of its rows."""
        named = f": {name_rows(self.dataset.window, error.rows)}" if error.rows else ""
        return NonFiniteStepError(
            f"{self.plan.config} generation {self.plan.generation:04d}, batch "
            f"{self.iteration + 1} of {self.total}: {error}{named}; stability.on_non_finite skip "
            "goes on without such steps",
            error.rows,
        )

    def _symmetries(self, size: int) -> NDArray[np.int64] | None:
        """By which symmetry each of the next rows is turned, (size,); None as they were played.

        Depends on the plan and the rows trained so far alone.
        """
        if not self.settings.training.augmentation:
            return None
        sequence = np.random.SeedSequence(
            self.plan.seed_for("symmetries"), spawn_key=(self.samples,)
        )
        return np.random.default_rng(sequence).integers(self.dataset.symmetries, size=size)

    def _validate(self) -> None:
        """Held-out losses of the averaged model, or of the network itself; the best is noted."""
        self.facade.update_average()
        averaged = self.facade.averaged_model
        judged = averaged if averaged is not None else self.model
        self.replicas.check_alike("the model", judged.state_dict())
        losses = self.replicas.from_first(lambda: self.held_out(judged))
        epoch = self.facade.on_epoch_end(losses.loss)
        self.stop_reason = self.stop_reason or epoch.stop_reason
        means = self.loss.take()
        message: dict[str, str] = {}
        if not math.isfinite(losses.loss):
            message = {"message": self._refuse_validation(losses)}
            self.stop_reason = self.stop_reason or self.facade.progress.stop_reason
        elif self.best is None or losses.loss < self.best_loss:
            self.best_loss, self.best_step = float(losses.loss), self.iteration
            self.best = {k: v.detach().cpu().clone() for k, v in judged.state_dict().items()}
        self.records.append(
            {
                "step": self.iteration,
                "train/epoch_loss": _number(epoch.mean_loss),
                "train/epoch_loss_value": _number(epoch.mean_value_loss),
                "train/skipped_steps": epoch.skipped_steps,
                "train/rollbacks": self.facade.progress.rollbacks,
                "train/mining_active": epoch.mining_active,
                **{name: _number(value) for name, value in means.items()},
                **{name: _number(value) for name, value in losses.metrics().items()},
                **message,
            }
        )

    def _refuse_validation(self, losses: HeldOut) -> str:
        """Go back to the last good state, as the held-out losses are not finite."""
        bad = self.holdout[~np.isfinite(losses.by_row)]
        whose = "the averaged model" if self.settings.averaging.enabled else "the model"
        what = f"held-out loss of {whose} is {losses.loss}"
        message = self.facade.roll_back(what, tuple(bad.tolist()))
        if len(bad):
            message += f"; {len(bad)} held-out rows: {name_rows(self.dataset.window, bad)}"
        self._note(f"step {self.iteration}: {message}")
        return message

    def held_out(self, model: torch.nn.Module) -> HeldOut:
        """Losses of a model on the held-out games."""
        training = self.settings.training
        weights = training.policy_weight, training.value_weight
        return held_out_losses(
            model, self._judged, self.holdout, *weights, threads=training.threads
        )

    @property
    def kept(self) -> dict[str, Tensor] | None:
        """State dict that the generation goes on with: the best averaged model so far, or without
        averaging the last weights. None while no validation had a finite held-out loss.
        """
        if self.best is None or self.settings.averaging.enabled:
            return self.best
        return self.model.state_dict()

    @property
    def kept_step(self) -> int:
        """The optimizer step that :attr:`kept` is of."""
        return self.best_step if self.settings.averaging.enabled else self.iteration

    def best_model(self) -> RingRiftNetwork:
        """A network with the weights :attr:`kept`, in evaluation mode."""
        kept = self.kept
        if kept is None:
            raise NonFiniteStepError(
                f"{self.plan.config} generation {self.plan.generation:04d}: no validation had a "
                f"finite held-out loss, so there is no model: {'; '.join(self.anomalies)}"
            )
        model = RingRiftNetwork(self.model.config)
        model.load_state_dict(without_heads(kept))
        return model.eval()

    def state_dict(self) -> dict[str, Any]:
        """Everything the run goes on from.

        Raises
        ------
        NonFiniteModelError
            if a weight of the model, its average or the best model, or a number of the
            optimizer's, is not finite: nothing goes on from there.
        """
        averaged = self.facade.averaged_model
        check_training(self.model, averaged, self.best, self.optimizer)
        return {
            "facade": self.facade.state_dict(),
            "loss": self.loss.state_dict(),
            "stream": self.stream.state_dict(),
            "iteration": self.iteration,
            "total": self.total,
            "samples": self.samples,
            "stop_reason": self.stop_reason,
            "records": self.records,
            "best": self.best,
            "best_step": self.best_step,
            "best_loss": self.best_loss,
            "last_loss": self.last_loss,
            "anomalies": list(self.anomalies),
        }

    @property
    def largest_state(self) -> int:
        """Bytes that the tensors and arrays of a state of this run can have: weights, average, best
        model, the optimizer's moments and the last good ones are nine times the weights, what is
        known of samples, but for their history, is less than a position of theirs takes in the window.
        """
        tracking = self.settings.tracking
        samples = min(tracking.max_samples, len(self.dataset.window.ply))
        weights = sum(w.numel() * w.element_size() for w in self.model.state_dict().values())
        history = 16 * tracking.history_epochs * samples
        return 32 * weights + history + self.dataset.window.planes.nbytes + (64 << 20)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken.

        Raises
        ------
        ValueError
            if it is of another run, or a tensor of model, optimizer or average is not finite.
        NonFiniteModelError
            if a weight of the best model is not finite.
        """
        if state["total"] != self.total:
            raise ValueError(f"the saved run has {state['total']} steps, this one {self.total}")
        check_finite(state["best"] or {}, "the saved best model")
        self.facade.load_state_dict(state["facade"])
        self.loss.load_state_dict(state["loss"])
        self.stream.load_state_dict(state["stream"])
        self.iteration = int(state["iteration"])
        self.samples = int(state["samples"])
        self.stop_reason = state["stop_reason"]
        self.records = [dict(record) for record in state["records"]]
        self.best = None if state["best"] is None else dict(state["best"])
        self.best_step = int(state["best_step"])
        self.best_loss = float(state["best_loss"])
        self.last_loss = float(state["last_loss"])
        self.anomalies = [str(line) for line in state.get("anomalies", ())]


def _number(value: float) -> float | None:
    """A float that strict JSON can hold, None for NaN and infinities."""
    return float(value) if math.isfinite(value) else None
