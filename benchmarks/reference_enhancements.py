"""The reference project's enhancement algorithms, written anew to be timed beside ours.

Each class or function keeps the reference's data structures and order of work (dictionaries of
records, one Python step a sample, a sort a batch), so that a ratio says something. What it gets
wrong is kept as well; none of this is for use. `BASELINES` holds the figures that the reference
itself showed on a two-core x86 machine, and `Yardstick` compares the re-creations with them, to
check that no straw man stands here.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# ms unless named otherwise; one thread
BASELINES = {
    "record a batch of 512, buffer 100k": 115.0,
    "hard indices, 256 of 100k tracked": 60.0,
    "mixed batch of 512, 1M rows": 186.0,
    "score a million games": 2260.0,
    "draw a million of a million": 224.0,
    "mean of five checkpoints, 9.7M parameters": 28.0,
    "calibration error, 1M predictions": 103.0,
    "clipper, 9.7M parameters in 52 tensors": 4.6,
    "clip_grad_norm_, 9.7M parameters in 52 tensors": 2.6,
    "per-sample loss, 512 x 7,000": 3.6,
    "tracker, record 512": 0.19,
    "squares of batch means, 1,000 samples of a 0.95M-parameter CNN": 2000.0,
    "loop over 1,000 samples of a 0.95M-parameter CNN": 8700.0,
}
CALIBRATION = "draw a million of a million"  # by torch.multinomial in float64, torch's own
ALLOWED = 1.5  # times the figure, or a part of it


class Yardstick:
    """Holds re-creations against the reference's figures, as this machine would show them.

    The figures are another machine's; each is scaled by how long ``torch.multinomial``, which is
    nobody's re-creation, takes here, beside the re-creation, and took there.
    """

    def __init__(self) -> None:
        self.scales: list[float] = []
        self.found: dict[str, float] = {}
        self._weights = torch.rand(1_000_000, dtype=torch.float64)

    def _scale(self) -> float:
        spent = []
        for _ in range(4):
            start = time.process_time()
            torch.multinomial(self._weights, len(self._weights), replacement=True)
            spent.append(time.process_time() - start)
        return 1e3 * statistics.median(spent[1:]) / BASELINES[CALIBRATION]

    def beside(self, name: str, measured: float, share: float = 1.0) -> str:
        """How a re-creation's time (ms, for a share of the work) compares with its figure."""
        self.scales.append(self._scale())
        times = measured / (BASELINES[name] * share * self.scales[-1])
        self.found[name] = times
        return f"{name}: {times:.2f} times its figure, scaled by {self.scales[-1]:.2f}"

    def verdict(self) -> str:
        """One line: which re-creations took far less or more than the reference did."""
        odd = [
            f"{name} ({times:.2f})"
            for name, times in self.found.items()
            if not 1 / ALLOWED <= times <= ALLOWED
        ]
        return (
            f"{len(self.found)} re-creations beside the reference's figures, those scaled by "
            f"{min(self.scales):.2f} to {max(self.scales):.2f} ({CALIBRATION}, torch.multinomial "
            "in float64, here over there): "
            + (f"outside {ALLOWED} times: {'; '.join(odd)}" if odd else f"all within {ALLOWED}")
        )


@dataclass
class Example:
    index: int
    loss: float
    uncertainty: float
    times_sampled: int = 1
    last_seen_step: int = 0


