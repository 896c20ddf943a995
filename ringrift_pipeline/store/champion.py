"""The champion of a config: a pointer, and the history of promotions behind it."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ringrift_pipeline.store.artefacts import put_aside
from ringrift_pipeline.store.atomic import append_jsonl, read_jsonl, write_bytes_atomic
from ringrift_pipeline.store.errors import (
    CorruptArtefactError,
    StoreError,
    UnreadableArtefactError,
)
from ringrift_pipeline.store.layout import Layout
from ringrift_pipeline.store.locks import folder_lock
from ringrift_pipeline.store.manifest import (
    Artefact,
    ManifestMismatch,
    normalize,
    read_sealed,
    refusal,
    relative_path,
    require_fields,
    sealed,
    sealed_bytes,
    unsealed,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Champion:
    """A promoted artefact.

    Attributes:
        config, generation: whose and which.
        kind: kind of the artefact, ``"ema_model"`` in this pipeline.
        digest: the artefact's digest, 64 hex digits.
        path: the artefact's folder; `Store.open` verifies and loads it.
        promoted_at: ISO 8601 time in UTC.
        reason: what the gate said (JSON types).
    """

    config: str
    generation: int
    kind: str
    digest: str
    path: Path
    promoted_at: str
    reason: dict[str, Any] = field(compare=False)

    @property
    def stands_in_for(self) -> str | None:
        """For a champion that serves again because the files of the one after it are damaged: which
        that was, and what is wrong with it.
        """
        found = self.reason.get(STANDS_IN)
        return None if found is None else str(found)


STANDS_IN = "stands_in_for"  # key of a promotion's reason


def as_champion(layout: Layout, record: dict[str, Any]) -> Champion:
    fields = {name: record[name] for name in Champion.__dataclass_fields__ if name != "path"}
    return Champion(path=layout.root / record["path"], **fields)


def checked(record: dict[str, Any], config: str) -> dict[str, Any]:
    """A record that names a champion of `config`. Raises ManifestMismatch."""
    require_fields(
        record,
        config=str,
        generation=int,
        kind=str,
        digest=str,
        path=str,
        promoted_at=str,
        reason=dict,
    )
    relative_path(record["path"])
    if record["config"] != config:
        raise ManifestMismatch(f"it belongs to {record['config']!r}")
    return record


def _read(layout: Layout, config: str) -> dict[str, Any] | None:
    path = layout.champion(config)
    try:
        return checked(read_sealed(path)[1], config)
    except FileNotFoundError:
        return None
    except ManifestMismatch as error:
        raise refusal(
            path,
            error,
            "champions.jsonl beside it, which lists the promotions, is damaged as well or gone: "
            "restore both from a copy, or delete both and promote a generation again",
        ) from error.__cause__


def history_of(path: Path, config: str, lines: list[Any]) -> list[dict[str, Any]]:
    """The history in the lines of a file, each sealed and numbered. Raises CorruptArtefactError."""
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = checked(unsealed(line), config)
            if record.get("promotion") != number:
                raise ManifestMismatch(f"it is promotion {record.get('promotion')}")
        except ManifestMismatch as error:
            raise CorruptArtefactError(path, f"line {number}: {error}", _ANEW) from None
        records.append(record)
    return records


_ANEW = (
    "restore it from a copy; or move it away, and the history begins anew with the champion that "
    "champion.json names"
)


def _reconcile(layout: Layout, config: str) -> list[dict[str, Any]]:
    """History of promotions, after adding the one whose writer died before its line landed.

    Hold the config's folder lock. Raises CorruptArtefactError, also for lines that are missing.
    """
    champion = _pointed(layout, config)
    path = layout.inside(layout.champions(config), config)
    lines = read_jsonl(path)
    older = any(not isinstance(line, dict) or "seal" not in line for line in lines)
    if (champion is None and older) or (champion is not None and "promotion" not in champion):
        champion = _migrated(layout, config, champion, lines)
        lines = read_jsonl(path)
    history = history_of(path, config, lines)
    if champion is None or champion in history[-1:]:
        return history
    if not path.exists():  # moved away on purpose, or never written
        champion = {**champion, "promotion": 1}
        write_bytes_atomic(layout.champion(config), sealed_bytes(champion, "champion"))
    elif champion.get("promotion") != len(history) + 1:
        raise CorruptArtefactError(
            path,
            f"it ends with promotion {len(history)}, champion.json names promotion "
            f"{champion.get('promotion')}",
            _ANEW,
        )
    append_jsonl(path, sealed(champion, "champion"))
    history.append(champion)
    return history


def _migrated(
    layout: Layout, config: str, champion: dict[str, Any] | None, lines: list[Any]
) -> dict[str, Any] | None:
    """The champion after seals and numbers were added to a history that was written without.

    Raises CorruptArtefactError for a line that is no promotion of this config.
    """
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            if not isinstance(line, dict):
                raise ManifestMismatch("it is no object")
            # those of a migration that was killed have a seal
            record = checked(unsealed(line) if "seal" in line else line, config)
            odd = record.keys() - Champion.__dataclass_fields__.keys() - {"promotion"}
            if odd:
                raise ManifestMismatch(f"it has an unknown field {min(odd)!r}")
        except ManifestMismatch as error:
            raise CorruptArtefactError(
                layout.champions(config), f"line {number}: {error}", _ANEW
            ) from None
        record.pop("promotion", None)
        records.append(record)
    if champion is not None and champion not in records[-1:]:
        records.append(champion)
    records = [{**record, "promotion": number} for number, record in enumerate(records, start=1)]
    texts = [json.dumps(sealed(record, "champion"), allow_nan=False) for record in records]
    write_bytes_atomic(layout.champions(config), "".join(f"{t}\n" for t in texts).encode("ascii"))
    if champion is None:
        return None
    write_bytes_atomic(layout.champion(config), sealed_bytes(records[-1], "champion"))
    return records[-1]


def _pointed(layout: Layout, config: str) -> dict[str, Any] | None:
    """What the pointer says; one that is damaged, or gone though there were promotions, is written
    again as the last line of the history says. Where the disk refuses to read it that line counts, and
    the pointer stays until the next promotion: the disk may be well again before.

    Hold the config's folder lock. Raises CorruptArtefactError where the history is damaged as well.
    """
    damage = None
    try:
        record = _read(layout, config)
        if record is not None:
            return record
    except CorruptArtefactError as error:
        damage = error
    path = layout.inside(layout.champions(config), config)
    try:
        lines = read_jsonl(path)
        if any(not isinstance(line, dict) or "seal" not in line for line in lines) or not lines:
            history = []  # of a version that sealed no lines, or never written
        else:
            history = history_of(path, config, lines)
    except UnreadableArtefactError:
        raise  # it may yet say what the pointer said
    except CorruptArtefactError as error:
        raise damage or error from None
    if not history:
        if damage is not None:
            raise damage
        return None
    if isinstance(damage, UnreadableArtefactError):
        _log.warning(
            "%s: %s; the last line of %s says: generation %04d is champion",
            damage.path,
            damage.reason,
            path.name,
            history[-1]["generation"],
        )
        return history[-1]
    pointer = layout.champion(config)
    what = damage.reason if damage is not None else "it is gone"
    try:
        if damage is not None:  # killed before the next line, it is gone: the same is done then
            put_aside(layout, config, pointer, (pointer.name,), what)
        write_bytes_atomic(pointer, sealed_bytes(history[-1], "champion"))
    except OSError as error:
        if damage is None:
            raise
        why = f"{what}, and it cannot be written again as {path.name} says: {error}"
        raise CorruptArtefactError(
            pointer, why, "make the disk well, and it is written again"
        ) from error
    _log.warning(
        "%s: %s; written again as the last line of %s says: generation %04d is champion",
        pointer,
        what,
        path.name,
        history[-1]["generation"],
    )
    return history[-1]


def read_champion(layout: Layout, config: str) -> Champion | None:
    """See `Store.champion`."""
    try:
        record = _read(layout, config)
        whole = record is not None or not layout.champions(config).exists()
    except CorruptArtefactError:
        whole = False
    if not whole:
        with folder_lock(layout.config(config)):
            record = _pointed(layout, config)
    return None if record is None else as_champion(layout, record)


def read_history(layout: Layout, config: str) -> list[Champion]:
    """See `Store.champions`."""
    folder = layout.config(config)
    if not folder.is_dir():
        return []
    with folder_lock(folder):
        return [as_champion(layout, record) for record in _reconcile(layout, config)]


def promote(
    layout: Layout,
    config: str,
    generation: int,
    artefact: Artefact,
    reason: dict[str, Any],
    again: bool,
    after: int | None = None,
) -> Champion:
    """See `Store.promote`; `artefact` has been verified by the caller. ``after``: only if there were
    so many promotions before.
    """
    reason = check_promotion(layout, config, generation, artefact, reason)
    with folder_lock(layout.config(config)):
        history = _reconcile(layout, config)
        champion = _pointed(layout, config)
        if champion is not None and after not in (None, len(history)):
            return as_champion(layout, champion)
        repeat = is_repeat(history, generation, artefact.digest, again)
        if champion is not None and repeat and (layout.root / champion["path"]).is_dir():
            return as_champion(layout, champion)
        record = new_record(layout, artefact, reason, len(history) + 1)
        write_bytes_atomic(layout.champion(config), sealed_bytes(record, "champion"))
        append_jsonl(layout.champions(config), sealed(record, "champion"))
        return as_champion(layout, record)


def check_promotion(
    layout: Layout, config: str, generation: int, artefact: Artefact, reason: dict[str, Any]
) -> dict[str, Any]:
    """The reason as JSON reads it back. Raises StoreError for an artefact that cannot be champion of
    this generation here.
    """
    if (artefact.config, artefact.generation) != (config, generation):
        raise StoreError(
            f"cannot promote {artefact.path} as generation {generation} of {config}: it is "
            f"{artefact.kind} of generation {artefact.generation} of {artefact.config}"
        )
    if not artefact.path.is_relative_to(layout.root):
        raise StoreError(f"cannot promote {artefact.path}: it is outside the store {layout.root}")
    return normalize(reason, "reason of the promotion")


def is_repeat(history: list[dict[str, Any]], generation: int, digest: str, again: bool) -> bool:
    """Was this promoted before (with `again`: last), so that promoting it changes nothing?"""
    known = history if not again else history[-1:]
    return any((past["generation"], past["digest"]) == (generation, digest) for past in known)


def new_record(
    layout: Layout, artefact: Artefact, reason: dict[str, Any], number: int
) -> dict[str, Any]:
    """What is kept of a promotion."""
    return {
        "config": artefact.config,
        "generation": artefact.generation,
        "kind": artefact.kind,
        "digest": artefact.digest,
        "path": artefact.path.relative_to(layout.root).as_posix(),
        "promoted_at": datetime.now(UTC).isoformat(timespec="microseconds"),
        "reason": reason,
        "promotion": number,
    }
