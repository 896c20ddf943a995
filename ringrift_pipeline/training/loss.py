"""The loss of a training step: policy and value, and what the auxiliary heads lend to them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ringrift_pipeline.enhancements.config_stages import TrainingLoopConfig
from ringrift_pipeline.enhancements.loss_parts import LossParts, compute_loss_parts
from ringrift_pipeline.enhancements.replicas import Replicas
from ringrift_pipeline.network import RingRiftNetwork
from ringrift_pipeline.training.game_ends import NO_CLASS
from ringrift_pipeline.training.parallel_forward import ParallelForward


class TrainingLoss:
    """``loss_fn`` of the training facade for batches of a :class:`WindowDataset`.

    A sample's loss is ``policy_weight * w * policy + value_weight * value``, ``w`` its
    ``policy_weights`` if the batch has some. With auxiliary weights the gradient of
    ``territory_weight * territory + margin_weight * margin`` is added, but not its figure: what
    is reported, mined and watched for spikes stays the loss of what plays. The auxiliary losses
    are in :meth:`take`.

    Parameters
    ----------
    settings:
        The weights.
    replicas:
        The processes whose batches are parts of one; None for one alone.
    """

    def __init__(self, settings: TrainingLoopConfig, replicas: Replicas | None = None) -> None:
        self._settings = settings
        self._replicas = replicas or Replicas()
        self._waiting: list[Tensor] = []
        self._sums = [0.0, 0.0]
        self._steps = 0
        self._parallel: ParallelForward | None = None

    def on_threads(self, model: nn.Module, threads: int) -> None:
        """From now on call ``model``, and no other, on parts of a batch at once."""
        self._parallel = ParallelForward(model, self.forward, threads)

    def forward(self, model: nn.Module, features: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Policy and value logits, and what the auxiliary heads say where they are trained."""
        if self.auxiliary:
            return cast(RingRiftNetwork, model).forward_with_auxiliary(features)
        return model(features)

    @property
    def auxiliary(self) -> bool:
        """Whether the network must have auxiliary heads."""
        return self._settings.territory_weight > 0.0 or self._settings.margin_weight > 0.0

    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> LossParts:
        """Losses (B,) of a batch; ValueError as ``compute_loss_parts``."""
        settings = self._settings
        forward = self._parallel or partial(self.forward, model)
        policy, value, *ends = forward(batch["features"])
        parts = compute_loss_parts(
            policy,
            batch["policy_targets"],
            value,
            batch["value_targets"],
            settings.policy_weight,
            value_weight=settings.value_weight,
            legal_mask=batch["legal_mask"],
            value_kind="logits",
        )
        total = parts.total
        if "policy_weights" in batch:
            weighted = settings.policy_weight * batch["policy_weights"] * parts.policy
            total = weighted + settings.value_weight * parts.value
        if self.auxiliary:
            territory = territory_loss(ends[0], batch["territory_targets"])
            margin = margin_loss(ends[1], batch["margin_targets"])
            lent = settings.territory_weight * territory + settings.margin_weight * margin
            total = total + (lent - lent.detach())
            self._note(territory.detach(), margin.detach())
        return parts._replace(total=total)

    def _note(self, territory: Tensor, margin: Tensor) -> None:
        """Count the auxiliary losses (B,) of a batch, at once where all of it is here."""
        if self._replicas.alone:
            self._add(float(territory.mean()), float(margin.mean()))
            return
        rows = territory.new_tensor(len(territory))
        self._waiting.append(torch.stack((territory.sum(), margin.sum(), rows)))

    def _add(self, territory: float, margin: float) -> None:
        self._sums[0] += territory
        self._sums[1] += margin
        self._steps += 1

    def settle(self) -> None:
        """Count the auxiliary losses of the batches since the last call; collective."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            for territory, margin, rows in self._replicas.total(torch.stack(waiting)).tolist():
                self._add(territory / rows, margin / rows)

    def take(self) -> dict[str, float]:
        """Mean auxiliary losses since the last call, ``train/epoch_loss_…``; none without heads."""
        if not self._steps:
            return {}
        names = ("train/epoch_loss_territory", "train/epoch_loss_margin")
        means = {name: total / self._steps for name, total in zip(names, self._sums, strict=True)}
        self._sums, self._steps = [0.0, 0.0], 0
        return means

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`take` would give, for a resumed run; of batches that are settled."""
        return {"sums": list(self._sums), "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self._waiting = []
        self._sums = [float(total) for total in state["sums"]]
        self._steps = int(state["steps"])


def territory_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy (B,), nats, mean over the cells that have a target; 0 where none has.

    ``logits`` (B, 5, N, N), ``targets`` (B, N, N) int64 with ``NO_CLASS`` for no target.
    """
    losses = F.cross_entropy(logits.float(), targets, ignore_index=NO_CLASS, reduction="none")
    cells = (targets != NO_CLASS).sum(dim=(1, 2)).clamp_min(1)
    return losses.sum(dim=(1, 2)) / cells


def margin_loss(prediction: Tensor, targets: Tensor) -> Tensor:
    """Squared error (B,), mean over the seats that have a target (not NaN); 0 where none has."""
    known = ~torch.isnan(targets)
    error = (prediction.float() - torch.where(known, targets, 0.0)).square() * known
    return error.sum(dim=1) / known.sum(dim=1).clamp_min(1)
