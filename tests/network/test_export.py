"""Models as ONNX, and the folder that holds them."""

from __future__ import annotations

import ast
import copy
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ringrift_pipeline.game import CONFIGS, get_rules
from ringrift_pipeline.network import encode_states, export, features_to_tensors, load_model
from ringrift_pipeline.network.export import ExportError, export_model, verify_export
from ringrift_pipeline.network.onnx_check import POSITIONS, compare, played_positions
from ringrift_pipeline.network.onnx_export import INPUTS, example_position, export_onnx
from ringrift_pipeline.store import write_bytes_atomic
from tests.syntax import tree_of

from .conftest import random_positions, spread
from .test_model import network

EXAMPLE = Path(__file__).parents[2] / "examples" / "onnx_policy.py"


@pytest.fixture(scope="module")
def onnxruntime():
    pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
    return pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")


@pytest.fixture(scope="module")
def exported(onnxruntime, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "model"
    facts = {"generation": 7, "value_temperature": 1.5}
    return export_model(folder, network("square", blocks=3), get_rules("square8_2p"), facts)


@pytest.mark.parametrize("config", ["square8_3p", "hex8_2p"])
def test_onnx_gives_what_the_network_gives(config, onnxruntime, tmp_path):
    rules = get_rules(config)
    model = network(rules.geometry)
    export_onnx(tmp_path / "model.onnx", model, rules)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert tuple(each.name for each in session.get_inputs()) == INPUTS
    everything = random_positions(config)
    for count in (1, 2, 7):
        p = spread(everything, count + 1).take(slice(1, None))
        features = encode_states(rules, p.states, p.moves, p.counts)
        logits, policy, value = session.run(None, features)
        with torch.inference_mode():
            expected, chances = model(features_to_tensors(features))
        legal = features["legal_mask"]
        np.testing.assert_allclose(logits[legal], expected.numpy()[legal], atol=1e-4)
        assert (logits[~legal] == -1e9).all() and (policy[~legal] == 0).all()
        masked = expected.masked_fill(torch.from_numpy(~legal), -torch.inf)
        np.testing.assert_allclose(policy, masked.softmax(dim=1), atol=1e-4)
        np.testing.assert_allclose(
            value, chances.softmax(dim=1)[:, : rules.players].numpy(), atol=1e-4
        )


def test_the_example_reproduces_the_shipped_policy(exported, tmp_path):
    def run(folder):
        command = [sys.executable, EXAMPLE, folder]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    done = run(exported)
    assert done.returncode == 0, done.stderr
    solved = np.load(exported / "position.npz")
    for best in solved["policy"][0].argsort()[-5:]:  # the moves by name, with what they are given
        assert f"{solved['policy'][0, best]:.3f}  {solved['moves'][0, best]}" in done.stdout
    said, *code = tree_of(EXAMPLE.read_text()).body
    assert isinstance(said, ast.Expr) and isinstance(said.value, ast.Constant)  # the docstring
    assert sum((each.end_lineno or 0) - each.lineno + 1 for each in code) <= 10
    assert "ringrift" not in EXAMPLE.read_text()
    # A policy that is not the network's is found out.
    (tmp_path / "model.onnx").write_bytes((exported / "model.onnx").read_bytes())
    solved = dict(np.load(exported / "position.npz"))
    solved["policy"] = np.roll(solved["policy"], 1)
    np.savez(tmp_path / "position.npz", **solved)
    assert run(tmp_path).returncode != 0


def test_the_folder_is_complete_and_says_what_it_holds(exported, onnxruntime):
    sums = dict(
        reversed(line.split("  ")) for line in (exported / "SHA256SUMS").read_text().splitlines()
    )
    assert set(sums) | {"SHA256SUMS"} == {path.name for path in exported.iterdir()}
    for name, digest in sums.items():
        assert hashlib.sha256((exported / name).read_bytes()).hexdigest() == digest
    config = json.loads((exported / "config.json").read_text())
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    for listed, real in (
        (config["inputs"], session.get_inputs()),
        (config["outputs"], session.get_outputs()),
    ):
        names = {"tensor(float)": "float32"}
        assert {each.name: each.shape for each in real} == {
            name: each["shape"] for name, each in listed.items()
        }
        assert [names.get(each.type, each.type.removeprefix("tensor(")[:-1]) for each in real] == [
            each["type"] for each in listed.values()
        ]
    assert config["facts"] == {"generation": 7, "value_temperature": 1.5}
    card = (exported / "README.md").read_text()
    assert "| generation | 7 |" in card and "It has not been evaluated." in card
    original = network("square", blocks=3).state_dict()
    for name, tensor in load_model(exported).state_dict().items():
        assert torch.equal(tensor, original[name])


def test_an_export_is_verified_and_what_was_changed_is_named(exported, tmp_path):
    names = sorted(path.name for path in exported.iterdir())
    assert sorted([*verify_export(exported), "SHA256SUMS"]) == names
    copy = tmp_path / "copy"

    def refused(what, change):
        shutil.copytree(exported, copy)
        change()
        with pytest.raises(ExportError, match=what):
            verify_export(copy)
        shutil.rmtree(copy)

    def flip():
        data = bytearray((copy / "model.onnx").read_bytes())
        data[len(data) // 2] ^= 1
        (copy / "model.onnx").write_bytes(data)

    def edit(change):
        text = change((copy / "SHA256SUMS").read_text())
        (copy / "SHA256SUMS").write_text(text)

    refused("model.onnx is not what was exported", flip)
    refused("config.json is missing", lambda: (copy / "config.json").unlink())
    refused("more is not listed", lambda: (copy / "more").touch())
    refused("more cannot|is no plain file", lambda: (copy / "more").symlink_to("model.onnx"))
    refused("SHA256SUMS cannot be checked", lambda: (copy / "SHA256SUMS").unlink())
    for change in (
        lambda text: "",
        lambda text: text[:-1],
        lambda text: text + text,
        lambda text: text.replace("  README", " *README"),
        lambda text: text.upper(),
        lambda text: "\n" + text,
    ):
        refused("is no list of SHA-256", lambda change=change: edit(change))
    refused("README.md is not listed", lambda: edit(lambda text: text.split("\n", 1)[1]))
    with pytest.raises(ExportError, match="cannot be checked"):
        verify_export(tmp_path / "nowhere")


def test_the_deviation_from_torch_is_measured_and_told(exported, onnxruntime):
    model, rules = network("square", blocks=3), get_rules("square8_2p")
    found = compare(exported / "model.onnx", model, rules)
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    away = []
    for features in (dict(np.load(exported / "position.npz")), played_positions(rules)):
        logits, policy, value = session.run(None, {name: features[name] for name in INPUTS})
        with torch.inference_mode():
            expected, chances = model(features_to_tensors({n: features[n] for n in INPUTS}))
        legal = torch.from_numpy(features["legal_mask"])
        masked = expected.masked_fill(~legal, -torch.inf)
        away += [
            np.abs(logits - expected.numpy())[features["legal_mask"]].max(),
            np.abs(policy - masked.softmax(dim=1).numpy()).max(),
            np.abs(value - chances.softmax(dim=1)[:, :2].numpy()).max(),
        ]
    # onnxruntime sums in another order with more threads
    assert found.deviation == pytest.approx(max(away), abs=1e-6) and found.deviation < 1e-5
    assert found.positions == 1 + POSITIONS
    told = json.loads((exported / "config.json").read_text())["largest_deviation_from_torch"]
    assert told == found.deviation
    said = f"| ONNX | differs from torch by at most {told:.1e} on {1 + POSITIONS} positions |"
    assert said in (exported / "README.md").read_text()


@pytest.mark.parametrize("config", ["square8_4p", "hexagonal_2p"])
def test_positions_to_compare_are_of_a_whole_game(config):
    rules = get_rules(config)
    features = played_positions(rules)
    moves = features["legal_mask"].sum(axis=1)
    assert len(moves) == POSITIONS and (moves > 1).all()
    assert len({planes.tobytes() for planes in features["planes"]}) == POSITIONS
    kinds = [
        set(row[legal].tolist())
        for row, legal in zip(features["move_kind"], features["legal_mask"], strict=True)
    ]
    assert len(set.union(*kinds)) > len(kinds[0])  # more than the opening's


def test_onnx_that_gives_something_else_is_not_exported(onnxruntime, tmp_path, monkeypatch):
    """A file of almost the same weights, as a wrong conversion would write."""
    model, rules = network("square"), get_rules("square8_2p")

    def almost(path, *_):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.policy.planes.bias.add_(0.002 * torch.arange(len(other.policy.planes.bias)))
        export_onnx(path, other, rules)

    monkeypatch.setattr(export, "export_onnx", almost)
    with pytest.raises(ExportError, match=r"policy_logits differs by up to \d.*0.0001 is allowed"):
        export_model(tmp_path / "model", model, rules)
    assert list(tmp_path.iterdir()) == []


def test_onnx_that_does_not_run_is_not_exported(onnxruntime, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "export_onnx", lambda path, *_: path.write_bytes(b"no model"))
    with pytest.raises(ExportError, match="cannot run the ONNX file"):
        export_model(tmp_path / "model", network("square"), get_rules("square8_2p"))
    assert list(tmp_path.iterdir()) == []


def test_without_onnxruntime_the_card_says_that_nothing_was_checked(
    onnxruntime, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    folder = export_model(tmp_path / "model", network("square"), get_rules("square8_2p"))
    card = (folder / "README.md").read_text()
    assert "| ONNX | not checked: onnxruntime was not installed |" in card
    config = json.loads((folder / "config.json").read_text())
    assert config["largest_deviation_from_torch"] is None


def test_an_existing_folder_is_left_alone(exported):
    before = (exported / "SHA256SUMS").read_bytes()
    with pytest.raises(ExportError, match="exists: name a folder that does not"):
        export_model(exported, network("square"), get_rules("square8_2p"))
    assert (exported / "SHA256SUMS").read_bytes() == before


def test_a_failed_export_leaves_nothing(tmp_path, monkeypatch):
    def full(path, *_):
        assert (path.parent / "model.safetensors").exists()
        raise OSError("disk full")

    monkeypatch.setattr(export, "export_onnx", full)
    with pytest.raises(OSError, match="disk full"):
        export_model(tmp_path / "model", network("square"), get_rules("square8_2p"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["model.safetensors", "README.md", "SHA256SUMS"])
def test_an_export_is_whole_or_not_at_all(tmp_path, monkeypatch, name):
    """A cleaner of temporary files has been there before it got its name."""

    def written(path, data):
        write_bytes_atomic(path, data)
        if path.name == ("SHA256SUMS" if name == "SHA256SUMS" else "README.md"):
            (path.parent / name).unlink()

    monkeypatch.setattr(export, "export_onnx", lambda path, *_: path.write_bytes(b"a model"))
    monkeypatch.setattr(export, "compare", lambda *_: None)
    monkeypatch.setattr(export, "write_bytes_atomic", written)
    with pytest.raises(ExportError, match=f"{name} .*export (it|the model) again"):
        export_model(tmp_path / "model", network("square"), get_rules("square8_2p"))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_says_why(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="hex boards cannot be exported for square8_2p"):
        export_onnx(tmp_path / "model.onnx", network("hex"), get_rules("square8_2p"))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ExportError, match=r"pip install 'ringrift-pipeline\[onnx\]'"):
        export_model(tmp_path / "model", network("square"), get_rules("square8_2p"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_has_an_example_position_with_a_choice(config):
    features = example_position(get_rules(config), rows=2)
    assert features["legal_mask"].shape[0] == 2
    assert (features["legal_mask"].sum(axis=1) > 1).all()
    assert not np.array_equal(features["planes"][0], features["planes"][1])
