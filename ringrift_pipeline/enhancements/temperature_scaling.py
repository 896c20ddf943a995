"""One temperature for a value head, by maximum likelihood, judged on games it did not see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch

from ringrift_pipeline.enhancements import state_forms as forms
from ringrift_pipeline.enhancements.argument_checks import (
    check_dense,
    check_number,
    check_share,
    number_array,
)
from ringrift_pipeline.enhancements.calibration_measures import (
    Forecasts,
    dense,
    game_draws,
    interval,
    labels,
)
from ringrift_pipeline.enhancements.calibration_report import (
    REPORT_FORM,
    calibration_report,
    check_options,
)

__all__ = [
    "TemperatureFit",
    "check_logits",
    "fit_temperature",
    "optimal_temperature",
    "real_tensor",
    "value_probabilities",
]

TEMPERATURE_BOUNDS = (0.05, 20.0)


def value_probabilities(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Probabilities of winning of a value head at a temperature.

    Args:
        logits: (n, seats) for a softmax over seats, or (n,) or (n, 1) for a sigmoid; floating
            point.
        temperature: what the logits are divided by, above 0.

    Returns:
        (n, seats), or (n, 1) for one column; the dtype and device of `logits`.

    Raises:
        ValueError: logits of another kind or shape, a temperature that is not above 0, by name.
    """
    check_dense("logits", logits)
    if logits.ndim not in (1, 2) or not logits.is_floating_point():
        raise ValueError(
            "logits must be floating point (n,) or (n, seats), "
            f"got {logits.dtype} {tuple(logits.shape)}"
        )
    temperature = check_number("temperature", temperature, 0.0, above=True)
    if logits.ndim == 1:
        logits = logits[:, None]
    if logits.shape[1] == 1:
        return torch.sigmoid(logits / temperature)
    return torch.softmax(logits / temperature, dim=1)


@dataclass(frozen=True)
class TemperatureFit:
    """Outcome of `fit_temperature`.

    Attributes:
        temperature: logits are to be divided by it; above 1 the head was too sure.
        games_fitted, games_judged: number of games on either side of the split.
        log_loss_before, log_loss_after: on the games judged, nats.
        log_loss_gain: before - after on the games judged.
        log_loss_gain_interval: its bootstrap interval over games, at the confidence asked for.
        helps: the interval of the gain lies above 0.
        at_bound: the likelihood has no optimum inside `TEMPERATURE_BOUNDS`.
        before, after: `calibration_report`s of the games judged.
    """

    temperature: float
    games_fitted: int
    games_judged: int
    log_loss_before: float
    log_loss_after: float
    log_loss_gain: float
    log_loss_gain_interval: tuple[float, float]
    helps: bool
    at_bound: bool
    before: dict[str, Any]
    after: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TemperatureFit:
        """What :meth:`to_dict` gave, also after JSON; ValueError for anything else."""
        if not isinstance(data, Mapping) or data.keys() != {field.name for field in fields(cls)}:
            raise ValueError(f"data is no temperature_fit as to_dict gives it: {data!r:.80}")
        FIT_FORM("temperature_fit", data)
        low, high = data["log_loss_gain_interval"]
        return cls(**{**data, "log_loss_gain_interval": (low, high)})


FIT_FORM = forms.record(
    temperature=forms.number(0.0, above=True),
    games_fitted=forms.whole(1),
    games_judged=forms.whole(1),
    log_loss_before=forms.number(0.0),
    log_loss_after=forms.number(0.0),
    log_loss_gain=forms.number(),
    log_loss_gain_interval=forms.listed(forms.number(), exactly=2),
    helps=forms.flag,
    at_bound=forms.flag,
    before=REPORT_FORM,
    after=REPORT_FORM,
)


def real_tensor(name: str, values: Any) -> torch.Tensor:
    """Real numbers as a tensor without graph, where they are; ValueError by ``name``."""
    if not isinstance(values, torch.Tensor):
        return torch.tensor(number_array(name, values))
    check_dense(name, values)
    return values.detach()


