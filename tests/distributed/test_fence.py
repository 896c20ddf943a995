"""A step's process on Celery's worker that nobody answers any more."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ringrift_pipeline.orchestration import remote
from tests.waiting import until

pytestmark = pytest.mark.services

LOOK = 4.0  # seconds between two looks


class Clock:
    """Every look takes some seconds, until there have been enough; what happens then is said before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from ringrift_pipeline.orchestration import celery_app

        self.now, self.looks, self.stride = 1000.0, 0, LOOK
        self.at: Any = lambda looks: None
        monkeypatch.setattr(celery_app, "time", self)

    def monotonic(self) -> float:
        self.looks += 1
        self.now += self.stride
        self.at(self.looks)
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Clock:
    monkeypatch.setenv("RINGRIFT_CELERY_BROKER", "memory://")
    monkeypatch.setenv("RINGRIFT_CELERY_LOST_AFTER", "60")
    monkeypatch.setenv("RINGRIFT_POSTGRES_PATIENCE", "120")
    monkeypatch.setenv("RINGRIFT_EXECUTOR", "celery")  # the import says so, for all that follows
    monkeypatch.setenv("RINGRIFT_DATA", str(tmp_path))
    return Clock(monkeypatch)


@pytest.fixture
def left(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """After how many silent seconds the process would have left, each time; in a step with signs."""
    from ringrift_pipeline.orchestration import celery_app

    said: list[float] = []
    monkeypatch.setattr(celery_app, "SIGN", 0.001)
    monkeypatch.setattr(celery_app, "_leave", said.append)
    yield said


class Redis:
    """Answers the signs of life, or does not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from ringrift_pipeline.orchestration.celery_app import StepTask, execute_step

        self.is_there = False
        self.signs = 0
        self.task = execute_step
        monkeypatch.setattr(self.task, "update_state", self.take)
        client = SimpleNamespace(expire=lambda *_: True)
        monkeypatch.setattr(StepTask, "_client", lambda _: client)

    def take(self, **_: Any) -> None:
        self.signs += 1
        if not self.is_there:
            raise ConnectionError("no route to host")

    def answer_once(self) -> None:
        """It is there for a whole sign of life, at least."""
        self.is_there, before = True, self.signs
        until(lambda: self.signs > before + 2, "it is told")
        self.is_there = False


@pytest.fixture
def redis(left: list[float], monkeypatch: pytest.MonkeyPatch) -> Iterator[Redis]:
    made = Redis(monkeypatch)
    made.task.push_request(id="run/one/0", hostname="worker@far")
    yield made
    made.task.request_stack.pop()


def test_a_process_that_nobody_answers_leaves(
    clock: Clock, left: list[float], redis: Redis
) -> None:
    with redis.task._signs():
        until(lambda: left, "it leaves")
    assert left[0] == 184.0  # more than the patience with PostgreSQL and a lost sign of life


@pytest.mark.parametrize("who", ["Redis", "PostgreSQL"])
def test_one_that_either_answers_now_and_then_stays(
    who: str, clock: Clock, left: list[float], redis: Redis
) -> None:
    enough = threading.Event()

    def at(looks: int) -> None:
        if looks % 40 == 0:
            remote.note_answer() if who == "PostgreSQL" else redis.answer_once()
        if looks > 400:
            enough.set()

    clock.at = at
    with redis.task._signs():
        assert enough.wait(60.0)
    assert not left


def test_a_computer_at_rest_proves_nothing(clock: Clock, left: list[float], redis: Redis) -> None:
    clock.stride = 3600.0
    with redis.task._signs():
        until(lambda: left, "it leaves")
    assert left[0] == 185.0 and clock.looks > 36
