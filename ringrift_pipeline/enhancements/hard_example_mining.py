"""Hard examples: which samples of a data set to show the model more often.

A sample's hardness is::

    max(0, loss - reference loss) + uncertainty_weight * uncertainty + surprise_weight * surprise

The reference loss (another model's loss on the same sample, where given) takes out the noise no
model can learn (RHO-LOSS, Mindermann et al. 2022, arXiv:2206.07137). Hardness fades with the number
of samples seen since it was measured. Everything is an array with one row a tracked sample;
recording a batch of B costs O(B), pruning included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ringrift_pipeline.enhancements.example_selection import (
    is_member,
    rows_at,
    top_with_limit,
)
from ringrift_pipeline.enhancements.sample_slots import (
    MAX_INDEX,
    SampleSlots,
    as_floats,
    as_indices,
    run_starts,
)

Values = Sequence[float] | np.ndarray | Tensor
Indices = Sequence[int] | np.ndarray | Tensor

_LEAST_HARDNESS = 1e-30  # so that its logarithm exists


@dataclass(frozen=True)
class HardExample:
    """One tracked sample."""

    index: int  # row of the data set
    loss: float  # smoothed; NaN if only loaded, never recorded
    uncertainty: float
    times_sampled: int = 0  # times drawn as a hard example
    last_seen_step: int = 0  # number of the record_batch call
    surprise: float = 0.0
    hardness: float = 0.0  # faded up to now
    game: int = -1  # -1: not known


# columns of the two tables, one row a tracked sample; and a row of a sample not seen yet
KEY, LOSS, UNCERTAINTY, SURPRISE = range(4)  # key: log hardness + fading * samples seen then,
STEP, GAME = range(2)  # so that the order of the keys does not change as hardness fades
_NEW_MEASURES = (-math.inf, math.nan, 0.0, 0.0)
_NEW_FACTS = (0, -1)


class HardExampleMiner:
    """Tracks the hardest samples and draws from them.

    Args:
        buffer_size: samples tracked; beyond it the least hard are dropped.
        hard_fraction: share of a mixed batch drawn from the hard examples, in [0, 1].
        loss_threshold_percentile: percentile of the tracked hardness from which a sample is hard.
        uncertainty_weight: factor of the uncertainty (nats, say) in the hardness, >= 0.
        decay_rate: factor left of a hardness after ``buffer_size`` more samples were seen, (0, 1].
        min_samples_before_mining: samples seen before anything counts as hard; examples loaded
            with :meth:`load_examples` count at once.
        max_times_sampled: how often one sample may be drawn (or, with ``count=True``, weighted)
            as hard, ever: leaving the buffer and coming back does not start the count anew.
        surprise_weight: factor of the search surprise (nats) in the hardness, >= 0.
        max_game_share: at most this share of the hard examples drawn at a time is of one game
            (at least one example), (0, 1].
        smoothing: weight of a new loss against the smoothed one of the same sample, (0, 1].
        seed: what ``numpy.random.default_rng`` takes: an int, a SeedSequence or a Generator.
    """

    def __init__(
        self,
        buffer_size: int = 10_000,
        hard_fraction: float = 0.3,
        loss_threshold_percentile: float = 80.0,
        uncertainty_weight: float = 0.3,
        decay_rate: float = 0.99,
        min_samples_before_mining: int = 1_000,
        max_times_sampled: int = 10,
        *,
        surprise_weight: float = 0.0,
        max_game_share: float = 1.0,
        smoothing: float = 0.5,
        seed: int | np.random.SeedSequence | np.random.Generator = 0,
    ) -> None:
        _check(buffer_size >= 1, "buffer_size", ">= 1", buffer_size)
        _check(0.0 <= hard_fraction <= 1.0, "hard_fraction", "in [0, 1]", hard_fraction)
        _check(
            0.0 <= loss_threshold_percentile <= 100.0,
            "loss_threshold_percentile",
            "in [0, 100]",
            loss_threshold_percentile,
        )
        for name, weight in (
            ("uncertainty_weight", uncertainty_weight),
            ("surprise_weight", surprise_weight),
        ):
            _check(math.isfinite(weight) and weight >= 0.0, name, "finite and >= 0", weight)
        _check(0.0 < decay_rate <= 1.0, "decay_rate", "in (0, 1]", decay_rate)
        _check(
            min_samples_before_mining >= 0,
            "min_samples_before_mining",
            ">= 0",
            min_samples_before_mining,
        )
        _check(max_times_sampled >= 1, "max_times_sampled", ">= 1", max_times_sampled)
        _check(0.0 < max_game_share <= 1.0, "max_game_share", "in (0, 1]", max_game_share)
        _check(0.0 < smoothing <= 1.0, "smoothing", "in (0, 1]", smoothing)
        self.buffer_size = int(buffer_size)
        self.hard_fraction = float(hard_fraction)
        self.loss_threshold_percentile = float(loss_threshold_percentile)
        self.uncertainty_weight = float(uncertainty_weight)
        self.decay_rate = float(decay_rate)
        self.min_samples_before_mining = int(min_samples_before_mining)
        self.max_times_sampled = int(max_times_sampled)
        self.surprise_weight = float(surprise_weight)
        self.max_game_share = float(max_game_share)
        self.smoothing = float(smoothing)
        self._fading = -math.log(self.decay_rate) / self.buffer_size  # a sample
        # Rows beyond buffer_size let pruning, O(buffer), happen once in so many new samples.
        self._spare = max(self.buffer_size // 4, 1024)
        self._generator = np.random.default_rng(seed)
        self._initial_generator = self._generator.bit_generator.state
        self._clear()

    def _clear(self) -> None:
        capacity = self.buffer_size + self._spare
        self._slots = SampleSlots(capacity)
        self._measures = np.tile(np.array(_NEW_MEASURES), (capacity, 1))  # float64
        self._facts = np.tile(np.array(_NEW_FACTS, dtype=np.int64), (capacity, 1))
        self._draws = np.zeros(1024, dtype=np.uint32)  # by data-set index: times drawn as hard
        self._seen = 0
        self._steps = 0
        self._skipped = 0
        self._loaded = False
        self._threshold = -math.inf  # of the key, as of the last refresh
        self._recorded_since_threshold: int | None = None  # None: no threshold yet

    def reset(self) -> None:
        """Back to the state after construction, the generator included."""
        self._clear()
        self._generator.bit_generator.state = self._initial_generator

    @property
    def mining_active(self) -> bool:
        """Whether samples count as hard: enough seen, or examples loaded."""
        return self._loaded or self._seen >= self.min_samples_before_mining

    def record_batch(
        self,
        indices: Indices,
        losses: Values,
        uncertainties: Values | None = None,
        *,
        surprises: Values | None = None,
        reference_losses: Values | None = None,
        games: Indices | None = None,
    ) -> int:
        """Record what a batch showed; every argument has shape (B,).

        Args:
            indices: data-set rows, >= 0. An index that occurs twice counts with its mean.
            losses: the model's loss of each sample.
            uncertainties: the model's uncertainty, say the policy's entropy in nats.
            surprises: KL of the search policy against the prior, nats.
            reference_losses: a reference model's loss; give it always or never, so that hardness
                stays comparable.
            games: the game of each sample, >= 0, for ``max_game_share``.

        Returns:
            The number of samples recorded. One with a number that is not finite is skipped and
            counted in ``get_statistics()["skipped_non_finite"]``.

        Raises:
            ValueError: lengths that differ, indices or games that are negative or not whole.
        """
        rows = as_indices(indices)
        size = rows.size
        loss = as_floats(losses, size, "losses")
        extra = {
            "uncertainty": (uncertainties, "uncertainties"),
            "surprise": (surprises, "surprises"),
        }
        columns = {
            key: as_floats(values, size, name)
            for key, (values, name) in extra.items()
            if values is not None
        }
        columns["excess"] = loss
        if reference_losses is not None:
            columns["excess"] = loss - as_floats(reference_losses, size, "reference_losses")
        columns["loss"] = loss
        game = None if games is None else _as_games(games, size)
        finite = np.isfinite(sum(columns.values()))
        recorded = int(np.count_nonzero(finite))
        self._skipped += size - recorded
        self._steps += 1
        if recorded < size:
            rows = rows[finite]
            columns = {key: values[finite] for key, values in columns.items()}
            game = None if game is None else game[finite]
        if recorded == 0:
            return 0
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        starts = run_starts(ordered)
        distinct, first = ordered[starts], order[starts]
        if distinct.size < recorded:
            at = np.flatnonzero(starts)
            times = np.diff(at, append=recorded)
            columns = {k: np.add.reduceat(v[order], at) / times for k, v in columns.items()}
        else:
            columns = {k: v[order] for k, v in columns.items()}
        game = None if game is None else game[first]
        self._seen += recorded
        for start in range(0, distinct.size, self._spare):  # one piece, unless the batch is huge
            piece = slice(start, start + self._spare)
            self._update(
                distinct[piece],
                {key: values[piece] for key, values in columns.items()},
                None if game is None else game[piece],
            )
        if self._recorded_since_threshold is not None:
            self._recorded_since_threshold += recorded
        return recorded

    def _update(
        self, indices: np.ndarray, columns: dict[str, np.ndarray], game: np.ndarray | None
    ) -> None:
        slots = self._claim(indices)
        measures = self._measures[slots]
        old = measures[:, LOSS]
        known = old == old  # not NaN
        kept = np.where(known, 1.0 - self.smoothing, 0.0)  # share of what was measured before
        shift = kept * np.where(known, old - columns["loss"], 0.0)
        hardness = np.maximum(columns["excess"] + shift, 0.0)
        for column, name, weight in (
            (UNCERTAINTY, "uncertainty", self.uncertainty_weight),
            (SURPRISE, "surprise", self.surprise_weight),
        ):
            if name in columns:
                new = columns[name]
                measures[:, column] = new + kept * (measures[:, column] - new)
            if weight:
                hardness += weight * np.maximum(measures[:, column], 0.0)
        measures[:, LOSS] = columns["loss"] + shift
        measures[:, KEY] = np.log(np.maximum(hardness, _LEAST_HARDNESS)) + self._faded
        self._measures[slots] = measures
        self._facts[slots, STEP] = self._steps
        if game is not None:
            self._facts[slots, GAME] = game

    @property
    def _faded(self) -> float:
        return self._fading * self._seen

    def _claim(self, indices: np.ndarray) -> np.ndarray:
        """Slots of distinct indices, at most ``_spare`` of them, pruning first where needed."""
        slots = self._slots.lookup(indices)
        new = slots < 0
        number = int(np.count_nonzero(new))
        if number > self._slots.room:
            self._prune()
            slots = self._slots.lookup(indices)
            new = slots < 0
            number = int(np.count_nonzero(new))
        if number:
            fresh = self._slots.assign(indices[new])
            self._measures[fresh] = _NEW_MEASURES
            self._facts[fresh] = _NEW_FACTS
            slots[new] = fresh
        return slots

    def _prune(self) -> None:
        """Drop the least hard beyond ``buffer_size``."""
        surplus = self._slots.count - self.buffer_size
        if surplus > 0:
            used = self._slots.used()
            self._slots.release(used[np.argpartition(self._measures[used, KEY], surplus)[:surplus]])

    def load_examples(
        self, indices: Indices, hardness: Values, games: Indices | None = None
    ) -> None:
        """Begin with known hard examples: mining is active at once.

        Args:
            indices: (K,) distinct data-set rows.
            hardness: (K,) finite, >= 0, on the scale of the losses to come.
            games: (K,) the game of each, >= 0.

        Raises:
            ValueError: lengths that differ, a repeated index, hardness negative or not finite.
        """
        rows = as_indices(indices)
        values = as_floats(hardness, rows.size, "hardness")
        game = None if games is None else _as_games(games, rows.size)
        if np.unique(rows).size != rows.size:
            raise ValueError("indices of loaded examples must be distinct")
        if not (np.isfinite(values).all() and (values >= 0.0).all()):
            raise ValueError("hardness must be finite and not negative")
        if rows.size == 0:
            return
        hardest = np.sort(np.argsort(-values, kind="stable")[: self.buffer_size])
        for start in range(0, hardest.size, self._spare):
            piece = hardest[start : start + self._spare]
            slots = self._claim(rows[piece])
            self._measures[slots] = _NEW_MEASURES
            self._facts[slots] = _NEW_FACTS
            key = np.log(np.maximum(values[piece], _LEAST_HARDNESS)) + self._faded
            self._measures[slots, KEY] = key
            if game is not None:
                self._facts[slots, GAME] = game[piece]
        self._loaded = True
        self._recorded_since_threshold = None

    def _refresh_threshold(self) -> None:
        """Find the key from which a sample is hard; O(buffer)."""
        keys = self._measures[self._slots.used(), KEY]
        self._recorded_since_threshold = 0
        if keys.size == 0:
            self._threshold = -math.inf
            return
        rank = math.ceil(self.loss_threshold_percentile / 100.0 * (keys.size - 1) - 1e-9)
        self._threshold = float(np.partition(keys, rank)[rank])

    def _times_drawn(self, indices: np.ndarray) -> np.ndarray:
        self._grow_draws(indices)
        return self._draws[indices]

    def _grow_draws(self, indices: np.ndarray) -> None:
        top = int(indices.max(initial=0)) + 1
        if top > self._draws.size:
            grown = np.zeros(max(top, 2 * self._draws.size), dtype=np.uint32)
            grown[: self._draws.size] = self._draws
            self._draws = grown

    def get_hard_indices(
        self, num_samples: int, return_scores: bool = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Draw distinct hard examples, with probability in proportion to hardness.

        Each draw counts towards ``max_times_sampled``.

        Returns:
            (K,) int64 data-set indices, K <= num_samples (0 before mining is active; fewer where
            the caps leave fewer), and with ``return_scores`` their (K,) hardness.
        """
        _check(num_samples >= 0, "num_samples", ">= 0", num_samples)
        indices, scores = self._draw(int(num_samples), None)
        return (indices, scores) if return_scores else indices

    def _draw(
        self, number: int, population: np.ndarray | range | None
    ) -> tuple[np.ndarray, np.ndarray]:
        nothing = np.zeros(0, dtype=np.int64), np.zeros(0)
        if number == 0 or not self.mining_active or self._slots.count == 0:
            return nothing
        self._prune()
        self._refresh_threshold()
        slots = self._slots.used()
        slots = slots[self._measures[slots, KEY] >= self._threshold]
        indices = self._slots.index_of[slots]
        allowed = self._times_drawn(indices) < self.max_times_sampled
        if population is not None:
            allowed &= is_member(indices, population)
        slots = slots[allowed]
        if slots.size == 0:
            return nothing
        # Gumbel top-k: without replacement, in proportion to hardness (Efraimidis & Spirakis 2006)
        noisy = self._measures[slots, KEY] + self._generator.gumbel(size=slots.size)
        limit = max(1, math.floor(self.max_game_share * number))
        chosen = slots[top_with_limit(noisy, self._facts[slots, GAME], number, limit)]
        indices = self._slots.index_of[chosen]
        self._draws[indices] += 1
        return indices, np.exp(self._measures[chosen, KEY] - self._faded)

    def get_sample_weights(
        self,
        indices: Indices,
        base_weight: float = 1.0,
        hard_weight: float = 2.0,
        *,
        count: bool = False,
    ) -> np.ndarray:
        """Loss weights (B,) float64: ``hard_weight`` for hard examples, else ``base_weight``.

        O(B): the threshold of "hard" is found anew once an eighth of the buffer was recorded.

        Args:
            indices: (B,) data-set rows.
            base_weight: weight of the others, and of all before mining is active.
            hard_weight: weight of a hard example that has not reached ``max_times_sampled``.
            count: count the use towards ``max_times_sampled``.
        """
        rows = as_indices(indices)
        weights = np.full(rows.size, float(base_weight))
        if not self.mining_active or self._slots.count == 0 or rows.size == 0:
            return weights
        if (
            self._recorded_since_threshold is None
            or 8 * self._recorded_since_threshold >= self._slots.count
        ):
            self._refresh_threshold()
        slots = self._slots.lookup(rows)
        hard = (slots >= 0) & (self._measures[slots, KEY] >= self._threshold)
        hard &= self._times_drawn(rows) < self.max_times_sampled
        weights[hard] = float(hard_weight)
        if count:
            self._draws[rows[hard]] += 1
        return weights

    def create_mixed_batch_indices(
        self, batch_size: int, all_indices: int | range | Indices
    ) -> np.ndarray:
        """A batch of hard and of uniformly drawn samples, shuffled; always ``batch_size`` long.

        ``hard_fraction`` of it is drawn as :meth:`get_hard_indices` does, of members of
        ``all_indices`` only; the rest uniformly from the others without replacement (with
        repetition only where the data set is smaller than the batch).

        Args:
            batch_size: length of the result, >= 1.
            all_indices: the data set: its size N (rows 0 .. N-1), or its rows, distinct.

        Returns:
            (batch_size,) int64.
        """
        _check(batch_size >= 1, "batch_size", ">= 1", batch_size)
        if isinstance(all_indices, (int, np.integer)):
            _check(0 <= int(all_indices) <= MAX_INDEX, "all_indices", "a size", all_indices)
            population: np.ndarray | range = range(int(all_indices))
        elif isinstance(all_indices, Tensor):
            population = all_indices.detach().cpu().numpy()
        elif isinstance(all_indices, range):
            population = all_indices
        else:
            population = np.asarray(all_indices)
        if not isinstance(population, range) and (
            population.ndim != 1 or (population.size and population.dtype.kind not in "iu")
        ):
            raise ValueError(
                f"all_indices must be integers (N,), got {population.dtype} {population.shape}"
            )
        size = len(population)
        if size == 0:
            raise ValueError("all_indices is empty: there is nothing to draw a batch from")
        hard, _ = self._draw(int(batch_size * self.hard_fraction), population)
        missing = batch_size - hard.size
        # distinct positions in random order; those that are hard already fall out
        number = min(size, missing + hard.size)
        others = rows_at(population, self._generator.choice(size, size=number, replace=False))
        others = others[~np.isin(others, hard)][:missing]
        parts = [hard, others]
        missing -= others.size
        while missing > 0:
            again = rows_at(population, self._generator.permutation(size)[:missing])
            parts.append(again)
            missing -= again.size
        return self._generator.permutation(np.concatenate(parts))

    def hardest(self, n: int = 100) -> list[HardExample]:
        """The ``n`` hardest tracked samples, hardest first; draws nothing and counts nothing."""
        _check(n >= 0, "n", ">= 0", n)
        self._prune()
        slots = self._slots.used()
        indices = self._slots.index_of[slots]
        order = np.lexsort((indices, -self._measures[slots, KEY]))[:n]
        slots, indices = slots[order], indices[order]
        drawn = self._times_drawn(indices)
        hardness = np.exp(self._measures[slots, KEY] - self._faded)
        return [
            HardExample(
                index=int(indices[i]),
                loss=float(self._measures[slot, LOSS]),
                uncertainty=float(self._measures[slot, UNCERTAINTY]),
                times_sampled=int(drawn[i]),
                last_seen_step=int(self._facts[slot, STEP]),
                surprise=float(self._measures[slot, SURPRISE]),
                hardness=float(hardness[i]),
                game=int(self._facts[slot, GAME]),
            )
            for i, slot in enumerate(slots)
        ]

    def get_statistics(self) -> dict[str, Any]:
        """Counts and the tracked losses: ``total_samples_seen``, ``tracked_examples``,
        ``mining_active``, ``skipped_non_finite``, ``mean_loss``, ``max_loss``, ``loss_p90``,
        ``hardness_threshold``, ``hard_examples``, ``mean_times_sampled``, ``max_times_sampled``,
        ``examples_at_cap``. Numbers of an empty buffer are 0."""
        self._prune()
        slots = self._slots.used()
        loss = self._measures[slots, LOSS]
        loss = loss[np.isfinite(loss)]
        if loss.size == 0:
            loss = np.zeros(1)
        drawn = self._times_drawn(self._slots.index_of[slots])
        self._refresh_threshold()
        hard = int(np.count_nonzero(self._measures[slots, KEY] >= self._threshold))
        return {
            "total_samples_seen": self._seen,
            "tracked_examples": self._slots.count,
            "mining_active": self.mining_active,
            "skipped_non_finite": self._skipped,
            "mean_loss": float(loss.mean()),
            "max_loss": float(loss.max()),
            "loss_p90": float(np.percentile(loss, 90.0)),
            "hardness_threshold": float(np.exp(self._threshold - self._faded)),
            "hard_examples": hard if self.mining_active else 0,
            "mean_times_sampled": float(drawn.mean()) if drawn.size else 0.0,
            "max_times_sampled": int(drawn.max(initial=0)),
            "examples_at_cap": int(np.count_nonzero(drawn >= self.max_times_sampled)),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything as tensors and plain values; a miner that loads it goes on bit for bit."""
        top = self._slots.high_water
        drawn = np.flatnonzero(self._draws)
        return {
            "slots": self._slots.state_dict(),
            "measures": torch.from_numpy(self._measures[:top].copy()),
            "facts": torch.from_numpy(self._facts[:top].copy()),
            "drawn_indices": torch.from_numpy(drawn.astype(np.int64)),
            "drawn_times": torch.from_numpy(self._draws[drawn].astype(np.int64)),
            "seen": self._seen,
            "steps": self._steps,
            "skipped": self._skipped,
            "loaded": self._loaded,
            "threshold": self._threshold if math.isfinite(self._threshold) else None,
            "recorded_since_threshold": self._recorded_since_threshold,
            "generator": self._generator.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`; ``ValueError`` where the buffer sizes differ."""
        slots = SampleSlots(self.buffer_size + self._spare)
        slots.load_state_dict(state["slots"])
        self._clear()
        self._slots = slots
        self._measures[: slots.high_water] = np.asarray(state["measures"])
        self._facts[: slots.high_water] = np.asarray(state["facts"])
        drawn = np.asarray(state["drawn_indices"], dtype=np.int64)
        self._grow_draws(drawn)
        self._draws[drawn] = np.asarray(state["drawn_times"])
        self._seen = int(state["seen"])
        self._steps = int(state["steps"])
        self._skipped = int(state["skipped"])
        self._loaded = bool(state["loaded"])
        self._threshold = -math.inf if state["threshold"] is None else float(state["threshold"])
        self._recorded_since_threshold = state["recorded_since_threshold"]
        self._generator.bit_generator.state = state["generator"]


def _check(condition: bool, name: str, wanted: str, got: object) -> None:
    if not condition:
        raise ValueError(f"{name} must be {wanted}, got {got!r}")


def _as_games(games: Indices, size: int) -> np.ndarray:
    """Game numbers (size,) int64; any whole number >= 0, however large (a hash will do)."""
    array = games.detach().cpu().numpy() if isinstance(games, Tensor) else np.asarray(games)
    if array.shape != (size,) or (size and array.dtype.kind not in "iu"):
        raise ValueError(f"games must be integers ({size},), got {array.dtype} {array.shape}")
    array = array.astype(np.int64, copy=False)
    if size and int(array.min()) < 0:
        raise ValueError(f"games must not be negative, got {int(array.min())}")
    return array


__all__ = ["HardExample", "HardExampleMiner"]
