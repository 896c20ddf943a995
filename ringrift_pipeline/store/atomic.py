"""Writes that are either wholly there or not at all, whatever kills the writer.

A temporary file or folder carries an ``flock`` of its writer: the kernel drops it when the writer
dies, so that `remove_abandoned` tells the leftovers of the dead from the work of the living
without trusting process ids.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import numbers
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ringrift_pipeline.store.bounded import (
    MOST_LISTED,
    MOST_VALUES,
    TooLargeError,
    parse_json,
    read_bounded,
)
from ringrift_pipeline.store.errors import (
    WELL_AGAIN,
    CorruptArtefactError,
    SerializationError,
    UnreadableArtefactError,
)

TEMPORARY = ".ringrift-tmp-"
_CLAIM_ATTEMPTS = 100
_process = 0, ""  # this process's number, and a name that no other has


def fsync_path(path: Path) -> None:
    """Make the contents of a file, or the entries of a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_durable: set[Path] = set()  # folders that this process has seen to be durable in their parents


def ensure_folder(path: Path) -> None:
    """Make `path` and its missing parents, each durable in its own parent.

    So is the last one that was there already, once a process: whoever made it may have been killed
    before it was. (Those above it were durable before anything was made in them.)
    """
    missing = []
    while not path.is_dir():
        _durable.discard(path)
        missing.append(path)
        path = path.parent
    if path not in _durable:
        with contextlib.suppress(PermissionError):  # not ours: a parent that others have made
            fsync_path(path.parent)
        if len(_durable) > 10_000:
            _durable.clear()
        _durable.add(path)
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        fsync_path(folder.parent)
        _durable.add(folder)


# --- temporary names ----------------------------------------------------------------------------


def temporary_name(parent: Path) -> Path:
    """A name in `parent` that nothing has, and that a sweep knows as temporary."""
    return parent / f"{own_prefix()}{secrets.token_hex(8)}"


def own_prefix() -> str:
    """What the temporary names of this process begin with, and of no other, of no machine: in
    containers that share a folder processes have like numbers.
    """
    global _process
    if _process[0] != os.getpid():
        _process = os.getpid(), secrets.token_hex(4)
    return f"{TEMPORARY}{_process[0]}-{_process[1]}-"


def _claim(descriptor: int, path: Path) -> bool:
    """Lock what was just made at `path`; False if a sweep took it for abandoned in between."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # no flock here; a sweep cannot lock it either and leaves it alone
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(descriptor))


def temporaries(folder: Path, depth: int = 0) -> Iterator[Path]:
    """Temporary files and folders in `folder`, and up to `depth` folders below it."""
    try:
        with os.scandir(folder) as found:
            entries = list(found)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.name.startswith(TEMPORARY):
            yield Path(entry.path)
        elif depth and entry.is_dir():
            yield from temporaries(Path(entry.path), depth - 1)


def temporary_folder(parent: Path) -> tuple[Path, int]:
    """Make a folder in `parent` that is locked by this process. Returns it and its descriptor.

    Closing the descriptor gives the lock up.
    """
    for _ in range(_CLAIM_ATTEMPTS):
        path = temporary_name(parent)
        path.mkdir()
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        if _claim(descriptor, path):
            return path, descriptor
        os.close(descriptor)
    raise FileExistsError(f"{parent}: every temporary folder was swept away while being made")


def _temporary_file(parent: Path) -> tuple[Path, int]:
    for _ in range(_CLAIM_ATTEMPTS):
        path = temporary_name(parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if _claim(descriptor, path):
            return path, descriptor
        os.close(descriptor)
    raise FileExistsError(f"{parent}: every temporary file was swept away while being made")


def remove_tree(path: Path) -> None:
    """Remove a temporary folder beside whoever else may be sweeping it away."""
    while path.exists():
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)


def remove_unfinished(path: Path) -> None:
    """Remove a temporary file or folder of this process that another thread may be landing just now.

    It gets another name first: either it has landed and stays whole, or its landing fails.
    """
    taken = temporary_name(path.parent)
    try:
        path.rename(taken)
    except FileNotFoundError:
        return
    if taken.is_dir():
        shutil.rmtree(taken, ignore_errors=True)
    else:
        taken.unlink(missing_ok=True)


def remove_abandoned(path: Path) -> bool:
    """Remove a temporary file or folder if its writer is dead. Returns whether it was removed."""
    try:
        # of a pipe the end of another would be waited for
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.stat(path), os.fstat(descriptor)):
            return False
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError:  # locked by the living, already gone, or no flock on this file system
        return False
    finally:
        os.close(descriptor)
    return True


# --- whole files --------------------------------------------------------------------------------


@contextlib.contextmanager
def staged(path: Path, data: bytes) -> Iterator[Path]:
    """`data`, durable in a temporary file beside `path`; removed afterwards if still there."""
    ensure_folder(path.parent)
    temporary, descriptor = _temporary_file(path.parent)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
        os.close(descriptor)


def write_bytes_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace the file `path` by `data`: readers see the old or the new content, never a mixture.

    Missing folders are made. Durable when it returns. Raises OSError (disk full, no permission);
    the old content then stays.
    """
    path = Path(path)
    with staged(path, data) as temporary:
        os.replace(temporary, path)
        fsync_path(path.parent)


