"""Compiled kernels: one decorator, one cache that cannot be stale.

numba keeps its own cache per source file and misses a change in a *callee* that lives in
another file. We therefore give the cache a folder whose name is a hash of every source file
that a kernel can reach, of the compiler's version and of the processor: any edit, anywhere,
leads to a fresh folder. A kernel of one room can reach its own room and those above it, so an
edit in ``search`` does not compile the rules again. The folder lies in the user's cache
directory, outside any data root; set ``RINGRIFT_KERNEL_CACHE`` to put it elsewhere.
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
from typing import Any, TypeVar, cast

import numba
import platformdirs

_PACKAGE = Path(__file__).resolve().parent.parent
#: Rooms that hold kernels, top down; a kernel reaches its own room and those before it.
KERNEL_ROOMS = ("game", "network", "search", "selfplay", "training", "evaluation")
_announced: set[tuple[str, str]] = set()
_F = TypeVar("_F", bound=Callable[..., Any])


def _processor() -> str:
    """Name and features of the processor that the kernels are compiled for."""
    import llvmlite.binding as llvm

    return f"{llvm.get_host_cpu_name()}:{llvm.get_host_cpu_features().flatten()}"


@functools.cache
def source_hash(room: str = KERNEL_ROOMS[-1]) -> str:
    """Hex digest (24 characters) over all kernel sources that ``room`` can reach.

    The package's folder (numba keeps kernels by it), the compiler's version and the processor are
    part of it. Tests and notebooks, which are no
    room, count as reaching every room.
    """
    digest = hashlib.sha256(f"{_PACKAGE}\0".encode())
    reach = KERNEL_ROOMS[: KERNEL_ROOMS.index(room) + 1] if room in KERNEL_ROOMS else KERNEL_ROOMS
    for name in reach:
        for path in sorted((_PACKAGE / name).rglob("*.py")):
            digest.update(f"{path.relative_to(_PACKAGE).as_posix()}\0".encode())
            digest.update(path.read_bytes())
    digest.update(f"{numba.__version__}:{sys.version_info[:3]}:{_processor()}".encode())
    return digest.hexdigest()[:24]


def cache_folder(room: str = KERNEL_ROOMS[-1]) -> Path:
    """Folder that holds the compiled kernels of exactly the sources that ``room`` can reach."""
    root = os.environ.get("RINGRIFT_KERNEL_CACHE")
    base = Path(root) if root else Path(platformdirs.user_cache_dir("ringrift_pipeline"))
    return base / "kernels" / f"{room}-{source_hash(room)}"


def _compile(function: _F, **options: Any) -> _F:
    parts = function.__module__.split(".")
    room = parts[1] if parts[0] == _PACKAGE.name and len(parts) > 1 else ""
    folder = cache_folder(room if room in KERNEL_ROOMS else "any")
    folder.mkdir(parents=True, exist_ok=True)
    njit: Any = numba.njit  # its annotations leave options out
    before = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    numba.config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]
    try:
        compiled: Any = njit(
            cache=True,
            nogil=True,
            error_model="numpy",
            boundscheck=False,
            no_cfunc_wrapper=True,
            **options,
        )(function)
    finally:
        numba.config.CACHE_DIR = before  # type: ignore[attr-defined]
    _share(compiled)
    if options.get("no_cpython_wrapper"):
        _seal(compiled)
    return cast(_F, compiled)


def _share(compiled: Any) -> None:
    """Compile the callee once for all: numba would do it anew for every literal argument."""
    resolve = compiled.get_call_template

    def resolve_widened(args: Any, kws: Any) -> Any:
        wide = {name: numba.types.unliteral(kind) for name, kind in dict(kws).items()}
        return resolve(tuple(numba.types.unliteral(kind) for kind in args), wide)

    compiled.get_call_template = resolve_widened


def _seal(compiled: Any) -> None:
    """Refuse calls from Python: without the wrapper that unpacks Python objects they would crash."""
    overloads, name = compiled.overloads, compiled.__name__

    def add_overload(result: Any) -> None:
        overloads[tuple(result.signature.args)] = result

    def refuse(*args: Any, **kws: Any) -> None:
        raise TypeError(f"{name} is called by kernels only (its Python form is {name}.py_func)")

    compiled.add_overload = add_overload
    compiled._compile_for_args = refuse


def kernel(function: _F) -> _F:
    """Compile ``function`` on first use: no Python objects, no GIL, cached on disk."""
    return _compile(function)


def inner_kernel(function: _F) -> _F:
    """Like :func:`kernel`, for what only other kernels call: it compiles in less time."""
    return _compile(function, no_cpython_wrapper=True)


def inline_kernel(function: _F) -> _F:
    """Like :func:`inner_kernel`, for tiny leaf functions that every caller should swallow."""
    return _compile(function, no_cpython_wrapper=True, forceinline=True)


@contextmanager
def announced(what: str, room: str, marker: str) -> Iterator[None]:
    """Say once, on standard error, that ``what`` is being compiled and how long it took.

    ``marker`` names the piece of the room's cache: when it was filled before, nothing is said.
    """
    if (room, marker) in _announced:
        yield
        return
    done = cache_folder(room) / f"{marker}.ready"
    if done.exists():
        yield
        _announced.add((room, marker))
        return
    print(f"Compiling {what} (once, then cached) ...", file=sys.stderr, flush=True)
    started = time.monotonic()
    yield
    _announced.add((room, marker))
    done.touch()
    print(f"Compiled {what} in {time.monotonic() - started:.0f} s.", file=sys.stderr, flush=True)
