"""The rounds of many searches at once: what goes into a batch of leaves, and what comes out.

Each slot of a pool is one search. It asks for its root's evaluation, then for the leaves of one
round of sequential halving after the other, at its own pace: whatever slots are ready fill the
next batch.
"""

from __future__ import annotations

import numpy as np

from ringrift_pipeline.game.compile import kernel
from ringrift_pipeline.search.cache import keep, key_of, look_up
from ringrift_pipeline.search.noise import gumbel
from ringrift_pipeline.search.root import plan_round
from ringrift_pipeline.search.slots import (
    ASKED,
    COUNT,
    DONE,
    EDGES,
    LEFT,
    OPENED,
    PLANNED,
    READY,
    STAGE,
    TURN,
    TURNS,
    UNOPENED,
    USED,
)
from ringrift_pipeline.search.tree import (
    CHILD,
    FIRST,
    MOVE,
    PARENT,
    RAW,
    SEAT,
    TOTAL,
    TRIED,
    VISITS,
    add_leaf,
    back_up,
    expand,
    select_edge,
)

# What `gather` reports.
CURSOR = 0  # the slot that the next batch begins with
ROWS = 1  # positions in the batch
TASKS = 2  # visits to back up after it
FINISHED = 3  # searches that ended
ROOM = 4  # edges that the fullest slot will need
WIDEST = 5  # most legal moves of a row
MARKS = 6


@kernel
def _visit(
    b: np.ndarray,
    root: int,
    free: int,
    action: int,
    moves: np.ndarray,
    child: np.ndarray,
    states: np.ndarray,
    state: np.ndarray,
    nodes: np.ndarray,
    values: np.ndarray,
    edges: np.ndarray,
    priors: np.ndarray,
    c_visit: float,
    c_scale: float,
    buffer: np.ndarray,
) -> tuple[int, int]:
    """Walk from a root's action to a leaf: (leaf, its legal moves, now in ``buffer``).

    The position of a new leaf, the node ``free``, is written to ``state`` (S,). A leaf seen
    before, where the game is over, has no moves.
    """
    node = child[action]
    if node < 0:
        child[action] = free
        return free, add_leaf(b, free, root, moves[action], states, state, nodes, values, buffer)
    while nodes[node, SEAT] >= 0:
        offset = select_edge(node, nodes, values, edges, priors, c_visit, c_scale)
        edge = nodes[node, FIRST] + offset
        if offset == nodes[node, TRIED]:
            nodes[node, TRIED] += 1
            edges[edge, CHILD] = free
            move = edges[edge, MOVE]
            return free, add_leaf(b, free, node, move, states, state, nodes, values, buffer)
        node = edges[edge, CHILD]
    return node, 0


@kernel
def _give_root(
    slot: int,
    root: int,
    count: int,
    new_logits: np.ndarray,
    new_values: np.ndarray,
    seed: np.uint64,
    gumbel_scale: float,
    slots: np.ndarray,
    logits: np.ndarray,
    noise: np.ndarray,
    nodes: np.ndarray,
    values: np.ndarray,
) -> None:
    """Give a root its evaluation, which is its first visit, and its noise."""
    slots[slot, STAGE] = READY
    nodes[root, VISITS] = 1
    for p in range(values.shape[2]):
        values[root, RAW, p] = new_values[p]
        values[root, TOTAL, p] = new_values[p]
    for a in range(count):
        logits[slot, a] = new_logits[a]
        noise[slot, a] = 0.0
        if gumbel_scale > 0.0:
            noise[slot, a] = gumbel_scale * gumbel(seed, a)


