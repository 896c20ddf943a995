"""A code location of tiny steps, for the guards that work on real runs: real code server, real
workers, real executor, nothing that plays or trains.
"""

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

from dagster import (
    Config,
    Definitions,
    OpExecutionContext,
    RetryPolicy,
    job,
    multiprocess_executor,
    op,
)

from ringrift_pipeline.orchestration.io_managers import JsonIOManager
from ringrift_pipeline.orchestration.pools import limits_in_a_run, pool_of, tags_of
from ringrift_pipeline.orchestration.resources import StoreResource
from ringrift_pipeline.orchestration.step import running_step

MODULE = "tests.orchestration.toy"
CONFIG = "square8_2p"


def note(root: Path, name: str) -> Path:
    """A file that the steps and the test tell each other things by."""
    return root / f"toy-{name}"


def start_slowly() -> None:
    """A run's process that is long in starting: it waits for as long as there is the file ``hold``."""
    root = os.environ.get("RINGRIFT_DATA")
    while root and multiprocessing.parent_process() and note(Path(root), "hold").exists():
        time.sleep(0.02)


start_slowly()


class Behaviour(Config):
    """What the second step does: ``deaf`` to everything for a minute, ``draft`` the same with half
    an artefact written, ``wait`` for the file ``go``, or ``pass``.
    """

    mode: str = "pass"


@op(required_resource_keys={"store"})
def first(context: OpExecutionContext) -> dict[str, Any]:
    """Counts how often it was run."""
    with running_step(context, CONFIG, 0) as step, open(note(step.store.root, "first"), "a") as log:
        log.write(context.run_id + "\n")
    return {"made_by": context.run_id}


@op(required_resource_keys={"store"})
def second(
    context: OpExecutionContext,
    config: Behaviour,
    given: dict[str, Any],
) -> dict[str, Any]:
    """Behaves as it is told."""
    with running_step(context, CONFIG, 0) as step:
        if config.mode == "wait":
            while not note(step.store.root, "go").exists():
                time.sleep(0.02)
        elif config.mode == "draft":
            with step.store.create(CONFIG, 0, "half") as draft:
                (draft / "rows").write_text("half of it")
                sleep_deaf()
        elif config.mode == "deaf" and not note(step.store.root, "healed").exists():
            sleep_deaf()
    return given


def sleep_deaf() -> None:
    """As deaf as a compiled kernel: no signal is handled before a minute is over."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    time.sleep(60)


@op(required_resource_keys={"store"}, pool=pool_of("checkpoint"), tags=tags_of("checkpoint"))
def on_the_gpu(context: OpExecutionContext) -> None:
    """Notes when it began and ended."""
    with running_step(context, CONFIG, 0) as step:
        began = time.time()
        time.sleep(0.5)
        with open(note(step.store.root, "gpu"), "a") as log:
            log.write(f"{began} {time.time()}\n")


@op(required_resource_keys={"store"}, retry_policy=RetryPolicy(max_retries=2))
def hangs(context: OpExecutionContext, config: Behaviour) -> None:
    """Stops its own process, threads and all: ``deaf`` every time, else the first time only."""
    with running_step(context, CONFIG, 0, silence=2.0) as step:
        log = note(step.store.root, f"hung-{context.run_id}")
        with open(log, "a") as file:
            file.write("x")
        if config.mode == "deaf" or log.read_text() == "x":
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(60)


executor = multiprocess_executor.configured(
    {
        "max_concurrent": 3,
        "tag_concurrency_limits": limits_in_a_run(),
        "start_method": {"forkserver": {"preload_modules": [MODULE]}},
    }
)


@job(executor_def=executor)
def guarded() -> None:
    """Two steps, the second of which may misbehave."""
    second(first())


@job(executor_def=executor)
def crowded() -> None:
    """Two steps that want the GPU."""
    on_the_gpu.alias("one")()
    on_the_gpu.alias("another")()


@job(executor_def=executor)
def hanging() -> None:
    """A step that hangs."""
    hangs()


defs = Definitions(
    jobs=[guarded, crowded, hanging],
    resources={"store": StoreResource(), "io_manager": JsonIOManager()},
)
