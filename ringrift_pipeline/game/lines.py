"""Lines: detection, the ways to process one, collapse (RR-CANON-R120 to R123)."""

from __future__ import annotations

from ringrift_pipeline.game.bits import count_trailing_zeros
from ringrift_pipeline.game.cells import mask_offset, put, step_between
from ringrift_pipeline.game.compile import inner_kernel
from ringrift_pipeline.game.layout import (
    B_AXES,
    B_LINE_LENGTH,
    B_NUM_AXES,
    B_ROWS,
    B_STRIDE,
    CHOOSE_LINE_ALL,
    CHOOSE_LINE_WINDOW,
    COLLAPSED,
    COUNT,
    HEADER,
    MARKER,
    PROCESS_LINE,
    pack_move,
)


@inner_kernel
def has_line(b, s, seat):
    """Whether ``seat`` has an eligible line (R120)."""
    length = b[B_LINE_LENGTH]
    if s[COUNT + MARKER + seat] < length:
        return False
    stride = b[B_STRIDE]
    marker = MARKER + seat
    markers = mask_offset(b, marker)
    for row in range(1, b[B_ROWS] - 1):
        bits = s[markers + row]
        while bits != 0:
            cell = row * stride + count_trailing_zeros(bits)
            bits &= bits - 1
            for i in range(b[B_NUM_AXES]):
                step = b[B_AXES + i]
                run = 1
                at = HEADER + cell + step
                while run < length and s[at] == marker:
                    run += 1
                    at += step
                if run == length:
                    return True
    return False


@inner_kernel
def line_moves(b, s, seat, out):
    """List the ways to process each line of ``seat``; returns how many (R121, R122)."""
    length = b[B_LINE_LENGTH]
    if not has_line(b, s, seat):
        return 0
    n = 0
    stride = b[B_STRIDE]
    marker = MARKER + seat
    markers = mask_offset(b, marker)
    for row in range(1, b[B_ROWS] - 1):
        bits = s[markers + row]
        while bits != 0:
            cell = row * stride + count_trailing_zeros(bits)
            bits &= bits - 1
            for i in range(b[B_NUM_AXES]):
                step = b[B_AXES + i]
                if s[HEADER + cell - step] == marker:
                    continue
                run = 1
                while s[HEADER + cell + run * step] == marker:
                    run += 1
                last = cell + (run - 1) * step
                if run == length:
                    out[n] = pack_move(PROCESS_LINE, cell, last, 0, 0)
                    n += 1
                elif run > length:
                    out[n] = pack_move(CHOOSE_LINE_ALL, cell, last, 0, 0)
                    n += 1
                    for k in range(run - length + 1):
                        first = cell + k * step
                        end = first + (length - 1) * step
                        out[n] = pack_move(CHOOSE_LINE_WINDOW, cell, last, first, end)
                        n += 1
    return n


@inner_kernel
def collapse_line(b, s, seat, first, last):
    """Collapse the cells from ``first`` to ``last`` into territory of ``seat``."""
    step = step_between(b, first, last)
    at = first
    while True:
        put(b, s, at, COLLAPSED + seat)
        if at == last:
            break
        at += step
