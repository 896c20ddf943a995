"""Jobs over worker processes: what lands, and that one which dies or hangs is told of at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from typing import Any

import pytest

from ringrift_pipeline.evaluation.processes import (
    WorkerDiedError,
    asked_to_stop,
    tell,
    work_through,
)


class Desk:
    """Keeps what it hears; ``unwanted`` jobs are not begun."""

    def __init__(self, unwanted: tuple[Any, ...] = ()) -> None:
        self.unwanted = unwanted
        self.landed: dict[Any, Any] = {}
        self.heard: list[Any] = []

    def wanted(self, job: Any) -> bool:
        return job not in self.unwanted

    def land(self, job: Any, result: Any) -> None:
        self.landed[job] = result

    def hear(self, message: Any) -> None:
        self.heard.append(message)

    def check(self) -> None:
        pass


class Odd(Exception):
    """One that pickles, and cannot be made again."""

    def __init__(self, what: str, more: str) -> None:
        super().__init__(f"{what} {more}")


class Unreadable:
    """What pickles, and is an error where it arrives."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


def behave(job: tuple[str, int]) -> Any:
    """Work in a worker."""
    what, number = job
    if what == "told":
        tell(number)
        return number * number
    if what == "large":
        return bytes(number)
    if what == "fails":
        raise ValueError(f"job {number} cannot be done")
    if what == "odd":
        raise Odd("an error", "of two words")
    if what == "no result":
        return threading.Lock()
    if what == "garbles":
        tell(Unreadable())
        time.sleep(600)
    if what == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    tell((what, os.getpid()))
    if what == "asks":  # as work does that takes its time
        end = time.monotonic() + number
        while time.monotonic() < end:
            assert not asked_to_stop()
            time.sleep(0.05)
    if what == "is stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(600)
    if what == "is silent":
        time.sleep(600)
    return None


@pytest.fixture(autouse=True)
def nobody_is_left() -> Any:
    yield
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [1, 2])
def test_all_wanted_jobs_land_and_are_heard(workers: int) -> None:
    desk = Desk(unwanted=(("told", 3),))
    work_through([("told", number) for number in range(6)], behave, workers, desk)
    wanted = [0, 1, 2, 4, 5]
    assert desk.landed == {("told", number): number**2 for number in wanted}
    assert sorted(desk.heard) == wanted


def test_a_result_larger_than_a_pipe_lands() -> None:
    desk = Desk()
    work_through([("large", 5_000_000)], behave, 1, desk)
    assert desk.landed == {("large", 5_000_000): bytes(5_000_000)}


@pytest.mark.parametrize(
    ("what", "error", "said"),
    [
        ("fails", ValueError, "job 7 cannot be done"),
        ("odd", RuntimeError, "an error of two words"),
        ("no result", RuntimeError, "cannot pickle"),
    ],
)
def test_an_error_of_a_job_comes_here_with_where_it_was(what: str, error: Any, said: str) -> None:
    with pytest.raises(error, match=said) as raised:
        work_through([(what, 7), ("is silent", 0)], behave, 2, Desk())
    told = str(raised.value) + "".join(getattr(raised.value, "__notes__", ()))
    assert "Traceback" in told and "processes.py" in told


@pytest.mark.parametrize("what", ["dies", "garbles"])
def test_a_worker_that_is_gone_is_told_of_and_has_ended(what: str) -> None:
    with pytest.raises(WorkerDiedError, match="died"):
        work_through([(what, 0), ("is silent", 0)], behave, 2, Desk())


@pytest.mark.parametrize("what", ["is stopped", "is silent"])
def test_a_worker_that_hangs_is_killed_and_told_of(what: str) -> None:
    desk = Desk()
    jobs = [("asks", 600), (what, 0)]
    with pytest.raises(WorkerDiedError, match="hung, without a sign of life for 5 s"):
        work_through(jobs, behave, 2, desk, silence=5.0)
    assert what in [told for told, _ in desk.heard]


def test_one_that_asks_whether_to_stop_lives_longer_than_the_silence() -> None:
    desk = Desk()
    work_through([("asks", 7)], behave, 1, desk, silence=3.0)
    assert len(desk.heard) == 1 and ("asks", 7) in desk.landed


def test_time_in_which_the_parent_rested_does_not_count() -> None:
    class Resting(Desk):
        def hear(self, message: Any) -> None:
            super().hear(message)
            time.sleep(4.0)  # its words lie in the inbox meanwhile

    desk = Resting()
    work_through([("asks", 1), ("told", 2)], behave, 2, desk, silence=3.0)
    assert len(desk.landed) == 2
