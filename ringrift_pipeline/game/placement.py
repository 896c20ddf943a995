"""Ring placement (RR-CANON-R080 to R082) and the no-dead-placement rule."""

from __future__ import annotations

from ringrift_pipeline.game.bits import count_trailing_zeros
from ringrift_pipeline.game.cells import mask_offset
from ringrift_pipeline.game.compile import inner_kernel
from ringrift_pipeline.game.layout import (
    B_DIRECTIONS,
    B_NUM_DIRECTIONS,
    B_PLAYERS,
    B_ROWS,
    B_STRIDE,
    EMPTY,
    HAND,
    HEADER,
    PLACE_RING,
    STACK,
    cap_height,
    height,
    pack_move,
)


@inner_kernel
def can_act(b, s, cell, tall, cap):
    """Whether a stack of this height and cap on ``cell`` has a move or a capture (R091, R101)."""
    for i in range(b[B_NUM_DIRECTIONS]):
        step = b[B_DIRECTIONS + i]
        at = HEADER + cell + step
        distance = 1
        while s[at] & 15 < 5:
            if distance >= tall:
                return True
            at += step
            distance += 1
        code = s[at]
        cell_class = code & 15
        if STACK <= cell_class < STACK + 4 and cap_height(code) <= cap:
            at += step
            distance += 1
            while s[at] & 15 < 5:
                if distance >= tall:
                    return True
                at += step
                distance += 1
    return False


@inner_kernel
def free_run(b, s, cell, enough):
    """Longest free run from ``cell`` in any direction, counted up to ``enough``."""
    longest = 0
    for i in range(b[B_NUM_DIRECTIONS]):
        step = b[B_DIRECTIONS + i]
        at = HEADER + cell + step
        run = 0
        while run < enough and s[at] & 15 < 5:
            run += 1
            at += step
        if run > longest:
            longest = run
            if run == enough:
                break
    return longest


@inner_kernel
def placement_moves(b, s, seat, out):
    """List every legal placement of ``seat``; returns how many."""
    hand = s[HAND + seat]
    if hand == 0:
        return 0
    n = 0
    most = min(hand, 3)
    stride = b[B_STRIDE]
    rows = b[B_ROWS]
    empties = mask_offset(b, EMPTY)
    for row in range(1, rows - 1):
        bits = s[empties + row]
        while bits != 0:
            cell = row * stride + count_trailing_zeros(bits)
            bits &= bits - 1
            run = free_run(b, s, cell, most)
            for rings in range(1, most + 1):
                if run >= rings or can_act(b, s, cell, rings, rings):
                    out[n] = pack_move(PLACE_RING, cell, 0, 0, rings)
                    n += 1
    for owner in range(b[B_PLAYERS]):
        stacks = mask_offset(b, STACK + owner)
        for row in range(1, rows - 1):
            bits = s[stacks + row]
            while bits != 0:
                cell = row * stride + count_trailing_zeros(bits)
                bits &= bits - 1
                code = s[HEADER + cell]
                cap = cap_height(code) + 1 if owner == seat else 1
                if can_act(b, s, cell, height(code) + 1, cap):
                    out[n] = pack_move(PLACE_RING, cell, 0, 0, 1)
                    n += 1
    return n


@inner_kernel
def has_placement(b, s, seat):
    """Whether ``seat`` can place one ring somewhere (the test of R072, R172 and R173)."""
    if s[HAND + seat] == 0:
        return False
    stride = b[B_STRIDE]
    rows = b[B_ROWS]
    empties = mask_offset(b, EMPTY)
    for row in range(1, rows - 1):
        bits = s[empties + row]
        while bits != 0:
            cell = row * stride + count_trailing_zeros(bits)
            bits &= bits - 1
            if can_act(b, s, cell, 1, 1):
                return True
    for owner in range(b[B_PLAYERS]):
        stacks = mask_offset(b, STACK + owner)
        for row in range(1, rows - 1):
            bits = s[stacks + row]
            while bits != 0:
                cell = row * stride + count_trailing_zeros(bits)
                bits &= bits - 1
                code = s[HEADER + cell]
                cap = cap_height(code) + 1 if owner == seat else 1
                if can_act(b, s, cell, height(code) + 1, cap):
                    return True
    return False
