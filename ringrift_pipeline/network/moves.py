"""Descriptions of moves: what the policy head sees of a legal move.

A move is described by a *move kind*, up to three cells (as indices of the N x N plane) and a
rank. The move kinds refine the packed kinds of ``game.layout``: placements of one, two and three
rings are kinds of their own, and so is a recovery line that takes the free window.

Two legal moves of one state never share a description: the rank of a move is the number of
earlier moves, in the engine's canonical order, with the same kind and cells. It is 0 for all but
the rare moves that three cells cannot tell apart.
"""

from __future__ import annotations

import numpy as np

from ringrift_pipeline.game import layout
from ringrift_pipeline.game.compile import kernel
from ringrift_pipeline.game.layout import move_a, move_c, move_d, move_kind

CELLS_PER_MOVE = 3
#: Length of the vectors that the policy head sums over the cells of a move.
INTERACTION_CHANNELS = 16

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
# First bit of the fields a, b, c and d of a packed move. No move has bits beyond d: what is read
# there is padded cell 0, the wall, which is no cell of the plane.
_A, _B, _C, _D, _NO_FIELD = 5, 15, 25, 35, 45
# (NUM_MOVE_KINDS, 3) the field that holds each cell.
_CELL_FIELDS = np.full((NUM_MOVE_KINDS, CELLS_PER_MOVE), _NO_FIELD, dtype=np.int64)
for _kinds, _cells in (
    ((layout.PLACE_RING, PLACE_TWO, PLACE_THREE), ((DESTINATION, _A),)),
    ((layout.MOVE_STACK,), ((ORIGIN, _A), (DESTINATION, _B))),
    (
        (layout.OVERTAKING_CAPTURE, layout.CONTINUE_CAPTURE),
        ((ORIGIN, _A), (TARGET, _B), (DESTINATION, _C)),
    ),
    ((layout.PROCESS_LINE, layout.CHOOSE_LINE_ALL), ((TARGET, _A), (TARGET, _B))),
    ((layout.CHOOSE_LINE_WINDOW,), ((TARGET, _C), (TARGET, _D), (TARGET, _A))),
    # The third cell is the middle of the region, which no field holds.
    ((layout.CHOOSE_TERRITORY,), ((TARGET, _A), (TARGET, _B), (TARGET, _NO_FIELD))),
    ((layout.ELIMINATE_RINGS, layout.FORCED_ELIMINATION), ((TARGET, _A),)),
    (
        (layout.RECOVERY_LINE, layout.RECOVERY_FALLBACK, layout.RECOVERY_STRIKE),
        ((ORIGIN, _A), (DESTINATION, _B), (TARGET, _C)),
    ),
    ((RECOVERY_LINE_FREE,), ((ORIGIN, _A), (DESTINATION, _B), (TARGET, _D))),
):
    for _kind in _kinds:
        for _place, (_role, _field) in enumerate(_cells):
            CELL_ROLES[_kind, _place], _CELL_FIELDS[_kind, _place] = _role, _field
CELL_ROLES.setflags(write=False)

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
    seen,
    queue,
):
    """Describe the first ``count`` packed moves of one state.

    Inputs: ``state`` (S,) int64; ``moves`` (L,) int64, the legal moves in canonical order;
    ``plane_of`` (P,) and ``cell_of`` (N*N,) int32, padded cell to plane cell and back (-1 for
    none); ``size`` N; ``hexagonal`` bool.
    Outputs: ``kinds`` (L,) uint8, ``cells`` (L, 3) int16 with -1 for none, ``ranks`` (L,) int16.
    Entries from ``count`` on are set to kind 0, no cells, rank 0.
    Scratch: ``seen`` (N*N,) uint8 and ``queue`` (N*N,) int64.
    """
    for i in range(count):
        move = moves[i]
        kind = np.int64(move_kind(move))
        if kind == layout.PLACE_RING and move_d(move) > 1:
            kind = np.int64(PLACE_TWO - 2) + move_d(move)
        elif kind == layout.RECOVERY_LINE and move_c(move) == 0:
            kind = np.int64(RECOVERY_LINE_FREE)
        kinds[i] = kind
        for k in range(CELLS_PER_MOVE):
            cells[i, k] = plane_of[(move >> _CELL_FIELDS[kind, k]) & 1023]
        ranks[i] = 0
        if kind == layout.CHOOSE_TERRITORY:
            cells[i, 2] = _middle_of_region(
                state, move_a(move), move_d(move), plane_of, cell_of, size, hexagonal, seen, queue
            )
        # The other kinds' descriptions hold the whole move.
        if kind == layout.CHOOSE_TERRITORY or kind == layout.CHOOSE_LINE_WINDOW:
            for j in range(i):
                same = kinds[j] == kind
                for k in range(CELLS_PER_MOVE):
                    same &= cells[j, k] == cells[i, k]
                ranks[i] += same
    for i in range(count, kinds.size):
        kinds[i] = 0
        ranks[i] = 0
        for k in range(CELLS_PER_MOVE):
            cells[i, k] = -1
