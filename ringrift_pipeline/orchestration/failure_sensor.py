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

from ringrift_pipeline.orchestration.killed_steps import was_killed, why_killed
from ringrift_pipeline.orchestration.launchable import add_partitions
from ringrift_pipeline.orchestration.names import (
    CONFIG_TAG,
    FAILURE_SENSOR,
    PARTITION_TAG,
    config_in,
)
from ringrift_pipeline.orchestration.notify import Alert, Notifier
from ringrift_pipeline.orchestration.outbox import Outbox
from ringrift_pipeline.orchestration.places import TICK, data_folder
from ringrift_pipeline.orchestration.reexecution import is_retried, retry_noted
from ringrift_pipeline.orchestration.tick_log import TickLog, mark_of
from ringrift_pipeline.store import BucketError, Store, StoreError

INTERVAL = 15  # seconds between two looks at the event log
FAILURES = 50  # looked at in one tick
LOOK_BACK = 24 * 3600.0  # seconds back that a sensor without a cursor begins
LONGEST = 2000  # characters of an error, or of what a check says, that are passed on


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
        store = Store(data_folder(), within=TICK)
        outbox = Outbox(store)
        after = read_cursor(context.cursor)
        found = 0
        kept = []  # storage ids of failures in the outbox, each with its config if nothing retries it
        with TickLog(context, store.root, FAILURE_SENSOR) as log:
            try:
                newest = context.instance.event_log_storage.get_maximum_record_id()
                if after is not None and after > (newest or 0):  # deleted: soon another's number
                    after = None  # what was told in the last day is not told again
                failures = _failures(context.instance, after)
                for record in failures:
                    run = context.instance.get_run_by_id(record.run_id)
                    config = None
                    if run is not None:  # deleted from the history: there is nothing to look at
                        if not retry_noted(context.instance, run, record.timestamp):
                            break
                        found += outbox.put(failure_alert(context.instance, run, record))
                        if not is_retried(context.instance, run):
                            config = config_in(run.tags)
                    kept.append((record.storage_id, config))
            finally:  # only then: a web hook may hold up what follows, and so may a bucket
                told = outbox.deliver(notifier, log.info)
            for storage_id, config in kept:
                if config is not None:
                    try:
                        add_partitions(context.instance, store, config)
                    except (BucketError, OSError) as error:  # may pass: the next tick begins here
                        log.error(f"{config}: {error}", f"{config}: {mark_of(error)}")
                        break
                    except (StoreError, ValueError) as error:
                        log.error(f"{config}: {error}")
                after = storage_id
        if after is None and not failures:  # a clock that is turned on hides no later failure then
            after = newest
        if after is not None or context.cursor:
            context.update_cursor("" if after is None else str(after))
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


def failure_alert(instance: DagsterInstance, run: DagsterRun, record: EventLogRecord) -> Alert:
    """What people are told of a failed run; of failed checks, what these say is to be done."""
    config, generation = run.tags.get(CONFIG_TAG), run.tags.get(PARTITION_TAG)
    where = f"{config} generation {generation}" if config and generation else run.job_name
    step, why = first_failure(instance, run.run_id)
    why = _shortened(why)
    checks = {name: _shortened(said) for name, said in failed_checks(instance, run.run_id).items()}
    retried = is_retried(instance, run)
    todo = (
        "Dagster retries it by itself."
        if retried
        else f"It is not retried by Dagster (a `ringrift loop` that works on it asks again for a lost "
        f"run): open run {run.run_id} in the UI; Re-execute from failure goes on at the step that failed."
    )
    return Alert(
        kind="run_failed",
        key=run.run_id,
        title=f"{where} failed",
        text="\n".join(
            [
                f"{f'step {step}: ' if step else ''}{why}",
                *(f"{name}: {said}" for name, said in checks.items()),
                todo,
            ]
        ),
        config=config,
        generation=generation,
        run_id=run.run_id,
        details={
            "job": run.job_name,
            "step": step,
            "error": why,
            "checks": checks,
            "will_retry": retried,
            "retry_of": run.parent_run_id,
            "failed_at": record.timestamp,
        },
    )


def _shortened(text: str) -> str:
    return f"{text[:LONGEST]} …" if len(text) > LONGEST else text


def failed_checks(instance: DagsterInstance, run_id: str) -> dict[str, str]:
    """What the blocking checks that failed in a run said, by name (``evaluation/gate_sound``)."""
    found: dict[str, str] = {}
    for event in instance.all_logs(run_id, of_type=DagsterEventType.ASSET_CHECK_EVALUATION):
        judged = event.asset_check_evaluation
        if judged is None or not judged.blocking:
            continue
        name = f"{judged.asset_key.path[-1]}/{judged.check_name}"
        found.pop(name, None)  # a step that is tried again judges again
        if not judged.passed:
            found[name] = judged.description or "it gave no reason"
    return found


def first_failure(instance: DagsterInstance, run_id: str) -> tuple[str | None, str]:
    """The first step of a run that failed, None where none did, and the error at the root of it."""
    for event in instance.all_logs(run_id, of_type=DagsterEventType.STEP_FAILURE):
        if event.dagster_event is None:
            continue
        error: Any = event.dagster_event.step_failure_data.error
        while error is not None and error.cause is not None:
            error = error.cause
        step = event.dagster_event.step_key
        if error is None:
            return step, "no error was recorded"
        if was_killed(error):
            return step, why_killed(instance, run_id, step)
        return step, error.message.strip()
    for event in instance.all_logs(run_id, of_type=DagsterEventType.RUN_FAILURE):
        return None, event.user_message or event.message
    return None, "no error was recorded"
