"""Search trees of many games in flat arrays, and the kernels that walk them.

A node is a row of the tree's arrays; game ``g`` owns the rows from ``base[g]`` on, one for its
root and one for every simulation. Values are vectors over absolute seats (max^n, Luckhardt &
Irani 1986): a node's player maximises its own component. A move after which the seats change
hands (``swap_sides``, RR-CANON-R180) exchanges the first two components on the way up.

Edges of a node other than the root are kept in falling order of their prior. The deterministic
selection rule gives all untried edges the same completed value, so it tries them in exactly this
order: the tried edges are always a prefix, and only as many are stored as can still be visited.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from ringrift_pipeline.game import kernels, layout
from ringrift_pipeline.game.compile import kernel

_PLAYER = layout.PLAYER
_SWAP_SIDES = layout.SWAP_SIDES


class Tree:
    """Preallocated arrays for ``nodes`` nodes; kept between searches and grown when needed.

    Per node (T = nodes, S = state size, P = players)::

        states (T, S) int64       position after the forced moves that follow the edge
        seat (T,) int64           seat to move, from 0; -1 where the game is over
        raw (T, P) float64        evaluator's value, or the exact result where the game is over
        total (T, P) float64      sum of the values backed up through the node
        visits (T,) int64         how many were
        parent (T,) int64         row of the parent, -1 at a root
        swapped (T,) int8         the edge into the node exchanges seats 0 and 1
        first (T,) int64          where the node's edges begin
        stored (T,) int64         how many edges are stored
        tried (T,) int64          how many of them have a child

    Per edge::

        edge_move int64           packed move
        edge_prior float64        prior probability (softmax over all legal moves)
        edge_tail float64         sum of the priors from this edge on, unstored ones included
        edge_child int64          row of the child
    """

    def __init__(self, nodes: int, state_size: int, players: int, edges: int = 1024) -> None:
        self.states = np.empty((nodes, state_size), dtype=np.int64)
        self.seat = np.empty(nodes, dtype=np.int64)
        self.raw = np.empty((nodes, players), dtype=np.float64)
        self.total = np.empty((nodes, players), dtype=np.float64)
        self.visits = np.empty(nodes, dtype=np.int64)
        self.parent = np.empty(nodes, dtype=np.int64)
        self.swapped = np.empty(nodes, dtype=np.int8)
        self.first = np.empty(nodes, dtype=np.int64)
        self.stored = np.empty(nodes, dtype=np.int64)
        self.tried = np.empty(nodes, dtype=np.int64)
        self.edge_move = np.empty(edges, dtype=np.int64)
        self.edge_prior = np.empty(edges, dtype=np.float64)
        self.edge_tail = np.empty(edges, dtype=np.float64)
        self.edge_child = np.empty(edges, dtype=np.int64)
        self.edges = 0

    @property
    def capacity(self) -> int:
        """How many nodes fit."""
        return len(self.seat)

    def reserve_edges(self, more: int) -> None:
        """Make room for ``more`` edges, at least doubling the arrays when they are too short."""
        needed = self.edges + more
        if needed <= len(self.edge_move):
            return
        size = max(needed, 2 * len(self.edge_move))
        for name in ("edge_move", "edge_prior", "edge_tail", "edge_child"):
            old = getattr(self, name)
            new = np.empty(size, dtype=old.dtype)
            new[: self.edges] = old[: self.edges]
            setattr(self, name, new)


@kernel
def rank_best(keys: np.ndarray, count: int, keep: int, order: np.ndarray) -> None:
    """Indices of the ``keep`` largest of ``keys[:count]`` into ``order``, the largest first.

    Ties go to the lower index. The other indices follow in ``order[keep:count]``, in no order.
    """
    heap = np.empty(count, dtype=np.int64)
    for i in range(count):
        heap[i] = i
    size = count
    start = count // 2 - 1
    taken = 0
    while start >= 0 or taken < keep:
        if start >= 0:
            at = start
            start -= 1
        else:
            order[taken] = heap[0]
            taken += 1
            size -= 1
            heap[0] = heap[size]
            at = 0
        moving = heap[at] if size > 0 else 0
        while True:
            child = 2 * at + 1
            if child >= size:
                break
            right = child + 1
            if right < size and (
                keys[heap[right]] > keys[heap[child]]
                or (keys[heap[right]] == keys[heap[child]] and heap[right] < heap[child])
            ):
                child = right
            better = heap[child]
            if keys[better] > keys[moving] or (keys[better] == keys[moving] and better < moving):
                heap[at] = better
                at = child
            else:
                break
        if size > 0:
            heap[at] = moving
    for i in range(size):
        order[keep + i] = heap[i]


# For kernels: inlined before it is compiled, so that a caller links and optimises the rules only
# once. It is never compiled by itself and needs no cache.
@numba.njit(inline="always", nogil=True, error_model="numpy")
def inline_settle(b, s, buffer):  # type: ignore[no-untyped-def]
    """See :func:`settle`."""
    n = kernels.legal_moves(b, s, buffer)
    while n == 1:
        kernels.apply_move(b, s, buffer[0])
        n = kernels.legal_moves(b, s, buffer)
    return n


@kernel
def settle(b: np.ndarray, s: np.ndarray, buffer: np.ndarray) -> int:
    """Play the forced moves of state ``s`` in place, up to a real decision or the end.

    Returns the number of legal moves, now in ``buffer``: two or more, or 0 when the game is over.
    """
    return inline_settle(b, s, buffer)


@kernel
def list_moves(b: np.ndarray, states: np.ndarray, moves: np.ndarray, counts: np.ndarray) -> int:
    """Legal moves of every row into ``moves`` (G, max_moves); returns the largest count."""
    widest = 0
    for g in range(states.shape[0]):
        counts[g] = kernels.legal_moves(b, states[g], moves[g])
        widest = max(widest, counts[g])
    return widest


@kernel
def select_edge(
    node: int,
    seat: np.ndarray,
    raw: np.ndarray,
    total: np.ndarray,
    visits: np.ndarray,
    swapped: np.ndarray,
    first: np.ndarray,
    stored: np.ndarray,
    tried: np.ndarray,
    edge_prior: np.ndarray,
    edge_tail: np.ndarray,
    edge_child: np.ndarray,
    c_visit: float,
    c_scale: float,
) -> int:
    """Which edge of a node other than the root to follow: an offset from ``first[node]``.

    Gumbel MuZero's deterministic rule (section 5 of the paper): the largest
    pi'(a) - N(a) / (1 + sum N), where pi' = softmax(logits + sigma(completed Q)) and
    sigma(q) = (c_visit + max N) * c_scale * q. Ties go to the larger prior.
    """
    start = first[node]
    k = tried[node]
    if k == 0:
        return 0
    me = seat[node]
    sum_n = 0
    max_n = 0
    sum_prior = 0.0
    weighted = 0.0
    best_q = -np.inf
    for i in range(k):
        child = edge_child[start + i]
        mine = 1 - me if swapped[child] == 1 and me < 2 else me
        n = visits[child]
        q = total[child, mine] / n
        sum_n += n
        max_n = max(max_n, n)
        sum_prior += edge_prior[start + i]
        weighted += edge_prior[start + i] * q
        best_q = max(best_q, q)
    untried = k < stored[node]
    mixed = (raw[node, me] + sum_n * (weighted / sum_prior)) / (1 + sum_n)
    if untried:
        best_q = max(best_q, mixed)
    scale = (c_visit + max_n) * c_scale
    norm = 0.0
    for i in range(k):
        child = edge_child[start + i]
        mine = 1 - me if swapped[child] == 1 and me < 2 else me
        q = total[child, mine] / visits[child]
        norm += edge_prior[start + i] * math.exp(scale * (q - best_q))
    untried_weight = 0.0
    if untried:
        untried_weight = math.exp(scale * (mixed - best_q))
        norm += edge_tail[start + k] * untried_weight
    best = -1
    best_score = -np.inf
    for i in range(k):
        child = edge_child[start + i]
        mine = 1 - me if swapped[child] == 1 and me < 2 else me
        q = total[child, mine] / visits[child]
        score = edge_prior[start + i] * math.exp(scale * (q - best_q)) / norm
        score -= visits[child] / (1.0 + sum_n)
        if score > best_score:
            best_score = score
            best = i
    if untried and edge_prior[start + k] * untried_weight / norm > best_score:
        best = k
    return best


@kernel
def descend(
    b: np.ndarray,
    task_game: np.ndarray,
    task_action: np.ndarray,
    tasks: int,
    c_visit: float,
    c_scale: float,
    base: np.ndarray,
    used: np.ndarray,
    root_moves: np.ndarray,
    root_child: np.ndarray,
    states: np.ndarray,
    seat: np.ndarray,
    raw: np.ndarray,
    total: np.ndarray,
    visits: np.ndarray,
    parent: np.ndarray,
    swapped: np.ndarray,
    first: np.ndarray,
    stored: np.ndarray,
    tried: np.ndarray,
    edge_move: np.ndarray,
    edge_prior: np.ndarray,
    edge_tail: np.ndarray,
    edge_child: np.ndarray,
    task_leaf: np.ndarray,
    fresh: np.ndarray,
    moves: np.ndarray,
    counts: np.ndarray,
) -> int:
    """Walk every task from its root action to a leaf; returns how many leaves need evaluation.

    A task is a game and one of its root actions; no two tasks of a wave share both, so their
    paths meet at the root only and the order of tasks does not matter. ``task_leaf`` gets the
    leaf of each task; ``fresh`` the leaves to evaluate, their legal moves in the same rows of
    ``moves`` and ``counts``. A new leaf where the game is over gets its exact value here.
    """
    waiting = 0
    for t in range(tasks):
        g = task_game[t]
        action = task_action[t]
        above = base[g]
        node = root_child[g, action]
        move = root_moves[g, action]
        edge = -1
        while node >= 0 and seat[node] >= 0:
            above = node
            offset = select_edge(
                node, seat, raw, total, visits, swapped, first, stored, tried,
                edge_prior, edge_tail, edge_child, c_visit, c_scale,
            )  # fmt: skip
            edge = first[node] + offset
            if offset == tried[node]:
                move = edge_move[edge]
                node = -1
            else:
                node = edge_child[edge]
        if node < 0:
            node = base[g] + used[g]
            used[g] += 1
            if edge < 0:
                root_child[g, action] = node
            else:
                edge_child[edge] = node
                tried[above] += 1
            for i in range(states.shape[1]):
                states[node, i] = states[above, i]
            kernels.apply_move(b, states[node], move)
            n = inline_settle(b, states[node], moves[waiting])
            parent[node] = above
            swapped[node] = 1 if (move & layout.KIND_MASK) == _SWAP_SIDES else 0
            visits[node] = 0
            for p in range(total.shape[1]):
                total[node, p] = 0.0
            first[node] = 0
            stored[node] = 0
            tried[node] = 0
            if n == 0:
                seat[node] = -1
                kernels.ranking_points(b, states[node], raw[node])
            else:
                seat[node] = states[node, _PLAYER]
                fresh[waiting] = node
                counts[waiting] = n
                waiting += 1
        task_leaf[t] = node
    return waiting


@kernel
def expand(
    fresh: np.ndarray,
    budgets: np.ndarray,
    moves: np.ndarray,
    counts: np.ndarray,
    logits: np.ndarray,
    values: np.ndarray,
    next_edge: int,
    raw: np.ndarray,
    first: np.ndarray,
    stored: np.ndarray,
    edge_move: np.ndarray,
    edge_prior: np.ndarray,
    edge_tail: np.ndarray,
    edge_child: np.ndarray,
) -> int:
    """Give the leaves ``fresh`` (B,) their values (B, P) and edges with priors from ``logits``.

    At most ``budgets[i]`` edges of leaf ``i`` are stored, those with the largest priors. Returns
    the next free edge, or -1 - i when the evaluation of leaf ``i`` is not finite.
    """
    for i in range(fresh.size):
        node = fresh[i]
        n = counts[i]
        for p in range(raw.shape[1]):
            if not math.isfinite(values[i, p]):
                return -1 - i
            raw[node, p] = values[i, p]
        row = np.empty(n, dtype=np.float64)
        for a in range(n):
            if not math.isfinite(logits[i, a]):
                return -1 - i
            row[a] = logits[i, a]
        keep = min(n, budgets[i])
        order = np.empty(n, dtype=np.int64)
        rank_best(row, n, keep, order)
        top = row[order[0]]
        norm = 0.0
        for a in range(n):
            row[a] = math.exp(row[a] - top)
            norm += row[a]
        first[node] = next_edge
        stored[node] = keep
        tail = 0.0
        for rank in range(n - 1, -1, -1):
            prior = row[order[rank]] / norm
            tail += prior
            if rank < keep:
                edge_move[next_edge + rank] = moves[i, order[rank]]
                edge_prior[next_edge + rank] = prior
                edge_tail[next_edge + rank] = tail
                edge_child[next_edge + rank] = -1
        next_edge += keep
    return next_edge


@kernel
def back_up(
    leaves: np.ndarray,
    raw: np.ndarray,
    total: np.ndarray,
    visits: np.ndarray,
    parent: np.ndarray,
    swapped: np.ndarray,
) -> None:
    """Add every leaf's value vector to all nodes on its path, in the order given."""
    players = raw.shape[1]
    value = np.empty(players, dtype=np.float64)
    for t in range(leaves.size):
        node = leaves[t]
        for p in range(players):
            value[p] = raw[node, p]
        while node >= 0:
            visits[node] += 1
            for p in range(players):
                total[node, p] += value[p]
            if swapped[node] == 1:
                value[0], value[1] = value[1], value[0]
            node = parent[node]
