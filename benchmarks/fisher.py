"""What exact per-sample Fisher information costs, beside the pass that squares batch means.

Run ``python benchmarks/fisher.py [--quick] [--json]``. One JSON object a claim; a bigger ratio is
better, ``target`` is the least acceptable one, and the exit status is 1 when one is missed. One
thread, processor time, the passes alternate and their medians are compared; the last line lists
the re-creations that are far from the reference's figures, scaled to this machine. Squaring the gradient of a batch's mean, as the reference project
does, is not the Fisher information; it is the cheapest pass there is over the same samples.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import reference_enhancements as reference
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ringrift_pipeline.enhancements import EWCRegularizer

SAMPLES = 1_000
BATCH = 64
ALLOWED = 2.5  # times the batch-squared pass


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(F.relu(self.first(x))))


def network() -> nn.Module:
    """A policy over 200 actions of an 8x8 board, 0.95 million parameters."""
    return nn.Sequential(
        nn.Conv2d(32, 128, 3, padding=1),
        nn.ReLU(),
        *(Residual(128) for _ in range(3)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, 200),
    )


def batch_squared(model: nn.Module, data: Tensor) -> dict[str, Tensor]:
    """Squares of each batch's mean gradient, summed: the reference's pass, normalised by tensor."""
    model.eval()
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for batch in data.split(BATCH):
        model.zero_grad()
        logits = model(batch)
        labels = torch.distributions.Categorical(logits=logits).sample()
        rows = torch.arange(len(batch))
        (-torch.log_softmax(logits, dim=1)[rows, labels].mean()).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                sums[name] += parameter.grad.pow(2)
    for total in sums.values():
        total /= len(data)
        if total.max() > 0:
            total /= total.max()
    model.zero_grad()
    return sums


def sample_loop(model: nn.Module, data: Tensor) -> dict[str, Tensor]:
    """Mean of squared gradients, one sample after the other."""
    model.eval()
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for sample in data.split(1):
        logits = model(sample)
        labels = torch.distributions.Categorical(logits=logits).sample()
        gradients = torch.autograd.grad(F.cross_entropy(logits, labels), list(model.parameters()))
        for total, gradient in zip(sums.values(), gradients, strict=True):
            total.addcmul_(gradient, gradient)
    return {name: total / len(data) for name, total in sums.items()}


def ours(model: nn.Module, data: Tensor) -> dict[str, Tensor]:
    """The same by the regularizer."""
    ewc = EWCRegularizer(model, normalize_fisher=False)
    ewc.compute_fisher(data.split(BATCH), num_samples=len(data))
    return ewc.fisher


def seconds(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def claims(quick: bool, yardstick: reference.Yardstick) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    model = network()
    samples = 256 if quick else SAMPLES
    data = torch.randn(samples, 32, 8, 8)
    passes = (ours, batch_squared, sample_loop)
    for each in passes:
        each(copy.deepcopy(model), data[:BATCH])
    times = np.array(
        [[seconds(lambda p=each: p(model, data)) for each in passes] for _ in range(3)]
    )
    exact, squared, loop = (float(value) for value in np.median(times, axis=0))
    share = samples / SAMPLES
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    about = f"per-sample Fisher, {millions:.2f}M-parameter CNN, {samples:,} samples"

    cnn = "of a 0.95M-parameter CNN"
    means, singles = (
        f"squares of batch means, 1,000 samples {cnn}",
        f"loop over 1,000 samples {cnn}",
    )
    return [
        {
            "claim": f"{about}: at most {ALLOWED} times squaring batch means",
            "value": round(exact, 3),
            "unit": "s",
            "reference": round(squared, 3),
            "ratio": round(ALLOWED * squared / exact, 2),
            "target": 1.0,
            "note": yardstick.beside(means, 1e3 * squared, share),
        },
        {
            "claim": f"{about}: against a loop over the samples",
            "value": round(exact, 3),
            "unit": "s",
            "reference": round(loop, 3),
            "ratio": round(loop / exact, 2),
            "target": 1.0,
            "note": yardstick.beside(singles, 1e3 * loop, share),
        },
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a quarter of the samples")
    parser.add_argument("--json", action="store_true", help="only the JSON lines")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.json:
        print("processor time of one thread; the passes alternate; medians of three")
    yardstick = reference.Yardstick()
    missed = 0
    for claim in claims(arguments.quick, yardstick):
        print(json.dumps(claim), flush=True)
        missed += claim["ratio"] < claim["target"]
    print(json.dumps({"check": yardstick.verdict()}) if arguments.json else yardstick.verdict())
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()
