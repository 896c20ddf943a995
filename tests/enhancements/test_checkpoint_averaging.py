"""EMA against its closed form, the mean of k checkpoints against numpy, files and dtypes."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from ringrift_pipeline.enhancements.checkpoint_averaging import (
    CheckpointAverager,
    average_checkpoints,
)
from ringrift_pipeline.enhancements.checkpoint_files import check_hash, write_checkpoint


class Mixed(nn.Module):
    """Parameters of two precisions, and buffers of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.single = nn.Parameter(torch.zeros(3, 2))
        self.low = nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
        self.tied = self.single
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mask", torch.zeros(3, dtype=torch.bool))
        self.register_buffer("scratch", torch.zeros(1), persistent=False)

    def fill(self, value: float) -> Mixed:
        with torch.no_grad():
            self.single.fill_(value)
            self.low.fill_(value)
            self.mean.fill_(value)  # type: ignore[operator]
            self.count.fill_(int(value * 100))  # type: ignore[operator]
            self.mask.fill_(value > 0.5)  # type: ignore[operator]
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.single


class Compiled(nn.Module):
    """Holds its model as ``torch.compile`` does (which takes seconds to import)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._orig_mod = model


DTYPES = {name: tensor.dtype for name, tensor in Mixed().state_dict().items()}


def closed_form(values: list[float], batches: list[int], half_life: float, warmup: float) -> float:
    """Sum over steps of (1 - d_t) * product of the later decays, times the step's weight."""
    seen = np.cumsum(batches)
    decays = 0.5 ** (np.array(batches) / np.minimum(half_life, warmup * seen))
    decays[0] = 0.0
    shares = [(1 - d) * np.prod(decays[t + 1 :]) for t, d in enumerate(decays)]
    assert sum(shares) == pytest.approx(1.0)
    return float(np.dot(shares, values))


@given(
    data=st.lists(st.tuples(st.floats(-1, 1, width=16), st.integers(1, 512)), min_size=1),
    half_life=st.sampled_from([10.0, 1000.0, 1e6]),
    warmup=st.sampled_from([0.05, 0.5, 1.0]),
)
@settings(max_examples=20)
def test_ema_equals_its_closed_form(data: list, half_life: float, warmup: float) -> None:
    model = Mixed()
    averager = CheckpointAverager(half_life_samples=half_life, warmup_fraction=warmup)
    for value, samples in data:
        averager.update(model.fill(value), samples)
    values, batches = [float(v) for v, _ in data], [n for _, n in data]
    expected = closed_form(values, batches, half_life, warmup)
    averaged = averager.get_averaged_state_dict()
    for name in ("single", "mean", "tied"):
        assert averaged[name].flatten().tolist() == pytest.approx(
            [expected] * averaged[name].numel(), abs=1e-5
        )
    assert averaged["low"].float().tolist() == pytest.approx([expected] * 4, abs=5e-3)
    assert int(averaged["count"]) == int(values[-1] * 100)
    assert averaged["mask"].tolist() == [values[-1] > 0.5] * 3
    assert {name: tensor.dtype for name, tensor in averaged.items()} == DTYPES
    assert averager.samples_seen == sum(batches) and averager.num_updates == len(batches)


