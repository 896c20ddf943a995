"""The run queue: generations of one config follow each other, whoever asked for them.

A generation's plan takes the newest model and the champion of its moment, so that a backfill of
several generations makes sense in ascending order only. Runs of the generation jobs know their
config from a tag; those of a backfill, or of assets picked in the UI, belong to Dagster's implicit
job and are given one here. A limit in ``dagster.yaml`` then lets one run a config work at a time.
"""

from __future__ import annotations

from dagster import DagsterRun
from dagster._core.run_coordinator import QueuedRunCoordinator, SubmitRunContext

from ringrift_pipeline.orchestration.names import (
    BACKFILL_TAG,
    CONFIG_TAG,
    CONFIGS,
    ORDER_TAG,
    PARTITION_TAG,
)
from ringrift_pipeline.store.layout import parse_generation

PRIORITY_TAG = "dagster/priority"


class GenerationsInOrder(QueuedRunCoordinator):
    """Dagster's own queue, which tags runs as they come in."""

    def submit_run(self, context: SubmitRunContext) -> DagsterRun:
        """Tag the run and queue it."""
        run = context.dagster_run
        tags = order_tags(run)
        if tags:
            self._instance.add_run_tags(run.run_id, tags)
        return super().submit_run(context)


def order_tags(run: DagsterRun) -> dict[str, str]:
    """What to add to a run that makes assets of a generation; nothing for any other.

    Of a backfill's runs the lower generations go first, also a retried one, and all of them after
    what else waits.
    """
    generation = parse_generation(run.tags.get(PARTITION_TAG, ""))
    config = run.tags.get(CONFIG_TAG) or _config_of(run)
    if config is None or generation is None:
        return {}
    tags = {CONFIG_TAG: config, ORDER_TAG: config}
    if BACKFILL_TAG in run.tags:
        tags[PRIORITY_TAG] = str(-1 - generation)
    return tags


def _config_of(run: DagsterRun) -> str | None:
    """The one config whose assets a run makes."""
    keys = [*(run.asset_selection or ())]
    keys += [check.asset_key for check in run.asset_check_selection or ()]
    found = {key.path[0] for key in keys if len(key.path) == 2 and key.path[0] in CONFIGS}
    return found.pop() if len(found) == 1 else None
