"""Calibration measured on predictors whose truth is known, and against formulas by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from ringrift_pipeline.enhancements.calibration import (
    CalibrationAutomation,
    calibration_report,
    draw_reliability,
    fit_temperature,
    value_probabilities,
)
from ringrift_pipeline.enhancements.calibration_measures import (
    Forecasts,
    debiased_gap,
    game_draws,
    reliability,
)
from ringrift_pipeline.enhancements.temperature_scaling import optimal_temperature


def dependent_games(
    games: int, positions: int, seats: int, seed: int, sharpness: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, outcomes, ids: all positions of a game predict the one outcome they share."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(games, seats))
    truth = np.exp(logits)
    truth /= truth.sum(axis=1, keepdims=True)
    winner = (rng.random((games, 1)) > np.cumsum(truth, axis=1)).sum(axis=1)
    outcomes = np.eye(seats)[winner]
    return (
        np.repeat(logits * sharpness, positions, axis=0),
        np.repeat(outcomes, positions, axis=0),
        np.repeat(np.arange(games), positions),
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("games", "positions", "seats"),
    [(200, 1, 2), (1000, 1, 2), (5000, 1, 2), (20_000, 1, 2), (200, 40, 2), (300, 8, 4)],
)
def test_a_calibrated_predictor_reads_zero(games: int, positions: int, seats: int) -> None:
    errors, plain, covered, p_values = [], [], 0, []
    seeds = 40 if games < 5000 else 12
    for seed in range(seeds):
        logits, outcomes, ids = dependent_games(games, positions, seats, seed)
        report = calibration_report(softmax(logits), outcomes, ids, bootstrap=100, seed=seed)
        errors.append(report["calibration_error"])
        plain.append(report["calibration_error_plain"])
        low, high = report["calibration_error_interval"]
        covered += low <= 0.0 <= high
        p_values.append(report["p_value"])
    standard_error = np.std(errors) / np.sqrt(len(errors))
    assert abs(np.mean(errors)) < 4 * standard_error + 0.002
    # a predictor without a fault, and a plain error that falls with the root of n
    assert np.mean(plain) > 0.12 * np.sqrt(15 / games), "the plain error is what is biased"
    assert abs(np.mean(errors)) < np.mean(plain) / 2
    assert covered >= 0.9 * seeds
    assert np.mean(np.array(p_values) < 0.05) <= 0.2
    assert np.mean(np.array(p_values) > 0.5) > 0.25


@pytest.mark.parametrize(("sharpness", "shift"), [(1.0, 0.0), (1.5, 0.0), (1.0, 0.3)])
def test_the_interval_covers_the_true_error(sharpness: float, shift: float) -> None:
    """Percentiles of the bootstrap cover the shifted predictor's error 84 times of 100."""

    def logits(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        z = 1.4 * np.random.default_rng([seed, n]).normal(size=n)
        return 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(-(sharpness * z + shift)))

    truth, told = logits(1_000_000, 0)
    true_error = reliability(Forecasts.check(told, truth)).error(debias=False)
    covered = 0
    for seed in range(100):
        truth, told = logits(4000, seed + 1)
        outcomes = (np.random.default_rng(seed).random(4000) < truth).astype(float)
        report = calibration_report(told, outcomes, bootstrap=100, seed=seed)
        low, high = report["calibration_error_interval"]
        covered += low <= true_error <= high
    assert covered >= 92


def test_an_overconfident_predictor_is_caught_and_measured() -> None:
    logits, outcomes, ids = dependent_games(3000, 2, 2, 5, sharpness=2.0)
    predictions = softmax(logits)
    truth = softmax(logits / 2.0)
    report = calibration_report(predictions, outcomes, ids)
    expected = np.abs(predictions - truth).mean()
    assert report["calibration_error"] == pytest.approx(expected, abs=0.02)
    low, high = report["calibration_error_interval"]
    assert 0.0 < low <= expected <= high
    assert report["p_value"] < 0.02
    assert report["squared_calibration_error"] == pytest.approx(
        ((predictions - truth) ** 2).mean(), rel=0.2
    )


