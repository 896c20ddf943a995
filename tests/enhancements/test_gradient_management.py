"""Accumulation against the large batch, clipping against formulas written out here."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ringrift_pipeline.enhancements.gradient_management import (
    AdaptiveGradientClipper,
    GradientAccumulator,
)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def gradients(sizes: list[float], seed: int = 0) -> list[nn.Parameter]:
    """Parameters of several shapes whose gradients have the given norms."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(4, 3), (5,), (2, 3, 2, 2), ()]
    parameters = []
    for i, size in enumerate(sizes):
        parameter = nn.Parameter(torch.randn(shapes[i % 4], generator=generator))
        direction = torch.randn(shapes[i % 4], generator=generator)
        parameter.grad = direction / direction.norm() * size
        parameters.append(parameter)
    return parameters


def norms(parameters: list[nn.Parameter]) -> list[float]:
    return [float(p.grad.norm()) for p in parameters if p.grad is not None]


# Accumulation.


@given(
    steps=st.integers(1, 5),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=9),
    max_norm=st.sampled_from([None, 0.05]),
)
@settings(max_examples=30)
def test_equals_the_large_batch_remainder_and_unequal_batches_included(
    steps: int, sizes: list[int], max_norm: float | None
) -> None:
    data = torch.randn(sum(sizes), 6, generator=torch.Generator().manual_seed(1)).double()
    target = torch.arange(sum(sizes)) % 3
    small, large = network(), network()
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.01) for m in (small, large)]
    accumulator = GradientAccumulator(steps, max_norm)
    group: list[int] = []
    start = taken = 0
    for i, size in enumerate(sizes):
        rows = slice(start, start + size)
        start += size
        loss = nn.functional.cross_entropy(small(data[rows]), target[rows])
        accumulator.scale_loss(loss, size).backward()
        group += range(rows.start, rows.stop)
        if accumulator.should_step(i, len(sizes)):
            norm = accumulator.step(optimizers[0], small)
            nn.functional.cross_entropy(large(data[group]), target[group]).backward()
            reference = nn.utils.clip_grad_norm_(large.parameters(), max_norm or math.inf)
            if max_norm is not None:  # torch adds 1e-6 to the norm; undo it
                factor = min(1.0, max_norm / (float(reference) + 1e-6))
                exact = min(1.0, max_norm / float(reference))
                for p in large.parameters():
                    assert p.grad is not None
                    p.grad *= exact / factor
            optimizers[1].step()
            optimizers[1].zero_grad()
            assert norm == pytest.approx(float(reference), rel=1e-9)
            group = []
            taken += 1
    assert not group and accumulator.steps == taken == math.ceil(len(sizes) / steps)
    for a, b in zip(small.parameters(), large.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
    assert all(p.grad is None for p in small.parameters())


def test_should_step_by_index_and_by_itself() -> None:
    accumulator = GradientAccumulator(accumulation_steps=4)
    assert [accumulator.should_step(i) for i in range(8)] == [False, False, False, True] * 2
    assert [accumulator.should_step(i, 6) for i in range(6)] == [False] * 3 + [True, False, True]
    for expected in (False, False, False, True):
        accumulator.scale_loss(torch.tensor(1.0))
        assert accumulator.should_step() is expected
    with pytest.raises(ValueError, match="batch_idx"):
        accumulator.should_step(6, 6)
    with pytest.raises(ValueError, match="batch_idx"):
        accumulator.should_step(-1)


def test_effective_batch_size() -> None:
    assert GradientAccumulator(accumulation_steps=4).effective_batch_size == 4
    assert GradientAccumulator(4, batch_size=32).effective_batch_size == 128


@pytest.mark.parametrize("mode", [None, "parameter", "agc", "global"])
def test_unscales_before_clipping(mode: str | None) -> None:
    """With a loss scale of 2^16, clipping must see the true gradient."""
    data = torch.randn(16, 6, generator=torch.Generator().manual_seed(2))
    target = torch.arange(16) % 3
    plain, scaled = network().float(), network().float()
    taken = []
    for model, scaler in (
        (plain, None),
        (scaled, torch.amp.GradScaler("cpu", init_scale=2.0**16)),
    ):
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        accumulator = GradientAccumulator(3, 0.1)  # four batches: a group of three and one alone
        clipper = (
            AdaptiveGradientClipper(0.05, mode=mode, min_clip=0.001) if mode else None  # type: ignore[arg-type]
        )
        out = []
        for i in range(4):
            rows = slice(4 * i, 4 * i + 4)
            loss = accumulator.scale_loss(
                nn.functional.cross_entropy(model(data[rows]), target[rows]), 4
            )
            (loss if scaler is None else scaler.scale(loss)).backward()
            if accumulator.should_step(i, 4):
                out.append(accumulator.step(optimizer, model, scaler, clipper))
        taken.append(out)
    assert taken[0] == pytest.approx(taken[1], rel=1e-5)
    for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("with_scaler", [False, True])
@pytest.mark.parametrize("with_clipper", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_gradient_is_skipped_and_does_not_poison(
    with_scaler: bool, with_clipper: bool, bad: float
) -> None:
    model = network().float()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0) if with_scaler else None
    clipper = AdaptiveGradientClipper() if with_clipper else None
    accumulator = GradientAccumulator(1, 1.0)

    def train(factor: float) -> float:
        loss = model(torch.ones(2, 6)).square().mean() * factor
        loss = accumulator.scale_loss(loss)
        (loss if scaler is None else scaler.scale(loss)).backward()
        return accumulator.step(optimizer, model, scaler, clipper)

    assert math.isfinite(train(1.0))
    weights = [p.detach().clone() for p in model.parameters()]
    moments = [s["exp_avg"].clone() for s in optimizer.state.values()]
    assert not math.isfinite(train(bad))
    assert accumulator.last_step_skipped and accumulator.skipped_steps == 1
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    for before, state in zip(moments, optimizer.state.values(), strict=True):
        assert torch.equal(before, state["exp_avg"])
    if scaler is not None:
        assert scaler.get_scale() == 4.0
    assert math.isfinite(train(1.0)) and not accumulator.last_step_skipped
    assert accumulator.steps == 2
    assert all(torch.isfinite(p).all() for p in model.parameters())
    if clipper is not None:
        assert clipper.get_stats()["nonfinite_steps"] == 1
        assert math.isfinite(clipper.get_stats()["mean_grad_norm"])


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"accumulation_steps": 0}, "accumulation_steps"),
        ({"accumulation_steps": 1.5}, "accumulation_steps"),
        ({"accumulation_steps": True}, "accumulation_steps"),
        ({"max_grad_norm": -1.0}, "max_grad_norm"),
        ({"max_grad_norm": math.nan}, "max_grad_norm"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_accumulator_names_the_bad_argument(arguments: dict, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        GradientAccumulator(**arguments)


def test_accumulator_state_round_trips_and_bad_state_changes_nothing() -> None:
    accumulator = GradientAccumulator(3, 0.5, batch_size=8)
    accumulator.steps, accumulator.skipped_steps = 7, 2
    saved = json.loads(json.dumps(accumulator.state_dict()))
    other = GradientAccumulator()
    other.load_state_dict(saved)
    assert other.state_dict() == accumulator.state_dict()
    with pytest.raises(ValueError, match="steps"):
        other.load_state_dict({**saved, "steps": -1, "accumulation_steps": 9})
    with pytest.raises(ValueError, match="batch_size"):
        other.load_state_dict({k: v for k, v in saved.items() if k != "batch_size"})
    assert other.state_dict() == accumulator.state_dict()
    with pytest.raises(ValueError, match="scalar"):
        other.scale_loss(torch.ones(2))
    with pytest.raises(ValueError, match="num_samples"):
        other.scale_loss(torch.tensor(1.0), 0)
    assert other.pending_batches == 0


# The clipper.


def test_parameter_mode_against_the_formula() -> None:
    rng = np.random.default_rng(0)
    clipper = AdaptiveGradientClipper(1.0, history_size=5, min_clip=0.05, max_clip=4.0)
    average, count = np.zeros(4), np.zeros(4)
    for step in range(40):
        sizes = np.exp(rng.normal(0, 1, 4)) * np.array([0.01, 0.3, 1.0, 3.0])
        if step == 20:
            sizes[1] = 1e6
        parameters = gradients(sizes.tolist(), seed=step)
        before = [p.grad.clone() for p in parameters if p.grad is not None]
        total = clipper.update_and_clip(p for p in parameters)  # a generator, on purpose
        assert total == pytest.approx(math.sqrt((sizes**2).sum()), rel=1e-5)
        for i, size in enumerate(sizes):
            bound = 1.0 if count[i] == 0 else min(max(2.0 * average[i], 0.05), 4.0)
            kept = min(size, bound)
            assert norms(parameters)[i] == pytest.approx(kept, rel=1e-4)
            expected = before[i] * (kept / size)
            torch.testing.assert_close(parameters[i].grad, expected, rtol=1e-4, atol=0.0)
            count[i] += 1
            average[i] += (kept - average[i]) / min(count[i], 5)
    assert clipper.get_stats()["clipped_fraction"] > 0


def test_a_spike_in_one_parameter_leaves_the_others_alone() -> None:
    clipper = AdaptiveGradientClipper(history_size=20)
    for step in range(30):
        clipper.update_and_clip(gradients([1.0, 0.5, 2.0], step))
    parameters = gradients([1e4, 0.5, 2.0], 99)
    clipper.update_and_clip(parameters)
    assert norms(parameters) == pytest.approx([2.0, 0.5, 2.0], rel=1e-4)
    clipper.update_and_clip(parameters := gradients([1e4, 0.5, 2.0], 98))
    assert norms(parameters)[0] < 2.2  # the first spike has hardly moved the bound


def agc_reference(weight: torch.Tensor, grad: torch.Tensor, ratio: float, eps: float):
    """Brock et al. 2021, equation 3, one unit at a time in Python."""
    clipped = grad.clone()
    units = [()] if weight.ndim <= 1 else [(i,) for i in range(weight.shape[0])]
    for unit in units:
        allowed = ratio * max(float(weight[unit].norm()), eps)
        size = max(float(grad[unit].norm()), 1e-6)
        if size > allowed:
            clipped[unit] = grad[unit] * (allowed / size)
    return clipped


@pytest.mark.parametrize("scale", [1e-4, 0.02, 5.0])
def test_agc_mode_against_a_loop_over_units(scale: float) -> None:
    clipper = AdaptiveGradientClipper(mode="agc", agc_ratio=0.02)
    parameters = gradients([scale, scale, scale, scale], 3)
    with torch.no_grad():
        parameters[0][1] = 0.0  # a fresh unit may move by eps
        parameters[0].grad[2] = 0.0  # type: ignore[index]
    expected = [agc_reference(p.detach(), p.grad, 0.02, 1e-3) for p in parameters]  # type: ignore[arg-type]
    total = clipper.update_and_clip(parameters)
    assert total > 0
    for parameter, wanted in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-5, atol=1e-9)


@pytest.fixture(scope="module")
def timm_agc():
    """timm's ``adaptive_clip_grad``: its one file, as the package wants torchvision to import."""
    found = importlib.util.find_spec("timm")
    if found is None or found.origin is None:
        pytest.skip("timm is not installed (pip install --no-deps timm)")
    path = Path(found.origin).parent / "utils" / "agc.py"
    spec = importlib.util.spec_from_file_location("timm_agc", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.adaptive_clip_grad


@pytest.mark.parametrize("scale", [1e-4, 0.02, 5.0])
@pytest.mark.parametrize("ratio", [0.01, 0.3])
def test_agc_mode_against_timm(timm_agc, scale: float, ratio: float) -> None:
    generator = torch.Generator().manual_seed(3)

    def layers() -> list[nn.Parameter]:
        made = []
        for shape in ((8, 5, 3, 3), (7, 11), (9,), (1, 4)):
            made.append(nn.Parameter(torch.randn(shape, generator=generator)))
            made[-1].grad = scale * torch.randn(shape, generator=generator).exp()
        made.append(nn.Parameter(torch.zeros(6, 2)))  # may move by eps
        made[-1].grad = scale * torch.ones(6, 2)
        return made

    ours = layers()
    generator.manual_seed(3)
    theirs = layers()
    AdaptiveGradientClipper(mode="agc", agc_ratio=ratio).update_and_clip(ours)
    timm_agc(theirs, clip_factor=ratio)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-5, atol=1e-9)


def test_global_mode_against_numpy_percentile() -> None:
    rng = np.random.default_rng(1)
    clipper = AdaptiveGradientClipper(
        1.5, 80.0, history_size=12, min_clip=0.2, max_clip=3.0, mode="global"
    )
    history: list[float] = []
    for step in range(40):
        sizes = np.exp(rng.normal(0, 1.0, 3))
        total = math.sqrt((sizes**2).sum())
        bound = 1.5
        if len(history) >= 10:
            bound = float(np.clip(np.percentile(history[-12:], 80.0), 0.2, 3.0))
        parameters = gradients(sizes.tolist(), step)
        assert clipper.current_max_norm == pytest.approx(bound, rel=1e-5)
        assert clipper.update_and_clip(parameters) == pytest.approx(total, rel=1e-5)
        factor = min(1.0, bound / total)
        assert norms(parameters) == pytest.approx((sizes * factor).tolist(), rel=1e-4)
        history.append(total)


@pytest.mark.parametrize("mode", ["parameter", "agc", "global"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_clipper_reports_and_drops_a_bad_step(mode, bad: float) -> None:
    clipper = AdaptiveGradientClipper(mode=mode)
    for step in range(12):
        clipper.update_and_clip(gradients([1.0, 1.0, 1.0], step))
    before = clipper.state_dict()
    parameters = gradients([1.0, 1.0, 1.0], 50)
    parameters[1].grad[2] = bad  # type: ignore[index]
    weights = [p.detach().clone() for p in parameters]
    assert not math.isfinite(clipper.update_and_clip(parameters))
    torch.optim.Adam(parameters, lr=1.0, weight_decay=0.1).step()
    assert all(torch.equal(a, b) for a, b in zip(weights, parameters, strict=True))
    after = clipper.state_dict()
    assert after.pop("last_nonfinite") == [1] and before.pop("last_nonfinite") == []
    assert after.pop("nonfinite_steps") == 1 and before.pop("nonfinite_steps") == 0
    assert after == before
    assert math.isfinite(clipper.update_and_clip(gradients([1.0, 1.0, 1.0], 51)))


def test_zero_and_missing_gradients() -> None:
    clipper = AdaptiveGradientClipper()
    parameters = gradients([1.0, 1.0, 1.0])
    clipper.update_and_clip(parameters)
    bounds = clipper.parameter_bounds()
    parameters[0].grad = None
    parameters[2].grad = torch.zeros_like(parameters[2])
    assert clipper.update_and_clip(parameters) == pytest.approx(1.0)
    assert clipper.parameter_bounds().tolist() == bounds.tolist()
    for p in parameters:
        p.grad = None
    assert clipper.update_and_clip(parameters) == 0.0
    with pytest.raises(ValueError, match="parameters"):
        clipper.update_and_clip(parameters[:2])


def test_half_precision_norm_does_not_overflow() -> None:
    parameter = nn.Parameter(torch.zeros(10_000, dtype=torch.float16))
    other = nn.Parameter(torch.zeros(3))
    parameter.grad = torch.full_like(parameter, 1000.0)
    other.grad = torch.ones(3)
    clipper = AdaptiveGradientClipper(mode="global")
    assert clipper.update_and_clip([parameter, other]) == pytest.approx(1e5, rel=1e-3)


@pytest.mark.parametrize("mode", ["parameter", "agc", "global"])
def test_resumed_clipper_equals_an_uninterrupted_one(mode) -> None:
    whole = AdaptiveGradientClipper(mode=mode, history_size=15)
    for step in range(20):
        whole.update_and_clip(gradients([1.0 + step % 3, 0.3, 2.0], step))
    resumed = AdaptiveGradientClipper(mode=mode, history_size=15)
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    for step in range(20, 30):
        pair = [gradients([3.0 + step % 3, 0.9, 2.0], step) for _ in range(2)]
        whole.update_and_clip(pair[0])
        resumed.update_and_clip(pair[1])
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(*pair, strict=True))  # type: ignore[arg-type]
    assert whole.state_dict() == resumed.state_dict()
    assert whole.get_stats() == resumed.get_stats()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"initial_max_norm": 0.0}, "initial_max_norm"),
        ({"percentile": 101.0}, "percentile"),
        ({"history_size": 0}, "history_size"),
        ({"min_clip": -0.1}, "min_clip"),
        ({"max_clip": math.inf}, "max_clip"),
        ({"min_clip": 2.0, "max_clip": 1.0}, "min_clip"),
        ({"mode": "unit"}, "mode"),
        ({"clip_factor": "2"}, "clip_factor"),
        ({"agc_ratio": 0.0}, "agc_ratio"),
    ],
)
def test_clipper_names_the_bad_argument(arguments: dict, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        AdaptiveGradientClipper(**arguments)


def test_clipper_refuses_a_bad_state_whole() -> None:
    clipper = AdaptiveGradientClipper()
    clipper.update_and_clip(gradients([1.0, 2.0]))
    good = clipper.state_dict()
    for change in ({"mode": "agc"}, {"average": [1.0]}, {"average": [math.nan, 1.0]}):
        with pytest.raises(ValueError, match="|".join(change)):
            clipper.load_state_dict({**good, "steps": 99, **change})
        assert clipper.state_dict() == good
    clipper.reset()
    assert clipper.get_stats()["history_size"] == 0
    assert clipper.current_max_norm == 1.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("mode", ["parameter", "agc", "global"])
def test_cuda_gives_the_same_gradients(mode) -> None:
    on_cpu, on_cuda = AdaptiveGradientClipper(mode=mode), AdaptiveGradientClipper(mode=mode)
    for step in range(15):
        host = gradients([1.0, 5.0, 0.2, 3.0], step)
        device = [nn.Parameter(p.detach().cuda()) for p in host]
        for a, b in zip(host, device, strict=True):
            assert a.grad is not None
            b.grad = a.grad.cuda()
        assert on_cpu.update_and_clip(host) == pytest.approx(on_cuda.update_and_clip(device), 1e-5)
        for a, b in zip(host, device, strict=True):
            assert b.grad is not None
            torch.testing.assert_close(a.grad, b.grad.cpu(), rtol=1e-4, atol=1e-6)


def test_a_group_tells_its_samples_for_all_batches_or_for_none() -> None:
    accumulator = GradientAccumulator(4)
    parameter = torch.nn.Parameter(torch.zeros(()))
    for first, second in ((None, 32), (32, None)):
        accumulator.scale_loss(parameter * 1.0, first)
        before = accumulator.state_dict()
        with pytest.raises(ValueError, match="num_samples must be given for every batch"):
            accumulator.scale_loss(parameter * 1.0, second)
        assert accumulator.state_dict() == before
        accumulator.discard()
    accumulator.scale_loss(parameter * 1.0)  # the next group may do otherwise


def test_an_unfinished_group_is_saved() -> None:
    """Two batches of 1 and 5 samples before the save, one of 3 after it."""

    def loss(model: torch.nn.Module, seed: int, samples: int) -> torch.Tensor:
        x = torch.randn(samples, 3, generator=torch.Generator().manual_seed(seed))
        return model(x).square().mean()

    def new() -> torch.nn.Linear:
        torch.manual_seed(0)
        return torch.nn.Linear(3, 2)

    batches = [(0, 1), (1, 5), (2, 3)]
    large, resumed = new(), new()
    x = torch.cat(
        [torch.randn(n, 3, generator=torch.Generator().manual_seed(s)) for s, n in batches]
    )
    large(x).square().mean().backward()
    first = GradientAccumulator(4, None)
    for seed, samples in batches[:2]:
        first.scale_loss(loss(resumed, seed, samples), samples).backward()
    second = GradientAccumulator()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.pending_batches == 2
    for seed, samples in batches[2:]:
        second.scale_loss(loss(resumed, seed, samples), samples).backward()
    optimizer = torch.optim.SGD(resumed.parameters(), lr=1.0)
    expected = [p - p.grad for p in large.parameters()]
    second.step(optimizer)
    for ours, wanted in zip(resumed.parameters(), expected, strict=True):
        torch.testing.assert_close(ours.detach(), wanted.detach())


def odd_parameters(kind: str) -> list[nn.Parameter]:
    """A dense gradient, and one that is sparse or complex."""
    dense, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(4, 2))
    if kind == "complex":
        other = nn.Parameter(torch.ones(4, 2, dtype=torch.complex64))
    dense.sum().backward()
    other.abs().sum().backward()
    if kind == "sparse":
        assert other.grad is not None
        other.grad = other.grad.to_sparse()
    return [dense, other]


