"""Whether training made a model better than the one it started from, on games held out."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from ringrift_pipeline.training.judging import by_game

CONFIDENCE = 0.99


def gain(
    before: NDArray[np.float64], after: NDArray[np.float64], games: NDArray[np.integer]
) -> dict[str, float]:
    """By how much the loss fell, nats, with its interval: ``val/gain``, ``_low`` and ``_high``.

    Parameters
    ----------
    before, after:
        Loss (K,) of the same rows by the model that training started from and by what it made.
    games:
        (K,) the rows' games. A game counts once, whatever its length: its rows are not independent
        of each other. The interval is Student's over games at 99%; of one game it is unbounded,
        and left out.
    """
    falls = by_game(before - after, games)
    mean = float(falls.mean())
    found = {"val/gain": mean}
    if len(falls) > 1:
        error = float(falls.std(ddof=1)) / math.sqrt(len(falls))
        half = float(stdtrit(len(falls) - 1, 0.5 + CONFIDENCE / 2.0)) * error
        found |= {"val/gain_low": mean - half, "val/gain_high": mean + half}
    return found
