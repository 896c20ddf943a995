"""Once only: equal run keys, two daemons by mistake, two loops."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from sqlite3 import OperationalError
from typing import Any

import pytest
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.run_coordinator import SubmitRunContext
from dagster._core.storage.tags import (
    PARENT_RUN_ID_TAG,
    ROOT_RUN_ID_TAG,
    RUN_KEY_TAG,
    SENSOR_NAME_TAG,
)
from dagster._core.test_utils import create_run_for_test, freeze_time
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._daemon import sensor as sensor_daemon

from ringrift_pipeline.orchestration import names
from ringrift_pipeline.orchestration.decisions import read_decision
from ringrift_pipeline.orchestration.instance import open_instance
from ringrift_pipeline.orchestration.places import home_folder
from ringrift_pipeline.store import Store
from ringrift_pipeline.store.locks import folder_lock

from .landing import Land
from .test_sensor_daemon import queued
from .ticking import daemon, sensor_tick

CONFIG = "square8_2p"
TWO = (CONFIG, "hex8_3p")
KEY = {RUN_KEY_TAG: f"{CONFIG}/0001", SENSOR_NAME_TAG: names.SENSOR}


@pytest.fixture
def instance(data: Path) -> Iterator[DagsterInstance]:
    """The pipeline's own instance, whose queue keeps runs that no daemon launches."""
    with open_instance(data) as made:
        yield made


def make(instance: DagsterInstance, key: Mapping[str, str] = KEY, **tags: str) -> DagsterRun:
    target = LoadableTargetOrigin(executable_path=sys.executable, module_name=names.MODULE)
    place = ManagedGrpcPythonEnvCodeLocationOrigin(target, names.MODULE)
    job = names.job_name(CONFIG)
    named = {names.CONFIG_TAG: CONFIG, names.PARTITION_TAG: "0001"}
    return create_run_for_test(
        instance,
        job_name=job,
        tags={**named, **key, **tags},
        parent_run_id=tags.get(PARENT_RUN_ID_TAG),
        root_run_id=tags.get(ROOT_RUN_ID_TAG),
        remote_job_origin=RemoteJobOrigin(RemoteRepositoryOrigin(place, "__repository__"), job),
    )


def submit(instance: DagsterInstance, run: DagsterRun) -> DagsterRun:
    return instance.run_coordinator.submit_run(SubmitRunContext(run, workspace=None))  # type: ignore


def statuses(instance: DagsterInstance) -> list[str]:
    return sorted(run.status.value for run in instance.get_runs())


def test_of_equal_run_keys_the_first_is_kept(instance: DagsterInstance) -> None:
    first, second = make(instance), make(instance)
    submit(instance, second)  # whichever comes to the queue first
    submit(instance, first)
    submit(instance, first)  # once more changes nothing
    assert [run.run_id for run in instance.get_runs()] == [first.run_id]
    assert statuses(instance) == ["QUEUED"]
    # another key, another sensor's, and the same run once more after it failed are others
    make_others = (
        {RUN_KEY_TAG: f"{CONFIG}/0002"},
        {SENSOR_NAME_TAG: "another"},
        {PARENT_RUN_ID_TAG: first.run_id, ROOT_RUN_ID_TAG: first.run_id},
    )
    for tags in make_others:
        submit(instance, make(instance, **tags))
    assert statuses(instance) == ["QUEUED"] * 4


def test_a_generation_that_somebody_else_has_started_is_not_started_for_the_sensor(
    instance: DagsterInstance,
) -> None:
    """Whichever was made first, and whatever has become of it; the sensor asked before it was there."""
    mine = make(instance)
    theirs = submit(instance, make(instance, key={}))
    assert submit(instance, mine).run_id == theirs.run_id
    assert [run.run_id for run in instance.get_runs()] == [theirs.run_id]
    instance.report_run_canceled(theirs)
    submit(instance, make(instance))
    assert statuses(instance) == ["CANCELED"]
    # whoever asks again means it
    submit(instance, make(instance, key={}))
    submit(
        instance,
        make(instance, **{PARENT_RUN_ID_TAG: theirs.run_id, ROOT_RUN_ID_TAG: theirs.run_id}),
    )
    assert statuses(instance) == ["CANCELED", "QUEUED", "QUEUED"]


