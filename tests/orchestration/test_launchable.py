"""What the browser offers for launching, and what becomes of keys that people add themselves."""

from __future__ import annotations

from typing import Any

import pytest
from dagster import AssetCheckKey, DagsterEventType, DagsterInstance
from dagster._core.definitions.assets.job.asset_job import IMPLICIT_ASSET_JOB_NAME

from ringrift_pipeline.definitions import defs
from ringrift_pipeline.orchestration import judgements, names, sensor
from ringrift_pipeline.orchestration.champion import reconcile
from ringrift_pipeline.orchestration.judgements import Judgement
from ringrift_pipeline.orchestration.launchable import add_partitions, next_generation
from ringrift_pipeline.orchestration.names import GenerationKeyError, generation_of
from ringrift_pipeline.store import BucketError, Store, StoreError

from .landing import PLAN, Land
from .test_sensor import tick

CONFIG = "square8_2p"


def offered(instance: DagsterInstance) -> list[str]:
    return [*instance.get_dynamic_partitions(names.partitions_name(CONFIG))]


def test_the_first_then_the_one_after_each(instance: DagsterInstance, store: Store) -> None:
    assert next_generation(store, CONFIG) == 0
    assert add_partitions(instance, store, CONFIG) == ["0000"]
    for generation in (0, 1, 4):  # the folders of 2 and 3 were moved away
        store.write_plan(CONFIG, generation, PLAN)
    assert next_generation(store, CONFIG) == 5
    assert add_partitions(instance, store, CONFIG) == ["0001", "0002", "0004", "0005"]
    assert add_partitions(instance, store, CONFIG) == []


def test_a_start_offers_the_next_whatever_became_of_the_newest(
    instance: DagsterInstance, store: Store
) -> None:
    store.write_plan(CONFIG, 0, PLAN)  # it failed before its evaluation
    reconcile(instance, store)
    assert offered(instance) == ["0000", "0001"]


def test_a_daemon_of_dagsters_own_offers_the_first_of_every_config_once(
    instance: DagsterInstance, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not store.configs()
    first = tick(instance)
    for config in names.CONFIGS:
        assert instance.get_dynamic_partitions(names.partitions_name(config)) == ["0000"]
    asked: list[str] = []
    monkeypatch.setattr(sensor, "add_partitions", lambda *given: asked.append(given[-1]))
    again = tick(instance, first.cursor)
    assert asked == [] and again.cursor == first.cursor
    tick(instance, None)  # its cursor was lost
    assert asked == list(names.CONFIGS)


def test_a_new_history_offers_what_the_store_has(instance: DagsterInstance, store: Store) -> None:
    for generation in (0, 1):
        store.write_plan(CONFIG, generation, PLAN)
    tick(instance, '{"failed": {}}')  # as of a version that offered nothing
    assert offered(instance) == ["0000", "0001", "0002"]


@pytest.mark.parametrize(
    ("error", "others"),
    [(StoreError("damaged"), True), (BucketError("s3://b", "a listing", "away", "wait"), False)],
)
def test_what_cannot_be_offered_now_is_in_the_next_tick(
    error: Exception,
    others: bool,
    instance: DagsterInstance,
    land: Land,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A bucket that is away is not waited for once a config."""
    land("hex8_2p", 0)

    def refusing(instance: DagsterInstance, store: Store, config: str) -> list[str]:
        if config == CONFIG:
            raise error
        return add_partitions(instance, store, config)

    with monkeypatch.context() as patch:
        patch.setattr(sensor, "add_partitions", refusing)
        first = tick(instance)
    assert [request.run_key for request in first.run_requests] == ["hex8_2p/0001"]
    last = names.partitions_name(names.CONFIGS[-1])
    assert offered(instance) == [] and bool(instance.get_dynamic_partitions(last)) == others
    tick(instance, first.cursor)
    assert offered(instance) == ["0000"]
    assert instance.get_dynamic_partitions(last) == ["0000"]


@pytest.mark.parametrize(
    ("landing", "end"),
    [({"last": 0}, "limit"), ({"passed": False}, "checks"), ({}, None)],
)
def test_every_decision_offers_the_next(
    landing: dict[str, Any], end: str | None, instance: DagsterInstance, store: Store, land: Land
) -> None:
    land(CONFIG, 0, **landing)
    tick(instance)
    assert store.require(CONFIG, 0, "decision").metadata["end"] == end
    assert offered(instance) == ["0000", "0001"]


# --- keys ----------------------------------------------------------------------------------------


def test_keys_of_generations() -> None:
    assert [generation_of(key, CONFIG) for key in ("0000", "0007", "12345")] == [0, 7, 12345]


@pytest.mark.parametrize("key", ["abc", "3", "", "00003", "²²²²", "-001"])
def test_a_key_of_no_generation_is_refused_with_what_one_looks_like(key: str) -> None:
    with pytest.raises(GenerationKeyError, match=r"0003 for generation 3; delete the partition"):
        generation_of(key, CONFIG)


@pytest.mark.parametrize("key", ["abc", "3"])
def test_a_step_refuses_such_a_partition(key: str, instance: DagsterInstance, store: Store) -> None:
    instance.add_dynamic_partitions(names.partitions_name(CONFIG), [key])
    job = defs.get_repository_def().get_job(names.job_name(CONFIG))
    result = job.get_subset(
        asset_selection={names.asset_key(CONFIG, "ema_model")}
    ).execute_in_process(partition_key=key, instance=instance, raise_on_error=False)
    (failure,) = [
        event for event in result.all_events if event.event_type == DagsterEventType.STEP_FAILURE
    ]
    said = str(failure.step_failure_data.error)
    assert "GenerationKeyError" in said and f"{key!r} is no generation of {CONFIG}" in said
    assert store.generations(CONFIG) == []


# --- the champion's check, from the Checks tab ---------------------------------------------------


def test_the_champions_check_runs_without_a_partition(
    instance: DagsterInstance, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write_plan(CONFIG, 4, PLAN)
    seen = []

    def judge(check: Any, step: Any) -> Judgement:
        seen.append(step.generation)
        return check(step)

    monkeypatch.setattr(judgements, "judge", judge)
    key = AssetCheckKey(names.asset_key(CONFIG, names.CHAMPION), "champion_verifies")
    job = defs.get_repository_def().get_job(IMPLICIT_ASSET_JOB_NAME)
    result = job.get_subset(asset_selection=set(), asset_check_selection={key}).execute_in_process(
        instance=instance
    )
    (said,) = result.get_asset_check_evaluations()
    assert said.passed and seen == [5]
