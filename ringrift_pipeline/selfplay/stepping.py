"""Compiled steps of selfplay: forced plies, whole heuristic games, sampling."""

from __future__ import annotations

import math

import numpy as np

from ringrift_pipeline.game import kernels, layout
from ringrift_pipeline.game.compile import kernel
from ringrift_pipeline.search.noise import mix

# What `advance` returns when there is nothing to decide; more than one is a number of moves.
OVER = 0
CUT = -1

# What a decision's seed is turned into for each draw beside its search, which takes its noise from
# the seed itself: a coin that shared a number with the noise would choose the noise of the searches
# it calls full.
_FOR_SAMPLE = np.uint64(0x6A09E667F3BCC908)
_FOR_BUDGET = np.uint64(0xBB67AE8584CAA73B)


@kernel
def advance(b, state, max_plies, moves):
    """Play forced plies until someone has a choice.

    Returns the number of legal moves (> 1, listed in ``moves``), OVER, or CUT when
    ``max_plies`` > 0 plies were played. ``state`` (S,) int64 is changed in place.
    """
    while True:
        if state[layout.PHASE] == layout.OVER:
            return OVER
        if max_plies > 0 and state[layout.PLY] >= max_plies:
            return CUT
        count = kernels.legal_moves(b, state, moves)
        if count != 1:
            return count
        kernels.apply_move(b, state, moves[0])


@kernel
def advance_games(b, states, rows, max_plies, moves, counts):
    """:func:`advance` for the ``rows`` (N,) of ``states`` (G, S); returns how many games are over.

    ``counts`` (G,) int64 receives what it returned for each; ``moves`` is one scratch buffer.
    """
    over = 0
    for row in rows:
        counts[row] = advance(b, states[row], max_plies, moves)
        over += counts[row] <= 0
    return over


@kernel
def apply_moves(b, states, rows, chosen):
    """Play ``chosen`` (N,) int64 in the ``rows`` (N,) of ``states`` (G, S), in place."""
    for i in range(rows.size):
        kernels.apply_move(b, states[rows[i]], chosen[i])


@kernel
def softmax(scores, count, temperature, out):
    """Softmax of ``scores[:count] / temperature`` into ``out[:count]`` (float64)."""
    best = -np.inf
    for index in range(count):
        best = max(best, scores[index])
    total = 0.0
    for index in range(count):
        out[index] = math.exp((scores[index] - best) / temperature)
        total += out[index]
    for index in range(count):
        out[index] /= total


@kernel
def sample_index(policy, count, draw):
    """Index drawn from ``policy[:count]`` (its sum need not be 1) by ``draw`` in [0, 1)."""
    total = 0.0
    for index in range(count):
        total += policy[index]
    threshold = draw * total
    running = 0.0
    last = 0
    for index in range(count):
        if policy[index] > 0.0:
            running += policy[index]
            last = index
            if threshold < running:
                return index
    return last


@kernel
def best_index(policy, count):
    """First index of the largest of ``policy[:count]``."""
    best = 0
    for index in range(1, count):
        if policy[index] > policy[best]:
            best = index
    return best


@kernel
def unit(bits):
    """A float64 in [0, 1) from the high 53 bits of a uint64."""
    return float(bits >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@kernel
def choose_moves(policy, counts, seeds, decisions, temperature, sampled, out):
    """Choose an index per game: sampled early in a game, greedy later.

    ``policy`` (G, L) float32, ``counts`` (G,), ``seeds`` (G,) uint64 (one per game and
    decision), ``decisions`` (G,) made so far; the first ``sampled`` of a game are drawn from
    ``policy ** (1 / temperature)``, the others take its maximum. ``out`` (G,) int64.
    """
    weights = np.empty(policy.shape[1], np.float64)
    for game in range(policy.shape[0]):
        count = counts[game]
        if decisions[game] >= sampled:
            out[game] = best_index(policy[game], count)
            continue
        top = policy[game, best_index(policy[game], count)]
        for index in range(count):
            weights[index] = (policy[game, index] / top) ** (1.0 / temperature)
        out[game] = sample_index(weights, count, unit(mix(seeds[game] ^ _FOR_SAMPLE, 0)))


@kernel
def decision_seeds(seeds, decisions, out):
    """A fresh uint64 seed per game and decision: ``out`` (G,)."""
    for game in range(seeds.shape[0]):
        out[game] = mix(seeds[game], decisions[game])


@kernel
def full_searches(seeds, fraction, out):
    """Whether each decision is searched in full, with probability ``fraction``: ``out`` (G,)."""
    for game in range(seeds.shape[0]):
        out[game] = unit(mix(seeds[game] ^ _FOR_BUDGET, 0)) < fraction
