"""``run_failed`` and ``config_stalled``: on real instances, over restarts, several at once."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    AssetCheckKey,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    build_sensor_context,
    job,
    op,
)
from dagster._core.execution.backfill import BulkActionStatus
from dagster._core.test_utils import create_run_for_test

from ringrift_pipeline.definitions import defs
from ringrift_pipeline.orchestration import (
    damage,
    decisions,
    failure_sensor,
    names,
    outbox,
    reexecution,
    sensor,
    stalled_sensor,
)
from ringrift_pipeline.orchestration.instance import open_instance, sweep_lost_runs
from ringrift_pipeline.orchestration.notify import URL_VARIABLE, Alert, NotifyError
from ringrift_pipeline.orchestration.outbox import Outbox
from ringrift_pipeline.orchestration.stalled_sensor import find_stall
from ringrift_pipeline.store import BucketError, Store, serving_champion

from .conftest import a_backfill
from .hooks import Hook, an_alert, quick
from .landing import PLAN, Land
from .test_once import make, submit
from .test_sensor_daemon import daemon, sensor_tick

CONFIG = "square8_2p"


class Told:
    """A notifier that notes what it was told; while ``down`` it takes nothing."""

    def __init__(self) -> None:
        self.alerts: list[Alert] = []
        self.down = False

    def notify(self, alert: Alert) -> None:
        if self.down:
            raise NotifyError("it is down")
        self.alerts.append(alert)

    @property
    def keys(self) -> list[str]:
        return [alert.key for alert in self.alerts]


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def instance(data: Path) -> Iterator[DagsterInstance]:
    """The pipeline's own instance, which a test may open again, as after a restart."""
    with open_instance(data) as made:
        yield made


def tick(name: str, instance: DagsterInstance, told: Told, cursor: str | None = None) -> Any:
    repository = defs.get_repository_def()
    with build_sensor_context(
        instance=instance, cursor=cursor, repository_def=repository, resources={"notifier": told}
    ) as context:
        return repository.get_sensor_def(name).evaluate_tick(context)


def failed_run(instance: DagsterInstance, generation: str = "0003", **tags: str) -> str:
    run = create_run_for_test(
        instance,
        job_name=names.job_name(CONFIG),
        status=DagsterRunStatus.STARTED,
        tags={names.CONFIG_TAG: CONFIG, names.PARTITION_TAG: generation, **tags},
    )
    instance.report_run_failed(run, message="no room on the disk")
    return run.run_id


# --- run_failed ---------------------------------------------------------------------------------


def test_failures_that_come_at_once_are_each_told_once(
    instance: DagsterInstance, data: Path, told: Told
) -> None:
    runs = [failed_run(instance, f"000{number}") for number in range(3)]
    cursor = tick(names.FAILURE_SENSOR, instance, told).cursor
    assert sorted(told.keys) == sorted(runs)
    again = tick(names.FAILURE_SENSOR, instance, told, cursor)
    assert again.cursor == cursor and len(told.alerts) == 3
    with open_instance(data) as restarted:
        tick(names.FAILURE_SENSOR, restarted, told, cursor)
        tick(names.FAILURE_SENSOR, restarted, told, None)  # its cursor was lost
        tick(names.FAILURE_SENSOR, restarted, told, "nonsense")
        assert len(told.alerts) == 3
        runs.append(failed_run(restarted))
        tick(names.FAILURE_SENSOR, restarted, told, cursor)
    assert told.keys[-1] == runs[-1] and len(told.alerts) == 4


@pytest.mark.parametrize("failures", [0, 1])
def test_a_failure_is_told_that_has_the_number_of_a_deleted_one(
    failures: int, instance: DagsterInstance, told: Told
) -> None:
    """SQLite gives the highest numbers out again, once what had them is deleted; also at once."""
    runs = [failed_run(instance) for _ in range(3)]
    cursor = tick(names.FAILURE_SENSOR, instance, told).cursor
    for run in runs[1:]:
        instance.delete_run(run)
    after = [failed_run(instance) for _ in range(failures)]
    cursor = tick(names.FAILURE_SENSOR, instance, told, cursor).cursor
    after.append(failed_run(instance))
    tick(names.FAILURE_SENSOR, instance, told, cursor)
    assert sorted(told.keys) == sorted([*runs, *after])


