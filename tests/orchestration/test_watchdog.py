"""The step watchdog: asks first, leaves when asking does not help."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.test_utils import create_run_for_test

from ringrift_pipeline.orchestration import remote
from ringrift_pipeline.orchestration.watchdog import EXIT_CODE, Watchdog, run_is_over

FAST = 0.02


def wait_for(condition, seconds: float = 20.0) -> bool:  # type: ignore[no-untyped-def]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(FAST)
    return False


def test_asks_then_leaves() -> None:
    left: list[int] = []
    over = False
    with Watchdog(lambda: over, interval=FAST, grace=FAST, leave=left.append) as dog:
        assert not dog.stopping()
        over = True
        assert wait_for(dog.stopping)
        assert wait_for(lambda: left == [EXIT_CODE])


def test_a_step_that_ends_in_time_is_left_alone() -> None:
    left: list[int] = []
    with Watchdog(lambda: True, interval=FAST, grace=30.0, leave=left.append) as dog:
        assert wait_for(dog.stopping)
    assert left == []


@pytest.mark.parametrize("finished", [False, True])
def test_a_step_whose_run_has_ended_is_left_before_its_success_can_land(finished: bool) -> None:
    left: list[int] = []
    with Watchdog(lambda: False, finished=lambda: finished, interval=30.0, leave=left.append):
        pass
    assert left == [EXIT_CODE] * finished


def test_an_error_while_looking_ends_nothing() -> None:
    looks: list[int] = []

    def over() -> bool:
        looks.append(1)
        raise OSError("database is locked")

    with Watchdog(over, interval=FAST, leave=None) as dog:
        assert wait_for(lambda: len(looks) > 3)
        assert not dog.stopping()


def test_never_leaves_the_main_process() -> None:
    assert multiprocessing.parent_process() is None
    with DagsterInstance.ephemeral() as instance:
        dog = Watchdog.of_run(instance, "no-such-run")
        assert dog._leave is None


@pytest.mark.parametrize(
    ("status", "over"),
    [
        (DagsterRunStatus.STARTED, False),
        (DagsterRunStatus.STARTING, False),
        (DagsterRunStatus.CANCELING, True),
        (DagsterRunStatus.CANCELED, True),
        (DagsterRunStatus.FAILURE, True),
        (DagsterRunStatus.SUCCESS, True),
    ],
)
def test_which_runs_are_over(status: DagsterRunStatus, over: bool) -> None:
    with DagsterInstance.ephemeral() as instance:
        run = create_run_for_test(instance, status=status)
        assert run_is_over(instance, run.run_id) is over
        assert run_is_over(instance, "deleted")


def test_what_the_history_answers_is_noted_of_a_step_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else it counts as cut off, and its process ends."""
    left: list[int] = []
    with DagsterInstance.ephemeral() as instance:
        run = create_run_for_test(instance, status=DagsterRunStatus.STARTED)
        step = remote.begin()
        try:
            dog = Watchdog.of_run(instance, run.run_id, left.append, "one")
            for question in (dog._over, dog._finished):
                step.answered = False
                assert not dog._asks(question) and step.answered
            monkeypatch.setattr(type(instance), "get_run_by_id", broken)
            step.answered = False
            assert not dog._asks(dog._over) and not step.answered
        finally:
            remote.end()
        remote.note_answer()  # nobody is asked elsewhere than in such a step
    assert not left


def broken(*_: object) -> None:
    raise OSError("the database is away")


CHILD = """
import os, sys, time
from ringrift_pipeline.orchestration.watchdog import Watchdog
with Watchdog(lambda: False, interval=0.05, grace=0.05):
    open(sys.argv[1], "w").write(str(os.getpid()))
    time.sleep(120)  # as deaf as a compiled kernel
"""
PARENT = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', *sys.argv[1:]]).wait()"


def test_an_orphan_leaves(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD, str(note)])
    assert wait_for(lambda: note.exists() and note.read_text() != "", 60.0)
    child = int(note.read_text())
    parent.kill()
    parent.wait()

    def gone() -> bool:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return True
        state = Path(f"/proc/{child}/stat")
        return state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] == "Z"

    assert wait_for(gone)