@pytest.mark.parametrize("kind", ["sparse", "complex"])
@pytest.mark.parametrize("mode", [None, "parameter", "agc", "global"])
def test_sparse_and_complex_gradients_are_refused(kind: str, mode: str | None) -> None:
    parameters = odd_parameters(kind)
    clipper = None if mode is None else AdaptiveGradientClipper(mode=mode)  # type: ignore[arg-type]
    accumulator = GradientAccumulator(2, 0.1)
    accumulator.scale_loss(torch.tensor(1.0))
    before = accumulator.state_dict(), None if clipper is None else clipper.state_dict()
    with pytest.raises(ValueError, match=f"parameter 1, .* is {kind}"):
        accumulator.step(torch.optim.SGD(parameters, lr=1.0), clipper=clipper)
    if clipper is not None:
        with pytest.raises(ValueError, match=f"parameter 1, .* is {kind}"):
            clipper.update_and_clip(parameters)
    assert (accumulator.state_dict(), None if clipper is None else clipper.state_dict()) == before
    for parameter in parameters:
        assert parameter.grad is not None and parameter.detach().abs().eq(1.0).all()
    assert parameters[0].grad.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("call", ["unscale_", "step"])
def test_gradients_that_the_caller_has_unscaled_are_refused(call: str) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    accumulator, scaler = GradientAccumulator(1), torch.amp.GradScaler("cpu", init_scale=8.0)
    loss = accumulator.scale_loss(model(torch.ones(2, 6, dtype=torch.float64)).square().mean())
    scaler.scale(loss).backward()
    getattr(scaler, call)(optimizer)
    before = accumulator.state_dict(), [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=r"scaler: step\(\) unscales the gradients itself"):
        accumulator.step(optimizer, model, scaler)
    assert accumulator.state_dict() == before[0]
    for old, parameter in zip(before[1], model.parameters(), strict=True):
        assert torch.equal(old, parameter)
