"""Which samples of a batch, and which parameters, a number that is not finite comes from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ringrift_pipeline.enhancements.gradient_norms import total_norm

OnNonFinite = Literal["skip", "halt"]

MOST_NAMED = 8  # samples and parameters that a message names


class NonFiniteStepError(ArithmeticError):
    """A step that may not be left out (``on_non_finite`` is ``halt``): the weights are as before it.

    Attributes:
        rows: data-set rows (N,) that it comes from, as far as they are known.
    """

    def __init__(self, message: str, rows: Sequence[int] = ()) -> None:
        super().__init__(message, tuple(int(row) for row in rows))
        self.rows: tuple[int, ...] = self.args[1]

    def __str__(self) -> str:
        return str(self.args[0])


def guilty_samples(finite: Callable[[np.ndarray], bool], size: int) -> list[int]:
    """The first ``MOST_NAMED`` of ``size`` samples that are not finite by themselves, ascending.

    Args:
        finite: whether all is finite for some samples, given their positions (N,) int64.
        size: samples of the batch.
    """
    found: list[int] = []
    parts = [np.arange(size)]
    while parts and len(found) < MOST_NAMED:
        part = parts.pop()
        if finite(part):
            continue
        if len(part) == 1:
            found.append(int(part[0]))
        else:
            parts += [part[len(part) // 2 :], part[: len(part) // 2]]
    return found


def samples_of(tree: Any, size: int, which: np.ndarray) -> Any:
    """Some samples ``which`` (N,) of a batch of ``size``: of every tensor with that many rows."""
    if isinstance(tree, Tensor):
        if not tree.dim() or tree.shape[0] != size:
            return tree
        return tree[torch.from_numpy(which).to(tree.device)]
    if isinstance(tree, np.ndarray):
        return tree[which] if tree.ndim and len(tree) == size else tree
    if isinstance(tree, Mapping):
        return {name: samples_of(value, size, which) for name, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(samples_of(value, size, which) for value in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(samples_of(value, size, which) for value in tree)
    return tree


def has_finite_gradient(loss: Tensor, parameters: Iterable[Tensor]) -> bool:
    """Whether a scalar loss has a gradient of finite norm; no ``grad`` is touched."""
    wanted = [p for p in parameters if p.requires_grad]
    gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    return math.isfinite(total_norm([g for g in gradients if g is not None]))


def parameter_names(
    model: nn.Module, parameters: Sequence[Tensor], bad: Iterable[int]
) -> list[str]:
    """Names of the parameters at the places ``bad``; the place where the model has no such one."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names.get(id(parameters[i]), f"parameter {i} of the optimizer") for i in bad]


def listed(things: Sequence[Any]) -> str:
    """The first ``MOST_NAMED``, and how many more there are."""
    more = len(things) - MOST_NAMED
    text = ", ".join(str(thing) for thing in things[:MOST_NAMED])
    return text if more <= 0 else f"{text} and {more} more"


__all__ = [
    "MOST_NAMED",
    "NonFiniteStepError",
    "OnNonFinite",
    "guilty_samples",
    "has_finite_gradient",
    "listed",
    "parameter_names",
    "samples_of",
]
