"""What is analysed together, in which order, and what can be taken back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringrift_pipeline.analysis import Roster, analysts
from ringrift_pipeline.analysis.analysts import capacity, slots_for
from ringrift_pipeline.analysis.limits import KEPT_GROUPS, MAX_VISITS, SLOTS, TREE_BYTES
from ringrift_pipeline.analysis.positions import Positions
from ringrift_pipeline.game import CONFIGS, State, get_rules, new_game
from ringrift_pipeline.network import NetworkConfig, RingRiftNetwork, save_model
from ringrift_pipeline.search import NetworkPlayer, RolloutEvaluator, UniformEvaluator

from .conftest import CONFIG, EXACT, Bench, Desk, forced, game


def by_turn(told: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {answer["turnNumber"]: answer for answer in told}


def test_batched_answers_are_those_asked_singly_to_the_last_bit() -> None:
    """With an evaluator whose rows do not depend on each other; whatever shares the batch."""
    player = NetworkPlayer(CONFIG, RolloutEvaluator(get_rules(CONFIG), 1), value_temperature=1.7)
    moves, _ = game(seed=9)
    single, together = Desk(Bench(it=player)), Desk(Bench(it=player))
    alone = [
        single.ask(moves=moves[:turn], maxVisits=10 + turn % 40)[0] for turn in range(len(moves))
    ]
    for turn in range(len(moves)):
        together.send({"id": "q", "moves": moves[:turn], "maxVisits": 10 + turn % 40})
    assert len(together.engine._groups) == 1  # all of them share the same trees
    told = by_turn(together.finish())
    assert [told[turn] for turn in range(len(moves))] == alone


@pytest.mark.parametrize("config", ["square8_2p", "hex8_3p"])
def test_batched_answers_are_those_asked_singly_to_rounding(config: str, desk: Desk) -> None:
    """With the network, whose sums round differently in batches of different sizes."""
    moves, states = game(config, 3)
    turns = [turn for turn in range(len(moves)) if not forced(states[turn])][::3]
    told = by_turn(desk.ask(config=config, moves=moves, analyzeTurns=turns, maxVisits=48))
    desk.send({"id": "c", "action": "clear_cache"})
    worst, turned = 0.0, 0
    for turn in turns:
        answers = desk.ask(config=config, moves=moves[:turn], maxVisits=48)
        alone, shared = answers[-1], told[turn]
        assert alone["rootInfo"]["visits"] == shared["rootInfo"]["visits"]
        ours, theirs = (
            {json.dumps(info["move"]): info for info in answer["moveInfos"]}
            for answer in (alone, shared)
        )
        if any(info["visits"] != theirs.get(m, {}).get("visits") for m, info in ours.items()):
            turned += 1  # rounding has decided between two equals
            continue
        for move, info in ours.items():
            for name in ("winrate", "prior", "policy"):
                worst = max(worst, abs(info[name] - theirs[move][name]))
        pairs = zip(alone["rootInfo"]["winrates"], shared["rootInfo"]["winrates"], strict=True)
        worst = max(worst, *(abs(a - b) for a, b in pairs))
    assert turned <= 1 and len(turns) > 10
    assert worst <= 1e-5
    desk.heard()


def test_many_queries_share_batches() -> None:
    class Counting(UniformEvaluator):
        sizes: list[int] = []

        def evaluate(self, states, moves, counts):  # type: ignore[no-untyped-def]
            self.sizes.append(len(states))
            return super().evaluate(states, moves, counts)

    evaluator = Counting(get_rules(CONFIG))
    desk = Desk(Bench(it=NetworkPlayer(CONFIG, evaluator)), visits=32)
    moves, states = game(seed=2)
    turns = [turn for turn in range(len(moves)) if not forced(states[turn])][:20]
    for turn in turns:
        desk.send({"id": str(turn), "moves": moves[:turn]})
    assert len(desk.finish()) == 20
    positions, batches = sum(evaluator.sizes), len(evaluator.sizes)
    assert positions <= 20 * 33
    evaluator.sizes.clear()
    desk.ask(moves=moves[: turns[5]])
    assert len(evaluator.sizes) * 4 > batches  # one query alone needs a fourth of all twenty's


def test_higher_priority_first_and_equal_ones_as_they_came(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(analysts, "SLOTS", 1)
    moves, states = game(seed=2)
    turns = [turn for turn in range(len(moves)) if not forced(states[turn])]
    player = NetworkPlayer(CONFIG, UniformEvaluator(get_rules(CONFIG)))
    desk = Desk(Bench(it=player), visits=16)
    for n, turn in enumerate(turns[:12]):
        desk.send({"id": f"low{n}", "moves": moves[:turn]})
    desk.engine.step()
    desk.send({"id": "high0", "moves": moves[: turns[5]], "priority": 3})
    desk.send({"id": "higher", "moves": moves[: turns[6]], "priority": 7})
    desk.send({"id": "high1", "moves": moves[: turns[7]], "priority": 3})
    desk.send({"id": "lowest", "moves": moves[: turns[8]], "priority": -1})
    order = [answer["id"] for answer in desk.finish()]
    rest = [f"low{n}" for n in range(1, 12)]
    assert order == ["low0", "higher", "high0", "high1", *rest, "lowest"]  # low0 was under way


def test_priority_reaches_over_players_and_configs(plain: Desk) -> None:
    for n in range(3):
        plain.send({"id": f"slow{n}", "config": "square19_2p", "player": "rollout"})
    plain.engine.step()
    plain.send({"id": "quick", "config": "hex8_2p", "player": "random", "priority": 1})
    told = [answer["id"] for answer in plain.finish()]
    assert told == ["slow0", "quick", "slow1", "slow2"]


def test_terminate_gives_up_what_waits_and_what_is_under_way(desk: Desk) -> None:
    moves, states = game(seed=2)
    turns = [turn for turn in range(len(moves)) if not forced(states[turn])][:8]
    desk.send({"id": "a", "moves": moves, "analyzeTurns": turns, "maxVisits": 500})
    desk.send({"id": "b", "moves": moves[: turns[0]], "maxVisits": 500})
    desk.engine.step()
    assert desk.heard() == [] and desk.engine.waiting == 9
    desk.send({"id": "t", "action": "terminate", "terminateId": "a", "turnNumbers": turns[:2]})
    none = {"id": "a", "isDuringSearch": False, "noResults": True}
    echo = {"id": "t", "action": "terminate", "terminateId": "a", "turnNumbers": turns[:2]}
    assert desk.heard() == [echo, *({**none, "turnNumber": turn} for turn in turns[:2])]
    desk.send({"id": "t", "action": "terminate", "terminateId": "a"})
    assert [told.get("turnNumber") for told in desk.heard()] == [None, *turns[2:]]
    desk.send({"id": "t", "action": "terminate", "terminateId": "a"})  # there is nothing more
    assert len(desk.heard()) == 1 and desk.engine.waiting == 1
    (told,) = desk.finish()
    assert told["id"] == "b" and told["rootInfo"]["visits"] == 501
    desk.send({"id": "c", "maxVisits": 500}, {"id": "d", "player": "random"})
    desk.send({"id": "t", "action": "terminate_all"})
    assert [told["id"] for told in desk.heard()] == ["t", "c", "d"]
    assert desk.engine.waiting == 0 and desk.finish() == []
    assert desk.ask(maxVisits=20)[0]["rootInfo"]["visits"] == 21  # its slots are free again


def test_places_of_terminated_searches_are_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analysts, "SLOTS", 2)
    player = NetworkPlayer(CONFIG, RolloutEvaluator(get_rules(CONFIG), 1))
    desk = Desk(Bench(it=player), visits=40)
    (expected,) = desk.ask()
    for _ in range(5):
        for name in "abcd":
            desk.send({"id": name})
        desk.engine.step()
        desk.engine.step()
        desk.send({"id": "t", "action": "terminate", "terminateId": "a"})
        told = {one["id"]: one for one in desk.finish()}
        assert told["a"]["noResults"]
        assert all(told[name]["moveInfos"] == expected["moveInfos"] for name in "bcd")


def test_clear_cache_forgets_and_sees_a_new_champion(tmp_path: Path, champions: Path) -> None:
    import shutil

    from ringrift_pipeline.network import NetworkConfig, RingRiftNetwork, save_model
    from ringrift_pipeline.store import Store

    root = tmp_path / "data"
    shutil.copytree(champions / CONFIG, root / CONFIG)
    desk = Desk(Roster("champion", data=root, device="cpu"))
    (before,) = desk.ask()
    store = Store(root)
    store.write_plan(CONFIG, 1, {"settings": {}})
    with store.create(CONFIG, 1, "ema_model") as draft:
        save_model(draft, RingRiftNetwork(NetworkConfig(1, 8, 4), seed=9), {})
    store.promote(CONFIG, 1, draft.artefact, {"why": "test"})
    assert desk.ask() == [before]
    desk.send({"id": "under way", "maxVisits": 300})
    desk.engine.step()
    told = desk.ask(action="clear_cache")
    assert told[0] == {"id": "q", "action": "clear_cache"}
    assert told[1]["id"] == "under way"
    assert told[1]["rootInfo"]["rawWinrates"] == before["rootInfo"]["rawWinrates"]
    (after,) = desk.ask()
    assert after["rootInfo"]["rawWinrates"] != before["rootInfo"]["rawWinrates"]


def test_models_and_version_are_told(desk: Desk) -> None:
    desk.ask(player="random")
    (told,) = desk.ask(action="query_models")
    assert told["default"] == "champion" and told["baselines"] == ["random", "heuristic", "rollout"]
    named = {(model["player"], model["config"]): model["generation"] for model in told["models"]}
    assert named == {(name, c): 0 for name in ("champion", "generation:0000") for c in CONFIGS}
    loaded = {(one["player"], one["config"]): one for one in told["loaded"]}
    assert not loaded["random", CONFIG]["network"]
    for (name, config), one in loaded.items():
        if name == "champion":
            assert one["network"] and one["precision"] == "float32" and one["device"] == "cpu"
            assert one["calibration"]["temperature"] == (2.5 if config == "square8_3p" else 1.0)
    for model in told["models"][:2]:  # what is told can be asked
        query = {"config": model["config"], "model": model["player"], "maxVisits": 2}
        assert desk.ask(**query)[0]["moveInfos"]
    (version,) = desk.ask(action="query_version")
    assert version["protocol"] == "ringrift-analysis/1" and version["rules"]


def test_a_player_that_fails_is_answered_with_an_error_and_stops_nobody(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Broken(UniformEvaluator):
        def evaluate(self, states, moves, counts):  # type: ignore[no-untyped-def]
            logits, values = super().evaluate(states, moves, counts)
            return logits, values * np.nan

    player = NetworkPlayer(CONFIG, Broken(get_rules(CONFIG)))
    desk = Desk(Bench(it=player))
    for turn in range(100):
        desk.send({"id": str(turn)})
    desk.send({"id": "fine", "player": "heuristic"})
    told = desk.finish()
    assert len(told) == 101
    for one in told:
        if one["id"] == "fine":
            assert one["moveInfos"]
        else:
            assert "not finite" in one["error"] and one["turnNumber"] == 0
    assert "Traceback" in capsys.readouterr().err


def test_a_network_that_overflows_is_named_with_the_position(
    champions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The searched position and the one with a forced move before it."""
    import torch

    folder = tmp_path / "model"
    model = RingRiftNetwork(NetworkConfig(1, 8, 4), seed=3)
    with torch.no_grad():
        model.value.out.weight.fill_(3e38)
        model.value.out.bias.fill_(3e38)
    save_model(folder, model, {})
    desk = Desk(Roster(str(folder), data=champions, device="cpu", settings=EXACT))
    moves, states = game()
    turn = next(i for i, state in enumerate(states) if forced(state))
    for one in desk.ask(moves=moves[:turn], analyzeTurns=[0, turn]):
        assert f"({folder}) gives a value that is not finite" in one["error"], one
        position = json.loads(one["error"].partition("position: ")[2])
        assert State.from_record(position).config == CONFIG
    assert "NonFiniteOutputError" in capsys.readouterr().err


