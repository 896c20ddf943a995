"""What the executor for Celery's workers reads in the event log: every event, and of every step one end."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from dagster import (
    DagsterEvent,
    DagsterEventType,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    executor,
    job,
    op,
    reconstructable,
)
from dagster._core.events import EngineEventData, StepSuccessData
from dagster._core.execution.api import execute_run_iterator
from dagster._core.execution.plan.objects import StepFailureData, StepRetryData
from dagster._core.execution.plan.outputs import StepOutputData, StepOutputHandle
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.step_delegating import step_delegating_executor
from dagster._core.executor.step_delegating.step_handler.base import (
    CheckStepHealthResult,
    StepHandler,
    StepHandlerContext,
)
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster._core.test_utils import create_run_for_test
from dagster._time import get_current_datetime
from dagster._utils.error import SerializableErrorInfo
from sqlalchemy.exc import OperationalError

from ringrift_pipeline.orchestration import celery_executor
from ringrift_pipeline.orchestration.celery_executor import CeleryStepExecutor

LOST = SerializableErrorInfo("lost", [], None)
STARTING = (DagsterEventType.STEP_WORKER_STARTING, EngineEventData({}))
SUCCESS = (DagsterEventType.STEP_SUCCESS, StepSuccessData(1.0))


class Noting:
    """In the place of the steps: what they were told."""

    def __init__(self) -> None:
        self.ends: list[str] = []
        self.looks = 0

    def begin_look(self) -> None:
        self.looks += 1

    def end(self, run_id: str, key: str) -> None:
        self.ends.append(key)


def report(
    instance: DagsterInstance, run: DagsterRun, kind: DagsterEventType, data: Any, step: str
) -> None:
    """Write an event as a worker does."""
    event = DagsterEvent(kind.value, run.job_name, step_key=step, event_specific_data=data)
    instance.report_dagster_event(event, run.run_id)


@pytest.mark.parametrize("others", [0, 200])
def test_an_event_that_anothers_has_overtaken_is_not_missed(
    instance: DagsterInstance, others: int
) -> None:
    """Of two workers the second may have ended its transaction first, with the higher number, however
    many numbers other runs have taken between the two.
    """
    run, other = create_run_for_test(instance), create_run_for_test(instance)
    made = CeleryStepExecutor(Noting(), RetryMode.ENABLED)  # type: ignore[arg-type]
    for step in ("one", "another"):
        report(instance, run, *STARTING, step)
    report(instance, run, *SUCCESS, "one")
    for _ in range(others):
        report(instance, other, DagsterEventType.ENGINE_EVENT, EngineEventData({}), "one")
    report(instance, run, *SUCCESS, "another")
    storage: Any = instance.event_log_storage
    table = SqlEventLogStorageTable
    is_late = (table.c.run_id == run.run_id) & (table.c.step_key == "one")
    is_late &= table.c.dagster_event_type == "STEP_SUCCESS"
    with storage.index_connection() as connection:
        late = dict(connection.execute(table.select().where(is_late)).mappings().one())
        connection.execute(table.delete().where(is_late))
    seen: set[int] = set()

    def ends() -> list[str | None]:
        events = made._pop_events(instance, run.run_id, seen)
        return [event.step_key for event in events if event.is_step_success]

    assert ends() == ["another"]
    with storage.index_connection() as connection:
        connection.execute(table.insert().values(**late))
    assert ends() == ["one"] and ends() == []


def test_events_are_looked_at_again_for_seconds_and_not_all_of_them(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, read = SimpleNamespace(now=1000.0), list[int]()
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(celery_executor, "time", clock)
    monkeypatch.setattr(celery_executor, "OVERTAKEN_AT_MOST", 20)
    made = CeleryStepExecutor(Noting(), RetryMode.ENABLED)  # type: ignore[arg-type]
    run = create_run_for_test(instance)
    for _ in range(30):
        report(instance, run, DagsterEventType.ENGINE_EVENT, EngineEventData({}), "one")
    get = instance.get_records_for_run

    def getting(*arguments: Any, **named: Any) -> Any:
        page = get(*arguments, **named)
        read.append(len(page.records))
        return page

    monkeypatch.setattr(instance, "get_records_for_run", getting)
    seen: set[int] = set()
    for seconds in (0.0, 0.5, 9.0, 1.0, 0.5):
        clock.now += seconds
        made._pop_events(instance, run.run_id, seen)
    assert read == [30, 20, 20, 20, 0]


def test_a_step_that_was_taken_for_lost_ends_once(instance: DagsterInstance) -> None:
    run = create_run_for_test(instance)
    noting = Noting()
    made = CeleryStepExecutor(noting, RetryMode.ENABLED)  # type: ignore[arg-type]
    again = (DagsterEventType.STEP_UP_FOR_RETRY, StepRetryData(LOST))
    failure = (DagsterEventType.STEP_FAILURE, StepFailureData(None, None))
    # It was not lost, and came to its end when it was on its way again.
    for kind, data in (STARTING, again, SUCCESS, STARTING, SUCCESS, failure):
        report(instance, run, kind, data, "play")
    found = [event.event_type for event in made._pop_events(instance, run.run_id, set())]
    assert found == [STARTING[0], again[0], STARTING[0], SUCCESS[0]]
    assert noting.ends == ["play", "play"]
    assert noting.looks == 1  # Redis may be asked again, if it was away


# --- a run that goes on in another process ------------------------------------------------------


class Ending(Noting, StepHandler):
    """Steps that come to their end as soon as they are handed out, or asked after."""

    handed_out: ClassVar[list[str]] = []

    @property
    def name(self) -> str:
        return "a test"

    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[DagsterEvent]:
        (key,) = step_handler_context.execute_step_args.step_keys_to_execute or ()
        self.handed_out.append(key)
        self._come_to_an_end(step_handler_context, key)
        yield from ()

    def check_step_health(self, step_handler_context: StepHandlerContext) -> CheckStepHealthResult:
        (key,) = step_handler_context.execute_step_args.step_keys_to_execute or ()
        self._come_to_an_end(step_handler_context, key)
        return CheckStepHealthResult.healthy()

    def terminate_step(self, step_handler_context: StepHandlerContext) -> Iterator[DagsterEvent]:
        yield from ()

    def _come_to_an_end(self, context: StepHandlerContext, key: str) -> None:
        for kind, data in (output_of(key), SUCCESS):
            report(context.instance, context.dagster_run, kind, data, key)


def output_of(step: str) -> tuple[DagsterEventType, Any]:
    return DagsterEventType.STEP_OUTPUT, StepOutputData(StepOutputHandle(step, "result"))


@executor(name="resuming")
def resuming(_: Any) -> CeleryStepExecutor:
    return CeleryStepExecutor(Ending(), RetryMode.ENABLED)  # type: ignore[arg-type]


@op
def begins() -> int:
    return 1


@op
def follows(before: int) -> int:
    return before


@job(executor_def=resuming)
def chain() -> None:
    """Four steps, one after the other."""
    follows.alias("fourth")(
        follows.alias("third")(follows.alias("second")(begins.alias("first")()))
    )


def test_a_run_goes_on_in_another_process_from_all_that_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_EXECUTOR_POP_EVENTS_LIMIT", "10")  # else a thousand
    monkeypatch.setattr(Ending, "handed_out", [])
    unsaid = {"telemetry": {"enabled": False}}
    with DagsterInstance.local_temp(str(tmp_path), overrides=unsaid) as instance:
        run = instance.create_run_for_job(chain, status=DagsterRunStatus.STARTED)
        # A retry that was waited for long ago, and two steps that ended behind the first batch.
        again = (DagsterEventType.STEP_UP_FOR_RETRY, StepRetryData(LOST, seconds_to_wait=3600))
        noise = [(DagsterEventType.ENGINE_EVENT, EngineEventData({}))] * 20
        for step, happened in {
            "first": [STARTING, again, STARTING, *noise, output_of("first"), SUCCESS],
            "second": [STARTING, output_of("second"), SUCCESS],
            "third": [STARTING],
        }.items():
            for kind, data in happened:
                report(instance, run, kind, data, step)
        events = list(
            execute_run_iterator(reconstructable(chain), run, instance, resume_from_failure=True)
        )
        assert instance.get_run_by_id(run.run_id).status == DagsterRunStatus.SUCCESS, events
    ends = [event.step_key for event in events if event.is_step_success]
    assert ends == ["first", "second", "third", "fourth"]
    assert Ending.handed_out == ["fourth"]


def test_a_run_does_not_go_on_from_a_part_of_what_was_written(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL goes in the middle of it: else it is only asked again."""
    made = CeleryStepExecutor(Noting(), RetryMode.ENABLED)  # type: ignore[arg-type]
    run = create_run_for_test(instance)
    report(instance, run, *STARTING, "one")

    def gone(*_: Any, **__: Any) -> Any:
        raise OperationalError("select", {}, Exception("server closed the connection"))

    seen: set[int] = set()
    with monkeypatch.context() as patch:
        patch.setattr(instance, "get_records_for_run", gone)
        assert made._pop_events(instance, run.run_id, seen) == []
        made._resumes = True
        with pytest.raises(OperationalError):
            made._pop_events(instance, run.run_id, seen)
    assert len(made._pop_events(instance, run.run_id, seen)) == 1


