"""One daemon a history. On one machine a lock on the data root sees to it; where the history is in
PostgreSQL many machines may have it, each with a data root of its own, and a lock there does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy
from dagster import DagsterInstance

from ringrift_pipeline.store import LockedError

NUMBER = 0x52494E47  # of the lock, in PostgreSQL's terms an advisory one
LOOK = 5.0  # seconds between two looks whether it is held still
TRIES, PAUSE = 10, 0.5  # to take what is just being freed, and the seconds between them
SILENT, GONE = 3 * LOOK, 6 * LOOK  # without a look a holder may be gone, and is: its machine is

_NOBODY, _SILENT = "", "silent"

_HOLDER = sqlalchemy.text(
    "SELECT application_name, client_addr, backend_start, pid,"
    " coalesce(extract(epoch FROM clock_timestamp() - state_change), 0) AS silent"
    " FROM pg_locks JOIN pg_stat_activity USING (pid)"
    " WHERE locktype = 'advisory' AND granted AND objid = :number AND database ="
    " (SELECT oid FROM pg_database WHERE datname = current_database())"
)
_log = logging.getLogger(__name__)
_locks: weakref.WeakKeyDictionary[DagsterInstance, _Lock] = weakref.WeakKeyDictionary()


class DaemonElsewhereError(LockedError):
    """Another machine's process, or another data root's, runs the daemon of this history."""

    def __init__(self, holder: str) -> None:
        super().__init__("dagster-instance", Path("PostgreSQL"), None)
        self.args = (holder,)
        self.who = holder

    def __str__(self) -> str:
        return (
            f"this history in PostgreSQL has a daemon already: {self.who}. Two would fail each "
            "other's runs: stop that one first, or start this one without its daemon"
        )


@contextlib.contextmanager
def only_daemon(instance: DagsterInstance) -> Iterator[None]:
    """Hold the lock of a history in PostgreSQL; nothing where it is in files.

    A restart of PostgreSQL frees the lock. It is taken again within seconds; if somebody else was
    faster, this process is told to end (SIGTERM); `is_ours` says so at once.

    Raises:
        DaemonElsewhereError: somebody holds it.
    """
    engine: Any = getattr(instance.run_storage, "_engine", None)
    if engine is None or engine.dialect.name != "postgresql":
        yield
        return
    lock = _Lock(engine)
    holder = lock.take()
    if holder is not None:
        raise DaemonElsewhereError(holder)
    over = threading.Event()
    _locks[instance] = lock

    def watch() -> None:
        while not over.wait(LOOK):
            try:
                if (other := lock.keep()) is not None:
                    _log.error("%s: this daemon ends", DaemonElsewhereError(other))
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
            except Exception as error:  # PostgreSQL is away: asked again
                _log.warning("the lock in PostgreSQL cannot be asked for: %s", error)

    thread = threading.Thread(target=watch, name="one-daemon", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(LOOK)
        del _locks[instance]
        lock.free()


def is_ours(instance: DagsterInstance) -> bool:
    """Does this process hold the lock of a history still, which `only_daemon` took? It may not, if its
    machine was at rest; nor is it known while PostgreSQL does not answer. True for a history in files.
    """
    lock = _locks.get(instance)
    try:
        return lock is None or lock.keep() is None
    except Exception as error:
        _log.warning("the lock in PostgreSQL cannot be asked for: %s", error)
        return False


class _Lock:
    """The lock, held as long as its connection."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._name = f"ringrift {os.getpid()}-{secrets.token_hex(3)} on {socket.gethostname()}"[:63]
        self._connection: Any = None
        self._asking = threading.Lock()  # of two threads one at a time

    def take(self) -> str | None:
        """Take it. Returns who holds it instead, None if this process does.

        PostgreSQL keeps a session, and its lock, for hours after the machine at its other end has lost
        power. One that has not looked for `SILENT` seconds is waited for, after `GONE` it is ended.
        """
        tries = 0
        while tries < TRIES:
            holder = self._try()
            if holder is None or holder not in (_NOBODY, _SILENT):
                return holder
            tries += holder is _NOBODY
            time.sleep(PAUSE)
        raise ConnectionError("PostgreSQL has given it to nobody, and not to us")

    def _try(self) -> str | None:
        """The same, once; `_NOBODY` if it is just being freed, by us perhaps, whose connection was lost;
        `_SILENT` if its holder may be gone.
        """
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        connection.detach()  # closed is then closed: no pool keeps it, and the lock with it
        try:
            name = sqlalchemy.text("SELECT set_config('application_name', :name, false)")
            connection.execute(name, {"name": self._name})
            ask = sqlalchemy.text("SELECT pg_try_advisory_lock(:number)")
            if connection.execute(ask, {"number": NUMBER}).scalar():
                self._connection = connection
                return None
            found = connection.execute(_HOLDER, {"number": NUMBER}).first()
            if found is not None and found.silent > GONE:
                _log.warning("%s has not looked for %.0f s and is ended", found[0], found.silent)
                end = sqlalchemy.text("SELECT pg_terminate_backend(:pid)")
                connection.execute(end, {"pid": found.pid})
                found = None
        except BaseException:
            connection.close()
            raise
        connection.close()
        if found is None or found[0] == self._name:
            return _NOBODY
        if found.silent > SILENT:
            return _SILENT
        return f"{found[0]}, at {found[1]} since {found[2]:%Y-%m-%d %H:%M:%S}"

    def keep(self) -> str | None:
        """See that it is held, and take it again if the connection was lost. Returns as `take`."""
        with self._asking:
            if self._connection is not None:
                try:
                    self._connection.execute(sqlalchemy.text("SELECT 1"))
                    return None
                except sqlalchemy.exc.SQLAlchemyError:
                    self.free()
            return self.take()

    def free(self) -> None:
        """Let it go."""
        if self._connection is not None:
            with contextlib.suppress(Exception):
                self._connection.close()
            self._connection = None
