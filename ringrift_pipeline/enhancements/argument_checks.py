"""Checks of numbers and states that name the argument they refuse."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np


def check_number(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, above: bool = False
) -> float:
    """``value`` as a float in ``[low, high]``, or ``(low, high]`` if ``above``.

    Raises:
        ValueError: not a number, not finite or out of range, by ``name``.
    """
    real = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not real or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    if not low <= value <= high or (above and value == low):
        bound = f"above {low:g}" if above else f"at least {low:g}"
        if high < math.inf:
            bound += f" and at most {high:g}"
        raise ValueError(f"{name} must be {bound}, got {value!r}")
    return float(value)


def check_whole(name: str, value: Any, least: int, below: int | None = None) -> int:
    """``value`` as an int of at least ``least`` and below ``below``; ValueError by ``name``."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least or (below is not None and value >= below):
        limit = "" if below is None else f" and below {below}"
        raise ValueError(f"{name} must be a whole number of at least {least}{limit}, got {value!r}")
    return int(value)


def check_keys(state: Mapping[str, Any], keys: Iterable[str], owner: str) -> None:
    """ValueError listing the ``keys`` that a saved state of ``owner`` lacks."""
    missing = [key for key in keys if key not in state]
    if missing:
        raise ValueError(f"state_dict of {owner} lacks {', '.join(missing)}")
