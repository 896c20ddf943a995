"""``ringrift ablate`` from the command line, on a few games of the heuristic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ringrift_pipeline.cli import run
from ringrift_pipeline.store import Store

TINY = [
    "--preset=smoke",
    "--device=cpu",
    "--set=selfplay.games=10",
    "--set=selfplay.games_per_shard=10",
    "--set=network.blocks=1",
    "--set=network.channels=8",
    "--set=training.batch_size=16",
]


def test_from_games_to_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RINGRIFT_DATA", str(tmp_path / "data"))
    assert run(["selfplay", "--workers", "1", *TINY]) == 0
    capsys.readouterr()
    arguments = ["ablate", "--seeds=2", "--steps=1", "--workers=1"]
    assert run([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert "20/20 runs" in captured.err and "steps/s" in captured.err
    assert report["start"] == "fresh weights: there is no earlier model"
    assert report["left_out"] == ["the ensemble, as there are no earlier models"]
    assert set(report["verdicts"]) == {"quality", "mining", "clipping", "schedule", "ema"}
    artefact = Store(tmp_path / "data").require("square8_2p", 0, "ablation")
    assert report["path"] == str(artefact.path) and report["digest"] == artefact.digest
    # made once: the same call shows it as a table
    assert run(arguments) == 0
    captured = capsys.readouterr()
    assert "quality" in captured.out and "off in turn" in captured.out
    assert "policy loss" in captured.out and "verdict" in captured.out
    assert "Left out: the ensemble" in captured.err and "ablation.png" in captured.err


def test_a_generation_with_too_few_games_is_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RINGRIFT_DATA", str(tmp_path / "data"))
    few = ["--set=selfplay.games=3", "--set=training.holdout_fraction=0.3"]
    assert run(["selfplay", "--workers", "1", *TINY, *few]) == 0
    capsys.readouterr()
    assert run(["ablate", "--workers", "1"]) == 2
    assert "raise selfplay.games" in capsys.readouterr().err.splitlines()[-1]
    assert run(["ablate", "--resume", str(tmp_path)]) == 2
    assert "auto or never" in capsys.readouterr().err
