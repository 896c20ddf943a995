"""The schedules, also under the daemon's own code, and a real gauntlet."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Iterator
from typing import Any

import polars as pl
import pytest
from dagster import (
    AssetKey,
    AssetMaterialization,
    DagsterInstance,
    DagsterRunStatus,
    RunsFilter,
    build_schedule_context,
)
from dagster._core.scheduler.instigation import TickStatus
from dagster._core.storage.tags import SCHEDULE_NAME_TAG
from dagster._core.test_utils import create_run_for_test

from ringrift_pipeline import evaluation
from ringrift_pipeline.definitions import defs
from ringrift_pipeline.orchestration import names
from ringrift_pipeline.orchestration.gauntlet import JOB, week_seed
from ringrift_pipeline.orchestration.instance import open_instance
from ringrift_pipeline.orchestration.integrity import gauntlet_sound
from ringrift_pipeline.orchestration.schedules import TimeZoneError, next_to_play, schedules
from ringrift_pipeline.orchestration.step import Step
from ringrift_pipeline.store import Store

from .conftest import observations
from .landing import PLAN, fake_model
from .ticking import daemon, schedule_tick, turn_on

SUNDAY = datetime.datetime(2026, 11, 22, 5, tzinfo=datetime.UTC)


@pytest.fixture
def own(store: Store) -> Iterator[DagsterInstance]:
    with open_instance(store.root) as made:
        yield made


def tick(name: str, instance: DagsterInstance) -> Any:
    repository = defs.get_repository_def()
    with build_schedule_context(
        instance=instance, scheduled_execution_time=SUNDAY, repository_def=repository
    ) as context:
        return repository.get_schedule_def(name).evaluate_tick(context)


@pytest.mark.parametrize("name", ["nightly_selfplay", "weekly_gauntlet"])
def test_an_empty_data_root_schedules_nothing(name: str, own: DagsterInstance) -> None:
    result = tick(name, own)
    assert not result.run_requests and result.skip_message


def test_the_night_plays_the_next_games_of_every_config_begun(
    own: DagsterInstance, store: Store
) -> None:
    store.write_plan("square8_2p", 0, PLAN)  # planned, its games not played
    store.write_plan("hex8_3p", 4, PLAN)
    with store.create("hex8_3p", 4, "selfplay_shards"):
        pass
    decided(store, "hex8_3p", 4)
    assert next_to_play(own, store, "square8_2p") == 0
    assert next_to_play(own, store, "hex8_3p") == 5
    requests = {r.tags[names.CONFIG_TAG]: r for r in tick("nightly_selfplay", own).run_requests}
    assert set(requests) == {"square8_2p", "hex8_3p"}
    request = requests["hex8_3p"]
    assert request.tags[names.PARTITION_TAG] == "0005"
    assert request.asset_selection == [AssetKey(["hex8_3p", "selfplay_shards"])]
    assert own.get_dynamic_partitions("hex8_3p_generation") == ["0005"]
    # what it asks for can be launched
    job = defs.get_repository_def().get_implicit_job_def_for_assets(request.asset_selection)
    assert job is not None
    own.create_run_for_job(job, run_config=request.run_config, tags={names.PARTITION_TAG: "0005"})


def test_the_week_has_a_gauntlet_for_every_champion(own: DagsterInstance, store: Store) -> None:
    store.promote("hex8_2p", 0, fake_model(store, "hex8_2p", 0), {})
    store.write_plan("square8_2p", 0, PLAN)
    (request,) = tick("weekly_gauntlet", own).run_requests
    assert request.run_key == "gauntlet/hex8_2p/2026-11-22"
    assert request.run_config["ops"]["gauntlet"]["config"] == {
        "config": "hex8_2p",
        "seed": week_seed(SUNDAY),
    }


def decided(store: Store, config: str, generation: int, end: str | None = None) -> None:
    decision = {"promoted": True, "reasons": [], "next": None, "end": end, "run": "r"}
    with store.create(config, generation, "decision", decision):
        pass


def played(store: Store, config: str, generation: int) -> None:
    store.write_plan(config, generation, PLAN)
    with store.create(config, generation, "selfplay_shards"):
        pass


def tonight(instance: DagsterInstance) -> tuple[list[str], str]:
    """Whose games the night plays, and what it says where it plays none."""
    result = tick("nightly_selfplay", instance)
    return [r.tags[names.CONFIG_TAG] for r in result.run_requests or []], result.skip_message or ""


@pytest.mark.parametrize(("end", "plays"), [(None, True), ("limit", True), ("checks", False)])
def test_the_night_waits_for_the_newest_generation_to_be_decided(
    end: str | None, plays: bool, own: DagsterInstance, store: Store
) -> None:
    """A plan made before would hold on to the champion of before."""
    played(store, "hex8_3p", 4)
    assert tonight(own) == (
        [],
        "the newest generation of hex8_3p is not decided, or its loop has stopped there",
    )
    decided(store, "hex8_3p", 4, end)
    assert (tonight(own)[0] == ["hex8_3p"]) is plays


def test_an_evaluation_counts_as_decided_only_if_no_sensor_will_see_it(
    own: DagsterInstance, store: Store
) -> None:
    played(store, "hex8_3p", 4)
    with store.create("hex8_3p", 4, "evaluation"):  # ringrift evaluate
        pass
    assert next_to_play(own, store, "hex8_3p") == 5
    key = names.asset_key("hex8_3p", "evaluation")
    own.report_runless_asset_event(AssetMaterialization(key, partition="0004"))
    assert next_to_play(own, store, "hex8_3p") is None


@pytest.mark.parametrize("by_hand", [False, True])
def test_the_night_leaves_a_config_alone_that_is_at_work(
    by_hand: bool, own: DagsterInstance, store: Store
) -> None:
    for config in ("hex8_3p", "square8_2p"):
        played(store, config, 0)
        decided(store, config, 0)
    run = create_run_for_test(
        own,
        job_name="__ASSET_JOB" if by_hand else names.job_name("hex8_3p"),
        asset_selection=frozenset({AssetKey(["hex8_3p", "checkpoint"])}) if by_hand else None,
        status=DagsterRunStatus.STARTED,
    )
    assert tonight(own)[0] == ["square8_2p"]
    own.report_run_canceled(run)
    assert tonight(own)[0] == ["square8_2p", "hex8_3p"]


def test_paused_configs_are_left_out_each_by_its_own_switch(
    own: DagsterInstance, store: Store
) -> None:
    for config in ("hex8_3p", "square8_2p"):
        played(store, config, 0)
        decided(store, config, 0)
        store.promote(config, 0, fake_model(store, config, 0), {})
    store.set_switches("hex8_3p", nightly=False)
    store.set_switches("square8_2p", gauntlet=False)
    assert tonight(own)[0] == ["square8_2p"]
    (request,) = tick("weekly_gauntlet", own).run_requests
    assert request.tags[names.CONFIG_TAG] == "hex8_3p"
    store.set_switches("hex8_3p", gauntlet=False)
    assert "hex8_3p is paused" in tick("weekly_gauntlet", own).skip_message
    for config in ("hex8_3p", "square8_2p"):
        store.set_switches(config, nightly=True, gauntlet=True)
    assert len(tonight(own)[0]) == len(tick("weekly_gauntlet", own).run_requests) == 2


def test_what_is_damaged_in_one_config_leaves_the_others(
    own: DagsterInstance, store: Store
) -> None:
    for config in ("hex8_3p", "square8_2p"):
        played(store, config, 0)
        decided(store, config, 0)
        store.promote(config, 0, fake_model(store, config, 0), {})
    (store.root / "square8_2p" / "switches.json").write_text("{}")
    assert tonight(own)[0] == ["hex8_3p"]
    (request,) = tick("weekly_gauntlet", own).run_requests
    assert request.tags[names.CONFIG_TAG] == "hex8_3p"


def test_restarted_daemons_play_each_night_once(store: Store) -> None:
    for config in ("hex8_3p", "square8_2p", "hexagonal_2p"):
        played(store, config, 4)
        decided(store, config, 4)
    store.set_switches("hexagonal_2p", nightly=False)
    now = datetime.datetime.now(datetime.UTC)
    minute, day = datetime.timedelta(minutes=1), datetime.timedelta(days=1)
    night = now.replace(hour=2, minute=0, second=0, microsecond=0) + day  # after the next one
    if now.hour >= 2:
        night += day

    def runs(instance: DagsterInstance) -> list[tuple[str, str]]:
        found = instance.get_runs(RunsFilter(tags={SCHEDULE_NAME_TAG: "nightly_selfplay"}))
        assert len(found) == instance.get_runs_count()
        assert all(len(run.asset_selection or ()) == 1 for run in found)
        return sorted((r.tags[names.CONFIG_TAG], r.tags[names.PARTITION_TAG]) for r in found)

    once = [("hex8_3p", "0005"), ("square8_2p", "0005")]
    with open_instance(store.root) as instance, daemon(instance) as workspace:
        schedule_tick(workspace, night + minute)
        assert runs(instance) == []  # nobody has turned it on
        turn_on(workspace, "nightly_selfplay")
        schedule_tick(workspace, night - day - minute)
        schedule_tick(workspace, night + minute)
        assert runs(instance) == once
        for run in instance.get_runs():
            assert run.status == DagsterRunStatus.QUEUED
            instance.report_run_failed(run)
    for crashed in (False, True):
        with open_instance(store.root) as instance, daemon(instance) as workspace:
            if crashed:  # in the middle of the tick: it is done over
                (state,) = instance.all_instigator_state()
                (tick, *_) = instance.get_ticks(state.instigator_origin_id, state.selector_id)
                instance.update_tick(tick.with_status(TickStatus.STARTED))
            schedule_tick(workspace, night + 2 * minute)
            assert runs(instance) == once
    with open_instance(store.root) as instance, daemon(instance) as workspace:
        schedule_tick(workspace, night + day + minute)
        assert runs(instance) == sorted(2 * once)


def test_the_clock_stands_where_the_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RINGRIFT_TIMEZONE", raising=False)
    assert {one.execution_timezone for one in schedules()} == {"UTC"}
    monkeypatch.setenv("RINGRIFT_TIMEZONE", "Pacific/Auckland")
    made = schedules()
    assert {one.execution_timezone for one in made} == {"Pacific/Auckland"}
    (nightly,) = [one for one in made if one.name == "nightly_selfplay"]
    assert "Pacific/Auckland" in (nightly.description or "")


@pytest.mark.parametrize("name", ["Mars/Olympus", "../etc/passwd", "Europe", "CET+30"])
def test_an_unknown_time_zone_is_refused_with_a_hint(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RINGRIFT_TIMEZONE", name)
    with pytest.raises(TimeZoneError, match=r"RINGRIFT_TIMEZONE.*Europe/Berlin"):
        schedules()


def play_gauntlet(**config: Any) -> tuple[Any, list[Any]]:
    """What came of a gauntlet's job, and what it observed."""
    job = defs.get_repository_def().get_job(JOB)
    settings = {"config": "square8_2p", "games": 4, "baselines": ["random", "heuristic"], **config}
    with DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(
            run_config={"ops": {"gauntlet": {"config": settings}}},
            instance=instance,
            raise_on_error=False,
        )
        return result, observations(result)