def test_a_step_whose_start_is_not_written_ends_all_the_same(instance: DagsterInstance) -> None:
    """The run's process went between the two; it was handed out by the next one."""
    made, run = CeleryStepExecutor(Noting(), RetryMode.ENABLED), create_run_for_test(instance)  # type: ignore[arg-type]
    report(instance, run, *SUCCESS, "one")
    assert len(made._pop_events(instance, run.run_id, set())) == 1


# --- a clock that is turned back ----------------------------------------------------------------


class Lost(Ending):
    """Steps that end where they are asked after, and not before."""

    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[DagsterEvent]:
        yield from ()


@executor(name="losing")
def losing(_: Any) -> CeleryStepExecutor:
    return CeleryStepExecutor(Lost(), RetryMode.ENABLED)  # type: ignore[arg-type]


@job(executor_def=losing)
def single() -> None:
    """One step."""
    begins()


def test_steps_are_asked_after_while_the_clock_is_turned_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half an hour, in which nobody would hear of a lost worker."""
    asked = 0

    def turned_back() -> Any:
        nonlocal asked
        asked += 1
        assert asked < 300, "no step is asked after"
        return get_current_datetime() - timedelta(minutes=30 if asked > 1 else 0)

    monkeypatch.setattr(step_delegating_executor, "get_current_datetime", turned_back)
    monkeypatch.setattr(celery_executor, "LOOK", 0.05)
    monkeypatch.setattr(celery_executor, "TICK", 0.01)
    unsaid = {"telemetry": {"enabled": False}}
    with DagsterInstance.local_temp(str(tmp_path), overrides=unsaid) as instance:
        run = instance.create_run_for_job(single)
        events = list(execute_run_iterator(reconstructable(single), run, instance))
        assert instance.get_run_by_id(run.run_id).status == DagsterRunStatus.SUCCESS, events


def test_steps_are_asked_after_every_other_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=1000.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(celery_executor, "time", clock)
    made = CeleryStepExecutor(Noting(), RetryMode.ENABLED)  # type: ignore[arg-type]
    asked = []
    for _ in range(20):  # each of Dagster's, by a clock that is an hour ahead or behind
        clock.now += 0.5
        passed = (-3600.0, 3600.0)[len(asked) % 2]
        asked.append(passed >= made._check_step_health_interval_seconds)
    assert asked == [False, False, False, True] * 5
