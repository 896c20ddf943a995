"""The loss of a training step: policy and value, and what the auxiliary heads lend to them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ringrift_pipeline.enhancements.config_stages import TrainingLoopConfig
from ringrift_pipeline.enhancements.loss_parts import LossParts, compute_loss_parts
from ringrift_pipeline.enhancements.replicas import Replicas
from ringrift_pipeline.network import RingRiftNetwork
from ringrift_pipeline.training.auxiliary import has_heads
from ringrift_pipeline.training.game_ends import NO_CLASS
from ringrift_pipeline.training.parallel_forward import ParallelForward

COUNTED = ("policy", "rows with a policy", "territory", "margin", "rows with ends")
"""What is summed up over an epoch."""


class TrainingLoss:
    """``loss_fn`` of the training facade for batches of a :class:`WindowDataset`.

    A sample's loss is ``policy_weight * w * policy + value_weight * value``, ``w`` its
    ``policy_weights`` if the batch has some. With auxiliary weights the gradient of
    ``territory_weight * territory + margin_weight * margin`` is added, but not its figure: what
    is reported, mined and watched for spikes stays the loss of what plays.

    The facade's means are over all rows, those without a policy target with a policy loss of 0.
    :attr:`policy_loss` and :meth:`take` tell what a held-out loss can be set beside: the mean over
    the rows that have a target, each weighing the same; and the auxiliary losses.

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
        self._sums = [0.0] * len(COUNTED)
        self._newest = (0.0, 0.0)
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
        return has_heads(self._settings)

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
        has_policy = (batch["policy_targets"] > 0).any(dim=1)
        counted = [(parts.policy.detach() * has_policy).sum(), has_policy.sum()]
        if self.auxiliary:
            territory = territory_loss(ends[0], batch["territory_targets"])
            margin = margin_loss(ends[1], batch["margin_targets"])
            lent = settings.territory_weight * territory + settings.margin_weight * margin
            total = total + (lent - lent.detach())
            rows = territory.new_tensor(len(territory))
            counted += [territory.detach().sum(), margin.detach().sum(), rows]
        counted += [counted[0].new_zeros(())] * (len(COUNTED) - len(counted))
        self._waiting.append(torch.stack([sum_.double() for sum_ in counted]))
        return parts._replace(total=total)

    def settle(self) -> None:
        """Count the batches since the last call, which were a step's; collective."""
        waiting, self._waiting = self._waiting, []
        self._newest = (0.0, 0.0)
        if waiting:
            sums = self._replicas.total(torch.stack(waiting).sum(dim=0)).tolist()
            self._sums = [before + more for before, more in zip(self._sums, sums, strict=True)]
            self._newest = (sums[0], sums[1])

    @property
    def policy_loss(self) -> float:
        """Mean policy loss of the newest step, nats, over the rows that have a target; NaN if none
        has, or the step was taken back.
        """
        total, rows = self._newest
        return total / rows if rows else math.nan

    def take(self) -> dict[str, float]:
        """Means since the last call, ``train/epoch_loss_…``: of the policy loss over the rows that
        have a target (NaN if none has), and of the auxiliary losses where there are heads.
        """
        policy, searched, territory, margin, rows = self._sums
        means = {"train/epoch_loss_policy": policy / searched if searched else math.nan}
        if rows:
            means["train/epoch_loss_territory"] = territory / rows
            means["train/epoch_loss_margin"] = margin / rows
        self._sums = [0.0] * len(COUNTED)
        return means

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`take` would give, for a resumed run; of batches that are settled."""
        return {"sums": list(self._sums)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken; ValueError for another number of sums."""
        sums = [float(total) for total in state["sums"]]
        if len(sums) != len(COUNTED):
            raise ValueError(f"the saved loss has {len(sums)} sums, this one {len(COUNTED)}")
        self._waiting, self._sums, self._newest = [], sums, (0.0, 0.0)


def newest_losses(records: Sequence[Mapping[str, Any]], steps: float) -> dict[str, float | None]:
    """``train/loss``, ``train/loss_policy`` and ``train/loss_value``: means over the newest of the
    spans between two validations, as many of them as have ``steps`` steps together, or all. The last
    may be a single step, which says little. A span of which one is not known does not count for it;
    None where it is known of none.
    """
    spans = [record for record in records if "train/epoch_loss" in record]
    ends = [0, *(span["step"] for span in spans)]
    lengths = [end - start for start, end in pairwise(ends)]
    found: dict[str, float | None] = {}
    for name in ("loss", "loss_policy", "loss_value"):
        total = weight = 0.0
        for length, span in zip(reversed(lengths), reversed(spans), strict=True):
            value = span.get(f"train/epoch_{name}")
            if value is not None and weight < steps:
                total, weight = total + length * value, weight + length
        found[f"train/{name}"] = total / weight if weight else None
    return found


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
