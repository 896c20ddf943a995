"""A small model, its batches and its loss, for tests that need something to train."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FEATURES, ACTIONS, SEATS, BATCH, ROWS = 6, 5, 2, 8, 64

Things = dict[str, Any]
Trail = list[Any]


class Net(nn.Module):
    """Features (B, 6) to policy logits (B, 5) and value logits (B, 2)."""

    def __init__(self, seed: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.body = nn.Linear(FEATURES, 7)
        self.policy, self.value = nn.Linear(7, ACTIONS), nn.Linear(7, SEATS)
        self.dropout = nn.Dropout(dropout)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(0.0, 0.4, generator=generator)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.dropout(torch.tanh(self.body(features)))
        return self.policy(hidden), self.value(hidden)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW with two groups of different rates."""
    first, *others = model.parameters()
    return torch.optim.AdamW([{"params": [first], "lr": 0.02}, {"params": others, "lr": 0.01}])


def make_batch(step: int) -> dict[str, Any]:
    """A batch that depends on the number of its step alone."""
    rng = np.random.default_rng([step, 17])
    rows = rng.choice(ROWS, BATCH, replace=False)
    return {
        "features": torch.from_numpy(rng.normal(size=(BATCH, FEATURES)).astype(np.float32)),
        "policy_targets": torch.from_numpy(rng.integers(ACTIONS, size=BATCH)),
        "value_targets": torch.eye(SEATS)[torch.from_numpy(rng.integers(SEATS, size=BATCH))],
        "indices": torch.from_numpy(rows),
        "weights": torch.linspace(0.5, 1.5, BATCH),
        "legal_mask": torch.ones(BATCH, ACTIONS, dtype=torch.bool),
        "games": rows // 4,
        "surprise": rng.random(BATCH),
        "reference_loss": rng.random(BATCH),
    }


def plain_loss(model: nn.Module, step: int) -> Tensor:
    batch = make_batch(step)
    logits, value = model(batch["features"])
    policy = nn.functional.cross_entropy(logits, batch["policy_targets"])
    return policy + nn.functional.cross_entropy(value, batch["value_targets"])


def weights_of(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def model_and_optimizer(seed: int) -> Things:
    model = Net(seed)
    return {"model": model, "optimizer": adam(model)}


def fingerprint(tree: Any) -> Any:
    """A value that is equal for trees that are equal bit for bit, types included, and prints."""
    if isinstance(tree, Tensor):
        tensor = tree.detach().cpu().contiguous()
        if tensor.dtype == torch.bfloat16:
            return "bfloat16", tuple(tensor.shape), tensor.view(torch.int16).numpy().tobytes().hex()
        return "tensor", fingerprint(tensor.numpy())
    if isinstance(tree, np.ndarray):
        if tree.dtype == object:
            return "objects", [fingerprint(value) for value in tree.tolist()]
        return str(tree.dtype), tree.shape, np.ascontiguousarray(tree).tobytes().hex()
    if isinstance(tree, dict):
        return {repr(key): fingerprint(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [fingerprint(value) for value in tree]
    if hasattr(tree, "__dataclass_fields__"):
        return [fingerprint(value) for value in vars(tree).values()]
    return type(tree).__name__, repr(tree)
