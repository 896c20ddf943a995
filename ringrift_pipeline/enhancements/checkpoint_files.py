"""Checkpoint files read tensor by tensor, and their mean with the memory of one copy."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ringrift_pipeline.enhancements.argument_checks import check_device

logger = logging.getLogger(__name__)

MODEL_FILE = "model.safetensors"
# In a header's metadata: the hash of the whole file, and that there is one. One of the two names may
# itself be what was damaged. (Within a text quotes are escaped.)
_HASH, _SEALED = "file_sha256", "file_sealed_by"
_BLANK = b"0" * 64  # stands for the hash while the file is hashed
_HASH_PATTERN = re.compile(rf'"{_HASH}":"([^"]*)"'.encode())
_SEALED_PATTERN = f'"{_SEALED}":"'.encode()

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def average_checkpoints(
    checkpoint_paths: Sequence[str | os.PathLike[str]],
    device: str | torch.device | None = None,
) -> dict[str, Tensor]:
    """Mean of the weights in several safetensors files, in their own dtypes.

    One tensor of one file is read at a time; integer and boolean tensors are the last file's.

    Args:
        checkpoint_paths: files, or folders that hold a ``model.safetensors``.
        device: where the result goes; None: CPU.

    Raises:
        ValueError: no paths, a file that is missing or not safetensors (a pickle is never loaded:
            the message says how to save it anew) or damaged, or names and shapes that differ
            between files, all by path.
    """
    if device is not None:
        device = check_device("device", device)
    listed = isinstance(checkpoint_paths, Sequence) and not isinstance(checkpoint_paths, str)
    if not listed or not all(isinstance(path, str | os.PathLike) for path in checkpoint_paths):
        raise ValueError(f"checkpoint_paths must be a list of paths, got {checkpoint_paths!r:.80}")
    if not checkpoint_paths:
        raise ValueError("checkpoint_paths is empty")
    files = [Path(path) for path in checkpoint_paths]
    return mean_of_checkpoints([f / MODEL_FILE if f.is_dir() else f for f in files], device)


_PICKLES = (b"PK\x03\x04", b"\x80")  # how files of torch.save begin, and bare pickles


def unreadable(path: Path, error: Exception) -> str:
    """Why a file gives no tensors, and what to do about it."""
    try:
        with path.open("rb") as handle:
            pickled = handle.read(4).startswith(_PICKLES)
    except OSError:
        pickled = False
    if not pickled:
        return f"{path} is not a safetensors file: {error}"
    return (
        f"{path} is not a safetensors file but a pickle, as torch.save writes; a pickle can run "
        "code and is never loaded here. Where the model is, save it with safetensors.torch."
        "save_file({k: v.clone() for k, v in model.state_dict().items()}, "
        f"{path.with_suffix('.safetensors').name!r})"
    )


def check_hash(path: Path) -> bool:
    """Whether a safetensors file has a SHA-256 in its header, as `write_checkpoint` writes it; the
    file is read once. For one that has none, as those of others and of before, the log warns that
    damage cannot be told.

    Raises:
        ValueError: the file does not have the hash that its header names, by path.
    """
    found, named, _ = _hash(path)
    if named is None:
        logger.warning("checkpoint %s has no SHA-256: whether it is damaged cannot be told", path)
    elif named != found:
        raise ValueError(
            f"checkpoint {path} is damaged: it does not have the SHA-256 that its header names; "
            "restore it from a copy or save it again"
        )
    return named is not None


def _hash(path: Path) -> tuple[str, str | None, int]:
    """SHA-256 of a safetensors file with zeros for the hash in its header; that hash, "" where it
    should be there, None where not; and where it is, in bytes.
    """
    with path.open("rb") as handle:
        length = handle.read(8)
        header = handle.read(int.from_bytes(length, "little"))
        place = _HASH_PATTERN.search(header)
        if place is not None:
            header = header[: place.start(1)] + _BLANK + header[place.end(1) :]
        sealed = place is not None or _SEALED_PATTERN in header
        found = hashlib.sha256(length + header)
        block = memoryview(bytearray(1 << 20))
        while count := handle.readinto(block):
            found.update(block[:count])
    named = "" if place is None else place[1].decode(errors="replace")
    start = -1 if place is None else 8 + place.start(1)
    return found.hexdigest(), named if sealed else None, start


class CheckpointReader:
    """The tensors of one checkpoint, from memory or from a file, one at a time.

    A file's tensors are read, not mapped: mapped pages would count as memory, file after file. The
    file's hash is checked before its first tensor is read (`check_hash`).
    """

    def __init__(self, entry: Path | dict[str, Tensor]) -> None:
        self._tensors = entry if isinstance(entry, dict) else None
        self.label = "checkpoint in memory" if isinstance(entry, dict) else str(entry)
        self._data_start = 0
        self._header: dict[str, Any] = {}
        self._checked = False
        if isinstance(entry, dict):
            return
        if not entry.is_file():
            raise ValueError(f"checkpoint {entry} does not exist")
        try:
            with safe_open(str(entry), framework="pt", device="cpu"):
                pass  # checks the header, its offsets and the file's length
        except SafetensorError as error:
            raise ValueError(f"checkpoint {unreadable(entry, error)}") from error
        with entry.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            self._header = json.loads(handle.read(length))
        self._header.pop("__metadata__", None)
        self._data_start = 8 + length

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape by name."""
        if self._tensors is not None:
            return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        return {name: tuple(entry["shape"]) for name, entry in self._header.items()}

    def largest(self) -> int:
        """Bytes of the largest tensor that has to be read, 0 from memory."""
        spans = (entry["data_offsets"] for entry in self._header.values())
        return max((end - start for start, end in spans), default=0)

    def copies(self) -> dict[str, Tensor]:
        """All tensors by name, copies."""
        if self._tensors is not None:
            return {name: tensor.detach().clone() for name, tensor in self._tensors.items()}
        return {name: self.read(name) for name in self._header}

    def read(self, name: str, scratch: Tensor | None = None) -> Tensor:
        """The tensor itself from memory; from a file a fresh one, or one that lies in ``scratch``.

        Args:
            name: which one.
            scratch: uint8, of at least the tensor's bytes; the next read into it overwrites it.

        Raises:
            ValueError: the file is damaged, by path.
        """
        if self._tensors is not None:
            return self._tensors[name]
        if not self._checked:
            check_hash(Path(self.label))
            self._checked = True
        entry = self._header[name]
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:  # an exotic type: let the library map it
            with safe_open(self.label, framework="pt", device="cpu") as source:
                return source.get_tensor(name)
        start, end = entry["data_offsets"]
        raw = torch.empty(end - start, dtype=torch.uint8) if scratch is None else scratch
        raw = raw[: end - start]
        with open(self.label, "rb", buffering=0) as handle:
            handle.seek(self._data_start + start)
            view, done = raw.numpy().data, 0
            while done < len(view):
                count = handle.readinto(view[done:])
                if not count:
                    raise ValueError(f"checkpoint {self.label} ends within {name}")
                done += count
        return raw.view(dtype).reshape(entry["shape"])


