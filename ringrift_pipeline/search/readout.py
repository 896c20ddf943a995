"""What a finished tree says of its root's actions: their values, and how play would go on.

Nothing here runs unless it is asked for: selfplay and match play take their results without it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ringrift_pipeline.game.compile import kernel
from ringrift_pipeline.search.slots import OPENED
from ringrift_pipeline.search.tree import (
    CHILD,
    FIRST,
    MOVE,
    PRIOR,
    SEAT,
    TRIED,
    VISITS,
    Tree,
    mean_value,
)


@dataclass(frozen=True)
class Readout:
    """The visited root actions of ``N`` searches, at most ``K`` each, in no particular order.

    A principal variation is a line of decisions: the action, then the reply that the search of
    the node behind it would choose (the most visited one; of equals, that with the largest
    log prior + sigma(Q)), and so on to a leaf. The forced moves between them are left out.
    """

    actions: np.ndarray  # (N, K) int64 place among the legal moves, -1 beyond the visited ones
    values: np.ndarray  # (N, K, players) float64 mean value backed up through each action, as the
    # root counts the seats; NaN beyond the visited ones
    exact: np.ndarray  # (N, K) bool: the game is over behind the action, its value is the result
    lines: np.ndarray  # (N, K, D) int64 packed moves of the principal variations, 0 beyond lengths
    lengths: np.ndarray  # (N, K) int32 moves in each, 0 beyond the visited ones


def read_trees(
    which: np.ndarray,
    slots: np.ndarray,
    moves: np.ndarray,
    child: np.ndarray,
    candidates: np.ndarray,
    tree: Tree,
    c_visit: float,
    c_scale: float,
    depth: int,
) -> Readout:
    """The readout of the finished searches in the slots ``which`` (N,) int64.

    ``moves``, ``child`` and ``candidates`` are a pool's (K, L) int64; ``depth`` >= 1 is the most
    decisions of a line.
    """
    games, players = len(which), tree.values.shape[2]
    most = int(slots[which, OPENED].max(initial=0))
    found = Readout(
        actions=np.full((games, most), -1, dtype=np.int64),
        values=np.full((games, most, players), math.nan, dtype=np.float64),
        exact=np.zeros((games, most), dtype=np.bool_),
        lines=np.zeros((games, most, depth), dtype=np.int64),
        lengths=np.zeros((games, most), dtype=np.int32),
    )
    _read(
        which, slots, moves, child, candidates, tree.nodes, tree.values, tree.edges, tree.priors,
        c_visit, c_scale, found.actions, found.values, found.exact, found.lines, found.lengths,
    )  # fmt: skip
    return found


@kernel
def _reply(
    node: int,
    nodes: np.ndarray,
    values: np.ndarray,
    edges: np.ndarray,
    priors: np.ndarray,
    c_visit: float,
    c_scale: float,
) -> int:
    """The edge that play would follow from a node, -1 where none was tried."""
    start = nodes[node, FIRST]
    stop = start + nodes[node, TRIED]
    me = nodes[node, SEAT]
    most = 0
    for i in range(start, stop):
        most = max(most, nodes[edges[i, CHILD], VISITS])
    scale = (c_visit + most) * c_scale
    best = -1
    best_score = -np.inf
    for i in range(start, stop):
        behind = edges[i, CHILD]
        if nodes[behind, VISITS] == most:
            score = math.log(priors[i, PRIOR]) + scale * mean_value(behind, me, nodes, values)
            if best < 0 or score > best_score:
                best = i
                best_score = score
    return best


@kernel
def _read(
    which: np.ndarray,
    slots: np.ndarray,
    moves: np.ndarray,
    child: np.ndarray,
    candidates: np.ndarray,
    nodes: np.ndarray,
    values: np.ndarray,
    edges: np.ndarray,
    priors: np.ndarray,
    c_visit: float,
    c_scale: float,
    out_actions: np.ndarray,
    out_values: np.ndarray,
    out_exact: np.ndarray,
    out_lines: np.ndarray,
    out_lengths: np.ndarray,
) -> None:
    """Fill the arrays of a :class:`Readout`, which hold what stands beyond the visited actions."""
    depth = out_lines.shape[2]
    for n in range(which.size):
        slot = which[n]
        for i in range(slots[slot, OPENED]):
            action = candidates[slot, i]
            node = child[slot, action]
            out_actions[n, i] = action
            out_exact[n, i] = nodes[node, SEAT] < 0
            for p in range(values.shape[2]):
                out_values[n, i, p] = mean_value(node, p, nodes, values)
            out_lines[n, i, 0] = moves[slot, action]
            length = 1
            while length < depth and nodes[node, SEAT] >= 0:
                edge = _reply(node, nodes, values, edges, priors, c_visit, c_scale)
                if edge < 0:
                    break
                out_lines[n, i, length] = edges[edge, MOVE]
                length += 1
                node = edges[edge, CHILD]
            out_lengths[n, i] = length


__all__ = ["Readout", "read_trees"]
