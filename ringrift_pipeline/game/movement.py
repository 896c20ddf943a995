"""Moving and capturing with stacks (RR-CANON-R090 to R093, R101 to R103)."""

from __future__ import annotations

from ringrift_pipeline.game.bits import count_trailing_zeros
from ringrift_pipeline.game.cells import mask_offset, put, step_between
from ringrift_pipeline.game.compile import inner_kernel
from ringrift_pipeline.game.layout import (
    B_DIRECTIONS,
    B_NUM_DIRECTIONS,
    B_ROWS,
    B_STRIDE,
    COLLAPSED,
    ELIMINATED,
    HEADER,
    MARKER,
    MOVE_STACK,
    ON_BOARD,
    OVERTAKING_CAPTURE,
    STACK,
    cap_height,
    height,
    pack_move,
    rings_of,
    stack_code,
)
from ringrift_pipeline.game.placement import can_act


@inner_kernel
def moves_of_stack(b, s, cell, out, n):
    """Append the moves and captures of the stack on ``cell`` to ``out[n:]``; returns new ``n``."""
    code = s[HEADER + cell]
    tall = height(code)
    cap = cap_height(code)
    for i in range(b[B_NUM_DIRECTIONS]):
        step = b[B_DIRECTIONS + i]
        to = cell + step
        distance = 1
        while s[HEADER + to] & 15 < 5:
            if distance >= tall:
                out[n] = pack_move(MOVE_STACK, cell, to, 0, 0)
                n += 1
            to += step
            distance += 1
        met = s[HEADER + to]
        if STACK <= met & 15 < STACK + 4 and cap_height(met) <= cap:
            target = to
            to += step
            distance += 1
            while s[HEADER + to] & 15 < 5:
                if distance >= tall:
                    out[n] = pack_move(OVERTAKING_CAPTURE, cell, target, to, 0)
                    n += 1
                to += step
                distance += 1
    return n


@inner_kernel
def captures_of_stack(b, s, cell, kind, out, n):
    """Append the capture segments (R101) of the stack on ``cell``; returns new ``n``."""
    code = s[HEADER + cell]
    tall = height(code)
    cap = cap_height(code)
    for i in range(b[B_NUM_DIRECTIONS]):
        step = b[B_DIRECTIONS + i]
        to = cell + step
        distance = 1
        while s[HEADER + to] & 15 < 5:
            to += step
            distance += 1
        met = s[HEADER + to]
        if STACK <= met & 15 < STACK + 4 and cap_height(met) <= cap:
            target = to
            to += step
            distance += 1
            while s[HEADER + to] & 15 < 5:
                if distance >= tall:
                    out[n] = pack_move(kind, cell, target, to, 0)
                    n += 1
                to += step
                distance += 1
    return n


@inner_kernel
def can_capture(b, s, cell):
    """Whether the stack on ``cell`` has a legal capture segment (R101)."""
    code = s[HEADER + cell]
    tall = height(code)
    cap = cap_height(code)
    for i in range(b[B_NUM_DIRECTIONS]):
        step = b[B_DIRECTIONS + i]
        at = HEADER + cell + step
        distance = 1
        while s[at] & 15 < 5:
            at += step
            distance += 1
        met = s[at]
        if STACK <= met & 15 < STACK + 4 and cap_height(met) <= cap:
            at += step
            distance += 1
            while s[at] & 15 < 5:
                if distance >= tall:
                    return True
                at += step
                distance += 1
    return False


@inner_kernel
def all_stack_moves(b, s, seat, out):
    """List the moves and captures of every stack that ``seat`` controls; returns how many."""
    n = 0
    stride = b[B_STRIDE]
    stacks = mask_offset(b, STACK + seat)
    for row in range(1, b[B_ROWS] - 1):
        bits = s[stacks + row]
        while bits != 0:
            cell = row * stride + count_trailing_zeros(bits)
            bits &= bits - 1
            n = moves_of_stack(b, s, cell, out, n)
    return n


@inner_kernel
def has_stack_move(b, s, seat):
    """Whether any stack that ``seat`` controls can move or capture."""
    stride = b[B_STRIDE]
    stacks = mask_offset(b, STACK + seat)
    for row in range(1, b[B_ROWS] - 1):
        bits = s[stacks + row]
        while bits != 0:
            cell = row * stride + count_trailing_zeros(bits)
            bits &= bits - 1
            code = s[HEADER + cell]
            if can_act(b, s, cell, height(code), cap_height(code)):
                return True
    return False


@inner_kernel
def _cross(b, s, seat, start, stop):
    """Leave a marker on ``start``; flip or collapse what lies before ``stop`` (R092)."""
    step = step_between(b, start, stop)
    put(b, s, start, MARKER + seat)
    at = start + step
    while at != stop:
        cell_class = s[HEADER + at]
        if cell_class == MARKER + seat:
            put(b, s, at, COLLAPSED + seat)
        elif MARKER <= cell_class < MARKER + 4:
            put(b, s, at, MARKER + seat)
        at += step


@inner_kernel
def _land(b, s, seat, to, rings, tall):
    """Put a stack on ``to``; a marker there costs the top ring (R092, R102)."""
    if MARKER <= s[HEADER + to] & 15 < MARKER + 4:
        s[ON_BOARD + (rings & 3)] -= 1
        s[ELIMINATED + seat] += 1
        rings >>= 2
        tall -= 1
    put(b, s, to, stack_code(rings, tall))


@inner_kernel
def move_stack(b, s, seat, start, to):
    """Move a stack without capture (R091, R092)."""
    code = s[HEADER + start]
    _cross(b, s, seat, start, to)
    _land(b, s, seat, to, rings_of(code), height(code))


@inner_kernel
def capture(b, s, seat, start, target, to):
    """Overtake the top ring of ``target`` (R102); it goes underneath before the landing."""
    code = s[HEADER + start]
    taken = s[HEADER + target]
    tall = height(code)
    rings = rings_of(code) | ((rings_of(taken) & 3) << (2 * tall))
    put(b, s, target, stack_code(rings_of(taken) >> 2, height(taken) - 1))
    _cross(b, s, seat, start, to)
    _land(b, s, seat, to, rings, tall + 1)
