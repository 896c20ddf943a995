"""Compiled kernels: one decorator, one cache that cannot be stale.

numba keeps its own cache per source file and misses a change in a *callee* that lives in
another file. We therefore give the cache a folder whose name is a hash of every source file
that may contain a kernel, of the compiler's version and of the processor: any edit, anywhere,
leads to a fresh folder. The folder lies in the user's cache directory, outside any data root;
set ``RINGRIFT_KERNEL_CACHE`` to put it elsewhere.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numba
import platformdirs

_PACKAGE = Path(__file__).resolve().parent.parent
#: Rooms that hold kernels; every Python file in them is part of the key.
KERNEL_ROOMS = ("game", "network", "search", "selfplay", "evaluation")
_F = TypeVar("_F", bound=Callable[..., Any])


def _processor() -> str:
    """Name and features of the processor that the kernels are compiled for."""
    import llvmlite.binding as llvm

    return f"{llvm.get_host_cpu_name()}:{llvm.get_host_cpu_features().flatten()}"


@functools.cache
def source_hash() -> str:
    """Hex digest over all kernel sources, the compiler and the processor (24 characters)."""
    digest = hashlib.sha256()
    for room in KERNEL_ROOMS:
        for path in sorted((_PACKAGE / room).rglob("*.py")):
            digest.update(f"{path.relative_to(_PACKAGE).as_posix()}\0".encode())
            digest.update(path.read_bytes())
    digest.update(f"{numba.__version__}:{sys.version_info[:3]}:{_processor()}".encode())
    return digest.hexdigest()[:24]


def cache_folder() -> Path:
    """Folder that holds the compiled kernels of exactly these sources."""
    root = os.environ.get("RINGRIFT_KERNEL_CACHE")
    base = Path(root) if root else Path(platformdirs.user_cache_dir("ringrift_pipeline"))
    return base / "kernels" / source_hash()


def _use_cache_folder() -> None:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    numba.config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]


_use_cache_folder()


def kernel(function: _F) -> _F:
    """Compile ``function`` on first use: no Python objects, no GIL, cached on disk."""
    compiled = numba.njit(cache=True, nogil=True, error_model="numpy", boundscheck=False)(function)
    return compiled  # type: ignore[no-any-return]


def inline_kernel(function: _F) -> _F:
    """Like :func:`kernel`, for tiny leaf functions that every caller should swallow."""
    compiled = numba.njit(
        cache=True, nogil=True, error_model="numpy", boundscheck=False, forceinline=True
    )(function)
    return compiled  # type: ignore[no-any-return]


@contextmanager
def announced(what: str, marker: str) -> Iterator[None]:
    """Say once, on standard error, that ``what`` is being compiled and how long it took.

    ``marker`` names the piece of the cache: when it was filled before, nothing is said.
    """
    done = cache_folder() / f"{marker}.ready"
    if done.exists():
        yield
        return
    print(f"Compiling {what} (once, then cached) ...", file=sys.stderr, flush=True)
    started = time.monotonic()
    yield
    done.touch()
    print(f"Compiled {what} in {time.monotonic() - started:.0f} s.", file=sys.stderr, flush=True)
