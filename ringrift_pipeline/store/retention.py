"""What may go when the disk is to be kept within a budget, in which order, and what must stay.

Only what is listed here is ever deleted, and of that only what nobody needs any more:

1. artefacts that a newer one of their kind has taken the place of,
2. what an interrupted work left of itself, once its generation lies behind,
3. training windows, which are built again from shards,
4. what was put into quarantine,
5. checkpoints with their optimizer state (the averaged model stays),
6. shards of games that no training will read again,

each oldest first. Reports, ratings, evaluations' and gauntlets' games, tables, decisions and every
generation's averaged model are small and stay; so does everything of the newest generations, of
those that somebody works on and of those that failed not long ago, every champion there ever was,
what a plan was made from (parent, ensemble and its members, opponents, the model a config began
with), the shards in the windows of all these plans, and all that the reigning champion was made
from: another config may begin with it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringrift_pipeline.store.artefacts import folders, landed_at, read_pointer, remove_landed
from ringrift_pipeline.store.atomic import fsync_path, remove_tree, temporary_name
from ringrift_pipeline.store.errors import CorruptArtefactError, LockedError, StoreError
from ringrift_pipeline.store.kinds import (
    CHECKPOINT,
    EMA_MODEL,
    ENSEMBLE,
    ENSEMBLE_MEMBERS,
    PART_PREFIXES,
    SHARD_PREFIX,
    TRAINING_STATE,
    WINDOW,
    shard_kind,
)
from ringrift_pipeline.store.layout import NOTE, POINTER, Layout, is_name, parse_generation
from ringrift_pipeline.store.locks import WORK
from ringrift_pipeline.store.manifest import ManifestMismatch, load_folder
from ringrift_pipeline.store.pending import Place
from ringrift_pipeline.store.standing import Standing, has_gone_on, standing
from ringrift_pipeline.store.store import Store

if TYPE_CHECKING:
    from ringrift_pipeline.store.remote import Remote

SUPERSEDED = "a newer one has taken its place"
LEFT_OVER = "left by an interrupted work"
REBUILT = "a window, built again from its shards when it is needed"
QUARANTINED = "in quarantine"
STATE = "a training's full state; its averaged model stays"
UNREAD = "games that no training will read again"
ORDER = (SUPERSEDED, LEFT_OVER, REBUILT, QUARANTINED, STATE, UNREAD)
FAILED = "its generation failed not long ago, and may be executed again"

LOOK_AGAIN = 60.0
"""Seconds after which a deletion looks again at all that its survey rests on: in a bucket that is a request
for each thousand plans and promotions of every config.

