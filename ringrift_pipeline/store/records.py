"""Plans, champions and switches whose truth is a bucket: small sealed objects.

- A plan is written if there is none: ``<config>/plans/0007.json``, so that a listing of a thousand
  generations is one request.
- Nothing can be appended to in a bucket: each promotion is an object of its own, numbered, written if
  there is none of that number, ``<config>/champions/000000001.json``. The last one is the champion,
  the objects are the history; there is no second truth to bring into line.
- Switches are written if they are what was read.

Plans and promotions never change: those that were read are kept in the folder, where a data root
without a bucket has them.
"""

from __future__ import annotations

import re
import secrets
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ringrift_pipeline.store import artefacts as local
from ringrift_pipeline.store.atomic import (
    append_jsonl,
    ensure_folder,
    read_jsonl,
    write_bytes_atomic,
)
from ringrift_pipeline.store.bounded import TooLargeError
from ringrift_pipeline.store.bucket import Bucket, Seen
from ringrift_pipeline.store.champion import (
    Champion,
    as_champion,
    check_promotion,
    checked,
    history_of,
    is_repeat,
    new_record,
)
from ringrift_pipeline.store.errors import CorruptArtefactError, MissingArtefactError
from ringrift_pipeline.store.layout import (
    MANIFEST,
    Layout,
    check_name,
    generation_key,
    is_name,
    parse_generation,
)
from ringrift_pipeline.store.locks import folder_lock
from ringrift_pipeline.store.manifest import (
    Artefact,
    ManifestMismatch,
    normalize,
    open_seal,
    read_sealed,
    sealed,
    sealed_bytes,
)
from ringrift_pipeline.store.switches import (
    Switches,
    changed,
    check_changes,
    damaged_switches,
    parse_switches,
)

_PROMOTION = re.compile(r"([0-9]{9})\.json")


