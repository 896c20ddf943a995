from __future__ import annotations

import json

import pytest

from ringrift_pipeline.selfplay import Plan, PlanError, load_plan, plan_generation
from ringrift_pipeline.selfplay.plan import open_model
from ringrift_pipeline.store import MissingArtefactError, Store

from .conftest import CONFIG, NOW, save_champion, settings


def test_first_plan_fixes_games_seeds_and_time(store: Store) -> None:
    plan = plan_generation(store, CONFIG, 0, settings(), NOW)
    assert [shard["games"] for shard in plan.shards] == [2, 2, 1]
    assert plan.games == 5
    assert len({shard["seed"] for shard in plan.shards} | {plan.seed}) == 4
    assert plan.champion is None and plan.parent is None and plan.window == ()
    assert plan.created_at == NOW
    assert plan.settings == settings()
    assert load_plan(store, CONFIG, 0) == plan
    assert all(shard["seed"] < 2**53 for shard in plan.shards)  # exact in any JSON reader


def test_a_plan_that_is_there_stands(store: Store) -> None:
    first = plan_generation(store, CONFIG, 0, settings(), NOW)
    again = plan_generation(store, CONFIG, 0, settings(seed=8, selfplay__games=9))
    assert again == first and again.digest == first.digest


def test_seeds_differ_by_generation_config_and_run(store: Store) -> None:
    seeds = {
        plan_generation(store, config, generation, settings(), NOW).seed
        for config in (CONFIG, "square8_3p", "hex8_2p")
        for generation in (0, 1, 2)
    }
    other = Store(store.root / "other")
    seeds.add(plan_generation(other, CONFIG, 0, settings(seed=8), NOW).seed)
    assert len(seeds) == 10
    same = Store(store.root / "same")
    assert plan_generation(same, CONFIG, 0, settings(), NOW).raw == load_plan(store, CONFIG, 0).raw


def test_step_seeds_are_stable_and_distinct(store: Store) -> None:
    plan = plan_generation(store, CONFIG, 0, settings(), NOW)
    assert plan.seed_for("training") == plan.seed_for("training")
    assert plan.seed_for("training") != plan.seed_for("calibration")


def test_champion_plays_and_newest_model_is_the_parent(store: Store) -> None:
    plan_generation(store, CONFIG, 0, settings(), NOW)
    save_champion(store, generation=0)
    first = plan_generation(store, CONFIG, 1, settings(), NOW)
    assert first.champion is not None and first.champion["generation"] == 0
    assert first.parent == first.champion
    # An EMA model of generation 1 that was not promoted: it trains on, the champion plays on.
    with store.create(CONFIG, 1, "ema_model") as draft:
        (draft.path / "model.json").write_text("{}")
    second = plan_generation(store, CONFIG, 2, settings(), NOW)
    assert second.champion == first.champion
    assert second.parent is not None and second.parent["generation"] == 1
    assert open_model(store, second.parent).digest == draft.artefact.digest
    with pytest.raises(PlanError, match="restore that folder"):
        open_model(store, {**second.parent, "digest": "0" * 64})


def test_window_holds_the_shards_of_the_last_generations(store: Store) -> None:
    for generation in range(4):
        plan = plan_generation(
            store, CONFIG, generation, settings(training__window_generations=3), NOW
        )
        with store.create(CONFIG, generation, "selfplay-shard-0001") as draft:
            (draft.path / "shard.arrow").write_bytes(bytes([generation]))
        expected = [g for g in range(4) if generation - 3 < g < generation]
        assert [(entry["generation"], entry["shard"]) for entry in plan.window] == [
            (g, 1) for g in expected
        ]


def test_bad_requests_are_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="square8_2p"):
        plan_generation(store, "square9_2p", 0, settings())
    with pytest.raises(PlanError, match="count from 0"):
        plan_generation(store, CONFIG, -1, settings())
    with pytest.raises(MissingArtefactError):
        load_plan(store, CONFIG, 0)
    plan = plan_generation(store, CONFIG, 0, settings(), NOW)
    with pytest.raises(PlanError, match="shards 0 to 2, not 3"):
        plan.shard(3)


def test_damaged_plans_are_refused(store: Store) -> None:
    raw = json.loads(json.dumps(plan_generation(store, CONFIG, 0, settings(), NOW).raw))
    with pytest.raises(PlanError, match="lacks seed"):
        Plan.from_dict({k: v for k, v in raw.items() if k != "seed"})
    with pytest.raises(PlanError, match="format 99"):
        Plan.from_dict({**raw, "format": 99})
    with pytest.raises(PlanError, match="is no shard"):
        Plan.from_dict({**raw, "shards": [{"index": 1, "games": 2, "seed": 3}]})
