"""``run_failed``: tells people of every run that fails.

A plain sensor over the event log, because an exception in the body of Dagster's own run-failure
sensor still moves that sensor's cursor on, so that a web hook that was down loses the message.
Here the failure goes to the outbox first, then the cursor moves, and the outbox keeps it until
somebody has taken it.
"""

import time
from typing import Any

from dagster import (
    DagsterEventType,
    DagsterInstance,
    DagsterRun,
    DefaultSensorStatus,
    EventLogRecord,
    ResourceParam,
    RunStatusChangeRecordsFilter,
    SensorDefinition,
    SensorEvaluationContext,
    SkipReason,
    sensor,
)

from ringrift_pipeline.orchestration.names import CONFIG_TAG, FAILURE_SENSOR, PARTITION_TAG
from ringrift_pipeline.orchestration.notify import Alert, Notifier
from ringrift_pipeline.orchestration.outbox import Outbox
from ringrift_pipeline.orchestration.places import data_folder
from ringrift_pipeline.store import Store

INTERVAL = 15  # seconds between two looks at the event log
FAILURES = 50  # looked at in one tick
LOOK_BACK = 24 * 3600.0  # seconds back that a sensor without a cursor begins
TAG_PATIENCE = 10.0  # seconds that Dagster may take to note whether it retries a run
RETRY_TAG = "dagster/will_retry"
LONGEST = 2000  # characters of an error that are passed on


def failure_sensor() -> SensorDefinition:
    """The sensor; it takes the resource ``notifier``."""

    @sensor(
        name=FAILURE_SENSOR,
        minimum_interval_seconds=INTERVAL,
        default_status=DefaultSensorStatus.RUNNING,
        description="Tells of every run that failed: which step, why, whether Dagster retries it. "
        "To the log, or to the web hook in RINGRIFT_WEBHOOK_URL. What nobody could be told of "
        "waits and is told later; also passes on what other sensors found.",
    )
    def run_failed(
        context: SensorEvaluationContext, notifier: ResourceParam[Notifier]
    ) -> SkipReason:
        outbox = Outbox(Store(data_folder()))
        after = read_cursor(context.cursor)
        found = 0
        for record in _failures(context.instance, after):
            run = context.instance.get_run_by_id(record.run_id)
            if run is not None:  # deleted from the history: there is nothing to look at
                if not _settled(context.instance, run, record):
                    break
                found += outbox.put(failure_alert(context.instance, run, record))
            after = record.storage_id
        if after is not None:
            context.update_cursor(str(after))
        told = outbox.deliver(notifier, context.log.info)
        return SkipReason(f"{found} runs failed, {len(told)} alerts told")

    return run_failed


def read_cursor(text: str | None) -> int | None:
    """The storage id of the last failure seen; None for none or nonsense, which looks back a day."""
    return int(text) if text is not None and text.isdecimal() else None


def _failures(instance: DagsterInstance, after: int | None) -> list[EventLogRecord]:
    """The failures behind the cursor, oldest first."""
    wanted = RunStatusChangeRecordsFilter(
        DagsterEventType.RUN_FAILURE,
        after_storage_id=after,
        after_timestamp=time.time() - LOOK_BACK if after is None else None,
    )
    result = instance.fetch_run_status_changes(wanted, limit=FAILURES, ascending=True)
    return list(result.records)


def _settled(instance: DagsterInstance, run: DagsterRun, record: EventLogRecord) -> bool:
    """Has Dagster noted whether it retries the run? It does so a moment after the failure."""
    return (
        RETRY_TAG in run.tags
        or not instance.run_retries_enabled
        or time.time() - record.timestamp > TAG_PATIENCE
    )


def failure_alert(instance: DagsterInstance, run: DagsterRun, record: EventLogRecord) -> Alert:
    """What people are told of a failed run."""
    config, generation = run.tags.get(CONFIG_TAG), run.tags.get(PARTITION_TAG)
    where = f"{config} generation {generation}" if config and generation else run.job_name
    step, why = first_failure(instance, run.run_id)
    if len(why) > LONGEST:
        why = f"{why[:LONGEST]} …"
    retried = run.tags.get(RETRY_TAG) == "true"
    todo = (
        "Dagster retries it by itself."
        if retried
        else f"It is not retried: open run {run.run_id} in the UI; Re-execute from failure goes on "
        "at the step that failed."
    )
    return Alert(
        kind="run_failed",
        key=run.run_id,
        title=f"{where} failed",
        text=f"{f'step {step}: ' if step else ''}{why}\n{todo}",
        config=config,
        generation=generation,
        run_id=run.run_id,
        details={
            "job": run.job_name,
            "step": step,
            "error": why,
            "will_retry": retried,
            "retry_of": run.parent_run_id,
            "failed_at": record.timestamp,
        },
    )


def first_failure(instance: DagsterInstance, run_id: str) -> tuple[str | None, str]:
    """The first step of a run that failed, None where none did, and the error at the root of it."""
    for event in instance.all_logs(run_id, of_type=DagsterEventType.STEP_FAILURE):
        if event.dagster_event is None:
            continue
        error: Any = event.dagster_event.step_failure_data.error
        while error is not None and error.cause is not None:
            error = error.cause
        why = error.message.strip() if error is not None else "no error was recorded"
        return event.dagster_event.step_key, why
    for event in instance.all_logs(run_id, of_type=DagsterEventType.RUN_FAILURE):
        return None, event.user_message or event.message
    return None, "no error was recorded"
