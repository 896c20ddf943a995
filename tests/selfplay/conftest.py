"""Small plans and shards for the selfplay tests."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tiny import PLAYED

from ringrift_pipeline.enhancements import TrainingConfig
from ringrift_pipeline.selfplay import Plan, plan_generation, play_shards
from ringrift_pipeline.store import Artefact, Store

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

TINY = {
    **PLAYED,
    "seed": 7,
    "selfplay.games": 5,
    "selfplay.games_per_shard": 2,
    "selfplay.parallel_games": 2,
}

CONFIG = "square8_2p"


def settings(**overrides: object) -> TrainingConfig:
    """Tiny settings with some changed; dots in names as double underscores."""
    changed = {name.replace("__", "."): value for name, value in overrides.items()}
    return TrainingConfig().with_overrides({**TINY, **changed})


def save_champion(store: Store, config: str = CONFIG, generation: int = 0) -> None:
    """Land a small untrained network as ``ema_model`` and promote it."""
    from ringrift_pipeline.game import get_rules
    from ringrift_pipeline.network import NetworkConfig, RingRiftNetwork, save_model

    rules = get_rules(config)
    shape = NetworkConfig(1, 8, 8, rules.geometry, rules.players)
    with store.create(config, generation, "ema_model") as draft:
        save_model(draft, RingRiftNetwork(shape, seed=1), {})
    store.promote(config, generation, draft.artefact, {"test": True})


def save_model_of(store: Store, generation: int, kind: str = "ema_model") -> Artefact:
    """Land a small untrained network of a generation's own."""
    from ringrift_pipeline.game import get_rules
    from ringrift_pipeline.network import NetworkConfig, RingRiftNetwork, save_model

    rules = get_rules(CONFIG)
    shape = NetworkConfig(1, 8, 8, rules.geometry, rules.players)
    with store.create(CONFIG, generation, kind) as draft:
        save_model(draft, RingRiftNetwork(shape, seed=100 + generation), {})
    return draft.artefact


def save_ensemble(store: Store, generation: int, *members: tuple[Artefact, float]) -> Artefact:
    """Land an ensemble as training lists it: names, references, weights."""
    listing = [
        {
            "name": f"{'ema' if model.kind == 'ema_model' else 'last'}-{model.generation:04d}",
            "kind": model.kind,
            "generation": model.generation,
            "digest": model.digest,
            "path": model.path.relative_to(store.root).as_posix(),
            "weight": weight,
        }
        for model, weight in members
    ]
    with store.create(CONFIG, generation, "ensemble") as draft:
        (draft / "members.json").write_text(json.dumps(listing))
    return draft.artefact


def three_models(store: Store) -> list[Artefact]:
    """Generations 0 to 2 with a model each; that of generation 0 is the champion."""
    for generation in range(3):
        plan_generation(store, CONFIG, generation, settings(), NOW)
    save_champion(store)
    champion = store.require(CONFIG, 0, "ema_model")
    return [champion, save_model_of(store, 1), save_model_of(store, 2)]


def prepared(store: Store) -> Plan:
    """A plan of generation 3: the champion meets an earlier model once in two of three shards."""
    champion, _, second = three_models(store)
    save_ensemble(store, 2, (second, 1.0), (champion, 1.0))
    return plan_generation(store, CONFIG, 3, settings(selfplay__opponent_fraction=0.45), NOW)


@pytest.fixture()
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "data")


@pytest.fixture(scope="session")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Plan]:
    """Generation 0 of a tiny loop, played; read it, do not change it."""
    store = Store(tmp_path_factory.mktemp("played"))
    plan = plan_generation(store, CONFIG, 0, settings(), NOW)
    play_shards(store, plan, workers=1)
    return store, plan


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Plan]:
    """Generation 1 of a tiny loop, played by an untrained network; read it, do not change it."""
    store = Store(tmp_path_factory.mktemp("searched"))
    plan_generation(store, CONFIG, 0, settings(), NOW)
    save_champion(store)
    plan = plan_generation(store, CONFIG, 1, settings(), NOW)
    play_shards(store, plan, workers=1)
    return store, plan


@pytest.fixture(scope="session")
def met(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Plan]:
    """Generation 3 of a tiny loop, with games against an earlier model; do not change it."""
    store = Store(tmp_path_factory.mktemp("met"))
    plan = prepared(store)
    play_shards(store, plan, workers=1)
    return store, plan
