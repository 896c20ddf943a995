"""Model files: bit-equal round trips, and every kind of damage found."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

from ringrift_pipeline.network import (
    CorruptModelError,
    MissingModelError,
    ModelMismatchError,
    load_model,
    read_model_metadata,
    save_model,
)

from .test_model import batch, network


@pytest.mark.parametrize("geometry, config", [("square", "square8_2p"), ("hex", "hex8_3p")])
def test_round_trip_is_bit_equal(tmp_path, geometry, config):
    model = network(geometry).to(memory_format=torch.channels_last)
    metadata = {"config": config, "generation": 3, "loss": 1.25}
    assert save_model(tmp_path / "new" / "m", model, metadata) == tmp_path / "new" / "m"
    loaded = load_model(tmp_path / "new" / "m")
    assert loaded.config == model.config
    assert not loaded.training and all(p.requires_grad for p in loaded.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert read_model_metadata(tmp_path / "new" / "m") == metadata
    features = batch(config)
    with torch.inference_mode():
        for one, other in zip(model(features), loaded(features), strict=True):
            torch.testing.assert_close(one, other)


def test_dtype_survives(tmp_path):
    model = network("square").to(torch.bfloat16)
    save_model(tmp_path, model)
    loaded = load_model(tmp_path)
    assert loaded.stem.weight.dtype == torch.bfloat16
    assert torch.equal(loaded.stem.weight, model.stem.weight)


def test_square8_weights_play_square19(tmp_path):
    save_model(tmp_path, network("square"), {"config": "square8_2p"})
    with torch.inference_mode():
        policy, _ = load_model(tmp_path)(batch("square19_4p"))
    assert torch.isfinite(policy).all()


def test_a_flipped_bit_is_found(tmp_path):
    save_model(tmp_path, network("square"))
    path = tmp_path / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptModelError, match=r"model\.safetensors.*hash"):
        load_model(tmp_path)


def test_a_truncated_file_is_found(tmp_path):
    save_model(tmp_path, network("square"))
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CorruptModelError):
        load_model(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": 3}', "\udcff"])
def test_a_damaged_sidecar_is_found(tmp_path, text):
    save_model(tmp_path, network("square"))
    (tmp_path / "model.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CorruptModelError, match=r"model\.json"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    save_model(tmp_path, network("square"))
    (tmp_path / name).unlink()
    with pytest.raises(MissingModelError, match=name):
        load_model(tmp_path)


def edit(folder, change):
    path = folder / "model.json"
    sidecar = json.loads(path.read_text())
    change(sidecar)
    path.write_text(json.dumps(sidecar))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.update(format="other/9"), "format"),
        (lambda s: s["encoding"].update(version=-1), "encoding"),
        (lambda s: s["network"].update(channels=24), "shape"),
        (lambda s: s["network"].update(blocks=3), "tensors"),
        (lambda s: s["network"].update(geometry="ring"), "geometry"),
        (lambda s: s["network"].pop("players"), "players"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, change, message):
    save_model(tmp_path, network("square"))
    edit(tmp_path, change)
    with pytest.raises(ModelMismatchError, match=message):
        load_model(tmp_path)


def test_sound_hash_of_rubbish_is_still_refused(tmp_path):
    import hashlib

    save_model(tmp_path, network("square"))
    data = b"\x08\x00\x00\x00\x00\x00\x00\x00not json"
    (tmp_path / "model.safetensors").write_bytes(data)
    edit(tmp_path, lambda s: s["weights"].update(sha256=hashlib.sha256(data).hexdigest()))
    with pytest.raises(CorruptModelError, match="safetensors"):
        load_model(tmp_path)


def test_metadata_json_cannot_hold_is_refused_before_writing(tmp_path):
    with pytest.raises((TypeError, ValueError)):
        save_model(tmp_path / "m", network("square"), {"loss": float("nan")})
    assert list((tmp_path / "m").iterdir()) == []


def test_files_are_plain_safetensors_and_json(tmp_path):
    model = network("square")
    save_model(tmp_path, model)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert set(weights) == set(dict(model.named_parameters()))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def test_what_this_machine_cannot_hold_is_not_read(tmp_path, monkeypatch):
    save_model(tmp_path, network("square"))
    size = (tmp_path / "model.safetensors").stat().st_size
    monkeypatch.setattr("ringrift_pipeline.network.checkpoint.memory_here", lambda: 2 * size)
    with pytest.raises(ModelMismatchError, match=f"{size} bytes.*this machine has {2 * size}"):
        load_model(tmp_path)
