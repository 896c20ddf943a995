"""Running a network over many rows of a window, without gradients."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ringrift_pipeline.enhancements.loss_parts import compute_loss_parts
from ringrift_pipeline.network import resolve_precision
from ringrift_pipeline.selfplay.plan import Plan
from ringrift_pipeline.selfplay.stopping import Reporter
from ringrift_pipeline.training.dataset import WindowDataset

BATCH = 512

T = TypeVar("T")


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
    by_row: (K,) the weighted loss of each row, in the order in which they were given.
    """

    loss: float
    loss_policy: float
    policy_divergence: float
    policy_accuracy: float
    loss_value: float
    value_brier: float
    rows: int
    policy_rows: int
    by_row: NDArray[np.float64] = field(repr=False, compare=False)

    def metrics(self, prefix: str = "val/") -> dict[str, float]:
        """The means as metadata: ``val/loss``, ``val/loss_policy``, …"""
        means = {name: value for name, value in self.__dict__.items() if name != "by_row"}
        return {f"{prefix}{name}": value for name, value in means.items()}


def scoring_precision(plan: Plan, device: torch.device) -> str:
    """Arithmetic for judging training rows: "float32" where training has it, else as selfplay's."""
    if plan.settings.training.precision == "float32":
        return "float32"
    return resolve_precision("auto", device)


def scored(
    dataset: WindowDataset,
    rows: NDArray[np.int64],
    score: Callable[[dict[str, Any]], T],
    threads: int = 1,
    *,
    precision: str = "float32",
    reporter: Reporter | None = None,
    stopped: str = "stopped",
) -> Iterator[tuple[NDArray[np.int64], T]]:
    """``score(batch)`` of all ``rows`` (K,), and which of them (places in ``rows``) each is of.

    Batches hold rows of like width, so that they waste little padding. Without gradients; on the
    CPU by several threads at once, each with the one thread inside torch that the caller has.
    With ``precision`` "bfloat16" matrices are multiplied in it.

    Raises
    ------
    Interrupted
        if the reporter is asked to stop, with the text ``stopped``.
    """
    order = by_width(dataset, rows)
    places = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    device = dataset.device.type

    def run(some: NDArray[np.int64]) -> T:
        low = precision == "bfloat16"
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, low):
            return score(dataset.batch(rows[some]))

    if device != "cpu" or threads == 1:
        for some in places:
            if reporter is not None:
                reporter.check(stopped)
            yield some, run(some)
        return
    with ThreadPoolExecutor(threads, "scoring", torch.set_num_threads, (1,)) as pool:
        running: deque[tuple[NDArray[np.int64], Future[T]]] = deque()
        try:
            for some in places:
                if reporter is not None:
                    reporter.check(stopped)
                running.append((some, pool.submit(run, some)))
                if len(running) > threads:
                    done, result = running.popleft()
                    yield done, result.result()
            while running:
                done, result = running.popleft()
                yield done, result.result()
        finally:
            pool.shutdown(cancel_futures=True)


def held_out_losses(
    model: nn.Module,
    dataset: WindowDataset,
    rows: NDArray[np.int64],
    policy_weight: float,
    value_weight: float,
    reporter: Reporter | None = None,
    threads: int = 1,
) -> HeldOut:
    """Losses of ``model`` on ``rows`` (K,) of the window; its training mode is left alone.

    NaN where a logit of a legal move or of the value is not finite: one of ``-inf`` would cost
    nothing where nobody moved there, or won.
    """
    sums = np.zeros(6)
    policy_rows = 0
    by_row = np.zeros(len(rows))

    def losses(batch: dict[str, Any]) -> tuple[list[float], int, NDArray[np.float64]]:
        logits, value = (
            output.masked_fill(output.isneginf(), torch.nan) for output in model(batch["features"])
        )
        target, outcome = batch["policy_targets"], batch["value_targets"]
        legal = batch["legal_mask"]
        parts = compute_loss_parts(logits, target, value, outcome, legal_mask=legal)
        odd = ~((logits.isfinite() | ~legal).all(dim=1) & value.isfinite().all(dim=1))
        policy_loss, value_loss = (
            part.masked_fill(odd, torch.nan) for part in (parts.policy, parts.value)
        )
        has_policy = target.sum(dim=1) > 0
        entropy = -torch.xlogy(target, target).sum(dim=1)
        masked = logits.float().masked_fill(~legal, -torch.inf)
        agrees = (masked.argmax(dim=1) == target.argmax(dim=1)) & has_policy
        brier = (torch.softmax(value.float(), dim=1) - outcome).square().sum(dim=1)
        found: tuple[Tensor, ...] = (
            policy_loss,
            (policy_loss - entropy)[has_policy],
            agrees,
            value_loss,
            brier,
            outcome.new_ones(len(outcome)),
        )
        each = policy_weight * policy_loss + value_weight * value_loss
        totals = [float(part.double().sum()) for part in found]
        return totals, int(has_policy.sum()), each.double().cpu().numpy()

    training = model.training
    model.eval()
    try:
        stopped = "stopped while measuring the held-out loss"
        for some, (found, searches, each) in scored(
            dataset, rows, losses, threads, reporter=reporter, stopped=stopped
        ):
            sums += found
            policy_rows += searches
            by_row[some] = each
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
        by_row=by_row,
    )


def value_logits(
    model: nn.Module,
    dataset: WindowDataset,
    rows: NDArray[np.int64],
    reporter: Reporter | None = None,
    threads: int = 1,
) -> NDArray[np.float64]:
    """Value logits (K, players) of the rows, mover first, in their order."""
    players = dataset.window.players
    out = np.zeros((len(rows), players))

    def values(batch: dict[str, Any]) -> NDArray[np.float64]:
        return model(batch["features"])[1][:, :players].double().cpu().numpy()

    training = model.training
    model.eval()
    done = 0
    try:
        stopped = "stopped while predicting held-out values"
        for some, found in scored(
            dataset, rows, values, threads, reporter=reporter, stopped=stopped
        ):
            out[some] = found
            done += len(some)
            if reporter is not None:
                reporter.report(done, len(rows), "held-out values predicted")
    finally:
        model.train(training)
    return out


def by_width(dataset: WindowDataset, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places in ``rows`` (K,) by number of legal moves, so that batches waste little padding."""
    return np.argsort(dataset.window.counts[rows], kind="stable")
