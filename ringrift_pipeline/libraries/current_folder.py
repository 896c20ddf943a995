"""The current folder may be a data root that somebody has sent: no settings are taken from there."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_patching = threading.RLock()


class CurrentFolderError(ImportError):
    """A library that may have taken settings from the current folder; says what to do."""


@contextmanager
def unread(file: str, library: str, instead: str) -> Iterator[None]:
    """In the body ``library`` is imported as if there were no ``file`` in the current folder.

    If there is one, a warning names it, and ``instead`` where such settings are taken from. Nothing is
    done where there is none, or where the library was imported before.

    Raises:
        CurrentFolderError: there is one, and the library has not asked `os.path.exists` for it: this
            version may look for it in another way.
    """
    if library in sys.modules or not os.path.exists(file):
        yield
        return
    place = os.path.abspath(file)
    warnings.warn(
        f"{place} is not read: what lies in the current folder may be somebody else's; settings of "
        f"{library} are taken from {instead}",
        stacklevel=3,
    )
    asked = False
    with _patching:
        before = os.path.exists

        def exists(path: Any) -> bool:
            nonlocal asked
            if path == file:
                asked = True
                return False
            return before(path)

        os.path.exists = exists
        try:
            yield
        finally:
            os.path.exists = before
    if not asked:
        raise CurrentFolderError(
            f"{library} may have taken settings from {place}, as this version of it does not look for "
            "that file in the way that is known here: remove the file, or start in another folder"
        )
