"""Compiled play of the one-ply heuristic with softmax exploration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ringrift_pipeline.game import kernels
from ringrift_pipeline.game.compile import kernel
from ringrift_pipeline.search.heuristic import heuristic_scores
from ringrift_pipeline.selfplay.stepping import (
    advance,
    best_index,
    mix,
    sample_index,
    softmax,
    unit,
)

if TYPE_CHECKING:
    from ringrift_pipeline.enhancements.training_config import TrainingConfig
    from ringrift_pipeline.game import Rules


@kernel
def play_decisions(
    b,
    state,
    seed,
    first,
    temperature,
    sampled,
    max_plies,
    limit,
    buffer,
    scores,
    weights,
    out_states,
    out_offsets,
    out_moves,
    out_policy,
    out_selected,
):
    """Play up to ``limit`` decisions of one game in place; returns (decisions, status).

    ``status`` is what :func:`stepping.advance` said last: OVER, CUT, or the number of legal
    moves when the limit was reached. Decision ``first + row`` is drawn from the softmax of the
    heuristic's scores at ``temperature``; from decision ``sampled`` on the best score is taken.
    Outputs: rows of states (limit, S), offsets (limit+1,), flat moves, policy and the packed
    move played.
    """
    row = 0
    out_offsets[0] = 0
    while True:
        count = advance(b, state, max_plies, buffer)
        if count <= 0 or row == limit:
            return row, count
        heuristic_scores(b, state, buffer, count, scores)
        softmax(scores, count, temperature, weights)
        if first + row < sampled:
            chosen = sample_index(weights, count, unit(mix(seed, first + row)))
        else:
            chosen = best_index(scores, count)
        start = out_offsets[row]
        for index in range(count):
            out_moves[start + index] = buffer[index]
            out_policy[start + index] = weights[index]
        out_offsets[row + 1] = start + count
        out_states[row, :] = state
        out_selected[row] = buffer[chosen]
        kernels.apply_move(b, state, buffer[chosen])
        row += 1


class HeuristicBuffers:
    """Buffers for :func:`play_decisions`, made once and used for every game of a shard.

    Attributes hold the last call's decisions: ``states`` (K, S), ``offsets`` (K+1,), ``moves``
    and ``policy`` flat, ``selected`` (K,); only the first ``rows`` are meant.
    """

    def __init__(self, rules: Rules, limit: int) -> None:
        self._rules = rules
        self._limit = limit
        self._buffer = np.zeros(rules.max_moves, np.int64)
        self._scores = np.zeros(rules.max_moves, np.float64)
        self._weights = np.zeros(rules.max_moves, np.float64)
        self.states = np.zeros((limit, rules.state_size), np.int64)
        self.offsets: NDArray[np.int64] = np.zeros(limit + 1, np.int64)
        self.moves = np.zeros(limit * rules.max_moves, np.int64)
        self.policy = np.zeros(limit * rules.max_moves, np.float32)
        self.selected = np.zeros(limit, np.int64)

    def play(
        self, state: NDArray[np.int64], seed: np.uint64, first: int, settings: TrainingConfig
    ) -> tuple[int, int]:
        """Play on from ``state`` (S,), in place; returns (rows, status) of the kernel."""
        selfplay = settings.selfplay
        rows, status = play_decisions(
            self._rules.constants,
            state,
            seed,
            first,
            selfplay.generation0_temperature,
            selfplay.temperature_plies,
            selfplay.max_plies,
            self._limit,
            self._buffer,
            self._scores,
            self._weights,
            self.states,
            self.offsets,
            self.moves,
            self.policy,
            self.selected,
        )
        return int(rows), int(status)
