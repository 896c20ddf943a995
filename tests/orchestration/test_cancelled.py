"""A generation whose run is cancelled in the queue: nobody starts it again by itself, people are told,
and whoever goes on makes it once. (One that is terminated while it starts: ``test_guards.py``.)
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter
from dagster._core.test_utils import create_run_for_test, freeze_time
from dagster._daemon.auto_run_reexecution.auto_run_reexecution import (
    consume_new_runs_for_automatic_reexecution,
)
from dagster._daemon.run_coordinator import QueuedRunCoordinatorDaemon
from dagster_graphql.client.query import LAUNCH_PIPELINE_REEXECUTION_MUTATION

from ringrift_pipeline.cli import run as ringrift
from ringrift_pipeline.enhancements.training_config import TrainingConfig
from ringrift_pipeline.orchestration import names
from ringrift_pipeline.orchestration.instance import open_instance
from ringrift_pipeline.orchestration.loop import first_generation
from ringrift_pipeline.orchestration.reexecution import LOOKED_THROUGH
from ringrift_pipeline.orchestration.settings import run_config
from ringrift_pipeline.orchestration.stalled_sensor import find_stall
from ringrift_pipeline.orchestration.status import status_of
from ringrift_pipeline.orchestration.submit import submit_generation
from ringrift_pipeline.store import Store

from .landing import PLAN, Land
from .served import TERMINATE, ask
from .test_once import last_begun
from .test_sensor_daemon import forget_cursor
from .ticking import daemon, sensor_tick

CONFIG = "square8_2p"
LOG = logging.getLogger("test")


@pytest.fixture
def instance(data: Path) -> Iterator[DagsterInstance]:
    """The pipeline's own instance, whose queue keeps runs that no daemon launches."""
    with open_instance(data) as made:
        yield made


def tick(workspace: Any, hours: float) -> None:
    """A tick of the sensor, at some time of a day."""
    before = last_begun(workspace.instance)
    with freeze_time(datetime.now(UTC) + timedelta(hours=hours)):
        sensor_tick(workspace)
    assert last_begun(workspace.instance) > before


def runs(instance: DagsterInstance, generation: str) -> list[DagsterRun]:
    """The runs of a generation's job, newest first."""
    tags = {names.PARTITION_TAG: generation}
    return [*instance.get_runs(RunsFilter(job_name=names.job_name(CONFIG), tags=tags))]


def cancelled_in_the_queue(workspace: Any, land: Land) -> DagsterRun:
    """The run of generation 1, which the sensor asked for and somebody terminated in the UI."""
    land(CONFIG, 0)
    tick(workspace, -3.0)
    (waiting,) = runs(workspace.instance, "0001")
    assert waiting.status == DagsterRunStatus.QUEUED
    answer = ask(workspace, TERMINATE, run=waiting.run_id)
    assert answer["__typename"] == "TerminateRunSuccess", answer
    (cancelled,) = runs(workspace.instance, "0001")
    assert cancelled.status == DagsterRunStatus.CANCELED
    return cancelled


