"""Measures of calibration: reliability, debiased calibration error, Brier score, log loss.

Positions of one game share their outcome, so the unit of evidence is the game: variances are
clustered by game and bootstraps draw whole games.

**Calibration error** is the mean over equal-mass bins of |mean outcome - mean prediction|. Taken
as it stands it is biased upwards (a perfectly calibrated predictor reads 0.09 at n = 200), since
noise does not cancel under the absolute value. With t = |gap| / standard error in a bin, the
expected noise of a calibrated bin, standard error * sqrt(2 / pi), is subtracted with a weight that
fades with evidence:

    debiased gap = |gap| - standard error * sqrt(2 / pi) * sqrt(5) * exp(-2 t**2)

For a calibrated predictor its expectation is 0 (E exp(-2 t**2) = 1 / sqrt(5) for normal t); for a
gap well above its noise it is the gap. Single readings can be negative. The squared form is the
debiased estimator of Kumar, Liang and Ma (2019, "Verified uncertainty calibration").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from ringrift_pipeline.enhancements.argument_checks import check_whole, host_array, number_array

__all__ = [
    "MAX_BINS",
    "Forecasts",
    "Reliability",
    "debiased_gap",
    "dense",
    "labels",
    "reliability",
]

MAX_BINS = 1000

_FADE = 2.0
_NOISE = math.sqrt(2.0 / math.pi)


@dataclass(frozen=True)
class Forecasts:
    """Checked predictions and outcomes.

    Attributes:
        predictions: float64 (n, S), probabilities; S = 1 for one event, else one column a seat.
        outcomes: float64 (n, S), shares of the win in [0, 1].
        games: int64 (n,), dense index of each row's game.
        num_games: number of games.
        phases: object (n,) of phase names, or None.
    """

    predictions: np.ndarray
    outcomes: np.ndarray
    games: np.ndarray
    num_games: int
    phases: np.ndarray | None = None

    @classmethod
    def check(
        cls,
        predictions: Any,
        outcomes: Any,
        games: Any | None = None,
        phases: Any | None = None,
    ) -> Forecasts:
        """Make forecasts, refusing anything that would be measured wrongly.

        Args:
            predictions: (n,) probability of one event, or (n, seats) probabilities over seats.
            outcomes: same shape; 0 or 1, or shares of the win.
            games: (n,) any ids; rows with the same id are one game. Without it every row counts
                as a game of its own, which for positions of a game is far too sure.
            phases: (n,) names.

        Raises:
            ValueError: for wrong shapes, values outside [0, 1] or not finite, or rows over seats
                that do not sum to 1.
        """
        p, y = number_array("predictions", predictions), number_array("outcomes", outcomes)
        if p.shape != y.shape:
            raise ValueError(f"predictions have shape {p.shape}, outcomes {y.shape}")
        if p.ndim == 1:
            p, y = p[:, None], y[:, None]
        if p.ndim != 2 or p.shape[0] == 0:
            raise ValueError(f"predictions must be (n,) or (n, seats) with n > 0, got {p.shape}")
        if p.shape[1] > 4:
            raise ValueError(f"there are at most 4 seats, got {p.shape[1]} columns")
        for name, values in (("predictions", p), ("outcomes", y)):
            wrong = ~((values >= 0.0) & (values <= 1.0))
            if wrong.any():
                row = int(wrong.any(axis=1).argmax())
                raise ValueError(
                    f"{name} must be finite and in [0, 1], got {values[row].tolist()} in row {row}"
                )
            if values.shape[1] > 1:
                off = np.abs(values.sum(axis=1) - 1.0) > 1e-3
                if off.any():
                    row = int(off.argmax())
                    raise ValueError(
                        f"{name} over seats must sum to 1, got {values[row].tolist()} in row {row}"
                    )
        if games is None:
            index = np.arange(p.shape[0])
            num_games = p.shape[0]
        else:
            index, num_games = dense(labels("games", games, p.shape[0]))
        names = None if phases is None else labels("phases", phases, p.shape[0]).astype(str)
        return cls(p, y, index, num_games, names)

    def select(self, rows: np.ndarray, seat: int | None = None) -> Forecasts:
        """The rows of a boolean mask, and one column of them where `seat` is given."""
        columns = slice(None) if seat is None else slice(seat, seat + 1)
        games, num_games = dense(self.games[rows])
        return Forecasts(
            self.predictions[rows][:, columns],
            self.outcomes[rows][:, columns],
            games,
            num_games,
            None if self.phases is None else self.phases[rows],
        )

    def brier(self) -> np.ndarray:
        """Brier score of every row, (n,): squared error, summed over seats."""
        return ((self.predictions - self.outcomes) ** 2).sum(axis=1)

    def log_loss(self) -> np.ndarray:
        """Cross-entropy of every row, nats, (n,); probabilities are kept above 1e-12."""
        p = np.clip(self.predictions, 1e-12, 1.0)
        loss = -(self.outcomes * np.log(p)).sum(axis=1)
        if p.shape[1] == 1:
            q = np.clip(1.0 - self.predictions, 1e-12, 1.0)
            loss -= ((1.0 - self.outcomes) * np.log(q)).sum(axis=1)
        return loss

    def by_game(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(sum, count) of a row value over each game, float64 (num_games,) each."""
        total = np.bincount(self.games, weights=values, minlength=self.num_games)
        count = np.bincount(self.games, minlength=self.num_games).astype(np.float64)
        return total, count