@pytest.mark.slow
def test_a_real_gauntlet_observes_the_champion(copied: Store) -> None:
    model = copied.require("square8_2p", 0, "ema_model")
    with copied.create("square8_2p", 1, "ema_model") as draft:  # a champion before it
        for name in model.files:
            shutil.copyfile(model.file(name), draft / name)
    copied.promote("square8_2p", 1, draft.artefact, {"gate": {"reasons": []}})
    copied.promote("square8_2p", 0, model, {"gate": {"reasons": []}})
    result, (observed,) = play_gauntlet()
    assert result.success
    assert observed.asset_key == AssetKey(["square8_2p", "champion"])
    assert observed.metadata["eval/games"].value == 12
    assert {name for name in observed.metadata if name.startswith("eval/win_rate")} == {
        "eval/win_rate_random", "eval/win_rate_heuristic", "eval/win_rate_predecessor_1",
    }  # fmt: skip
    low, high = (observed.metadata[f"eval/elo_{end}"].value for end in ("low", "high"))
    assert low < observed.metadata["eval/elo"].value < high  # type: ignore[operator]
    assert copied.require("square8_2p", 0, "gauntlet").file("games.parquet").exists()
    judged = gauntlet_sound(Step("square8_2p", 1, copied, lambda *_: None, lambda: False))
    assert judged.passed and judged.numbers["eval/games"] == 12


