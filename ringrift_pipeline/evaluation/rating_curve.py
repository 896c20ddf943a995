"""The list of ratings for people: a Markdown table, and the curve over generations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

    from ringrift_pipeline.store import Folder

__all__ = ["MOST_ROWS", "draw_curve", "write_list"]

CURVE = "rating_curve"
MOST_ROWS = 60
"""Generations in the Markdown table, the newest; the Parquet table has all."""
MOST_POINTS = 300
"""Generations in the picture: of more, the newest half of as many, and the others evenly."""


def write_list(path: Path, frame: pl.DataFrame, confidence: float) -> None:
    """Write the table as Markdown, strongest first.

    Args:
        path: a new file.
        frame: columns `tables.RATING_LIST`.
        confidence: of the intervals.
    """
    import polars as pl

    generations = frame["generation"].drop_nulls().sort(descending=True)
    shown = frame.filter(
        pl.col("generation").is_null()
        | pl.col("generation").is_in(generations[:MOST_ROWS].implode())
    )
    lines = [
        f"| player | rating | {confidence:.0%} interval | games | wins | passed the gate |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for row in shown.iter_rows(named=True):
        interval = "given" if row["anchor"] else f"{row['low']:.0f} to {row['high']:.0f}"
        # the column is called so by the lists of all versions; it is what the gate said
        passed = {True: "yes", False: "no", None: ""}[row["promoted"]]
        lines.append(
            f"| {row['player']} | {row['rating']:.0f} | {interval} | {row['games']} | "
            f"{row['share']:.0%} | {passed} |"
        )
    if shown.height < frame.height:
        lines.append(f"\n{frame.height - shown.height} older generations are in the table's file.")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def draw_curve(folder: Folder, frame: pl.DataFrame, config: str, confidence: float) -> None:
    """Draw the ratings of the generations with their intervals, baselines as lines:
    ``rating_curve.png``, and the whole beside it (`drawing.charts.save_chart`).

    Generations that their gate let through are filled. The same table gives the same bytes.

    Args:
        folder: of a draft.
        frame: columns `tables.RATING_LIST`.
        config: for the title.
        confidence: of the intervals.
    """
    import numpy as np
    import polars as pl

    from ringrift_pipeline.drawing.charts import new_chart, save_chart
    from ringrift_pipeline.libraries.plotting import MaxNLocator

    figure, (axes,) = new_chart()
    rated = _thinned(frame.filter(pl.col("generation").is_not_null()).sort("generation"))
    x = rated["generation"].to_numpy()
    y = rated["rating"].to_numpy()
    bars = np.stack([y - rated["low"].to_numpy(), rated["high"].to_numpy() - y])
    axes.errorbar(x, y, bars, color="C0", linewidth=1, capsize=2, marker="", zorder=2)
    passed = rated["promoted"].fill_null(False).to_numpy()
    axes.scatter(x[passed], y[passed], color="C0", s=28, zorder=3, label="passed the gate")
    axes.scatter(
        x[~passed], y[~passed], facecolor="white", edgecolor="C0", s=28, zorder=3, label="refused"
    )
    for number, row in enumerate(
        frame.filter(pl.col("generation").is_null()).sort("player").iter_rows(named=True), start=1
    ):
        colour = f"C{number}"
        axes.axhline(row["rating"], color=colour, linewidth=1, linestyle="--", zorder=1)
        axes.axhspan(row["low"], row["high"], color=colour, alpha=0.12, linewidth=0, zorder=0)
        axes.annotate(
            f"{row['player']} {row['rating']:.0f}",
            (1.0, row["rating"]),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=colour,
        )
    axes.set(
        xlabel="generation",
        ylabel=f"rating, Elo ({confidence:.0%} intervals)",
        title=f"{config}: one fit over all games",
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="best", fontsize=8)
    save_chart(figure, folder, CURVE)


def _thinned(rated: pl.DataFrame) -> pl.DataFrame:
    """At most `MOST_POINTS` of the rows."""
    newest = MOST_POINTS // 2
    older = rated.height - newest
    if rated.height <= MOST_POINTS:
        return rated
    kept = [place * older // (MOST_POINTS - newest) for place in range(MOST_POINTS - newest)]
    return rated[[*kept, *range(older, rated.height)]]
