"""Drift: against scipy, how often it warns for nothing, and how soon of something."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ringrift_pipeline.evaluation.drift import crept, measure_drift

LEVEL = 0.005


def test_agrees_with_the_two_sample_test_of_scipy() -> None:
    """A sample of one against a sample of k is Student's test with the k's own variance."""
    rng = np.random.default_rng(0)
    for k in (3, 5, 8):
        past, value = rng.normal(size=k), 2.5
        found = measure_drift([(x, 0.0) for x in past], value, 0.0, 0.05)
        assert found is not None
        spread = np.sqrt(past.var(ddof=1) * (1 + 1 / k))
        expected = 2 * stats.t.sf(abs(value - past.mean()) / spread, k - 1)
        assert found.chance == pytest.approx(expected, rel=1e-9)
        low, high = stats.t.interval(0.95, k - 1, loc=past.mean(), scale=spread)
        assert (found.low, found.high) == pytest.approx((low, high))
        assert found.drifted == (not low <= value <= high)


def false_warnings(rng: np.random.Generator, wander: float, heavy: bool = False) -> float:
    """Share of judged generations, of runs of twelve, that warn though nothing changes.

    A figure's sampling error is 1; generations differ by `wander` besides.
    """
    warned = judged = 0
    for _ in range(700):
        noise = rng.standard_t(3, 12) if heavy else rng.normal(size=12)
        figures = wander * noise + rng.normal(size=12)
        errors = rng.uniform(0.9, 1.1, 12)
        for now in range(3, 12):
            past = list(zip(figures[:now], errors[:now], strict=True))[-8:]
            found = measure_drift(past, figures[now], errors[now], LEVEL)
            assert found is not None
            warned += found.drifted
            judged += 1
    return warned / judged


@pytest.mark.parametrize(
    ("wander", "heavy", "most"),
    [(0.0, False, LEVEL), (1.0, False, 1.3 * LEVEL), (5.0, False, 1.4 * LEVEL), (5.0, True, 0.02)],
)
def test_false_warnings_are_as_rare_as_asked_for(wander: float, heavy: bool, most: float) -> None:
    rate = false_warnings(np.random.default_rng(1), wander, heavy)
    assert rate <= most
    if wander == 5.0:
        assert rate >= 0.5 * LEVEL  # and not rarer: where generations differ, the test is exact


def test_draws_that_are_rare_do_not_warn_and_many_do() -> None:
    games = 320
    rng = np.random.default_rng(2)

    def figure(draws: int) -> tuple[float, float]:
        likely = (draws + 0.5) / (games + 1)
        return draws / games, float(np.sqrt(likely * (1 - likely) / games))

    never = [figure(0)] * 5
    assert not measure_drift(never, *figure(1), LEVEL).drifted  # type: ignore[union-attr]
    assert measure_drift(never, *figure(40), LEVEL).drifted  # type: ignore[union-attr]
    warned = 0
    for _ in range(2000):
        drawn = [figure(int(n)) for n in rng.binomial(games, 0.01, 6)]
        warned += measure_drift(drawn[:5], *drawn[5], LEVEL).drifted  # type: ignore[union-attr]
    assert warned / 2000 <= 2 * LEVEL


def test_a_jump_warns_once_not_for_ever() -> None:
    rng = np.random.default_rng(3)
    warned = np.zeros(12)
    for _ in range(200):
        figures = rng.normal(size=16) + np.where(np.arange(16) >= 8, 12.0, 0.0)
        for now in range(8, 16):
            past = [(x, 1.0) for x in figures[max(0, now - 8) : now]]
            warned[now - 8] += measure_drift(past, figures[now], 1.0, LEVEL).drifted  # type: ignore[union-attr]
    assert warned[0] > 190  # at once
    assert warned[1:8].sum() < 20  # the new level is then part of the range


def test_a_steady_climb_is_no_drift_by_one_step_and_crept_by_all() -> None:
    for now in range(3, 12):
        past = [(10.0 + 2 * g, 0.1) for g in range(now)][-8:]
        found = measure_drift(past, 10.0 + 2 * now, 0.1, LEVEL)
        assert found is not None and not found.drifted
        far = 2 * len(past)
        assert crept(past[0], (past[0][0] + far, 0.1), change=far - 0.5)
        assert not crept(past[0], (past[0][0] + far, 0.1), change=far)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("error", [0.0, 0.1])
def test_how_far_a_figure_may_go(sign: int, error: float) -> None:
    room = 3 * math.hypot(error, error)  # of the difference of two measurements
    edge = (20.0 if sign > 0 else 5.0) + sign * room
    first = (10.0, error)
    assert not crept(first, (edge - sign * 1e-6, error), factor=2.0)
    assert crept(first, (edge + sign * 1e-6, error), factor=2.0)
    edge = 10.0 + sign * (3.0 + room)
    assert not crept(first, (edge - sign * 1e-6, error), change=3.0)
    assert crept(first, (edge + sign * 1e-6, error), change=3.0)
    assert not crept(first, (edge, error))  # nothing was asked for


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(0, 1e3)), max_size=10))
def test_any_past_gives_an_answer(past: list[tuple[float, float]]) -> None:
    found = measure_drift(past, 0.5, 0.1, LEVEL)
    assert (found is None) == (len(past) < 3)
    if found is not None:
        assert 0.0 <= found.chance <= 1.0
        assert found.drifted == (found.chance < LEVEL)


def test_what_stood_still_without_error_drifts_at_its_first_step() -> None:
    still = [(0.0, 0.0)] * 4
    assert measure_drift(still, 0.1, 0.0, LEVEL).drifted  # type: ignore[union-attr]
    assert not measure_drift(still, 0.0, 0.0, LEVEL).drifted  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("past", "value", "error", "level"),
    [
        ([], 0.0, 0.0, 0.0),
        ([(0.0, -1.0)], 0.0, 0.0, 0.01),
        ([], float("nan"), 0.0, 0.01),
    ],
)
def test_bad_figures_are_refused(
    past: list[tuple[float, float]], value: float, error: float, level: float
) -> None:
    with pytest.raises(ValueError):
        measure_drift(past, value, error, level)
