"""A training batch as the facade takes it: named parts, checked, on the model's device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ringrift_pipeline.enhancements.sample_slots import as_indices

REQUIRED = ("features", "policy_targets", "value_targets")
_ON_HOST = ("indices", "games", "surprise", "reference_loss")


@dataclass(frozen=True)
class TrainingBatch:
    """What one ``train_step`` trains on.

    Attributes:
        tensors: every entry of the caller's mapping, tensors on the model's device.
        indices: (B,) int64 data-set rows on the host, or None.
        weights: (B,) floating point >= 0 on the model's device, or None.
        facts: of ``games``, ``surprise`` and ``reference_loss`` those given, (B,) on the host.
    """

    tensors: dict[str, Any]
    indices: np.ndarray | None
    weights: Tensor | None
    facts: dict[str, np.ndarray]


def read_batch(batch: Any, device: torch.device, required: tuple[str, ...]) -> TrainingBatch:
    """Check a batch and move its tensors.

    Args:
        batch: a mapping, or the tuple (features, policy_targets, value_targets).
        device: where the model is.
        required: names a mapping must have.

    Raises:
        ValueError: neither form, a part missing, or weights that are negative, not finite, all 0
            or not (B,).
    """
    if isinstance(batch, Mapping):
        missing = [name for name in required if name not in batch]
        if missing:
            raise ValueError(
                f"the batch lacks {', '.join(missing)}; it has {', '.join(map(str, batch))}"
            )
        named = dict(batch)
    elif isinstance(batch, (tuple, list)) and len(batch) == 3:
        named = dict(zip(REQUIRED, batch, strict=True))
    else:
        length = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
        raise ValueError(
            "a batch is a mapping with features, policy_targets and value_targets, or the tuple "
            f"of these three, not a {type(batch).__name__}{length}"
        )
    indices = None if named.get("indices") is None else as_indices(named["indices"])
    facts = {}
    for name in _ON_HOST[1:]:
        if named.get(name) is not None:
            facts[name] = _on_host(named[name])
            if indices is not None and facts[name].shape != indices.shape:
                raise ValueError(
                    f"{name} must have shape {indices.shape} as the indices do, "
                    f"got {facts[name].shape}"
                )
    tensors = {
        name: value if name in _ON_HOST else to_device(value, device)
        for name, value in named.items()
    }
    weights = None
    if named.get("weights") is not None:
        _check_weights(named["weights"], indices)
        weights = tensors["weights"]
    return TrainingBatch(tensors, indices, weights, facts)


def _check_weights(weights: Any, indices: np.ndarray | None) -> None:
    if getattr(weights, "ndim", 0) != 1 or (
        indices is not None and weights.shape[0] != indices.size
    ):
        raise ValueError(f"weights must be (B,), got {tuple(getattr(weights, 'shape', ()))}")
    if isinstance(weights, Tensor) and weights.device.type != "cpu":
        return  # reading them would synchronise; a bad one makes a loss that is refused
    values = np.asarray(weights)
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise ValueError("weights must be finite and not negative")
    if not values.sum() > 0:
        raise ValueError("the weights of a batch must not all be 0")


def _on_host(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def to_device(tree: Any, device: torch.device) -> Any:
    """A tensor, array or nested dict, list or tuple of them, on the device; the rest as it is."""
    if isinstance(tree, Tensor):
        return tree if tree.device == device else tree.to(device, non_blocking=True)
    if isinstance(tree, np.ndarray):
        return torch.from_numpy(tree).to(device, non_blocking=True)
    if isinstance(tree, Mapping):
        return {key: to_device(value, device) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(to_device(value, device) for value in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(to_device(value, device) for value in tree)
    return tree


__all__ = ["REQUIRED", "TrainingBatch", "read_batch", "to_device"]
