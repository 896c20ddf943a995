"""Paired differences against sums of squares by hand, closed forms, and planted truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ringrift_pipeline.evaluation.paired_differences import (
    Difference,
    difference_of_means,
    holm,
    paired_difference,
)


def drawn(
    rng: np.random.Generator, shape: tuple[int, int], seeds: float, games: float, rest: float
) -> np.ndarray:
    """(S, G) noise with these standard deviations."""
    by_seed, by_game = rng.normal(size=(shape[0], 1)), rng.normal(size=(1, shape[1]))
    return seeds * by_seed + games * by_game + rest * rng.normal(size=shape)


def test_the_standard_error_is_that_of_the_two_way_layout() -> None:
    S, G = 4, 7
    ours = drawn(np.random.default_rng(1), (S, G), 0.3, 1.0, 0.5)
    theirs = drawn(np.random.default_rng(2), (S, G), 0.3, 1.0, 0.5)
    x = [[float(ours[s, g] - theirs[s, g]) for g in range(G)] for s in range(S)]
    mean = sum(map(sum, x)) / (S * G)
    rows = [sum(row) / G for row in x]
    columns = [sum(x[s][g] for s in range(S)) / S for g in range(G)]
    seeds = G * sum((row - mean) ** 2 for row in rows) / (S - 1)
    games = S * sum((column - mean) ** 2 for column in columns) / (G - 1)
    rest = sum((x[s][g] - rows[s] - columns[g] + mean) ** 2 for s in range(S) for g in range(G)) / (
        (S - 1) * (G - 1)
    )
    assert games > rest
    found = difference_of_means(ours, theirs)
    assert found.mean == pytest.approx(mean)
    assert found.seeds_error**2 == pytest.approx(seeds / (S * G))
    assert found.games_error**2 == pytest.approx((games - rest) / (S * G))
    assert found.standard_error**2 == pytest.approx((seeds + games - rest) / (S * G))
    assert (found.seeds, found.games) == (S, G)


def two_sided(t: float, freedom: int) -> float:
    """Closed forms of Student's t."""
    if freedom == 1:
        return 1.0 - 2.0 / math.pi * math.atan(t)
    if freedom == 2:
        return 1.0 - t / math.sqrt(2.0 + t * t)
    assert freedom == 4
    u = 1.0 + t * t / 4.0
    return 1.0 - 0.75 * t / math.sqrt(u) * (1.0 - t * t / (12.0 * u))


@pytest.mark.parametrize("freedom", [1, 2, 4])
@pytest.mark.parametrize("t", [0.3, 1.7, 6.0])
def test_where_one_source_rules_it_is_students_t(freedom: int, t: float) -> None:
    by_seed = Difference(-0.2 * t, 0.2, 0.0, freedom + 1, 99)
    by_game = Difference(-0.2 * t, 0.0, 0.2, 99, freedom + 1)
    p = two_sided(t, freedom)
    for difference in (by_seed, by_game):
        assert difference.p == pytest.approx(p)
        low, high = difference.interval(1.0 - p)  # just reaches 0
        assert high == pytest.approx(0.0, abs=1e-9) and low == pytest.approx(-0.4 * t)
        assert difference.interval(0.95, 12) == pytest.approx(difference.interval(1 - 0.05 / 12))


def test_half_widths_of_both_sources_add_in_quadrature() -> None:
    difference = Difference(1.0, 0.3, 0.5, 2, 3)
    one = math.tan(math.pi * (0.95 - 0.5))  # quantiles of t, 1 and 2 degrees of freedom
    two = (2 * 0.95 - 1) / math.sqrt(2 * 0.95 * 0.05)
    low, high = difference.interval(0.9)
    assert high - 1.0 == pytest.approx(math.sqrt((0.3 * one) ** 2 + (0.5 * two) ** 2))
    assert low == pytest.approx(2.0 - high)
    assert difference.interval(1.0 - difference.p)[0] == pytest.approx(0.0, abs=1e-8)


@pytest.mark.parametrize(
    ("seeds", "games", "rest", "exact"),
    [(0.0, 0.0, 1.0, True), (0.2, 0.0, 1.0, True), (0.0, 1.0, 0.3, True), (0.1, 1.0, 1.0, False)],
)
def test_no_effect_is_found_at_the_nominal_rate(
    seeds: float, games: float, rest: float, exact: bool
) -> None:
    rng = np.random.default_rng(3)
    nothing = np.zeros((5, 120))
    chances = np.array(
        [
            difference_of_means(drawn(rng, (5, 120), seeds, games, rest), nothing).p
            for _ in range(1500)
        ]
    )
    assert (0.03 if exact else 0.015) < np.mean(chances < 0.05) < 0.07
    assert np.mean(chances < 0.01) < 0.019  # what is corrected for many comparisons


def test_an_effect_is_found_and_lies_in_the_interval() -> None:
    rng = np.random.default_rng(4)
    found = covered = 0
    for _ in range(300):
        noise = drawn(rng, (5, 200), 0.01, 0.2, 0.2)
        difference = difference_of_means(noise - 0.1, np.zeros((5, 200)))
        low, high = difference.interval(0.9)
        found += difference.p < 0.05
        covered += low < -0.1 < high
    assert found > 290
    assert 0.85 < covered / 300 < 0.98


def test_what_pairs_share_cancels() -> None:
    rng = np.random.default_rng(5)
    shared = drawn(rng, (3, 50), 5.0, 5.0, 0.0)
    apart = drawn(rng, (3, 50), 0.0, 0.0, 0.1)
    assert difference_of_means(shared + apart, shared).standard_error < 0.05


def test_games_without_a_loss_do_not_count() -> None:
    rng = np.random.default_rng(7)
    ours, theirs = rng.normal(size=(2, 3, 10))
    kept = np.arange(10) != 4
    expected = difference_of_means(ours[:, kept], theirs[:, kept])
    ours[:, 4] = theirs[:, 4] = np.nan
    assert difference_of_means(ours, theirs) == expected


def test_a_bootstrap_over_games_gives_the_same_standard_error() -> None:
    rng = np.random.default_rng(8)
    x = drawn(rng, (4, 150), 0.05, 0.5, 0.5)
    draws = rng.multinomial(150, np.full(150, 1 / 150), size=6000)
    replicates = x @ draws.T / 150
    found = paired_difference(x.mean(axis=1), np.cov(replicates), 150)
    expected = difference_of_means(x, np.zeros_like(x))
    assert found.seeds_error == pytest.approx(expected.seeds_error)
    assert found.games_error == pytest.approx(expected.games_error, rel=0.03)


def test_pairs_that_do_not_differ_are_no_evidence() -> None:
    same = np.random.default_rng(9).normal(size=(2, 5))
    difference = difference_of_means(same, same)
    assert difference.p == 1.0 and difference.interval() == (0.0, 0.0)


def test_holm_by_hand() -> None:
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04, never falling
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_what_cannot_be_compared_is_refused() -> None:
    one = np.zeros((1, 5))
    with pytest.raises(ValueError, match="at least 2 seeds"):
        difference_of_means(one, one)
    with pytest.raises(ValueError, match="at least 2 games"):
        difference_of_means(np.full((2, 3), np.nan), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="cannot be"):
        difference_of_means(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="finite"):
        paired_difference(np.array([0.0, np.inf]), np.zeros((2, 2)), 5)
    with pytest.raises(ValueError, match="p-values"):
        holm([1.5])
    with pytest.raises(ValueError, match="confidence"):
        Difference(0.0, 1.0, 1.0, 3, 3).interval(1.0)