def test_a_number_that_the_log_does_not_have_is_forgotten_though_nothing_can_be_told_yet(
    instance: DagsterInstance, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [failed_run(instance) for _ in range(3)]
    cursor = tick(names.FAILURE_SENSOR, instance, told).cursor
    for run in runs:
        instance.delete_run(run)
    after = [failed_run(instance)]
    with monkeypatch.context() as patch:
        patch.setattr(failure_sensor, "retry_noted", lambda *_: False)
        cursor = tick(names.FAILURE_SENSOR, instance, told, cursor).cursor
    assert sorted(told.keys) == sorted(runs)
    after += [failed_run(instance) for _ in range(3)]
    tick(names.FAILURE_SENSOR, instance, told, cursor)
    assert sorted(told.keys) == sorted([*runs, *after])


def test_what_could_not_be_told_is_told_later_though_the_cursor_moved(
    instance: DagsterInstance, data: Path, told: Told
) -> None:
    run = failed_run(instance)
    told.down = True
    cursor = tick(names.FAILURE_SENSOR, instance, told).cursor
    assert told.alerts == []
    told.down = False
    with open_instance(data) as restarted:
        tick(names.FAILURE_SENSOR, restarted, told, cursor)
    assert told.keys == [run]


def test_a_tick_that_crashes_before_its_cursor_moves_tells_nothing_twice(
    instance: DagsterInstance, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [failed_run(instance) for _ in range(2)]

    def crash(alert: Alert) -> None:
        if told.alerts:
            raise RuntimeError("the process is gone")
        Told.notify(told, alert)

    with monkeypatch.context() as patch:
        patch.setattr(told, "notify", crash, raising=False)
        with pytest.raises(RuntimeError, match="the process is gone"):
            tick(names.FAILURE_SENSOR, instance, told)
    assert len(told.alerts) == 1
    tick(names.FAILURE_SENSOR, instance, told)
    assert sorted(told.keys) == sorted(runs)


def test_it_says_which_step_failed_and_why_and_what_to_do(
    instance: DagsterInstance, told: Told
) -> None:
    @op
    def train() -> None:
        try:
            raise MemoryError("no room for the window")
        except MemoryError as error:
            raise RuntimeError("the step failed") from error

    @job(name="square8_2p_generation")
    def failing() -> None:
        train()

    tags = {names.CONFIG_TAG: CONFIG, names.PARTITION_TAG: "0007"}
    result = failing.execute_in_process(instance=instance, raise_on_error=False, tags=tags)
    tick(names.FAILURE_SENSOR, instance, told)
    (alert,) = told.alerts
    assert alert.title == "square8_2p generation 0007 failed"
    assert "step train: " in alert.text and "no room for the window" in alert.text
    assert "Re-execute from failure" in alert.text and "not retried" in alert.text
    assert (alert.config, alert.generation, alert.run_id) == (CONFIG, "0007", result.run_id)
    assert alert.details["will_retry"] is False and alert.details["step"] == "train"


def test_of_a_failed_check_it_says_what_that_says(
    instance: DagsterInstance, told: Told, land: Land
) -> None:
    """Dagster's own error names the check and no more; what to do is in its description."""
    checks = {"losses_finite": False, "average_fits": True}
    result = land(CONFIG, 7, checks=checks)
    assert not result.success
    tick(names.FAILURE_SENSOR, instance, told)
    (alert,) = told.alerts
    assert "\ncheckpoint/losses_finite: as asked\n" in alert.text
    assert alert.details["checks"] == {"checkpoint/losses_finite": "as asked"}


def test_after_a_failure_the_next_generation_can_be_launched(
    instance: DagsterInstance, store: Store, told: Told
) -> None:
    partitions = names.partitions_name(CONFIG)
    store.write_plan(CONFIG, 3, PLAN)
    failed_run(instance)  # Dagster retries it
    cursor = tick(names.FAILURE_SENSOR, instance, told).cursor
    assert instance.get_dynamic_partitions(partitions) == []
    failed_run(instance, **{"dagster/max_retries": "0"})
    tick(names.FAILURE_SENSOR, instance, told, cursor)
    assert instance.get_dynamic_partitions(partitions) == ["0003", "0004"]


REFUSES = BucketError("s3://games", "to list", "503", "wait")


def test_a_bucket_that_refuses_keeps_no_failure_from_being_told(
    instance: DagsterInstance, store: Store, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*_: object) -> None:
        raise REFUSES

    store.write_plan(CONFIG, 3, PLAN)
    told.down = True
    waits = failed_run(instance, **{"dagster/max_retries": "0"})
    cursor = tick(names.FAILURE_SENSOR, instance, told).cursor
    told.down = False
    runs = [failed_run(instance, f"000{n}", **{"dagster/max_retries": "0"}) for n in (4, 5)]
    with monkeypatch.context() as patch:
        patch.setattr(failure_sensor, "add_partitions", refusing)
        assert tick(names.FAILURE_SENSOR, instance, told, cursor).cursor == cursor
    assert sorted(told.keys) == sorted([waits, *runs])
    partitions = names.partitions_name(CONFIG)
    known = instance.get_dynamic_partitions(partitions)
    after = tick(names.FAILURE_SENSOR, instance, told, cursor).cursor
    assert after != cursor and len(told.keys) == 3
    assert instance.get_dynamic_partitions(partitions) == known == ["0003", "0004"]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (sensor, names.SENSOR),
        (failure_sensor, names.FAILURE_SENSOR),
        (stalled_sensor, names.STALLED_SENSOR),
    ],
)
def test_a_tick_asks_a_bucket_for_less_time_than_dagster_gives_it(
    module: Any, name: str, instance: DagsterInstance, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float | None] = []

    def opened(root: Path, within: float | None = None) -> Store:
        given.append(within)
        return Store(root)

    monkeypatch.setattr(module, "Store", opened)
    tick(name, instance, told)
    assert len(given) == 1 and given[0] is not None and given[0] <= 45.0


