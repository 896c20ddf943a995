"""The Dagster instance under the data root: its file, its lock, and what a crash left in it."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dagster import DagsterInstance, DagsterRunStatus, RunsFilter

from ringrift_pipeline.orchestration import pools
from ringrift_pipeline.orchestration.champion import reconcile
from ringrift_pipeline.orchestration.names import ORDER_TAG
from ringrift_pipeline.orchestration.places import (
    DATA_VARIABLE,
    HOME_VARIABLE,
    home_folder,
    progress_folder,
)
from ringrift_pipeline.selfplay.workers import cores
from ringrift_pipeline.store import Store, write_bytes_atomic

LOCK = "dagster-instance"
STOP_RUNS = 20.0  # seconds that cancelled runs are given

ACTIVE = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]
IN_PROGRESS = [DagsterRunStatus.NOT_STARTED, *ACTIVE]


def instance_file() -> str:
    """The text of a new ``dagster.yaml``.

    A run uses every core by itself (shards side by side, training with all threads), so on a
    small machine runs follow each other: parallel runs times parallel steps must not be more
    than the cores. The pools keep steps of several runs together within them. Generations of one
    config follow each other on any machine: each learns from the one before.
    """
    count = cores()
    return f"""\
# Written once; yours to edit. Made for a machine with {count} cores.
telemetry: {{enabled: false}}
concurrency:
  runs:
    max_concurrent_runs: {max(1, count // 2)}
    tag_concurrency_limits:
      - {{key: {ORDER_TAG}, value: {{applyLimitPerUniqueValue: true}}, limit: 1}}
  pools: {{granularity: op, default_limit: {count}}}
run_coordinator:
  module: ringrift_pipeline.orchestration.run_order
  class: GenerationsInOrder
  config: {{dequeue_interval_seconds: 1}}
run_monitoring:
  enabled: true
  poll_interval_seconds: 3
  start_timeout_seconds: 60
  cancel_timeout_seconds: 15
  free_slots_after_run_end_seconds: 5  # slots leak when a run worker is killed
run_retries:
  enabled: true
  max_retries: 3
  retry_on_asset_or_op_failure: false  # a lost worker is retried, a failed step is not
nux: {{enabled: false}}
"""


def prepare_home(data: Path) -> Path:
    """Make ``<data>/dagster`` with its ``dagster.yaml`` (an existing file is left as it is)."""
    home = home_folder(data)
    home.mkdir(parents=True, exist_ok=True)
    path = home / "dagster.yaml"
    if not path.exists():
        write_bytes_atomic(path, instance_file().encode("utf-8"))
    return home


def environment(data: Path) -> dict[str, str]:
    """The environment of every process that works on this data root."""
    return {**os.environ, HOME_VARIABLE: str(home_folder(data)), DATA_VARIABLE: str(data)}


@contextlib.contextmanager
def open_instance(data: Path) -> Iterator[DagsterInstance]:
    """The instance of a data root, made if it is not there; nothing is started."""
    home = prepare_home(data)
    with DagsterInstance.from_config(str(home)) as instance:
        yield instance


@contextlib.contextmanager
def own_instance(data: Path) -> Iterator[DagsterInstance]:
    """The instance for the one process that runs its daemon, after tidying up.

    Two daemons on one folder would not refuse each other at once, so a lock does. Runs that a
    crash or a reboot left in progress are reported failed, partitions and champions are brought
    up to what the store holds.

    Raises:
        LockedError: another process runs this folder's daemon; it says which.
    """
    store = Store(data)
    with store.lock(None, LOCK), open_instance(data) as instance:
        store.sweep()
        sweep_lost_runs(instance)
        shutil.rmtree(progress_folder(data), ignore_errors=True)
        _limit_pools(instance)
        reconcile(instance, store)
        yield instance


def sweep_lost_runs(instance: DagsterInstance) -> list[str]:
    """Report runs failed that nobody works on any more; their ids.

    To be called by the holder of the lock, before its daemon starts: whatever is in progress then
    is lost (the default launcher has no health check that would notice).
    """
    lost = []
    for record in instance.get_run_records(RunsFilter(statuses=IN_PROGRESS)):
        run = record.dagster_run
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
    storage: Any = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return
    known = {limit.name for limit in storage.get_pool_limits()}
    for pool, limit in pools.limits().items():
        if pool not in known:  # somebody's own choice in the UI stays
            storage.set_concurrency_slots(pool, limit)


def cancel_active(instance: DagsterInstance, patience: float = STOP_RUNS) -> None:
    """Cancel every run that is worked on and wait until they have ended, or patience has.

    The code server must be up, the daemon down: it would start what is queued in their place.
    """
    asked = []
    for record in instance.get_run_records(RunsFilter(statuses=ACTIVE)):
        with contextlib.suppress(Exception):  # a server that is gone cannot be asked
            if instance.run_coordinator.cancel_run(record.dagster_run.run_id):  # type: ignore[union-attr]
                asked.append(record.dagster_run.run_id)
    if not asked:
        return
    filters = RunsFilter(run_ids=asked, statuses=ACTIVE)
    deadline = time.monotonic() + patience
    while instance.get_run_records(filters, limit=1) and time.monotonic() < deadline:
        time.sleep(0.2)


def report_cancelled(instance: DagsterInstance) -> None:
    """Report runs cancelled whose processes have been ended; nobody works on them any more."""
    for record in instance.get_run_records(RunsFilter(statuses=ACTIVE)):
        instance.report_run_canceled(
            record.dagster_run, message="Stopped with the daemon that ran it."
        )
        _free_slots(instance, record.dagster_run.run_id)


def no_retry(instance: DagsterInstance, run_id: str) -> None:
    """Keep the daemon from retrying a lost run; whoever calls this starts its work anew."""
    instance.add_run_tags(run_id, {"dagster/max_retries": "0", "dagster/will_retry": "false"})
