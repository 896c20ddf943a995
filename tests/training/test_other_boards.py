"""The whole chain once on another geometry with three players, from games to calibration."""

from __future__ import annotations

import numpy as np
import pytest

from ringrift_pipeline.network import Evaluator, load_model
from ringrift_pipeline.selfplay import collect, plan_generation, play_shards
from ringrift_pipeline.store import Store
from ringrift_pipeline.training import (
    average,
    build_ensemble,
    build_window,
    calibrate,
    mine_hard_examples,
    open_window,
    score_games,
    train,
)

from .conftest import NOW, settings


@pytest.mark.whole
def test_two_generations_of_a_three_player_hexagonal_game(tmp_path) -> None:
    from ringrift_pipeline.game import get_rules

    config = "hex8_3p"
    store = Store(tmp_path / "data")
    small = settings(
        selfplay__games=6,
        selfplay__games_per_shard=3,
        selfplay__max_plies=60,
        training__max_steps=3,
    )
    for generation in (0, 1):
        plan = plan_generation(store, config, generation, small, NOW)
        play_shards(store, plan, workers=1)
        summary = collect(store, plan).read_json("summary.json")
        assert summary["player"] == ("network" if generation else "heuristic")
        assert len(summary["mean_outcome"]) == 3
        score_games(store, plan)
        mine_hard_examples(store, plan)
        train(store, plan)
        candidate = average(store, plan)
        build_ensemble(store, plan)
        calibrate(store, plan)
        store.promote(config, generation, candidate, {"test": True})
    window = open_window(build_window(store, plan).path)
    assert window.outcome.shape == (len(window), 3)
    np.testing.assert_allclose(window.outcome.sum(axis=1), 1.0, rtol=1e-6)
    assert set(window.generation) == {0, 1}
    # Games cut at max_plies share the win evenly and say so.
    cut = summary["endings"].get("cut_short", 0)
    assert cut > 0 and summary["cut_short"] == pytest.approx(cut / summary["games"])
    assert summary["draws"] + cut <= summary["games"] - sum(
        summary[f"wins_seat_{seat}"] for seat in (1, 2, 3)
    )
    evaluator = Evaluator(load_model(candidate.path), get_rules(config), "cpu")
    assert evaluator.rules.players == 3
