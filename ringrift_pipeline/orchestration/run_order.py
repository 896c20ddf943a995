"""The run queue: generations of one config follow each other, whoever asked for them.

A generation's plan takes the newest model and the champion of its moment, so that a backfill of
several generations makes sense in ascending order only. Runs of the generation jobs know their
config from a tag; those of a backfill, or of assets picked in the UI, belong to Dagster's implicit
job and are given one here. A limit in ``dagster.yaml`` then lets one run a config work at a time.

Of several runs that one sensor asked for with the same run key, only the first is kept. Dagster
looks for an earlier one before it makes a run, which does not help where two daemons look at once.
"""

from __future__ import annotations

from dagster import DagsterRun, DagsterRunStatus, RunsFilter
from dagster._core.run_coordinator import QueuedRunCoordinator, SubmitRunContext
from dagster._core.storage.tags import RUN_KEY_TAG, SENSOR_NAME_TAG

from ringrift_pipeline.orchestration.names import (
    BACKFILL_TAG,
    CONFIG_TAG,
    CONFIGS,
    ORDER_TAG,
    PARTITION_TAG,
)

PRIORITY_TAG = "dagster/priority"


class GenerationsInOrder(QueuedRunCoordinator):
    """Dagster's own queue, which tags runs as they come in."""

    def submit_run(self, context: SubmitRunContext) -> DagsterRun:
        """Tag the run and queue it, unless it was asked for before."""
        run = self._instance.get_run_by_id(context.dagster_run.run_id) or context.dagster_run
        first = self._asked_before(run)
        if first is not None:
            self._logger.warning(
                f"Run {first} was asked for with the run key {run.tags[RUN_KEY_TAG]} before "
                f"{run.run_id}, which is dropped. Do two daemons work on this instance?"
            )
            if run.status == DagsterRunStatus.NOT_STARTED:  # of which nobody knows yet
                self._instance.delete_run(run.run_id)
            return run
        tags = order_tags(run)
        if tags:
            self._instance.add_run_tags(run.run_id, tags)
        return super().submit_run(context._replace(dagster_run=run))

    def _asked_before(self, run: DagsterRun) -> str | None:
        """Id of the first run that this run's sensor asked for with the same run key, if that is
        another one. A run that is executed again has the key of the first by right.
        """
        tags = {name: run.tags[name] for name in (RUN_KEY_TAG, SENSOR_NAME_TAG) if name in run.tags}
        if len(tags) < 2 or run.parent_run_id is not None:
            return None
        records = self._instance.get_run_records(RunsFilter(tags=tags), limit=1, ascending=True)
        first = records[0].dagster_run.run_id if records else run.run_id
        return first if first != run.run_id else None


def order_tags(run: DagsterRun) -> dict[str, str]:
    """What to add to a run that makes assets of a generation; nothing for any other.

    Of a backfill's runs the lower generations go first, also a retried one, and all of them after
    what else waits.
    """
    generation = run.tags.get(PARTITION_TAG, "")
    config = run.tags.get(CONFIG_TAG) or _config_of(run)
    if config is None or not generation.isdigit():
        return {}
    tags = {CONFIG_TAG: config, ORDER_TAG: config}
    if BACKFILL_TAG in run.tags:
        tags[PRIORITY_TAG] = str(-1 - int(generation))
    return tags


def _config_of(run: DagsterRun) -> str | None:
    """The one config whose assets a run makes."""
    keys = [*(run.asset_selection or ())]
    keys += [check.asset_key for check in run.asset_check_selection or ()]
    found = {key.path[0] for key in keys if len(key.path) == 2 and key.path[0] in CONFIGS}
    return found.pop() if len(found) == 1 else None
