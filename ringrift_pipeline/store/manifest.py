"""Manifests: what is in an artefact's folder, by SHA-256, and the check of a folder against it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ringrift_pipeline.store.atomic import canonical_pieces, dump_json
from ringrift_pipeline.store.bounded import (
    MOST,
    MOST_LISTED,
    TooLargeError,
    check_values,
    parse_json,
    read_bounded,
)
from ringrift_pipeline.store.errors import (
    WELL_AGAIN,
    CorruptArtefactError,
    MissingArtefactError,
    StoreError,
    UnreadableArtefactError,
    naming,
)
from ringrift_pipeline.store.layout import MANIFEST, landed_when

FORMAT = 1
_REMEMBERED = 100_000  # files whose hash is kept in mind
_SETTLED = 2.0  # seconds since it was written that a file's times tell whether it was touched


class ManifestMismatch(Exception):
    """Internal: a folder, pointer or sealed file is not what it was when written."""


class UnreadableError(ManifestMismatch):
    """Internal: the disk refuses to read a file. It may be well again later: nothing is moved."""


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Reading a file: raises UnreadableError, with its name, where the disk cannot."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise UnreadableError(f"{name!r} cannot be read: {error.strerror}") from error


def refusal(path: Path, error: ManifestMismatch, action: str) -> CorruptArtefactError:
    """What is told of a file or folder that is not what it was, or that the disk refuses to read:
    then the action is another, for nothing may be moved.
    """
    if isinstance(error, UnreadableError):
        return UnreadableArtefactError(path, str(error), WELL_AGAIN)
    return CorruptArtefactError(path, str(error), action)


class NewerFormatError(StoreError):
    """Written by a newer version of the store."""


@dataclass(frozen=True)
class Artefact:
    """A landed, immutable folder of files.

    Attributes:
        path: the folder, absolute.
        config, generation, kind: where it belongs.
        metadata: what its maker wrote about it (JSON types).
        digest: 64 hex digits, SHA-256 over config, generation, kind and the files' names, sizes
            and hashes; metadata and time are not in it, so equal files give equal digests.
        created: ISO 8601 time in UTC at which it landed.
        files: name (posix, relative to `path`) -> ``{"size": bytes, "sha256": 64 hex digits}``.
        fetch: brings the folder here, for one that was looked at in a bucket without its files.
    """

    path: Path
    config: str
    generation: int
    kind: str
    metadata: dict[str, Any] = field(compare=False)
    digest: str
    created: str
    files: dict[str, dict[str, Any]] = field(compare=False, repr=False)
    fetch: Callable[[Artefact], None] | None = field(default=None, compare=False, repr=False)

    def __hash__(self) -> int:
        return hash((self.path, self.digest))

    def file(self, name: str) -> Path:
        """Path of one of its files, checked against the manifest (:func:`check_file`).

        Raises MissingArtefactError if the manifest has no such name, CorruptArtefactError, and
        BucketError where it has to be fetched.
        """
        if name not in self.files:
            raise MissingArtefactError(
                f"file {name!r} of artefact {self.path}", f"it holds: {', '.join(self.files)}"
            )
        if self.fetch is not None:
            self.fetch(self)
        path = self.path / name
        if os.path.realpath(path) != os.path.join(os.path.realpath(self.path), name):
            raise CorruptArtefactError(path, "it is a link", _AGAIN)
        check_file(path, self.files[name])
        return path

    def read_json(self, name: str) -> Any:
        """The parsed content of one of its JSON files. Raises CorruptArtefactError."""
        path = self.file(name)
        try:
            with reading(name):
                data = read_bounded(path, MOST_LISTED)
            return parse_json(data)
        except ManifestMismatch as error:
            raise refusal(path, error, _AGAIN) from error.__cause__
        except (ValueError, RecursionError) as error:
            raise CorruptArtefactError(
                path, f"it cannot be read as JSON ({error})", _AGAIN
            ) from None


# --- sealed JSON --------------------------------------------------------------------------------


def _digest(value: Any) -> str:
    """SHA-256 of the compact, key-sorted ASCII JSON of a normalized value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def sealed(value: dict[str, Any], what: str) -> dict[str, Any]:
    """`value` as it reads back, plus its own hash under ``"seal"``. Raises SerializationError."""
    value = normalize(value, what)
    if "seal" in value:
        raise StoreError(f"{what} has a key 'seal', which the store keeps for itself: rename it")
    return {**value, "seal": _digest(value)}


