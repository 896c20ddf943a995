"""``benchmarks/many_games.py``: a cost that is not linear does not pass for one that is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests import loading

SIZES = (1_000, 10_000, 100_000, 1_000_000)


@pytest.mark.parametrize(
    ("seconds", "linear"),
    [
        (lambda games: 0.3 + 13e-6 * games, True),
        (lambda games: 0.3 + 13e-6 * games + 2e-10 * games**2, False),  # hidden at first by 0.3 s
    ],
)
def test_each_size_is_compared_with_the_one_before(
    seconds: Callable[[int], float], linear: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = loading.benchmark(monkeypatch, "many_games")
    before: dict[str, float] = {}
    found = []
    for games in SIZES:
        stage = bench.Stage(1.0, seconds(games), 0.0)
        found.append(bench.cost(f"many games: x, {games:,} games, score", stage, games, 1, before))
        other = bench.Stage(1.0, 5.0, 0.0)  # of another stage, which is none of its business
        bench.cost(f"many games: x, {games:,} games, mine", other, games, 1, before)
    assert found[0]["ratio"] == 1.0
    assert all(each["ratio"] >= each["target"] for each in found) is linear
    smallest = found[0]["value"] / found[-1]["value"]
    assert smallest > bench.LINEAR  # which said nothing
