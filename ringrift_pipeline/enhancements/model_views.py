"""A model seen through its wrappers, held still while it is measured, and whether it is finite."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ringrift_pipeline.enhancements.argument_checks import check_type
from ringrift_pipeline.enhancements.gradient_norms import total_norm


class Evaluating:
    """Evaluation mode, with modes, buffers and gradients put back at the end."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __enter__(self) -> None:
        self._modes = [(module, module.training) for module in self._model.modules()]
        self._buffers = [(buffer, buffer.detach().clone()) for buffer in self._model.buffers()]
        self._model.eval()

    def __exit__(self, *error: object) -> None:
        for module, training in self._modes:
            module.training = training
        with torch.no_grad():
            for buffer, saved in self._buffers:
                if not torch.equal(buffer, saved):
                    buffer.copy_(saved)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside ``torch.compile``, (distributed) data parallelism and ``AveragedModel``."""
    wrappers = (
        nn.DataParallel,
        nn.parallel.DistributedDataParallel,
        torch.optim.swa_utils.AveragedModel,
    )
    check_type("model", model, nn.Module)
    while True:
        if isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        elif isinstance(model, wrappers):
            model = model.module
        else:
            return model


def plain_names(model: nn.Module) -> dict[str, str]:
    """Parameter name -> the name without the marks of wrappers around parts of the model."""
    plain = {name: name.replace("_orig_mod.", "") for name, _ in model.named_parameters()}
    while plain and all(name.startswith("module.") for name in plain.values()):
        plain = {name: short.removeprefix("module.") for name, short in plain.items()}
    return plain


def nonfinite_tensor(model: nn.Module) -> str | None:
    """Name of a parameter or buffer that is not finite, or None; reads a CUDA device once.

    By a sum of each tensor, one pass without an intermediate: it is not finite when an entry is
    not (when only the sum has overflowed, the entries decide).
    """
    named = [
        (name, tensor.detach())
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if tensor.is_floating_point() and tensor.device.type != "meta"
    ]
    if all(tensor.device.type == "cpu" for _, tensor in named):
        named = [(n, t) for n, t in named if not math.isfinite(float(t.sum(dtype=_summed(t))))]
    elif math.isfinite(total_norm([tensor for _, tensor in named])):
        return None
    for name, tensor in named:
        if not bool(torch.isfinite(tensor).all()):
            return name
    return None


def _summed(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


__all__ = ["Evaluating", "nonfinite_tensor", "plain_names", "unwrapped"]