class Miner:
    """A dictionary of records; pruning sorts all of them, drawing scores all of them."""

    def __init__(self, buffer_size: int, hard_fraction: float = 0.3) -> None:
        self.buffer_size, self.hard_fraction = buffer_size, hard_fraction
        self.percentile, self.uncertainty_weight, self.decay = 80.0, 0.3, 0.99
        self.warm_up, self.max_times_sampled = 1000, 10
        self.examples: dict[int, Example] = {}
        self.losses: deque[float] = deque(maxlen=10_000)
        self.seen = self.step = 0

    def record_batch(self, indices: np.ndarray, losses: np.ndarray) -> None:
        uncertainties = np.zeros_like(losses)
        self.step += 1
        for index, loss, uncertainty in zip(indices, losses, uncertainties, strict=False):
            index = int(index)
            self.losses.append(loss)
            known = self.examples.get(index)
            if known is None:
                self.examples[index] = Example(index, loss, uncertainty, 1, self.step)
            else:
                known.loss = 0.7 * known.loss + 0.3 * loss
                known.uncertainty = 0.7 * known.uncertainty + 0.3 * uncertainty
                known.times_sampled += 1
                known.last_seen_step = self.step
        self.seen += len(indices)
        if len(self.examples) > self.buffer_size:
            ranked = sorted(self.examples.values(), key=self.hardness, reverse=True)
            kept = {example.index for example in ranked[: self.buffer_size]}
            self.examples = {i: e for i, e in self.examples.items() if i in kept}

    def hardness(self, example: Example) -> float:
        fading = self.decay ** (self.step - example.last_seen_step)
        penalty = 1.0 / (1.0 + example.times_sampled / self.max_times_sampled)
        weight = self.uncertainty_weight
        return ((1 - weight) * example.loss + weight * example.uncertainty) * fading * penalty

    def get_hard_indices(self, number: int) -> np.ndarray:
        if self.seen < self.warm_up or not self.examples:
            return np.array([], dtype=np.int64)
        examples = list(self.examples.values())
        scores = np.array([self.hardness(example) for example in examples])
        indices = np.array([example.index for example in examples])
        hard = scores >= np.percentile(scores, self.percentile)
        indices, scores = indices[hard], scores[hard]
        number = min(number, len(indices))
        at = np.random.choice(len(indices), size=number, replace=False, p=scores / scores.sum())
        return indices[at]

    def create_mixed_batch_indices(self, batch_size: int, all_indices: np.ndarray) -> np.ndarray:
        number = int(batch_size * self.hard_fraction)
        hard = self.get_hard_indices(number)
        taken = set(hard)
        others = np.array([index for index in all_indices if index not in taken])
        others = np.random.choice(others, size=batch_size - number, replace=False)
        batch = np.concatenate([hard, others])
        np.random.shuffle(batch)
        return batch


@dataclass
class Score:
    game_id: str
    total_score: float
    length_score: float
    elo_score: float
    diversity_score: float
    decisive_score: float
    freshness_score: float = 1.0


class Scorer:
    """One call and one record a game."""

    def __init__(self) -> None:
        self.least, self.most, self.optimum, self.spread = 20, 500, 100, 400.0
        self.bonus, self.penalty, self.hours, self.freshness_weight = 1.2, 0.8, 24.0, 0.2

    def freshness(self, timestamp: float | None, now: float) -> float:
        if timestamp is None:
            return 0.5
        age = (now - timestamp) / 3600
        if age < 0:
            return 1.0
        return max(0.0, min(1.0, math.exp(-age / self.hours)))

    def score_game(
        self,
        game_id: str,
        length: int,
        winner: int | None,
        elo_p1: float | None,
        elo_p2: float | None,
        entropy: float | None,
        timestamp: float | None,
        now: float,
    ) -> Score:
        if length < self.least:
            length_score = 0.5 * (length / self.least)
        elif length > self.most:
            length_score = 0.5 * (self.most / length)
        else:
            sigma = (self.most - self.least) / 4
            length_score = math.exp(-((length - self.optimum) ** 2) / (2 * sigma**2))
        elo_score = 0.5
        if elo_p1 is not None and elo_p2 is not None:
            elo_score = max(0, 1 - abs(elo_p1 - elo_p2) / self.spread)
        diversity = 0.5 if entropy is None else min(1.0, entropy / 3.0)
        decisive = self.bonus if winner is not None and winner > 0 else self.penalty
        fresh = self.freshness(timestamp, now)
        rest = 1.0 - self.freshness_weight
        total = (
            (0.3 * rest) * length_score
            + (0.2 * rest) * elo_score
            + (0.2 * rest) * diversity
            + (0.3 * rest) * decisive
            + self.freshness_weight * fresh
        )
        return Score(game_id, total, length_score, elo_score, diversity, decisive, fresh)


