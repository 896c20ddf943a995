"""Re-rating against fixed anchors: who meets whom, and which falls are named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ringrift_pipeline.evaluation import evaluate, expected_share, fit_ratings
from ringrift_pipeline.evaluation.anchors import _verdict, find_falls, rate_against_anchors
from ringrift_pipeline.evaluation.ratings import Ratings
from ringrift_pipeline.store import Store

from .test_evaluating import generation

CONFIG = "square8_2p"


def rated(truth: dict[str, float], games: int, seed: int) -> Ratings:
    """Ratings from games of everybody against the heuristic, in pairs."""
    rng = np.random.default_rng(seed)
    rows = []
    for name, elo in truth.items():
        wins = rng.random(games) < expected_share(elo - 1200.0)
        rows += [([name, "heuristic"], [0, 1] if won else [1, 0]) for won in wins]
    return fit_ratings(
        pl.DataFrame(
            {"players": [row[0] for row in rows], "ranks": [row[1] for row in rows]},
            schema={"players": pl.List(pl.String), "ranks": pl.List(pl.Int64)},
        )
    )


def test_a_fall_is_named_with_whom_it_is_below() -> None:
    truth = {"a": 1250.0, "b": 1450.0, "c": 1460.0, "d": 1200.0}
    (fall,) = find_falls(rated(truth, 600, seed=0), list(truth))
    assert fall.model == "d" and fall.earlier in ("b", "c")
    assert fall.low < -255 < fall.high < 0.0 and fall.low < fall.difference < fall.high


def test_a_slow_fall_is_found_though_no_step_is_certain() -> None:
    truth = {f"g{i}": 1500.0 - 25.0 * i for i in range(8)}
    fit = rated(truth, 400, seed=1)
    names = list(truth)
    steps = [fit.difference(b, a)[2] for a, b in zip(names, names[1:], strict=False)]
    assert max(steps) > 0.0  # some step is within its interval
    assert "g7" in [fall.model for fall in find_falls(fit, names)]


def test_equals_seldom_fall() -> None:
    """At 95%, all comparisons together: about one list of ten in twenty names somebody."""
    names = [f"g{i}" for i in range(6)]
    named = sum(
        any(
            fall.model == "g5"
            for fall in find_falls(rated(dict.fromkeys(names, 1300.0), 100, s), names)
        )
        for s in range(120)
    )
    assert named / 120 <= 0.06


def test_a_list_of_one_and_a_rise_have_no_fall() -> None:
    truth = {"a": 1200.0, "b": 1600.0}
    fit = rated(truth, 200, seed=2)
    assert find_falls(fit, ["a"]) == () and find_falls(fit, ["a", "b"]) == ()
    assert [fall.model for fall in find_falls(fit, ["b", "a"])] == ["a"]


@pytest.mark.whole
def test_every_model_meets_the_same_anchors(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number in range(3):
        plan, model = generation(store, number)
        if number == 0:
            evaluate(store, plan)
        if number != 1:
            store.promote(CONFIG, number, model, {})
    arguments = {"games": 4, "simulations": 2, "playouts": 3, "seed": 5, "workers": 1}
    found = rate_against_anchors(store, CONFIG, **arguments)
    assert found.anchors == ("random", "heuristic", "rollout@3", "generation:0000")
    assert [model.name for model in found.models] == [f"generation:{g:04d}" for g in range(3)]
    assert [model.champion for model in found.models] == [True, False, True]
    assert [bool(model.verdict) for model in found.models] == [True, False, False]
    assert set(found.models[0].shares) == {"random", "heuristic", "rollout@3"}
    for model in found.models[1:]:
        assert set(model.shares) == set(found.anchors)
    # 2 matches of anchors, 3 of generation 0, 4 of each other one
    assert found.games.height == 4 * (2 + 3 + 4 + 4)
    openings = {
        match: own["opening"].to_list()
        for (match,), own in found.games.sort("match", "set", "rotation").group_by("match")
    }
    assert len({str(opening) for opening in openings.values()}) == 1
    assert set(found.fit.players) == {*found.anchors, "generation:0001", "generation:0002"}
    assert found.fit["heuristic"] == 1200.0
    again = rate_against_anchors(store, CONFIG, **arguments)
    assert again.games.equals(found.games) and again.fit.players == found.fit.players


@pytest.mark.parametrize(("promote", "said"), [(True, "passed: why"), (False, "refused: why")])
def test_a_verdict_is_the_gates_word(tmp_path: Path, promote: bool, said: str) -> None:
    store = Store(tmp_path)
    assert _verdict(store, CONFIG, 0) == ""
    with store.create(CONFIG, 0, "evaluation") as draft:
        report = {"gate": {"promote": promote, "reasons": ["why", "and why"]}}
        (draft / "report.json").write_text(json.dumps(report))
    assert _verdict(store, CONFIG, 0) == said


@pytest.mark.whole
def test_of_five_generations_the_middle_one_is_an_anchor_too(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number in range(5):
        generation(store, number)
    found = rate_against_anchors(store, CONFIG, games=2, simulations=2, playouts=2, workers=1)
    assert found.anchors[3:] == ("generation:0000", "generation:0002")
    baselines = {"random", "heuristic", "rollout@2"}
    shares = [set(model.shares) - baselines for model in found.models]
    both = set(found.anchors[3:])
    assert shares == [set(), both, {"generation:0000"}, both, both]
    assert found.games.height == 2 * (2 + 3 + 5 + 4 + 5 + 5)


def test_nothing_to_rate(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model of square8_2p"):
        rate_against_anchors(Store(tmp_path), CONFIG)
    with pytest.raises(ValueError, match="games"):
        rate_against_anchors(Store(tmp_path), CONFIG, games=1)
