"""What the evaluation feedback asks for is what selfplay plays with."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringrift_pipeline.selfplay import plan_generation, play_shard, read_shard
from ringrift_pipeline.store import Store

from .conftest import CONFIG, NOW, save_champion, settings


def selected(folder: Path, generation: int, **given: object) -> list[int]:
    """The moves of one game of a generation that was planned with these settings."""
    store = Store(folder)
    if generation > 0:
        plan_generation(store, CONFIG, 0, settings(), NOW)
        save_champion(store)
    # one model plays all seats: an earlier one may be met otherwise
    one_game = settings(selfplay__games=1, selfplay__opponent_fraction=0.0, **given)
    plan = plan_generation(store, CONFIG, generation, one_game, NOW)
    shard = play_shard(store, plan, 0)
    return read_shard(shard.file("shard.arrow"))["selected"].to_pylist()


def test_exploration_multiplies_the_temperature_of_the_network(tmp_path: Path) -> None:
    changed = selected(
        tmp_path / "a", 1, selfplay__temperature=0.5, feedback__exploration_factor=3.0
    )
    assert changed == selected(tmp_path / "b", 1, selfplay__temperature=1.5)
    assert changed != selected(tmp_path / "c", 1, selfplay__temperature=0.5)


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_generation_0_explores_as_it_was_told(tmp_path: Path, factor: float) -> None:
    changed = selected(tmp_path / "a", 0, feedback__exploration_factor=factor)
    assert changed == selected(tmp_path / "b", 0)
