"""Rollout tree search: UCT (Kocsis & Szepesvari 2006) with random playouts and max^n backup.

The tree grows by one node a playout; a playout's result is a share of the win for every seat,
and each node's player maximises its own. The number of playouts is fixed, never the time, so the
same seed gives the same move on any machine.
"""

from __future__ import annotations

import math

import numpy as np

from ringrift_pipeline.game import kernels, layout
from ringrift_pipeline.game.compile import kernel
from ringrift_pipeline.search.tree import inline_settle

#: Exploration constant of UCB1 for shares of the win in [0, 1].
EXPLORATION = 0.7


@kernel
def _longer(array: np.ndarray, size: int) -> np.ndarray:
    new = np.empty(size, dtype=np.int64)
    for i in range(array.size):
        new[i] = array[i]
    return new


@kernel
def uct_search(
    b: np.ndarray,
    state: np.ndarray,
    moves: np.ndarray,
    n: int,
    playouts: int,
    exploration: float,
    seed: np.uint64,
    visits: np.ndarray,
    value: np.ndarray,
) -> int:
    """Search one ``state`` (S,) with ``n`` >= 2 legal ``moves``; the index of the chosen move.

    Fills ``visits`` (n,) with the playouts that began with each move and ``value`` (players,)
    with the mean result. The chosen move is the most visited one; ties go to the larger mean.
    """
    players = value.size
    rng = np.empty(1, dtype=np.uint64)
    rng[0] = seed
    states = np.empty((playouts + 1, state.size), dtype=np.int64)
    seat = np.empty(playouts + 1, dtype=np.int64)
    parent = np.full(playouts + 1, -1, dtype=np.int64)
    swapped = np.zeros(playouts + 1, dtype=np.int64)
    count = np.zeros(playouts + 1, dtype=np.int64)
    total = np.zeros((playouts + 1, players), dtype=np.float64)
    first = np.zeros(playouts + 1, dtype=np.int64)
    stored = np.zeros(playouts + 1, dtype=np.int64)
    tried = np.zeros(playouts + 1, dtype=np.int64)
    edge_move = np.empty(max(n, 1024), dtype=np.int64)
    edge_child = np.empty(max(n, 1024), dtype=np.int64)
    scratch = np.empty(state.size, dtype=np.int64)
    buffer = np.empty(moves.size, dtype=np.int64)
    points = np.zeros(players, dtype=np.float64)

    order = np.empty(n, dtype=np.int64)
    for i in range(n):
        order[i] = i
    for i in range(n):
        j = i + kernels.random_below(rng, n - i)
        order[i], order[j] = order[j], order[i]
        edge_move[i] = moves[order[i]]
    for i in range(state.size):
        states[0, i] = state[i]
    seat[0] = state[layout.PLAYER]
    stored[0] = n
    edges = n
    nodes = 1
    for playout in range(playouts):
        node = 0
        while seat[node] >= 0:
            start = first[node]
            if tried[node] < stored[node]:
                edge = start + tried[node]
                tried[node] += 1
                child = nodes
                nodes += 1
                edge_child[edge] = child
                parent[child] = node
                swapped[child] = (edge_move[edge] & layout.KIND_MASK) == layout.SWAP_SIDES
                for i in range(state.size):
                    states[child, i] = states[node, i]
                kernels.apply_move(b, states[child], edge_move[edge])
                legal = inline_settle(b, states[child], buffer)
                seat[child] = states[child, layout.PLAYER] if legal > 0 else -1
                keep = min(legal, playouts - playout)
                if edges + keep > edge_move.size:
                    size = max(edges + keep, 2 * edge_move.size)
                    edge_move = _longer(edge_move, size)
                    edge_child = _longer(edge_child, size)
                for i in range(keep):
                    j = i + kernels.random_below(rng, legal - i)
                    buffer[i], buffer[j] = buffer[j], buffer[i]
                    edge_move[edges + i] = buffer[i]
                first[child] = edges
                stored[child] = keep
                edges += keep
                node = child
                break
            me = seat[node]
            log_n = math.log(count[node])
            best = -np.inf
            follow = -1
            for i in range(tried[node]):
                child = edge_child[start + i]
                mine = 1 - me if swapped[child] == 1 and me < 2 else me
                score = total[child, mine] / count[child]
                score += exploration * math.sqrt(log_n / count[child])
                if score > best:
                    best = score
                    follow = child
            node = follow
        for i in range(state.size):
            scratch[i] = states[node, i]
        if seat[node] >= 0:
            kernels.random_playout(b, scratch, rng, buffer)
        kernels.ranking_points(b, scratch, points)
        while node >= 0:
            count[node] += 1
            for p in range(players):
                total[node, p] += points[p]
            if swapped[node] == 1:
                points[0], points[1] = points[1], points[0]
            node = parent[node]

    me = seat[0]
    chosen = 0
    best_mean = -np.inf
    for i in range(n):
        visits[i] = 0
    for i in range(tried[0]):
        child = edge_child[i]
        visits[order[i]] = count[child]
        mine = 1 - me if swapped[child] == 1 and me < 2 else me
        mean = total[child, mine] / count[child]
        if visits[order[i]] > visits[chosen] or (
            visits[order[i]] == visits[chosen] and mean > best_mean
        ):
            chosen = order[i]
            best_mean = mean
    for p in range(players):
        value[p] = total[0, p] / playouts
    return chosen
