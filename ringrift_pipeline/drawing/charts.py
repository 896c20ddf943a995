"""Charts of reports: a small PNG to look at in passing, and the whole as SVG beside it.

Importing this costs matplotlib; a chart of the same numbers is the same bytes.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Protocol

from ringrift_pipeline.libraries.plotting import Axes, Figure, FigureCanvasAgg, rc_context

__all__ = ["FULL", "MOST_BYTES", "by_ply", "new_chart", "save_chart", "smoothed"]

MOST_BYTES = 36_000
"""Of a small picture: as a data URI, in base64, it stays below 50 kB."""
COLOURS = 64
FULL = ".full.svg"
"""Ending of the file with the whole picture: ``loss.png`` has ``loss.full.svg`` beside it."""


class Folder(Protocol):
    """What gives the path of a file in it; as the store's."""

    def __truediv__(self, name: str, /) -> Path: ...


def new_chart(panels: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure with ``panels`` side by side, for `save_chart`; ``options`` as of ``subplots``."""
    figure = Figure(figsize=(6.4 if panels == 1 else 3.9 * panels, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, squeeze=False, **options)[0]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(axis="y", color="0.9", linewidth=0.7)
        one.set_axisbelow(True)
    return figure, list(axes)


def save_chart(figure: Figure, folder: Folder, name: str) -> None:
    """Write ``name.png``, of at most `MOST_BYTES`, and ``name.full.svg`` into a draft's folder."""
    from PIL import Image

    for dpi in (90, 70, 50, 35):
        drawn, small = io.BytesIO(), io.BytesIO()
        figure.savefig(drawn, format="png", dpi=dpi)
        Image.open(drawn).convert("RGB").quantize(COLOURS).save(small, "png", optimize=True)
        if small.tell() <= MOST_BYTES:
            break
    (folder / f"{name}.png").write_bytes(small.getvalue())
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(folder / f"{name}{FULL}", format="svg", metadata={"Date": None})


def by_ply(plies: Any, values: Any) -> tuple[Any, Any, Any, Any]:
    """Values (K,) in the course of a game: middle of a few plies, mean, 10% and 90% quantile there.

    ``plies`` (K,) are ints. The last twentieth of the values is left out, as so late in a game a
    ply has too few of them.
    """
    import numpy as np

    last = int(np.quantile(plies, 0.95)) if len(plies) else 0
    edges = np.unique(np.linspace(0, last + 1, 25).astype(int))
    place = np.digitize(plies, edges) - 1
    found = [
        ((edges[at] + edges[at + 1] - 1) / 2, some.mean(), *np.quantile(some, [0.1, 0.9]))
        for at in range(len(edges) - 1)
        if len(some := values[place == at])
    ]
    x, mean, low, high = np.array(found, dtype=np.float64).reshape(-1, 4).T
    return x, mean, low, high


def smoothed(values: Any, window: int) -> Any:
    """Centred running mean (N,) over ``window`` values, over fewer at the ends."""
    import numpy as np

    values = np.asarray(values, dtype=np.float64)
    half = max(window // 2, 0)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    first, last = np.maximum(place - half, 0), np.minimum(place + half + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)
