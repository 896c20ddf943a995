"""Locks: named ones that people meet, and brief ones on folders that the store uses inside.

Both are ``flock`` underneath, so the kernel frees them the moment their process dies. Process ids
are for people to read: no lock is held or free because of one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ringrift_pipeline.store.atomic import ensure_folder, write_json_atomic
from ringrift_pipeline.store.bounded import parse_json, read_bounded
from ringrift_pipeline.store.errors import LockedError

_UNSUPPORTED = {errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
HOLDER = ".holder.json"

# Locks that say that somebody works on a generation: the command line, a training, an ablation.
WORK = ("generation", "training", "ablation")


def held(folder: Path) -> set[str]:
    """Names of the locks in a folder that somebody holds, as their holders have written.

    Asks no lock whose holder can be looked at: whoever wants one at that moment would be refused it.
    Of another machine's, or another container's, nothing can be seen but the lock.
    """
    names = set()
    for path in folder.glob(f"*{HOLDER}"):
        holder = _read_holder(path)
        if holder is None:
            continue
        name = path.name.removesuffix(HOLDER)
        if holder["host"] == socket.gethostname() or _is_locked(folder / f"{name}.lock"):
            names.add(name)
    return names


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # held, or nothing can be known here
        return True
    finally:
        os.close(descriptor)
    return False


@contextlib.contextmanager
def named_lock(path: Path, label: str, timeout: float) -> Iterator[Path]:
    """Hold the lock file `path`; `label` names it in errors. See `Store.lock`."""
    from filelock import FileLock, Timeout

    ensure_folder(path.parent)
    holder_file = path.with_suffix(HOLDER)
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=timeout)
    except (Timeout, RuntimeError):  # RuntimeError: this very thread holds it, waiting is futile
        raise LockedError(label, path, _read_holder(holder_file)) from None
    try:
        write_json_atomic(holder_file, _describe_self())
        yield path
    finally:
        try:
            holder_file.unlink(missing_ok=True)
        finally:
            lock.release()


def _describe_self() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "born": _born(os.getpid()),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0] or "python").name, *sys.argv[1:]])[:200],
    }


def _read_holder(path: Path) -> dict[str, Any] | None:
    try:
        holder = parse_json(read_bounded(path))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(holder, dict) or not {"pid", "host", "since", "command"} <= holder.keys():
        return None
    if holder["host"] == socket.gethostname() and not _is_running(holder):
        return None  # left by a process that died; the lock has a newer holder
    return holder


def _is_running(holder: dict[str, Any]) -> bool:
    try:
        os.kill(holder["pid"], 0)
    except (ProcessLookupError, OverflowError, TypeError):
        return False
    except PermissionError:
        pass
    born = _born(holder["pid"])
    return born is None or holder.get("born") in (None, born)  # else its number was given again


def _born(pid: int) -> str | None:
    """When a process began, as the kernel counts, and in which start of the computer; None where
    that cannot be read.
    """
    try:
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        return f"{ticks} {Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
    except (OSError, IndexError):
        return None


def hold(folder: Path) -> int:
    """Hold a folder, beside whoever else does, so that no cache drops it. Returns a descriptor: to close
    it is to let go, and the kernel does with the process. Raises OSError if it is gone.

    On file systems without ``flock`` nothing is held.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            os.close(descriptor)
            raise
    return descriptor


@contextlib.contextmanager
def unheld(folder: Path) -> Iterator[bool]:
    """Whether nobody has a `hold` of a folder; nobody gets one before the block ends. Raises OSError if
    it is gone.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    free = True
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        yield free
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold `folder` exclusively for a few file operations, waiting for whoever has it.

    Guards pointers against a reader that quarantines what they named while a writer moves them on.
    On file systems without ``flock`` for folders it does nothing; pointer writes stay atomic.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        yield
    finally:
        os.close(descriptor)