def sealed_bytes(value: dict[str, Any], what: str) -> bytes:
    """JSON text of `value` plus its own hash under ``"seal"``. Raises SerializationError, and StoreError
    for more than would be read again.
    """
    data = dump_json(sealed(value, what), canonical=True)
    try:
        check_values(data)
    except TooLargeError as error:
        raise StoreError(f"{what} cannot be kept: {error}") from None
    if len(data) > MOST:
        raise StoreError(f"{what} cannot be kept: it has {len(data)} bytes, at most {MOST} can be")
    return data


def unsealed(value: Any) -> dict[str, Any]:
    """The dictionary that `sealed` was given. Raises ManifestMismatch if it was changed."""
    if not isinstance(value, dict) or "seal" not in value:
        raise ManifestMismatch("it has no seal")
    inside = {name: item for name, item in value.items() if name != "seal"}
    try:
        same = value["seal"] == _digest(inside)
    except (ValueError, RecursionError):  # a NaN that was none; nested too deeply
        same = False
    if not same:
        raise ManifestMismatch("its content does not match its seal")
    return inside


def open_seal(data: bytes) -> dict[str, Any]:
    """The dictionary inside `sealed_bytes`. Raises ManifestMismatch if a byte of it changed."""
    try:
        value = parse_json(data)
    except TooLargeError as error:
        raise ManifestMismatch(str(error)) from None
    except (ValueError, RecursionError) as error:
        raise ManifestMismatch(f"it is not JSON ({error})") from None
    if not isinstance(value, dict) or "seal" not in value:
        raise ManifestMismatch("it has no seal")
    if not _is_canonical(value, data):
        raise ManifestMismatch("its text was changed")
    return unsealed(value)


def read_sealed(path: Path) -> tuple[bytes, dict[str, Any]]:
    """Text and content of a sealed file. Raises ManifestMismatch, FileNotFoundError, OSError."""
    try:
        with reading(path.name):
            data = read_bounded(path)
    except TooLargeError as error:
        raise ManifestMismatch(str(error)) from None
    return data, open_seal(data)


def _is_canonical(value: Any, data: bytes) -> bool:
    """Is `data` the text that `dump_json` makes of a parsed value? Where it is not, no more of that is
    made than up to there: of nested lists it may be many times as long.
    """
    end = 0
    try:
        for piece in canonical_pieces(value):
            if not data.startswith(piece, end):
                return False
            end += len(piece)
    except (ValueError, RecursionError):  # a parsed NaN has no text
        return False
    return end == len(data)


def normalize(value: dict[str, Any], what: str) -> dict[str, Any]:
    """`value` as it reads back: tuples become lists, keys strings. Raises SerializationError."""
    if not isinstance(value, dict):
        raise StoreError(f"{what} must be a dictionary, not a {type(value).__name__}")
    return json.loads(dump_json(value, what=what))


def require_fields(value: dict[str, Any], **kinds: type | tuple[type, ...]) -> None:
    """Check that `value` has fields of these types; numbers are not negative. Raises
    ManifestMismatch.

    Whoever can write a file can seal it: a seal says that nothing was damaged, not that all is well.
    """
    for name, kind in kinds.items():
        if name not in value:
            raise ManifestMismatch(f"its field {name!r} is missing")
        found = value[name]
        if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
            raise ManifestMismatch(f"its field {name!r} cannot be a {type(found).__name__}")
        if isinstance(found, int) and found < 0:
            raise ManifestMismatch(f"its field {name!r} cannot be {found}")


def relative_path(text: str) -> PurePosixPath:
    """A path that stays below the folder it is relative to. Raises ManifestMismatch."""
    path = PurePosixPath(text)
    if not text or "\0" in text or path.is_absolute() or ".." in path.parts:
        raise ManifestMismatch(f"it names {text[:100]!r}, which leads elsewhere")
    if not text.isprintable() or any(len(os.fsencode(part)) > 255 for part in path.parts):
        raise ManifestMismatch(f"it names {text[:100]!r}, which can be no file")
    return path


