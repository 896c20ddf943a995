"""What entries of a saved state must look like: forms that are checked before anything is loaded.

A form is called with an entry's name and value and raises a ``ValueError`` with that name unless
the value has the form. Forms of containers call those of their entries with ``name[key]``.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from ringrift_pipeline.enhancements.argument_checks import (
    COUNTABLE,
    LARGEST_SEED,
    check_any_number,
    check_flag,
    check_number,
    check_whole,
    number_array,
)

Form = Callable[[str, Any], None]


def number(low: float = -math.inf, high: float = math.inf, *, above: bool = False) -> Form:
    """A finite number in [low, high], or above low."""

    def check(name: str, value: Any) -> None:
        check_number(name, value, low, high, above=above)

    return check


def whole(least: int = 0, below: int = COUNTABLE) -> Form:
    """A whole number of at least ``least`` and below ``below``."""

    def check(name: str, value: Any) -> None:
        check_whole(name, value, least, below)

    return check


def anything(name: str, value: Any) -> None:
    """Whatever it is: something else checks it."""


def flag(name: str, value: Any) -> None:
    """True or False."""
    check_flag(name, value)


def text(name: str, value: Any) -> None:
    """Text."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, got {value!r:.80}")


def any_number(name: str, value: Any) -> None:
    """A number, NaN and infinity included."""
    check_any_number(name, value)


def optional(form: Form) -> Form:
    """None, or that form."""

    def check(name: str, value: Any) -> None:
        if value is not None:
            form(name, value)

    return check


def listed(
    item: Form, exactly: int | None = None, *, least: int = 0, most: int | None = None
) -> Form:
    """A list or tuple of that form, of so many entries."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{name} must be a list, got {value!r:.80}")
        if exactly is not None and len(value) != exactly:
            raise ValueError(f"{name} must have {exactly} entries, got {len(value)}")
        if len(value) < least:
            raise ValueError(f"{name} must have at least {least} entries, got {len(value)}")
        if most is not None and len(value) > most:
            raise ValueError(f"{name} must have at most {most} entries, got {len(value)}")
        for place, entry in enumerate(value):
            item(f"{name}[{place}]", entry)

    return check


def mapping(item: Form, keys: type = str) -> Form:
    """A mapping of names (or of another class) to that form."""

    def check(name: str, value: Any) -> None:
        _is_mapping(name, value)
        for key, entry in value.items():
            if not isinstance(key, keys):
                raise ValueError(f"{name} has a key that is no {keys.__name__}: {key!r:.80}")
            item(f"{name}[{key}]", entry)

    return check


def record(**entries: Form) -> Form:
    """A mapping that has at least these entries."""

    def check(name: str, value: Any) -> None:
        _is_mapping(name, value)
        missing = [key for key in entries if key not in value]
        if missing:
            raise ValueError(f"{name} lacks {', '.join(missing)}")
        for key, form in entries.items():
            form(f"{name}.{key}" if name else key, value[key])

    return check


def numbers(
    *shape: int | None, low: float = -math.inf, finite: bool = True, whole: bool = False
) -> Form:
    """An array, tensor or list of numbers of that shape, None for any length; NaN passes unless
    ``finite``."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, np.ndarray | Tensor | list | tuple):
            raise ValueError(f"{name} must be an array, got {value!r:.80}")
        array = number_array(name, value)
        fits = len(array.shape) == len(shape) and all(
            want is None or have == want for have, want in zip(array.shape, shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if want is None else str(want) for want in shape)
            raise ValueError(f"{name} must have shape ({wanted}), got {array.shape}")
        if finite and not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite")
        if (array < low).any():
            raise ValueError(f"{name} must be at least {low:g}")
        if whole and (array != np.floor(array)).any():
            raise ValueError(f"{name} must be whole numbers")

    return check


def tensor(name: str, value: Any) -> None:
    """A tensor; without NaN or infinity where it is floating point."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a tensor, got {value!r:.80}")
    if value.is_floating_point() and not bool(value.isfinite().all()):
        raise ValueError(f"{name} is not finite")


def generator(name: str, value: Any) -> None:
    """The state of a PCG64 generator of numpy."""
    try:
        np.random.PCG64().state = value
        words = record(state=whole(0, LARGEST_SEED), inc=whole(0, LARGEST_SEED))
        record(state=words, has_uint32=whole(0, 2), uinteger=whole())(name, value)
    except Exception as error:  # numpy raises what it likes
        raise ValueError(f"{name} is no state of a generator: {error}") from error


@contextlib.contextmanager
def naming(entry: str) -> Iterator[None]:
    """A ValueError raised within says which entry it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{entry}: {error}") from error


def _is_mapping(name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name or 'state_dict'} must be a mapping, got {value!r:.80}")


__all__ = [
    "Form",
    "any_number",
    "flag",
    "generator",
    "listed",
    "mapping",
    "naming",
    "number",
    "numbers",
    "optional",
    "record",
    "tensor",
    "text",
    "whole",
]
