"""What a pool keeps of each of its searches; how one begins, and what it leaves behind."""

from __future__ import annotations

import math

import numpy as np

from ringrift_pipeline.game import kernels
from ringrift_pipeline.game.compile import kernel
from ringrift_pipeline.search.root import conclude
from ringrift_pipeline.search.schedule import write_widths
from ringrift_pipeline.search.tree import PARENT, SEAT

# Columns of a pool's slots (K, SLOT_FIELDS) int64.
STAGE = 0
COUNT = 1  # legal moves at the root
TURN = 2  # rounds begun so far
TURNS = 3  # rounds in all
USED = 4  # nodes in use
LEFT = 5  # candidates still in the running
OPENED = 6  # actions that the first round visited
EDGES = 7  # edges in use
PLANNED = 8  # edges in use once the leaves asked for are expanded
SLOT_FIELDS = 9

# Stages.
IDLE = 0
UNOPENED = 1  # the root awaits its evaluation
READY = 2  # the next round may begin
ASKED = 3  # its leaves (or its root) are in the batch
DONE = 4  # the result may be taken


@kernel
def open_slots(
    b: np.ndarray,
    which: np.ndarray,
    start: int,
    inputs: np.ndarray,
    simulations: np.ndarray,
    max_considered: int,
    buffer: np.ndarray,
    slots: np.ndarray,
    moves: np.ndarray,
    child: np.ndarray,
    widths: np.ndarray,
    states: np.ndarray,
    nodes: np.ndarray,
) -> tuple[int, int]:
    """Put the positions ``inputs`` (N, S) into the slots ``which`` (N,), from ``start`` on.

    Returns (N, 0); or (n, moves) where position n has more moves than a row of ``moves`` (K, L)
    holds, or none at all, and neither it nor the later ones are in their slots.
    """
    room = states.shape[0] // slots.shape[0]
    for n in range(start, which.size):
        slot = which[n]
        count = kernels.legal_moves(b, inputs[n], buffer)
        if count == 0 or count > moves.shape[1]:
            return n, count
        node = slot * room
        states[node] = inputs[n]
        nodes[node] = 0
        nodes[node, SEAT] = inputs[n, 0]
        nodes[node, PARENT] = -1
        for a in range(count):
            moves[slot, a] = buffer[a]
            child[slot, a] = -1
        slots[slot] = 0
        slots[slot, COUNT] = count
        slots[slot, USED] = 1
        slots[slot, STAGE] = DONE
        if count > 1:
            slots[slot, STAGE] = UNOPENED
            considered = min(max_considered, count)
            slots[slot, TURNS] = write_widths(considered, simulations[n], widths[slot])
    return which.size, 0


@kernel
def widest(which: np.ndarray, slots: np.ndarray) -> int:
    """Most legal moves at the root of any of the slots ``which``, 0 where there are none."""
    most = 0
    for i in range(which.size):
        most = max(most, slots[which[i], COUNT])
    return most


@kernel
def take(
    which: np.ndarray,
    slots: np.ndarray,
    moves: np.ndarray,
    child: np.ndarray,
    candidates: np.ndarray,
    logits: np.ndarray,
    noise: np.ndarray,
    nodes: np.ndarray,
    values: np.ndarray,
    c_visit: float,
    c_scale: float,
    keys: np.ndarray,
    out_moves: np.ndarray,
    out_counts: np.ndarray,
    out_policy: np.ndarray,
    out_prior: np.ndarray,
    out_visits: np.ndarray,
    out_root: np.ndarray,
    out_search: np.ndarray,
    out_selected: np.ndarray,
    out_index: np.ndarray,
    out_surprise: np.ndarray,
) -> None:
    """Results of the slots ``which`` into the output rows, which begin as zeros; frees the slots."""
    room = nodes.shape[0] // slots.shape[0]
    for i in range(which.size):
        slot = which[i]
        count = slots[slot, COUNT]
        slots[slot, STAGE] = IDLE
        out_counts[i] = count
        out_selected[i] = moves[slot, 0]
        for a in range(count):
            out_moves[i, a] = moves[slot, a]
        if count == 1:
            out_policy[i, 0] = 1.0
            out_prior[i, 0] = 1.0
            out_root[i] = math.nan
            out_search[i] = math.nan
            continue
        out_index[i], out_surprise[i] = conclude(
            slot * room, count, slots[slot, OPENED], candidates[slot], logits[slot], noise[slot],
            child[slot], nodes, values, c_visit, c_scale, keys,
            out_policy[i], out_prior[i], out_visits[i], out_root[i], out_search[i],
        )  # fmt: skip
        out_selected[i] = moves[slot, out_index[i]]
