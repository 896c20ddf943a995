"""Re-execution from failure: only what is missing is done again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    AssetSelection,
    DagsterEventType,
    Definitions,
    Failure,
    JobDefinition,
    ReexecutionOptions,
    RunsFilter,
    define_asset_job,
    execute_job,
    in_process_executor,
    reconstructable,
)
from dagster._core.storage.tags import RETRY_STRATEGY_TAG

import ringrift_pipeline.selfplay
from ringrift_pipeline.enhancements.training_config import TrainingConfig
from ringrift_pipeline.orchestration import names
from ringrift_pipeline.orchestration.assets import family
from ringrift_pipeline.orchestration.build import build_definitions
from ringrift_pipeline.orchestration.instance import open_instance
from ringrift_pipeline.orchestration.places import home_folder
from ringrift_pipeline.orchestration.settings import run_config
from ringrift_pipeline.orchestration.submit import submit_generation
from ringrift_pipeline.store import Store

CONFIG = "hex8_2p"
SETTINGS = {
    "preset": "smoke",
    "device": "cpu",
    "selfplay": {"games": 3, "games_per_shard": 1, "parallel_games": 1, "workers": 1},
}

ASKED: dict[str, Any] = {
    "run_config": {"resources": {"settings": {"config": SETTINGS}}},
    "tags": {names.PARTITION_TAG: "0000"},
}


def selfplay() -> JobDefinition:
    """The selfplay of one config, its steps in this process."""
    shards = AssetSelection.assets(names.asset_key(CONFIG, "selfplay_shards"))
    return Definitions(
        assets=family(CONFIG),
        jobs=[define_asset_job("selfplay", selection=shards, executor_def=in_process_executor)],
        resources=build_definitions(()).resources,
    ).resolve_job_def("selfplay")


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[int]], list[int]]:
    """``breaking({1})``: from now on shard 1 cannot be played. The list of those that were begun."""
    real = ringrift_pipeline.selfplay.play_shard

    def install(broken: set[int]) -> list[int]:
        begun: list[int] = []

        def play(store: Store, plan: Any, index: int, **hooks: Any) -> Any:
            begun.append(index)
            if index in broken:
                raise Failure("the disk is full", allow_retries=False)
            return real(store, plan, index, **hooks)

        monkeypatch.setattr(ringrift_pipeline.selfplay, "play_shard", play)
        return begun

    return install


def test_one_failing_shard_is_played_again_alone(
    data: Path, breaking: Callable[[set[int]], list[int]]
) -> None:
    job = reconstructable(selfplay)
    with open_instance(data) as instance:
        instance.add_dynamic_partitions(names.partitions_name(CONFIG), ["0000"])
        begun = breaking({1})
        first = execute_job(job, instance, **ASKED)
        assert not first.success and sorted(begun) == [0, 1, 2]

        begun = breaking(set())
        again = execute_job(
            job,
            instance,
            reexecution_options=ReexecutionOptions.from_failure(first.run_id, instance),
            **ASKED,
        )
        assert again.success and begun == [1]
        done = [
            event.step_key
            for event in again.all_events
            if event.event_type == DagsterEventType.STEP_SUCCESS
        ]
        graph = names.node_name(CONFIG, "selfplay_shards")
        assert done == [f"{graph}.play[0001]", f"{graph}.collect"]
    # the steps hand each other nothing: all there is of the other shards is in the store
    assert not (home_folder(data) / "values").exists()
    collected = Store(data).require(CONFIG, 0, "selfplay_shards")
    assert collected.metadata["selfplay/games"] == 3


def lose_a_run(data: Path, index: int) -> None:
    """Selfplay in this process, which ends without a word when it comes to a shard."""
    real = ringrift_pipeline.selfplay.play_shard

    def play(store: Store, plan: Any, number: int, **hooks: Any) -> Any:
        if number == index:
            os._exit(9)
        return real(store, plan, number, **hooks)

    ringrift_pipeline.selfplay.play_shard = play
    with open_instance(data) as instance:
        execute_job(reconstructable(selfplay), instance, **ASKED)


def test_a_run_lost_before_it_came_to_a_shard_is_gone_on_with(
    data: Path, breaking: Callable[[set[int]], list[int]]
) -> None:
    with open_instance(data) as instance:
        instance.add_dynamic_partitions(names.partitions_name(CONFIG), ["0000"])
        process = get_context("spawn").Process(target=lose_a_run, args=(data, 1))
        process.start()
        process.join()
        assert process.exitcode == 9
        (lost,) = instance.get_runs()
        instance.report_run_failed(lost)
        begun = breaking(set())
        again = execute_job(
            reconstructable(selfplay),
            instance,
            reexecution_options=ReexecutionOptions.from_failure(lost.run_id, instance),
            **ASKED,
        )
        assert again.success and begun == [1]  # Dagster forgets the third: `collect` plays it
        (run,) = instance.get_runs(RunsFilter(run_ids=[again.run_id]))
        assert run.tags[RETRY_STRATEGY_TAG] == "FROM_FAILURE"  # which now leaves nothing out
    collected = Store(data).require(CONFIG, 0, "selfplay_shards")
    assert collected.metadata["selfplay/games"] == 3


def test_only_missing_shards_are_given_to_steps(
    data: Path, breaking: Callable[[set[int]], list[int]]
) -> None:
    """Also none at all, and one that does not verify."""
    graph = names.node_name(CONFIG, "selfplay_shards")
    store = Store(data)
    with open_instance(data) as instance:
        instance.add_dynamic_partitions(names.partitions_name(CONFIG), ["0000"])

        def steps() -> list[str]:
            again = execute_job(reconstructable(selfplay), instance, **ASKED)
            assert again.success
            done = [e for e in again.all_events if e.event_type == DagsterEventType.STEP_SUCCESS]
            return [str(event.step_key).removeprefix(f"{graph}.") for event in done]

        begun = breaking(set())
        assert steps() == ["plan", *(f"play[{index:04d}]" for index in range(3)), "collect"]
        collected = store.require(CONFIG, 0, "selfplay_shards").digest
        assert steps() == ["plan", "collect"] and begun == [0, 1, 2]
        shard = store.require(CONFIG, 0, "selfplay-shard-0001").file("shard.arrow")
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.chmod(0o644)
        shard.write_bytes(content)
        assert steps() == ["plan", "play[0001]", "collect"]
        store.remove(CONFIG, 0, "selfplay-shard-0002")
        assert steps() == ["plan", "play[0002]", "collect"]
    assert store.require(CONFIG, 0, "selfplay_shards").digest == collected


def test_a_forgotten_shard_of_an_earlier_version_is_played_anew(data: Path) -> None:
    store = Store(data)
    with open_instance(data) as instance:
        instance.add_dynamic_partitions(names.partitions_name(CONFIG), ["0000"])
        assert execute_job(reconstructable(selfplay), instance, **ASKED).success
        shard = store.require(CONFIG, 0, "selfplay-shard-0002")
        old = {**shard.metadata, "code_version": "0"}
        with store.create(CONFIG, 0, shard.kind, old) as draft:
            shutil.copyfile(shard.file("shard.arrow"), draft / "shard.arrow")
        process = get_context("spawn").Process(target=lose_a_run, args=(data, 2))
        process.start()
        process.join()
        lost = instance.get_runs(limit=1)[0]
        instance.report_run_failed(lost)
        # as if the run had been lost before it came to the step of that shard
        options = ReexecutionOptions(
            lost.run_id, [f"{names.node_name(CONFIG, 'selfplay_shards')}.collect"]
        )
        again = execute_job(
            reconstructable(selfplay), instance, reexecution_options=options, **ASKED
        )
        assert again.success
    played = store.require(CONFIG, 0, "selfplay-shard-0002")
    assert played.metadata["code_version"] == shard.metadata["code_version"] != "0"


def test_a_lost_run_is_retried_whole(data: Path) -> None:
    """Until its shards are collected: whoever asks for it, a loop or a sensor."""
    settings = run_config(TrainingConfig.preset("smoke"))
    with open_instance(data) as instance:
        asked = instance.get_run_by_id(submit_generation(instance, CONFIG, 0, settings))
    assert asked is not None and asked.tags[RETRY_STRATEGY_TAG] == "ALL_STEPS"
    job = build_definitions().resolve_job_def(names.job_name(CONFIG))
    assert job.tags[RETRY_STRATEGY_TAG] == "ALL_STEPS"
