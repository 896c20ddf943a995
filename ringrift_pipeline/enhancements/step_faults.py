"""Where a step's loss or gradient that is not finite comes from: samples, data-set rows, parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from ringrift_pipeline.enhancements.non_finite import (
    MOST_NAMED,
    guilty_samples,
    has_finite_gradient,
    listed,
    parameter_names,
    samples_of,
)
from ringrift_pipeline.enhancements.training_batch import TrainingBatch
from ringrift_pipeline.enhancements.training_statistics import TOTAL, WEIGHT

Pending = Sequence[tuple[Tensor, TrainingBatch]]


@dataclass(frozen=True)
class Fault:
    """What is known of the source.

    Attributes:
        text: the end of a message, "" where nothing is known.
        rows: data-set rows (N,), as far as the batches tell them.
    """

    text: str = ""
    rows: tuple[int, ...] = ()


def loss_fault(pending: Pending, host: np.ndarray) -> Fault:
    """Of a loss that is not finite.

    Args:
        pending: the batches of the step.
        host: (4 or 5, samples) their packed losses, side by side.
    """
    with np.errstate(invalid="ignore"):
        bad = np.flatnonzero(~np.isfinite(host[TOTAL] * host[WEIGHT]))
    if not bad.size:
        return Fault("; it is that of no sample alone")
    samples, rows = [], []
    start = 0
    for number, (losses, batch) in enumerate(pending):
        end = start + losses.shape[1]
        own = bad[(bad >= start) & (bad < end)] - start
        samples += _samples(own, number, pending)
        rows += _rows(own, batch)
        start = end
    return Fault(f"; it is not finite for {_named(samples, rows)}", tuple(rows))


def guilty_in(
    pending: Pending,
    parameters: Sequence[Tensor],
    loss_of: Callable[[TrainingBatch], Tensor],
) -> list[list[int]]:
    """The samples of each batch whose gradient is not finite: halves batches until they are left.

    Args:
        pending: the batches of a step; those of a resumed run have no data and none guilty. Of a
            batch over several processes this process's share is looked through.
        parameters: the optimizer's, at the weights of the step.
        loss_of: the summed loss of a batch, with its graph.
    """
    found: list[list[int]] = []
    for losses, batch in pending:
        found.append([])
        if not batch.tensors:
            continue
        share = batch.share or slice(0, losses.shape[1])
        size = share.stop - share.start

        def finite(which: np.ndarray, batch: TrainingBatch = batch, size: int = size) -> bool:
            part = replace(
                batch,
                tensors=samples_of(batch.tensors, size, which),
                weights=None,
                indices=None,
                facts={},
                share=None,
            )
            return has_finite_gradient(loss_of(part) / size, parameters)

        # a loss function that takes whole batches raises
        with contextlib.suppress(IndexError, RuntimeError, ValueError):
            found[-1] = [share.start + i for i in guilty_samples(finite, size)]
    return found


def gradient_fault(
    model: nn.Module,
    parameters: Sequence[Tensor],
    bad: Sequence[int],
    pending: Pending,
    guilty: Sequence[Sequence[int]],
) -> Fault:
    """Of a gradient that is not finite although the loss is.

    Args:
        model: whose names the parameters have.
        parameters: the optimizer's.
        bad: places of those whose gradient was not finite.
        pending: the batches of the step.
        guilty: the samples of each batch that it comes from, as far as they are known.
    """
    names = parameter_names(model, parameters, bad)
    where = f" in {listed(names)}" if names else ""
    samples, rows = [], []
    for number, ((_, batch), which) in enumerate(zip(pending, guilty, strict=True)):
        own = np.array(which[:MOST_NAMED], np.int64)
        samples += _samples(own, number, pending)
        rows += _rows(own, batch)
    if not samples:
        return Fault(f"; it is not finite{where}, by no sample alone")
    return Fault(f"; it is not finite{where}, by {_named(samples, rows)}", tuple(rows))


def _samples(own: np.ndarray, number: int, pending: Pending) -> list[str]:
    """Positions in a batch, with the batch's number where a step has several."""
    of = f" of batch {number}" if len(pending) > 1 else ""
    return [f"{i}{of}" for i in own.tolist()]


def _rows(own: np.ndarray, batch: TrainingBatch) -> list[int]:
    return [] if batch.indices is None else [int(row) for row in batch.indices[own]]


def _named(samples: Sequence[str], rows: Sequence[int]) -> str:
    text = f"sample {listed(samples)} of the step"
    return f"{text} (data-set row {listed(rows)})" if rows else text


__all__ = ["Fault", "gradient_fault", "guilty_in", "loss_fault"]
