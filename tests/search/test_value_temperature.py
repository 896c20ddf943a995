"""The calibration's temperature in what players report, and in nothing else."""

from __future__ import annotations

import json
import math
import shutil
from typing import Any

import numpy as np
import pytest
import torch

from ringrift_pipeline.enhancements import TrainingConfig
from ringrift_pipeline.enhancements.calibration import value_probabilities
from ringrift_pipeline.game import State, get_rules, layout
from ringrift_pipeline.network import (
    NetworkConfig,
    RingRiftNetwork,
    encode_states,
    load_model,
    save_model,
)
from ringrift_pipeline.network.evaluator import features_to_tensors
from ringrift_pipeline.search import NetworkPlayer, SearchError, load_player
from ringrift_pipeline.search.value_temperature import tempered
from ringrift_pipeline.store import Artefact, Store

from .conftest import HashEvaluator, decisions, game_rows, legal

CONFIG = "square8_3p"


def save_candidate(store: Store, seed: int = 0, generation: int = 7) -> Artefact:
    config = NetworkConfig(blocks=1, channels=8, value_channels=4, geometry="square", players=3)
    with store.create(CONFIG, generation, "ema_model") as draft:
        save_model(draft, RingRiftNetwork(config, seed=seed), {})
    return draft.artefact


def save_report(store: Store, model: Artefact, **report: Any) -> Artefact:
    with store.create(
        CONFIG, model.generation, "calibration_report", metadata={"model": model.digest}
    ) as draft:
        (draft / "report.json").write_text(json.dumps(report))
    return draft.artefact


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "data")
    model = save_candidate(store)
    store.promote(CONFIG, 7, model, {"why": "test"})
    save_report(store, model, format=1, temperature=2.5)
    return store


def player_of(store: Store, spec: Any = "generation:0007", simulations: int = 12) -> NetworkPlayer:
    exact = TrainingConfig().with_overrides({"search.precision": "float32"}).search
    player = load_player(
        spec, CONFIG, simulations=simulations, data=store.root, device="cpu", settings=exact
    )
    assert isinstance(player, NetworkPlayer)
    return player


def raw(player: NetworkPlayer, simulations: int) -> NetworkPlayer:
    """The same player without a temperature."""
    return NetworkPlayer(CONFIG, player.evaluator, simulations=simulations)


def test_only_the_chances_reported_are_tempered(store: Store) -> None:
    model = store.champion(CONFIG)
    assert model is not None
    for spec in ("generation:0007", "champion", model.path, model.path / "model.json"):
        player = player_of(store, spec)
        assert player.value_temperature == 2.5
        assert "calibration report" in player.calibration and "0007" in player.calibration
    plain = raw(player, 12)
    assert plain.value_temperature == 1.0
    moved = 0.0
    for row in decisions(CONFIG, 1)[:12]:
        state = State.from_array(CONFIG, row)
        ours, theirs = player.analyze(state), plain.analyze(state)
        powers = [p ** (1 / 2.5) for p in theirs.value.tolist()]
        assert ours.value == pytest.approx([p / sum(powers) for p in powers], rel=1e-12)
        moved = max(moved, abs(ours.value - theirs.value).max())
        assert np.array_equal(ours.policy, theirs.policy)
        assert np.array_equal(ours.visits, theirs.visits)
        assert player.choose(state) == plain.choose(state)
    assert moved > 1e-3
    states = decisions(CONFIG, 2)
    seeds = np.arange(len(states), dtype=np.uint64)
    assert np.array_equal(player.choose_batch(states, seeds), plain.choose_batch(states, seeds))


def test_without_search_the_chances_are_those_of_the_report(store: Store) -> None:
    """``value_probabilities`` of the value logits is what a report's ``after`` measures."""
    player = player_of(store, simulations=0)
    model = load_model(store.require(CONFIG, 7, "ema_model").path)
    rules = get_rules(CONFIG)
    for row in decisions(CONFIG, 3)[:8]:
        moves = np.array([legal(CONFIG, row)], dtype=np.int64)
        encoded = encode_states(rules, row[None], moves, np.array([moves.size], dtype=np.int32))
        with torch.inference_mode():
            _, value = model(features_to_tensors(encoded, torch.device("cpu")))
        chances = value_probabilities(value[:, :3].double(), 2.5)[0].numpy()
        absolute = np.roll(chances, row[layout.PLAYER])  # mover first, turned back to seats
        analysis = player.analyze(State.from_array(CONFIG, row))
        np.testing.assert_allclose(analysis.value, absolute, atol=2e-7)


