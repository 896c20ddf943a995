"""The run queue: generations of one config follow each other, whoever asked for them.

A generation's plan takes the newest model and the champion of its moment, so that a backfill of
several generations makes sense in ascending order only. Runs of the generation jobs know their
config from a tag; those of a backfill, or of assets picked in the UI, belong to Dagster's implicit
job and are given one here. A limit in ``dagster.yaml`` then lets one run a config work at a time.

Of several runs that one sensor asked for with the same run key, only the first is kept. Dagster
looks for an earlier one before it makes a run, which does not help where two daemons look at once.

A generation that somebody else has had run since the sensor asked for it is not run for the sensor as
well. Dagster keeps what was asked for, and asks again, within a day, where its daemon was killed before
the run was made: a new `ringrift loop` may have begun that generation by then, with other settings.

A run that executes one of a backfill again is tagged as one of it, whether or not the backfill is over:
it decides as little.

A run that is asked to end while it starts, as by Ctrl-C, is cancelled. With Dagster alone its process
ends without a word, and the run is taken for lost, to be retried.
"""

from __future__ import annotations

from pathlib import Path

from dagster import DagsterRun, DagsterRunStatus, RunsFilter
from dagster._core.run_coordinator import QueuedRunCoordinator, SubmitRunContext
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._core.storage.tags import RUN_KEY_TAG, SENSOR_NAME_TAG

from ringrift_pipeline.orchestration.generation_runs import generation_runs
from ringrift_pipeline.orchestration.names import (
    CONFIG_TAG,
    CONFIGS,
    FILLED_TAG,
    ORDER_TAG,
    SENSOR,
    backfill_in,
    config_in,
    generation_in,
)
from ringrift_pipeline.store.locks import folder_lock

PRIORITY_TAG = "dagster/priority"


class GenerationsInOrder(QueuedRunCoordinator):
    """Dagster's own queue, which tags runs as they come in."""

    def submit_run(self, context: SubmitRunContext) -> DagsterRun:
        """Tag the run and queue it; in its place the one that makes it needless, if there is one."""
        home = Path(self._instance.root_directory)
        with folder_lock(home):  # so that one that two ask for is queued once
            run = self._needed(context.dagster_run)
            if run.run_id != context.dagster_run.run_id:
                self._drop(context.dagster_run, run)
            again = self._instance.get_run_by_id(run.parent_run_id) if run.parent_run_id else None
            tags = order_tags(run, again)
            if tags:
                self._instance.add_run_tags(run.run_id, tags)
            return super().submit_run(context._replace(dagster_run=run))

    def cancel_run(self, run_id: str) -> bool:
        """As Dagster's; one that starts, and has begun nothing, counts as cancelled at once."""
        run = self._instance.get_run_by_id(run_id)
        asked = super().cancel_run(run_id)
        if run is None or run.status != DagsterRunStatus.STARTING:
            return asked
        asked_to_end = self._instance.get_run_by_id(run_id)
        if asked_to_end is not None and not asked_to_end.is_finished:
            self._instance.report_run_canceled(asked_to_end, "Cancelled while it started.")
        return True

    def _drop(self, dropped: DagsterRun, kept: DagsterRun) -> None:
        run = self._instance.get_run_by_id(dropped.run_id)
        if run is None or run.status != DagsterRunStatus.NOT_STARTED:
            return
        self._logger.warning(
            f"Run {run.run_id} is dropped: what its sensor asked for with the run key "
            f"{run.tags[RUN_KEY_TAG]} is run {kept.run_id} already."
        )
        self._instance.delete_run(run.run_id)
        self._forget_checks(run.run_id)

    def _forget_checks(self, run_id: str) -> None:
        """Dagster leaves what checks were planned for a deleted run, and shows them, as skipped, in the
        place of what those of the kept one say, which was made before.
        """
        storage = self._instance.event_log_storage
        if isinstance(storage, SqlEventLogStorage):
            planned = AssetCheckExecutionsTable.c.run_id == run_id
            with storage.index_connection() as connection:
                connection.execute(AssetCheckExecutionsTable.delete().where(planned))

    def _needed(self, run: DagsterRun) -> DagsterRun:
        """The run itself, or the one that there is in its place, as it is now. A run that executes
        another one again has that one's run key by right, and is needed itself.
        """
        tags = {name: run.tags[name] for name in (RUN_KEY_TAG, SENSOR_NAME_TAG) if name in run.tags}
        if len(tags) == 2 and run.parent_run_id is None:
            if others := self._by_others(run):
                return others[0]
            for record in self._instance.get_run_records(
                RunsFilter(tags=tags), limit=1, ascending=True
            ):
                return record.dagster_run
        return self._instance.get_run_by_id(run.run_id) or run

    def _by_others(self, run: DagsterRun) -> list[DagsterRun]:
        """Runs that make the generation which the sensor starts with this one, and that it has not
        asked for, newest first.
        """
        config, generation = config_in(run.tags), generation_in(run.tags)
        if run.tags.get(SENSOR_NAME_TAG) != SENSOR or config is None or generation is None:
            return []
        found = generation_runs(self._instance, config, generation)
        return [one for one in found if one.tags.get(SENSOR_NAME_TAG) != SENSOR]


def order_tags(run: DagsterRun, again: DagsterRun | None = None) -> dict[str, str]:
    """What to add to a run that makes assets of a generation; nothing for any other.

    Of a backfill's runs the lower generations go first, also a retried one, and all of them after
    what else waits.

    Args:
        again: the run that this one executes again.
    """
    generation = generation_in(run.tags)
    config = config_in(run.tags) or _config_of(run)
    if config is None or generation is None:
        return {}
    tags = {CONFIG_TAG: config, ORDER_TAG: config}
    backfill = backfill_in(run.tags) or (backfill_in(again.tags) if again is not None else None)
    if backfill is not None:
        tags |= {FILLED_TAG: backfill, PRIORITY_TAG: str(-1 - generation)}
    return tags


def _config_of(run: DagsterRun) -> str | None:
    """The one config whose assets a run makes."""
    keys = [*(run.asset_selection or ())]
    keys += [check.asset_key for check in run.asset_check_selection or ()]
    found = {key.path[0] for key in keys if len(key.path) == 2 and key.path[0] in CONFIGS}
    return found.pop() if len(found) == 1 else None
