"""Has an evaluation passed its blocking checks? For that very materialization, not the newest."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dagster import AssetCheckKey, AssetKey, DagsterInstance, DagsterRun, EventLogRecord
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecord

HISTORY = 1000  # newest executions of a check that are looked through


class State(Enum):
    """What is known of a materialization's blocking checks."""

    PASSED = "passed"
    FAILED = "failed"
    PENDING = "pending"


@dataclass(frozen=True)
class Verdict:
    """``state``, and why it is not PASSED (empty where it is)."""

    state: State
    reasons: tuple[str, ...] = ()


def verdict(
    instance: DagsterInstance,
    record: EventLogRecord,
    checks: list[str],
    run: DagsterRun | None,
) -> Verdict:
    """The verdict of the checks named ``checks`` on the materialization ``record``.

    Args:
        run: the run that made it, **read before this call**: were it read after the history, a
            check landing between the two reads would be taken for missing.
    """
    key = record.asset_key
    assert key is not None, "a materialization has an asset key"
    failed: list[str] = []
    pending: list[str] = []
    for name in checks:
        passed = _passed(instance, key, name, record.storage_id)
        if passed is None:
            pending.append(name)
        elif not passed:
            failed.append(f"check {name} failed")
    if failed:
        return Verdict(State.FAILED, tuple(failed))
    if not pending:
        return Verdict(State.PASSED)
    if run is None:
        reasons = tuple(f"check {name} has no result and its run is unknown" for name in pending)
        return Verdict(State.FAILED, reasons)
    if run.is_finished:
        reasons = tuple(
            f"check {name} has no result and its run ended ({run.status.value})" for name in pending
        )
        return Verdict(State.FAILED, reasons)
    return Verdict(State.PENDING, tuple(f"waiting for check {name}" for name in pending))


def _passed(instance: DagsterInstance, key: AssetKey, name: str, storage_id: int) -> bool | None:
    """Did the check pass on this materialization? None if it has not judged it."""
    records: list[AssetCheckExecutionRecord] = list(
        instance.event_log_storage.get_asset_check_execution_history(
            AssetCheckKey(key, name), limit=HISTORY
        )
    )
    for record in records:  # newest first
        event = record.event
        if event is None or event.dagster_event is None:
            continue  # planned, not executed
        evaluation = event.asset_check_evaluation
        if evaluation is None:
            continue
        target = evaluation.target_materialization_data
        if target is not None and target.storage_id == storage_id:
            return evaluation.passed
    return None