What would make a deletion wrong is asked before each, at a cost that does not grow: the next plan and the
next promotion of its config, and whether anybody has begun to work, which has all looked at again at once.
Not seen within these seconds is a plan that leaves numbers out and comes from another machine's command
line, and one of another config that begins with a model of this one (all of its champions stays). Either
has the games played again that it finds gone.
"""

_HEAVY = (WINDOW, CHECKPOINT, TRAINING_STATE, EMA_MODEL)  # of which old versions go


@dataclass(frozen=True)
class Stored:
    """Something on disk: a landed artefact, or what lies in quarantine (without a generation).

    Attributes:
        path: the folder or file.
        bytes: of its files.
        digest: the artefact's, empty in quarantine.
        why: why it may go (one of `ORDER`), or why it must stay.
    """

    config: str
    generation: int | None
    kind: str
    path: Path
    bytes: int
    digest: str
    why: str


@dataclass(frozen=True)
class Survey:
    """What there is.

    Attributes:
        bytes: of everything under the data root, whatever it is; with a bucket of everything in that.
        candidates: what may go, in the order in which it goes.
        protected: what is of a kind that may go and must stay.
        basis: what all this rests on: how far each config was; it holds as long as they are no further.
    """

    bytes: int
    candidates: tuple[Stored, ...]
    protected: tuple[Stored, ...]
    basis: dict[str, Standing]

    def surplus(self, budget: int) -> list[Stored]:
        """The candidates that have to go to come under ``budget`` bytes; all, if none suffice."""
        chosen = []
        left = self.bytes - budget
        for item in self.candidates:
            if left <= 0:
                break
            chosen.append(item)
            left -= item.bytes
        return chosen


def survey(
    store: Store,
    keep_generations: int = 2,
    working: Collection[tuple[str, int]] = (),
    failed: Collection[tuple[str, int]] = (),
) -> Survey:
    """Look at everything under the data root; nothing is changed.

    Args:
        keep_generations: newest generations of each config of which everything stays, at least 1.
        working: (config, generation) of those that somebody works on.
        failed: of those that failed, and that somebody may yet go on with.

    Raises:
        CorruptArtefactError: a plan, a champion or an ensemble that says what is needed is
            damaged; nothing can be told then.
    """
    if keep_generations < 1:
        raise StoreError(f"keep_generations must be at least 1, not {keep_generations}")
    before = basis(store)  # what comes while it is looked ends the deletion
    needs = _Needs(store, keep_generations, working, failed)
    candidates: list[Stored] = []
    protected: list[Stored] = []
    for item in _stored(store):
        why = needs.why(item)
        if why:
            protected.append(_told(item, why))
        else:
            candidates.append(item)
    candidates.sort(key=lambda item: (ORDER.index(item.why), item.path.name))
    return Survey(stored_bytes(store), tuple(candidates), tuple(protected), before)


def delete(
    store: Store,
    found: Survey,
    chosen: Iterable[Stored],
    outdated: Callable[[], bool] = lambda: False,
    begun: Callable[[], bool] = lambda: False,
) -> list[Stored]:
    """Delete what was chosen of a survey and return what is gone now.

    Left alone is what somebody works on meanwhile. Ends where the store has moved on since the
    survey: with a new plan or champion something else may be needed. An interruption at any moment
    leaves every pointer naming something whole, and at most temporary folders for `Store.sweep`.

    Args:
        outdated: says whether the survey does not hold any more for what somebody works on; asked at
            first, every `LOOK_AGAIN` seconds, and whenever
        begun: says that somebody has begun to work since it was last asked; asked before each deletion.
    """
    gone: list[Stored] = []
    looked = -math.inf
    for item in chosen:
        if begun() or time.monotonic() - looked > LOOK_AGAIN:
            if basis(store) != found.basis or outdated():
                break
            looked = time.monotonic()
        elif has_gone_on(store, item.config, found.basis[item.config]):
            break
        try:
            with ExitStack() as stack:
                for name in WORK if item.generation is not None else ():
                    lock = store.lock(item.config, f"{name}-{item.generation:04d}")
                    stack.enter_context(lock)
                if _remove(store, item):
                    gone.append(item)
        except (LockedError, ManifestMismatch):
            continue
    return gone


def basis(store: Store) -> dict[str, Standing]:
    """What a survey rests on: all plans, all promotions."""
    return {config: standing(store, config) for config in _configs(store)}


def stored_bytes(store: Store) -> int:
    """Bytes of everything in the bucket where there is one, else under the data root."""
    if remote := store.remote:
        return sum(remote.bucket.listing("").values())
    return used_bytes(store.root)


def used_bytes(root: Path) -> int:
    """Bytes of all files under ``root``."""
    total = 0
    for folder, _, files in os.walk(root):
        for name in files:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except FileNotFoundError:  # gone meanwhile
                continue
    return total


# -- what there is -------------------------------------------------------------------------------


def _configs(store: Store) -> list[str]:
    """Configs that have a plan, a champion or something in quarantine."""
    if remote := store.remote:
        return [name for name in remote.bucket.folders() if is_name(name)]
    marks = ("champion.json", "quarantine")
    found = {path.parent.name for mark in marks for path in store.root.glob(f"*/{mark}")}
    return sorted(set(filter(is_name, found)).union(store.configs()))


def _stored(store: Store) -> Iterator[Stored]:
    """Everything of a kind that may go, with why it may."""
    layout = Layout(store.root)
    if remote := store.remote:
        yield from _stored_behind(remote, layout, _configs(store))
        return
    for config in _configs(store):
        for folder in sorted(layout.generations(config).glob("*/*/")):
            generation = parse_generation(folder.parent.name)
            if generation is None or layout.leads_outside(folder, config):
                continue
            for path, current in _landed(folder):
                why = _reason(folder.name, current)
                if why is None:
                    continue
                try:
                    artefact = load_folder(path, verify=False)
                except ManifestMismatch:
                    continue  # damaged: `last_good` puts it into quarantine
                size = sum(entry["size"] for entry in artefact.files.values())
                yield Stored(config, generation, folder.name, path, size, artefact.digest, why)
        for path in layout.quarantine(config).glob("*"):
            if not path.name.endswith(NOTE):
                size = used_bytes(path) if path.is_dir() else path.lstat().st_size
                yield Stored(config, None, "quarantine", path, size, "", QUARANTINED)


def _stored_behind(remote: Remote, layout: Layout, configs: list[str]) -> Iterator[Stored]:
    """`_stored` of a bucket: what is here of it is the cache's to drop."""
    for config in configs:
        for place, size, whole in remote.contents(config):
            path = layout.root / place.key
            try:
                if whole and _reason(place.kind, False) is None:
                    continue  # stays, current or not
                why = _reason(place.kind, remote.is_current(place)) if whole else LEFT_OVER
                if why is None or not (whole or remote.is_given_up(place)):
                    continue
                digest = remote.cache.look(place).digest if whole else ""
            except (ManifestMismatch, FileNotFoundError):
                continue
            yield Stored(config, place.generation, place.kind, path, size, digest, why)
        for name, size in remote.quarantined(config).items():
            path = layout.quarantine(config) / name
            yield Stored(config, None, "quarantine", path, size, "", QUARANTINED)


