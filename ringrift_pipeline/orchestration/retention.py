"""The disk budget: an asset whose materialization deletes what nobody needs any more.

What may go, and in which order, is `store.retention`'s to say; here it learns who is at work, and
what Dagster itself leaves lying about is cleared away: the values that steps of old runs handed on,
and their captured output.
"""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dagster import (
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetCheckSeverity,
    AssetKey,
    AssetsDefinition,
    AssetSelection,
    Config,
    DagsterInstance,
    MetadataValue,
    Nothing,
    OpExecutionContext,
    Out,
    Output,
    RunsFilter,
    TableColumn,
    TableRecord,
    TableSchema,
    asset_check,
    define_asset_job,
    in_process_executor,
    op,
)
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager
from pydantic import Field

from ringrift_pipeline.orchestration.at_work import beginnings, failed_since, working
from ringrift_pipeline.orchestration.io_managers import VALUES_KEY
from ringrift_pipeline.orchestration.names import OWNERS
from ringrift_pipeline.orchestration.places import home_folder, one_part
from ringrift_pipeline.orchestration.settings import refusing
from ringrift_pipeline.store import Store
from ringrift_pipeline.store.kinds import CODE_VERSIONS
from ringrift_pipeline.store.retention import Stored, delete, stored_bytes, survey, used_bytes
from ringrift_pipeline.store.unfinished import abort_uploads

JOB = "disk_retention"
OP = "retention"
KEY = AssetKey(["retention"])
BUDGET_VARIABLE = "RINGRIFT_DISK_BUDGET_GB"
BUDGET_GB = 50.0
GB = 10**9
DAY = 24 * 3600.0
ROWS = 500  # of the table of what was deleted
CAPTURED = frozenset({".out", ".err", ".complete"})  # what Dagster calls a step's captured output


class RetentionConfig(Config):
    """What is kept."""

    budget_gb: float = Field(
        default=BUDGET_GB,
        gt=0.0,
        le=1_000_000.0,
        description="Gigabytes (10^9 bytes) that everything under the data root may take, or in the "
        "bucket where there is one; what is above is deleted, in the order that store/retention.py "
        "gives.",
    )
    keep_generations: int = Field(
        default=2,
        ge=1,
        le=1000,
        description="Newest generations of each config of which everything stays.",
    )
    keep_days: int = Field(
        default=14,
        ge=1,
        le=3650,
        description="Days that the captured output of steps, and the values they handed on, stay "
        "after the end of their run, whatever the budget; and everything of an undecided "
        "generation after a run of it failed or was cancelled, so that it can be executed again.",
    )
    dry_run: bool = Field(
        default=True, description="Only say what would be deleted. The schedule deletes."
    )


class BudgetError(ValueError):
    """The variable holds no budget."""


def disk_budget() -> float:
    """Gigabytes that the schedule keeps to: ``$RINGRIFT_DISK_BUDGET_GB``, else 50.

    Raises:
        BudgetError: it is no number within the bounds of `RetentionConfig.budget_gb`.
    """
    text = os.environ.get(BUDGET_VARIABLE, "").strip()
    try:
        budget = float(text) if text else BUDGET_GB
        RetentionConfig(budget_gb=budget)
    except ValueError:  # pydantic's error is one
        raise BudgetError(
            f"{BUDGET_VARIABLE} is {text!r}: write gigabytes, more than 0 and at most 1000000"
        ) from None
    return budget


@dataclass
class Cleared:
    """What one materialization came to; of a dry run, what it would have come to."""

    before: int
    after: int
    budget: int
    deleted: list[Stored]
    protected: Sequence[Stored]
    dry_run: bool
    litter: dict[str, int] = field(default_factory=dict)  # bytes, by what it was
    uploads: int = 0  # in parts, that nobody has finished


def clear(
    instance: DagsterInstance, store: Store, config: RetentionConfig, now: float | None = None
) -> Cleared:
    """Bring the data root under its budget, as far as what must stay allows.

    Raises:
        CorruptArtefactError: something that says what is needed is damaged; only what Dagster
            left is cleared away then.
    """
    cutoff = (time.time() if now is None else now) - config.keep_days * DAY
    before = stored_bytes(store)
    litter: dict[str, int] = {}
    for name, paths in (
        ("values of runs", old_values(instance, store, cutoff)),
        ("captured output", old_output(instance, store, cutoff)),
    ):
        for path in paths:
            litter[name] = litter.get(name, 0) + _bytes(path)
            if not config.dry_run:
                _remove(path)
    for key, size in old_values_behind(instance, store, cutoff):
        litter["values of runs"] = litter.get("values of runs", 0) + size
        if not config.dry_run and (remote := store.remote):
            remote.bucket.delete(key)
    uploads = 0
    if not config.dry_run:
        store.sweep()
        if remote := store.remote:
            uploads = abort_uploads(remote.bucket)
    begun = beginnings(instance, store)
    busy = working(instance, store)
    failed = failed_since(instance, store, datetime.fromtimestamp(cutoff, UTC))
    found = survey(store, config.keep_generations, busy, failed)
    budget = int(config.budget_gb * GB)
    spared = sum(litter.values()) if config.dry_run and store.remote is None else 0
    chosen = found.surplus(budget + spared)
    if config.dry_run:
        after = found.bytes - spared - sum(item.bytes for item in chosen)
    else:
        chosen = delete(store, found, chosen, lambda: not working(instance, store) <= busy, begun)
        after = stored_bytes(store)
        if remote := store.remote:
            remote.cache.make_room(0)
    return Cleared(before, after, budget, chosen, found.protected, config.dry_run, litter, uploads)