def labels(name: str, values: Any, rows: int) -> np.ndarray:
    """Ids or names, one a row, of any kind that can be told apart: (rows,); ValueError by name."""
    array = host_array(name, values)
    if array.shape != (rows,):
        raise ValueError(f"{name} have shape {array.shape}, need ({rows},)")
    if array.dtype.kind == "O":  # of several kinds perhaps, which have no order
        return array.astype(str)
    return array


def dense(ids: np.ndarray) -> tuple[np.ndarray, int]:
    """Ids (n,) as int64 (n,) numbers from 0 in ascending order of the ids, and how many there are.

    O(n) for whole numbers of a range not much wider than n; else a sort.
    """
    if ids.size and ids.dtype.kind in "iu":
        low = int(ids.min())
        width = int(ids.max()) - low + 1
        if width <= 4 * ids.size:
            place = ids if low == 0 else ids - ids.dtype.type(low)
            present = np.zeros(width, dtype=bool)
            present[place] = True
            number = np.cumsum(present) - 1
            return number.take(place), int(number[-1]) + 1
    unique, index = np.unique(ids, return_inverse=True)
    return index.astype(np.int64), int(unique.size)


def debiased_gap(gap: np.ndarray, standard_error: np.ndarray) -> np.ndarray:
    """|gap| less the part that noise alone explains; see the module. Elementwise."""
    size = np.abs(gap)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(standard_error > 0, size / standard_error, np.inf)
    noise = standard_error * _NOISE * math.sqrt(1.0 + 2.0 * _FADE)
    return size - noise * np.exp(-_FADE * t**2)


