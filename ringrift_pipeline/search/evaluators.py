"""What search asks of an evaluator, and two evaluators that need no network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from ringrift_pipeline.game import kernels
from ringrift_pipeline.game.compile import kernel
from ringrift_pipeline.search.noise import hash_row

if TYPE_CHECKING:
    from ringrift_pipeline.game import Rules


class Evaluator(Protocol):
    """Policy and value of a batch of positions.

    An evaluator may have an attribute ``unseen``, the indices of the words of a state (below
    ``layout.HEADER + rules.padded``) that its answer does not depend on. Then an evaluation may
    serve again for a position that differs in nothing else.
    """

    def evaluate(
        self, states: np.ndarray, moves: np.ndarray, counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Evaluate ``B`` positions, each with at least two legal moves.

        ``states`` (B, S) int64, ``moves`` (B, L) int64 packed legal moves, of which the first
        ``counts`` (B,) int32 of a row are meant. Returns logits (B, L) float32, finite where a
        move is, and values (B, players) float32: each absolute seat's probability of winning.
        """
        ...


class UniformEvaluator:
    """Knows nothing: equal logits, equal chances."""

    def __init__(self, rules: Rules) -> None:
        self.players = int(rules.players)

    def evaluate(
        self, states: np.ndarray, moves: np.ndarray, counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Zeros (B, L) and 1 / players (B, players), both float32."""
        value = np.full((len(states), self.players), 1.0 / self.players, dtype=np.float32)
        return np.zeros(moves.shape, dtype=np.float32), value


@kernel
def _rollout_values(
    b: np.ndarray,
    states: np.ndarray,
    playouts: int,
    seed: np.uint64,
    buffer: np.ndarray,
    out: np.ndarray,
) -> None:
    scratch = np.empty(states.shape[1], dtype=np.int64)
    points = np.zeros(out.shape[1], dtype=np.float64)
    total = np.zeros(out.shape[1], dtype=np.float64)
    rng = np.zeros(1, dtype=np.uint64)
    for g in range(states.shape[0]):
        rng[0] = hash_row(states[g], seed)
        for p in range(out.shape[1]):
            total[p] = 0.0
        for _ in range(playouts):
            for i in range(scratch.size):
                scratch[i] = states[g, i]
            kernels.random_playout(b, scratch, rng, buffer)
            kernels.ranking_points(b, scratch, points)
            for p in range(out.shape[1]):
                total[p] += points[p]
        for p in range(out.shape[1]):
            out[g, p] = total[p] / playouts


class RolloutEvaluator:
    """Equal logits; the value is the mean result of random playouts.

    The playouts of a position are seeded by the position itself, so a row's value does not
    depend on the batch it comes in.
    """

    def __init__(self, rules: Rules, playouts: int = 8, seed: int = 0) -> None:
        if playouts < 1:
            raise ValueError(f"playouts must be at least 1, got {playouts}")
        self.rules = rules
        self.playouts = playouts
        self.seed = np.uint64(seed)

    def evaluate(
        self, states: np.ndarray, moves: np.ndarray, counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Zeros (B, L) and mean playout shares (B, players), both float32."""
        value = np.empty((len(states), self.rules.players), dtype=np.float32)
        buffer = np.empty(self.rules.max_moves, dtype=np.int64)
        rows = np.ascontiguousarray(states)
        _rollout_values(self.rules.constants, rows, self.playouts, self.seed, buffer, value)
        return np.zeros(moves.shape, dtype=np.float32), value
