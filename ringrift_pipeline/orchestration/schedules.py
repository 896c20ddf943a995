"""The schedules, stopped until somebody turns them on in the UI.

They work on the configs that have been trained under the data root and are not paused, and only
with the daemon running (``ringrift ui``).
"""

import os
import zoneinfo
from collections.abc import Sequence

from dagster import (
    AssetRecordsFilter,
    DagsterInstance,
    DagsterRun,
    DefaultScheduleStatus,
    RunRequest,
    RunsFilter,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SkipReason,
    schedule,
)
from dagster._core.definitions.assets.job.asset_job import IMPLICIT_ASSET_JOB_NAME
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES

from ringrift_pipeline.enhancements.training_config import TrainingConfig
from ringrift_pipeline.evaluation.feedback import next_settings
from ringrift_pipeline.orchestration import retention
from ringrift_pipeline.orchestration.decisions import FAULTS, read_decision
from ringrift_pipeline.orchestration.gauntlet import JOB, week_seed
from ringrift_pipeline.orchestration.jobs import configs_of
from ringrift_pipeline.orchestration.names import (
    CONFIG_TAG,
    CONFIGS,
    PARTITION_TAG,
    asset_key,
    generation_key,
    partitions_name,
)
from ringrift_pipeline.orchestration.places import TICK, data_folder
from ringrift_pipeline.orchestration.switches import is_on
from ringrift_pipeline.store import BucketError, Store, StoreError

TIME_ZONE_VARIABLE = "RINGRIFT_TIMEZONE"


class TimeZoneError(ValueError):
    """The variable names no time zone that this machine knows."""


def time_zone() -> str:
    """Where the schedules' clock stands: ``$RINGRIFT_TIMEZONE``, else UTC.

    Raises:
        TimeZoneError: there is no such zone.
    """
    name = os.environ.get(TIME_ZONE_VARIABLE, "").strip() or "UTC"
    try:
        return zoneinfo.ZoneInfo(name).key
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise TimeZoneError(
            f"{TIME_ZONE_VARIABLE} is {name!r}, which is no time zone: write a name of the IANA "
            "list, such as Europe/Berlin, America/New_York or UTC"
        ) from None


def next_to_play(instance: DagsterInstance, store: Store, config: str) -> int | None:
    """The generation whose games the night plays: the newest one if they are not all played,
    the one after it once it has been decided who plays that; None where there is nothing to play.

    A plan fixes its champion. Made while the newest generation is still being trained or judged,
    it would hold on to the old one.
    """
    generations = store.generations(config)
    if not generations:
        return None
    newest = generations[-1]
    if store.current(config, newest, "selfplay_shards", verify=False) is None:
        return newest
    decision = read_decision(store, config, newest)
    if decision is None:
        return newest + 1 if _by_hand(instance, store, config, newest) else None
    return None if decision.get("end") in FAULTS else newest + 1


def _by_hand(instance: DagsterInstance, store: Store, config: str, generation: int) -> bool:
    """Was it evaluated by the command line, where no sensor will ever decide?"""
    if store.current(config, generation, "evaluation", verify=False) is None:
        return False
    landed = AssetRecordsFilter(
        asset_key(config, "evaluation"), asset_partitions=[generation_key(generation)]
    )
    return not instance.fetch_materializations(landed, limit=1).records


def at_work(instance: DagsterInstance, config: str) -> DagsterRun | None:
    """A run, queued or under way, that makes assets of ``config``; None if there is none."""
    for run in instance.get_runs(RunsFilter(statuses=[*NOT_FINISHED_STATUSES])):
        if config in configs_of(run):
            return run
    return None


