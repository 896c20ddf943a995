"""Trials, and losses by row and game, against the loop's own figures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ringrift_pipeline.enhancements.model_ensemble import ModelEnsemble
from ringrift_pipeline.network import RingRiftNetwork
from ringrift_pipeline.selfplay import Plan
from ringrift_pipeline.store import Store
from ringrift_pipeline.training import build_window, open_window
from ringrift_pipeline.training.dataset import WindowDataset
from ringrift_pipeline.training.forward import held_out_losses
from ringrift_pipeline.training.judging import by_ensemble, by_game, by_network, row_losses
from ringrift_pipeline.training.run import network_config
from ringrift_pipeline.training.trial import train_trial
from ringrift_pipeline.training.window import Window

OFF = {"quality.enabled": False, "mining.enabled": False, "training.max_steps": 3}


@pytest.fixture()
def window(store: Store, second: Plan) -> Window:
    return open_window(build_window(store, second).path)


def test_losses_by_row_add_up_to_the_held_out_ones(second: Plan, window: Window) -> None:
    model = RingRiftNetwork(network_config(second), seed=1)
    dataset = WindowDataset(window)
    rows = window.holdout_rows
    expected = held_out_losses(model, dataset, rows, 1.0, 1.0)
    losses = row_losses(by_network(model), dataset, rows)
    assert np.isnan(losses.policy).sum() == expected.rows - expected.policy_rows > 0
    assert np.nanmean(losses.policy) == pytest.approx(expected.loss_policy, rel=1e-5)
    assert losses.value.mean() == pytest.approx(expected.loss_value, rel=1e-5)
    assert losses.chances.shape == (len(rows), 2)
    np.testing.assert_allclose(losses.chances.sum(axis=1), 1.0, atol=1e-6)


def test_rows_keep_their_order_and_games_their_means(second: Plan, window: Window) -> None:
    model = RingRiftNetwork(network_config(second), seed=1)
    rows = window.holdout_rows[::-1].copy()
    losses = row_losses(by_network(model), WindowDataset(window), rows)
    one = row_losses(by_network(model), WindowDataset(window), rows[7:8])
    assert losses.value[7] == pytest.approx(one.value[0], rel=1e-5)
    games = window.game[rows]
    means = by_game(losses.policy, games)
    for number, game in enumerate(sorted(set(games.tolist()))):
        own = [v for v, g in zip(losses.policy, games, strict=True) if g == game and v == v]
        assert means[number] == pytest.approx(sum(own) / len(own))
    unknown = by_game(np.array([np.nan, 1.0, 3.0]), np.array([4, 9, 9]))
    assert np.isnan(unknown[0]) and unknown[1] == 2.0


def test_an_ensemble_is_judged_by_what_its_members_predict(second: Plan, window: Window) -> None:
    models = [RingRiftNetwork(network_config(second), seed=seed).eval() for seed in (1, 2)]
    rows, dataset = window.holdout_rows[:40], WindowDataset(window)
    pooled = ModelEnsemble(value_kind="logits")
    for model in models:
        pooled.add_model(model)
    together = row_losses(by_ensemble(pooled), dataset, rows)
    first, other = (row_losses(by_network(model), dataset, rows) for model in models)
    np.testing.assert_allclose(together.chances, (first.chances + other.chances) / 2, rtol=1e-5)
    known = ~np.isnan(together.policy)  # a geometric mean loses no more than the mean loss
    assert (together.policy < (first.policy + other.policy) / 2 + 1e-6)[known].all()


def test_an_untrained_network_is_as_good_on_turned_boards(second: Plan, window: Window) -> None:
    model = RingRiftNetwork(network_config(second), seed=1).eval()
    rows, dataset = window.holdout_rows[:20], WindowDataset(window)
    turned = [
        row_losses(by_network(model), dataset, rows, symmetries=count).chances for count in (1, 8)
    ]
    by_hand = []
    with torch.inference_mode():
        for number in range(8):
            batch = dataset.batch(rows, np.full(len(rows), number))
            by_hand.append(torch.softmax(model(batch["features"])[1], 1)[:, :2].numpy())
    np.testing.assert_allclose(turned[0], by_hand[0], rtol=1e-5)
    np.testing.assert_allclose(turned[1], np.mean(by_hand, axis=0), rtol=1e-5)


def test_a_trial_depends_on_its_changes_and_seed_alone(second: Plan, window: Window) -> None:
    validation = window.holdout_rows[:10]
    steps: list[int] = []

    def train(seed: int, **changes: object) -> torch.Tensor:
        named = {name.replace("__", "."): value for name, value in changes.items()}
        run = train_trial(
            second,
            window,
            OFF | named,
            seed,
            validation=validation,
            before_step=lambda run: steps.append(run.iteration),
        )
        assert run.iteration == 3 and run.holdout is validation
        return torch.cat([weight.flatten() for weight in run.model.parameters()])

    first = train(5)
    torch.manual_seed(99)
    assert torch.equal(train(5), first)
    assert steps == [0, 1, 2, 0, 1, 2]
    assert not torch.equal(train(6), first)
    assert not torch.equal(train(5, schedule__name="constant"), first)