def _require_manifest(content: dict[str, Any]) -> None:
    require_fields(
        content,
        config=str,
        generation=int,
        kind=str,
        metadata=dict,
        digest=str,
        created=str,
        files=dict,
    )
    for name, about in content["files"].items():
        relative_path(name)
        if not isinstance(about, dict):
            raise ManifestMismatch(f"it does not describe its file {name!r}")
        require_fields(about, size=int, sha256=str)


# --- folders ------------------------------------------------------------------------------------


def _raise(error: OSError) -> None:
    raise error  # an unreadable folder is no proof that its files are missing


def walk_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and path of every file below `folder`, sorted by name.

    Raises ManifestMismatch for links, pipes and the like: an artefact is plain files.
    """
    entries = []
    for parent, folders, files in os.walk(folder, onerror=_raise):
        for name in [*folders, *files]:
            path = Path(parent) / name
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                entries.append((path.relative_to(folder).as_posix(), path))
            elif not stat.S_ISDIR(mode):
                raise ManifestMismatch(f"{path.relative_to(folder)} is no plain file")
    yield from sorted(entries)


_State = tuple[int, int, int]
_known: OrderedDict[tuple[int, int], tuple[_State, str]] = OrderedDict()  # by device and inode


def _state(about: os.stat_result) -> _State:
    return about.st_size, about.st_mtime_ns, about.st_ctime_ns


def _recall(about: os.stat_result) -> str | None:
    """The hash of a file that nothing has touched since this process hashed it."""
    found = _known.get((about.st_dev, about.st_ino))
    if found is None or found[0] != _state(about):
        return None
    with contextlib.suppress(KeyError):  # another thread has just dropped it
        _known.move_to_end((about.st_dev, about.st_ino))
    return found[1]


def _remember(about: os.stat_result, digest: str) -> None:
    if time.time() - about.st_mtime < _SETTLED:
        return  # another write within one tick of the file system's clock would leave no trace
    _known[about.st_dev, about.st_ino] = (_state(about), digest)
    while len(_known) > _REMEMBERED:
        with contextlib.suppress(KeyError):
            _known.popitem(last=False)


def hash_file(path: Path, remembered: bool = False) -> dict[str, Any]:
    """``{"size": bytes, "sha256": 64 hex digits}`` of a file, read in pieces.

    ``remembered`` takes what this process has hashed before, if the file was not touched since.
    """
    with naming(path), open(path, "rb") as file:
        about = os.fstat(file.fileno())
        digest = _recall(about) if remembered else None
        if digest is None:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            before, about = about, os.fstat(file.fileno())
            if _state(about) == _state(before):  # nobody wrote meanwhile
                _remember(about, digest)
        return {"size": about.st_size, "sha256": digest}


def check_file(path: Path, expected: dict[str, Any] | None = None) -> None:
    """Compare a file with what is expected of it, or with the manifest beside it, if there is one;
    in a folder with the name of a landed artefact there must be.

    For readers that are given a path: formats do not notice a flipped bit. What this process has
    verified and nobody touched since is not read again. Raises CorruptArtefactError; nothing is moved.
    """
    try:
        if expected is None:
            found = _manifest_of(path)
            if found is None:
                return
            folder, files = found
            expected = files.get(path.relative_to(folder).as_posix())
            if expected is None:
                raise ManifestMismatch("it is not in its manifest")
        with reading(path.name):
            size = path.stat().st_size
            if size != expected.get("size"):
                raise ManifestMismatch(f"it has {size} bytes instead of {expected.get('size')}")
            same = hash_file(path, remembered=True) == expected
        if not same:
            raise ManifestMismatch("it has another SHA-256 than when it was written")
    except FileNotFoundError:
        raise CorruptArtefactError(path, "it is not there", _AGAIN) from None
    except ManifestMismatch as error:
        raise refusal(path, error, _AGAIN) from error.__cause__


def check_folder(folder: Path) -> None:
    """:func:`check_file` of every file that the manifest of a folder names, where it has one."""
    if not (folder / MANIFEST).exists() and landed_when(folder.name) is None:
        return
    try:
        files = load_folder(folder, verify=False).files
    except ManifestMismatch as error:
        raise refusal(folder / MANIFEST, error, _AGAIN) from error.__cause__
    for name, about in files.items():
        check_file(folder / name, about)


def _manifest_of(path: Path) -> tuple[Path, dict[str, dict[str, Any]]] | None:
    """The folder with the manifest that names a file, and its entries; None if there is none.

    It lies beside the file, or in the folder above if that is an artefact's: other programs have
    files of that name as well. Raises ManifestMismatch, NewerFormatError.
    """
    if (path.parent / MANIFEST).exists():
        return path.parent, load_folder(path.parent, verify=False).files
    above = path.parent.parent
    for folder in (path.parent, above):
        if landed_when(folder.name) is not None:  # such a folder had one when it landed
            return folder, load_folder(folder, verify=False).files
    if not (above / MANIFEST).exists():
        return None
    try:
        return above, load_folder(above, verify=False).files
    except (ManifestMismatch, NewerFormatError):
        return None


_AGAIN = "open the artefact through a Store, which puts it aside and falls back, or make it anew"


def make_manifest(
    folder: Path,
    config: str,
    generation: int,
    kind: str,
    created: str,
    metadata: dict[str, Any],
) -> tuple[bytes, dict[str, Any]]:
    """Text and content of the manifest of `folder`. Raises StoreError for what cannot be kept."""
    try:
        files = {name: hash_file(path) for name, path in walk_files(folder)}
    except ManifestMismatch as error:
        raise StoreError(f"artefact {kind} of {config}: {error}; copy it into the folder") from None
    if MANIFEST in files:
        raise StoreError(
            f"artefact {kind} of {config} wrote a {MANIFEST}, which is the store's own: rename it"
        )
    identity = {"config": config, "generation": generation, "kind": kind, "files": files}
    content = {
        **identity,
        "format": FORMAT,
        "created": created,
        "metadata": normalize(metadata, f"metadata of {kind}"),
        "digest": _digest(identity),
    }
    return sealed_bytes(content, f"manifest of {kind}"), content


def as_artefact(path: Path, content: dict[str, Any]) -> Artefact:
    """The Artefact a manifest's content describes."""
    return Artefact(
        path=path,
        config=content["config"],
        generation=content["generation"],
        kind=content["kind"],
        metadata=content["metadata"],
        digest=content["digest"],
        created=content["created"],
        files=content["files"],
    )


