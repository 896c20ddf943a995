"""The root of a Gumbel search: which actions to consider, and the improved policy.

Notation of Danihelka et al. 2022: completed Q is the mean value of a visited action's child for
the player to move, and the mixed value v_mix (appendix D, equation 33) for the others;
sigma(q) = (c_visit + max N) * c_scale * q; pi' = softmax(logits + sigma(completed Q)).

The roots of a pool lie in rows: ``logits`` (K, L) float32, ``noise`` (K, L) float64, and
``child`` (K, L) int64, the node behind each action, -1 before the first visit. The first round
visits ``opened`` actions, and no later round another: ``candidates`` (K, L) int64 holds them, the
ones still in the running first.
"""

from __future__ import annotations

import math

import numpy as np

from ringrift_pipeline.game.compile import kernel
from ringrift_pipeline.search.tree import (
    FEW,
    RAW,
    SEAT,
    VISITS,
    best_few,
    mean_value,
    rank_best,
)


@kernel
def mixed_value(
    root: int,
    seat: int,
    opened: int,
    candidates: np.ndarray,
    logits: np.ndarray,
    child: np.ndarray,
    nodes: np.ndarray,
    values: np.ndarray,
) -> float:
    """v_mix of ``root`` for ``seat``; the arrays are one root's rows, (L,)."""
    top = -np.inf
    for i in range(opened):
        top = max(top, np.float64(logits[candidates[i]]))
    sum_n = 0
    norm = 0.0
    weighted = 0.0
    for i in range(opened):
        a = candidates[i]
        weight = math.exp(np.float64(logits[a]) - top)
        norm += weight
        sum_n += nodes[child[a], VISITS]
        weighted += weight * mean_value(child[a], seat, nodes, values)
    raw = values[root, RAW, seat]
    return (raw + sum_n * (weighted / norm)) / (1 + sum_n) if opened > 0 else raw


@kernel
def sigma_scale(
    opened: int,
    candidates: np.ndarray,
    child: np.ndarray,
    nodes: np.ndarray,
    c_visit: float,
    c_scale: float,
) -> float:
    """The factor of sigma: (c_visit + visits of the most visited action) * c_scale."""
    most = 0
    for i in range(opened):
        most = max(most, nodes[child[candidates[i]], VISITS])
    return (c_visit + most) * c_scale


@kernel
def plan_round(
    root: int,
    count: int,
    opened: int,
    left: int,
    width: int,
    candidates: np.ndarray,
    logits: np.ndarray,
    noise: np.ndarray,
    child: np.ndarray,
    nodes: np.ndarray,
    values: np.ndarray,
    c_visit: float,
    c_scale: float,
    keys: np.ndarray,
    order: np.ndarray,
    old: np.ndarray,
) -> None:
    """Bring the ``width`` best of the ``left`` first candidates to the front of ``candidates``.

    The score is noise + logits + sigma(completed Q). In the first round (``opened`` 0) all
    ``count`` actions are candidates; sigma is then the same for all and left out. ``keys``
    float64, ``order`` and ``old`` int64, (L,), are scratch.
    """
    if opened == 0:
        for a in range(count):
            keys[a] = np.float64(logits[a]) + noise[a]
        if width <= FEW:
            best_few(keys, count, width, order)
        else:
            rank_best(keys, count, width, order)
        for i in range(width):
            candidates[i] = order[i]
        return
    if width == left == 1:
        return
    me = nodes[root, SEAT]
    scale = sigma_scale(opened, candidates, child, nodes, c_visit, c_scale)
    for i in range(left):
        a = candidates[i]
        old[i] = a
        q = mean_value(child[a], me, nodes, values)
        keys[i] = np.float64(logits[a]) + scale * q + noise[a]
    rank_best(keys, left, width, order)
    for i in range(left):
        candidates[i] = old[order[i]]


@kernel
def conclude(
    root: int,
    count: int,
    opened: int,
    candidates: np.ndarray,
    logits: np.ndarray,
    noise: np.ndarray,
    child: np.ndarray,
    nodes: np.ndarray,
    values: np.ndarray,
    c_visit: float,
    c_scale: float,
    improved: np.ndarray,
    out_policy: np.ndarray,
    out_prior: np.ndarray,
    out_visits: np.ndarray,
    out_root: np.ndarray,
    out_search: np.ndarray,
) -> tuple[int, float]:
    """Write one root's result into its output rows; returns the selected index and the surprise.

    The selected action has the largest noise + logits + sigma(completed Q) among those visited
    most often; ``out_search`` is the value of the improved policy, untried actions at v_mix.
    ``improved`` float64 (L,) is scratch.
    """
    players = values.shape[2]
    me = nodes[root, SEAT]
    scale = sigma_scale(opened, candidates, child, nodes, c_visit, c_scale)
    mixed = mixed_value(root, me, opened, candidates, logits, child, nodes, values)
    top_prior = -np.inf
    top_policy = -np.inf
    most = 0
    for a in range(count):
        out_visits[a] = 0
        completed = mixed
        if child[a] >= 0:
            out_visits[a] = nodes[child[a], VISITS]
            completed = mean_value(child[a], me, nodes, values)
        most = max(most, out_visits[a])
        improved[a] = np.float64(logits[a]) + scale * completed
        top_prior = max(top_prior, np.float64(logits[a]))
        top_policy = max(top_policy, improved[a])
    norm_prior = 0.0
    norm_policy = 0.0
    for a in range(count):
        norm_prior += math.exp(np.float64(logits[a]) - top_prior)
        norm_policy += math.exp(improved[a] - top_policy)
    log_prior = top_prior + math.log(norm_prior)
    log_policy = top_policy + math.log(norm_policy)
    best = 0
    best_score = -np.inf
    surprise = 0.0
    untried = 0.0
    for p in range(players):
        out_root[p] = values[root, RAW, p]
        out_search[p] = 0.0
    for a in range(count):
        prior = math.exp(np.float64(logits[a]) - log_prior)
        policy = math.exp(improved[a] - log_policy)
        out_prior[a] = prior
        out_policy[a] = policy
        surprise += policy * ((improved[a] - log_policy) - (logits[a] - log_prior))
        if child[a] < 0:
            untried += policy
        score = improved[a] + noise[a]
        if out_visits[a] == most and score > best_score:
            best_score = score
            best = a
    for p in range(players):
        value = untried * mixed_value(root, p, opened, candidates, logits, child, nodes, values)
        for i in range(opened):
            a = candidates[i]
            value += math.exp(improved[a] - log_policy) * mean_value(child[a], p, nodes, values)
        out_search[p] = value
    return best, max(0.0, surprise)
