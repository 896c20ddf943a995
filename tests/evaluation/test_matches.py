"""Rotated sets of the real game, played by small players written here."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from ringrift_pipeline.evaluation.matches import (
    GAMES_SCHEMA,
    MatchError,
    play_sets,
    set_scores,
)
from ringrift_pipeline.game import State, get_rules, kernels, layout
from ringrift_pipeline.selfplay.stopping import Interrupted


class Uniform:
    """Random moves that depend on the seeds alone; keeps what it was asked."""

    def __init__(self, config: str) -> None:
        self.rules = get_rules(config)
        self.asked: list[tuple[NDArray[np.int64], NDArray[np.uint64]]] = []

    def choose_batch(
        self, states: NDArray[np.int64], seeds: NDArray[np.uint64]
    ) -> NDArray[np.int64]:
        self.asked.append((states.copy(), seeds.copy()))
        return np.array([self.pick(row, seed) for row, seed in zip(states, seeds, strict=True)])

    def pick(self, row: NDArray[np.int64], seed: np.uint64) -> int:
        buffer = np.zeros(self.rules.max_moves, np.int64)
        count = kernels.legal_moves(self.rules.constants, row, buffer)
        return int(buffer[int(seed) % count])


class Grabber(Uniform):
    """Takes the move that leaves it the most eliminated rings: better than random."""

    def pick(self, row: NDArray[np.int64], seed: np.uint64) -> int:
        buffer = np.zeros(self.rules.max_moves, np.int64)
        count = kernels.legal_moves(self.rules.constants, row, buffer)
        seat = int(row[layout.PLAYER])
        best, best_gain = [], -np.inf
        for move in buffer[:count]:
            after = row.copy()
            kernels.apply_move(self.rules.constants, after, move)
            gain = 5 * after[layout.ELIMINATED + seat] + after[layout.TERRITORY_COUNT + seat]
            if gain > best_gain:
                best, best_gain = [move], gain
            elif gain == best_gain:
                best.append(move)
        return int(best[int(seed) % len(best)])


def play(config: str, sets: range = range(3), seed: int = 7, **arguments) -> pl.DataFrame:
    seats = get_rules(config).players
    players = {"a": Uniform(config), "b": Uniform(config)}
    return play_sets(config, players, ("a", *["b"] * (seats - 1)), sets, seed, **arguments)


@pytest.mark.parametrize("config", ["square8_2p", "hex8_3p", "square8_4p"])
def test_sets_rotate_seats_over_one_opening(config: str) -> None:
    seats = get_rules(config).players
    games = play(config, match="m")
    assert dict(games.schema) == GAMES_SCHEMA
    assert games.height == 3 * seats
    for _, own in games.group_by("set"):
        assert own["opening"].n_unique() == 1
        assert len(own["opening"][0]) == 6
        holders = [row.index("a") for row in own["players"].to_list()]
        assert sorted(holders) == list(range(seats))
        assert all(row.count("b") == seats - 1 for row in own["players"].to_list())
    assert games["opening"].n_unique() == 3
    shares = np.array(games["shares"].to_list())
    assert shares.sum(axis=1) == pytest.approx(np.ones(len(shares)))
    for ranks, share, winner in games.select("ranks", "shares", "winner").iter_rows():
        assert share[winner - 1] == 1.0
        assert ranks[winner - 1] == 0 and sorted(set(ranks))[0] == 0
    assert (games["decisions"] <= games["plies"]).all() and (games["decisions"] > 6).all()


def test_the_game_that_was_recorded_is_the_game_that_was_played() -> None:
    """Replays a game through the object API from the opening and the moves chosen."""
    config = "square8_2p"
    players = {"a": Uniform(config), "b": Uniform(config)}
    games = play_sets(config, players, ("a", "b"), range(1), 3)
    row = games.row(0, named=True)
    state = State.from_array(config, _initial(config))
    for move in row["opening"]:
        state = _forced(state)
        state = state.apply(next(m for m in state.legal_moves() if m.code == move))
    asked = {
        (states[i].tobytes(), name): int(seeds[i])
        for name, player in players.items()
        for states, seeds in player.asked
        for i in range(len(states))
    }
    decisions = len(row["opening"])
    while True:
        state = _forced(state)
        if state.is_terminal:
            break
        name = row["players"][state.current_player - 1]
        moves = state.legal_moves()
        seed = asked[(state.array.tobytes(), name)]
        state = state.apply(moves[seed % len(moves)])
        decisions += 1
    assert state.winner == row["winner"]
    assert decisions == row["decisions"]
    assert int(state.array[layout.PLY]) == row["plies"]
    assert [sorted(group) for group in state.ranking()][0] == [row["winner"]]


def _initial(config: str) -> NDArray[np.int64]:
    rules = get_rules(config)
    row = np.zeros(rules.state_size, np.int64)
    kernels.initial_state(rules.constants, row, False)
    return row


def _forced(state: State) -> State:
    while not state.is_terminal and len(state.legal_moves()) == 1:
        state = state.apply(state.legal_moves()[0])
    return state


def test_players_are_asked_only_where_there_is_a_choice_and_it_is_theirs() -> None:
    config = "square8_3p"
    players = {name: Uniform(config) for name in ("a", "b", "c")}
    play_sets(config, players, ("a", "b", "c"), range(2), 1)
    rules = get_rules(config)
    buffer = np.zeros(rules.max_moves, np.int64)
    all_seeds = []
    for player in players.values():
        for states, seeds in player.asked:
            all_seeds += seeds.tolist()
            for row in states:
                assert kernels.legal_moves(rules.constants, row, buffer) > 1
    assert len(set(all_seeds)) == len(all_seeds), "every decision has a seed of its own"


def test_sets_do_not_depend_on_what_is_played_beside_them() -> None:
    whole = play("square8_2p", range(6))
    parts = pl.concat([play("square8_2p", range(0, 2)), play("square8_2p", range(2, 6))])
    assert whole.equals(parts)
    assert whole.equals(play("square8_2p", range(6)))
    assert not whole.equals(play("square8_2p", range(6), seed=8))


def test_the_better_player_wins_more_in_every_number_of_seats() -> None:
    for config, sets in (("square8_2p", 16), ("square8_3p", 10)):
        seats = get_rules(config).players
        players = {"a": Grabber(config), "b": Uniform(config)}
        games = play_sets(config, players, ("a", *["b"] * (seats - 1)), range(sets), 5)
        scores = set_scores(games, "a")
        assert len(scores) == sets
        assert scores.mean() > 1.2 / seats


def test_set_scores_by_hand() -> None:
    rows = [
        ("m", 0, ["a", "b"], [1.0, 0.0]),
        ("m", 0, ["b", "a"], [1.0, 0.0]),
        ("m", 1, ["a", "b"], [1.0, 0.0]),
        ("m", 1, ["b", "a"], [0.5, 0.5]),
    ]
    games = pl.DataFrame(rows, schema=["match", "set", "players", "shares"], orient="row")
    assert set_scores(games, "a").tolist() == [0.5, 0.75]
    assert set_scores(games, "b").tolist() == [0.5, 0.25]
    with pytest.raises(MatchError, match="incomplete"):
        set_scores(games.head(3), "a")
    with pytest.raises(MatchError, match="c did not play"):
        set_scores(games, "c")


def test_stopping_and_progress() -> None:
    seen: list[tuple[int, int]] = []
    play("square8_2p", progress=lambda done, total, _: seen.append((done, total)))
    assert seen[-1] == (6, 6)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    calls = 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        return calls > 3

    with pytest.raises(Interrupted):
        play("square8_2p", should_stop=stop)
    assert calls == 4


def test_bad_line_ups_and_bad_players_are_refused() -> None:
    players = {"a": Uniform("square8_2p")}
    with pytest.raises(MatchError, match="2 seats"):
        play_sets("square8_2p", players, ("a",), range(1), 0)
    with pytest.raises(MatchError, match="no player 'b'"):
        play_sets("square8_2p", players, ("a", "b"), range(1), 0)
    with pytest.raises(ValueError, match="square8_2p"):
        play_sets("square9_2p", players, ("a", "a"), range(1), 0)
    with pytest.raises(MatchError, match="opening_decisions"):
        play_sets("square8_2p", players, ("a", "a"), range(1), 0, opening_decisions=-1)

    class Cheat(Uniform):
        def pick(self, row: NDArray[np.int64], seed: np.uint64) -> int:
            return layout.FORCED_ELIMINATION

    with pytest.raises(MatchError, match="cheat chose the move .* not legal"):
        play_sets("square8_2p", {"cheat": Cheat("square8_2p")}, ("cheat",) * 2, range(1), 0)
