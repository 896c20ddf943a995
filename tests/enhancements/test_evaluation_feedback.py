"""Evaluation feedback: the trend against other libraries, error rates by simulation, the rate's
bounds, and the defects of the reference.
"""

from __future__ import annotations

import copy
import inspect
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from ringrift_pipeline.enhancements.evaluation_feedback import (
    EvaluationFeedbackHandler,
    bounded_scale,
    create_evaluation_feedback_handler,
    fit_trend,
)

Z95 = norm.ppf(0.975)
Z90 = norm.ppf(0.95)


def optimizer(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": r} for r in rates]
    )


def feed(handler: EvaluationFeedbackHandler, ratings: Any, error: float = 1.0) -> Any:
    """Report ratings with 95% intervals of the standard error; the last decision."""
    decision = handler.decision
    start = len(handler.get_status()["elo_history"])
    for at, elo in enumerate(ratings, start):
        decision = handler.on_evaluation(f"e{at}", elo, elo - Z95 * error, elo + Z95 * error)
    return decision


def made(*rates: float, **options: Any) -> EvaluationFeedbackHandler:
    return create_evaluation_feedback_handler(optimizer(*(rates or (1e-4,))), "hex8_2p", **options)


# -- the trend ------------------------------------------------------------------------------------


@given(
    numbers=st.lists(st.integers(0, 500), min_size=3, max_size=12, unique=True),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60)
def test_the_slope_and_its_interval_are_those_of_numpy(numbers: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = np.array(numbers, float)
    e = rng.uniform(1.0, 60.0, x.size)
    y = 1200 + rng.normal(0, 2) * x + rng.normal(0, 1, x.size) * e * rng.choice([0.2, 1.0, 4.0])
    fit = fit_trend(x, y, e, 0.9)
    centred = x - x.mean()  # better conditioned; the slope is the same
    (slope, _), exact = np.polyfit(centred, y, 1, w=1 / e, cov="unscaled")
    _, scaled = np.polyfit(centred, y, 1, w=1 / e, cov=True)  # numpy's own chi-square a degree
    half = Z90 * np.sqrt(max(exact[0, 0], scaled[0, 0]))
    assert fit.slope == pytest.approx(slope, rel=1e-6, abs=1e-6)
    assert fit.high - fit.low == pytest.approx(2 * half, rel=1e-6)
    assert fit.high + fit.low == pytest.approx(2 * slope, rel=1e-6, abs=1e-6)


def test_a_precise_rating_weighs_more_than_a_vague_one() -> None:
    x, y = np.arange(4), np.array([1000.0, 1010.0, 1020.0, 0.0])
    assert fit_trend(x, y, np.array([1.0, 1.0, 1.0, 1e5])).slope == pytest.approx(10.0, abs=0.01)
    assert fit_trend(x, y, np.ones(4)).slope < -100


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (([1, 2], [1.0], [1.0, 1.0]), "ratings"),
        (([1, 2], [1.0, np.nan], [1.0, 1.0]), "ratings"),
        (([1, 1], [1.0, 2.0], [1.0, 1.0]), "numbers"),
        (([], [], []), "numbers"),
        (([1, 2], [1.0, 2.0], [1.0, 0.0]), "errors"),
        (([1, 2], [1.0, 2.0], [1.0, 1.0], 1.0), "confidence"),
    ],
)
def test_a_trend_that_cannot_be_fitted_is_refused(arguments: Any, name: str) -> None:
    rows = [np.array(values, float) for values in arguments[:3]]
    with pytest.raises(ValueError, match=name):
        fit_trend(*rows, *arguments[3:])


# -- verdicts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratings", "trend", "factors"),
    [
        ([1200, 1250, 1300, 1350], "rising", (1.1, 1.0, 1.0)),
        ([1200, 1150, 1100, 1050], "falling", (0.8, 1.0, 1.5)),
        ([1200, 1201, 1199, 1200], "plateau", (0.95, 1.2, 1.4)),
        ([1200, 1300], "undecided", (1.0, 1.0, 1.0)),
    ],
)
def test_each_trend_and_what_follows(
    ratings: list[float], trend: str, factors: tuple[float, ...]
) -> None:
    handler = made(
        exploration_plateau_factor=1.2, selfplay_plateau_factor=1.4, selfplay_falling_factor=1.5
    )
    decision = feed(handler, ratings)
    assert decision.trend == trend and handler.decision is decision
    assert (
        decision.rate_factor,
        decision.exploration_factor,
        decision.selfplay_factor,
    ) == factors
    assert handler.should_adjust_lr() == (factors[0] != 1.0)
    if trend != "undecided":
        assert f"{decision.slope:+.1f}" in decision.reason and "90%" in decision.reason
        assert decision.low < decision.slope < decision.high
    assert json.loads(json.dumps(decision.to_dict()))["trend"] == trend


