"""The computer's clock is turned on and back: nothing rests, nothing is mistaken for older."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance
from dagster._core.test_utils import create_run_for_test, freeze_time

from ringrift_pipeline.enhancements.training_config import TrainingConfig
from ringrift_pipeline.orchestration import loop as looping
from ringrift_pipeline.orchestration import names, reexecution
from ringrift_pipeline.orchestration.clock import TurnedBack, forget_the_future
from ringrift_pipeline.orchestration.instance import open_instance, own_instance
from ringrift_pipeline.orchestration.stalled_sensor import Signs, find_stall
from ringrift_pipeline.store import Store

from .landing import PLAN, Land
from .test_sensor_daemon import queued
from .ticking import daemon, sensor_tick

CONFIG = "square8_2p"
HOUR, DAY = 3600.0, 86_400.0


@pytest.fixture
def instance(data: Path) -> Iterator[DagsterInstance]:
    with open_instance(data) as made:
        yield made


@pytest.fixture
def turn(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """``turn(seconds)``: the computer's clock is that far from the right time, from now on."""
    right = time.time

    def turned(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: right() + seconds)

    return turned


def test_a_clock_that_is_turned_back_is_noticed_once(turn: Callable[[float], None]) -> None:
    turned_back = TurnedBack()
    assert not turned_back()
    turn(DAY)
    assert not turned_back()  # turned on
    turn(DAY - HOUR)
    assert turned_back() and not turned_back()
    turn(DAY - HOUR - 1.0)  # set right by a little, as clocks are
    assert not turned_back()


@pytest.mark.whole
def test_sensors_do_not_wait_for_a_time_that_has_been(
    instance: DagsterInstance, land: Land
) -> None:
    with daemon(instance) as workspace, freeze_time(datetime.now(UTC) + timedelta(hours=1)):
        sensor_tick(workspace)
    land(CONFIG, 0)
    with daemon(instance) as workspace:
        sensor_tick(workspace)
    assert queued(instance) == []  # this is what Dagster does by itself
    assert names.SENSOR in forget_the_future(instance)
    with daemon(instance) as workspace:
        sensor_tick(workspace)
    assert queued(instance) == [(names.job_name(CONFIG), "0001")]
    assert (
        forget_the_future(instance) == []
    )  # a cursor is kept, and so is what is not of the future


def test_whoever_runs_the_daemon_begins_with_that(data: Path) -> None:
    with (
        open_instance(data) as instance,
        daemon(instance) as workspace,
        freeze_time(datetime.now(UTC) + timedelta(hours=1)),
    ):
        sensor_tick(workspace)
    with own_instance(data) as instance:
        assert forget_the_future(instance) == []


@pytest.mark.whole
@pytest.mark.parametrize("seconds", [-HOUR])
def test_a_loop_tells_its_runs_from_older_ones_whatever_the_clock_says(
    data: Path,
    turn: Callable[[float], None],
    no_servers: None,
    seconds: float,
) -> None:
    tags = {names.CONFIG_TAG: CONFIG, names.PARTITION_TAG: "0001"}
    with open_instance(data) as instance:  # somebody began the second generation before
        create_run_for_test(instance, job_name=names.job_name(CONFIG), tags=tags)
    request = looping.LoopRequest(CONFIG, data, TrainingConfig.preset("smoke"), 2)
    with looping.Loop(request) as work:
        turn(seconds)
        work._look()
        first, second = work.states.values()
        assert first.run_id is not None and first.status == "queued"
        assert second.run_id is None
        run = create_run_for_test(
            work.instance, job_name=names.job_name(CONFIG), tags=tags
        )  # as the sensor does
        work._look()
        assert second.run_id == run.run_id


def begun(store: Store) -> None:
    store.write_plan(CONFIG, 0, PLAN)
    with store.create(CONFIG, 0, "checkpoint"):
        pass


def test_a_standstill_is_measured_by_a_clock_that_nobody_can_turn(
    instance: DagsterInstance, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(store)
    now = datetime.now(UTC)
    uptime = time.monotonic()
    signs: list[str] = [""]

    def stalled(turned: float, later: float) -> Any:
        """What the sensor finds some hours later, on a clock that was turned by some hours."""
        monkeypatch.setattr(time, "monotonic", lambda: uptime + later * HOUR)
        known = Signs(signs[0])
        when = now + timedelta(hours=turned + later)
        found = find_stall(instance, store, CONFIG, when, known)
        signs[0] = known.text
        return found

    allowed = TrainingConfig.from_dict(PLAN["settings"]).watch.stalled_hours
    assert stalled(0.0, 0.0) is None
    assert stalled(24.0, allowed - 0.1) is None  # turned on: no false alarm
    found = stalled(-24.0, allowed + 0.1)  # turned back: none is missed
    assert found is not None and allowed < found.hours < allowed + 0.2
    with store.create(CONFIG, 0, "ema_model"):
        pass
    assert stalled(-24.0, allowed + 0.2) is None  # it has gone on
    assert stalled(48.0, 2.0 * allowed) is None
    assert stalled(0.0, 2.0 * allowed + 0.4) is not None


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "7",
        '{"square8_2p": 3}',
        '{"square8_2p": {}}',
        "{",
        pytest.param("[" * 100_000, id="nested"),
    ],
)
def test_an_odd_cursor_of_standstills_starts_over(text: str) -> None:
    assert Signs(text).text == "{}"
    now = datetime.now(UTC)
    assert Signs(text).hours(CONFIG, now - timedelta(hours=2), "", now) == pytest.approx(
        2, abs=0.01
    )


def test_a_failure_in_the_future_is_not_waited_for(
    instance: DagsterInstance, turn: Callable[[float], None]
) -> None:
    """Whether Dagster retries a run is noted a moment after its failure, or never."""
    run = create_run_for_test(instance, job_name="x")
    assert not reexecution.retry_noted(instance, run, time.time())
    failed_at = time.time()
    turn(-HOUR)
    assert reexecution.retry_noted(instance, run, failed_at)
