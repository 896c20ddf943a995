"""Accumulation in half precision against the same large batch, with a loss scale and without.

Gradients of half precision are rounded to 8 or 11 bits, so the bound is on the distance of the
whole gradient, relative to its norm: more than twenty times below what a wrong scaling makes.
"""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from torch import nn

from ringrift_pipeline.enhancements.gradient_management import (
    AdaptiveGradientClipper,
    GradientAccumulator,
)

SIZES = (8, 3, 5, 2, 9)  # groups of three: 16 samples, and a remainder of two batches, 11 samples
GROUPS = ((0, 16, 3), (16, 27, 2))
# unit roundoff times a few roundings on the way
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 0.008, torch.float16: 0.001}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4)
    )


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Samples that pull the weights apart, so that a batch's share of the mean matters."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(sum(SIZES), 6, generator=generator) + torch.linspace(
        -2.0, 2.0, sum(SIZES)
    ).unsqueeze(1)
    return features, torch.arange(sum(SIZES)) * 4 // sum(SIZES)


def autocast(dtype: torch.dtype) -> contextlib.AbstractContextManager:
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast("cpu", dtype=dtype)


class Kept:
    """Stands where a clipper does: keeps the gradients that would be clipped."""

    def __init__(self) -> None:
        self.gradients: list[torch.Tensor] = []

    def update_and_clip(self, parameters: list[torch.Tensor]) -> float:
        flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        self.gradients.append(flat.double())
        return float(flat.norm())


def large_batches(model: nn.Module, dtype: torch.dtype) -> list[torch.Tensor]:
    features, targets = data()
    found = []
    for start, end, _ in GROUPS:
        model.zero_grad()
        with autocast(dtype):
            logits = model(features[start:end])
        nn.functional.cross_entropy(logits.float(), targets[start:end]).backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]).double())
    model.zero_grad()
    return found


def accumulated(
    model: nn.Module,
    dtype: torch.dtype,
    accumulator: GradientAccumulator,
    scaler: torch.amp.GradScaler | None = None,
    told: bool = True,
) -> list[torch.Tensor]:
    """Gradients of the two steps, the weights held where they are."""
    features, targets = data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    kept = Kept()
    for number, (x, y) in enumerate(zip(features.split(SIZES), targets.split(SIZES), strict=True)):
        with autocast(dtype):
            logits = model(x)
        loss = nn.functional.cross_entropy(logits.float(), y)
        loss = accumulator.scale_loss(loss, len(x) if told else None)
        (loss if scaler is None else scaler.scale(loss)).backward()
        if accumulator.should_step(number, len(SIZES)):
            accumulator.step(optimizer, model, scaler, kept)  # type: ignore[arg-type]
    return kept.gradients


def distance(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_accumulation_equals_the_large_batch(dtype: torch.dtype, scaled: bool) -> None:
    model = network()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10) if scaled else None
    got = accumulated(model, dtype, GradientAccumulator(3, None), scaler)
    wanted = large_batches(model, dtype)
    bound = TOLERANCE[dtype]
    assert len(got) == 2
    for ours, theirs in zip(got, wanted, strict=True):
        assert distance(ours, theirs) < bound
    exact = large_batches(model, torch.float32)
    for ours, theirs in zip(got, exact, strict=True):
        assert distance(ours, theirs) < 2 * bound

    # a scale or a remainder that is not undone is a third off or more; the mildest mistake of all:
    equal = accumulated(model, dtype, GradientAccumulator(3, None), told=False)
    for wrong, theirs in zip(equal, wanted, strict=True):
        assert distance(wrong, theirs) > 20 * bound


@pytest.mark.parametrize("clipping", [None, "parameter", "global"])
def test_a_loss_scale_does_not_change_the_steps(clipping: str | None) -> None:
    """Weights after many accumulated steps in float16, scaled, against float32 large batches."""
    features, targets = data()
    small, large = network(), network()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)

    def clipper() -> AdaptiveGradientClipper | None:
        if clipping is None:
            return None
        return AdaptiveGradientClipper(0.3, min_clip=0.01, mode=clipping)  # type: ignore[arg-type]

    ours, theirs = clipper(), clipper()
    accumulators = GradientAccumulator(3, 0.5), GradientAccumulator(1, 0.5)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (small, large)]
    for _ in range(6):
        for number, (x, y) in enumerate(
            zip(features.split(SIZES), targets.split(SIZES), strict=True)
        ):
            with autocast(torch.float16):
                logits = small(x)
            loss = nn.functional.cross_entropy(logits.float(), y)
            scaler.scale(accumulators[0].scale_loss(loss, len(x))).backward()
            if accumulators[0].should_step(number, len(SIZES)):
                accumulators[0].step(optimizers[0], small, scaler, ours)
        for start, end, _ in GROUPS:
            loss = nn.functional.cross_entropy(large(features[start:end]), targets[start:end])
            loss.backward()
            accumulators[1].step(optimizers[1], large, None, theirs)
    assert accumulators[0].steps == accumulators[1].steps == 12
    assert scaler.get_scale() > 2.0**10  # it has grown on the way
    start = nn.utils.parameters_to_vector(network().parameters()).detach()
    moved = [nn.utils.parameters_to_vector(m.parameters()).detach() - start for m in (small, large)]
    assert distance(moved[0], moved[1]) < 0.005
    assert float(moved[1].norm()) > 0.5


def test_an_overflow_leaves_the_whole_group_out_and_lowers_the_scale() -> None:
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    accumulator = GradientAccumulator(3, None)
    got = accumulated(model, torch.float16, accumulator, scaler)
    assert accumulator.steps == 0 and accumulator.skipped_steps == 2
    assert not any(math.isfinite(float(gradient.norm())) for gradient in got)
    assert scaler.get_scale() == 2.0**38
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
