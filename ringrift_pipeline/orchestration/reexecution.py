"""Is a run over for good, or will Dagster or somebody in the UI go on with its work?"""

from __future__ import annotations

import time
from collections.abc import Sequence

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunRecord, RunsFilter
from dagster._core.execution.backfill import BULK_ACTION_TERMINAL_STATUSES
from dagster._core.storage.tags import AUTO_RETRY_RUN_ID_TAG, PARENT_RUN_ID_TAG

from ringrift_pipeline.orchestration.decisions import read_decision
from ringrift_pipeline.orchestration.generation_runs import makes_a_generation
from ringrift_pipeline.orchestration.launchable import next_generation
from ringrift_pipeline.orchestration.names import (
    BACKFILL_TAG,
    backfill_in,
    generation_in,
    job_name,
)
from ringrift_pipeline.store import Store

RETRY_TAG = "dagster/will_retry"
# Newest runs of a config, but those of backfills, among which that of its newest generation is looked
# for.
LOOKED_THROUGH = 20
TAG_PATIENCE = 10.0  # seconds that Dagster may take to note whether it retries a run


def retry_noted(instance: DagsterInstance, run: DagsterRun, failed_at: float) -> bool:
    """Has Dagster noted whether it retries a failed run? It does so a moment after the failure; one
    that lies in the future is not waited for, the clock was turned back since.
    """
    return (
        RETRY_TAG in run.tags
        or not instance.run_retries_enabled
        or abs(time.time() - failed_at) > TAG_PATIENCE
    )


def is_retried(instance: DagsterInstance, run: DagsterRun) -> bool:
    """Has Dagster retried a failed run, or will it still?

    It notes that it will when the run fails. A run of a backfill that is over by the time, or was
    deleted, it then leaves alone, and the note stays.
    """
    if run.tags.get(RETRY_TAG) != "true":
        return False
    if AUTO_RETRY_RUN_ID_TAG in run.tags or BACKFILL_TAG not in run.tags:
        return True
    backfill = instance.get_backfill(run.tags[BACKFILL_TAG])
    return backfill is not None and backfill.status not in BULK_ACTION_TERMINAL_STATUSES


def run_end(instance: DagsterInstance, run_id: str | None) -> str | None:
    """How a run ended, in words; None while it, or a run that re-executes it, may still do more."""
    record = instance.get_run_record_by_id(run_id) if run_id else None
    if record is None:
        return "is unknown"
    return None if _goes_on(instance, record) else f"ended ({record.dagster_run.status.value})"


def standing_run(
    instance: DagsterInstance, config: str, records: Sequence[RunRecord]
) -> RunRecord | None:
    """The run at which a generation stands, None where it has none: the newest, but for a cancelled one
    beside which another still makes the generation, or has made it.

    Args:
        records: the generation's runs, newest first.
    """
    if not records or records[0].dagster_run.status != DagsterRunStatus.CANCELED:
        return records[0] if records else None
    for record in records[1:]:
        run = record.dagster_run
        if not makes_a_generation(run, config):
            continue
        if run.status == DagsterRunStatus.SUCCESS or _goes_on(instance, record):
            return record
    return records[0]


def cancelled_run(instance: DagsterInstance, store: Store, config: str) -> RunRecord | None:
    """The run at which a config's loop stands: that at which the newest generation stands that was
    asked for, if it was cancelled and the generation has not been decided. None: there is no such run.

    Nobody starts it again by itself, for somebody meant it.
    """
    following = next_generation(store, config)
    found: list[tuple[int, RunRecord]] = []
    asked = RunsFilter(job_name=job_name(config))
    before, limit = None, LOOKED_THROUGH
    while len(found) < LOOKED_THROUGH:
        page = instance.get_run_records(asked, limit, cursor=before)
        for record in page:
            tags = record.dagster_run.tags
            generation = generation_in(tags)
            if generation is not None and generation <= following and backfill_in(tags) is None:
                found.append((generation, record))
        if len(page) < limit:
            break
        before, limit = page[-1].dagster_run.run_id, 10 * LOOKED_THROUGH
    if not found:
        return None
    newest = max(generation for generation, _ in found)
    runs = [record for generation, record in found if generation == newest]
    stands = standing_run(instance, config, runs)
    if stands is None or stands.dagster_run.status != DagsterRunStatus.CANCELED:
        return None
    return stands if read_decision(store, config, newest) is None else None


def _goes_on(instance: DagsterInstance, record: RunRecord) -> bool:
    run = record.dagster_run
    if not run.is_finished:
        return True
    if run.is_complete_and_waiting_to_retry and is_retried(instance, run):
        return True
    failed = run.status == DagsterRunStatus.FAILURE
    if failed and not retry_noted(instance, run, record.end_time or 0.0):
        return True
    again = instance.get_run_records(RunsFilter(tags={PARENT_RUN_ID_TAG: run.run_id}))
    return any(_goes_on(instance, child) for child in again)
