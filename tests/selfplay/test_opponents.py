"""Games of the champion against earlier models: planned, played, recorded, told apart."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringrift_pipeline.game import get_rules, layout
from ringrift_pipeline.search import GumbelSearch
from ringrift_pipeline.selfplay import (
    Plan,
    PlanError,
    collect,
    plan_generation,
    play_shard,
    play_shards,
    read_metadata,
    read_shard,
    shard_kind,
)
from ringrift_pipeline.selfplay.collecting import _champions_shares
from ringrift_pipeline.selfplay.opponents import ensemble_members, results_of
from ringrift_pipeline.selfplay.play import Opponent, play_search_games
from ringrift_pipeline.selfplay.shards import column
from ringrift_pipeline.selfplay.stopping import Reporter
from ringrift_pipeline.store import Artefact, CorruptArtefactError, Store

from .conftest import (
    CONFIG,
    NOW,
    prepared,
    save_champion,
    save_ensemble,
    save_model_of,
    settings,
    three_models,
)
from .test_shards import replay


def save_evaluation(
    store: Store, generation: int, model: Artefact, other: Artefact, share: float, games: int
) -> None:
    """Land an evaluation in which ``model`` took ``share`` of the win against ``other``."""
    inputs = [[m.generation, m.kind, m.digest] for m in (model, other)]
    report = {
        "candidate": {"digest": model.digest},
        "matches": [
            {"opponent": "random", "win_rate": 1.0, "games": 500},
            {
                "opponent": f"generation:{other.generation:04d}",
                "win_rate": share,
                "games": games,
            },
        ],
    }
    with store.create(
        CONFIG, generation, "evaluation", metadata={"inputs": {"artefacts": inputs}}
    ) as draft:
        (draft / "report.json").write_text(json.dumps(report))


def opponents(plan: Plan) -> list[dict[str, Any]]:
    return [shard["opponent"] for shard in plan.shards if "opponent" in shard]


# -- the plan -------------------------------------------------------------------------------


def test_the_plan_spreads_the_games_and_rotates_the_seat(store: Store) -> None:
    champion, first, second = three_models(store)
    last = save_model_of(store, 2, "checkpoint")
    ensemble = save_ensemble(store, 2, (second, 1.0), (first, 1.0), (champion, 1.0), (last, 9.0))
    chosen = settings(
        selfplay__games=203, selfplay__games_per_shard=10, selfplay__opponent_fraction=0.27
    )
    plan = plan_generation(store, CONFIG, 3, chosen, NOW)
    assert plan.ensemble is not None and plan.ensemble["digest"] == ensemble.digest
    met = opponents(plan)
    # Neither the champion itself nor the last weights, which are of no earlier turn.
    assert {entry["name"] for entry in met} == {"ema-0001", "ema-0002"}
    for entry in met:
        model = {1: first, 2: second}[entry["generation"]]
        assert entry["digest"] == model.digest
        assert store.open(store.root / entry["path"]).digest == model.digest
    games = [shard.get("opponent", {}).get("games", 0) for shard in plan.shards]
    assert sum(games) == round(0.27 * 203)
    assert all(abs(count - 2.7) < 1 for count in games[:-1])  # evenly spread
    for before, after in pairwise(met):
        assert after["first_seat"] == (before["first_seat"] + before["games"]) % 2
    # The same plan elsewhere, another with another seed.
    other = Store(store.root.parent / "other")
    champion, first, second = three_models(other)
    last = save_model_of(other, 2, "checkpoint")
    save_ensemble(other, 2, (second, 1.0), (first, 1.0), (champion, 1.0), (last, 9.0))
    again = plan_generation(other, CONFIG, 3, chosen, NOW)
    assert [e["name"] for e in opponents(again)] == [e["name"] for e in met]
    third = plan_generation(other, CONFIG, 4, chosen, NOW)
    assert [e["name"] for e in opponents(third)] != [e["name"] for e in met]


def test_without_an_earlier_model_there_is_no_opponent(store: Store) -> None:
    all_of_them = settings(selfplay__opponent_fraction=1.0)
    zero = plan_generation(store, CONFIG, 0, all_of_them, NOW)
    assert zero.ensemble is None and not opponents(zero)
    save_champion(store)
    champion = store.require(CONFIG, 0, "ema_model")
    one = plan_generation(store, CONFIG, 1, all_of_them, NOW)  # no ensemble
    assert not opponents(one)
    last = save_model_of(store, 0, "checkpoint")
    save_ensemble(store, 0, (champion, 1.0), (last, 1.0))
    two = plan_generation(store, CONFIG, 2, all_of_them, NOW)
    assert two.ensemble is not None and not opponents(two)
    earlier = save_model_of(store, 1)
    ensemble = save_ensemble(store, 1, (earlier, 1.0), (champion, 1.0))
    none = settings(selfplay__opponent_fraction=0.0)
    assert not opponents(plan_generation(store, CONFIG, 3, none, NOW))
    four = plan_generation(store, CONFIG, 4, all_of_them, NOW)
    assert sum(entry["games"] for entry in opponents(four)) == four.games
    # A member that no longer verifies, or has no weight, is none.
    assert [member.name for member in ensemble_members(store, ensemble)] == [
        "ema-0001",
        "ema-0000",
    ]
    idle = save_ensemble(store, 1, (earlier, 0.0), (champion, 1.0))
    assert [member.name for member in ensemble_members(store, idle)] == ["ema-0000"]
    weights = earlier.path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert [member.name for member in ensemble_members(store, ensemble)] == ["ema-0000"]
    assert not opponents(plan_generation(store, CONFIG, 5, all_of_them, NOW))


def test_an_ensemble_that_does_not_verify_is_passed_over(store: Store) -> None:
    champion, first, second = three_models(store)
    good = save_ensemble(store, 1, (first, 1.0), (champion, 1.0))
    bad = save_ensemble(store, 2, (second, 1.0), (champion, 1.0))
    (bad.path / "members.json").write_text("[]")
    plan = plan_generation(store, CONFIG, 3, settings(selfplay__opponent_fraction=1.0), NOW)
    assert plan.ensemble is not None and plan.ensemble["digest"] == good.digest
    assert {entry["name"] for entry in opponents(plan)} == {"ema-0001"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"path": None}, "'path' cannot be a NoneType"),
        ({"path": "/etc"}, "leads elsewhere"),
        ({"path": "../elsewhere"}, "leads elsewhere"),
        ({"weight": "1"}, "'weight' cannot be a str"),
        ({"weight": float("nan")}, "weight nan"),
        ({"weight": 10**400}, "too large"),
        (None, "'name' is missing"),
    ],
)
def test_members_that_are_none_are_refused(
    store: Store, change: dict[str, object] | None, why: str
) -> None:
    champion, first, _ = three_models(store)
    good = save_ensemble(store, 1, (first, 1.0), (champion, 1.0))
    entries = good.read_json("members.json")
    entries[1] = {} if change is None else entries[1] | change
    with store.create(CONFIG, 1, "ensemble") as draft:
        (draft / "members.json").write_text(json.dumps(entries))
    with pytest.raises(CorruptArtefactError, match=f"members.json is corrupt.*{why}"):
        ensemble_members(store, draft.artefact)


def drawn(store: Store, generation: int) -> dict[str, float]:
    """How often each member is drawn, over 600 shards of one game."""
    plan = plan_generation(
        store,
        CONFIG,
        generation,
        settings(selfplay__games=600, selfplay__games_per_shard=1, selfplay__opponent_fraction=1.0),
        NOW,
    )
    counts = Counter(entry["name"] for entry in opponents(plan))
    return {name: count / 600 for name, count in counts.items()}


def test_opponents_come_by_weight_until_results_are_known(store: Store) -> None:
    champion, first, second = three_models(store)
    save_ensemble(store, 2, (second, 1.0), (first, 3.0), (champion, 5.0))
    error = 4 * np.sqrt(0.25 / 600)
    assert drawn(store, 3)["ema-0001"] == pytest.approx(0.75, abs=error)
    # The champion took 90 of 100 points from generation 1 and 20 of 100 from generation 2.
    save_evaluation(store, 0, champion, first, 0.9, 100)
    save_evaluation(store, 2, second, champion, 0.8, 100)
    x = np.array([90.5, 20.5]) / 101
    hard = (1 - x) ** 2
    assert drawn(store, 4)["ema-0002"] == pytest.approx(hard[1] / hard.sum(), abs=error)
    assert hard[1] / hard.sum() > 0.95


def test_results_against_a_model_are_added_up_over_evaluations(store: Store) -> None:
    champion, first, second = three_models(store)
    assert results_of(store, CONFIG, range(3), champion.digest, 2) == {}
    save_evaluation(store, 1, first, champion, 0.25, 40)
    save_evaluation(store, 0, champion, first, 0.5, 10)
    save_evaluation(store, 2, second, first, 0.5, 10)  # without the champion
    expected = {first.digest: (0.75 * 40 + 0.5 * 10, 50.0)}
    assert results_of(store, CONFIG, range(3), champion.digest, 2) == {
        first.digest: pytest.approx(expected[first.digest])
    }
    assert results_of(store, CONFIG, [0], champion.digest, 2)[first.digest][1] == 10.0
    # Three at the table: one seat in three is even, and half the points between two.
    save_evaluation(store, 1, first, champion, 1 / 3, 40)
    save_evaluation(store, 0, champion, first, 0.6, 10)
    # strengths 3 : 1 give 3 / (3 + 1 + 1) = 0.6 of the win against two of them
    points, games = results_of(store, CONFIG, range(3), champion.digest, 3)[first.digest]
    assert (points, games) == (pytest.approx(0.5 * 40 + 0.75 * 10), 50.0)


def test_a_plan_with_impossible_opponents_is_refused(store: Store) -> None:
    raw = prepared(store).raw
    for games in (0, raw["shards"][0]["games"] + 1):
        shard = {**raw["shards"][0], "opponent": {**raw["shards"][0]["opponent"], "games": games}}
        with pytest.raises(PlanError, match=r"shards\.0"):
            Plan.from_dict({**raw, "shards": [shard, *raw["shards"][1:]]})


# -- the games ------------------------------------------------------------------------------


class Constant:
    """An evaluator that always wants the first legal move, or always the last."""

    def __init__(self, players: int, last: bool) -> None:
        self.players = players
        self.last = last

    def evaluate(
        self, states: np.ndarray, moves: np.ndarray, counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        logits = np.zeros(moves.shape, np.float32)
        logits[np.arange(len(counts)), counts - 1 if self.last else 0] = 60.0
        return logits, np.full((len(states), self.players), 1 / self.players, np.float32)


@pytest.mark.parametrize("config", ["square8_2p", "square8_3p", "hex8_4p"])
def test_each_seat_is_moved_by_the_model_that_holds_it(config: str) -> None:
    rules = get_rules(config)
    players, met = rules.players, 2 * rules.players + 1
    chosen = settings(
        selfplay__temperature_plies=0,
        selfplay__max_plies=40,
        selfplay__parallel_games=4,
        selfplay__full_search_fraction=1.0,
    )
    champion, other = (
        GumbelSearch(rules, Constant(players, last), chosen.search) for last in (False, True)
    )
    opponent = Opponent(other, games=met, first_seat=1)
    decisions, games = play_search_games(config, met + 2, 5, chosen, champion, Reporter(), opponent)
    assert len(games.plies) == met + 2
    seats = decisions.state[:, layout.PLAYER]
    first = decisions.selected == decisions.moves[decisions.offsets[:-1]]
    last = decisions.selected == decisions.moves[decisions.offsets[1:] - 1]
    assert (first ^ last).all()
    assert np.array_equal(last, decisions.opponent)
    assert np.array_equal(decisions.full_search, ~decisions.opponent)  # all others were full
    ours: list[int] = []
    for game in range(met + 2):
        mine = decisions.game == game
        if game >= met:  # the champion alone
            assert not decisions.opponent[mine].any()
            continue
        assert set(seats[mine & first]) | set(seats[mine & last]) == set(range(players))
        (seat,) = set(seats[mine & ~decisions.opponent])
        ours.append(int(seat))
    assert ours == [(1 + game) % players for game in range(met)]


def everything(store: Store, plan: Plan) -> list[bytes]:
    return [
        store.require(CONFIG, plan.generation, shard_kind(index)).file("shard.arrow").read_bytes()
        for index in range(len(plan.shards))
    ]


def test_shards_name_both_models_and_tell_their_moves_apart(met: tuple[Store, Plan]) -> None:
    store, plan = met
    assert plan.champion is not None
    assert [shard.get("opponent", {}).get("games") for shard in plan.shards] == [1, 1, None]
    for index, shard in enumerate(plan.shards[:2]):
        artefact = store.require(CONFIG, 3, shard_kind(index))
        about = read_metadata(artefact.file("shard.arrow"))
        planned = shard["opponent"]
        assert about["format"] == 3 and about["model"] == plan.champion["digest"]
        assert (
            about["opponent"]
            == artefact.metadata["opponent"]
            == {
                "model": planned["digest"],
                "model_generation": 2,
                "games": planned["games"],
                "first_seat": planned["first_seat"],
            }
        )
        table = read_shard(artefact.file("shard.arrow"))
        replay(table)  # what was recorded is what was played
        game, seat = column(table, "game"), column(table, "player")
        expected = (game < planned["games"]) & (seat != (planned["first_seat"] + game) % 2)
        assert np.array_equal(column(table, "opponent"), expected) and expected.any()
        assert not column(table, "full_search")[expected].any()
        assert column(table, "full_search")[~expected].any()
    alone = store.require(CONFIG, 3, shard_kind(2))
    about = read_metadata(alone.file("shard.arrow"))
    assert about["format"] == 3 and "opponent" not in about
    assert not column(read_shard(alone.file("shard.arrow")), "opponent").any()


def test_the_summary_says_how_the_champion_did(met: tuple[Store, Plan]) -> None:
    store, plan = met
    artefact = collect(store, plan)
    shares = []
    for index, shard in enumerate(plan.shards[:2]):
        rows = read_shard(store.require(CONFIG, 3, shard_kind(index)).file("shard.arrow"))
        outcome = {row["game"]: row["outcome"] for row in rows.to_pylist()}
        opponent = shard["opponent"]
        shares += [
            outcome[game][(opponent["first_seat"] + game) % 2] for game in range(opponent["games"])
        ]
    summary = artefact.read_json("summary.json")
    tables = [
        read_shard(store.require(CONFIG, 3, shard_kind(index)).file("shard.arrow"))
        for index in range(len(plan.shards))
    ]
    own, full, surprise = (
        np.concatenate([column(table, name) for table in tables])
        for name in ("opponent", "full_search", "surprise")
    )
    own = ~own
    assert summary["full_search_fraction"] == pytest.approx(full[own].mean())
    assert summary["mean_surprise"] == pytest.approx(surprise[own & full].mean(), rel=1e-5)
    assert summary["mean_surprise"] != pytest.approx(surprise.mean(), rel=1e-2)
    assert summary["opponents"] == ["generation:0002"]
    assert summary["opponent_games"] == len(shares) == 2
    assert summary["win_rate_opponent"] == pytest.approx(np.mean(shares))
    assert artefact.metadata["selfplay/win_rate_opponent"] == summary["win_rate_opponent"]


def test_the_champions_share_is_that_of_its_seat() -> None:
    rng = np.random.default_rng(0)
    outcome = rng.dirichlet(np.ones(3), size=6)
    numbers = np.arange(6)[::-1]  # games in any order
    shares = _champions_shares({"games": 4, "first_seat": 2}, numbers, outcome)
    # games 3, 2, 1, 0 lie in rows 2 to 5; the champion sits on seats 2 + game
    expected = [outcome[2, 2], outcome[3, 1], outcome[4, 0], outcome[5, 2]]
    assert shares.tolist() == expected


def test_without_opponents_the_bytes_are_those_of_a_plan_that_knows_none(
    searched: tuple[Store, Plan], store: Store
) -> None:
    """An ensemble that nobody is drawn from changes no byte; nor does a plan of before."""
    alone, reference = searched
    plan_generation(store, CONFIG, 0, settings(), NOW)
    save_champion(store)
    champion = store.require(CONFIG, 0, "ema_model")
    save_ensemble(store, 0, (save_model_of(store, 0, "ema_model"), 1.0), (champion, 1.0))
    plan = plan_generation(store, CONFIG, 1, settings(selfplay__opponent_fraction=0.0), NOW)
    assert plan.ensemble is not None
    play_shards(store, plan, workers=1)
    assert everything(store, plan) == everything(alone, reference)
    assert (
        read_metadata(store.require(CONFIG, 1, shard_kind(0)).file("shard.arrow"))
        .keys()
        .isdisjoint({"opponent"})
    )
    old = Plan.from_dict({k: v for k, v in plan.raw.items() if k != "ensemble"})
    assert (
        play_shard(store, old, 0).file("shard.arrow").read_bytes()
        == (everything(alone, reference)[0])
    )


def test_an_opponent_that_is_not_the_one_planned_is_refused(store: Store, tmp_path: Path) -> None:
    plan = prepared(store)
    shard = plan.shards[0]
    other = {**shard, "opponent": {**shard["opponent"], "digest": "0" * 64}}
    wrong = replace(plan, raw={**plan.raw, "x": 1}, shards=(other, *plan.shards[1:]))
    with pytest.raises(PlanError, match="restore that folder"):
        play_shard(store, wrong, 0)
