"""Labels drawn from a model's own predictive distribution, and their likelihoods.

The Fisher information is the expected squared gradient of the log-likelihood under labels that
the model itself predicts; labels of the data set would give another matrix.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ringrift_pipeline.enhancements.argument_checks import check_choice, check_type
from ringrift_pipeline.enhancements.loss_parts import masked_log_softmax

HeadKind = Literal["categorical", "gaussian", "bernoulli"]
Criterion = Callable[[Any, Any], Tensor]

_PAIR = ("policy", "value")


class PredictiveLabels:
    """Draws labels for the outputs of a model.

    Args:
        seed: of the draws; a sample's draw depends on its place in the data alone, not on batches.
        heads: form of each head by name; of one not named, (B,) and (B, 1) is ``gaussian``, wider
            is ``categorical``:

            - ``categorical``: (B, A) logits, a softmax over the legal entries.
            - ``gaussian``: (B,) or (B, D) means of unit variance.
            - ``bernoulli``: (B,) or (B, D) logits of independent yes-or-no answers.

    The heads of a pair are ``policy`` and ``value``, those of a longer tuple ``"0"``, ``"1"`` ...
    (a named tuple's and a mapping's have their own names), a single tensor is ``output``.

    Raises:
        ValueError: an unknown form.
    """

    def __init__(
        self, seed: int | np.random.SeedSequence, heads: Mapping[str, HeadKind] | None = None
    ) -> None:
        if heads is not None:
            check_type("heads", heads, Mapping)
        self._heads = dict(heads or {})
        for name, kind in self._heads.items():
            check_choice(f"heads: {name}", kind, get_args(HeadKind))
        self._random = np.random.default_rng(seed)

    def draw(self, outputs: Any, legal_mask: Tensor | None, size: int) -> Any:
        """A label for every sample and head, shaped as ``outputs`` are, without gradient.

        Raises:
            ValueError: outputs of another form, or a ``legal_mask`` that fits no head.
        """
        named = named_heads(outputs)
        odd = self._heads.keys() - named.keys()
        if odd:
            raise ValueError(
                f"heads: the model has no {', '.join(sorted(odd))}; it has {', '.join(named)}"
            )
        masked = _masked_head(named, legal_mask)
        widths = {name: self._width(name, output, size) for name, output in named.items()}
        # a row of numbers a sample, so that cutting the data into other batches changes nothing
        uniform = self._random.random((size, sum(widths.values())))
        labels, start = {}, 0
        for name, output in named.items():
            some = torch.from_numpy(uniform[:, start : start + widths[name]])
            start += widths[name]
            mask = legal_mask if name == masked else None
            labels[name] = self._label(self._kind(name, output), output.detach(), mask, some)
        return _like(outputs, labels)

    def losses(self, outputs: Any, labels: Any, legal_mask: Tensor | None = None) -> Tensor:
        """Negative log-likelihood (B,) of the labels, summed over heads, differentiable."""
        named = named_heads(outputs)
        given = dict(zip(named, _values(labels), strict=True))
        masked = _masked_head(named, legal_mask)
        total: Tensor | None = None
        for name, output in named.items():
            mask = legal_mask if name == masked else None
            loss = _loss(self._kind(name, output), output, given[name], mask)
            total = loss if total is None else total + loss
        assert total is not None
        return total

    def _kind(self, name: str, output: Tensor) -> HeadKind:
        wide = output.dim() == 2 and output.shape[1] > 1
        return self._heads.get(name, "categorical" if wide else "gaussian")

    def _width(self, name: str, output: Tensor, size: int) -> int:
        """Random numbers that a sample's label of this head needs."""
        if output.dim() not in (1, 2) or output.shape[0] != size or output.numel() == 0:
            raise ValueError(
                f"the model's head {name} must be (B,) or (B, A) with B={size}, "
                f"got {tuple(output.shape)}"
            )
        if self._kind(name, output) == "categorical":
            if output.dim() != 2:
                raise ValueError(f"heads: {name} is (B,), which is not categorical")
            return 1
        return 1 if output.dim() == 1 else output.shape[1]

    def _label(
        self, kind: HeadKind, output: Tensor, mask: Tensor | None, uniform: Tensor
    ) -> Tensor:
        uniform = uniform.to(output.device) if output.device.type != "mps" else uniform
        if kind == "categorical":
            chances = masked_log_softmax(output, mask).double().exp()
            below = chances.cumsum(dim=1)
            # short of the sum, so that an entry of chance 0 behind the last is never chosen
            at = uniform * below[:, -1:] * (1.0 - 1e-12)
            return (
                torch.searchsorted(below, at, right=True).squeeze(1).clamp_max(output.shape[1] - 1)
            )
        uniform = uniform.view(output.shape)
        if kind == "bernoulli":
            return (uniform < torch.sigmoid(output.double())).to(output.dtype)
        noise = torch.special.ndtri(uniform.clamp(1e-16, 1.0 - 1e-16))
        return (output.double() + noise).to(output.dtype)


