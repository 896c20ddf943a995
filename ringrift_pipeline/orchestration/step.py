"""What every step has around it: its config and generation, progress, watchdog, a way to stop."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dagster import Failure, OpExecutionContext, RetryPolicy
from dagster._core.events import EngineEventData
from sqlalchemy.exc import SQLAlchemyError

from ringrift_pipeline.orchestration.names import generation_key, generation_of
from ringrift_pipeline.orchestration.progress import Progress, ProgressFile
from ringrift_pipeline.orchestration.watchdog import Watchdog
from ringrift_pipeline.selfplay.stopping import WorkerDiedError
from ringrift_pipeline.store import Store, VanishedFileError
from ringrift_pipeline.store.transfer import transferred

if TYPE_CHECKING:
    from ringrift_pipeline.selfplay import Plan

# Metadata of the event that says how long a step's own work took, Dagster's share left out.
BEGAN = "step/began"  # seconds since the epoch
SECONDS = "step/seconds"
# And how much of that went into requests to the bucket, where there were any.
TRANSFER_SECONDS = "step/transfer_seconds"
TRANSFER_BYTES = "step/transfer_bytes"

# Dagster's policy of a step whose process, or a worker of it, may be lost: killed, hung, or out of
# memory.
LOST = RetryPolicy(max_retries=2)

# Seconds without progress after which a step is taken for hung. All of them tell how far they are,
# or are over long before; the longest that one tells nothing is a training's look at its held-out
# games, and an evaluation of which all workers hang: it kills them itself after half of this.
SILENCE = 3600.0


@contextmanager
def once() -> Iterator[None]:
    """Around the body of a step that has the policy `LOST`: an error of its own fails it at once,
    for it would only come again. What Dagster retries then is a step that could not say why it
    ended, or that lost a process of its own, a file that it had written or Dagster's database; it goes
    on from what was finished.

    Raises:
        WorkerDiedError, VanishedFileError, SQLAlchemyError: as they came; so do those that one of the
            latter caused.
        Failure: that allows no retries, from any other error.
    """
    try:
        yield
    except (WorkerDiedError, VanishedFileError, SQLAlchemyError):
        raise
    except Failure as error:
        error.allow_retries = False
        raise
    except Exception as error:
        if isinstance(error.__cause__, SQLAlchemyError):  # dagster-postgres's, of a connection
            raise
        raise Failure(f"{type(error).__name__}: {error}", allow_retries=False) from error


@dataclass(frozen=True)
class Step:
    """A running step, as the rooms' functions need it."""

    config: str
    generation: int
    store: Store
    progress: Progress
    should_stop: Callable[[], bool]

    @property
    def key(self) -> str:
        """``config generation 0007``, for messages."""
        return f"{self.config} generation {generation_key(self.generation)}"

    def plan(self) -> Plan:
        """The generation's plan. Raises MissingArtefactError if selfplay has not been planned."""
        from ringrift_pipeline.selfplay import load_plan

        return load_plan(self.store, self.config, self.generation)

    def hooks(self) -> dict[str, Any]:
        """The keyword arguments every long-running function of the rooms takes."""
        return {"progress": self.progress, "should_stop": self.should_stop}


@contextmanager
def running_step(
    context: Any, config: str, generation: int | None = None, silence: float | None = SILENCE
) -> Iterator[Step]:
    """Progress and watchdog around a step of ``config``; the generation is the partition, where it
    is not given.

    Progress goes to a file for the command line, and to the run's log for the UI. The step needs
    the resource ``store``.

    Args:
        silence: seconds without progress after which the step is taken for hung, and killed by
            whoever runs the daemon; None for work that may tell nothing for ever.

    Raises:
        GenerationKeyError: the partition, which anybody may add in the UI, is no generation's.
    """
    op: OpExecutionContext = getattr(context, "op_execution_context", context)
    opened = op.resources.store.open()
    if generation is None:
        generation = generation_of(op.partition_key, config)
    key = generation_key(generation)
    opened.sweep(config, generation)  # what an earlier try that was killed has left half written
    step_key = op.get_step_execution_context().step.key
    place = (opened.root, op.run_id, step_key, config, key)
    progress = ProgressFile(*place, op.log.info, silence)

    def leave(code: int) -> None:
        """End this process, deaf as it is, without a trace on the disk."""
        progress.remove()
        opened.remove_own(config)
        os._exit(code)

    began, start, before = time.time(), time.monotonic(), transferred()
    dog = Watchdog.of_run(op.instance, op.run_id, leave, step_key, op.retry_number)
    with progress, dog:
        yield Step(config, generation, opened, progress, dog.stopping)
    seconds = time.monotonic() - start
    told = f"The step's own work took {seconds:.1f} s."
    metadata: dict[str, float] = {BEGAN: began, SECONDS: seconds}
    spent = transferred().since(before)
    if spent.seconds:
        told += f" Requests to the bucket: {spent.seconds:.1f} s, {spent.bytes} bytes."
        metadata |= {TRANSFER_SECONDS: spent.seconds, TRANSFER_BYTES: spent.bytes}
    with suppress(Exception):  # without it the time is not known; the work is done
        op.instance.report_engine_event(
            told, op.dagster_run, EngineEventData(metadata), step_key=step_key
        )