def test_the_interval_decides_not_the_slope() -> None:
    """A slope of 30 with an interval of 20 is rising above 9, not above 11."""
    x = np.arange(5)
    error = 20.0 / Z90 * np.sqrt(np.sum((x - 2) ** 2))
    for threshold, trend in ((9.99, "rising"), (10.01, "undecided")):
        up, down = (
            feed(
                made(elo_rising_threshold=threshold, elo_falling_threshold=-threshold),
                1200 + sign * 30.0 * x,
                error,
            )
            for sign in (1, -1)
        )
        assert up.trend == trend
        assert down.trend == {"rising": "falling"}.get(trend, trend)
        assert up.low == pytest.approx(10.0) and up.high == pytest.approx(50.0)


def test_a_full_window_that_can_tell_no_better_is_a_plateau_within_the_slack() -> None:
    x = np.arange(5)
    error = 15.0 / Z90 * np.sqrt(np.sum((x - 2) ** 2))  # an interval of -15 to 15
    flat = [1200.0] * 5
    assert feed(made(), flat, error).trend == "plateau"
    assert feed(made(plateau_slack=1.4), flat, error).trend == "undecided"
    assert feed(made(elo_history_window=6), flat, error).trend == "undecided"  # not full yet


def test_only_the_window_counts() -> None:
    handler = made(elo_history_window=4)
    assert feed(handler, [1600, 1500, 1400, 1300]).trend == "falling"
    for at, elo in enumerate([1350, 1400, 1450, 1500]):
        handler.on_evaluation(f"later{at}", elo, elo - 2, elo + 2)
    assert handler.decision.trend == "rising" and handler.decision.evaluations == 4
    assert handler.get_elo_history() == [1350, 1400, 1450, 1500]


# -- error rates ----------------------------------------------------------------------------------


def simulate(slope: float, error: float, runs: int, scatter: float = 1.0, **options: Any) -> dict:
    """Shares of the trends over ``runs`` full windows of ratings around a straight line."""
    rng = np.random.default_rng(7)
    window = options.setdefault("elo_history_window", 6)
    found: dict[str, int] = {}
    for _ in range(runs):
        handler = EvaluationFeedbackHandler(None, "hex8_2p", min_evaluations=window, **options)
        noise = rng.normal(0.0, error * scatter, window)
        trend = feed(handler, 1200.0 + slope * np.arange(window) + noise, error).trend
        found[trend] = found.get(trend, 0) + 1
    return {trend: count / runs for trend, count in found.items()}


def test_pure_noise_is_a_trend_as_often_as_stated() -> None:
    """At the threshold itself an interval of 90% is wrong in 5% on either side, somewhat less as
    scatter above the intervals is allowed for."""
    shares = simulate(0.0, 40.0, 1500, elo_rising_threshold=0.0, elo_falling_threshold=0.0)
    for trend in ("rising", "falling"):
        assert 0.02 < shares[trend] < 0.065, shares
    assert simulate(10.0, 40.0, 800).get("rising", 0.0) < 0.065
    noise = simulate(0.0, 40.0, 800)
    assert noise.get("rising", 0.0) + noise.get("falling", 0.0) < 0.03  # the thresholds help


def test_a_real_trend_is_found_and_never_called_a_plateau() -> None:
    assert simulate(40.0, 40.0, 200)["rising"] > 0.9
    assert simulate(-40.0, 40.0, 200)["falling"] > 0.9
    assert simulate(25.0, 10.0, 400).get("plateau", 0.0) < 0.05
    assert simulate(0.0, 10.0, 200)["plateau"] > 0.95


def test_ratings_that_scatter_more_than_their_intervals_are_doubted() -> None:
    shares = simulate(
        0.0, 10.0, 800, scatter=3.0, elo_rising_threshold=0.0, elo_falling_threshold=0.0
    )
    naive = 2 * norm.sf(Z90 / 3.0)  # 58% false alarms, were the intervals believed
    assert shares.get("rising", 0) + shares.get("falling", 0) < naive / 2


# -- what the reference got wrong -----------------------------------------------------------------