def old_values(instance: DagsterInstance, store: Store, cutoff: float) -> list[Path]:
    """Folders of the values that steps of runs handed on which ended before ``cutoff``.

    A run that is executed again reads those of the run before it: they stay while it is not
    finished. So does a folder that no run is called like: somebody else has put it there.
    """
    used = {one_part(run_id) for run_id in _in_use(instance)}
    old = []
    for folder in sorted((home_folder(store.root) / "values").glob("*")):
        if folder.name in used or folder.name != one_part(folder.name) or not folder.is_dir():
            continue
        try:
            written = folder.stat().st_mtime
        except FileNotFoundError:  # another retention is at work
            continue
        if _ended(instance, folder.name, written) < cutoff:
            old.append(folder)
    return old


def old_values_behind(
    instance: DagsterInstance, store: Store, cutoff: float
) -> Iterator[tuple[str, int]]:
    """Keys and bytes of `old_values` in the bucket, where there is one."""
    if (remote := store.remote) is None:
        return
    used = {one_part(run_id) for run_id in _in_use(instance)}
    for run in remote.bucket.folders(VALUES_KEY):
        found = remote.bucket.listing(f"{VALUES_KEY}/{run}")
        if run in used or not found:
            continue
        written = remote.bucket.changed(f"{VALUES_KEY}/{run}/{next(iter(found))}")
        if written is not None and _ended(instance, run, written[0].timestamp()) < cutoff:
            yield from ((f"{VALUES_KEY}/{run}/{name}", size) for name, size in found.items())


def _ended(instance: DagsterInstance, run_id: str, written: float) -> float:
    """When a run ended, in Unix seconds; when its values were written, of one that is not known."""
    record = instance.get_run_record_by_id(run_id)
    return written if record is None or record.end_time is None else record.end_time


def old_output(instance: DagsterInstance, store: Store, cutoff: float) -> Iterator[Path]:
    """Files of captured output, of steps and of ticks, that nobody has written to since."""
    manager = instance.compute_log_manager
    if not isinstance(manager, LocalComputeLogManager):
        return
    base = Path(manager._base_dir).resolve()
    if not base.is_relative_to(home_folder(store.root)):
        return  # not ours to clean
    used = _in_use(instance)
    for path in sorted(base.rglob("*")):
        if path.suffix in CAPTURED and not used.intersection(path.parts):
            try:
                old = path.is_file() and path.lstat().st_mtime < cutoff
            except FileNotFoundError:
                continue
            if old:
                yield path


def _in_use(instance: DagsterInstance) -> set[str]:
    runs = instance.get_runs(RunsFilter(statuses=[*NOT_FINISHED_STATUSES]))
    ids = {name for run in runs for name in (run.run_id, run.parent_run_id, run.root_run_id)}
    return {name for name in ids if name is not None}


def _bytes(path: Path) -> int:
    try:
        return used_bytes(path) if path.is_dir() else path.lstat().st_size
    except FileNotFoundError:  # another retention has removed it meanwhile
        return 0