def test_positions_of_a_game_are_not_independent_evidence() -> None:
    logits, outcomes, ids = dependent_games(200, 40, 2, 1)
    by_game = calibration_report(softmax(logits), outcomes, ids)
    by_row = calibration_report(softmax(logits), outcomes)

    def width(report: dict) -> float:
        low, high = report["brier_interval"]
        return high - low

    assert by_game["games"] == 200 and by_row["games"] == 8000
    assert 4.0 < width(by_game) / width(by_row) < 9.0  # sqrt(40) = 6.3


def test_clustering_by_game_widens_the_intervals_as_it_must() -> None:
    """Forty positions of a game are worth one: all that is reported must say so.

    The same 200 games are told once with one position each and once with forty copies. Told by
    game, the evidence is the same; taken for 8,000 independent rows, a calibrated predictor would
    be convicted nearly always.
    """
    convicted = {"by game": 0, "by row": 0}
    for seed in range(20):
        logits, outcomes, ids = dependent_games(200, 40, 2, seed)
        p = softmax(logits)
        # 16 bins of 25 forecasts, or of 1,000: the same edges
        once = calibration_report(p[::40], outcomes[::40], ids[::40], bins=16, seed=seed)
        by_game = calibration_report(p, outcomes, ids, bins=16, seed=seed)
        by_row = calibration_report(p, outcomes, bins=16, seed=seed)
        for name in ("calibration_error_interval", "brier_interval", "log_loss_interval"):
            assert by_game[name] == pytest.approx(once[name], abs=1e-9)
            low, high = by_row[name]
            assert (by_game[name][1] - by_game[name][0]) > 1.5 * (high - low)
        convicted["by game"] += by_game["calibration_error_interval"][0] > 0
        convicted["by row"] += by_row["calibration_error_interval"][0] > 0
        assert by_game["p_value"] == pytest.approx(once["p_value"])
    assert convicted["by game"] <= 3 and convicted["by row"] >= 18


def test_numbers_against_formulas_by_hand() -> None:
    p = np.array([0.1, 0.2, 0.8, 0.9])
    y = np.array([0.0, 1.0, 1.0, 0.5])
    report = calibration_report(p, y, bins=2)
    assert report["brier"] == pytest.approx(np.mean([0.01, 0.64, 0.04, 0.16]))
    loss = [-np.log(0.9), -np.log(0.2), -np.log(0.8), -0.5 * np.log(0.9) - 0.5 * np.log(0.1)]
    assert report["log_loss"] == pytest.approx(np.mean(loss))
    assert report["calibration_error_plain"] == pytest.approx(0.5 * 0.35 + 0.5 * 0.1)
    assert [row["prediction"] for row in report["bins"]] == pytest.approx([0.15, 0.85])
    assert [row["outcome"] for row in report["bins"]] == pytest.approx([0.5, 0.75])
    # variance of a mean of two residuals -0.1 and 0.8: half of their sample variance
    error = np.sqrt(np.var([-0.1, 0.8], ddof=1) / 2)
    assert report["bins"][0]["standard_error"] == pytest.approx(error)
    seats = calibration_report(np.c_[p, 1 - p], np.c_[y, 1 - y], bins=2)
    assert seats["brier"] == pytest.approx(2 * report["brier"])
    assert seats["log_loss"] == pytest.approx(report["log_loss"])
    json.dumps(seats)


def test_debiased_gap_vanishes_in_the_mean_and_keeps_real_gaps() -> None:
    noise = np.random.default_rng(0).normal(size=400_000)
    assert debiased_gap(noise, np.ones_like(noise)).mean() == pytest.approx(0.0, abs=0.01)
    assert debiased_gap(noise + 6, np.ones_like(noise)).mean() == pytest.approx(6.0, abs=0.02)
    assert debiased_gap(np.array([0.3]), np.array([0.0])) == pytest.approx([0.3])


@settings(max_examples=100)
@given(
    st.lists(
        st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]) | st.floats(0, 1), min_size=1, max_size=80
    ),
    st.integers(1, 20),
)
def test_bins_hold_everything_once_with_ties_together(values: list[float], bins: int) -> None:
    p = np.array(values)
    table = reliability(Forecasts.check(p, (p > 0.5).astype(float)), bins)
    assert table.count.sum() == p.size
    assert (table.count > 0).all() and table.count.size <= bins
    assert (np.diff(table.prediction) > 0).all()
    assert (table.prediction * table.count).sum() == pytest.approx(p.sum())
    if np.unique(p).size == p.size and p.size % bins == 0:
        assert (table.count == p.size / bins).all()


