"""What the runs of an ablation say of each enhancement: differences, verdicts, table, picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ringrift_pipeline.evaluation.ablation_runs import (
    EVERYTHING,
    NOTHING,
    TRAINED,
    Figures,
    TrialResult,
)
from ringrift_pipeline.evaluation.paired_differences import (
    Difference,
    difference_of_means,
    holm,
    paired_difference,
)

if TYPE_CHECKING:
    import polars as pl

    from ringrift_pipeline.store import Folder

__all__ = [
    "ENHANCEMENTS",
    "MEASURES",
    "RULE",
    "Comparison",
    "compare",
    "comparisons",
    "draw_differences",
    "verdicts",
    "write_table",
]

ENHANCEMENTS = (*TRAINED, "ema", "ensemble")
MEASURES = {
    "policy_loss": "policy loss, nats",
    "value_log_loss": "value log loss, nats",
    "calibration_error": "calibration error, share",
}
PICTURE = "ablation"
OFF_IN_TURN, ON_ALONE = "off in turn", "on alone"
RULE = (
    "An enhancement helps if some measure is better with it beyond doubt, in either setting, and "
    "none is worse; it hurts if the reverse holds; else it is undecided. Beyond doubt: the p-value "
    "of the paired difference, corrected by Holm's method for all comparisons by all measures, is "
    "below one less the confidence."
)


@dataclass(frozen=True)
class Comparison:
    """An enhancement in a setting: (variant, model) with it, and without it."""

    enhancement: str
    setting: str
    on: tuple[str, str]
    off: tuple[str, str]


def comparisons(ensemble: bool) -> list[Comparison]:
    """All comparisons, by enhancement; those of the ensemble if there is one.

    Off in turn, what is read is the average; on alone, the last weights. The ensemble is read
    last: it is compared with the one model it was made around.
    """
    found = []
    for name in TRAINED:
        whole, bare = (EVERYTHING, "averaged"), (NOTHING, "last")
        found.append(Comparison(name, OFF_IN_TURN, whole, (f"without_{name}", "averaged")))
        found.append(Comparison(name, ON_ALONE, (f"only_{name}", "last"), bare))
    for variant, setting in ((EVERYTHING, OFF_IN_TURN), (NOTHING, ON_ALONE)):
        found.append(Comparison("ema", setting, (variant, "averaged"), (variant, "last")))
    if ensemble:
        for setting, own in ((OFF_IN_TURN, whole), (ON_ALONE, bare)):
            found.append(Comparison("ensemble", setting, (own[0], "ensemble"), own))
    return found


def compare(
    results: Mapping[tuple[str, int], TrialResult], seeds: int, ensemble: bool, confidence: float
) -> list[dict[str, Any]]:
    """Every comparison by every measure, rows of `tables.ABLATION`.

    Args:
        results: by variant and seed.
        seeds: paired seeds, at least 2.
        ensemble: whether the runs have ensembles.
        confidence: of intervals and verdicts.

    Raises:
        ValueError: too few seeds or games.
    """
    every = comparisons(ensemble)
    found = []
    for measure in MEASURES:
        for item in every:
            on, off = (
                [results[variant, seed].models[model] for seed in range(seeds)]
                for variant, model in (item.on, item.off)
            )
            found.append((measure, item, *_difference(measure, on, off)))
    rows = []
    corrected = holm([difference.p for _, _, difference, _, _ in found])
    for (measure, item, difference, with_it, without_it), chance in zip(
        found, corrected, strict=True
    ):
        low, high = difference.interval(confidence)
        low_all, high_all = difference.interval(confidence, len(found))
        verdict = "undecided"
        if chance < 1.0 - confidence:
            verdict = "better" if difference.mean < 0.0 else "worse"
        rows.append(
            {
                "enhancement": item.enhancement,
                "setting": item.setting,
                "measure": measure,
                "with_it": with_it,
                "without_it": without_it,
                "difference": difference.mean,
                "seeds_error": difference.seeds_error,
                "games_error": difference.games_error,
                "low": low,
                "high": high,
                "low_all": low_all,
                "high_all": high_all,
                "p": difference.p,
                "p_corrected": chance,
                "verdict": verdict,
            }
        )
    order = {name: number for number, name in enumerate(ENHANCEMENTS)}
    return sorted(rows, key=lambda row: (order[row["enhancement"]], row["setting"] == ON_ALONE))


def _difference(
    measure: str, on: Sequence[Figures], off: Sequence[Figures]
) -> tuple[Difference, float, float]:
    """The mean difference over the paired runs, and the measure with and without, means."""
    if measure != "calibration_error":
        ours, theirs = (np.stack([getattr(one, measure) for one in side]) for side in (on, off))
        difference = difference_of_means(ours, theirs)
        return difference, float(np.nanmean(ours)), float(np.nanmean(theirs))
    errors = np.array([[one.calibration_error for one in side] for side in (on, off)])
    drawn = np.stack([a.replicates - b.replicates for a, b in zip(on, off, strict=True)])
    games = len(on[0].value_log_loss)
    difference = paired_difference(errors[0] - errors[1], np.atleast_2d(np.cov(drawn)), games)
    return difference, float(errors[0].mean()), float(errors[1].mean())


def verdicts(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """``helps``, ``hurts`` or ``undecided`` for every enhancement that was compared; see `RULE`."""
    found: dict[str, str] = {}
    for name in dict.fromkeys(row["enhancement"] for row in rows):
        said = {row["verdict"] for row in rows if row["enhancement"] == name} - {"undecided"}
        found[name] = {"better": "helps", "worse": "hurts"}[said.pop()] if len(said) == 1 else ""
    return {name: verdict or "undecided" for name, verdict in found.items()}


def write_table(path: Path, report: Mapping[str, Any]) -> None:
    """Write the report as Markdown: a line an enhancement and setting."""
    confidence, seeds = report["confidence"], report["seeds"]
    lines = [
        f"Losses with it minus those without it, below 0 is better; in brackets the {confidence:.0%} "
        f"interval. {seeds} paired seeds, {report['steps']} steps each, {report['start']}, judged "
        f"by {report['games']} games held out. Bold: beyond doubt among all of the table.",
        "",
        f"| enhancement | setting | {' | '.join(MEASURES.values())} | verdict |",
        f"|---|---|{'---:|' * len(MEASURES)}---|",
    ]
    said = report["verdicts"]
    for name in said:
        for setting in (OFF_IN_TURN, ON_ALONE):
            cells = [
                _cell(row)
                for row in report["comparisons"]
                if (row["enhancement"], row["setting"]) == (name, setting)
            ]
            first = setting == OFF_IN_TURN
            lines.append(
                f"| {name if first else ''} | {setting} | {' | '.join(cells)} | "
                f"{said[name] if first else ''} |"
            )
    lines += ["", RULE, *(f"Left out: {note}." for note in report["left_out"])]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cell(row: Mapping[str, Any]) -> str:
    mean = f"{row['difference']:+.4f}"
    if row["verdict"] != "undecided":
        mean = f"**{mean}**"
    return f"{mean} ({row['low']:+.4f} to {row['high']:+.4f})"


def draw_differences(folder: Folder, frame: pl.DataFrame, config: str, confidence: float) -> None:
    """Draw all differences with their intervals, a panel a measure.

    Thick lines are intervals of one difference, thin ones of all of them together. The same
    table gives the same bytes.

    Args:
        folder: of a draft; into it go ``ablation.png`` and the whole picture beside it
            (`drawing.charts.save_chart`).
        frame: columns `tables.ABLATION`.
        config: for the title.
        confidence: of the intervals.
    """
    import polars as pl

    from ringrift_pipeline.drawing.charts import save_chart
    from ringrift_pipeline.libraries.plotting import Figure, FigureCanvasAgg

    colours = {"better": "#1a7f37", "worse": "#c62828", "undecided": "#6e7781"}
    labels = frame.select("enhancement", "setting").unique(maintain_order=True).rows()
    height = 1.3 + 0.27 * len(labels)
    figure = Figure(figsize=(9.5, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(MEASURES), sharey=True)
    for axes, (measure, title) in zip(panels, MEASURES.items(), strict=True):
        axes.axvline(0.0, color="black", linewidth=0.8, zorder=0)
        rows = frame.filter(pl.col("measure") == measure).iter_rows(named=True)
        for place, row in enumerate(rows):
            colour = colours[row["verdict"]]
            axes.plot([row["low_all"], row["high_all"]], [place] * 2, color=colour, linewidth=0.8)
            axes.plot([row["low"], row["high"]], [place] * 2, color=colour, linewidth=2.6)
            axes.plot(row["difference"], place, "o", color=colour, markersize=5)
        for place in range(2, len(labels), 2):
            axes.axhline(place - 0.5, color="#d0d7de", linewidth=0.6, zorder=0)
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.ticklabel_format(axis="x", scilimits=(-4, 4))
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel("better   < 0 <   worse", fontsize=8)
    panels[0].set_yticks(
        range(len(labels)), [f"{name}, {setting}" for name, setting in labels], fontsize=8
    )
    panels[0].invert_yaxis()
    figure.suptitle(
        f"{config}: with an enhancement minus without it ({confidence:.0%} intervals; thin: of "
        "all together)",
        fontsize=9,
    )
    save_chart(figure, folder, PICTURE)
