"""Reading files whole whose sizes somebody else may have chosen: a file of a terabyte costs nothing
to make, and reading it would take all memory there is.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from ringrift_pipeline.store.errors import StoreError, naming

MOST = 16 << 20
"""Bytes of a JSON file of ours that are read: a plan of 10,000 generations' window has 600 kB, and a
window may have some 130,000 shards (more games a shard make larger windows)."""
MOST_LISTED = 64 << 20
"""Of one with an entry for every shard, or a line for every promotion."""
MOST_VALUES = 750_000
"""Values in it: each takes some hundred bytes once it is parsed, though two in its text."""


class TooLargeError(StoreError, ValueError):
    """A file that is larger than what it stands for can be, or no plain file."""


def read_bounded(path: str | os.PathLike[str], most: int = MOST) -> bytes:
    """The content of a plain file of at most ``most`` bytes.

    Raises TooLargeError, before anything is read, and OSError with its name. A pipe is not waited for.
    """
    with (
        naming(path),
        open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file,
    ):
        size = _size(os.fstat(file.fileno()), path, most)
        data = file.read(size)  # room for as much as is asked for is made at once
        while len(data) <= most and (more := file.read(1 << 16)):  # it grows while it is read
            data += more
    if len(data) > most:
        raise TooLargeError(f"{Path(path)} has more than {most} bytes")
    return data


def check_values(data: bytes) -> None:
    """Refuse JSON of more than `MOST_VALUES` values, twice as many where they are not on lines of their
    own, by the signs that begin or part them. Raises TooLargeError.
    """
    values = sum(map(data.count, (b",", b"[", b"{", b"\n")))
    if values > 2 * MOST_VALUES:  # in indented text each value has a line
        raise TooLargeError(f"it holds more than {MOST_VALUES} values")


def parse_json(data: bytes) -> Any:
    """What JSON of a file holds. Raises ValueError, of which TooLargeError is one, and
    RecursionError.
    """
    check_values(data)
    return json.loads(data)


def bounded_size(path: str | os.PathLike[str], most: int) -> int:
    """The size of a plain file of at most ``most`` bytes. Raises TooLargeError and OSError."""
    return _size(os.stat(path), path, most)


def _size(about: os.stat_result, path: str | os.PathLike[str], most: int) -> int:
    if not stat.S_ISREG(about.st_mode):
        raise TooLargeError(f"{Path(path)} is no plain file")
    if about.st_size > most:
        raise TooLargeError(f"{Path(path)} has {about.st_size} bytes, at most {most} can be")
    return about.st_size


def memory_here() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
