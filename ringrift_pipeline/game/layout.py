"""Where everything lies in a state row, in the board constants and in a packed move.

A state is one ``int64`` row: a header, one code per padded cell, and one bit mask per cell class
and board row. Copying a state is copying its row; a batch of states is a ``(G, S)`` array.

Cell code: bits 0-3 class, bits 4-9 stack height, bits 10-63 rings, two bits a ring (seat - 1),
the top ring in the lowest bits. Heights are bounded by the board's diameter (a stack that cannot
move may not be built, RR-CANON-R081/R082), 25 at most, so 27 rings of room suffice.
"""

from __future__ import annotations

from ringrift_pipeline.game.bits import count_trailing_zeros
from ringrift_pipeline.game.compile import inline_kernel

# --- header of a state row -------------------------------------------------------------------
PLAYER = 0  # seat to move, from 0; -1 when the game is over
PHASE = 1
WINNER = 2  # seat from 0, or -1
REASON = 3  # how the game ended, 0 while it runs
MUST_MOVE = 4  # cell of the stack that moves on (placed, moved or chaining), or -1
PENDING = 5  # a line payment is due (RR-CANON-R123)
PAYMENT = 6  # a territory payment is due (RR-CANON-R145)
CHANGED = 7  # this turn has changed the board (RR-CANON-R073)
RECOVERY = 8  # this turn made a recovery slide (RR-CANON-R114)
PLY = 9  # moves made so far, bookkeeping included
TURN = 10  # turns begun so far, from 1
LAST_MOVER = 11  # seat of the last recorded move, or -1
SWAP_RULE = 12  # the pie rule is on (RR-CANON-R180)
SWAPPED = 13  # the sides were swapped
LPS_ANCHOR = 14  # seat on which rounds are anchored, or -1 before the first (RR-CANON-R172)
LPS_HOLDER = 15  # seat that holds the count, or -1
LPS_COUNT = 16  # consecutive rounds in which only the holder had a real action
LPS_ACTED = 17  # bit set of seats with a real action in the unfinished round
HAND = 20  # + seat: rings in hand
ELIMINATED = 24  # + seat: rings credited to the seat (RR-CANON-R060)
ON_BOARD = 28  # + seat: rings of that colour on the board, buried ones included
LOST_TURN = 32  # + seat: turn in which the seat lost its last ring, 0 = never (RR-CANON-R175)
COUNT = 36  # + class: cells of that class
TERRITORY_COUNT = COUNT + 5  # + seat: collapsed cells it owns (RR-CANON-R041)
HEADER = 64

# --- cell classes ----------------------------------------------------------------------------
EMPTY = 0
MARKER = 1  # + seat
COLLAPSED = 5  # + seat
STACK = 9  # + seat of the top ring
OFF_BOARD = 15
CLASSES = 13  # classes that have masks

# --- phases ----------------------------------------------------------------------------------
PLACEMENT = 0
MOVEMENT = 1
CAPTURE = 2
CHAIN = 3
LINES = 4
TERRITORY = 5
FORCED = 6
OVER = 7
PHASE_NAMES = (
    "ring_placement",
    "movement",
    "capture",
    "chain_capture",
    "line_processing",
    "territory_processing",
    "forced_elimination",
    "game_over",
)

# --- reasons ---------------------------------------------------------------------------------
BY_RINGS = 1
BY_TERRITORY = 2
BY_EARLY_LPS = 3
BY_LPS = 4
BY_STALEMATE_TERRITORY = 5  # + rung of the stalemate ladder (RR-CANON-R173)
BY_STALEMATE_RINGS = 6
BY_STALEMATE_MARKERS = 7
BY_STALEMATE_LAST_MOVER = 8
REASON_NAMES = (
    "",
    "ring_elimination",
    "territory",
    "early_lps_only_rings_left",
    "last_player_standing_R172",
    "stalemate_ladder:territory_control",
    "stalemate_ladder:ring_elimination",
    # The reference engine calls the two lowest rungs by one name; traces carry it.
    "stalemate_ladder:last_player_standing",
    "stalemate_ladder:last_player_standing",
)

