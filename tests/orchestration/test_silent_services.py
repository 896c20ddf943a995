"""A service that hangs is noticed by its silence."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from dagster import DagsterInstance
from dagster._daemon.types import DaemonHeartbeat

from ringrift_pipeline.orchestration import silent_services
from ringrift_pipeline.orchestration.silent_services import Answers, Heartbeats, Silence
from tests.waiting import until


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``passing(seconds)``: the clock that nobody can turn goes on."""
    now = [100.0]
    monkeypatch.setattr(silent_services.time, "monotonic", lambda: now[0])

    def go_on(seconds: float) -> None:
        now[0] += seconds

    return go_on


def test_one_that_gives_signs_lives(passing: Any) -> None:
    signs = iter(range(1000))
    silence = Silence(lambda: next(signs))
    for _ in range(200):
        passing(10.0)
        assert not silence.too_long


@pytest.mark.parametrize("sign", [None, 7])
def test_one_that_repeats_itself_or_says_nothing_does_not(sign: object, passing: Any) -> None:
    silence = Silence(lambda: sign)
    heard = []
    for _ in range(70):
        passing(10.0)
        heard.append(silence.too_long)
    first = heard.index(True)
    assert 60 <= first <= 61 and all(heard[first:])  # ten minutes, and the one look that heard it


def test_a_computer_at_rest_is_no_reason(passing: Any) -> None:
    silence = Silence(lambda: None)
    passing(8 * 3600.0)
    assert not silence.too_long


def test_the_newest_heartbeat_of_any_part_is_a_sign() -> None:
    with DagsterInstance.ephemeral() as instance:
        newest = Heartbeats(instance)
        assert newest() is None
        for kind, when in (("SENSOR", 50.0), ("SCHEDULER", 40.0)):
            instance.add_daemon_heartbeat(DaemonHeartbeat(when, kind, None))
        until(lambda: newest() == 50.0, "the newest heartbeat")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("late", [False, True])
def test_a_database_that_does_not_answer_is_no_silence_of_the_daemon(
    late: bool, passing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    may = threading.Event()

    def away() -> Any:
        if late:
            may.wait(60)
        raise ConnectionError("the database is away")

    with DagsterInstance.ephemeral() as instance:
        monkeypatch.setattr(instance, "get_daemon_heartbeats", away)
        beats = Heartbeats(instance)
        silence = Silence(beats)
        for _ in range(200):
            passing(10.0)
            assert not silence.too_long
            while not late and beats._asking is not None and beats._asking.is_alive():
                pass
        may.set()


def test_an_answer_that_does_not_come_is_not_waited_for() -> None:
    asked, may = [], threading.Event()

    def ask() -> None:
        asked.append(True)
        may.wait(60)
        if len(asked) > 1:
            raise ConnectionError

    answers = Answers(ask)
    assert answers() == answers() == 0 and len(asked) == 1
    may.set()
    until(lambda: answers() == 1, "the answer")
    until(lambda: answers() and len(asked) > 3, "it is asked again and again")
    assert answers() == 1  # an error is none
