"""Checks of numbers and states that name the argument they refuse."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

Load = TypeVar("Load", bound=Callable[..., None])

COUNTABLE = 2**63  # whole numbers below it fit numpy's integers and Python's containers
LARGEST_SEED = 2**128  # what numpy's SeedSequence mixes without loss


def shown(value: Any) -> str:
    """A value for a message: at most 80 characters, whatever its own ``repr`` does."""
    try:
        return f"{value!r:.80}"
    except Exception:  # a whole number of more digits than Python prints, say
        return f"a {type(value).__name__}"


def _is_number(value: Any, kinds: Any) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool | np.timedelta64)


def check_any_number(name: str, value: Any) -> float:
    """``value`` as a float, NaN and infinity included.

    Raises:
        ValueError: not a real number, or one beyond every float, by ``name``.
    """
    if not _is_number(value, int | float | np.integer | np.floating):
        raise ValueError(f"{name} must be a number, got {shown(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(
            f"{name} must be a number that a float can hold, got {shown(value)}"
        ) from None


def check_number(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, above: bool = False
) -> float:
    """``value`` as a float in ``[low, high]``, or ``(low, high]`` if ``above``.

    Raises:
        ValueError: not a real number, not finite or out of range, by ``name``.
    """
    number = check_any_number(name, value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, got {number!r}")
    if not low <= number <= high or (above and number == low):
        bound = f"above {low:g}" if above else f"at least {low:g}"
        if high < math.inf:
            bound += f" and at most {high:g}"
        raise ValueError(f"{name} must be {bound}, got {shown(value)}")
    return number


def check_share(name: str, value: Any) -> float:
    """``value`` as a float strictly between 0 and 1; ValueError by ``name``."""
    number = check_number(name, value, 0.0, 1.0, above=True)
    if number > 1.0 - 1e-9:  # of which normal quantiles could not be told from those of 1
        raise ValueError(f"{name} must be below 1, got {shown(value)}")
    return number


def check_whole(name: str, value: Any, least: int, below: int = COUNTABLE) -> int:
    """``value`` as an int of at least ``least`` and below ``below``; ValueError by ``name``."""
    whole = _is_number(value, int | np.integer)
    if not whole or not least <= int(value) < below:
        limit = "2**63" if below == COUNTABLE else "2**128" if below == LARGEST_SEED else str(below)
        raise ValueError(
            f"{name} must be a whole number of at least {least} and below {limit}, "
            f"got {shown(value)}"
        )
    return int(value)


def check_choice(name: str, value: Any, choices: Collection[str]) -> Any:
    """``value``, which must be one of the texts; ValueError by ``name`` that lists them."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {shown(value)}")
    return value


def check_iterable(name: str, values: Any) -> Iterator[Any]:
    """An iterator over ``values``; ValueError by ``name`` for what has none, as a 0-d array."""
    try:
        return iter(values)
    except TypeError as error:
        raise ValueError(f"{name} must be iterable, got {shown(values)}") from error


def host_array(name: str, values: Any) -> np.ndarray:
    """``values``, a tensor on any device, an array or a nested list, as an array on the host.

    Raises:
        ValueError: ragged, masked, or a tensor that numpy cannot hold (on the meta device, sparse,
            quantized), by ``name``.
    """
    if isinstance(values, np.ma.MaskedArray):
        raise ValueError(f"{name} is a masked array: fill it, or leave its masked entries out")
    if hasattr(values, "detach"):
        if values.device.type == "meta":
            raise ValueError(f"{name} is on the meta device, which holds no data")
        try:
            values = values.detach().cpu()
            return (values.float() if str(values.dtype) == "torch.bfloat16" else values).numpy()
        except (TypeError, RuntimeError) as error:
            raise ValueError(f"{name} must be a dense tensor of numbers: {error}") from error
    try:
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
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
        raise ValueError(f"{name} must be True or False, got {shown(value)}")
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


def check_dense(name: str, value: Any) -> None:
    """ValueError by ``name`` unless ``value`` is a dense tensor of real numbers that holds data."""
    import torch

    check_type(name, value, torch.Tensor)
    dense = value.layout == torch.strided and not value.is_quantized
    if not dense or value.is_complex() or value.device.type == "meta":
        raise ValueError(
            f"{name} must be a dense tensor of real numbers, "
            f"got {value.dtype} ({value.layout}) on {value.device}"
        )


def check_device(name: str, device: Any) -> Any:
    """``device`` as a ``torch.device`` that is here; ValueError by ``name``."""
    import torch

    try:
        found = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a torch device, got {shown(device)}") from error
    if found.type == "meta":
        raise ValueError(f"{name} is the meta device, which holds no data")
    if found.type == "cuda":
        here = (found.index or 0) < torch.cuda.device_count()
    else:
        try:
            here = torch.empty(0, device=found).device.type == found.type
        except (RuntimeError, AssertionError):  # torch was built without it, or it is not there
            here = False
    if not here:
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
