"""PostgreSQL that is away: waited for, for as long as it is said, and not where waiting mends nothing."""

from __future__ import annotations

import logging
import multiprocessing
import shutil
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy
from dagster import DagsterEvent, DagsterEventType, RetryPolicy, in_process_executor, job, op
from dagster._core.events.log import EventLogEntry
from dagster._core.execution.plan.objects import StepFailureData
from dagster._utils.error import SerializableErrorInfo

from tests.waiting import until

from .cluster import Postgres, free_port

pytestmark = pytest.mark.services

SECRET = "a-secret-that-nobody-repeats"


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    # Not below the folder of the test run, which only its owner may enter.
    folder = Path(tempfile.mkdtemp(prefix="ringrift-postgres-"))
    folder.chmod(0o755)
    try:
        made = Postgres(folder / "postgres", ["127.0.0.1"], "")
        yield made
        made.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Clock:
    """Time that passes while one waits."""

    def __init__(self) -> None:
        self.now, self.waits = 1000.0, 0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.waits += 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The one by which the server is waited for, a second at most; Dagster's own attempts take none."""
    from ringrift_pipeline.orchestration import postgres

    made = Clock()
    monkeypatch.setattr(postgres, "time", made)
    monkeypatch.setattr("dagster_postgres.utils.calculate_delay", lambda **_: 0.0)
    monkeypatch.setenv("RINGRIFT_POSTGRES_PATIENCE", "1")
    monkeypatch.delenv("PGPASSWORD", raising=False)
    return made


def address(port: int, password: str | None, database: str = "dagster") -> str:
    user = "dagster" if password is None else f"dagster:{password}"
    return f"postgresql+psycopg2://{user}@127.0.0.1:{port}/{database}"


def text(error: BaseException) -> str:
    """All that is told of an error."""
    return "".join(traceback.format_exception(error))


