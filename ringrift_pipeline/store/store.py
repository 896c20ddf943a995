"""The store: one object for everything the pipeline keeps on disk."""

from __future__ import annotations

import contextlib
import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringrift_pipeline.store import artefacts as _artefacts
from ringrift_pipeline.store import champion as _champion
from ringrift_pipeline.store import switches as _switches
from ringrift_pipeline.store.atomic import (
    ensure_folder,
    own_prefix,
    remove_abandoned,
    remove_unfinished,
    temporaries,
    write_bytes_once,
)
from ringrift_pipeline.store.attach import refuse_attached
from ringrift_pipeline.store.bucket import Bucket
from ringrift_pipeline.store.bucket_settings import bucket_url
from ringrift_pipeline.store.champion import Champion
from ringrift_pipeline.store.draft import Draft
from ringrift_pipeline.store.errors import MissingArtefactError, StoreError
from ringrift_pipeline.store.kinds import LOCAL_KINDS
from ringrift_pipeline.store.layout import (
    MANIFEST,
    Layout,
    check_name,
    generation_key,
    is_name,
    parse_generation,
)
from ringrift_pipeline.store.locks import WORK, held, named_lock
from ringrift_pipeline.store.manifest import (
    Artefact,
    ManifestMismatch,
    UnreadableError,
    load_folder,
    normalize,
    read_sealed,
    refusal,
    sealed_bytes,
)
from ringrift_pipeline.store.switches import Switches

if TYPE_CHECKING:
    from ringrift_pipeline.store.remote import Remote