def write_bytes_once(path: Path, data: bytes) -> bool:
    """Make the file `path` holding `data` unless it exists. Returns whether this call made it.

    Of any number of concurrent callers exactly one returns True, and whoever returns can read
    the winner's whole content.
    """
    with staged(path, data) as temporary:
        try:
            os.link(temporary, path)
            won = True
        except FileExistsError:
            won = False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK):
                raise
            won = _replace_unless_exists(temporary, path)
        fsync_path(path.parent)
    return won


def _replace_unless_exists(temporary: Path, path: Path) -> bool:
    """`write_bytes_once` for file systems without hard links."""
    from ringrift_pipeline.store.locks import folder_lock

    with folder_lock(path.parent):
        if path.exists():
            return False
        os.replace(temporary, path)
        return True


# --- JSON ---------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """JSON form of what is not JSON but plainly means a number, a flag or a path."""
    if getattr(value, "ndim", None) == 0 and callable(getattr(value, "item", None)):
        return value.item()  # an array library's scalar
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError


def _culprit(value: Any, where: str, depth: int = 0) -> str | None:
    """The first place inside `value` that strict JSON cannot hold."""
    if depth > 100:
        return f"{where} is nested too deeply or contains itself"
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str | int | float | bool | None):
                return f"{where} has the key {key!r}, which is no string"
            if found := _culprit(item, f"{where}[{key!r}]", depth + 1):
                return found
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            if found := _culprit(item, f"{where}[{index}]", depth + 1):
                return found
    elif isinstance(value, float) and not math.isfinite(value):
        return f"{where} is {value!r}; write None for an unknown number"
    elif not isinstance(value, str | int | float | None):
        try:
            plain = _plain(value)
        except TypeError:
            return f"{where} is a {type(value).__name__}"
        return _culprit(plain, where, depth + 1)
    return None


def dump_json(value: Any, *, what: str = "the value", canonical: bool = False) -> bytes:
    """Strict JSON (no NaN) in ASCII with a final newline; `canonical` sorts the keys.

    Numpy and torch scalars and paths are turned into numbers and strings. Raises
    SerializationError naming the place inside `what` that cannot be written.
    """
    try:
        text = json.dumps(value, indent=1, allow_nan=False, default=_plain, sort_keys=canonical)
    except (TypeError, ValueError, RecursionError) as error:
        place = _culprit(value, what) or f"{what}: {error}"
        raise SerializationError(f"cannot be written as JSON: {place}") from None
    return text.encode("ascii") + b"\n"


def canonical_pieces(value: Any) -> Iterator[bytes]:
    """The canonical text of `dump_json`, piece by piece, of a value that was parsed from JSON.
    Raises ValueError, RecursionError.
    """
    encoder = json.JSONEncoder(indent=1, allow_nan=False, sort_keys=True)
    for piece in encoder.iterencode(value):
        yield piece.encode("ascii")
    yield b"\n"


def write_json_atomic(path: str | os.PathLike[str], obj: Any) -> None:
    """`write_bytes_atomic` of `obj` as strict, indented JSON. Raises SerializationError, OSError."""
    write_bytes_atomic(path, dump_json(obj, what=Path(path).name))


def append_jsonl(path: str | os.PathLike[str], obj: Any) -> None:
    """Append `obj` to `path` as one line of strict JSON, durable when it returns.

    Concurrent appenders never mix lines. A line that a killed writer left unfinished is cut off
    first. Missing folders are made. Raises SerializationError, OSError.
    """
    path = Path(path)
    try:
        text = json.dumps(obj, allow_nan=False, default=_plain)
    except (TypeError, ValueError, RecursionError):
        dump_json(obj, what=path.name)
        raise
    line = text.encode("ascii") + b"\n"
    ensure_folder(path.parent)
    created = not path.exists()
    with open(path, "a+b", buffering=0) as file:
        with contextlib.suppress(OSError):  # without flock a lone writer is still right
            fcntl.flock(file, fcntl.LOCK_EX)
        end = _end_of_last_line(file)
        file.truncate(end)
        try:
            view = memoryview(line)
            while view:
                view = view[file.write(view) :]
            os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise
    if created:
        fsync_path(path.parent)


def _end_of_last_line(file: Any) -> int:
    """Offset just behind the last newline of an open binary file."""
    position = file.seek(0, os.SEEK_END)
    while position > 0:
        start = max(0, position - 4096)
        file.seek(start)
        newline = file.read(position - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        position = start
    return 0


def read_jsonl(path: str | os.PathLike[str]) -> list[Any]:
    """The values in `path`, one a line; an empty list if it does not exist.

    A last line without its newline was never acknowledged as written and is left out. Any other
    line that does not parse raises CorruptArtefactError with its number, and a disk that refuses to
    read it UnreadableArtefactError.
    """
    path = Path(path)
    try:
        data = read_bounded(path, MOST_LISTED)
        if data.count(b"\n") > MOST_VALUES:
            raise TooLargeError(f"it has more than {MOST_VALUES} lines")
    except FileNotFoundError:
        return []
    except TooLargeError as error:
        raise CorruptArtefactError(path, str(error), "restore it from a copy") from None
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        reason = f"it cannot be read: {error.strerror}"
        raise UnreadableArtefactError(path, reason, WELL_AGAIN) from error
    values = []
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            values.append(parse_json(line))
        except (ValueError, RecursionError):
            raise CorruptArtefactError(
                path, f"line {number} is not JSON", f"repair or delete line {number} by hand"
            ) from None
    return values