@kernel
def _give_leaf(
    slot: int,
    node: int,
    count: int,
    moves: np.ndarray,
    new_logits: np.ndarray,
    new_values: np.ndarray,
    slots: np.ndarray,
    nodes: np.ndarray,
    values: np.ndarray,
    edges: np.ndarray,
    priors: np.ndarray,
    keys: np.ndarray,
    order: np.ndarray,
) -> None:
    """Give a leaf its evaluation and edges, as many as the rounds to come can follow."""
    for p in range(values.shape[2]):
        values[node, RAW, p] = new_values[p]
    # Every round to come visits the leaf's root action once at most.
    stored = min(count, slots[slot, TURNS] - slots[slot, TURN])
    first = slot * (edges.shape[0] // slots.shape[0]) + slots[slot, EDGES]
    expand(node, count, stored, moves, new_logits, first, keys, order, nodes, edges, priors)
    slots[slot, EDGES] += stored


@kernel
def _spread_moves(
    rows: int, widest: int, flat: np.ndarray, counts: np.ndarray, out: np.ndarray
) -> None:
    """Lay the moves of ``rows`` rows, which follow each other in ``flat``, ``widest`` apart.

    What lies between them in ``out`` (at least rows * widest,) int64 stays.
    """
    taken = 0
    for i in range(rows):
        moves = flat[taken : taken + counts[i]]
        row = out[i * widest :]
        for a in range(moves.size):
            row[a] = moves[a]
        taken += counts[i]


@kernel
def gather(
    b: np.ndarray,
    limit: int,
    slots: np.ndarray,
    moves: np.ndarray,
    child: np.ndarray,
    candidates: np.ndarray,
    logits: np.ndarray,
    noise: np.ndarray,
    widths: np.ndarray,
    states: np.ndarray,
    nodes: np.ndarray,
    values: np.ndarray,
    edges: np.ndarray,
    priors: np.ndarray,
    c_visit: float,
    c_scale: float,
    seeds: np.ndarray,
    gumbel_scale: float,
    seen: np.ndarray,
    cache_table: np.ndarray,
    cache_ring: np.ndarray,
    cache_head: np.ndarray,
    buffer: np.ndarray,
    keys: np.ndarray,
    order: np.ndarray,
    old: np.ndarray,
    task_leaf: np.ndarray,
    row_node: np.ndarray,
    row_slot: np.ndarray,
    row_count: np.ndarray,
    row_key: np.ndarray,
    row_moves: np.ndarray,
    row_states: np.ndarray,
    batch_moves: np.ndarray,
    finished: np.ndarray,
    marks: np.ndarray,
) -> None:
    """Fill a batch of at most ``limit`` positions (a single round may be larger) from all slots.

    Slots take turns from ``marks[CURSOR]`` on; a round goes into a batch whole or not at all.
    A task is a root action to visit: no two tasks of a round share one, so their paths meet at
    the root only and their order does not matter. Row i of the batch is the node ``row_node[i]``
    of ``row_slot[i]``, the position ``row_states[i]``; its ``row_count[i]`` legal moves follow
    those of row i - 1 in ``row_moves``, and ``batch_moves`` has them as (ROWS, WIDEST);
    ``row_key[i]`` is its hash. Positions that the cache knows need no row. ``task_leaf`` gets the
    leaves to back up once the batch is evaluated; ``finished`` the slots whose search is done. The
    rest of ``marks`` is written.
    """
    total = slots.shape[0]
    room = states.shape[0] // total
    rows = 0
    tasks = 0
    done = 0
    words = 0
    most = 0
    widest = 0
    cursor = marks[CURSOR]
    caching = cache_table.size > 0
    players = values.shape[2]
    edge_room = edges.shape[0] // total
    for step in range(total):
        slot = (cursor + step) % total
        root = slot * room
        if slots[slot, STAGE] == UNOPENED:
            if rows > 0 and rows + 1 > limit:
                marks[CURSOR] = slot
                break
            count = slots[slot, COUNT]
            known = -1
            if caching:
                row_key[rows] = key_of(states[root], seen, count)
                known = look_up(row_key[rows], count, cache_table, cache_ring, cache_head)
            if known >= 0:
                _give_root(
                    slot, root, count, cache_ring[known + players :], cache_ring[known:],
                    seeds[slot], gumbel_scale, slots, logits, noise, nodes, values,
                )  # fmt: skip
            else:
                row_node[rows] = root
                row_slot[rows] = slot
                row_count[rows] = count
                listed = row_moves[words : words + count]
                for a in range(count):
                    listed[a] = moves[slot, a]
                for k in range(states.shape[1]):
                    row_states[rows, k] = states[root, k]
                words += count
                widest = max(widest, count)
                rows += 1
                slots[slot, STAGE] = ASKED
        full = False
        while slots[slot, STAGE] == READY:
            turn = slots[slot, TURN]
            turns = slots[slot, TURNS]
            if turn == turns:
                slots[slot, STAGE] = DONE
                finished[done] = slot
                done += 1
                break
            width = widths[slot, turn]
            if rows > 0 and rows + width > limit:
                full = True
                break
            actions, children, in_order = moves[slot], child[slot], candidates[slot]
            plan_round(
                root, slots[slot, COUNT], slots[slot, OPENED], slots[slot, LEFT], width,
                in_order, logits[slot], noise[slot], children, nodes, values,
                c_visit, c_scale, keys, order, old,
            )  # fmt: skip
            slots[slot, LEFT] = width
            slots[slot, TURN] = turn + 1
            before = rows
            last = turn + 1 == turns
            for i in range(width):
                free = root + slots[slot, USED]
                # No path leads on from a leaf of the last round: the batch alone needs it.
                state = row_states[rows] if last else states[free]
                leaf, count = _visit(
                    b, root, free, in_order[i], actions, children,
                    states, state, nodes, values, edges, priors, c_visit, c_scale, buffer,
                )  # fmt: skip
                task_leaf[tasks + i] = leaf
                if leaf == free:
                    slots[slot, USED] += 1
                if count == 0:
                    continue
                stored = min(count, turns - turn - 1)
                slots[slot, PLANNED] += stored
                known = -1
                if caching:
                    row_key[rows] = key_of(state, seen, count)
                    if slots[slot, PLANNED] <= edge_room:
                        known = look_up(row_key[rows], count, cache_table, cache_ring, cache_head)
                if known >= 0:
                    _give_leaf(
                        slot, leaf, count, buffer, cache_ring[known + players :],
                        cache_ring[known:], slots, nodes, values, edges, priors, keys, order,
                    )  # fmt: skip
                    continue
                row_node[rows] = leaf
                row_slot[rows] = slot
                row_count[rows] = count
                listed = row_moves[words : words + count]
                for a in range(count):
                    listed[a] = buffer[a]
                if not last:
                    for k in range(state.size):
                        row_states[rows, k] = state[k]
                words += count
                widest = max(widest, count)
                rows += 1
            if turn == 0:
                slots[slot, OPENED] = width
            if rows == before:  # nothing to evaluate: go on at once
                back_up(task_leaf[tasks : tasks + width], nodes, values)
            else:
                tasks += width
                slots[slot, STAGE] = ASKED
                most = max(most, slots[slot, PLANNED])
        if full:
            marks[CURSOR] = slot
            break
    marks[ROWS] = rows
    marks[TASKS] = tasks
    marks[FINISHED] = done
    marks[ROOM] = most
    marks[WIDEST] = widest
    _spread_moves(rows, widest, row_moves, row_count, batch_moves)


@kernel
def absorb(
    row_node: np.ndarray,
    row_slot: np.ndarray,
    row_count: np.ndarray,
    row_key: np.ndarray,
    row_moves: np.ndarray,
    new_logits: np.ndarray,
    new_values: np.ndarray,
    seeds: np.ndarray,
    gumbel_scale: float,
    cache_table: np.ndarray,
    cache_ring: np.ndarray,
    cache_head: np.ndarray,
    slots: np.ndarray,
    logits: np.ndarray,
    noise: np.ndarray,
    nodes: np.ndarray,
    values: np.ndarray,
    edges: np.ndarray,
    priors: np.ndarray,
    keys: np.ndarray,
    order: np.ndarray,
    task_leaf: np.ndarray,
    finished: np.ndarray,
    marks: np.ndarray,
) -> bool:
    """Give the ``marks[ROWS]`` rows of a batch their evaluation and back up its visits.

    ``row_moves`` (B, L) and ``new_logits`` (B, L) are padded, ``new_values`` is (B, P). Searches that this ends are added to ``finished``. Returns
    False, having changed nothing, if a number of the evaluation is not finite.
    """
    players = values.shape[2]
    rows = marks[ROWS]
    for i in range(rows):
        odd = 0
        for p in range(players):
            odd += 0 if abs(new_values[i, p]) < np.inf else 1
        for a in range(row_count[i]):
            odd += 0 if abs(new_logits[i, a]) < np.inf else 1
        if odd > 0:
            return False
    for i in range(rows):
        node = row_node[i]
        slot = row_slot[i]
        count = row_count[i]
        slots[slot, STAGE] = READY
        if nodes[node, PARENT] < 0:
            _give_root(
                slot, node, count, new_logits[i], new_values[i], seeds[slot], gumbel_scale,
                slots, logits, noise, nodes, values,
            )  # fmt: skip
        else:
            _give_leaf(
                slot, node, count, row_moves[i], new_logits[i], new_values[i],
                slots, nodes, values, edges, priors, keys, order,
            )  # fmt: skip
        if cache_table.size > 0:
            keep(
                row_key[i], count, new_logits[i], new_values[i],
                cache_table, cache_ring, cache_head,
            )  # fmt: skip
    back_up(task_leaf[: marks[TASKS]], nodes, values)
    done = marks[FINISHED]
    for i in range(rows):
        slot = row_slot[i]
        if slots[slot, STAGE] == READY and slots[slot, TURN] == slots[slot, TURNS]:
            slots[slot, STAGE] = DONE
            finished[done] = slot
            done += 1
    marks[FINISHED] = done
    return True