class Store:
    """Artefacts, plans, champions and locks under one data root.

    With a bucket (``RINGRIFT_BUCKET=s3://name/prefix``) what lands here lands there as well, what the
    bucket says counts, and the data root is a cache of it (`store.remote`, `store.records`); paths are
    those of files here all the same. Locks are this machine's own. Whatever asks the bucket raises
    BucketError when that refuses, and BucketSettingError, the first time, when it cannot be used.

    Safe to use from any number of threads and processes at once; holds no open files and pickles.
    Makes nothing on disk until something is written. Every method that takes names raises
    InvalidNameError for a config or kind that cannot be a path part or a generation that is no
    integer of at least 0, and OutsideError where a link below a config's folder leads out of it.
    """

    generation_key = staticmethod(generation_key)

    def __init__(
        self,
        root: str | os.PathLike[str],
        bucket: str | None = None,
        within: float | None = None,
    ) -> None:
        """`bucket`: None is what ``RINGRIFT_BUCKET`` says, empty is none; `within`: for work that has
        so many seconds, after which a bucket is asked nothing more (BucketError).

        Raises StoreError if `root` exists and is not a folder; BucketSettingError for what names no
        bucket, for a missing package, and for the cache of a bucket where none is named.
        """
        self.root = Path(root).expanduser().resolve()
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(f"{self.root} is a file: name a folder as the data root")
        self._layout = Layout(self.root)
        self._behind: Remote | None = None
        url = bucket_url() if bucket is None else bucket
        if url:
            from ringrift_pipeline.store.remote import Remote

            self._behind = Remote(self._layout, Bucket(url, within=within))
        elif bucket is None:
            refuse_attached(self.root)

    @property
    def remote(self) -> Remote | None:
        """What there is behind the data root, None without a bucket."""
        return None if self._behind is None else self._behind.attached()

    def _remote_of(self, kind: str) -> Remote | None:
        return None if kind in LOCAL_KINDS else self.remote

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    # --- artefacts ------------------------------------------------------------------------------

    def create(
        self,
        config: str,
        generation: int,
        kind: str,
        metadata: dict[str, Any] | None = None,
    ) -> Draft:
        """Begin an artefact; use as ``with store.create(…) as draft``.

        Write each file to ``draft / name``. When the block ends well every file is fsynced, the
        SHA-256 manifest is written last, the folder gets its final unique name and the pointer
        of the kind is moved to it; then ``draft.artefact`` is the artefact. When the block or the
        landing raises, nothing is left and the old artefact stays current. A bucket that refuses is
        the exception: the artefact has landed here then, and is uploaded when its kind is next asked
        for.

        Raises SerializationError for metadata that strict JSON cannot hold (now and, if changed,
        when the block ends), VanishedFileError for a file, or the whole folder, that is gone before it
        has landed, StoreError for links, for a file called ``manifest.json`` and for one that the draft
        was not asked for.
        """
        remote = self._remote_of(kind)
        return Draft(self._layout, config, generation, kind, dict(metadata or {}), remote)

    def current(
        self, config: str, generation: int, kind: str, verify: bool = True
    ) -> Artefact | None:
        """The current artefact of a kind, or None if there is none.

        With `verify` every file is hashed against the manifest (about 1 GB/s); without, only
        manifest and pointer are checked. Raises CorruptArtefactError for a mismatch, after the
        folder was moved to ``<config>/quarantine``; the kind has no current artefact then until
        one is made or `last_good` falls back. With a bucket, and without `verify`, files that are not
        here are fetched by `Artefact.file` only.
        """
        if remote := self._remote_of(kind):
            self._layout.inside(self._layout.kind(config, generation, kind), config)
            return remote.current(config, generation, kind, verify)
        found = _artefacts.read_current(self._layout, config, generation, kind, verify=verify)
        if found is None or self._behind is None or self._behind.cache.use(found.path):
            return found
        return self.current(config, generation, kind, verify)  # a cache has just dropped it

    def require(self, config: str, generation: int, kind: str, verify: bool = True) -> Artefact:
        """`current`, raising MissingArtefactError, which names the command, instead of None."""
        artefact = self.current(config, generation, kind, verify)
        if artefact is None:
            raise MissingArtefactError(
                f"{kind} of {config} generation {generation_key(generation)} in {self._where}",
                _artefacts.advice(kind, config, generation),
            )
        return artefact

    def last_good(self, config: str, generation: int, kind: str) -> Artefact | None:
        """The current artefact if it verifies, else the newest that does; None if none does.

        Every corrupt one met on the way is quarantined, and what is returned is current again. What the
        disk refuses to read stays, a pointer as well.
        """
        if remote := self._remote_of(kind):
            self._layout.inside(self._layout.kind(config, generation, kind), config)
            return remote.last_good(config, generation, kind)
        return _artefacts.read_last_good(self._layout, config, generation, kind)

    def open(self, path: str | os.PathLike[str], verify: bool = True) -> Artefact:
        """The artefact in the folder `path`, of this store or from anywhere else.

        Raises MissingArtefactError if there is no such folder and CorruptArtefactError if it
        does not match its manifest; only folders of this store are moved to quarantine.
        """
        path = Path(path).expanduser().resolve()
        if self._behind is not None and (place := self._behind.place(path)) is not None:
            return self._behind.attached().open(place, verify)
        if not path.is_dir():
            raise MissingArtefactError(
                f"artefact folder {path}", f"name a folder that holds a {MANIFEST}"
            )
        found = _artefacts.open_folder(self._layout, path, verify=verify)
        if self._behind is not None and _artefacts.place_of(self._layout, path) is not None:
            self._behind.cache.use(path)
        return found

    def artefacts(self, config: str, generation: int, kind: str) -> list[Artefact]:
        """All landed artefacts of a kind, oldest first, with manifests checked but files unhashed.

        A folder whose manifest is damaged is left out; `last_good` quarantines it.
        """
        found = []
        folder = self._layout.inside(self._layout.kind(config, generation, kind), config)
        if remote := self._remote_of(kind):
            return remote.artefacts(config, generation, kind)
        for path in _artefacts.folders(folder):
            with contextlib.suppress(ManifestMismatch):
                found.append(load_folder(path, verify=False))
        return found

    def remove(self, config: str, generation: int, kind: str, keep: Path | None = None) -> None:
        """Delete what has landed of a kind before the folder `keep`, without one all of it: for what its
        maker alone needs, and needs no longer. An interruption leaves whole artefacts and what a sweep
        removes.
        """
        folder = self._layout.inside(self._layout.kind(config, generation, kind), config)
        if remote := self._remote_of(kind):
            return remote.remove(config, generation, kind, keep)
        if keep is None:
            _artefacts.remove_kind(folder)
            return
        for path in _artefacts.folders(folder):
            if path.name < keep.name:
                with contextlib.suppress(UnreadableError):  # nobody can tell now which is current
                    _artefacts.remove_landed(path)

    def kinds(self, config: str, generation: int) -> list[str]:
        """Kinds that have a current artefact in a generation, sorted."""
        folder = self._layout.generation(config, generation)
        here = {pointer.parent.name for pointer in folder.glob(f"*/{_artefacts.POINTER}")}
        if remote := self.remote:
            here = (here & LOCAL_KINDS).union(remote.kinds(config, generation))
        return sorted(here)

    def newest(self, config: str, kind: str) -> int | None:
        """The newest generation that has a current artefact of a kind, None if none has.

        Files are not hashed. Raises CorruptArtefactError for a damaged manifest or pointer.
        """
        for generation in reversed(self.generations(config)):
            if self.current(config, generation, kind, verify=False) is not None:
                return generation
        return None

    def last_sign(self, config: str) -> datetime | None:
        """When something last landed in a generation of `config`, its plan included, in UTC.

        None where there is no generation. Reads names only.
        """
        return self.signs(config)[0]

    def signs(self, config: str) -> tuple[datetime | None, int]:
        """`last_sign`, and a number that changes with everything that lands, also while a clock that
        was turned back has not caught up; not with what is begun, swept or left over. Reads names and
        times only.
        """
        if remote := self.remote:
            return remote.records.signs(config)
        return _artefacts.signs(self._layout, config)

    # --- configs, generations, plans ------------------------------------------------------------

    def configs(self) -> list[str]:
        """Configs that have a generation with a plan, sorted."""
        if remote := self.remote:
            return remote.records.configs()
        return sorted(
            folder.name
            for folder in self.root.glob("*")
            if is_name(folder.name)
            and next((folder / "generations").glob("*/plan.json"), None) is not None
        )

    def generations(self, config: str) -> list[int]:
        """Generations that have a plan, ascending."""
        if remote := self.remote:
            return remote.records.generations(config)
        return self._layout.planned(config)

    def write_plan(self, config: str, generation: int, plan: dict[str, Any]) -> dict[str, Any]:
        """Write a generation's plan unless it has one, and return the plan that holds.

        The first of any number of concurrent writers wins; all of them return its plan, as it
        reads back from JSON (tuples are lists). Raises SerializationError, CorruptArtefactError.
        """
        path = self._layout.inside(self._layout.plan(config, generation), config)
        if remote := self.remote:
            return remote.records.write_plan(config, generation, plan)
        data = sealed_bytes(plan, "plan")
        if not path.exists():
            ensure_folder(path.parent)
            if write_bytes_once(path, data):
                return normalize(plan, "plan")
        return self.read_plan(config, generation)

    def read_plan(self, config: str, generation: int) -> dict[str, Any]:
        """A generation's plan. Raises MissingArtefactError, CorruptArtefactError."""
        path = self._layout.inside(self._layout.plan(config, generation), config)
        if remote := self.remote:
            return remote.records.read_plan(config, generation)
        try:
            return read_sealed(path)[1]
        except FileNotFoundError:
            raise MissingArtefactError(
                f"the plan of {config} generation {generation_key(generation)} in {self.root}",
                _artefacts.advice("plan", config, generation),
            ) from None
        except ManifestMismatch as error:
            raise refusal(
                path,
                error,
                f"a plan is never edited; move the folder {path.parent} away and make the "
                f"generation anew: {_artefacts.advice('plan', config, generation)}",
            ) from error.__cause__

    # --- champion -------------------------------------------------------------------------------

    def promote(
        self,
        config: str,
        generation: int,
        artefact: Artefact,
        reason: dict[str, Any],
        again: bool = False,
        after: int | None = None,
    ) -> Champion:
        """Make `artefact` the champion of `config` and return the champion that holds then.

        Idempotent: a generation and digest that was ever promoted changes nothing, so a late
        repeat does not dethrone a newer champion (unless that one's folder is gone); `again` goes
        back to an older one on purpose. With `after` nothing changes either unless there were just so
        many promotions before.
        The artefact is verified first. A history line that a killed promotion did not get to
        write is added by the next call. Raises CorruptArtefactError, MissingArtefactError,
        StoreError for an artefact of another config, generation or store.
        """
        self._layout.generation(config, generation)  # refuse bad names before anything else
        verified = self.open(artefact.path)
        if verified.digest != artefact.digest:
            raise StoreError(f"cannot promote {artefact.path}: its digest is not the one given")
        what = (config, generation, verified, reason, again, after)
        if remote := self.remote:
            remote.send_pending(config, generation)  # what is promoted is there for everybody
            return remote.records.promote(*what)
        return _champion.promote(self._layout, *what)

    def champion(self, config: str) -> Champion | None:
        """The champion, or None before the first promotion. Raises CorruptArtefactError.

        Its files are not hashed here: `serving_champion` does. A pointer that is damaged or gone is
        written again as the history's last line says; the damaged one is kept in quarantine. One that
        the disk refuses to read stays, and that line counts.
        """
        if remote := self.remote:
            return remote.records.champion(config)
        return _champion.read_champion(self._layout, config)

    def champions(self, config: str) -> list[Champion]:
        """History of promotions, oldest first, reconciled with the pointer."""
        if remote := self.remote:
            return remote.records.champions(config)
        return _champion.read_history(self._layout, config)

    # --- switches -------------------------------------------------------------------------------

    def switches(self, config: str) -> Switches:
        """What may start by itself for `config`. Raises CorruptArtefactError."""
        if remote := self.remote:
            return remote.records.switches(config)
        return _switches.read_switches(self._layout, config)

    def set_switches(
        self, config: str, *, asked_at: datetime | None = None, **changes: bool
    ) -> Switches:
        """Turn some of `switches.SWITCHES` on or off and return all of them as they are then.

        What is not named stays, and so does what somebody asked for after `asked_at` (default:
        now); a damaged file counts as everything on. Concurrent callers are served one after the
        other. Raises InvalidNameError for an unknown switch or a value that is no bool, and
        UnreadableArtefactError where the disk refuses to read what they are.
        """
        if remote := self.remote:
            return remote.records.set_switches(config, changes, asked_at)
        return _switches.set_switches(self._layout, config, changes, asked_at)

    # --- locks and cleaning ---------------------------------------------------------------------

    def lock(
        self, config: str | None, name: str, timeout: float = 0.0
    ) -> contextlib.AbstractContextManager[Path]:
        """A named, exclusive, non-reentrant lock of a config (None: of the whole data root), among
        the processes of this machine, with a bucket as without.

        Waits `timeout` seconds (negative: for ever), then raises LockedError saying who holds it.
        The kernel frees the lock of a process that dies.
        """
        path = self._layout.lock(config, name)
        label = f"{name!r} of {config or self.root}"
        return named_lock(path, label, timeout)

    def at_work(self, config: str) -> set[int]:
        """Generations of `config` that a process of this machine works on: the command line, a
        training, an ablation.
        """
        found = set()
        for name in held(self._layout.lock(config, WORK[0]).parent):
            work, _, key = name.rpartition("-")
            generation = parse_generation(key)
            if work in WORK and generation is not None:
                found.add(generation)
        return found

    def sweep(self, config: str | None = None, generation: int | None = None) -> list[Path]:
        """Remove temporary files and folders of dead writers, of a config's ``generation`` alone if one
        is given, and return what was removed.

        Those of living writers are locked by them and stay, whatever their age. With a bucket what has
        landed here and is not there yet is uploaded then, unless it is for a generation alone.
        """
        remote = self.remote if generation is None else None
        depths = {"": 0, "quarantine": 0, ".locks": 0, "generations": 2, "pending": 0}
        if config is None:
            places = [self.root, *self.root.glob("*")]
        elif generation is None:
            places = [self._layout.config(check_name(config, "config"))]
        else:
            places, depths = [self._layout.generation(config, generation)], {"": 1}
        leftovers = {
            path
            for place in places
            for name, depth in depths.items()
            for path in temporaries(place / name, depth)
            if not self._layout.leads_outside(path.parent)
        }
        removed = [path for path in sorted(leftovers) if remove_abandoned(path)]
        if remote is not None:
            remote.send_pending(*([] if config is None else [config]))
        return removed

    @property
    def _where(self) -> str:
        """What this store holds, for people."""
        return str(self.root) if self._behind is None else self._behind.bucket.url

    def remove_own(self, config: str) -> None:
        """Remove what this process is writing for `config` and will not finish.

        For one that is about to leave at once: a draft that is still open then cannot land, and one
        that has just landed stays whole.
        """
        folder = self._layout.config(check_name(config, "config"))
        for depth in ("*", "*/*"):
            for path in folder.glob(f"generations/{depth}/{own_prefix()}*"):
                remove_unfinished(path)