def test_an_evaluation_reaches_the_history() -> None:
    """The reference read a key that no event carried, took 0 and kept nothing."""
    handler = made()
    feed(handler, [1234.0, 1250.0])
    assert handler.get_elo_history() == [1234.0, 1250.0]
    with pytest.raises(TypeError):
        handler.on_evaluation("e9")  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="elo"):
        handler.on_evaluation("e9", None, 1.0, 2.0)  # type: ignore[arg-type]
    assert handler.get_elo_history() == [1234.0, 1250.0]


def test_an_evaluation_counts_once_however_often_it_is_reported() -> None:
    once, twice = made(elo_history_window=4), made(elo_history_window=4)
    for at, elo in enumerate([1200.0, 1240.0, 1280.0]):
        for handler, times in ((once, 1), (twice, 2)):
            for _ in range(times):
                handler.on_evaluation(f"e{at}", elo, elo - 5, elo + 5)
    assert twice.get_elo_history() == once.get_elo_history() == [1200.0, 1240.0, 1280.0]
    assert twice.decision == once.decision and twice.get_status()["evaluations"] == 3
    assert twice.apply_lr_adjustment(1) is not None
    for at, elo in enumerate([1200.0, 1240.0, 1280.0]):  # and much later, too
        twice.on_evaluation(f"e{at}", elo, elo - 5, elo + 5)
    assert not twice.should_adjust_lr() and twice.apply_lr_adjustment(2) is None


def test_a_rate_is_never_cut_while_elo_rises() -> None:
    """The reference clamped 2e-3 to its max_lr of 1e-3 because Elo rose."""
    handler = made(2e-3, 1e-3)
    feed(handler, [1200, 1250, 1300])
    assert handler.decision.trend == "rising"
    assert handler.apply_lr_adjustment(1) == 2e-3
    assert [group["lr"] for group in handler.optimizer.param_groups] == [2e-3, 1e-3]  # type: ignore[union-attr]


def test_groups_keep_their_ratios() -> None:
    """The reference gave every group the first one's rate."""
    handler = made(1e-4, 3e-5, 0.0)
    feed(handler, [1300, 1250, 1200])
    assert handler.apply_lr_adjustment() == pytest.approx(0.8e-4)
    rates = [group["lr"] for group in handler.optimizer.param_groups]  # type: ignore[union-attr]
    assert rates == pytest.approx([0.8e-4, 2.4e-5, 0.0])


def test_two_noisy_ratings_change_nothing() -> None:
    """The reference changed the rate after any two ratings, whatever their difference."""
    handler = made()
    feed(handler, [1200, 1190], 40.0)
    assert not handler.should_adjust_lr() and handler.apply_lr_adjustment(1) is None
    assert handler.get_current_lr() == 1e-4


def test_names_and_order_of_arguments_are_the_references() -> None:
    parameters = list(inspect.signature(EvaluationFeedbackHandler).parameters.values())
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional[:5] == ["optimizer", "config_key", "min_lr", "max_lr", "elo_history_window"]
    assert positional[5:8] == ["lr_increase_factor", "lr_decrease_factor", "lr_plateau_factor"]
    assert positional[8:] == ["elo_rising_threshold", "elo_falling_threshold"]
    handler = EvaluationFeedbackHandler(optimizer(1e-4), "hex8_2p", 1e-6, 1e-3, 5, 1.2, 0.5, 0.9)
    feed(handler, [1300, 1250, 1200])
    assert handler.apply_lr_adjustment(current_epoch=3) == pytest.approx(5e-5)
    status = handler.get_status()
    assert status["config_key"] == "hex8_2p" and status["current_lr"] == pytest.approx(5e-5)
    assert status["last_adjustment_epoch"] == 3 and status["pending_adjustment"] is None


# -- the rate -------------------------------------------------------------------------------------


RATES = st.floats(1e-9, 1.0)


@given(
    factor=st.floats(0.05, 3.0),
    rates=st.lists(RATES, min_size=1, max_size=4),
    bounds=st.tuples(RATES, RATES).map(sorted),
)
@settings(max_examples=300)
def test_bounds_hold_and_never_turn_a_verdict_round(
    factor: float, rates: list[float], bounds: list[float]
) -> None:
    low, high = bounds
    scale = bounded_scale(factor, min(rates), max(rates), low, high)
    assert scale >= 1.0 if factor >= 1.0 else scale <= 1.0
    if low <= min(rates) and max(rates) <= high:  # inside, and so they stay
        assert low * (1 - 1e-12) <= min(rates) * scale
        assert max(rates) * scale <= high * (1 + 1e-12)
        if low <= min(rates) * factor and max(rates) * factor <= high:
            assert scale == factor


