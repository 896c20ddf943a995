"""A learning rate that follows the validation loss and Elo."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch.optim import Optimizer

from ringrift_pipeline.enhancements import state_forms as forms
from ringrift_pipeline.enhancements.argument_checks import (
    check_number,
    check_type,
    check_whole,
    whole_state,
)
from ringrift_pipeline.enhancements.learning_rate_base import LearningRateSchedule


class AdaptiveLRScheduler(LearningRateSchedule):
    """Rate that follows the validation loss and Elo; step it once a validation or epoch.

    In this order, at most one change a step, and the evidence it used is then forgotten:

    1. the loss oscillates around its trend, or Elo falls: times ``lr_decrease_factor``;
    2. the validation loss is on a plateau and Elo is not rising: times ``lr_decrease_factor``;
    3. Elo stagnates although the loss still improves: times ``lr_increase_factor``.

    Without any ``val_loss`` the plateau is looked for in the training loss. Oscillation is the
    mean square of the training losses around their best monotone fit, over their squared mean: a
    loss that falls, however fast, does not oscillate. Elo's change is that of a straight line
    through the last ``elo_lookback`` ratings.

    Args:
        optimizer: the groups keep their rates' ratio to the first group's.
        base_lr: rate of the first group after warm-up, in ``[min_lr, max_lr]``.
        min_lr, max_lr: bounds of that rate.
        elo_lookback: ratings in the trend of Elo, at least 2.
        loss_lookback: training losses in the measure of oscillation, at least 3.
        elo_stagnation_threshold: change of Elo over the lookback that counts as one, Elo.
        loss_oscillation_threshold: least relative mean square that is an oscillation, no unit.
        lr_increase_factor: at least 1.
        lr_decrease_factor: in (0, 1).
        warmup_epochs: steps of linear warm-up, the rate in step k being k / (warmup_epochs + 1).
        plateau_patience: validations without progress that make a plateau.
        plateau_threshold: relative improvement that counts as progress, no unit.
        warmup_steps: warm-up in optimizer steps (:meth:`on_optimizer_step`) in place of epochs.

    Raises:
        ValueError: an argument out of range, by name.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        base_lr: float = 0.001,
        min_lr: float = 1e-6,
        max_lr: float = 0.01,
        elo_lookback: int = 5,
        loss_lookback: int = 10,
        elo_stagnation_threshold: float = 10.0,
        loss_oscillation_threshold: float = 0.1,
        lr_increase_factor: float = 1.5,
        lr_decrease_factor: float = 0.5,
        warmup_epochs: int = 5,
        *,
        plateau_patience: int = 5,
        plateau_threshold: float = 1e-3,
        warmup_steps: int = 0,
    ) -> None:
        super().__init__(optimizer)
        self.min_lr = check_number("min_lr", min_lr, 0.0)
        self.max_lr = check_number("max_lr", max_lr, 0.0)
        self.base_lr = check_number("base_lr", base_lr, 0.0, above=True)
        if not self.min_lr <= self.base_lr <= self.max_lr:
            raise ValueError(
                "rates must satisfy min_lr <= base_lr <= max_lr, "
                f"got {min_lr!r}, {base_lr!r}, {max_lr!r}"
            )
        self.elo_lookback = check_whole("elo_lookback", elo_lookback, 2)
        self.loss_lookback = check_whole("loss_lookback", loss_lookback, 3)
        self.elo_stagnation_threshold = check_number(
            "elo_stagnation_threshold", elo_stagnation_threshold, 0.0
        )
        self.loss_oscillation_threshold = check_number(
            "loss_oscillation_threshold", loss_oscillation_threshold, 0.0, above=True
        )
        self.lr_increase_factor = check_number("lr_increase_factor", lr_increase_factor, 1.0)
        self.lr_decrease_factor = check_number(
            "lr_decrease_factor", lr_decrease_factor, 0.0, 1.0, above=True
        )
        if self.lr_decrease_factor == 1.0:
            raise ValueError("lr_decrease_factor must be below 1, got 1.0")
        self.warmup_steps = check_whole("warmup_steps", warmup_steps, 0)
        epochs = check_whole("warmup_epochs", warmup_epochs, 0)
        self.warmup_epochs = 0 if self.warmup_steps else epochs
        self.plateau_patience = check_whole("plateau_patience", plateau_patience, 1)
        self.plateau_threshold = check_number("plateau_threshold", plateau_threshold, 0.0)
        if self._rates[0] <= 0.0:
            raise ValueError("optimizer: the first group's rate must be above 0")
        self._ratios = [rate / self._rates[0] for rate in self._rates]
        self._lr = self.base_lr
        self._epoch = 0
        self._optimizer_steps = 0
        self._losses: deque[float] = deque(maxlen=self.loss_lookback)
        self._elos: deque[float] = deque(maxlen=self.elo_lookback)
        self._best: float | None = None  # best loss watched for plateaus
        self._stale = 0  # validations since
        self._watches_validation = False
        self.last_reason = ""  # why the rate last changed
        self._update()

    def step(
        self, train_loss: float, current_elo: float | None = None, val_loss: float | None = None
    ) -> float:
        """Take in one epoch's or validation's figures; returns the first group's rate.

        Args:
            train_loss: mean training loss since the last step.
            current_elo: rating, where there is a new one.
            val_loss: validation loss, where there is a new one.

        Raises:
            ValueError: a figure that is not finite, by name; nothing changes.
        """
        loss = check_number("train_loss", train_loss)
        elo = None if current_elo is None else check_number("current_elo", current_elo)
        val = None if val_loss is None else check_number("val_loss", val_loss)
        self.check_groups()
        self._epoch += 1
        self._losses.append(loss)
        if elo is not None:
            self._elos.append(elo)
        self._watch(loss, val)
        if not self._in_warmup:
            self._decide()
        self._update()
        return self.current_lr

    def on_validation(
        self, train_loss: float, val_loss: float | None = None, current_elo: float | None = None
    ) -> float:
        return self.step(train_loss, current_elo, val_loss)

    def on_optimizer_step(self) -> float:
        self.check_groups()
        if self._optimizer_steps < self.warmup_steps:
            self._optimizer_steps += 1
            self._update()
        return self.current_lr

    def warm_restart(self, lr_factor: float = 1.0) -> None:
        """Back to ``base_lr * lr_factor`` (within the bounds), all evidence forgotten.

        Raises:
            ValueError: ``lr_factor`` not above 0; nothing changes.
        """
        factor = check_number("lr_factor", lr_factor, 0.0, above=True)
        self.check_groups()
        self._change(self.base_lr * factor, "warm restart")
        self._forget()
        self._update()

    @property
    def _in_warmup(self) -> bool:
        return self._epoch < self.warmup_epochs or self._optimizer_steps < self.warmup_steps

    def _update(self) -> None:
        share = 1.0
        if self._in_warmup:
            done, total = (
                (self._optimizer_steps, self.warmup_steps)
                if self.warmup_steps
                else (self._epoch, self.warmup_epochs)
            )
            share = (done + 1) / (total + 1)
        self.apply_rates([self._lr * share * ratio for ratio in self._ratios])

    def _watch(self, train_loss: float, val_loss: float | None) -> None:
        if val_loss is not None and not self._watches_validation:
            self._watches_validation, self._best, self._stale = True, None, 0
        watched = val_loss if self._watches_validation else train_loss
        if watched is None:
            return
        margin = self.plateau_threshold * abs(self._best) if self._best is not None else 0.0
        if self._best is None or watched < self._best - margin:
            self._best, self._stale = watched, 0
        else:
            self._stale += 1

    def _decide(self) -> None:
        change = self._elo_change()
        plateau = self._stale >= self.plateau_patience
        if self._oscillation() > self.loss_oscillation_threshold:
            self._change(self._lr * self.lr_decrease_factor, "the loss oscillates")
        elif change is not None and change < -self.elo_stagnation_threshold:
            self._change(self._lr * self.lr_decrease_factor, f"Elo fell by {-change:.0f}")
        elif plateau and (change is None or change < self.elo_stagnation_threshold):
            self._change(self._lr * self.lr_decrease_factor, "the loss is on a plateau")
        elif not plateau and change is not None and abs(change) < self.elo_stagnation_threshold:
            self._change(self._lr * self.lr_increase_factor, "Elo stagnates, the loss does not")
        else:
            return
        self._forget()

    def _change(self, rate: float, reason: str) -> None:
        self._lr = min(max(rate, self.min_lr), self.max_lr)
        self.last_reason = reason

    def _forget(self) -> None:
        self._losses.clear()
        self._elos.clear()
        self._best, self._stale = None, 0

    def _elo_change(self) -> float | None:
        """Change of Elo over the lookback by a straight line, None while ratings are few."""
        if len(self._elos) < self.elo_lookback:
            return None
        x = np.arange(self.elo_lookback) - (self.elo_lookback - 1) / 2
        return float(np.dot(x, self._elos) / np.dot(x, x) * (self.elo_lookback - 1))

    def _oscillation(self) -> float:
        """Relative mean square of the losses around their best monotone fit, 0 while few."""
        if len(self._losses) < self.loss_lookback:
            return 0.0
        losses = np.array(self._losses)
        mean = abs(float(losses.mean()))
        if mean < 1e-12:
            return 0.0
        rising = np.mean((losses - _monotone_fit(losses)) ** 2)
        falling = np.mean((losses + _monotone_fit(-losses)) ** 2)
        return float(min(rising, falling)) / mean**2

    def state_dict(self) -> dict[str, Any]:
        return {
            "lr": self._lr,
            "lr_scale": self.lr_scale,
            "ratios": list(self._ratios),
            "epoch": self._epoch,
            "optimizer_steps": self._optimizer_steps,
            "losses": list(self._losses),
            "elos": list(self._elos),
            "best": self._best,
            "stale": self._stale,
            "watches_validation": self._watches_validation,
            "last_reason": self.last_reason,
        }

    @whole_state
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.check_state(state_dict)
        forms.record(
            ratios=forms.listed(forms.number(0.0)),
            losses=forms.listed(forms.number(), most=self.loss_lookback),
            elos=forms.listed(forms.number(), most=self.elo_lookback),
        )("", state_dict)
        ratios = [check_number("ratios", ratio, 0.0) for ratio in state_dict["ratios"]]
        if len(ratios) != len(self.optimizer.param_groups):
            raise ValueError(
                f"ratios has {len(ratios)} entries, the optimizer "
                f"{len(self.optimizer.param_groups)} groups"
            )
        check_type("watches_validation", state_dict["watches_validation"], bool)
        check_type("last_reason", state_dict["last_reason"], str)
        best = state_dict["best"]
        losses = [check_number("losses", loss) for loss in state_dict["losses"]]
        elos = [check_number("elos", elo) for elo in state_dict["elos"]]
        new: dict[str, Any] = {
            "_lr": check_number("lr", state_dict["lr"], self.min_lr, self.max_lr),
            "lr_scale": float(state_dict["lr_scale"]),
            "_ratios": ratios,
            "_epoch": check_whole("epoch", state_dict["epoch"], 0),
            "_optimizer_steps": check_whole("optimizer_steps", state_dict["optimizer_steps"], 0),
            "_losses": deque(losses, maxlen=self.loss_lookback),
            "_elos": deque(elos, maxlen=self.elo_lookback),
            "_best": None if best is None else check_number("best", best),
            "_stale": check_whole("stale", state_dict["stale"], 0),
            "_watches_validation": bool(state_dict["watches_validation"]),
            "last_reason": str(state_dict["last_reason"]),
        }
        self.__dict__.update(new)
        self._update()


def _monotone_fit(values: np.ndarray) -> np.ndarray:
    """Least-squares non-decreasing fit, by pooling adjacent violators."""
    means: list[float] = []
    sizes: list[int] = []
    for value in values:
        means.append(float(value))
        sizes.append(1)
        while len(means) > 1 and means[-2] > means[-1]:
            size = sizes[-2] + sizes[-1]
            mean = (means[-2] * sizes[-2] + means[-1] * sizes[-1]) / size
            means[-2:], sizes[-2:] = [mean], [size]
    return np.repeat(means, sizes)


__all__ = ["AdaptiveLRScheduler"]
