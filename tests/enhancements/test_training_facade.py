"""The facade against loops written out, and each way a run can go wrong."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from ringrift_pipeline.enhancements.ewc_regularization import EWCRegularizer
from ringrift_pipeline.enhancements.facade_config import FacadeConfig
from ringrift_pipeline.enhancements.loss_parts import LossParts
from ringrift_pipeline.enhancements.per_sample_loss import compute_per_sample_loss
from ringrift_pipeline.enhancements.training_config import TrainingConfig
from ringrift_pipeline.enhancements.training_facade import TrainingEnhancementsFacade
from ringrift_pipeline.enhancements.training_stability import LossMonitor

FEATURES, ACTIONS = 6, 5
OFF = {
    "enable_gradient_clipping": False,
    "enable_hard_mining": False,
    "track_per_sample_loss": False,
    "enable_averaging": False,
    "enable_anomaly_detection": False,
}


class Net(nn.Module):
    """A tensor or {"a": …, "b": …} to policy logits and one value; dropout on request."""

    def __init__(self, seed: int = 0, dropout: float = 0.0, seats: int = 1) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Linear(FEATURES, 16)
        self.dropout = nn.Dropout(dropout)
        self.policy = nn.Linear(16, ACTIONS)
        self.value = nn.Linear(16, seats)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, features):
        if isinstance(features, dict):
            features = features["a"] + features["b"]["c"]
        self.calls += 1
        hidden = self.dropout(torch.tanh(self.body(features)))
        return self.policy(hidden), self.value(hidden)


def make_batch(seed: int, size: int = 8, rows: int = 64, **extra) -> dict:
    generator = torch.Generator().manual_seed(1000 + seed)
    return {
        "features": torch.randn(size, FEATURES, generator=generator),
        "policy_targets": torch.randn(size, ACTIONS, generator=generator).softmax(dim=1),
        "value_targets": torch.rand(size, generator=generator) * 2 - 1,
        "indices": torch.randint(0, rows, (size,), generator=generator),
        **extra,
    }


def new(seed: int = 0, lr: float = 0.05, momentum: float = 0.9, dropout: float = 0.0, **settings):
    model = Net(seed, dropout)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    return TrainingEnhancementsFacade(
        model=model, optimizer=optimizer, config=FacadeConfig(**settings)
    )


def weights_of(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def plain_step(model, optimizer, batch, weights=None) -> float:
    """The loop that everyone writes."""
    optimizer.zero_grad()
    policy, value = model(batch["features"])
    loss = compute_per_sample_loss(policy, batch["policy_targets"], value, batch["value_targets"])
    mean = loss.mean() if weights is None else (weights * loss).sum() / weights.sum()
    mean.backward()
    optimizer.step()
    return float(mean.detach())


def assert_same(a: nn.Module, b: nn.Module, exact: bool = False) -> None:
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        if exact:
            assert torch.equal(x, y)
        else:
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


def test_the_readme_example() -> None:
    model = Net()
    facade = TrainingEnhancementsFacade(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-2),
        config=FacadeConfig(
            enable_quality_scoring=True, enable_hard_mining=True, gradient_accumulation_steps=4
        ),
    )
    first, last = [], []
    for step in range(80):
        stats = facade.train_step(make_batch(step % 10))
        assert not stats.should_stop
        (first if step < 20 else last).append(stats.loss)
        assert stats.stepped == (step % 4 == 3)
    assert np.mean(last[-20:]) < np.mean(first)
    assert facade.averaged_model is not None
    assert facade.on_epoch_end(val_loss=1.0)["mean_loss"] > 0.0


def test_with_everything_off_it_is_the_plain_loop() -> None:
    facade = new(**OFF)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(10):
        batch = make_batch(step)
        stats = facade.train_step(batch)
        assert stats.loss == pytest.approx(plain_step(model, optimizer, batch), rel=1e-5)
        assert stats.stepped and stats.step == step + 1 and stats.samples == 8
        assert stats.lr == 0.05 and math.isfinite(stats.grad_norm)
        assert stats.loss == pytest.approx(stats.policy_loss + stats.value_loss, rel=1e-5)
    assert_same(facade.model, model)


def test_tuples_and_nested_features() -> None:
    batch = make_batch(0)
    a, b, c = new(**OFF), new(**OFF), new(**OFF)
    a.train_step(batch)
    b.train_step((batch["features"], batch["policy_targets"], batch["value_targets"]))
    half = batch["features"] / 2
    c.train_step({**batch, "features": {"a": half, "b": {"c": half.numpy()}}})
    assert_same(a.model, b.model, exact=True)
    assert_same(a.model, c.model)


def test_given_weights_weight_the_gradient() -> None:
    weights = torch.tensor([0.0, 1.0, 3.0, 0.5, 0.0, 2.0, 1.0, 1.0])
    facade = new(**OFF)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(5):
        batch = make_batch(step)
        stats = facade.train_step({**batch, "weights": weights})
        assert stats.loss == pytest.approx(plain_step(model, optimizer, batch, weights), rel=1e-5)
    assert_same(facade.model, model)


def test_weights_with_a_graph_are_taken_without_it() -> None:
    weights = torch.linspace(0.5, 2.0, 8, requires_grad=True)
    ours, plain = new(**OFF), new(**OFF)
    for step in range(3):
        assert ours.train_step({**make_batch(step), "weights": weights * 1.0}).stepped
        plain.train_step({**make_batch(step), "weights": weights.detach()})
    assert_same(ours.model, plain.model, exact=True)
    assert weights.grad is None


@pytest.mark.parametrize("steps", [1, 3])
def test_whatever_fails_after_backward_leaves_no_pending_batch(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    facade, plain = (new(**OFF, gradient_accumulation_steps=steps) for _ in range(2))
    with monkeypatch.context() as patch:
        patch.setattr(facade._recovery, "keep", lambda *_: 1 / 0)
        patch.setattr(facade, "monitor", LossMonitor())
        for step in range(steps - 1):
            facade.train_step(make_batch(step))
        with pytest.raises(ZeroDivisionError):
            facade.train_step(make_batch(7))
        if steps > 1:
            facade.train_step(make_batch(0))
            with pytest.raises(ZeroDivisionError):
                facade.flush()
    assert facade.accumulator.pending_batches == 0
    for step in range(steps):
        facade.train_step(make_batch(step))
        plain.train_step(make_batch(step))
    assert_same(facade.model, plain.model, exact=True)


def test_an_entropy_with_a_graph_is_taken_without_it() -> None:
    model = Net()

    def loss_fn(model: nn.Module, batch: dict) -> LossParts:
        policy, value = model(batch["features"])
        losses = (value[:, 0] - batch["value_targets"]).square()
        return LossParts(losses, losses, losses, policy.square().sum(dim=1))

    facade = TrainingEnhancementsFacade(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.01), loss_fn=loss_fn
    )
    assert facade.train_step(make_batch(0)).stepped


def test_policy_and_value_get_gradients_once_mining_is_active() -> None:
    facade = new(hard_min_samples_before_mining=8, hard_upweight=5.0, enable_averaging=False)
    facade.train_step(make_batch(0))
    assert facade.is_mining_active
    before = weights_of(facade.model)
    batch = make_batch(0)
    assert (facade.miner.get_sample_weights(batch["indices"], 1.0, 5.0) == 5.0).any()
    assert facade.train_step(batch).stepped
    for old, parameter in zip(before, facade.model.parameters(), strict=True):
        assert not torch.equal(old, parameter)


def test_mining_weights_enter_the_loss_by_data_set_index() -> None:
    settings = {**OFF, "enable_hard_mining": True, "hard_min_samples_before_mining": 0}
    facade = new(**settings, hard_upweight=4.0, hard_uncertainty_weight=0.0)
    facade.miner.load_examples([3, 50], [9.0, 9.0])
    batch = make_batch(0)
    batch["indices"] = torch.tensor([40, 3, 41, 42, 50, 43, 44, 45])
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    plain_step(model, optimizer, batch, torch.tensor([1.0, 4, 1, 1, 4, 1, 1, 1]))
    facade.train_step(batch)
    assert_same(facade.model, model)
    hardest = {e.index for e in facade.miner.hardest(100)}
    assert hardest == {40, 3, 41, 42, 50, 43, 44, 45}


def test_mining_does_not_depend_on_the_order_in_a_batch() -> None:
    """Rows are known by their data-set index, not by their place in the batch."""
    a, b = new(hard_min_samples_before_mining=0), new(hard_min_samples_before_mining=0)
    for step in range(6):
        batch = make_batch(step, rows=10_000)
        turn = torch.randperm(8, generator=torch.Generator().manual_seed(step))
        a.train_step(batch)
        b.train_step({name: value[turn] for name, value in batch.items()})
    first = {e.index: e.loss for e in a.miner.hardest(100)}
    second = {e.index: e.loss for e in b.miner.hardest(100)}
    assert first.keys() == second.keys()
    for index, loss in first.items():
        assert second[index] == pytest.approx(loss, rel=1e-4)


def test_quality_scores_weight_samples() -> None:
    scores = np.linspace(0.1, 1.0, 64)
    facade = new(**OFF)
    facade.set_quality_scores(scores)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    batch = make_batch(0)
    plain_step(model, optimizer, batch, torch.from_numpy(scores[batch["indices"]]).float())
    facade.train_step(batch)
    assert_same(facade.model, model)
    with pytest.raises(ValueError, match="no quality score"):
        facade.train_step({**batch, "indices": batch["indices"] + 1000})
    with pytest.raises(ValueError, match="enable_quality_scoring"):
        new(enable_quality_scoring=False).set_quality_scores(scores)


@pytest.mark.parametrize("weighted", [False, True])
def test_accumulation_equals_the_large_batch_with_ragged_batches_and_remainder(
    weighted: bool,
) -> None:
    sizes = [8, 3, 5, 8, 2]  # groups of three: 16 samples, then a remainder of two batches
    batches = [make_batch(i, size) for i, size in enumerate(sizes)]
    if weighted:
        for i, batch in enumerate(batches):
            batch["weights"] = torch.rand(sizes[i], generator=torch.Generator().manual_seed(i)) * 3
    facade = new(**OFF, gradient_accumulation_steps=3)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for part in batches:
        facade.train_step(part)
    stats = facade.flush()
    assert stats is not None and stats.stepped and stats.samples == 10
    assert facade.flush() is None
    for group in (batches[:3], batches[3:]):
        joined = {k: torch.cat([b[k] for b in group]) for k in group[0]}
        loss = plain_step(model, optimizer, joined, joined.get("weights"))
    assert stats.loss == pytest.approx(loss, rel=1e-5)
    assert_same(facade.model, model)


def test_a_remainder_of_one_weighted_batch_is_its_weighted_mean() -> None:
    batch = make_batch(0, weights=torch.full((8,), 0.01))
    facade, plain = new(**OFF, gradient_accumulation_steps=4), new(**OFF)
    facade.train_step(batch)
    facade.flush()
    plain.train_step(batch)
    assert_same(facade.model, plain.model)


def test_the_end_of_an_epoch_steps_with_the_remainder() -> None:
    facade = new(gradient_accumulation_steps=4)
    before = weights_of(facade.model)
    assert not facade.train_step(make_batch(0)).stepped
    stats = facade.on_epoch_end()
    assert stats.steps == 1 and stats.samples == 8
    assert not torch.equal(before[0], next(facade.model.parameters()))


def test_clipping_bounds_the_step() -> None:
    facade = new(
        **{**OFF, "enable_gradient_clipping": True},
        clip_mode="global",
        initial_max_norm=0.01,
        min_clip=0.001,
        momentum=0.0,
        lr=1.0,
    )
    before = weights_of(facade.model)
    stats = facade.train_step(make_batch(0))
    moved = [a - b for a, b in zip(before, weights_of(facade.model), strict=True)]
    assert stats.grad_norm > 0.01
    assert float(torch.cat([m.flatten() for m in moved]).norm()) == pytest.approx(0.01, rel=1e-3)


def test_losses_are_not_read_from_the_device_before_they_are_asked_for() -> None:
    facade = new(gradient_accumulation_steps=2)
    stats = facade.train_step(make_batch(0))
    assert stats._means is None
    assert stats.loss > 0 and stats._means is not None
    assert "loss=" in repr(stats) and stats.as_dict()["stepped"] is False


@pytest.mark.parametrize("interval", [1, 4])
def test_averaged_weights_follow(interval: int) -> None:
    """Whatever the interval, a step counts by its samples."""
    facade = new(
        averaging_half_life_samples=16, averaging_warmup_fraction=1.0, averaging_interval=interval
    )
    average: list[torch.Tensor] = []
    since = 0
    for step in range(1, 12):
        facade.train_step(make_batch(step))
        since += 8
        current = weights_of(facade.model)
        if step == 11:
            facade.update_average()
        if step == 1:
            average, since = current, 0
        elif since == 8 * interval or step == 11:
            decay = 0.5 ** (since / min(16, 8 * step))
            average = [decay * a + (1 - decay) * c for a, c in zip(average, current, strict=True)]
            since = 0
        for a, b in zip(average, weights_of(facade.averaged_model), strict=True):
            torch.testing.assert_close(a, b)
    assert facade.averager.samples_seen == 88


# --- anomalies ------------------------------------------------------------------------------


def steady(facade: TrainingEnhancementsFacade, steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        assert facade.train_step(make_batch(step % 7)).stepped


def broken(kind: str) -> dict:
    batch = make_batch(0)
    if kind == "spike":
        batch["value_targets"] = torch.full((8,), 100.0)
    elif kind == "nan":
        batch["features"] = torch.full((8, FEATURES), math.nan)
    return batch


@pytest.mark.parametrize("kind", ["spike", "nan"])
def test_one_bad_batch_is_left_out_and_reported(kind: str) -> None:
    facade = new()
    steady(facade, 20)
    before, averaged = weights_of(facade.model), weights_of(facade.averaged_model)
    momentum = copy.deepcopy(facade.optimizer.state_dict())
    tracked = facade.miner.get_statistics()["total_samples_seen"]
    stats = facade.train_step(broken(kind))
    assert not stats.stepped and not stats.should_stop
    assert stats.anomaly == {"spike": "spike", "nan": "non_finite"}[kind]
    assert "left out" in stats.message
    for old, now in zip(before, weights_of(facade.model), strict=True):
        assert torch.equal(old, now)
    for old, now in zip(averaged, weights_of(facade.averaged_model), strict=True):
        assert torch.equal(old, now)
    for a, b in zip(
        momentum["state"].values(), facade.optimizer.state_dict()["state"].values(), strict=True
    ):
        assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])
    assert facade.miner.get_statistics()["total_samples_seen"] == tracked
    steady(facade, 5, 20)
    assert facade.get_epoch_statistics().skipped_steps == 1
    assert facade.get_epoch_statistics().rollbacks == 0


def test_a_spike_does_not_poison_what_follows_without_the_monitor_either() -> None:
    facade = new(enable_anomaly_detection=False)
    steady(facade, 3)
    before = weights_of(facade.model)
    stats = facade.train_step(broken("nan"))
    assert not stats.stepped and stats.anomaly == "non_finite"
    for old, now in zip(before, weights_of(facade.model), strict=True):
        assert torch.equal(old, now)
    steady(facade, 3)


@pytest.mark.parametrize("scheduled", [False, True])
def test_a_divergence_goes_back_to_the_last_good_state_and_halves_the_rate(
    scheduled: bool,
) -> None:
    schedule = TrainingConfig.from_dict({"schedule.name": "constant"}).schedule
    schedule = schedule.model_copy(update={"warmup_steps": 0})
    settings = {"schedule": schedule, "total_steps": 100} if scheduled else {}
    facade = new(lr=0.02, snapshot_every=10, divergence_patience=3, **settings)
    states = []
    for step in range(25):
        states.append((weights_of(facade.model), facade.model.calls.clone()))
        assert facade.train_step(make_batch(step % 7)).stepped
    with torch.no_grad():  # the optimizer has ruined the model
        for parameter in facade.model.parameters():
            parameter.fill_(50.0)
        for state in facade.optimizer.state.values():
            state["momentum_buffer"].fill_(math.inf)
    reports = [facade.train_step(make_batch(i)) for i in range(3)]
    assert [r.anomaly for r in reports] == ["spike", "spike", "divergence"]
    assert not any(r.stepped for r in reports)
    assert "diverged" in reports[-1].message and "0.01" in reports[-1].message
    # snapshots are taken before a step whose loss was good: at steps 0, 10 and 20
    for saved, now in zip(states[20][0], weights_of(facade.model), strict=True):
        assert torch.equal(saved, now)
    assert facade.optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    for state in facade.optimizer.state.values():
        assert torch.isfinite(state["momentum_buffer"]).all()
    for parameter in facade.averaged_model.parameters():
        assert float(parameter.abs().max()) < 10.0
    steady(facade, 10)
    assert facade.optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_a_slow_divergence_is_seen_too() -> None:
    facade = new(anomaly_window=10, snapshot_every=5, lr=1e-4)
    anomalies = []
    for step in range(200):
        batch = make_batch(step % 7)
        batch["value_targets"] = batch["value_targets"] + 1.0 + 0.04 * max(0, step - 20)
        stats = facade.train_step(batch)
        anomalies.append(stats.anomaly)
        if stats.anomaly:
            break
    assert anomalies[-1] == "divergence"


def test_too_many_rollbacks_stop_training() -> None:
    facade = new(divergence_patience=2, max_rollbacks=1)
    steady(facade, 12)
    reports = [facade.train_step(broken("nan")) for _ in range(4)]
    assert [r.anomaly for r in reports] == ["non_finite", "divergence"] * 2
    assert [r.should_stop for r in reports] == [False, False, False, True]
    assert "max_rollbacks" in reports[-1].stop_reason


def test_nan_from_the_first_step_on_still_has_a_state_to_go_back_to() -> None:
    facade = new(divergence_patience=2)
    before = weights_of(facade.model)
    reports = [facade.train_step(broken("nan")) for _ in range(2)]
    assert reports[-1].anomaly == "divergence"
    for old, now in zip(before, weights_of(facade.model), strict=True):
        assert torch.equal(old, now)


def test_ordinary_noise_is_no_anomaly() -> None:
    """Losses near zero vary by large factors without anything being wrong."""
    from ringrift_pipeline.enhancements.training_stability import LossMonitor

    monitor = LossMonitor()
    rng = np.random.default_rng(0)
    verdicts = {monitor.judge(float(x)) for x in 1e-4 * rng.lognormal(sigma=0.4, size=2000)}
    assert verdicts == {"ok"}
    falling = LossMonitor()
    assert {falling.judge(5.0 * 0.98**i) for i in range(500)} == {"ok"}
    negative = LossMonitor()
    assert {negative.judge(-1.0 - 0.1 * float(x)) for x in rng.random(200)} == {"ok"}
    assert negative.judge(5.0) == "spike"


# --- stopping -------------------------------------------------------------------------------


def test_early_stopping_on_the_validation_loss() -> None:
    facade = new(early_stopping_patience=2)
    verdicts = []
    for val_loss in (1.0, 0.9, 0.95, math.nan, 0.1):
        facade.train_step(make_batch(0))
        verdicts.append(facade.on_epoch_end(val_loss=val_loss).should_stop)
    assert verdicts == [False, False, False, True, True]
    stats = facade.train_step(make_batch(0))
    assert stats.should_stop and "validations" in stats.stop_reason
    assert facade.get_epoch_statistics().best_val_loss == 0.1


def test_without_patience_it_never_stops() -> None:
    facade = new()
    assert not any(facade.on_epoch_end(val_loss=1.0).should_stop for _ in range(30))


# --- learning rate --------------------------------------------------------------------------


def test_schedule_sets_the_rate_of_each_step() -> None:
    config = TrainingConfig.from_dict(
        {
            "schedule.warmup_steps": 4,
            "schedule.min_lr_fraction": 0.1,
            "optimizer.learning_rate": 0.1,
        }
    )
    facade = new(lr=0.1, schedule=config.schedule, total_steps=20)
    rates = [facade.train_step(make_batch(i)).lr for i in range(20)]
    assert rates[0] == pytest.approx(0.01) and rates[4] == pytest.approx(0.1)
    assert rates[2] == pytest.approx(0.055)
    middle = 0.01 + 0.09 * (1 + math.cos(math.pi * 8 / 16)) / 2
    assert rates[12] == pytest.approx(middle)
    assert max(rates) <= 0.1 + 1e-12


def test_curriculum_scale_is_applied() -> None:
    facade = new(
        lr=0.1,
        enable_curriculum_lr=True,
        total_steps=10,
        curriculum_warmup_fraction=0.5,
    )
    assert facade.get_curriculum_lr_scale(0.0) == 0.8
    assert facade.get_curriculum_lr_scale(0.25) == pytest.approx(0.9)
    assert facade.get_curriculum_lr_scale(0.75) == pytest.approx(1.1)
    rates = [facade.train_step(make_batch(i)).lr for i in range(11)]
    assert rates == pytest.approx([0.1 * facade.get_curriculum_lr_scale(i / 10) for i in range(11)])
    assert new().get_curriculum_lr_scale(0.0) == 1.0


# --- saving ---------------------------------------------------------------------------------

EVERYTHING = {
    "gradient_accumulation_steps": 3,
    "max_grad_norm": 0.5,
    "enable_curriculum_lr": True,
    "total_steps": 60,
    "hard_min_samples_before_mining": 16,
    "hard_buffer_size": 20,
    "hard_max_times_sampled": 5,
    "hard_max_game_share": 0.5,
    "loss_tracker_max_samples": 30,
    "averaging_half_life_samples": 64,
    "anomaly_window": 8,
    "divergence_patience": 2,
    "snapshot_every": 3,
    "early_stopping_patience": 3,
    "policy_weight": 0.7,
}


def everything(seed: int, precision: str = "float32") -> TrainingEnhancementsFacade:
    config = TrainingConfig.from_dict({"schedule.name": "warm_restarts", "schedule.T_0": 7})
    model = Net(seed, dropout=0.2)
    facade = TrainingEnhancementsFacade(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=0.01),
        config=FacadeConfig(schedule=config.schedule, precision=precision, **EVERYTHING),
    )
    facade.set_quality_scores(np.linspace(0.2, 1.0, 64))
    return facade


def drive(facade: TrainingEnhancementsFacade, start: int, stop: int) -> list:
    trail = []
    for step in range(start, stop):
        rows = facade.create_mixed_batch_indices(8, 64)
        batch = make_batch(step)
        batch["indices"] = torch.from_numpy(rows)
        batch["games"] = rows // 4
        batch["surprise"] = np.linspace(0.0, 1.0, 8)
        batch["weights"] = torch.linspace(0.5, 1.5, 8)
        if step == 40:
            batch["weights"] = batch["weights"] * 1e5  # float16 overflows, the others do not
        if step in (31, 71, 72, 73, 74, 75, 76):
            batch["features"] = batch["features"] * math.nan
        stats = facade.train_step(batch)
        trail.append((stats.as_dict(), rows.tolist()))
        if step % 20 == 19:
            trail.append(dict(facade.on_epoch_end(val_loss=1.0 / (step + 1))))
    return trail


@pytest.fixture(scope="module", params=["float32", "float16"])
def uninterrupted(request) -> tuple[TrainingEnhancementsFacade, list]:
    """In float16 with a loss scale, which a step overflows, on the CPU."""
    whole = everything(0, request.param)
    torch.manual_seed(7)
    trail = drive(whole, 0, 100)
    anomalies = {entry[0]["anomaly"] for entry in trail if isinstance(entry, tuple)}
    assert {"non_finite", "divergence"} <= anomalies
    messages = [entry[0]["message"] for entry in trail if isinstance(entry, tuple)]
    overflowed = any("overflowed its loss scale" in message for message in messages)
    assert (whole.scaler is not None) == overflowed == (request.param == "float16")
    return whole, trail


@pytest.mark.parametrize("steps", [31, 60, 75])
def test_saved_and_loaded_training_goes_on_bit_for_bit(
    steps: int, tmp_path, uninterrupted: tuple[TrainingEnhancementsFacade, list]
) -> None:
    whole, expected = uninterrupted
    precision = whole.config.precision
    first = everything(0, precision)
    torch.manual_seed(7)
    got = drive(first, 0, steps)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    drive(first, steps, steps + 5)  # the saved state is a copy: this does not touch it
    torch.manual_seed(999)
    second = everything(3, precision)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    got += drive(second, steps, 100)

    assert repr(got) == repr(expected)
    for a, b in zip(
        whole.model.state_dict().values(), second.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)
    for a, b in zip(
        whole.averaged_model.parameters(), second.averaged_model.parameters(), strict=True
    ):
        assert torch.equal(a, b)
    assert repr(whole.miner.hardest(99)) == repr(second.miner.hardest(99))
    assert whole.get_hardest_samples() == second.get_hardest_samples()


def test_a_state_of_another_config_is_refused() -> None:
    facade = new()
    with pytest.raises(ValueError, match="miner"):
        facade.load_state_dict(new(enable_hard_mining=False).state_dict())
    with pytest.raises(ValueError, match="format"):
        facade.load_state_dict({})
    with pytest.raises(ValueError, match="accumulation"):
        facade.load_state_dict(new(gradient_accumulation_steps=2).state_dict())


# --- other models, precision, bad input -----------------------------------------------------


def test_a_loss_function_of_ones_own() -> None:
    model = nn.Linear(FEATURES, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def squared(model: nn.Module, batch: dict) -> torch.Tensor:
        return (model(batch["x"]).squeeze(1) - batch["y"]).square()

    facade = TrainingEnhancementsFacade(model, optimizer, FacadeConfig(), loss_fn=squared)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, FEATURES, generator=generator)
    batch = {"x": x, "y": x.sum(dim=1), "indices": torch.arange(64)}
    losses = [facade.train_step(batch) for _ in range(50)]
    assert losses[-1].loss < 0.1 * losses[0].loss
    assert math.isnan(losses[0].policy_loss)
    assert facade.miner.get_statistics()["tracked_examples"] == 64

    def parts(model: nn.Module, batch: dict) -> LossParts:
        loss = squared(model, batch)
        return LossParts(loss, loss, torch.zeros_like(loss))

    told = TrainingEnhancementsFacade(model, optimizer, FacadeConfig(), loss_fn=parts)
    stats = told.train_step(batch)
    assert stats.policy_loss == stats.loss and stats.value_loss == 0.0
    with pytest.raises(ValueError, match="loss_fn"):
        TrainingEnhancementsFacade(
            model, optimizer, loss_fn=lambda m, b: squared(m, b).mean()
        ).train_step(batch)


def test_legal_mask_and_index_targets() -> None:
    facade = new()
    batch = make_batch(0)
    legal = torch.ones(8, ACTIONS, dtype=torch.bool)
    legal[:, 2:] = False
    batch["legal_mask"] = legal
    batch["policy_targets"] = torch.arange(8) % 2
    before = facade.model.policy.bias.detach().clone()
    stats = facade.train_step(batch)
    assert math.isfinite(stats.loss)
    moved = facade.model.policy.bias.detach() != before
    assert moved.tolist() == [True, True, False, False, False]


def test_bfloat16_forward_trains_float32_weights() -> None:
    facade = new(precision="bfloat16")
    losses = [facade.train_step(make_batch(i % 3)).loss for i in range(60)]
    assert np.mean(losses[-6:]) < np.mean(losses[:6])
    assert all(p.dtype == torch.float32 for p in facade.model.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["auto", "float16", "float32"])
def test_it_trains_on_cuda(precision: str) -> None:
    model = Net().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    facade = TrainingEnhancementsFacade(
        model, optimizer, FacadeConfig(precision=precision, gradient_accumulation_steps=2)
    )
    losses = [facade.train_step(make_batch(i % 3)).loss for i in range(200)]
    assert np.mean(losses[-6:]) < np.mean(losses[:6])
    other = Net(1).cuda()
    second = TrainingEnhancementsFacade(
        other, torch.optim.AdamW(other.parameters(), lr=1e-2), facade.config
    )
    second.load_state_dict(facade.state_dict())
    assert_same(facade.model, second.model, exact=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy_targets": None}, "policy_targets"),
        ({"weights": torch.ones(3)}, "weights"),
        ({"weights": torch.full((8,), -1.0)}, "negative"),
        ({"weights": torch.zeros(8)}, "all be 0"),
        ({"weights": torch.full((8,), math.nan)}, "finite"),
        ({"indices": torch.arange(5)}, "indices has 5"),
        ({"indices": torch.arange(8) - 1}, "rows in"),
        ({"games": np.arange(3)}, "games"),
        ({"value_targets": torch.zeros(8, 2)}, "value"),
    ],
)
def test_a_bad_batch_is_refused_and_changes_nothing(change: dict, message: str) -> None:
    facade = new()
    before = weights_of(facade.model)
    batch = {**make_batch(0), **change}
    with pytest.raises(ValueError, match=message):
        facade.train_step({k: v for k, v in batch.items() if v is not None})
    for old, now in zip(before, weights_of(facade.model), strict=True):
        assert torch.equal(old, now)
    assert facade.train_step(make_batch(0)).stepped and facade.steps == 1


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        new().train_step(make_batch(0, size=0))


def test_reset_forgets_the_data_and_keeps_the_model() -> None:
    facade = new(hard_min_samples_before_mining=0)
    steady(facade, 12)
    facade.train_step(broken("nan"))
    before = weights_of(facade.model)
    facade.reset()
    assert facade.steps == 0 and facade.get_epoch_statistics().tracked_samples == 0
    assert not facade.get_hardest_samples()
    for old, now in zip(before, weights_of(facade.model), strict=True):
        assert torch.equal(old, now)
    steady(facade, 12)


def test_what_is_no_batch_is_refused() -> None:
    for batch in (torch.zeros(3), (1, 2), {"features": torch.zeros(1)}):
        with pytest.raises(ValueError, match="batch"):
            new().train_step(batch)
    with pytest.raises(ValueError, match="no parameters"):
        TrainingEnhancementsFacade(nn.Identity(), torch.optim.SGD([torch.zeros(1)], lr=1.0))


@pytest.mark.parametrize(
    "setting",
    [
        {"gradient_accumulation_steps": 0},
        {"hard_fraction": 2.0},
        {"spike_factor": 1.0},
        {"precision": "float8"},
        {"policy_weight": math.nan},
        {"enable_hard_mining": 1},
        {"hard_buffer_size": 10.5},
        {"schedule": TrainingConfig().schedule},
    ],
)
def test_bad_settings_are_refused(setting: dict) -> None:
    name = next(iter(setting)) if "schedule" not in setting else "total_steps"
    with pytest.raises(ValueError, match=name):
        FacadeConfig(**setting)
    with pytest.raises(ValueError, match="schedule"):
        FacadeConfig(schedule="constant", total_steps=5)
    with pytest.raises(TypeError):
        FacadeConfig(enable_hard_minning=True)


def test_from_training_config_carries_every_setting() -> None:
    config = TrainingConfig.from_dict(
        {
            "seed": 5,
            "training.policy_weight": 0.25,
            "training.value_weight": 1.5,
            "training.early_stopping_patience": 9,
            "training.precision": "bfloat16",
            "gradients.accumulation_steps": 4,
            "gradients.clip_mode": "agc",
            "gradients.max_grad_norm": 2.0,
            "mining.enabled": False,
            "mining.buffer_size": 77,
            "mining.max_game_share": 0.2,
            "quality.enabled": False,
            "averaging.enabled": False,
            "averaging.decay_half_life_samples": 123.0,
            "stability.spike_factor": 4.0,
            "stability.max_rollbacks": 1,
        }
    )
    facade = FacadeConfig.from_training_config(config, total_steps=50)
    assert facade.seed == 5 and facade.policy_weight == 0.25 and facade.value_weight == 1.5
    assert facade.precision == "bfloat16"
    assert facade.early_stopping_patience == 0  # the last weights are kept
    averaged = config.with_overrides({"averaging.enabled": True})
    assert FacadeConfig.from_training_config(averaged, 50).early_stopping_patience == 9
    assert facade.gradient_accumulation_steps == 4 and facade.clip_mode == "agc"
    assert facade.max_grad_norm == 2.0 and not facade.enable_hard_mining
    assert facade.hard_buffer_size == 77 and facade.hard_max_game_share == 0.2
    assert not facade.enable_quality_scoring and facade.averaging_half_life_samples == 123.0
    assert not facade.enable_averaging
    assert FacadeConfig.from_training_config(TrainingConfig(), total_steps=50).enable_averaging
    assert facade.spike_factor == 4.0 and facade.max_rollbacks == 1
    assert facade.schedule == config.schedule and facade.total_steps == 50


def test_parts_for_a_loop_of_ones_own() -> None:
    facade = new(hard_min_samples_before_mining=0)
    batch = make_batch(0, rows=10_000)
    policy, value = facade.model(batch["features"])
    losses = facade.compute_per_sample_loss(
        policy, batch["policy_targets"], value, batch["value_targets"]
    )
    assert losses.shape == (8,)
    facade.record_batch(batch["indices"], losses, torch.ones(8))
    loss = facade.get_weighted_loss(losses, batch["indices"])
    gradients = torch.autograd.grad(loss, list(facade.model.parameters()))
    assert all(float(g.abs().sum()) > 0 for g in gradients)
    weights = facade.miner.get_sample_weights(batch["indices"], 1.0, 2.0)
    expected = float((losses.detach() * torch.from_numpy(weights)).sum() / weights.sum())
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert facade.get_hard_indices(2).size == 2
    assert facade.get_hardest_samples(1)[0][1] == pytest.approx(losses.max().item())
    assert facade.get_epoch_statistics().tracked_samples == 8


# --- the regularizer ------------------------------------------------------------------------


def regularized(weight: float, **settings) -> tuple[TrainingEnhancementsFacade, EWCRegularizer]:
    """A facade over a model that has moved away from what its regularizer holds on to."""
    model = Net()
    ewc = EWCRegularizer(model, weight)
    ewc.compute_fisher([make_batch(50, size=32)["features"]])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return TrainingEnhancementsFacade(model, optimizer, FacadeConfig(**settings), ewc=ewc), ewc


@pytest.mark.parametrize("accumulation", (1, 3))
def test_the_penalty_is_added_once_a_step(accumulation: int) -> None:
    """As autograd adds it to the mean loss of all batches, weights included."""
    facade, ewc = regularized(2.0, gradient_accumulation_steps=accumulation, **OFF)
    model = copy.deepcopy(facade.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(3):
        batches = [
            make_batch(10 * step + i, weights=torch.rand(8) + 0.1) for i in range(accumulation)
        ]
        for batch in batches:
            stats = facade.train_step(batch)
        assert stats.stepped
        optimizer.zero_grad()
        losses, weights = [], []
        for batch in batches:
            policy, value = model(batch["features"])
            losses.append(
                compute_per_sample_loss(
                    policy, batch["policy_targets"], value, batch["value_targets"]
                )
            )
            weights.append(batch["weights"])
        weight, loss = torch.cat(weights), torch.cat(losses)
        mean = (weight * loss).sum() / weight.sum()
        penalty = ewc.penalty(model)
        (mean + penalty).backward()
        optimizer.step()
        assert stats.penalty == pytest.approx(float(penalty.detach()), rel=1e-5) and penalty > 0
        assert stats.as_dict()["penalty"] == stats.penalty
        if accumulation == 1:
            assert stats.loss == pytest.approx(float(mean.detach()), rel=1e-5)
        assert_same(facade.model, model)


def test_without_a_regularizer_nothing_is_different() -> None:
    """Bit for bit, with everything on: a weight of 0, none at all."""
    facade, _ = regularized(0.0)
    plain = new()
    plain.model.load_state_dict(facade.model.state_dict())
    for step in range(12):
        one, other = facade.train_step(make_batch(step)), plain.train_step(make_batch(step))
        assert one.penalty == other.penalty == 0.0 and one.loss == other.loss
    assert_same(facade.model, plain.model, exact=True)
    assert "ewc" not in plain.state_dict()["parts"]


def test_a_strong_penalty_holds_the_weights() -> None:
    def wander(weight: float) -> float:
        facade, ewc = regularized(weight, gradient_accumulation_steps=2)
        for step in range(60):
            facade.train_step(make_batch(step))
        with torch.no_grad():
            return float(ewc.penalty(facade.model)) / weight

    assert wander(30.0) < 0.2 * wander(1e-6)


def test_the_regularizer_is_saved_with_the_facade() -> None:
    whole, _ = regularized(5.0, gradient_accumulation_steps=2)
    for step in range(5):
        whole.train_step(make_batch(step))
    model = Net(seed=9)
    resumed = TrainingEnhancementsFacade(
        model,
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        FacadeConfig(gradient_accumulation_steps=2),
        ewc=EWCRegularizer(model),  # knows no task yet
    )
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    for step in range(5, 12):
        assert whole.train_step(make_batch(step)).penalty == (
            resumed.train_step(make_batch(step)).penalty
        )
    assert_same(whole.model, resumed.model, exact=True)
    with pytest.raises(ValueError, match="ewc only on one side"):
        new(gradient_accumulation_steps=2).load_state_dict(whole.state_dict())


def test_a_regularizer_of_another_model_is_refused() -> None:
    _, ewc = regularized(1.0)
    model = Net(seats=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with pytest.raises(ValueError, match="value.weight has shape"):
        TrainingEnhancementsFacade(model, optimizer, ewc=ewc)
    with pytest.raises(ValueError, match="ewc"):
        TrainingEnhancementsFacade(model, optimizer, ewc=1.0)  # type: ignore[arg-type]


def test_a_loop_of_ones_own_fills_the_statistics() -> None:
    """Losses, weights, record_batch and the caller's own step, epoch by epoch; saved in between."""
    facade = new()
    for epoch in range(2):
        seen: list[float] = []
        for step in range(5):
            batch = make_batch(5 * epoch + step, size=4 + step)
            policy, value = facade.model(batch["features"])
            losses = facade.compute_per_sample_loss(
                policy, batch["policy_targets"], value, batch["value_targets"]
            )
            facade.get_weighted_loss(losses, batch["indices"]).backward()
            facade.record_batch(batch["indices"], losses.detach())
            facade.optimizer.step()
            facade.optimizer.zero_grad()
            seen += losses.tolist()
        stats = facade.get_epoch_statistics()
        assert stats.mean_loss == pytest.approx(np.mean(seen))
        assert stats.mean_per_sample_loss == pytest.approx(np.mean(seen))
        assert math.isnan(stats.mean_policy_loss)
        assert stats.samples == 30 and stats.total_samples_seen == 30 * (epoch + 1)
        resumed = new(seed=1)
        resumed.load_state_dict(facade.state_dict())
        assert repr(resumed.get_epoch_statistics()) == repr(stats)
        ended = facade.on_epoch_end(val_loss=0.5)
        assert ended.mean_loss == stats.mean_loss and ended.val_loss == 0.5
    assert math.isnan(facade.get_epoch_statistics().mean_loss)


def test_losses_recorded_or_trained_on_are_counted_once() -> None:
    facade = new(**{**OFF, "track_per_sample_loss": True})
    batch = make_batch(0)
    trained = facade.train_step(batch).loss
    assert facade.get_epoch_statistics().total_samples_seen == 8
    facade.record_batch(batch["indices"], torch.tensor([math.nan, math.inf] + [1.0] * 6))
    stats = facade.get_epoch_statistics()
    assert (stats.samples, stats.total_samples_seen, stats.steps) == (14, 14, 1)
    assert stats.mean_loss == pytest.approx((8 * trained + 6) / 14)


def test_an_adaptive_schedule_hears_of_a_loop_of_ones_own() -> None:
    schedule = TrainingConfig.from_dict({"schedule.name": "adaptive"}).schedule
    facade = new(schedule=schedule, total_steps=100)
    heard: list[float] = []
    facade.scheduler.on_validation = lambda loss, *_: heard.append(loss)
    facade.record_batch([0, 1], [1.0, 2.0])
    facade.on_epoch_end()
    facade.on_epoch_end(val_loss=1.0)  # nothing was recorded: no loss to tell
    assert heard == [1.5]
