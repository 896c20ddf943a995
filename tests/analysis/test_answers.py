"""What an answer says, against the players, the rules and the search themselves."""

from __future__ import annotations

import numpy as np
import pytest

from ringrift_pipeline.game import CONFIGS, State, new_game
from ringrift_pipeline.search import (
    GumbelSearch,
    NetworkPlayer,
    RolloutEvaluator,
    SearchSettings,
    UniformEvaluator,
)

from .conftest import CONFIG, TEMPERATURE, Bench, Desk, forced, game

ROUNDED = 1.1e-6  # what is lost by writing six decimal places


def replayed(state: State, moves: list) -> State:
    for record in moves:
        state = state.apply(state.find_move(record))
    return state


@pytest.mark.parametrize("config", CONFIGS)
def test_first_position_of_every_config(config: str, desk: Desk) -> None:
    (told,) = desk.ask(config=config, maxVisits=6, includePolicy=True)
    state = new_game(config)
    assert told["id"] == "q" and told["turnNumber"] == 0 and told["isDuringSearch"] is False
    root = told["rootInfo"]
    assert (root["currentPlayer"], root["phase"], root["visits"]) == (1, "ring_placement", 7)
    players = int(config[-2])
    assert len(root["winrates"]) == len(root["rawWinrates"]) == players
    assert sum(root["winrates"]) == pytest.approx(1, abs=players * ROUNDED)
    assert [info["order"] for info in told["moveInfos"]] == list(range(6))
    assert sum(info["visits"] for info in told["moveInfos"]) == 6
    assert [entry["move"] for entry in told["policy"]] == [
        move.to_record() for move in state.legal_moves()
    ]
    for part in ("prior", "policy"):
        assert sum(entry[part] for entry in told["policy"]) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize(("config", "visits"), [("square8_3p", 70), ("hex8_2p", 33)])
def test_chances_and_policy_are_those_of_the_player(config: str, visits: int, desk: Desk) -> None:
    """`NetworkPlayer.analyze` asks for one position at a time, without a tree to read."""
    moves, states = game(config, 4)
    turns = list(range(0, len(moves), 5))
    told = desk.ask(
        config=config, moves=moves, analyzeTurns=turns, maxVisits=visits, includePolicy=True
    )
    player = desk.roster.player("champion", config, visits)
    assert isinstance(player, NetworkPlayer)
    assert player.value_temperature == (TEMPERATURE if config == "square8_3p" else 1.0)
    alone = NetworkPlayer(
        config,
        player.evaluator,
        simulations=visits,
        value_temperature=player.value_temperature,
    )
    by_turn = {answer["turnNumber"]: answer for answer in told}
    assert sorted(by_turn) == turns
    searched = 0
    for turn in turns:
        state, answer = states[turn], by_turn[turn]
        expected = alone.analyze(state)
        root = answer["rootInfo"]
        assert root["winrates"] == pytest.approx(expected.value.tolist(), abs=2 * ROUNDED)
        assert root["winrate"] == root["winrates"][state.current_player - 1]
        assert root["currentPlayer"] == state.current_player and root["phase"] == state.phase
        shares = [entry["policy"] for entry in answer["policy"]]
        assert shares == pytest.approx(expected.policy.tolist(), abs=2 * ROUNDED)
        some = expected.policy[expected.policy > 0]
        entropy = -(some * np.log(some)).sum()
        assert root["policyEntropy"] == pytest.approx(entropy, abs=1e-4)
        order = [info["move"] for info in answer["moveInfos"]]
        if forced(state):
            assert order == [state.legal_moves()[0].to_record()] and root["visits"] == 0
            assert answer["moveInfos"][0]["winrates"] == root["winrates"]
            continue
        searched += 1
        assert root["visits"] == visits + 1
        assert order[0] == alone.choose(state).to_record()
        visited = {
            str(move.to_record()): n
            for move, n in zip(expected.moves, expected.visits.tolist(), strict=True)
        }
        assert {str(i["move"]): i["visits"] for i in answer["moveInfos"]} == {
            move: n for move, n in visited.items() if n
        }
        counts = [info["visits"] for info in answer["moveInfos"]]
        assert counts == sorted(counts, reverse=True)
    assert searched > 5


