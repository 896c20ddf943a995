"""Re-execution from failure: only what is missing is done again."""

from __future__ import annotations

from collections.abc import Callable
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
    define_asset_job,
    execute_job,
    in_process_executor,
    reconstructable,
)

import ringrift_pipeline.selfplay
from ringrift_pipeline.orchestration import names
from ringrift_pipeline.orchestration.assets import family
from ringrift_pipeline.orchestration.build import build_definitions
from ringrift_pipeline.orchestration.instance import open_instance
from ringrift_pipeline.orchestration.places import home_folder
from ringrift_pipeline.store import Store

CONFIG = "hex8_2p"
SETTINGS = {
    "preset": "smoke",
    "device": "cpu",
    "selfplay": {"games": 3, "games_per_shard": 1, "parallel_games": 1, "workers": 1},
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
    asked: dict[str, Any] = {
        "run_config": {"resources": {"settings": {"config": SETTINGS}}},
        "tags": {names.PARTITION_TAG: "0000"},
    }
    with open_instance(data) as instance:
        instance.add_dynamic_partitions(names.partitions_name(CONFIG), ["0000"])
        begun = breaking({1})
        first = execute_job(job, instance, **asked)
        assert not first.success and sorted(begun) == [0, 1, 2]

        begun = breaking(set())
        again = execute_job(
            job,
            instance,
            reexecution_options=ReexecutionOptions.from_failure(first.run_id, instance),
            **asked,
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
