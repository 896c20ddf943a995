"""What the ratings say about the next generation: rate, exploration and selfplay share.

Ratings are noisy. So the trend is a weighted least-squares line of rating on evaluation number
(weights: one over the ratings' variances, which come from their intervals), and a verdict needs
the confidence interval of its slope, not the slope alone. Where the ratings scatter more than
their intervals allow, the interval is widened by the square root of chi-square a degree of freedom
(Birge 1932, "The calculation of errors by the method of least squares").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from ringrift_pipeline.enhancements.argument_checks import (
    check_keys,
    check_number,
    check_whole,
    number_array,
    whole_state,
)

if TYPE_CHECKING:  # torch is the caller's: deciding needs none of it
    from torch.optim import Optimizer

Trend = Literal["rising", "plateau", "falling", "undecided"]

LARGEST_ELO = 1e6  # beyond it the squares of a fit lose all digits
NARROWEST = 1e-6  # Elo; an interval of no width is no measurement


class Slope(NamedTuple):
    """Slope of a rating with its interval, all in Elo per evaluation."""

    slope: float
    low: float
    high: float


@dataclass(frozen=True)
class FeedbackDecision:
    """What the ratings say, and what follows for the next generation.

    Attributes:
        trend: rising, plateau, falling or undecided.
        slope, low, high: trend with its interval, Elo per evaluation; None while there are too
            few evaluations.
        evaluations: ratings that the trend was fitted to.
        rate_factor, exploration_factor, selfplay_factor: what to multiply the learning rate, the
            temperature of selfplay and its number of games by; all 1.0 when undecided.
        reason: the same as one sentence.
    """

    trend: Trend
    slope: float | None
    low: float | None
    high: float | None
    evaluations: int
    rate_factor: float
    exploration_factor: float
    selfplay_factor: float
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON keeps exactly."""
        return asdict(self)


class _Rating(NamedTuple):
    number: int
    evaluation_id: str
    elo: float
    error: float  # standard error, Elo


def fit_trend(
    numbers: np.ndarray, ratings: np.ndarray, errors: np.ndarray, confidence: float = 0.9
) -> Slope:
    """Weighted least-squares slope with its two-sided interval.

    Args:
        numbers: (N,), evaluation numbers, at least two different ones.
        ratings: (N,), Elo.
        errors: (N,), standard errors of the ratings, Elo, above 0.
        confidence: of the interval, at least 0.01 and below 1.

    Raises:
        ValueError: lengths that differ, fewer than two numbers, values out of range, by name.
    """
    rows: list[np.ndarray] = []
    for name, given in (("numbers", numbers), ("ratings", ratings), ("errors", errors)):
        row = number_array(name, given)
        if row.ndim != 1 or (rows and row.shape != rows[0].shape) or not np.isfinite(row).all():
            raise ValueError(f"{name} must be one row of finite numbers, as long as numbers")
        rows.append(row)
    x, y, e = rows
    if np.unique(x).size < 2:
        raise ValueError("numbers must hold at least two different numbers")
    if not (e > 0.0).all():
        raise ValueError("errors must be above 0")
    z = _quantile("confidence", confidence)
    weight = (e.min() / e) ** 2  # relative: no overflow, whatever the unit
    x = x - np.average(x, weights=weight)
    y = y - np.average(y, weights=weight)
    spread = float(np.sum(weight * x * x))
    slope = float(np.sum(weight * x * y)) / spread
    half = z * float(e.min()) / math.sqrt(spread)
    if x.size > 2:
        chi_square = float(np.sum(((y - slope * x) / e) ** 2))
        half *= max(1.0, math.sqrt(chi_square / (x.size - 2)))
    return Slope(slope, slope - half, slope + half)