def test_it_is_not_started_again_and_people_are_told(
    instance: DagsterInstance,
    data: Path,
    store: Store,
    land: Land,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with daemon(instance) as workspace:
        cancelled = cancelled_in_the_queue(workspace, land)
        tick(workspace, -2.0)
        list(QueuedRunCoordinatorDaemon(interval_seconds=1).run_iteration(workspace))
        records = instance.get_run_records()
        list(consume_new_runs_for_automatic_reexecution(workspace, records, LOG))
        assert runs(instance, "0001") == [cancelled]
    forget_cursor(instance)
    with open_instance(data) as restarted, daemon(restarted) as workspace:
        tick(workspace, -1.0)
        store.set_switches(CONFIG, loop=False)
        store.set_switches(CONFIG, loop=True)
        land(CONFIG, 0)  # evaluated once more
        tick(workspace, 0.0)
    assert runs(instance, "0001") == [cancelled]
    assert runs(instance, "0002") == []

    # a run of an earlier generation changes nothing of that
    done = {names.CONFIG_TAG: CONFIG, names.PARTITION_TAG: "0000"}
    create_run_for_test(
        instance, job_name=names.job_name(CONFIG), tags=done, status=DagsterRunStatus.SUCCESS
    )
    # nor do those of a long backfill
    for generation in range(2 * LOOKED_THROUGH + 1):
        tags = {**done, names.PARTITION_TAG: f"{generation:04d}", names.FILLED_TAG: "filling"}
        create_run_for_test(
            instance, job_name=names.job_name(CONFIG), tags=tags, status=DagsterRunStatus.SUCCESS
        )
    (state,) = status_of(data).cancelled
    assert (state.run_id, state.config, state.generation) == (cancelled.run_id, CONFIG, 1)
    assert ringrift(["status"]) == 0
    said = capsys.readouterr().out
    assert f"cancelled: {CONFIG} generation 0001 (run {cancelled.run_id[:8]})" in said
    assert f"ringrift loop --config {CONFIG} goes on" in said
    assert "nothing runs and nothing waits" not in said


def test_the_watch_says_since_when_it_stands_and_how_to_go_on(
    instance: DagsterInstance, store: Store, land: Land
) -> None:
    with daemon(instance) as workspace:
        cancelled = cancelled_in_the_queue(workspace, land)
    record = instance.get_run_record_by_id(cancelled.run_id)
    assert record is not None and record.end_time is not None
    since = datetime.fromtimestamp(record.end_time, UTC)
    allowed = timedelta(hours=TrainingConfig.preset("smoke").watch.stalled_hours)
    soon = timedelta(minutes=1)
    assert find_stall(instance, store, CONFIG, since + allowed - soon) is None
    stall = find_stall(instance, store, CONFIG, since + allowed + soon)
    assert stall is not None and stall.since == since and stall.run_id == cancelled.run_id
    text = stall.alert().text
    assert f"the run {cancelled.run_id} of generation 0001 was cancelled" in text
    assert "re-execute it in the UI" in text and f"`ringrift loop --config {CONFIG}`" in text


def test_a_run_that_is_at_work_beside_the_cancelled_one_is_what_the_config_waits_for(
    instance: DagsterInstance, data: Path, store: Store
) -> None:
    store.write_plan(CONFIG, 0, PLAN)
    tags = {names.CONFIG_TAG: CONFIG, names.PARTITION_TAG: "0000"}
    at_work, _ = (
        create_run_for_test(instance, job_name=names.job_name(CONFIG), tags=tags, status=status)
        for status in (DagsterRunStatus.STARTED, DagsterRunStatus.CANCELED)
    )
    assert status_of(data).cancelled == []
    stall = find_stall(instance, store, CONFIG, datetime.now(UTC) + timedelta(days=9))
    assert stall is not None and stall.run_id == at_work.run_id
    assert f"its run {at_work.run_id} is under way" in stall.why


def reexecute(workspace: Any, store: Store, cancelled: DagsterRun) -> None:
    """As the button on the run's page does."""
    parameters = {"parentRunId": cancelled.run_id, "strategy": "ALL_STEPS"}
    answer = ask(workspace, LAUNCH_PIPELINE_REEXECUTION_MUTATION, reexecutionParams=parameters)
    assert answer["__typename"] == "LaunchRunSuccess", answer


def begin_a_loop(workspace: Any, store: Store, cancelled: DagsterRun) -> None:
    """As ``ringrift loop`` does."""
    generation = first_generation(store, CONFIG, "auto")
    settings = run_config(TrainingConfig.preset("smoke"), last_generation=2)
    submit_generation(workspace.instance, CONFIG, generation, settings)


@pytest.mark.whole
@pytest.mark.parametrize("go_on", [reexecute, begin_a_loop])
def test_whoever_goes_on_makes_the_generation_once(
    instance: DagsterInstance, data: Path, store: Store, land: Land, go_on: Any
) -> None:
    with daemon(instance) as workspace:
        cancelled = cancelled_in_the_queue(workspace, land)
        go_on(workspace, store, cancelled)
        waiting, before = runs(instance, "0001")
        assert before == cancelled and waiting.status == DagsterRunStatus.QUEUED
        assert waiting.tags[names.ORDER_TAG] == CONFIG
        assert status_of(data).cancelled == []
        tick(workspace, -2.0)
        assert runs(instance, "0001") == [waiting, cancelled]
        land(CONFIG, 1)  # it is made
        tick(workspace, -1.0)
        tick(workspace, 0.0)
        assert [run.status for run in runs(instance, "0002")] == [DagsterRunStatus.QUEUED]
        assert runs(instance, "0001") == [waiting, cancelled]
        assert [one.generation for one in store.champions(CONFIG)] == [0, 1]