def test_chances_of_moves_are_the_trees_tempered(desk: Desk) -> None:
    config, visits = "square8_3p", 48
    moves, states = game(config, 7)
    player = desk.roster.player("champion", config, visits)
    search = GumbelSearch(player.rules, player.evaluator, SearchSettings(gumbel_scale=0.0))
    exact = checked = 0
    for turn in [t for t in range(len(moves)) if not forced(states[t])][-12:]:
        (told,) = desk.ask(config=config, moves=moves[:turn], maxVisits=visits)
        row = np.array(states[turn].array)
        found = search.search(row[None], np.zeros(1, dtype=np.uint64), visits, depth=30)
        read = found.readout
        legal = [move.to_record() for move in states[turn].legal_moves()]
        known = {
            str(legal[action]): k
            for k, action in enumerate(read.actions[0].tolist())
            if action >= 0
        }
        assert len(told["moveInfos"]) == len(known)
        for info in told["moveInfos"]:
            k = known[str(info["move"])]
            value = read.values[0, k]
            if read.exact[0, k]:
                exact += 1
            else:
                powers = value ** (1 / TEMPERATURE)
                value = powers / powers.sum()
            assert info["winrates"] == pytest.approx(value.tolist(), abs=2 * ROUNDED)
            assert info["winrate"] == info["winrates"][states[turn].current_player - 1]
            checked += 1
    assert checked > 50 and exact > 3


def test_root_chances_are_made_of_those_of_the_moves() -> None:
    """Where every move was tried: the mean of the moves' chances, by their shares of policy."""
    rules = new_game(CONFIG).rules
    settings = SearchSettings(max_considered=512)
    player = NetworkPlayer(CONFIG, RolloutEvaluator(rules, 1), settings=settings)
    desk = Desk(Bench(it=player), visits=400)
    moves, states = game(seed=5)
    turns = [t for t in range(len(moves)) if not forced(states[t])][3::9]
    for told in desk.ask(moves=moves, analyzeTurns=turns):
        infos = told["moveInfos"]
        assert len(infos) == len(states[told["turnNumber"]].legal_moves())
        assert sum(info["visits"] for info in infos) == told["rootInfo"]["visits"] - 1
        mean = sum(info["policy"] * info["winrate"] for info in infos)
        assert mean == pytest.approx(told["rootInfo"]["winrate"], abs=2e-4)


@pytest.mark.parametrize("config", ["square8_2p", "hex8_3p"])
def test_variations_can_be_played_move_by_move(config: str, desk: Desk) -> None:
    moves, states = game(config, 1)
    turns = list(range(0, len(moves), 4))
    longest = bookkeeping = 0
    for told in desk.ask(config=config, moves=moves, analyzeTurns=turns, maxVisits=90):
        state = states[told["turnNumber"]]
        for info in told["moveInfos"]:
            assert info["pv"][0] == info["move"]
            end = replayed(state, info["pv"])
            assert end.is_terminal or not forced(end)
            longest = max(longest, len(info["pv"]))
            bookkeeping += sum(move["type"].startswith("no_") for move in info["pv"])
    assert longest > 8 and bookkeeping > 20


def test_a_game_that_is_over_has_its_result(desk: Desk) -> None:
    moves, states = game("hex8_3p", 2)
    told = desk.ask(
        config="hex8_3p", moves=moves, analyzeTurns=[len(moves), 3], player="no such player",
    )  # fmt: skip
    assert told[0]["field"] == "player"  # turn 3 needs one
    (told,) = desk.ask(config="hex8_3p", moves=moves, player="no such player", includePolicy=True)
    end, root = states[-1], told["rootInfo"]
    assert told["moveInfos"] == [] and told["policy"] == [] and told["turnNumber"] == len(moves)
    assert root["winner"] == end.winner and root["ranking"] == end.ranking()
    assert root["reason"] == end.reason and root["phase"] == "game_over"
    assert root["currentPlayer"] is None and root["winrate"] is None
    assert root["winrates"] == [float(seat == end.winner) for seat in (1, 2, 3)]


def test_exact_results_are_not_tempered() -> None:
    rules = new_game(CONFIG).rules
    player = NetworkPlayer(CONFIG, UniformEvaluator(rules), value_temperature=3.0)
    desk = Desk(Bench(it=player), visits=64)
    sure = unsure = 0
    for seed in range(6):
        moves, states = game(seed=seed)
        last = max(t for t in range(len(moves)) if not forced(states[t]))
        for told in desk.ask(moves=moves, analyzeTurns=[last, last + 1]):
            for info in told["moveInfos"]:
                end = replayed(states[told["turnNumber"]], info["pv"])
                if end.is_terminal and len(info["pv"]) <= 8:
                    won = [float(seat == end.winner) for seat in (1, 2)]
                    sure += info["winrates"] == won
                else:
                    unsure += 1
    assert sure >= 6 and unsure > 6