def check_logits(logits: Any, targets: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Value logits (n, S) and target shares (n, S), float64, on the device of the logits."""
    z = real_tensor("logits", logits).to(torch.float64)
    y = real_tensor("targets", targets).to(z.device)
    if z.ndim == 1:
        z = z[:, None]
    if z.ndim != 2 or z.shape[0] == 0:
        raise ValueError(f"value logits must be (n,) or (n, seats), got {tuple(z.shape)}")
    if y.ndim == 0 or y.shape[0] != z.shape[0]:
        raise ValueError(f"logits have shape {tuple(z.shape)}, targets {tuple(y.shape)}")
    if z.shape[1] > 1 and y.ndim == 1:
        whole = y.to(torch.int64)
        if not torch.equal(whole.to(y.dtype), y) or whole.min() < 0 or whole.max() >= z.shape[1]:
            raise ValueError(f"targets of shape (n,) must be seats from 0 to {z.shape[1] - 1}")
        y = torch.nn.functional.one_hot(whole, z.shape[1])
    if y.ndim == 1:
        y = y[:, None]
    y = y.to(torch.float64)
    if y.shape != z.shape:
        raise ValueError(f"logits have shape {tuple(z.shape)}, targets {tuple(y.shape)}")
    if not torch.isfinite(z).all():
        raise ValueError("value logits must be finite")
    if not ((y >= 0) & (y <= 1)).all():
        raise ValueError("targets must be shares of the win in [0, 1]")
    return z, y


def optimal_temperature(z: torch.Tensor, y: torch.Tensor) -> tuple[float, bool]:
    """Maximum-likelihood temperature, 1 where that is one of several; whether it is a bound.

    The loss is convex in 1 / T.
    """

    def slope(beta: float) -> float:
        if z.shape[1] == 1:
            return float(((torch.sigmoid(beta * z) - y) * z).mean())
        return float(((torch.softmax(beta * z, dim=1) - y) * z).sum(dim=1).mean())

    if slope(1.0) == 0.0:  # of logits that are all alike every temperature is as likely
        return 1.0, False
    low, high = (1.0 / bound for bound in reversed(TEMPERATURE_BOUNDS))
    if slope(low) >= 0.0:
        return 1.0 / low, True
    if slope(high) <= 0.0:
        return 1.0 / high, True
    from scipy.optimize import brentq

    return 1.0 / float(brentq(slope, low, high, xtol=1e-10)), False


def fit_temperature(
    logits: Any,
    targets: Any,
    games: Any | None = None,
    *,
    judged_fraction: float = 0.5,
    bins: int = 15,
    bootstrap: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> TemperatureFit:
    """Fit one temperature to a value head by maximum likelihood and judge it on other games.

    Args:
        logits: (n, seats) value logits (softmax over seats), or (n,) or (n, 1) (sigmoid), as the
            head gives them; a tensor stays on its device.
        targets: (n, seats) shares of the win, or (n,) winning seats from 0; for one column
            (n,) outcomes in [0, 1].
        games: (n,) game ids; without them every row is a game.
        judged_fraction: share of the games that judge, between 0 and 1; the others fit.
        bins, bootstrap, confidence, seed: see `calibration_report`; the seed also splits.

    Raises:
        ValueError: for bad input, or fewer than two games.
    """
    judged_fraction = check_share("judged_fraction", judged_fraction)
    options = check_options(bins, bootstrap, confidence, seed)
    z, y = check_logits(logits, targets)
    index, number = np.arange(z.shape[0]), z.shape[0]
    if games is not None:
        index, number = dense(labels("games", games, z.shape[0]))
    if number < 2:
        raise ValueError(
            "games: a temperature needs at least two games, one to fit and one to judge"
        )
    judges = min(max(round(number * judged_fraction), 1), number - 1)
    order = np.random.default_rng(np.random.SeedSequence([options["seed"], number]))
    judging = np.zeros(number, dtype=bool)
    judging[order.permutation(number)[:judges]] = True
    judged = torch.from_numpy(judging[index]).to(z.device)

    temperature, at_bound = optimal_temperature(z[~judged], y[~judged])
    outcomes = y[judged].cpu().numpy()
    rows = index[judging[index]]
    reports, losses = [], []
    for t in (1.0, temperature):
        p = value_probabilities(z[judged], t).cpu().numpy()
        reports.append(calibration_report(p, outcomes, rows, **options))
        forecasts = Forecasts.check(p, outcomes, rows)
        losses.append(forecasts.log_loss())
    gain, count = forecasts.by_game(losses[0] - losses[1])
    draws = game_draws(
        forecasts.num_games, options["bootstrap"], [options["seed"], forecasts.num_games]
    )
    gains = interval((draws @ gain) / (draws @ count), options["confidence"])
    return TemperatureFit(
        temperature=temperature,
        games_fitted=number - judges,
        games_judged=judges,
        log_loss_before=float(losses[0].mean()),
        log_loss_after=float(losses[1].mean()),
        log_loss_gain=float(gain.sum() / count.sum()),
        log_loss_gain_interval=gains,
        helps=gains[0] > 0.0,
        at_bound=at_bound,
        before=reports[0],
        after=reports[1],
    )
