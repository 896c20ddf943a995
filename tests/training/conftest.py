"""Two tiny generations for the training tests, played once a session."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tiny import TRAINED

from ringrift_pipeline.enhancements import TrainingConfig
from ringrift_pipeline.selfplay import Plan, load_plan, plan_generation, play_shards
from ringrift_pipeline.store import Store

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
CONFIG = "square8_2p"

TINY = {
    **TRAINED,
    "seed": 3,
    "training.max_steps": 14,
}


def settings(**overrides: object) -> TrainingConfig:
    """Tiny settings with some changed; dots in names as double underscores."""
    changed = {name.replace("__", "."): value for name, value in overrides.items()}
    return TrainingConfig().with_overrides({**TINY, **changed})


def save_model_of(store: Store, generation: int, promote: bool = True) -> None:
    """Land a small untrained network as that generation's ``ema_model``."""
    from ringrift_pipeline.game import get_rules
    from ringrift_pipeline.network import NetworkConfig, RingRiftNetwork, save_model

    rules = get_rules(CONFIG)
    shape = NetworkConfig(1, 8, 8, rules.geometry, rules.players)
    with store.create(CONFIG, generation, "ema_model") as draft:
        save_model(draft, RingRiftNetwork(shape, seed=generation), {})
    if promote:
        store.promote(CONFIG, generation, draft.artefact, {"test": True})


def save_evaluation_of(store: Store, generation: int) -> None:
    """Land a report of matches of that generation's ``ema_model``, none of them lost."""
    model = store.require(CONFIG, generation, "ema_model")
    with store.create(CONFIG, generation, "evaluation") as draft:
        report = {"candidate": {"digest": model.digest}, "matches": []}
        (draft / "report.json").write_text(json.dumps(report))


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with generation 0 (heuristic) and 1 (network search) played; do not write."""
    store = Store(tmp_path_factory.mktemp("training") / "data")
    play_shards(store, plan_generation(store, CONFIG, 0, settings(), NOW), workers=1)
    save_model_of(store, 0)
    later = NOW + timedelta(hours=24)
    play_shards(store, plan_generation(store, CONFIG, 1, settings(), later), workers=1)
    return store.root


@pytest.fixture(scope="session")
def root(original: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with all that a training of the second generation reads, a Fisher information among
    it; do not write.
    """
    from ringrift_pipeline.enhancements import EWCRegularizer
    from ringrift_pipeline.selfplay.plan import open_model
    from ringrift_pipeline.training import (
        WindowDataset,
        build_window,
        mine_hard_examples,
        open_window,
        score_games,
    )
    from ringrift_pipeline.training.consolidation import FILE
    from ringrift_pipeline.training.loop import parent_model

    store = Store(shutil.copytree(original, tmp_path_factory.mktemp("prepared") / "data"))
    plan = load_plan(store, CONFIG, 1)
    score_games(store, plan)
    mine_hard_examples(store, plan)
    dataset = WindowDataset(open_window(build_window(store, plan).path))
    assert plan.parent is not None
    parent, _ = parent_model(plan, open_model(store, plan.parent))
    assert parent is not None
    ewc = EWCRegularizer(parent.double().requires_grad_(True))
    ewc.compute_fisher([dataset.batch(range(60))], num_samples=60)
    with store.create(CONFIG, 1, "fisher") as draft:
        ewc.save_state(draft / FILE)
    return str(store.root)


@pytest.fixture()
def store(original: Path, tmp_path: Path) -> Store:
    """A store of one's own with both generations played."""
    return Store(shutil.copytree(original, tmp_path / "data"))


@pytest.fixture()
def first(store: Store) -> Plan:
    return load_plan(store, CONFIG, 0)


@pytest.fixture()
def second(store: Store) -> Plan:
    return load_plan(store, CONFIG, 1)
