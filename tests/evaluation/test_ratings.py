"""Ratings against optimisers and formulas written independently of the package."""

from __future__ import annotations

import itertools
import json
import tracemalloc

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from ringrift_pipeline.evaluation.ratings import (
    RatingError,
    expected_share,
    fit_ratings,
    shown_rating,
)


def test_a_rating_is_shown_on_a_scale_that_others_have() -> None:
    rows = {
        "generation:0003": {"rating": 640.0, "low": 600.0, "high": 680.0, "anchor": False},
        "heuristic": {"rating": 1200.0, "low": 1200.0, "high": 1200.0, "anchor": True},
    }
    shown = {"eval/elo": 640.0, "eval/elo_low": 600.0, "eval/elo_high": 680.0}
    assert shown_rating(rows, "generation:0003") == shown
    rows["random"] = rows.pop("heuristic")
    over_random = {name.replace("elo", "elo_over_random"): value for name, value in shown.items()}
    assert shown_rating(rows, "generation:0003") == over_random
    rows["rollout"] = rows.pop("random")
    assert shown_rating(rows, "generation:0003") == {}


def games(rows: list[tuple[list[str], list[int]]], sets: list[int] | None = None) -> pl.DataFrame:
    frame = pl.DataFrame(
        {"players": [row[0] for row in rows], "ranks": [row[1] for row in rows]},
        schema={"players": pl.List(pl.String), "ranks": pl.List(pl.Int64)},
    )
    return frame if sets is None else frame.with_columns(pl.Series("set", sets))


def loss_by_enumeration(
    theta: dict[str, float], rows: list[tuple[list[str], list[int]]], prior: float
) -> float:
    """Negative log posterior, written from the definition: every compatible order of a game."""

    def order_log_probability(order: tuple[int, ...], players: list[str]) -> float:
        total = 0.0
        for i in range(len(order) - 1):
            rest = [np.exp(theta[players[seat]]) for seat in order[i:]]
            total += theta[players[order[i]]] - np.log(sum(rest))
        return total

    loss = 0.0
    met = set()
    for players, ranks in rows:
        met |= {tuple(sorted(pair)) for pair in itertools.combinations(set(players), 2)}
        fitting = [
            order
            for order in itertools.permutations(range(len(players)))
            if all(ranks[order[i]] <= ranks[order[i + 1]] for i in range(len(order) - 1))
        ]
        loss -= sum(order_log_probability(order, players) for order in fitting) / len(fitting)
    for one, two in met:
        for best in (one, two):
            both = np.exp(theta[one]) + np.exp(theta[two])
            loss -= prior / 2 * (theta[best] - np.log(both))
    return loss


@pytest.mark.parametrize("seats", [2, 3, 4])
def test_fit_agrees_with_scipy_on_mixed_games_with_ties(seats: int) -> None:
    rng = np.random.default_rng(seats)
    names = ["heuristic", "random", "a", "b"]
    rows = []
    for _ in range(60):
        players = [str(name) for name in rng.choice(names, seats)]
        rows.append((players, [int(r) for r in rng.integers(0, 3, seats)]))
    rows += [(["heuristic", name], [0, 1]) for name in names[1:]]
    ratings = fit_ratings(games(rows), prior_draws=0.7)

    def loss(free: np.ndarray) -> float:
        return loss_by_enumeration(
            {"heuristic": 0.0} | dict(zip(names[1:], free, strict=True)), rows, 0.7
        )

    best = minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-9})
    for name, theta in zip(names[1:], best.x, strict=True):
        assert ratings[name] == pytest.approx(1200 + 400 / np.log(10) * theta, abs=0.01), name
    assert ratings["heuristic"] == 1200.0


def test_covariance_is_the_inverse_hessian_by_finite_differences() -> None:
    rng = np.random.default_rng(1)
    names = ["heuristic", "a", "b"]
    rows = [
        ([str(n) for n in rng.permutation(names)], [int(r) for r in rng.permutation(3)])
        for _ in range(40)
    ]
    ratings = fit_ratings(games(rows))
    scale = 400 / np.log(10)
    at = np.array([(ratings[n] - 1200) / scale for n in names[1:]])

    def loss(free: np.ndarray) -> float:
        return loss_by_enumeration(
            {"heuristic": 0.0} | dict(zip(names[1:], free, strict=True)), rows, 1.0
        )

    h = 1e-4
    hessian = np.zeros((2, 2))
    for i, j in itertools.product(range(2), repeat=2):
        for si, sj in itertools.product((1, -1), repeat=2):
            step = at.copy()
            step[i] += si * h
            step[j] += sj * h
            hessian[i, j] += si * sj * loss(step) / (4 * h * h)
    expected = np.linalg.inv(hessian) * scale**2
    index = [ratings.players.index(n) for n in names[1:]]
    assert ratings.covariance[np.ix_(index, index)] == pytest.approx(expected, rel=1e-3)
    gap, low, high = ratings.difference("a", "b")
    error = np.sqrt(expected[0, 0] + expected[1, 1] - 2 * expected[0, 1])
    assert (high - low) / 2 == pytest.approx(1.959964 * error, rel=1e-3)
    assert gap == pytest.approx(ratings["a"] - ratings["b"])
    assert ratings.interval("heuristic") == (1200.0, 1200.0)


