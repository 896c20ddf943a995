"""Saving and restoring nested state dictionaries as safetensors and JSON: nothing is pickled.

Any tree of dictionaries, lists, tuples, numbers, text, torch tensors and numpy arrays can be
kept; what is restored equals what was saved bit for bit, types included.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ringrift_pipeline.network.checkpoint import check_finite
from ringrift_pipeline.store import CorruptArtefactError, Folder, check_file, read_bounded
from ringrift_pipeline.store.bounded import (
    MOST,
    TooLargeError,
    bounded_size,
    check_values,
    parse_json,
)

TENSORS = "state.safetensors"
TREE = "state.json"
_FORMAT = "ringrift-state/1"


class StateError(ValueError):
    """A state cannot be saved or restored; the message names the entry or the file."""


@dataclass(frozen=True)
class PackedState:
    """A copy of a state, as its two files hold it."""

    tensors: dict[str, torch.Tensor]
    tree: str


def pack_state(state: dict[str, Any]) -> PackedState:
    """A copy of a state that shares nothing with it.

    Raises
    ------
    StateError
        naming the entry that has a type which cannot be kept; or if there is more beside the tensors
        than :func:`load_state` would read.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = _pack(state, "state", tensors)
    text = json.dumps({"format": _FORMAT, "state": tree}, allow_nan=False, sort_keys=True)
    try:
        if len(text) > MOST:  # all of it is ASCII
            raise TooLargeError(f"it has {len(text)} bytes, of which {MOST} could be read again")
        check_values(text.encode())
    except TooLargeError as error:
        raise StateError(
            f"the state beside its tensors cannot be saved: {error}; validate less often (a larger "
            "training.checkpoint_every)"
        ) from error
    return PackedState(tensors, text)


def write_state(folder: Folder, packed: PackedState) -> None:
    """Write ``state.safetensors`` and ``state.json`` into a draft's folder."""
    save_file(packed.tensors, folder / TENSORS, metadata={"format": _FORMAT})
    (folder / TREE).write_text(packed.tree)


def save_state(folder: Folder, state: dict[str, Any]) -> None:
    """:func:`pack_state` and :func:`write_state`; StateError as there."""
    write_state(folder, pack_state(state))


def load_state(folder: Path, most: int = 1 << 30) -> dict[str, Any]:
    """What :func:`save_state` wrote into ``folder``, tensors on the CPU.

    Parameters
    ----------
    most:
        Bytes that the tensors and arrays of such a state can have.

    Raises
    ------
    StateError
        if a file is missing, damaged, too large or of another format.
    """
    try:
        bounded_size(folder / TENSORS, most)
        for name in (TREE, TENSORS):
            check_file(folder / name)
        content = parse_json(read_bounded(folder / TREE))
        tensors = load_file(folder / TENSORS)
    except MemoryError as error:
        raise StateError(f"{folder} holds more than can be mapped: {error}") from error
    except (OSError, ValueError, RecursionError, SafetensorError, CorruptArtefactError) as error:
        raise StateError(f"{folder} holds no training state that can be read: {error}") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != _FORMAT:
        raise StateError(f"{folder} has state format {found!r}, not {_FORMAT!r}")
    try:
        state = _unpack(content["state"], tensors)
    except (LookupError, TypeError, ValueError, RuntimeError, SyntaxError) as error:
        raise StateError(f"{folder} holds a damaged training state: {error!r}") from error
    if not isinstance(state, dict):
        raise StateError(f"{folder} holds a {type(state).__name__} for a training state")
    return state


def check_training(
    model: nn.Module,
    averaged: nn.Module | None,
    best: Mapping[str, torch.Tensor] | None,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Refuse to save what no training can go on from.

    Raises
    ------
    NonFiniteModelError
        naming the tensor of the model, its average, the best model or the optimizer that holds
        a number which is not finite.
    """
    what = "the training state to save"
    check_finite(model.state_dict(), f"{what}: the model")
    if averaged is not None:
        check_finite(averaged.state_dict(), f"{what}: the averaged model")
    check_finite(best or {}, f"{what}: the best model")
    kept = {
        f"{key} of {name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, torch.Tensor)
    }
    check_finite(kept, f"{what}: the optimizer")


def _pack(value: Any, where: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        key = f"{len(tensors):05d}"
        tensors[key] = value.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        return {"$": "tensor", "key": key}
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise StateError(f"{where} is an array of Python objects, which cannot be kept")
        key = f"{len(tensors):05d}"
        data = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        tensors[key] = torch.from_numpy(data.copy())
        return {"$": "array", "key": key, "dtype": value.dtype.str, "shape": list(value.shape)}
    if isinstance(value, np.generic):
        return {"$": "scalar", "dtype": value.dtype.str, "hex": value.tobytes().hex()}
    if isinstance(value, dict):
        items = [
            [_pack(key, f"{where} key", tensors), _pack(item, f"{where}[{key!r}]", tensors)]
            for key, item in value.items()
        ]
        return {"$": "dict", "items": items}
    if isinstance(value, list | tuple):
        packed = [_pack(item, f"{where}[{i}]", tensors) for i, item in enumerate(value)]
        return packed if isinstance(value, list) else {"$": "tuple", "items": packed}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$": "float", "text": repr(value)}
    if isinstance(value, bytes):
        return {"$": "bytes", "hex": value.hex()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise StateError(f"{where} is a {type(value).__name__}, which cannot be kept")


def _unpack(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(tree, list):
        return [_unpack(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    match tree["$"]:
        case "tensor":
            return tensors.pop(tree["key"])  # once: a small file could name a large one often
        case "array":
            data = tensors.pop(tree["key"]).numpy().view(np.dtype(tree["dtype"]))
            return data.reshape(tree["shape"]).copy()
        case "scalar":
            return np.frombuffer(bytes.fromhex(tree["hex"]), np.dtype(tree["dtype"]))[0]
        case "dict":
            return {_unpack(k, tensors): _unpack(v, tensors) for k, v in tree["items"]}
        case "tuple":
            return tuple(_unpack(item, tensors) for item in tree["items"])
        case "float":
            return float(tree["text"])
        case "bytes":
            return bytes.fromhex(tree["hex"])
    raise StateError(f"unknown entry {tree['$']!r} in a training state")
