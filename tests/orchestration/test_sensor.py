"""``evaluation_landed``: three at once, restarts, verdicts, promotion, the end of the loop."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from dagster import AssetCheckKey, DagsterInstance, DagsterRun, build_sensor_context
from dagster._core.test_utils import create_run_for_test

from ringrift_pipeline.definitions import defs
from ringrift_pipeline.orchestration import following, names, sensor
from ringrift_pipeline.orchestration.champion import last_reported, reconcile
from ringrift_pipeline.orchestration.checks import CHECKS
from ringrift_pipeline.orchestration.cursor import Stopped, read_cursor
from ringrift_pipeline.orchestration.notify import Alert
from ringrift_pipeline.orchestration.outbox import Outbox
from ringrift_pipeline.store import Store, VanishedFileError

from . import conftest
from .landing import Land, fake_evaluation, fake_model

THREE = ("square8_2p", "hex8_3p", "hexagonal_4p")


def tick(instance: DagsterInstance, cursor: str | None = None) -> Any:
    """One evaluation of the sensor; what it asks for is done as the daemon does it."""
    result = crashing_tick(instance, cursor)
    for event in result.asset_events:
        instance.report_runless_asset_event(event)
    return result


def crashing_tick(instance: DagsterInstance, cursor: str | None = None) -> Any:
    """One evaluation of the sensor by a daemon that dies before it does what was asked for."""
    sensor = defs.get_repository_def().get_sensor_def(names.SENSOR)
    with build_sensor_context(
        instance=instance, cursor=cursor, repository_def=defs.get_repository_def()
    ) as context:
        return sensor.evaluate_tick(context)


def keys(result: Any) -> list[str]:
    return [request.run_key for request in result.run_requests]


def test_three_evaluations_in_one_tick_start_three_generations(
    instance: DagsterInstance, store: Store, land: Land
) -> None:
    for config in THREE:
        land(config, 0)
    result = tick(instance)
    assert sorted(keys(result)) == sorted(f"{config}/0001" for config in THREE)
    assert {r.partition_key for r in result.run_requests} == {"0001"}
    assert {r.job_name for r in result.run_requests} == {f"{c}_generation" for c in THREE}
    for config in THREE:
        assert instance.get_dynamic_partitions(names.partitions_name(config)) == ["0000", "0001"]
        assert store.champion(config).generation == 0  # type: ignore[union-attr]
        assert last_reported(instance, config) == store.champion(config).digest  # type: ignore[union-attr]


def test_several_evaluations_of_one_config_in_one_tick(
    instance: DagsterInstance, store: Store, land: Land
) -> None:
    land("square8_2p", 0)
    land("square8_2p", 1)
    result = tick(instance)
    assert keys(result) == ["square8_2p/0001", "square8_2p/0002"]
    assert store.champion("square8_2p").generation == 1  # type: ignore[union-attr]


def test_a_restart_with_its_cursor_asks_for_nothing_again(
    instance: DagsterInstance, land: Land
) -> None:
    for config in THREE:
        land(config, 0)
    first = tick(instance)
    again = tick(instance, first.cursor)
    assert keys(again) == [] and again.asset_events == []
    assert again.cursor == first.cursor
    land("hex8_3p", 1)
    assert keys(tick(instance, again.cursor)) == ["hex8_3p/0002"]


def test_a_lost_cursor_gives_the_same_run_keys_and_no_second_champion_event(
    instance: DagsterInstance, store: Store, land: Land
) -> None:
    land("square8_2p", 0)
    first = tick(instance)
    again = tick(instance, None)  # as if the first result had never been written down
    assert keys(again) == keys(first) == ["square8_2p/0001"]
    assert len(first.asset_events) == 1 and again.asset_events == []
    assert len(store.champions("square8_2p")) == 1


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "nonsense",
        "[1, 2]",
        pytest.param("[" * 100_000, id="nested"),
        '{"square8_2p": 0, "other": 3}',
        '{"square8_2p": "seven", "hex8_3p": null, "hexagonal_4p": {}, "held": 4}',
        '{"square8_2p": -1, "hex8_3p": 2.5, "hexagonal_4p": true, "held": {"hex8_3p": "x"}}',
        '{"failed": 4}',
        '{"failed": {"hex8_3p": 7, "hex8_2p": {"storage_id": 1}, "other": {}}}',
        '{"failed": {"hex8_3p": {"storage_id": 7, "generation": true, "run": null}}}',
        '{"offered": {"hex8_3p": 7}}',
        '{"offered": ["other", 7, {}, null]}',
    ],
)
def test_an_odd_cursor_starts_over(
    cursor: str, instance: DagsterInstance, store: Store, land: Land
) -> None:
    read = read_cursor(cursor)
    assert set(read.handled) <= {"square8_2p"}
    assert not read.held and not read.failed and not read.offered
    land("hex8_3p", 0)
    assert keys(tick(instance, cursor)) == ["hex8_3p/0001"]


def test_the_cursor_reads_back_and_those_of_earlier_versions_too() -> None:
    cursor = read_cursor('{"hex8_3p": 7, "held": {"hex8_3p": 9}, "offered": ["hex8_3p"]}')
    assert cursor.handled == {"hex8_3p": 7} and cursor.held == {"hex8_3p": 9}
    assert cursor.offered == {"hex8_3p"}
    for run in ("some", None):
        cursor.stop("square8_2p", Stopped(12, 3, run))
        assert read_cursor(cursor.text) == replace(cursor, earlier=False)


def test_an_evaluation_is_decided_that_has_the_number_of_a_deleted_one(
    instance: DagsterInstance, land: Land
) -> None:
    """SQLite gives the highest numbers out again, once what had them is deleted."""
    land("square8_2p", 0, promote=False)  # no event of a champion comes after it
    cursor = tick(instance).cursor
    (run,) = instance.get_runs()
    instance.delete_run(run.run_id)
    cursor = tick(instance, cursor).cursor
    land("square8_2p", 1, promote=False)
    assert keys(tick(instance, cursor)) == ["square8_2p/0002"]


def test_a_cursor_goes_back_with_the_log() -> None:
    cursor = read_cursor('{"hex8_3p": 7, "hex8_2p": 3, "held": {"hex8_3p": 9, "hex8_2p": 4}}')
    cursor.stop("hex8_3p", Stopped(6, 3, None))
    cursor.stop("hex8_2p", Stopped(5, 3, None))
    cursor.go_back(5)
    assert cursor.handled == {"hex8_3p": 5, "hex8_2p": 3} and cursor.held == {"hex8_2p": 4}
    assert [*cursor.failed] == ["hex8_2p"]
    cursor.go_back(0)  # everything was deleted
    assert set(cursor.handled.values()) == {0} and not cursor.held and not cursor.failed


def test_a_generation_that_has_a_run_is_not_started_again(
    instance: DagsterInstance, land: Land
) -> None:
    land("square8_2p", 0)
    instance.add_dynamic_partitions("square8_2p_generation", ["0001"])
    instance.create_run_for_job(
        defs.get_repository_def().get_job("square8_2p_generation"),
        tags={names.PARTITION_TAG: "0001"},
    )
    assert keys(tick(instance)) == []


def test_the_loop_ends_at_the_last_generation_asked_for(
    instance: DagsterInstance, store: Store, land: Land
) -> None:
    land("square8_2p", 0, last=1)
    first = tick(instance)
    request = first.run_requests[0]
    assert request.run_config["resources"]["settings"]["config"]["last_generation"] == 1
    land("square8_2p", 1, last=1)
    last = tick(instance, first.cursor)
    assert keys(last) == []
    decision = store.require("square8_2p", 1, "decision").metadata
    assert decision["promoted"] and decision["next"] is None


def test_the_next_run_has_the_settings_of_this_one(instance: DagsterInstance, land: Land) -> None:
    land("square8_2p", 0)
    sent = tick(instance).run_requests[0].run_config["resources"]["settings"]["config"]
    assert sent["selfplay"]["games"] == 320  # the smoke preset of the plan, resolved
    job = defs.get_repository_def().get_job("square8_2p_generation")
    instance.create_run_for_job(
        job,
        run_config={"resources": {"settings": {"config": sent}}},
        tags={names.PARTITION_TAG: "0001"},
    )


def test_the_gate_keeps_a_weak_model_out_and_the_loop_goes_on(
    instance: DagsterInstance, store: Store, land: Land
) -> None:
    land("square8_2p", 0)
    cursor = tick(instance).cursor
    land("square8_2p", 1, promote=False)
    result = tick(instance, cursor)
    assert keys(result) == ["square8_2p/0002"]
    assert store.champion("square8_2p").generation == 0  # type: ignore[union-attr]
    decision = store.require("square8_2p", 1, "decision").metadata
    assert decision["promoted"] is False and decision["reasons"] == ["too weak"]


def test_a_failed_check_promotes_nothing_and_stops_the_loop(
    instance: DagsterInstance, store: Store, land: Land
) -> None:
    land("square8_2p", 0, passed=False)
    result = tick(instance)
    assert keys(result) == []
    assert store.champion("square8_2p") is None
    reasons = store.require("square8_2p", 0, "decision").metadata["reasons"]
    assert reasons == ["check evaluation_sound of evaluation failed: as asked"]
    assert "square8_2p" in read_cursor(result.cursor).handled


def test_a_check_that_never_ran_counts_as_failed_once_its_run_is_over(
    instance: DagsterInstance, store: Store, land: Land
) -> None:
    land("square8_2p", 0, passed=None)
    assert keys(tick(instance)) == []
    assert store.champion("square8_2p") is None
    assert "no result" in store.require("square8_2p", 0, "decision").metadata["reasons"][0]


def test_a_pending_check_holds_its_own_config_only(
    instance: DagsterInstance, store: Store, land: Land, monkeypatch: pytest.MonkeyPatch
) -> None:
    landed = land("square8_2p", 0, passed=None)
    land("hex8_2p", 0)
    running = landed.dagster_run.run_id
    monkeypatch.setattr(
        DagsterRun, "is_finished", property(lambda run: run.run_id != running), raising=True
    )
    result = tick(instance)
    assert keys(result) == ["hex8_2p/0001"]
    assert set(read_cursor(result.cursor).handled) == {"hex8_2p"}
    assert store.current("square8_2p", 0, "decision") is None
    monkeypatch.undo()


def test_the_verdict_is_that_of_the_very_materialization(
    instance: DagsterInstance, store: Store, land: Land
) -> None:
    land("square8_2p", 0, passed=False)
    land("square8_2p", 0, passed=True)  # run again: the newest check has passed, the first has not
    result = tick(instance)
    assert keys(result) == ["square8_2p/0001"]
    decisions = [a.metadata for a in store.artefacts("square8_2p", 0, "decision")]
    assert [d["promoted"] for d in decisions] == [True]


def test_a_passed_check_of_an_older_evaluation_does_not_count(
    instance: DagsterInstance, store: Store, land: Land
) -> None:
    land("square8_2p", 0, passed=True)
    land("square8_2p", 0, passed=False)
    assert keys(tick(instance)) == []
    assert store.champion("square8_2p") is None


@pytest.mark.parametrize("tag", [names.BACKFILL_TAG, names.FILLED_TAG])
def test_a_backfill_does_not_take_the_place_of_an_evaluation(
    tag: str, instance: DagsterInstance, store: Store, land: Land
) -> None:
    land("square8_2p", 0)
    land("square8_2p", 0, tags={tag: "somebody's"})
    assert keys(tick(instance)) == ["square8_2p/0001"]


def test_a_backfilled_evaluation_starts_nothing(
    instance: DagsterInstance, store: Store, land: Land
) -> None:
    land("square8_2p", 0, tags={names.BACKFILL_TAG: "somebody's"})
    result = tick(instance)
    assert keys(result) == [] and store.champion("square8_2p") is None
    assert "backfill" in result.skip_message


def test_a_run_that_brings_no_evaluation_to_decide_on_does_not_count_as_the_next_generations(
    instance: DagsterInstance, land: Land
) -> None:
    """A backfill's of the generation's job, one of an asset that was picked there, and of checks."""
    job, tags = names.job_name("square8_2p"), {names.PARTITION_TAG: "0001"}
    key = names.asset_key("square8_2p", "checkpoint")
    create_run_for_test(instance, job_name=job, tags={**tags, names.BACKFILL_TAG: "somebody's"})
    create_run_for_test(instance, job_name=job, tags=tags, asset_selection=frozenset({key}))
    checks = frozenset({AssetCheckKey(key, "losses_finite")})
    create_run_for_test(instance, job_name=job, tags=tags, asset_check_selection=checks)
    land("square8_2p", 0)
    assert keys(tick(instance)) == ["square8_2p/0001"]
    create_run_for_test(instance, job_name=job, tags=tags)
    land("square8_2p", 0)
    result = tick(instance)
    assert keys(result) == [] and "0001 has been started already" in result.skip_message


def test_an_old_event_does_not_dethrone_a_newer_champion(
    instance: DagsterInstance, store: Store, land: Land
) -> None:
    land("square8_2p", 0)
    land("square8_2p", 1)
    tick(instance)
    land("square8_2p", 0)  # somebody materializes the old evaluation again
    tick(instance)
    assert store.champion("square8_2p").generation == 1  # type: ignore[union-attr]


def test_a_damaged_model_is_not_promoted(
    instance: DagsterInstance, store: Store, land: Land
) -> None:
    land("square8_2p", 0)
    model = store.require("square8_2p", 0, "ema_model")
    model.file("model.safetensors").write_bytes(b"other bytes")
    assert keys(tick(instance)) == []
    assert store.champion("square8_2p") is None
    assert "corrupt" in store.require("square8_2p", 0, "decision").metadata["reasons"][0]


def test_a_plan_whose_settings_cannot_be_used_stops_its_own_loop_only(
    instance: DagsterInstance, store: Store, land: Land, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(store: Store, config: str, *rest: Any) -> Any:
        if config == "hex8_3p":
            raise ValueError("min_evaluations must be at most the window")
        return next_settings(store, config, *rest)

    next_settings = following.next_settings
    monkeypatch.setattr(following, "next_settings", refuse)
    for config in THREE:
        land(config, 0)
    result = tick(instance)
    assert sorted(keys(result)) == ["hexagonal_4p/0001", "square8_2p/0001"]
    reasons = store.require("hex8_3p", 0, "decision").metadata["reasons"]
    assert reasons[-1].startswith("no next generation: min_evaluations")
    assert "hex8_3p" in read_cursor(result.cursor).handled
    told: list[Alert] = []
    Outbox(store).deliver(SimpleNamespace(notify=told.append))
    assert [(one.kind, one.config, one.generation) for one in told] == [
        ("plan_unusable", "hex8_3p", "0000")
    ]
    assert "min_evaluations" in told[0].text and "ringrift loop --config hex8_3p" in told[0].text
    tick(instance)  # the cursor was lost
    assert Outbox(store).waiting() == 0


def test_start_up_brings_partitions_and_champions_up_to_the_store(
    instance: DagsterInstance, store: Store
) -> None:
    for generation in (0, 1, 2):
        store.write_plan("square8_2p", generation, {})
    model = fake_model(store, "square8_2p", 1)
    rating = {"rating": 1250.0, "low": 1200.0, "high": 1300.0}
    store.promote("square8_2p", 1, model, {"gate": {"reasons": ["by hand"]}, "rating": rating})
    reconcile(instance, store)
    offered = ["0000", "0001", "0002", "0003"]  # also what comes next: it can be launched then
    assert instance.get_dynamic_partitions("square8_2p_generation") == offered
    assert last_reported(instance, "square8_2p") == model.digest
    event = instance.get_latest_materialization_event(names.asset_key("square8_2p", "champion"))
    assert event is not None and event.asset_materialization is not None
    made = event.asset_materialization
    shown = {name: value.value for name, value in made.metadata.items() if name.startswith("eval")}
    assert shown == {"eval/elo": 1250.0, "eval/elo_low": 1200.0, "eval/elo_high": 1300.0}
    assert made.tags is not None
    assert made.tags["dagster/data_version"] == model.digest[:16]
    assert reconcile(instance, store) == []


def test_the_cursor_is_json_by_config(instance: DagsterInstance, land: Land) -> None:
    land("square8_2p", 0)
    assert json.loads(tick(instance).cursor).keys() == {"square8_2p", "failed", "offered"}


# --- every blocking check of the generation -----------------------------------------------------

UPSTREAM = [
    (check.asset, check.name)
    for check in CHECKS
    if check.blocking and check.asset not in ("evaluation", names.CHAMPION)
]


@pytest.mark.parametrize(("asset", "check"), UPSTREAM)
def test_any_blocking_check_stops_promotion(
    asset: str, check: str, instance: DagsterInstance, store: Store, land: Land
) -> None:
    land("square8_2p", 0, checks={check: False})
    land("hex8_3p", 0)
    assert keys(tick(instance)) == ["hex8_3p/0001"]
    assert store.champion("square8_2p") is None
    decision = store.require("square8_2p", 0, "decision").metadata
    assert decision["reasons"] == [f"check {check} of {asset} failed: as asked"]
    assert decision["promoted"] is False and decision["end"] == "checks"


def test_there_are_checks_before_the_evaluation() -> None:
    assert {asset for asset, _ in UPSTREAM} >= {"selfplay_shards", "checkpoint", "ema_model"}


def test_a_later_materialization_of_something_before_the_evaluation_is_what_counts(
    instance: DagsterInstance, store: Store, land: Land
) -> None:
    land("square8_2p", 0)
    rest = tuple(name for name in names.ASSETS if name != "checkpoint")
    land("square8_2p", 0, checks={"losses_finite": False}, without=rest)  # trained again, badly
    assert keys(tick(instance)) == []
    assert store.champion("square8_2p") is None


def test_a_check_that_was_run_again_and_passes_counts(
    instance: DagsterInstance, store: Store, land: Land
) -> None:
    rest = tuple(name for name in names.ASSETS if name != "checkpoint")
    land("square8_2p", 0, checks={"losses_finite": False}, without=rest)
    land("square8_2p", 0, without=rest)
    land("square8_2p", 0, without=("checkpoint",))
    assert keys(tick(instance)) == ["square8_2p/0001"]


def test_the_same_check_of_another_generation_does_not_count(
    instance: DagsterInstance, store: Store, land: Land
) -> None:
    land("square8_2p", 0, checks={"losses_finite": None})
    rest = tuple(name for name in names.ASSETS if name != "checkpoint")
    land("square8_2p", 1, without=rest)
    assert keys(tick(instance)) == []
    (reason,) = store.require("square8_2p", 0, "decision").metadata["reasons"]
    assert reason.startswith("check losses_finite of checkpoint has no result and its run ended")


def test_what_was_never_materialized_was_never_checked(
    instance: DagsterInstance, store: Store, land: Land
) -> None:
    land("square8_2p", 0, without=("quality_scores",))
    assert keys(tick(instance)) == []
    (reason,) = store.require("square8_2p", 0, "decision").metadata["reasons"]
    assert "quality_scores was never materialized" in reason
    assert "run square8_2p_generation" in reason


def test_a_pending_check_before_the_evaluation_is_waited_for(
    instance: DagsterInstance, store: Store, land: Land, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = tuple(name for name in names.ASSETS if name != "checkpoint")
    training = land("square8_2p", 0, checks={"losses_finite": None}, without=rest)
    land("square8_2p", 0, without=("checkpoint",))
    land("hex8_2p", 0)
    running = training.dagster_run.run_id
    with monkeypatch.context() as patch:
        patch.setattr(DagsterRun, "is_finished", property(lambda run: run.run_id != running))
        result = tick(instance)
    assert keys(result) == ["hex8_2p/0001"]
    assert set(read_cursor(result.cursor).handled) == {"hex8_2p"}
    assert store.current("square8_2p", 0, "decision") is None
    assert keys(tick(instance, result.cursor)) == []  # its run ended without a word
    assert store.require("square8_2p", 0, "decision").metadata["end"] == "checks"


def test_a_run_that_vanished_without_a_verdict_fails(
    instance: DagsterInstance, store: Store, land: Land
) -> None:
    rest = tuple(name for name in names.ASSETS if name != "checkpoint")
    training = land("square8_2p", 0, checks={"losses_finite": None}, without=rest)
    land("square8_2p", 0, without=("checkpoint",))
    instance.run_storage.delete_run(training.dagster_run.run_id)
    assert keys(tick(instance)) == []
    (reason,) = store.require("square8_2p", 0, "decision").metadata["reasons"]
    assert reason == "check losses_finite of checkpoint has no result and its run is unknown"


def test_a_model_made_anew_since_its_evaluation_is_not_promoted(
    instance: DagsterInstance, store: Store, land: Land
) -> None:
    land("square8_2p", 0)
    with store.create("square8_2p", 0, "ema_model") as draft:
        (draft / "model.safetensors").write_bytes(b"trained again")
    tick(instance)
    assert store.champion("square8_2p") is None
    assert "made anew" in store.require("square8_2p", 0, "decision").metadata["reasons"][-1]


def test_the_report_is_that_of_the_very_evaluation(
    instance: DagsterInstance, store: Store, land: Land
) -> None:
    """The command line has evaluated again meanwhile, and checked nothing."""
    land("square8_2p", 0, promote=False)
    fake_evaluation(store, "square8_2p", 0, True, None)
    tick(instance)
    assert store.champion("square8_2p") is None
    assert store.require("square8_2p", 0, "decision").metadata["reasons"] == ["too weak"]


def test_an_evaluation_whose_files_are_gone_promotes_nothing(
    instance: DagsterInstance, store: Store, land: Land
) -> None:
    land("square8_2p", 0)
    shutil.rmtree(store.require("square8_2p", 0, "evaluation").path.parent)
    with store.create("square8_2p", 0, "evaluation") as draft:
        (draft / "report.json").write_text("{}")
    assert keys(tick(instance)) == []
    assert store.champion("square8_2p") is None
    assert (
        "has taken its place" in store.require("square8_2p", 0, "decision").metadata["reasons"][0]
    )


def test_a_model_that_vanishes_while_it_is_fetched_has_failed_no_check(
    instance: DagsterInstance, store: Store, land: Land, monkeypatch: pytest.MonkeyPatch
) -> None:
    land("square8_2p", 0)
    with monkeypatch.context() as patch:

        def gone(*_: object) -> None:
            raise VanishedFileError(store.root / "manifest.json")

        patch.setattr(sensor, "promote", gone)
        first = tick(instance)
    assert keys(first) == [] and store.current("square8_2p", 0, "decision") is None
    assert "square8_2p" not in read_cursor(first.cursor).handled
    assert keys(tick(instance, first.cursor)) == ["square8_2p/0001"]
    assert store.require("square8_2p", 0, "decision").metadata["promoted"]


# --- one config's trouble -----------------------------------------------------------------------


def without_a_gate(store: Store, config: str, generation: int, *rest: Any) -> Any:
    fake_evaluation(store, config, generation, *rest)
    with store.create(config, generation, "evaluation") as draft:
        (draft / "report.json").write_text("{}")  # a KeyError for whoever reads it
    return draft.artefact


def test_an_unforeseen_error_stays_with_its_config_and_is_reported_once(
    instance: DagsterInstance, store: Store, land: Land, monkeypatch: pytest.MonkeyPatch
) -> None:
    for config in ("square8_2p", "hexagonal_4p"):
        land(config, 0)
    with monkeypatch.context() as patch:
        patch.setattr(conftest, "fake_evaluation", without_a_gate)
        land("hex8_3p", 0)
    result = tick(instance)
    assert sorted(keys(result)) == ["hexagonal_4p/0001", "square8_2p/0001"]
    assert set(read_cursor(result.cursor).handled) == {"square8_2p", "hexagonal_4p"}
    assert store.current("hex8_3p", 0, "decision") is None
    again = tick(instance, result.cursor)
    assert "hex8_3p: KeyError" in again.skip_message
    told: list[Alert] = []
    notifier = SimpleNamespace(notify=told.append)
    assert Outbox(store).deliver(notifier) == told
    assert [(alert.kind, alert.config) for alert in told] == [("sensor_failed", "hex8_3p")]
    assert "KeyError: 'gate'" in told[0].text

    land("hex8_3p", 0)  # evaluated again: the old one is looked at no more
    assert keys(tick(instance, again.cursor)) == ["hex8_3p/0001"]


def test_damaged_switches_hold_their_own_config_only(
    instance: DagsterInstance, store: Store, land: Land
) -> None:
    for config in THREE:
        land(config, 0)
    (store.root / "hex8_3p" / "switches.json").write_text("{}")
    result = tick(instance)
    assert sorted(keys(result)) == ["hexagonal_4p/0001", "square8_2p/0001"]
    store.set_switches("hex8_3p", loop=True)
    assert keys(tick(instance, result.cursor)) == ["hex8_3p/0001"]


# --- pausing ------------------------------------------------------------------------------------


def test_a_paused_config_is_promoted_once_and_goes_on_when_it_is_resumed(
    instance: DagsterInstance, store: Store, land: Land, monkeypatch: pytest.MonkeyPatch
) -> None:
    for config in THREE:
        land(config, 0)
    store.set_switches("hex8_3p", loop=False)
    first = tick(instance)
    assert sorted(keys(first)) == ["hexagonal_4p/0001", "square8_2p/0001"]
    assert store.champion("hex8_3p").generation == 0  # type: ignore[union-attr]
    assert last_reported(instance, "hex8_3p") is not None
    assert store.current("hex8_3p", 0, "decision") is None
    assert "hex8_3p" not in read_cursor(first.cursor).handled

    with monkeypatch.context() as patch:  # nothing is looked at again while it waits
        patch.setattr(Store, "promote", lambda *_, **__: pytest.fail("promoted again"))
        second = tick(instance, first.cursor)
    assert keys(second) == [] and second.cursor == first.cursor

    store.set_switches("hex8_3p", loop=True)
    third = tick(instance, second.cursor)
    assert keys(third) == ["hex8_3p/0001"] and third.asset_events == []
    decision = store.require("hex8_3p", 0, "decision").metadata
    assert decision["promoted"] and decision["next"] == 1
    read = read_cursor(third.cursor)
    assert read.handled.keys() == set(THREE) and not read.held and not read.failed


def test_the_last_generation_is_decided_though_paused(
    instance: DagsterInstance, store: Store, land: Land
) -> None:
    store.set_switches("square8_2p", loop=False)
    land("square8_2p", 0, last=0)
    tick(instance)
    assert store.require("square8_2p", 0, "decision").metadata["end"] == "limit"


@pytest.mark.parametrize("asked", ["square8_2p", "all"])
def test_a_pause_that_waits_in_the_queue_counts_already(
    asked: str, instance: DagsterInstance, store: Store, land: Land
) -> None:
    """Launched while the generation runs that it is to be the last, it waits for that run's end."""
    job = defs.get_repository_def().get_job("set_switches")
    run = instance.create_run_for_job(
        job,
        run_config={"ops": {"switches": {"config": {"config": asked, "loop": False}}}},
    )
    land("square8_2p", 0)
    first = tick(instance)
    assert keys(first) == []
    instance.report_run_canceled(run)
    assert keys(tick(instance, first.cursor)) == ["square8_2p/0001"]
