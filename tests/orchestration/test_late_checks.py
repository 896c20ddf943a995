"""``evaluation_landed``: checks that come late, from a retry, a re-execution or on their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.execution.backfill import BulkActionStatus
from dagster._core.storage.tags import AUTO_RETRY_RUN_ID_TAG
from dagster._core.test_utils import create_run_for_test

from ringrift_pipeline.orchestration import names, reexecution, sensor
from ringrift_pipeline.orchestration.cursor import read_cursor
from ringrift_pipeline.orchestration.instance import open_instance
from ringrift_pipeline.orchestration.notify import Alert
from ringrift_pipeline.orchestration.outbox import Outbox
from ringrift_pipeline.orchestration.verdicts import State, Verdict
from ringrift_pipeline.store import Store

from .conftest import a_backfill, re_executing
from .landing import Land
from .test_sensor import keys, tick

CONFIG = "square8_2p"


@pytest.fixture
def instance(data: Path) -> Iterator[DagsterInstance]:
    """The pipeline's own instance, which retries runs whose worker was lost."""
    with open_instance(data) as made:
        yield made


def fail(instance: DagsterInstance, run_id: str) -> DagsterRun:
    """Report a run failed, as after its worker was lost; the run as it is then."""
    instance.report_run_failed(known(instance, run_id))
    return known(instance, run_id)


def known(instance: DagsterInstance, run_id: str) -> DagsterRun:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run


def working(instance: DagsterInstance, retry_of: str | None = None) -> DagsterRun:
    """A run of the generation that is under way."""
    where = {names.CONFIG_TAG: CONFIG, names.PARTITION_TAG: "0000"}
    return create_run_for_test(
        instance,
        job_name=names.job_name(CONFIG),
        status=DagsterRunStatus.STARTED,
        parent_run_id=retry_of,
        root_run_id=retry_of,
        tags=where if retry_of is None else {**where, **re_executing(retry_of)},
    )


def handled_alone(cursor: str) -> set[str]:
    """What a cursor remembers something of; that is no more than the last evaluation handled."""
    read = read_cursor(cursor)
    assert read.failed == {} and read.held == {} and not read.earlier
    return set(read.handled)


def decision(store: Store) -> dict[str, Any] | None:
    artefact = store.current(CONFIG, 0, "decision")
    return artefact.metadata if artefact is not None else None


def told(store: Store) -> list[Alert]:
    """The alerts that wait, which are taken."""
    return Outbox(store).deliver(SimpleNamespace(notify=lambda alert: None))


def decisions(store: Store) -> int:
    return len(store.artefacts(CONFIG, 0, "decision"))


# --- a check without a result, whose run may still bring it --------------------------------------


def test_the_checks_of_a_lost_run_are_waited_for_until_its_retry_has_made_them(
    instance: DagsterInstance, store: Store, land: Land, judge_again: Callable[..., Any]
) -> None:
    """Its worker was lost between the evaluation's materialization and the checks."""
    lost = land(CONFIG, 0, passed=None).run_id
    assert fail(instance, lost).tags[reexecution.RETRY_TAG] == "true"
    first = tick(instance)
    assert keys(first) == [] and decision(store) is None
    assert CONFIG not in read_cursor(first.cursor).handled
    retry = judge_again(CONFIG, 0, retry_of=lost)
    instance.add_run_tags(lost, {AUTO_RETRY_RUN_ID_TAG: retry.run_id})
    second = tick(instance, first.cursor)
    assert keys(second) == [f"{CONFIG}/0001"]
    assert store.champion(CONFIG).generation == 0  # type: ignore[union-attr]
    made = decision(store)
    assert made is not None and made["promoted"] and made["end"] is None


def test_a_retry_that_brings_no_result_either_ends_the_waiting(
    instance: DagsterInstance, store: Store, land: Land
) -> None:
    once = {"dagster/max_retries": "1"}
    lost = land(CONFIG, 0, passed=None, tags=once).run_id
    fail(instance, lost)
    retry = working(instance, lost)
    instance.add_run_tags(retry.run_id, once)
    instance.add_run_tags(lost, {AUTO_RETRY_RUN_ID_TAG: retry.run_id})
    first = tick(instance)
    assert decision(store) is None
    assert fail(instance, retry.run_id).tags[reexecution.RETRY_TAG] == "false"  # once is enough
    tick(instance, first.cursor)
    made = decision(store)
    assert made is not None and made["end"] == "checks" and "no result" in made["reasons"][0]


