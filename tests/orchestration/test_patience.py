"""How long a loop waits for its services: while one hangs, until it is started again and has done its
work; while they are well and do nothing, not for long. On a clock of the test's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.test_utils import create_run_for_test

from ringrift_pipeline.enhancements.training_config import TrainingConfig
from ringrift_pipeline.orchestration import backend, loop, names, silent_services
from ringrift_pipeline.orchestration.backend import Backend
from ringrift_pipeline.orchestration.instance import open_instance
from ringrift_pipeline.orchestration.loop import DECISION_PATIENCE, Loop, LoopError, LoopRequest
from ringrift_pipeline.orchestration.reexecution import RETRY_TAG

CONFIG = "square8_2p"
LOADS = 20  # seconds from a start to the first sign of life
BEAT = 30  # seconds between two heartbeats of the daemon
KINDS = ("code-server", "daemon")


class World:
    """Time, and the two services in it: ``hung`` is the one that does nothing until it is started
    again, ``does`` what they do once both are well.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.hung: str | None = None
        self.for_ever = False  # does it hang again, each time that it is started?
        self.started: dict[str, float] = {}
        self.does: Callable[[], None] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if all(self.is_well(kind) for kind in KINDS):
            self.does()

    def is_well(self, kind: str) -> bool:
        return kind != self.hung and self.now - self.started[kind] > LOADS

    def signs(self, kind: str, every: int) -> Callable[[], object]:
        """The newest sign of life of a service, as somebody sees it who asks."""
        heard: list[object] = [None]

        def newest() -> object:
            if self.is_well(kind):
                heard[0] = self.now // every
            return heard[0]

        return newest


class Process:
    """In the place of a service's process."""

    world: World
    pid = 0

    def __init__(self, data: Path, kind: str, *arguments: str, **_: object) -> None:
        self.kind = kind
        self.socket = Path(arguments[arguments.index("--socket") + 1]) if kind == KINDS[0] else None
        self.start()

    def start(self) -> None:
        self.has_ended = False
        self.world.started[self.kind] = self.world.now
        if self.world.hung == self.kind and not self.world.for_ever:
            self.world.hung = None

    def check(self) -> None:
        if self.has_ended:
            self.start()

    def wait_for(self, *_: object) -> None:
        assert self.socket is not None
        self.socket.touch()

    def kill(self) -> None:
        self.has_ended = True

    def wait(self) -> None:
        """It has ended."""

    note = stop = cut_log = lambda *_: None


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(Process, "world", made, raising=False)
    monkeypatch.setattr(backend, "Service", Process)
    monkeypatch.setattr(backend, "Answers", lambda _: made.signs("code-server", 1))
    monkeypatch.setattr(backend, "Heartbeats", lambda _: made.signs("daemon", BEAT))
    monkeypatch.setattr(backend, "SilentSteps", lambda *_: SimpleNamespace(look=lambda *_: []))
    monkeypatch.setattr(backend, "TurnedBack", lambda: lambda: False)
    clock = SimpleNamespace(monotonic=lambda: made.now, sleep=made.sleep, time=lambda: made.now)
    monkeypatch.setattr(loop, "LOOK", silent_services.LOOK)  # fewer looks, for the test's sake
    for module in (backend, loop, silent_services):
        monkeypatch.setattr(module, "time", clock)
    return made


@pytest.fixture
def work(data: Path, world: World) -> Iterator[Loop]:
    """A loop of one generation, its services up and its run not there yet."""
    made = Loop(LoopRequest(CONFIG, data, TrainingConfig.preset("smoke"), generations=1))
    made._before = {0: None}
    with open_instance(data) as instance:
        made._instance = instance
        made._backend = Backend(data, instance)
        made._services = [made._backend]
        made._backend.begin()
        yield made
        made._backend.stop()


def run_of(instance: DagsterInstance, status: DagsterRunStatus, **tags: str) -> str:
    """A run of generation 0 that has ended so; its id."""
    tags = {names.CONFIG_TAG: CONFIG, names.PARTITION_TAG: "0000", **tags}
    job = names.job_name(CONFIG)
    return create_run_for_test(instance, job_name=job, status=status, tags=tags).run_id


def decide(work: Loop, run_id: str) -> None:
    """As the sensor does."""
    decision = {"promoted": False, "reasons": [], "next": None, "end": "limit", "run": run_id}
    with work.store.create(CONFIG, 0, "decision", decision):
        pass


@pytest.mark.parametrize("hung", KINDS)
def test_a_decision_is_waited_for_until_what_hangs_is_started_again(
    hung: str, work: Loop, world: World
) -> None:
    run_id = run_of(work.instance, DagsterRunStatus.SUCCESS)
    world.sleep(300.0)
    world.hung = hung
    world.does = lambda: decide(work, run_id)
    began = world.now
    assert [*work.watch()][-1].generations[0].decided
    assert world.hung is None and world.now - began > silent_services.SILENCE


@pytest.mark.parametrize("hung", KINDS)
@pytest.mark.parametrize(
    ("status", "tags", "said"),
    [
        (DagsterRunStatus.SUCCESS, {}, "the sensor decided nothing"),
        (DagsterRunStatus.FAILURE, {RETRY_TAG: "true"}, "the run failed"),
    ],
)
def test_what_hangs_whenever_it_is_started_is_not_waited_for_without_end(
    hung: str, status: DagsterRunStatus, tags: dict[str, Any], said: str, work: Loop, world: World
) -> None:
    run_of(work.instance, status, **tags)
    world.hung, world.for_ever = hung, True
    began = world.now
    with pytest.raises(LoopError, match=said):
        for _ in work.watch():
            assert world.now - began < 4 * silent_services.SILENCE
    assert world.now - began > loop.MOST_HEALING


@pytest.mark.parametrize("hung", KINDS)
def test_a_retry_is_waited_for_until_what_hangs_is_started_again(
    hung: str, work: Loop, world: World
) -> None:
    run_of(work.instance, DagsterRunStatus.FAILURE, **{RETRY_TAG: "true"})
    world.sleep(300.0)
    world.hung = hung
    world.does = lambda: decide(work, run_of(work.instance, DagsterRunStatus.SUCCESS))
    assert [*work.watch()][-1].generations[0].decided


@pytest.mark.parametrize(
    ("status", "tags", "said"),
    [
        (DagsterRunStatus.SUCCESS, {}, "the sensor decided nothing"),
        (DagsterRunStatus.FAILURE, {RETRY_TAG: "true"}, "the run failed"),
    ],
)
def test_services_that_are_well_and_do_nothing_are_not_waited_for_long(
    status: DagsterRunStatus, tags: dict[str, Any], said: str, work: Loop, world: World
) -> None:
    world.sleep(300.0)
    run_of(work.instance, status, **tags)
    began = world.now
    with pytest.raises(LoopError, match=said):
        list(work.watch())
    assert world.now - began < DECISION_PATIENCE + 3 * loop.LOOK