def _landed(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Landed folders of a kind, each with whether its pointer names it."""
    try:
        pointer = read_pointer(folder / POINTER)
    except ManifestMismatch:
        return  # nobody can tell which is current: nothing of it goes
    current = pointer[1]["artefact"] if pointer is not None else None
    for path in folders(folder):
        if landed_at(path) is not None:
            yield path, path.name == current


def _reason(kind: str, current: bool) -> str | None:
    """Why an artefact of this kind may go, None if it never does."""
    shard = kind.startswith(SHARD_PREFIX)
    if not current and (shard or kind in _HEAVY):
        return SUPERSEDED
    if kind == TRAINING_STATE or kind.startswith(PART_PREFIXES):
        return LEFT_OVER
    known = {WINDOW: REBUILT, CHECKPOINT: STATE}
    return UNREAD if shard else known.get(kind)


def _told(item: Stored, why: str) -> Stored:
    return Stored(**{**item.__dict__, "why": why})


# -- what is needed ------------------------------------------------------------------------------


class _Needs:
    """Who needs what: folders by path, artefacts by digest, whole generations."""

    def __init__(
        self,
        store: Store,
        keep_generations: int,
        working: Collection[tuple[str, int]],
        failed: Collection[tuple[str, int]],
    ) -> None:
        self._store = store
        self._paths: dict[Path, str] = {}
        self._digests: dict[str, str] = {}
        self._shards: dict[tuple[str, int, str], str] = {}
        self._generations: dict[tuple[str, int], str] = {}
        for config in _configs(store):
            for champion in store.champions(config):
                self._artefact(champion.path, champion.digest, f"was champion of {config}")
            numbers = store.generations(config)
            kept = dict.fromkeys(numbers[-keep_generations:], "of the newest generations")
            kept |= {n: FAILED for name, n in failed if name == config}
            kept |= {n: "somebody works on its generation" for name, n in working if name == config}
            for number, why in kept.items():
                self._generations[config, number] = why
            for number in numbers:
                self._plan(config, number, number in kept)
            self._members(config, numbers)
            reigning = store.champion(config)
            if reigning is not None and reigning.generation in numbers:
                why = f"data of the champion of {config}, which another config may begin with"
                self._data(config, reigning.generation, why)

    def why(self, item: Stored) -> str | None:
        """Why an item must stay, None if it need not."""
        if item.generation is None:
            return None
        found = self._paths.get(item.path) or self._digests.get(item.digest)
        found = found or self._generations.get((item.config, item.generation))
        return found or self._shards.get((item.config, item.generation, item.kind))

    def _artefact(self, path: Path, digest: str, why: str) -> None:
        self._paths.setdefault(path, why)
        self._digests.setdefault(digest, why)

    def _named(self, reference: dict[str, Any] | None, why: str) -> None:
        """What a plan's reference names."""
        if reference and reference.get("path"):
            path = self._store.root / reference["path"]
            self._artefact(path, str(reference.get("digest")), why)

    def _plan(self, config: str, generation: int, kept: bool) -> None:
        plan = self._store.read_plan(config, generation)
        about = f"the plan of {config} {generation:04d}"
        self._named(plan.get("champion"), f"plays in {about}")
        self._named(plan.get("parent"), f"is the parent in {about}")
        self._named(plan.get("ensemble"), f"is the ensemble in {about}")
        for shard in plan.get("shards") or ():
            self._named(shard.get("opponent"), f"is an opponent in {about}")
        source = (plan.get("finetune") or {}).get("source")
        self._named(source, f"is what {config} began with")
        if kept:
            self._window(config, plan, f"in the window of {about}")
            if source:  # its data measures what fine-tuning costs there, in every generation
                why = f"data of the model that {config} began with"
                self._data(source["config"], int(source["generation"]), why)

    def _window(self, config: str, plan: dict[str, Any], why: str) -> None:
        for entry in plan.get("window") or ():
            key = (config, int(entry["generation"]), shard_kind(entry["shard"]))
            self._shards.setdefault(key, why)
            self._digests.setdefault(str(entry["digest"]), why)

    def _data(self, config: str, generation: int, why: str) -> None:
        """All of a generation, and the shards that its model was trained on."""
        self._generations.setdefault((config, generation), why)
        self._window(config, self._store.read_plan(config, generation), why)

    def _members(self, config: str, generations: list[int]) -> None:
        """Members of every ensemble: any of them may be the last one that verifies."""
        for generation in generations:
            for ensemble in self._store.artefacts(config, generation, ENSEMBLE):
                why = f"is a member of the ensemble of {config} {generation:04d}"
                if ENSEMBLE_MEMBERS not in ensemble.files:
                    continue
                try:
                    entries = ensemble.read_json(ENSEMBLE_MEMBERS)
                except (OSError, ValueError, CorruptArtefactError) as error:
                    raise CorruptArtefactError(
                        ensemble.path,
                        f"its list of members cannot be read: {error}",
                        f"build it anew: ringrift train --config {config} --generation "
                        f"{generation}; until then nothing can be deleted",
                    ) from None
                for entry in entries:
                    self._named(entry, why)


# -- removing ------------------------------------------------------------------------------------


def _remove(store: Store, item: Stored) -> bool:
    if remote := store.remote:
        if item.generation is None:
            return remote.remove_quarantined(item.config, item.path.name)
        return remote.remove_landed(Place(item.config, item.generation, item.kind, item.path.name))
    if item.generation is not None:
        return remove_landed(item.path)
    item.path.with_name(item.path.name + NOTE).unlink(missing_ok=True)
    doomed = temporary_name(item.path.parent)
    try:
        os.rename(item.path, doomed)
    except FileNotFoundError:
        return False
    fsync_path(doomed.parent)
    if doomed.is_dir() and not doomed.is_symlink():
        remove_tree(doomed)
    else:
        doomed.unlink(missing_ok=True)
    return True


__all__ = ["ORDER", "Stored", "Survey", "basis", "delete", "stored_bytes", "survey", "used_bytes"]