@pytest.mark.parametrize(
    ("status", "waits"),
    [
        (BulkActionStatus.REQUESTED, True),
        (BulkActionStatus.COMPLETED_FAILED, False),
        (BulkActionStatus.CANCELED, False),
        (None, False),  # it was deleted
    ],
)
def test_a_lost_run_of_a_backfill_is_waited_for_as_long_as_that_goes_on(
    status: BulkActionStatus | None,
    waits: bool,
    instance: DagsterInstance,
    store: Store,
    land: Land,
) -> None:
    """A model was trained anew by a backfill; its worker was lost before the checks."""
    if status is not None:
        instance.add_backfill(a_backfill("some", status))
    rest = tuple(name for name in names.ASSETS if name != "checkpoint")
    lost = land(
        CONFIG,
        0,
        checks={"losses_finite": None},
        without=rest,
        tags={names.BACKFILL_TAG: "some"},
    ).run_id
    assert fail(instance, lost).tags[reexecution.RETRY_TAG] == "true"
    land(CONFIG, 0, without=("checkpoint",))
    assert keys(tick(instance)) == []
    made = decision(store)
    if waits:
        assert made is None
    else:
        assert made is not None and made["end"] == "checks" and "no result" in made["reasons"][0]


def test_a_chain_of_re_executions_is_followed_to_its_end(
    instance: DagsterInstance, store: Store, land: Land
) -> None:
    run_id = land(CONFIG, 0, passed=None).run_id
    cursor = None
    for _ in range(2):
        again = working(instance, run_id)
        cursor = tick(instance, cursor).cursor
        assert decision(store) is None
        instance.report_run_canceled(again)
        run_id = again.run_id
    tick(instance, cursor)
    assert decision(store) is not None


