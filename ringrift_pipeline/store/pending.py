"""What has landed in the folder and is not in the bucket yet: a mark each, kept until it is.

The mark is made before the artefact gets its name, so that a kill at any moment leaves either no
artefact or one that is known to be missing in the bucket. Whoever uploads holds the mark by
``flock``; it is free when its process dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ringrift_pipeline.store.atomic import fsync_path, staged
from ringrift_pipeline.store.layout import POINTER, generation_key, is_name, parse_generation

_DIVIDER = "+"  # in no name


def kind_key(config: str, generation: int, kind: str) -> str:
    """The folder of a kind, relative to the data root or to the bucket."""
    return f"{config}/generations/{generation_key(generation)}/{kind}"


@dataclass(frozen=True, order=True)
class Place:
    """Where an artefact lies, in the folder and in the bucket: ``key`` is the same in both."""

    config: str
    generation: int
    kind: str
    name: str

    @property
    def key(self) -> str:
        return f"{kind_key(self.config, self.generation, self.kind)}/{self.name}"

    @property
    def pointer_key(self) -> str:
        return f"{kind_key(self.config, self.generation, self.kind)}/{POINTER}"

    def path(self, root: Path) -> Path:
        return root / self.key


class Pending:
    """The marks of one data root."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextlib.contextmanager
    def added(self, place: Place) -> Iterator[None]:
        """Note that an artefact of this place will have to be uploaded. Its mark is `held` from the first
        moment to the end of the block, and stays unless it is dropped there.
        """
        mark = self._mark(place)
        with staged(mark, b"") as temporary:
            os.replace(temporary, mark)
            fsync_path(self._folder)
            yield

    def drop(self, place: Place) -> None:
        """It is in the bucket, or gone for good."""
        with contextlib.suppress(FileNotFoundError):
            self._mark(place).unlink()
            fsync_path(self._folder)

    def has(self, place: Place) -> bool:
        return self._mark(place).exists()

    def places(self, *identity: str | int) -> list[Place]:
        """What is marked, of everything or of a config, generation, kind; oldest first of a kind."""
        start = "".join(f"{part}{_DIVIDER}" for part in identity)
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return []
        found = (_place(name) for name in names if name.startswith(start))
        return sorted(place for place in found if place is not None)

    @contextlib.contextmanager
    def held(self, place: Place) -> Iterator[bool]:
        """Hold a mark while its artefact is uploaded; False if it is gone, or somebody else's turn."""
        mark = self._mark(place)
        try:
            descriptor = os.open(mark, os.O_RDWR)
        except FileNotFoundError:
            yield False
            return
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                mine = os.path.samestat(os.stat(mark), os.fstat(descriptor))
            except (BlockingIOError, FileNotFoundError):
                mine = False
            yield mine
        finally:
            os.close(descriptor)

    def _mark(self, place: Place) -> Path:
        parts = (place.config, str(place.generation), place.kind, place.name)
        return self._folder / _DIVIDER.join(parts)


def _place(mark: str) -> Place | None:
    parts = mark.split(_DIVIDER)
    if len(parts) != 4 or not all(is_name(parts[i]) for i in (0, 2, 3)):
        return None
    if not parts[1].isdecimal() or parse_generation(f"{int(parts[1]):04d}") is None:
        return None
    return Place(parts[0], int(parts[1]), parts[2], parts[3])
