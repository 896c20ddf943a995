"""Calibration of the candidate's value head on the window's held-out games."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ringrift_pipeline.selfplay.plan import Plan
from ringrift_pipeline.selfplay.stopping import Progress, Reporter, ShouldStop
from ringrift_pipeline.store.kinds import CALIBRATION, CALIBRATION_FILE, CALIBRATION_FORMAT
from ringrift_pipeline.training.inputs import reuse, sealed_inputs
from ringrift_pipeline.training.window import Window, build_window, open_window

if TYPE_CHECKING:
    import polars as pl

    from ringrift_pipeline.enhancements.calibration import TemperatureFit
    from ringrift_pipeline.store import Artefact, Folder, Store

KIND = CALIBRATION
REPORT = CALIBRATION_FILE
BINS = "bins.parquet"
PICTURE = "reliability"


def calibrate(
    store: Store,
    plan: Plan,
    progress: Progress | None = None,
    should_stop: ShouldStop | None = None,
) -> Artefact:
    """Measure the EMA model's calibration and set the temperature that its players report with.

    :class:`CalibrationAutomation` decides, by ``val/ece``: it asks for recalibration where that error
    of all held-out games (``held_out``, at temperature 1) is above
    ``calibration.deviation_threshold`` and its interval excludes 0. Half of the games fit its
    temperature, the other half judge it (``before`` and ``after``, of ``val/games_judged``
    games). The temperature is applied (``temperature`` in ``report.json``, which players divide
    value logits by) if recalibration was asked for and it lowers the judges' log loss; else 1 is,
    and ``reason`` says why. With fewer than ``calibration.min_games`` held-out games nothing is
    fitted.

    Files: ``report.json`` (``temperature``, ``fitted``, ``applied``, ``recalibrate``,
    ``ece_before``, ``ece_after`` with intervals, the whole reports), ``bins.parquet``
    (:data:`tables.CALIBRATION_BINS`) and ``reliability.png``, with the whole diagram beside it
    (:func:`drawing.charts.save_chart`).

    Raises
    ------
    MissingArtefactError
        if there is no EMA model.
    NonFiniteOutputError
        if the model gives a value that is not finite, naming the rows.
    Interrupted
        if ``should_stop`` says so.
    """
    from ringrift_pipeline.network import load_model, resolve_device
    from ringrift_pipeline.store import write_json_atomic
    from ringrift_pipeline.training import tables
    from ringrift_pipeline.training.dataset import WindowDataset
    from ringrift_pipeline.training.forward import value_logits
    from ringrift_pipeline.training.row_checks import check_outputs_of_rows
    from ringrift_pipeline.training.threads import torch_threads

    candidate = store.require(plan.config, plan.generation, "ema_model")
    source = build_window(store, plan, progress=progress, should_stop=should_stop)
    inputs = sealed_inputs(plan, KIND, [candidate, source])
    existing = reuse(store, plan, KIND, inputs, REPORT)
    if existing is not None:
        return existing
    window = open_window(source.path)
    rows = window.holdout_rows
    device = resolve_device(plan.settings.device)
    reporter = Reporter(progress, should_stop)
    model, dataset = load_model(candidate.path, device), WindowDataset(window, device)
    with torch_threads(1):
        logits = value_logits(model, dataset, rows, reporter, plan.settings.training.threads)
    name = f"the ema_model of generation {plan.generation:04d} ({candidate.path})"
    check_outputs_of_rows(name, window, rows, logits)
    report = _report(plan, window, rows, logits)
    stages = {stage: report[stage] for stage in ("held_out", "before", "after")}
    metadata: dict[str, Any] = {"inputs": inputs, "model": candidate.digest}
    metadata |= {
        f"val/{name}": report[name]
        for name in (
            "ece_before",
            "ece_after",
            "log_loss_before",
            "log_loss_after",
            "brier_before",
            "brier_after",
        )
    }
    metadata |= {
        name: report[name]
        for name in ("temperature", "fitted", "applied", "recalibrate", "games", "positions")
    }
    metadata |= {
        "val/temperature": report["temperature"],
        "val/holdout_games": report["games"],
        "val/holdout_positions": report["positions"],
        "val/ece": report["held_out"]["calibration_error"],
        "val/games_judged": (report["fit"] or {}).get("games_judged", report["games"]),
    }
    metadata["val/ece_low"], metadata["val/ece_high"] = report["held_out"][
        "calibration_error_interval"
    ]
    for stage in ("before", "after"):
        metadata[f"val/ece_{stage}_low"], metadata[f"val/ece_{stage}_high"] = report[
            f"ece_{stage}_interval"
        ]
    with store.create(plan.config, plan.generation, KIND, metadata=metadata) as draft:
        write_json_atomic(draft / REPORT, report)
        tables.write_table(draft / BINS, _bins(stages), tables.CALIBRATION_BINS)
        draw_stages(draft, stages["before"], stages["after"])
    return draft.artefact


def draw_stages(folder: Folder, before: dict[str, Any], after: dict[str, Any]) -> None:
    """The reliability diagram of both reports into a draft's folder, small and whole."""
    # The charts bring matplotlib without settings of the current folder; the figure alone would not.
    from ringrift_pipeline.drawing.charts import save_chart
    from ringrift_pipeline.enhancements.calibration_report import reliability_figure

    save_chart(reliability_figure({"before": before, "after": after}), folder, PICTURE)