class Records:
    """See the methods of `Store` with the same names. Pickles. Every one raises BucketError."""

    def __init__(self, layout: Layout, bucket: Bucket) -> None:
        self._layout = layout
        self._bucket = bucket

    # --- configs, generations, plans ------------------------------------------------------------

    def configs(self) -> list[str]:
        names = filter(is_name, self._bucket.folders())
        return [name for name in names if self.generations(name)]

    def generations(self, config: str) -> list[int]:
        names = self._bucket.listing(f"{check_name(config, 'config')}/plans")
        numbers = (parse_generation(n[:-5]) for n in names if n.endswith(".json"))
        return sorted(number for number in numbers if number is not None)

    def write_plan(self, config: str, generation: int, plan: dict[str, Any]) -> dict[str, Any]:
        data = sealed_bytes(plan, "plan")
        key = self._plan_key(config, generation)
        if self._kept_plan(config, generation) is None and self._bucket.write_if(key, data, None):
            self._keep_plan(config, generation, data)
            self.leave_sign(config)
            return normalize(plan, "plan")
        return self.read_plan(config, generation)

    def read_plan(self, config: str, generation: int) -> dict[str, Any]:
        kept = self._kept_plan(config, generation)
        if kept is not None:
            return kept
        seen = self._bucket.read(self._plan_key(config, generation))
        advice = local.advice("plan", config, generation)
        if seen is None:
            raise MissingArtefactError(
                f"the plan of {config} generation {generation_key(generation)} in "
                f"{self._bucket.url}",
                advice,
            )
        try:
            plan = open_seal(seen.data)
        except ManifestMismatch as error:
            at = self._bucket.at(self._plan_key(config, generation))
            raise CorruptArtefactError(
                self._layout.plan(config, generation),
                f"{error}, in the bucket",
                f"a plan is never edited; move {at} away, with all of its generation, and make that "
                f"anew: {advice}",
            ) from None
        self._keep_plan(config, generation, seen.data)
        return plan

    def _plan_key(self, config: str, generation: int) -> str:
        return f"{check_name(config, 'config')}/plans/{generation_key(generation)}.json"

    def _kept_plan(self, config: str, generation: int) -> dict[str, Any] | None:
        """The plan if it was read before; a damaged copy is read again."""
        path = self._layout.inside(self._layout.plan(config, generation), config)
        try:
            return read_sealed(path)[1]
        except (FileNotFoundError, ManifestMismatch):
            return None

    def _keep_plan(self, config: str, generation: int, data: bytes) -> None:
        write_bytes_atomic(self._layout.plan(config, generation), data)

    # --- signs of life --------------------------------------------------------------------------

    def leave_sign(self, config: str) -> None:
        """Leave a sign that something has landed: the clock is the bucket's, one for all."""
        self._bucket.write(f"{config}/sign", secrets.token_hex(8).encode())

    def signs(self, config: str) -> tuple[datetime | None, int]:
        found = self._bucket.changed(f"{check_name(config, 'config')}/sign")
        if found is None:
            return None, 0
        when, tag = found
        return when.astimezone(UTC), zlib.crc32(tag.encode())

    # --- champion -------------------------------------------------------------------------------

    def promote(
        self,
        config: str,
        generation: int,
        artefact: Artefact,
        reason: dict[str, Any],
        again: bool,
        after: int | None = None,
    ) -> Champion:
        reason = check_promotion(self._layout, config, generation, artefact, reason)
        while True:
            history = self._history(config)
            if history and after not in (None, len(history)):
                return as_champion(self._layout, history[-1])
            repeat = is_repeat(history, generation, artefact.digest, again)
            if repeat and self._bucket.changed(f"{history[-1]['path']}/{MANIFEST}") is not None:
                return as_champion(self._layout, history[-1])
            record = new_record(self._layout, artefact, reason, len(history) + 1)
            data = sealed_bytes(record, "champion")
            if self._bucket.write_if(self._champion_key(config, len(history) + 1), data, None):
                self.leave_sign(config)
                return as_champion(self._layout, record)

    def champion(self, config: str) -> Champion | None:
        numbers = self._promotions(config)
        if not numbers:
            return None
        return as_champion(self._layout, self._promotion(config, numbers[-1]))

    def champions(self, config: str) -> list[Champion]:
        return [as_champion(self._layout, record) for record in self._history(config)]

    def _history(self, config: str) -> list[dict[str, Any]]:
        """All promotions; those that are not kept here yet are read, and kept."""
        numbers = self._promotions(config)
        if numbers != list(range(1, len(numbers) + 1)):
            raise CorruptArtefactError(
                self._layout.champions(config),
                f"promotions are missing in {self._bucket.at(f'{config}/champions')}, which has "
                f"{len(numbers)} up to {numbers[-1]}",
                "restore them from a copy",
            )
        if not numbers:
            return []
        path = self._layout.inside(self._layout.champions(config), config)
        ensure_folder(path.parent)
        with folder_lock(path.parent):
            try:
                kept = history_of(path, config, read_jsonl(path))
            except CorruptArtefactError:
                kept = []
            if len(kept) > len(numbers) or not path.exists() or not kept:
                path.unlink(missing_ok=True)
                kept = []
            for number in numbers[len(kept) :]:
                record = self._promotion(config, number)
                append_jsonl(path, sealed(record, "champion"))
                kept.append(record)
        return kept

    def promotions(self, config: str) -> int:
        """How many there were. Each is an object of its own, that never changes."""
        return max(self._promotions(config), default=0)

    def has(self, config: str, generation: int, promotion: int) -> bool:
        """Whether there is a plan of a generation, or a promotion of a number. Reads neither."""
        keys = self._plan_key(config, generation), self._champion_key(config, promotion)
        return any(self._bucket.changed(key) is not None for key in keys)

    def _promotions(self, config: str) -> list[int]:
        names = self._bucket.listing(f"{check_name(config, 'config')}/champions")
        return sorted(int(found[1]) for found in map(_PROMOTION.fullmatch, names) if found)

    def _promotion(self, config: str, number: int) -> dict[str, Any]:
        key = self._champion_key(config, number)
        try:
            seen = self._bucket.read(key)
            if seen is None:
                raise ManifestMismatch("it is gone")
            record = checked(open_seal(seen.data), config)
            if record.get("promotion") != number:
                raise ManifestMismatch(f"it is promotion {record.get('promotion')}")
        except (ManifestMismatch, TooLargeError) as error:
            raise CorruptArtefactError(
                self._layout.champion(config),
                f"{self._bucket.at(key)}: {error}",
                "restore it from a copy, or from the champions.jsonl of a data root that has read it",
            ) from None
        return record

    def _champion_key(self, config: str, number: int) -> str:
        return f"{check_name(config, 'config')}/champions/{number:09d}.json"

    # --- switches -------------------------------------------------------------------------------

    def switches(self, config: str) -> Switches:
        return self._switches(config)[1]

    def set_switches(
        self, config: str, changes: Mapping[str, bool], asked_at: datetime | None = None
    ) -> Switches:
        check_changes(changes)
        key = self._switches_key(config)
        while True:
            before: Switches | None
            try:
                seen, before = self._switches(config)
            except CorruptArtefactError:
                seen, before = self._bucket.read(key), None
            after = changed(before, changes, asked_at)
            if self._bucket.write_if(key, sealed_bytes(asdict(after), "switches"), seen):
                return after

    def _switches(self, config: str) -> tuple[Seen | None, Switches]:
        key = self._switches_key(config)
        try:
            seen = self._bucket.read(key)
            return seen, Switches() if seen is None else parse_switches(open_seal(seen.data))
        except (ManifestMismatch, TooLargeError) as error:
            mismatch = ManifestMismatch(f"{self._bucket.at(key)}: {error}")
            raise damaged_switches(Path(self._layout.switches(config)), config, mismatch) from None

    def _switches_key(self, config: str) -> str:
        return f"{check_name(config, 'config')}/switches.json"
