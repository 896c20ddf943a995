"""Two whole generations, games to gate, on one device: the same code on the CPU and on CUDA."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch

from ringrift_pipeline.evaluation import evaluate
from ringrift_pipeline.selfplay import collect, plan_generation, play_shards
from ringrift_pipeline.store import Store
from ringrift_pipeline.training import (
    average,
    build_ensemble,
    calibrate,
    mine_hard_examples,
    score_games,
    train,
)

from .test_evaluating import NOW, settings

CONFIG = "square8_2p"
SMALL = {
    "selfplay__games": 12,
    "selfplay__games_per_shard": 6,
    "selfplay__parallel_games": 6,
    "search__simulations": 4,
    "search__cheap_simulations": 2,
    "training__batch_size": 64,
    "training__max_steps": 8,
    "training__holdout_fraction": 0.3,
    "training__threads": 2,
    "network__blocks": 2,
    "network__channels": 8,
    "calibration__min_games": 2,
    "calibration__bootstrap": 20,
}


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
            ],
        ),
    ],
)
@pytest.mark.whole
def test_games_training_and_gate(device: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number in range(2):
        changed = settings(device=device, **SMALL)
        plan = plan_generation(store, CONFIG, number, changed, NOW + timedelta(hours=number))
        play_shards(store, plan, workers=1)
        assert collect(store, plan).metadata["selfplay/games"] == 12
        score_games(store, plan)
        mined = mine_hard_examples(store, plan)
        checkpoint = train(store, plan)
        assert checkpoint.metadata["train/steps"] == 8
        model = average(store, plan)
        ensemble = build_ensemble(store, plan)
        assert ensemble.metadata["val/ensemble_loss"] < checkpoint.metadata["val/loss"] + 0.1
        assert calibrate(store, plan).metadata["games"] >= 2
        evaluation = evaluate(store, plan)
        assert evaluation.metadata["eval/games"] > 0
        store.promote(CONFIG, number, model, {"test": True})
    assert mined.metadata["scored_with"] == "parent"
    assert mined.metadata["train/uncertainty_mean"] > 0
