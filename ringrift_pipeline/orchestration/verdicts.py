"""What the blocking checks say of a generation: of every asset that its evaluation rests on, or of
those that an asset is made from. Each for the very materialization, not for whatever was checked
last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from dagster import (
    AssetCheckEvaluation,
    AssetCheckKey,
    AssetCheckSeverity,
    AssetKey,
    AssetRecordsFilter,
    DagsterInstance,
    EventLogRecord,
)
from dagster._core.event_api import PartitionKeyFilter
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from ringrift_pipeline.orchestration.checks import blocking_checks
from ringrift_pipeline.orchestration.names import ASSETS, asset_key, job_name
from ringrift_pipeline.orchestration.reexecution import run_end

HISTORY = 100  # newest executions of a check on one partition that are looked through


class State(Enum):
    """What is known of blocking checks."""

    PASSED = "passed"
    FAILED = "failed"
    PENDING = "pending"


@dataclass(frozen=True)
class Verdict:
    """``state``, and why it is not PASSED (empty where it is)."""

    state: State
    reasons: tuple[str, ...] = ()


def generation_verdict(
    instance: DagsterInstance, config: str, evaluation: EventLogRecord
) -> Verdict:
    """The verdict of all blocking checks of the generation that ``evaluation`` is of.

    The evaluation's own checks must have judged that record; those of every other asset the
    asset's newest materialization of the generation. One failure fails all. An asset that was
    never materialized has been judged by nobody, which counts as failed: its files may come from
    the command line, whose verbs check nothing. A check without a result is waited for as long as
    the run that made its asset, or a retry or re-execution of that, may still bring it.
    """
    found = []
    ends: dict[str, str | None] = {}
    for name in ASSETS:
        checks = blocking_checks(name)
        if not checks:
            continue
        record = evaluation
        if name != "evaluation":
            newest = newest_materialization(
                instance, asset_key(config, name), evaluation.partition_key
            )
            if newest is None:
                reason = (
                    f"{name} was never materialized, so {', '.join(checks)} cannot have passed: "
                    f"run {job_name(config)}, which makes only what is missing"
                )
                found.append(Verdict(State.FAILED, (reason,)))
                continue
            record = newest
        # The runs are read before the history: the other way round a check landing between the two
        # would be taken for missing.
        if record.run_id not in ends:
            ends[record.run_id] = run_end(instance, record.run_id)
        found.append(verdict(instance, record, checks, ends[record.run_id]))
    for state in (State.FAILED, State.PENDING):
        reasons = [reason for one in found if one.state is state for reason in one.reasons]
        if reasons:
            return Verdict(state, tuple(reasons))
    return Verdict(State.PASSED)


def verdict(
    instance: DagsterInstance,
    record: EventLogRecord,
    checks: Sequence[str],
    ended: str | None,
) -> Verdict:
    """The verdict of the checks named ``checks`` on the materialization ``record``.

    Args:
        ended: `run_end` of the run that made it, **read before this call**.
    """
    key = record.asset_key
    assert key is not None, "a materialization has an asset key"
    failed: list[str] = []
    pending: list[str] = []
    for name in checks:
        judged = _judged(instance, key, name, record)
        if judged is None:
            pending.append(name)
        elif not judged.passed:
            failed.append(_told(judged))
    if failed:
        return Verdict(State.FAILED, tuple(failed))
    if not pending:
        return Verdict(State.PASSED)
    if ended is None:
        return Verdict(State.PENDING, tuple(f"waiting for check {name}" for name in pending))
    reasons = (
        f"check {name} of {key.path[-1]} has no result and its run {ended}" for name in pending
    )
    return Verdict(State.FAILED, tuple(reasons))


def standing_failures(
    instance: DagsterInstance, config: str, assets: Sequence[str], partition: str
) -> list[str]:
    """What the blocking checks found against a generation's ``assets`` as they are now, in words.

    A check that has not judged the newest materialization of its asset says nothing. One query
    where none has failed.
    """
    checks = [
        AssetCheckKey(asset_key(config, name), check)
        for name in assets
        for check in blocking_checks(name)
    ]
    latest = instance.event_log_storage.get_latest_asset_check_execution_by_key(
        checks, PartitionKeyFilter(key=partition)
    )
    # One that was planned, and whose run ended before it, hides what it said before.
    doubtful = [
        check
        for check in checks
        if check in latest and latest[check].status is not AssetCheckExecutionRecordStatus.SUCCEEDED
    ]
    newest = {
        key: newest_materialization(instance, key, partition)
        for key in dict.fromkeys(check.asset_key for check in doubtful)
    }
    failed = []
    for check in doubtful:
        record = newest[check.asset_key]
        judged = record and _judged(instance, check.asset_key, check.name, record)
        if judged and not judged.passed and judged.severity is AssetCheckSeverity.ERROR:
            failed.append(_told(judged))
    return failed


def _told(judged: AssetCheckEvaluation) -> str:
    """A failure in words, with what the check said."""
    why = f": {judged.description}" if judged.description else ""
    return f"check {judged.check_name} of {judged.asset_key.path[-1]} failed{why}"


def newest_materialization(
    instance: DagsterInstance, key: AssetKey, partition: str | None
) -> EventLogRecord | None:
    """The newest materialization of a generation's asset, None if there is none."""
    assert partition is not None, "the assets of a generation are partitioned"
    records = instance.fetch_materializations(
        AssetRecordsFilter(asset_key=key, asset_partitions=[partition]), limit=1
    ).records
    return records[0] if records else None


def _judged(
    instance: DagsterInstance, key: AssetKey, name: str, record: EventLogRecord
) -> AssetCheckEvaluation | None:
    """What the check last said of this materialization, None if it has not judged it."""
    executions = instance.event_log_storage.get_asset_check_execution_history(
        AssetCheckKey(key, name),
        limit=HISTORY,
        partition_filter=PartitionKeyFilter(key=record.partition_key),
    )
    for execution in executions:  # newest first
        event = execution.event
        if event is None or event.dagster_event is None:
            continue  # planned, not executed
        evaluation = event.asset_check_evaluation
        if evaluation is None:
            continue
        target = evaluation.target_materialization_data
        if target is not None and target.storage_id == record.storage_id:
            return evaluation
    return None