def test_a_falling_rate_stops_at_the_least_and_starts_from_the_greatest() -> None:
    handler = made(1.1e-6)
    feed(handler, [1300, 1250, 1200])
    assert handler.apply_lr_adjustment() == pytest.approx(1e-6)
    handler = made(1.0)
    feed(handler, [1300, 1250, 1200])
    assert handler.apply_lr_adjustment() == pytest.approx(1e-3)
    handler = made(5e-7)  # below already: falling Elo does not raise it
    feed(handler, [1300, 1250, 1200])
    assert handler.apply_lr_adjustment() == pytest.approx(5e-7)


def test_a_rate_that_is_a_tensor_stays_one() -> None:
    rate = torch.tensor(1e-4)
    handler = made(1e-4)
    handler.optimizer.param_groups[0]["lr"] = rate  # type: ignore[union-attr]
    feed(handler, [1300, 1250, 1200])
    assert handler.apply_lr_adjustment() == pytest.approx(0.8e-4)
    assert handler.optimizer.param_groups[0]["lr"] is rate  # type: ignore[union-attr]


def test_without_an_optimizer_it_only_decides() -> None:
    handler = EvaluationFeedbackHandler(None, "hex8_2p")
    assert feed(handler, [1300, 1250, 1200]).trend == "falling"
    assert handler.should_adjust_lr() and handler.get_current_lr() is None
    with pytest.raises(ValueError, match="optimizer"):
        handler.apply_lr_adjustment()
    assert handler.should_adjust_lr()


def test_deciding_needs_no_torch() -> None:
    code = (
        "import sys; from ringrift_pipeline.enhancements import EvaluationFeedbackHandler as H; "
        "H(None, 'hex8_2p').on_evaluation('a', 1.0, 0.0, 2.0); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# -- order, gaps, repeats -------------------------------------------------------------------------


@given(st.permutations(list(range(7))), st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_the_order_of_arrival_does_not_matter(order: list[int], seed: int) -> None:
    elo = 1200 + np.random.default_rng(seed).normal(0, 30, 7)
    handlers = [EvaluationFeedbackHandler(None, "hex8_2p") for _ in range(2)]
    for handler, numbers in zip(handlers, (range(7), order), strict=True):
        for n in numbers:
            handler.on_evaluation(f"e{n}", elo[n], elo[n] - 9, elo[n] + 9, number=3 * n)
    assert handlers[0].decision == handlers[1].decision
    assert handlers[0].get_elo_history() == handlers[1].get_elo_history()


def test_a_gap_is_time_that_has_passed() -> None:
    handler = EvaluationFeedbackHandler(None, "hex8_2p")
    for number, elo in ((0, 1200.0), (1, 1220.0), (5, 1300.0)):
        handler.on_evaluation(f"e{number}", elo, elo - 1, elo + 1, number=number)
    assert handler.decision.slope == pytest.approx(20.0)


def test_an_evaluation_made_again_replaces_the_first() -> None:
    handler = EvaluationFeedbackHandler(None, "hex8_2p")
    for number, elo in enumerate((1200.0, 1250.0, 1000.0)):
        handler.on_evaluation(f"e{number}", elo, elo - 1, elo + 1, number=number)
    handler.on_evaluation("e2 again", 1300.0, 1299.0, 1301.0, number=2)
    assert handler.get_elo_history() == [1200.0, 1250.0, 1300.0]
    assert handler.decision.trend == "rising"


def test_the_width_of_an_interval_is_read_with_its_confidence() -> None:
    wide, narrow = (EvaluationFeedbackHandler(None, "hex8_2p") for _ in range(2))
    for at, elo in enumerate((1200.0, 1230.0, 1260.0)):
        for handler, share in ((wide, 0.95), (narrow, 0.5)):
            half = 20.0 * norm.ppf(0.5 + share / 2)
            handler.on_evaluation(f"e{at}", elo, elo - half, elo + half, confidence=share)
    assert narrow.decision.low == pytest.approx(wide.decision.low)


# -- state and bad input --------------------------------------------------------------------------


def test_it_goes_on_from_a_saved_state_as_if_never_stopped() -> None:
    rng = np.random.default_rng(3)
    elo = 1300.0 - 30 * np.arange(9) + rng.normal(0, 10, 9)
    straight = made(1e-3, 2e-4)
    stopped = made(1e-3, 2e-4)
    for at in range(9):
        if at == 4:
            state = json.loads(json.dumps(stopped.state_dict()))
            assert state["pending"]
            rates = copy.deepcopy(stopped.optimizer.state_dict())  # type: ignore[union-attr]
            stopped = made(1.0, 1.0)
            stopped.optimizer.load_state_dict(rates)  # type: ignore[union-attr]
            stopped.load_state_dict(state)
            assert stopped.decision == straight.decision
            stopped.on_evaluation("e0", 5.0, 4.0, 6.0)  # known before it was saved
        for handler in (straight, stopped):
            if at in (4, 7):
                handler.apply_lr_adjustment(at)
            handler.on_evaluation(f"e{at}", elo[at], elo[at] - 9, elo[at] + 9)
    assert stopped.state_dict() == straight.state_dict()
    assert stopped.get_status() == straight.get_status()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"config_key": "square8_2p"}, "config_key"),
        ({"ratings": [[0, "e0", 1.0]]}, "ratings"),
        ({"ratings": 5}, "ratings"),
        ({"ratings": [[0, "stranger", 1.0, 1.0]]}, "ratings"),
        ({"ratings": [[0, "e0", float("nan"), 1.0]]}, "ratings"),
        ({"ratings": [[0, "e0", 1.0, 0.0]]}, "ratings"),
        ({"ratings": [[1, "e0", 1.0, 1.0], [0, "e1", 1.0, 1.0]]}, "ratings"),
        ({"seen": "e0"}, "seen"),
        ({"pending": 1}, "pending"),
        ({"last_adjustment_epoch": -2}, "last_adjustment_epoch"),
        ({"seen": None, "pending": None}, "seen"),
    ],
)
def test_a_bad_state_is_refused_and_changes_nothing(change: dict[str, Any], name: str) -> None:
    handler = made()
    feed(handler, [1200, 1250, 1300])
    before = handler.get_status()
    with pytest.raises(ValueError, match=name):
        handler.load_state_dict({**handler.state_dict(), **change})
    lacking = handler.state_dict()
    del lacking[name]
    with pytest.raises(ValueError, match=name):
        handler.load_state_dict(lacking)
    assert handler.get_status() == before