def test_two_players_by_the_closed_form() -> None:
    rows = [(["a", "heuristic"], [0, 1])] * 30 + [(["a", "heuristic"], [1, 0])] * 9
    rows += [(["heuristic", "a"], [0, 0])] * 4
    ratings = fit_ratings(games(rows))
    wins, losses = 30 + 2 + 0.5, 9 + 2 + 0.5
    assert ratings["a"] == pytest.approx(1200 + 400 * np.log10(wins / losses), abs=1e-6)
    information = (wins + losses) * (wins / (wins + losses)) * (losses / (wins + losses))
    assert ratings.standard_error[0] == pytest.approx(400 / np.log(10) / np.sqrt(information))
    assert ratings.share[0] == pytest.approx(32 / 43)
    assert list(ratings.games) == [43, 43]


def test_all_games_won_is_finite_and_honest() -> None:
    ratings = fit_ratings(games([(["a", "heuristic"], [0, 1])] * 48))
    assert ratings["a"] == pytest.approx(1200 + 400 * np.log10(48.5 / 0.5))
    low, high = ratings.interval("a")
    assert np.isfinite([low, high]).all() and high - low > 600
    assert ratings.share[0] == 1.0


def test_intervals_cover_the_truth() -> None:
    rng = np.random.default_rng(4)
    truth = {"heuristic": 0.0, "a": 0.8, "b": -0.5}
    names = list(truth)
    covered = tried = 0
    for _ in range(60):
        rows = []
        for _ in range(90):
            players = [str(n) for n in rng.permutation(names)]
            # Plackett-Luce by Gumbel noise, a different construction from the fit's
            keys = np.array([truth[p] for p in players]) + rng.gumbel(size=3)
            rows.append((players, [int(r) for r in np.argsort(np.argsort(-keys))]))
        ratings = fit_ratings(games(rows))
        for name in ("a", "b"):
            low, high = ratings.interval(name)
            covered += low <= 1200 + 400 / np.log(10) * truth[name] <= high
            tried += 1
    assert 0.9 <= covered / tried <= 0.99


def test_several_seats_of_one_player_are_even_chances() -> None:
    # equally strong: one seat of four wins a quarter of the games
    rows = [(["a", "heuristic", "heuristic", "heuristic"], [0, 1, 1, 1])] * 25
    rows += [(["a", "heuristic", "heuristic", "heuristic"], [1, 0, 1, 1])] * 75
    ratings = fit_ratings(games(rows), depth=1, prior_draws=1e-6)
    assert ratings["a"] == pytest.approx(1200.0, abs=0.01)
    assert expected_share(0, 4) == 0.25
    assert ratings.expected_share("a", "heuristic", 4) == pytest.approx(0.25, abs=1e-4)


def test_depth_one_looks_at_the_winner_only() -> None:
    rows = [(["a", "heuristic", "b"], [0, 1, 2]), (["a", "heuristic", "b"], [1, 2, 0])] * 5
    other = [(["a", "heuristic", "b"], [0, 2, 1]), (["a", "heuristic", "b"], [2, 1, 0])] * 5
    first, second = (fit_ratings(games(r), depth=1) for r in (rows, other))
    assert first["a"] == pytest.approx(second["a"], abs=1e-6)
    assert fit_ratings(games(rows))["a"] > fit_ratings(games(other))["a"] + 10


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_order_of_seats_and_games_does_not_matter(results: list[tuple[int, bool]]) -> None:
    pairs = list(itertools.combinations(["a", "b", "c", "heuristic"], 2))
    rows = [(list(pairs[i]), [0, 1] if first else [1, 0]) for i, first in results]
    rows += [([n, "heuristic"], [0, 0]) for n in "abc"]
    turned = [(players[::-1], ranks[::-1]) for players, ranks in rows[::-1]]
    one, two = fit_ratings(games(rows)), fit_ratings(games(turned))
    for name in "abc":
        assert one[name] == pytest.approx(two[name], abs=1e-6)


