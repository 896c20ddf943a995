"""What is here of a bucket's artefacts: fetched once, checked, and dropped when room is needed.

The manifest's digest is the content hash: a folder that is here and is what its manifest, and the
pointer in the bucket, say is never fetched again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import time
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ringrift_pipeline.store import artefacts as local
from ringrift_pipeline.store.atomic import (
    ensure_folder,
    fsync_path,
    remove_tree,
    temporary_folder,
    temporary_name,
    write_bytes_atomic,
)
from ringrift_pipeline.store.attach import HIDDEN
from ringrift_pipeline.store.bounded import TooLargeError, read_bounded
from ringrift_pipeline.store.bucket import Bucket
from ringrift_pipeline.store.errors import (
    BucketSettingError,
    UnreliableHostError,
    VanishedFileError,
    no_file_gone,
)
from ringrift_pipeline.store.kinds import LOCAL_KINDS
from ringrift_pipeline.store.layout import MANIFEST, Layout, generation_key, is_name
from ringrift_pipeline.store.locks import hold, unheld
from ringrift_pipeline.store.manifest import (
    Artefact,
    ManifestMismatch,
    hash_file,
    load_folder,
    parse_manifest,
    reading,
)
from ringrift_pipeline.store.pending import Pending, Place

CACHE_VARIABLE = "RINGRIFT_CACHE_GB"
CACHE_GB = 50.0
GB = 10**9
IN_USE = 3600.0
"""Seconds after its last use in which a folder is never dropped: somebody may be reading it."""

_LOOK_EVERY = 300.0  # seconds between two walks through the folder, of all processes here
_LOCKS = 64  # files that keep two from fetching the same at once


def cache_budget() -> int:
    """Bytes that the artefacts here may take: ``$RINGRIFT_CACHE_GB``, else 50 GB. Raises
    BucketSettingError.
    """
    text = os.environ.get(CACHE_VARIABLE, "").strip()
    try:
        budget = float(text) if text else CACHE_GB
    except ValueError:
        budget = 0.0
    if not 0.0 < budget <= 1_000_000.0:
        raise BucketSettingError(
            f"{CACHE_VARIABLE} is {text!r}: write gigabytes, more than 0 and at most 1000000"
        )
    return int(budget * GB)


class Cache:
    """The artefacts' folders of a data root that has a bucket behind it. Pickles."""

    def __init__(self, layout: Layout, bucket: Bucket, pending: Pending) -> None:
        self._layout = layout
        self._bucket = bucket
        self._pending = pending

    def have(self, place: Place, verify: bool, digest: str | None = None) -> Artefact:
        """An artefact that is here, or in the bucket; with `verify` it is here then, else perhaps its
        manifest alone.

        Raises FileNotFoundError if neither has a manifest of it, ManifestMismatch for what is damaged
        in the bucket. What is damaged here alone is put aside and fetched again.
        """
        path = self._path(place)
        if path.is_dir() and not path.is_symlink():
            try:
                artefact = _identified(load_folder(path, verify=verify), place, digest)
                if self.use(path):
                    return artefact
            except ManifestMismatch as error:
                self.put_aside(place, str(error))
        return self._download(place, digest) if verify else self.look(place, digest)

    def use(self, path: Path) -> bool:
        """Note that a folder here is used now: it stays for `IN_USE` seconds. Returns whether it was there
        still.
        """
        try:
            descriptor = hold(path)
        except FileNotFoundError:
            return False
        try:
            os.utime(descriptor)
            return os.path.samestat(os.stat(path), os.fstat(descriptor))
        except FileNotFoundError:
            return False
        finally:
            os.close(descriptor)

    def put_aside(self, place: Place, reason: str) -> None:
        """Move a folder that is damaged here into the quarantine here."""
        identity = (place.config, place.generation, place.kind)
        reason = f"{reason} (the copy here)"
        local.quarantine(self._layout, *identity, self._path(place), reason)

    def look(self, place: Place, digest: str | None = None) -> Artefact:
        """An artefact by its manifest, which is kept beside the place of its folder. Raises as `have`."""
        path = self._path(place)
        kept = _kept_manifest(path)
        with (
            contextlib.suppress(FileNotFoundError, ManifestMismatch, TooLargeError),
            reading(MANIFEST),
        ):
            return _identified(parse_manifest(read_bounded(kept), path), place, digest)
        data, artefact = self._manifest(place, digest)
        self._layout.inside(path.parent, place.config)
        write_bytes_atomic(kept, data)
        return artefact

    def _manifest(self, place: Place, digest: str | None) -> tuple[bytes, Artefact]:
        """Text and content of a manifest in the bucket. Raises FileNotFoundError; ManifestMismatch for
        what arrives damaged twice, the same bytes; UnreliableHostError for what arrives damaged in
        another way each time.
        """
        damaged: set[bytes] = set()
        while True:
            try:
                seen = self._bucket.read(f"{place.key}/{MANIFEST}")
            except TooLargeError as error:
                raise ManifestMismatch(str(error)) from None
            if seen is None:
                raise FileNotFoundError(f"{self._bucket.at(place.key)} has no {MANIFEST}")
            try:
                found = parse_manifest(seen.data, self._path(place))
                return seen.data, _identified(found, place, digest)
            except ManifestMismatch as error:
                if seen.data in damaged:
                    raise
                damaged.add(seen.data)
                if len(damaged) == 3:
                    raise self._unreliable(place, str(error)) from None

    def _download(self, place: Place, digest: str | None) -> Artefact:
        """Fetch, check and keep an artefact. Not synced: what a power loss takes is fetched again.

        Raises as `have`, UnreliableHostError, and VanishedFileError for a file that goes meanwhile.
        """
        path = self._path(place)
        with self._only_one(place):
            if path.is_dir():  # another process was first
                try:
                    artefact = _identified(load_folder(path, verify=True), place, digest)
                    if self.use(path):
                        return artefact
                except ManifestMismatch as error:
                    self.put_aside(place, str(error))
            data, artefact = self._manifest(place, digest)
            _check_listing(artefact, self._bucket.listing(place.key))
            self.make_room(sum(about["size"] for about in artefact.files.values()))
            ensure_folder(self._layout.inside(path.parent, place.config))
            temporary, descriptor = temporary_folder(path.parent)
            try:
                with no_file_gone():
                    (temporary / MANIFEST).write_bytes(data)
                    self._fill(temporary, artefact, place)
                    self._check(temporary, artefact, place)
                    os.utime(descriptor)  # it may have taken longer than unused ones are kept
                    os.rename(temporary, path)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
                os.close(descriptor)
            return artefact

    def _fill(self, folder: Path, artefact: Artefact, place: Place) -> None:
        """Raises VanishedFileError if the folder went meanwhile; with it its manifest did."""
        for name, about in artefact.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).unlink(missing_ok=True)
            self._bucket.download(f"{place.key}/{name}", folder / name, about["size"])
        if not (folder / MANIFEST).exists():
            raise VanishedFileError(folder / MANIFEST)

    def _check(self, folder: Path, artefact: Artefact, place: Place) -> None:
        """Compare what was fetched with its manifest, and fetch it once more where it differs.

        Raises ManifestMismatch only if the bucket gives, to a third fetch that is written to no file,
        the very bytes that lie here: it has them so. What memory, disk or network of a machine damage
        is damaged in another way each time, or whole as long as it is not written; then
        UnreliableHostError.
        """
        try:
            load_folder(folder, verify=True)
            return
        except ManifestMismatch:
            self._fill(folder, artefact, place)
        try:
            load_folder(folder, verify=True)
        except ManifestMismatch as error:
            for name, about in artefact.files.items():
                here = hash_file(folder / name) if (folder / name).is_file() else about
                key = f"{place.key}/{name}"
                if here != about and here["sha256"] == self._bucket.hash(key, about["size"]):
                    raise
            raise self._unreliable(place, str(error)) from None

    def _unreliable(self, place: Place, reason: str) -> UnreliableHostError:
        host = socket.gethostname()
        return UnreliableHostError(
            self._bucket.url,
            f"{host} cannot fetch {self._bucket.at(place.key)}",
            f"it arrives damaged again and again ({reason}), though nothing shows that the bucket has "
            "it so",
            f"look after memory, disk and network of {host}, and let nothing work there until then; the "
            "bucket was left as it is, and other machines read it",
        )

    def _only_one(self, place: Place) -> contextlib.AbstractContextManager[Any]:
        from filelock import FileLock

        folder = self._layout.root / HIDDEN / "locks"
        ensure_folder(folder)
        number = zlib.crc32(place.key.encode()) % _LOCKS
        return FileLock(folder / f"{number:02d}.lock", thread_local=False)

    def _path(self, place: Place) -> Path:
        return place.path(self._layout.root)

    # --- making room ----------------------------------------------------------------------------

    def make_room(self, size: int) -> list[Path]:
        """Drop what was not used for longest until `size` more bytes keep to the budget, and return
        what went. Never what is not in the bucket yet, nor what was used within the last hour, nor what
        somebody has open (`locks.hold`).

        Does nothing if any process here has looked within five minutes: every step is one, and a walk
        through all that is here takes a while. The data root may be above the budget for so long.
        """
        budget = cache_budget()
        with contextlib.suppress(FileNotFoundError):
            if 0.0 <= time.time() - self._mark.stat().st_mtime < _LOOK_EVERY:
                return []
        with contextlib.suppress(OSError):  # a full disk must not keep it from being cleared
            ensure_folder(self._mark.parent)
            self._mark.touch()
        return self.trim(budget - size)

    @property
    def _mark(self) -> Path:
        """Was touched when somebody looked last."""
        return self._layout.root / HIDDEN / "looked"

    def trim(self, budget: int) -> list[Path]:
        """`make_room`, now, to leave `budget` bytes."""
        found = sorted(self._folders())
        left = sum(size for _, size, _ in found) - budget
        gone = []
        for used, size, path in found:
            if left <= 0 or _is_recent(used):
                break
            if self._drop_unused(path):
                gone.append(path)
                left -= size
        return gone

    def _drop_unused(self, path: Path) -> bool:
        """`drop`, unless somebody has used it since it was looked at, or holds it: has it open."""
        try:
            with unheld(path) as free:
                return free and not _is_recent(path.stat().st_mtime) and self.drop(path)
        except FileNotFoundError:
            return False

    def drop(self, path: Path) -> bool:
        """Remove a folder here, in one step for whoever looks. Returns whether it was there."""
        _kept_manifest(path).unlink(missing_ok=True)
        if path.parent.name in LOCAL_KINDS:  # has its pointer here
            with contextlib.suppress(ManifestMismatch):
                return local.remove_landed(path)
            return False
        doomed = temporary_name(path.parent)
        try:
            os.rename(path, doomed)
        except FileNotFoundError:
            return False
        fsync_path(path.parent)
        remove_tree(doomed)
        return True

    def _folders(self) -> Iterator[tuple[float, int, Path]]:
        """(Time of the last use, bytes, path) of what may go: folders of artefacts, windows as well,
        and what lies in quarantine here.
        """
        kinds = self._layout.root.glob("*/generations/*/*/")
        asides = self._layout.root.glob("*/quarantine/")
        waiting = {place.path(self._layout.root) for place in self._pending.places()}
        for folder in (*kinds, *asides):
            if not is_name(folder.name) or self._layout.leads_outside(folder):
                continue
            for path in local.folders(folder):
                if path in waiting:
                    continue
                with contextlib.suppress(FileNotFoundError):
                    yield path.stat().st_mtime, _bytes(path), path


