"""Running a network over many rows of a window, without gradients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ringrift_pipeline.enhancements.loss_parts import compute_loss_parts
from ringrift_pipeline.selfplay.stopping import Reporter
from ringrift_pipeline.training.dataset import WindowDataset

BATCH = 512


@dataclass(frozen=True)
class HeldOut:
    """Losses of a model on some rows, means over rows.

    Attributes
    ----------
    loss: weighted sum of the two, as training minimises it.
    loss_policy: cross-entropy against the search policy, nats, over full searches only.
    policy_divergence: the same less the search policy's own entropy: KL(search || model).
    policy_accuracy: share of full searches whose best move the model ranks first.
    loss_value: cross-entropy against the outcome, nats.
    value_brier: squared error of the winning probabilities, summed over seats.
    rows, policy_rows: how many rows, and how many of them full searches.
    """

    loss: float
    loss_policy: float
    policy_divergence: float
    policy_accuracy: float
    loss_value: float
    value_brier: float
    rows: int
    policy_rows: int

    def metrics(self, prefix: str = "val/") -> dict[str, float]:
        """As metadata: ``val/loss``, ``val/loss_policy``, …"""
        return {f"{prefix}{name}": value for name, value in self.__dict__.items()}


def held_out_losses(
    model: nn.Module,
    dataset: WindowDataset,
    rows: NDArray[np.int64],
    policy_weight: float,
    value_weight: float,
    reporter: Reporter | None = None,
) -> HeldOut:
    """Losses of ``model`` on ``rows`` (K,) of the window; its training mode is left alone."""
    order = by_width(dataset, rows)
    sums = np.zeros(6)
    policy_rows = 0
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for start in range(0, len(order), BATCH):
                if reporter is not None:
                    reporter.check("stopped while measuring the held-out loss")
                batch = dataset.batch(order[start : start + BATCH])
                logits, value = model(batch["features"])
                target, outcome = batch["policy_targets"], batch["value_targets"]
                parts = compute_loss_parts(
                    logits, target, value, outcome, legal_mask=batch["legal_mask"]
                )
                has_policy = target.sum(dim=1) > 0
                entropy = -torch.xlogy(target, target).sum(dim=1)
                masked = logits.float().masked_fill(~batch["legal_mask"], -torch.inf)
                agrees = (masked.argmax(dim=1) == target.argmax(dim=1)) & has_policy
                brier = (torch.softmax(value.float(), dim=1) - outcome).square().sum(dim=1)
                sums += [
                    float(part.double().sum())
                    for part in (
                        parts.policy,
                        (parts.policy - entropy)[has_policy],
                        agrees,
                        parts.value,
                        brier,
                        outcome.new_ones(len(outcome)),
                    )
                ]
                policy_rows += int(has_policy.sum())
    finally:
        model.train(training)
    count = max(sums[5], 1.0)
    searched = max(policy_rows, 1)
    return HeldOut(
        loss=policy_weight * sums[0] / count + value_weight * sums[3] / count,
        loss_policy=sums[0] / searched,
        policy_divergence=sums[1] / searched,
        policy_accuracy=sums[2] / searched,
        loss_value=sums[3] / count,
        value_brier=sums[4] / count,
        rows=int(sums[5]),
        policy_rows=policy_rows,
    )


def value_logits(
    model: nn.Module,
    dataset: WindowDataset,
    rows: NDArray[np.int64],
    reporter: Reporter | None = None,
) -> NDArray[np.float64]:
    """Value logits (K, players) of the rows, mover first, in their order."""
    players = dataset.window.players
    out = np.zeros((len(rows), players))
    order = np.argsort(dataset.window.counts[rows], kind="stable")
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for start in range(0, len(order), BATCH):
                if reporter is not None:
                    reporter.check("stopped while predicting held-out values")
                some = order[start : start + BATCH]
                _, value = model(dataset.batch(rows[some])["features"])
                out[some] = value[:, :players].double().cpu().numpy()
                if reporter is not None:
                    reporter.report(start + len(some), len(rows), "held-out values predicted")
    finally:
        model.train(training)
    return out


def by_width(dataset: WindowDataset, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows ordered by their number of legal moves, so that batches waste little padding."""
    return rows[np.argsort(dataset.window.counts[rows], kind="stable")]
