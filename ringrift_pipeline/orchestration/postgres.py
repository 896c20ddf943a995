"""Runs and events in PostgreSQL, as dagster-postgres keeps them, through a restart of the server.

Named in ``dagster.yaml`` (deploy/celery), imported with Celery alone. Dagster tries to connect for some
seconds; a restart with recovery takes longer, and a run or a step that cannot write has failed.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import sqlalchemy.event
import sqlalchemy.exc
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.config import PostgresStorageConfig
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage
from dagster_postgres.event_log import PostgresEventLogStorage
from dagster_postgres.utils import (
    DagsterPostgresException,
    get_token_provider_from_config,
    pg_url_from_config,
)

from ringrift_pipeline.orchestration.celery_settings import place_of, seconds_of

PATIENCE_VARIABLE = "RINGRIFT_POSTGRES_PATIENCE"
PATIENCE = 120.0  # seconds
_PAUSE = 0.5  # seconds between two attempts
# What waiting does not mend; everything else that keeps a connection from coming about may pass.
_FOR_GOOD = (
    "authentication failed",
    "does not exist",
    "no pg_hba.conf entry",
    "no password supplied",
)
# How an error of the database begins, as an event tells it.
_OF_THE_DATABASE = (
    "sqlalchemy.exc.",
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
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        began = time.monotonic()
        while True:
            try:
                super().__init__(*arguments, **named)
                self._event_log_storage = _Events(
                    self.postgres_url, False, token_provider=named.get("token_provider")
                )
                break
            except DagsterPostgresException as error:  # it has tried for some seconds
                _wait_or_give_up(error.__cause__ or error, began, place_of(self.postgres_url))
        for storage in (self._run_storage, self._event_log_storage, self._schedule_storage):
            sqlalchemy.event.listen(storage._engine, "do_connect", _connect)

    @classmethod
    def from_config_value(  # type: ignore[override]  # as dagster-postgres declares it
        cls, inst_data: ConfigurableClassData | None, config_value: PostgresStorageConfig
    ) -> PatientPostgresStorage:
        """As Dagster makes it from ``dagster.yaml``."""
        return cls(
            inst_data=inst_data,
            postgres_url=pg_url_from_config(config_value),
            should_autocreate_tables=config_value.get("should_autocreate_tables", True),
            token_provider=get_token_provider_from_config(config_value),
        )


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
    if away > patience():
        raise DatabaseAwayError(
            f"PostgreSQL at {where} has not answered for {away:.0f} s: start it, or correct the "
            "address in the environment (deploy/celery/README.md)"
        ) from None
    logging.getLogger(__name__).warning("PostgreSQL at %s does not answer: waiting for it", where)
    time.sleep(_PAUSE)