# --- move kinds ------------------------------------------------------------------------------
PLACE_RING = 0
SKIP_PLACEMENT = 1
SKIP_CAPTURE = 2
SKIP_TERRITORY = 3
SKIP_RECOVERY = 4
SWAP_SIDES = 5
NO_PLACEMENT = 6
NO_MOVEMENT = 7
NO_LINE = 8
NO_TERRITORY = 9
MOVE_STACK = 10
OVERTAKING_CAPTURE = 11
CONTINUE_CAPTURE = 12
PROCESS_LINE = 13
CHOOSE_LINE_ALL = 14
CHOOSE_LINE_WINDOW = 15
CHOOSE_TERRITORY = 16
ELIMINATE_RINGS = 17
FORCED_ELIMINATION = 18
RECOVERY_LINE = 19
RECOVERY_FALLBACK = 20
RECOVERY_STRIKE = 21
NUM_KINDS = 22
KIND_MASK = 31

# --- board constants (first argument ``b`` of every kernel) ------------------------------------
B_SIZE = 0  # N, side of the bounding box
B_STRIDE = 1  # padded width: N + 1, the wall column is shared
B_PADDED = 2  # number of padded cells
B_ROWS = 3  # padded rows: N + 2
B_INVERSE = 4  # row of a cell is (cell * B_INVERSE) >> 16
B_MASKS = 5  # where the masks begin in a state row
B_STATE = 6  # length of a state row
B_PLAYERS = 7
B_RINGS = 8  # rings per player (RR-CANON-R020)
B_RING_THRESHOLD = 9  # RR-CANON-R061
B_TERRITORY_MINIMUM = 10  # RR-CANON-R062
B_LINE_LENGTH = 11  # RR-CANON-R120
B_HEX = 12
B_BORDER_FLOOD = 13  # the border collapses along marker contacts
B_NUM_DIRECTIONS = 14
B_DIRECTIONS = 16  # 8 padded offsets: rays of movement and capture
B_NUM_AXES = 24
B_AXES = 25  # 4 padded offsets, in the order that breaks ties between lines
B_NUM_CELLS = 29
B_ON_BOARD = 32  # + padded row: mask of the cells on the board
B_LENGTH = 64


@inline_kernel
def pack_move(kind: int, a: int, b: int, c: int, d: int) -> int:
    """Pack a move: kind in 5 bits, then four fields of 10 bits."""
    return kind | (a << 5) | (b << 15) | (c << 25) | (d << 35)


@inline_kernel
def move_kind(move: int) -> int:
    return move & 31


@inline_kernel
def move_a(move: int) -> int:
    return (move >> 5) & 1023


@inline_kernel
def move_b(move: int) -> int:
    return (move >> 15) & 1023


@inline_kernel
def move_c(move: int) -> int:
    return (move >> 25) & 1023


@inline_kernel
def move_d(move: int) -> int:
    return (move >> 35) & 1023


@inline_kernel
def height(code: int) -> int:
    """Number of rings in the stack with this cell code (0 for other classes)."""
    return (code >> 4) & 63


@inline_kernel
def rings_of(code: int) -> int:
    """The rings of a cell code, two bits each, the top one lowest."""
    return code >> 10


@inline_kernel
def cap_height(code: int) -> int:
    """Consecutive rings of the controlling colour from the top (RR-CANON-R022)."""
    tall = (code >> 4) & 63
    rings = code >> 10
    seat = (code & 15) - 9
    differs = rings ^ (seat * 0x15555555555555)
    return count_trailing_zeros(differs | (1 << (2 * tall))) >> 1


@inline_kernel
def stack_code(rings: int, tall: int) -> int:
    """Cell code of a stack; an empty one is an empty cell."""
    if tall == 0:
        return 0
    return (9 + (rings & 3)) | (tall << 4) | (rings << 10)
