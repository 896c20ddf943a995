"""The gain of a training run against scipy's one-sample t interval over games."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ringrift_pipeline.training.improvement import CONFIDENCE, gain


def test_the_interval_is_students_over_games_that_count_once() -> None:
    rng = np.random.default_rng(0)
    games = rng.integers(0, 40, 900) * 7  # numbers with gaps
    before = rng.gamma(2.0, 1.0, 900)
    after = before - 0.1 + 0.3 * rng.normal(size=900)
    found = gain(before, after, games)
    by_game = [np.mean((before - after)[games == game]) for game in np.unique(games)]
    low, high = stats.ttest_1samp(by_game, 0.0).confidence_interval(CONFIDENCE)
    assert found["val/gain"] == pytest.approx(np.mean(by_game), rel=1e-12)
    assert found["val/gain_low"] == pytest.approx(low, rel=1e-9)
    assert found["val/gain_high"] == pytest.approx(high, rel=1e-9)


def test_a_worse_model_has_a_gain_below_zero_beyond_doubt() -> None:
    rng = np.random.default_rng(1)
    before = rng.random(600)
    found = gain(before, before + 0.2 + 0.1 * rng.random(600), np.arange(600) // 10)
    assert found["val/gain_high"] < -0.19


def test_one_game_has_a_gain_without_an_interval() -> None:
    assert gain(np.array([2.0, 1.0]), np.array([1.0, 1.0]), np.array([3, 3])) == {"val/gain": 0.5}
