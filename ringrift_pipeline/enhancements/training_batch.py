"""A training batch as the facade takes it: named parts, checked, on the model's device."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ringrift_pipeline.enhancements.argument_checks import host_array, number_array
from ringrift_pipeline.enhancements.sample_slots import as_indices

REQUIRED = ("features", "policy_targets", "value_targets")
ALL_ZERO = "the weights of a batch must not all be 0"
_DEVICE_TROUBLE = (
    torch.OutOfMemoryError,
    getattr(torch, "AcceleratorError", torch.OutOfMemoryError),
)
_ON_HOST = ("indices", "games", "surprise", "uncertainty", "reference_loss")


@dataclass(frozen=True)
class TrainingBatch:
    """What one ``train_step`` trains on.

    Attributes:
        tensors: every entry of the caller's mapping, tensors on the model's device.
        indices: (B,) int64 data-set rows on the host, or None.
        weights: (B,) >= 0 on the model's device, without a graph, or None.
        facts: of ``games``, ``surprise``, ``uncertainty`` and ``reference_loss`` those given, (B,)
            on the host.
        share: which of the B samples ``tensors`` and ``weights`` are of, where several processes
            train on a batch; None: all.
    """

    tensors: dict[str, Any]
    indices: np.ndarray | None
    weights: Tensor | None
    facts: dict[str, np.ndarray]
    share: slice | None = None


def read_batch(
    batch: Any, device: torch.device, required: tuple[str, ...], *, whole: bool = True
) -> TrainingBatch:
    """Check a batch and move its tensors.

    Args:
        batch: a mapping, or the tuple (features, policy_targets, value_targets).
        device: where the model is.
        required: names a mapping must have; without any, as for a loss function of the caller's
            own, it may have others too, but none that is nearly a name known here.
        whole: whether it is all of a batch; the weights of a share may all be 0.

    Raises:
        ValueError: neither form, a part missing, unknown or not to be moved, weights that are negative, not
            finite, all 0 or not (B,), or facts that are no numbers (B,); by name.
    """
    if isinstance(batch, Mapping):
        missing = [name for name in required if name not in batch]
        if missing:
            raise ValueError(
                f"the batch lacks {', '.join(missing)}; it has {', '.join(map(str, batch))}"
            )
        named = dict(batch)
        _check_names(named, others=not required)
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
            read = _game_numbers if name == "games" else number_array
            facts[name] = read(name, named[name])
            if indices is not None and facts[name].shape != indices.shape:
                raise ValueError(
                    f"{name} must have shape {indices.shape} as the indices do, "
                    f"got {facts[name].shape}"
                )
    tensors = {
        name: value if name in _ON_HOST else _moved(name, value, device)
        for name, value in named.items()
    }
    weights = None
    if named.get("weights") is not None:
        check_weights(named["weights"], indices, whole)
        weights = tensors["weights"].detach()
    return TrainingBatch(tensors, indices, weights, facts)


def _check_names(named: Mapping[Any, Any], others: bool) -> None:
    """ValueError for a name that is not known; of ``others``, only for what is nearly known."""
    known = (*REQUIRED, *_ON_HOST, "weights", "legal_mask")
    for name in named:
        if name in known:
            continue
        near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.8 if others else 0.6)
        if others and (not near or near[0] in named):
            continue
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        raise ValueError(f"the batch has an unknown entry {name!r}: {hint}")


def check_weights(weights: Any, indices: np.ndarray | None, whole: bool = True) -> None:
    """ValueError unless weights are (B,) >= 0, finite, not all 0; on a device only the shape."""
    if getattr(weights, "ndim", 0) != 1 or (
        indices is not None and weights.shape[0] != indices.size
    ):
        raise ValueError(f"weights must be (B,), got {tuple(getattr(weights, 'shape', ()))}")
    if isinstance(weights, Tensor) and weights.device.type not in ("cpu", "meta"):
        return  # reading them would synchronise; a bad one makes a loss that is refused
    values = number_array("weights", weights)
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise ValueError("weights must be finite and not negative")
    if whole and not values.sum() > 0:
        raise ValueError(ALL_ZERO)


def _game_numbers(name: str, values: Any) -> np.ndarray:
    games = host_array(name, values)
    if games.dtype.kind not in "iu" or (games.size and int(games.min()) < 0):
        raise ValueError(f"{name} must be whole numbers from 0, got dtype {games.dtype}")
    return games


def _moved(name: str, value: Any, device: torch.device) -> Any:
    try:
        return to_device(value, device)
    except (NotImplementedError, TypeError, ValueError) as error:  # on meta; of no tensor's kind
        raise ValueError(f"{name} cannot be moved to {device}: {error}") from error


@contextlib.contextmanager
def features_fit(model: str) -> Iterator[None]:
    """What a model raises over features of another kind or shape becomes a ValueError."""
    with misfit(f"features do not fit {model}"):
        yield


@contextlib.contextmanager
def misfit(what: str) -> Iterator[None]:
    """A TypeError or RuntimeError within becomes a ValueError that says ``what`` does not fit.

    Trouble of the device's own, such as too little memory, passes as it is.
    """
    try:
        yield
    except (TypeError, RuntimeError) as error:
        if isinstance(error, _DEVICE_TROUBLE):
            raise
        raise ValueError(f"{what}: {error}") from error


def to_device(tree: Any, device: torch.device) -> Any:
    """A tensor, array or nested dict, list or tuple of them, on the device; the rest as it is."""
    if isinstance(tree, Tensor):
        return tree if tree.device == device else tree.to(device, non_blocking=True)
    if isinstance(tree, np.ma.MaskedArray):
        raise TypeError("a masked array: fill it, or leave its masked entries out")
    if isinstance(tree, np.ndarray):
        tree = tree.astype(tree.dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(tree).to(device, non_blocking=True)
    if isinstance(tree, Mapping):
        return {key: to_device(value, device) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(to_device(value, device) for value in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(to_device(value, device) for value in tree)
    return tree


__all__ = [
    "ALL_ZERO",
    "REQUIRED",
    "TrainingBatch",
    "check_weights",
    "features_fit",
    "misfit",
    "read_batch",
    "to_device",
]