def test_by_phase_and_by_seat() -> None:
    logits, outcomes, ids = dependent_games(2000, 2, 3, 2)
    predictions = softmax(logits)
    phases = np.where(np.arange(4000) % 2 == 0, "movement", "placement")
    wrong = predictions.copy()
    wrong[phases == "movement"] = softmax(4 * logits[phases == "movement"])
    report = calibration_report(wrong, outcomes, ids, phases)
    good, bad = report["by_phase"]["placement"], report["by_phase"]["movement"]
    assert bad["calibration_error_interval"][0] > 0.05 > good["calibration_error"]
    assert set(report["by_seat"]) == {"0", "1", "2"}
    first = report["by_seat"]["0"]
    alone = calibration_report(wrong[:, 0], outcomes[:, 0], ids)
    assert first["brier"] == pytest.approx(alone["brier"])
    assert first["calibration_error"] == pytest.approx(alone["calibration_error"])
    assert sum(row["count"] for row in good["bins"]) == 2000 * 3


@pytest.mark.parametrize(
    ("predictions", "outcomes", "message"),
    [
        ([-0.5, 0.5], [0, 1], r"predictions must be finite and in \[0, 1\].*row 0"),
        ([0.5, 1.5], [0, 1], "row 1"),
        ([float("nan")], [0], "finite"),
        ([0.5], [0, 1], "shape"),
        ([0.5], [2], "outcomes"),
        ([], [], "n > 0"),
        ([[0.5, 0.7]], [[1, 0]], "sum to 1"),
        ([[0.2] * 5], [[0.2] * 5], "4 seats"),
    ],
)
def test_what_would_be_measured_wrongly_is_refused(predictions, outcomes, message) -> None:
    with pytest.raises(ValueError, match=message):
        calibration_report(predictions, outcomes)


@pytest.mark.parametrize("seats", [1, 2, 3, 4])
@pytest.mark.parametrize("factor", [0.5, 2.5])
def test_temperature_is_the_likelihood_optimum(seats: int, factor: float) -> None:
    logits, outcomes, ids = dependent_games(4000, 2, max(seats, 2), 7, sharpness=factor)
    if seats == 1:
        logits, outcomes = logits[:, :1] - logits[:, 1:], outcomes[:, 0]
    fit = fit_temperature(torch.from_numpy(logits), torch.from_numpy(outcomes), ids, seed=3)
    assert fit.temperature == pytest.approx(factor, rel=0.1)
    assert not fit.at_bound
    assert fit.helps and fit.log_loss_gain_interval[0] > 0
    assert fit.log_loss_before - fit.log_loss_after == pytest.approx(fit.log_loss_gain)
    assert fit.after["calibration_error"] < fit.before["calibration_error"] / 2
    assert fit.games_fitted == fit.games_judged == 2000


def test_temperature_against_an_independent_optimiser() -> None:
    logits, outcomes, ids = dependent_games(300, 3, 4, 11, sharpness=1.7)
    found, _ = optimal_temperature(torch.from_numpy(logits), torch.from_numpy(outcomes))

    def loss(log_t: float) -> float:
        return -(outcomes * np.log(softmax(logits / np.exp(log_t)))).sum()

    best = minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9})
    assert found == pytest.approx(np.exp(best.x), rel=1e-5)


def test_fit_and_judgement_use_different_games() -> None:
    """Each game moves the temperature or the judgement, and none of them both."""
    logits, outcomes, ids = dependent_games(12, 5, 2, 3)
    fit = fit_temperature(logits, outcomes, ids, seed=1)
    assert fit.before["games"] == fit.games_judged == fit.games_fitted == 6
    assert fit.before["positions"] == 30 and not fit.at_bound
    fitted, judged = [], []
    for game in range(12):
        other = np.where((ids == game)[:, None], 1.0 - outcomes, outcomes)  # the other seat won
        changed = fit_temperature(logits, other, ids, seed=1)
        if changed.temperature == fit.temperature:  # bit for bit
            assert changed.log_loss_before != fit.log_loss_before
            assert changed.after["brier"] != fit.after["brier"]
            judged.append(game)
        else:
            assert changed.before == fit.before
            assert changed.log_loss_before == fit.log_loss_before
            fitted.append(game)
    assert len(fitted) == len(judged) == 6
    # with all of the judges against it, the verdict turns and the temperature stays
    against = np.isin(ids, judged)[:, None]
    turned = fit_temperature(logits, np.where(against, 1.0 - outcomes, outcomes), ids, seed=1)
    assert turned.temperature == fit.temperature
    other_seed = fit_temperature(logits, outcomes, ids, seed=2)
    assert other_seed.temperature != fit.temperature
    with pytest.raises(ValueError, match="two games"):
        fit_temperature(np.zeros((5, 2)), np.zeros(5), np.zeros(5))


