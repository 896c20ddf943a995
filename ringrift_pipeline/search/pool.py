"""A pool of searches: each at its own pace, their leaves evaluated together in full batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ringrift_pipeline.game import layout
from ringrift_pipeline.network.errors import check_outputs
from ringrift_pipeline.search import rounds
from ringrift_pipeline.search import slots as fields
from ringrift_pipeline.search.cache import EvaluationCache
from ringrift_pipeline.search.errors import EvaluationError, NonFiniteOutputError, SearchError
from ringrift_pipeline.search.readout import Readout, read_trees
from ringrift_pipeline.search.tree import EDGE_BYTES, EDGE_ROOM, NODE_FIELDS, Tree, memory_here

if TYPE_CHECKING:
    from ringrift_pipeline.game import Rules
    from ringrift_pipeline.search.evaluators import Evaluator

#: Positions a batch where nobody asks for another number.
BATCH = 128


@dataclass(frozen=True)
class SearchSettings:
    """Constants of a search; any object with these attributes serves as well.

    ``c_visit`` and ``c_scale`` are those of sigma, for values in [0, 1]; ``max_considered`` is
    the number of root actions sequential halving starts with; ``gumbel_scale`` 0 searches
    without noise, for match play.
    """

    max_considered: int = 16
    c_visit: float = 50.0
    c_scale: float = 1.0
    gumbel_scale: float = 1.0


@dataclass(frozen=True)
class SearchResult:
    """What a search of ``G`` positions found; rows are padded to ``L``, the largest ``counts``.

    A position with one legal move is neither searched nor evaluated: its policy is 1, its visits
    0, its surprise 0 and its values NaN.
    """

    moves: np.ndarray  # (G, L) int64 packed legal moves in canonical order, 0 beyond counts
    counts: np.ndarray  # (G,) int32 number of legal moves
    policy: np.ndarray  # (G, L) float32 improved policy, 0 beyond counts
    prior: np.ndarray  # (G, L) float32 evaluator's policy, 0 beyond counts
    visits: np.ndarray  # (G, L) int32 visits of each root action; a row sums to its simulations
    root_value: np.ndarray  # (G, players) float32 evaluator's value of the position
    search_value: np.ndarray  # (G, players) float32 value of the improved policy
    selected: np.ndarray  # (G,) int64 packed move that sequential halving chose
    selected_index: np.ndarray  # (G,) int64 its place in the row of moves
    surprise: np.ndarray  # (G,) float32 KL(policy || prior), nats
    evaluations: int = 0  # positions that the evaluator was shown for this call, roots included
    readout: Readout | None = None  # of the trees, where it was asked for


class SearchPool:
    """``slots`` searches side by side, of at most ``simulations`` each; for one thread.

    :meth:`start` puts positions into idle slots, :meth:`step` evaluates one batch of whatever all
    slots ask for and says which searches have ended, :meth:`take` hands out their results and
    frees the slots. A search's result depends on its own position, seed and simulations alone
    (given an evaluator whose rows do not depend on each other).

    Parameters
    ----------
    settings:
        Any object with the attributes of :class:`SearchSettings`.
    max_batch:
        Most positions the evaluator is shown at once.
    cached:
        Remember the newest evaluations. Only evaluators that say what they do not look at, by an
        attribute ``unseen`` (indices of words of a state), are spared anything.

    Raises
    ------
    SearchError
        for an argument out of range, and for trees that this machine's memory could not hold.
    """

    def __init__(
        self,
        rules: Rules,
        evaluator: Evaluator,
        settings: Any = None,
        *,
        slots: int,
        simulations: int,
        max_batch: int = BATCH,
        cached: bool = False,
    ) -> None:
        self.settings = checked_settings(settings)
        for name, value, least in (
            ("slots", slots, 1),
            ("simulations", simulations, 0),
            ("max_batch", max_batch, 1),
        ):
            if value < least:
                raise SearchError(f"{name} must be at least {least}, got {value}")
        self.rules = rules
        self.evaluator = evaluator
        self.size = int(slots)
        self.simulations = int(simulations)
        self.max_batch = int(max_batch)
        self.evaluations = 0  # positions shown to the evaluator so far
        self.last_batch = 0  # positions in the last batch
        _check_room(rules, self.size, self.simulations)
        self._tree = Tree(slots, simulations + 1, rules.state_size, rules.players)
        self._slots = np.zeros((slots, fields.SLOT_FIELDS), dtype=np.int64)
        self._seeds = np.zeros(slots, dtype=np.uint64)
        self._cache = _cache_for(rules, evaluator, slots * (simulations + 1) if cached else 0)
        self._widths = np.empty((slots, simulations), dtype=np.int64)
        self._moves = np.zeros((slots, 0), dtype=np.int64)
        self._child = np.zeros((slots, 0), dtype=np.int64)
        self._candidates = np.zeros((slots, 0), dtype=np.int64)
        self._logits = np.zeros((slots, 0), dtype=np.float32)
        self._noise = np.zeros((slots, 0), dtype=np.float64)
        self._widen(64)
        widest = max(1, min(self.settings.max_considered, simulations))
        rows = self.max_batch + widest
        self._task_leaf = np.empty((slots + 1) * widest, dtype=np.int64)
        self._row_node = np.empty(rows, dtype=np.int64)
        self._row_slot = np.empty(rows, dtype=np.int64)
        self._row_count = np.empty(rows, dtype=np.int32)
        self._row_key = np.empty(rows, dtype=np.uint64)
        # Room for any legal sets; what is never written never becomes resident.
        self._row_moves = np.empty(rows * rules.max_moves, dtype=np.int64)
        self._batch_moves = np.zeros(rows * rules.max_moves, dtype=np.int64)
        self._row_states = np.empty((rows, rules.state_size), dtype=np.int64)
        self._finished = np.empty(slots, dtype=np.int64)
        self._marks = np.zeros(rounds.MARKS, dtype=np.int64)
        self._buffer = np.empty(rules.max_moves, dtype=np.int64)
        self._keys = np.empty(rules.max_moves, dtype=np.float64)
        self._order = np.empty(rules.max_moves, dtype=np.int64)
        self._old = np.empty(rules.max_moves, dtype=np.int64)

    @property
    def busy(self) -> bool:
        """Whether some search has begun and not ended."""
        stages = self._slots[:, fields.STAGE]
        return bool(((stages != fields.IDLE) & (stages != fields.DONE)).any())

    def clear(self) -> None:
        """Drop every search: all slots are idle."""
        self._slots[:] = 0

    def start(self, which: np.ndarray, states: np.ndarray, seeds: np.ndarray, sims: Any) -> None:
        """Begin searches of ``states`` (N, S) int64 in the idle slots ``which`` (N,) int64.

        ``seeds`` (N,) uint64; ``sims`` simulations, one number or (N,) int64. A position with one
        legal move needs no search: its result may be taken at once, and :meth:`step` never names
        it. Raises :class:`SearchError` where the game is over.
        """
        budgets = np.empty(len(which), dtype=np.int64)
        budgets[:] = sims
        self._seeds[which] = seeds
        at = 0
        while True:
            at, needed = fields.open_slots(
                self.rules.constants, which, at, states, budgets, self.settings.max_considered,
                self._buffer, self._slots, self._moves, self._child, self._widths,
                self._tree.states, self._tree.nodes,
            )  # fmt: skip
            if at == len(which):
                return
            if needed == 0:
                raise SearchError(f"the game in row {at} is over: nothing to play")
            self._widen(needed)

    def step(self) -> np.ndarray:
        """Evaluate one batch; the slots whose searches ended with it, (N,) int64 in no order.

        Raises :class:`SearchError` for trees that outgrow the memory, :class:`EvaluationError`
        when the evaluator returns a wrong shape or (then a :class:`NonFiniteOutputError`, whose
        ``slots`` are those of the searches) a number that is not finite; the searches of the pool
        are then of no use.
        """
        t, marks, settings, cache = self._tree, self._marks, self.settings, self._cache
        remembered = (cache.table, cache.ring, cache.head)
        rounds.gather(
            self.rules.constants, self.max_batch, self._slots, self._moves, self._child,
            self._candidates, self._logits, self._noise, self._widths,
            t.states, t.nodes, t.values, t.edges, t.priors, settings.c_visit, settings.c_scale,
            self._seeds, settings.gumbel_scale, cache.seen, *remembered,
            self._buffer, self._keys, self._order, self._old, self._task_leaf,
            self._row_node, self._row_slot, self._row_count, self._row_key, self._row_moves,
            self._row_states, self._batch_moves, self._finished, marks,
        )  # fmt: skip
        rows = self.last_batch = int(marks[rounds.ROWS])
        if rows:
            t.reserve_edges(int(marks[rounds.ROOM]))
            counts = self._row_count[:rows]
            widest = int(marks[rounds.WIDEST])
            moves = self._batch_moves[: rows * widest].reshape(rows, widest)
            states = self._row_states[:rows]
            try:
                logits, values = self._evaluate(states, moves, counts)
                if not rounds.absorb(
                    self._row_node, self._row_slot, counts, self._row_key, moves, logits, values,
                    self._seeds, settings.gumbel_scale, *remembered, self._slots,
                    self._logits, self._noise, t.nodes, t.values, t.edges, t.priors,
                    self._keys, self._order, self._task_leaf, self._finished, marks,
                ):  # fmt: skip
                    name = getattr(self.evaluator, "name", type(self.evaluator).__name__)
                    check_outputs(name, self.rules, states, counts, logits, values)
            except NonFiniteOutputError as error:
                error.slots = tuple(self._row_slot[list(error.rows)].tolist())
                raise
        return self._finished[: marks[rounds.FINISHED]].copy()

    def drop(self, which: np.ndarray) -> None:
        """Give up the searches in the slots ``which`` (N,) int64: they are idle, without result."""
        self._slots[which, fields.STAGE] = fields.IDLE

    def take(
        self, which: np.ndarray, evaluations: int = 0, depth: int | None = None
    ) -> SearchResult:
        """Results of the finished searches in the slots ``which`` (N,) int64, now idle.

        With a ``depth`` they come with a readout, its lines of at most so many decisions.
        """
        games, players, t = len(which), self.rules.players, self._tree
        if depth is not None and depth < 1:
            raise SearchError(f"depth must be at least 1, got {depth}")
        readout = None
        if depth is not None:
            readout = read_trees(
                which, self._slots, self._moves, self._child, self._candidates, t,
                self.settings.c_visit, self.settings.c_scale, depth,
            )  # fmt: skip
        widest = fields.widest(which, self._slots)
        result = SearchResult(
            moves=np.zeros((games, widest), dtype=np.int64),
            counts=np.empty(games, dtype=np.int32),
            policy=np.zeros((games, widest), dtype=np.float32),
            prior=np.zeros((games, widest), dtype=np.float32),
            visits=np.zeros((games, widest), dtype=np.int32),
            root_value=np.empty((games, players), dtype=np.float32),
            search_value=np.empty((games, players), dtype=np.float32),
            selected=np.empty(games, dtype=np.int64),
            selected_index=np.zeros(games, dtype=np.int64),
            surprise=np.zeros(games, dtype=np.float32),
            evaluations=evaluations,
            readout=readout,
        )
        fields.take(
            which, self._slots, self._moves, self._child, self._candidates, self._logits,
            self._noise, t.nodes, t.values, self.settings.c_visit, self.settings.c_scale,
            self._keys, result.moves, result.counts, result.policy, result.prior, result.visits,
            result.root_value, result.search_value, result.selected, result.selected_index,
            result.surprise,
        )  # fmt: skip
        return result

    def _evaluate(
        self, states: np.ndarray, moves: np.ndarray, counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The evaluator's answer for a batch of any size: (B, L) and (B, players)."""
        self.evaluations += len(states)
        if len(states) <= self.max_batch:
            return self._ask(states, moves, counts)
        logits = np.empty(moves.shape, dtype=np.float32)
        values = np.empty((len(states), self.rules.players), dtype=np.float32)
        for start in range(0, len(states), self.max_batch):
            part = slice(start, start + self.max_batch)
            wide = int(counts[part].max())
            piece = states[part], np.ascontiguousarray(moves[part, :wide]), counts[part]
            try:
                logits[part, :wide], values[part] = self._ask(*piece)
            except NonFiniteOutputError as error:
                rows = [start + row for row in error.rows]
                raise NonFiniteOutputError(str(error), rows) from None
        return logits, values

    def _ask(
        self, states: np.ndarray, moves: np.ndarray, counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        logits, values = self.evaluator.evaluate(states, moves, counts)
        logits = np.ascontiguousarray(logits, dtype=np.float32)
        values = np.ascontiguousarray(values, dtype=np.float32)
        if logits.shape != moves.shape or values.shape != (len(states), self.rules.players):
            raise EvaluationError(
                f"the evaluator returned shapes {logits.shape} and {values.shape} for "
                f"{len(states)} positions with {moves.shape[1]} moves and "
                f"{self.rules.players} players"
            )
        return logits, values

    def _widen(self, needed: int) -> None:
        """Make the roots' rows at least ``needed`` moves wide; what they hold stays."""
        old = self._moves.shape[1]
        wide = min(max(needed, 2 * old), self.rules.max_moves)
        for name in ("_moves", "_child", "_candidates", "_logits", "_noise"):
            before = getattr(self, name)
            new = np.zeros((self.size, wide), dtype=before.dtype)
            new[:, :old] = before
            setattr(self, name, new)


def _check_room(rules: Rules, slots: int, simulations: int) -> None:
    """Refuse trees that are larger than this machine's memory, before any of it is asked for.

    The edges that a tree grows beyond its first ones are refused as they are asked for.
    """
    node = 8 * rules.state_size + 16 * rules.players + 4 * NODE_FIELDS + 8
    needed = slots * ((simulations + 1) * node + EDGE_ROOM * EDGE_BYTES)
    there = memory_here()
    if needed > there:
        raise SearchError(
            f"{slots} searches side by side of {simulations} simulations of {rules.config} take "
            f"{needed / 1e9:.1f} GB, this machine has {there / 1e9:.1f}: fewer of either "
            "(selfplay.parallel_games, search.simulations)"
        )


def _cache_for(rules: Rules, evaluator: Evaluator, positions: int) -> EvaluationCache:
    """A cache for at least twice ``positions``; none where the evaluator looks at everything."""
    unseen = getattr(evaluator, "unseen", ())
    # Counts and masks repeat the cells.
    words = np.concatenate(
        [
            np.arange(layout.ON_BOARD),
            np.arange(layout.LOST_TURN, layout.COUNT),
            layout.HEADER + np.asarray(rules.cells),
        ]
    )
    seen = np.setdiff1d(words, np.asarray(unseen, dtype=np.int64))
    entries = 1 << min(16, (2 * positions).bit_length()) if positions and len(unseen) else 0
    # A decision of a random game has two thirds as many legal moves as the board has cells. The
    # widest ring, of hexagonal, is 82 MB, beside trees of twice that.
    width = max(64, 2 * len(rules.cells) // 3)
    return EvaluationCache(entries, seen, width=width)


def checked_settings(settings: Any) -> SearchSettings:
    """``settings`` (None: the defaults) as plain numbers; :class:`SearchError` out of range."""
    settings = SearchSettings() if settings is None else settings
    checked = SearchSettings(
        max_considered=int(settings.max_considered),
        c_visit=float(settings.c_visit),
        c_scale=float(settings.c_scale),
        gumbel_scale=float(settings.gumbel_scale),
    )
    for name, least in (
        ("max_considered", 1),
        ("c_visit", 0.0),
        ("c_scale", 0.0),
        ("gumbel_scale", 0.0),
    ):
        value = getattr(checked, name)
        if not value >= least or value == float("inf"):
            raise SearchError(f"{name} must be finite and at least {least}, got {value}")
    return checked