def test_trees_that_cannot_be_made_fail_all_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: Any) -> None:
        raise MemoryError("no room")

    desk = Desk(Bench(it=NetworkPlayer(CONFIG, UniformEvaluator(get_rules(CONFIG)))))
    monkeypatch.setattr("ringrift_pipeline.search.gumbel.GumbelSearch.pool", no_memory)
    desk.send({"id": "a"}, {"id": "b"})
    assert ["no room" in one["error"] for one in desk.finish()] == [True, True]
    monkeypatch.undo()
    assert desk.ask()[0]["moveInfos"]


def test_trees_stay_within_their_bounds(desk: Desk) -> None:
    assert [capacity(n) for n in (1, 64, 65, 128, 4097, MAX_VISITS)] == [
        64, 64, 128, 128, 8192, MAX_VISITS,
    ]  # fmt: skip
    for config in CONFIGS:
        rules = get_rules(config)
        for visits in (64, 1024, MAX_VISITS):
            slots = slots_for(rules, visits, 16)
            assert 1 <= slots <= SLOTS
            assert slots == 1 or slots * (visits + 1) * 8 * rules.state_size < TREE_BYTES
    assert slots_for(get_rules("square8_2p"), 64, 16) == SLOTS
    for config in CONFIGS[:8]:
        desk.ask(config=config)
    assert len(desk.engine._groups) == KEPT_GROUPS
    (told,) = desk.ask(config="hexagonal_4p", maxVisits=300)
    assert sum(info["visits"] for info in told["moveInfos"]) == 300


