"""Calibration of the value head: is a win predicted at 70% won 70% of the time?

`CalibrationAutomation` watches a window of recent forecasts and says when to recalibrate. What it
builds on can be used alone: `calibration_report` measures forecasts (`calibration_measures` says
how), `draw_reliability` makes the picture, `fit_temperature` finds the one temperature that makes
a value head's own logits most likely, fitting and judging on different games.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ringrift_pipeline.enhancements import state_forms as forms
from ringrift_pipeline.enhancements.argument_checks import (
    check_device,
    check_iterable,
    check_keys,
    check_number,
    check_type,
    check_whole,
    host_array,
    number_array,
    whole_state,
)
from ringrift_pipeline.enhancements.calibration_measures import Forecasts, labels
from ringrift_pipeline.enhancements.calibration_report import (
    calibration_report,
    check_options,
    draw_reliability,
)
from ringrift_pipeline.enhancements.temperature_scaling import (
    FIT_FORM,
    TemperatureFit,
    check_logits,
    fit_temperature,
    real_tensor,
    value_probabilities,
)

__all__ = [
    "CalibrationAutomation",
    "TemperatureFit",
    "calibration_report",
    "draw_reliability",
    "fit_temperature",
    "value_probabilities",
]

logger = logging.getLogger(__name__)

_NAMED, _UNNAMED = "=", "#"  # what a game's id in the window begins with, by who gave it

_CHECK = forms.record(
    epoch=forms.whole(),
    ece=forms.number(),
    ece_interval=forms.listed(forms.number(), exactly=2),
    brier=forms.number(0.0),
    log_loss=forms.number(0.0),
    samples=forms.whole(1),
    games=forms.whole(1),
    triggered=forms.flag,
)


class CalibrationAutomation:
    """Watches recent forecasts and says when the value head needs recalibrating.

    Args:
        deviation_threshold: debiased calibration error above which to recalibrate, if its
            interval excludes 0 too.
        check_interval: epochs between checks.
        min_samples: positions needed before a check.
        window_size: positions kept; the oldest go first.
        min_games: games needed before a check. With fewer the interval is too narrow: a calibrated
            head whose games have 100 positions each is found wanting in 37% of checks of 2 games,
            6% of 10, 2% of 20.
        bins, bootstrap, confidence, seed: see `calibration_report`.
        value_range: range of the values given to `add_samples`. (0, 1) are probabilities; pass
            (-1, 1) for a head that predicts the expected result of one seat.

    Raises:
        ValueError: for an argument out of range.
    """

    def __init__(
        self,
        deviation_threshold: float = 0.05,
        check_interval: int = 5,
        min_samples: int = 1000,
        window_size: int = 5000,
        *,
        min_games: int = 20,
        bins: int = 15,
        bootstrap: int = 200,
        confidence: float = 0.95,
        seed: int = 0,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self.deviation_threshold = check_number(
            "deviation_threshold", deviation_threshold, 0.0, 1.0, above=True
        )
        self.check_interval = check_whole("check_interval", check_interval, 1)
        self.min_samples = check_whole("min_samples", min_samples, 1)
        self.window_size = check_whole("window_size", window_size, 1)
        self.min_games = check_whole("min_games", min_games, 1)
        if self.min_samples > self.window_size:
            raise ValueError(
                f"min_samples ({min_samples}) can never be reached in a window of {window_size}"
            )
        bounds = number_array("value_range", value_range)
        if bounds.shape != (2,) or not np.isfinite(bounds).all() or not bounds[0] < bounds[1]:
            raise ValueError(f"value_range must be (low, high), got {value_range!r}")
        self.value_range = (float(bounds[0]), float(bounds[1]))
        self._options = check_options(bins, bootstrap, confidence, seed)
        self._epoch = 0
        self._last_check = 0
        self._history: list[dict[str, Any]] = []
        self._unnamed = 0
        self._clear()
        self.temperature_fit: TemperatureFit | None = None

    def _clear(self) -> None:
        self._predictions = np.empty((0, 1))
        self._outcomes = np.empty((0, 1))
        self._games = np.empty(0, dtype=object)
        self._phases = np.empty(0, dtype=object)

    @property
    def num_samples(self) -> int:
        """Positions in the window."""
        return int(self._predictions.shape[0])

    def add_samples(
        self,
        predictions: Iterable[float] | np.ndarray | torch.Tensor,
        outcomes: Iterable[float] | np.ndarray | torch.Tensor,
        games: Any | None = None,
        phases: Any | None = None,
    ) -> None:
        """Add forecasts, O(window).

        Args:
            predictions: (n,) or (n, seats), within `value_range`.
            outcomes: same shape and range.
            games: (n,) ids, one a game; without them each row counts as a game of its own.
            phases: (n,) phase names.

        Raises:
            ValueError: for shapes that differ, values out of range or not finite. Nothing is
                added then.
        """
        p, y = number_array("predictions", predictions), number_array("outcomes", outcomes)
        low, high = self.value_range
        for name, values in (("predictions", p), ("outcomes", y)):
            if values.size and not ((values >= low) & (values <= high)).all():
                hint = "; pass value_range=(-1, 1) for such values" if low == 0.0 else ""
                raise ValueError(f"{name} must be finite and in [{low:g}, {high:g}]{hint}")
        checked = Forecasts.check((p - low) / (high - low), (y - low) / (high - low), games, phases)
        rows = checked.predictions.shape[0]
        if games is None:
            numbers = np.arange(self._unnamed, self._unnamed + rows).astype(str)
            ids = np.char.add(_UNNAMED, numbers).astype(object)
        else:
            ids = np.char.add(_NAMED, labels("games", games, rows).astype(str)).astype(object)
        names = checked.phases if checked.phases is not None else np.full(rows, "")
        if self.num_samples and checked.predictions.shape[1] != self._predictions.shape[1]:
            raise ValueError(
                f"predictions: the window holds {self._predictions.shape[1]} values a position, "
                f"got {checked.predictions.shape[1]}"
            )
        self._unnamed += rows if games is None else 0
        keep = slice(-self.window_size, None)
        if not self.num_samples:
            self._predictions, self._outcomes = checked.predictions, checked.outcomes
        else:
            self._predictions = np.concatenate([self._predictions, checked.predictions])
            self._outcomes = np.concatenate([self._outcomes, checked.outcomes])
        self._predictions, self._outcomes = self._predictions[keep], self._outcomes[keep]
        self._games = np.concatenate([self._games, ids])[keep]
        self._phases = np.concatenate([self._phases, names.astype(object)])[keep]

    def should_recalibrate(self, epoch: int | None = None) -> bool:
        """Whether the window's calibration error is above the threshold, and not by chance.

        Args:
            epoch: current epoch, at least 0; default one more than at the last call.

        Raises:
            ValueError: ``epoch`` is no such number; nothing changes.
        """
        self._epoch = self._epoch + 1 if epoch is None else check_whole("epoch", epoch, 0)
        if self._epoch - self._last_check < self.check_interval:
            return False
        if self.num_samples < self.min_samples or np.unique(self._games).size < self.min_games:
            return False
        self._last_check = self._epoch
        measured = self.report()
        error, (low, high) = measured["calibration_error"], measured["calibration_error_interval"]
        triggered = bool(error > self.deviation_threshold and low > 0.0)
        self._history.append(
            {
                "epoch": self._epoch,
                "ece": error,
                "ece_interval": [low, high],
                "brier": measured["brier"],
                "log_loss": measured["log_loss"],
                "samples": measured["positions"],
                "games": measured["games"],
                "triggered": triggered,
            }
        )
        logger.info(
            "calibration error %.4f [%.4f, %.4f] over %d games%s",
            error,
            low,
            high,
            measured["games"],
            ": recalibrate" if triggered else "",
        )
        return triggered

    def compute_optimal_temperature(
        self,
        model: torch.nn.Module | torch.Tensor | np.ndarray,
        dataloader: Iterable[Any],
        device: torch.device | str | None = None,
        *,
        games: Any | None = None,
    ) -> float:
        """Temperature that makes the value head most likely; see `fit_temperature`.

        Half of the games fit it, the other half judge it; all that was found is in
        `temperature_fit`. The window is emptied: it was made at the old temperature.

        Args:
            model: a module giving ``(policy_logits, value_logits)`` or value logits alone, or the
                value logits themselves. Its training mode is left as it was.
            dataloader: for a module, batches ``(features, value_targets)`` or
                ``(features, policy_targets, value_targets)`` or mappings with ``features``,
                ``value_targets`` and optionally ``game_ids``; for logits, the targets.
            device: where to run; default the module's, or where the logits are.
            games: (n,) game ids in the loader's order, where batches do not carry them.

        Returns:
            The temperature to divide value logits by: 1 where the fitted one is a bound, or does
            not lower the log loss of the games that judge.

        Raises:
            ValueError: bad logits, targets or games, or batches of another form; nothing changes.
        """
        if isinstance(model, torch.nn.Module):
            logits, targets, found = _value_logits(model, dataloader, device)
            games = found if found is not None else games
        else:
            logits = real_tensor("model", model)
            targets = real_tensor("dataloader", dataloader)
            if device is not None:
                logits = logits.to(check_device("device", device))
        with forms.naming("model and dataloader"):
            logits, targets = check_logits(logits, targets)
        self.temperature_fit = fit_temperature(logits, targets, games, **self._options)
        self._clear()
        fit = self.temperature_fit
        return fit.temperature if fit.log_loss_gain > 0.0 and not fit.at_bound else 1.0

    def get_calibration_history(self) -> list[dict[str, Any]]:
        """One record a check, oldest first: epoch, ece, ece_interval, samples, games, triggered."""
        return [dict(record) for record in self._history]

    def report(self, path: str | Path | None = None) -> dict[str, Any]:
        """`calibration_report` of the window; with `path` a reliability diagram is drawn there.

        Raises:
            ValueError: when no samples have been added, or `path` is no path.
        """
        if path is not None:
            check_type("path", path, (str, Path))
        if not self.num_samples:
            raise ValueError("there are no samples to report on: call add_samples first")
        phases = self._phases if (self._phases != "").any() else None
        measured = calibration_report(
            self._predictions, self._outcomes, self._games.astype(str), phases, **self._options
        )
        if path is not None:
            draw_reliability({"value head": measured}, path)
        return measured

    def state_dict(self) -> dict[str, Any]:
        """Window, epoch counters, history and the last temperature fit."""
        fit = self.temperature_fit
        return {
            "epoch": self._epoch,
            "last_check": self._last_check,
            "unnamed": self._unnamed,
            "history": self.get_calibration_history(),
            "predictions": self._predictions.copy(),
            "outcomes": self._outcomes.copy(),
            "games": self._games.tolist(),
            "phases": self._phases.tolist(),
            "temperature_fit": None if fit is None else fit.to_dict(),
        }

    @whole_state
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from `state_dict`; ValueError for a state that lacks something."""
        check_keys(state, self.state_dict(), "CalibrationAutomation")
        forms.record(
            epoch=forms.whole(),
            last_check=forms.whole(),
            unnamed=forms.whole(),
            history=forms.listed(_CHECK),
            predictions=forms.numbers(None, None, low=0.0),
            outcomes=forms.numbers(None, None, low=0.0),
            games=forms.listed(forms.text),
            phases=forms.listed(forms.text),
            temperature_fit=forms.optional(FIT_FORM),
        )("", state)
        if state["last_check"] != (state["history"][-1]["epoch"] if state["history"] else 0):
            raise ValueError("last_check is not the epoch of the last check in history")
        predictions = np.array(state["predictions"], dtype=np.float64)
        rows = predictions.shape[0]
        games = np.array(state["games"], dtype=object)
        phases = np.array(state["phases"], dtype=object)
        outcomes = np.array(state["outcomes"], dtype=np.float64)
        if not (rows == games.shape[0] == phases.shape[0] and outcomes.shape == predictions.shape):
            raise ValueError(
                "calibration state is damaged: predictions, outcomes, games and phases differ in "
                "length"
            )
        if rows:
            Forecasts.check(predictions, outcomes)
        self._predictions, self._outcomes = predictions, outcomes
        self._games, self._phases = games, phases
        self._epoch, self._last_check = int(state["epoch"]), int(state["last_check"])
        self._unnamed = int(state["unnamed"])
        self._history = [dict(record) for record in state["history"]]
        fit = state["temperature_fit"]
        self.temperature_fit = None if fit is None else TemperatureFit.from_dict(fit)


