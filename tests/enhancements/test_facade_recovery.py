"""What a run goes back to after a divergence, and the average that a loaded state brings along."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from ringrift_pipeline.enhancements.facade_config import FacadeConfig
from ringrift_pipeline.enhancements.training_facade import TrainingEnhancementsFacade
from ringrift_pipeline.enhancements.training_stability import HEALTHY_RISE, LossMonitor

from .test_training_facade import Net, assert_same, broken, make_batch, new, steady, weights_of


@pytest.mark.parametrize("interval", (1, 4))
@pytest.mark.parametrize("include_model", (True, False))
def test_a_loaded_state_brings_its_averaged_model_along(interval: int, include_model: bool) -> None:
    whole = new(averaging_interval=interval)
    steady(whole, 9)
    whole.update_average()  # nothing is left to average, so that no update builds it
    resumed = new(seed=5, averaging_interval=interval)
    resumed.load_state_dict(whole.state_dict(include_model))
    assert resumed.averaged_model is not None and not resumed.averaged_model.training
    assert_same(resumed.averaged_model, whole.averaged_model, exact=True)
    for a, b in zip(resumed.averaged_model.buffers(), whole.averaged_model.buffers(), strict=True):
        assert torch.equal(a, b)
    assert not any(p.requires_grad for p in resumed.averaged_model.parameters())
    for facade in (whole, resumed):
        assert facade.train_step(broken("nan")).anomaly == "non_finite"
        facade.update_average()
    assert_same(resumed.averaged_model, whole.averaged_model, exact=True)
    if include_model:
        for facade in (whole, resumed):
            steady(facade, interval, 9)
        assert_same(resumed.averaged_model, whole.averaged_model, exact=True)


def test_a_state_without_an_average_loads_none() -> None:
    facade = new()
    empty = facade.state_dict()
    steady(facade, 3)
    facade.load_state_dict(empty)
    assert facade.averaged_model is None


def test_a_divergence_takes_average_and_monitor_back_with_the_weights() -> None:
    """All as of the snapshot before step 20, which was taken when its loss had been judged."""
    facade = new(lr=0.02, snapshot_every=10, divergence_patience=3)
    averager, monitor = facade.averager, facade.monitor
    assert averager is not None and monitor is not None
    for step in range(27):
        if step == 20:
            assert facade.averaged_model is not None
            weights, average = weights_of(facade.model), weights_of(facade.averaged_model)
        assert facade.train_step(make_batch(step % 7)).stepped
        if step == 20:
            judged = monitor.state_dict()
    # averaged after steps 1, 5, 9, …, 25: three steps wait at the snapshot, two at the divergence
    assert averager.samples_seen == 25 * 8
    assert monitor.median != pytest.approx(np.median(judged["losses"]), rel=1e-6)
    reports = [facade.train_step(broken("nan")) for _ in range(3)]
    assert [r.anomaly for r in reports] == ["non_finite", "non_finite", "divergence"]
    assert "step 20" in reports[-1].message
    for back, then in (
        (weights_of(facade.model), weights),
        (weights_of(facade.averaged_model), average),
    ):
        assert all(torch.equal(a, b) for a, b in zip(back, then, strict=True))
    assert averager.samples_seen == 17 * 8
    assert monitor.state_dict() == judged
    assert monitor.median == np.median(judged["losses"])
    # the fourth step since the last average, of 32 samples together
    steady(facade, 1, 20)
    assert averager.samples_seen == 21 * 8
    decay = 0.5 ** (32 / (0.1 * 21 * 8))
    for old, now, got in zip(
        average, weights_of(facade.model), weights_of(facade.averaged_model), strict=True
    ):
        torch.testing.assert_close(got, decay * old + (1 - decay) * now)


def test_no_snapshot_is_taken_of_a_model_that_is_already_diverging() -> None:
    facade = new(anomaly_window=10, snapshot_every=5, lr=1e-4)
    monitor = facade.monitor
    assert monitor is not None
    states: list[list[torch.Tensor]] = []
    medians: list[float] = []  # with the loss of each step
    for step in range(200):
        batch = make_batch(step % 7)
        batch["value_targets"] = batch["value_targets"] + 1.0 + 0.04 * max(0, step - 20)
        states.append(weights_of(facade.model))
        stats = facade.train_step(batch)
        if stats.anomaly is not None:
            break
        assert monitor.median is not None
        medians.append(monitor.median)
    assert stats.anomaly == "divergence"
    found = [
        step
        for step, state in enumerate(states)
        if all(torch.equal(a, b) for a, b in zip(state, weights_of(facade.model), strict=True))
    ]
    assert len(found) == 1
    healthy = (1.0 + HEALTHY_RISE) * min(medians[9:])
    assert medians[found[0]] <= healthy
    assert len(medians) - found[0] > 10 and medians[-1] > 2.0 * healthy


def test_a_monitor_is_healthy_while_its_median_is_near_its_best() -> None:
    monitor = LossMonitor(window=5)
    for loss in (1.0, 1.0, 1.0, 1.0, 1.0):
        assert monitor.judge(loss) == "ok" and monitor.healthy
    for loss, healthy in ((1.2, True), (1.2, True), (1.2, True), (1.3, True), (1.3, True)):
        assert monitor.judge(loss) == "ok" and monitor.healthy == healthy
    assert monitor.judge(1.3) == "ok" and not monitor.healthy


def test_mined_samples_lose_their_weight_once_used_often_enough() -> None:
    """`hard_max_times_sampled` bounds what weighting uses, too; reading weights counts nothing."""

    def fresh() -> TrainingEnhancementsFacade:
        facade = new(
            lr=1e-6,
            enable_averaging=False,
            hard_min_samples_before_mining=0,
            hard_loss_threshold_percentile=0.0,
            hard_upweight=5.0,
            hard_max_times_sampled=3,
        )
        facade.train_step(batch)  # makes the rows known, and all of them hard
        return facade

    batch = make_batch(0) | {"indices": torch.arange(8)}
    batch["weights"] = torch.ones(8)
    facade = fresh()
    assert facade.miner is not None
    seen = []
    for _ in range(5):
        losses = torch.ones(8, requires_grad=True)
        for _ in range(5):
            facade.get_weighted_loss(losses, batch["indices"])
        seen.append(facade.miner.get_sample_weights(batch["indices"], 1.0, 5.0).tolist())
        assert facade.train_step(batch).stepped
    assert seen == [[5.0] * 8] * 3 + [[1.0] * 8] * 2
    assert math.isfinite(facade.train_step(batch).loss)


def root_of_nothing(model: nn.Module, batch: dict) -> torch.Tensor:
    """A finite loss; with ``bad`` its gradient is NaN."""
    losses = (model(batch["features"])[1][:, 0] - batch["value_targets"]).square()
    if batch.get("bad"):
        losses = losses + sum((p * 0).square().sum().sqrt() for p in model.parameters())
    return losses


@pytest.mark.parametrize("precision", ("float32", "float16"))
@pytest.mark.parametrize("clip", (True, False))
def test_gradients_that_stay_non_finite_are_a_divergence(clip: bool, precision: str) -> None:
    """Finite losses with them end no row of bad steps and do not enter the median."""
    model = Net()
    facade = TrainingEnhancementsFacade(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        config=FacadeConfig(
            enable_gradient_clipping=clip,
            max_rollbacks=2,
            divergence_patience=4,
            snapshot_every=10,
            precision=precision,
        ),
        loss_fn=root_of_nothing,
    )
    monitor = facade.monitor
    assert monitor is not None
    for step in range(21):
        before = weights_of(model)
        assert facade.train_step(make_batch(step % 7)).stepped
    if facade.scaler is not None:
        facade.scaler.update(2.0)  # lowered to 1 by the first bad step, which may be its fault
        stats = facade.train_step(make_batch(0) | {"bad": True})
        assert not stats.stepped and stats.anomaly is None and "loss scale" in stats.message
    kept = monitor.state_dict()
    reports = [facade.train_step(make_batch(i % 7) | {"bad": True}) for i in range(12)]
    assert not any(r.stepped for r in reports) and all(math.isfinite(r.loss) for r in reports)
    assert [r.anomaly for r in reports] == (["non_finite"] * 3 + ["divergence"]) * 3
    assert "the gradient norm is nan: back to the state of step 20" in reports[3].message
    assert monitor.state_dict() == kept and kept["bad"] == 0
    for old, now in zip(before, weights_of(model), strict=True):
        assert torch.equal(old, now)
    assert [r.should_stop for r in reports] == [False] * 11 + [True]
    assert "max_rollbacks" in reports[-1].stop_reason


def test_bad_steps_of_different_kinds_count_together() -> None:
    model = Net()
    facade = TrainingEnhancementsFacade(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        config=FacadeConfig(divergence_patience=4, snapshot_every=15),
        loss_fn=root_of_nothing,
    )
    steady(facade, 20)
    bad, spike = make_batch(0) | {"bad": True}, broken("spike")
    found = [facade.train_step(batch).anomaly for batch in (bad, spike, bad, spike)]
    assert found == ["non_finite", "spike", "non_finite", "divergence"]
    for batch in (bad, spike, bad, make_batch(0), bad):  # a good step ends the row
        found.append(facade.train_step(batch).anomaly)
    assert found[4:] == ["non_finite", "spike", "non_finite", None, "non_finite"]


@pytest.mark.parametrize(("rate", "precision", "depth"), ((1e3, "float32", 6), (3e5, "float16", 0)))
def test_a_model_that_overflows_diverges_and_is_no_bad_input(
    rate: float, precision: str, depth: int
) -> None:
    """Its logits become -inf, which would be illegal actions if the model meant them."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = [layer for _ in range(depth) for layer in (nn.Linear(6, 6), nn.ReLU())]
            self.body = nn.Sequential(*layers)
            self.policy, self.value = nn.Linear(6, 5), nn.Linear(6, 2)

        def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            hidden = self.body(features)
            return self.policy(hidden), self.value(hidden)

    torch.manual_seed(0)
    model = Heads()
    facade = TrainingEnhancementsFacade(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=rate),
        config=FacadeConfig(
            precision=precision,
            enable_gradient_clipping=False,
            enable_hard_mining=False,
            max_rollbacks=3,
        ),
    )
    for step in range(60):
        batch = make_batch(step)
        batch["value_targets"] = torch.eye(2)[(batch["value_targets"] > 0).long()]
        stats = facade.train_step(batch)
        if stats.should_stop:
            break
    assert facade.get_epoch_statistics().rollbacks > 0
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