def test_a_server_that_stays_away_is_an_error_without_its_password(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    from ringrift_pipeline.orchestration.postgres import DatabaseAwayError, PatientPostgresStorage

    port = free_port()
    with pytest.raises(DatabaseAwayError) as told:
        PatientPostgresStorage(address(port, SECRET))
    assert f"PostgreSQL at 127.0.0.1:{port} has not answered for 2 s: start it" in str(told.value)
    assert f"PostgreSQL at 127.0.0.1:{port} does not answer: waiting for it" in caplog.text
    assert SECRET not in text(told.value) and SECRET not in caplog.text


def test_every_storage_waits_for_the_server(server: Postgres, clock: Clock) -> None:
    from ringrift_pipeline.orchestration.postgres import DatabaseAwayError, PatientPostgresStorage

    storage: Any = PatientPostgresStorage(address(server.port, server.password))
    parts = (storage.run_storage, storage.event_log_storage, storage.schedule_storage)
    server.stop()
    try:
        for part in parts:
            before = clock.waits
            with pytest.raises(DatabaseAwayError) as told:
                part._engine.connect()
            assert f"127.0.0.1:{server.port} has not answered for 2 s" in str(told.value)
            assert server.password not in text(told.value) and clock.waits == before + 3
    finally:
        server.start()
    for part in parts:
        part._engine.connect().close()


def test_a_process_keeps_one_connection_for_all_its_instances(server: Postgres) -> None:
    from ringrift_pipeline.orchestration.postgres import PatientPostgresStorage

    where = address(server.port, server.password)

    def sessions() -> set[int]:
        """Of queries by three instances, one after the other."""
        found = set()
        for _ in range(3):
            storage: Any = PatientPostgresStorage(where)
            for part in (storage.run_storage, storage.event_log_storage, storage.schedule_storage):
                with part._engine.connect() as connection:
                    ask = sqlalchemy.text("SELECT pg_backend_pid()")
                    found.add(connection.execute(ask).scalar_one())
        return found

    (kept,) = sessions()
    forks = multiprocessing.get_context("fork")
    told = forks.SimpleQueue()
    child = forks.Process(target=lambda: told.put(sessions()))
    child.start()
    (own,) = told.get()
    child.join()
    assert own != kept and sessions() == {kept}  # it neither used nor ended its parent's
    with server.connect("dagster") as other:
        other.cursor().execute("SELECT pg_terminate_backend(%s)", [kept])
    other.close()
    (new,) = sessions()  # without an error
    assert new != kept


def test_one_that_comes_back_in_time_is_connected_to(clock: Clock) -> None:
    import psycopg2

    from ringrift_pipeline.orchestration.postgres import _connect

    def connect(**_: Any) -> str:
        if clock.waits < 2:
            raise psycopg2.OperationalError("the database system is starting up")
        return "a connection"

    dialect = SimpleNamespace(connect=connect, dbapi=psycopg2)
    assert _connect(dialect, None, (), {"host": "keeper"}) == "a connection"
    assert clock.waits == 2


def test_one_that_is_full_is_said_to_be(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    import psycopg2

    from ringrift_pipeline.orchestration.postgres import DatabaseAwayError, _connect

    def connect(**_: Any) -> None:
        raise psycopg2.OperationalError("FATAL:  sorry, too many clients already")

    dialect = SimpleNamespace(connect=connect, dbapi=psycopg2)
    with pytest.raises(DatabaseAwayError, match="keeper:5432 has had no connection .*max_conn"):
        _connect(dialect, None, (), {"host": "keeper"})
    assert "PostgreSQL at keeper:5432 has no connection to give: waiting" in caplog.text


def test_a_step_that_cannot_reach_it_is_begun_again() -> None:
    """One of Dagster's own errors would fail it for good, whatever its policy says."""
    from ringrift_pipeline.orchestration.postgres import DatabaseAwayError

    tries = []

    @op(retry_policy=RetryPolicy(max_retries=1))
    def plays() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise DatabaseAwayError("PostgreSQL has not answered for 120 s")

    @job(executor_def=in_process_executor)
    def playing() -> None:
        plays()

    assert playing.execute_in_process().success and len(tries) == 2


def test_a_step_whose_event_it_did_not_take_has_not_failed(server: Postgres, clock: Clock) -> None:
    """Dagster would write that it has, for good, once the server is there again."""
    from dagster_postgres.utils import DagsterPostgresException

    from ringrift_pipeline.orchestration.postgres import DatabaseAwayError, PatientPostgresStorage

    storage = PatientPostgresStorage(address(server.port, server.password))
    lost = [
        DatabaseAwayError("PostgreSQL has not answered for 120 s"),
        sqlalchemy.exc.OperationalError("INSERT", {}, Exception("terminating connection")),
        DagsterPostgresException("too many retries for DB connection"),
    ]
    for error in lost:
        with pytest.raises(DatabaseAwayError, match="did not take an event of the step: "):
            storage.event_log_storage.store_event(failure(error))
    assert not storage.event_log_storage.get_logs_for_run("run")
    storage.event_log_storage.store_event(failure(ValueError("the games are no games")))
    assert len(storage.event_log_storage.get_logs_for_run("run")) == 1


def failure(error: Exception) -> EventLogEntry:
    """As Dagster tells it of a step in which it met the error itself."""
    info = SerializableErrorInfo.from_traceback(traceback.TracebackException.from_exception(error))
    event = DagsterEvent(
        DagsterEventType.STEP_FAILURE.value,
        "job",
        step_key="step",
        event_specific_data=StepFailureData(info, None),
    )
    return EventLogEntry(None, logging.ERROR, "", "run", time.time(), "step", "job", event)


@pytest.mark.parametrize(
    ("password", "database", "why"),
    [
        (SECRET, "dagster", "authentication failed"),
        (None, "dagster", "no password supplied"),
        ("right", "nowhere", 'database "nowhere" does not exist'),
    ],
)
def test_what_waiting_does_not_mend_is_told_at_once(
    password: str | None, database: str, why: str, server: Postgres, clock: Clock
) -> None:
    from sqlalchemy.exc import OperationalError

    from ringrift_pipeline.orchestration.postgres import PatientPostgresStorage

    given = server.password if password == "right" else password
    with pytest.raises(OperationalError, match=why) as told:
        PatientPostgresStorage(address(server.port, given, database))
    assert clock.waits == 0
    assert given is None or given not in text(told.value)


def test_who_has_not_looked_at_its_lock_for_long_loses_it(
    server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a machine that has lost power: its session stays, for hours."""
    from ringrift_pipeline.orchestration import one_daemon

    monkeypatch.setattr(one_daemon, "PAUSE", 0.1)
    where = address(server.port, server.password)
    engine = sqlalchemy.create_engine(where, pool_size=1)  # what is kept there has no lock
    first, second = one_daemon._Lock(engine), one_daemon._Lock(engine)
    try:
        assert first.take() is None
        holder = second.take()  # it has just looked
        assert holder is not None and holder.startswith(f"{first._name}, at 127.0.0.1 since ")
        monkeypatch.setattr(one_daemon, "SILENT", 0.5)
        monkeypatch.setattr(one_daemon, "GONE", 1.5)
        time.sleep(1.0)
        assert second.take() is None  # after it has been waited for
        lost = first.keep()
        assert lost is not None and lost.startswith(f"{second._name}, at 127.0.0.1 since ")
        assert second.keep() is None
        second.free()
        until(lambda: first.take() is None, "the lock is free again")
    finally:
        first.free()
        second.free()


class History:
    """As much of an instance as says where its history is."""

    def __init__(self, engine: Any) -> None:
        self.run_storage = SimpleNamespace(_engine=engine)


def test_who_has_slept_knows_at_once_that_the_history_is_anothers(
    server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it stops, and not only when its next look is due."""
    from ringrift_pipeline.orchestration import one_daemon

    monkeypatch.setattr(one_daemon, "PAUSE", 0.1)
    monkeypatch.setattr(one_daemon, "LOOK", 600.0)
    engine = sqlalchemy.create_engine(address(server.port, server.password), pool_size=1)
    history: Any = History(engine)
    other = one_daemon._Lock(engine)
    try:
        with one_daemon.only_daemon(history):
            assert one_daemon.is_ours(history)
            with monkeypatch.context() as patch:
                patch.setattr(one_daemon, "GONE", -1.0)
                assert other.take() is None
            assert not one_daemon.is_ours(history)
            assert other.keep() is None  # it was asked, not taken away
            other.free()
            until(lambda: one_daemon.is_ours(history), "the lock is free again")
    finally:
        other.free()