def _value_logits(
    model: torch.nn.Module, batches: Iterable[Any], device: torch.device | str | None
) -> tuple[torch.Tensor, torch.Tensor, np.ndarray | None]:
    if device is None:
        first = next(model.parameters(), None)
        device = torch.device("cpu") if first is None else first.device
    device = check_device("device", device)
    batches = check_iterable("dataloader", batches)

    def move(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(device)
        if isinstance(value, Mapping):
            return {name: move(part) for name, part in value.items()}
        return value

    logits, targets, games = [], [], []
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                if isinstance(batch, Mapping):
                    if "features" not in batch or "value_targets" not in batch:
                        raise ValueError(f"dataloader: a batch has only {', '.join(batch)}")
                    features, target = batch["features"], batch["value_targets"]
                    if batch.get("game_ids") is not None:
                        games.append(host_array("game_ids", batch["game_ids"]))
                elif isinstance(batch, (tuple, list)) and len(batch) in (2, 3):
                    features, target = batch[0], batch[-1]
                else:
                    raise ValueError(f"dataloader: a batch is a {type(batch).__name__}")
                output = model(move(features))
                value = output[1] if isinstance(output, (tuple, list)) else output
                if not isinstance(value, torch.Tensor) or value.dim() == 0:
                    raise ValueError("model must give (policy_logits, value_logits) or the latter")
                logits.append(value.reshape(value.shape[0], -1))
                targets.append(move(real_tensor("dataloader", target)))
    finally:
        model.train(was_training)
    if not logits:
        raise ValueError("dataloader gave no batches")
    ids = np.concatenate(games) if games else None
    return torch.cat(logits), torch.cat(targets), ids
