"""Runs and events in PostgreSQL, as dagster-postgres keeps them, through a restart of the server.

Named in ``dagster.yaml`` (deploy/celery), imported with Celery alone. Dagster tries to connect for some
seconds; a restart with recovery takes longer, and a run or a step that cannot write has failed.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any

import sqlalchemy.event
import sqlalchemy.exc
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.config import PostgresStorageConfig
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage
from dagster_postgres.event_log import PostgresEventLogStorage
from dagster_postgres.utils import (
    DagsterPostgresException,
    create_pg_engine,
    get_token_provider_from_config,
    pg_url_from_config,
)

from ringrift_pipeline.orchestration.celery_settings import place_of, seconds_of

if TYPE_CHECKING:
    from dagster_postgres.auth import PgTokenProvider

PATIENCE_VARIABLE = "RINGRIFT_POSTGRES_PATIENCE"
PATIENCE = 120.0  # seconds
_PAUSE = 0.5  # seconds between two attempts
# A connection whose other end is gone without a word is noticed within a minute, and not after hours.
_NOTICES = {
    "tcp_user_timeout": 30_000,  # milliseconds
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}
# What waiting does not mend; everything else that keeps a connection from coming about may pass.
_FOR_GOOD = (
    "authentication failed",
    "does not exist",
    "no pg_hba.conf entry",
    "no password supplied",
)
_FULL = ("too many clients", "too many connections", "remaining connection slots")
# How an error of the database begins, as an event tells it.
_OF_THE_DATABASE = (
    "sqlalchemy.exc.",
    "psycopg2.",  # where SQLAlchemy sets a connection back to how it was
    f"{__name__}.DatabaseAwayError",
    f"{DagsterPostgresException.__module__}.{DagsterPostgresException.__name__}",
)


class DatabaseAwayError(sqlalchemy.exc.SQLAlchemyError):
    """PostgreSQL does not answer. None of Dagster's own errors, which it does not retry in a step."""


class _Events(PostgresEventLogStorage):
    """dagster-postgres's events, but for the failure of a step whose event could not be written. It would
    be for good, whatever the step's policy says; so the process ends with an error, and is lost.
    """

    def store_event(self, event: EventLogEntry) -> None:
        """Store it. Raises DatabaseAwayError for such a failure."""
        told = event.dagster_event
        error = told.step_failure_data.error if told is not None and told.is_step_failure else None
        if error is not None and error.message.startswith(_OF_THE_DATABASE):
            why = error.message.strip().partition("\n")[0]
            raise DatabaseAwayError(f"PostgreSQL did not take an event of the step: {why}")
        super().store_event(event)


class PatientPostgresStorage(DagsterPostgresStorage):
    """dagster-postgres's storage, which waits for a server that is away: ``PATIENCE`` seconds, or as
    many as ``$RINGRIFT_POSTGRES_PATIENCE`` says. Pages of the web server do not wait.

    A process keeps one connection, whatever the number of its instances, where dagster-postgres opens
    one for every transaction: some 35 a second while two shards are played.
    """

    def __init__(
        self,
        postgres_url: str,
        should_autocreate_tables: bool = True,
        inst_data: ConfigurableClassData | None = None,
        token_provider: PgTokenProvider | None = None,
    ) -> None:
        began = time.monotonic()
        tables = should_autocreate_tables and postgres_url not in _seen
        while True:
            try:
                super().__init__(postgres_url, tables, inst_data, token_provider)
                break
            except DagsterPostgresException as error:  # it has tried for some seconds
                _wait_or_give_up(error.__cause__ or error, began, place_of(postgres_url))
        if tables:
            _seen.add(postgres_url)
        self.should_autocreate_tables = should_autocreate_tables
        self._event_log_storage = _Events(postgres_url, False, token_provider=token_provider)
        for storage in (self._run_storage, self._event_log_storage, self._schedule_storage):
            storage._engine = _engine_of(postgres_url, token_provider)

    @classmethod
    def from_config_value(  # type: ignore[override]  # as dagster-postgres declares it
        cls, inst_data: ConfigurableClassData | None, config_value: PostgresStorageConfig
    ) -> PatientPostgresStorage:
        """As Dagster makes it from ``dagster.yaml``."""
        return cls(
            inst_data=inst_data,
            postgres_url=pg_url_from_config(config_value),
            should_autocreate_tables=bool(config_value.get("should_autocreate_tables", True)),
            token_provider=get_token_provider_from_config(config_value),
        )


_engines: dict[str, sqlalchemy.Engine] = {}  # of this process, by address
_seen: set[str] = set()  # addresses where this process has seen the tables, and need not ask again


def _engine_of(url: str, token_provider: PgTokenProvider | None) -> sqlalchemy.Engine:
    """The one engine of this process for a server, which keeps a connection and sees before each use
    whether it is still one.
    """
    if url not in _engines:
        said = sqlalchemy.make_url(url).query
        engine = create_pg_engine(
            url,
            token_provider,
            isolation_level="AUTOCOMMIT",
            pool_size=1,
            max_overflow=-1,  # several threads at a time have one each, and close it
            pool_pre_ping=True,
            connect_args={name: value for name, value in _NOTICES.items() if name not in said},
        )
        sqlalchemy.event.listen(engine, "do_connect", _connect)
        _engines.setdefault(url, engine)  # of two threads that come at once one is as good
    return _engines[url]


def _forget() -> None:
    """A process that was forked has its parent's connections, and must not use them nor end them."""
    for engine in _engines.values():
        engine.dispose(close=False)
    _engines.clear()


os.register_at_fork(after_in_child=_forget)


def patience() -> float:
    """Seconds that the server may be away. Raises CelerySettingsError."""
    return seconds_of(PATIENCE_VARIABLE, PATIENCE, least=0.0)


def _connect(dialect: Any, _: Any, arguments: Any, parameters: dict[str, Any]) -> Any:
    """Connect, when the server is there again. Raises DatabaseAwayError if it is not in time."""
    began = time.monotonic()
    while True:
        try:
            return dialect.connect(*arguments, **parameters)
        except dialect.dbapi.OperationalError as error:
            where = f"{parameters.get('host', 'localhost')}:{parameters.get('port', 5432)}"
            _wait_or_give_up(error, began, where)


def _wait_or_give_up(error: BaseException, began: float, where: str) -> None:
    """Wait a moment. Raises the error if waiting does not mend it, DatabaseAwayError if it is over."""
    if any(text in str(error) for text in _FOR_GOOD):
        raise error
    away = time.monotonic() - began
    full = any(text in str(error) for text in _FULL)
    if away > patience():
        told = (
            f"has had no connection to give for {away:.0f} s: raise its max_connections; each step and "
            "run at work has one"
            if full
            else f"has not answered for {away:.0f} s: start it, or correct the address in the environment"
        )
        raise DatabaseAwayError(f"PostgreSQL at {where} {told} (deploy/celery/README.md)") from None
    what = "has no connection to give" if full else "does not answer"
    logging.getLogger(__name__).warning("PostgreSQL at %s %s: waiting for it", where, what)
    time.sleep(_PAUSE)
