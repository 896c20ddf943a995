"""What a facade's saved state is made of beside its parts: copies, random states, batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ringrift_pipeline.enhancements import state_forms as forms
from ringrift_pipeline.enhancements.optimizer_state import check_optimizer_state
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
        indices = None if entry["indices"] is None else np.asarray(entry["indices"]).copy()
        facts = {name: np.asarray(values).copy() for name, values in entry["facts"].items()}
        pending.append((losses, TrainingBatch({}, indices, None, facts)))
    return pending


def _check_pending(name: str, entry: Any) -> None:
    """One batch of an unfinished accumulation."""
    forms.record(losses=_packed, facts=forms.anything, indices=forms.anything)(name, entry)
    size = entry["losses"].shape[1]
    forms.optional(forms.numbers(size, low=0, whole=True))(f"{name}.indices", entry["indices"])
    forms.mapping(forms.numbers(size, finite=False))(f"{name}.facts", entry["facts"])


def _packed(name: str, losses: Any) -> None:
    if not isinstance(losses, Tensor) or losses.dim() != 2 or losses.shape[0] not in (4, 5):
        raise ValueError(f"{name} must be a tensor (4 or 5, B), got {losses!r:.80}")
    if losses.shape[1] == 0 or not losses.is_floating_point():
        raise ValueError(f"{name} must be floating point and not empty")


def _random(name: str, state: Any) -> None:
    try:
        torch.Generator().set_state(state.cpu())
    except Exception as error:  # whatever a damaged state makes torch raise
        raise ValueError(f"{name} is no state of a random generator: {error}") from error


def check_facade_state(
    state: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
) -> None:
    """Check what a facade's state holds beside its parts, which check their own.

    Raises:
        ValueError: an entry that is missing, damaged or of another model or optimizer, by name.
    """
    forms.record(pending=forms.listed(_check_pending))("", state)
    forms.record(
        parts=forms.mapping(forms.mapping(forms.anything)),
        progress=forms.mapping(forms.anything),
        snapshot=forms.anything,
        snapshot_extra=forms.anything,
        steps_since_snapshot=forms.whole(),
        quality=forms.optional(forms.numbers(None, low=0.0)),
        gradients=forms.listed(forms.optional(forms.anything)),
        unaveraged=forms.listed(forms.whole(), exactly=2),
        curriculum_scale=forms.number(0.0, above=True),
        random=_random,
        device_random=forms.optional(_is_tensor),
    )("", state)
    quality = state["quality"]
    if quality is not None and (
        not len(quality) or abs(float(np.mean(np.asarray(quality))) - 1) > 1e-6
    ):
        raise ValueError("quality must be weights of mean 1")
    if len(state["gradients"]) != (len(parameters) if state["pending"] else 0):
        raise ValueError(
            f"gradients: {len(state['gradients'])} of {len(parameters)} parameters with "
            f"{len(state['pending'])} batches pending"
        )
    if state["pending"] and all(gradient is None for gradient in state["gradients"]):
        raise ValueError("gradients are all None although batches are pending")
    for number, (gradient, parameter) in enumerate(
        zip(state["gradients"], parameters, strict=False)
    ):
        if gradient is not None:
            _is_tensor(f"gradients[{number}]", gradient)
            if gradient.shape != parameter.shape or gradient.is_floating_point() is False:
                raise ValueError(
                    f"gradients[{number}] has shape {tuple(gradient.shape)}, its parameter "
                    f"{tuple(parameter.shape)}"
                )
    if ("model" in state) != ("optimizer" in state):
        raise ValueError("model and optimizer must be there both or not at all")
    if "model" in state:
        forms.mapping(forms.anything)("model", state["model"])
        own = model.state_dict()
        for name, value in own.items():
            if isinstance(value, Tensor):
                if name not in state["model"]:
                    raise ValueError(f"model lacks {name}")
                _same_shape(f"model[{name}]", state["model"][name], value)
        for name, _ in model.named_parameters():
            if name in state["model"]:
                forms.tensor(f"model[{name}]", state["model"][name])
        check_optimizer_state("optimizer", state["optimizer"], optimizer)


def _is_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a tensor, got {value!r:.80}")


def _same_shape(name: str, value: Any, ours: Tensor) -> None:
    _is_tensor(name, value)
    if value.shape != ours.shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, the model {tuple(ours.shape)}")
    if value.is_floating_point() and bool(value.isnan().any()):
        raise ValueError(f"{name} is NaN")


__all__ = [
    "check_facade_state",
    "copied",
    "pending_from",
    "pending_state",
    "random_state",
    "set_random_state",
]
