"""Artefacts in a data root: pointers, reading, quarantine, falling back."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ringrift_pipeline.store.atomic import (
    ensure_folder,
    fsync_path,
    remove_tree,
    temporary_name,
    write_bytes_atomic,
    write_json_atomic,
)
from ringrift_pipeline.store.bounded import TooLargeError, read_bounded
from ringrift_pipeline.store.errors import CorruptArtefactError, UnreadableArtefactError
from ringrift_pipeline.store.layout import (
    NOTE,
    PLAN,
    POINTER,
    Layout,
    generation_key,
    landed_when,
    parse_generation,
)
from ringrift_pipeline.store.locks import folder_lock
from ringrift_pipeline.store.manifest import (
    Artefact,
    ManifestMismatch,
    UnreadableError,
    load_folder,
    open_seal,
    reading,
    relative_path,
    require_fields,
    sealed_bytes,
)

_log = logging.getLogger(__name__)

CLOCK_SLACK = timedelta(days=1)  # by which the clock may have been set back
LAST = datetime.max.replace(tzinfo=UTC)  # the last microsecond of the year 9999


# --- pointers -----------------------------------------------------------------------------------


def write_pointer(artefact: Artefact) -> None:
    """Make `artefact` the current one of its kind. Hold `folder_lock` of the kind's folder."""
    data = pointer_bytes(artefact.path.name, artefact.digest)
    write_bytes_atomic(artefact.path.parent / POINTER, data)


def pointer_bytes(name: str, digest: str) -> bytes:
    """Text of a pointer to the folder `name`."""
    return sealed_bytes({"artefact": name, "digest": digest}, POINTER)


def read_pointer(path: Path) -> tuple[bytes, dict[str, Any]] | None:
    """Text and content of a pointer; None if there is none. Raises ManifestMismatch; UnreadableError,
    which is one, where the disk refuses.
    """
    try:
        with reading(path.name):
            data = read_bounded(path)
    except FileNotFoundError:
        return None
    except TooLargeError as error:
        raise ManifestMismatch(str(error)) from None
    return data, parse_pointer(data)


def parse_pointer(data: bytes) -> dict[str, Any]:
    """What the text of a pointer says. Raises ManifestMismatch."""
    content = open_seal(data)
    require_fields(content, artefact=str, digest=str)
    if len(relative_path(content["artefact"]).parts) != 1:
        raise ManifestMismatch("it names no folder beside it")
    return content


