"""Shuffling and drawing without replacement against probabilities worked out by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ringrift_pipeline.enhancements import random_order, successive_sampling
from ringrift_pipeline.enhancements.example_selection import distinct_positions, first_of_each
from ringrift_pipeline.enhancements.random_order import dealt, shuffled
from ringrift_pipeline.enhancements.successive_sampling import RowPool, within_limit


@pytest.mark.parametrize("pile", [None, 1, 2])
def test_every_order_is_equally_likely(pile: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if pile is not None:  # shuffle in piles, as large arrays are
        monkeypatch.setattr(random_order, "PIECE", 2)
        monkeypatch.setattr(random_order, "_PILE", pile)
    rng = np.random.default_rng(0)
    counts = dict.fromkeys(itertools.permutations(range(4)), 0)
    for _ in range(4800):
        counts[tuple(shuffled(np.arange(4), rng).tolist())] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 1e-4


@given(st.integers(0, 3000), st.integers(0, 8), st.integers(0, 1000))
@settings(max_examples=60)
def test_dealing_gives_every_position_once_pile_by_pile(number: int, power: int, seed: int) -> None:
    order, pile = dealt(number, 2**power, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(number))
    assert order.tolist() == sorted(range(number), key=lambda i: (pile[i], i))
    assert number == 0 or pile.max() < 2**power


def test_a_shuffle_keeps_what_it_shuffles_and_its_seed_decides() -> None:
    values = np.random.default_rng(0).integers(0, 50, 1_200_000).astype(np.int32)
    before = values.copy()
    one, two, three = (shuffled(values, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(values, before) and one.dtype == np.int64
    assert np.array_equal(one, two) and not np.array_equal(one, three)
    assert np.array_equal(np.bincount(one), np.bincount(values))
    for wrong in (0, 3, 2**17):
        with pytest.raises(ValueError, match="piles"):
            dealt(5, wrong, np.random.default_rng(0))


def expected_inclusion(weights: np.ndarray, number: int) -> np.ndarray:
    """Probability that each row is among ``number`` drawn one after the other, all paths summed."""
    total = np.zeros(weights.size)
    for path in itertools.permutations(range(weights.size), number):
        probability, left = 1.0, weights.sum()
        for row in path:
            probability *= weights[row] / left
            left -= weights[row]
        total[list(path)] += probability
    return total


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("changed", [[], [2, 9], list(range(10))])
def test_rows_are_drawn_in_proportion_one_after_the_other(
    direct: bool, changed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(successive_sampling, "_SMALL_POOL", 1000 if direct else 0)
    rng = np.random.default_rng(5)
    old, weights = rng.exponential(size=10), rng.exponential(size=10)
    weights = np.where(np.isin(np.arange(10), changed), weights, old)
    rows = np.arange(9)  # row 9 was not there when the pool was made
    if 9 not in changed:
        weights = weights[:9]
    pool = RowPool(rows, np.log(old[:9]) + 300.0, 10)
    pool.note_changes(np.array(changed, dtype=np.int64))
    pool.note_changes(np.array(changed, dtype=np.int64))  # twice is once
    keys = np.log(weights) + 300.0
    times, draws = np.zeros(weights.size), 6000
    for _ in range(draws):
        chosen, _ = pool.draw(
            2, 2, keys, -math.inf, np.full(10, -1), lambda r: np.ones(r.size, bool), rng
        )
        assert np.unique(chosen).size == 2
        times[chosen] += 1
    expected = expected_inclusion(weights, 2)
    error = np.sqrt(expected * (1 - expected) / draws)
    assert (np.abs(times / draws - expected) < 4.5 * error).all()


@pytest.mark.parametrize("direct", [True, False])
def test_a_saved_pool_draws_the_same(direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(successive_sampling, "_SMALL_POOL", 1000 if direct else 0)
    rng = np.random.default_rng(0)
    keys = rng.normal(size=60)
    pool = RowPool(np.arange(50), keys[:50].copy(), 60)
    keys[40:] = rng.normal(size=20)
    pool.note_changes(np.arange(40, 55))
    pool.note_changes(np.arange(50, 60))
    pool.keep(np.arange(50) % 7 > 0)
    again = RowPool.from_state(pool.state_dict(), 60)
    groups = np.arange(60) % 4

    def draws(which: RowPool) -> list[list[int]]:
        generator = np.random.default_rng(3)
        return [
            which.draw(7, 2, keys, 0.0, groups, lambda r: r % 5 > 0, generator)[0].tolist()
            for _ in range(50)
        ]

    drawn = draws(pool)
    assert draws(again) == drawn
    for rows in drawn:
        assert len(set(rows)) == len(rows) == 7 and all(
            row % 5 and row not in (0, 7) for row in rows
        )
        assert np.bincount(np.array(rows) % 4).max() <= 2
        assert all(row < 40 or keys[row] >= 0 for row in rows)


@given(st.lists(st.integers(0, 9), max_size=40))
def test_first_of_each(values: list[int]) -> None:
    assert first_of_each(np.array(values, dtype=np.int64)).tolist() == list(dict.fromkeys(values))


@given(st.lists(st.integers(-1, 3), max_size=30), st.integers(1, 5))
def test_within_limit(groups: list[int], limit: int) -> None:
    kept: list[int] = []
    for row, group in enumerate(groups):
        if group < 0 or sum(groups[k] == group for k in kept) < limit:
            kept.append(row)
    found = within_limit(np.arange(len(groups)), np.array(groups, dtype=np.int64), limit)
    assert found.tolist() == kept


@pytest.mark.parametrize(("size", "number"), [(5, 5), (40, 3), (200, 4)])
def test_distinct_positions_are_uniform(size: int, number: int) -> None:
    rng = np.random.default_rng(1)
    counts = np.zeros((number, size))
    for _ in range(4000):
        found = distinct_positions(size, number, rng)
        assert np.unique(found).size == number
        counts[np.arange(number), found] += 1
    assert all(stats.chisquare(place).pvalue > 1e-4 for place in counts)
