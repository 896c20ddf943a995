"""The Dagster instance under the data root: its file, its lock, and what a crash left in it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter
from dagster._core.storage.tags import GRPC_INFO_TAG

from ringrift_pipeline.orchestration import pools
from ringrift_pipeline.orchestration.champion import reconcile
from ringrift_pipeline.orchestration.clock import forget_the_future
from ringrift_pipeline.orchestration.instance_file import (
    BEFORE,
    LARGEST,
    NAME,
    brought_up_to_date,
    check_instance_file,
    instance_file,
)
from ringrift_pipeline.orchestration.one_daemon import only_daemon
from ringrift_pipeline.orchestration.places import (
    DATA_VARIABLE,
    HOME_VARIABLE,
    SAFE_PATH,
    SERVICE,
    home_folder,
    progress_folder,
    services_folder,
)
from ringrift_pipeline.orchestration.presence import present
from ringrift_pipeline.store import LockedError, Store, read_bounded, write_bytes_atomic
from ringrift_pipeline.store.atomic import TEMPORARY, ensure_folder, remove_abandoned
from ringrift_pipeline.store.layout import Layout

LOCK = "dagster-instance"
STOP_RUNS = 20.0  # seconds that cancelled runs are given
ORPHANS = 20.0  # seconds within which the services of a killed command end by themselves
KILLED = 5.0  # seconds that those that do not are given when they have been killed

ACTIVE = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]
IN_PROGRESS = [DagsterRunStatus.NOT_STARTED, *ACTIVE]


def refuse_links(data: Path) -> None:
    """Raises OutsideError if links lead out of the data root from ``<data>/dagster`` or from what is in
    it and in its folder of alerts: files would be written and removed there. ``dagster.yaml`` is read
    alone, and may lie elsewhere.
    """
    layout, home = Layout(data), home_folder(data)
    layout.inside(home)
    for folder in (home, home / "alerts"):
        for path in sorted(folder.glob("*")):
            if path.name != NAME:
                layout.inside(path)


def prepare_home(data: Path) -> Path:
    """Make ``<data>/dagster`` with its ``dagster.yaml``. An existing file is left as it is, and checked.

    Raises InstanceFileError; OutsideError, before anything is written.
    """
    refuse_links(data)
    home = home_folder(data)
    ensure_folder(home)
    path = home / NAME
    if not path.exists():
        write_bytes_atomic(path, instance_file().encode("utf-8"))
    check_instance_file(home)
    return home


def _bring_up_to_date(data: Path) -> None:
    """A ``dagster.yaml`` of an earlier version, as this one needs it."""
    home = home_folder(data)
    try:
        found = read_bounded(home / NAME, LARGEST)
        text = brought_up_to_date(found.decode("utf-8"))
    except (FileNotFoundError, UnicodeDecodeError):
        return
    if text is not None:
        write_bytes_atomic(home / BEFORE, found)
        write_bytes_atomic(home / NAME, text.encode("utf-8"))


def environment(data: Path) -> dict[str, str]:
    """The environment of every process that works on this data root."""
    places = {HOME_VARIABLE: str(home_folder(data)), DATA_VARIABLE: str(data)}
    return {**os.environ, **SAFE_PATH, **places}


@contextlib.contextmanager
def open_instance(data: Path) -> Iterator[DagsterInstance]:
    """The instance of a data root, made if it is not there; nothing is started. Raises
    InstanceFileError, OutsideError.
    """
    home = prepare_home(data)
    with DagsterInstance.from_config(str(home)) as instance:
        yield instance


@contextlib.contextmanager
def own_instance(data: Path) -> Iterator[DagsterInstance]:
    """The instance for the one process that runs its daemon, after tidying up.

    Two daemons on one folder would not refuse each other at once, so a lock does. An earlier
    version's ``dagster.yaml`` is brought up to date. Runs that a crash or a reboot left in progress
    are reported failed, partitions and champions are brought up to what the store holds.

    Raises:
        LockedError: another process runs this folder's, or this history's, daemon; it says which.
            Of one that was killed the services may live on for some seconds: they are waited for.
        InstanceFileError, OutsideError: as `prepare_home`.
    """
    store = Store(data)
    with contextlib.ExitStack() as stack:
        stack.enter_context(store.lock(None, LOCK))
        refuse_links(data)
        _outlive_the_last(data)
        _bring_up_to_date(data)
        instance = stack.enter_context(open_instance(data))
        stack.enter_context(only_daemon(instance))
        store.sweep()
        sweep_home(data)
        sweep_lost_runs(instance)
        forget_the_future(instance)
        shutil.rmtree(progress_folder(data), ignore_errors=True)
        _limit_pools(instance)
        reconcile(instance, store)
        yield instance


def _outlive_the_last(data: Path) -> None:
    """Wait until the services of an owner that was killed have ended: they might start what we start."""
    deadline = time.monotonic() + ORPHANS
    while left := [one for one in present(data) if one.kind in ("daemon", "code-server")]:
        late = time.monotonic() - deadline
        if late > 0:
            for one in left:
                _kill_orphan(one.pid)
        if late > KILLED:
            one = left[0]
            since = datetime.fromtimestamp(one.started, UTC).isoformat(timespec="seconds")
            holder = {
                "pid": one.pid,
                "host": socket.gethostname(),
                "since": since,
                "command": f"the {one.kind} of a command that is gone",
            }
            raise LockedError(one.kind, services_folder(data) / f"{one.kind}.json", holder)
        time.sleep(0.1)


def _kill_orphan(pid: int) -> None:
    """End a service that hangs and whose owner is gone, and what it has started; on Linux, and unless
    its number is another's here, as of a process in another container.
    """
    with contextlib.suppress(OSError):
        if SERVICE.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            os.killpg(pid, signal.SIGKILL)


def sweep_home(data: Path) -> None:
    """Remove what dead writers of alerts and of handed-on values have left half written."""
    for folder in ("alerts", "values"):
        for path in (home_folder(data) / folder).rglob(f"{TEMPORARY}*"):
            remove_abandoned(path)


def code_server_of(run: DagsterRun) -> str | None:
    """The socket of the code server that a run was launched by: empty for one at a port, None for a run
    that has not been launched yet. A retry has its parent's until then, which is some milliseconds.
    Where the history is in PostgreSQL it may be another machine's.
    """
    with contextlib.suppress(ValueError, RecursionError):  # whoever asks for a run writes its tags
        told = json.loads(run.tags.get(GRPC_INFO_TAG, ""))
        if isinstance(told, dict):
            return str(told.get("socket") or "")
    return None


def _runs_of(
    instance: DagsterInstance, statuses: list[DagsterRunStatus], code_server: Path | None = None
) -> Iterator[DagsterRun]:
    """Runs of these statuses; of a code server only its own, and those that were not launched yet."""
    wanted = (None, str(code_server))
    for record in instance.get_run_records(RunsFilter(statuses=statuses)):
        if code_server is None or code_server_of(record.dagster_run) in wanted:
            yield record.dagster_run


def sweep_lost_runs(instance: DagsterInstance, code_server: Path | None = None) -> list[str]:
    """Report runs failed that nobody works on any more; their ids.

    To be called by the holder of the lock, before its daemon starts: whatever is in progress then
    is lost (the default launcher has no health check that would notice); or for a ``code_server``
    that has ended, by its socket.
    """
    lost = []
    for run in _runs_of(instance, IN_PROGRESS, code_server):
        if run.status == DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, message="Cancelled before the last shutdown.")
        else:
            instance.report_run_failed(
                run, message="The process that ran this was gone when the daemon started again."
            )
        _free_slots(instance, run.run_id)
        lost.append(run.run_id)
    return lost


def _free_slots(instance: DagsterInstance, run_id: str) -> None:
    storage: Any = instance.event_log_storage
    if storage.supports_global_concurrency_limits:
        storage.free_concurrency_slots_for_run(run_id)


def _limit_pools(instance: DagsterInstance) -> None:
    """Of pools that are new, and of those that the environment asks for. Any other keeps its limit: it
    may be somebody's own choice in the UI, which the cores of another machine cannot be told from.
    """
    storage: Any = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return
    known = {limit.name for limit in storage.get_pool_limits()}
    for pool, limit in pools.limits().items():
        if pool not in known or pool in pools.asked_for():
            storage.set_concurrency_slots(pool, limit)


def cancel_active(
    instance: DagsterInstance, code_server: Path, patience: float = STOP_RUNS
) -> None:
    """Cancel every run that a code server works on and wait until they have ended, or patience has.

    The code server must be up, the daemon down: it would start what is queued in their place.
    """
    asked = []
    for run in _runs_of(instance, ACTIVE, code_server):
        with contextlib.suppress(Exception):  # a server that is gone cannot be asked
            if instance.run_coordinator.cancel_run(run.run_id):  # type: ignore[union-attr]
                asked.append(run.run_id)
    if not asked:
        return
    filters = RunsFilter(run_ids=asked, statuses=ACTIVE)
    deadline = time.monotonic() + patience
    while instance.get_run_records(filters, limit=1) and time.monotonic() < deadline:
        time.sleep(0.2)


def report_cancelled(instance: DagsterInstance, code_server: Path) -> None:
    """Report a code server's runs cancelled, whose processes have been ended; nobody works on them any
    more.
    """
    for run in _runs_of(instance, ACTIVE, code_server):
        instance.report_run_canceled(run, message="Stopped with the daemon that ran it.")
        _free_slots(instance, run.run_id)


def report_left(instance: DagsterInstance, code_server: Path) -> None:
    """Report a code server's runs failed, which were ended because the history is somebody else's by
    now: his daemon retries them as lost ones. What was not launched yet may be his.
    """
    for run in _runs_of(instance, ACTIVE, code_server):
        if code_server_of(run) is not None:
            instance.report_run_failed(
                run, message="The machine that ran this had lost the history to another one."
            )
            _free_slots(instance, run.run_id)


def no_retry(instance: DagsterInstance, run_id: str) -> None:
    """Keep the daemon from retrying a lost run; whoever calls this starts its work anew."""
    instance.add_run_tags(run_id, {"dagster/max_retries": "0", "dagster/will_retry": "false"})
