"""Search trees of many games in flat arrays, and the kernels that walk them.

A node is a row of the tree's arrays; every slot of a pool owns as many rows as one search needs,
one for its root and one for every simulation, and a stretch of the edges. Values are vectors over
absolute seats (max^n, Luckhardt & Irani 1986): a node's player maximises its own component. A
move after which the seats change hands (``swap_sides``, RR-CANON-R180) exchanges the first two
components on the way up.

Edges of a node other than the root are kept in falling order of their prior. The deterministic
selection rule gives all untried edges the same completed value, so it tries them in exactly this
order: the tried edges are always a prefix, and only as many are stored as can still be visited.
"""

from __future__ import annotations

import math

import numpy as np

from ringrift_pipeline.game import kernels, layout
from ringrift_pipeline.game.compile import kernel
from ringrift_pipeline.libraries.compiler import numba
from ringrift_pipeline.search.errors import SearchError
from ringrift_pipeline.store.bounded import memory_here

_PLAYER = layout.PLAYER
_SWAP_SIDES = layout.SWAP_SIDES

# Columns of Tree.nodes.
SEAT = 0  # seat to move, from 0; -1 where the game is over
VISITS = 1
PARENT = 2  # row of the parent, -1 at a root
SWAPPED = 3  # 1 if the edge into the node exchanges seats 0 and 1
FIRST = 4  # where the node's edges begin
STORED = 5  # how many edges are stored
TRIED = 6  # how many of them have a child
NODE_FIELDS = 8

# Second index of Tree.values.
RAW = 0  # the evaluator's value, or the exact result where the game is over
TOTAL = 1  # sum of the values backed up through the node

# Columns of Tree.edges and Tree.priors.
MOVE = 0  # packed move
CHILD = 1  # row of the child, -1 before the first visit
PRIOR = 0  # prior probability (softmax over all legal moves)
TAIL = 1  # sum of the priors from this edge on, unstored ones included

#: Up to so many of the best are found by insertion.
FEW = 24

EDGE_ROOM = 512  # edges a slot has room for at first
EDGE_BYTES = 32  # a row of Tree.edges and one of Tree.priors


