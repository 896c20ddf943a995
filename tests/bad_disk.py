"""A disk that refuses."""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest


class _BadSectors(io.FileIO):
    """A file that can be opened and asked for its size, as one on a disk with bad sectors can."""

    def _refused(self, *_: Any) -> NoReturn:
        raise OSError(errno.EIO, os.strerror(errno.EIO))  # the system names no file that is open

    read = readall = readinto = _refused  # type: ignore[assignment]


@contextmanager
def unreadable(place: Path) -> Iterator[None]:
    """The disk refuses to read a file, or all files below a folder: what opens them to read bytes."""
    whole = builtins.open

    def opened(file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
        is_path = isinstance(file, str | os.PathLike)
        if mode != "rb" or not is_path or not Path(file).is_relative_to(place):
            return whole(file, mode, *rest, **more)
        return io.BufferedReader(_BadSectors(file, "rb", opener=more.get("opener")))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "open", opened)
        patch.setattr(io, "open", opened)  # that of paths
        yield
