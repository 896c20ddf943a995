"""Recovery slides of a player without stacks (RR-CANON-R110 to R115)."""

from __future__ import annotations

from ringrift_pipeline.game.bits import count_trailing_zeros
from ringrift_pipeline.game.cells import (
    holds_buried,
    mask_offset,
    put,
    remove_buried,
    remove_top,
)
from ringrift_pipeline.game.compile import inner_kernel
from ringrift_pipeline.game.layout import (
    B_AXES,
    B_DIRECTIONS,
    B_LINE_LENGTH,
    B_NUM_AXES,
    B_NUM_DIRECTIONS,
    B_PLAYERS,
    B_ROWS,
    B_STRIDE,
    COLLAPSED,
    EMPTY,
    HEADER,
    MARKER,
    RECOVERY_FALLBACK,
    RECOVERY_LINE,
    RECOVERY_STRIKE,
    STACK,
    pack_move,
)

#: Entries of the move buffer kept free for what follows the slides (skip_recovery).
ROOM = 2


@inner_kernel
def _slide_line(b, s, seat, start, to):
    """The line that a slide forms: (first cell, step, length), length 0 if it forms none.

    Of several lines the longest counts, of equal ones the first axis.
    """
    marker = MARKER + seat
    best_first, best_step, best_length = 0, 0, 0
    for i in range(b[B_NUM_AXES]):
        step = b[B_AXES + i]
        first = to
        while first - step != start and s[HEADER + first - step] == marker:
            first -= step
        last = to
        length = 1
        while last + step != start and s[HEADER + last + step] == marker:
            last += step
        at = first
        while at != last:
            at += step
            length += 1
        if length >= b[B_LINE_LENGTH] and length > best_length:
            best_first, best_step, best_length = first, step, length
    return best_first, best_step, best_length


@inner_kernel
def _with_payments(b, s, seat, kind, start, to, out, n):
    """Append the slide once for every stack that can pay for it (R113)."""
    stride = b[B_STRIDE]
    for owner in range(b[B_PLAYERS]):
        stacks = mask_offset(b, STACK + owner)
        for row in range(1, b[B_ROWS] - 1):
            bits = s[stacks + row]
            while bits != 0:
                cell = row * stride + count_trailing_zeros(bits)
                bits &= bits - 1
                if holds_buried(s[HEADER + cell], seat):
                    if n + ROOM > len(out):
                        raise OverflowError("more recovery slides than the move buffer holds")
                    out[n] = pack_move(kind, start, to, cell, 0)
                    n += 1
    return n


@inner_kernel
def recovery_moves(b, s, seat, out):
    """List the recovery slides of an eligible player; returns how many (R111, R112)."""
    n = 0
    stride = b[B_STRIDE]
    length = b[B_LINE_LENGTH]
    markers = mask_offset(b, MARKER + seat)
    for row in range(1, b[B_ROWS] - 1):
        bits = s[markers + row]
        while bits != 0:
            start = row * stride + count_trailing_zeros(bits)
            bits &= bits - 1
            for i in range(b[B_NUM_DIRECTIONS]):
                to = start + b[B_DIRECTIONS + i]
                if s[HEADER + to] != EMPTY:
                    continue
                first, step, run = _slide_line(b, s, seat, start, to)
                if run == 0:
                    continue
                n = _with_payments(b, s, seat, RECOVERY_LINE, start, to, out, n)
                if run == length:
                    continue
                if n + run + ROOM > len(out):
                    raise OverflowError("more recovery slides than the move buffer holds")
                for k in range(run - length + 1):
                    at = first + k * step
                    inside = False
                    for j in range(length):
                        if at + j * step == to:
                            inside = True
                    if inside:
                        out[n] = pack_move(RECOVERY_LINE, start, to, 0, at)
                        n += 1
    if n > 0:
        return n
    for row in range(1, b[B_ROWS] - 1):
        bits = s[markers + row]
        while bits != 0:
            start = row * stride + count_trailing_zeros(bits)
            bits &= bits - 1
            for i in range(b[B_NUM_DIRECTIONS]):
                to = start + b[B_DIRECTIONS + i]
                cell_class = s[HEADER + to] & 15
                if cell_class == EMPTY:
                    n = _with_payments(b, s, seat, RECOVERY_FALLBACK, start, to, out, n)
                elif STACK <= cell_class < STACK + 4:
                    n = _with_payments(b, s, seat, RECOVERY_STRIKE, start, to, out, n)
    return n


@inner_kernel
def slide(b, s, seat, kind, start, to, payer, window):
    """Make a recovery slide (R115). ``payer`` is the paying stack, or 0 with a free ``window``."""
    if kind == RECOVERY_LINE:
        first, step, run = _slide_line(b, s, seat, start, to)
        put(b, s, start, EMPTY)
        if payer == 0:
            first = window
            run = b[B_LINE_LENGTH]
        put(b, s, to, MARKER + seat)
        for k in range(run):
            put(b, s, first + k * step, COLLAPSED + seat)
    elif kind == RECOVERY_FALLBACK:
        put(b, s, start, EMPTY)
        put(b, s, to, MARKER + seat)
    else:
        put(b, s, start, EMPTY)
        remove_top(b, s, to, seat)
    if payer != 0:
        remove_buried(b, s, payer, seat)