@torch.no_grad()
def mean_of_checkpoints(
    entries: Sequence[Path | dict[str, Tensor]],
    device: str | torch.device | None = None,
    weights: Sequence[float] | None = None,
) -> dict[str, Tensor]:
    """Mean of the checkpoints, tensor by tensor, summed in float32 (float64 for float64).

    Args:
        entries: files, or state dicts in memory.
        device: where the result goes; None: where the tensors are.
        weights: one an entry, summing to 1; None: equal.

    Returns:
        Tensors in their own dtypes; integer and boolean ones are the last entry's.
    """
    readers = [CheckpointReader(entry) for entry in entries]
    shapes = readers[0].shapes()
    for reader in readers[1:]:
        check_match(shapes, reader.shapes(), reader.label)
    shares = [1.0] * len(readers) if weights is None else list(weights)
    # One buffer for all that is read: freed ones would not be used again, the allocator aligns.
    scratch = torch.empty(max(reader.largest() for reader in readers), dtype=torch.uint8)
    averaged: dict[str, Tensor] = {}
    for name in shapes:
        value = readers[-1].read(name, scratch)
        if value.is_floating_point() or value.is_complex():
            dtype = value.dtype
            total = widened(value) * shares[-1]
            for reader, share in zip(readers[:-1], shares[:-1], strict=True):
                total.add_(reader.read(name, scratch).to(total.device), alpha=share)
            value = (total.div_(len(readers)) if weights is None else total).to(dtype)
        else:
            value = value.clone()
        averaged[name] = value if device is None else value.to(device)
    return averaged


def check_match(
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    label: str = "state_dict",
) -> None:
    if expected.keys() != found.keys():
        odd = sorted(expected.keys() ^ found.keys())
        raise ValueError(f"{label}: tensors not in all checkpoints: {', '.join(odd[:5])}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise ValueError(f"{label}: {name} has shape {found[name]}, the others {shape}")


def checked_tensors(label: str, tensors: Any, *, may_be_empty: bool = False) -> dict[str, Tensor]:
    """Copies of the tensors of a saved state, by name.

    Raises:
        ValueError: no mapping of names to finite tensors, by ``label``.
    """
    if not isinstance(tensors, Mapping) or not (tensors or may_be_empty):
        raise ValueError(f"{label} must hold tensors by name, got {tensors!r:.80}")
    copies: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"{label}[{name!r}] must be a tensor, got {tensor!r:.80}")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{label}[{name!r}] is not finite")
        copies[name] = tensor.detach().clone()
    return copies


def checked_dtypes(label: str, names: Any, tensors: Mapping[str, Tensor]) -> dict[str, torch.dtype]:
    """Dtypes of these tensors by their names; ValueError by ``label``."""
    if not isinstance(names, Mapping) or names.keys() != tensors.keys():
        raise ValueError(f"{label} must name the dtype of every tensor of ema, got {names!r:.80}")
    dtypes: dict[str, torch.dtype] = {}
    for name, given in names.items():
        dtype = getattr(torch, str(given), None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"{label}[{name!r}] is no dtype of torch: {given!r:.80}")
        dtypes[name] = dtype
    return dtypes


def widened(tensor: Tensor) -> Tensor:
    low = tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64)
    return tensor.float() if low else tensor


def write_checkpoint(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Safetensors to a temporary name, fsync, rename, fsync of the folder.

    ``metadata`` goes into the header, and with it, as "file_sha256", the hash of the file as it is
    with 64 zeros there: of every tensor, name, shape and metadata.
    """
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        storage = value.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != value.nbytes:
            value = value.clone()  # tied weights and views: safetensors wants one tensor each
        seen.add(storage.data_ptr())
        plain[name] = value
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        save_file(
            plain, str(temporary), {**(metadata or {}), _SEALED: _HASH, _HASH: _BLANK.decode()}
        )
        with open(temporary, "r+b") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(length))
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))  # else by chance
            text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
            handle.seek(8)
            handle.write(text.ljust(length))
            handle.flush()
            found, _, place = _hash(temporary)
            handle.seek(place)
            handle.write(found.encode())
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


__all__ = [
    "MODEL_FILE",
    "CheckpointReader",
    "average_checkpoints",
    "check_hash",
    "check_match",
    "checked_dtypes",
    "checked_tensors",
    "mean_of_checkpoints",
    "unreadable",
    "widened",
    "write_checkpoint",
]