def test_the_seat_that_swaps_reads_its_own_chances() -> None:
    """Chances are counted by the seats as they are before the swap."""
    rules = new_game(CONFIG).rules
    player = NetworkPlayer(
        CONFIG, RolloutEvaluator(rules, 5), settings=SearchSettings(max_considered=512)
    )
    desk = Desk(Bench(it=player))
    moves, states = game(seed=3, swap=True)
    turn = next(
        t for t, s in enumerate(states) if any(m.type == "swap_sides" for m in s.legal_moves())
    )
    every = len(states[turn].legal_moves())  # each move is tried once
    (told,) = desk.ask(moves=moves[:turn], swapRule=True, maxVisits=every)
    swap = next(info for info in told["moveInfos"] if info["move"]["type"] == "swap_sides")
    (after,) = desk.ask(moves=[*moves[:turn], {"type": "swap_sides"}], swapRule=True)
    assert after["rootInfo"]["currentPlayer"] == 2 == told["rootInfo"]["currentPlayer"]
    raw = after["rootInfo"]["rawWinrates"]
    assert swap["visits"] == 1 and raw[0] != raw[1]
    # Who sits on seat 2 now and swaps, has what seat 1 then has.
    assert swap["winrate"] == pytest.approx(raw[0], abs=2 * ROUNDED)
    assert swap["winrates"] == pytest.approx(raw[::-1], abs=2 * ROUNDED)
    assert swap["pv"] == [{"type": "swap_sides"}]


@pytest.mark.parametrize("name", ["random", "heuristic", "rollout"])
def test_players_without_a_network(name: str, plain: Desk) -> None:
    config = "hex8_3p"
    moves, states = game(config, 6)
    turns = list(range(0, len(moves), 7))
    query = dict(config=config, moves=moves, analyzeTurns=turns, player=name, maxVisits=30)
    told = plain.ask(**query, includePolicy=True)
    assert sorted(answer["turnNumber"] for answer in told) == turns
    for answer in told:
        state, root = states[answer["turnNumber"]], answer["rootInfo"]
        legal = [move.to_record() for move in state.legal_moves()]
        searched = name == "rollout" and len(legal) > 1
        assert root["visits"] == (30 if searched else 0) and root["rawWinrates"] is None
        assert sum(info["visits"] for info in answer["moveInfos"]) == root["visits"]
        if name == "rollout" and len(legal) == 1:
            assert root["winrates"] is None and root["winrate"] is None
        else:
            assert sum(root["winrates"]) == pytest.approx(1, abs=1e-5)
        for info in answer["moveInfos"]:
            assert info["move"] in legal and info["pv"] == [info["move"]]
            assert info["prior"] is None and info["winrate"] is None and info["winrates"] is None
        assert {str(entry["move"]) for entry in answer["policy"]} == set(map(str, legal))
        if name == "random":
            assert len(answer["moveInfos"]) == len(legal)
    again = plain.ask(**query, includePolicy=True)
    assert again == told  # chance is drawn from the position


def test_maxmoves_cuts_the_list_and_nothing_else(desk: Desk) -> None:
    (whole,) = desk.ask(maxVisits=40)
    (short,) = desk.ask(maxVisits=40, maxMoves=3)
    assert len(whole["moveInfos"]) > 3
    assert short == {**whole, "moveInfos": whole["moveInfos"][:3]}


def test_hash_tells_positions_apart_and_knows_transpositions(plain: Desk) -> None:
    moves, _ = game(seed=2)
    told = plain.ask(moves=moves, analyzeTurns=list(range(len(moves))))
    hashes = [answer["rootInfo"]["thisHash"] for answer in told]
    assert len(set(hashes)) == len(hashes)
    start = new_game(CONFIG)
    record = start.to_record()
    record["resume"]["ply"] = 40
    (older,) = plain.ask(initialState=record)
    assert older["rootInfo"]["thisHash"] == plain.ask()[0]["rootInfo"]["thisHash"]