def test_decay_means_samples_whatever_the_batch() -> None:
    """After one half-life of zeros, half of the ones is left, in 1, 10 or 1000 steps."""
    left = []
    for batch in (1000, 100, 1):
        averager = CheckpointAverager(half_life_samples=1000.0, warmup_fraction=1.0)
        model = nn.Linear(1, 1).double()
        nn.init.constant_(model.weight, 1.0)
        averager.update(model, 10_000)
        nn.init.constant_(model.weight, 0.0)
        for _ in range(1000 // batch):
            averager.update(model, batch)
        left.append(float(averager.get_averaged_state_dict()["weight"]))
    assert left == pytest.approx([0.5] * 3, rel=1e-9)


def test_warm_up_forgets_the_start() -> None:
    def left(warmup: float) -> float:
        averager = CheckpointAverager(half_life_samples=1e6, warmup_fraction=warmup)
        model = Mixed().fill(1.0)
        averager.update(model, 256)
        model.fill(0.0)
        for _ in range(40):
            averager.update(model, 256)
        return float(averager.get_averaged_state_dict()["mean"][0])

    assert left(0.1) < 1e-8  # without warm-up: 0.99
    assert averager_first_decay() == pytest.approx(0.5**10)


def averager_first_decay() -> float:
    return CheckpointAverager(half_life_samples=1e6, warmup_fraction=0.1).decay(64)


def test_low_precision_does_not_swallow_small_steps() -> None:
    averager = CheckpointAverager(half_life_samples=1000.0, warmup_fraction=1.0)
    model = Mixed().fill(1.0)
    averager.update(model, 100_000)
    model.fill(0.0)
    for _ in range(1000):  # each step moves by 0.07%, below half a unit of bfloat16
        averager.update(model, 1)
    assert averager.get_averaged_state_dict()["low"].float().tolist() == pytest.approx(
        [0.5] * 4, rel=0.01
    )


def test_caller_is_left_alone_and_wrappers_are_seen_through() -> None:
    model = Mixed().fill(1.0).train()
    before = copy.deepcopy(model.state_dict())
    averager = CheckpointAverager()
    averager.update(nn.DataParallel(model), 8)
    averager.update(Compiled(model), 8)
    assert model.training and model.single.requires_grad
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    averaged = averager.get_averaged_state_dict()
    assert averaged.keys() == before.keys()
    averaged["single"].zero_()  # a copy
    assert float(averager.get_averaged_state_dict()["single"].sum()) == pytest.approx(6.0)
    assert averager.averaged_model is not None and not averager.averaged_model.training
    Mixed().load_state_dict(averager.get_averaged_state_dict())
    with pytest.raises(ValueError, match="model"):
        averager.update(nn.Linear(2, 2), 8)
    with pytest.raises(ValueError, match="num_samples"):
        averager.update(model, 0)
    assert averager.num_updates == 2


@pytest.mark.parametrize("resume_before_update", [True, False])
def test_resumed_ema_equals_an_uninterrupted_one(resume_before_update: bool) -> None:
    model = Mixed()
    whole = CheckpointAverager(half_life_samples=50.0)
    resumed = CheckpointAverager(half_life_samples=50.0)
    if not resume_before_update:
        resumed.update(Mixed().fill(9.0), 3)
    for i in range(10):
        whole.update(model.fill(0.1 * i), 7)
    resumed.load_state_dict(whole.state_dict())
    assert resumed.num_updates == 10
    for name, tensor in resumed.get_averaged_state_dict().items():
        assert torch.equal(tensor, whole.get_averaged_state_dict()[name])
    for i in range(5):
        whole.update(model.fill(-0.3 * i), 5)
        resumed.update(model, 5)
    for name, tensor in resumed.state_dict()["ema"].items():
        assert torch.equal(tensor, whole.state_dict()["ema"][name])
    assert resumed.samples_seen == whole.samples_seen == 95


@pytest.mark.parametrize("on_disk", [True, False])
def test_mean_of_the_last_k_against_numpy(tmp_path: Path, on_disk: bool) -> None:
    averager = CheckpointAverager(3, tmp_path if on_disk else None, keep_on_disk=on_disk)
    model, kept = Mixed(), []
    for i in range(5):
        torch.manual_seed(i)
        model.fill(0.0)
        with torch.no_grad():
            model.single.normal_()
            model.low.normal_()
        model.count.fill_(i)  # type: ignore[operator]
        averager.add_checkpoint(model.state_dict(), epoch=i % 2)  # labels repeat
        kept.append(copy.deepcopy(model.state_dict()))
        assert averager.num_stored == min(i + 1, 3)
        averaged = averager.get_averaged_state_dict()
        for name, tensor in averaged.items():
            assert tensor.dtype == DTYPES[name]
            window = [state[name] for state in kept[-3:]]
            if not tensor.is_floating_point():
                assert torch.equal(tensor, window[-1])
                continue
            mean = np.mean([t.double().numpy() for t in window], axis=0)
            expected = torch.from_numpy(mean).to(tensor.dtype)
            tolerance = 1e-6 if tensor.dtype == torch.float32 else 1e-2
            torch.testing.assert_close(tensor, expected, rtol=tolerance, atol=1e-6)
    if on_disk:
        assert len(list(tmp_path.iterdir())) == 3
    averager.cleanup()
    assert averager.num_stored == 0 and not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="nothing to average"):
        averager.get_averaged_state_dict()


