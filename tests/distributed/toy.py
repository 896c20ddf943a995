"""A code location of tiny steps on Celery's workers: real code server, run worker, queues and workers,
nothing that plays or trains.
"""

import os
import signal
import time
from pathlib import Path
from typing import Any

from dagster import (
    DagsterEventType,
    Definitions,
    OpExecutionContext,
    RetryPolicy,
    job,
    op,
)
from sqlalchemy import text

from ringrift_pipeline.orchestration.celery_executor import celery_executor
from ringrift_pipeline.orchestration.io_managers import JsonIOManager
from ringrift_pipeline.orchestration.pools import QUEUE_TAG
from ringrift_pipeline.orchestration.resources import StoreResource
from ringrift_pipeline.orchestration.step import LOST, once, running_step

MODULE = "tests.distributed.toy"
CONFIG = "square8_2p"
NOTES_VARIABLE = "RINGRIFT_TOY_NOTES"


def notes() -> Path:
    """Where the steps and the test tell each other things; nothing else is kept there."""
    return Path(os.environ[NOTES_VARIABLE])


def begun(run_id: str, name: str) -> list[int]:
    """Process ids in which a step of a run was begun, in order."""
    path = notes() / f"{run_id}-{name}"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def _begin(context: OpExecutionContext) -> None:
    with open(notes() / f"{context.run_id}-{context.op_handle.name}", "a") as log:
        log.write(f"{os.getpid()}\n")


def _wait_for(name: str) -> None:
    while not (notes() / name).exists():
        time.sleep(0.05)


@op(required_resource_keys={"store"}, retry_policy=RetryPolicy(max_retries=2))
def waits(context: OpExecutionContext) -> None:
    """Until the file ``<run>-go`` is there."""
    with running_step(context, CONFIG, 0) as step:
        _begin(context)
        step.progress(1, 2, "waiting")
        _wait_for(f"{context.run_id}-go")


@op(required_resource_keys={"store"}, retry_policy=RetryPolicy(max_retries=2))
def stops(context: OpExecutionContext) -> None:
    """Stops its own process, threads and all, the first time."""
    with running_step(context, CONFIG, 0):
        _begin(context)
        if len(begun(context.run_id, context.op_handle.name)) == 1:
            os.kill(os.getpid(), signal.SIGSTOP)


@op(required_resource_keys={"store"}, retry_policy=RetryPolicy(max_retries=2))
def says_nothing(context: OpExecutionContext) -> None:
    """Lives, but for longer than it said it would it does not tell how far it is; the first time."""
    with running_step(context, CONFIG, 0, silence=3.0):
        _begin(context)
        if len(begun(context.run_id, context.op_handle.name)) == 1:
            time.sleep(600)


@op(required_resource_keys={"store"}, tags={QUEUE_TAG: "gpu"})
def on_a_device(context: OpExecutionContext) -> None:
    """Is for the other queue."""
    with running_step(context, CONFIG, 0):
        _begin(context)


def _end_the_session(storage: Any) -> None:
    """PostgreSQL ends a session while it is asked something, as its restart does."""
    with storage._connect() as connection:
        connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))


def _end_the_session_of(kind: DagsterEventType) -> None:
    """The same, while this process writes the next event of a kind."""
    from dagster_postgres.event_log import PostgresEventLogStorage

    write = PostgresEventLogStorage.store_event

    def cut_off(storage: Any, event: Any) -> None:
        if event.dagster_event is not None and event.dagster_event.event_type == kind:
            PostgresEventLogStorage.store_event = write  # type: ignore[method-assign]
            _end_the_session(storage)
        write(storage, event)

    PostgresEventLogStorage.store_event = cut_off  # type: ignore[method-assign]


@op(required_resource_keys={"store"}, retry_policy=LOST, config_schema={"when": str})
def is_cut_off(context: OpExecutionContext) -> None:
    """Loses PostgreSQL at its end, the first time: when it asks something, or when the next event of
    a kind is written.
    """
    with once(), running_step(context, CONFIG, 0):
        _begin(context)
        if len(begun(context.run_id, context.op_handle.name)) > 1:
            return
        when = context.op_config["when"]
        if when == "asks":
            _end_the_session(context.instance.event_log_storage)
        _end_the_session_of(DagsterEventType(when))


@job(executor_def=celery_executor)
def two() -> None:
    """Two steps for the queue ``selfplay``."""
    waits.alias("one")()
    waits.alias("another")()


@job(executor_def=celery_executor)
def one() -> None:
    """One such step."""
    waits.alias("one")()


@job(executor_def=celery_executor)
def stopping() -> None:
    """A step that hangs, and gives no sign of life."""
    stops()


@job(executor_def=celery_executor)
def silent() -> None:
    """A step that hangs, in a process that lives."""
    says_nothing()


@job(executor_def=celery_executor)
def cut_off() -> None:
    """A step that loses PostgreSQL."""
    is_cut_off()


@job(executor_def=celery_executor)
def device() -> None:
    """A step for the queue ``gpu``."""
    on_a_device()


defs = Definitions(
    jobs=[two, one, stopping, silent, cut_off, device],
    resources={"store": StoreResource(), "io_manager": JsonIOManager()},
)
