"""``benchmarks/selfplay.py``: what is measured is what was asked for."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from tests import loading


class PlannedError(Exception):
    """Raised where the games would begin."""


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return loading.benchmark(monkeypatch, "selfplay")


@pytest.mark.parametrize("part", ["workers_part", "memory_part"])
def test_plans_have_the_precision_and_backend_asked_for(
    benchmark: ModuleType, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[Any] = []
    prepare = benchmark._prepare

    def prepared(*arguments: Any) -> None:
        planned.append(prepare(*arguments)[1].settings.search)
        raise PlannedError

    monkeypatch.setattr(benchmark, "_prepare", prepared)
    with pytest.raises(PlannedError):
        next(getattr(benchmark, part)(1000, "float32", "torch"))
    assert [(search.precision, search.backend) for search in planned] == [("float32", "torch")]