def test_sets_that_agree_with_themselves_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    rows, sets = [], []
    for number in range(50):
        result = [0, 1] if rng.random() < 0.5 else [1, 0]
        rows += [(["a", "heuristic"], result)] * 4
        sets += [number] * 4
    clustered, free = fit_ratings(games(rows, sets)), fit_ratings(games(rows))
    assert clustered.dispersion == pytest.approx(4.0, rel=0.15)
    assert clustered.standard_error.max() / free.standard_error.max() == pytest.approx(2.0, rel=0.1)
    assert clustered["a"] == pytest.approx(free["a"])
    # sets whose games cancel do not narrow it
    rows = [(["a", "heuristic"], [0, 1]), (["a", "heuristic"], [1, 0])] * 50
    assert fit_ratings(games(rows, [i // 2 for i in range(100)])).dispersion == 1.0


def test_table_and_json() -> None:
    ratings = fit_ratings(games([(["a", "heuristic"], [0, 1]), (["heuristic", "random"], [0, 1])]))
    assert ratings.players == ("a", "heuristic", "random")
    table = ratings.to_frame()
    assert table["rating"].is_sorted(descending=True)
    assert (table["low"] <= table["rating"]).all() and (table["rating"] <= table["high"]).all()
    json.dumps(ratings.to_dict())
    anchored = fit_ratings(
        games([(["a", "heuristic"], [0, 1]), (["heuristic", "random"], [0, 1])]),
        anchor="random",
        anchor_rating=0.0,
    )
    assert anchored["random"] == 0.0
    assert anchored["a"] - anchored["heuristic"] == pytest.approx(ratings["a"] - 1200)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no games"),
        ([(["a", "b"], [0, 1])], "anchor 'heuristic' played no game"),
        ([(["a", "b"], [0, 1]), (["heuristic", "c"], [0, 1])], "no chain of games connects a, b"),
        ([(["heuristic"], [0])], "game 0"),
        ([(["heuristic", "a"], [0])], "game 0"),
        ([(["heuristic", "a"], [0, None])], "game 0"),
    ],
)
def test_games_that_cannot_be_rated(rows: list, message: str) -> None:
    with pytest.raises(RatingError, match=message):
        fit_ratings(games(rows))


def test_bad_arguments() -> None:
    frame = games([(["heuristic", "a"], [0, 1])])
    for arguments in ({"prior_draws": 0.0}, {"confidence": 1.0}, {"depth": 0}):
        with pytest.raises(RatingError):
            fit_ratings(frame, **arguments)
    with pytest.raises(RatingError, match="column 'ranks'"):
        fit_ratings(frame.select("players"))
    with pytest.raises(RatingError, match="no player 'b'"):
        fit_ratings(frame)["b"]


@pytest.mark.parametrize("rank", [float("nan"), float("inf"), 0.5])
def test_ranks_that_are_no_whole_numbers_are_refused_by_game(rank: float) -> None:
    rows = [(["heuristic", "random"], [0.0, 1.0])] * 3
    frame = pl.DataFrame(
        {"players": [row[0] for row in rows], "ranks": [row[1] for row in rows]},
        schema={"players": pl.List(pl.String), "ranks": pl.List(pl.Float64)},
    )
    assert fit_ratings(frame)["random"] < fit_ratings(frame)["heuristic"]
    odd = frame.with_columns(ranks=pl.Series([[0.0, 1.0], [0.0, rank], [0.0, 1.0]]))
    with pytest.raises(RatingError, match=r"game 1 has ranks \[0\.0, .*whole numbers"):
        fit_ratings(odd)


@pytest.mark.parametrize("rating", [float("nan"), float("inf")])
def test_an_anchor_without_a_rating_is_refused(rating: float) -> None:
    with pytest.raises(RatingError, match="anchor_rating must be finite"):
        fit_ratings(games([(["heuristic", "random"], [0, 1])]), anchor_rating=rating)


def test_memory_does_not_grow_with_games_times_players() -> None:
    rng = np.random.default_rng(0)
    names = ["heuristic", *(f"generation:{number:04d}" for number in range(300))]
    rows = [
        ([name, "heuristic"], [0, 1] if rng.random() < 0.6 else [1, 0])
        for name in names[1:]
        for _ in range(40)
    ]
    tracemalloc.start()
    try:
        ratings = fit_ratings(games(rows, list(range(len(rows)))), depth=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(ratings.players) == 301
    assert peak < len(rows) * len(names) * 8  # bytes of one number for each of both
