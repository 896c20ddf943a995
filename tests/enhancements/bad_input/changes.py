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

from ..small_training import BATCH


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
    return Change(f"becomes {value!r:.60}", lambda good: value, fine)


def any_of(*changes: Change) -> Kind:
    return Kind(changes)


BEYOND_FLOATS = 10**400
COUNTABLE = 2**63  # what numpy's integers and Python's containers count to
NOT_NUMBERS = tuple(
    becomes(value)
    for value in (
        *("1", True, math.nan, math.inf, -math.inf, 1j, [1.0], {}, np.ones(2), object()),
        *(BEYOND_FLOATS, -BEYOND_FLOATS, np.complex64(1 + 1j), np.timedelta64(1, "D")),
        *(np.array(1.0), torch.tensor(1.0), np.datetime64("2020-01-01")),
    )
)
ARRAYS = (np.ones(2), np.array(["a"]), np.zeros(0), torch.ones(2), torch.zeros(0))  # no one truth
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


def whole(least: int, below: int = COUNTABLE, optional: bool = False) -> Kind:
    """A whole number, at least `least` and below `below`."""
    ways = [st.integers(max_value=least - 1).map(becomes)]
    ways.append(st.integers(min_value=below).map(becomes))
    edges = [becomes(least - 1), becomes(below), becomes(10**15 + below)]
    fixed = (*NOT_NUMBERS, becomes(1.5), becomes(None, fine=optional), *edges)
    return Kind(fixed, st.one_of(ways))


def choice(optional: bool = False) -> Kind:
    """One of a few names."""
    others = ("rubbish", "", 3, 1.5, [], object(), *ARRAYS)
    return any_of(*map(becomes, others), becomes(None, optional))


def of_class(*others: Any, optional: bool = False) -> Kind:
    """An object of some class: anything else is refused."""
    bad = ("rubbish", 3, [], object(), *ARRAYS, *others)
    return any_of(*map(becomes, bad), becomes(None, optional))


def flag() -> Kind:
    """True or False, and nothing else that has a truth value."""
    others = (None, "no", "", 0, 1, 1.0, [], {}, math.nan, object(), *ARRAYS)
    return any_of(*map(becomes, others), becomes(True, fine=True), becomes(False, fine=True))


def text() -> Kind:
    return any_of(becomes("", fine=True), becomes("name", fine=True))


def _as_array(good: Any) -> np.ndarray:
    return good.detach().numpy() if isinstance(good, torch.Tensor) else np.asarray(good)


def _like(good: Any, array: np.ndarray) -> Any:
    return torch.from_numpy(array.copy()) if isinstance(good, torch.Tensor) else array


def _on_meta(good: Any) -> torch.Tensor:
    return torch.as_tensor(_as_array(good)).to("meta")


def _masked(good: Any) -> np.ndarray:
    array = _as_array(good)
    hidden = np.zeros(array.shape, dtype=bool)
    hidden.reshape(-1)[:1] = True
    return np.ma.masked_array(array, hidden)


SHORT = Change("one short", lambda good: good[:-1])
LONG = Change("one long", lambda good: _like(good, np.concatenate([_as_array(good)] * 2)))
DEEP = Change("with one more dimension", lambda good: _like(good, _as_array(good)[:, None, None]))
FLAT = Change("a single number", lambda good: _like(good, _as_array(good).reshape(-1)[0]))
META = Change("on the meta device", _on_meta)
MASKED = Change("with a masked entry", _masked)
SPARSE = Change("sparse", lambda good: torch.as_tensor(_as_array(good)).to_sparse())
QUANTIZED = Change(
    "quantized",
    lambda good: torch.quantize_per_tensor(
        torch.as_tensor(_as_array(good)).float(), 0.1, 0, torch.qint8
    ),
)
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
UNREADABLE = (META, MASKED, SPARSE, QUANTIZED)
MISSHAPEN = (
    *(SHORT, LONG, DEEP, *UNREADABLE, RAGGED, WORDS, COMPLEX),
    *map(becomes, ("rubbish", 7, np.array(3), torch.tensor(3), [None], [BEYOND_FLOATS])),
)


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
        becomes("rubbish"), becomes(3), NONE, becomes([[1.0]]), SHORT, LONG, DEEP, COMPLEX,
        *UNREADABLE, *changes,
    )  # fmt: skip


def labels(optional: bool = True) -> Kind:
    """Ids or names (B,) of any kind, as long as they can be told apart."""
    odd = ("rubbish", 7, np.array(3), torch.tensor(3), torch.zeros(BATCH, device="meta"))
    odd += (torch.zeros(BATCH).to_sparse(), np.ma.masked_array(np.zeros(BATCH), mask=True))
    bad = (SHORT, LONG, EMPTY, RAGGED, *map(becomes, odd))
    return any_of(*bad, becomes(None, fine=optional))


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
