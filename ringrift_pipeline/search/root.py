"""The root of a Gumbel search: which actions to consider, and the improved policy.

Notation of Danihelka et al. 2022: completed Q is the mean value of a visited action's child for
the player to move, and the mixed value v_mix (appendix D, equation 33) for the others;
sigma(q) = (c_visit + max N) * c_scale * q; pi' = softmax(logits + sigma(completed Q)).
"""

from __future__ import annotations

import math

import numpy as np

from ringrift_pipeline.game.compile import kernel
from ringrift_pipeline.search.noise import gumbel
from ringrift_pipeline.search.tree import rank_best


@kernel
def open_roots(
    rows: np.ndarray,
    base: np.ndarray,
    inputs: np.ndarray,
    seeds: np.ndarray,
    counts: np.ndarray,
    logits: np.ndarray,
    values: np.ndarray,
    gumbel_scale: float,
    states: np.ndarray,
    seat: np.ndarray,
    raw: np.ndarray,
    total: np.ndarray,
    visits: np.ndarray,
    parent: np.ndarray,
    swapped: np.ndarray,
    noise: np.ndarray,
) -> int:
    """Start the trees of the games ``rows``; the evaluator's value is each root's first visit.

    Fills ``noise`` (R, L) with Gumbel variates of each game's own seed. Returns -1, or the index
    of the first root whose evaluation is not finite.
    """
    for g in range(rows.size):
        node = base[g]
        for i in range(states.shape[1]):
            states[node, i] = inputs[rows[g], i]
        seat[node] = states[node, 0]
        visits[node] = 1
        parent[node] = -1
        swapped[node] = 0
        for p in range(raw.shape[1]):
            if not math.isfinite(values[g, p]):
                return g
            raw[node, p] = values[g, p]
            total[node, p] = values[g, p]
        for a in range(counts[g]):
            if not math.isfinite(logits[g, a]):
                return g
            noise[g, a] = 0.0
            if gumbel_scale > 0.0:
                noise[g, a] = gumbel_scale * gumbel(seeds[rows[g]], a)
    return -1


@kernel
def improve(
    g: int,
    node: int,
    me: int,
    count: int,
    logits: np.ndarray,
    root_child: np.ndarray,
    raw: np.ndarray,
    total: np.ndarray,
    visits: np.ndarray,
    swapped: np.ndarray,
    c_visit: float,
    c_scale: float,
    mixed: np.ndarray,
    out: np.ndarray,
) -> None:
    """Improved logits of game ``g`` into ``out`` (L,) and v_mix of every seat into ``mixed`` (P,).

    ``out[a]`` = logits[g, a] + sigma(completed Q of a for seat ``me``).
    """
    players = raw.shape[1]
    top = -np.inf
    for a in range(count):
        if root_child[g, a] >= 0:
            top = max(top, np.float64(logits[g, a]))
    sum_n = 0
    max_n = 0
    norm = 0.0
    for p in range(players):
        mixed[p] = 0.0
    for a in range(count):
        child = root_child[g, a]
        if child < 0:
            continue
        n = visits[child]
        sum_n += n
        max_n = max(max_n, n)
        weight = math.exp(np.float64(logits[g, a]) - top)
        norm += weight
        for p in range(players):
            q = 1 - p if swapped[child] == 1 and p < 2 else p
            mixed[p] += weight * total[child, q] / n
    for p in range(players):
        if sum_n > 0:
            mixed[p] = (raw[node, p] + sum_n * (mixed[p] / norm)) / (1 + sum_n)
        else:
            mixed[p] = raw[node, p]
    scale = (c_visit + max_n) * c_scale
    for a in range(count):
        child = root_child[g, a]
        completed = mixed[me]
        if child >= 0:
            mine = 1 - me if swapped[child] == 1 and me < 2 else me
            completed = total[child, mine] / visits[child]
        out[a] = np.float64(logits[g, a]) + scale * completed


