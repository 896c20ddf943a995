"""Drift: does a generation's figure leave the range of the last generations?

The figure x with standard error e of a generation is compared with the k earlier ones x_i, e_i as
a prediction interval does (Student's t):

    S^2 = max(sample variance of the x_i, mean of e^2 and the e_i^2)
    t   = (x - mean of the x_i) / (S * sqrt(1 + 1 / k)),   k - 1 degrees of freedom

and drift is a two-sided chance of t below the level. What generations differ by anyhow is in the
sample variance, so a figure that always wanders does not warn; the errors keep a figure that stood
still by luck, or is always 0, from warning at its first step. The maximum of the two makes false
warnings rarer than the level where the errors rule.

What changes by the same step each time is in the sample variance too, and never drifts by that
measure. So a figure is also held against the oldest of those generations, see `crept`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

__all__ = ["CERTAIN", "LEAST_EARLIER", "Drift", "crept", "measure_drift"]

LEAST_EARLIER = 3
"""Earlier generations without which nothing is judged."""
CERTAIN = 3.0
"""Standard errors of a change that are not counted as one."""


@dataclass(frozen=True)
class Drift:
    """One figure against its past.

    Attributes:
        value: of the generation judged.
        mean: of the earlier generations.
        low, high: range that the value leaves with a chance of the level, were nothing new.
        t: distance from the mean in units of its standard deviation.
        chance: of a distance as large or larger, two-sided.
        earlier: generations compared with.
        drifted: the chance is below the level.
    """

    value: float
    mean: float
    low: float
    high: float
    t: float
    chance: float
    earlier: int
    drifted: bool


def crept(
    first: tuple[float, float],
    now: tuple[float, float],
    *,
    factor: float | None = None,
    change: float | None = None,
) -> bool:
    """Whether a figure has gone too far from what it once was, in however many steps.

    Args:
        first, now: (value, standard error) of an older generation and of the one judged.
        factor: how many times as large, or as small, it may have become.
        change: how much it may have changed.
    """
    room = CERTAIN * math.hypot(first[1], now[1])
    if factor is not None and not first[0] / factor - room <= now[0] <= first[0] * factor + room:
        return True
    return change is not None and abs(now[0] - first[0]) > change + room


def measure_drift(
    earlier: Sequence[tuple[float, float]], value: float, error: float, level: float
) -> Drift | None:
    """Compare a figure with those of earlier generations, each (value, standard error).

    None where there are fewer than three of them.

    Raises:
        ValueError: for a level outside (0, 1), a negative error or a number that is not finite.
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    table = np.array([*earlier, (value, error)], dtype=np.float64)
    if not np.isfinite(table).all() or (table[:, 1] < 0.0).any():
        raise ValueError("figures must be finite and errors not negative")
    k = len(earlier)
    if k < LEAST_EARLIER:
        return None
    past = table[:k, 0]
    variance = max(float(past.var(ddof=1)), float((table[:, 1] ** 2).mean()))
    spread = math.sqrt(variance * (1.0 + 1.0 / k))
    mean = float(past.mean())
    gap = value - mean
    t = gap / spread if spread > 0.0 else 0.0 if gap == 0.0 else math.copysign(math.inf, gap)
    chance = 2.0 * float(stdtr(k - 1, -abs(t)))
    half = float(stdtrit(k - 1, 1.0 - level / 2.0)) * spread
    return Drift(value, mean, mean - half, mean + half, t, chance, k, chance < level)
