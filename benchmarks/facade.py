"""What the training facade costs a step, everything on, beside the loop that everyone writes.

Run ``python benchmarks/facade.py [--quick] [--json]``. One JSON object a claim; a bigger ratio is
better, ``target`` is the least acceptable one, and the exit status is 1 when one is missed.

Steps of the loops take turns on the same batches, one thread, in blocks of 50: the facade averages
every fourth step, finds its hard examples anew every fifth and keeps a snapshot every fiftieth, so
that only whole blocks hold all of its work. A block's ratio is that of the total processor times;
the median over blocks is claimed.

A step is all that a loop does beside reading the rows: it draws them (the bare loop uniformly, the
facade mined ones among them), trains on them and steps. Everything is on, elastic weight
consolidation in a claim of its own; an accumulation is of one batch, as the bare loop's.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import reference_enhancements as reference
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
BLOCK = 50  # steps, as many as lie between two snapshots
Step = Callable[[dict[str, Any]], None]


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


def bare_loop(model: nn.Module) -> Step:
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


def new_facade(
    model: nn.Module, ewc_batch: dict[str, Any] | None = None
) -> TrainingEnhancementsFacade:
    """Everything on: quality, mining and its draw, tracking, clipping, schedule, curriculum,
    averaging, anomalies; with a batch to measure importance on, elastic weight consolidation."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    config = FacadeConfig(
        schedule=TrainingConfig().schedule,
        total_steps=100_000,
        enable_curriculum_lr=True,
        hard_min_samples_before_mining=0,
        snapshot_every=BLOCK,
    )
    ewc = None
    if ewc_batch is not None:
        ewc = EWCRegularizer(model, 1.0)
        ewc.compute_fisher([ewc_batch], num_samples=32)
    facade = TrainingEnhancementsFacade(model, optimizer, config, ewc=ewc)
    facade.set_quality_scores(np.random.default_rng(1).random(ROWS))
    return facade


def facade_loop(facade: TrainingEnhancementsFacade) -> Step:
    def step(batch: dict[str, Any]) -> None:
        rows = facade.create_mixed_batch_indices(len(batch["indices"]), ROWS)
        facade.train_step(batch | {"indices": rows})

    return step


