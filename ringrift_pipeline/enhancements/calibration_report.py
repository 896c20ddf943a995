"""What a set of forecasts says about calibration, as numbers and as a picture."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ringrift_pipeline.enhancements import state_forms as forms
from ringrift_pipeline.enhancements.argument_checks import (
    LARGEST_SEED,
    check_share,
    check_type,
    check_whole,
)
from ringrift_pipeline.enhancements.calibration_measures import (
    MAX_BINS,
    Forecasts,
    Reliability,
    error_interval,
    game_draws,
    interval,
    reliability,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "MAX_BOOTSTRAP",
    "REPORT_FORM",
    "calibration_report",
    "check_options",
    "draw_reliability",
    "reliability_figure",
]

MAX_BOOTSTRAP = 100_000

_NUMBER, _PAIR = forms.number(), forms.listed(forms.number(), exactly=2)
_BIN = forms.record(
    bin=forms.whole(),
    count=forms.whole(1),
    games=forms.whole(1),
    prediction=forms.number(0.0, 1.0),
    outcome=forms.number(0.0, 1.0),
    standard_error=forms.number(0.0),
)


_PART: dict[str, forms.Form] = {
    "positions": forms.whole(1),
    "games": forms.whole(1),
    "calibration_error": _NUMBER,
    "calibration_error_interval": _PAIR,
    "calibration_error_plain": forms.number(0.0),
    "squared_calibration_error": _NUMBER,
    "p_value": forms.number(0.0, 1.0),
    "brier": forms.number(0.0),
    "brier_interval": _PAIR,
    "log_loss": forms.number(0.0),
    "log_loss_interval": _PAIR,
    "mean_prediction": forms.listed(_NUMBER, least=1),
    "mean_outcome": forms.listed(_NUMBER, least=1),
    "bins": forms.listed(_BIN, least=1),
}
REPORT_FORM = forms.record(
    **_PART,
    confidence=forms.number(0.0, 1.0),
    by_phase=forms.mapping(forms.record(**_PART)),
    by_seat=forms.mapping(forms.record(**_PART)),
)


def _bins(table: Reliability) -> list[dict[str, float | int]]:
    return [
        {
            "bin": i,
            "count": int(table.count[i]),
            "games": int(table.games[i]),
            "prediction": float(table.prediction[i]),
            "outcome": float(table.outcome[i]),
            "standard_error": float(table.standard_error[i]),
        }
        for i in range(table.count.size)
    ]


def _summary(
    forecasts: Forecasts, table: Reliability, bootstrap: int, confidence: float, seed: int
) -> dict[str, Any]:
    error, plain = table.error(), table.error(debias=False)
    brier_sum, count = forecasts.by_game(forecasts.brier())
    loss_sum, _ = forecasts.by_game(forecasts.log_loss())
    draws = game_draws(forecasts.num_games, bootstrap, [seed, forecasts.num_games])
    errors, null = table.resampled(draws)
    rows = draws @ count
    return {
        "positions": int(forecasts.predictions.shape[0]),
        "games": forecasts.num_games,
        "calibration_error": error,
        "calibration_error_interval": error_interval(error, plain, errors, confidence),
        "calibration_error_plain": plain,
        "squared_calibration_error": table.squared_error(),
        # share of calibrated predictors that would have read at least as badly
        "p_value": float((1 + (null >= plain).sum()) / (1 + bootstrap)),
        "brier": float(brier_sum.sum() / count.sum()),
        "brier_interval": interval((draws @ brier_sum) / rows, confidence),
        "log_loss": float(loss_sum.sum() / count.sum()),
        "log_loss_interval": interval((draws @ loss_sum) / rows, confidence),
        "mean_prediction": forecasts.predictions.mean(axis=0).tolist(),
        "mean_outcome": forecasts.outcomes.mean(axis=0).tolist(),
    }


def check_options(bins: Any, bootstrap: Any, confidence: Any, seed: Any) -> dict[str, Any]:
    """The options of a report by name, checked; ValueError by name."""
    return {
        "bins": check_whole("bins", bins, 1, MAX_BINS + 1),
        "bootstrap": check_whole("bootstrap", bootstrap, 20, MAX_BOOTSTRAP + 1),
        "confidence": check_share("confidence", confidence),
        "seed": check_whole("seed", seed, 0, LARGEST_SEED),
    }


def calibration_report(
    predictions: Any,
    outcomes: Any,
    games: Any | None = None,
    phases: Any | None = None,
    *,
    bins: int = 15,
    bootstrap: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure how well predictions are calibrated. Everything in it can be written as JSON.

    Args:
        predictions: (n,) probability of one event or (n, seats) probabilities of winning.
        outcomes: same shape; shares of the win.
        games: (n,) game ids: evidence is counted and resampled by game.
        phases: (n,) phase names, for reliability by phase.
        bins: equal-mass bins, 1 to 1000.
        bootstrap: replicates, 20 to 100,000, each of whole games.
        confidence: of the intervals, between 0 and 1.
        seed: of the bootstrap, from 0.

    Returns:
        ``calibration_error`` (debiased mean absolute gap), ``calibration_error_interval`` (which
        covers as `error_interval` says),
        ``calibration_error_plain`` (as commonly reported, biased upwards),
        ``squared_calibration_error`` (debiased), ``p_value`` of being calibrated, ``brier`` and
        ``log_loss`` (nats; both sums over seats, means over positions) with ``…_interval``,
        ``positions``, ``games``, ``bins`` (list of records), and ``by_phase`` and ``by_seat``:
        the same numbers and bins for each phase name and each column "0", "1", ….

    Raises:
        ValueError: for bad input, as `Forecasts.check` says, or an option out of range, by name.
    """
    bins, bootstrap, confidence, seed = check_options(bins, bootstrap, confidence, seed).values()
    forecasts = Forecasts.check(predictions, outcomes, games, phases)

    def measured(part: Forecasts) -> dict[str, Any]:
        table = reliability(part, bins)
        return _summary(part, table, bootstrap, confidence, seed) | {"bins": _bins(table)}

    report = measured(forecasts) | {"confidence": confidence, "by_phase": {}, "by_seat": {}}
    if forecasts.phases is not None:
        for name in np.unique(forecasts.phases):
            report["by_phase"][str(name)] = measured(forecasts.select(forecasts.phases == name))
    seats = forecasts.predictions.shape[1]
    if seats > 1:
        every = np.ones(forecasts.predictions.shape[0], dtype=bool)
        for seat in range(seats):
            report["by_seat"][str(seat)] = measured(forecasts.select(every, seat))
    return report


