"""Artefacts that look like a landed evaluation, as far as the sensor reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ringrift_pipeline.enhancements.training_config import TrainingConfig
from ringrift_pipeline.store import Store

PLAN = {"settings": TrainingConfig.preset("smoke").to_dict()}


def fake_model(store: Store, config: str, generation: int) -> Any:
    """An ``ema_model`` artefact whose bytes differ from every other one's."""
    with store.create(config, generation, "ema_model") as draft:
        (draft.path / "model.safetensors").write_bytes(f"{config}/{generation}".encode())
    return draft.artefact


def fake_evaluation(
    store: Store, config: str, generation: int, promote: bool, rating: tuple[float, float] | None
) -> None:
    """Plan, model and evaluation report of a generation, as far as the sensor reads them.

    ``rating`` is the candidate's, with half the width of its interval, Elo.
    """
    store.write_plan(config, generation, PLAN)
    model = store.current(config, generation, "ema_model") or fake_model(store, config, generation)
    report = {
        "candidate": {"digest": model.digest},
        "gate": {"promote": promote, "reasons": ["beats everybody" if promote else "too weak"]},
    }
    numbers = {}
    if rating is not None:
        elo, half = rating
        numbers = {"eval/elo": elo, "eval/elo_low": elo - half, "eval/elo_high": elo + half}
    with store.create(config, generation, "evaluation", numbers) as draft:
        (draft.path / "report.json").write_text(json.dumps(report))


Land = Callable[..., Any]
