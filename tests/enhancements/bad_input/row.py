"""A row of the table, and what several rooms of it use."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import ringrift_pipeline.enhancements as library

from ..in_use import USES
from ..small_training import BATCH, SEATS, Net, adam, plain_loss
from .changes import Kind, any_of, becomes, damaged

Arguments = dict[str, Any]


def public() -> dict[str, Any]:
    """What the package and its documented modules offer, by name."""
    homes = [
        library,
        *(importlib.import_module(f"{library.__name__}.{m}") for m in library._MODULES),
    ]
    return {name: getattr(home, name) for home in homes for name in home.__all__}


PUBLIC = public()


@dataclass(frozen=True)
class Row:
    """One method of the library.

    Attributes:
        name: `Class.method`, `Class.__init__` or a function; what follows a colon tells rows of
            one method apart.
        good: the arguments of a call that works, given the object and a folder.
        takes: what each of the arguments is.
        use: name of the use in `in_use.USES` whose object is called; None for classes, functions.
        says: a pattern of what a refusal may name in place of the argument.
        call: how to call where arguments are not passed by name.
    """

    name: str
    takes: Mapping[str, Kind]
    good: Callable[[Any, Path], Arguments]
    use: str | None = None
    says: Mapping[str, str] = field(default_factory=dict)
    call: Callable[[Any, Arguments], Any] | None = None

    def new(self, folder: Path) -> Any:
        """The object, in use."""
        if self.use is None:
            return None
        things = USES[self.use].new(0, folder)
        USES[self.use].drive(things, 0, 6)
        return getattr(things["it"], "sampler", things["it"])

    def run(self, it: Any, arguments: Arguments) -> Any:
        if self.call is not None:
            return self.call(it, arguments)
        owner, _, method = self.name.partition(":")[0].partition(".")
        if not method or method == "__init__":
            return PUBLIC[owner](**arguments)
        return getattr(it if it is not None else PUBLIC[owner], method)(**arguments)


def built(
    owner: str, takes: Mapping[str, Kind], *, says: Mapping[str, str] | None = None, **good: Any
) -> Row:
    """The row of a constructor; an argument without a good value is left out of good calls."""
    return Row(f"{owner}.__init__", takes, lambda it, folder: dict(good), says=says or {})


def state_row(owner: str, use: str, argument: str = "state_dict", method: str = "") -> Row:
    """The row of a `load_state_dict`."""
    things = USES[use].new(0, Path("/nonexistent"))
    saved = getattr(things["it"], "sampler", things["it"]).state_dict()
    return Row(
        f"{owner}.{method or 'load_state_dict'}",
        {argument: damaged(saved, ("model",))},
        lambda it, folder: {argument: it.state_dict()},
        use,
        says={argument: "state"},
    )


def losses() -> torch.Tensor:
    return torch.linspace(0.1, 2.0, BATCH)


def indices() -> np.ndarray:
    return np.arange(BATCH) * 5


def unit() -> np.ndarray:
    return np.linspace(0.1, 0.9, BATCH)


def shares(seats: int = SEATS) -> np.ndarray:
    p = np.random.default_rng(0).random((BATCH, seats)) + 0.1
    return p / p.sum(axis=1, keepdims=True)


def optimizer() -> torch.optim.Optimizer:
    return adam(Net())


def with_gradients() -> nn.Module:
    model = Net()
    plain_loss(model, 0).backward()
    return model


def device() -> Kind:
    bad = ("rubbish", 1.5, "cuda:x", "cuda:99", "meta", 10**400, object())
    return any_of(*map(becomes, bad), becomes("cpu", fine=True))
