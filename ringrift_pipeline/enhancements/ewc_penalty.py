"""The quadratic pull of elastic weight consolidation: for autograd, and straight into gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SLICE = 1 << 16  # numbers worked on at once on the CPU: four slices fit into its cache

# of one tensor, or a part of it: parameter, importance, anchor, gradient
_Part = tuple[Tensor, Tensor, Tensor, Tensor]


class Quadratic(torch.autograd.Function):
    """``sum(F * (theta - anchor)**2)`` of one parameter, at half the cost of a recorded graph."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, fisher: Tensor, anchor: Tensor) -> Tensor:
        apart = parameter.to(fisher.dtype) - anchor
        pull = fisher * apart
        ctx.save_for_backward(pull)
        ctx.dtype = parameter.dtype
        return torch.dot(pull.reshape(-1), apart.reshape(-1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (pull,) = ctx.saved_tensors
        return (2.0 * gradient * pull).to(ctx.dtype), None, None


@torch.no_grad()
def add_pulls(matched: Sequence[tuple[Tensor, Tensor, Tensor]], weight: float) -> Tensor:
    """Add ``weight * F * (theta - anchor)`` to the gradients.

    Args:
        matched: at least one (parameter, importance F, anchor) of one shape and device; the
            importance and the anchor of one dtype. A frozen parameter gets no gradient.
        weight: factor of the pull.

    Returns:
        ``sum(F * (theta - anchor)**2)``, 0-d.
    """
    parts: list[_Part] = []
    wide: list[tuple[Tensor, Tensor]] = []  # gradients of another dtype, and what comes to them
    for parameter, fisher, anchor in matched:
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradient = parameter.grad if parameter.requires_grad else None
        if gradient is None or gradient.dtype != fisher.dtype:
            into = torch.zeros_like(fisher)
            if gradient is not None:
                wide.append((gradient, into))
        else:
            into = gradient
        parts.append((parameter.detach().to(fisher.dtype), fisher, anchor, into))
    sums: list[Tensor] = []
    for group in _groups(parts):
        thetas, fishers, anchors, into_group = (list(each) for each in zip(*group, strict=True))
        apart = torch._foreach_sub(thetas, anchors)
        torch._foreach_addcmul_(into_group, apart, fishers, value=weight)
        torch._foreach_mul_(apart, apart)
        sums += [
            torch.dot(square.reshape(-1), fisher.reshape(-1))
            for square, fisher in zip(apart, fishers, strict=True)
        ]
    for gradient, addend in wide:
        gradient.add_(addend.to(gradient.dtype))
    return torch.stack([part.to(sums[0].dtype) for part in sums]).sum()


def _groups(parts: list[_Part]) -> Iterator[list[_Part]]:
    """What is worked on together: on the CPU slices that stay in its cache, elsewhere all."""
    if any(parameter.device.type != "cpu" for parameter, *_ in parts):
        yield parts
        return
    for part in parts:
        if part[0].numel() <= SLICE or not all(tensor.is_contiguous() for tensor in part):
            yield [part]
            continue
        slices = [tensor.view(-1).split(SLICE) for tensor in part]
        yield from ([piece] for piece in zip(*slices, strict=True))


__all__ = ["Quadratic", "add_pulls"]
