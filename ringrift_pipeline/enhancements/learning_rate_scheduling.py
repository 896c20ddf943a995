"""Learning-rate schedules: cosine with warm restarts, adaptive, and constant after warm-up.

All of them set the rates of the optimizer's groups when built, when stepped and when loaded, keep
groups apart, and share what a training loop calls: :meth:`LearningRateSchedule.on_optimizer_step`
after every optimizer step and :meth:`LearningRateSchedule.on_validation` after every validation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.optim import Optimizer

from ringrift_pipeline.enhancements import state_forms as forms
from ringrift_pipeline.enhancements.adaptive_learning_rate import AdaptiveLRScheduler
from ringrift_pipeline.enhancements.argument_checks import (
    COUNTABLE,
    check_number,
    check_type,
    check_whole,
    whole_state,
)
from ringrift_pipeline.enhancements.learning_rate_base import LearningRateSchedule

if TYPE_CHECKING:
    from ringrift_pipeline.enhancements.config_groups import ScheduleConfig


_STARTS = 1000  # listed in a schedule's info


class WarmRestartsScheduler(LearningRateSchedule):
    """Cosine annealing with warm restarts (Loshchilov & Hutter 2017, "SGDR"), after a warm-up.

    One clock: :meth:`step` and :meth:`step_epoch` advance it by one, ``step(epoch)`` sets it, also
    to fractions. ``T_0`` and ``warmup_steps`` are in its unit, so use optimizer steps throughout
    or epochs throughout. Without warm-up it agrees with torch's ``CosineAnnealingWarmRestarts``;
    a warm-up delays the first cosine and shortens nothing.

    Args:
        optimizer: its groups' rates are the peaks, unless ``eta_max`` is given.
        T_0: length of the first cosine.
        T_mult: factor from one cosine's length to the next.
        eta_min: rate at the end of a cosine and at the start of the warm-up, for every group.
        eta_max: peak of the first group; the others keep their ratio to it.
        last_epoch: clock before the first step, -1 for a fresh start.
        warmup_steps: linear from ``eta_min`` at 0 to the peak at ``warmup_steps``.

    Raises:
        ValueError: an argument out of range, by name.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        T_0: int = 10,
        T_mult: int = 2,
        eta_min: float = 1e-6,
        eta_max: float | None = None,
        last_epoch: int = -1,
        warmup_steps: int = 0,
    ) -> None:
        super().__init__(optimizer)
        self.T_0 = check_whole("T_0", T_0, 1)
        self.T_mult = check_whole("T_mult", T_mult, 1)
        self.eta_min = check_number("eta_min", eta_min, 0.0)
        self.warmup_steps = check_whole("warmup_steps", warmup_steps, 0)
        self._clock: float = check_whole("last_epoch", last_epoch, -1) + 1
        peaks = self._rates
        if last_epoch >= 0:
            peaks = [float(g.get("initial_lr", g["lr"])) for g in optimizer.param_groups]
        if eta_max is not None:
            peak = check_number("eta_max", eta_max, 0.0, above=True)
            if peaks[0] <= 0.0:
                raise ValueError("optimizer: the first group's rate is 0, eta_max cannot scale it")
            peaks = [peak * rate / peaks[0] for rate in peaks]
        if min(peaks) < self.eta_min:
            raise ValueError(f"eta_min {eta_min!r} exceeds a group's peak rate {min(peaks)!r}")
        self.base_lrs = peaks
        for group, rate in zip(optimizer.param_groups, peaks, strict=True):
            group["initial_lr"] = rate
        self._update()

    @property
    def eta_max(self) -> float:
        """Peak rate of the first parameter group."""
        return self.base_lrs[0]

    def step(self, epoch: float | None = None) -> float:
        """Advance the clock by one, or set it to ``epoch`` (>= 0); returns the first group's rate.

        Raises:
            ValueError: ``epoch`` negative, not finite or above 2**63, or an optimizer with a group
                more than at the start; nothing changes.
        """
        self.check_groups()
        self._clock = self._clock + 1 if epoch is None else _clock("epoch", epoch)
        return self._update()

    def step_epoch(self) -> float:
        """Advance the clock by one epoch; returns the first group's rate."""
        return self.step()

    def on_optimizer_step(self) -> float:
        return self.step()

    def _cycle(self) -> tuple[int, float, int]:
        """Finished cosines, position in the present one, and its length; before: 0, 0, T_0."""
        position, length, count = max(self._clock - self.warmup_steps, 0), self.T_0, 0
        if self.T_mult == 1:
            return int(position // length), position % length, length
        while position >= length:
            position, length, count = position - length, length * self.T_mult, count + 1
        return count, position, length

    def _update(self) -> float:
        if self._clock < self.warmup_steps:
            share = self._clock / self.warmup_steps
            rates = [self.eta_min + (peak - self.eta_min) * share for peak in self.base_lrs]
        else:
            _, position, length = self._cycle()
            cosine = 1 + math.cos(math.pi * position / length)
            rates = [self.eta_min + (peak - self.eta_min) * cosine / 2 for peak in self.base_lrs]
        self.apply_rates(rates)
        return self.current_lr

    @property
    def num_restarts(self) -> int:
        """Restarts so far."""
        return self._cycle()[0]

    def get_schedule_info(self) -> dict[str, Any]:
        """Where the schedule stands: rate, clock, cosine, position in it, clock of each start.

        Of the starts, ``restart_epochs``, the newest thousand.
        """
        count, position, length = self._cycle()
        if self.T_mult == 1:
            first = max(0, count + 1 - _STARTS)
            starts = [self.warmup_steps + k * self.T_0 for k in range(first, count + 1)]
        else:  # which are few, their lengths growing
            starts, period = [self.warmup_steps], self.T_0
            for _ in range(count):
                starts.append(starts[-1] + period)
                period *= self.T_mult
        return {
            "current_lr": self.current_lr,
            "epoch": math.floor(self._clock),
            "step": self._clock,
            "in_warmup": self._clock < self.warmup_steps,
            "restart_count": count,
            "current_period": length,
            "position_in_period": position,
            "progress_in_period": position / length,
            "restart_epochs": starts,
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "T_0": self.T_0,
            "T_mult": self.T_mult,
            "eta_min": self.eta_min,
            "warmup_steps": self.warmup_steps,
            "base_lrs": list(self.base_lrs),
            "clock": self._clock,
            "lr_scale": self.lr_scale,
        }

    @whole_state
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.check_state(state_dict)
        forms.listed(forms.number(0.0))("base_lrs", state_dict["base_lrs"])
        peaks = [check_number("base_lrs", rate, 0.0) for rate in state_dict["base_lrs"]]
        groups = self.optimizer.param_groups
        if len(peaks) != len(groups):
            raise ValueError(f"base_lrs has {len(peaks)} rates, the optimizer {len(groups)} groups")
        new: dict[str, Any] = {
            "T_0": check_whole("T_0", state_dict["T_0"], 1),
            "T_mult": check_whole("T_mult", state_dict["T_mult"], 1),
            "eta_min": check_number("eta_min", state_dict["eta_min"], 0.0),
            "warmup_steps": check_whole("warmup_steps", state_dict["warmup_steps"], 0),
            "base_lrs": peaks,
            "_clock": _clock("clock", state_dict["clock"]),
            "lr_scale": float(state_dict["lr_scale"]),
        }
        if min(peaks) < new["eta_min"]:
            raise ValueError(f"eta_min {new['eta_min']!r} exceeds base_lrs {min(peaks)!r}")
        self.__dict__.update(new)
        for group, rate in zip(groups, peaks, strict=True):
            group["initial_lr"] = rate
        self._update()


def _clock(name: str, value: Any) -> float:
    """A reading of the clock; whole ones stay int, so that they stay exact."""
    number = check_number(name, value, 0.0, float(COUNTABLE))
    return int(value) if isinstance(value, int | np.integer) else number


class ConstantScheduler(LearningRateSchedule):
    """The optimizer's own rates, after ``warmup_steps`` optimizer steps of linear warm-up."""

    def __init__(self, optimizer: Optimizer, warmup_steps: int = 0) -> None:
        super().__init__(optimizer)
        self.warmup_steps = check_whole("warmup_steps", warmup_steps, 0)
        self.base_lrs = list(self._rates)
        self._step = 0
        self._update()

    def on_optimizer_step(self) -> float:
        self.check_groups()
        self._step += 1
        self._update()
        return self.current_lr

    def _update(self) -> None:
        share = min(1.0, (self._step + 1) / (self.warmup_steps + 1))
        self.apply_rates([rate * share for rate in self.base_lrs])

    def state_dict(self) -> dict[str, Any]:
        return {"base_lrs": list(self.base_lrs), "step": self._step, "lr_scale": self.lr_scale}

    @whole_state
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.check_state(state_dict)
        forms.listed(forms.number(0.0))("base_lrs", state_dict["base_lrs"])
        rates = [check_number("base_lrs", rate, 0.0) for rate in state_dict["base_lrs"]]
        if len(rates) != len(self.optimizer.param_groups):
            raise ValueError(
                f"base_lrs has {len(rates)} rates, the optimizer "
                f"{len(self.optimizer.param_groups)} groups"
            )
        step = check_whole("step", state_dict["step"], 0)
        self.base_lrs, self._step = rates, step
        self.lr_scale = float(state_dict["lr_scale"])
        self._update()


def build_scheduler(
    optimizer: Optimizer, schedule: ScheduleConfig, total_steps: int
) -> LearningRateSchedule:
    """The schedule that a config asks for, with the optimizer's present rates as peaks.

    Args:
        optimizer: built with the peak rates.
        schedule: the config's group of that name.
        total_steps: optimizer steps of the run, at least 1; ``T_0 = 0`` spans what follows the
            warm-up, which is at most half of the run.

    Raises:
        ValueError: an argument of another kind or out of range, by name.
    """
    from ringrift_pipeline.enhancements.config_groups import ScheduleConfig

    check_type("optimizer", optimizer, Optimizer)
    check_type("schedule", schedule, ScheduleConfig)
    total = check_whole("total_steps", total_steps, 1)
    warmup = min(schedule.warmup_steps, total // 2)
    peaks = [float(group["lr"]) for group in optimizer.param_groups]
    if schedule.name == "constant":
        return ConstantScheduler(optimizer, warmup)
    if schedule.name == "adaptive":
        return AdaptiveLRScheduler(
            optimizer,
            base_lr=peaks[0],
            min_lr=peaks[0] * schedule.min_lr_fraction,
            max_lr=peaks[0],
            lr_decrease_factor=schedule.plateau_factor,
            plateau_patience=schedule.plateau_patience,
            warmup_steps=warmup,
            warmup_epochs=0,
        )
    return WarmRestartsScheduler(
        optimizer,
        T_0=schedule.T_0 or max(1, total - warmup),
        T_mult=schedule.T_mult,
        eta_min=min(peaks) * schedule.min_lr_fraction,
        warmup_steps=warmup,
    )


__all__ = [
    "AdaptiveLRScheduler",
    "ConstantScheduler",
    "LearningRateSchedule",
    "WarmRestartsScheduler",
    "build_scheduler",
]
