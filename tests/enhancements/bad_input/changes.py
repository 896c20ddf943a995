"""Ways of making an argument bad, by what the argument is.

A `Change` turns a good argument into another one. Most must be refused; those that are `fine`
must give a normal result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn


@dataclass(frozen=True)
class Change:
    """What is done to an argument. `label` says it in a failure's report."""

    label: str
    apply: Callable[[Any], Any]
    fine: bool = False

    def __repr__(self) -> str:
        return self.label


@dataclass(frozen=True)
class Kind:
    """How an argument can be changed: in these ways, each tried, and in ways that are drawn."""

    changes: tuple[Change, ...]
    drawn: st.SearchStrategy[Change] | None = None


def becomes(value: Any, fine: bool = False) -> Change:
    return Change(f"becomes {value!r}", lambda good: value, fine)


def any_of(*changes: Change) -> Kind:
    return Kind(changes)


NOT_NUMBERS = tuple(
    becomes(value)
    for value in ("1", True, math.nan, math.inf, -math.inf, 1j, [1.0], {}, np.ones(2), object())
)
NONE = becomes(None)


def number(
    low: float = -math.inf, high: float = math.inf, above: bool = False, optional: bool = False
) -> Kind:
    """A finite number in [low, high], or above low."""
    ways = []
    if low > -math.inf:
        ways.append(st.floats(max_value=low, exclude_max=not above, allow_nan=False).map(becomes))
    if high < math.inf:
        ways.append(st.floats(min_value=high, exclude_min=True, allow_nan=False).map(becomes))
    fixed = (*NOT_NUMBERS, becomes(None, fine=optional))
    return Kind(fixed, st.one_of(ways) if ways else None)


def whole(least: int, below: int | None = None, optional: bool = False) -> Kind:
    """A whole number, at least `least` and below `below`."""
    ways = [st.integers(max_value=least - 1).map(becomes)]
    edges = [becomes(least - 1)]
    if below is not None:
        ways.append(st.integers(min_value=below).map(becomes))
        edges.append(becomes(below))
    fixed = (*NOT_NUMBERS, becomes(1.5), becomes(None, fine=optional), *edges)
    return Kind(fixed, st.one_of(ways))


def choice(optional: bool = False) -> Kind:
    """One of a few names."""
    return any_of(*map(becomes, ("rubbish", "", 3, 1.5, [], object())), becomes(None, optional))


def of_class(*others: Any, optional: bool = False) -> Kind:
    """An object of some class: anything else is refused."""
    return any_of(*map(becomes, ("rubbish", 3, [], object(), *others)), becomes(None, optional))


def flag() -> Kind:
    """True or False, and nothing else that has a truth value."""
    others = (None, "no", "", 0, 1, 1.0, [], {}, math.nan, object())
    return any_of(*map(becomes, others), becomes(True, fine=True), becomes(False, fine=True))


def text() -> Kind:
    return any_of(becomes("", fine=True), becomes("name", fine=True))


def _as_array(good: Any) -> np.ndarray:
    return good.detach().numpy() if isinstance(good, torch.Tensor) else np.asarray(good)


def _like(good: Any, array: np.ndarray) -> Any:
    return torch.from_numpy(array.copy()) if isinstance(good, torch.Tensor) else array


def _on_meta(good: Any) -> torch.Tensor:
    return torch.as_tensor(_as_array(good)).to("meta")


SHORT = Change("one short", lambda good: good[:-1])
LONG = Change("one long", lambda good: _like(good, np.concatenate([_as_array(good)] * 2)))
DEEP = Change("with one more dimension", lambda good: _like(good, _as_array(good)[:, None, None]))
FLAT = Change("a single number", lambda good: _like(good, _as_array(good).reshape(-1)[0]))
META = Change("on the meta device", _on_meta)
WORDS = Change("words", lambda good: [f"w{i}" for i in range(len(good))])
RAGGED = Change("ragged", lambda good: [[1.0], [1.0, 2.0], *([[1.0]] * (len(good) - 2))])
EMPTY = Change("empty", lambda good: good[:0])
COMPLEX = Change("complex", lambda good: _like(good, _as_array(good).astype(np.complex64)))
FRACTIONS = Change("fractions", lambda good: _like(good, _as_array(good) + 0.5))
TRUTHS = Change("truth values", lambda good: _like(good, _as_array(good) > 0))
LIST = Change("a list", lambda good: _as_array(good).tolist(), fine=True)
SINGLE = Change("float32", lambda good: _like(good, _as_array(good).astype(np.float32)), fine=True)
HALF = Change("float16", lambda good: _like(good, _as_array(good).astype(np.float16)), fine=True)
SMALL = Change("int32", lambda good: _like(good, _as_array(good).astype(np.int32)), fine=True)
MISSHAPEN = (SHORT, LONG, DEEP, META, RAGGED, WORDS, becomes("rubbish"), becomes(7), COMPLEX)


