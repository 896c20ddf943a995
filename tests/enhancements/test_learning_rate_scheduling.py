"""Warm restarts against torch's own scheduler; the adaptive schedule on series made by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from ringrift_pipeline.enhancements.config_groups import ScheduleConfig
from ringrift_pipeline.enhancements.learning_rate_scheduling import (
    AdaptiveLRScheduler,
    ConstantScheduler,
    LearningRateSchedule,
    WarmRestartsScheduler,
    build_scheduler,
)


def optimizer(*rates: float) -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": r} for r in rates or (0.1,)]
    return torch.optim.SGD(groups, lr=1.0)


def rates(opt: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in opt.param_groups]


def stored(scheduler: LearningRateSchedule) -> Any:
    return json.loads(json.dumps(scheduler.state_dict()))


# Warm restarts.


@pytest.mark.parametrize("call", ["step", "step_epoch", "on_optimizer_step"])
@given(
    T_0=st.integers(1, 12),
    T_mult=st.integers(1, 3),
    eta_min=st.sampled_from([0.0, 1e-6, 0.01]),
    save_at=st.integers(0, 100),
)
@settings(max_examples=15)
def test_equals_torch_step_for_step_also_after_save_and_load(
    call: str, T_0: int, T_mult: int, eta_min: float, save_at: int
) -> None:
    ours, theirs = optimizer(0.1, 0.02), optimizer(0.1, 0.02)
    scheduler = WarmRestartsScheduler(ours, T_0, T_mult, eta_min)
    reference = CosineAnnealingWarmRestarts(theirs, T_0, T_mult, eta_min)
    for step in range(120):
        assert rates(ours) == rates(theirs), step
        assert scheduler.get_last_lr() == reference.get_last_lr()
        if step == save_at:
            ours = optimizer(0.5, 0.9)  # loading must set the rates
            fresh = WarmRestartsScheduler(ours, 7, 1)
            fresh.load_state_dict(stored(scheduler))
            scheduler = fresh
            assert rates(ours) == rates(theirs)
        assert getattr(scheduler, call)() == ours.param_groups[0]["lr"]
        reference.step()


@pytest.mark.parametrize(("T_0", "T_mult"), [(1, 1), (3, 1), (4, 2), (5, 3)])
def test_equals_torch_in_fractional_epochs(T_0: int, T_mult: int) -> None:
    ours, theirs = optimizer(0.1), optimizer(0.1)
    scheduler = WarmRestartsScheduler(ours, T_0, T_mult, 0.001)
    reference = CosineAnnealingWarmRestarts(theirs, T_0, T_mult, 0.001)
    for i in range(200):
        epoch = i / 8 + 0.01
        scheduler.step(epoch)
        reference.step(epoch)
        assert rates(ours) == pytest.approx(rates(theirs), rel=1e-9)
    scheduler.step()
    reference.step()
    assert rates(ours) == pytest.approx(rates(theirs), rel=1e-9)


def test_every_restart_is_in_its_place_by_epoch() -> None:
    scheduler = WarmRestartsScheduler(optimizer(1.0), T_0=3, T_mult=2, eta_min=0.0)
    seen = [scheduler.current_lr] + [scheduler.step_epoch() for _ in range(46)]
    assert [i for i, rate in enumerate(seen) if rate == 1.0] == [0, 3, 9, 21, 45]
    info = scheduler.get_schedule_info()
    assert info["restart_epochs"] == [0, 3, 9, 21, 45]
    assert (info["restart_count"], scheduler.num_restarts) == (4, 4)
    assert (info["current_period"], info["position_in_period"], info["epoch"]) == (48, 1, 46)


def test_warm_up_is_linear_and_eats_no_cosine() -> None:
    warm_opt, plain_opt = optimizer(0.1, 0.04), optimizer(0.1, 0.04)
    warm = WarmRestartsScheduler(warm_opt, 6, 2, 0.002, warmup_steps=5)
    plain = WarmRestartsScheduler(plain_opt, 6, 2, 0.002)
    for k in range(5):
        expected = [0.002 + (peak - 0.002) * k / 5 for peak in (0.1, 0.04)]
        assert rates(warm_opt) == pytest.approx(expected)
        assert warm.get_schedule_info()["in_warmup"]
        warm.step()
    for _ in range(40):
        assert rates(warm_opt) == rates(plain_opt)
        warm.step()
        plain.step()


def test_eta_max_keeps_the_groups_ratio() -> None:
    opt = optimizer(0.1, 0.05)
    scheduler = WarmRestartsScheduler(opt, 4, 1, 0.0, eta_max=1.0)
    assert rates(opt) == pytest.approx([1.0, 0.5])
    scheduler.step()
    assert opt.param_groups[1]["lr"] == pytest.approx(opt.param_groups[0]["lr"] / 2)


def test_last_epoch_continues_like_torch() -> None:
    ours, theirs = optimizer(0.1), optimizer(0.1)
    theirs.param_groups[0]["initial_lr"] = ours.param_groups[0]["initial_lr"] = 0.1
    scheduler = WarmRestartsScheduler(ours, 7, 1, 0.0, last_epoch=4)
    reference = CosineAnnealingWarmRestarts(theirs, 7, 1, 0.0, last_epoch=4)
    for _ in range(20):
        assert rates(ours) == rates(theirs)
        scheduler.step()
        reference.step()


def test_scale_lr_lasts_and_is_saved() -> None:
    opt, plain_opt = optimizer(0.1), optimizer(0.1)
    scheduler = WarmRestartsScheduler(opt, 5)
    plain = WarmRestartsScheduler(plain_opt, 5)
    assert scheduler.scale_lr(0.5) == 0.05
    again = WarmRestartsScheduler(opt, 5)
    again.load_state_dict(stored(scheduler))
    for _ in range(12):
        assert again.step() == plain.step() / 2
    with pytest.raises(ValueError, match="factor"):
        again.scale_lr(0.0)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"T_0": 0}, "T_0"),
        ({"T_0": 2.5}, "T_0"),
        ({"T_mult": 0}, "T_mult"),
        ({"eta_min": -1.0}, "eta_min"),
        ({"eta_min": 0.5}, "eta_min"),
        ({"eta_max": 0.0}, "eta_max"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"last_epoch": -2}, "last_epoch"),
    ],
)
def test_warm_restarts_names_the_bad_argument(arguments: dict, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        WarmRestartsScheduler(optimizer(), **arguments)


def test_warm_restarts_bad_calls_change_nothing() -> None:
    opt = optimizer(0.1)
    scheduler = WarmRestartsScheduler(opt, 5)
    scheduler.step()
    before = scheduler.state_dict()
    for bad in (-1, math.nan, "3"):
        with pytest.raises(ValueError, match="epoch"):
            scheduler.step(bad)  # type: ignore[arg-type]
    for change in ({"base_lrs": [0.1, 0.2]}, {"clock": -1}, {"lr_scale": 0.0}, {"T_0": 0}):
        with pytest.raises(ValueError, match="|".join(change)):
            scheduler.load_state_dict({**before, "warmup_steps": 3, **change})
    with pytest.raises(ValueError, match="clock"):
        scheduler.load_state_dict({k: v for k, v in before.items() if k != "clock"})
    assert scheduler.state_dict() == before and rates(opt) == scheduler.get_last_lr()


# Adaptive.


def adaptive(opt: torch.optim.Optimizer | None = None, **given: Any) -> AdaptiveLRScheduler:
    given = {"base_lr": 0.01, "max_lr": 0.1, "warmup_epochs": 0} | given
    return AdaptiveLRScheduler(opt or optimizer(), **given)


def test_warm_up_ramps_linearly_in_epochs_or_in_optimizer_steps() -> None:
    scheduler = adaptive(warmup_epochs=4)
    seen = [scheduler.current_lr] + [scheduler.step(1.0) for _ in range(5)]
    assert seen == pytest.approx([0.01 * k / 5 for k in (1, 2, 3, 4, 5, 5)])
    scheduler = adaptive(warmup_steps=4)
    seen = [scheduler.current_lr] + [scheduler.on_optimizer_step() for _ in range(5)]
    assert seen == pytest.approx([0.01 * k / 5 for k in (1, 2, 3, 4, 5, 5)])


@pytest.mark.parametrize("rising", [False, True])
@pytest.mark.parametrize("shape", ["line", "exponential", "staircase", "steep"])
def test_a_loss_that_only_falls_or_only_rises_is_no_oscillation(shape: str, rising: bool) -> None:
    series = {
        "line": np.linspace(10.0, 0.1, 40),
        "exponential": 10 * 0.7 ** np.arange(40),
        "staircase": np.repeat([9.0, 6.0, 3.0, 1.0, 0.1], 4),
        "steep": np.concatenate([np.full(10, 100.0), np.full(4, 0.01)]),
    }[shape]
    scheduler = adaptive(plateau_patience=100)
    for loss in series[::-1] if rising else series:
        assert scheduler.step(float(loss)) == 0.01


@pytest.mark.parametrize("trend", [-0.2, 0.2])
def test_oscillation_around_a_trend_halves_the_rate_once_per_evidence(trend: float) -> None:
    scheduler = adaptive(plateau_patience=100, loss_lookback=10)
    seen = [scheduler.step(8 + trend * (i - 9) + (3.5 if i % 2 else -3.5)) for i in range(19)]
    assert seen[:9] == [0.01] * 9 and seen[9:] == [0.005] * 10
    assert "oscillates" in scheduler.last_reason


def test_plateau_is_sought_in_the_validation_loss() -> None:
    overfitting = adaptive(plateau_patience=3)
    seen = [overfitting.step(1.0 / (i + 1), val_loss=v) for i, v in enumerate([2, 1, 1, 1.1, 1.2])]
    assert seen == [0.01, 0.01, 0.01, 0.01, 0.005]
    noisy = adaptive(plateau_patience=3)  # training stands still, validation improves: no cut
    assert {noisy.step(1.0, val_loss=2.0 - 0.1 * i) for i in range(12)} == {0.01}
    without = adaptive(plateau_patience=3)
    assert [without.step(1.0) for _ in range(4)] == [0.01, 0.01, 0.01, 0.005]


def test_elo_aware() -> None:
    def run(elos: list[float], val: list[float], **given: Any) -> tuple[list[float], str]:
        scheduler = adaptive(plateau_patience=4, elo_lookback=5, **given)
        pairs = zip(elos, val, strict=True)
        return [scheduler.step(1.0, current_elo=e, val_loss=v) for e, v in pairs], (
            scheduler.last_reason
        )

    falling_loss = [1.0 - 0.1 * i for i in range(5)]
    flat_loss = [1.0] * 5
    rising, flat, sinking = [0, 20, 40, 60, 80.0], [0, 5, 0, 5, 0.0], [80, 60, 40, 20, 0.0]
    assert run(rising, falling_loss)[0][-1] == 0.01
    assert run(rising, flat_loss)[0][-1] == 0.01  # no cut while Elo rises
    assert run(flat, flat_loss)[0][-1] == 0.005
    seen, reason = run(flat, falling_loss)
    assert seen[-1] == pytest.approx(0.015) and "stagnates" in reason
    assert run(flat, falling_loss, lr_increase_factor=100.0)[0][-1] == 0.1  # max_lr
    seen, reason = run(sinking, falling_loss)
    assert seen[-1] == 0.005 and "fell" in reason
    assert run(sinking, falling_loss, min_lr=0.008)[0][-1] == 0.008


def test_groups_keep_their_ratio_through_everything() -> None:
    opt = optimizer(0.2, 0.05)
    scheduler = adaptive(opt, warmup_epochs=2, plateau_patience=2)
    for i in range(30):
        scheduler.step(1.0, current_elo=float(i % 2), val_loss=1.0)
        assert rates(opt)[1] == pytest.approx(rates(opt)[0] / 4)
        assert rates(opt)[0] == scheduler.current_lr
    scheduler.warm_restart(2.0)
    assert rates(opt) == pytest.approx([0.02, 0.005])
    scheduler.warm_restart(1e9)
    assert scheduler.current_lr == 0.1


@given(data=st.lists(st.tuples(st.floats(0, 5), st.floats(-50, 50), st.floats(0, 5)), max_size=40))
@settings(max_examples=25)
def test_adaptive_stays_in_bounds_and_resumes_exactly(data: list) -> None:
    whole_opt, resumed_opt = optimizer(0.2, 0.1), optimizer(0.3, 0.3)
    given = {"min_lr": 0.001, "warmup_epochs": 3, "plateau_patience": 2}
    whole = adaptive(whole_opt, **given)
    for i, (train, elo, val) in enumerate(data):
        if i == len(data) // 2:
            resumed = adaptive(resumed_opt, **given)
            resumed.load_state_dict(stored(whole))
            assert rates(resumed_opt) == rates(whole_opt)
        whole.step(train, elo, val)
        assert whole.current_lr <= 0.1
        if i > 3:
            assert whole.current_lr >= 0.001
        if i >= len(data) // 2:
            resumed.step(train, elo, val)
            assert rates(resumed_opt) == rates(whole_opt)
            assert stored(resumed) == stored(whole)


def test_adaptive_bad_figures_change_nothing() -> None:
    scheduler = adaptive()
    scheduler.step(1.0, 3.0, 2.0)
    before = stored(scheduler)
    for arguments, name in [
        ((math.nan, None, None), "train_loss"),
        ((1.0, math.inf, None), "current_elo"),
        ((1.0, 1.0, math.nan), "val_loss"),
    ]:
        with pytest.raises(ValueError, match=name):
            scheduler.step(*arguments)
    with pytest.raises(ValueError, match="lr_factor"):
        scheduler.warm_restart(-1.0)
    for change in ({"lr": 5.0}, {"ratios": []}, {"losses": [math.nan]}, {"stale": -1}):
        with pytest.raises(ValueError, match="|".join(change)):
            scheduler.load_state_dict({**before, "epoch": 77, **change})
    assert stored(scheduler) == before


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"base_lr": 0.0}, "base_lr"),
        ({"base_lr": 1.0}, "base_lr"),
        ({"min_lr": -1.0}, "min_lr"),
        ({"min_lr": 0.5}, "max_lr"),
        ({"elo_lookback": 1}, "elo_lookback"),
        ({"loss_lookback": 2}, "loss_lookback"),
        ({"lr_increase_factor": 0.9}, "lr_increase_factor"),
        ({"lr_decrease_factor": 1.0}, "lr_decrease_factor"),
        ({"lr_decrease_factor": 0.0}, "lr_decrease_factor"),
        ({"warmup_epochs": -1}, "warmup_epochs"),
        ({"plateau_patience": 0}, "plateau_patience"),
    ],
)
def test_adaptive_names_the_bad_argument(arguments: dict, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        adaptive(**arguments)


# From the config.


@pytest.mark.parametrize("name", ["warm_restarts", "adaptive", "constant"])
@pytest.mark.parametrize("total", [1, 2, 9, 60])
def test_built_schedules_warm_up_and_resume(name: Any, total: int) -> None:
    config = ScheduleConfig(name=name, warmup_steps=10, min_lr_fraction=0.1)
    opt, again = optimizer(0.1, 0.05), optimizer(0.1, 0.05)
    scheduler = build_scheduler(opt, config, total)
    seen = []
    for step in range(total):
        seen.append(scheduler.current_lr)
        if step == total // 2:
            other = build_scheduler(again, config, total)
            other.load_state_dict(stored(scheduler))
            assert rates(again) == rates(opt)
        scheduler.on_optimizer_step()
        if step % 5 == 0:
            scheduler.on_validation(1.0, val_loss=1.0)
    assert max(seen) == pytest.approx(0.1) or total < 3
    warm = min(10, total // 2)
    assert all(a < b for a, b in zip(seen[:warm], seen[1 : warm + 1], strict=False))
    if name == "warm_restarts" and total == 60:
        assert seen[-1] < 0.006 and np.argmax(seen) == 10  # one cosine over the rest of the run
    if name == "adaptive" and total == 60:
        assert seen[-1] < 0.1
    if name == "constant":
        assert isinstance(scheduler, ConstantScheduler)


def test_rates_held_in_tensors_are_set_in_place() -> None:
    opt = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))], lr=torch.tensor(0.1))
    held = opt.param_groups[0]["lr"]
    WarmRestartsScheduler(opt, 4, 1, 0.0).step(2)
    assert opt.param_groups[0]["lr"] is held and float(held) == pytest.approx(0.05)


def test_a_schedule_far_on_is_described_at_once() -> None:
    """It listed every start before: ten thousand million of them here."""
    scheduler = WarmRestartsScheduler(optimizer(), T_0=3, T_mult=1, warmup_steps=2)
    scheduler.step(10**10)
    info = scheduler.get_schedule_info()
    assert info["restart_count"] == (10**10 - 2) // 3
    starts = info["restart_epochs"]
    assert len(starts) == 1000 and starts[-1] == 10**10 - info["position_in_period"]
    assert np.diff(starts).tolist() == [3] * 999
    scheduler.step(3005)
    starts = scheduler.get_schedule_info()["restart_epochs"]
    assert (starts[0], starts[-1], len(starts)) == (8, 3005, 1000)
    longest = WarmRestartsScheduler(optimizer(), T_0=2**62, T_mult=2**62)
    longest.step(float(2**63))
    assert longest.get_schedule_info()["restart_epochs"] == [0, 2**62]


def test_a_state_with_peaks_below_the_least_rate_is_refused() -> None:
    opt = optimizer(0.1, 0.2)
    scheduler = WarmRestartsScheduler(opt, eta_min=1e-3)
    before = (rates(opt), stored(scheduler))
    with pytest.raises(ValueError, match=r"eta_min 0.001 exceeds base_lrs 1e-09"):
        scheduler.load_state_dict({**stored(scheduler), "base_lrs": [0.1, 1e-9]})
    with pytest.raises(ValueError, match=r"eta_min 0.15 exceeds base_lrs 0.1"):
        scheduler.load_state_dict({**stored(scheduler), "eta_min": 0.15})
    assert (rates(opt), stored(scheduler)) == before