def _report(
    plan: Plan, window: Window, rows: NDArray[np.int64], logits: NDArray[np.float64]
) -> dict[str, Any]:
    import torch

    from ringrift_pipeline.enhancements.calibration import (
        CalibrationAutomation,
        value_probabilities,
    )
    from ringrift_pipeline.game import layout

    settings = plan.settings.calibration
    seats, shares = _by_seat(window, rows, logits)
    games = window.game[rows]
    phases = np.array(layout.PHASE_NAMES)[window.phase[rows]]
    probabilities = value_probabilities(torch.from_numpy(seats)).numpy()
    options: dict[str, Any] = {
        "bins": settings.bins,
        "bootstrap": settings.bootstrap,
        "seed": plan.seed_for("calibration") % 2**32,
    }
    watcher = CalibrationAutomation(
        settings.deviation_threshold,
        check_interval=1,
        min_samples=1,
        window_size=len(rows),
        min_games=settings.min_games,
        **options,
    )
    watcher.add_samples(probabilities, shares, games, phases)
    recalibrate = watcher.should_recalibrate()
    played = len(np.unique(games))
    result: dict[str, Any] = {
        "format": CALIBRATION_FORMAT,
        "config": plan.config,
        "generation": plan.generation,
        "games": played,
        "positions": len(rows),
        "recalibrate": recalibrate,
        "deviation_threshold": settings.deviation_threshold,
        "temperature": 1.0,
        "fitted": False,
        "applied": False,
        "fit": None,
    }
    held_out = watcher.report()
    if played < settings.min_games:
        before = after = held_out
        result["reason"] = (
            f"{played} held-out games are fewer than calibration.min_games ({settings.min_games})"
        )
    else:
        watcher.compute_optimal_temperature(seats, shares, games=games)
        fit = watcher.temperature_fit
        assert fit is not None
        before, after = fit.before, fit.after
        details = fit.to_dict()
        del details["before"], details["after"]
        result |= {"fitted": True, "fit": details}
        result["reason"] = _verdict(fit, recalibrate, settings.deviation_threshold)
        # That it is needed is beyond doubt; of the two temperatures the likelier one is taken.
        if recalibrate and fit.log_loss_gain > 0.0 and not fit.at_bound:
            result |= {"applied": True, "temperature": fit.temperature}
        else:
            after = before
    for stage, measured in (("before", before), ("after", after)):
        result[f"ece_{stage}"] = measured["calibration_error"]
        result[f"ece_{stage}_interval"] = measured["calibration_error_interval"]
        result[f"log_loss_{stage}"] = measured["log_loss"]
        result[f"brier_{stage}"] = measured["brier"]
    return result | {"held_out": held_out, "before": before, "after": after}


def _verdict(fit: TemperatureFit, recalibrate: bool, threshold: float) -> str:
    """Why the temperature fitted is applied, or is not."""
    if not recalibrate:
        return (
            "the calibration error is not above calibration.deviation_threshold "
            f"({threshold:g}) beyond doubt"
        )
    if fit.at_bound:
        return "its likelihood has no optimum within the bounds of temperatures"
    if fit.log_loss_gain <= 0.0:
        return "it does not lower the log loss of games it was not fitted on"
    return "it lowers the log loss of games it was not fitted on"


def _by_seat(
    window: Window, rows: NDArray[np.int64], logits: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logits and outcomes (K, players), mover first, rotated to absolute seats."""
    players = window.players
    relative = (np.arange(players) - window.player[rows].astype(np.int64)[:, None]) % players
    # float32 may leave a share above 1 by what the sum of shares may be off
    outcome = np.minimum(window.outcome[rows].astype(np.float64), 1.0)
    return (
        np.take_along_axis(logits, relative, axis=1),
        np.take_along_axis(outcome, relative, axis=1),
    )


def _bins(stages: dict[str, dict[str, Any]]) -> pl.DataFrame:
    """The reports' bins as one table."""
    import polars as pl

    from ringrift_pipeline.training import tables

    records = []
    for stage, report in stages.items():
        splits = {"all": report}
        splits |= {f"phase:{name}": part for name, part in report["by_phase"].items()}
        splits |= {f"seat:{int(seat) + 1}": part for seat, part in report["by_seat"].items()}
        for split, part in splits.items():
            records += [{"stage": stage, "split": split, **row} for row in part["bins"]]
    return pl.DataFrame(records, schema=tables.polars_schema(tables.CALIBRATION_BINS))
