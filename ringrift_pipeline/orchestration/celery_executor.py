"""The executor ``celery``: Dagster's own for steps that run elsewhere, with Celery to carry them.

Events come back through Dagster's event log, not through Redis, so that nothing a step has said is lost
with it. The executor reads them there, asks after the steps every few seconds, and does again what its
policy allows. Importing this imports nothing of Celery's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dagster import (
    DagsterEvent,
    DagsterEventType,
    DagsterInstance,
    InitExecutorContext,
    executor,
    multiple_process_executor_requirements,
)
from dagster._core.execution.retries import RetryMode, get_retries_config
from dagster._core.executor.step_delegating.step_delegating_executor import StepDelegatingExecutor

from ringrift_pipeline.orchestration.celery_settings import CelerySettings

if TYPE_CHECKING:
    from ringrift_pipeline.orchestration.celery_steps import CelerySteps

LOOK = 2  # seconds between two looks after the steps
TICK = 0.5  # seconds between two looks into the event log

# Events are numbered when they are written, and seen when their transaction ends: of several writers a
# later number may be there first. So many numbers are looked at again.
OVERTAKEN = 100


class CeleryStepExecutor(StepDelegatingExecutor):
    """Dagster's executor of remote steps, which takes one end of each step and no second one.

    A worker that was taken for lost may come to the end of its step after all. Dagster's executor
    would fall over the second end. And it misses no event that another worker's has overtaken.
    """

    def __init__(self, steps: CelerySteps, retries: RetryMode) -> None:
        super().__init__(
            steps, retries, sleep_seconds=TICK, check_step_health_interval_seconds=LOOK
        )
        self._steps = steps
        self._open: set[str] = set()

    def _get_pop_events_offset(self, instance: DagsterInstance) -> int:
        return super()._get_pop_events_offset(instance) or OVERTAKEN

    def _pop_events(
        self, instance: DagsterInstance, run_id: str, seen_storage_ids: set[int]
    ) -> Sequence[DagsterEvent]:
        from sqlalchemy.exc import DBAPIError

        self._steps.begin_look()
        found: Sequence[DagsterEvent] = ()
        with contextlib.suppress(DBAPIError):  # it went away while it answered: asked again
            found = super()._pop_events(instance, run_id, seen_storage_ids)
        return [event for event in found if self._is_first(run_id, event)]

    def _is_first(self, run_id: str, event: DagsterEvent) -> bool:
        """Not if it ends a step that has not been handed out since it ended before."""
        key = str(event.step_key)
        if event.event_type == DagsterEventType.STEP_WORKER_STARTING:
            self._open.add(key)
        elif event.is_step_success or event.is_step_failure or event.is_step_up_for_retry:
            if key not in self._open:
                return False
            self._open.remove(key)
            self._steps.end(run_id, key)
        return True


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
