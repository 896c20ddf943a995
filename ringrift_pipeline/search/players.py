"""Players: whoever can choose a move in any state of its config."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ringrift_pipeline.game import get_rules, kernels
from ringrift_pipeline.game.compile import announced
from ringrift_pipeline.search import heuristic
from ringrift_pipeline.search.errors import SearchError
from ringrift_pipeline.search.gumbel import GumbelSearch
from ringrift_pipeline.search.noise import derive_seeds, uniform
from ringrift_pipeline.search.pool import SearchSettings
from ringrift_pipeline.search.rollout import EXPLORATION, uct_search
from ringrift_pipeline.search.tree import list_moves, settle
from ringrift_pipeline.search.value_temperature import tempered

if TYPE_CHECKING:
    from ringrift_pipeline.game import Move, State
    from ringrift_pipeline.search.evaluators import Evaluator


@dataclass(frozen=True)
class Analysis:
    """What a player thinks of a state; arrays are aligned with ``moves``."""

    moves: tuple[Move, ...]  # the legal moves in canonical order
    policy: np.ndarray  # (moves,) float64, sums to 1
    value: np.ndarray  # (players,) float64, each seat's share of the win; sums to about 1;
    # at the player's value_temperature
    visits: np.ndarray  # (moves,) int64; zeros where nothing is searched


class Player(Protocol):
    """What matches, the command line and the UI ask of a player."""

    name: str
    config: str
    value_temperature: float  # of the chances in an analysis; 1 where nothing calibrates them
    calibration: str  # where that comes from, or why it is 1

    def choose(self, state: State) -> Move:
        """The player's move in ``state``; :class:`SearchError` when the game is over."""
        ...

    def analyze(self, state: State) -> Analysis:
        """What the player thinks of ``state``; :class:`SearchError` when the game is over."""
        ...

    def choose_batch(self, states: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        """Packed moves (G,) int64 for ``states`` (G, S) int64.

        Each depends on its own state and seed (``seeds`` (G,) uint64) only.
        """
        ...


@dataclass(frozen=True)
class Opinion:
    """What a player thinks of ``G`` states; unspecified beyond ``counts`` in ``moves``, else 0."""

    moves: np.ndarray  # (G, L) int64 packed legal moves in canonical order
    counts: np.ndarray  # (G,) int32 number of legal moves
    policy: np.ndarray  # (G, >= counts) the share of each move, a row sums to 1
    value: np.ndarray  # (G, players) each seat's share of the win, not tempered
    visits: np.ndarray  # (G, >= counts) int; zeros where nothing is searched
    chosen: np.ndarray  # (G,) int64 place of the move that is played


class _BatchPlayer(ABC):
    """The object API on top of one batched ``_think``."""

    name: str
    value_temperature: float = 1.0
    calibration: str = "only networks are calibrated"

    def __init__(self, config: str, seed: int = 0) -> None:
        self.rules = get_rules(config)
        self.config = config
        self.seed = int(seed)
        self._asked = 0

    @abstractmethod
    def _think(self, states: np.ndarray, seeds: np.ndarray) -> Opinion:
        """Opinions on states that are not over."""

    def choose_batch(self, states: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        """Packed moves (G,) int64; each depends on its own state and seed only."""
        opinion = self.opinions(states, seeds)
        return opinion.moves[np.arange(len(opinion.moves)), opinion.chosen]

    def choose(self, state: State) -> Move:
        """The move chosen in ``state``, with the next seed of this player's own stream."""
        row = self._row(state)
        code = int(self.choose_batch(row, self._next_seed())[0])
        return next(move for move in state.legal_moves() if move.code == code)

    def analyze(self, state: State) -> Analysis:
        """Policy, value and visits in ``state``."""
        opinion = self.opinions(self._row(state), self._next_seed())
        count = int(opinion.counts[0])
        return Analysis(
            moves=tuple(state.legal_moves()),
            policy=opinion.policy[0, :count].astype(np.float64),
            value=opinion.value[0].astype(np.float64),
            visits=opinion.visits[0, :count].astype(np.int64),
        )

    def opinions(self, states: np.ndarray, seeds: np.ndarray) -> Opinion:
        """Opinions on ``states`` (G, S) int64 that are not over; ``seeds`` (G,) uint64.

        Each depends on its own state and seed only. Raises :class:`SearchError` for another
        shape, or a game that is over.
        """
        return self._think(*self._checked(states, seeds))

    def _next_seed(self) -> np.ndarray:
        self._asked += 1
        return derive_seeds(self.seed, self._asked - 1, 1)

    def _row(self, state: State) -> np.ndarray:
        if state.config != self.config:
            raise SearchError(f"this player plays {self.config}; the state is of {state.config}")
        if state.is_terminal:
            raise SearchError("the game is over: there is no move to choose")
        return np.array(state.array, dtype=np.int64)[None]

    def _checked(self, states: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        states = np.require(states, dtype=np.int64, requirements=("C", "W"))
        seeds = np.require(seeds, dtype=np.uint64, requirements=("C", "W"))
        if states.ndim != 2 or states.shape[1] != self.rules.state_size:
            raise SearchError(
                f"states must have shape (G, {self.rules.state_size}) for {self.config}, "
                f"got {states.shape}"
            )
        if seeds.shape != (len(states),):
            raise SearchError(f"seeds must have shape ({len(states)},), got {seeds.shape}")
        if (states[:, 0] < 0).any():
            over = int(np.flatnonzero(states[:, 0] < 0)[0])
            raise SearchError(f"the game in row {over} is over: there is no move to choose")
        return states, seeds

    def _legal(self, states: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Moves (G, max_moves), unspecified beyond counts (G,) int32, and the largest count."""
        moves = np.empty((len(states), self.rules.max_moves), dtype=np.int64)
        counts = np.zeros(len(states), dtype=np.int32)
        with announced("the list of moves", "search", "moves"):
            widest = list_moves(self.rules.constants, states, moves, counts)
        return moves, counts, widest


class RandomPlayer(_BatchPlayer):
    """Every legal move with equal probability."""

    name = "random"

    def _think(self, states: np.ndarray, seeds: np.ndarray) -> Opinion:
        moves, counts, widest = self._legal(states)
        draws = np.array([uniform(seed, 0) for seed in seeds])
        policy = (np.arange(widest) < counts[:, None]) / counts[:, None]
        return Opinion(
            moves=moves,
            counts=counts,
            policy=policy,
            value=np.full((len(states), self.rules.players), 1.0 / self.rules.players),
            visits=np.zeros(policy.shape, dtype=np.int64),
            chosen=np.minimum((draws * counts).astype(np.int64), counts - 1),
        )


class HeuristicPlayer(_BatchPlayer):
    """Greedy over one ply (see :mod:`ringrift_pipeline.search.heuristic`).

    ``temperature`` (score units): 0 plays the best move, ties by seed; above, moves are sampled
    from the softmax of the scores, which explores as generation 0 of selfplay does. The policy
    of an analysis is that distribution; its value the softmax of the seats' static values.
    """

    name = "heuristic"
    #: Static values are divided by this before they become shares of the win.
    value_scale = 11.0

    def __init__(self, config: str, seed: int = 0, *, temperature: float = 0.0) -> None:
        super().__init__(config, seed)
        if not 0.0 <= temperature < float("inf"):
            raise SearchError(f"temperature must be finite and not negative, got {temperature}")
        self.temperature = temperature

    def _think(self, states: np.ndarray, seeds: np.ndarray) -> Opinion:
        with announced("the heuristic", "search", "heuristic"):
            moves, counts, scores = heuristic.score_batch(self.rules, states)
        policy = heuristic.policy_from_scores(scores, self.temperature)
        draws = np.array([uniform(seed, 0) for seed in seeds])
        reached = np.cumsum(policy, axis=1) > draws[:, None]
        last = np.where(policy > 0, np.arange(policy.shape[1]), -1).max(axis=1)
        chosen = np.where(reached.any(axis=1), reached.argmax(axis=1), last)
        static = heuristic.static_values(self.rules, states)
        return Opinion(
            moves=moves,
            counts=counts,
            policy=policy,
            value=heuristic.policy_from_scores(static, self.value_scale),
            visits=np.zeros(moves.shape, dtype=np.int64),
            chosen=chosen,
        )


class RolloutPlayer(_BatchPlayer):
    """UCT with random playouts (see :mod:`ringrift_pipeline.search.rollout`).

    ``playouts`` are spent on every decision with two or more moves; with one move there is no
    search, and an analysis has equal chances for its value.
    """

    name = "rollout"

    def __init__(
        self, config: str, seed: int = 0, *, playouts: int = 64, exploration: float = EXPLORATION
    ) -> None:
        super().__init__(config, seed)
        if playouts < 1:
            raise SearchError(f"a rollout player needs at least 1 playout, got {playouts}")
        self.playouts = int(playouts)
        self.exploration = float(exploration)

    def _think(self, states: np.ndarray, seeds: np.ndarray) -> Opinion:
        moves, counts, widest = self._legal(states)
        players = self.rules.players
        visits = np.zeros((len(states), widest), dtype=np.int64)
        value = np.full((len(states), players), 1.0 / players, dtype=np.float64)
        chosen = np.zeros(len(states), dtype=np.int64)
        with announced("rollout search", "search", "rollout"):
            for g in np.flatnonzero(counts > 1):
                chosen[g] = uct_search(
                    self.rules.constants, states[g], moves[g], counts[g], self.playouts,
                    self.exploration, seeds[g], visits[g], value[g],
                )  # fmt: skip
        policy = visits / np.maximum(visits.sum(axis=1, keepdims=True), 1)
        policy[counts == 1, 0] = 1.0
        return Opinion(moves, counts, policy, value, visits, chosen)


class NetworkPlayer(_BatchPlayer):
    """Gumbel search over an evaluator, without noise: the same state gives the same move.

    ``settings`` may be any object with the attributes of :class:`SearchSettings`; its
    ``gumbel_scale`` is not used. The value of an analysis is that of the improved policy; in a
    state with one move it is the evaluator's, or the exact result, at the next real decision.

    ``value_temperature`` (the calibration's) tempers the chances that :meth:`analyze` reports,
    ``p ** (1 / T)`` over the seats that play, but not exact results. The search goes on with the
    evaluator's own values, so moves, policy and visits are the same at any temperature: neither
    strength nor reproducibility depends on a report. ``calibration`` says where the temperature
    comes from.
    """

    name = "network"

    def __init__(
        self,
        config: str,
        evaluator: Evaluator,
        *,
        simulations: int = 64,
        seed: int = 0,
        settings: Any = None,
        name: str = "network",
        value_temperature: float = 1.0,
        calibration: str = "no temperature was asked for",
    ) -> None:
        super().__init__(config, seed)
        if simulations < 0:
            raise SearchError(f"simulations must not be negative, got {simulations}")
        if not 0.0 < value_temperature < float("inf"):
            raise SearchError(
                f"value_temperature must be finite and above 0, got {value_temperature}"
            )
        settings = SearchSettings() if settings is None else settings
        quiet = SearchSettings(settings.max_considered, settings.c_visit, settings.c_scale, 0.0)
        self.simulations = int(simulations)
        self.search = GumbelSearch(self.rules, evaluator, quiet)
        self.evaluator = evaluator
        self.name = name
        self.value_temperature = float(value_temperature)
        self.calibration = calibration

    def _think(self, states: np.ndarray, seeds: np.ndarray) -> Opinion:
        found = self.search.search(states, seeds, self.simulations)
        return Opinion(
            moves=found.moves,
            counts=found.counts,
            policy=found.policy,
            value=found.search_value,
            visits=found.visits,
            chosen=found.selected_index,
        )

    def analyze(self, state: State) -> Analysis:
        """Improved policy, its value at ``value_temperature``, and visits in ``state``."""
        found = super().analyze(state)
        if len(found.moves) > 1:
            value = tempered(found.value, self.value_temperature)
        else:
            value = self.values_after_forced_moves(state.array[None])[0]
        return Analysis(found.moves, found.policy, value, found.visits)

    def values_after_forced_moves(self, states: np.ndarray) -> np.ndarray:
        """(N, players) float64 for ``states`` (N, S) int64, without search.

        The evaluator's value at the next real decision, at ``value_temperature``; the exact
        result where the game ends before.
        """
        rows = np.array(states, dtype=np.int64)  # a copy, played on
        moves = np.zeros((len(rows), self.rules.max_moves), dtype=np.int64)
        counts = np.zeros(len(rows), dtype=np.int32)
        values = np.zeros((len(rows), self.rules.players), dtype=np.float64)
        for i, row in enumerate(rows):
            counts[i] = settle(self.rules.constants, row, moves[i])
            if counts[i] == 0:
                kernels.ranking_points(self.rules.constants, row, values[i])
        left = np.flatnonzero(counts)
        if len(left):
            listed = np.ascontiguousarray(moves[left, : counts.max()])
            _, found = self.evaluator.evaluate(rows[left], listed, counts[left])
            values[left] = tempered(np.asarray(found, dtype=np.float64), self.value_temperature)
        return values
