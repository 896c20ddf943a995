"""Errors of the store. Each says what was wrong, where, and what to do; all of them pickle."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
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


WELL_AGAIN = "look after the disk; nothing was moved, and it is read again the next time"


class UnreadableArtefactError(CorruptArtefactError):
    """A file that the disk refuses to read (I/O error). It may be well again later: what is corrupt is
    fallen back from in the same way, but nothing was moved, and no pointer was dropped.
    """

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}. What to do: {self.action}"


class VanishedFileError(StoreError):
    """A file that was written for an artefact, and was gone before it landed; nothing has landed.

    Attributes: ``path`` (where it was).
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = Path(path)

    def __str__(self) -> str:
        return (
            f"{self.path} was written and is gone, so that nothing of what it belongs to is kept: "
            "run it again, and see that nothing else removes files there"
        )


@contextlib.contextmanager
def no_file_gone() -> Iterator[None]:
    """Raises VanishedFileError for a file that is missing here. What a bucket does not have has no name
    of a file, and stays a FileNotFoundError.
    """
    try:
        yield
    except FileNotFoundError as error:
        if error.filename is None:
            raise
        raise VanishedFileError(Path(os.fsdecode(error.filename))) from error


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """An OSError that names no file, as of one that is open, is told of with this one's name."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


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


class BucketSettingError(StoreError, ValueError):
    """A bucket that cannot be used as it is named, or that cannot do what the store rests on."""


class BucketError(Exception):
    """A bucket that refuses, at once for good or for longer than is waited for.

    No StoreError: who goes on without what is damaged must not go on without what cannot be asked.

    Attributes: ``bucket`` (its address), ``what`` (was tried), ``reason`` (what the bucket or the
    network said), ``action`` (what to do), ``code`` (the server's, or empty).
    """

    def __init__(self, bucket: str, what: str, reason: str, action: str, code: str = "") -> None:
        super().__init__(bucket, what, reason, action, code)
        self.bucket = bucket
        self.what = what
        self.reason = reason
        self.action = action
        self.code = code

    def __str__(self) -> str:
        return f"{self.bucket} refuses {self.what}: {self.reason}. What to do: {self.action}"


class UnreliableHostError(BucketError):
    """What arrives on this machine is damaged again and again, and nothing shows that the bucket is at
    fault: that is left alone, for everybody else can read what it has. Nobody falls back either.
    """

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}. What to do: {self.action}"