def test_temperature_of_separable_games_stops_at_the_bound() -> None:
    logits = np.array([[2.0, -2.0], [-2.0, 2.0]] * 20)
    fit = fit_temperature(logits, np.array([0, 1] * 20))
    assert fit.at_bound and fit.temperature == pytest.approx(0.05)


def test_a_head_that_says_nothing_is_left_as_it_is() -> None:
    automation = CalibrationAutomation(bootstrap=20)
    for shape in ((40, 2), (40,)):
        fit = fit_temperature(np.zeros(shape), np.arange(40) % 2, bootstrap=20)
        assert (fit.temperature, fit.at_bound, fit.helps) == (1.0, False, False)
        assert automation.compute_optimal_temperature(np.zeros(shape), np.arange(40) % 2) == 1.0


def test_a_temperature_not_shown_to_be_better_is_reported_and_not_returned() -> None:
    rng = np.random.default_rng(0)
    noise = 0.01 * rng.standard_normal((400, 2))
    automation = CalibrationAutomation(bootstrap=20)
    returned = []
    for seed in range(6):
        won = np.random.default_rng(seed).integers(0, 2, 400)
        returned.append(automation.compute_optimal_temperature(noise, won))
        fit = automation.temperature_fit
        assert fit is not None and fit.temperature != 1.0
        better = fit.log_loss_gain > 0.0 and not fit.at_bound
        assert returned[-1] == (fit.temperature if better else 1.0)
    assert returned.count(1.0) >= 4
    assert (
        automation.compute_optimal_temperature(
            np.array([[2.0, -2.0], [-2.0, 2.0]] * 20), np.array([0, 1] * 20)
        )
        == 1.0
    )


def test_bad_logits_are_refused() -> None:
    for logits, targets in (
        (np.zeros((4, 2)), np.array([0, 1, 2, 0])),
        (np.zeros((4, 2)), np.zeros((4, 3))),
        (np.full((4, 2), np.nan), np.zeros(4)),
        (np.zeros(4), np.array([0, 1, 0.5, 1.5])),
    ):
        with pytest.raises(ValueError):
            fit_temperature(logits, targets)


