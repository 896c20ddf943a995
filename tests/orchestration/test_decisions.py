"""What is kept of decisions: the limit of the loop, and what was decided for good."""

from __future__ import annotations

import json
from typing import Any

import pytest
from dagster import DagsterInstance
from dagster._core.test_utils import create_run_for_test

from ringrift_pipeline.orchestration import names
from ringrift_pipeline.orchestration.champion import last_reported
from ringrift_pipeline.orchestration.decisions import promote_evaluated
from ringrift_pipeline.orchestration.settings import run_values
from ringrift_pipeline.store import Store

from .landing import Land, fake_model
from .test_sensor import crashing_tick, keys, tick

CONFIG = "square8_2p"


def decided(store: Store, generation: int) -> dict[str, Any]:
    return store.require(CONFIG, generation, "decision").metadata


def started(instance: DagsterInstance, generation: int) -> None:
    """The run of a generation, as the daemon makes it for the sensor."""
    create_run_for_test(
        instance,
        job_name=names.job_name(CONFIG),
        tags={names.PARTITION_TAG: names.generation_key(generation)},
    )


@pytest.mark.parametrize("name", ["eval/elo", "eval/elo_over_random"])
def test_a_promotion_notes_a_rating_on_the_heuristics_scale_alone(name: str, store: Store) -> None:
    model = fake_model(store, CONFIG, 0)
    rating = {"rating": 640.0, "low": 600.0, "high": 680.0}
    report = {
        "candidate": {"digest": model.digest, "name": "generation:0000"},
        "champion": None,
        "gate": {"promote": True, "reasons": ["beats everybody"]},
        "ratings": {"generation:0000": rating},
    }
    with store.create(CONFIG, 0, "evaluation", {name: 640.0}) as draft:
        (draft / "report.json").write_text(json.dumps(report))
    assert promote_evaluated(store, draft.artefact, None) == (True, ["beats everybody"])
    champion = store.champion(CONFIG)
    assert champion is not None
    assert champion.reason["rating"] == (rating if name == "eval/elo" else None)