def test_what_waits_is_told_before_a_bucket_is_asked(
    instance: DagsterInstance, store: Store, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which may take longer than Dagster gives a tick."""

    def never(*_: object) -> None:
        raise KeyboardInterrupt

    begun(store, hours=1e-9)
    told.down = True
    tick(names.STALLED_SENSOR, instance, told)
    failed_run(instance, **{"dagster/max_retries": "0"})
    told.down = False
    monkeypatch.setattr(failure_sensor, "add_partitions", never)
    with pytest.raises(KeyboardInterrupt):
        tick(names.FAILURE_SENSOR, instance, told)
    assert sorted(alert.kind for alert in told.alerts) == ["config_stalled", "run_failed"]
    Outbox(store).put(an_alert())
    monkeypatch.setattr(Store, "configs", never)
    with pytest.raises(KeyboardInterrupt):
        tick(names.STALLED_SENSOR, instance, told)
    assert told.keys[2:] == [an_alert().key]


def test_a_failure_is_kept_before_a_web_hook_is_asked(
    instance: DagsterInstance, store: Store, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which may take longer than Dagster gives a tick, again and again."""

    def never(_: Alert) -> None:
        raise KeyboardInterrupt

    Outbox(store).put(an_alert())
    run = failed_run(instance)
    monkeypatch.setattr(told, "notify", never)
    with pytest.raises(KeyboardInterrupt):
        tick(names.FAILURE_SENSOR, instance, told)
    assert Outbox(store).holds("run_failed", run)


def test_what_waits_is_told_though_a_failure_cannot_be_kept(
    instance: DagsterInstance, store: Store, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> bool:
        raise OSError("no space left")

    Outbox(store).put(an_alert())
    run = failed_run(instance)
    with monkeypatch.context() as patch, pytest.raises(Exception, match="no space left"):
        patch.setattr(Outbox, "put", full)
        tick(names.FAILURE_SENSOR, instance, told)
    assert told.keys == [an_alert().key]
    tick(names.FAILURE_SENSOR, instance, told)
    assert told.keys[1:] == [run]


def test_it_tells_of_a_retry(instance: DagsterInstance, told: Told) -> None:
    create_run_for_test(instance, job_name="lost", status=DagsterRunStatus.STARTED)
    sweep_lost_runs(instance)
    (run,) = instance.get_runs()
    assert run.tags[reexecution.RETRY_TAG] == "true"  # a lost worker is retried
    tick(names.FAILURE_SENSOR, instance, told)
    assert told.alerts[0].details["will_retry"] is True
    assert "retries it by itself" in told.alerts[0].text


@pytest.mark.parametrize("status", [None, BulkActionStatus.CANCELED])
def test_dagster_retries_nothing_of_a_backfill_that_is_over(
    status: BulkActionStatus | None, instance: DagsterInstance, store: Store, told: Told
) -> None:
    """None: it was deleted."""
    store.write_plan(CONFIG, 3, PLAN)
    if status is not None:
        instance.add_backfill(a_backfill("some", status))
    failed_run(instance, **{names.BACKFILL_TAG: "some"})
    (run,) = instance.get_runs()
    assert run.tags[reexecution.RETRY_TAG] == "true"  # so Dagster noted
    tick(names.FAILURE_SENSOR, instance, told)
    assert told.alerts[0].details["will_retry"] is False
    assert "It is not retried by Dagster" in told.alerts[0].text
    assert instance.get_dynamic_partitions(names.partitions_name(CONFIG)) == ["0003", "0004"]


def test_it_waits_for_dagster_to_note_whether_it_retries(
    instance: DagsterInstance, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = failed_run(instance)
    with monkeypatch.context() as patch:
        patch.setattr(reexecution, "RETRY_TAG", "not/there/yet")
        tick(names.FAILURE_SENSOR, instance, told)
        assert told.alerts == []
        patch.setattr(reexecution, "TAG_PATIENCE", -1.0)
        tick(names.FAILURE_SENSOR, instance, told)
    assert told.keys == [run]


def test_a_cancelled_run_and_one_of_last_week_are_not_told(
    instance: DagsterInstance, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create_run_for_test(instance, job_name="x", status=DagsterRunStatus.STARTED)
    instance.report_run_canceled(run)
    tick(names.FAILURE_SENSOR, instance, told)
    failed_run(instance)
    later = time.time() + 2 * failure_sensor.LOOK_BACK
    monkeypatch.setattr(failure_sensor.time, "time", lambda: later)
    tick(names.FAILURE_SENSOR, instance, told)
    assert told.alerts == []


def test_a_clock_that_is_turned_on_hides_no_failure(
    instance: DagsterInstance, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sensor that has seen nothing yet knows what it has looked at all the same."""
    run = create_run_for_test(instance, job_name="x", status=DagsterRunStatus.STARTED)
    instance.report_run_canceled(run)
    cursor = tick(names.FAILURE_SENSOR, instance, told).cursor
    failed = failed_run(instance)
    later = time.time() + 2 * failure_sensor.LOOK_BACK
    monkeypatch.setattr(failure_sensor.time, "time", lambda: later)
    tick(names.FAILURE_SENSOR, instance, told, cursor)
    assert told.keys == [failed]


def test_the_daemon_posts_to_the_web_hook_and_once(
    instance: DagsterInstance, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = Hook()
    try:
        monkeypatch.setenv(URL_VARIABLE, hook.url)
        runs = [failed_run(instance) for _ in range(2)]
        hook.answers = [500]
        with daemon(instance) as workspace:
            sensor_tick(workspace)
        hook.answers = [204]
        before = len(hook.got)
        now = time.time()
        for minutes in (1, 2):  # started again
            monkeypatch.setattr(time, "time", lambda minutes=minutes: now + 60.0 * minutes)
            with open_instance(data) as restarted, daemon(restarted) as workspace:
                sensor_tick(workspace)
        told = [body["run_id"] for _, _, body in hook.got[before:]]
        assert sorted(told) == sorted(runs)
    finally:
        hook.close()


# --- config_stalled -----------------------------------------------------------------------------


def begun(store: Store, config: str = CONFIG, hours: float | None = None) -> None:
    """A config whose generation 0 has landed something just now."""
    settings = dict(PLAN["settings"])
    if hours is not None:
        settings["watch"] = {**settings["watch"], "stalled_hours": hours}
    store.write_plan(config, 0, {"settings": settings})
    with store.create(config, 0, "checkpoint"):
        pass


def in_hours(hours: float) -> datetime:
    return datetime.now(UTC) + timedelta(hours=hours)


def ended(store: Store, generation: int, end: str | None) -> None:
    decision = {"promoted": True, "reasons": ["why"], "next": None, "end": end, "run": "r"}
    with store.create(CONFIG, generation, decisions.KIND, decision):
        pass


def test_a_standstill_is_what_the_setting_says(instance: DagsterInstance, store: Store) -> None:
    begun(store)
    assert find_stall(instance, store, CONFIG, in_hours(5.9)) is None
    stall = find_stall(instance, store, CONFIG, in_hours(6.1))
    assert stall is not None and 6.0 < stall.hours < 6.2
    alert = stall.alert()
    assert "nothing has landed for 6.1 hours" in alert.title
    assert f"ringrift loop --config {CONFIG}" in alert.text and "ringrift pause" in alert.text
    begun(store, "hex8_3p", hours=1.0)
    assert find_stall(instance, store, "hex8_3p", in_hours(0.9)) is None
    assert find_stall(instance, store, "hex8_3p", in_hours(1.1)) is not None


def test_a_run_of_some_assets_is_a_sign_too(instance: DagsterInstance, store: Store) -> None:
    """As a backfill and the night make them, in Dagster's own job."""
    begun(store)
    tags = {names.CONFIG_TAG: CONFIG}
    create_run_for_test(instance, job_name="champion_gauntlet", tags=tags)  # of no generation
    stall = find_stall(instance, store, CONFIG, in_hours(7))
    assert stall is not None and stall.run_id is None
    tags[names.PARTITION_TAG] = "0001"
    run = create_run_for_test(instance, job_name="__ASSET_JOB", tags=tags)
    stall = find_stall(instance, store, CONFIG, in_hours(7))
    assert stall is not None and stall.run_id == run.run_id


def test_every_landing_counts_whatever_generation_it_is_of(
    instance: DagsterInstance, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(store)
    first = store.last_sign(CONFIG)
    with store.create(CONFIG, 0, "selfplay-shard-0003"):
        pass
    second = store.last_sign(CONFIG)
    assert first is not None and second is not None and second > first
    assert store.last_sign("hex8_3p") is None


def test_where_nothing_has_been_put_since_no_names_are_read(store: Store) -> None:
    begun(store)
    store.write_plan(CONFIG, 1, PLAN)
    newest = datetime(2026, 5, 1, tzinfo=UTC)
    other = store.root / CONFIG / "generations" / "0000" / "ema_model"
    (other / "20991231T000000.000000Z-00000000").mkdir(parents=True)
    for path in store.root.rglob("*"):
        os.utime(path, (newest.timestamp(), newest.timestamp()))
    with store.create(CONFIG, 1, "checkpoint"):
        pass
    landed = datetime.fromisoformat(store.require(CONFIG, 1, "checkpoint").created)
    assert store.last_sign(CONFIG) == landed
    os.utime(other)  # now something has
    assert store.last_sign(CONFIG) == datetime(2099, 12, 31, tzinfo=UTC)


def test_a_paused_config_rests_and_is_given_its_time_when_it_is_resumed(
    instance: DagsterInstance, store: Store
) -> None:
    begun(store)
    store.set_switches(CONFIG, loop=False)
    assert find_stall(instance, store, CONFIG, in_hours(100)) is None
    changed = store.set_switches(CONFIG, loop=True).changed_at
    stall = find_stall(instance, store, CONFIG, in_hours(100))
    assert stall is not None and stall.since.isoformat() == changed


def test_a_config_that_is_through_rests_until_more_is_asked_for(
    instance: DagsterInstance, store: Store
) -> None:
    begun(store)
    ended(store, 0, decisions.LIMIT)
    assert find_stall(instance, store, CONFIG, in_hours(100)) is None
    for odd in ("²²²²", "7"):  # a partition that somebody has added names no later generation
        create_run_for_test(
            instance, job_name=names.job_name(CONFIG), tags={names.PARTITION_TAG: odd}
        )
        assert find_stall(instance, store, CONFIG, in_hours(100)) is None
    run = create_run_for_test(
        instance, job_name=names.job_name(CONFIG), tags={names.PARTITION_TAG: "0001"}
    )
    stall = find_stall(instance, store, CONFIG, in_hours(100))
    assert stall is not None and stall.run_id == run.run_id
    assert "never launched" in stall.why


def test_a_first_run_that_waits_for_ever_is_a_standstill(
    instance: DagsterInstance, store: Store, told: Told
) -> None:
    """Behind another config's, where one run works at a time; it has no plan yet."""
    run = submit(instance, make(instance, **{names.PARTITION_TAG: "0000"}))
    assert find_stall(instance, store, CONFIG, in_hours(5.9)) is None
    stall = find_stall(instance, store, CONFIG, in_hours(6.1))
    assert stall is not None and (stall.generation, stall.run_id) == (0, run.run_id)
    assert "waits in the queue" in stall.why
    create_run_for_test(instance, job_name="champion_gauntlet", tags={names.CONFIG_TAG: "hex8_2p"})
    cursor = tick(names.STALLED_SENSOR, instance, told).cursor
    assert list(json.loads(cursor)) == [CONFIG] and told.alerts == []
    waited = json.loads(cursor)
    waited[CONFIG]["age"] = 24.0
    for _ in range(2):
        tick(names.STALLED_SENSOR, instance, told, json.dumps(waited))
    assert [(alert.kind, alert.config) for alert in told.alerts] == [("config_stalled", CONFIG)]
    instance.report_run_canceled(run)
    assert find_stall(instance, store, CONFIG, in_hours(100)) is None


def run_of(
    instance: DagsterInstance,
    status: DagsterRunStatus,
    *assets: str,
    generation: str = "0001",
    **tags: str,
) -> DagsterRun:
    """A run that makes some assets of a generation, as a backfill, the night and people launch it."""
    return create_run_for_test(
        instance,
        job_name="__ASSET_JOB",
        asset_selection=frozenset(names.asset_key(CONFIG, name) for name in assets),
        status=status,
        tags={names.CONFIG_TAG: CONFIG, names.PARTITION_TAG: generation, **tags},
    )


def test_the_nights_games_of_a_config_that_is_through_are_no_standstill(
    instance: DagsterInstance, store: Store
) -> None:
    begun(store)
    ended(store, 0, decisions.LIMIT)

    run_of(instance, DagsterRunStatus.SUCCESS, "selfplay_shards")
    store.write_plan(CONFIG, 1, PLAN)
    with store.create(CONFIG, 1, "selfplay_shards"):
        pass
    assert find_stall(instance, store, CONFIG, in_hours(100)) is None
    night = run_of(instance, DagsterRunStatus.STARTED, "selfplay_shards")
    stall = find_stall(instance, store, CONFIG, in_hours(100))
    assert stall is not None and stall.run_id == night.run_id  # it hangs
    instance.report_run_failed(night)
    assert find_stall(instance, store, CONFIG, in_hours(100)) is None
    run_of(instance, DagsterRunStatus.SUCCESS, "checkpoint", "ema_model", "evaluation")
    run_of(instance, DagsterRunStatus.SUCCESS, "selfplay_shards")  # hides nothing
    assert find_stall(instance, store, CONFIG, in_hours(100)) is not None


BACKFILL = {names.BACKFILL_TAG: "some"}
SUCCESS = DagsterRunStatus.SUCCESS


def test_new_generations_that_a_backfill_made_are_no_standstill(
    instance: DagsterInstance, store: Store
) -> None:
    """It decides nothing and starts nothing, and nobody has asked for more."""
    begun(store)
    for generation in ("0000", "0001"):
        run_of(instance, SUCCESS, *names.ASSETS, generation=generation, **BACKFILL)
    assert find_stall(instance, store, CONFIG, in_hours(100)) is None
    hangs = run_of(instance, DagsterRunStatus.STARTED, *names.ASSETS, generation="0002", **BACKFILL)
    stall = find_stall(instance, store, CONFIG, in_hours(100))
    assert stall is not None and stall.run_id == hangs.run_id
    instance.report_run_canceled(hangs)
    assert find_stall(instance, store, CONFIG, in_hours(100)) is None
    ended(store, 0, decisions.LIMIT)
    assert find_stall(instance, store, CONFIG, in_hours(100)) is None


def test_a_part_that_somebody_made_by_hand_is_no_standstill(
    instance: DagsterInstance, store: Store
) -> None:
    begun(store)
    run_of(instance, SUCCESS, "checkpoint", generation="0000")
    checks = create_run_for_test(
        instance,
        job_name="__ASSET_JOB",
        asset_check_selection=frozenset({AssetCheckKey(names.asset_key(CONFIG, "x"), "y")}),
        status=SUCCESS,
        tags={names.CONFIG_TAG: CONFIG, names.PARTITION_TAG: "0000"},
    )
    assert checks.asset_selection is None
    assert find_stall(instance, store, CONFIG, in_hours(100)) is None


def test_what_was_made_since_does_not_stand_for_the_loop(
    instance: DagsterInstance, store: Store
) -> None:
    begun(store)
    whole = run_of(instance, SUCCESS, *names.ASSETS, generation="0000")
    run_of(instance, SUCCESS, *names.ASSETS, **BACKFILL)
    run_of(instance, SUCCESS, "checkpoint")
    stall = find_stall(instance, store, CONFIG, in_hours(100))
    assert stall is not None and stall.run_id == whole.run_id
    assert "is that sensor on?" in stall.why


def test_it_says_why_a_loop_has_stopped(instance: DagsterInstance, store: Store) -> None:
    begun(store)
    ended(store, 0, decisions.CHECKS)
    stall = find_stall(instance, store, CONFIG, in_hours(7))
    assert stall is not None and stall.why == "the loop stopped at generation 0000: why"
    ended(store, 0, decisions.STARTED)
    stall = find_stall(instance, store, CONFIG, in_hours(7))
    assert stall is not None and "0001 had been started by somebody else" in stall.why
    job, tags = names.job_name(CONFIG), {names.CONFIG_TAG: CONFIG, names.PARTITION_TAG: "0001"}
    create_run_for_test(instance, job_name=job, tags=tags)
    stall = find_stall(instance, store, CONFIG, in_hours(7))
    assert stall is not None and "never launched" in stall.why


def test_a_standstill_is_told_once_and_the_next_one_again(
    instance: DagsterInstance, data: Path, store: Store, told: Told
) -> None:
    begun(store, hours=1e-9)
    begun(store, "hex8_3p", hours=1e-9)
    begun(store, "hex8_4p")  # not at a standstill
    store.write_plan("hexagonal_2p", 0, PLAN)
    plan = store.root / "hexagonal_2p" / "generations" / "0000" / "plan.json"
    plan.write_text("{}")  # damaged: cannot be watched, which is told as well
    for _ in range(2):
        tick(names.STALLED_SENSOR, instance, told)
    assert sorted((alert.kind, alert.config) for alert in told.alerts) == [
        ("config_stalled", "hex8_3p"),
        ("config_stalled", CONFIG),
        ("sensor_failed", "hexagonal_2p"),
    ]
    (blind,) = (alert for alert in told.alerts if alert.kind == "sensor_failed")
    assert "cannot be watched" in blind.title and "plan.json is corrupt" in blind.text
    with open_instance(data) as restarted:
        result = tick(names.STALLED_SENSOR, restarted, told)
        assert len(told.alerts) == 3
        assert f"{CONFIG} for 0.0 hours" in result.skip_message
        with store.create(CONFIG, 0, "ema_model"):  # it went on, and stopped again
            pass
        tick(names.STALLED_SENSOR, restarted, told)
    assert [alert.config for alert in told.alerts[3:]] == [CONFIG]


@pytest.mark.parametrize(
    "error",
    [OSError("no space left"), RuntimeError("database is locked")],
    ids=["disk", "database"],
)
def test_an_error_that_may_pass_is_no_alert_and_hides_no_standstill(
    instance: DagsterInstance,
    store: Store,
    told: Told,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    real = stalled_sensor.tell_damage

    def failing(store: Store, outbox: Outbox, config: str) -> None:
        if config == CONFIG:
            raise error
        real(store, outbox, config)

    monkeypatch.setattr(stalled_sensor, "tell_damage", failing)
    begun(store, hours=1e-9)
    begun(store, "hex8_3p", hours=1e-9)
    tick(names.STALLED_SENSOR, instance, told)
    assert [(one.kind, one.config) for one in told.alerts] == [("config_stalled", "hex8_3p")]


def test_a_bucket_that_refuses_keeps_no_alert_waiting(
    instance: DagsterInstance, store: Store, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(store: Store) -> list[str]:
        raise REFUSES

    begun(store, hours=1e-9)
    told.down = True
    cursor = tick(names.STALLED_SENSOR, instance, told).cursor
    told.down = False
    monkeypatch.setattr(Store, "configs", refusing)
    tick(names.STALLED_SENSOR, instance, told, cursor)
    assert [alert.kind for alert in told.alerts] == ["config_stalled"]


def test_a_standstill_that_could_not_be_told_is_told_later(
    instance: DagsterInstance, store: Store, told: Told
) -> None:
    begun(store, hours=1e-9)
    told.down = True
    tick(names.STALLED_SENSOR, instance, told)
    store.set_switches(CONFIG, loop=False)
    told.down = False
    tick(names.FAILURE_SENSOR, instance, told)  # whichever sensor comes first passes it on
    assert [alert.kind for alert in told.alerts] == ["config_stalled"]


@pytest.mark.parametrize("name", [names.FAILURE_SENSOR, names.STALLED_SENSOR])
def test_a_slow_web_hook_has_a_tick_but_once(
    name: str,
    instance: DagsterInstance,
    store: Store,
    told: Told,
    hook: Hook,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What waits is told before the tick looks, and what it found after; in the same seconds."""
    monkeypatch.setattr(outbox, "PATIENCE", 2.0)
    hook.delay = 2.5
    for number in range(3):
        Outbox(store).put(an_alert(f"run-{number}"))
    begun(store, hours=1e-9)
    failed_run(instance, **{"dagster/max_retries": "0"})
    monkeypatch.setattr(told, "notify", quick(hook.url, timeout=60.0).notify)
    tick(name, instance, told)
    assert len(hook.got) == 1 and Outbox(store).waiting() == 3
    hook.delay = 0.0
    monkeypatch.setattr(outbox, "PATIENCE", 60.0)
    tick(name, instance, told)
    assert len(hook.got) == 4 and Outbox(store).waiting() == 0


# --- what was found damaged ---------------------------------------------------------------------


def test_everything_that_was_put_aside_is_told_once(
    instance: DagsterInstance, store: Store, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    for generation in range(2):
        store.write_plan(CONFIG, generation, PLAN)
        with store.create(CONFIG, generation, "ema_model") as draft:
            (draft / "model.json").write_text(str(generation))
        store.promote(CONFIG, generation, draft.artefact, {})
    with store.create(CONFIG, 1, "selfplay-shard-0003") as draft:
        (draft / "shard.arrow").write_text("games")
    tick(names.STALLED_SENSOR, instance, told)
    assert told.alerts == []
    (draft.artefact.path / "shard.arrow").write_text("rotten")
    assert store.last_good(CONFIG, 1, "selfplay-shard-0003") is None  # by whomever it is found
    pointer = store.root / CONFIG / "champion.json"
    pointer.write_bytes(b"{")
    champion = store.champion(CONFIG)
    assert champion is not None
    (champion.path / "model.json").write_text("rotten")
    assert serving_champion(store, CONFIG).generation == 0  # type: ignore[union-attr]
    tick(names.STALLED_SENSOR, instance, told)
    with monkeypatch.context() as patch:  # in a bucket that would be a request each
        patch.setattr(damage, "reason_of", lambda *_: pytest.fail("read a note again"))
        tick(names.STALLED_SENSOR, instance, told)
    said = {alert.title: alert for alert in told.alerts}
    assert {alert.kind for alert in told.alerts} == {"damaged"} and len(told.alerts) == 3
    shard = said[f"{CONFIG} generation 0001: selfplay-shard-0003 was damaged"]
    assert "has 6 bytes instead of 5" in shard.text and "It is played again" in shard.text
    assert "last line of champions.jsonl" in said[f"{CONFIG}: champion.json was damaged"].text
    assert "champion_verifies" in said[f"{CONFIG} generation 0001: ema_model was damaged"].text