def _loss(kind: HeadKind, output: Tensor, label: Tensor, mask: Tensor | None) -> Tensor:
    if kind == "categorical":
        return -masked_log_softmax(output, mask).gather(1, label.unsqueeze(1)).squeeze(1)
    if kind == "bernoulli":
        each = torch.nn.functional.binary_cross_entropy_with_logits(output, label, reduction="none")
    else:
        each = 0.5 * (output - label).square()
    return each if each.dim() == 1 else each.sum(dim=1)


def named_heads(outputs: Any) -> dict[str, Tensor]:
    """A model's outputs by name; see ``PredictiveLabels``. ValueError for another form."""
    if isinstance(outputs, Tensor):
        return {"output": outputs}
    if isinstance(outputs, Mapping):
        named = {str(name): output for name, output in outputs.items()}
    elif isinstance(outputs, (tuple, list)):
        names = getattr(outputs, "_fields", None)
        if names is None:
            names = _PAIR if len(outputs) == 2 else [str(i) for i in range(len(outputs))]
        named = dict(zip(names, outputs, strict=True))
    else:
        named = {}
    if not named or not all(
        isinstance(output, Tensor) and output.is_floating_point() for output in named.values()
    ):
        raise ValueError(
            "the model must return a floating-point tensor, or a tuple or mapping of them, "
            f"not {type(outputs).__name__}"
        )
    return named


def _masked_head(named: Mapping[str, Tensor], legal_mask: Tensor | None) -> str | None:
    """The head that the mask is for: the first of its shape."""
    if legal_mask is None:
        return None
    for name, output in named.items():
        if output.shape == legal_mask.shape:
            return name
    raise ValueError(
        f"legal_mask {tuple(legal_mask.shape)} fits no head: "
        + ", ".join(f"{name} {tuple(output.shape)}" for name, output in named.items())
    )


def _values(labels: Any) -> list[Tensor]:
    if isinstance(labels, Tensor):
        return [labels]
    return list(labels.values() if isinstance(labels, Mapping) else labels)


def _like(outputs: Any, labels: Mapping[str, Tensor]) -> Any:
    if isinstance(outputs, Tensor):
        return labels["output"]
    if isinstance(outputs, Mapping):
        return {name: labels[str(name)] for name in outputs}
    return tuple(labels.values())


def rows_of_labels(labels: Any, rows: slice) -> Any:
    """The labels of some samples."""
    if isinstance(labels, Tensor):
        return labels[rows]
    if isinstance(labels, Mapping):
        return {name: label[rows] for name, label in labels.items()}
    return tuple(label[rows] for label in labels)


def per_sample(criterion: Criterion | None) -> Criterion | None:
    """A loss module of torch without its reduction; any other callable as it is.

    Raises:
        ValueError: not callable.
    """
    if criterion is None:
        return None
    if not callable(criterion):
        raise ValueError(f"criterion must be callable or None, got {criterion!r}")
    if isinstance(getattr(criterion, "reduction", None), str):
        criterion = copy.copy(criterion)
        criterion.reduction = "none"  # type: ignore[attr-defined]
    return criterion


def check_losses(losses: Any, size: int) -> Tensor:
    """ValueError unless a criterion gave (B,) losses."""
    if not isinstance(losses, Tensor) or losses.shape != (size,):
        shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(f"criterion must give one loss a sample, ({size},), got {shape}")
    return losses


__all__ = [
    "Criterion",
    "HeadKind",
    "PredictiveLabels",
    "check_losses",
    "named_heads",
    "per_sample",
    "rows_of_labels",
]