def load_folder(path: Path, *, verify: bool) -> Artefact:
    """Read the manifest of `path` and, if `verify`, hash every file of the folder against it.

    Raises ManifestMismatch with the first difference, NewerFormatError, OSError.
    """
    try:
        with reading(MANIFEST):
            data = read_bounded(path / MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        raise ManifestMismatch(f"it has no {MANIFEST}") from None
    except TooLargeError as error:
        raise ManifestMismatch(f"{MANIFEST}: {error}") from None
    artefact = parse_manifest(data, path)
    if verify:
        _compare(path, artefact.files)
    return artefact


def parse_manifest(data: bytes, path: Path) -> Artefact:
    """What the text of a manifest says of the folder `path`. Raises ManifestMismatch,
    NewerFormatError.
    """
    try:
        content = open_seal(data)
    except ManifestMismatch as error:
        raise ManifestMismatch(f"{MANIFEST}: {error}") from None
    if content.get("format") != FORMAT:
        raise NewerFormatError(
            f"{path} has manifest format {content.get('format')!r}, this version reads {FORMAT}: "
            "install the version that wrote it"
        )
    _require_manifest(content)
    return as_artefact(path, content)


def _compare(path: Path, expected: dict[str, dict[str, Any]]) -> None:
    with reading(path.name):
        found = dict(walk_files(path))
    found.pop(MANIFEST, None)
    if missing := expected.keys() - found.keys():
        raise ManifestMismatch(f"missing file {min(missing)!r}")
    if extra := found.keys() - expected.keys():
        raise ManifestMismatch(f"file {min(extra)!r} is not in its manifest")
    for name, file in found.items():
        try:
            with reading(name):
                size = file.stat().st_size
                if size != expected[name]["size"]:
                    raise ManifestMismatch(
                        f"{name!r} has {size} bytes instead of {expected[name]['size']}"
                    )
                same = hash_file(file) == expected[name]
            if not same:
                raise ManifestMismatch(f"{name!r} has another SHA-256 than when it was written")
        except FileNotFoundError:
            raise ManifestMismatch(f"missing file {name!r}") from None