@pytest.mark.slow
@pytest.mark.parametrize("baseline", ["random", "rollout"])
def test_a_gauntlet_without_the_heuristic_is_not_plotted_as_if_it_had_it(
    copied: Store, baseline: str
) -> None:
    copied.promote("square8_2p", 0, copied.require("square8_2p", 0, "ema_model"), {"gate": {}})
    result, (observed,) = play_gauntlet(baselines=[baseline], predecessors=0, games=2)
    assert result.success
    assert not [name for name in observed.metadata if name.startswith("eval/elo")]
    assert "rating_list" in observed.metadata


@pytest.mark.slow
def test_a_gauntlet_whose_games_are_not_sound_is_not_rated(
    copied: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    play = evaluation.play_matches

    def turned_about(*arguments: Any, **more: Any) -> pl.DataFrame:
        winner = pl.col("winner")
        other = pl.when(winner > 0).then(3 - winner).otherwise(0).cast(pl.Int8)
        return play(*arguments, **more).with_columns(winner=other)

    monkeypatch.setattr(evaluation, "play_matches", turned_about)
    copied.promote("square8_2p", 0, copied.require("square8_2p", 0, "ema_model"), {"gate": {}})
    listed = copied.require("square8_2p", 0, "rating_list")
    result, observed = play_gauntlet(baselines=["random"])
    assert not result.success and observed == []
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    said = str(failure.step_failure_data.error)
    assert "UnsoundError: gauntlet_sound: gauntlet of generation 0000: " in said
    assert "What to do: Remove the folder gauntlet" in said
    assert copied.require("square8_2p", 0, "rating_list") == listed