def holding(value: float, fine: bool = False) -> Change:
    """One entry is `value`."""

    def put(good: Any) -> Any:
        array = np.array(_as_array(good), copy=True)
        if array.dtype.kind != "f":
            array = array.astype(np.float64)
        array.reshape(-1)[array.size // 2] = value
        return _like(good, array)

    return Change(f"holds {value}", put, fine)


def holding_whole(value: int) -> Change:
    def put(good: Any) -> Any:
        array = np.array(_as_array(good), dtype=np.int64)
        array.reshape(-1)[array.size // 2] = value
        return _like(good, array)

    return Change(f"holds {value}", put)


def _out_of(low: float, high: float) -> list[st.SearchStrategy[Change]]:
    ways = []
    if low > -math.inf:
        below = st.floats(max_value=low, exclude_max=True, allow_infinity=False, width=32)
        ways.append(below.filter(lambda x: x < low - 0.05).map(holding))
    if high < math.inf:
        over = st.floats(min_value=high, exclude_min=True, allow_infinity=False, width=32)
        ways.append(over.filter(lambda x: x > high + 0.05).map(holding))
    return ways


def values(
    low: float = -math.inf,
    high: float = math.inf,
    *,
    finite: bool = True,
    optional: bool = False,
    lists: bool = True,
    any_length: bool = False,
    others: tuple[Change, ...] = (),
) -> Kind:
    """Numbers (B,) in [low, high]; unless `finite`, NaN and infinity are taken (and left out)."""
    odd = [holding(x, fine=not finite) for x in (math.nan, math.inf, -math.inf)]
    shapes = MISSHAPEN[2:] if any_length else MISSHAPEN
    forms = (LIST, SINGLE) if lists else (SINGLE,)
    fixed = (*shapes, EMPTY, *odd, becomes(None, fine=optional), *others, *forms)
    outside = _out_of(low, high)
    return Kind(fixed, st.one_of(outside) if outside else None)


def rows(
    *, optional: bool = False, tensors: bool = False, changes: tuple[Change, ...] = ()
) -> Kind:
    """Whole numbers (B,) from 0."""
    forms = (SMALL,) if tensors else (SMALL, LIST)
    return Kind(
        (*MISSHAPEN, EMPTY, FRACTIONS, TRUTHS, becomes(None, fine=optional), *changes, *forms),
        st.integers(-(2**62), -1).map(holding_whole),
    )


def tensor(*changes: Change) -> Kind:
    """A tensor of a certain shape."""
    return any_of(
        becomes("rubbish"), becomes(3), NONE, becomes([[1.0]]), SHORT, LONG, DEEP, META, COMPLEX,
        *changes,
    )  # fmt: skip


class Broken(nn.Module):
    """Gives something other than a policy and a value."""

    def __init__(self, output: Any = None) -> None:
        super().__init__()
        self.weight, self.output = nn.Parameter(torch.ones(1)), output

    def forward(self, features: Any) -> Any:
        return self.output


def damaged(state: dict[str, Any], may_lack: tuple[str, ...] = ()) -> Kind:
    """A saved state with an entry lost or replaced, or something that is no state."""
    needed = sorted(state.keys() - {*may_lack})

    def without(key: str) -> Change:
        return Change(f"lacks {key!r}", lambda good: {k: v for k, v in good.items() if k != key})

    def rubbish(key: str, value: Any) -> Change:
        return Change(f"{key!r} becomes {value!r}", lambda good: {**good, key: value})

    no_states = (None, "rubbish", 3, [], {}, object())
    return any_of(
        *map(becomes, no_states),
        *map(without, needed),
        *(rubbish(key, object()) for key in sorted(state)),
    )