def _is_recent(used: float) -> bool:
    return time.time() - used < IN_USE


def _bytes(path: Path) -> int:
    return sum(one.lstat().st_size for one in path.rglob("*") if one.is_file())


def _kept_manifest(path: Path) -> Path:
    return path.with_name(f".manifest-{path.name}")


def _identified(artefact: Artefact, place: Place, digest: str | None) -> Artefact:
    """The artefact, if it is that of the place. Raises ManifestMismatch."""
    found = (artefact.config, artefact.generation, artefact.kind)
    if found != (place.config, place.generation, place.kind):
        key = generation_key(artefact.generation)
        raise ManifestMismatch(f"it belongs to {artefact.config} {key} {artefact.kind}")
    if digest is not None and artefact.digest != digest:
        raise ManifestMismatch("its digest is not the one its pointer names")
    return artefact


def _check_listing(artefact: Artefact, there: dict[str, int]) -> None:
    """Compare a manifest with names and sizes in the bucket. Raises ManifestMismatch."""
    for name, about in artefact.files.items():
        if PurePosixPath(name).as_posix() != name or name == MANIFEST:
            raise ManifestMismatch(f"it names {name[:100]!r}, which can be no file")
        if name not in there:
            raise ManifestMismatch(f"missing file {name!r}")
        if there[name] != about["size"]:
            raise ManifestMismatch(f"{name!r} has {there[name]} bytes instead of {about['size']}")
