"""The sensor under the daemon's own code, which is killed and started again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import DagsterInstance

from ringrift_pipeline.orchestration import following, names
from ringrift_pipeline.orchestration.instance import open_instance
from ringrift_pipeline.orchestration.sensor import INTERVAL
from ringrift_pipeline.store import Store

from .landing import Land
from .ticking import daemon, sensor_tick

THREE = ("square8_2p", "hex8_3p", "hexagonal_4p")


@pytest.fixture
def instance(data: Path) -> Iterator[DagsterInstance]:
    """The pipeline's own instance, whose queue keeps runs that no daemon launches."""
    with open_instance(data) as made:
        yield made


def queued(instance: DagsterInstance) -> list[tuple[str, str]]:
    return sorted(
        (run.job_name, run.tags[names.PARTITION_TAG])
        for run in instance.get_runs()
        if run.job_name.endswith("_generation")
    )


def forget_cursor(instance: DagsterInstance) -> None:
    (state,) = [
        one for one in instance.all_instigator_state() if one.instigator_name == names.SENSOR
    ]
    instance.update_instigator_state(
        state.with_data(state.instigator_data._replace(cursor=None, last_run_key=None))
    )


@pytest.mark.whole
def test_restarted_daemons_start_each_generation_once(
    instance: DagsterInstance, land: Land, monkeypatch: pytest.MonkeyPatch
) -> None:
    for config in THREE:
        land(config, 0)
    wanted = sorted((names.job_name(config), "0001") for config in THREE)
    with daemon(instance) as workspace:
        sensor_tick(workspace)
    assert queued(instance) == wanted
    with daemon(instance) as workspace:  # started again
        sensor_tick(workspace)
    assert queued(instance) == wanted
    # Started again after a crash that lost the cursor, and blind for the runs that exist: the run
    # keys alone keep it from starting a generation twice.
    forget_cursor(instance)
    monkeypatch.setattr(following, "generation_runs", lambda *_: [])
    with daemon(instance) as workspace:
        sensor_tick(workspace)
    assert queued(instance) == wanted
    for config in THREE:
        assert instance.get_dynamic_partitions(names.partitions_name(config)) == ["0000", "0001"]


@pytest.mark.whole
def test_a_pause_outlives_the_daemon_and_a_resume_starts_what_waited_once(
    instance: DagsterInstance, data: Path, store: Store, land: Land
) -> None:
    for config in THREE:
        land(config, 0)
    store.set_switches("hex8_3p", loop=False)
    others = sorted((names.job_name(c), "0001") for c in THREE if c != "hex8_3p")
    for _ in range(2):
        with open_instance(data) as restarted, daemon(restarted) as workspace:
            sensor_tick(workspace)
            assert queued(restarted) == others
        time.sleep(INTERVAL)
    store.set_switches("hex8_3p", loop=True)
    for _ in range(2):
        with open_instance(data) as restarted, daemon(restarted) as workspace:
            sensor_tick(workspace)
            assert queued(restarted) == sorted([*others, ("hex8_3p_generation", "0001")])
        time.sleep(INTERVAL)