@dataclass(frozen=True)
class Reliability:
    """Equal-mass bins of some forecasts; all arrays are float64 (bins,) unless said otherwise.

    Attributes:
        count: forecasts in the bin (each seat of each row is one).
        games: int64, games with a forecast in the bin.
        prediction: mean prediction.
        outcome: mean outcome.
        standard_error: of (outcome - prediction), clustered by game.
        residuals: (games, bins) sum of outcome - prediction by game, for the bootstrap.
        counts: (games, bins) number of forecasts by game.
    """

    count: np.ndarray
    games: np.ndarray
    prediction: np.ndarray
    outcome: np.ndarray
    standard_error: np.ndarray
    residuals: np.ndarray
    counts: np.ndarray

    @property
    def gap(self) -> np.ndarray:
        """outcome - prediction, (bins,)."""
        return self.outcome - self.prediction

    @property
    def mass(self) -> np.ndarray:
        """Share of the forecasts in each bin, (bins,)."""
        return self.count / self.count.sum()

    def error(self, debias: bool = True) -> float:
        """Calibration error, mean absolute gap; the debiased one can be slightly negative."""
        gaps = debiased_gap(self.gap, self.standard_error) if debias else np.abs(self.gap)
        return float((self.mass * gaps).sum())

    def squared_error(self) -> float:
        """Debiased mean squared gap (Kumar, Liang and Ma 2019), clustered by game."""
        return float((self.mass * (self.gap**2 - self.standard_error**2)).sum())

    def resampled(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Calibration error of bootstrap replicates.

        Args:
            draws: float64 (B, games), how often each game was drawn.

        Returns:
            ``errors`` (B,): debiased errors. A replicate carries the noise of the sample and that
            of the drawing, so twice the variance is what debiasing removes. ``null`` (B,):
            plain errors with the sample's own gap taken out, which is how a calibrated predictor
            would have read.
        """
        count = draws @ self.counts
        with np.errstate(divide="ignore", invalid="ignore"):
            gap = np.where(count > 0, (draws @ self.residuals) / count, 0.0)
        mass = count / count.sum(axis=1, keepdims=True)
        doubled = np.sqrt(2.0) * self.standard_error[None, :]
        errors = (mass * debiased_gap(gap, doubled)).sum(axis=1)
        null = (mass * np.abs(gap - self.gap[None, :])).sum(axis=1)
        return errors, null


def reliability(forecasts: Forecasts, bins: int = 15) -> Reliability:
    """Sort forecasts into bins of equal mass by predicted probability.

    Equal predictions stay in one bin, so there may be fewer bins than asked for.

    Args:
        forecasts: every seat of every row is one forecast; both sit in their row's game.
        bins: number of bins, 1 to 1000.

    Raises:
        ValueError: for a number of bins out of range.
    """
    bins = check_whole("bins", bins, 1, MAX_BINS + 1)
    p, y = forecasts.predictions.ravel(), forecasts.outcomes.ravel()
    games = np.repeat(forecasts.games, forecasts.predictions.shape[1])
    index, width = _equal_mass(p, bins)
    count = np.bincount(index, minlength=width).astype(np.float64)
    prediction = np.bincount(index, weights=p, minlength=width) / count
    outcome = np.bincount(index, weights=y, minlength=width) / count

    cell = games * width + index
    shape = (forecasts.num_games, width)
    size = forecasts.num_games * width
    residuals = np.bincount(cell, weights=y - p, minlength=size).reshape(shape)
    counts = np.bincount(cell, minlength=size).astype(np.float64).reshape(shape)
    deviation = residuals - counts * (outcome - prediction)[None, :]
    present = (counts > 0).sum(axis=0)
    spread = (deviation**2).sum(axis=0) * present / np.maximum(present - 1, 1)
    # one game alone tells nothing of its noise: assume that of a binary outcome
    alone = np.sqrt(np.maximum(prediction * (1 - prediction), 1e-12))
    standard_error = np.where(present > 1, np.sqrt(spread) / count, alone)
    return Reliability(
        count, present.astype(np.int64), prediction, outcome, standard_error, residuals, counts
    )


_CELLS = 4096


def _equal_mass(p: np.ndarray, bins: int) -> tuple[np.ndarray, int]:
    """Bin of each probability (n,), int64, and the number of bins, none of them empty.

    The inner edges are ``np.quantile(p, …, method="higher")``, equal ones once. Counting in cells
    of [0, 1] finds the cells that the edges lie in; only what lies in those is sorted and searched.
    """
    cell = (p * _CELLS).astype(np.int16)
    before = np.concatenate([[0], np.cumsum(np.bincount(cell, minlength=_CELLS + 1))])
    ranks = np.ceil(np.linspace(0, 1, bins + 1)[1:-1] * (p.size - 1)).astype(np.int64)
    crossed = np.unique(np.searchsorted(before, ranks, side="right") - 1)
    is_crossed = np.zeros(_CELLS + 1, dtype=bool)
    is_crossed[crossed] = True
    unsure = np.flatnonzero(is_crossed.take(cell))
    inside = p[unsure]
    # the crossed cells side by side are one sorted run with gaps in the ranks
    start = np.concatenate([[0], np.cumsum(np.diff(before)[crossed])])[:-1]
    of_rank = np.searchsorted(before[crossed], ranks, side="right") - 1
    edges = np.unique(np.sort(inside)[ranks - before[crossed][of_rank] + start[of_rank]])
    # elsewhere the cell decides: no edge lies in it
    corner = np.arange(_CELLS + 1) / _CELLS
    index = np.searchsorted(edges, corner, side="right").take(cell)
    index[unsure] = np.searchsorted(edges, inside, side="right")
    # bins left empty by ties go
    held = np.bincount(index, minlength=edges.size + 1) > 0
    number = np.cumsum(held) - 1
    return (index if held.all() else number.take(index)), int(number[-1]) + 1


def game_draws(num_games: int, bootstrap: int, seed: int | Sequence[int]) -> np.ndarray:
    """How often each game is drawn in each bootstrap replicate, float64 (bootstrap, games)."""
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    draws = np.empty((bootstrap, num_games))
    for row in draws:
        drawn = rng.integers(0, num_games, num_games, dtype=np.int32)
        row[:] = np.bincount(drawn, minlength=num_games)
    return draws


def error_interval(
    error: float, plain: float, replicates: np.ndarray, confidence: float
) -> tuple[float, float]:
    """Interval of a debiased calibration error: normal, with the bootstrap's spread.

    Percentiles of the replicates will not do: their noise is twice the sample's, so that they do
    not lie around the estimate. Debiasing takes too much off where evidence is thin, but the plain
    error is biased upwards, so the interval reaches to that at least.

    Coverage of a nominal 0.95 over 300 simulations each, 15 bins (percentiles in brackets):

    =============================  ==============  ===============
    predictor                      500 games       4,000 games
    =============================  ==============  ===============
    calibrated                     0.99 (1.00)     0.98 (1.00)
    too sure, error 0.028          1.00 (1.00)     0.94 (0.90)
    too sure, error 0.061          0.97 (0.89)     0.98 (0.95)
    shifted, error 0.055           0.93 (0.91)     0.96 (0.84)
    =============================  ==============  ===============

    Args:
        error: the debiased error.
        plain: the error as it stands.
        replicates: (B,) debiased errors of the bootstrap, as ``Reliability.resampled`` gives them.
        confidence: in (0, 1).
    """
    reach = NormalDist().inv_cdf((1.0 + confidence) / 2.0) * float(np.std(replicates, ddof=1))
    return error - reach, max(error + reach, plain)


def interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Percentile interval of bootstrap values."""
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return float(low), float(high)