def draw_reliability(
    reports: Mapping[str, Mapping[str, Any]], path: str | Path, dpi: int = 110
) -> Path:
    """Draw a reliability diagram, one line a report, with 2 standard errors a bin.

    Args:
        reports: label -> what `calibration_report` returned, for instance before and after.
        path: file to write, replaced in one step: SVG if it ends in ``.svg``, else PNG.
        dpi: dots an inch of a PNG of 5.2 by 6 inches; 1 to 1000.

    Returns:
        The path.

    Raises:
        ValueError: no reports, dpi out of bounds, one that is none, or no path of a file, by name.
    """
    check_type("path", path, (str, os.PathLike))
    check_whole("dpi", dpi, 1, 1000)
    if not Path(path).name:
        raise ValueError(f"path must name a file, got {str(path)!r}")
    figure = reliability_figure(reports)

    from matplotlib import rc_context

    buffer = io.BytesIO()
    path = Path(path)
    if path.suffix == ".svg":
        with rc_context({"svg.hashsalt": "reliability"}):
            figure.savefig(buffer, format="svg", metadata={"Date": None})
    else:
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(buffer.getvalue())
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    return path


def reliability_figure(reports: Mapping[str, Mapping[str, Any]]) -> Figure:
    """The diagram that `draw_reliability` writes, for whoever writes it otherwise.

    Raises:
        ValueError: no reports, or one that is none, by name.
    """
    check_type("reports", reports, Mapping)
    if not reports:
        raise ValueError("reports is empty: there is no report to draw")
    forms.mapping(REPORT_FORM)("reports", reports)

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 6.0), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, height_ratios=[4, 1], sharex=True)
    top.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="calibrated")
    for number, (label, report) in enumerate(reports.items()):
        bins = report["bins"]
        x = np.array([row["prediction"] for row in bins])
        y = np.array([row["outcome"] for row in bins])
        error = 2 * np.array([row["standard_error"] for row in bins])
        low, high = report["calibration_error_interval"]
        text = f"{label}: error {report['calibration_error']:.3f} [{low:.3f}, {high:.3f}]"
        bars = np.stack([np.minimum(error, y), np.minimum(error, 1 - y)])
        top.errorbar(
            x, y, bars, color=f"C{number}", marker="o", markersize=4, capsize=2, label=text
        )
        mass = np.array([row["count"] for row in bins]) / sum(row["count"] for row in bins)
        bottom.vlines(x, 0, mass, color=f"C{number}", linewidth=3, alpha=0.6)
    top.set(xlim=(0, 1), ylim=(0, 1), ylabel="share of the win", title="Value head reliability")
    top.legend(loc="upper left", fontsize=8)
    bottom.set(xlabel="predicted probability of winning", ylabel="mass")
    bottom.set_ylim(bottom=0)
    return figure
