"""A training step's forward and backward pass on several cores: a thread for each part of a batch.

A small network's operations take a tenth of a millisecond, too little to be worth dividing one by
one: two threads inside torch train it 1.1 times as fast as one. Parts of a batch need each other
only when their gradients are added up.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

LEAST_ROWS = 32
"""Rows of a part at least: below, calling the operations costs more than they do."""

Features = Mapping[str, Tensor]
Outputs = tuple[Tensor, ...]
Forward = Callable[[nn.Module, Features], Outputs]
T = TypeVar("T")


class ParallelForward:
    """``forward(model, features)`` over parts of the batch at once; the gradient is the same.

    The parts are runs of rows as equal as can be, as many as there are ``threads``, or fewer in a
    batch that has not :data:`LEAST_ROWS` rows for each. Gradients are added up in the order of the
    parts, so the same batch gives the same bits; another number of threads rounds otherwise.

    Parameters
    ----------
    model:
        A network on the CPU whose rows do not depend on each other. Its parameters are read as
        they are at each call; what they are trained to, averaged or loaded later is seen.
    forward:
        What to compute: rows of features to outputs with as many rows.
    threads:
        Threads, each with one thread inside torch.
    """

    def __init__(self, model: nn.Module, forward: Forward, threads: int) -> None:
        self._model = model
        self._forward = forward
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._twins = [copy.deepcopy(model) for _ in range(threads)]
        self._pool = ThreadPoolExecutor(
            threads, thread_name_prefix="training", initializer=torch.set_num_threads, initargs=(1,)
        )

    def __call__(self, features: Features) -> Outputs:
        """The outputs for a batch, with a gradient for the model's parameters."""
        rows = len(next(iter(features.values())))
        parts = max(1, min(len(self._twins), rows // LEAST_ROWS))
        if parts == 1 or not torch.is_grad_enabled():
            return self._forward(self._model, features)
        return _Together.apply(self, features, rows, parts, *self._parameters)

    def _forwards(self, features: Features, rows: int, parts: int) -> list[Outputs]:
        """Outputs of each part, each with a graph of its own that ends at its twin."""
        bounds = [rows * part // parts for part in range(parts + 1)]
        cast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

        def run(part: int) -> Outputs:
            twin = self._twins[part]
            for own, theirs in zip(twin.parameters(), self._model.parameters(), strict=True):
                own.data = theirs.data
            some = slice(bounds[part], bounds[part + 1])
            piece = {name: tensor[some] for name, tensor in features.items()}
            with torch.enable_grad(), torch.autocast("cpu", cast[1], cast[0]):
                return self._forward(twin, piece)

        return self._each(run, parts)

    def _gradients(
        self, outputs: list[Outputs], gradients: tuple[Tensor, ...]
    ) -> list[Tensor | None]:
        """Gradient of each parameter, the parts' added up; None where it takes no part."""
        sizes = [len(part[0]) for part in outputs]
        split = [gradient.split(sizes) for gradient in gradients]

        def run(part: int) -> tuple[Tensor | None, ...]:
            leaves = [p for p in self._twins[part].parameters() if p.requires_grad]
            wanted = [pieces[part] for pieces in split]
            return torch.autograd.grad(outputs[part], leaves, wanted, allow_unused=True)

        return [_total(each) for each in zip(*self._each(run, len(outputs)), strict=True)]

    def _each(self, run: Callable[[int], T], parts: int) -> list[T]:
        running = [self._pool.submit(run, part) for part in range(parts)]
        return [each.result() for each in running]


def _total(gradients: tuple[Tensor | None, ...]) -> Tensor | None:
    known = [gradient for gradient in gradients if gradient is not None]
    if not known:
        return None
    total = known[0]
    for gradient in known[1:]:
        total = total + gradient
    return total


class _Together(torch.autograd.Function):
    """The parts' outputs as one; backward asks each part for its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        calls: ParallelForward,
        features: Features,
        rows: int,
        parts: int,
        *parameters: Tensor,
    ) -> Outputs:
        del parameters  # named so that autograd knows of them
        ctx.calls, ctx.parts = calls, calls._forwards(features, rows, parts)
        return tuple(
            torch.cat([part.detach() for part in parts]) for parts in zip(*ctx.parts, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, None, None, None, *ctx.calls._gradients(ctx.parts, gradients)
