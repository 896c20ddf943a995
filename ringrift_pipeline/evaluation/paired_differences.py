"""What paired runs differ by, with all that makes them differ by chance.

Run s of S, of a variant and of what it is compared with, share their seed; all are judged by the
same G games. The difference of run s by game g is

    x[s, g] = effect + seed[s] + game[g] + rest[s, g]

and the mean over both varies with the seeds drawn and with the games drawn. With the mean squares
of the two-way layout, the variance of the mean is estimated without bias by

    (MS_seeds + max(MS_games - MS_rest, 0)) / (S * G)

whose degrees of freedom are Satterthwaite's: S - 1 where the seeds rule, G - 1 where the games do.
A measure that is no mean over games (a calibration error) takes the same road, with the covariance
of the runs' differences from a bootstrap that draws the same games for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

__all__ = ["Difference", "difference_of_means", "holm", "paired_difference"]


@dataclass(frozen=True)
class Difference:
    """A mean paired difference.

    Attributes:
        mean: over seeds and games, in the unit of the measure.
        standard_error: of the mean; 0 where every pair differs by the same.
        freedom: degrees of freedom of the standard error, at least 1.
    """

    mean: float
    standard_error: float
    freedom: float

    @property
    def p(self) -> float:
        """Chance of a mean as far from 0, either side, were there no effect (Student's t)."""
        if self.standard_error == 0.0:
            return 1.0 if self.mean == 0.0 else 0.0
        return 2.0 * float(stdtr(self.freedom, -abs(self.mean) / self.standard_error))

    def interval(self, confidence: float = 0.95, comparisons: int = 1) -> tuple[float, float]:
        """Interval of the effect; with ``comparisons`` of that many together (Bonferroni).

        Raises:
            ValueError: for a confidence outside (0, 1) or comparisons < 1.
        """
        if not 0.0 < confidence < 1.0 or comparisons < 1:
            raise ValueError(
                f"confidence must lie in (0, 1) and comparisons be at least 1, got {confidence} "
                f"and {comparisons}"
            )
        tail = (1.0 - confidence) / (2.0 * comparisons)
        half = -float(stdtrit(self.freedom, tail)) * self.standard_error
        return self.mean - half, self.mean + half


def paired_difference(
    by_seed: NDArray[np.float64], covariance: NDArray[np.float64], games: int
) -> Difference:
    """The mean difference of runs, from each run's difference over all games.

    Args:
        by_seed: (S,) differences of the runs, S >= 2.
        covariance: (S, S) of them, over draws of the games.
        games: that judged, at least 2.

    Raises:
        ValueError: too few seeds or games, other shapes, or numbers that are not finite.
    """
    seeds = len(by_seed)
    if seeds < 2 or games < 2:
        raise ValueError(f"at least 2 seeds and 2 games are needed, got {seeds} and {games}")
    if covariance.shape != (seeds, seeds):
        raise ValueError(f"the covariance of {seeds} runs cannot be {covariance.shape}")
    if not (np.isfinite(by_seed).all() and np.isfinite(covariance).all()):
        raise ValueError("differences and their covariance must be finite")
    # mean squares over S * G
    of_seeds = float(by_seed.var(ddof=1)) / seeds
    of_games = float(covariance.sum()) / seeds**2
    rest = max(float(np.trace(covariance)) / seeds - of_games, 0.0) / (seeds - 1)
    variance = of_seeds + max(of_games - rest, 0.0)
    spread = of_seeds**2 / (seeds - 1)
    if of_games > rest:
        spread += of_games**2 / (games - 1) + rest**2 / ((seeds - 1) * (games - 1))
    freedom = variance**2 / spread if spread > 0.0 else float(seeds - 1)
    return Difference(float(by_seed.mean()), math.sqrt(variance), max(freedom, 1.0))


def difference_of_means(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> Difference:
    """How much more (S, G) losses of our runs by game are than theirs, pair by pair.

    Games without a loss (NaN) in any run are left out.

    Raises:
        ValueError: other shapes, or fewer than 2 seeds or games with losses.
    """
    if ours.shape != theirs.shape or ours.ndim != 2:
        raise ValueError(f"losses by seed and game cannot be {ours.shape} and {theirs.shape}")
    differences = ours - theirs
    differences = differences[:, ~np.isnan(differences).any(axis=0)]
    games = differences.shape[1]
    if games < 2:
        raise ValueError(f"at least 2 games with losses are needed, got {games}")
    covariance = np.atleast_2d(np.cov(differences)) / games
    return paired_difference(differences.mean(axis=1), covariance, games)


def holm(chances: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm 1979), in their order.

    Rejecting those below a level rejects a true hypothesis with at most that chance, however they
    depend on each other.

    Raises:
        ValueError: for a p-value outside [0, 1].
    """
    values = np.asarray(chances, dtype=np.float64)
    if not ((values >= 0.0) & (values <= 1.0)).all():
        raise ValueError(f"p-values must lie in [0, 1], got {list(chances)}")
    order = np.argsort(values, kind="stable")
    factors = len(values) - np.arange(len(values))
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return corrected.tolist()
