"""Norms of many gradients at once: one kernel a device and dtype, one read of the device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def check_gradients(parameters: Iterable[Tensor]) -> None:
    """ValueError for a gradient that is sparse or complex, naming its parameter by position."""
    for i, parameter in enumerate(parameters):
        grad = parameter.grad
        if grad is None:
            continue
        if grad.layout != torch.strided:
            raise ValueError(
                f"parameters: the gradient of parameter {i}, {tuple(grad.shape)}, is sparse; only "
                "dense ones can be clipped and accumulated: build nn.Embedding with sparse=False"
            )
        if grad.is_complex():
            raise ValueError(
                f"parameters: the gradient of parameter {i}, {tuple(grad.shape)}, is complex; keep "
                "the real and imaginary parts as real parameters"
            )


def gradient_norms(gradients: list[Tensor]) -> np.ndarray:
    """(P,) float64 L2 norms of the gradients, accumulated in at least float32."""
    if not gradients:
        return np.zeros(0)
    found = _foreach_norm(gradients)
    device = found[0].device
    return torch.stack([n.to(device) for n in found]).cpu().numpy().astype(np.float64)


def total_norm(gradients: list[Tensor]) -> float:
    """L2 norm of all gradients as one vector; 0.0 without any."""
    return float(np.sqrt(np.sum(gradient_norms(gradients) ** 2)))


def agc_scales(
    weights: list[Tensor], gradients: list[Tensor], ratio: float, eps: float
) -> tuple[np.ndarray, list[Tensor] | None]:
    """Unit-wise adaptive clipping (Brock et al. 2021), as factors.

    Returns:
        (P,) float64 norms of the gradients, and for each gradient the factors in (0, 1] of its
        units, shaped to broadcast; None where every factor is 1.
    """
    scales = []
    for weight, gradient in zip(weights, gradients, strict=True):
        bound = _unit_norms(weight).clamp_(min=eps).mul_(ratio)
        scales.append((bound / _unit_norms(gradient).clamp_(min=1e-6)).clamp_(max=1.0))
    device = scales[0].device
    norms = [norm.to(device) for norm in _foreach_norm(gradients)]
    least = [scale.amin().to(device, norms[0].dtype) for scale in scales]
    read = torch.stack((torch.stack(norms), torch.stack(least))).cpu().numpy().astype(np.float64)
    if not np.any(read[1] < 1.0):
        return read[0], None
    return read[0], [s.to(g.dtype) for s, g in zip(scales, gradients, strict=True)]


def _unit_norms(tensor: Tensor) -> Tensor:
    """L2 norm of each output unit, keeping dimensions; of the whole for vectors and scalars."""
    dims = tuple(range(1, tensor.ndim)) if tensor.ndim > 1 else None
    return torch.linalg.vector_norm(
        tensor.detach(), dim=dims, keepdim=tensor.ndim > 1, dtype=_accumulator(tensor)
    )


def _accumulator(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _foreach_norm(gradients: list[Any]) -> list[Tensor]:
    """One 0-d norm a tensor, at least float32, in one kernel a device and dtype."""
    if all(g.dtype == gradients[0].dtype and g.device == gradients[0].device for g in gradients):
        return list(torch._foreach_norm(gradients, 2.0, dtype=_accumulator(gradients[0])))
    norms: list[Any] = [None] * len(gradients)
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, gradient in enumerate(gradients):
        groups.setdefault((gradient.device, gradient.dtype), []).append(i)
    for (_, dtype), members in groups.items():
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        found = torch._foreach_norm([gradients[i] for i in members], 2.0, dtype=wide)
        for i, norm in zip(members, found, strict=True):
            norms[i] = norm.double()
    return norms


__all__ = ["agc_scales", "check_gradients", "gradient_norms", "total_norm"]