def _remove(path: Path) -> None:
    """Whatever goes wrong with litter is no reason to keep the rest of it."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
        return
    path.unlink(missing_ok=True)
    for folder in path.parents[:2]:
        try:
            folder.rmdir()
        except OSError:  # not empty
            return


# -- as an asset ---------------------------------------------------------------------------------

_DELETED = TableSchema(
    columns=[
        TableColumn("config", "string"),
        TableColumn("generation", "string"),
        TableColumn("kind", "string"),
        TableColumn("bytes", "int"),
        TableColumn("why", "string", "why it could go"),
    ]
)
_PROTECTED = TableSchema(
    columns=[
        TableColumn("config", "string"),
        TableColumn("why", "string", "why it must stay"),
        TableColumn("artefacts", "int"),
        TableColumn("bytes", "int"),
    ]
)


def shown(cleared: Cleared) -> dict[str, Any]:
    """Metadata of the materialization."""
    kept: dict[tuple[str, str], list[int]] = {}
    for item in cleared.protected:
        entry = kept.setdefault((item.config, item.why), [0, 0])
        entry[0] += 1
        entry[1] += item.bytes
    deleted = [
        TableRecord(
            {
                "config": item.config,
                "generation": "" if item.generation is None else f"{item.generation:04d}",
                "kind": item.kind,
                "bytes": item.bytes,
                "why": item.why,
            }
        )
        for item in cleared.deleted[:ROWS]
    ]
    protected = [
        TableRecord({"config": config, "why": why, "artefacts": count, "bytes": size})
        for (config, why), (count, size) in sorted(kept.items())[:ROWS]
    ]
    litter = ", ".join(f"{name}: {size} bytes" for name, size in cleared.litter.items())
    gone = sum(item.bytes for item in cleared.deleted) + sum(cleared.litter.values())
    told: dict[str, Any] = {
        "disk/bytes_after": cleared.after,
        "disk/bytes_deleted": gone,
        "disk/artefacts_deleted": len(cleared.deleted),
        "deleted": MetadataValue.table(deleted, schema=_DELETED),
    }
    if cleared.dry_run:  # what did not happen is not plotted
        told = {
            "disk/bytes_after": cleared.before,
            "would delete": f"{len(cleared.deleted)} artefacts, {gone} bytes; {cleared.after} bytes "
            "would remain",
            "would be deleted": MetadataValue.table(deleted, schema=_DELETED),
        }
    return {
        "disk/bytes_before": cleared.before,
        "disk/bytes_budget": cleared.budget,
        "disk/bytes_protected": sum(item.bytes for item in cleared.protected),
        **told,
        "dry_run": cleared.dry_run,
        "protected": MetadataValue.table(protected, schema=_PROTECTED),
        "what Dagster left": litter or "nothing old",
    }


@op(
    name=OP,
    required_resource_keys={"store"},
    out=Out(Nothing),
    description="Deletes what nobody needs any more until the disk budget is kept.",
)
def _retention(context: OpExecutionContext, config: RetentionConfig) -> Output[None]:
    cleared = clear(context.instance, context.resources.store.open(), config)
    done = "would delete" if cleared.dry_run else "deleted"
    context.log.info(
        f"{done} {len(cleared.deleted)} artefacts; {cleared.before / GB:.3f} GB before, "
        f"{cleared.after / GB:.3f} GB after, the budget is {cleared.budget / GB:g} GB"
        + (f"; {cleared.uploads} unfinished uploads aborted" if cleared.uploads else "")
    )
    return Output(None, metadata=shown(cleared))


def retention_asset() -> AssetsDefinition:
    """The asset ``retention``."""
    made = AssetsDefinition.from_op(
        refusing(_retention, RetentionConfig),
        keys_by_output_name={"result": KEY},
        group_name="disk",
        descriptions_by_output_name={
            "result": "Everything under the data root, kept within a disk budget: what was there, "
            "what was deleted and why, what must stay and why. Never a champion, a parent, a "
            "member of an ensemble, a game that ratings need, or a shard in a window of the newest "
            "plans. Launched by hand it only tells, unless dry_run is turned off."
        },
    )
    return made.map_asset_specs(
        lambda spec: spec.replace_attributes(
            owners=OWNERS, kinds={"python"}, code_version=CODE_VERSIONS[OP]
        )
    )


@asset_check(asset=KEY, name="within_budget", description="The data root keeps to its budget.")
def within_budget(context: AssetCheckExecutionContext) -> AssetCheckResult:
    """Of the newest materialization: what it left, which of a dry run is all that was there."""
    event = context.instance.get_latest_materialization_event(KEY)
    told = event.asset_materialization.metadata if event and event.asset_materialization else {}
    after, budget = (told.get(f"disk/bytes_{name}") for name in ("after", "budget"))
    if after is None or budget is None:
        return AssetCheckResult(passed=False, description="materialize the asset first")
    over = int(str(after.value)) - int(str(budget.value))
    what = (
        "nothing was deleted: launch it with dry_run turned off, or turn nightly_retention on"
        if "dry_run" in told and told["dry_run"].value
        else "all the rest must stay: raise budget_gb, or lower keep_generations or "
        "training.window_games"
    )
    return AssetCheckResult(
        passed=over <= 0,
        severity=AssetCheckSeverity.WARN,
        description="within the budget"
        if over <= 0
        else f"{over / GB:.3f} GB above the budget, and {what}",
    )


disk_retention = define_asset_job(
    JOB,
    selection=AssetSelection.assets(KEY),
    executor_def=in_process_executor,
    description="Brings the data root under its disk budget; with dry_run, as it is unless that is "
    "turned off, it only says what it would delete.",
)
