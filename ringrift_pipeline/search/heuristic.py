"""The one-ply heuristic: try every legal move, score what it leads to.

Every legal move is applied to a scratch row, forced moves after it are played, and the position
is scored for the mover: a weighted sum of the features in :mod:`features`, its own against those
of the others. Where the mover itself decides next about a capture, a line or a region, the best
of those decisions counts, so that what a move gains is seen.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ringrift_pipeline.game import kernels, layout
from ringrift_pipeline.game.compile import kernel
from ringrift_pipeline.search import features
from ringrift_pipeline.search.features import FEATURES, count_features
from ringrift_pipeline.search.tree import inline_settle, list_moves

if TYPE_CHECKING:
    from ringrift_pipeline.game import Rules

#: Score of a won game; a lost one scores as much less than a draw as a won one more.
WIN = 1000.0


def _weights() -> np.ndarray:
    weights = np.zeros(FEATURES, dtype=np.float64)
    weights[features.TERRITORY] = 9.6
    weights[features.ELIMINATED] = 18.0
    weights[features.CLOSENESS] = 9.1
    weights[features.STACKS] = 0.87
    weights[features.CAPS] = 0.56
    weights[features.HEIGHT] = 0.3
    weights[features.BURIED] = 1.1
    weights[features.MARKERS] = 0.46
    weights[features.MOBILITY] = -0.075
    weights[features.STUCK] = -0.52
    weights[features.ATTACKS] = -0.092
    weights[features.THREATENED] = -0.1
    weights[features.LINES] = 1.2
    weights[features.NEAR_LINES] = 0.25
    weights[features.PAIRS] = -0.25
    weights[features.HAND] = 1.3
    weights[features.BORDERS] = 0.041
    return weights


#: Weight of each feature, (FEATURES,) float64; a score of 1 is about one ring eliminated. Fitted by
#: logistic regression of game results on the difference of features, over a million positions of
#: heuristic games on six configs, then frozen: it is what models are measured against.
#: A constant of the compiled kernels: changing the array at run time changes nothing.
WEIGHTS = _weights()


@kernel
def seat_values(b: np.ndarray, s: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
    """Static value of every seat into ``out`` (players,) float64; a finished game is +-WIN.

    ``table`` (players, FEATURES) float64 is scratch.
    """
    if s[layout.PLAYER] < 0:
        kernels.ranking_points(b, s, out)
        for p in range(out.size):
            out[p] = WIN * (2.0 * out[p] - 1.0)
        return
    count_features(b, s, table)
    for p in range(out.size):
        out[p] = 0.0
        for f in range(FEATURES):
            out[p] += WEIGHTS[f] * table[p, f]


@kernel
def _standing(values: np.ndarray, me: int) -> float:
    """A seat's value against the others: half against their mean, half against the best."""
    total = 0.0
    best = -np.inf
    for p in range(values.size):
        if p != me:
            total += values[p]
            best = max(best, values[p])
    return values[me] - 0.5 * (total / (values.size - 1) + best)


@kernel
def heuristic_scores(
    b: np.ndarray, s: np.ndarray, moves: np.ndarray, n: int, out: np.ndarray
) -> None:
    """Score each of the ``n`` legal ``moves`` of state ``s`` for its mover into ``out`` (n,).

    ``moves`` is a buffer of the config's ``max_moves``. ``s`` is left as it is. Scores are in
    the units of :data:`WEIGHTS`. After ``swap_sides`` the mover sits on the other seat.
    """
    players = b[layout.B_PLAYERS]
    mover = s[layout.PLAYER]
    first = np.empty(s.size, dtype=np.int64)
    second = np.empty(s.size, dtype=np.int64)
    replies = np.empty(moves.size, dtype=np.int64)
    ignored = np.empty(moves.size, dtype=np.int64)
    table = np.empty((players, FEATURES), dtype=np.float64)
    values = np.empty(players, dtype=np.float64)
    for i in range(n):
        me = mover
        if (moves[i] & layout.KIND_MASK) == layout.SWAP_SIDES and me < 2:
            me = 1 - me
        for k in range(s.size):
            first[k] = s[k]
        kernels.apply_move(b, first, moves[i])
        count = inline_settle(b, first, replies)
        phase = first[layout.PHASE]
        goes_on = (
            count > 0
            and first[layout.PLAYER] == me
            and first[layout.TURN] == s[layout.TURN]
            and layout.CAPTURE <= phase <= layout.TERRITORY
        )
        out[i] = -np.inf
        for reply in range(count if goes_on else 1):
            for k in range(s.size):
                second[k] = first[k]
            if goes_on:
                kernels.apply_move(b, second, replies[reply])
                inline_settle(b, second, ignored)
            seat_values(b, second, table, values)
            out[i] = max(out[i], _standing(values, me))


def score_batch(rules: Rules, states: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Score all legal moves of ``states`` (G, S) int64.

    Returns moves (G, L) int64 padded with 0, counts (G,) int32 and scores (G, L) float64 padded
    with -inf; L is the largest count.
    """
    games = len(states)
    buffer = np.empty((games, rules.max_moves), dtype=np.int64)
    counts = np.zeros(games, dtype=np.int32)
    widest = list_moves(rules.constants, states, buffer, counts)
    scores = np.full((games, widest), -np.inf, dtype=np.float64)
    for g in range(games):
        heuristic_scores(rules.constants, states[g], buffer[g], counts[g], scores[g])
    moves = np.where(np.arange(widest) < counts[:, None], buffer[:, :widest], 0)
    return moves, counts, scores


def policy_from_scores(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Softmax of ``scores`` (..., L) over the last axis at ``temperature`` (score units).

    Scores of -inf (padding) get probability 0. Temperature 0 shares the probability among the
    best. Returns float64 of the same shape; raises ``ValueError`` for a negative temperature.
    """
    if not temperature >= 0.0 or math.isinf(temperature):
        raise ValueError(f"temperature must be finite and not negative, got {temperature}")
    scores = np.asarray(scores, dtype=np.float64)
    best = scores.max(axis=-1, keepdims=True)
    if temperature == 0.0:
        weights = (scores == best).astype(np.float64)
    else:
        weights = np.exp((scores - best) / temperature)
    return weights / weights.sum(axis=-1, keepdims=True)


def static_values(rules: Rules, states: np.ndarray) -> np.ndarray:
    """Static value of every seat, (G, players) float64, of ``states`` (G, S) int64."""
    out = np.empty((len(states), rules.players), dtype=np.float64)
    table = np.empty((rules.players, FEATURES), dtype=np.float64)
    for g in range(len(states)):
        seat_values(rules.constants, states[g], table, out[g])
    return out
