"""What the training facade costs a step, everything on, beside the loop that everyone writes.

Run ``python benchmarks/facade.py [--quick] [--json]``. One JSON object a claim; a bigger ratio is
better, ``target`` is the least acceptable one, and the exit status is 1 when one is missed. Bare
and facade steps alternate on the same batches, one thread; the medians of their processor times
are compared.

A step is all that a loop does beside reading the rows: it draws them (the bare loop uniformly, the
facade mined ones among them), trains on them and steps. Everything is on, elastic weight
consolidation in a claim of its own; an accumulation is of one batch, as the bare loop's.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ringrift_pipeline.enhancements import (
    EWCRegularizer,
    FacadeConfig,
    TrainingConfig,
    TrainingEnhancementsFacade,
)
from ringrift_pipeline.network import NetworkConfig, RingRiftNetwork
from ringrift_pipeline.network.encoding import G_PLAYERS, NUM_GLOBALS, NUM_PLANES, ON_BOARD
from ringrift_pipeline.network.moves import MOVE_KIND_NAMES

ROWS = 1_000_000  # of the data set; the miner tracks 10,000 of them
ACTIONS = 200
SEATS = 2
# the reference project's facade, 10k buffer and 1M data set, measured apart (ms a step)
REFERENCE_OVERHEAD_MS = 8.7


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(F.relu(self.first(x))))


class Heads(nn.Module):
    """A trunk with a policy over 200 actions and a value for each of two seats."""

    def __init__(self, trunk: nn.Module, width: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.policy = nn.Linear(width, ACTIONS)
        self.value = nn.Linear(width, SEATS)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.trunk(features)
        return self.policy(hidden), self.value(hidden)


def residual_network(channels: int = 128, blocks: int = 3) -> Heads:
    trunk = nn.Sequential(
        nn.Conv2d(32, channels, 3, padding=1),
        nn.ReLU(),
        *(Residual(channels) for _ in range(blocks)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return Heads(trunk, channels)


def perceptron(width: int) -> Heads:
    trunk = nn.Sequential(
        nn.Linear(512, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
    )
    return Heads(trunk, width)


def batches(shape: tuple[int, ...], size: int, number: int = 8) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    rng = np.random.default_rng(0)
    return [
        {
            "features": torch.randn(size, *shape, generator=generator),
            "policy_targets": torch.randn(size, ACTIONS, generator=generator).softmax(dim=1),
            "value_targets": torch.rand(size, SEATS, generator=generator).softmax(dim=1),
            "legal_mask": torch.ones(size, ACTIONS, dtype=torch.bool),
            "indices": rng.integers(0, ROWS, size),
            "games": rng.integers(0, ROWS // 64, size),
            "surprise": rng.random(size),
        }
        for _ in range(number)
    ]


def default_network() -> RingRiftNetwork:
    """The network of an untouched ``TrainingConfig``, for two players on square8."""
    shape = TrainingConfig().network
    return RingRiftNetwork(
        NetworkConfig(
            blocks=shape.blocks, channels=shape.channels, value_channels=shape.value_channels
        )
    )


def game_batches(size: int, number: int = 8) -> list[dict[str, Any]]:
    """Batches shaped as training makes them on square8: 1 to 128 legal moves, mean 43."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(number):
        planes = (rng.random((size, NUM_PLANES, 8, 8)) < 0.2).astype(np.uint8)
        planes[:, ON_BOARD] = 1
        globals_ = rng.random((size, NUM_GLOBALS), dtype=np.float32)
        globals_[:, G_PLAYERS : G_PLAYERS + 3] = (1, 0, 0)
        counts = np.clip(rng.gamma(1.5, 29.0, size).astype(np.int64), 1, 128)
        legal = np.arange(counts.max()) < counts[:, None]
        cells = rng.integers(0, 64, (*legal.shape, 3)).astype(np.int16)
        cells[..., 2] = -1
        cells[~legal] = -1
        kind = np.where(legal, MOVE_KIND_NAMES.index("move_stack"), 0).astype(np.uint8)
        policy = np.where(legal, rng.exponential(size=legal.shape), 0.0)
        policy /= policy.sum(axis=1, keepdims=True)
        won = np.zeros((size, 4), dtype=np.float32)
        won[np.arange(size), rng.integers(0, 2, size)] = 1.0
        features = {
            "planes": planes,
            "globals": globals_,
            "move_kind": kind,
            "move_cells": cells,
            "move_rank": np.zeros(legal.shape, dtype=np.int16),
            "legal_mask": legal,
        }
        made.append(
            {
                "features": {name: torch.from_numpy(array) for name, array in features.items()},
                "policy_targets": torch.from_numpy(policy.astype(np.float32)),
                "value_targets": torch.from_numpy(won),
                "legal_mask": torch.from_numpy(legal),
                "indices": rng.integers(0, ROWS, size),
                "games": rng.integers(0, ROWS // 64, size),
                "surprise": rng.random(size),
                "reference_loss": rng.exponential(size=size),
            }
        )
    return made


def bare_loop(model: nn.Module) -> Callable[[dict[str, Any]], None]:
    """Uniform rows, masked policy and value cross-entropy, global clipping, AdamW: plain PyTorch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    rng = np.random.default_rng(2)

    def step(batch: dict[str, Any]) -> None:
        rng.integers(0, ROWS, len(batch["indices"]))
        optimizer.zero_grad()
        logits, value = model(batch["features"])
        policy = logits.masked_fill(~batch["legal_mask"], -1e30).log_softmax(dim=1)
        loss = -(batch["policy_targets"] * policy).sum(dim=1).mean()
        loss = loss - (batch["value_targets"] * value.log_softmax(dim=1)).sum(dim=1).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def facade_loop(
    model: nn.Module, ewc_batch: dict[str, Any] | None = None
) -> Callable[[dict[str, Any]], Any]:
    """Everything on: quality, mining and its draw, tracking, clipping, schedule, curriculum,
    averaging, anomalies; with a batch to measure importance on, elastic weight consolidation."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    config = FacadeConfig(
        schedule=TrainingConfig().schedule,
        total_steps=100_000,
        enable_curriculum_lr=True,
        hard_min_samples_before_mining=0,
    )
    ewc = None
    if ewc_batch is not None:
        ewc = EWCRegularizer(model, 1.0)
        ewc.compute_fisher([ewc_batch], num_samples=32)
    facade = TrainingEnhancementsFacade(model, optimizer, config, ewc=ewc)
    facade.set_quality_scores(np.random.default_rng(1).random(ROWS))

    def step(batch: dict[str, Any]) -> None:
        rows = facade.create_mixed_batch_indices(len(batch["indices"]), ROWS)
        facade.train_step(batch | {"indices": rows})

    return step


