from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ringrift_pipeline.game import CONFIGS, State, get_rules, kernels, layout, new_game
from ringrift_pipeline.search import (
    HeuristicPlayer,
    NetworkPlayer,
    PlayerSpecError,
    RandomPlayer,
    RolloutEvaluator,
    RolloutPlayer,
    SearchError,
    UniformEvaluator,
    derive_seeds,
    load_player,
)

from .conftest import HashEvaluator, after, decisions, game_rows, legal, result
from .test_gumbel import ends, last_decision, wins


def everyone(config: str, evaluator=None) -> list:
    rules = get_rules(config)
    return [
        RandomPlayer(config, 1),
        HeuristicPlayer(config, 1),
        HeuristicPlayer(config, 1, temperature=1.0),
        RolloutPlayer(config, 1, playouts=3),
        NetworkPlayer(config, evaluator or UniformEvaluator(rules), simulations=3),
    ]


@pytest.mark.parametrize("config", CONFIGS)
def test_players_are_legal_anywhere(config):
    """In states that others played into, forced ones among them."""
    rows = game_rows(config, 0)
    picked = rows[np.linspace(0, len(rows) - 1, 5).astype(int)]
    moves = [legal(config, row) for row in picked]
    seeds = derive_seeds(3, 0, len(picked))
    for player in everyone(config):
        before = picked.copy()
        chosen = player.choose_batch(picked, seeds)
        assert np.array_equal(picked, before)
        assert all(int(move) in among for move, among in zip(chosen, moves, strict=True))


def test_object_api_and_analysis():
    config = "hex8_3p"
    rows = game_rows(config, 2)
    for player in everyone(config, HashEvaluator(3)):
        for row in rows[[0, 9, 30, len(rows) - 1]]:
            state = State.from_array(config, row)
            assert player.choose(state) in state.legal_moves()
            analysis = player.analyze(state)
            n = len(state.legal_moves())
            assert list(analysis.moves) == state.legal_moves()
            assert analysis.policy.shape == analysis.visits.shape == (n,)
            assert analysis.policy.sum() == pytest.approx(1.0, abs=1e-5)
            assert analysis.value.shape == (3,) and analysis.value.sum() == pytest.approx(1.0)
            assert np.array_equal(state.array, row)
            with pytest.raises(dataclasses.FrozenInstanceError):
                analysis.value = None
    searched = State.from_array(config, decisions(config, 2)[4])
    assert everyone(config)[3].analyze(searched).visits.sum() == 3
    assert everyone(config)[4].analyze(searched).visits.sum() == 3


def test_value_in_a_forced_state_is_that_of_the_next_decision():
    config = "square8_2p"
    evaluator = HashEvaluator(2)
    player = NetworkPlayer(config, evaluator, simulations=4)
    checked = 0
    for row in game_rows(config, 6):
        moves = legal(config, row)
        if len(moves) == 1:
            child = after(config, row, moves[0])
            over = child[layout.PLAYER] < 0
            width = len(legal(config, child))
            expected = result(config, child) if over else evaluator.one(child, width)[1]
            value = player.analyze(State.from_array(config, row)).value
            np.testing.assert_allclose(value, expected, atol=1e-6)
            checked += 1
    assert checked > 20


def test_a_choice_depends_on_its_own_state_and_seed_only():
    config = "square8_2p"
    rows = decisions(config, 3)[::9]
    seeds = derive_seeds(9, 0, len(rows))
    for player in everyone(config, HashEvaluator(2)):
        together = player.choose_batch(rows, seeds)
        alone = [
            player.choose_batch(rows[i : i + 1], seeds[i : i + 1])[0] for i in range(len(rows))
        ]
        assert together.tolist() == alone


def test_random_player_is_uniform_and_moves_on():
    config = "square8_2p"
    row = next(r for r in decisions(config, 0) if 3 <= len(legal(config, r)) <= 12)
    moves, count = legal(config, row), 6000
    chosen = RandomPlayer(config).choose_batch(
        np.repeat(row[None], count, axis=0), derive_seeds(0, 0, count)
    )
    shares = np.array([(chosen == m).mean() for m in moves])
    error = np.sqrt((1 - 1 / len(moves)) / len(moves) / count)
    assert (np.abs(shares - 1 / len(moves)) < 4.5 * error).all()
    start = new_game(config)
    first, again = RandomPlayer(config, 5), RandomPlayer(config, 5)
    sequence = [first.choose(start).code for _ in range(8)]
    assert sequence == [again.choose(start).code for _ in range(8)] and len(set(sequence)) > 1


