"""Artefacts whose truth is a bucket; the folders of the data root are what is here of them.

An artefact has the same names in both. In the bucket

- its files are written first, its manifest next, and then the pointer, on the condition that it
  still is what was read: a landing that was named later stays current, whoever writes first;
- a pointer to nothing is an empty object: to delete one on a condition few servers allow.

What a manifest names by SHA-256 is fetched once, checked, and never again while it is here.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ringrift_pipeline.store import artefacts as local
from ringrift_pipeline.store.atomic import dump_json, fsync_path
from ringrift_pipeline.store.attach import HIDDEN, attach
from ringrift_pipeline.store.bounded import TooLargeError
from ringrift_pipeline.store.bucket import Bucket, Seen
from ringrift_pipeline.store.cache import Cache
from ringrift_pipeline.store.errors import (
    BucketError,
    CorruptArtefactError,
    MissingArtefactError,
    no_file_gone,
)
from ringrift_pipeline.store.kinds import LOCAL_KINDS
from ringrift_pipeline.store.layout import (
    MANIFEST,
    NOTE,
    POINTER,
    Layout,
    generation_key,
    is_name,
    landed_when,
    parse_generation,
)
from ringrift_pipeline.store.locks import folder_lock
from ringrift_pipeline.store.manifest import (
    Artefact,
    ManifestMismatch,
    UnreadableError,
    as_artefact,
    load_folder,
)
from ringrift_pipeline.store.pending import Pending, Place, kind_key
from ringrift_pipeline.store.records import Records
from ringrift_pipeline.store.unfinished import GIVEN_UP


class Remote:
    """What `Store` asks about artefacts where there is a bucket; see there. Pickles.

    Attributes: ``records`` (plans, champions, switches), ``pending`` (what is not uploaded yet).

    Every method raises BucketError.
    """

    def __init__(self, layout: Layout, bucket: Bucket) -> None:
        self.bucket = bucket
        self.pending = Pending(layout.root / HIDDEN / "pending")
        self.cache = Cache(layout, bucket, self.pending)
        self.records = Records(layout, bucket)
        self._layout = layout
        self._attached = False

    def attached(self) -> Remote:
        """Itself, once the data root is this bucket's cache. Raises BucketSettingError."""
        if not self._attached:
            attach(self._layout.root, self.bucket)
            self._attached = True
        return self

    # --- landing --------------------------------------------------------------------------------

    def land(
        self,
        temporary: Path,
        descriptor: int,
        identity: tuple[str, int, str],
        now: datetime,
        content: dict[str, Any],
    ) -> Artefact:
        """Land a finished folder here, then in the bucket. When the bucket refuses it has landed here
        all the same, and is uploaded by whoever asks for its kind next. The folder's lock, of
        `descriptor`, is given up as soon as it has its name.

        Raises FileNotFoundError if the folder, or a file of it, goes before the bucket has it; what is
        left of it is put aside by whoever asks for its kind next.
        """
        with contextlib.ExitStack() as marks:  # held: nobody else uploads it, or removes it
            place = self._named(temporary, identity, now, [], marks)
            with contextlib.suppress(OSError):  # readers would wait until it is uploaded
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            with self._kept_here(place):
                names = self.names(*identity)
            if names and names[-1] >= place.name:  # landed by a clock that is ahead of ours
                before, place = place, self._named(self._path(place), identity, now, names, marks)
                self.pending.drop(before)
            artefact = as_artefact(self._path(place), content)
            with self._kept_here(place):
                self._upload(place, artefact, {})
            os.utime(descriptor)  # it may have taken longer than unused ones are kept
            self.pending.drop(place)
        self.cache.make_room(0)  # a worker that only plays lands shards, and fetches nothing
        return replace(artefact, fetch=self.fetch)

    def _named(
        self,
        path: Path,
        identity: tuple[str, int, str],
        now: datetime,
        names: list[str],
        marks: contextlib.ExitStack,
    ) -> Place:
        """The place of a folder after it was given a name behind what has landed here, and behind `names`."""
        folder = self._layout.kind(*identity)
        with folder_lock(folder):
            place = Place(*identity, local.landing_name(folder, now, names))
            marks.enter_context(self.pending.added(place))
            os.rename(path, self._path(place))
            fsync_path(folder)
        return place

    def send_pending(self, *identity: str | int) -> None:
        """Upload what has landed here and is not in the bucket: of everything, or of a config, a
        generation, a kind. What another process is uploading is left to it.
        """
        for place in self.pending.places(*identity):
            self._send(place)

    @contextlib.contextmanager
    def _kept_here(self, place: Place) -> Iterator[None]:
        """A bucket that refuses is told of with what becomes of a landing that it does not have."""
        try:
            yield
        except BucketError as error:
            action = (
                f"{error.action}; {place.key} lies in {self._layout.root} on "
                f"{socket.gethostname()}, and is uploaded when this machine next asks for it; another "
                "machine makes it again"
            )
            raise BucketError(error.bucket, error.what, error.reason, action, error.code) from error

    def _send(self, place: Place) -> None:
        with self.pending.held(place) as mine, self._kept_here(place):
            if not mine:
                return
            path = self._path(place)
            if path.is_dir():
                try:
                    artefact = load_folder(path, verify=True)
                except UnreadableError:
                    return  # it stays marked: the disk may be well the next time
                except ManifestMismatch as error:
                    self.cache.put_aside(place, str(error))
                else:
                    with no_file_gone():
                        self._upload(place, artefact, self.bucket.listing(place.key))
            self.pending.drop(place)

    def _upload(self, place: Place, artefact: Artefact, there: dict[str, int]) -> None:
        """Write what is missing: files, manifest, pointer, in this order."""
        if MANIFEST not in there:
            for name, about in artefact.files.items():
                if there.get(name) != about["size"]:
                    self.bucket.upload(artefact.path / name, f"{place.key}/{name}")
            self.bucket.upload(artefact.path / MANIFEST, f"{place.key}/{MANIFEST}")
        self._point(place, artefact.digest)
        self.records.leave_sign(place.config)

    # --- pointers -------------------------------------------------------------------------------

    def _point(self, place: Place, digest: str, over: bool = True) -> None:
        """Make an artefact the current one of its kind, unless one that landed later is; with `over`
        off, unless any is.
        """
        data = local.pointer_bytes(place.name, digest)
        while True:
            seen = self.bucket.read(place.pointer_key)
            try:
                pointer = self._parsed(seen)
            except ManifestMismatch:
                pointer = None
            if pointer is not None and (not over or pointer["artefact"] >= place.name):
                return
            if self.bucket.write_if(place.pointer_key, data, seen):
                return

    def _parsed(self, seen: Seen | None) -> dict[str, Any] | None:
        """What a pointer says, None if there is none. Raises ManifestMismatch."""
        if seen is None or not seen.data:
            return None
        pointer = local.parse_pointer(seen.data)
        if not is_name(pointer["artefact"]):
            raise ManifestMismatch("it names no artefact")
        return pointer

    def _withdraw(self, place: Place) -> None:
        """Make sure that no pointer names an artefact."""
        while True:
            seen = self.bucket.read(place.pointer_key)
            pointer = self._parsed(seen)
            if pointer is None or pointer["artefact"] != place.name:
                return
            if self.bucket.write_if(place.pointer_key, b"", seen):
                return

    # --- reading --------------------------------------------------------------------------------

    def current(self, config: str, generation: int, kind: str, verify: bool) -> Artefact | None:
        """See `Store.current`. Without `verify` the files need not be here; `Artefact.file` fetches
        them then.
        """
        self.send_pending(config, generation, kind)
        action = (
            f"fall back with store.last_good({config!r}, {generation}, {kind!r}), or make it anew: "
            + local.advice(kind, config, generation)
        )
        pointer_key = f"{kind_key(config, generation, kind)}/{POINTER}"
        while True:
            seen = self.bucket.read(pointer_key)
            try:
                pointer = self._parsed(seen)
            except (ManifestMismatch, TooLargeError) as error:
                if self.bucket.read(pointer_key) != seen:
                    continue  # moved on, or damaged on its way here
                self._set_pointer_aside(config, generation, kind, seen, str(error))
                path = self._layout.pointer(config, generation, kind)
                raise CorruptArtefactError(path, f"{error}, in the bucket", action) from None
            if pointer is None:
                return None
            place = Place(config, generation, kind, pointer["artefact"])
            try:
                return self._have(place, verify, pointer["digest"])
            except (ManifestMismatch, FileNotFoundError) as error:
                if self.bucket.read(pointer_key) != seen:
                    continue  # moved on, or deleted, while it was read
                self.bucket.write_if(pointer_key, b"", seen)
                raise self._corrupt(place, str(error), action) from None

    def last_good(self, config: str, generation: int, kind: str) -> Artefact | None:
        """See `Store.last_good`."""
        with contextlib.suppress(CorruptArtefactError):
            found = self.current(config, generation, kind, verify=True)
            if found is not None:
                return found
        for name in reversed(self.names(config, generation, kind)):
            place = Place(config, generation, kind, name)
            try:
                artefact = self._have(place, verify=True)
            except FileNotFoundError:
                continue  # an upload that is under way, or was killed
            except ManifestMismatch as error:
                self._quarantine(place, str(error))
                continue
            if not self.pending.has(place):  # else another process is uploading it, and not done
                self._point(place, artefact.digest, over=False)
            return artefact
        return None

    def place(self, path: Path) -> Place | None:
        """What artefact of the bucket a path of the data root stands for, None if it is none."""
        found = local.place_of(self._layout, path)
        if found is None or found[2] in LOCAL_KINDS:
            return None
        return Place(*found, path.name) if all(map(is_name, (*found[::2], path.name))) else None

    def open(self, place: Place, verify: bool) -> Artefact:
        """See `Store.open`. Fetched if it is not here."""
        path = self._path(place)
        try:
            return self._have(place, verify or not path.is_dir())
        except FileNotFoundError:
            raise MissingArtefactError(
                f"artefact folder {path}, here or in {self.bucket.url}",
                f"name a folder that holds a {MANIFEST}",
            ) from None
        except ManifestMismatch as error:
            reason = str(error)
        with contextlib.suppress(ManifestMismatch):  # `current` reports a damaged pointer
            self._withdraw(place)
        raise self._corrupt(
            place,
            reason,
            f"use another of store.artefacts({place.config!r}, {place.generation}, {place.kind!r}), "
            f"or make it anew: {local.advice(place.kind, place.config, place.generation)}",
        )

    def fetch(self, artefact: Artefact) -> None:
        """Bring the files of an artefact here. Raises CorruptArtefactError, MissingArtefactError."""
        if not artefact.path.is_dir() and (place := self.place(artefact.path)) is not None:
            self.open(place, verify=True)

    def artefacts(self, config: str, generation: int, kind: str) -> list[Artefact]:
        """See `Store.artefacts`. A manifest is fetched where the folder is not here, no more."""
        self.send_pending(config, generation, kind)
        found = []
        for name in self.names(config, generation, kind):
            with contextlib.suppress(ManifestMismatch, FileNotFoundError):
                found.append(self._have(Place(config, generation, kind, name), verify=False))
        return found

    def kinds(self, config: str, generation: int) -> list[str]:
        """See `Store.kinds`: kinds with a pointer that is not empty."""
        self.send_pending(config, generation)
        folder = f"{config}/generations/{generation_key(generation)}"
        parts = ((name.split("/"), size) for name, size in self.bucket.listing(folder).items())
        return [
            p[0] for p, size in parts if len(p) == 2 and p[1] == POINTER and size and is_name(p[0])
        ]

    def names(self, config: str, generation: int, kind: str) -> list[str]:
        """Names of what of a kind has landed in the bucket, or is being uploaded, oldest first."""
        found = self.bucket.folders(kind_key(config, generation, kind))
        return [name for name in found if is_name(name)]

    def _have(self, place: Place, verify: bool, digest: str | None = None) -> Artefact:
        """See `Cache.have`. Files that are not here, or no more when they are asked for, are fetched."""
        artefact = self.cache.have(place, verify, digest)
        return replace(artefact, fetch=self.fetch)

    def _path(self, place: Place) -> Path:
        return place.path(self._layout.root)

    # --- removing -------------------------------------------------------------------------------

    def remove(self, config: str, generation: int, kind: str, keep: Path | None) -> None:
        """See `Store.remove`. What another process is uploading, here or elsewhere, is left to it: it
        would write a manifest over files that are gone.
        """
        folder = self._layout.kind(config, generation, kind)
        here = [path.name for path in local.folders(folder)]
        here += [place.name for place in self.pending.places(config, generation, kind)]
        left = False
        for name in sorted({*self.names(config, generation, kind), *here}):
            place = Place(config, generation, kind, name)
            if keep is not None and name >= keep.name:
                break
            if self._is_nobodys(place):
                self.remove_landed(place)
            else:
                left = True
        if keep is None and not left:
            self.bucket.delete(f"{kind_key(config, generation, kind)}/{POINTER}")
            local.remove_kind(folder)

    def _is_nobodys(self, place: Place) -> bool:
        """Does nobody upload an artefact any more? What is left of one is nobody's as well: it has its
        mark here, which is taken off then, or `is_given_up`.
        """
        if self.pending.has(place):
            with self.pending.held(place) as mine:
                if mine:
                    self.pending.drop(place)
                return mine
        names = self.bucket.listing(place.key)
        return not names or MANIFEST in names or self.is_given_up(place)

    def is_given_up(self, place: Place) -> bool:
        """Was nothing of an upload written for so long that it is none any more?"""
        times = (self.bucket.changed(f"{place.key}/{n}") for n in self.bucket.listing(place.key))
        newest = max((found[0] for found in times if found is not None), default=None)
        return newest is not None and (datetime.now(UTC) - newest).total_seconds() > GIVEN_UP

    def remove_landed(self, place: Place) -> bool:
        """Delete an artefact, here and in the bucket. Returns False if it was gone there already.

        Its pointer goes first, then its manifest, then its files: what an interruption leaves counts
        as an upload that was not finished. Raises ManifestMismatch for a damaged pointer.
        """
        self._withdraw(place)
        names = self.bucket.listing(place.key)
        for name in sorted(names, key=lambda name: name != MANIFEST):
            self.bucket.delete(f"{place.key}/{name}")
        self.pending.drop(place)
        self.cache.drop(self._path(place))
        return bool(names)

    # --- what there is --------------------------------------------------------------------------

    def contents(self, config: str) -> Iterator[tuple[Place, int, bool]]:
        """Every artefact of a config in the bucket, its bytes, and whether its upload was finished."""
        sizes: dict[Place, int] = {}
        whole = set()
        for key, size in self.bucket.listing(f"{config}/generations").items():
            parts = key.split("/")
            generation = parse_generation(parts[0])
            if generation is None or len(parts) < 4 or landed_when(parts[2]) is None:
                continue
            place = Place(config, generation, parts[1], parts[2])
            sizes[place] = sizes.get(place, 0) + size
            if parts[3:] == [MANIFEST]:
                whole.add(place)
        yield from ((place, size, place in whole) for place, size in sizes.items())

    def is_current(self, place: Place) -> bool:
        """Whether the pointer of its kind names an artefact. Raises ManifestMismatch."""
        pointer = self._parsed(self.bucket.read(place.pointer_key))
        return pointer is not None and pointer["artefact"] == place.name

    def quarantined(self, config: str) -> dict[str, int]:
        """What lies in the bucket's quarantine: name and bytes, notes left out."""
        sizes: dict[str, int] = {}
        for key, size in self.bucket.listing(f"{config}/quarantine").items():
            name = key.partition("/")[0]
            if not name.endswith(NOTE):
                sizes[name] = sizes.get(name, 0) + size
        return sizes

    def remove_quarantined(self, config: str, name: str) -> bool:
        """Delete something that lies in quarantine. Returns whether it was there."""
        keys = self.bucket.listing(f"{config}/quarantine")
        gone = [key for key in keys if key.partition("/")[0] in (name, name + NOTE)]
        for key in gone:
            self.bucket.delete(f"{config}/quarantine/{key}")
        return bool(gone)

    # --- quarantine -----------------------------------------------------------------------------

    def _corrupt(self, place: Place, reason: str, action: str) -> CorruptArtefactError:
        """The error for what is damaged in the bucket, after it was moved out of the way there."""
        moved = self._quarantine(place, reason)
        where = f"{reason}, in the bucket" + (f" (moved to {moved})" if moved else "")
        return CorruptArtefactError(self._path(place), where, action)

    def _quarantine(self, place: Place, reason: str) -> str:
        """Move an artefact of the bucket out of the way and note why beside it. Returns its new
        address, empty if there is nothing left of it.
        """
        names = self.bucket.listing(place.key)
        if not names:
            return ""
        target = _aside(place.config, place.generation, place.kind, place.name)
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # another process was first
                self.bucket.copy(f"{place.key}/{name}", f"{target}/{name}")
        about = local.note(self.bucket.at(place.key), reason)
        self.bucket.write(f"{target}{NOTE}", dump_json(about))
        for name in sorted(names, key=lambda name: name != MANIFEST):
            self.bucket.delete(f"{place.key}/{name}")
        return self.bucket.at(target)

    def _set_pointer_aside(
        self, config: str, generation: int, kind: str, seen: Seen | None, reason: str
    ) -> None:
        if seen is None:
            return
        key = f"{kind_key(config, generation, kind)}/{POINTER}"
        if self.bucket.write_if(key, b"", seen):
            target = _aside(config, generation, kind, POINTER)
            self.bucket.write(target, seen.data)
            about = local.note(self.bucket.at(key), reason)
            self.bucket.write(f"{target}{NOTE}", dump_json(about))


def _aside(config: str, generation: int, kind: str, name: str) -> str:
    parts = (generation_key(generation), kind, name, secrets.token_hex(4))
    return f"{config}/quarantine/{'-'.join(parts)}"
