from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringrift_pipeline.game import get_rules, kernels, layout
from ringrift_pipeline.search.noise import gumbel
from ringrift_pipeline.selfplay import stepping
from ringrift_pipeline.selfplay.ragged import flat_positions, offsets_of, pad, unpad
from ringrift_pipeline.selfplay.records import Recorder


def test_advance_stops_exactly_where_there_is_a_choice() -> None:
    rules = get_rules("square8_2p")
    rng = np.random.default_rng(0)
    state = np.zeros(rules.state_size, np.int64)
    kernels.initial_state(rules.constants, state, False)
    moves = np.zeros(rules.max_moves, np.int64)
    slow = state.copy()
    forced = 0
    while True:
        count = stepping.advance(rules.constants, state, 0, moves)
        # The same by hand, one ply at a time.
        while (
            slow[layout.PHASE] != layout.OVER
            and (legal := kernels.legal_moves(rules.constants, slow, moves)) == 1
        ):
            kernels.apply_move(rules.constants, slow, moves[0])
            forced += 1
        assert np.array_equal(state, slow)
        if count == stepping.OVER:
            break
        assert count == legal > 1
        move = moves[rng.integers(count)]
        kernels.apply_move(rules.constants, state, move)
        kernels.apply_move(rules.constants, slow, move)
    assert forced > 10 and state[layout.PHASE] == layout.OVER


def test_advance_cuts_a_game_at_max_plies() -> None:
    rules = get_rules("square8_2p")
    state = np.zeros(rules.state_size, np.int64)
    kernels.initial_state(rules.constants, state, False)
    moves = np.zeros(rules.max_moves, np.int64)
    while (count := stepping.advance(rules.constants, state, 9, moves)) > 0:
        kernels.apply_move(rules.constants, state, moves[0])
    assert count == stepping.CUT and state[layout.PLY] == 9


@given(
    st.lists(st.floats(-50, 50), min_size=2, max_size=40),
    st.floats(0.05, 5.0),
)
def test_softmax_against_the_formula(scores: list[float], temperature: float) -> None:
    values = np.array(scores)
    out = np.zeros(len(values))
    stepping.softmax(values, len(values), temperature, out)
    expected = np.exp((values - values.max()) / temperature)
    np.testing.assert_allclose(out, expected / expected.sum(), rtol=1e-12)


def test_sampling_follows_the_policy_and_never_takes_zero() -> None:
    policy = np.array([0.0, 0.5, 0.0, 0.2, 0.3, 0.0])
    draws = (np.arange(10_000) + 0.5) / 10_000
    chosen = np.array([stepping.sample_index(policy, 6, draw) for draw in draws])
    np.testing.assert_allclose(np.bincount(chosen, minlength=6) / 10_000, policy, atol=1e-4)
    assert stepping.sample_index(policy, 6, np.nextafter(1.0, 0.0)) == 4


def test_choices_are_sampled_early_and_greedy_late() -> None:
    games = 4000
    policy = np.tile(np.array([[0.6, 0.3, 0.1, 0.9]], np.float32), (games, 1))
    counts = np.full(games, 3)  # the last entry is padding
    seeds = np.arange(games, dtype=np.uint64)
    out = np.empty(games, np.int64)
    stepping.choose_moves(policy, counts, seeds, np.full(games, 4), 1.0, 5, out)
    np.testing.assert_allclose(np.bincount(out) / games, [0.6, 0.3, 0.1], atol=0.03)
    stepping.choose_moves(policy, counts, seeds, np.full(games, 4), 0.5, 5, out)
    squared = np.array([0.36, 0.09, 0.01])
    np.testing.assert_allclose(np.bincount(out) / games, squared / squared.sum(), atol=0.03)
    stepping.choose_moves(policy, counts, seeds, np.full(games, 5), 1.0, 5, out)
    assert (out == 0).all()