def test_positions_are_replayed_once_and_forgotten_in_time(
    plain: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ringrift_pipeline.analysis import positions

    moves, states = game(seed=2)
    monkeypatch.setattr(positions, "KEPT_POSITIONS", 150)
    known: Positions = plain.engine._positions
    for turn in range(len(moves)):
        (told,) = plain.ask(moves=moves[:turn])
        assert told["rootInfo"]["phase"] == states[turn].phase
        assert known.kept == turn + 1
    other, others = game(seed=8)
    shared = next(i for i, (a, b) in enumerate(zip(moves, other, strict=False)) if a != b)
    plain.ask(moves=other)
    assert known.kept == len(moves) + len(other) - shared
    # a fault leaves what was right before it; the same fault is found again
    for _ in range(2):
        wrong = plain.ask(moves=[*moves[:30], {"type": "swap_sides"}, *moves[30:]])
        assert wrong[0]["field"] == "moves[30]"
    plain.ask(action="clear_cache")
    assert known.kept == 0


def test_a_game_goes_on_from_a_state() -> None:
    desk = Desk(Roster("heuristic"), config="hex8_3p")
    for swap, seed in ((True, 3), (False, 4)):
        moves, states = game(seed=seed, swap=swap)
        for turn in (0, 1, 7, len(moves) - 2):
            record = json.loads(json.dumps(states[turn].to_record()))
            told = desk.ask(initialState=record, moves=moves[turn:], analyzeTurns=[0, 2])
            whole = desk.ask(
                config=CONFIG, moves=moves, swapRule=swap, analyzeTurns=[turn, turn + 2]
            )
            for ours, theirs in zip(told, whole, strict=True):
                assert {**theirs, "turnNumber": ours["turnNumber"]} == ours
    (told,) = desk.ask()
    assert len(told["rootInfo"]["winrates"]) == new_game("hex8_3p").rules.players
