"""Descriptions of moves: what the policy head sees of a legal move.

A move is described by a *move kind*, up to three cells (as indices of the N x N plane) and a
rank. The move kinds refine the packed kinds of ``game.layout``: placements of one, two and three
rings are kinds of their own, and so is a recovery line that takes the free window.

Two legal moves of one state never share a description: the rank of a move is the number of
earlier moves, in the engine's canonical order, with the same kind and cells. It is 0 for all but
the rare moves that three cells cannot tell apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ringrift_pipeline.game import layout
from ringrift_pipeline.game.compile import kernel
from ringrift_pipeline.game.layout import move_a, move_b, move_c, move_d, move_kind

CELLS_PER_MOVE = 3

PLACE_TWO = layout.NUM_KINDS  # a placement of two rings
PLACE_THREE = layout.NUM_KINDS + 1
RECOVERY_LINE_FREE = layout.NUM_KINDS + 2  # a recovery line that pays nothing
NUM_MOVE_KINDS = layout.NUM_KINDS + 3

MOVE_KIND_NAMES: tuple[str, ...] = (
    "place_ring_1",
    "skip_placement",
    "skip_capture",
    "skip_territory_processing",
    "skip_recovery",
    "swap_sides",
    "no_placement_action",
    "no_movement_action",
    "no_line_action",
    "no_territory_action",
    "move_stack",
    "overtaking_capture",
    "continue_capture_segment",
    "process_line",
    "choose_line_all",
    "choose_line_window",
    "choose_territory_option",
    "eliminate_rings_from_stack",
    "forced_elimination",
    "recovery_line",
    "recovery_fallback",
    "recovery_stack_strike",
    "place_ring_2",
    "place_ring_3",
    "recovery_line_free",
)
assert len(MOVE_KIND_NAMES) == NUM_MOVE_KINDS

#: What a cell of a move is to it; the encoder marks each role on a plane of its own.
NO_ROLE, ORIGIN, DESTINATION, TARGET = -1, 0, 1, 2

#: (NUM_MOVE_KINDS, 3) role of each cell; NO_ROLE where a kind has no such cell.
CELL_ROLES = np.full((NUM_MOVE_KINDS, CELLS_PER_MOVE), NO_ROLE, dtype=np.int8)
for _kinds, _roles in (
    ((layout.PLACE_RING, PLACE_TWO, PLACE_THREE), (DESTINATION,)),
    ((layout.MOVE_STACK,), (ORIGIN, DESTINATION)),
    ((layout.OVERTAKING_CAPTURE, layout.CONTINUE_CAPTURE), (ORIGIN, TARGET, DESTINATION)),
    ((layout.PROCESS_LINE, layout.CHOOSE_LINE_ALL), (TARGET, TARGET)),
    ((layout.CHOOSE_LINE_WINDOW, layout.CHOOSE_TERRITORY), (TARGET, TARGET, TARGET)),
    ((layout.ELIMINATE_RINGS, layout.FORCED_ELIMINATION), (TARGET,)),
    (
        (
            layout.RECOVERY_LINE,
            RECOVERY_LINE_FREE,
            layout.RECOVERY_FALLBACK,
            layout.RECOVERY_STRIKE,
        ),
        (ORIGIN, DESTINATION, TARGET),
    ),
):
    for _kind in _kinds:
        CELL_ROLES[_kind, : len(_roles)] = _roles
CELL_ROLES.setflags(write=False)

_TABLE_BITS = 14
_TABLE_SIZE = 1 << _TABLE_BITS
#: Most moves of one state that can be described.
MOST_MOVES = _TABLE_SIZE * 3 // 4
_OFFSETS_X = np.array([1, -1, 0, 0, 1, -1], dtype=np.int64)
_OFFSETS_Y = np.array([0, 0, 1, -1, -1, 1], dtype=np.int64)


@kernel
def _middle_of_region(  # type: ignore[no-untyped-def]
    state, start, colour, plane_of, cell_of, size, hexagonal, seen, queue
):
    """Plane cell in the middle (canonical order) of the region around padded cell ``start``.

    The region is the component, under territory adjacency (RR-CANON-R041), of cells that are
    neither collapsed nor markers of ``colour`` (1-4, or 0 for no colour). ``seen`` (N*N,) uint8
    and ``queue`` (N*N,) int64 are scratch.
    """
    origin = plane_of[start]
    if origin < 0:
        return np.int64(-1)
    seen[: size * size] = 0
    queue[0] = origin
    seen[origin] = 1
    head = 0
    tail = 1
    neighbours = 6 if hexagonal else 4
    while head < tail:
        here = queue[head]
        head += 1
        y = here // size
        x = here - y * size
        for k in range(neighbours):
            nx = x + _OFFSETS_X[k]
            ny = y + _OFFSETS_Y[k]
            if nx < 0 or ny < 0 or nx >= size or ny >= size:
                continue
            there = ny * size + nx
            cell = cell_of[there]
            if cell < 0 or seen[there]:
                continue
            content = state[layout.HEADER + cell] & 15
            if layout.COLLAPSED <= content < layout.STACK:
                continue
            if colour > 0 and content == layout.MARKER + colour - 1:
                continue
            seen[there] = 1
            queue[tail] = there
            tail += 1
    left = tail // 2
    for place in range(size * size):
        if seen[place]:
            if left == 0:
                return np.int64(place)
            left -= 1
    return np.int64(origin)


@kernel
def describe_moves(  # type: ignore[no-untyped-def]
    state,
    moves,
    count,
    plane_of,
    cell_of,
    size,
    hexagonal,
    kinds,
    cells,
    ranks,
    keys,
    stamps,
    tallies,
    stamp,
    seen,
    queue,
):
    """Describe the first ``count`` packed moves of one state.

    Inputs: ``state`` (S,) int64; ``moves`` (L,) int64, the legal moves in canonical order;
    ``plane_of`` (P,) and ``cell_of`` (N*N,) int32, padded cell to plane cell and back (-1 for
    none); ``size`` N; ``hexagonal`` bool.
    Outputs: ``kinds`` (L,) uint8, ``cells`` (L, 3) int16 with -1 for none, ``ranks`` (L,) int16.
    Entries from ``count`` on are set to kind 0, no cells, rank 0.
    Scratch: ``keys``, ``stamps``, ``tallies`` (2**14,) int64, a hash table that need not be
    cleared as long as each call with it has another ``stamp``; ``seen`` (N*N,) uint8 and
    ``queue`` (N*N,) int64. ``count`` must not exceed
    ``MOST_MOVES``.
    """
    for i in range(count):
        move = moves[i]
        kind = np.int64(move_kind(move))
        a = move_a(move)
        b = move_b(move)
        c = move_c(move)
        d = move_d(move)
        first = np.int64(-1)
        second = np.int64(-1)
        third = np.int64(-1)
        if kind == layout.PLACE_RING:
            first = np.int64(plane_of[a])
            if d == 2:
                kind = np.int64(PLACE_TWO)
            elif d == 3:
                kind = np.int64(PLACE_THREE)
        elif kind < layout.MOVE_STACK:
            pass  # skips and bookkeeping have no cell
        elif (
            kind == layout.MOVE_STACK
            or kind == layout.PROCESS_LINE
            or kind == layout.CHOOSE_LINE_ALL
        ):
            first = np.int64(plane_of[a])
            second = np.int64(plane_of[b])
        elif kind == layout.ELIMINATE_RINGS or kind == layout.FORCED_ELIMINATION:
            first = np.int64(plane_of[a])
        elif kind == layout.CHOOSE_LINE_WINDOW:
            first = np.int64(plane_of[c])
            second = np.int64(plane_of[d])
            third = np.int64(plane_of[a])
        elif kind == layout.CHOOSE_TERRITORY:
            first = np.int64(plane_of[a])
            second = np.int64(plane_of[b])
            third = _middle_of_region(state, a, d, plane_of, cell_of, size, hexagonal, seen, queue)
        elif kind == layout.RECOVERY_LINE and c == 0:
            kind = np.int64(RECOVERY_LINE_FREE)
            first = np.int64(plane_of[a])
            second = np.int64(plane_of[b])
            third = np.int64(plane_of[d])
        else:  # captures, and recoveries that pay
            first = np.int64(plane_of[a])
            second = np.int64(plane_of[b])
            third = np.int64(plane_of[c])
        kinds[i] = kind
        cells[i, 0] = first
        cells[i, 1] = second
        cells[i, 2] = third

        # Rank: how many earlier moves have this kind and these cells.
        key = kind | ((first + 1) << 8) | ((second + 1) << 24) | ((third + 1) << 40)
        slot = ((key * -7046029254386353131) >> 40) & (_TABLE_SIZE - 1)
        while stamps[slot] == stamp and keys[slot] != key:
            slot = (slot + 1) & (_TABLE_SIZE - 1)
        if stamps[slot] != stamp:
            stamps[slot] = stamp
            keys[slot] = key
            tallies[slot] = 0
        else:
            tallies[slot] += 1
        ranks[i] = tallies[slot]
    for i in range(count, kinds.shape[0]):
        kinds[i] = 0
        cells[i, 0] = -1
        cells[i, 1] = -1
        cells[i, 2] = -1
        ranks[i] = 0


def new_table() -> tuple[Any, Any, Any]:
    """Scratch hash table of :func:`describe_moves`: keys, stamps, tallies, each (2**14,) int64."""
    return (
        np.empty(_TABLE_SIZE, dtype=np.int64),
        np.full(_TABLE_SIZE, -1, dtype=np.int64),
        np.empty(_TABLE_SIZE, dtype=np.int64),
    )
