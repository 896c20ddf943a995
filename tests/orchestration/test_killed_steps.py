"""What is told of a step whose process was killed: Dagster's own error has no text."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import (
    DagsterEvent,
    DagsterEventType,
    DagsterInstance,
    DagsterRun,
    execute_job,
    job,
    multiprocess_executor,
    op,
)
from dagster._core.definitions.reconstruct import ReconstructableJob
from dagster._core.events import EngineEventData
from dagster._core.execution.plan.objects import StepFailureData, StepRetryData
from dagster._core.executor.child_process_executor import ChildProcessCrashException
from dagster._core.test_utils import create_run_for_test
from dagster._utils import get_run_crash_explanation
from dagster._utils.error import SerializableErrorInfo

from ringrift_pipeline.orchestration.backend import Backend
from ringrift_pipeline.orchestration.failure_sensor import first_failure
from ringrift_pipeline.orchestration.instance import open_instance
from ringrift_pipeline.orchestration.progress import ProgressFile, StepProgress, read_progress
from ringrift_pipeline.orchestration.silent_steps import SilentSteps

STEP = "square8_2p__checkpoint"
NAME = ChildProcessCrashException.__name__
ERROR = SerializableErrorInfo(f"{ChildProcessCrashException.__module__}.{NAME}\n", [], NAME)


@pytest.fixture
def instance(data: Path) -> Iterator[DagsterInstance]:
    with open_instance(data) as made:
        yield made


@pytest.fixture
def run(instance: DagsterInstance) -> DagsterRun:
    return create_run_for_test(instance)


def ended(instance: DagsterInstance, run: DagsterRun, code: int | None, again: bool) -> None:
    """As Dagster's executor tells it of a step's process."""
    if code is not None:
        prefix = f"Multiprocess executor: child process for step {STEP}"
        instance.report_engine_event(
            get_run_crash_explanation(prefix, code),
            run,
            EngineEventData.engine_error(ERROR),
            step_key=STEP,
        )
    kind = DagsterEventType.STEP_UP_FOR_RETRY if again else DagsterEventType.STEP_FAILURE
    data = StepRetryData(ERROR) if again else StepFailureData(ERROR, None)
    event = DagsterEvent(kind.value, run.job_name, step_key=STEP, event_specific_data=data)
    instance.report_dagster_event(event, run.run_id)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (-9, r"its process was killed \(SIGKILL\), perhaps for want of memory; .*batch_size"),
        (-11, r"its process was killed \(SIGSEGV\)$"),
        (3, r"its process ended with exit code 3, without a word$"),
        (None, r"its process was killed, perhaps for want of memory; .*parallel_games"),
    ],
)
def test_a_killed_step_is_said_to_be(
    code: int | None, told: str, instance: DagsterInstance, run: DagsterRun
) -> None:
    ended(instance, run, -15, again=True)
    ended(instance, run, code, again=False)
    step, why = first_failure(instance, run.run_id)
    assert step == STEP
    assert re.match(told, why), why


def hung(instance: DagsterInstance, data: Path, run: DagsterRun) -> None:
    """A step tells nothing for 1800 s, and whoever runs the daemon tells of it."""
    made = Backend.__new__(Backend)
    made._instance = instance
    place = (data, run.run_id, STEP, "square8_2p", "0000")
    with ProgressFile(*place, None, 1800.0):
        (step,) = read_progress(data, run.run_id)
    made._tell_hung(step)


def test_a_step_that_was_killed_as_it_hung_is_said_to_have_hung(
    instance: DagsterInstance, data: Path, run: DagsterRun
) -> None:
    hung(instance, data, run)
    ended(instance, run, -9, again=True)
    hung(instance, data, run)
    ended(instance, run, -9, again=False)
    told = f"it hung: it had told nothing for 1800 s, and its process {os.getpid()} was killed"
    assert first_failure(instance, run.run_id) == (STEP, told)


def test_one_that_hung_before_is_not_said_to_have_hung_now(
    instance: DagsterInstance, data: Path, run: DagsterRun
) -> None:
    hung(instance, data, run)
    ended(instance, run, -9, again=True)
    ended(instance, run, -9, again=False)
    assert "SIGKILL" in first_failure(instance, run.run_id)[1]


def test_a_step_is_told_of_before_it_is_killed(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads its run's log meets the reason first."""
    did: list[str] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: did.append(f"killed {pid}"))
    with ProgressFile(data, "run", STEP, "square8_2p", "0000", None, 1e-9):
        steps = SilentSteps(data, os.getpgid(0))

        def tell(step: StepProgress) -> None:
            did.append(f"told of {step.pid}")

        while not steps.look(tell):
            pass
    assert did[:2] == [f"told of {os.getpid()}", f"killed {os.getpid()}"]


@op
def is_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@job(executor_def=multiprocess_executor)
def killed() -> None:
    is_killed()


@pytest.mark.whole
def test_dagster_says_it_as_we_read_it(instance: DagsterInstance) -> None:
    this = ReconstructableJob.for_file(__file__, "killed")
    with execute_job(this, instance) as result:
        assert not result.success
        step, why = first_failure(instance, result.run_id)
    assert step == "is_killed" and why.startswith("its process was killed (SIGKILL), perhaps")
