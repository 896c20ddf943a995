"""Two schedules, stopped until somebody turns them on in the UI.

They work on the configs that have been trained under the data root, and only with the daemon
running (``ringrift ui --daemon``).
"""

from dagster import (
    DefaultScheduleStatus,
    RunRequest,
    ScheduleEvaluationContext,
    SkipReason,
    schedule,
)
from dagster._core.definitions.assets.job.asset_job import IMPLICIT_ASSET_JOB_NAME

from ringrift_pipeline.enhancements.training_config import TrainingConfig
from ringrift_pipeline.evaluation.feedback import next_settings
from ringrift_pipeline.orchestration.gauntlet import JOB, week_seed
from ringrift_pipeline.orchestration.names import (
    CONFIG_TAG,
    CONFIGS,
    PARTITION_TAG,
    asset_key,
    generation_key,
    partitions_name,
)
from ringrift_pipeline.orchestration.places import data_folder
from ringrift_pipeline.store import Store


def next_to_play(store: Store, config: str) -> int | None:
    """The generation whose games the night plays: the newest one if they are not all played,
    else the one after it; None for a config that was never begun.
    """
    generations = store.generations(config)
    if not generations:
        return None
    newest = generations[-1]
    played = store.current(config, newest, "selfplay_shards", verify=False) is not None
    return newest + 1 if played else newest


@schedule(
    name="nightly_selfplay",
    cron_schedule="0 2 * * *",
    job_name=IMPLICIT_ASSET_JOB_NAME,
    default_status=DefaultScheduleStatus.STOPPED,
    description="At 02:00 the champion of every config that has been begun plays the next "
    "generation's games, so that training can begin at once in the morning. The generation's job, "
    "or ringrift loop, goes on from them.",
)
def nightly_selfplay(context: ScheduleEvaluationContext) -> list[RunRequest] | SkipReason:
    """One run a config: its next generation's selfplay, with its newest generation's settings,
    changed as the evaluation feedback asks for.
    """
    store = Store(data_folder())
    when = context.scheduled_execution_time.date().isoformat()
    requests = []
    for config in CONFIGS:
        generation = next_to_play(store, config)
        if generation is None:
            continue
        key = generation_key(generation)
        if not context.instance.has_dynamic_partition(partitions_name(config), key):
            context.instance.add_dynamic_partitions(partitions_name(config), [key])
        newest = store.read_plan(config, store.generations(config)[-1])["settings"]
        changed = next_settings(store, config, generation, TrainingConfig.from_dict(newest))
        requests.append(
            RunRequest(
                run_key=f"nightly/{config}/{when}",
                asset_selection=[asset_key(config, "selfplay_shards")],
                run_config={"resources": {"settings": {"config": changed.settings.to_dict()}}},
                tags={CONFIG_TAG: config, PARTITION_TAG: key},
            )
        )
    return requests or SkipReason("no config has been begun: start one with ringrift loop")


@schedule(
    name="weekly_gauntlet",
    cron_schedule="0 5 * * 0",
    job_name=JOB,
    default_status=DefaultScheduleStatus.STOPPED,
    description="On Sunday at 05:00 every champion meets random, heuristic, rollout and the three "
    "champions before it, on new openings, and all are rated on one scale.",
)
def weekly_gauntlet(context: ScheduleEvaluationContext) -> list[RunRequest] | SkipReason:
    """One run of the gauntlet a champion."""
    store = Store(data_folder())
    when = context.scheduled_execution_time
    requests = [
        RunRequest(
            run_key=f"gauntlet/{config}/{when.date().isoformat()}",
            run_config={
                "ops": {"gauntlet": {"config": {"config": config, "seed": week_seed(when)}}}
            },
            tags={CONFIG_TAG: config},
        )
        for config in CONFIGS
        if store.champion(config) is not None
    ]
    return requests or SkipReason("no config has a champion yet")