def schedules() -> Sequence[ScheduleDefinition]:
    """All schedules, in the time zone of the moment. Raises TimeZoneError."""
    zone = time_zone()

    @schedule(
        name="nightly_selfplay",
        cron_schedule="0 2 * * *",
        execution_timezone=zone,
        job_name=IMPLICIT_ASSET_JOB_NAME,
        default_status=DefaultScheduleStatus.STOPPED,
        description="At 02:00 the champion of every config that has been begun plays the next "
        "generation's games, so that training can begin at once in the morning. The generation's "
        "job, or ringrift loop, goes on from them. Left out are configs at work, those whose "
        f"newest generation is not decided, and those that are paused. Time zone: {zone} "
        f"({TIME_ZONE_VARIABLE}).",
    )
    def nightly_selfplay(context: ScheduleEvaluationContext) -> list[RunRequest] | SkipReason:
        """One run a config: its next generation's selfplay, with its newest generation's
        settings, changed as the evaluation feedback asks for.
        """
        store = Store(data_folder(), within=TICK)
        when = context.scheduled_execution_time.date().isoformat()
        requests, left = [], []
        for config in CONFIGS:
            try:
                found = _tonight(context.instance, store, config, when)
            except (BucketError, StoreError, ValueError) as error:  # the others play
                context.log.error(f"{config}: {error}")
                found = f"{config}: {error}"
            if isinstance(found, RunRequest):
                requests.append(found)
            elif found is not None:
                left.append(found)
        for reason in left:
            context.log.info(reason)
        begun = "no config has been begun: start one with ringrift loop"
        return requests or SkipReason("; ".join(left) or begun)

    @schedule(
        name="weekly_gauntlet",
        cron_schedule="0 5 * * 0",
        execution_timezone=zone,
        job_name=JOB,
        default_status=DefaultScheduleStatus.STOPPED,
        description="On Sunday at 05:00 every champion meets random, heuristic, rollout and the "
        "three champions before it, on new openings, and all are rated on one scale. Left out are "
        f"configs that are paused. Time zone: {zone} ({TIME_ZONE_VARIABLE}).",
    )
    def weekly_gauntlet(context: ScheduleEvaluationContext) -> list[RunRequest] | SkipReason:
        """One run of the gauntlet a champion."""
        store = Store(data_folder(), within=TICK)
        when = context.scheduled_execution_time
        requests, left = [], []
        for config in CONFIGS:
            try:
                if store.champion(config) is None:
                    continue
                if not is_on(context.instance, store, config, "gauntlet"):
                    left.append(f"{config} is paused")
                    continue
            except (BucketError, StoreError) as error:  # the others play
                context.log.error(f"{config}: {error}")
                left.append(f"{config}: {error}")
                continue
            requests.append(
                RunRequest(
                    run_key=f"gauntlet/{config}/{when.date().isoformat()}",
                    run_config={
                        "ops": {"gauntlet": {"config": {"config": config, "seed": week_seed(when)}}}
                    },
                    tags={CONFIG_TAG: config},
                )
            )
        return requests or SkipReason("; ".join(left) or "no config has a champion yet")

    @schedule(
        name="nightly_retention",
        cron_schedule="0 4 * * *",
        execution_timezone=zone,
        job_name=retention.JOB,
        default_status=DefaultScheduleStatus.STOPPED,
        description="At 04:00 everything under the data root is brought under the disk budget, "
        f"{retention.BUDGET_GB:g} GB or what {retention.BUDGET_VARIABLE} says: what nobody needs "
        f"any more is deleted. Time zone: {zone} ({TIME_ZONE_VARIABLE}).",
    )
    def nightly_retention(context: ScheduleEvaluationContext) -> RunRequest:
        """One run."""
        config = {"budget_gb": retention.disk_budget(), "dry_run": False}
        return RunRequest(
            run_key=f"retention/{context.scheduled_execution_time.date().isoformat()}",
            run_config={"ops": {retention.OP: {"config": config}}},
        )

    return [nightly_selfplay, weekly_gauntlet, nightly_retention]


def _tonight(
    instance: DagsterInstance, store: Store, config: str, when: str
) -> RunRequest | str | None:
    """A config's selfplay, or why it has none tonight; None for one that was never begun."""
    if not store.generations(config):
        return None
    if not is_on(instance, store, config, "nightly"):
        return f"{config} is paused"
    run = at_work(instance, config)
    if run is not None:
        return f"{config} is at work in run {run.run_id}"
    generation = next_to_play(instance, store, config)
    if generation is None:
        return f"the newest generation of {config} is not decided, or its loop has stopped there"
    key = generation_key(generation)
    if not instance.has_dynamic_partition(partitions_name(config), key):
        instance.add_dynamic_partitions(partitions_name(config), [key])
    newest = store.read_plan(config, store.generations(config)[-1])["settings"]
    changed = next_settings(store, config, generation, TrainingConfig.from_dict(newest))
    return RunRequest(
        run_key=f"nightly/{config}/{when}",
        asset_selection=[asset_key(config, "selfplay_shards")],
        run_config={"resources": {"settings": {"config": changed.settings.to_dict()}}},
        tags={CONFIG_TAG: config, PARTITION_TAG: key},
    )
