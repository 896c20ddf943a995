"""``ringrift export``: which model, where to, and what it says of bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ringrift_pipeline.cli import run


@pytest.fixture()
def model(tmp_path: Path) -> Path:
    """The model folder of a small untrained network for square boards, generation 3."""
    from ringrift_pipeline.network import NetworkConfig, RingRiftNetwork, save_model

    folder = tmp_path / "generations" / "0003" / "model"
    return save_model(folder, RingRiftNetwork(NetworkConfig(1, 8, 8)))


def test_a_models_folder_is_exported(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
    target = tmp_path / "out" / "model"
    assert run(["export", str(target), "--player", str(model), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["folder"] == str(target) and said["generation"] == 3
    assert said["files"] == {path.name: path.stat().st_size for path in target.iterdir()}
    assert {
        "README.md", "config.json", "model.onnx", "model.safetensors", "position.npz", "SHA256SUMS",
    } <= set(said["files"])  # fmt: skip
    assert (target / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert run(["export", str(target), "--verify", "--json"]) == 0
    verified = json.loads(capsys.readouterr().out)["verified"]
    assert {*verified, "SHA256SUMS"} == set(said["files"])
    (target / "model.safetensors").write_bytes(b"another")
    assert run(["export", str(target), "--verify"]) == 2
    assert "model.safetensors is not what was exported" in capsys.readouterr().err
    assert run(["export", "--verify"]) == 2
    assert "name the folder" in capsys.readouterr().err


def test_another_models_evaluation_does_not_count(tmp_path: Path) -> None:
    from ringrift_pipeline.commands.export import record
    from ringrift_pipeline.store import Store

    store = Store(tmp_path)
    for number, games in enumerate((8, 4)):
        store.write_plan("hex8_2p", number, {})
        with store.create("hex8_2p", number, "selfplay_shards", {"selfplay/games": games}):
            pass
    with store.create("hex8_2p", 0, "ema_model") as model:
        (model / "weights").write_text("these")
    with store.create("hex8_2p", 0, "evaluation") as draft:
        report = {"candidate": {"digest": "those", "name": "generation:0000"}}
        (draft / "report.json").write_text(json.dumps(report))
    known = record(store, model.artefact)
    assert known == {"training_games": 8, "model_digest": model.artefact.digest}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config", "hex8_2p"], "a network for square boards cannot be exported for hex8_2p"),
        (["--player", "champion"], "champion of square8_2p"),
        (["--player", "random"], "--player random: it has no network"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    said: str,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = tmp_path / "out"
    line = ["export", str(target), "--player", str(model), "--data", str(tmp_path / "data")]
    assert run([*line, *arguments]) == 2
    complaint = capsys.readouterr().err
    assert said in complaint and len(complaint.splitlines()) == 1
    assert not target.exists()
