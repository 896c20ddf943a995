"""Checks of numbers and states that name the argument they refuse."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

Load = TypeVar("Load", bound=Callable[..., None])


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


def host_array(name: str, values: Any) -> np.ndarray:
    """``values``, a tensor on any device, an array or a nested list, as an array on the host.

    Raises:
        ValueError: ragged or on the meta device, by ``name``.
    """
    if hasattr(values, "detach"):
        if values.device.type == "meta":
            raise ValueError(f"{name} is on the meta device, which holds no data")
        values = values.detach().cpu()
        return (values.float() if str(values.dtype) == "torch.bfloat16" else values).numpy()
    try:
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{name} must be an array: {error}") from None


def number_array(name: str, values: Any) -> np.ndarray:
    """``values`` as float64 of their own shape; ValueError by ``name`` for what is no real number.

    NaN and infinity pass.
    """
    array = host_array(name, values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} must be numbers, got dtype {array.dtype}")
    return array.astype(np.float64, copy=False)


def check_flag(name: str, value: Any) -> bool:
    """``value``, which must be True or False; ValueError by ``name``."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {value!r:.80}")
    return bool(value)


def check_keys(state: Mapping[str, Any], keys: Iterable[str], owner: str) -> None:
    """ValueError listing the ``keys`` that a saved state of ``owner`` lacks."""
    missing = [key for key in keys if key not in state]
    if missing:
        raise ValueError(f"state_dict of {owner} lacks {', '.join(missing)}")


def check_type(name: str, value: Any, kind: type | tuple[type, ...]) -> None:
    """ValueError by ``name`` unless ``value`` is of that class, or of one of them."""
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(f"{k.__module__.partition('.')[0]} {k.__name__}" for k in kinds)
        raise ValueError(f"{name} must be a {wanted}, got {type(value).__name__}")


def check_device(name: str, device: Any) -> Any:
    """``device`` as a ``torch.device`` that is here; ValueError by ``name``."""
    import torch

    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{name} must be a torch device, got {device!r}") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"{name} is {device!r}, of which there is none here")
    return found


def whole_state(load: Load) -> Load:
    """Makes a ``load_state_dict`` take a state over whole or not at all, with a ValueError.

    What a failed load has bound to ``self`` is undone. What it changes in place is not: that
    belongs at its end.
    """

    @functools.wraps(load)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        owner = type(self).__name__
        state_dict = [*args, *kwargs.values(), None][0]
        if not isinstance(state_dict, Mapping):
            raise ValueError(
                f"state_dict of {owner} must be a mapping, got {type(state_dict).__name__}"
            )
        before = dict(self.__dict__)
        try:
            load(self, *args, **kwargs)
        except Exception as error:  # whatever a damaged state makes torch or numpy raise
            self.__dict__.clear()
            self.__dict__.update(before)
            raise ValueError(f"state_dict of {owner} does not fit: {error}") from error

    return checked  # type: ignore[return-value]