def folders(kind_folder: Path) -> list[Path]:
    """Landed folders of one kind, oldest first (names sort in the order of landing)."""
    try:
        entries = list(kind_folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = (p for p in entries if not p.name.startswith(".") and p.is_dir())
    return sorted(p for p in found if not p.is_symlink())


def landed_at(folder: Path) -> datetime | None:
    """When a folder landed, by its name; None for a name that the store did not give."""
    return landed_when(folder.name)


def landing_name(kind_folder: Path, now: datetime, others: Iterable[str] = ()) -> str:
    """A name for what lands now. Names sort in the order of landing even if the clock was turned
    back since the last one, but for a folder that claims to have landed at `LAST`: nothing could be
    behind that. `others` have landed elsewhere. Hold `folder_lock` of the kind's folder.
    """
    names = [*(folder.name for folder in folders(kind_folder)), *others]
    times = [time for time in map(landed_when, names) if time is not None and time < LAST]
    if times and now <= max(times):
        now = max(times) + timedelta(microseconds=1)
    return f"{now:%Y%m%dT%H%M%S.%f}Z-{secrets.token_hex(4)}"


def signs(layout: Layout, config: str) -> tuple[datetime | None, int]:
    """See `Store.signs`. What landed last is mostly found first: the names in the other kinds'
    folders are then not read, for nothing has been put into these since.
    """
    newest: datetime | None = None
    mark = 0
    for generation in reversed(layout.planned(config)):
        folder = layout.generation(config, generation)
        times: list[datetime | None] = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            plan = os.stat(folder / PLAN)
            times.append(_changed(plan))
            mark += plan.st_mtime_ns
            for kind in os.scandir(folder):
                with contextlib.suppress(FileNotFoundError):
                    if not kind.is_dir():
                        continue
                    if newest is None or _changed(kind.stat()) > newest - CLOCK_SLACK:
                        times += map(landed_at, folders(Path(kind.path)))
                    mark += os.stat(os.path.join(kind.path, POINTER)).st_mtime_ns
        newest = max((time for time in (newest, *times) if time is not None), default=None)
    return newest, mark


def _changed(about: os.stat_result) -> datetime:
    return datetime.fromtimestamp(about.st_mtime, UTC)


# --- removing -----------------------------------------------------------------------------------


def remove_landed(path: Path) -> bool:
    """Delete a landed folder for good. Returns False if it was gone already.

    Its pointer goes first, then the folder gets a temporary name, then its files go: at no moment
    does a pointer name something that is not whole. What an interruption leaves under the temporary
    name is swept. Raises ManifestMismatch for a damaged pointer, which says not what it names.
    """
    folder = path.parent
    with folder_lock(folder):
        pointer = read_pointer(folder / POINTER)
        if pointer is not None and pointer[1]["artefact"] == path.name:
            (folder / POINTER).unlink()
            fsync_path(folder)
        doomed = temporary_name(folder)
        try:
            os.rename(path, doomed)
        except FileNotFoundError:
            return False
        fsync_path(folder)
    remove_tree(doomed)
    return True


def remove_kind(folder: Path) -> None:
    """Delete a kind's folder with all that has landed there; it is gone in one step."""
    doomed = temporary_name(folder.parent)
    try:
        os.rename(folder, doomed)
    except FileNotFoundError:
        return
    fsync_path(folder.parent)
    remove_tree(doomed)


# --- reading ------------------------------------------------------------------------------------


def advice(kind: str, config: str, generation: int) -> str:
    """What makes an artefact of `kind`, as a sentence part."""
    if kind.startswith("selfplay") or kind == "plan":
        verb = "selfplay"
    elif kind == "evaluation":
        verb = "evaluate"
    else:
        verb = "train"
    return (
        f"`ringrift {verb} --config {config} --generation {generation}` makes it, and "
        f"`ringrift loop --config {config}` makes all of an unfinished generation"
    )


def read_current(
    layout: Layout, config: str, generation: int, kind: str, *, verify: bool
) -> Artefact | None:
    """See `Store.current`."""
    folder = layout.inside(layout.kind(config, generation, kind), config)
    pointer_path = folder / POINTER
    action = (
        f"fall back with store.last_good({config!r}, {generation}, {kind!r}), or make it anew: "
        + advice(kind, config, generation)
    )
    try:
        pointer = read_pointer(pointer_path)
    except UnreadableError as error:
        raise UnreadableArtefactError(pointer_path, str(error), action) from error
    except ManifestMismatch as error:
        moved = _drop_pointer(layout, config, pointer_path, None, str(error))
        raise CorruptArtefactError(pointer_path, str(error), action, moved) from None
    if pointer is None:
        return None
    data, content = pointer
    path = folder / content["artefact"]
    try:
        if path.is_symlink():
            raise ManifestMismatch("it is a link")
        artefact = load_folder(path, verify=verify)
        if (artefact.config, artefact.generation, artefact.kind) != (config, generation, kind):
            raise ManifestMismatch(
                f"it belongs to {artefact.config} {generation_key(artefact.generation)} "
                f"{artefact.kind}"
            )
        if artefact.digest != content["digest"]:
            raise ManifestMismatch("its digest is not the one its pointer names")
    except (ManifestMismatch, FileNotFoundError) as error:
        if not path.exists() and _moved_on(pointer_path, data):  # deleted while it was read
            return read_current(layout, config, generation, kind, verify=verify)
        reason = str(error) if path.exists() else "the folder that the pointer names is gone"
        if isinstance(error, UnreadableError):
            raise UnreadableArtefactError(path, reason, action) from error
        moved = quarantine(layout, config, generation, kind, path, reason)
        _drop_pointer(layout, config, pointer_path, data, reason)
        raise CorruptArtefactError(path, reason, action, moved) from None
    return artefact


def _moved_on(pointer: Path, data: bytes) -> bool:
    """Does a pointer no longer say what it said?"""
    try:
        with reading(pointer.name):
            return read_bounded(pointer) != data
    except (FileNotFoundError, TooLargeError, UnreadableError):
        return True


def _drop_pointer(
    layout: Layout, config: str, pointer: Path, data: bytes | None, reason: str
) -> Path | None:
    """Remove a pointer to something corrupt, unless a writer has moved it on since it was read, or the
    disk refuses to read it now.

    `data` is its text as read, None for a pointer that is itself corrupt, which is kept in
    quarantine.
    """
    with folder_lock(pointer.parent):
        try:
            with reading(pointer.name):
                now = read_bounded(pointer)
        except (FileNotFoundError, UnreadableError):
            return None
        except TooLargeError:
            now = b""
        if data is not None:
            if now == data:
                pointer.unlink()
                fsync_path(pointer.parent)
            return None
        try:
            parse_pointer(now)
        except ManifestMismatch:
            return put_aside(
                layout, config, pointer, pointer.relative_to(layout.root).parts[2:], reason
            )
        return None


def quarantine(
    layout: Layout, config: str, generation: int, kind: str, path: Path, reason: str
) -> Path | None:
    """Move an artefact's folder out of the way and note why beside it.

    Returns its new path, or None if it was gone already (another process was first).
    """
    try:
        parts = (generation_key(generation), kind, path.name)
        return put_aside(layout, config, path, parts, reason)
    except FileNotFoundError:
        return None


def put_aside(layout: Layout, config: str, path: Path, parts: tuple[str, ...], reason: str) -> Path:
    """Move something, whatever its size, to its config's quarantine, under a name that begins with
    ``parts``, and note beside it where it was found and why it is there. Returns its new path.

    The note comes first: nothing is taken away of which nobody would know. Raises FileNotFoundError if
    it is gone.
    """
    folder = layout.inside(layout.quarantine(config), config)
    ensure_folder(folder)
    target = folder / "-".join([*parts, secrets.token_hex(4)])
    noted = target.with_name(target.name + NOTE)
    write_json_atomic(noted, note(str(path), reason))
    try:
        os.rename(path, target)
    except FileNotFoundError:
        noted.unlink()
        raise
    fsync_path(path.parent)
    fsync_path(folder)
    return target


def note(origin: str, reason: str) -> dict[str, str]:
    """What is written beside something in quarantine; the log has it as well."""
    _log.warning("%s is corrupt: %s; it is put aside", origin, reason)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    return {"found_at": origin, "reason": reason, "quarantined_at": when}


def open_folder(layout: Layout, path: Path, *, verify: bool) -> Artefact:
    """See `Store.open`."""
    refused = CorruptArtefactError
    try:
        return load_folder(path, verify=verify)
    except (ManifestMismatch, FileNotFoundError) as error:
        reason = str(error)
        if isinstance(error, UnreadableError):
            refused = UnreadableArtefactError
    place = place_of(layout, path)
    if place is None:  # not ours to move
        raise refused(path, reason, "copy it again from where it came, or name another")
    config, generation, kind = place
    action = (
        f"use another of store.artefacts({config!r}, {generation}, {kind!r}), or make it anew: "
        + advice(kind, config, generation)
    )
    if refused is UnreadableArtefactError:
        raise refused(path, reason, action)
    pointer_path = path.parent / POINTER
    try:
        pointer = read_pointer(pointer_path)
    except ManifestMismatch:
        pointer = None  # `current` reports that one
    moved = quarantine(layout, config, generation, kind, path, reason)
    if pointer is not None and pointer[1]["artefact"] == path.name:
        _drop_pointer(layout, config, pointer_path, pointer[0], reason)
    raise CorruptArtefactError(path, reason, action, moved)


def place_of(layout: Layout, path: Path) -> tuple[str, int, str] | None:
    """Config, generation and kind of a landed folder inside this data root, by its path."""
    try:
        parts = path.relative_to(layout.root).parts
    except ValueError:
        return None
    if len(parts) != 5 or parts[1] != "generations":
        return None
    generation = parse_generation(parts[2])
    return None if generation is None else (parts[0], generation, parts[3])


def read_last_good(layout: Layout, config: str, generation: int, kind: str) -> Artefact | None:
    """See `Store.last_good`."""
    try:
        current = read_current(layout, config, generation, kind, verify=True)
        if current is not None:
            return current
    except CorruptArtefactError:
        pass
    folder = layout.kind(config, generation, kind)
    for path in reversed(folders(folder)):
        try:
            artefact = load_folder(path, verify=True)
            if (artefact.config, artefact.generation, artefact.kind) != (config, generation, kind):
                raise ManifestMismatch("it belongs elsewhere")
        except (ManifestMismatch, FileNotFoundError) as error:
            if not isinstance(error, UnreadableError):
                quarantine(layout, config, generation, kind, path, str(error))
            continue
        with folder_lock(folder):
            if not (folder / POINTER).exists():
                write_pointer(artefact)
        return artefact
    return None
