"""Errors of the store. Each says what was wrong, where, and what to do; all of them pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class StoreError(Exception):
    """Base class of everything the store raises on purpose."""


class InvalidNameError(StoreError, ValueError):
    """A config, kind, lock or file name, or a generation number, that cannot be a path part."""


class OutsideError(StoreError):
    """A link below the data root that leads to somewhere else."""


class SerializationError(StoreError, TypeError):
    """A value that strict JSON cannot hold (NaN, infinity, an unknown type, a cycle)."""


class MissingArtefactError(StoreError, LookupError):
    """Something that should exist does not.

    Attributes: ``what`` (a description), ``action`` (what makes it).
    """

    def __init__(self, what: str, action: str) -> None:
        super().__init__(what, action)
        self.what = what
        self.action = action

    def __str__(self) -> str:
        return f"{self.what} does not exist; {self.action}"


class CorruptArtefactError(StoreError):
    """Files that do not match their manifest, pointer or seal.

    Attributes: ``path`` (where it was found), ``reason``, ``action`` (what to do), ``quarantined``
    (where it was moved, or None when it was left in place).
    """

    def __init__(
        self, path: Path, reason: str, action: str, quarantined: Path | None = None
    ) -> None:
        super().__init__(path, reason, action, quarantined)
        self.path = Path(path)
        self.reason = reason
        self.action = action
        self.quarantined = quarantined

    def __str__(self) -> str:
        moved = f" It was moved to {self.quarantined}." if self.quarantined else ""
        return f"{self.path} is corrupt: {self.reason}.{moved} What to do: {self.action}"


class LockedError(StoreError):
    """A named lock that somebody else holds.

    Attributes: ``name``, ``path`` (the lock file), ``holder`` (``{"pid", "host", "since",
    "command"}``, or None while the holder has not written it yet).
    """

    def __init__(self, name: str, path: Path, holder: dict[str, Any] | None) -> None:
        super().__init__(name, path, holder)
        self.name = name
        self.path = Path(path)
        self.holder = holder

    def __str__(self) -> str:
        if self.holder is None:
            who = "another process that has only just taken it"
        else:
            h = self.holder
            who = f"process {h['pid']} on {h['host']} since {h['since']} ({h['command']})"
        return (
            f"{self.name} is locked by {who}; wait for it to finish or stop that process. "
            f"The lock file is {self.path} and need not be deleted: a dead process holds no lock."
        )
