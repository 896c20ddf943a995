"""Bad input to every public method: a ValueError that names the argument, and nothing changed."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from .bad_input import TABLE
from .bad_input.changes import Change
from .bad_input.row import PUBLIC, Row
from .small_training import fingerprint, weights_of

ROWS = {row.name: row for row in TABLE}
CASES = [(row.name, argument) for row in ROWS.values() for argument in row.takes]

# Public methods that need no row, and why.
EXEMPT = {
    "ConfigError": "an exception",
    "GameQualityScore": "a record, made by the scorer",
    "HardExample": "a record, made by the miner",
    "PerSampleLossRecord": "a record, made by the tracker",
    "EpochStatistics": "a record, made by the facade",
    "FeedbackDecision": "a record, made by the feedback handler",
    "TrainStepStats": "a record, made by the facade",
    "EnsemblePrediction": "a record, made by the ensemble",
    "TemperatureFit.__init__": "a record, made by fit_temperature",
    "WorkerSeeder": "a record, made by the seed manager",
    "LearningRateSchedule": "the base of the schedules",
    "ConstantScheduler.apply_rates": "for subclasses",
    "ConstantScheduler.check_state": "for subclasses",
    "AdaptiveLRScheduler.apply_rates": "for subclasses",
    "AdaptiveLRScheduler.check_state": "for subclasses",
    "WarmRestartsScheduler.apply_rates": "for subclasses",
    "WarmRestartsScheduler.check_state": "for subclasses",
    "TrainingConfig.__init__": "pydantic's; every bound is tested in test_training_config",
}


class Pool:
    """Objects in use, made when first wanted; one that did as it should serves again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kept: dict[str | None, Any] = {}

    def take(self, row: Row) -> Any:
        return self.kept.pop(row.use) if row.use in self.kept else row.new(self.folder)

    def give_back(self, row: Row, it: Any) -> None:
        self.kept[row.use] = it


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return Pool(tmp_path_factory.mktemp("objects"))


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
def test_good_arguments_work(name: str, pool: Pool) -> None:
    row = ROWS[name]
    it = pool.take(row)
    row.run(it, row.good(it, pool.folder))
    pool.give_back(row, it)


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_bad_input_is_refused_by_name_and_changes_nothing(
    name: str, argument: str, pool: Pool
) -> None:
    row = ROWS[name]
    kind = row.takes[argument]
    pattern = row.says.get(argument, rf"\b{argument}\b")

    def check(change: Change) -> None:
        it = pool.take(row)
        arguments = row.good(it, pool.folder)
        changed = arguments | {argument: change.apply(arguments.get(argument))}
        if change.fine:
            row.run(it, changed)
            pool.give_back(row, it)
            return
        before = state_of(it, changed)
        with pytest.raises(ValueError) as refusal:
            row.run(it, changed)
        assert re.search(pattern, str(refusal.value)), f"{argument} is not named: {refusal.value}"
        assert state_of(it, changed) == before
        pool.give_back(row, it)

    wrong = []
    for change in kind.changes:
        try:
            check(change)
        except (Exception, pytest.fail.Exception) as error:
            wrong.append(f"{change}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)
    if kind.drawn is not None:
        some = settings(max_examples=5, derandomize=True, database=None)
        some(given(change=kind.drawn)(check))()


def public_methods() -> Iterator[tuple[str, Any]]:
    """Functions of the package and of its modules, and constructors and methods of their classes."""
    for name, value in PUBLIC.items():
        if not inspect.isclass(value):
            if inspect.isfunction(value):
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
