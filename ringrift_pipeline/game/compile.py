"""Compiled kernels: one decorator, one cache that cannot be stale.

numba keeps its own cache per source file and misses a change in a *callee* that lives in
another file. We therefore give the cache a folder whose name is a hash of every source file
that a kernel can reach, of the compiler's version and of the processor: any edit, anywhere,
leads to a fresh folder. A kernel of one room can reach its own room and those above it, so an
edit in ``search`` does not compile the rules again. The folder lies in the user's cache
directory, outside any data root; set ``RINGRIFT_KERNEL_CACHE`` to put it elsewhere. What lies in it
runs as code: it is the user's alone, and one that others could have written to is refused.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import platformdirs

from ringrift_pipeline.libraries.compiler import numba

_PACKAGE = Path(__file__).resolve().parent.parent
#: Rooms that hold kernels, top down; a kernel reaches its own room and those before it.
KERNEL_ROOMS = ("game", "network", "search", "selfplay", "training", "evaluation")
TELL_TIME = 15.0  # seconds between two signs of life of a compilation
_announced: set[tuple[str, str]] = set()
_telling: list[str] = []  # what the time is told of: the outermost of several
_F = TypeVar("_F", bound=Callable[..., Any])


class KernelCacheError(RuntimeError):
    """A folder of compiled kernels that cannot be used; says which, why and what to do."""


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
    return cache_root() / "kernels" / f"{room}-{source_hash(room)}"


def cache_root() -> Path:
    """Folder of everything compiled: ``RINGRIFT_KERNEL_CACHE``, else in the user's cache."""
    root = os.environ.get("RINGRIFT_KERNEL_CACHE")
    return Path(os.path.expanduser(root or platformdirs.user_cache_dir("ringrift_pipeline")))


@functools.cache
def private_folder(folder: Path) -> Path:
    """Make a folder below :func:`cache_root`, mode 0700, and look at who could have written there.

    Returns where it really is. Nobody but this user and root may own the folder, what is in it or
    any folder above it, or be able to write there; folders above may let others add what is their
    own (as /tmp does), and this user's group.

    Raises:
        KernelCacheError: somebody else could; or it cannot be made.
    """
    folder = folder.resolve()
    own = cache_root().resolve() / "kernels"
    try:
        for place in reversed([folder, *folder.parents]):
            if not place.exists():
                place.mkdir(mode=0o700, exist_ok=True)
            _check_place(place, ours=place.is_relative_to(own))
        for parent, folders, files in os.walk(folder):
            for name in (*folders, *files):
                with contextlib.suppress(FileNotFoundError):  # replaced by another process
                    _check_owner(Path(parent, name), os.lstat(os.path.join(parent, name)))
    except OSError as error:
        raise KernelCacheError(
            f"the folder of compiled kernels {folder} cannot be used ({error}); name another in "
            "RINGRIFT_KERNEL_CACHE"
        ) from error
    return folder


def _check_place(place: Path, ours: bool) -> None:
    """One folder on the way to the kernels; ``ours`` if it is for them alone."""
    about = place.lstat()
    _check_owner(place, about)
    group = about.st_mode & 0o020 and about.st_gid not in (0, os.getegid())
    shared = about.st_mode & stat.S_ISVTX and not ours  # what others add there stays theirs
    if (about.st_mode & 0o002 or group) and not shared:
        raise KernelCacheError(
            f"others can write to {place} (mode {about.st_mode & 0o7777:04o}), where compiled "
            "kernels, which run as code, would be taken from: "
            + ("remove it, it is made anew" if ours else "close it with chmod go-w")
            + ", or name a folder of your own in RINGRIFT_KERNEL_CACHE"
        )
    if ours and about.st_uid == os.geteuid() and about.st_mode & 0o077:
        place.chmod(0o700)


def _check_owner(place: Path, about: os.stat_result) -> None:
    if about.st_uid not in (0, os.geteuid()):
        raise KernelCacheError(
            f"{place} belongs to user {about.st_uid}: compiled kernels, which run as code, are not "
            "taken from there; remove it, or name a folder of your own in RINGRIFT_KERNEL_CACHE"
        )


def _compile(function: _F, **options: Any) -> _F:
    parts = function.__module__.split(".")
    room = parts[1] if parts[0] == _PACKAGE.name and len(parts) > 1 else ""
    folder = private_folder(cache_folder(room if room in KERNEL_ROOMS else "any"))
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


def is_compiled(room: str, marker: str) -> bool:
    """Was a piece of the room's cache (see :func:`announced`) filled before, from just these sources?"""
    return _ready(room, marker).exists()


def _ready(room: str, marker: str) -> Path:
    return cache_folder(room) / f"{marker}.ready"


@contextmanager
def announced(what: str, room: str, marker: str) -> Iterator[None]:
    """Say once, on standard error, that ``what`` is being compiled and how long it took.

    ``marker`` names the piece of the room's cache: when it was filled before, nothing is said.
    """
    if (room, marker) in _announced:
        yield
        return
    if is_compiled(room, marker):
        yield
        _announced.add((room, marker))
        return
    print(f"Compiling {what} (once, then cached) ...", file=sys.stderr, flush=True)
    started = time.monotonic()
    over = threading.Event()
    ticking = threading.Thread(target=_tell_time, args=(what, started, over), daemon=True)
    if not _telling:
        ticking.start()
    _telling.append(what)
    try:
        yield
    finally:
        _telling.remove(what)
        over.set()
        if ticking.is_alive():
            ticking.join()
    _announced.add((room, marker))
    _ready(room, marker).touch()
    print(f"Compiled {what} in {time.monotonic() - started:.0f} s.", file=sys.stderr, flush=True)


def _tell_time(what: str, started: float, over: threading.Event) -> None:
    while not over.wait(TELL_TIME):
        seconds = time.monotonic() - started
        print(f"Compiling still: {what}, {seconds:.0f} s ...", file=sys.stderr, flush=True)
