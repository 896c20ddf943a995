"""Bad input to every public method: a ValueError that names the argument, and nothing changed."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import ringrift_pipeline.enhancements as library

from .bad_input_table import ROWS_OF_THE_TABLE
from .in_use import fingerprint, weights_of

ROWS = {row.name: row for row in ROWS_OF_THE_TABLE}
CASES = [(row.name, argument) for row in ROWS.values() for argument in row.takes]

# Public methods that need no row, and why.
EXEMPT = {
    "ConfigError": "an exception",
    "GameQualityScore": "a record, made by the scorer",
    "HardExample": "a record, made by the miner",
    "PerSampleLossRecord": "a record, made by the tracker",
    "EpochStatistics": "a record, made by the facade",
    "FeedbackDecision": "a record, made by the feedback handler",
    "AdaptiveLRScheduler.apply_rates": "for subclasses",
    "AdaptiveLRScheduler.check_state": "for subclasses",
    "WarmRestartsScheduler.apply_rates": "for subclasses",
    "WarmRestartsScheduler.check_state": "for subclasses",
    "TrainingConfig.__init__": "pydantic's; every bound is tested in test_training_config",
}


def state_of(it: Any, arguments: dict[str, Any]) -> Any:
    """All that a refused call must leave as it was."""
    seen = [it.state_dict() if hasattr(it, "state_dict") else None]
    for value in arguments.values():
        if isinstance(value, nn.Module):
            seen.append([weights_of(value), value.training])
        if isinstance(value, torch.optim.Optimizer):
            parameters = [p for group in value.param_groups for p in group["params"]]
            seen.append([value.state_dict(), parameters, [p.grad for p in parameters]])
        if isinstance(value, list) and value and isinstance(value[0], nn.Parameter):
            seen.append([(p, p.grad) for p in value])
    return fingerprint(seen)


@pytest.mark.parametrize("name", ROWS)
def test_good_arguments_work(name: str, tmp_path: Path) -> None:
    row = ROWS[name]
    it = row.new(tmp_path)
    row.run(it, row.good(it, tmp_path))


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_bad_input_is_refused_by_name_and_changes_nothing(
    name: str, argument: str, tmp_path: Path
) -> None:
    row = ROWS[name]
    pattern = row.says.get(argument, rf"\b{argument}\b")
    kept: list[Any] = []  # an object that refused and is as it was serves again

    @settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        change = data.draw(row.takes[argument])
        it = kept.pop() if kept else row.new(tmp_path)
        arguments = row.good(it, tmp_path)
        changed = arguments | {argument: change.apply(arguments.get(argument))}
        if change.fine:
            row.run(it, changed)
            return
        before = state_of(it, changed)
        with pytest.raises(ValueError) as refusal:
            row.run(it, changed)
        assert re.search(pattern, str(refusal.value)), f"{argument} is not named: {refusal.value}"
        assert state_of(it, changed) == before
        kept.append(it)

    check()


def public_methods() -> Iterator[tuple[str, Any]]:
    """Public functions, and constructors and methods of public classes that take arguments."""
    for name in library.__all__:
        value = getattr(library, name)
        if not inspect.isclass(value):
            yield name, value
            continue
        if value.__init__ is not object.__init__:
            yield f"{name}.__init__", value.__init__
        for base in value.__mro__:
            if not base.__module__.startswith("ringrift_pipeline"):
                continue
            for method, function in vars(base).items():
                plain = getattr(function, "__func__", function)
                if not method.startswith("_") and inspect.isfunction(plain):
                    yield f"{name}.{method}", plain


def takes_arguments(function: Any) -> bool:
    parameters = list(inspect.signature(function).parameters)
    return bool([name for name in parameters if name not in ("self", "cls")])


def test_every_public_method_is_in_the_table() -> None:
    wanted = {name for name, function in public_methods() if takes_arguments(function)}
    exempt = {name for name in wanted if name in EXEMPT or name.partition(".")[0] in EXEMPT}
    have = {name.partition(":")[0] for name in ROWS}
    assert wanted - exempt - have == set()
    assert have - wanted == set(), "rows of what does not exist"
    gone = {name for name in EXEMPT if not any(w.startswith(name) for w in wanted)}
    assert gone <= {"ConfigError"}


def test_every_argument_is_in_the_table() -> None:
    taken: dict[str, set[str]] = {}
    for row in ROWS.values():
        taken.setdefault(row.name.partition(":")[0], set()).update(row.takes)
    for name, function in public_methods():
        if name not in taken or name == "FacadeConfig.__init__":  # whose bounds are a table
            continue
        parameters = inspect.signature(function).parameters.values()
        wanted = {
            p.name for p in parameters if p.name not in ("self", "cls") and p.kind != p.VAR_KEYWORD
        }
        assert wanted <= taken[name], f"{name}: no kind for {wanted - taken[name]}"