ODD = [None, "x", float("nan"), float("inf"), [1.0], True]


BAD_EVALUATIONS = [
    (name, odd)
    for name in ("elo", "low", "high", "number", "confidence", "evaluation_id")
    for odd in ODD
    if (name, odd) not in (("number", None), ("evaluation_id", "x"))  # these are good
]


@pytest.mark.parametrize(("name", "odd"), BAD_EVALUATIONS, ids=repr)
def test_a_bad_evaluation_is_refused_and_changes_nothing(name: str, odd: Any) -> None:
    handler = made()
    feed(handler, [1200, 1250, 1300])
    before = handler.state_dict()
    good = {"evaluation_id": "new", "elo": 1.0, "low": 0.0, "high": 2.0, "number": 7}
    with pytest.raises(ValueError, match=name):
        handler.on_evaluation(**{**good, "confidence": 0.9, name: odd})
    assert handler.state_dict() == before


@pytest.mark.parametrize(
    ("low", "high", "name"), [(2.0, 3.0, "low"), (0.0, 0.5, "high"), (1.0, 1.0, "high")]
)
def test_an_interval_must_hold_its_rating(low: float, high: float, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        made().on_evaluation("new", 1.0, low, high)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optimizer", object()),
        ("config_key", ""),
        ("config_key", None),
        ("min_lr", -1.0),
        ("max_lr", 1e-9),
        ("elo_history_window", 1),
        ("elo_history_window", 2.5),
        ("lr_increase_factor", 0.9),
        ("lr_decrease_factor", 1.1),
        ("lr_decrease_factor", 0.0),
        ("lr_plateau_factor", float("nan")),
        ("elo_rising_threshold", -1.0),
        ("elo_falling_threshold", 1.0),
        ("exploration_plateau_factor", 0.0),
        ("selfplay_plateau_factor", -1.0),
        ("selfplay_falling_factor", float("inf")),
        ("confidence", 1.0),
        ("min_evaluations", 6),
        ("plateau_slack", 0.5),
    ],
)
def test_bad_arguments_are_named(name: str, value: Any) -> None:
    good: dict[str, Any] = {"optimizer": None, "config_key": "hex8_2p"}
    with pytest.raises(ValueError, match=name):
        EvaluationFeedbackHandler(**{**good, name: value})
    with pytest.raises(ValueError, match="current_epoch"):
        made().apply_lr_adjustment(-1)
