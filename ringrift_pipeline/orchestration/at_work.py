"""Which generations somebody works at, or will, or may: nothing of them is removed meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter
from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES
from dagster._core.storage.tags import AUTO_RETRY_RUN_ID_TAG

from ringrift_pipeline.orchestration import ablation
from ringrift_pipeline.orchestration.decisions import read_decision
from ringrift_pipeline.orchestration.jobs import configs_in_ops, configs_of
from ringrift_pipeline.orchestration.names import CONFIGS, generation_in
from ringrift_pipeline.orchestration.reexecution import RETRY_TAG, is_retried
from ringrift_pipeline.store import Store

LATEST = timedelta(days=1)
"""After that nobody counts on the retry that Dagster noted of a failed run."""


def working(instance: DagsterInstance, store: Store) -> set[tuple[str, int]]:
    """(config, generation) of every run that is queued, under way, or failed and about to be retried,
    and of the command line's verbs on this machine; all of a config's generations where a run does
    not say which it is of, or a backfill is still asking for its runs.
    """
    busy = {(config, number) for config in CONFIGS for number in store.at_work(config)}
    for run in [
        *instance.get_runs(RunsFilter(statuses=[*NOT_FINISHED_STATUSES])),
        *_retried(instance),
    ]:
        named = configs_of(run)
        if run.job_name == ablation.JOB:
            named |= configs_in_ops(run)
        generation = generation_in(run.tags)
        for config in named & set(CONFIGS):
            if generation is not None:
                busy.add((config, generation))
            else:
                busy |= {(config, number) for number in store.generations(config)}
    asking = BulkActionsFilter(statuses=[BulkActionStatus.REQUESTED])
    for backfill in instance.get_backfills(asking):
        picked = backfill.asset_selection  # a job's may have none
        named = set(CONFIGS) if picked is None else {key.path[0] for key in picked} & set(CONFIGS)
        for config in named:
            busy |= {(config, number) for number in store.generations(config)}
    return busy


def beginnings(instance: DagsterInstance, store: Store) -> Callable[[], bool]:
    """A question, cheap enough to be asked before every deletion: has a run been made, or has a verb of
    the command line begun on this machine, since it was last asked (at first: since now)?

    Runs are numbered as they are made, and a backfill or a retry makes one before anything is done.
    """

    def seen() -> tuple[int, dict[str, set[int]]]:
        newest = instance.get_run_records(limit=1)
        number = newest[0].storage_id if newest else 0
        return number, {config: store.at_work(config) for config in CONFIGS}

    last = seen()

    def begun() -> bool:
        nonlocal last
        before, last = last, seen()
        return last != before

    return begun


def failed_since(instance: DagsterInstance, store: Store, since: datetime) -> set[tuple[str, int]]:
    """(config, generation) of those that are not decided and of which a run failed or was cancelled
    after ``since``: somebody may execute it again, and that reads the shards of its window.
    """
    ended = RunsFilter(
        statuses=[DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED], updated_after=since
    )
    found = {
        (config, generation)
        for run in instance.get_runs(ended)
        if (generation := generation_in(run.tags)) is not None
        for config in configs_of(run)
    }
    return {one for one in found if read_decision(store, *one) is None}


def _retried(instance: DagsterInstance) -> Iterator[DagsterRun]:
    """Failed runs whose retry is yet to come."""
    failed = RunsFilter(
        statuses=[DagsterRunStatus.FAILURE],
        tags={RETRY_TAG: "true"},
        updated_after=datetime.now(UTC) - LATEST,
    )
    for run in instance.get_runs(failed):
        if AUTO_RETRY_RUN_ID_TAG not in run.tags and is_retried(instance, run):
            yield run