def test_temporary_folder_is_removed_and_ema_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    averager = CheckpointAverager()
    averager.add_checkpoint(Mixed().fill(1.0).state_dict())
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 1
    assert float(averager.get_averaged_state_dict()["mean"][0]) == 1.0
    with pytest.raises(ValueError, match="no exponential average"):
        averager.get_averaged_state_dict("ema")
    averager.update(Mixed().fill(3.0), 4)
    assert float(averager.get_averaged_state_dict()["mean"][0]) == 3.0
    assert float(averager.get_averaged_state_dict("mean")["mean"][0]) == 1.0
    again = CheckpointAverager()
    again.load_state_dict(averager.state_dict())
    averager.cleanup()
    assert float(again.get_averaged_state_dict("mean")["mean"][0]) == 1.0
    again.cleanup()
    assert list(tmp_path.iterdir()) == []


def test_the_temporary_folder_goes_with_its_object_and_with_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    averager = CheckpointAverager(2)
    averager.add_checkpoint({"w": torch.ones(3)})
    twins = [copy.deepcopy(averager), copy.copy(averager), pickle.loads(pickle.dumps(averager))]
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 4
    pid = os.fork()
    if pid == 0:  # a forked process that lets go of it, as loaders' workers do
        try:
            del averager
            gc.collect()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    averager.add_checkpoint({"w": torch.zeros(3)})
    del averager
    gc.collect()
    assert len(list(tmp_path.iterdir())) == 3
    for twin in twins:
        assert torch.equal(twin.get_averaged_state_dict()["w"], torch.ones(3))
        twin.cleanup()
    assert list(tmp_path.iterdir()) == []
    code = (
        "import torch; from ringrift_pipeline.enhancements import CheckpointAverager\n"
        "averager = CheckpointAverager(); averager.add_checkpoint({'w': torch.ones(3)})"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert list(tmp_path.iterdir()) == []


def test_files_that_were_removed_leave_the_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    averager = CheckpointAverager(3)
    for value in (1.0, 2.0, 3.0):
        averager.add_checkpoint({"w": torch.full((3,), value)})
    newest = max(tmp_path.glob("*/*"), key=lambda path: path.stat().st_mtime_ns)
    newest.unlink()
    averager.add_checkpoint({"w": torch.full((3,), 6.0)})
    assert averager.num_stored == 3 and newest.name in caplog.text
    assert averager.get_averaged_state_dict()["w"].tolist() == [3.0] * 3
    for path in tmp_path.glob("*/*"):
        path.unlink()
    next(tmp_path.iterdir()).rmdir()
    assert averager.state_dict()["window"] == [] and averager.num_stored == 0
    with pytest.raises(ValueError, match="nothing to average yet"):
        averager.get_averaged_state_dict()
    averager.add_checkpoint({"w": torch.ones(3)})
    assert averager.num_stored == 1


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_state_keeps_what_the_run_goes_on_to_drop(tmp_path: Path, on_disk: bool) -> None:
    folders = [tmp_path / name for name in ("first", "second")]
    first, second = (CheckpointAverager(2, folder, on_disk) for folder in folders)
    second.add_checkpoint({"w": torch.full((2,), 99.0)})  # to be replaced
    for value in range(6):
        if value == 3:
            saved = first.state_dict()
        first.add_checkpoint({"w": torch.full((2,), float(value))})
    first.cleanup()
    second.load_state_dict(saved)
    assert second.get_averaged_state_dict("mean")["w"].tolist() == [1.5, 1.5]
    assert second.num_stored == 2 and not list(tmp_path.glob("first/*"))
    assert len(list(tmp_path.glob("second/*"))) == (2 if on_disk else 0)


@pytest.mark.parametrize("on_disk", [True, False])
def test_of_a_larger_window_the_newest_are_kept(tmp_path: Path, on_disk: bool) -> None:
    large, small = (CheckpointAverager(k, tmp_path / str(k), on_disk) for k in (5, 2))
    for value in range(5):
        large.add_checkpoint({"w": torch.tensor([float(value)])})
    small.load_state_dict(large.state_dict())
    assert small.num_stored == 2
    assert float(small.get_averaged_state_dict("mean")["w"]) == 3.5
    assert len(list((tmp_path / "2").glob("*"))) == (2 if on_disk else 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["single", "low", "mean"])
def test_weights_that_are_not_finite_never_enter_the_average(bad: float, name: str) -> None:
    averager = CheckpointAverager()
    averager.update(Mixed().fill(1.0), 4)
    before = averager.state_dict()
    broken = Mixed().fill(2.0)
    with torch.no_grad():
        getattr(broken, name)[-1] = bad
    with pytest.raises(ValueError, match=f"model: {name} is not finite"):
        averager.update(broken, 4)
    assert averager.samples_seen == 4 and averager.num_updates == 1
    for key, tensor in averager.state_dict()["ema"].items():
        assert torch.equal(tensor, before["ema"][key])
    with torch.no_grad():
        broken = Mixed().fill(1.0)
        broken.single.fill_(3e38)  # whose sum and squares overflow
    averager.update(broken, 4)
    assert averager.num_updates == 2
    with torch.no_grad():  # opposite infinities do not cancel
        broken.single.flatten()[:2] = torch.tensor([np.inf, -np.inf])
    with pytest.raises(ValueError, match="model: single is not finite"):
        averager.update(broken, 4)


def test_average_checkpoints_of_files_and_folders(tmp_path: Path) -> None:
    paths = []
    for i in range(4):
        folder = tmp_path / str(i)
        folder.mkdir()
        state = {"w": torch.full((3,), float(i)), "n": torch.tensor(i)}
        save_file(state, folder / "model.safetensors")
        paths.append(folder if i % 2 else folder / "model.safetensors")
    averaged = average_checkpoints(paths, device="cpu")
    assert averaged["w"].tolist() == [1.5] * 3 and int(averaged["n"]) == 3
    with pytest.raises(ValueError, match="checkpoint_paths"):
        average_checkpoints([])
    with pytest.raises(ValueError, match="absent"):
        average_checkpoints([tmp_path / "absent.safetensors"])
    (tmp_path / "bad.safetensors").write_bytes(b"\x80\x04 a pickle, perhaps")
    with pytest.raises(ValueError, match="not a safetensors file"):
        average_checkpoints([tmp_path / "bad.safetensors"])
    save_file({"w": torch.zeros(4), "n": torch.tensor(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="other.safetensors: w has shape"):
        average_checkpoints([*paths, tmp_path / "other.safetensors"])
    save_file({"w": torch.zeros(3)}, tmp_path / "fewer.safetensors")
    with pytest.raises(ValueError, match="not in all checkpoints: n"):
        average_checkpoints([*paths, tmp_path / "fewer.safetensors"])


@pytest.mark.parametrize("on_disk", [True, False])
def test_bad_checkpoints_change_nothing(tmp_path: Path, on_disk: bool) -> None:
    averager = CheckpointAverager(2, tmp_path, keep_on_disk=on_disk)
    averager.add_checkpoint({"w": torch.ones(2)})
    for bad, message in [
        ({"w": torch.tensor([1.0, np.nan])}, r"state_dict\['w'\] is not finite"),
        ({"v": torch.ones(2)}, "not in all"),
        ({"w": torch.ones(3)}, "shape"),
        ({}, "no tensors"),
    ]:
        with pytest.raises(ValueError, match=message):
            averager.add_checkpoint(bad)
    assert averager.num_stored == 1 and len(list(tmp_path.iterdir())) == int(on_disk)
    assert averager.get_averaged_state_dict()["w"].tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="kind"):
        averager.get_averaged_state_dict("median")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"num_checkpoints": 0}, "num_checkpoints"),
        ({"half_life_samples": 0.0}, "half_life_samples"),
        ({"warmup_fraction": 0.0}, "warmup_fraction"),
        ({"warmup_fraction": 1.5}, "warmup_fraction"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        CheckpointAverager(**arguments)


def test_bad_state_changes_nothing() -> None:
    averager = CheckpointAverager()
    averager.update(Mixed().fill(1.0), 4)
    good = averager.state_dict()
    for change in ({"updates": -1}, {"ema": {}}, {"ema": {"single": torch.zeros(1)}}):
        with pytest.raises(ValueError, match="|".join(change)):
            averager.load_state_dict({**good, "samples_seen": 999, **change})
    with pytest.raises(ValueError, match="dtypes"):
        averager.load_state_dict({k: v for k, v in good.items() if k != "dtypes"})
    assert averager.samples_seen == 4
    for name, tensor in averager.state_dict()["ema"].items():
        assert torch.equal(tensor, good["ema"][name])


@pytest.mark.parametrize(
    "buffer", [torch.ones(5), torch.ones(()), torch.ones(2, dtype=torch.int64), None]
)
def test_another_buffer_is_refused_before_anything_changes(buffer: torch.Tensor | None) -> None:
    averager = CheckpointAverager(keep_on_disk=False)
    averager.update(Mixed().fill(0.25), 4)
    before = averager.state_dict()
    other = Mixed().fill(0.75)
    if buffer is None:
        other.register_buffer("further", torch.ones(1))
    else:
        other.mean = buffer
    with pytest.raises(ValueError, match="model does not have the parameters and buffers"):
        averager.update(other, 4)
    after = averager.state_dict()
    assert after["samples_seen"] == before["samples_seen"] == 4 and after["updates"] == 1
    for name, tensor in before["ema"].items():
        assert torch.equal(after["ema"][name], tensor)
    averager.update(Mixed().fill(0.75), 4)


def test_a_bit_of_any_byte_of_a_file_of_ours_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "ours.safetensors"
    tensors = {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(7), "b": torch.ones(3) > 0}
    said = {"a text": 'with "file_sha256":"' + "0" * 64 + '" in it', "another": "é"}
    write_checkpoint(path, tensors, said)
    assert check_hash(path)
    whole = path.read_bytes()
    for more in range(3):  # names of metadata are in no order in memory
        again = tmp_path / f"again-{more}.safetensors"
        write_checkpoint(again, tensors, dict(reversed(said.items())) if more % 2 else said)
        assert again.read_bytes() == whole
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(ValueError, match="ours.safetensors"):
            average_checkpoints([path])


def test_a_file_of_others_has_none_and_loads_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "theirs.safetensors"
    save_file({"w": torch.ones(3)}, path)
    assert not check_hash(path)
    assert torch.equal(average_checkpoints([path])["w"], torch.ones(3))
    assert "theirs.safetensors has no SHA-256" in caplog.text


def test_a_checkpoint_of_the_window_that_was_damaged_is_named(tmp_path: Path) -> None:
    averager = CheckpointAverager(2, tmp_path)
    for epoch in range(2):
        averager.add_checkpoint({"w": torch.full((3,), float(epoch))}, epoch)
    path = min(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        averager.get_averaged_state_dict()
