"""Encoding of state rows into planes and globals, seen by the player to move.

Everything is relative: seat 0 is the player to move, seat r the one who moves r places later.
The planes are the same for every config (seats beyond the player count stay empty), so weights
carry over between board sizes and player counts.

Planes (C, N, N) are small whole numbers in ``uint8``; ``PLANE_SCALES`` brings them near one and
is applied inside the network. Globals (F,) are ``float32`` fractions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ringrift_pipeline.game import layout
from ringrift_pipeline.game.compile import kernel
from ringrift_pipeline.game.layout import cap_height, height, rings_of
from ringrift_pipeline.network.moves import CELLS_PER_MOVE, describe_moves

#: Raised whenever planes, globals or move descriptions change meaning; stored beside weights.
ENCODING_VERSION = 1
MAX_PLAYERS = 4

_SEATS = ("mover", "next", "third", "fourth")

ON_BOARD = 0
STACK_OF = 1  # + relative seat that controls the stack
MARKER_OF = 5  # + relative seat
COLLAPSED_OF = 9  # + relative owner
HEIGHT = 13
CAP = 14
BURIED_OF = 15  # + relative seat: its rings below the cap
UNDER_CAP_OF = 19  # + relative seat: owner of the ring right below the cap
MUST_MOVE = 23
LEGAL_ORIGIN = 24
LEGAL_DESTINATION = 25
LEGAL_TARGET = 26
NUM_PLANES = 27

PLANE_NAMES: tuple[str, ...] = (
    "on_board",
    *(f"stack_of_{seat}" for seat in _SEATS),
    *(f"marker_of_{seat}" for seat in _SEATS),
    *(f"collapsed_of_{seat}" for seat in _SEATS),
    "stack_height",
    "cap_height",
    *(f"rings_below_cap_of_{seat}" for seat in _SEATS),
    *(f"ring_under_cap_of_{seat}" for seat in _SEATS),
    "must_move",
    "legal_origin",
    "legal_destination",
    "legal_target",
)
assert len(PLANE_NAMES) == NUM_PLANES

COUNT_PLANES = (HEIGHT, CAP, *range(BURIED_OF, BURIED_OF + MAX_PLAYERS))
FLAG_PLANES = np.setdiff1d(np.arange(NUM_PLANES), COUNT_PLANES)
"""Planes that are 0 or 1, (F,) int64; the others count rings."""

PLANE_SCALES = np.ones(NUM_PLANES, dtype=np.float32)
PLANE_SCALES[HEIGHT] = PLANE_SCALES[CAP] = 0.25
PLANE_SCALES[BURIED_OF : BURIED_OF + MAX_PLAYERS] = 0.5
PLANE_SCALES.setflags(write=False)

G_PLAYERS = 0  # one-hot over 2, 3, 4 players
G_PHASE = 3  # one-hot over the seven phases in which somebody moves
G_LINE_PAYMENT = 10
G_TERRITORY_PAYMENT = 11
G_CHANGED = 12
G_RECOVERY = 13
G_LONG_LINES = 14  # lines need four markers, not three
G_BOARD_SIZE = 15
G_LEGAL_MOVES = 16
G_SEATS = 17  # + 10 * relative seat + one of the following
S_HAND, S_ELIMINATED, S_TERRITORY, S_STACKS, S_CAPS, S_BURIED, S_MARKERS = range(7)
S_LPS_ROUNDS, S_LPS_ACTED, S_LPS_ANCHOR = 7, 8, 9
SEAT_GLOBALS = 10
NUM_GLOBALS = G_SEATS + SEAT_GLOBALS * MAX_PLAYERS

GLOBAL_NAMES: tuple[str, ...] = (
    "players_2",
    "players_3",
    "players_4",
    *(f"phase_{name}" for name in layout.PHASE_NAMES[: layout.OVER]),
    "line_payment_due",
    "territory_payment_due",
    "turn_changed_board",
    "recovery_turn",
    "line_length_4",
    "board_size",
    "legal_moves",
    *(
        f"{name}_{seat}"
        for seat in _SEATS
        for name in (
            "hand",
            "eliminated",
            "territory",
            "stacks",
            "caps",
            "buried",
            "markers",
            "lps_rounds",
            "lps_acted",
            "lps_anchor",
        )
    ),
)
assert len(GLOBAL_NAMES) == NUM_GLOBALS

_LPS_ROUNDS_TO_WIN = 3.0


def content_planes(players: int) -> npt.NDArray[np.int64]:
    """(players, 16) plane that each player to move sees each content of a cell on."""
    out = np.full((players, 16), ON_BOARD, dtype=np.int64)
    for mover in range(players):
        for seat in range(players):
            relative = (seat - mover) % players
            out[mover, layout.MARKER + seat] = MARKER_OF + relative
            out[mover, layout.COLLAPSED + seat] = COLLAPSED_OF + relative
            out[mover, layout.STACK + seat] = STACK_OF + relative
    return out


@kernel
def _encode_row(  # type: ignore[no-untyped-def]
    b,
    state,
    count,
    plane_of,
    cell_list,
    content_plane,
    roles,
    queue,
    kinds,
    cells,
    planes,
    globals_,
):
    """Encode one state whose moves are described already.

    ``content_plane`` (players, 16) int64 is the plane of each content of a cell for each player
    to move (:func:`content_planes`); ``queue`` (N*N,) int64 is scratch.
    ``planes`` (N*N*C,) uint8, cell by cell, are those of an empty board on entry; all of
    ``globals_`` (F,) float32 is written.
    """
    mover = state[layout.PLAYER]
    players = b[layout.B_PLAYERS]
    num_cells = b[layout.B_NUM_CELLS]
    rings = np.float32(b[layout.B_RINGS])
    for i in range(globals_.size):
        globals_[i] = 0.0
    base = G_SEATS
    stacks = 0
    for i in range(cell_list.shape[0]):
        cell = cell_list[i]
        content = state[layout.HEADER + cell] & 15
        planes[np.int64(plane_of[cell]) * NUM_PLANES + content_plane[mover, content]] = 1
        queue[stacks] = cell
        stacks += content >= layout.STACK
    for i in range(stacks):
        code = state[layout.HEADER + queue[i]]
        seat = (code & 15) - layout.STACK - mover
        if seat < 0:
            seat += players
        tall = height(code)
        cap = cap_height(code)
        place = np.int64(plane_of[queue[i]]) * NUM_PLANES
        planes[place + HEIGHT] = tall
        planes[place + CAP] = cap
        globals_[base + SEAT_GLOBALS * seat + S_CAPS] += cap
        below = rings_of(code) >> (2 * cap)
        for level in range(cap, tall):
            other = (below & 3) - mover
            below >>= 2
            if other < 0:
                other += players
            planes[place + BURIED_OF + other] += 1
            if level == cap:
                planes[place + UNDER_CAP_OF + other] = 1
            globals_[base + SEAT_GLOBALS * other + S_BURIED] += 1.0
    if state[layout.MUST_MOVE] >= 0:
        place = np.int64(plane_of[state[layout.MUST_MOVE]])
        if place >= 0:
            planes[place * NUM_PLANES + MUST_MOVE] = 1
    for i in range(count):
        kind = kinds[i]
        for k in range(CELLS_PER_MOVE):
            cell = np.int64(cells[i, k])
            if cell >= 0:
                planes[cell * NUM_PLANES + LEGAL_ORIGIN + roles[kind, k]] = 1

    globals_[G_PLAYERS + players - 2] = 1.0
    phase = state[layout.PHASE]
    if phase < layout.OVER:
        globals_[G_PHASE + phase] = 1.0
    globals_[G_LINE_PAYMENT] = 1.0 if state[layout.PENDING] != 0 else 0.0
    globals_[G_TERRITORY_PAYMENT] = 1.0 if state[layout.PAYMENT] != 0 else 0.0
    globals_[G_CHANGED] = 1.0 if state[layout.CHANGED] != 0 else 0.0
    globals_[G_RECOVERY] = 1.0 if state[layout.RECOVERY] != 0 else 0.0
    globals_[G_LONG_LINES] = 1.0 if b[layout.B_LINE_LENGTH] >= 4 else 0.0
    globals_[G_BOARD_SIZE] = np.sqrt(np.float32(num_cells)) / 16.0
    globals_[G_LEGAL_MOVES] = np.log1p(np.float32(count)) / 6.0
    for seat in range(players):
        absolute = (seat + mover) % players
        at = base + SEAT_GLOBALS * seat
        # Whole numbers until here, so that the order of the cells does not show.
        globals_[at + S_CAPS] /= rings
        globals_[at + S_BURIED] /= rings
        globals_[at + S_STACKS] = state[layout.COUNT + layout.STACK + absolute] * 0.125
        globals_[at + S_MARKERS] = np.float32(state[layout.COUNT + layout.MARKER + absolute]) * (
            np.float32(4.0) / np.float32(num_cells)
        )
        globals_[at + S_HAND] = state[layout.HAND + absolute] / rings
        globals_[at + S_ELIMINATED] = state[layout.ELIMINATED + absolute] / np.float32(
            b[layout.B_RING_THRESHOLD]
        )
        globals_[at + S_TERRITORY] = state[layout.TERRITORY_COUNT + absolute] / np.float32(
            b[layout.B_TERRITORY_MINIMUM]
        )
        if state[layout.LPS_HOLDER] == absolute:
            globals_[at + S_LPS_ROUNDS] = state[layout.LPS_COUNT] / _LPS_ROUNDS_TO_WIN
        if (state[layout.LPS_ACTED] >> absolute) & 1:
            globals_[at + S_LPS_ACTED] = 1.0
        if state[layout.LPS_ANCHOR] == absolute:
            globals_[at + S_LPS_ANCHOR] = 1.0


@kernel
def encode_batch(  # type: ignore[no-untyped-def]
    b,
    states,
    moves,
    counts,
    plane_of,
    cell_of,
    cell_list,
    content_plane,
    roles,
    board,
    seen,
    queue,
    planes,
    globals_,
    kinds,
    cells,
    ranks,
    legal,
):
    """Encode a batch, whatever the outputs held before; the kernel behind ``Encoder``.

    ``states`` (B, >= HEADER+P) int64, ``moves`` (B, L) int64, ``counts`` (B,) int32; ``planes``
    (B, N*N*C) uint8, cell by cell, and ``board`` (N*N*C,) uint8, those of an empty board.
    Returns -1; or, having stopped there, the first row whose game is over or whose count is not
    in 0..L.
    """
    size = b[layout.B_SIZE]
    hexagonal = b[layout.B_HEX] != 0
    for row in range(states.shape[0]):
        count = np.int64(counts[row])
        if count < 0 or count > moves.shape[1] or states[row, layout.PLAYER] < 0:
            return row
        describe_moves(
            states[row],
            moves[row],
            count,
            plane_of,
            cell_of,
            size,
            hexagonal,
            kinds[row],
            cells[row],
            ranks[row],
            seen,
            queue,
        )
        for i in range(moves.shape[1]):
            legal[row, i] = i < count
        for i in range(board.size):  # a loop is compiled to vectors, an assignment is not
            planes[row, i] = board[i]
        _encode_row(
            b,
            states[row],
            count,
            plane_of,
            cell_list,
            content_plane,
            roles,
            queue,
            kinds[row],
            cells[row],
            planes[row],
            globals_[row],
        )
    return -1