def bounded_scale(factor: float, smallest: float, largest: float, low: float, high: float) -> float:
    """``factor``, changed so that ``smallest`` and ``largest`` (> 0) times it lie in [low, high].

    Never against the factor's own direction: what is above ``high`` already is not cut by a factor
    of at least 1, what is below ``low`` not raised by one of at most 1. Where the two are further
    apart than the bounds, ``low`` is kept.

    Raises:
        ValueError: a number that is not above 0 (``low``: below 0), or bounds or rates in the
            wrong order, by name.
    """
    factor = check_number("factor", factor, 0.0, above=True)
    smallest = check_number("smallest", smallest, 0.0, above=True)
    largest = check_number("largest", largest, 0.0, above=True)
    low, high = check_number("low", low, 0.0), check_number("high", high, 0.0, above=True)
    if smallest > largest or low > high:
        raise ValueError(
            f"smallest {smallest!r} must not exceed largest {largest!r}, nor low {low!r} "
            f"high {high!r}"
        )
    scale = max(min(factor, high / largest), low / smallest)
    if factor >= 1.0:
        scale = max(scale, 1.0)
    if factor <= 1.0:
        scale = min(scale, 1.0)
    return scale


class EvaluationFeedbackHandler:
    """Decides from the trend of the ratings, and changes an optimizer's rates if given one.

    - *rising* (the slope's lower bound is above ``elo_rising_threshold``): what is done works; the
      rate may rise a little.
    - *falling* (its upper bound is below ``elo_falling_threshold``): clearly lower rate, more
      selfplay to train on.
    - *plateau* (the interval lies between the thresholds, or, once the window is full and can
      tell no better, within ``plateau_slack`` times them): lower rate, more exploration, more
      selfplay.
    - *undecided* (anything else): nothing changes.

    Every evaluation counts once, however often it is reported. With ``optimizer=None`` it only
    decides. A schedule that recomputes the rates from its own base forgets a change made here:
    give the decision's ``rate_factor`` to the schedule then.

    Args:
        optimizer: its groups' rates are changed by :meth:`apply_lr_adjustment`; may be None.
        config_key: which board and number of players, such as ``hex8_2p``.
        min_lr, max_lr: bounds of the rates. No lowering verdict takes the smallest rate below
            ``min_lr``, no raising one the largest above ``max_lr``.
        elo_history_window: evaluations that the trend looks back.
        lr_increase_factor, lr_decrease_factor, lr_plateau_factor: factors of the rate when Elo
            rises (at least 1), falls and stands still (at most 1).
        elo_rising_threshold, elo_falling_threshold: Elo per evaluation.
        exploration_plateau_factor: factor of the temperature of selfplay at a plateau.
        selfplay_plateau_factor, selfplay_falling_factor: factors of the games a generation.
        confidence: of the slope's two-sided interval; 0.9 is wrong once in twenty on either side.
        min_evaluations: ratings below which nothing is decided.
        plateau_slack: multiple of the thresholds that makes a plateau when the window is full.

    Raises:
        ValueError: an argument out of range, by name.
    """

    def __init__(
        self,
        optimizer: Optimizer | None,
        config_key: str,
        min_lr: float = 1e-6,
        max_lr: float = 1e-3,
        elo_history_window: int = 5,
        lr_increase_factor: float = 1.1,
        lr_decrease_factor: float = 0.8,
        lr_plateau_factor: float = 0.95,
        elo_rising_threshold: float = 10.0,
        elo_falling_threshold: float = -10.0,
        *,
        exploration_plateau_factor: float = 1.1,
        selfplay_plateau_factor: float = 1.25,
        selfplay_falling_factor: float = 1.25,
        confidence: float = 0.9,
        min_evaluations: int = 3,
        plateau_slack: float = 2.0,
    ) -> None:
        if optimizer is not None and not getattr(optimizer, "param_groups", None):
            raise ValueError("optimizer must be None or have parameter groups")
        if not isinstance(config_key, str) or not config_key:
            raise ValueError(f"config_key must be a name, got {config_key!r}")
        self.optimizer = optimizer
        self.config_key = config_key
        self.min_lr = check_number("min_lr", min_lr, 0.0)
        self.max_lr = check_number("max_lr", max_lr, 0.0, above=True)
        if self.min_lr > self.max_lr:
            raise ValueError(f"min_lr {min_lr!r} must not exceed max_lr {max_lr!r}")
        self.elo_history_window = check_whole("elo_history_window", elo_history_window, 2)
        self.min_evaluations = check_whole(
            "min_evaluations", min_evaluations, 2, self.elo_history_window + 1
        )
        self.lr_increase_factor = check_number("lr_increase_factor", lr_increase_factor, 1.0)
        self.lr_decrease_factor = _share("lr_decrease_factor", lr_decrease_factor)
        self.lr_plateau_factor = _share("lr_plateau_factor", lr_plateau_factor)
        self.elo_rising_threshold = check_number("elo_rising_threshold", elo_rising_threshold, 0.0)
        self.elo_falling_threshold = check_number(
            "elo_falling_threshold", elo_falling_threshold, high=0.0
        )
        self.exploration_plateau_factor = check_number(
            "exploration_plateau_factor", exploration_plateau_factor, 0.0, above=True
        )
        self.selfplay_plateau_factor = check_number(
            "selfplay_plateau_factor", selfplay_plateau_factor, 0.0, above=True
        )
        self.selfplay_falling_factor = check_number(
            "selfplay_falling_factor", selfplay_falling_factor, 0.0, above=True
        )
        _quantile("confidence", confidence)
        self.confidence = float(confidence)
        self.plateau_slack = check_number("plateau_slack", plateau_slack, 1.0)
        self._ratings: list[_Rating] = []  # by number, at most a window of them
        self._seen: dict[str, None] = {}  # every evaluation ever counted, in order
        self._pending = False
        self._last_adjustment_epoch = -1
        self.decision = self._decide()

    def on_evaluation(
        self,
        evaluation_id: str,
        elo: float,
        low: float,
        high: float,
        *,
        number: int | None = None,
        confidence: float = 0.95,
    ) -> FeedbackDecision:
        """Take note of an evaluation and decide; one that is known already changes nothing.

        Args:
            evaluation_id: what tells this evaluation from every other one.
            elo: its rating, Elo.
            low, high: the rating's interval, Elo, around it.
            number: its place on the axis of the trend, such as the generation; None is one after
                the newest. Missing numbers are gaps; a number that was rated before is rated
                anew; one older than a full window is passed over.
            confidence: of the rating's interval.

        Raises:
            ValueError: an argument out of range, by name; nothing changes.
        """
        if not isinstance(evaluation_id, str) or not evaluation_id:
            raise ValueError(f"evaluation_id must be a text that is not empty: {evaluation_id!r}")
        elo = check_number("elo", elo, -LARGEST_ELO, LARGEST_ELO)
        low = check_number("low", low, -LARGEST_ELO, LARGEST_ELO)
        high = check_number("high", high, -LARGEST_ELO, LARGEST_ELO)
        if not low <= elo <= high:
            raise ValueError(
                f"ratings must satisfy low <= elo <= high, got {low!r}, {elo!r}, {high!r}"
            )
        if high - low < NARROWEST:
            raise ValueError(f"high must be above low by at least {NARROWEST:g}, got {high!r}")
        error = (high - low) / (2.0 * _quantile("confidence", confidence))
        if number is None:
            number = self._ratings[-1].number + 1 if self._ratings else 0
        number = check_whole("number", number, 0)
        if evaluation_id in self._seen:
            return self.decision
        self._seen[evaluation_id] = None
        kept = [rating for rating in self._ratings if rating.number != number]
        kept = sorted([*kept, _Rating(number, evaluation_id, elo, error)])
        kept = kept[-self.elo_history_window :]
        if kept != self._ratings:
            self._ratings = kept
            self.decision = self._decide()
            self._pending = self.decision.rate_factor != 1.0
        return self.decision

    def should_adjust_lr(self) -> bool:
        """Has the newest decision a change of the rate that was not applied yet?"""
        return self._pending

    def apply_lr_adjustment(self, current_epoch: int = 0) -> float | None:
        """Multiply all rates by the pending decision's factor, kept in bounds, ratios kept.

        Once for each decision; groups whose rate is 0 stay at 0.

        Args:
            current_epoch: noted in the status.

        Returns:
            The first group's rate; None if nothing is pending.

        Raises:
            ValueError: there is no optimizer, or ``current_epoch`` is no whole number.
        """
        epoch = check_whole("current_epoch", current_epoch, 0)
        if self.optimizer is None:
            raise ValueError("optimizer is None: this handler only decides")
        if not self._pending:
            return None
        self._pending = False
        self._last_adjustment_epoch = epoch
        groups = [group for group in self.optimizer.param_groups if float(group["lr"]) > 0.0]
        if groups:
            rates = [float(group["lr"]) for group in groups]
            factor = self.decision.rate_factor
            scale = bounded_scale(factor, min(rates), max(rates), self.min_lr, self.max_lr)
            for group, rate in zip(groups, rates, strict=True):
                if hasattr(group["lr"], "fill_"):  # a tensor, as capturable optimizers hold it
                    group["lr"].fill_(rate * scale)
                else:
                    group["lr"] = rate * scale
        return self.get_current_lr()

    def get_current_lr(self) -> float | None:
        """Rate of the first parameter group; None without an optimizer."""
        return None if self.optimizer is None else float(self.optimizer.param_groups[0]["lr"])

    def get_elo_history(self) -> list[float]:
        """The window's ratings in order of their numbers, Elo."""
        return [rating.elo for rating in self._ratings]

    def get_status(self) -> dict[str, Any]:
        """config_key, current_lr, elo_history, pending_adjustment (the rate's factor or None),
        last_adjustment_epoch (-1 before the first), evaluations (ever counted), decision.
        """
        return {
            "config_key": self.config_key,
            "current_lr": self.get_current_lr(),
            "elo_history": self.get_elo_history(),
            "pending_adjustment": self.decision.rate_factor if self._pending else None,
            "last_adjustment_epoch": self._last_adjustment_epoch,
            "evaluations": len(self._seen),
            "decision": self.decision.to_dict(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Plain values that JSON keeps exactly; the optimizer's rates are the optimizer's."""
        return {
            "config_key": self.config_key,
            "ratings": [list(rating) for rating in self._ratings],
            "seen": list(self._seen),
            "pending": self._pending,
            "last_adjustment_epoch": self._last_adjustment_epoch,
        }

    @whole_state
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state; a ValueError changes nothing."""
        check_keys(state_dict, self.state_dict(), type(self).__name__)
        if state_dict["config_key"] != self.config_key:
            raise ValueError(
                f"config_key of the state is {state_dict['config_key']!r}, not {self.config_key!r}"
            )
        seen = state_dict["seen"]
        if not isinstance(seen, list) or not all(isinstance(known, str) for known in seen):
            raise ValueError(f"seen must be a list of texts, got {repr(seen):.80}")
        if not isinstance(state_dict["ratings"], list):
            raise ValueError(f"ratings must be a list, got {repr(state_dict['ratings']):.80}")
        ratings = [_rating(entry, seen) for entry in state_dict["ratings"]]
        numbers = [rating.number for rating in ratings]
        if numbers != sorted(set(numbers)) or len(numbers) > self.elo_history_window:
            raise ValueError("ratings must be in order of their numbers, at most a window of them")
        if bool(ratings) != bool(seen):
            raise ValueError(f"ratings: {len(ratings)} of {len(seen)} evaluations in seen")
        if not isinstance(state_dict["pending"], bool):
            raise ValueError(f"pending must be true or false, got {state_dict['pending']!r}")
        epoch = check_whole("last_adjustment_epoch", state_dict["last_adjustment_epoch"], -1)
        self._ratings = ratings
        self._seen = dict.fromkeys(seen)
        self._last_adjustment_epoch = epoch
        self.decision = self._decide()
        self._pending = state_dict["pending"] and self.decision.rate_factor != 1.0

    # -- deciding ---------------------------------------------------------------------------------

    def _decide(self) -> FeedbackDecision:
        count = len(self._ratings)
        if count < self.min_evaluations:
            reason = f"{count} of at least {self.min_evaluations} evaluations: nothing changes"
            return FeedbackDecision("undecided", None, None, None, count, 1.0, 1.0, 1.0, reason)
        fit = fit_trend(
            np.array([rating.number for rating in self._ratings]),
            np.array([rating.elo for rating in self._ratings]),
            np.array([rating.error for rating in self._ratings]),
            self.confidence,
        )
        trend = self._trend(fit, full=count == self.elo_history_window)
        rate, exploration, selfplay = {
            "rising": (self.lr_increase_factor, 1.0, 1.0),
            "falling": (self.lr_decrease_factor, 1.0, self.selfplay_falling_factor),
            "plateau": (
                self.lr_plateau_factor,
                self.exploration_plateau_factor,
                self.selfplay_plateau_factor,
            ),
            "undecided": (1.0, 1.0, 1.0),
        }[trend]
        says = {
            "rising": "the rating rises",
            "falling": "the rating falls",
            "plateau": "the rating stands still",
            "undecided": "the rating's trend is not certain and nothing changes",
        }[trend]
        reason = (
            f"{says}: {fit.slope:+.1f} Elo per evaluation ({self.confidence:.0%} interval "
            f"{fit.low:+.1f} to {fit.high:+.1f}, {count} evaluations)"
        )
        return FeedbackDecision(
            trend, fit.slope, fit.low, fit.high, count, rate, exploration, selfplay, reason
        )

    def _trend(self, fit: Slope, full: bool) -> Trend:
        if fit.low > self.elo_rising_threshold:
            return "rising"
        if fit.high < self.elo_falling_threshold:
            return "falling"
        slack = self.plateau_slack if full else 1.0
        flat = (
            fit.low >= slack * self.elo_falling_threshold
            and fit.high <= slack * self.elo_rising_threshold
        )
        return "plateau" if flat else "undecided"


def create_evaluation_feedback_handler(
    optimizer: Optimizer | None, config_key: str, **kwargs: Any
) -> EvaluationFeedbackHandler:
    """An :class:`EvaluationFeedbackHandler`; the caller reports evaluations to it."""
    return EvaluationFeedbackHandler(optimizer, config_key, **kwargs)


def _quantile(name: str, confidence: Any) -> float:
    """Half-width of the two-sided normal interval, in standard errors."""
    share = check_number(name, confidence, 0.01, 1.0 - 1e-9)
    return NormalDist().inv_cdf(0.5 + share / 2.0)


def _share(name: str, value: Any) -> float:
    return check_number(name, value, 0.0, 1.0, above=True)


def _rating(entry: Any, seen: list[str]) -> _Rating:
    """One saved rating, checked."""
    if not isinstance(entry, list | tuple) or len(entry) != len(_Rating._fields):
        raise ValueError(f"ratings must hold {', '.join(_Rating._fields)}, got {entry!r:.80}")
    number, known, elo, error = entry
    if known not in seen:
        raise ValueError(f"ratings holds {known!r}, which seen does not")
    return _Rating(
        check_whole("ratings number", number, 0),
        known,
        check_number("ratings elo", elo, -LARGEST_ELO, LARGEST_ELO),
        check_number("ratings error", error, 0.0, above=True),
    )


__all__ = [
    "EvaluationFeedbackHandler",
    "FeedbackDecision",
    "Slope",
    "bounded_scale",
    "create_evaluation_feedback_handler",
    "fit_trend",
]
