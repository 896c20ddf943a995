"""What every learning-rate schedule shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from ringrift_pipeline.enhancements.argument_checks import (
    check_keys,
    check_number,
    check_type,
)


class LearningRateSchedule:
    """What the schedules share. ``lr_scale`` multiplies every rate, for back-off after trouble."""

    def __init__(self, optimizer: Optimizer) -> None:
        check_type("optimizer", optimizer, Optimizer)
        if not optimizer.param_groups:
            raise ValueError("optimizer has no parameter groups")
        self.optimizer = optimizer
        self.lr_scale = 1.0
        self._rates = [float(group["lr"]) for group in optimizer.param_groups]

    @property
    def current_lr(self) -> float:
        """Rate of the first parameter group."""
        return self.get_last_lr()[0]

    def get_last_lr(self) -> list[float]:
        """Rate of each parameter group, as last set."""
        return [rate * self.lr_scale for rate in self._rates]

    def scale_lr(self, factor: float) -> float:
        """Multiply this and all later rates by ``factor`` (> 0), at once; returns the new rate."""
        factor = check_number("factor", factor, 0.0, above=True)
        self.check_groups()
        self.lr_scale *= factor
        self.apply_rates(self._rates)
        return self.current_lr

    def on_optimizer_step(self) -> float:
        """Advance by one optimizer step; returns the rate of the next one."""
        raise NotImplementedError

    def on_validation(
        self, train_loss: float, val_loss: float | None = None, current_elo: float | None = None
    ) -> float:
        """Take note of a validation; returns the rate of the next step.

        Raises:
            ValueError: a figure that is not finite, by name; nothing changes.
        """
        check_number("train_loss", train_loss)
        for name, figure in (("val_loss", val_loss), ("current_elo", current_elo)):
            if figure is not None:
                check_number(name, figure)
        return self.current_lr

    def state_dict(self) -> dict[str, Any]:
        """Plain values that JSON keeps exactly."""
        raise NotImplementedError

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state and set the optimizer's rates; ValueError changes nothing."""
        raise NotImplementedError

    def check_groups(self) -> None:
        """ValueError when the optimizer has other parameter groups than it was scheduled with."""
        found = len(self.optimizer.param_groups)
        if found != len(self._rates):
            raise ValueError(
                f"optimizer has {found} parameter groups, its schedule was built for "
                f"{len(self._rates)}: build the schedule after add_param_group"
            )

    def apply_rates(self, rates: list[float]) -> None:
        """Set each group's rate (before ``lr_scale``); for subclasses."""
        self._rates = rates
        for group, rate in zip(self.optimizer.param_groups, self.get_last_lr(), strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def check_state(self, state: Mapping[str, Any]) -> None:
        """ValueError when a state lacks an entry; for subclasses."""
        check_keys(state, self.state_dict(), type(self).__name__)
        check_number("lr_scale", state["lr_scale"], 0.0, above=True)


__all__ = ["LearningRateSchedule"]
