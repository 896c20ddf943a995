"""What a model loses on single rows of a window, and on whole games."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ringrift_pipeline.enhancements.model_ensemble import ModelEnsemble
from ringrift_pipeline.training.dataset import WindowDataset
from ringrift_pipeline.training.forward import BATCH, by_width
from ringrift_pipeline.training.row_checks import check_outputs_of_rows
from ringrift_pipeline.training.window import Window

Predict = Callable[[Any, Tensor], tuple[Tensor, Tensor]]
"""``predict(features, legal_mask)``: the logarithm of the policy (B, L), ``-inf`` where illegal,
and the chances of winning (B, 4), mover first. NaN stands where the network's own output is not
finite: a logit of ``-inf`` would pass for a chance of 0."""


@dataclass(frozen=True)
class RowLosses:
    """What a model makes of K rows, in their order.

    Attributes
    ----------
    policy: (K,) float64, cross-entropy against the search policy, nats; NaN for cheap searches.
    value: (K,) float64, cross-entropy against the outcome, nats.
    chances: (K, players) float64, predicted shares of the win, mover first.
    """

    policy: NDArray[np.float64]
    value: NDArray[np.float64]
    chances: NDArray[np.float64]


def by_network(model: nn.Module) -> Predict:
    """A network's prediction."""

    def predict(features: Any, legal: Tensor) -> tuple[Tensor, Tensor]:
        logits, value = model(features)
        masked = logits.float().masked_fill(~legal, -torch.inf)
        shares = torch.softmax(value.float(), dim=1).masked_fill(~value.isfinite(), torch.nan)
        return torch.log_softmax(masked, dim=1), shares

    return predict


def by_ensemble(ensemble: ModelEnsemble) -> Predict:
    """What the members of an ensemble predict together."""

    def predict(features: Any, legal: Tensor) -> tuple[Tensor, Tensor]:
        pooled = ensemble.predict(features, legal)
        return pooled.policy_log_probs, pooled.value

    return predict


def check_prediction(
    name: str,
    window: Window,
    rows: NDArray[np.int64],
    legal: Tensor,
    log_policy: Tensor,
    shares: Tensor,
) -> None:
    """Refuse a prediction (see :data:`Predict`) of ``rows`` (B,) unless it is finite.

    NonFiniteOutputError names ``name``, the rows and their games.
    """
    of_legal = log_policy.masked_fill(~legal, 0.0).double().sum(dim=1)
    check_outputs_of_rows(name, window, rows, of_legal.cpu().numpy(), shares.cpu().numpy())


def row_losses(
    predict: Predict,
    dataset: WindowDataset,
    rows: NDArray[np.int64],
    symmetries: int = 1,
    check: Callable[[], None] | None = None,
    name: str = "the model",
) -> RowLosses:
    """Judge a prediction on ``rows`` (K,) of a window.

    Parameters
    ----------
    dataset:
        Its value targets are what the value is judged against.
    symmetries:
        Of the board, the first so many, that the prediction is averaged over; 1 = as played.
    check:
        Called before every batch; what it raises ends the work.
    name:
        Of the model, in errors.

    Raises
    ------
    NonFiniteOutputError
        if the prediction is not finite, naming the rows.
    """
    policy, value = np.full(len(rows), np.nan), np.zeros(len(rows))
    chances = np.zeros((len(rows), dataset.window.players))
    order = by_width(dataset, rows)
    with torch.inference_mode():
        for start in range(0, len(order), BATCH):
            if check is not None:
                check()
            some = order[start : start + BATCH]
            logs, shares = [], []
            for number in range(symmetries):
                turned = np.full(len(some), number) if number else None
                batch = dataset.batch(rows[some], turned)
                legal = batch["legal_mask"]
                log_policy, share = predict(batch["features"], legal)
                check_prediction(name, dataset.window, rows[some], legal, log_policy, share)
                logs.append(log_policy.double())
                shares.append(share.double())
            log_policy = torch.logsumexp(torch.stack(logs), dim=0) - np.log(symmetries)
            share = torch.stack(shares).mean(dim=0)
            target, outcome = batch["policy_targets"].double(), batch["value_targets"].double()
            lost = -(target * log_policy.clamp_min(-1e9)).sum(dim=1)
            policy[some] = lost.masked_fill(target.sum(dim=1) == 0.0, torch.nan).cpu().numpy()
            value[some] = -(outcome * share.clamp_min(1e-30).log()).sum(dim=1).cpu().numpy()
            chances[some] = share[:, : chances.shape[1]].cpu().numpy()
    return RowLosses(policy, value, chances)


def by_game(losses: NDArray[np.float64], games: NDArray[np.integer]) -> NDArray[np.float64]:
    """Mean of the losses (K,) over the rows of each game that have one: (G,), NaN where none has.

    ``games`` (K,) are any numbers; the result is in their ascending order.
    """
    known = ~np.isnan(losses)
    number = np.unique(games, return_inverse=True)[1]
    rows = np.bincount(number, known)
    sums = np.bincount(number, np.where(known, losses, 0.0))
    return np.divide(sums, rows, out=np.full(len(rows), np.nan), where=rows > 0)