def compare(
    make: Callable[[], nn.Module], data: list[dict[str, Any]], pairs: int, ewc: bool = False
) -> tuple[float, float]:
    """Median of a bare and of a facade step, ms of processor time."""
    torch.manual_seed(0)
    loops = (bare_loop(make()), facade_loop(make(), data[0] if ewc else None))
    for batch in data[:3]:
        for loop in loops:
            loop(batch)
    times = np.zeros((pairs, 2))
    for pair in range(pairs):
        batch = data[pair % len(data)]
        for which in (0, 1) if pair % 2 else (1, 0):
            start = time.process_time()
            loops[which](batch)
            times[pair, which] = time.process_time() - start
    bare, facade = np.median(times, axis=0) * 1e3
    return float(bare), float(facade)


def claims(quick: bool) -> list[dict[str, Any]]:
    network = residual_network()
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    size, pairs = (64, 12) if quick else (256, 30)
    own = default_network()
    own_bare, own_facade = compare(default_network, game_batches(size), pairs)
    held_bare, held_facade = compare(default_network, game_batches(size), pairs, ewc=True)
    bare, facade = compare(residual_network, batches((32, 8, 8), size), pairs)
    small_bare, small_facade = compare(
        lambda: perceptron(16), batches((512,), 256), 200 if quick else 1000
    )
    wide = perceptron(820)
    wide_millions = sum(p.numel() for p in wide.parameters()) / 1e6
    wide_bare, wide_facade = compare(
        lambda: perceptron(820), batches((512,), 256), 60 if quick else 300
    )
    overhead = max(small_facade - small_bare, 1e-6)
    return [
        {
            "claim": "facade: a training step with everything on, the default network "
            f"({own.config.blocks} blocks x {own.config.channels} channels), batch {size}, "
            "1M rows, reference losses given",
            "value": round(own_facade, 2),
            "unit": "ms",
            "reference": round(own_bare, 2),
            "ratio": round(own_bare / own_facade, 3),
            "target": round(1 / 1.05, 3),
        },
        {
            "claim": "facade: the same and elastic weight consolidation, against the bare loop "
            "without",
            "value": round(held_facade, 2),
            "unit": "ms",
            "reference": round(held_bare, 2),
            "ratio": round(held_bare / held_facade, 3),
            "target": 0.93,
        },
        {
            "claim": f"facade: a training step with everything on, {millions:.1f}M-parameter "
            f"residual network, batch {size}",
            "value": round(facade, 2),
            "unit": "ms",
            "reference": round(bare, 2),
            "ratio": round(bare / facade, 3),
            "target": 0.95,
        },
        {
            "claim": "facade: a training step with everything on, "
            f"{wide_millions:.1f}M-parameter perceptron, batch 256",
            "value": round(wide_facade, 2),
            "unit": "ms",
            "reference": round(wide_bare, 2),
            "ratio": round(wide_bare / wide_facade, 3),
            "target": 0.9,
        },
        {
            "claim": "facade: what a step costs beyond the model's own time, batch 256, "
            "10k tracked of 1M rows",
            "value": round(overhead, 3),
            "unit": "ms",
            "reference": REFERENCE_OVERHEAD_MS,
            "ratio": round(REFERENCE_OVERHEAD_MS / overhead, 2),
            "target": 3.0,
        },
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer and smaller steps")
    parser.add_argument("--json", action="store_true", help="only the JSON lines")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.json:
        print("processor time of one thread; bare and facade steps alternate; medians")
    missed = 0
    for claim in claims(arguments.quick):
        print(json.dumps(claim), flush=True)
        missed += claim["ratio"] < claim["target"]
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()
