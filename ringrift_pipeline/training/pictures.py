"""What a person looks at of a generation's training: loss curves, scores, disagreement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import polars as pl

    from ringrift_pipeline.store import Folder

__all__ = ["draw_disagreement", "draw_losses", "draw_scores"]

LOSSES = "loss"
SCORES = "quality"
DISAGREEMENT = "disagreement"


def draw_losses(
    folder: Folder, records: Sequence[Mapping[str, Any]], *, averaged: bool = True
) -> None:
    """Policy and value loss of each step, smoothed, and of the held-out games: ``loss.png``.

    ``records`` are the lines of ``metrics.jsonl``. The policy's curves are both over the rows that
    have a policy target. ``averaged``: the held-out losses are those of the averaged weights.
    """
    from ringrift_pipeline.drawing.charts import new_chart, save_chart, smoothed

    whose = "held out, averaged weights" if averaged else "held out"
    figure, panels = new_chart(2)
    for axes, name in zip(panels, ("policy", "value"), strict=True):
        key = f"loss_{name}"
        steps, losses = _curve(records, f"train/{key}")
        if len(steps):
            axes.plot(steps, losses, color="C0", linewidth=0.5, alpha=0.25)
            mean = smoothed(losses, len(losses) // 30)
            axes.plot(steps, mean, color="C0", linewidth=1.5, label="training, a step's rows")
        axes.plot(*_curve(records, f"val/{key}"), "o-", color="C1", markersize=4, label=whose)
        axes.set(title=f"{name} loss", xlabel="optimizer step", ylabel="nats")
    panels[0].legend(fontsize=8)
    save_chart(figure, folder, LOSSES)


def _curve(records: Sequence[Mapping[str, Any]], name: str) -> tuple[NDArray, NDArray]:
    """Steps and values of a metric where it is known."""
    known = [(one["step"], one[name]) for one in records if one.get(name) is not None]
    found = np.array(known, dtype=np.float64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def draw_scores(folder: Folder, frame: pl.DataFrame, generation: int) -> None:
    """Histogram of the games' quality scores, this generation's over the window's: ``quality.png``.

    ``frame`` has the columns `tables.QUALITY_SCORES`.
    """
    import polars as pl

    from ringrift_pipeline.drawing.charts import new_chart, save_chart

    figure, (axes,) = new_chart()
    own = frame.filter(pl.col("generation") == generation)["score"].to_numpy()
    earlier = frame.filter(pl.col("generation") != generation)["score"].to_numpy()
    scores = frame["score"].to_numpy()
    edges = np.linspace(scores.min(), max(scores.max(), scores.min() + 1e-3), 41)
    stacked = [(own, "C0", f"generation {generation:04d}: {len(own)} games")]
    if len(earlier):
        stacked.append((earlier, "0.75", f"earlier ones in the window: {len(earlier)}"))
    axes.hist(
        [values for values, _, _ in stacked],
        edges.tolist(),
        stacked=True,
        color=[colour for _, colour, _ in stacked],
        label=[label for _, _, label in stacked],
    )
    axes.axvline(float(own.mean()), color="C3", linewidth=1, label=f"its mean {own.mean():.3f}")
    axes.set(xlabel="quality score", ylabel="games", title="Quality of the window's games")
    axes.legend(fontsize=8)
    save_chart(figure, folder, SCORES)


def draw_disagreement(
    folder: Folder,
    plies: NDArray[np.integer],
    policy: NDArray[np.float64],
    value: NDArray[np.float64],
) -> None:
    """How far an ensemble's members are apart in the course of a game: ``disagreement.png``.

    Args:
        plies: (K,) plies of held-out decisions.
        policy: (K,) Jensen-Shannon divergence of the members there, nats.
        value: (K,) their standard deviation, of the most disputed seat's share of the win.
    """
    from ringrift_pipeline.drawing.charts import by_ply, new_chart, save_chart

    figure, panels = new_chart(2)
    units = {"policy": "nats", "value": "standard deviation, share of the win"}
    for axes, name, apart in zip(panels, units, (policy, value), strict=True):
        x, middle, low, high = by_ply(plies, apart)
        axes.fill_between(x, low, high, alpha=0.2, linewidth=0, label="10% to 90%")
        axes.plot(x, middle, marker="o", markersize=3, label="mean")
        axes.set(title=f"{name}: members apart", xlabel="ply", ylabel=units[name])
        axes.set_ylim(bottom=0)
    panels[0].legend(fontsize=8)
    save_chart(figure, folder, DISAGREEMENT)
