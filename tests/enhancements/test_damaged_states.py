"""Saved states with one entry damaged, however deep: refused by name, and nothing changed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from .in_use import USES
from .small_training import Things, fingerprint

Place = tuple[Any, ...]

STEPS = 11  # within an accumulation, and after the first bad steps

# Damage that a state cannot show, because what it makes is a state too; by the owner's name, and
# below the part of the facade where the owner sits.
ALSO_STATES = {
    "accumulator": ["max_grad_norm None"],
    "adaptive": ["last_reason words"],
    "calibration": [r"(games|phases)\.\d+ words", "temperature_fit None"],
    "averager": [r"window \[\]"],
    "miner": [
        "recorded_since_threshold None",  # to be found anew, as the pool
        "pool None",
        r"pool\.changed \[\]",
    ],
    "tracker": [
        "losses a NaN in it",  # a loss function need not tell policy and value apart
        "(first_epoch|learned_loss) None",
    ],
    "feedback": [r"seen\.\d+ words"],
    "seeds": [r"path \[\]"],
    "snapshot": [r"optimizer \{\}"],  # one that has not stepped yet
    "monitor": [r"losses \[\]"],
    "progress": ["val_loss (NaN|None)", "best_val_loss None", "stop_reason words"],
    "slots": ["index_of half of it"],
    "facade": [
        r"optimizer\.state \{\}",
        "quality None",
        r"pending\.0\.losses a NaN in it",  # which the monitor judges when the step is due
        r"pending\.0\.(indices None|facts \{\}|facts\.\w+ a NaN in it)",
        r"gradients\.\d+ (None|a NaN in it)",
    ],
}


def places(tree: Any, at: Place = ()) -> Iterator[Place]:
    """Every entry of nested dicts and lists, of long lists the ends."""
    if isinstance(tree, dict):
        inside: list[Any] = list(tree)
    elif isinstance(tree, list | tuple):
        inside = sorted({0, len(tree) - 1} & set(range(len(tree))))
    else:
        return
    for key in inside:
        yield (*at, key)
        yield from places(tree[key], (*at, key))


def entry(tree: Any, at: Place) -> Any:
    for key in at:
        tree = tree[key]
    return tree


def with_entry(tree: Any, at: Place, value: Any) -> Any:
    """A copy of the containers along the way, with another entry there."""
    if not at:
        return value
    if isinstance(tree, dict):
        return {**tree, at[0]: with_entry(tree[at[0]], at[1:], value)}
    changed = list(tree)
    changed[at[0]] = with_entry(tree[at[0]], at[1:], value)
    return type(tree)(changed)


def damages(value: Any) -> Iterator[tuple[str, Any]]:
    """What an entry becomes, each with a word for it, unless it is that already."""
    yield from (("NaN", float("nan")), ("an object", object()), ("words", "rubbish"))
    is_array = isinstance(value, torch.Tensor | np.ndarray)
    if not (list(value.shape) == [0] if is_array else value in ([], ())):
        yield "[]", []
    if not (isinstance(value, dict) and not value):
        yield "{}", {}
    if value is not None:
        yield "None", None
    if is_array:
        array = np.array(value.tolist())
        same = torch.as_tensor if isinstance(value, torch.Tensor) else np.asarray
        if array.size:
            yield "half of it", same(array.reshape(-1)[: array.size // 2])
        if array.ndim == 2 and array.size:
            yield "no columns", same(array[:, :0])
        if array.dtype.kind == "f" and array.size and not np.isnan(array.reshape(-1)[-1]):
            array.reshape(-1)[-1] = np.nan
            yield "a NaN in it", same(array)


def said(at: Place, what: str) -> str:
    return f"{'.'.join(map(str, at))} {what}"


def legal_damages(name: str) -> re.Pattern[str]:
    """What may happen to a state of that use, or to its parts in a larger one's."""
    owner = name.partition("-")[0]
    found = list(ALSO_STATES.get(owner, []))
    if owner == "tracked":
        found += ALSO_STATES["miner"]
    if owner in ("facade", "recovery"):
        for part, patterns in ALSO_STATES.items():
            found += [rf"(.*\.)?{part}\.{pattern}" for pattern in patterns]
    return re.compile("|".join(f"({pattern})" for pattern in found) or "(?!)")


@pytest.mark.parametrize("name", USES)
def test_a_damaged_entry_is_refused_by_name_and_changes_nothing(name: str, tmp_path: Path) -> None:
    use = USES[name]

    def new() -> Things:
        things = use.new(0, tmp_path)
        use.drive(things, 0, STEPS)
        return things

    things = new()
    saved = things["it"].state_dict()
    before = fingerprint(saved)
    legal = legal_damages(name)
    wrong = []
    for at in places(saved):
        for what, damaged in damages(entry(saved, at)):
            if name == "facade" and len(at) > 2 and what in ("an object", "words"):
                continue  # its parts have their own turn
            label = said(at, what)
            if legal.fullmatch(label):
                continue
            try:
                things["it"].load_state_dict(with_entry(saved, at, damaged))
            except ValueError as error:
                if not any(str(key) in str(error) for key in at if isinstance(key, str)):
                    wrong.append(f"{label}: not named: {error!s:.150}")
            except Exception as error:
                wrong.append(f"{label}: {type(error).__name__}: {error!s:.100}")
                things = new()
            else:
                wrong.append(f"{label}: taken")
                things = new()
    assert not wrong, f"{name} {len(wrong)}:\n" + "\n".join(wrong)
    assert fingerprint(things["it"].state_dict()) == before
    things["it"].load_state_dict(saved)
    assert fingerprint(things["it"].state_dict()) == before
