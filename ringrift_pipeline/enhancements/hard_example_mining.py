"""Hard examples: which samples of a data set to show the model more often.

A sample's hardness is::

    max(0, loss - reference loss) + uncertainty_weight * uncertainty + surprise_weight * surprise

The reference loss (another model's loss on the same sample, where given) takes out the noise no
model can learn (RHO-LOSS, Mindermann et al. 2022, arXiv:2206.07137). Hardness fades with the number
of samples seen since it was measured. Everything is an array with one row a tracked sample (see
``tracked_examples``); recording a batch of B, drawing B hard examples and mixing a batch of B cost
O(B log buffer) each, the rare passes over the whole buffer spread over the samples between them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ringrift_pipeline.enhancements import state_forms as forms
from ringrift_pipeline.enhancements.argument_checks import (
    LARGEST_SEED,
    check_flag,
    check_keys,
    check_number,
    check_type,
    check_whole,
    whole_state,
)
from ringrift_pipeline.enhancements.batch_measures import LARGEST_MEASURE, read_measures
from ringrift_pipeline.enhancements.draw_counts import DrawCounts
from ringrift_pipeline.enhancements.example_selection import as_population, filled_up, is_member
from ringrift_pipeline.enhancements.sample_slots import (
    MAX_INDEX,
    as_floats,
    as_games,
    as_indices,
)
from ringrift_pipeline.enhancements.successive_sampling import RowPool
from ringrift_pipeline.enhancements.tracked_examples import (
    GAME,
    KEY,
    LOSS,
    SURPRISE,
    UNCERTAINTY,
    HardExample,
    TrackedExamples,
)

MAX_WEIGHT = 1e6  # of uncertainty and surprise in the hardness
MAX_BATCH = 2**24

Values = Sequence[float] | np.ndarray | Tensor
Indices = Sequence[int] | np.ndarray | Tensor


class HardExampleMiner:
    """Tracks the hardest samples and draws from them.

    A sample is hard from the threshold on that ``loss_threshold_percentile`` sets. The threshold
    is found anew, and the least hard beyond ``buffer_size`` dropped, at the first use after an
    eighth of the buffer was recorded (or a quarter of it newly tracked, or examples loaded);
    hardness itself is always that of now.

    Args:
        buffer_size: samples tracked; beyond it the least hard are dropped, see above.
        hard_fraction: share of a mixed batch drawn from the hard examples, in [0, 1].
        loss_threshold_percentile: percentile of the tracked hardness from which a sample is hard.
        uncertainty_weight: factor of the uncertainty (nats, say) in the hardness, 0 to 1e6.
        decay_rate: factor left of a hardness after ``buffer_size`` more samples were seen, (0, 1].
        min_samples_before_mining: samples seen before anything counts as hard; examples loaded
            with :meth:`load_examples` count at once.
        max_times_sampled: how often one sample may be drawn (or, with ``count=True``, weighted)
            as hard, ever: leaving the buffer and coming back does not start the count anew.
        surprise_weight: factor of the search surprise (nats) in the hardness, 0 to 1e6.
        max_game_share: at most this share of the hard examples drawn at a time is of one game
            (at least one example), (0, 1].
        smoothing: weight of a new loss against the smoothed one of the same sample, (0, 1].
        seed: an int from 0 and below 2**128, a SeedSequence or a Generator. A Generator is drawn
            from and never set back: :meth:`reset` and loading go on with one of the miner's own.
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
        self.buffer_size = check_whole("buffer_size", buffer_size, 1, MAX_INDEX + 1)
        self.hard_fraction = check_number("hard_fraction", hard_fraction, 0.0, 1.0)
        self.loss_threshold_percentile = check_number(
            "loss_threshold_percentile", loss_threshold_percentile, 0.0, 100.0
        )
        self.uncertainty_weight = check_number(
            "uncertainty_weight", uncertainty_weight, 0.0, MAX_WEIGHT
        )
        self.decay_rate = check_number("decay_rate", decay_rate, 0.0, 1.0, above=True)
        self.min_samples_before_mining = check_whole(
            "min_samples_before_mining", min_samples_before_mining, 0
        )
        self.max_times_sampled = check_whole("max_times_sampled", max_times_sampled, 1)
        self.surprise_weight = check_number("surprise_weight", surprise_weight, 0.0, MAX_WEIGHT)
        self.max_game_share = check_number("max_game_share", max_game_share, 0.0, 1.0, above=True)
        self.smoothing = check_number("smoothing", smoothing, 0.0, 1.0, above=True)
        self._fading = -math.log(self.decay_rate) / self.buffer_size  # a sample
        if isinstance(seed, int | np.integer):
            seed = check_whole("seed", seed, 0, LARGEST_SEED)
        try:
            self._generator = np.random.default_rng(seed)
        except (TypeError, ValueError) as error:
            raise ValueError(f"seed must be what default_rng takes: {error}") from error
        self._initial_generator = self._generator.bit_generator.state
        self._clear()

    def _clear(self) -> None:
        self._table = self._new_table()
        self._drawn = DrawCounts()  # as hard
        self._seen = 0
        self._steps = 0
        self._skipped = 0
        self._loaded = False
        self._threshold = -math.inf  # of the key, as of the last refresh
        self._recorded_since_threshold: int | None = None  # None: no threshold yet
        self._pool: RowPool | None = None  # the hard ones; None: to be collected

    def _new_table(self) -> TrackedExamples:
        return TrackedExamples(
            self.buffer_size, self.smoothing, self.uncertainty_weight, self.surprise_weight
        )

    def reset(self) -> None:
        """Back to the state after construction, the generator included."""
        self._clear()
        self._set_generator(self._initial_generator)

    def _set_generator(self, state: Any) -> None:
        generator = copy.deepcopy(self._generator)
        generator.bit_generator.state = state
        self._generator = generator

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
            The number of samples recorded. One with a number that is not finite (or above 1e150,
            which a sum soon takes there) is skipped and counted in
            ``get_statistics()["skipped_non_finite"]``.

        Raises:
            ValueError: lengths that differ, indices or games that are negative or not whole.
        """
        shown = read_measures(
            indices,
            losses,
            reference_losses,
            games,
            {
                UNCERTAINTY: (uncertainties, "uncertainties"),
                SURPRISE: (surprises, "surprises"),
            },
        )
        self._skipped += shown.skipped
        self._steps += 1
        self._seen += shown.recorded
        for start in range(0, shown.rows.size, self._table.spare):  # once, unless B is huge
            piece = shown.piece(slice(start, start + self._table.spare))
            slots = self._claim(piece.rows)
            self._table.record(slots, piece, self._steps, self._faded)
            if self._pool is not None:
                self._pool.note_changes(slots)
        if self._recorded_since_threshold is not None:
            self._recorded_since_threshold += shown.recorded
        return shown.recorded

    @property
    def _faded(self) -> float:
        return self._fading * self._seen

    def _claim(self, indices: np.ndarray) -> np.ndarray:
        slots, pruned = self._table.claim(indices)
        if pruned:
            self._recorded_since_threshold = self._pool = None
        return slots

    def load_examples(
        self, indices: Indices, hardness: Values, games: Indices | None = None
    ) -> None:
        """Begin with known hard examples: mining is active at once.

        Args:
            indices: (K,) distinct data-set rows.
            hardness: (K,) from 0 to 1e150, on the scale of the losses to come.
            games: (K,) the game of each, >= 0.

        Raises:
            ValueError: lengths that differ, a repeated index, hardness negative or not finite.
        """
        rows = as_indices(indices)
        values = as_floats(hardness, rows.size, "hardness")
        game = None if games is None else as_games(games, rows.size)
        if np.unique(rows).size != rows.size:
            raise ValueError("indices of loaded examples must be distinct")
        if not ((values >= 0.0) & (values <= LARGEST_MEASURE)).all():
            raise ValueError(f"hardness must be finite, from 0 to {LARGEST_MEASURE:g}")
        if rows.size == 0:
            return
        hardest = np.sort(np.argsort(-values, kind="stable")[: self.buffer_size])
        for start in range(0, hardest.size, self._table.spare):
            piece = hardest[start : start + self._table.spare]
            self._table.load(
                self._claim(rows[piece]),
                values[piece],
                None if game is None else game[piece],
                self._faded,
            )
        self._loaded = True
        self._recorded_since_threshold = self._pool = None

    def _threshold_among(self, slots: np.ndarray) -> float:
        """The key from which one of the rows is hard; O(rows)."""
        if slots.size == 0:
            return -math.inf
        keys = self._table.measures[slots, KEY]
        rank = math.ceil(self.loss_threshold_percentile / 100.0 * (keys.size - 1) - 1e-9)
        return float(np.partition(keys, rank)[rank])

    def _refresh_when_due(self) -> None:
        recorded = self._recorded_since_threshold
        if recorded is None or 8 * recorded >= self._table.slots.count:
            self._threshold = self._threshold_among(self._table.prune())
            self._recorded_since_threshold = 0
            self._pool = None

    def _hard_pool(self) -> RowPool:
        """The hard examples below their cap; O(buffer) when they have to be collected."""
        if self._pool is None:
            slots = self._table.slots.used()
            keys = self._table.measures[slots, KEY]
            hard = keys >= self._threshold
            slots, keys = slots[hard], keys[hard]
            below_cap = self._below_cap(self._table.slots.index_of[slots])
            self._pool = RowPool(slots[below_cap], keys[below_cap], self._table.slots.capacity)
        return self._pool

    def _below_cap(self, indices: np.ndarray) -> np.ndarray:
        return self._drawn.of(indices) < self.max_times_sampled

    def get_hard_indices(
        self, num_samples: int, return_scores: bool = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Draw distinct hard examples, with probability in proportion to hardness.

        The same as drawing them one after the other, each in proportion to hardness among those
        not drawn yet, skipping a game that has its share. Each draw counts towards
        ``max_times_sampled``.

        Returns:
            (K,) int64 data-set indices, K <= num_samples (0 before mining is active; fewer where
            the caps leave fewer), and with ``return_scores`` their (K,) hardness.
        """
        check_flag("return_scores", return_scores)
        indices, scores = self._draw(check_whole("num_samples", num_samples, 0), None)
        return (indices, scores) if return_scores else indices

    def _draw(
        self, number: int, population: np.ndarray | range | None
    ) -> tuple[np.ndarray, np.ndarray]:
        table = self._table
        if number == 0 or not self.mining_active or table.slots.count == 0:
            return np.zeros(0, dtype=np.int64), np.zeros(0)
        self._refresh_when_due()
        index_of = table.slots.index_of

        def allowed(slots: np.ndarray) -> np.ndarray:
            indices = index_of[slots]
            usable = self._below_cap(indices)
            return usable if population is None else usable & is_member(indices, population)

        pool = self._hard_pool()
        chosen, exhausted = pool.draw(
            number,
            max(1, math.floor(self.max_game_share * number)),
            table.measures[:, KEY],
            self._threshold,
            table.facts[:, GAME],
            allowed,
            self._generator,
        )
        indices = index_of[chosen]
        self._drawn.add(indices)
        if exhausted:
            pool.keep(self._below_cap(index_of[pool.rows]))
        return indices, np.exp(table.measures[chosen, KEY] - self._faded)

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
        check_flag("count", count)
        rows = as_indices(indices)
        weights = np.full(rows.size, check_number("base_weight", base_weight, 0.0))
        hard_weight = check_number("hard_weight", hard_weight, 0.0)
        if not self.mining_active or self._table.slots.count == 0 or rows.size == 0:
            return weights
        self._refresh_when_due()
        slots = self._table.slots.lookup(rows)
        hard = (slots >= 0) & (self._table.measures[slots, KEY] >= self._threshold)
        hard &= self._below_cap(rows)
        weights[hard] = hard_weight
        if count:
            self._drawn.add(rows[hard])
        return weights

    def create_mixed_batch_indices(
        self, batch_size: int, all_indices: int | range | Indices
    ) -> np.ndarray:
        """A batch of hard and of uniformly drawn samples, shuffled; always ``batch_size`` long.

        ``hard_fraction`` of it is drawn as :meth:`get_hard_indices` does, of members of
        ``all_indices`` only; the rest uniformly from the others without replacement (with
        repetition only where the data set is smaller than the batch).

        Args:
            batch_size: length of the result, 1 to 2**24.
            all_indices: the data set: its size N (rows 0 .. N-1), or its rows, distinct (which is
                not checked) and not negative (which in an array costs O(N), 0.1 ms a million).

        Returns:
            (batch_size,) int64.

        Raises:
            ValueError: an argument out of range or of another kind, by name; nothing changes.
        """
        batch_size = check_whole("batch_size", batch_size, 1, MAX_BATCH + 1)
        population = as_population(all_indices)
        hard, _ = self._draw(int(batch_size * self.hard_fraction), population)
        return filled_up(hard, population, batch_size, self._generator)

    def hardest(self, n: int = 100) -> list[HardExample]:
        """The ``n`` hardest tracked samples, hardest first; draws nothing and counts nothing."""
        return self._table.hardest(check_whole("n", n, 0), self._faded, self._drawn)

    def get_statistics(self) -> dict[str, Any]:
        """Counts and the tracked losses: ``total_samples_seen``, ``tracked_examples``,
        ``mining_active``, ``skipped_non_finite``, ``mean_loss``, ``max_loss``, ``loss_p90``,
        ``hardness_threshold``, ``hard_examples``, ``mean_times_sampled``, ``max_times_sampled``,
        ``examples_at_cap``. Numbers of an empty buffer are 0. Changes nothing; O(buffer)."""
        slots = self._table.kept()
        loss = self._table.measures[slots, LOSS]
        loss = loss[np.isfinite(loss)]
        if loss.size == 0:
            loss = np.zeros(1)
        drawn = self._drawn.of(self._table.slots.index_of[slots])
        threshold = self._threshold_among(slots)
        hard = int(np.count_nonzero(self._table.measures[slots, KEY] >= threshold))
        return {
            "total_samples_seen": self._seen,
            "tracked_examples": slots.size,
            "mining_active": self.mining_active,
            "skipped_non_finite": self._skipped,
            "mean_loss": float(loss.mean()),
            "max_loss": float(loss.max()),
            "loss_p90": float(np.percentile(loss, 90.0)),
            "hardness_threshold": float(np.exp(threshold - self._faded)),
            "hard_examples": hard if self.mining_active else 0,
            "mean_times_sampled": float(drawn.mean()) if drawn.size else 0.0,
            "max_times_sampled": int(drawn.max(initial=0)),
            "examples_at_cap": int(np.count_nonzero(drawn >= self.max_times_sampled)),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything as tensors and plain values; a miner that loads it goes on bit for bit."""
        return {
            **self._table.state_dict(),
            **self._drawn.state_dict(),
            "seen": self._seen,
            "steps": self._steps,
            "skipped": self._skipped,
            "loaded": self._loaded,
            "threshold": self._threshold if math.isfinite(self._threshold) else None,
            "recorded_since_threshold": self._recorded_since_threshold,
            "pool": None if self._pool is None else self._pool.state_dict(),
            "generator": self._generator.bit_generator.state,
        }

    @whole_state
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`; ``ValueError`` for something missing or another buffer size
        leaves everything as it was."""
        check_keys(state, self.state_dict(), "HardExampleMiner")
        forms.record(
            threshold=forms.optional(forms.number()),
            recorded_since_threshold=forms.optional(forms.whole()),
            generator=forms.generator,
        )("", state)
        if state["threshold"] is None and state["recorded_since_threshold"] is not None:
            raise ValueError("threshold is None although recorded_since_threshold counts from it")
        table = self._new_table()
        table.load_state_dict(state)
        self._clear()
        self._table = table
        self._drawn.load_state_dict(state)
        self._seen = check_whole("seen", state["seen"], 0)
        self._steps = check_whole("steps", state["steps"], 0)
        self._skipped = check_whole("skipped", state["skipped"], 0)
        check_type("loaded", state["loaded"], bool)
        self._loaded = state["loaded"]
        self._threshold = -math.inf if state["threshold"] is None else float(state["threshold"])
        since = state["recorded_since_threshold"]
        self._recorded_since_threshold = None if since is None else int(since)
        if state["pool"] is not None:
            self._pool = RowPool.from_state(state["pool"], table.slots.capacity)
        self._set_generator(state["generator"])


__all__ = ["HardExample", "HardExampleMiner"]
