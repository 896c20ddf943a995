"""The executor ``celery``: Dagster's own for steps that run elsewhere, with Celery to carry them.

Events come back through Dagster's event log, not through Redis, so that nothing a step has said is lost
with it. The executor reads them there, asks after the steps every few seconds, and does again what its
policy allows. Importing this imports nothing of Celery's.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dagster import (
    DagsterEvent,
    DagsterEventType,
    DagsterInstance,
    InitExecutorContext,
    executor,
    multiple_process_executor_requirements,
)
from dagster._core.event_api import EventLogCursor
from dagster._core.execution.retries import RetryMode, get_retries_config
from dagster._core.executor.step_delegating.step_delegating_executor import StepDelegatingExecutor

from ringrift_pipeline.orchestration.celery_settings import CelerySettings

if TYPE_CHECKING:
    from dagster._core.execution.context.system import PlanOrchestrationContext
    from dagster._core.execution.plan.plan import ExecutionPlan

    from ringrift_pipeline.orchestration.celery_steps import CelerySteps

LOOK = 2  # seconds between two looks after the steps
TICK = 0.5  # seconds between two looks into the event log

# Events are numbered when they are written, and seen when their transaction ends: of several writers a
# later number may be there first. So what is behind a number is looked at again for so many seconds
# after that was first seen. The numbers are all runs' together, and tell nothing of the time.
OVERTAKEN = 10.0
OVERTAKEN_AT_MOST = 1000  # events of the run that are looked at again; each costs


class Due:
    """In the place of the seconds between two looks: as many as `LOOK`, by a clock that nobody can turn.

    Dagster asks at every turn whether so many have passed by the computer's. Where that is turned back it
    would look after no step until it is there again.
    """

    def __init__(self) -> None:
        self._looked = time.monotonic()

    def __le__(self, passed: float) -> bool:
        """Is it time? Then it is not again until as many have passed."""
        now = time.monotonic()
        if now - self._looked < LOOK:
            return False
        self._looked = now
        return True


class CeleryStepExecutor(StepDelegatingExecutor):
    """Dagster's executor of remote steps, which takes one end of each step and no second one.

    A worker that was taken for lost may come to the end of its step after all. Dagster's executor
    would fall over the second end. And it misses no event that another worker's has overtaken.

    In a new process that goes on with a run it begins with all that was written of it. Dagster's takes
    the first thousand events, and falls over what follows from the others.
    """

    def __init__(self, steps: CelerySteps, retries: RetryMode) -> None:
        super().__init__(steps, retries, sleep_seconds=TICK)
        self._check_step_health_interval_seconds: Any = Due()
        self._steps = steps
        self._resumes = False
        self._ended: set[str] = set()
        self._read = 0  # the number up to which no event is looked for any more
        self._fresh: deque[tuple[float, int]] = deque()  # numbers after it, when first seen

    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[DagsterEvent]:
        """Execute the plan, or go on with it. Yields what happens."""
        self._resumes = plan_context.resume_from_failure
        return super().execute(plan_context, execution_plan)

    def _pop_events(
        self, instance: DagsterInstance, run_id: str, seen_storage_ids: set[int]
    ) -> Sequence[DagsterEvent]:
        from sqlalchemy.exc import DBAPIError

        self._steps.begin_look()
        resumes, self._resumes = self._resumes, False
        found: list[DagsterEvent] = []
        try:
            for event in self._unseen(instance, run_id, seen_storage_ids):
                found.append(_waited_for(event) if resumes else event)
        except DBAPIError:  # it went away while it answered: asked again
            if resumes:
                raise  # with a part of it everything would be done anew
        return [event for event in found if self._is_first(run_id, event)]

    def _unseen(
        self, instance: DagsterInstance, run_id: str, seen: set[int]
    ) -> Iterator[DagsterEvent]:
        """All events of the run that are there and have not been seen."""
        now, more = time.monotonic(), True
        cursor = EventLogCursor.from_storage_id(self._read).to_string()
        while more:
            page = instance.get_records_for_run(
                run_id, cursor, of_type=set(DagsterEventType), limit=self._pop_events_limit
            )
            for record in page.records:
                if record.storage_id in seen:
                    continue
                seen.add(record.storage_id)
                self._fresh.append((now, record.storage_id))
                if record.event_log_entry.dagster_event is not None:
                    yield record.event_log_entry.dagster_event
            cursor, more = page.cursor, page.has_more
        while self._fresh and (
            now - self._fresh[0][0] > OVERTAKEN or len(self._fresh) > OVERTAKEN_AT_MOST
        ):
            self._read = max(self._read, self._fresh.popleft()[1])

    def _is_first(self, run_id: str, event: DagsterEvent) -> bool:
        """Not if it ends a step that has not been handed out since it ended before."""
        key = str(event.step_key)
        if event.event_type == DagsterEventType.STEP_WORKER_STARTING:
            self._ended.discard(key)
        elif event.is_step_success or event.is_step_failure or event.is_step_up_for_retry:
            if key in self._ended:
                return False
            self._ended.add(key)
            self._steps.end(run_id, key)
        return True


def _waited_for(event: DagsterEvent) -> DagsterEvent:
    """An event of long ago: if it said that a step waits before it is done again, that is over."""
    if not event.is_step_up_for_retry:
        return event
    data = event.step_retry_data._replace(seconds_to_wait=None)
    return event._replace(event_specific_data=data)


@executor(
    name="celery",
    config_schema={"retries": get_retries_config()},
    requirements=multiple_process_executor_requirements(),
)
def celery_executor(context: InitExecutorContext) -> CeleryStepExecutor:
    """Steps on Celery's workers; where they are the environment says.

    Raises:
        CelerySettingsError: it does not.
    """
    settings = CelerySettings.from_environment()
    from ringrift_pipeline.orchestration.celery_steps import CelerySteps

    config: Any = context.executor_config
    return CeleryStepExecutor(CelerySteps(settings), RetryMode.from_config(config["retries"]))  # type: ignore[arg-type]
