"""Systematic sampling in proportion to weights.

The sampler draws systematically (Madow 1949) in float64: one uniform number places a
comb of equally spaced points over the cumulative weights, in a random order of the items. Every
count is then its expectation rounded down or up, and there is no limit on the number of items.
Items are taken a million at a time, which also spreads the draw evenly over the data set; more than
65,536 of them are dealt to 256 piles at random and taken pile by pile: every item decides its own
pile, so neighbours are as good as independent, at less than half of the cost.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from torch.utils.data import Sampler

from ringrift_pipeline.enhancements.argument_checks import (
    LARGEST_SEED,
    check_flag,
    check_number,
    check_whole,
    host_array,
    number_array,
    whole_state,
)
from ringrift_pipeline.enhancements.random_order import PIECE, dealt, shuffled

__all__ = ["QualityWeightedSampler", "score_weights"]

LEAST_SCORE = 0.01
"""Scores below count as this, so that everything can be drawn and corrections stay finite."""


MAX_DRAWS = 2**32
"""Draws an epoch: an index of each takes eight bytes."""


def _score_array(scores: Any) -> np.ndarray:
    """Total scores as a float64 array, checked."""
    if isinstance(scores, (list, tuple)):
        scores = [getattr(score, "total_score", score) for score in scores]
    values = number_array("scores", scores)
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
    temperature = check_number("temperature", temperature, 0.0, above=True)
    weights = np.maximum(_score_array(scores), LEAST_SCORE)
    if temperature != 1.0:
        with np.errstate(under="ignore"):
            logits = np.log(weights) / temperature
            weights = np.exp(logits - logits.max())
    weights /= weights.sum()
    return weights


class QualityWeightedSampler(Sampler[int]):
    """Draws indices in proportion to quality, for `torch.utils.data.DataLoader` or by `draw`.

    The draw depends on seed and epoch alone. Over `world_size` ranks every rank takes its own
    part of one common draw, equally many each; the draw is made a little larger where it does not
    divide (smaller, where it cannot be).

    Args:
        scores: quality in [0, 1] of every item, or `GameQualityScore`s.
        num_samples: draws an epoch over all ranks, at most 2**32; default as many as there are items.
        replacement: with it, item i is drawn floor or ceil of its expected count times; without,
            at most once, with the inclusion probabilities capped at 1 and the rest rescaled.
        temperature: see `DataQualityScorer.compute_sample_weights`.
        weights: weights >= 0 of any scale, used in place of those from `scores`
            (pass ``scores=None``).
        seed: from 0 and below 2**128.
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
            values = number_array("weights", weights).copy()
            if values.ndim != 1 or values.size == 0:
                raise ValueError(f"weights must be a non-empty flat list, got {values.shape}")
            if not (np.isfinite(values).all() and (values >= 0).all() and values.max() > 0):
                raise ValueError("weights must be finite, >= 0 and not all 0")
            values /= values.max()
            values /= values.sum()
        if num_samples is None:
            num_samples = values.size
        num_samples = check_whole("num_samples", num_samples, 1, MAX_DRAWS + 1)
        self.weights = values
        self.replacement = check_flag("replacement", replacement)
        self.seed = check_whole("seed", seed, 0, LARGEST_SEED)
        self.world_size = check_whole("world_size", world_size, 1)
        self.rank = check_whole("rank", rank, 0, self.world_size)
        self.epoch = 0
        self._offset = 0
        total = -(-int(num_samples) // world_size) * world_size
        if not self.replacement:
            available = int(np.count_nonzero(values))
            if num_samples > available:
                raise ValueError(
                    f"cannot draw num_samples={num_samples} without replacement from {available} items of "
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
        self.epoch = check_whole("epoch", epoch, 0)
        self._offset = 0

    def draw(self, epoch: int | None = None) -> np.ndarray:
        """This rank's indices for an epoch, int64 (len(self),), in random order."""
        return self._draw(self.epoch if epoch is None else epoch)[self.rank :: self.world_size]

    def _draw(self, epoch: int) -> np.ndarray:
        epoch = check_whole("epoch", epoch, 0)
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, epoch]))
        start = rng.random()
        items = self.weights.size
        starts = range(0, items, PIECE)
        masses = np.array([self.expected_counts[at : at + PIECE].sum() for at in starts])
        bounds = np.cumsum(masses)
        full = int(np.searchsorted(bounds, bounds[-1]))
        bounds *= self.total_size / bounds[-1]
        bounds[full:] = self.total_size
        parts = []
        low = 0.0
        for at, mass, high in zip(starts, masses, bounds, strict=True):
            if mass > 0:
                parts.append(self._teeth(at, low - start, high - start, rng))
            low = high
        return shuffled(np.concatenate(parts), rng)

    def _teeth(self, at: int, low: float, high: float, rng: np.random.Generator) -> np.ndarray:
        """Items of one piece from ``at``, laid from ``low`` to ``high``, by the teeth they hold."""
        expected = self.expected_counts[at : at + PIECE]
        items = expected.size
        order = rng.permutation(items) if items <= 2**16 else dealt(items, 256, rng)[0]
        edges = np.cumsum(expected.take(order))
        last = int(np.searchsorted(edges, edges[-1]))  # beyond it weigh nothing
        edges *= (high - low) / edges[-1]
        edges += low
        edges[last:] = high
        # comb teeth at 0, 1, …: an item holds the teeth between its two edges
        np.ceil(edges, out=edges)
        np.clip(edges, max(0.0, math.ceil(low)), math.ceil(high), out=edges)
        teeth = edges.astype(np.int64)
        teeth[1:] -= edges[:-1].astype(np.int64)
        teeth[0] -= max(0, math.ceil(low))
        # moves half of the memory where it can
        order += at
        narrow = np.int32 if self.weights.size <= 2**31 else np.int64
        return np.repeat(order.astype(narrow), teeth)

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
        items = host_array("indices", indices)
        if items.dtype.kind not in "iu" or ((items < 0) | (items >= corrections.size)).any():
            raise ValueError(f"indices must be whole numbers from 0 to {corrections.size - 1}")
        if isinstance(indices, torch.Tensor):
            return torch.from_numpy(corrections[items]).to(indices.device)
        return corrections[items]

    def state_dict(self, consumed: int = 0) -> dict[str, Any]:
        """State to resume from.

        Args:
            consumed: indices of the current epoch already used by this rank (a loader fetches
                ahead, so only the training loop knows); the resumed epoch starts after them.
        """
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "offset": check_whole("consumed", consumed, 0, len(self) + 1),
            "total_size": self.total_size,
            "replacement": self.replacement,
            "weights": self._digest(),
        }

    @whole_state
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
        self.seed = check_whole("seed", state["seed"], 0, LARGEST_SEED)
        self.set_epoch(state["epoch"])
        self._offset = check_whole("offset", state["offset"], 0, len(self) + 1)

    def _digest(self) -> str:
        return hashlib.sha256(self.weights.tobytes()).hexdigest()
