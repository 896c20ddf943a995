"""Reading and changing the cells of a state row; codes, masks and counts stay in step."""

from __future__ import annotations

from ringrift_pipeline.game.bits import count_ones
from ringrift_pipeline.game.compile import inline_kernel, inner_kernel
from ringrift_pipeline.game.layout import (
    B_DIRECTIONS,
    B_INVERSE,
    B_MASKS,
    B_NUM_DIRECTIONS,
    B_PLAYERS,
    B_ROWS,
    B_STRIDE,
    COUNT,
    ELIMINATED,
    HAND,
    HEADER,
    MARKER,
    ON_BOARD,
    STACK,
    height,
    rings_of,
    stack_code,
)


@inline_kernel
def put(b, s, cell, code):
    """Write a cell code; keep the class masks and counts in step."""
    old = s[HEADER + cell] & 15
    new = code & 15
    row = (cell * b[B_INVERSE]) >> 16
    bit = 1 << (cell - row * b[B_STRIDE])
    masks = b[B_MASKS] + row
    rows = b[B_ROWS]
    s[masks + old * rows] ^= bit
    s[masks + new * rows] ^= bit
    s[COUNT + old] -= 1
    s[COUNT + new] += 1
    s[HEADER + cell] = code


@inline_kernel
def mask_offset(b, cell_class):
    """Where the row masks of a class begin in a state row (padded rows, 0 and the last empty)."""
    return b[B_MASKS] + cell_class * b[B_ROWS]


@inline_kernel
def step_between(b, start, stop):
    """Padded offset of one step from ``start`` towards ``stop`` on their common line."""
    stride = b[B_STRIDE]
    row_a = (start * b[B_INVERSE]) >> 16
    row_b = (stop * b[B_INVERSE]) >> 16
    col_a = start - row_a * stride
    col_b = stop - row_b * stride
    step = 0
    if row_b > row_a:
        step = stride
    elif row_b < row_a:
        step = -stride
    if col_b > col_a:
        step += 1
    elif col_b < col_a:
        step -= 1
    return step


@inline_kernel
def adjacent(b, start, stop):
    """Whether ``stop`` is one step away from ``start`` in a movement direction."""
    found = False
    for i in range(b[B_NUM_DIRECTIONS]):
        if start + b[B_DIRECTIONS + i] == stop:
            found = True
    return found


@inline_kernel
def has_rings(s, seat):
    """Whether the seat has a ring anywhere: in hand, on top of a stack or buried (R175)."""
    return s[HAND + seat] + s[ON_BOARD + seat] > 0


@inner_kernel
def stacks_on_board(b, s):
    """Number of stacks, whoever controls them."""
    total = 0
    for seat in range(b[B_PLAYERS]):
        total += s[COUNT + STACK + seat]
    return total


@inline_kernel
def recovery_eligible(s, seat):
    """No stack controlled, a marker on the board and a buried ring (RR-CANON-R110)."""
    return s[COUNT + STACK + seat] == 0 and s[COUNT + MARKER + seat] > 0 and s[ON_BOARD + seat] > 0


@inline_kernel
def holds_buried(code, seat):
    """Whether a stack holds a ring of ``seat`` below its top ring."""
    rings = rings_of(code) >> 2
    below = height(code) - 1
    differs = rings ^ (seat * 0x15555555555555)
    # Fold each two-bit difference into its low bit; a zero pair among the lower rings is a hit.
    folded = (differs | (differs >> 1)) & 0x15555555555555
    within = (1 << (2 * below)) - 1
    return count_ones(folded & within) < below


@inner_kernel
def remove_top(b, s, cell, seat):
    """Remove the top ring of a stack and credit it to ``seat``."""
    code = s[HEADER + cell]
    rings = rings_of(code)
    s[ON_BOARD + (rings & 3)] -= 1
    s[ELIMINATED + seat] += 1
    put(b, s, cell, stack_code(rings >> 2, height(code) - 1))


@inner_kernel
def remove_buried(b, s, cell, seat):
    """Remove the bottommost ring of ``seat`` in a stack and credit it to ``seat`` (R113)."""
    code = s[HEADER + cell]
    rings = rings_of(code)
    tall = height(code)
    i = tall - 1
    while (rings >> (2 * i)) & 3 != seat:
        i -= 1
    above = rings & ((1 << (2 * i)) - 1)
    below = (rings >> (2 * (i + 1))) << (2 * i)
    s[ON_BOARD + seat] -= 1
    s[ELIMINATED + seat] += 1
    put(b, s, cell, stack_code(above | below, tall - 1))


@inner_kernel
def remove_stack(b, s, cell, seat, code_after):
    """Remove a whole stack, credit every ring to ``seat`` and leave ``code_after`` (R145)."""
    code = s[HEADER + cell]
    rings = rings_of(code)
    for _ in range(height(code)):
        s[ON_BOARD + (rings & 3)] -= 1
        rings >>= 2
    s[ELIMINATED + seat] += height(code)
    put(b, s, cell, code_after)