def test_dagster_is_given_time_to_note_that_it_retries_a_run(
    instance: DagsterInstance, store: Store, land: Land, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = land(CONFIG, 0, passed=None, tags={"dagster/max_retries": "0"}).run_id
    fail(instance, lost)
    monkeypatch.setattr(reexecution, "RETRY_TAG", "not/there/yet")
    cursor = tick(instance).cursor
    assert decision(store) is None
    monkeypatch.setattr(reexecution, "TAG_PATIENCE", -1.0)
    tick(instance, cursor)
    assert decision(store) is not None


# --- a check that failed, and was mended ---------------------------------------------------------


def test_a_mended_evaluation_is_promoted_and_followed_once(
    instance: DagsterInstance,
    store: Store,
    land: Land,
    judge_again: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    land(CONFIG, 0, passed=False)
    first = tick(instance)
    assert keys(first) == [] and decision(store)["end"] == "checks"  # type: ignore[index]
    with monkeypatch.context() as patch:  # nothing is looked at as long as nothing was run
        patch.setattr(sensor, "generation_verdict", lambda *_: pytest.fail("looked again"))
        second = tick(instance, first.cursor)
        under_way = working(instance)
        assert tick(instance, second.cursor).cursor == second.cursor == first.cursor
        instance.report_run_canceled(under_way)
    judge_again(CONFIG, 0)
    third = tick(instance, second.cursor)
    assert keys(third) == [f"{CONFIG}/0001"]
    assert store.champion(CONFIG).generation == 0  # type: ignore[union-attr]
    made = decision(store)
    assert made is not None and made["promoted"] and made["next"] == 1 and made["end"] is None
    assert handled_alone(third.cursor) == {CONFIG}
    judge_again(CONFIG, 0)
    fourth = tick(instance, third.cursor)
    assert keys(fourth) == [] and decisions(store) == 2


def test_what_fails_again_is_decided_and_told_once_and_looked_at_once_more(
    instance: DagsterInstance, store: Store, land: Land, judge_again: Callable[..., Any]
) -> None:
    land(CONFIG, 0, passed=False)
    first = tick(instance)
    (alert,) = told(store)
    assert (alert.kind, alert.config, alert.generation) == ("checks_failed", CONFIG, "0000")
    assert "check evaluation_sound of evaluation failed: as asked" in alert.text
    assert "looks again by itself" in alert.text and "launch generation 0001" in alert.text
    judge_again(CONFIG, 0, passed=False)
    second = tick(instance, first.cursor)
    assert "What to do: " in decision(store)["reasons"][0]  # type: ignore[index]
    assert decisions(store) == 2
    assert second.cursor != first.cursor  # that run has been looked at
    third = tick(instance, second.cursor)
    tick(instance)  # the cursor was lost
    assert third.cursor == second.cursor and decisions(store) == 2
    assert told(store) == []
    judge_again(CONFIG, 0)
    assert keys(tick(instance, third.cursor)) == [f"{CONFIG}/0001"]


def test_a_run_that_worked_while_the_checks_were_looked_at_counts_when_it_is_over(
    instance: DagsterInstance,
    store: Store,
    land: Land,
    judge_again: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    land(CONFIG, 0, passed=False)
    again = judge_again(CONFIG, 0).run_id
    with monkeypatch.context() as patch:  # it has not come to its checks yet
        patch.setattr(DagsterRun, "is_finished", property(lambda run: run.run_id != again))
        failed = Verdict(State.FAILED, ("as asked",))
        patch.setattr(sensor, "generation_verdict", lambda *_: failed)
        cursor = tick(instance).cursor
    assert decision(store)["end"] == "checks"  # type: ignore[index]
    assert keys(tick(instance, cursor)) == [f"{CONFIG}/0001"]


def test_an_evaluation_mended_while_its_config_is_paused_waits_for_the_resume(
    instance: DagsterInstance,
    store: Store,
    land: Land,
    judge_again: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    land(CONFIG, 0, passed=False)
    cursor = tick(instance).cursor
    store.set_switches(CONFIG, loop=False)
    judge_again(CONFIG, 0)
    first = tick(instance, cursor)
    assert keys(first) == [] and store.champion(CONFIG) is not None
    with monkeypatch.context() as patch:  # nothing is looked at again while it waits
        patch.setattr(Store, "promote", lambda *_, **__: pytest.fail("promoted again"))
        second = tick(instance, first.cursor)
    assert keys(second) == [] and second.cursor == first.cursor
    store.set_switches(CONFIG, loop=True)
    third = tick(instance, second.cursor)
    assert keys(third) == [f"{CONFIG}/0001"]
    assert handled_alone(third.cursor) == {CONFIG}


def of_an_earlier_version(cursor: str) -> str:
    """The cursor as it was before there was ``failed``."""
    kept = json.loads(cursor)
    del kept["failed"]
    return json.dumps(kept)


@pytest.mark.parametrize("mended_before", [True, False])
def test_what_an_earlier_version_stopped_at_is_looked_at_again(
    mended_before: bool,
    instance: DagsterInstance,
    store: Store,
    land: Land,
    judge_again: Callable[..., Any],
) -> None:
    land(CONFIG, 0, passed=False)
    land("hex8_3p", 0)
    cursor = of_an_earlier_version(tick(instance).cursor)
    if not mended_before:
        first = tick(instance, cursor)
        assert keys(first) == [] and read_cursor(first.cursor).failed[CONFIG].generation == 0
        cursor = first.cursor
        assert tick(instance, cursor).cursor == cursor  # it has been looked at
    judge_again(CONFIG, 0)
    assert keys(tick(instance, cursor)) == [f"{CONFIG}/0001"]
    assert len(told(store)) == 1


def test_what_an_earlier_version_has_left_behind_is_not(
    instance: DagsterInstance, store: Store, land: Land, judge_again: Callable[..., Any]
) -> None:
    land(CONFIG, 0, passed=False)
    land(CONFIG, 1)  # launched from the browser
    cursor = of_an_earlier_version(tick(instance).cursor)
    judge_again(CONFIG, 0)
    result = tick(instance, cursor)
    assert keys(result) == [] and handled_alone(result.cursor) == {CONFIG}
    assert store.champion(CONFIG).generation == 1  # type: ignore[union-attr]


def test_a_generation_that_passed_since_ends_the_looking(
    instance: DagsterInstance, store: Store, land: Land, judge_again: Callable[..., Any]
) -> None:
    land(CONFIG, 0, passed=False)
    cursor = tick(instance).cursor
    assert read_cursor(cursor).failed[CONFIG].generation == 0
    land(CONFIG, 1)  # launched from the browser
    result = tick(instance, cursor)
    assert read_cursor(result.cursor).failed == {}
    judge_again(CONFIG, 0)
    tick(instance, result.cursor)
    assert store.champion(CONFIG).generation == 1  # type: ignore[union-attr]


@pytest.mark.whole
def test_an_older_generation_that_is_evaluated_again_leaves_it(
    instance: DagsterInstance, store: Store, land: Land, judge_again: Callable[..., Any]
) -> None:
    land(CONFIG, 0)
    land(CONFIG, 1, passed=False)
    cursor = tick(instance).cursor
    land(CONFIG, 0, passed=False)
    cursor = tick(instance, cursor).cursor
    assert read_cursor(cursor).failed[CONFIG].generation == 1
    judge_again(CONFIG, 1)
    assert keys(tick(instance, cursor)) == [f"{CONFIG}/0002"]
