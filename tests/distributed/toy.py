"""A code location of tiny steps on Celery's workers: real code server, run worker, queues and workers,
nothing that plays or trains.
"""

import os
import signal
import time
from pathlib import Path

from dagster import Definitions, OpExecutionContext, RetryPolicy, job, op

from ringrift_pipeline.orchestration.celery_executor import celery_executor
from ringrift_pipeline.orchestration.io_managers import JsonIOManager
from ringrift_pipeline.orchestration.pools import QUEUE_TAG
from ringrift_pipeline.orchestration.resources import StoreResource
from ringrift_pipeline.orchestration.step import running_step

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
def device() -> None:
    """A step for the queue ``gpu``."""
    on_a_device()


defs = Definitions(
    jobs=[two, one, stopping, silent, device],
    resources={"store": StoreResource(), "io_manager": JsonIOManager()},
)
