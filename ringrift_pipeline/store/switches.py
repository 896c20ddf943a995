"""What may start by itself for a config: one small sealed file, replaced whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ringrift_pipeline.store.atomic import ensure_folder, write_bytes_atomic
from ringrift_pipeline.store.errors import (
    WELL_AGAIN,
    CorruptArtefactError,
    InvalidNameError,
    UnreadableArtefactError,
)
from ringrift_pipeline.store.layout import Layout
from ringrift_pipeline.store.locks import folder_lock
from ringrift_pipeline.store.manifest import (
    ManifestMismatch,
    UnreadableError,
    read_sealed,
    require_fields,
    sealed_bytes,
)

AHEAD = timedelta(minutes=1)  # that another machine's clock may be
SWITCHES = ("loop", "nightly", "gauntlet")


@dataclass(frozen=True)
class Switches:
    """What goes on without being asked; everything, until somebody pauses it.

    Attributes:
        loop: the next generation starts when an evaluation has landed.
        nightly: the nightly schedule plays games.
        gauntlet: the weekly schedule plays the champion's gauntlet.
        changed_at: ISO 8601 time in UTC of the last change, None before the first.
        asked_at: by switch, the ISO 8601 time in UTC at which its state was last asked for, even
            where it was so already.
    """

    loop: bool = True
    nightly: bool = True
    gauntlet: bool = True
    changed_at: str | None = None
    asked_at: Mapping[str, str] = field(default_factory=dict, compare=False)

    def asked_since(self, name: str, moment: datetime) -> bool:
        """Has somebody asked for a state of this switch after `moment`? A time that is yet to come
        was told by a clock that ran ahead, and says nothing.
        """
        if name not in self.asked_at:
            return False
        return moment < datetime.fromisoformat(self.asked_at[name]) <= datetime.now(UTC) + AHEAD

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
    except UnreadableError as error:
        action = f"{WELL_AGAIN}; until then nothing starts by itself"
        raise UnreadableArtefactError(path, str(error), action) from error
    except ManifestMismatch as error:
        raise damaged_switches(path, config, error) from None


def parse_switches(content: dict[str, Any]) -> Switches:
    """The switches in an opened seal. Raises ManifestMismatch."""
    for name in content.keys() & SWITCHES:
        require_fields(content, **{name: bool})
    if "changed_at" in content:
        require_fields(content, changed_at=(str, type(None)))
    asked = content.get("asked_at", {})  # not in what older versions wrote
    try:
        if any(datetime.fromisoformat(asked[name]).tzinfo is None for name in asked):
            raise ValueError("a time in it names no time zone")
    except (TypeError, ValueError) as error:
        raise ManifestMismatch(f"asked_at: {error}") from None
    known = {name: content[name] for name in (*SWITCHES, "changed_at") if name in content}
    return Switches(**known, asked_at=asked)


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


def changed(
    before: Switches | None, changes: Mapping[str, bool], asked_at: datetime | None
) -> Switches:
    """The switches after somebody asked for changes, now or at a moment: then what was asked for later
    stays. Before None: they could not be read.
    """
    old = before or Switches()
    asked = asked_at or datetime.now(UTC)
    new = dict(changes)
    if asked_at is not None:
        new = {name: on for name, on in changes.items() if not old.asked_since(name, asked)}
    after = replace(
        old,
        **new,  # type: ignore[arg-type]
        asked_at={**old.asked_at, **dict.fromkeys(new, _text(asked))},
    )
    return after if after == before else replace(after, changed_at=_text(datetime.now(UTC)))


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def set_switches(
    layout: Layout, config: str, changes: Mapping[str, bool], asked_at: datetime | None = None
) -> Switches:
    """See `Store.set_switches`."""
    check_changes(changes)
    path = layout.switches(config)
    ensure_folder(path.parent)
    with folder_lock(path.parent):
        try:
            before: Switches | None = read_switches(layout, config)
        except UnreadableArtefactError:
            raise  # it may say what somebody has asked for
        except CorruptArtefactError:
            before = None
        after = changed(before, changes, asked_at)
        write_bytes_atomic(path, sealed_bytes(asdict(after), "switches"))
    return after