def test_what_makes_another_generation_or_decides_nothing_does_not_keep_the_sensors_run_back(
    instance: DagsterInstance,
) -> None:
    for tags in ({names.PARTITION_TAG: "0002"}, {names.FILLED_TAG: "some"}):
        submit(instance, make(instance, key={}, **tags))
    mine = submit(instance, make(instance))
    assert mine.tags[RUN_KEY_TAG] == KEY[RUN_KEY_TAG] and statuses(instance) == ["QUEUED"] * 3


def test_of_many_daemons_that_ask_at_once_one_is_heard(instance: DagsterInstance) -> None:
    start = threading.Barrier(6)

    def ask(_: int) -> None:
        start.wait()
        submit(instance, make(instance))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(ask, range(6)))
    assert statuses(instance) == ["QUEUED"]


def last_begun(instance: DagsterInstance) -> float:
    """When the sensor's last tick began, or is said to have."""
    for state in instance.all_instigator_state():
        if state.instigator_name == names.SENSOR:
            return state.instigator_data.last_tick_start_timestamp or 0.0  # type: ignore
    return 0.0


def begin_tick(pool: ThreadPoolExecutor, workspace: Any, hours: float) -> Future[None]:
    """A tick that is under way when this returns; its daemon's clock is ahead by some hours, so that
    it does not wait for the last one to be two seconds ago.
    """
    before = last_begun(workspace.instance)
    with freeze_time(datetime.now(UTC) + timedelta(hours=hours)):
        tick = pool.submit(sensor_tick, workspace)
        while last_begun(workspace.instance) == before and not tick.done():
            time.sleep(0.05)
    return tick


@pytest.mark.whole
def test_two_daemons_by_mistake_start_each_generation_once(
    instance: DagsterInstance, data: Path, store: Store, land: Land
) -> None:
    """Both are in the midst of a tick, with the same cursor, when the evaluations are seen."""
    with (
        open_instance(data) as other,
        daemon(instance) as mine,
        daemon(other) as theirs,
        ThreadPoolExecutor(2) as pool,
    ):
        begin_tick(pool, mine, -2.0).result()  # what each does first, Dagster cannot do twice
        for config in TWO:
            land(config, 0)
        with folder_lock(home_folder(data)):
            ticks = [begin_tick(pool, mine, -1.0), begin_tick(pool, theirs, 0.0)]
            time.sleep(0.3)
            assert not any(tick.done() for tick in ticks)
        for tick in ticks:
            tick.result(timeout=600)
    assert queued(instance) == sorted((names.job_name(config), "0001") for config in TWO)
    assert all(
        run.status == DagsterRunStatus.QUEUED
        for run in instance.get_runs()
        if run.job_name.endswith("_generation")
    )
    for config in TWO:
        decision = read_decision(store, config, 0)
        assert decision is not None and decision["next"] == 1
        assert [one.generation for one in store.champions(config)] == [0]
        assert instance.get_dynamic_partitions(names.partitions_name(config)) == ["0000", "0001"]


def test_what_dagster_gave_up_submitting_is_asked_for_again(
    instance: DagsterInstance, land: Land, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It submits what was asked for twice, and keeps the sensor's cursor only with what it could."""

    def locked(*_: Any) -> None:
        raise OperationalError("database is locked")

    land(CONFIG, 0)
    with daemon(instance) as workspace, ThreadPoolExecutor(1) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(sensor_daemon, "_submit_run_request", locked)
            for hours in (-4.0, -3.0):
                begin_tick(pool, workspace, hours).result()
        assert queued(instance) == []
        for hours in (-2.0, -1.0):
            begin_tick(pool, workspace, hours).result()
            assert queued(instance) == [(names.job_name(CONFIG), "0001")]
