"""Averaging, ensemble and calibration of a trained generation."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ringrift_pipeline.drawing.charts import FULL, MOST_BYTES
from ringrift_pipeline.enhancements.calibration import calibration_report
from ringrift_pipeline.network import load_model
from ringrift_pipeline.search import load_player
from ringrift_pipeline.selfplay import Plan
from ringrift_pipeline.store import MissingArtefactError, Store
from ringrift_pipeline.training import (
    CALIBRATION_BINS,
    WindowDataset,
    average,
    build_ensemble,
    build_window,
    calibrate,
    mine_hard_examples,
    open_window,
    read_table,
    score_games,
    train,
)
from ringrift_pipeline.training.calibrating import _by_seat, _report, draw_stages
from ringrift_pipeline.training.ensembling import earlier_members
from ringrift_pipeline.training.forward import held_out_losses, value_logits


@pytest.fixture()
def trained(store: Store, second: Plan) -> Store:
    score_games(store, second)
    mine_hard_examples(store, second)
    train(store, second)
    return store


def test_average_is_the_checkpoints_best_averaged_model(trained: Store, second: Plan) -> None:
    candidate = average(trained, second)
    assert average(trained, second) == candidate
    checkpoint = trained.require(second.config, 1, "checkpoint")
    best = load_model(checkpoint.path / "best").state_dict()
    for name, tensor in load_model(candidate.path).state_dict().items():
        assert torch.equal(tensor, best[name])
    last = load_model(checkpoint.path).state_dict()
    assert any(not torch.equal(best[name], last[name]) for name in best)
    assert candidate.metadata["checkpoint"] == checkpoint.digest
    assert candidate.metadata["val/loss"] == checkpoint.metadata["val/loss"]


def test_ensemble_holds_the_newest_models_and_measures_them(trained: Store, second: Plan) -> None:
    average(trained, second)
    artefact = build_ensemble(trained, second)
    assert build_ensemble(trained, second) == artefact
    members = artefact.read_json("members.json")
    assert [member["name"] for member in members] == ["ema-0001", "ema-0000", "last-0001"]
    for member in members:
        assert trained.open(trained.root / member["path"]).digest == member["digest"]
    report = artefact.read_json("report.json")
    dataset = WindowDataset(open_window(build_window(trained, second).path))
    rows = dataset.window.holdout_rows
    policies, values, total = [], [], 0.0
    for member in members:
        model = load_model(trained.root / member["path"])
        alone = held_out_losses(model, dataset, rows, 1.0, 1.0)
        assert report["members"][member["name"]]["loss"] == pytest.approx(alone.loss, rel=1e-6)
    # Geometric mean of policies, arithmetic mean of values, by hand on a few rows.
    for row in rows[:5]:
        batch = dataset.batch([row])
        with torch.no_grad():
            outputs = [load_model(trained.root / m["path"])(batch["features"]) for m in members]
        policies = torch.stack([torch.log_softmax(p[0].double(), 0) for p, _ in outputs]).mean(0)
        values = torch.stack([torch.softmax(v[0].double(), 0) for _, v in outputs]).mean(0)
        target, outcome = batch["policy_targets"][0].double(), batch["value_targets"][0].double()
        total -= float((target * torch.log_softmax(policies, 0)).sum())
        total -= float((outcome * values.clamp_min(1e-30).log()).sum())
    from ringrift_pipeline.selfplay.stopping import Reporter
    from ringrift_pipeline.training.ensembling import _together

    class Few:
        def __init__(self) -> None:
            self.window = type("W", (), {})()
            for name in ("counts", "phase"):
                setattr(self.window, name, getattr(dataset.window, name))
            self.window.holdout_rows = rows[:5]
            self.batch, self.device = dataset.batch, dataset.device

    models = {m["name"]: load_model(trained.root / m["path"]) for m in members}
    few, apart = _together(models, Few(), "cpu", Reporter(), 2)
    assert [np.mean(each) for each in apart] == pytest.approx(
        [few["policy_disagreement"], few["value_disagreement"]]
    )
    assert 5 * (few["policy_loss_a_row"] + few["value_loss"]) == pytest.approx(total, rel=1e-4)
    assert report["ensemble"]["policy_disagreement"] > 0
    assert sum(p["rows"] for p in report["ensemble"]["disagreement_by_phase"].values()) == len(rows)


def test_a_damaged_model_is_no_member(store: Store, second: Plan) -> None:
    assert [*earlier_members(store, second)] == ["ema-0000"]
    store.require(second.config, 0, "ema_model").file("model.safetensors").write_bytes(b"rotten")
    assert earlier_members(store, second) == {}


def test_calibration_reports_before_and_after_on_held_out_games(
    trained: Store, second: Plan
) -> None:
    average(trained, second)
    artefact = calibrate(trained, second)
    assert calibrate(trained, second) == artefact
    report = json.loads(artefact.file("report.json").read_text())
    window = open_window(build_window(trained, second).path)
    assert report["games"] == len(set(window.game[window.holdout_rows]))
    assert report["held_out"]["positions"] == len(window.holdout_rows) == report["positions"]
    assert report["fitted"] and report["temperature"] > 0
    fit = report["fit"]
    assert fit["games_fitted"] + fit["games_judged"] == report["games"]
    assert report["before"]["games"] == fit["games_judged"]
    if report["applied"]:
        assert report["temperature"] == fit["temperature"]
        assert report["log_loss_after"] < report["log_loss_before"]
    else:
        assert report["temperature"] == 1.0
        assert report["log_loss_after"] == report["log_loss_before"]
    assert artefact.metadata["val/ece_before"] == report["ece_before"]
    player = load_player("generation:0001", second.config, data=trained.root, device="cpu")
    assert player.value_temperature == report["temperature"]
    assert artefact.digest[:12] in player.calibration
    assert artefact.file("reliability.png").read_bytes().startswith(b"\x89PNG")
    assert artefact.file("reliability.png").stat().st_size <= MOST_BYTES
    assert artefact.file(f"reliability{FULL}").exists()
    bins = read_table(artefact.file("bins.parquet"), CALIBRATION_BINS)
    whole = bins.filter((bins["stage"] == "held_out") & (bins["split"] == "all"))
    assert whole["count"].sum() == 2 * len(window.holdout_rows)
    assert {"seat:1", "seat:2", "phase:movement"} <= set(bins["split"])


@pytest.mark.parametrize("bins", [15, 1000])
def test_the_diagram_is_small_however_many_bins_it_has(bins: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    games = np.repeat(np.arange(400), 10)
    chances = rng.random(4000)
    outcome = (rng.random(4000) < chances).astype(np.float64)
    reports = [
        calibration_report(
            np.stack([each, 1 - each], 1), np.stack([outcome, 1 - outcome], 1), games,
            bins=bins, bootstrap=20,
        )
        for each in (chances, chances**2)
    ]  # fmt: skip
    assert len(reports[0]["bins"]) == bins
    draw_stages(tmp_path, *reports)
    assert {path.name for path in tmp_path.iterdir()} == {"reliability.png", f"reliability{FULL}"}
    assert 4_000 < (tmp_path / "reliability.png").stat().st_size <= MOST_BYTES
    assert (tmp_path / f"reliability{FULL}").stat().st_size > 400 * bins


def test_values_are_turned_back_to_absolute_seats(trained: Store, second: Plan) -> None:
    window = open_window(build_window(trained, second).path)
    rows = window.holdout_rows[:30]
    model = load_model(trained.require(second.config, 1, "checkpoint").path)
    logits = value_logits(model, WindowDataset(window), rows)
    seats, shares = _by_seat(window, rows, logits)
    for at, row in enumerate(rows):
        mover = window.player[row]
        assert np.array_equal(np.roll(seats[at], -mover), logits[at])
        assert np.array_equal(np.roll(shares[at], -mover), window.outcome[row])
    # All rows of a game have the same outcome once seats are absolute.
    for game in set(window.game[rows]):
        assert len(np.unique(shares[window.game[rows] == game], axis=0)) == 1


def judged(plan: Plan, sharpness: float, games: int = 600, **changed: float) -> dict[str, Any]:
    """The report on a value head that is ``sharpness`` times too sure, 4 positions a game."""
    rng = np.random.default_rng(4)
    truth = rng.normal(size=(games, 2))
    chances = np.exp(truth) / np.exp(truth).sum(axis=1, keepdims=True)
    outcome = np.eye(2)[(rng.random(games) > chances[:, 0]).astype(int)]
    player = np.tile([0, 1], 2 * games)
    window = SimpleNamespace(
        players=2,
        game=np.repeat(np.arange(games), 4),
        player=player,
        phase=np.zeros(4 * games, int),
        outcome=np.where(
            player[:, None] == 0, *(np.repeat(o, 4, 0) for o in (outcome, 1 - outcome))
        ),
    )
    logits = np.repeat(truth * sharpness, 4, axis=0)
    mover_first = np.where(player[:, None] == 0, logits, logits[:, ::-1])
    overrides = {f"calibration.{name}": value for name, value in changed.items()}
    settings = plan.settings.with_overrides({"calibration.bins": 15, **overrides})
    plan = Plan.from_dict({**plan.raw, "settings": settings.to_dict()})
    return _report(plan, window, np.arange(4 * games), mover_first)  # type: ignore[arg-type]


def test_the_temperature_is_applied_above_the_threshold_only(second: Plan) -> None:
    sure = judged(second, 3.0)
    assert sure["recalibrate"] and sure["applied"]
    assert sure["temperature"] == sure["fit"]["temperature"] == pytest.approx(3.0, rel=0.2)
    assert sure["held_out"]["calibration_error"] > 0.05 > sure["ece_after"]
    # The same head, and a threshold that its error does not reach.
    lenient = judged(second, 3.0, deviation_threshold=0.4)
    assert not lenient["recalibrate"] and not lenient["applied"]
    assert lenient["temperature"] == 1.0 and lenient["after"] == lenient["before"]
    assert lenient["fit"] == sure["fit"], "what a temperature would do is told all the same"
    assert "deviation_threshold (0.4)" in lenient["reason"]
    # A head that is right has a fit near 1, and keeps 1 itself.
    right = judged(second, 1.0)
    assert not right["applied"] and right["temperature"] == 1.0
    assert right["fit"]["temperature"] == pytest.approx(1.0, abs=0.2)
    few = judged(second, 3.0, games=40, min_games=41)
    assert not few["fitted"] and few["temperature"] == 1.0 and "fewer than" in few["reason"]


def test_steps_name_what_they_miss(store: Store, second: Plan) -> None:
    with pytest.raises(MissingArtefactError, match="checkpoint"):
        average(store, second)
    for step in (build_ensemble, calibrate):
        with pytest.raises(MissingArtefactError, match="ema_model"):
            step(store, second)
