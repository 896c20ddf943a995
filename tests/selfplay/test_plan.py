from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ringrift_pipeline.selfplay import Plan, PlanError, load_plan, plan_generation
from ringrift_pipeline.selfplay.plan import open_model
from ringrift_pipeline.selfplay.windowing import window_games, window_of
from ringrift_pipeline.store import MissingArtefactError, Store, quarantined

from .conftest import CONFIG, NOW, save_champion, save_model_of, settings


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
        (draft / "model.json").write_text("{}")
    land_evaluation(store, 1)
    second = plan_generation(store, CONFIG, 2, settings(), NOW)
    assert second.champion == first.champion
    assert second.parent is not None and second.parent["generation"] == 1
    assert open_model(store, second.parent).digest == draft.artefact.digest
    with pytest.raises(PlanError, match="restore that folder"):
        open_model(store, {**second.parent, "digest": "0" * 64})


def test_a_damaged_model_is_followed_by_the_last_good_one(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    for generation in range(3):
        plan_generation(store, CONFIG, generation, settings(), NOW)
    save_champion(store)
    first, newest = save_model_of(store, 1), save_model_of(store, 2)
    land_evaluation(store, 1)
    (newest.path / "model.safetensors").write_bytes(b"rotten")
    plan = plan_generation(store, CONFIG, 3, settings(), NOW)  # at the first attempt
    assert plan.parent is not None and plan.parent["digest"] == first.digest
    assert plan.champion is not None and plan.champion["generation"] == 0
    assert f"{newest.path} is corrupt: 'model.safetensors' has 6 bytes" in caplog.text
    assert [(one.generation, one.kind) for one in quarantined(store, CONFIG)] == [(2, "ema_model")]


def test_a_damaged_champion_is_followed_by_the_one_before(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    for generation in range(2):
        plan_generation(store, CONFIG, generation, settings(), NOW)
    save_champion(store)
    newest = save_model_of(store, 1)
    store.promote(CONFIG, 1, newest, {})
    (newest.path / "model.safetensors").write_bytes(b"rotten")
    plan = plan_generation(store, CONFIG, 2, settings(), NOW)
    assert plan.champion is not None and plan.champion["generation"] == 0
    assert plan.parent == plan.champion
    assert "generation 0000 serves as champion" in caplog.text
    champion = store.champion(CONFIG)
    assert champion is not None and "generation 0001: " in (champion.stands_in_for or "")


def test_window_holds_the_newest_shards_until_there_are_games_enough(store: Store) -> None:
    sizes = {0: 2, 1: 2, 2: 1}  # games of a generation's shards
    landed: list[tuple[int, int]] = []
    for generation in range(6):
        changed = settings(training__window_games=7, training__window_growth=0.5)
        plan = plan_generation(store, CONFIG, generation, changed, NOW)
        room = window_games(5 * (generation + 1), changed) - 5
        expected: list[tuple[int, int]] = []
        for entry in reversed(landed):
            if sum(sizes[shard] for _, shard in expected) >= room:
                break
            expected.insert(0, entry)
        assert [(entry["generation"], entry["shard"]) for entry in plan.window] == expected
        assert generation == 0 or len(expected) > 0
        assert generation < 3 or len(expected) < len(landed)
        for shard in sizes:
            with store.create(CONFIG, generation, f"selfplay-shard-{shard:04d}") as draft:
                (draft / "shard.arrow").write_bytes(bytes([generation]))
            landed.append((generation, shard))


def test_making_room_on_the_disk_changes_no_window(tmp_path: Path) -> None:
    """Games that are deleted once no window holds them were played all the same."""
    from ringrift_pipeline.store.retention import delete, survey

    changed = settings(training__window_games=7, training__window_growth=0.5)
    whole, spare = Store(tmp_path / "whole"), Store(tmp_path / "spare")
    for generation in range(8):
        plans = [
            plan_generation(store, CONFIG, generation, changed, NOW) for store in (whole, spare)
        ]
        assert plans[0].window == plans[1].window
        for store in (whole, spare):
            for shard in plans[0].shards:
                with store.create(
                    CONFIG, generation, f"selfplay-shard-{shard['index']:04d}"
                ) as draft:
                    (draft / "shard.arrow").write_bytes(bytes([generation]))
            with store.create(CONFIG, generation, "selfplay_shards"):
                pass
        found = survey(spare, keep_generations=1)
        delete(spare, found, found.surplus(0))
    assert whole.current(CONFIG, 0, "selfplay-shard-0000") is not None
    assert spare.current(CONFIG, 0, "selfplay-shard-0000") is None


def test_the_window_keeps_all_games_then_grows_by_a_power(store: Store) -> None:
    def held(games: int, growth: float = 0.4, exponent: float = 0.75) -> int:
        return window_games(
            games,
            settings(
                training__window_games=1000,
                training__window_growth=growth,
                training__window_exponent=exponent,
            ),
        )

    assert [held(games) for games in (1, 999, 1000)] == [1, 999, 1000]
    assert held(16_000) == round(1000 * (1 + 0.4 * (8 - 1) / 0.75))  # 16 ** 0.75 = 8
    assert held(9_000, exponent=0.5) == round(1000 * (1 + 0.4 * (3 - 1) / 0.5))
    assert held(50_000, growth=0.0) == 1000  # off
    assert held(50_000, growth=1.0, exponent=1.0) == 50_000  # everything
    # a new game adds `growth` of one at first, ever less later
    first, later = held(2000) - held(1990), held(100_000) - held(99_990)
    assert held(1100) - held(1000) == pytest.approx(40, abs=1.5) and later < first <= 4


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
    with pytest.raises(PlanError, match="seed: Field required"):
        Plan.from_dict({k: v for k, v in raw.items() if k != "seed"})
    with pytest.raises(PlanError, match="format 99"):
        Plan.from_dict({**raw, "format": 99})
    with pytest.raises(PlanError, match="shard 0 is numbered 1"):
        Plan.from_dict({**raw, "shards": [{"index": 1, "games": 2, "seed": 3}]})
    with pytest.raises(PlanError, match=r"window: .*list"):
        Plan.from_dict({**raw, "window": {}})
    model = {"generation": 0, "digest": "0" * 64, "path": "../elsewhere"}
    with pytest.raises(PlanError, match=r"champion\.path: .*out of the data root"):
        Plan.from_dict({**raw, "champion": model})
    with pytest.raises(PlanError, match="created"):
        Plan.from_dict({**raw, "created": "2026-01-01T00:00:00"})  # of which zone?


def test_a_plan_notes_the_arithmetic_that_it_is_played_with(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ringrift_pipeline.network import devices
    from ringrift_pipeline.selfplay.playing import _search

    native = tmp_path / "cpuinfo"
    native.write_text("flags : avx512_bf16\n")
    monkeypatch.setattr(devices, "CPU_INFO", native)
    plan_generation(store, CONFIG, 0, settings(), NOW)
    save_champion(store)
    plan = plan_generation(store, CONFIG, 1, settings(), NOW)
    assert plan.precision == plan.raw["precision"] == "bfloat16"
    asked = plan_generation(store, CONFIG, 2, settings(search__precision="float32"), NOW)
    assert asked.precision == "float32"
    # It stands on a machine that would have chosen otherwise, which chooses for its own plans.
    native.unlink()
    there = load_plan(store, CONFIG, 1)
    assert there.champion is not None
    assert _search(store, there, there.champion).evaluator.precision == "bfloat16"
    assert plan_generation(store, CONFIG, 3, settings(), NOW).precision == "float32"
    # Plans of earlier versions say nothing: they were played in float32.
    old = {name: value for name, value in plan.raw.items() if name != "precision"}
    assert Plan.from_dict(old).precision == "float32"


@pytest.mark.parametrize(
    ("measured", "precision"), [(2e-5, "bfloat16"), (2e-3, "float32"), (None, "float32")]
)
def test_models_that_lose_by_bfloat16_play_in_float32(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    measured: float | None,
    precision: str,
) -> None:
    from ringrift_pipeline.network import DIVERGENCE, devices

    native = tmp_path / "cpuinfo"
    native.write_text("flags : avx512_bf16\n")
    monkeypatch.setattr(devices, "CPU_INFO", native)
    plan_generation(store, CONFIG, 0, settings(), NOW)
    with store.create(CONFIG, 0, "ema_model", {DIVERGENCE: measured}) as draft:
        (draft / "model.safetensors").write_bytes(b"weights")
    store.promote(CONFIG, 0, draft.artefact, {})
    assert plan_generation(store, CONFIG, 1, settings(), NOW).precision == precision
    asked = settings(search__precision="bfloat16")
    assert plan_generation(store, CONFIG, 2, asked, NOW).precision == "bfloat16"


def land_evaluation(store: Store, generation: int, **changes: object) -> None:
    """The report of a candidate that won a third to two thirds against generation 0."""
    model = store.require(CONFIG, generation, "ema_model")
    share = {"win_rate": 0.5, "low": 0.34, "high": 0.66, "even": 0.5} | changes
    report = {
        "candidate": {"digest": changes.get("digest", model.digest)},
        "champion": {"name": "generation:0000"},
        "gate": {"promote": False, "floors": [{"baseline": "random", "required": True}]},
        "matches": [{"opponent": changes.get("opponent", "generation:0000"), **share}],
    }
    with store.create(CONFIG, generation, "evaluation") as draft:
        (draft / "report.json").write_text(json.dumps(report))


@pytest.mark.parametrize(
    ("changes", "parent"),
    [
        ({}, 1),  # not proven better: its weights are trained on
        ({"low": 0.1, "high": 0.49}, 0),  # worse beyond doubt
        ({"low": 0.1, "high": 0.49, "opponent": "random"}, 0),  # of a baseline it had to hold
        ({"low": 0.1, "high": 0.49, "opponent": "heuristic"}, 1),  # of one it had not
        ({"digest": "0" * 64}, 0),  # another model's evaluation
        (None, 0),  # kept from being evaluated by a check that blocks
    ],
)
def test_weights_that_are_worse_are_not_handed_on(
    store: Store, changes: dict[str, object] | None, parent: int
) -> None:
    for generation in (0, 1):
        plan_generation(store, CONFIG, generation, settings(), NOW)
        with store.create(CONFIG, generation, "ema_model") as draft:
            (draft / "model.safetensors").write_bytes(bytes([generation]))
        if generation == 0:
            store.promote(CONFIG, 0, draft.artefact, {})
    if changes is not None:
        land_evaluation(store, 1, **changes)
    plan = plan_generation(store, CONFIG, 2, settings(), NOW)
    assert plan.parent is not None and plan.parent["generation"] == parent
    assert plan.champion is not None and plan.champion["generation"] == 0


def test_games_played_before_are_noted_and_need_not_be_counted_again(tmp_path: Path) -> None:
    changed = settings(training__window_games=7, training__window_growth=0.5)
    noted, counted = Store(tmp_path / "noted"), Store(tmp_path / "counted")
    for generation in range(7):
        plan = plan_generation(noted, CONFIG, generation, changed, NOW)
        assert plan.played == 5 * generation
        old = {name: value for name, value in plan.raw.items() if name != "played"}
        again = Plan.from_dict(counted.write_plan(CONFIG, generation, old))
        assert again.played is None
        for store in (noted, counted):
            for shard in plan.shards:
                kind = f"selfplay-shard-{shard['index']:04d}"
                with store.create(CONFIG, generation, kind, {"games": shard["games"]}) as draft:
                    (draft / "shard.arrow").write_bytes(bytes([generation]))
        # a history without such notes is counted, to the same end
        found = [window_of(store, CONFIG, generation + 1, 5, changed) for store in (noted, counted)]
        assert found[0] == found[1] and found[0][1] == 5 * (generation + 1)


@pytest.mark.parametrize("noted", [True, False])
def test_games_are_held_out_by_the_smallest_share_since_they_were_played(
    store: Store, noted: bool
) -> None:
    shares = [0.1, 0.3, 0.3, 0.2, 0.5, 0.05, 0.4, 0.4, 0.6]
    for generation, share in enumerate(shares):
        changed = settings(training__holdout_fraction=share)
        plan = plan_generation(store, CONFIG, generation, changed, NOW)
        for played in range(generation + 1):
            assert plan.holdout_fraction(played) == min(shares[played : generation + 1])
        assert load_plan(store, CONFIG, generation).holdout == plan.holdout
        if not noted:  # as plans of earlier versions
            path = store.root / CONFIG / "generations" / f"{generation:04d}" / "plan.json"
            path.unlink()
            old = {name: value for name, value in plan.raw.items() if name != "holdout"}
            before = Plan.from_dict(store.write_plan(CONFIG, generation, old))
            assert before.holdout is None and before.holdout_fraction(0) == share
    assert [one["generation"] for one in plan.raw["holdout"]] == [0, 6]


def test_what_was_held_out_is_known_after_the_plans_have_gone(store: Store) -> None:
    for generation, share in enumerate([0.1, 0.2, 0.2]):
        changed = settings(training__holdout_fraction=share)
        plan_generation(store, CONFIG, generation, changed, NOW)
    for gone in (0, 1):
        (store.root / CONFIG / "generations" / f"{gone:04d}" / "plan.json").unlink()
    plan = plan_generation(store, CONFIG, 3, settings(training__holdout_fraction=0.4), NOW)
    assert [plan.holdout_fraction(played) for played in range(4)] == [0.1, 0.2, 0.2, 0.4]
    wrong = {**plan.raw, "holdout": [{"generation": 0, "fraction": 1.5}]}
    with pytest.raises(PlanError, match=r"holdout\.0\.fraction"):
        Plan.from_dict(wrong)


def test_a_plan_reads_no_more_plans_than_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for generation in range(6):
        plan = plan_generation(store, CONFIG, generation, settings(), NOW)
        for shard in plan.shards:
            kind = f"selfplay-shard-{shard['index']:04d}"
            with store.create(CONFIG, generation, kind, {"games": shard["games"]}):
                pass
    read: list[int] = []
    whole = Store.read_plan

    def reading(self: Store, config: str, generation: int) -> dict[str, Any]:
        read.append(generation)
        return whole(self, config, generation)

    monkeypatch.setattr(Store, "read_plan", reading)
    assert len(window_of(store, CONFIG, 6, 5, settings())[0]) == 6 * 3
    assert read == [5]
