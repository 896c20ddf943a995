"""What may start by itself for a config: one small sealed file, replaced whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ringrift_pipeline.store.atomic import ensure_folder, write_bytes_atomic
from ringrift_pipeline.store.errors import CorruptArtefactError, InvalidNameError
from ringrift_pipeline.store.layout import Layout
from ringrift_pipeline.store.locks import folder_lock
from ringrift_pipeline.store.manifest import (
    ManifestMismatch,
    read_sealed,
    require_fields,
    sealed_bytes,
)

SWITCHES = ("loop", "nightly", "gauntlet")


@dataclass(frozen=True)
class Switches:
    """What goes on without being asked; everything, until somebody pauses it.

    Attributes:
        loop: the next generation starts when an evaluation has landed.
        nightly: the nightly schedule plays games.
        gauntlet: the weekly schedule plays the champion's gauntlet.
        changed_at: ISO 8601 time in UTC of the last change, None before the first.
    """

    loop: bool = True
    nightly: bool = True
    gauntlet: bool = True
    changed_at: str | None = None

    @property
    def paused(self) -> tuple[str, ...]:
        """Names of those that are off."""
        return tuple(name for name in SWITCHES if not getattr(self, name))


def read_switches(layout: Layout, config: str) -> Switches:
    """See `Store.switches`."""
    path = layout.switches(config)
    try:
        return parse_switches(read_sealed(path)[1])
    except FileNotFoundError:
        return Switches()
    except ManifestMismatch as error:
        raise damaged_switches(path, config, error) from None


def parse_switches(content: dict[str, Any]) -> Switches:
    """The switches in an opened seal. Raises ManifestMismatch."""
    for name in content.keys() & SWITCHES:
        require_fields(content, **{name: bool})
    if "changed_at" in content:
        require_fields(content, changed_at=(str, type(None)))
    known = {name: content[name] for name in (*SWITCHES, "changed_at") if name in content}
    return Switches(**known)


def damaged_switches(path: Path, config: str, error: ManifestMismatch) -> CorruptArtefactError:
    """The error for switches that cannot be read."""
    return CorruptArtefactError(
        path,
        str(error),
        f"set them anew: `ringrift resume --config {config}`, or pause; until then nothing "
        "starts by itself",
    )


def check_changes(changes: Mapping[str, bool]) -> None:
    """Raises InvalidNameError for an unknown switch or a value that is no bool."""
    for name, value in changes.items():
        if name not in SWITCHES:
            raise InvalidNameError(f"{name!r} is no switch: there are {', '.join(SWITCHES)}")
        if not isinstance(value, bool):
            raise InvalidNameError(f"switch {name!r} is either True or False, not {value!r}")


def changed(before: Switches, changes: Mapping[str, bool], damaged: bool) -> Switches:
    """The switches after a change; `before` itself where nothing changes."""
    after = replace(before, **changes)  # type: ignore[arg-type]
    if after == before and not damaged:
        return before
    return replace(after, changed_at=datetime.now(UTC).isoformat(timespec="microseconds"))


def set_switches(layout: Layout, config: str, changes: Mapping[str, bool]) -> Switches:
    """See `Store.set_switches`."""
    check_changes(changes)
    path = layout.switches(config)
    ensure_folder(path.parent)
    with folder_lock(path.parent):
        damaged = False
        try:
            before = read_switches(layout, config)
        except CorruptArtefactError:
            before, damaged = Switches(), True
        after = changed(before, changes, damaged)
        if after is not before:
            write_bytes_atomic(path, sealed_bytes(asdict(after), "switches"))
    return after
