"""Sums over samples of squared per-sample gradients, in little more than a backward pass.

The forward pass runs once a batch while ``ParameterUses`` watches how parameters are used, and the
per-sample gradients of the uses that it knows follow from one backward pass. Weights may be
computed from parameters (a mask on a kernel, a reparametrisation). A parameter used in another way
is done by a backward pass for several samples at once if it stands behind the last convolution
or linear map, else by a loop over the samples. One sample of every batch is checked against plain
autograd, and what disagrees is left to that loop too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ringrift_pipeline.enhancements.parameter_uses import ParameterUses, Use

CHUNK = 1 << 18  # numbers in the per-sample weight gradients held at once: they stay in the cache

Losses = Callable[[Any, slice], Tensor]
"""``losses(outputs, rows)``: (rows,) differentiable losses of some of a batch's samples."""


PerSample = Callable[[slice], Tensor]
"""``(rows)`` -> the gradients (rows, *shape) of one parameter for some of a batch's samples."""


class SquaredGradients:
    """Sums of squared per-sample gradients of a model's trainable parameters.

    Args:
        model: differentiable; its samples must not influence each other (no batch statistics).
            The first dimension of every tensor it takes is the batch, or broadcasts over it.

    Attributes:
        sums: by parameter name, as the parameter, float32 or float64.
        samples: how many were added.
        looped: names of parameters that only the loop over samples could do.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if not self._parameters:
            raise ValueError("the model has no parameter that requires a gradient")
        self.sums = {
            name: torch.zeros(
                p.shape, dtype=torch.promote_types(p.dtype, torch.float32), device=p.device
            ).to(memory_format=torch.channels_last if p.dim() == 4 else torch.contiguous_format)
            for name, p in self._parameters.items()  # convolutions: as their gradients come
        }
        self.samples = 0
        self.looped: set[str] = set()
        self._odd: set[str] = set()  # used in ways that are not known
        self._batches = 0

    def add(self, inputs: Any, size: int, losses_for: Callable[[Any], Losses]) -> None:
        """Add a batch.

        Args:
            inputs: what the model takes, ``size`` samples.
            size: samples in it, at least 1.
            losses_for: gets the outputs once and returns the loss function of this batch.
        """
        with ParameterUses(self.model, self._parameters, size) as watch:
            outputs = self.model(inputs)
        losses = losses_for(outputs)
        if len(self.looped) < len(self._parameters):
            self._add_fast(inputs, size, losses, losses(outputs, slice(0, size)), watch)
        self._loop(inputs, size, losses)
        self.samples += size
        self._batches += 1

    def _add_fast(
        self, inputs: Any, size: int, losses: Losses, each: Tensor, watch: ParameterUses
    ) -> None:
        """Add what needs no loop; what does need it enters ``looped``."""
        uses, gradients = watch.gradients(each.sum())
        self._odd |= watch.odd
        shallow = watch.shallow(each, sorted(self._odd - self.looped))
        self.looped |= self._odd.difference(shallow)
        names = [name for name in self._parameters if name not in self.looped]
        found: dict[str, PerSample] = {}
        for name in names:
            if name in shallow:
                found[name] = _of_several(each, self._parameters[name])
            else:
                found[name] = _of_uses(name, self._parameters[name], uses, gradients)
        row = self._batches % size
        expected = self._of_sample(inputs, row, size, losses, names)
        norm = max((float(e.norm()) for e in expected.values()), default=0.0)
        for name in names:
            if not _agrees(found[name], expected[name], row, norm):
                self._odd.add(name)
                self.looped.add(name)
                continue
            direct = _direct(name, self._parameters[name], uses, gradients)
            if direct is not None:
                self.sums[name] += direct
                continue
            chunk = max(1, min(size, CHUNK // self._parameters[name].numel()))
            for start in range(0, size, chunk):
                rows = slice(start, min(start + chunk, size))
                _add_squares(self.sums[name], found[name](rows))

    def _loop(self, inputs: Any, size: int, losses: Losses) -> None:
        names = [name for name in self._parameters if name in self.looped]
        if not names:
            return
        for row in range(size):
            for name, gradient in self._of_sample(inputs, row, size, losses, names).items():
                self.sums[name].addcmul_(gradient, gradient)

    def _of_sample(
        self, inputs: Any, row: int, size: int, losses: Losses, names: Sequence[str]
    ) -> dict[str, Tensor]:
        """Gradients of one sample's loss, by plain autograd."""
        if not names:
            return {}
        sample = slice(row, row + 1)
        loss = losses(self.model(rows_of(inputs, sample, size)), sample).sum()
        parameters = [self._parameters[name] for name in names]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        return {
            name: torch.zeros_like(self.sums[name]) if g is None else g.to(self.sums[name].dtype)
            for name, g in zip(names, gradients, strict=True)
        }