class Head(torch.nn.Module):
    def __init__(self, columns: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(columns, columns, bias=False)
        torch.nn.init.eye_(self.linear.weight)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return features, self.linear(features)


def test_automation_recalibrates_a_model_and_leaves_it_alone() -> None:
    logits, outcomes, ids = dependent_games(2000, 2, 3, 9, sharpness=3.0)
    features = torch.from_numpy(logits).float()
    automation = CalibrationAutomation(0.05, 1, 1000, 5000)
    automation.add_samples(softmax(logits), outcomes, ids)
    assert automation.should_recalibrate()
    record = automation.get_calibration_history()[0]
    assert record["triggered"] and record["ece"] > 0.05 and record["games"] == 2000

    model = Head(3).train()
    batches = [
        {
            "features": features[i : i + 500],
            "value_targets": torch.from_numpy(outcomes[i : i + 500]),
            "game_ids": ids[i : i + 500],
        }
        for i in range(0, 4000, 500)
    ]
    temperature = automation.compute_optimal_temperature(model, batches)
    assert temperature == pytest.approx(3.0, rel=0.1)
    assert model.training
    assert automation.temperature_fit is not None
    assert automation.temperature_fit.games_fitted == 1000
    assert automation.num_samples == 0
    pairs = [(batch["features"], batch["value_targets"]) for batch in batches]
    same = automation.compute_optimal_temperature(model, pairs, games=ids)
    assert same == pytest.approx(temperature)

    scaled = value_probabilities(features, temperature)
    automation.add_samples(scaled, outcomes, ids)
    assert not automation.should_recalibrate()
    with pytest.raises(ValueError, match="no batches"):
        automation.compute_optimal_temperature(model, [])


def test_one_column_head_is_not_always_one() -> None:
    logits, outcomes, ids = dependent_games(2000, 1, 2, 4, sharpness=2.0)
    column = torch.from_numpy(logits[:, :1] - logits[:, 1:])
    automation = CalibrationAutomation()
    got = automation.compute_optimal_temperature(column, torch.from_numpy(outcomes[:, 0]))
    assert got == pytest.approx(2.0, rel=0.15)


def test_automation_windows_ranges_and_thresholds() -> None:
    automation = CalibrationAutomation(0.05, 5, 10, 20, value_range=(-1, 1))
    automation.add_samples([-1.0, 1.0], torch.tensor([-1.0, 1.0]))
    assert automation.report()["brier"] == 0.0
    automation.add_samples(np.full(30, 0.0), np.ones(30))
    assert automation.num_samples == 20
    assert not automation.should_recalibrate(epoch=4)
    assert automation.get_calibration_history() == []
    assert automation.should_recalibrate(epoch=5)
    assert automation.report()["bins"][0]["prediction"] == pytest.approx(0.5)

    strict = CalibrationAutomation()
    with pytest.raises(ValueError, match="value_range"):
        strict.add_samples([-0.5], [1.0])
    with pytest.raises(ValueError, match="shape"):
        strict.add_samples([0.5], [1.0, 0.0])
    with pytest.raises(ValueError, match="no samples"):
        strict.report()
    strict.add_samples([0.5], [1.0])
    with pytest.raises(ValueError, match="a position"):
        strict.add_samples([[0.5, 0.5]], [[1.0, 0.0]])
    assert strict.num_samples == 1
    for arguments in (
        {"deviation_threshold": 0},
        {"check_interval": 0},
        {"min_samples": 10_000},
        {"value_range": (1, 0)},
    ):
        with pytest.raises(ValueError):
            CalibrationAutomation(**arguments)


def test_games_without_a_name_are_nobody_elses() -> None:
    automation = CalibrationAutomation()
    automation.add_samples([0.5, 0.5], [0.0, 1.0])
    automation.add_samples([0.5] * 4, [0.0, 1.0, 0.0, 1.0], ["#0", "#1", "=#0", "#0"])
    automation.add_samples([0.5], [1.0])
    assert automation.report()["games"] == 2 + 3 + 1


@pytest.mark.parametrize(("games", "runs", "most"), [(60, 20, 2), (20, 60, 6)])
def test_noise_does_not_trigger(games: int, runs: int, most: int) -> None:
    triggered = 0
    for seed in range(runs):
        logits, outcomes, ids = dependent_games(games, 20, 2, seed)
        automation = CalibrationAutomation(0.01, 1, 100, 5000, bootstrap=50)
        automation.add_samples(softmax(logits), outcomes, ids)
        triggered += automation.should_recalibrate()
    assert triggered <= most


def test_a_handful_of_games_is_not_judged() -> None:
    """Two games of 500 positions: no calibrated head would look so."""
    automation = CalibrationAutomation(check_interval=1)
    for game, outcome in (("a", 1.0), ("b", 1.0)):
        automation.add_samples(np.full(500, 0.5), np.full(500, outcome), np.repeat(game, 500))
    assert not automation.should_recalibrate()
    assert automation.get_calibration_history() == []


def test_state_round_trips() -> None:
    logits, outcomes, ids = dependent_games(100, 3, 2, 0)
    one = CalibrationAutomation(check_interval=1, min_samples=10)
    one.add_samples(softmax(logits), outcomes, ids, phases=np.repeat("movement", 300))
    one.should_recalibrate()
    two = CalibrationAutomation(check_interval=1, min_samples=10)
    two.load_state_dict(one.state_dict())
    assert two.report() == one.report()
    assert two.get_calibration_history() == one.get_calibration_history()
    for automation in (one, two):
        automation.add_samples(softmax(logits)[:5], outcomes[:5])
    assert two.should_recalibrate() == one.should_recalibrate()
    assert two.get_calibration_history() == one.get_calibration_history()
    state = one.state_dict()
    state["games"] = state["games"][:-1]
    with pytest.raises(ValueError, match="damaged"):
        two.load_state_dict(state)


def test_picture(tmp_path) -> None:
    logits, outcomes, ids = dependent_games(300, 2, 2, 0, sharpness=2.0)
    before = calibration_report(softmax(logits), outcomes, ids)
    after = calibration_report(softmax(logits / 2), outcomes, ids)
    path = draw_reliability({"before": before, "after": after}, tmp_path / "reliability.png")
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    first = path.read_bytes()
    draw_reliability({"before": before, "after": after}, path)
    assert path.read_bytes() == first
    assert [file.name for file in tmp_path.iterdir()] == ["reliability.png"]
    automation = CalibrationAutomation()
    automation.add_samples(softmax(logits), outcomes, ids)
    automation.report(tmp_path / "window.png")
    assert (tmp_path / "window.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="no report"):
        draw_reliability({}, path)


@settings(max_examples=150)
@given(st.integers(0, 2**32), st.integers(1, 200), st.integers(1, 40), st.integers(0, 4))
def test_equal_mass_bins_are_those_of_numpy_quantiles(seed, size, bins, kind) -> None:
    rng = np.random.default_rng(seed)
    p = (
        lambda: rng.random(size),
        lambda: rng.integers(0, 5, size) / 4,  # ties, 0 and 1
        lambda: np.round(rng.beta(0.1, 0.1, size), 3),
        lambda: rng.random(size) * 1e-5,  # one cell
        lambda: 0.5 + (rng.random(size) - 0.5) / 2**11,
    )[kind]()
    edges = np.unique(np.quantile(p, np.linspace(0, 1, bins + 1)[1:-1], method="higher"))
    expected = np.unique(np.searchsorted(edges, p, side="right"), return_inverse=True)[1]
    table = reliability(Forecasts.check(p, p), bins)
    assert table.count.tolist() == np.bincount(expected).tolist()
    assert table.prediction == pytest.approx(np.bincount(expected, weights=p) / table.count)


@pytest.mark.parametrize("kind", ["dense", "wide", "negative", "words"])
def test_games_are_told_apart_whatever_their_ids(kind: str) -> None:
    number = np.random.default_rng(0).integers(0, 40, 300)
    ids = {
        "dense": number.astype(np.uint8) + 200,
        "wide": number * 10**15,
        "negative": number - 20,
        "words": np.array([f"game {n}" for n in number]),
    }[kind]
    forecasts = Forecasts.check(np.full(300, 0.5), np.full(300, 0.5), ids)
    expected = np.unique(ids, return_inverse=True)[1]
    assert forecasts.games.tolist() == expected.tolist()
    assert forecasts.num_games == np.unique(ids).size


def test_bootstrap_draws_every_game_equally_often() -> None:
    draws = game_draws(50, 2000, 3)
    assert draws.shape == (2000, 50) and (draws.sum(axis=1) == 50).all()
    assert draws.mean(axis=0) == pytest.approx(np.ones(50), abs=4.5 / math.sqrt(2000))
    assert draws.var() == pytest.approx(1 - 1 / 50, rel=0.05)  # multinomial
    assert np.array_equal(draws, game_draws(50, 2000, 3))


def test_samples_that_are_refused_leave_no_trace() -> None:
    watch = CalibrationAutomation(min_samples=2, window_size=10)
    watch.add_samples([0.2, 0.4], [0.0, 1.0])
    before = watch.state_dict()
    with pytest.raises(ValueError, match="predictions: the window holds 1 values"):
        watch.add_samples([[0.2, 0.8]], [[0.0, 1.0]])
    after = watch.state_dict()
    assert after["unnamed"] == before["unnamed"] == 2 and after["games"] == before["games"]


def test_ids_of_several_kinds_are_told_apart() -> None:
    games = [1, "1b", None, None]
    p, y = np.array([0.2, 0.4, 0.6, 0.7]), np.array([0.0, 1.0, 1.0, 1.0])
    assert calibration_report(p, y, games)["games"] == 3
    logits = torch.logit(torch.from_numpy(p))
    fit = fit_temperature(logits, y, torch.tensor([4, 4, 9, 2]))
    assert fit.games_fitted + fit.games_judged == 3