def calibration_error(predictions: np.ndarray, outcomes: np.ndarray, bins: int = 10) -> float:
    """Equal-width bins, one mask a bin; predictions and outcomes in [-1, 1]."""
    predictions, outcomes = (predictions + 1) / 2, (outcomes + 1) / 2
    edges = np.linspace(0, 1, bins + 1)
    error = 0.0
    for i in range(bins):
        low, high = edges[i], edges[i + 1]
        if i == bins - 1:
            inside = (predictions >= low) & (predictions <= high)
        else:
            inside = (predictions >= low) & (predictions < high)
        if inside.sum() > 0:
            gap = abs(outcomes[inside].mean() - predictions[inside].mean())
            error += inside.sum() / len(predictions) * gap
    return error


def per_sample_loss(logits: Tensor, targets: Tensor, value: Tensor, outcome: Tensor) -> Tensor:
    """(B,) squared value error plus cross-entropy against dense targets."""
    log_probabilities = F.log_softmax(logits, dim=-1)
    policy = -torch.sum(targets * log_probabilities, dim=-1)
    return (value.view(-1) - outcome.view(-1)).pow(2) + 1.0 * policy


class Tracker:
    """Newest losses in a dictionary, history in one queue of all samples."""

    def __init__(self, max_samples: int = 10_000, history_epochs: int = 3) -> None:
        self.max_samples = max_samples
        self.current: dict[int, float] = {}
        self.history: deque[tuple[int, int, float]] = deque(maxlen=max_samples * history_epochs)
        self.total_samples, self.total_loss, self.squares, self.epoch = 0, 0.0, 0.0, 0

    def record_batch(self, indices: Tensor | list[int], losses: Tensor, epoch: int) -> None:
        if isinstance(indices, Tensor):
            indices = indices.cpu().tolist()
        for index, loss in zip(indices, losses.detach().cpu().numpy(), strict=False):
            number = float(loss)
            self.current[index] = number
            self.history.append((epoch, index, number))
            self.total_samples += 1
            self.total_loss += number
            self.squares += number**2
        self.epoch = epoch
        if len(self.current) > self.max_samples:
            surplus = len(self.current) - self.max_samples
            for key in list(self.current.keys())[:surplus]:
                del self.current[key]


def mean_of_checkpoints(checkpoints: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of the checkpoints that all lie in memory, key by key."""
    keys = set(checkpoints[0])
    for checkpoint in checkpoints[1:]:
        keys &= set(checkpoint)
    mean = {key: checkpoints[0][key].clone().float() for key in keys}
    for checkpoint in checkpoints[1:]:
        for key in keys:
            mean[key] += checkpoint[key].float()
    for key in mean:
        mean[key] /= len(checkpoints)
        mean[key] = mean[key].to(checkpoints[0][key].dtype)
    return mean


class Clipper:
    """One norm read a tensor, a percentile of past totals, then torch's own clipping."""

    def __init__(self) -> None:
        self.bound, self.norms = 1.0, [0.0][:0]

    def update_and_clip(self, parameters: list[Tensor]) -> float:
        total = 0.0
        for parameter in parameters:
            if parameter.grad is not None:
                total += parameter.grad.data.norm(2).item() ** 2
        total = total**0.5
        self.norms.append(total)
        if len(self.norms) > 100:
            self.norms.pop(0)
        if len(self.norms) >= 10:
            self.bound = float(np.clip(np.percentile(self.norms, 90.0) * 1.5, 0.1, 10.0))
        torch.nn.utils.clip_grad_norm_(parameters, self.bound)
        return total