@kernel
def plan_round(
    turn: int,
    widths: np.ndarray,
    considered: np.ndarray,
    candidates: np.ndarray,
    base: np.ndarray,
    counts: np.ndarray,
    logits: np.ndarray,
    noise: np.ndarray,
    root_child: np.ndarray,
    seat: np.ndarray,
    raw: np.ndarray,
    total: np.ndarray,
    visits: np.ndarray,
    swapped: np.ndarray,
    c_visit: float,
    c_scale: float,
    task_game: np.ndarray,
    task_action: np.ndarray,
) -> int:
    """Tasks of round ``turn``: each game's best ``widths[g, turn]`` candidates, once each.

    The score is noise + logits + sigma(completed Q); ties go to the earlier candidate. The
    candidates of a game shrink to those chosen. Returns the number of tasks.
    """
    tasks = 0
    mixed = np.empty(raw.shape[1], dtype=np.float64)
    scores = np.empty(logits.shape[1], dtype=np.float64)
    keys = np.empty(logits.shape[1], dtype=np.float64)
    old = np.empty(logits.shape[1], dtype=np.int64)
    order = np.empty(logits.shape[1], dtype=np.int64)
    for g in range(base.size):
        width = widths[g, turn]
        if width == 0:
            continue
        node = base[g]
        improve(
            g, node, seat[node], counts[g], logits, root_child, raw, total, visits, swapped,
            c_visit, c_scale, mixed, scores,
        )  # fmt: skip
        pool = considered[g]
        if turn == 0:
            pool = counts[g]
            for a in range(pool):
                candidates[g, a] = a
        for i in range(pool):
            a = candidates[g, i]
            old[i] = a
            keys[i] = scores[a] + noise[g, a]
        rank_best(keys, pool, width, order)
        for i in range(width):
            a = old[order[i]]
            candidates[g, i] = a
            task_game[tasks] = g
            task_action[tasks] = a
            tasks += 1
        considered[g] = width
    return tasks


@kernel
def conclude(
    rows: np.ndarray,
    base: np.ndarray,
    counts: np.ndarray,
    logits: np.ndarray,
    noise: np.ndarray,
    root_child: np.ndarray,
    seat: np.ndarray,
    raw: np.ndarray,
    total: np.ndarray,
    visits: np.ndarray,
    swapped: np.ndarray,
    c_visit: float,
    c_scale: float,
    out_policy: np.ndarray,
    out_prior: np.ndarray,
    out_visits: np.ndarray,
    out_root: np.ndarray,
    out_search: np.ndarray,
    out_index: np.ndarray,
    out_surprise: np.ndarray,
) -> None:
    """Write the results of the trees into the rows ``rows`` of the output arrays.

    The selected action has the largest noise + logits + sigma(completed Q) among those visited
    most often; ``out_search`` is the value of the improved policy, untried actions at v_mix.
    """
    players = raw.shape[1]
    mixed = np.empty(players, dtype=np.float64)
    value = np.empty(players, dtype=np.float64)
    improved = np.empty(logits.shape[1], dtype=np.float64)
    for g in range(rows.size):
        row = rows[g]
        node = base[g]
        count = counts[g]
        improve(
            g, node, seat[node], count, logits, root_child, raw, total, visits, swapped,
            c_visit, c_scale, mixed, improved,
        )  # fmt: skip
        top_prior = -np.inf
        top_policy = -np.inf
        most = 0
        for a in range(count):
            top_prior = max(top_prior, np.float64(logits[g, a]))
            top_policy = max(top_policy, improved[a])
            out_visits[row, a] = 0
            if root_child[g, a] >= 0:
                out_visits[row, a] = visits[root_child[g, a]]
            most = max(most, out_visits[row, a])
        norm_prior = 0.0
        norm_policy = 0.0
        for a in range(count):
            norm_prior += math.exp(np.float64(logits[g, a]) - top_prior)
            norm_policy += math.exp(improved[a] - top_policy)
        log_prior = top_prior + math.log(norm_prior)
        log_policy = top_policy + math.log(norm_policy)
        best_score = -np.inf
        surprise = 0.0
        for p in range(players):
            value[p] = 0.0
        for a in range(count):
            prior = math.exp(np.float64(logits[g, a]) - log_prior)
            policy = math.exp(improved[a] - log_policy)
            out_prior[row, a] = prior
            out_policy[row, a] = policy
            surprise += policy * ((improved[a] - log_policy) - (logits[g, a] - log_prior))
            child = root_child[g, a]
            for p in range(players):
                if child >= 0:
                    q = 1 - p if swapped[child] == 1 and p < 2 else p
                    value[p] += policy * total[child, q] / visits[child]
                else:
                    value[p] += policy * mixed[p]
            score = improved[a] + noise[g, a]
            if out_visits[row, a] == most and score > best_score:
                best_score = score
                out_index[row] = a
        out_surprise[row] = max(0.0, surprise)
        for p in range(players):
            out_root[row, p] = raw[node, p]
            out_search[row, p] = value[p]
