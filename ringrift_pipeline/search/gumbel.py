"""Gumbel search for two to four players, batched over parallel games.

The algorithm of Danihelka et al. 2022 ("Policy improvement by planning with Gumbel") with
max^n backup over value vectors: Gumbel-top-k and sequential halving at the root, the
deterministic improved-policy rule below it, completed Q values for the policy target.

One round of sequential halving visits every remaining root action once. Those visits lead into
different subtrees and so do not disturb each other: all of them, of all games, are walked first
and evaluated together. A search of 32 simulations over 16 actions needs four evaluator calls.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ringrift_pipeline.game.compile import announced
from ringrift_pipeline.search import root as roots
from ringrift_pipeline.search import tree as trees
from ringrift_pipeline.search.errors import EvaluationError, SearchError
from ringrift_pipeline.search.schedule import round_widths
from ringrift_pipeline.search.tree import Tree

if TYPE_CHECKING:
    from ringrift_pipeline.game import Rules
    from ringrift_pipeline.search.evaluators import Evaluator


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
    evaluations: int = field(default=0)  # positions that the evaluator was shown, roots included


class GumbelSearch:
    """Searches batches of positions of one config.

    The trees are kept between calls, so an instance serves one thread. ``max_batch`` bounds how
    many positions are handed to the evaluator at once. ``settings`` may be any object with the
    attributes of :class:`SearchSettings`. Raises :class:`SearchError` for settings out of range.
    """

    def __init__(
        self, rules: Rules, evaluator: Evaluator, settings: Any = None, *, max_batch: int = 1024
    ) -> None:
        settings = SearchSettings() if settings is None else settings
        self.rules = rules
        self.evaluator = evaluator
        self.settings = SearchSettings(
            max_considered=int(settings.max_considered),
            c_visit=float(settings.c_visit),
            c_scale=float(settings.c_scale),
            gumbel_scale=float(settings.gumbel_scale),
        )
        self.max_batch = int(max_batch)
        for name, value, least in (
            ("max_considered", self.settings.max_considered, 1),
            ("c_visit", self.settings.c_visit, 0.0),
            ("c_scale", self.settings.c_scale, 0.0),
            ("gumbel_scale", self.settings.gumbel_scale, 0.0),
            ("max_batch", self.max_batch, 1),
        ):
            if not value >= least or value == float("inf"):
                raise SearchError(f"{name} must be finite and at least {least}, got {value}")
        self._tree: Tree | None = None
        self._buffer = np.empty((0, rules.max_moves), dtype=np.int64)
        self._evaluations = 0

    def search(
        self, states: np.ndarray, seeds: np.ndarray, simulations: np.ndarray | int
    ) -> SearchResult:
        """Search ``states`` (G, S) int64; they stay as they are.

        ``seeds`` (G,) uint64: a game's result depends on its own state, seed and simulations
        alone (given an evaluator whose rows do not depend on each other). ``simulations``: one
        number, or (G,) int32, each at least 0.

        Raises :class:`SearchError` for malformed input or a position where the game is over, and
        :class:`EvaluationError` when the evaluator returns a wrong shape or a value that is not
        finite.
        """
        states, seeds, budgets = self._checked(states, seeds, simulations)
        games, players = len(states), self.rules.players
        self._evaluations = 0
        buffer = self._move_rows(games)
        counts = np.zeros(games, dtype=np.int32)
        widest = trees.list_moves(self.rules.constants, states, buffer, counts)
        if games and not counts.all():
            raise SearchError(f"the game in row {int(np.argmin(counts))} is over: nothing to play")
        moves = np.where(np.arange(widest) < counts[:, None], buffer[:games, :widest], 0)
        result = SearchResult(
            moves=moves,
            counts=counts,
            policy=np.zeros((games, widest), dtype=np.float32),
            prior=np.zeros((games, widest), dtype=np.float32),
            visits=np.zeros((games, widest), dtype=np.int32),
            root_value=np.full((games, players), np.nan, dtype=np.float32),
            search_value=np.full((games, players), np.nan, dtype=np.float32),
            selected=np.empty(games, dtype=np.int64),
            selected_index=np.zeros(games, dtype=np.int64),
            surprise=np.zeros(games, dtype=np.float32),
        )
        result.policy[counts == 1, :1] = 1.0
        result.prior[counts == 1, :1] = 1.0
        rows = np.flatnonzero(counts > 1)
        if len(rows):
            with announced("Gumbel search", "search", "gumbel"):
                self._grow(rows, states, seeds, budgets, result)
        result.selected[:] = moves[np.arange(games), result.selected_index]
        object.__setattr__(result, "evaluations", self._evaluations)
        return result

    def _grow(
        self,
        rows: np.ndarray,
        inputs: np.ndarray,
        seeds: np.ndarray,
        budgets: np.ndarray,
        result: SearchResult,
    ) -> None:
        """Search the games ``rows`` and write their results."""
        b, settings = self.rules.constants, self.settings
        games = len(rows)
        counts = np.ascontiguousarray(result.counts[rows])
        widest = int(counts.max())
        moves = np.ascontiguousarray(result.moves[rows, :widest])
        sims = budgets[rows]
        base = np.concatenate(([0], np.cumsum(sims + 1)))
        t = self._reserve(int(base[-1]))
        base = base[:-1].astype(np.int64)
        t.edges = 0

        logits, values = self._evaluate(inputs[rows], moves, counts)
        noise = np.zeros((games, widest), dtype=np.float64)
        bad = roots.open_roots(
            rows, base, inputs, seeds, counts, logits, values, settings.gumbel_scale,
            t.states, t.seat, t.raw, t.total, t.visits, t.parent, t.swapped, noise,
        )  # fmt: skip
        if bad >= 0:
            raise EvaluationError("the evaluator returned a logit or value that is not finite")

        schedules = [
            round_widths(min(settings.max_considered, int(counts[g])), int(sims[g]))
            for g in range(games)
        ]
        turns = max(len(s) for s in schedules)
        widths = np.zeros((games, max(turns, 1)), dtype=np.int64)
        for g, schedule in enumerate(schedules):
            widths[g, : len(schedule)] = schedule
        most = int(widths.sum(axis=0).max())
        root_child = np.full((games, widest), -1, dtype=np.int64)
        candidates = np.zeros((games, widest), dtype=np.int64)
        considered = np.zeros(games, dtype=np.int64)
        used = np.ones(games, dtype=np.int64)
        task_game = np.empty(most, dtype=np.int64)
        task_action = np.empty(most, dtype=np.int64)
        task_leaf = np.empty(most, dtype=np.int64)
        fresh = np.empty(most, dtype=np.int64)
        leaf_counts = np.empty(most, dtype=np.int32)
        leaf_moves = self._move_rows(most)

        for turn in range(turns):
            tasks = roots.plan_round(
                turn, widths, considered, candidates, base, counts, logits, noise, root_child,
                t.seat, t.raw, t.total, t.visits, t.swapped, settings.c_visit, settings.c_scale,
                task_game, task_action,
            )  # fmt: skip
            waiting = trees.descend(
                b, task_game, task_action, tasks, settings.c_visit, settings.c_scale,
                base, used, moves, root_child,
                t.states, t.seat, t.raw, t.total, t.visits, t.parent, t.swapped,
                t.first, t.stored, t.tried,
                t.edge_move, t.edge_prior, t.edge_tail, t.edge_child,
                task_leaf, fresh, leaf_moves, leaf_counts,
            )  # fmt: skip
            if waiting:
                self._expand(t, base, used, sims, fresh[:waiting], leaf_moves, leaf_counts)
            trees.back_up(task_leaf[:tasks], t.raw, t.total, t.visits, t.parent, t.swapped)

        roots.conclude(
            rows, base, counts, logits, noise, root_child,
            t.seat, t.raw, t.total, t.visits, t.swapped, settings.c_visit, settings.c_scale,
            result.policy, result.prior, result.visits, result.root_value, result.search_value,
            result.selected_index, result.surprise,
        )  # fmt: skip

    def _expand(
        self,
        t: Tree,
        base: np.ndarray,
        used: np.ndarray,
        sims: np.ndarray,
        fresh: np.ndarray,
        leaf_moves: np.ndarray,
        leaf_counts: np.ndarray,
    ) -> None:
        """Evaluate the leaves ``fresh`` together and give them values and edges."""
        counts = leaf_counts[: len(fresh)]
        moves = np.ascontiguousarray(leaf_moves[: len(fresh), : int(counts.max())])
        logits, values = self._evaluate(t.states[fresh], moves, counts)
        game = np.searchsorted(base, fresh, side="right") - 1
        budgets = np.maximum(sims[game] - used[game] + 2, 1)
        t.reserve_edges(int(np.minimum(budgets, counts).sum()))
        edges = trees.expand(
            fresh, budgets, moves, counts, logits, values, t.edges, t.raw, t.first, t.stored,
            t.edge_move, t.edge_prior, t.edge_tail, t.edge_child,
        )  # fmt: skip
        if edges < 0:
            raise EvaluationError("the evaluator returned a logit or value that is not finite")
        t.edges = edges

    def _evaluate(
        self, states: np.ndarray, moves: np.ndarray, counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The evaluator's answer for a batch of any size: (B, L) and (B, players) float32."""
        logits = np.empty(moves.shape, dtype=np.float32)
        values = np.empty((len(states), self.rules.players), dtype=np.float32)
        for start in range(0, len(states), self.max_batch):
            part = slice(start, min(start + self.max_batch, len(states)))
            wide = int(counts[part].max())
            got_logits, got_values = self.evaluator.evaluate(
                states[part], np.ascontiguousarray(moves[part, :wide]), counts[part]
            )
            size = part.stop - part.start
            if np.shape(got_logits) != (size, wide) or np.shape(got_values) != values[part].shape:
                raise EvaluationError(
                    f"the evaluator returned shapes {np.shape(got_logits)} and "
                    f"{np.shape(got_values)} for {size} positions with {wide} moves and "
                    f"{self.rules.players} players"
                )
            logits[part, :wide] = got_logits
            values[part] = got_values
        self._evaluations += len(states)
        return logits, values

    def _move_rows(self, rows: int) -> np.ndarray:
        """Buffer of ``rows`` rows or more for legal moves; the same one every time."""
        if len(self._buffer) < rows:
            self._buffer = np.empty((rows, self.rules.max_moves), dtype=np.int64)
        return self._buffer

    def _reserve(self, nodes: int) -> Tree:
        if self._tree is None or self._tree.capacity < nodes:
            self._tree = Tree(nodes, self.rules.state_size, self.rules.players)
        return self._tree

    def _checked(
        self, states: np.ndarray, seeds: np.ndarray, simulations: np.ndarray | int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        states = np.require(states, dtype=np.int64, requirements=("C", "W"))
        if states.ndim != 2 or states.shape[1] != self.rules.state_size:
            raise SearchError(
                f"states must have shape (G, {self.rules.state_size}) for {self.rules.config}, "
                f"got {states.shape}"
            )
        seeds = np.require(seeds, dtype=np.uint64, requirements=("C", "W"))
        if seeds.shape != (len(states),):
            raise SearchError(f"seeds must have shape ({len(states)},), got {seeds.shape}")
        try:
            budgets = np.broadcast_to(np.asarray(simulations, dtype=np.int64), (len(states),))
        except ValueError as error:
            raise SearchError(
                f"simulations must be one number or have shape ({len(states)},), "
                f"got shape {np.shape(simulations)}"
            ) from error
        if (budgets < 0).any():
            raise SearchError(f"simulations must not be negative, got {int(budgets.min())}")
        return states, seeds, budgets