def test_forced_moves_are_tempered_and_exact_results_are_not() -> None:
    evaluator = HashEvaluator(3)
    player, plain = (
        NetworkPlayer(CONFIG, evaluator, simulations=2, value_temperature=t) for t in (3.0, 1.0)
    )
    seen = set()
    for seed in range(6):
        for row in game_rows(CONFIG, seed):
            if len(legal(CONFIG, row)) != 1:
                continue
            state = State.from_array(CONFIG, row)
            ours, theirs = player.analyze(state).value, plain.analyze(state).value
            exact = 1.0 in theirs
            seen.add(exact)
            expected = theirs if exact else theirs ** (1 / 3) / (theirs ** (1 / 3)).sum()
            np.testing.assert_allclose(ours, expected, rtol=1e-12)
    assert seen == {True, False}


@pytest.mark.parametrize("temperature", [0.2, 1.0, 4.0])
def test_tempering_is_the_softmax_of_divided_logits(temperature: float) -> None:
    logits = np.random.default_rng(0).normal(scale=4, size=(50, 4))
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    divided = np.exp(logits / temperature)
    np.testing.assert_allclose(
        tempered(chances, temperature), divided / divided.sum(axis=1, keepdims=True), rtol=1e-9
    )
    sure = np.array([0.0, 1.0, 0.0])
    assert np.array_equal(tempered(sure, temperature), sure)


def test_a_report_that_cannot_be_used_is_ignored_with_a_reason(store: Store, tmp_path) -> None:
    def heard(spec: Any = "generation:0007", data: Store = store, config: str = CONFIG) -> str:
        player = load_player(spec, config, simulations=2, data=data.root, device="cpu")
        assert player.value_temperature == 1.0
        return player.calibration

    # Another model of the same generation: its own report counts, not the newest.
    newer = save_candidate(store, seed=1)
    assert "no calibration report of this model" in heard()
    save_report(store, newer, format=1, temperature=0.5)
    assert player_of(store).value_temperature == 0.5
    champion = store.champion(CONFIG)
    assert champion is not None and champion.digest != newer.digest
    assert player_of(store, "champion").value_temperature == 2.5
    # Calibrated on another board.
    assert "calibrated for square8_3p, not square19_3p" in heard(
        champion.path, config="square19_3p"
    )
    # A newer report of the same model is what counts, if we can read it.
    save_report(store, newer, format=99, temperature=3.0)
    assert "format 99" in heard()
    for temperature in (0.0, -1.0, math.nan, True, "2", None):
        save_report(store, newer, format=1, temperature=temperature)
        assert "no temperature" in heard()
    last = save_report(store, newer, temperature=1.5)
    assert player_of(store).value_temperature == 1.5
    (last.path / "report.json").write_text("{}")
    assert player_of(store).value_temperature == 1.0  # the one before is no temperature
    alone = Store(tmp_path / "alone")
    model = save_candidate(alone)
    only = save_report(alone, model, format=1, temperature=2.0)
    (only.path / "report.json").write_text("{}")
    said = heard(data=alone)
    assert "ignored" in said and "corrupt" in said
    # Outside a data root, and with no manifest at all.
    copy = shutil.copytree(champion.path, tmp_path / "copy")
    assert load_player(copy, CONFIG, data=store.root, device="cpu").value_temperature == 2.5
    (copy / "manifest.json").unlink()
    assert "no artefact of a store" in heard(copy)


def test_only_networks_are_calibrated_and_bad_temperatures_refused() -> None:
    for name in ("random", "heuristic", "rollout"):
        assert load_player(name, CONFIG).value_temperature == 1.0
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(SearchError, match="value_temperature"):
            NetworkPlayer(CONFIG, HashEvaluator(3), value_temperature=temperature)