def rows_of(tree: Any, rows: slice, size: int) -> Any:
    """Some samples of a batch: every tensor of ``size`` rows is cut, nested containers kept."""
    if isinstance(tree, Tensor):
        return tree[rows] if tree.dim() and tree.shape[0] == size else tree
    if isinstance(tree, Mapping):
        return {key: rows_of(value, rows, size) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(rows_of(value, rows, size) for value in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(rows_of(value, rows, size) for value in tree)
    return tree


def _add_squares(sums: Tensor, gradients: Tensor) -> None:
    """Add the squares of (b, *shape) to (*shape)."""
    if sums.numel() < 1 << 12:
        sums += gradients.square().sum(dim=0)
        return
    for gradient in gradients.to(sums.dtype):  # one pass over memory that is in the cache
        sums.addcmul_(gradient, gradient)


def _tolerance(tensor: Tensor) -> float:
    """How far, relatively, two ways of computing the same gradient may be apart."""
    return 1e-6 if tensor.dtype == torch.float64 else 5e-2 if tensor.is_cuda else 5e-3


def _of_uses(name: str, parameter: Tensor, uses: list[Use], gradients: list[Tensor]) -> PerSample:
    """Per-sample gradients from the uses of a parameter, as they are known."""
    mine = [(use, g) for use, g in zip(uses, gradients, strict=True) if name in use.names]
    dtype = torch.promote_types(parameter.dtype, torch.float32)

    def of(rows: slice) -> Tensor:
        total: Tensor | None = None
        for use, g in mine:
            part = use.per_sample(rows, g)
            if use.weight is not parameter:
                (part,) = torch.autograd.grad(
                    use.weight, parameter, part, is_grads_batched=True, retain_graph=True
                )
            total = part.to(dtype) if total is None else total + part
        if total is None:  # the loss does not depend on it
            total = parameter.new_zeros(rows.stop - rows.start, *parameter.shape, dtype=dtype)
        return total

    return of


def _of_several(each: Tensor, parameter: Tensor) -> PerSample:
    """Per-sample gradients from the losses (B,) by backward passes of several samples at once."""

    def of(rows: slice) -> Tensor:
        chosen = torch.eye(len(each), dtype=each.dtype, device=each.device)[rows]
        (gradients,) = torch.autograd.grad(
            each, parameter, chosen, is_grads_batched=True, retain_graph=True, allow_unused=True
        )
        if gradients is None:
            return parameter.new_zeros(len(chosen), *parameter.shape)
        return gradients

    return of


def _agrees(found: PerSample, expected: Tensor, row: int, norm: float) -> bool:
    """Whether a sample's gradient is what plain autograd says; True where that is not finite."""
    try:
        of_row = found(slice(row, row + 1))[0]
    except RuntimeError:  # an operation that cannot be done for several samples at once
        return False
    if not bool(torch.isfinite(expected).all()):
        return True
    bound = _tolerance(expected) * float(expected.norm()) + 1e-6 * norm
    return float((of_row - expected).norm()) <= bound


def _direct(
    name: str, parameter: Tensor, uses: list[Use], gradients: list[Tensor]
) -> Tensor | None:
    """The sum of squares without the per-sample gradients, where there is a short cut."""
    mine = [(use, g) for use, g in zip(uses, gradients, strict=True) if name in use.names]
    if len(mine) == 1 and mine[0][0].weight is parameter and mine[0][0].squares is not None:
        return mine[0][0].squares(mine[0][1])
    return None


__all__ = ["Losses", "SquaredGradients", "rows_of"]
