"""The gate by simulation, and against formulas written a second time."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import norm

from ringrift_pipeline.evaluation.gate import decide, set_interval, sprt, wilson_interval
from ringrift_pipeline.evaluation.ratings import expected_share


def set_scores(
    rng: np.random.Generator, sets: int, elo: float, players: int = 2, opening: float = 0.0
) -> np.ndarray:
    """Scores of rotated sets; an opening moves up to `opening` of the win between the first seat
    and the others, which makes the games of a set depend on each other and keeps their mean."""
    bias = rng.uniform(-opening, opening, sets)
    share = np.zeros(sets)
    for seat in range(players):
        side = bias if seat == 0 else -bias / (players - 1)
        share += rng.random(sets) < expected_share(elo, players) + side
    return share / players


def run_test(scores: np.ndarray, players: int, step: int = 10) -> tuple[str, int]:
    for sets in range(step, len(scores) + 1, step):
        result = sprt(scores[:sets], players=players)
        if result.verdict != "continue":
            return result.verdict, sets
    return "continue", len(scores)


@pytest.mark.parametrize(("players", "opening"), [(2, 0.0), (2, 0.4), (4, 0.0)])
def test_error_rates_of_the_sequential_test(players: int, opening: float) -> None:
    rng = np.random.default_rng(players + int(10 * opening))
    runs = 150
    verdicts: dict[float, list[str]] = {}
    lengths: dict[float, float] = {}
    for elo in (0.0, 35.0, 100.0):
        results = [
            run_test(set_scores(rng, 2500, elo, players, opening), players) for _ in range(runs)
        ]
        verdicts[elo] = [verdict for verdict, _ in results]
        lengths[elo] = float(np.mean([sets for _, sets in results]))
    # 5% asked for; 0.102 is the 99.5% binomial bound over 150 runs
    assert verdicts[0.0].count("accept") / runs <= 0.102
    assert verdicts[35.0].count("reject") / runs <= 0.102
    assert verdicts[100.0].count("accept") == runs
    assert lengths[100.0] < 0.6 * lengths[0.0]


def test_length_is_what_theory_says() -> None:
    rng = np.random.default_rng(0)
    games = [2 * run_test(set_scores(rng, 2500, 0.0), 2, step=1)[1] for _ in range(40)]
    # about 510 games at elo0 for [0, 35] with 5% errors
    assert 350 < np.mean(games) < 700


def test_ratio_against_a_general_optimiser() -> None:
    support = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    counts = np.array([8, 3, 30, 5, 14])
    scores = np.repeat(support, counts)
    p = counts + np.array([1e-3, 0, 0, 0, 1e-3])
    p = p / p.sum()

    def best(mean: float) -> float:
        found = minimize(
            lambda q: -(p * np.log(np.clip(q, 1e-12, 1))).sum(),
            p,
            method="SLSQP",
            bounds=[(1e-9, 1)] * 5,
            constraints=[
                {"type": "eq", "fun": lambda q: q.sum() - 1},
                {"type": "eq", "fun": lambda q: (q * support).sum() - mean},
            ],
            options={"ftol": 1e-14, "maxiter": 500},
        )
        return -found.fun

    expected = len(scores) * (best(expected_share(35)) - best(expected_share(0)))
    assert sprt(scores).llr == pytest.approx(expected, abs=2e-4)
    # and near the normal approximation
    s0, s1, variance = 0.5, expected_share(35), scores.var()
    normal = len(scores) * (s1 - s0) * (2 * scores.mean() - s0 - s1) / (2 * variance)
    assert sprt(scores).llr == pytest.approx(normal, rel=0.05)


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), max_size=60), st.integers(2, 4))
def test_any_scores_give_a_finite_ratio(scores: list[float], players: int) -> None:
    result = sprt(scores, players=players)
    assert math.isfinite(result.llr)
    assert sprt(scores[::-1], players=players).llr == pytest.approx(result.llr, abs=1e-9)
    if scores and len(set(scores)) == 1 and scores[0] in (0.0, 1.0):
        assert (result.llr > 0) == (scores[0] == 1.0)


def test_a_few_wins_prove_nothing_and_many_do() -> None:
    assert sprt([]).verdict == "continue" and sprt([]).llr == 0.0
    assert sprt([1.0] * 5).verdict == "continue"
    assert sprt([1.0] * 48).verdict == "accept"
    assert sprt([0.0] * 60).verdict == "reject"
    assert sprt([0.5] * 2000).verdict == "reject"


def test_wilson_against_its_definition() -> None:
    for wins, n in ((0, 10), (64, 80), (118, 134), (10, 10), (2.5, 7)):
        low, high = wilson_interval(wins, n)
        z = norm.ppf(0.975)
        for bound in (low, high):
            if 1e-9 < bound < 1 - 1e-9:  # the bounds are where the score test is just significant
                score = (wins / n - bound) / math.sqrt(bound * (1 - bound) / n)
                assert abs(score) == pytest.approx(z, rel=1e-9)
    assert wilson_interval(64, 80) == pytest.approx((0.70, 0.87), abs=0.005)
    assert wilson_interval(118, 134) == pytest.approx((0.81, 0.92), abs=0.01)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    for n in range(1, 1500):  # rounding must not put the proportion outside
        assert wilson_interval(0, n)[0] == 0.0 and wilson_interval(n, n)[1] == 1.0
    for wins, n in ((3, 2), (-1, 2), (float("nan"), 2)):
        with pytest.raises(ValueError):
            wilson_interval(wins, n)


def test_interval_of_sets_counts_sets_that_go_together_once() -> None:
    rng = np.random.default_rng(0)
    together = (rng.random(100) < 0.6).astype(float)
    games = wilson_interval(together.sum(), 100)
    assert set_interval(together) == pytest.approx(games, abs=0.002)
    # games that cancel within their set are not taken for more evidence than they are
    assert set_interval(np.full(100, 0.5)) == pytest.approx(wilson_interval(100, 200))
    assert set_interval(np.ones(24)) == pytest.approx(wilson_interval(48, 48))
    assert set_interval([]) == (0.0, 1.0)


EVEN, STRONG, WEAK = [0.5] * 24, [1.0] * 48, [0.0, 0.5] * 12


def test_first_champion_by_the_baseline_floor() -> None:
    decision = decide({"random": STRONG, "heuristic": EVEN})
    assert decision.promote and decision.first and decision.sprt is None
    assert "no champion yet" in decision.reasons[0]

    below = decide({"random": STRONG, "heuristic": WEAK})
    assert not below.promote
    assert any("loses to heuristic" in reason for reason in below.reasons)

    # even with random in the point estimate is not beyond doubt
    doubt = decide({"random": [0.5, 1.0] * 2, "heuristic": STRONG})
    assert not doubt.promote
    assert any("not beyond doubt" in reason for reason in doubt.reasons)


def test_no_model_is_promoted_that_loses_to_a_baseline_the_champion_beats() -> None:
    scores = {"random": STRONG, "heuristic": WEAK}
    beats = decide(scores, STRONG, {"random": 0.99, "heuristic": 0.7})
    assert beats.sprt is not None and beats.sprt.verdict == "accept"
    assert not beats.promote
    assert "loses to heuristic, which the champion beats (70%)" in beats.reasons[0]

    neither = decide(scores, STRONG, {"random": 0.99, "heuristic": 0.4})
    assert neither.promote
    assert not neither.floors[1].required

    unknown = decide(scores, STRONG, {"random": 0.99})
    assert not unknown.promote


def test_promotion_over_a_champion_needs_the_test() -> None:
    scores = {"random": STRONG, "heuristic": STRONG}
    assert decide(scores, STRONG).promote
    undecided = decide(scores, [0.5, 1.0] * 6)
    assert not undecided.promote and "not proven better" in undecided.reasons[0]
    assert "not even 24 wins could" in undecided.reasons[0]
    assert "raise evaluation.max_games" in undecided.reasons[0]
    longer = decide(scores, [0.0, 1.0] * 38 + [1.0] * 4)
    assert "more games would tell" in longer.reasons[0]
    worse = decide(scores, [0.5] * 2000)
    assert not worse.promote and "not 35 Elo better" in worse.reasons[0]
    missing = decide(scores, has_champion=True)
    assert not missing.promote
    assert "the champion was not met" in missing.reasons[0] and missing.sprt is None
    json.dumps(undecided.to_dict())


def test_four_players_are_even_at_a_quarter() -> None:
    share = [0.25] * 20
    decision = decide({"random": [0.75] * 20, "heuristic": share}, players=4)
    assert decision.promote and decision.floors[0].even == 0.25
    assert not decide({"random": share}, players=4).promote


def test_the_gate_seldom_takes_a_weaker_model() -> None:
    # "200 games, at least 50%" takes a model 20 Elo weaker 23% of the time
    rng = np.random.default_rng(3)
    promoted = 0
    for _ in range(150):
        scores = set_scores(rng, 100, -20.0)
        verdict, sets = run_test(scores, 2)
        promoted += decide({"random": STRONG}, scores[:sets]).promote
        assert (verdict == "accept") == (decide({"random": STRONG}, scores[:sets]).promote)
    assert promoted / 150 <= 0.05


@pytest.mark.parametrize(
    "arguments",
    [
        {"scores": [1.5]},
        {"scores": [[0.5]]},
        {"scores": [0.5], "elo0": 35.0},
        {"scores": [0.5], "alpha": 0.6},
        {"scores": [0.5], "players": 5},
    ],
)
def test_bad_tests_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError):
        sprt(**arguments)


def test_bad_decisions_are_refused() -> None:
    with pytest.raises(ValueError, match="baseline or the champion"):
        decide({})
    with pytest.raises(ValueError, match="no games against the baseline 'random'"):
        decide({"random": []})
