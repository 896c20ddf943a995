"""What the evaluation feedback asks for is the rate that training has."""

from __future__ import annotations

import dataclasses

from ringrift_pipeline.selfplay import Plan
from ringrift_pipeline.store import Store
from ringrift_pipeline.training import mine_hard_examples, score_games, train


def trained(store: Store, plan: Plan, rate: float, factor: float) -> tuple[str, float]:
    """Digest of the weights after four steps, and the rate that was reported."""
    raw = {**plan.raw, "settings": {**plan.raw["settings"]}}
    raw["settings"]["optimizer"] = {"learning_rate": rate}
    raw["settings"]["feedback"] = {"rate_factor": factor}
    raw["settings"]["training"] = {**raw["settings"]["training"], "max_steps": 4}
    changed = dataclasses.replace(plan, raw=raw)
    score_games(store, changed)
    mine_hard_examples(store, changed)
    artefact = train(store, changed, resume="never")
    weights = artefact.files["model.safetensors"]["sha256"]
    return weights, artefact.metadata["train/learning_rate"]


def test_the_factor_multiplies_the_rate(store: Store, first: Plan) -> None:
    weights, rate = trained(store, first, 2e-3, 0.5)
    assert rate == 1e-3
    assert trained(store, first, 1e-3, 1.0) == (weights, rate)
    assert trained(store, first, 2e-3, 1.0)[0] != weights
