"""What failed verification, and why, as it lies in a config's quarantine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ringrift_pipeline.store.bounded import TooLargeError, parse_json, read_bounded
from ringrift_pipeline.store.layout import NOTE, Layout, parse_generation

if TYPE_CHECKING:
    from ringrift_pipeline.store.store import Store

_NAME = re.compile(r"([0-9]+)-(.+)-(?:[0-9]{8}T[0-9.]+Z-[0-9a-f]{8}|current\.json)-[0-9a-f]{8}")


@dataclass(frozen=True)
class Quarantined:
    """Something in quarantine.

    Attributes:
        name: its own there.
        generation, kind: whose artefact, or pointer to one, it was; None for anything else.
    """

    name: str
    generation: int | None
    kind: str | None


def quarantined(store: Store, config: str) -> list[Quarantined]:
    """What lies in quarantine with a note beside it, by name. Reads names only."""
    if remote := store.remote:
        names = [key for key in remote.bucket.listing(f"{config}/quarantine") if "/" not in key]
    else:
        names = [path.name for path in Layout(store.root).quarantine(config).glob(f"*{NOTE}")]
    return [_named(name.removesuffix(NOTE)) for name in sorted(names) if name.endswith(NOTE)]


def _named(name: str) -> Quarantined:
    found = _NAME.fullmatch(name)
    generation = parse_generation(found[1]) if found else None
    return Quarantined(name, generation, found[2] if found and generation is not None else None)


def reason_of(store: Store, config: str, name: str) -> dict[str, str]:
    """The note beside something in quarantine: ``found_at``, ``reason``, ``quarantined_at``."""
    data: bytes | None = None
    try:
        if remote := store.remote:
            seen = remote.bucket.read(f"{config}/quarantine/{name}{NOTE}")
            data = None if seen is None else seen.data
        else:
            data = read_bounded(Layout(store.root).quarantine(config) / f"{name}{NOTE}")
        note: Any = parse_json(data or b"")
    except (OSError, ValueError, RecursionError, TooLargeError):
        note = None
    found = note if isinstance(note, dict) else {}
    unknown = {"found_at": name, "reason": "its note cannot be read", "quarantined_at": "unknown"}
    return {key: str(found.get(key, value)) for key, value in unknown.items()}
