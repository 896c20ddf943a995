"""Dagster's own SQLite storages, many writes to a transaction: for ``long_history.py``."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Bulk:
    """While entered, what ``instance`` stores is written to its SQLite files by one connection a
    file, in one transaction until `commit`; a run's file begins as a copy of an empty one.
    """

    def __init__(self, instance: Any) -> None:
        self._events, self._runs = instance.event_log_storage, instance.run_storage
        self._open: dict[str, Any] = {}
        self._empty = b""

    def __enter__(self) -> Bulk:
        shard = secrets.token_hex(8)
        with self._events.run_connection(shard):  # Dagster makes the file
            pass
        path = Path(self._events.path_for_shard(shard))
        self._empty = path.read_bytes()
        for left in path.parent.glob(f"{shard}.db*"):
            left.unlink()
        self._events._connect, self._runs.connect = self._shard, self._run_table
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._open):
            self._close(name)
        del self._events._connect, self._runs.connect

    def commit(self) -> None:
        """Everything so far is on its way to the disk."""
        for name in list(self._open):
            self._close(name)

    def newest(self) -> int:
        """The storage id of the newest event of all runs."""
        with self._shard("index") as connection:
            return int(connection.exec_driver_sql("select max(id) from event_logs").scalar())

    @contextlib.contextmanager
    def _shard(self, shard: str) -> Iterator[Any]:
        name = f"events/{shard}"
        if name not in self._open:
            for other in [one for one in self._open if one.startswith("events/")]:
                if "events/index" not in (other, name):  # one run at a time
                    self._close(other)
            path = Path(self._events.path_for_shard(shard))
            if not path.exists():
                path.write_bytes(self._empty)
                self._events._initialized_dbs.add(shard)
            self._begin(name, self._events.conn_string_for_shard(shard))
        yield self._open[name][1]

    @contextlib.contextmanager
    def _run_table(self) -> Iterator[Any]:
        if "runs" not in self._open:
            self._begin("runs", self._runs._conn_string)
        yield self._open["runs"][1]

    def _begin(self, name: str, address: str) -> None:
        from sqlalchemy import create_engine
        from sqlalchemy.pool import NullPool

        engine = create_engine(address, poolclass=NullPool)
        connection = engine.connect()
        connection.exec_driver_sql("pragma synchronous=off")
        connection.commit()
        self._open[name] = engine, connection, connection.begin()

    def _close(self, name: str) -> None:
        engine, connection, transaction = self._open.pop(name)
        transaction.commit()
        connection.close()
        engine.dispose()
