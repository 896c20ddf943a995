"""A disk that refuses."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def unreadable(folder: Path) -> Iterator[None]:
    """The disk refuses to read the files below a folder, as one with bad sectors does."""
    whole = hashlib.file_digest

    def digest(file: Any, name: str) -> Any:
        if Path(file.name).is_relative_to(folder):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return whole(file, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashlib, "file_digest", digest)
        yield
