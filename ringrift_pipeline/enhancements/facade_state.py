"""What a facade's saved state is made of beside its parts: copies, random states, batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ringrift_pipeline.enhancements.training_batch import TrainingBatch


def copied(tree: Any) -> Any:
    """A deep copy of nested containers; tensors keep their strides."""
    if isinstance(tree, Tensor):
        return tree.detach().clone()
    if isinstance(tree, Mapping):
        return {key: copied(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(copied(value) for value in tree)
    return tree


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """torch's random state on the host, and on the device where that is CUDA."""
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), on_device


def set_random_state(device: torch.device, host: Tensor, on_device: Tensor | None) -> None:
    """Restore :func:`random_state`."""
    torch.set_rng_state(host.cpu())
    if on_device is not None and device.type == "cuda":
        torch.cuda.set_rng_state(on_device.cpu(), device)


def pending_state(pending: Sequence[tuple[Tensor, TrainingBatch]]) -> list[dict[str, Any]]:
    """Copies of an unfinished accumulation: packed losses, and what is recorded with them."""
    return [
        {
            "losses": losses.clone(),
            "indices": None if b.indices is None else torch.from_numpy(b.indices.copy()),
            "facts": {k: torch.from_numpy(v.copy()) for k, v in b.facts.items()},
        }
        for losses, b in pending
    ]


def pending_from(
    entries: Sequence[Mapping[str, Any]], device: torch.device
) -> list[tuple[Tensor, TrainingBatch]]:
    """Restore :func:`pending_state`, losses on the device."""
    pending = []
    for entry in entries:
        losses = entry["losses"].to(device, copy=True)
        indices = None if entry["indices"] is None else entry["indices"].numpy().copy()
        facts = {name: values.numpy().copy() for name, values in entry["facts"].items()}
        pending.append((losses, TrainingBatch({}, indices, None, facts)))
    return pending


__all__ = ["copied", "pending_from", "pending_state", "random_state", "set_random_state"]