class Tree:
    """Arrays for ``slots`` searches of at most ``nodes`` nodes each.

    With T = slots * nodes, S = state size, P = players, E = slots * ``edge_room``::

        states (T, S) int64        position after the forced moves that follow the edge
        nodes (T, 8) int32         SEAT to TRIED
        values (T, 2, P) float64   RAW and TOTAL
        edges (E, 2) int64         MOVE, CHILD
        priors (E, 2) float64      PRIOR, TAIL
    """

    def __init__(
        self, slots: int, nodes: int, state_size: int, players: int, edge_room: int = EDGE_ROOM
    ) -> None:
        self.slots = slots
        self.edge_room = edge_room
        self.states = np.empty((slots * nodes, state_size), dtype=np.int64)
        self.nodes = np.zeros((slots * nodes, NODE_FIELDS), dtype=np.int32)
        self.values = np.empty((slots * nodes, 2, players), dtype=np.float64)
        self.edges = np.empty((slots * edge_room, 2), dtype=np.int64)
        self.priors = np.empty((slots * edge_room, 2), dtype=np.float64)

    def reserve_edges(self, needed: int) -> None:
        """Make room for ``needed`` edges a slot, at least doubling it when it is too small.

        Raises :class:`SearchError`, and leaves the tree as it is, for more edges than FIRST can
        number or this machine's memory could hold.
        """
        old = self.edge_room
        if needed <= old:
            return
        most = min(np.iinfo(np.int32).max, memory_here() // EDGE_BYTES)
        room = min(max(needed, 2 * old), int(most) // self.slots)
        if room < needed:
            raise SearchError(
                f"the trees of {self.slots} searches side by side have grown to {needed} edges "
                f"each, for which there is no room here ({most} in all): fewer searches or "
                "simulations (selfplay.parallel_games, search.simulations)"
            )
        self.edge_room = room
        for name in ("edges", "priors"):
            before = getattr(self, name).reshape(self.slots, old, 2)
            after = np.empty((self.slots, self.edge_room, 2), dtype=before.dtype)
            after[:, :old] = before
            setattr(self, name, after.reshape(-1, 2))
        first = self.nodes[:, FIRST]
        first += first // old * (self.edge_room - old)


@kernel
def rank_best(keys: np.ndarray, count: int, keep: int, order: np.ndarray) -> None:
    """Indices of the ``keep`` largest of ``keys[:count]`` into ``order``, the largest first.

    Ties go to the lower index. The other indices follow in ``order[keep:count]``, in no order.
    """
    heap = order
    for i in range(count):
        heap[i] = i
    # The heap stands on its head: its top is the last element, so that what leaves it, the
    # largest first, fills the front of the very same array.
    last = count - 1
    size = count
    start = count // 2 - 1
    taken = 0
    while start >= 0 or taken < keep:
        if start >= 0:
            at = start
            start -= 1
            moving = heap[last - at]
        else:
            top = heap[last]
            size -= 1
            moving = heap[last - size]
            heap[taken] = top
            taken += 1
            at = 0
            if size == 0:
                break
        while True:
            child = 2 * at + 1
            if child >= size:
                break
            right = child + 1
            here = heap[last - child]
            if right < size:
                other = heap[last - right]
                if keys[other] > keys[here] or (keys[other] == keys[here] and other < here):
                    child = right
                    here = other
            if keys[here] > keys[moving] or (keys[here] == keys[moving] and here < moving):
                heap[last - at] = here
                at = child
            else:
                break
        heap[last - at] = moving


@kernel
def best_few(keys: np.ndarray, count: int, keep: int, order: np.ndarray) -> None:
    """:func:`rank_best` for a small ``keep``, by insertion: nothing is said of the others."""
    filled = 0
    least = keys[0]  # of those in order, once it is full
    for i in range(count):
        key = keys[i]
        if filled == keep:
            if not key > least:
                continue
            at = keep - 1
        else:
            at = filled
            filled += 1
        while at > 0 and key > keys[order[at - 1]]:
            order[at] = order[at - 1]
            at -= 1
        order[at] = i
        least = keys[order[filled - 1]]


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
def mean_value(node: int, seat: int, nodes: np.ndarray, values: np.ndarray) -> float:
    """Mean value of a visited ``node`` for ``seat``, as its parent counts the seats."""
    if nodes[node, SWAPPED] == 1 and seat < 2:
        seat = 1 - seat
    return values[node, TOTAL, seat] / nodes[node, VISITS]


@kernel
def select_edge(
    node: int,
    nodes: np.ndarray,
    values: np.ndarray,
    edges: np.ndarray,
    priors: np.ndarray,
    c_visit: float,
    c_scale: float,
) -> int:
    """Which edge of a node other than the root to follow: an offset from its first edge.

    Gumbel MuZero's deterministic rule (section 5 of the paper): the largest
    pi'(a) - N(a) / (1 + sum N), where pi' = softmax(logits + sigma(completed Q)) and
    sigma(q) = (c_visit + max N) * c_scale * q. Ties go to the larger prior.
    """
    start = nodes[node, FIRST]
    k = nodes[node, TRIED]
    if k == 0:
        return 0
    me = nodes[node, SEAT]
    sum_n = 0
    max_n = 0
    sum_prior = 0.0
    weighted = 0.0
    best_q = -np.inf
    for i in range(start, start + k):
        child = edges[i, CHILD]
        n = nodes[child, VISITS]
        q = mean_value(child, me, nodes, values)
        sum_n += n
        max_n = max(max_n, n)
        sum_prior += priors[i, PRIOR]
        weighted += priors[i, PRIOR] * q
        best_q = max(best_q, q)
    untried = k < nodes[node, STORED]
    mixed = (values[node, RAW, me] + sum_n * (weighted / sum_prior)) / (1 + sum_n)
    if untried:
        best_q = max(best_q, mixed)
    scale = (c_visit + max_n) * c_scale
    norm = 0.0
    for i in range(start, start + k):
        q = mean_value(edges[i, CHILD], me, nodes, values)
        norm += priors[i, PRIOR] * math.exp(scale * (q - best_q))
    untried_weight = 0.0
    if untried:
        untried_weight = math.exp(scale * (mixed - best_q))
        norm += priors[start + k, TAIL] * untried_weight
    best = -1
    best_score = -np.inf
    for i in range(k):
        child = edges[start + i, CHILD]
        q = mean_value(child, me, nodes, values)
        score = priors[start + i, PRIOR] * math.exp(scale * (q - best_q)) / norm
        score -= nodes[child, VISITS] / (1.0 + sum_n)
        if score > best_score:
            best_score = score
            best = i
    if untried and priors[start + k, PRIOR] * untried_weight / norm > best_score:
        best = k
    return best


@kernel
def add_leaf(
    b: np.ndarray,
    node: int,
    above: int,
    move: int,
    states: np.ndarray,
    state: np.ndarray,
    nodes: np.ndarray,
    values: np.ndarray,
    buffer: np.ndarray,
) -> int:
    """Make ``node`` the position after ``move`` from node ``above``, forced moves played.

    The position is written to ``state`` (S,), wherever that lies. Returns the number of its legal moves, which are in ``buffer``; 0 where the game is over,
    whose exact result is then the node's RAW value.
    """
    for i in range(state.size):  # a loop is compiled to vectors, an assignment is not
        state[i] = states[above, i]
    kernels.apply_move(b, state, move)
    n = inline_settle(b, state, buffer)
    nodes[node, SEAT] = state[_PLAYER] if n > 0 else -1
    nodes[node, VISITS] = 0
    nodes[node, PARENT] = above
    nodes[node, SWAPPED] = 1 if (move & layout.KIND_MASK) == _SWAP_SIDES else 0
    nodes[node, FIRST] = 0
    nodes[node, STORED] = 0
    nodes[node, TRIED] = 0
    for p in range(values.shape[2]):
        values[node, TOTAL, p] = 0.0
    if n == 0:
        kernels.ranking_points(b, state, values[node, RAW])
    return n


@kernel
def expand(
    node: int,
    count: int,
    keep: int,
    moves: np.ndarray,
    logits: np.ndarray,
    first: int,
    weights: np.ndarray,
    order: np.ndarray,
    nodes: np.ndarray,
    edges: np.ndarray,
    priors: np.ndarray,
) -> None:
    """Give a leaf its ``keep`` edges of largest prior, from edge ``first`` on.

    ``moves`` and ``logits`` (at least ``count``,) are its legal moves and theirs; ``weights``
    float64 and ``order`` int64 (at least ``count``,) are scratch.
    """
    nodes[node, FIRST] = first
    nodes[node, STORED] = keep
    if keep == 0:
        return
    if keep <= FEW:
        best_few(logits, count, keep, order)
    else:
        rank_best(logits, count, keep, order)
    top = np.float64(logits[order[0]])
    norm = 0.0
    for a in range(count):
        weights[a] = math.exp(logits[a] - top)
        norm += weights[a]
    kept = 0.0
    for rank in range(keep):
        kept += weights[order[rank]]
    tail = max(0.0, norm - kept) / norm
    for rank in range(keep - 1, -1, -1):
        prior = weights[order[rank]] / norm
        tail += prior
        edges[first + rank, MOVE] = moves[order[rank]]
        edges[first + rank, CHILD] = -1
        priors[first + rank, PRIOR] = prior
        priors[first + rank, TAIL] = tail


@kernel
def back_up(leaves: np.ndarray, nodes: np.ndarray, values: np.ndarray) -> None:
    """Add every leaf's value vector to all nodes on its path, in the order given."""
    players = values.shape[2]
    value = np.empty(players, dtype=np.float64)
    for t in range(leaves.size):
        node = leaves[t]
        for p in range(players):
            value[p] = values[node, RAW, p]
        while node >= 0:
            nodes[node, VISITS] += 1
            for p in range(players):
                values[node, TOTAL, p] += value[p]
            if nodes[node, SWAPPED] == 1:
                value[0], value[1] = value[1], value[0]
            node = nodes[node, PARENT]
