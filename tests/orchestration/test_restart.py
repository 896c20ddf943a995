"""A daemon that is killed once the next generations are asked for and before it has made their runs:
who starts them then, and with which settings.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from dagster import AssetCheckKey, DagsterInstance
from dagster._core.event_api import PartitionKeyFilter
from dagster._core.scheduler.instigation import InstigatorTick, TickStatus
from dagster._core.test_utils import freeze_time
from dagster._daemon import sensor as sensor_daemon

from ringrift_pipeline.enhancements.training_config import TrainingConfig
from ringrift_pipeline.orchestration import names
from ringrift_pipeline.orchestration.instance import open_instance
from ringrift_pipeline.orchestration.loop import Loop, LoopRequest

from .landing import Land
from .test_sensor_daemon import queued
from .ticking import daemon, sensor_tick

CONFIG, OTHER = "square8_2p", "hex8_3p"
WANTED = sorted((names.job_name(config), "0001") for config in (CONFIG, OTHER))


@pytest.fixture
def instance(data: Path) -> Iterator[DagsterInstance]:
    """The pipeline's own instance, whose queue keeps runs that no daemon launches."""
    with open_instance(data) as made:
        yield made


def last_tick(instance: DagsterInstance) -> InstigatorTick:
    (state,) = [
        one for one in instance.all_instigator_state() if one.instigator_name == names.SENSOR
    ]
    return instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1)[0]


@pytest.fixture
def killed(instance: DagsterInstance, land: Land, monkeypatch: pytest.MonkeyPatch) -> None:
    """Generation 0 of two configs was decided, and the daemon killed before it made a run."""

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    for config in (CONFIG, OTHER):
        land(config, 0, last=3)
    with daemon(instance) as workspace, monkeypatch.context() as patch:
        patch.setattr(sensor_daemon, "_submit_run_request", die)
        with pytest.raises(KeyboardInterrupt):
            sensor_tick(workspace)
    tick = last_tick(instance)
    assert tick.status is TickStatus.STARTED and len(tick.unsubmitted_run_ids_with_requests) == 2
    assert queued(instance) == []


def next_daemon(instance: DagsterInstance) -> None:
    """The first tick of the daemon that is started next."""
    before = last_tick(instance).tick_id
    later = datetime.now(UTC) + timedelta(hours=1)
    with daemon(instance) as workspace, freeze_time(later):
        sensor_tick(workspace)
    tick = last_tick(instance)
    assert (tick.tick_id, tick.status) == (before, TickStatus.SUCCESS)


def test_the_next_daemon_makes_the_runs(instance: DagsterInstance, killed: None) -> None:
    next_daemon(instance)
    assert queued(instance) == WANTED


def test_a_new_loop_starts_the_generation_once_and_with_its_own_settings(
    instance: DagsterInstance, data: Path, killed: None, no_servers: None
) -> None:
    settings = TrainingConfig.preset("smoke").with_overrides({"selfplay": {"games": 12}})
    with Loop(LoopRequest(CONFIG, data, settings, generations=1)) as work:
        (mine,) = work.instance.get_runs()[:1]
        assert queued(work.instance) == [(names.job_name(CONFIG), "0001")]
        next_daemon(work.instance)
        assert queued(work.instance) == WANTED  # the other config's is still made
        (run,) = [one for one in instance.get_runs() if one.job_name == names.job_name(CONFIG)]
        asked = run.run_config["resources"]["settings"]["config"]
        assert run.run_id == mine.run_id
        assert (asked["last_generation"], asked["selfplay"]["games"]) == (1, 12)
        # and no page of Dagster's shows the dropped one's checks
        check = AssetCheckKey(names.asset_key(CONFIG, "evaluation"), "evaluation_sound")
        shown = instance.event_log_storage.get_asset_check_execution_history(
            check, limit=9, partition_filter=PartitionKeyFilter(key="0001")
        )
        assert [one.run_id for one in shown] == [mine.run_id]
        work._look()
        assert work.states[1].run_id == mine.run_id
