"""A history that somebody else has taken over, as while this machine was at rest: what this one still
does to it when it stops.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._core.test_utils import create_run_for_test

from ringrift_pipeline.enhancements.training_config import TrainingConfig
from ringrift_pipeline.orchestration import backend, names, one_daemon
from ringrift_pipeline.orchestration.backend import Backend
from ringrift_pipeline.orchestration.instance import code_server_of, open_instance, sweep_lost_runs
from ringrift_pipeline.orchestration.loop import Loop, LoopRequest
from ringrift_pipeline.orchestration.settings import run_config
from ringrift_pipeline.orchestration.submit import submit_generation

STARTED, STARTING = DagsterRunStatus.STARTED, DagsterRunStatus.STARTING
CANCELED, FAILURE = DagsterRunStatus.CANCELED, DagsterRunStatus.FAILURE


class Lock:
    """In the place of PostgreSQL's: ``keep`` answers, or raises, what ``holder`` is."""

    holder: str | None | Exception = None

    def keep(self) -> str | None:
        if isinstance(self.holder, Exception):
            raise self.holder
        return self.holder


class Nothing:
    """A service without a process, which notes what is done to it."""

    did: list[str]
    pid = 0

    def __init__(self, data: Path, kind: str, *_: str, **__: Any) -> None:
        self.kind = kind

    def stop(self) -> None:
        Nothing.did.append(f"stop {self.kind}")

    def kill(self) -> None:
        Nothing.did.append(f"kill {self.kind}")

    def wait(self) -> None:
        Nothing.did.append(f"wait {self.kind}")


@pytest.fixture
def instance(data: Path) -> Iterator[DagsterInstance]:
    with open_instance(data) as made:
        yield made


@pytest.fixture
def lock(instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> Lock:
    """The lock of the history."""
    made: Any = Lock()
    monkeypatch.setitem(one_daemon._locks, instance, made)
    return made


@pytest.fixture
def ours(
    data: Path, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Backend]:
    """A daemon and a code server without processes."""
    Nothing.did = []
    monkeypatch.setattr(backend, "Service", Nothing)
    made = Backend(data, instance)
    yield made
    made.kill()


def launched(instance: DagsterInstance, socket: Path | None, status: Any = STARTED) -> str:
    """A run of the code server at a socket; its id."""
    where = {"host": "localhost", "socket": str(socket)}
    tags = {} if socket is None else {GRPC_INFO_TAG: json.dumps(where)}
    return create_run_for_test(instance, status=status, tags=tags).run_id


def test_who_stops_cancels_the_runs_of_its_own_code_server(
    instance: DagsterInstance, lock: Lock, ours: Backend
) -> None:
    """Also without having heard yet that the history is another machine's."""
    other = Path("/tmp/another/code.sock")
    mine, theirs = launched(instance, ours.socket), launched(instance, other)
    nobodys = launched(instance, None, STARTING)  # taken from the queue, and not launched
    ours.stop()
    states = {run.run_id: run.status for run in instance.get_runs()}
    assert states == {mine: CANCELED, nobodys: CANCELED, theirs: STARTED}
    assert Nothing.did == ["stop daemon", "stop code-server"]


@pytest.mark.parametrize("holder", ["ringrift 7 on another", ConnectionError("it is away")])
def test_who_has_lost_the_history_ends_at_once_and_cancels_nothing(
    holder: str | Exception, instance: DagsterInstance, lock: Lock, ours: Backend
) -> None:
    """What its daemon has launched since is the other's, whose daemon retries what is lost."""
    lock.holder = holder
    other = Path("/tmp/another/code.sock")
    mine, theirs = launched(instance, ours.socket), launched(instance, other)
    nobodys = launched(instance, None, STARTING)
    ours.stop()
    states = {run.run_id: run.status for run in instance.get_runs()}
    assert states == {mine: FAILURE, nobodys: STARTING, theirs: STARTED}
    assert Nothing.did[:2] == ["kill daemon", "kill code-server"]
    assert not [what for what in Nothing.did if what.startswith("stop")]


def test_a_code_server_that_has_ended_takes_its_own_runs_with_it(
    instance: DagsterInstance, ours: Backend
) -> None:
    mine, other = launched(instance, ours.socket), Path("/tmp/another/code.sock")
    theirs = launched(instance, other)
    assert sweep_lost_runs(instance, ours.socket) == [mine]
    assert sweep_lost_runs(instance) == [theirs]  # whoever has just taken the lock


@pytest.mark.parametrize(
    ("tag", "socket"),
    [
        (None, None),
        ('{"host": "localhost", "socket": "/tmp/a"}', "/tmp/a"),
        ('{"host": "keeper", "port": 4000}', ""),
        ("[" * 100_000, None),
        ("[]", None),
    ],
)
def test_a_run_names_its_code_server(
    instance: DagsterInstance, tag: str | None, socket: str | None
) -> None:
    run = create_run_for_test(instance, tags={} if tag is None else {GRPC_INFO_TAG: tag})
    assert code_server_of(run) == socket


def test_a_loop_that_has_lost_the_history_leaves_what_waits(
    data: Path, instance: DagsterInstance, lock: Lock
) -> None:
    settings = TrainingConfig.preset("smoke")
    work = Loop(LoopRequest("square8_2p", data, settings, generations=1))
    work._instance = instance
    waiting = submit_generation(instance, "square8_2p", 0, run_config(settings))

    def status() -> DagsterRunStatus:
        (run,) = instance.get_runs()
        assert run.run_id == waiting and run.job_name == names.job_name("square8_2p")
        return run.status

    lock.holder = "ringrift 7 on another"
    work._stop()
    assert status() == DagsterRunStatus.QUEUED
    lock.holder = None
    work._stop()
    assert status() == CANCELED
