"""The two schedules, and a real gauntlet."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from dagster import AssetKey, DagsterInstance, build_schedule_context

from ringrift_pipeline.definitions import defs
from ringrift_pipeline.orchestration import names
from ringrift_pipeline.orchestration.gauntlet import JOB, week_seed
from ringrift_pipeline.orchestration.instance import open_instance
from ringrift_pipeline.orchestration.schedules import next_to_play
from ringrift_pipeline.store import Store

from .landing import PLAN, fake_model

SUNDAY = datetime.datetime(2026, 11, 22, 5, tzinfo=datetime.UTC)


def tick(name: str, instance: DagsterInstance) -> Any:
    repository = defs.get_repository_def()
    with build_schedule_context(
        instance=instance, scheduled_execution_time=SUNDAY, repository_def=repository
    ) as context:
        return repository.get_schedule_def(name).evaluate_tick(context)


@pytest.mark.parametrize("name", ["nightly_selfplay", "weekly_gauntlet"])
def test_an_empty_data_root_schedules_nothing(
    name: str, instance: DagsterInstance, data: Any
) -> None:
    result = tick(name, instance)
    assert not result.run_requests and result.skip_message


def test_the_night_plays_the_next_games_of_every_config_begun(store: Store) -> None:
    with open_instance(store.root) as instance:
        check_the_night(instance, store)


def check_the_night(instance: DagsterInstance, store: Store) -> None:
    store.write_plan("square8_2p", 0, PLAN)  # planned, its games not played
    store.write_plan("hex8_3p", 4, PLAN)
    with store.create("hex8_3p", 4, "selfplay_shards"):
        pass
    assert next_to_play(store, "square8_2p") == 0 and next_to_play(store, "hex8_3p") == 5
    requests = {
        r.tags[names.CONFIG_TAG]: r for r in tick("nightly_selfplay", instance).run_requests
    }
    assert set(requests) == {"square8_2p", "hex8_3p"}
    request = requests["hex8_3p"]
    assert request.tags[names.PARTITION_TAG] == "0005"
    assert request.asset_selection == [AssetKey(["hex8_3p", "selfplay_shards"])]
    assert instance.get_dynamic_partitions("hex8_3p_generation") == ["0005"]
    # what it asks for can be launched
    job = defs.get_repository_def().get_implicit_job_def_for_assets(request.asset_selection)
    assert job is not None
    instance.create_run_for_job(
        job, run_config=request.run_config, tags={names.PARTITION_TAG: "0005"}
    )


def test_the_week_has_a_gauntlet_for_every_champion(
    instance: DagsterInstance, store: Store
) -> None:
    store.promote("hex8_2p", 0, fake_model(store, "hex8_2p", 0), {})
    store.write_plan("square8_2p", 0, PLAN)
    (request,) = tick("weekly_gauntlet", instance).run_requests
    assert request.run_key == "gauntlet/hex8_2p/2026-11-22"
    assert request.run_config["ops"]["gauntlet"]["config"] == {
        "config": "hex8_2p",
        "seed": week_seed(SUNDAY),
    }


@pytest.mark.slow
def test_a_real_gauntlet_observes_the_champion(copied: Store) -> None:
    model = copied.require("square8_2p", 0, "ema_model")
    copied.promote("square8_2p", 0, model, {"gate": {"reasons": []}})
    config = {"config": "square8_2p", "games": 4, "baselines": ["random", "heuristic"]}
    job = defs.get_repository_def().get_job(JOB)
    with DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(
            run_config={"ops": {"gauntlet": {"config": config}}}, instance=instance
        )
        (observed,) = [
            event.asset_observation_data.asset_observation
            for event in result.all_events
            if event.is_asset_observation
        ]
    assert observed.asset_key == AssetKey(["square8_2p", "champion"])
    assert observed.metadata["eval/games"].value == 8
    low, high = (observed.metadata[f"eval/elo_{end}"].value for end in ("low", "high"))
    assert low < observed.metadata["eval/elo"].value < high  # type: ignore[operator]
    assert copied.require("square8_2p", 0, "gauntlet").file("games.parquet").exists()