def compare(
    make: Callable[[], nn.Module], data: list[dict[str, Any]], blocks: int, ewc: bool = False
) -> np.ndarray:
    """Processor time of a step, ms, (blocks, loops): bare, facade, and facade with EWC."""
    torch.manual_seed(0)
    facades = [new_facade(make())] + ([new_facade(make(), data[0])] if ewc else [])
    loops = [bare_loop(make()), *(facade_loop(facade) for facade in facades)]
    for batch in data[:3]:
        for loop in loops:
            loop(batch)
    spent = np.zeros((blocks, len(loops)))
    for number in range(blocks * BLOCK):
        batch = data[number % len(data)]
        for which in np.roll(range(len(loops)), number):
            start = time.process_time()
            loops[which](batch)
            spent[number // BLOCK, which] += time.process_time() - start
    for facade in facades:
        kept = facade.state_dict(include_model=False)["snapshot_extra"]["step"]
        if facade.steps != blocks * BLOCK + 3 or facade.steps - kept > BLOCK:
            raise RuntimeError(
                f"{facade.steps} steps, the last snapshot at {kept}: work is left out"
            )
    return spent / BLOCK * 1e3


def claim(
    text: str, spent: np.ndarray, which: int, target: float, note: str = ""
) -> dict[str, Any]:
    """Of times (blocks, loops): the bare loop's over those of loop ``which``."""
    ratios = spent[:, 0] / spent[:, which]
    made: dict[str, Any] = {
        "claim": f"facade: {text}",
        "value": round(float(np.median(spent[:, which])), 3),
        "unit": "ms",
        "reference": round(float(np.median(spent[:, 0])), 3),
        "ratio": round(float(np.median(ratios)), 3),
        "target": target,
    }
    spread = f"{len(ratios)} blocks of {BLOCK} steps, {ratios.min():.3f} to {ratios.max():.3f}"
    return made | {"note": f"{spread}; {note}" if note else spread}


def reference_overhead(size: int, repeats: int) -> tuple[float, float]:
    """What the reference's bookkeeping costs a step, ms: miner and tracker, and the batch's draw.

    Its miner is full, 10,000 of 1M rows; medians.
    """
    rng = np.random.default_rng(0)
    rows = np.arange(ROWS)
    np.random.seed(0)
    miner, tracker = reference.Miner(10_000), reference.Tracker(10_000)
    spent = np.zeros((repeats, 2))
    for number in range(-60, repeats):
        drawn, losses = rng.integers(0, ROWS, size), rng.exponential(size=size)
        indices, values = torch.from_numpy(drawn), torch.from_numpy(losses).float()
        start = time.process_time()
        miner.record_batch(drawn, losses)
        tracker.record_batch(indices, values, 0)
        if number < 0:
            continue
        miner.get_hard_indices(int(size * miner.hard_fraction))
        between = time.process_time()
        miner.create_mixed_batch_indices(size, rows)
        spent[number] = between - start, time.process_time() - between
    kept, mixed = np.median(spent, axis=0) * 1e3
    return float(kept), float(mixed)


def claims(quick: bool) -> Iterator[dict[str, Any]]:
    goal = round(1 / 1.05, 3)
    size = 64 if quick else 256
    own = default_network()
    spent = compare(default_network, game_batches(size), 3, ewc=True)
    about = (
        f"the default network ({own.config.blocks} blocks x {own.config.channels} channels), "
        f"batch {size}, 1M rows, reference losses given"
    )
    yield claim(f"a training step with everything on but EWC, {about}", spent, 1, goal)
    yield claim(
        "a training step with everything on, elastic weight consolidation too, against the bare "
        f"loop without, {about}",
        spent,
        2,
        goal,
    )
    millions = sum(p.numel() for p in residual_network().parameters()) / 1e6
    spent = compare(residual_network, batches((32, 8, 8), 64), 1 if quick else 3)
    yield claim(
        f"a training step with everything on but EWC, {millions:.1f}M-parameter residual network, "
        "batch 64",
        spent,
        1,
        goal,
    )
    millions = sum(p.numel() for p in perceptron(820).parameters()) / 1e6
    spent = compare(lambda: perceptron(820), batches((512,), 256), 5 if quick else 15, ewc=True)
    about = f"{millions:.1f}M-parameter perceptron, batch 256"
    short = "5% is not held by steps this short"
    yield claim(f"the same, {about} ({short})", spent, 1, 0.85)
    yield claim(f"the same with EWC, {about} ({short})", spent, 2, 0.75)
    spent = compare(lambda: perceptron(16), batches((512,), 256), 10 if quick else 40)
    overhead = max(float(np.median(spent[:, 1] - spent[:, 0])), 1e-6)
    kept, mixed = reference_overhead(256, 7 if quick else 20)
    for text, against, target in (
        (
            "what a step costs beyond the model's own time, its draw of the batch included, "
            "against the reference's miner and tracker, recording and drawing hard examples alone",
            kept,
            3.0,
        ),
        ("the same against these and the reference's mixed batch", kept + mixed, 30.0),
    ):
        yield {
            "claim": f"facade: {text}; batch 256, 10k tracked of 1M rows",
            "value": round(overhead, 3),
            "unit": "ms",
            "reference": round(against, 3),
            "ratio": round(against / overhead, 2),
            "target": target,
            "note": "the reference's algorithms written anew, timed in this run",
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer and smaller steps")
    parser.add_argument("--json", action="store_true", help="only the JSON lines")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.json:
        print(f"processor time of one thread; medians over blocks of {BLOCK} steps of every loop")
    missed = 0
    for made in claims(arguments.quick):
        print(json.dumps(made), flush=True)
        missed += made["ratio"] < made["target"]
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()
