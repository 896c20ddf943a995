"""Charts: small enough for the event log whatever they show, whole beside it, the same every time."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from ringrift_pipeline.drawing.charts import (
    FULL,
    MOST_BYTES,
    by_ply,
    new_chart,
    save_chart,
    smoothed,
)


def noise(folder: Path, name: str, seed: int = 0) -> None:
    """A chart that compresses badly."""
    rng = np.random.default_rng(seed)
    figure, panels = new_chart(2)
    for axes in panels:
        axes.scatter(*rng.random((2, 4000)), s=20, c=rng.random(4000), cmap="viridis")
    save_chart(figure, folder, name)


def test_a_small_picture_is_small_and_the_whole_is_beside_it(tmp_path: Path) -> None:
    noise(tmp_path, "noise")
    data = (tmp_path / "noise.png").read_bytes()
    assert data.startswith(b"\x89PNG") and 4_000 < len(data) <= MOST_BYTES
    root = ElementTree.parse(tmp_path / f"noise{FULL}").getroot()
    assert root.tag.endswith("svg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["noise.full.svg", "noise.png"]


def test_the_same_numbers_are_the_same_bytes(tmp_path: Path) -> None:
    drawn = []
    for number, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(number)
        folder.mkdir()
        noise(folder, "noise", seed)
        drawn.append([(folder / f"noise{end}").read_bytes() for end in (".png", FULL)])
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[2][0] and drawn[0][1] != drawn[2][1]


@pytest.mark.parametrize("window", [0, 1, 5, 99])
def test_a_running_mean_is_the_mean_around_each_value(window: int) -> None:
    values = np.random.default_rng(1).random(40)
    half = window // 2
    expected = [values[max(i - half, 0) : i + half + 1].mean() for i in range(40)]
    np.testing.assert_allclose(smoothed(values, window), expected, rtol=1e-12)


def test_by_ply_takes_every_value_of_the_first_nineteen_twentieths_once() -> None:
    rng = np.random.default_rng(2)
    plies = rng.integers(0, 60, 3000)
    values = plies + rng.normal(0.0, 0.1, 3000)
    x, mean, low, high = by_ply(plies, values)
    assert len(x) == 24 and (np.diff(x) > 0).all()
    assert (low < mean).all() and (mean < high).all()
    np.testing.assert_allclose(mean, x, atol=0.3)  # each bin's mean is its own plies'
    assert x.max() <= np.quantile(plies, 0.95)


def test_by_ply_of_nothing_is_empty() -> None:
    assert all(len(part) == 0 for part in by_ply(np.zeros(0, np.int64), np.zeros(0)))
