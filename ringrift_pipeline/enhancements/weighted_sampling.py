"""Systematic sampling in proportion to weights.

The sampler draws systematically (Madow 1949) in float64: one uniform number places a
comb of equally spaced points over the cumulative weights, in a random order of the items. Every
count is then its expectation rounded down or up, and there is no limit on the number of items.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from torch.utils.data import Sampler

from ringrift_pipeline.enhancements.argument_checks import check_number

__all__ = ["QualityWeightedSampler", "score_weights"]

LEAST_SCORE = 0.01
"""Scores below count as this, so that everything can be drawn and corrections stay finite."""


def _score_array(scores: Any) -> np.ndarray:
    """Total scores as a float64 array, checked."""
    if isinstance(scores, torch.Tensor):
        values = scores.detach().to("cpu", torch.float64).numpy()
    elif isinstance(scores, (np.ndarray, pl.Series)):
        values = np.asarray(scores, dtype=np.float64)
    else:
        values = np.array(
            [getattr(score, "total_score", score) for score in scores], dtype=np.float64
        )
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"scores must be a non-empty flat list, got shape {values.shape}")
    wrong = ~((values >= 0.0) & (values <= 1.0))
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(f"scores must lie in [0, 1], got {values[row]} at index {row}")
    return values


def score_weights(
    scores: Sequence[Any] | np.ndarray | torch.Tensor | pl.Series, temperature: float = 1.0
) -> np.ndarray:
    """Weights, float64 (n,), summing to 1: score ** (1 / temperature), normalised.

    Args:
        scores: numbers in [0, 1], or records with a ``total_score``.
        temperature: > 0; 1 is in proportion to the score, less is sharper, more is flatter.

    Raises:
        ValueError: for scores outside [0, 1] or not finite, or a temperature not > 0.
    """
    temperature = float(temperature)
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0 (large for uniform weights), got {temperature}")
    with np.errstate(under="ignore"):
        logits = np.log(np.maximum(_score_array(scores), LEAST_SCORE)) / temperature
        weights = np.exp(logits - logits.max())
    return weights / weights.sum()


class QualityWeightedSampler(Sampler[int]):
    """Draws indices in proportion to quality, for `torch.utils.data.DataLoader` or by `draw`.

    The draw depends on seed and epoch alone. Over `world_size` ranks every rank takes its own
    part of one common draw, equally many each; the draw is made a little larger where it does not
    divide (smaller, where it cannot be).

    Args:
        scores: quality in [0, 1] of every item, or `GameQualityScore`s.
        num_samples: draws an epoch over all ranks; default as many as there are items.
        replacement: with it, item i is drawn floor or ceil of its expected count times; without,
            at most once, with the inclusion probabilities capped at 1 and the rest rescaled.
        temperature: see `DataQualityScorer.compute_sample_weights`.
        weights: weights >= 0 of any scale, used in place of those from `scores`
            (pass ``scores=None``).
        seed: any integer >= 0.
        rank, world_size: which part of the draw this process takes.

    Raises:
        ValueError: for bad scores, weights, counts or ranks.
    """

    def __init__(
        self,
        scores: Sequence[Any] | np.ndarray | torch.Tensor | pl.Series | None,
        num_samples: int | None = None,
        replacement: bool = True,
        temperature: float = 1.0,
        *,
        weights: np.ndarray | torch.Tensor | Sequence[float] | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if (scores is None) == (weights is None):
            raise ValueError("give either scores or weights")
        if scores is not None:
            values = score_weights(scores, temperature)
        else:
            if isinstance(weights, torch.Tensor):
                weights = weights.detach().to("cpu", torch.float64).numpy()
            values = np.array(weights, dtype=np.float64)
            if values.ndim != 1 or values.size == 0:
                raise ValueError(f"weights must be a non-empty flat list, got {values.shape}")
            if not (np.isfinite(values).all() and (values >= 0).all() and values.max() > 0):
                raise ValueError("weights must be finite, >= 0 and not all 0")
            values = values / values.max()
            values /= values.sum()
        if num_samples is None:
            num_samples = values.size
        if int(num_samples) != num_samples or num_samples < 1:
            raise ValueError(f"num_samples must be a positive integer, got {num_samples!r}")
        if world_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in [0, world_size), got {rank} of {world_size}")
        if seed < 0:
            raise ValueError(f"seed must be >= 0, got {seed}")
        self.weights = values
        self.replacement = bool(replacement)
        self.seed, self.rank, self.world_size = int(seed), int(rank), int(world_size)
        self.epoch = 0
        self._offset = 0
        total = -(-int(num_samples) // world_size) * world_size
        if not self.replacement:
            available = int(np.count_nonzero(values))
            if num_samples > available:
                raise ValueError(
                    f"cannot draw {num_samples} without replacement from {available} items of "
                    "positive weight"
                )
            if total > available:
                total -= world_size
            if total == 0:
                raise ValueError(f"{available} items do not reach for {world_size} ranks")
        self.total_size = total
        self.expected_counts = self._expectation()

    def _expectation(self) -> np.ndarray:
        expected = self.weights * self.total_size
        if self.replacement:
            return expected
        certain = np.zeros(expected.size, dtype=bool)
        while True:
            over = ~certain & (expected > 1.0)
            if not over.any():
                return expected
            certain |= over
            rest = ~certain
            mass = self.weights[rest].sum()
            expected[certain] = 1.0
            if mass > 0:
                expected[rest] = self.weights[rest] / mass * (self.total_size - certain.sum())

    def __len__(self) -> int:
        """Draws an epoch of this rank."""
        return self.total_size // self.world_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws."""
        if epoch < 0:
            raise ValueError(f"epoch must be >= 0, got {epoch}")
        self.epoch = int(epoch)
        self._offset = 0

    def draw(self, epoch: int | None = None) -> np.ndarray:
        """This rank's indices for an epoch, int64 (len(self),), in random order."""
        return self._draw(self.epoch if epoch is None else epoch)[self.rank :: self.world_size]

    def _draw(self, epoch: int) -> np.ndarray:
        if epoch < 0:
            raise ValueError(f"epoch must be >= 0, got {epoch}")
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, epoch]))
        order = rng.permutation(self.weights.size)
        edges = np.cumsum(self.expected_counts[order])
        edges *= self.total_size / edges[-1]
        # comb teeth at u, u + 1, …: an item holds the teeth between its two edges
        teeth = np.ceil(edges - rng.random()).astype(np.int64)
        np.clip(teeth, 0, self.total_size, out=teeth)
        teeth[-1] = self.total_size
        drawn = np.repeat(order, np.diff(teeth, prepend=0))
        return rng.permutation(drawn)

    def __iter__(self) -> Iterator[int]:
        start, self._offset = self._offset, 0
        return iter(self.draw()[start:].tolist())

    def importance_weights(
        self, indices: np.ndarray | torch.Tensor | None = None, beta: float = 1.0
    ) -> np.ndarray | torch.Tensor:
        """Corrections that undo the sampling: mean over draws of correction * f is unbiased.

        The correction of item i is (total / items / expected count) ** beta; with beta 1 the
        expectation of the corrected mean is the plain mean over all items of positive weight.

        Args:
            indices: items to give corrections for, default all; a tensor gives a tensor on the
                same device.
            beta: 0 for none, 1 for the full correction.

        Returns:
            float64, in the shape of `indices`; items of weight 0 have correction 0.
        """
        beta = check_number("beta", beta, 0.0, 1.0)
        positive = self.expected_counts > 0
        corrections = np.zeros(self.weights.size)
        scale = self.total_size / np.count_nonzero(positive)
        corrections[positive] = (scale / self.expected_counts[positive]) ** beta
        if indices is None:
            return corrections
        if isinstance(indices, torch.Tensor):
            return torch.from_numpy(corrections).to(indices.device)[indices]
        return corrections[np.asarray(indices)]

    def state_dict(self, consumed: int = 0) -> dict[str, Any]:
        """State to resume from.

        Args:
            consumed: indices of the current epoch already used by this rank (a loader fetches
                ahead, so only the training loop knows); the resumed epoch starts after them.
        """
        if not 0 <= consumed <= len(self):
            raise ValueError(f"consumed must lie in [0, {len(self)}], got {consumed}")
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "offset": int(consumed),
            "total_size": self.total_size,
            "replacement": self.replacement,
            "weights": self._digest(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume; refuses a state that was taken from other weights or sizes."""
        for name, own in (
            ("total_size", self.total_size),
            ("replacement", self.replacement),
            ("weights", self._digest()),
        ):
            if state.get(name) != own:
                raise ValueError(
                    f"sampler state does not fit: {name} was {state.get(name)!r}, is {own!r}"
                )
        self.seed = int(state["seed"])
        self.set_epoch(int(state["epoch"]))
        self._offset = int(state["offset"])

    def _digest(self) -> str:
        return hashlib.sha256(self.weights.tobytes()).hexdigest()