def test_streams_are_uniform_and_distinct() -> None:
    seeds = np.arange(64, dtype=np.uint64)
    drawn = np.empty((256, 64), np.uint64)
    for decision in range(256):
        stepping.decision_seeds(seeds, np.full(64, decision), drawn[decision])
    assert len(np.unique(drawn)) == drawn.size
    values = (drawn >> np.uint64(11)).astype(np.float64) / 2.0**53
    assert abs(values.mean() - 0.5) < 0.01 and abs(values.var() - 1 / 12) < 0.005
    full = np.empty(drawn.size, np.bool_)
    stepping.full_searches(drawn.reshape(-1), 0.25, full)
    assert abs(full.mean() - 0.25) < 0.02


def test_a_searchs_noise_says_nothing_of_its_budget_or_of_the_draw() -> None:
    seeds = np.empty(20_000, np.uint64)
    stepping.decision_seeds(np.arange(20_000, dtype=np.uint64), np.zeros(20_000, int), seeds)
    full = np.empty(20_000, np.bool_)
    stepping.full_searches(seeds, 0.25, full)
    drawn = np.empty(20_000, np.int64)
    policy, counts = np.full((20_000, 4), 0.25, np.float32), np.full(20_000, 4)
    stepping.choose_moves(policy, counts, seeds, np.zeros(20_000), 1.0, 5, drawn)
    for action in range(8):
        noise = np.array([gumbel(seed, action) for seed in seeds])
        # The standard deviation of a mean of 5,000 is 1.28 / 71.
        assert abs(noise[full].mean() - 0.5772) < 0.08
        for chosen in range(4):
            assert abs(noise[drawn == chosen].mean() - 0.5772) < 0.08


@given(st.lists(st.integers(1, 7), min_size=1, max_size=20), st.randoms(use_true_random=False))
def test_ragged_round_trip(counts: list[int], random: object) -> None:
    lengths = np.array(counts)
    flat = np.arange(lengths.sum() * 2).reshape(-1, 2)
    offsets = offsets_of(lengths)
    padded = pad(flat, offsets[:-1], lengths, 9, -1)
    assert padded.shape == (len(counts), 9, 2)
    assert np.array_equal(unpad(padded, lengths), flat)
    order = np.random.default_rng(random.randrange(2**32)).permutation(len(counts))  # type: ignore[attr-defined]
    picked = flat[flat_positions(offsets[:-1][order], lengths[order])]
    assert np.array_equal(
        picked, np.concatenate([flat[offsets[i] : offsets[i + 1]] for i in order])
    )


def test_recorder_orders_decisions_of_interleaved_games() -> None:
    recorder = Recorder(state_size=3, players=2)
    for decision in range(3):
        for game in (2, 0, 1):
            count = game + decision + 2
            mark = 100 * game + 10 * decision
            recorder.add(
                game=np.array([game]),
                decision=np.array([decision]),
                state=np.full((1, 3), mark),
                counts=np.array([count]),
                moves=mark + np.arange(count),
                policy=np.full(count, 1.0 / count),
                selected=np.array([mark]),
                full_search=np.array([True]),
                root_value=np.full((1, 2), 0.5),
                search_value=np.full((1, 2), 0.5),
                surprise=np.array([0.0]),
            )
    rows = recorder.finish()
    assert rows.game.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert rows.decision.tolist() == [0, 1, 2] * 3
    for row in range(9):
        mark = 100 * rows.game[row] + 10 * rows.decision[row]
        legal = rows.moves[rows.offsets[row] : rows.offsets[row + 1]]
        assert (
            legal.tolist() == (mark + np.arange(rows.game[row] + rows.decision[row] + 2)).tolist()
        )
        assert (rows.state[row] == mark).all() and rows.selected[row] == mark


@pytest.mark.parametrize("count", [0])
def test_an_empty_recorder_gives_no_rows(count: int) -> None:
    rows = Recorder(state_size=3, players=2).finish()
    assert len(rows) == count and rows.offsets.tolist() == [0]
