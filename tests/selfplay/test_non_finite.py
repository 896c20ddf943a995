"""A network that gives no finite number ends selfplay with its name, the game and the position."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ringrift_pipeline.enhancements import TrainingConfig
from ringrift_pipeline.game import State
from ringrift_pipeline.network import (
    NetworkConfig,
    NonFiniteOutputError,
    RingRiftNetwork,
    save_model,
)
from ringrift_pipeline.selfplay import Plan, ShardError, plan_generation, play_shards
from ringrift_pipeline.selfplay.play import play_heuristic_games
from ringrift_pipeline.selfplay.shards import shard_metadata, write_shard
from ringrift_pipeline.selfplay.stopping import Reporter
from ringrift_pipeline.selfplay.workers import SelfplayError
from ringrift_pipeline.store import Store

from .conftest import CONFIG, NOW, settings

NAN, INF = float("nan"), float("inf")


def overflowing(store: Store) -> Plan:
    """A generation that a champion plays whose finite weights give no finite policy."""
    plan_generation(store, CONFIG, 0, settings(), NOW)
    model = RingRiftNetwork(NetworkConfig(1, 8, 8), seed=1)
    with torch.no_grad():
        model.policy.kind_bias.weight.fill_(3e38)
        model.policy.kind_bias.bias.fill_(3e38)
    with store.create(CONFIG, 0, "ema_model") as draft:
        save_model(draft, model, {})
    store.promote(CONFIG, 0, draft.artefact, {"test": True})
    return plan_generation(store, CONFIG, 1, settings(), NOW)


def test_no_shard_is_made_with_a_network_that_overflows(store: Store) -> None:
    plan = overflowing(store)
    with pytest.raises(NonFiniteOutputError) as caught:
        play_shards(store, plan, workers=1)
    text = str(caught.value)
    assert text.startswith(f"{CONFIG} generation 0001 shard 0000, game 0 at decision 0")
    assert f"the model of generation 0000 ({store.require(CONFIG, 0, 'ema_model').path})" in text
    assert "gives a policy that is not finite" in text
    position = State.from_record(json.loads(text.partition("position: ")[2]))
    assert position.config == CONFIG and len(position.legal_codes()) > 1
    assert not store.artefacts(CONFIG, 1, "selfplay-shard-0000")


def test_workers_say_the_same(store: Store) -> None:
    plan = overflowing(store)
    with pytest.raises(SelfplayError, match=r"shard 000\d, game 0 at decision 0.*not finite"):
        play_shards(store, plan, workers=2)
    assert not any(store.artefacts(CONFIG, 1, f"selfplay-shard-{i:04d}") for i in range(3))


POISON: list[tuple[str, Any, str]] = [
    ("policy", NAN, "a policy that is no distribution"),
    ("policy", 0.9, "a policy that is no distribution"),
    ("root_value", NAN, "values before search"),
    ("search_value", INF, "values after search"),
    ("surprise", NAN, "a surprise that is not finite"),
    ("surprise", -INF, "a surprise that is not finite"),
]


@pytest.mark.parametrize(("column", "value", "what"), POISON)
def test_a_poisoned_decision_is_not_written(
    store: Store, tmp_path: Path, column: str, value: float, what: str
) -> None:
    plan = plan_generation(store, CONFIG, 0, settings(), NOW)
    config = TrainingConfig().with_overrides({})
    decisions, games = play_heuristic_games(CONFIG, 2, 5, config, Reporter(None, None))
    about = shard_metadata(plan, 0)
    write_shard(tmp_path / "good.arrow", decisions, games, about)
    values = np.array(getattr(decisions, column))
    row = int(np.flatnonzero(decisions.game == 1)[3])
    values[int(decisions.offsets[row]) if column == "policy" else row] = value
    bad = replace(decisions, **{column: values})
    with pytest.raises(ShardError, match=rf"{what}.*first in game {CONFIG}-0000-0000-0001, ply"):
        write_shard(tmp_path / "bad.arrow", bad, games, about)


def test_a_poisoned_outcome_is_not_written(store: Store, tmp_path: Path) -> None:
    plan = plan_generation(store, CONFIG, 0, settings(), NOW)
    config = TrainingConfig().with_overrides({})
    decisions, games = play_heuristic_games(CONFIG, 2, 5, config, Reporter(None, None))
    outcome = np.array(games.outcome)
    outcome[1, 0] = NAN
    bad = replace(games, outcome=outcome)
    with pytest.raises(ShardError, match=f"game {CONFIG}-0000-0000-0001 do not sum to 1"):
        write_shard(tmp_path / "bad.arrow", decisions, bad, shard_metadata(plan, 0))