def test_whom_somebody_promotes_meanwhile_stays(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, model, other = (fake_model(store, CONFIG, number) for number in range(3))
    store.promote(CONFIG, 0, first, {})
    report = {
        "candidate": {"digest": model.digest, "name": "generation:0001"},
        "champion": {"digest": first.digest},
        "gate": {"promote": True, "reasons": ["beats everybody"]},
    }
    with store.create(CONFIG, 1, "evaluation", {}) as draft:
        (draft / "report.json").write_text(json.dumps(report))
    promote = store.promote

    def late(*what: Any, **how: Any) -> Any:
        promote(CONFIG, 2, other, {})  # between the look at the champion and the promotion
        return promote(*what, **how)

    monkeypatch.setattr(store, "promote", late)
    promoted, reasons = promote_evaluated(store, draft.artefact, None)
    assert not promoted and "generation 0002 is champion since" in reasons
    assert [one.generation for one in store.champions(CONFIG)] == [0, 2]


# --- the limit -----------------------------------------------------------------------------------


@pytest.mark.parametrize("passed", [True, False])
def test_a_generation_evaluated_again_without_a_limit_keeps_its_own(
    passed: bool, instance: DagsterInstance, store: Store, land: Land
) -> None:
    """From the asset's page there is no run configuration, and so no last_generation."""
    land(CONFIG, 0, last=0, passed=passed)
    cursor = tick(instance).cursor
    for _ in range(2):
        land(CONFIG, 0)
        result = tick(instance, cursor)
        assert keys(result) == []
        assert decided(store, 0)["end"] == "limit" and decided(store, 0)["last_generation"] == 0
        cursor = result.cursor


def test_a_generation_started_with_a_limit_and_finished_by_hand_has_it_too(
    instance: DagsterInstance, land: Land
) -> None:
    land(CONFIG, 0, last=2)
    cursor = tick(instance).cursor
    land(CONFIG, 1)
    result = tick(instance, cursor)
    assert run_values(result.run_requests[0].run_config)["last_generation"] == 2
    land(CONFIG, 2)
    assert keys(tick(instance, result.cursor)) == []


def test_a_limit_of_its_own_is_what_counts(
    instance: DagsterInstance, store: Store, land: Land
) -> None:
    land(CONFIG, 0, last=0)
    cursor = tick(instance).cursor
    land(CONFIG, 0, last=1)
    result = tick(instance, cursor)
    assert keys(result) == [f"{CONFIG}/0001"]
    assert decided(store, 0)["last_generation"] == 1


def test_the_generation_after_the_last_has_no_limit_unless_it_is_given_one(
    instance: DagsterInstance, land: Land
) -> None:
    land(CONFIG, 0, last=0)
    cursor = tick(instance).cursor
    land(CONFIG, 1)  # launched from the browser, to go on
    assert keys(tick(instance, cursor)) == [f"{CONFIG}/0002"]


# --- what was decided for good -------------------------------------------------------------------


def test_a_lost_cursor_rewrites_nothing(
    instance: DagsterInstance, store: Store, land: Land
) -> None:
    cursor = None
    for generation in range(3):
        land(CONFIG, generation, last=2)
        cursor = tick(instance, cursor).cursor
        started(instance, generation + 1)
    before = [decided(store, generation) for generation in range(3)]
    assert [one["promoted"] for one in before] == [True, True, True]
    assert [one["end"] for one in before] == [None, None, "limit"]
    result = tick(instance)
    assert keys(result) == [] and result.asset_events == [] and result.cursor == cursor
    for generation in range(3):
        assert decided(store, generation) == before[generation]
        assert len(store.artefacts(CONFIG, generation, "decision")) == 1


def test_what_a_crash_left_undone_is_done_though_the_decision_stands(
    instance: DagsterInstance, store: Store, land: Land
) -> None:
    """Between the decision and the run, the champion's event and the cursor."""
    land(CONFIG, 0)
    crashing_tick(instance)
    result = tick(instance)
    assert keys(result) == [f"{CONFIG}/0001"] and len(result.asset_events) == 1
    assert last_reported(instance, CONFIG) == store.champion(CONFIG).digest  # type: ignore[union-attr]
    assert len(store.artefacts(CONFIG, 0, "decision")) == 1


@pytest.mark.parametrize("promote", [True, False])
def test_an_old_generation_evaluated_again_was_promoted_still(
    promote: bool, instance: DagsterInstance, store: Store, land: Land
) -> None:
    land(CONFIG, 0)
    land(CONFIG, 1)
    cursor = tick(instance).cursor
    started(instance, 1)
    land(CONFIG, 0, promote=promote)
    result = tick(instance, cursor)
    assert result.asset_events == []
    assert store.champion(CONFIG).generation == 1  # type: ignore[union-attr]
    assert decided(store, 0)["promoted"] is True and decided(store, 0)["end"] == "started"


def test_a_check_that_fails_later_does_not_unmake_a_champion(
    instance: DagsterInstance, store: Store, land: Land
) -> None:
    land(CONFIG, 0)
    cursor = tick(instance).cursor
    land(CONFIG, 0, passed=False)
    tick(instance, cursor)
    assert decided(store, 0)["promoted"] is True and decided(store, 0)["end"] == "checks"


def test_another_model_of_the_generation_was_not_promoted(
    instance: DagsterInstance, store: Store, land: Land
) -> None:
    land(CONFIG, 0)
    land(CONFIG, 1)
    cursor = tick(instance).cursor
    with store.create(CONFIG, 0, "ema_model") as draft:
        (draft / "model.safetensors").write_bytes(b"trained again")
    land(CONFIG, 0, promote=False)
    tick(instance, cursor)
    assert decided(store, 0)["promoted"] is False


@pytest.mark.parametrize("when", ["anew", "late"])
def test_a_generation_that_has_not_met_the_champion_is_not_promoted(
    when: str, instance: DagsterInstance, store: Store, land: Land
) -> None:
    """Made anew after a later one was promoted, or judged late: its gate asked nobody of that."""
    land(CONFIG, 0, passed=when == "anew")
    cursor = tick(instance).cursor
    land(CONFIG, 1)
    cursor = tick(instance, cursor).cursor
    assert store.champion(CONFIG).generation == 1  # type: ignore[union-attr]
    if when == "anew":
        with store.create(CONFIG, 0, "ema_model") as draft:
            (draft / "model.safetensors").write_bytes(b"trained again")
    land(CONFIG, 0, promote=True)
    tick(instance, cursor)
    assert store.champion(CONFIG).generation == 1  # type: ignore[union-attr]
    assert decided(store, 0)["promoted"] is False
    assert "generation 0001 is champion since, and was not met" in decided(store, 0)["reasons"]