def test_heuristic_temperature_samples_its_policy():
    config = "square8_2p"
    row = decisions(config, 0)[10]
    player = HeuristicPlayer(config, temperature=1.0)
    policy = player.analyze(State.from_array(config, row)).policy
    count = 3000
    chosen = player.choose_batch(np.repeat(row[None], count, axis=0), derive_seeds(1, 0, count))
    shares = np.array([(chosen == m).mean() for m in legal(config, row)])
    error = np.sqrt(policy * (1 - policy) / count)
    assert (np.abs(shares - policy) <= 4.5 * error + 1e-9).all()


@pytest.mark.parametrize("config", ["square8_2p", "hex8_3p"])
def test_rollout_player_finds_a_win_in_one(config):
    """Or as good a move: one that wins within the same turn gets as many playouts."""
    player = RolloutPlayer(config, playouts=400)
    tried = 0
    for row, _, nexts in ends(config, 8):
        winning = [wins(config, child, row[layout.PLAYER]) for child in nexts]
        if any(winning) and not all(winning):
            tried += 1
            analysis = player.analyze(State.from_array(config, row))
            assert analysis.value[row[layout.PLAYER]] > 0.9
            assert analysis.visits[winning].max() > 0.9 * analysis.visits.max()
            assert analysis.visits.sum() == 400
    assert tried >= 3


@pytest.mark.parametrize(("better", "worse"), [(1, 0), (3, 0)])
def test_better_players_beat_random(better, worse):
    """Twenty games, seats rotated; chance gives sixteen wins in 1 of 170 times."""
    config = "square8_2p"
    rules = get_rules(config)
    players = [
        RandomPlayer(config),
        HeuristicPlayer(config),
        None,
        RolloutPlayer(config, playouts=16),
    ]
    games = 20
    states = np.array([new_game(config).array for _ in range(games)])
    step = 0
    while (states[:, layout.PLAYER] >= 0).any():
        step += 1
        mover = (states[:, layout.PLAYER] + np.arange(games)) % 2
        for which, player in ((0, players[better]), (1, players[worse])):
            rows = np.flatnonzero((states[:, layout.PLAYER] >= 0) & (mover == which))
            if len(rows):
                seeds = derive_seeds(17 + which, step * games, games)[rows]
                for row, move in zip(rows, player.choose_batch(states[rows], seeds), strict=True):
                    kernels.apply_move(rules.constants, states[row], move)
    points = np.array([result(config, row)[g % 2] for g, row in enumerate(states)])
    assert points.sum() >= 16


def test_network_player_over_rollouts_is_repeatable():
    config = "square8_2p"
    row = decisions(config, 1)[6]
    player = NetworkPlayer(config, RolloutEvaluator(get_rules(config), 2), simulations=16, seed=3)
    state = State.from_array(config, row)
    assert len({player.choose(state).code for _ in range(3)}) == 1


def test_errors():
    config = "square8_2p"
    over = State.from_array(config, after(config, *last_decision(config)))
    other = new_game("hex8_2p")
    for player in everyone(config):
        with pytest.raises(SearchError, match="over"):
            player.choose(over)
        with pytest.raises(SearchError, match="over"):
            player.choose_batch(over.array[None], np.zeros(1, dtype=np.uint64))
        with pytest.raises(SearchError, match="plays square8_2p; the state is of hex8_2p"):
            player.analyze(other)
        with pytest.raises(SearchError, match="seeds"):
            player.choose_batch(new_game(config).array[None], np.zeros(2, dtype=np.uint64))
        with pytest.raises(SearchError, match="shape"):
            player.choose_batch(other.array[None], np.zeros(1, dtype=np.uint64))
    with pytest.raises(SearchError, match="playout"):
        RolloutPlayer(config, playouts=0)
    with pytest.raises(SearchError, match="temperature"):
        HeuristicPlayer(config, temperature=-1.0)
    with pytest.raises(SearchError, match="simulations"):
        NetworkPlayer(config, UniformEvaluator(get_rules(config)), simulations=-1)
    with pytest.raises(PlayerSpecError, match="random; heuristic; rollout; champion; generation:"):
        load_player("alphabeta", config)
    with pytest.raises(ValueError, match="unknown config 'square9_2p'.*square8_2p"):
        load_player("random", "square9_2p")
