"""Model files: a folder with ``model.safetensors`` (weights) and ``model.json`` (all else).

The sidecar holds the network's shape, the encoding it was trained on and the hash of the weights;
loading checks all three. Nothing in either file can execute code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from ringrift_pipeline.network.devices import resolve_device
from ringrift_pipeline.network.encoding import ENCODING_VERSION, NUM_GLOBALS, NUM_PLANES
from ringrift_pipeline.network.model import AUXILIARY, NetworkConfig, RingRiftNetwork
from ringrift_pipeline.network.moves import NUM_MOVE_KINDS
from ringrift_pipeline.store import (
    CorruptArtefactError,
    Folder,
    TooLargeError,
    check_file,
    read_bounded,
    write_bytes_atomic,
    write_json_atomic,
)
from ringrift_pipeline.store.bounded import bounded_size, memory_here, parse_json
from ringrift_pipeline.store.manifest import hash_file

WEIGHTS_FILE = "model.safetensors"
SIDECAR_FILE = "model.json"
LARGEST_NUMBER = 8  # bytes of a weight
LARGEST_HEADER = 1 << 20  # bytes of the names and shapes of all of them
_FORMAT = "ringrift-network/1"


class ModelError(Exception):
    """A model cannot be loaded; the message says which file, why, and what to do."""


class MissingModelError(ModelError):
    """The folder lacks the weights or the sidecar."""


class CorruptModelError(ModelError):
    """A file is damaged: it does not parse, or its hash is not the recorded one."""


class ModelMismatchError(ModelError):
    """The files are sound but of another format, encoding or shape."""


class NonFiniteModelError(ModelError):
    """A weight is NaN or infinite; the message names the tensor."""


def check_finite(weights: Mapping[str, torch.Tensor], where: str) -> None:
    """Refuse weights unless all their numbers are finite.

    Args:
        weights: tensors by name; whole numbers always pass.
        where: what they are of, which begins the message.

    Raises:
        NonFiniteModelError: naming the first tensor, in how many of its numbers, and where.
    """
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            continue
        bad = ~torch.isfinite(tensor)
        if bool(bad.any()):
            first = bad.nonzero()[0].tolist()
            raise NonFiniteModelError(
                f"{where}: {int(bad.sum())} of {tensor.numel()} numbers of the tensor {name} are "
                f"not finite, the first ({float(tensor[tuple(first)])}) at {first}: use an "
                "earlier model or train anew"
            )


def _encoding_signature() -> dict[str, int]:
    return {
        "version": ENCODING_VERSION,
        "planes": NUM_PLANES,
        "globals": NUM_GLOBALS,
        "move_kinds": NUM_MOVE_KINDS,
    }


def save_model(
    folder: str | Folder, model: RingRiftNetwork, metadata: Mapping[str, Any] | None = None
) -> Path:
    """Write ``model`` into ``folder`` (made if need be), each file atomically; returns the folder.

    ``metadata`` is anything JSON holds, kept verbatim. Weights keep their bits and dtype. The
    sidecar is written last and names the hash of the weights, so a write cut short between the
    two is found out at loading.

    Raises:
        NonFiniteModelError: a weight is NaN or infinite; nothing is written.
    """
    if isinstance(folder, str):
        folder = Path(folder)
    path = folder / WEIGHTS_FILE
    weights = {
        name: tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
        if not name.startswith(AUXILIARY)
    }
    check_finite(weights, f"the model for {path.parent}")
    path.parent.mkdir(parents=True, exist_ok=True)
    data = safetensors.torch.save(weights, metadata={"format": _FORMAT})
    sidecar = {
        "format": _FORMAT,
        "network": model.config.to_dict(),
        "encoding": _encoding_signature(),
        "weights": {
            "file": WEIGHTS_FILE,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "parameters": model.num_parameters,
        },
        "metadata": dict(metadata or {}),
    }
    json.dumps(sidecar, allow_nan=False)  # refuse before anything is written
    write_bytes_atomic(path, data)
    write_json_atomic(folder / SIDECAR_FILE, sidecar)
    return path.parent


def _read_sidecar(folder: Path) -> dict[str, Any]:
    path = folder / SIDECAR_FILE
    try:
        data = read_bounded(path)
        check_file(path)
        sidecar = parse_json(data)
    except CorruptArtefactError as error:
        raise CorruptModelError(str(error)) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingModelError(
            f"{path} does not exist: not a model folder; give a folder that holds "
            f"{SIDECAR_FILE} and {WEIGHTS_FILE}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CorruptModelError(f"{path} is not valid JSON ({error}); restore it") from error
    if not isinstance(sidecar, dict) or not all(
        isinstance(sidecar.get(key), kind)
        for key, kind in (("format", str), ("network", dict), ("encoding", dict), ("weights", dict))
    ):
        raise CorruptModelError(f"{path} lacks format, network, encoding or weights; restore it")
    if sidecar["format"] != _FORMAT:
        raise ModelMismatchError(
            f"{path} has format {sidecar['format']!r}, this version reads {_FORMAT!r}"
        )
    return sidecar


def _shapes(config: NetworkConfig) -> dict[str, torch.Size]:
    """The shape of every tensor of a network, none of which is made."""
    with torch.device("meta"):
        network = RingRiftNetwork(config)
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


def _read_weights(path: Path, config: NetworkConfig, numbers: int, digest: Any) -> bytes:
    """The file of the weights of a network of so many numbers: a folder from elsewhere may claim any
    network, and its file be of any size, so that neither is read before it can be what it claims.
    """
    try:
        size = bounded_size(path, LARGEST_NUMBER * numbers + LARGEST_HEADER)
        if 3 * size > memory_here():  # the file, its tensors and the network
            raise ModelMismatchError(
                f"{path} has {size} bytes, of {config}: to load it takes three times as much, and "
                f"this machine has {memory_here()}"
            )
        found = hash_file(path, remembered=True)["sha256"]
        data = read_bounded(path, size) if found == digest else b""
    except TooLargeError as error:
        raise ModelMismatchError(f"{error}, of {config}") from error
    except FileNotFoundError as error:
        raise MissingModelError(f"{path} does not exist, though its sidecar does") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise CorruptModelError(
            f"{path} ({size} bytes) does not have the hash recorded in {SIDECAR_FILE}; "
            "restore it from a copy or train anew"
        )
    return data


def read_model_metadata(folder: str | Path) -> dict[str, Any]:
    """The ``metadata`` given to :func:`save_model`.

    Raises:
        MissingModelError, CorruptModelError, ModelMismatchError: as :func:`load_model`.
    """
    return dict(_read_sidecar(Path(folder)).get("metadata") or {})


def load_model(folder: str | Path, device: str | torch.device = "cpu") -> RingRiftNetwork:
    """Load what :func:`save_model` wrote: bit for bit, in evaluation mode, on ``device``.

    Raises:
        MissingModelError: a file is not there.
        CorruptModelError: a file is damaged (hash or syntax).
        ModelMismatchError: another format or encoding, or tensors that do not fit the shape.
        NonFiniteModelError: a weight is NaN or infinite.
        ValueError: the device is unknown or absent.
    """
    folder = Path(folder)
    target = resolve_device(device)
    sidecar = _read_sidecar(folder)
    if sidecar["encoding"] != _encoding_signature():
        raise ModelMismatchError(
            f"{folder / SIDECAR_FILE} was trained on encoding {sidecar['encoding']}, this version "
            f"encodes {_encoding_signature()}; train anew"
        )
    try:
        config = NetworkConfig.from_dict(sidecar["network"])
    except (TypeError, ValueError) as error:
        raise ModelMismatchError(f"{folder / SIDECAR_FILE}: {error}") from error
    path = folder / WEIGHTS_FILE
    shapes = _shapes(config)
    numbers = sum(shape.numel() for shape in shapes.values())
    data = _read_weights(path, config, numbers, sidecar["weights"].get("sha256"))
    try:
        weights = safetensors.torch.load(data)
    except SafetensorError as error:
        raise CorruptModelError(f"{path} is not a safetensors file ({error})") from error
    if set(weights) != set(shapes):
        odd = sorted(set(weights) ^ set(shapes))
        raise ModelMismatchError(f"{path} does not hold the tensors of {config}; odd: {odd[:5]}")
    for name, shape in shapes.items():
        if weights[name].shape != shape:
            raise ModelMismatchError(
                f"{path}: tensor {name} has shape {tuple(weights[name].shape)}, "
                f"{config} needs {tuple(shape)}"
            )
        if not weights[name].is_floating_point():
            raise ModelMismatchError(f"{path}: tensor {name} holds {weights[name].dtype}")
    check_finite(weights, str(path))
    model = RingRiftNetwork(config)
    # assign keeps the saved dtype; requires_grad follows the module's parameters.
    model.load_state_dict(weights, assign=True)
    return model.to(target).eval()
