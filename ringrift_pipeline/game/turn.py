"""The turn: which moves a phase offers and where a move leads (RR-CANON-R070 to R076)."""

from __future__ import annotations

from ringrift_pipeline.game.bits import SCRATCH_ROWS, carray, count_trailing_zeros, row_pointer
from ringrift_pipeline.game.cells import (
    has_rings,
    holds_buried,
    mask_offset,
    put,
    recovery_eligible,
    remove_buried,
    remove_top,
)
from ringrift_pipeline.game.compile import inner_kernel, kernel
from ringrift_pipeline.game.layout import (
    B_NUM_CELLS,
    B_ON_BOARD,
    B_PADDED,
    B_PLAYERS,
    B_RINGS,
    B_ROWS,
    B_STATE,
    B_STRIDE,
    CAPTURE,
    CHAIN,
    CHANGED,
    CHOOSE_LINE_ALL,
    CHOOSE_LINE_WINDOW,
    CHOOSE_TERRITORY,
    CONTINUE_CAPTURE,
    COUNT,
    ELIMINATE_RINGS,
    EMPTY,
    FORCED,
    FORCED_ELIMINATION,
    HAND,
    HEADER,
    LAST_MOVER,
    LINES,
    LPS_ANCHOR,
    LPS_HOLDER,
    MOVE_STACK,
    MOVEMENT,
    MUST_MOVE,
    NO_LINE,
    NO_MOVEMENT,
    NO_PLACEMENT,
    NO_TERRITORY,
    OFF_BOARD,
    ON_BOARD,
    OVER,
    OVERTAKING_CAPTURE,
    PAYMENT,
    PENDING,
    PHASE,
    PLACE_RING,
    PLACEMENT,
    PLAYER,
    PLY,
    PROCESS_LINE,
    RECOVERY,
    RECOVERY_LINE,
    SKIP_CAPTURE,
    SKIP_PLACEMENT,
    SKIP_RECOVERY,
    SKIP_TERRITORY,
    STACK,
    SWAP_RULE,
    SWAP_SIDES,
    SWAPPED,
    TERRITORY,
    TURN,
    WINNER,
    cap_height,
    height,
    pack_move,
    rings_of,
    stack_code,
)
from ringrift_pipeline.game.lines import collapse_line, has_line, line_moves
from ringrift_pipeline.game.movement import (
    all_stack_moves,
    can_capture,
    capture,
    captures_of_stack,
    has_stack_move,
    move_stack,
    moves_of_stack,
)
from ringrift_pipeline.game.placement import placement_moves
from ringrift_pipeline.game.recovery import recovery_moves, slide
from ringrift_pipeline.game.territory import collapse_region, territory_moves
from ringrift_pipeline.game.victory import check_victory, enter_turn, note_lost_seats

# Sets of move kinds, one bit a kind.
_CAPTURES = 1 << OVERTAKING_CAPTURE | 1 << CONTINUE_CAPTURE
_TO_MOVEMENT = 1 << SKIP_PLACEMENT | 1 << NO_PLACEMENT
_TO_LINES = 1 << SKIP_CAPTURE | 1 << NO_MOVEMENT | 1 << SKIP_RECOVERY
_LINE_CHOICES = 1 << PROCESS_LINE | 1 << CHOOSE_LINE_ALL | 1 << CHOOSE_LINE_WINDOW


@kernel
def initial_state(b, s, swap_rule):
    """Write the initial position into the row ``s``; ``swap_rule`` is 0 or 1."""
    for i in range(b[B_STATE]):
        s[i] = 0
    for cell in range(b[B_PADDED]):
        s[HEADER + cell] = OFF_BOARD
    stride = b[B_STRIDE]
    empties = mask_offset(b, EMPTY)
    for row in range(1, b[B_ROWS] - 1):
        bits = b[B_ON_BOARD + row]
        s[empties + row] = bits
        while bits != 0:
            s[HEADER + row * stride + count_trailing_zeros(bits)] = EMPTY
            bits &= bits - 1
    s[COUNT + EMPTY] = b[B_NUM_CELLS]
    for seat in range(b[B_PLAYERS]):
        s[HAND + seat] = b[B_RINGS]
    s[PHASE] = PLACEMENT
    s[WINNER] = -1
    s[MUST_MOVE] = -1
    s[LAST_MOVER] = -1
    s[TURN] = 1
    s[SWAP_RULE] = swap_rule
    s[LPS_ANCHOR] = -1
    s[LPS_HOLDER] = -1


@inner_kernel
def _placement_phase(b, s, seat, out):
    n = placement_moves(b, s, seat, out)
    if s[HAND + seat] > 0 and (has_stack_move(b, s, seat) or recovery_eligible(s, seat)):
        out[n] = SKIP_PLACEMENT
        n += 1
    if n == 0:
        out[0] = NO_PLACEMENT
        n = 1
    if s[SWAP_RULE] != 0 and s[SWAPPED] == 0 and s[TURN] == 2:
        out[n] = SWAP_SIDES
        n += 1
    return n


@inner_kernel
def _movement_phase(b, s, seat, out):
    if s[MUST_MOVE] >= 0:
        n = moves_of_stack(b, s, s[MUST_MOVE], out, 0)
    else:
        n = all_stack_moves(b, s, seat, out)
    if n > 0:
        return n
    if recovery_eligible(s, seat):
        n = recovery_moves(b, s, seat, out)
        out[n] = SKIP_RECOVERY
        return n + 1
    out[0] = NO_MOVEMENT
    return 1


@inner_kernel
def _own_stacks(b, s, seat, kind, out):
    """One move of ``kind`` for each stack that ``seat`` controls."""
    n = 0
    stride = b[B_STRIDE]
    stacks = mask_offset(b, STACK + seat)
    for row in range(1, b[B_ROWS] - 1):
        bits = s[stacks + row]
        while bits != 0:
            out[n] = pack_move(kind, row * stride + count_trailing_zeros(bits), 0, 0, 0)
            bits &= bits - 1
            n += 1
    return n


@inner_kernel
def _stacks_with_buried(b, s, seat, out):
    """One payment for each stack that holds a buried ring of ``seat`` (R114)."""
    n = 0
    stride = b[B_STRIDE]
    for owner in range(b[B_PLAYERS]):
        stacks = mask_offset(b, STACK + owner)
        for row in range(1, b[B_ROWS] - 1):
            bits = s[stacks + row]
            while bits != 0:
                cell = row * stride + count_trailing_zeros(bits)
                bits &= bits - 1
                if holds_buried(s[HEADER + cell], seat):
                    out[n] = pack_move(ELIMINATE_RINGS, cell, 0, 0, 0)
                    n += 1
    return n


@kernel
def legal_moves(b, s, out):
    """List the legal moves of the position in a fixed order; returns how many.

    Args:
        b: int64 board constants (``Rules.constants``).
        s: int64 (S,) state row; not changed.
        out: int64 buffer of ``Rules.max_moves``; packed moves.

    Returns:
        The number of moves, 0 only when the game is over.
    """
    phase = s[PHASE]
    seat = s[PLAYER]
    if phase == PLACEMENT:
        return _placement_phase(b, s, seat, out)
    if phase == MOVEMENT:
        return _movement_phase(b, s, seat, out)
    if phase == CAPTURE:
        n = captures_of_stack(b, s, s[MUST_MOVE], OVERTAKING_CAPTURE, out, 0)
        out[n] = SKIP_CAPTURE
        return n + 1
    if phase == CHAIN:
        return captures_of_stack(b, s, s[MUST_MOVE], CONTINUE_CAPTURE, out, 0)
    if phase == LINES:
        if s[PENDING] != 0:
            return _own_stacks(b, s, seat, ELIMINATE_RINGS, out)
        n = line_moves(b, s, seat, out)
        if n == 0:
            out[0] = NO_LINE
            n = 1
        return n
    if phase == TERRITORY:
        if s[PAYMENT] != 0:
            if s[RECOVERY] != 0:
                return _stacks_with_buried(b, s, seat, out)
            return _own_stacks(b, s, seat, ELIMINATE_RINGS, out)
        n = territory_moves(b, s, seat, out, len(out))
        out[n] = SKIP_TERRITORY if n > 0 else NO_TERRITORY
        return n + 1
    if phase == FORCED:
        return _own_stacks(b, s, seat, FORCED_ELIMINATION, out)
    return 0


@inner_kernel
def _end_turn(b, s):
    """Pass the turn to the next seat that has a ring anywhere (R201)."""
    note_lost_seats(b, s)
    players = b[B_PLAYERS]
    seat = s[PLAYER]
    for _ in range(players):
        seat = (seat + 1) % players
        if has_rings(s, seat):
            break
    s[PLAYER] = seat
    s[PHASE] = PLACEMENT
    s[MUST_MOVE] = -1
    s[PENDING] = 0
    s[PAYMENT] = 0
    s[CHANGED] = 0
    s[RECOVERY] = 0
    s[TURN] += 1
    enter_turn(b, s, seat)


@inner_kernel
def _after_landing(b, s, seat, to, next_phase):
    """Go on to captures from ``to`` if the stack is still the mover's and has one, else lines."""
    s[CHANGED] = 1
    if s[HEADER + to] & 15 == STACK + seat and can_capture(b, s, to):
        s[PHASE] = next_phase
        s[MUST_MOVE] = to
    else:
        s[PHASE] = LINES
        s[MUST_MOVE] = -1


@inner_kernel
def _place(b, s, seat, to, count):
    code = s[HEADER + to]
    rings = rings_of(code)
    for _ in range(count):
        rings = (rings << 2) | seat
    put(b, s, to, stack_code(rings, height(code) + count))
    s[HAND + seat] -= count
    s[ON_BOARD + seat] += count
    s[CHANGED] = 1
    s[PHASE] = MOVEMENT
    s[MUST_MOVE] = to


@inner_kernel
def _process_line(b, s, seat, kind, first, last, window, window_end):
    if kind == CHOOSE_LINE_WINDOW:
        first, last = window, window_end
    collapse_line(b, s, seat, first, last)
    s[CHANGED] = 1
    if kind != CHOOSE_LINE_WINDOW and s[COUNT + STACK + seat] > 0:
        s[PENDING] = 1
    elif not has_line(b, s, seat):
        s[PHASE] = TERRITORY


@inner_kernel
def _remove_cap(b, s, cell, seat):
    for _ in range(cap_height(s[HEADER + cell])):
        remove_top(b, s, cell, seat)


@inner_kernel
def _pay(b, s, seat, cell):
    """A payment: one ring for a line, a cap or a buried ring for a region."""
    if s[PHASE] == LINES:
        remove_top(b, s, cell, seat)
        s[PENDING] = 0
        return
    if s[RECOVERY] != 0:
        remove_buried(b, s, cell, seat)
    else:
        _remove_cap(b, s, cell, seat)
    s[PAYMENT] = 0


@kernel
def apply_move(b, s, move):
    """Make a legal move in place (legality is not checked here).

    Args:
        b: int64 board constants.
        s: int64 (S,) state row; changed.
        move: packed move from :func:`legal_moves` of this very position.
    """
    seat = s[PLAYER]
    kind = move & 31
    at = (move >> 5) & 1023
    to = (move >> 15) & 1023
    third = (move >> 25) & 1023
    fourth = (move >> 35) & 1023
    kinds = 1 << kind
    ends_turn = False
    # Whether it depends on a region being left what follows this move.
    looks_for_region = False
    s[PLY] += 1
    s[LAST_MOVER] = seat
    if kind == PLACE_RING:
        _place(b, s, seat, at, fourth)
    elif kind == MOVE_STACK:
        move_stack(b, s, seat, at, to)
        _after_landing(b, s, seat, to, CAPTURE)
    elif kinds & _CAPTURES:
        capture(b, s, seat, at, to, third)
        _after_landing(b, s, seat, third, CHAIN)
    elif kinds & _TO_MOVEMENT:
        s[PHASE] = MOVEMENT
        s[MUST_MOVE] = -1
    elif kinds & _TO_LINES:
        s[PHASE] = LINES
        s[MUST_MOVE] = -1
    elif kind == NO_LINE:
        s[PHASE] = TERRITORY
        looks_for_region = s[CHANGED] == 0 and s[COUNT + STACK + seat] > 0
    elif kind == NO_TERRITORY:
        ends_turn = True
    elif kind == SKIP_TERRITORY:
        if s[CHANGED] == 0 and s[COUNT + STACK + seat] > 0:
            s[PHASE] = FORCED
        else:
            ends_turn = True
    elif kinds & _LINE_CHOICES:
        _process_line(b, s, seat, kind, at, to, third, fourth)
    elif kind == CHOOSE_TERRITORY:
        collapse_region(b, s, seat, at, fourth)
        s[CHANGED] = 1
        s[PAYMENT] = 1
    elif kind == ELIMINATE_RINGS:
        looks_for_region = s[PHASE] == TERRITORY
        _pay(b, s, seat, at)
    elif kind == FORCED_ELIMINATION:
        _remove_cap(b, s, at, seat)
        ends_turn = True
    elif kind >= RECOVERY_LINE:
        slide(b, s, seat, kind, at, to, third, fourth)
        s[CHANGED] = 1
        s[RECOVERY] = 1
        s[PHASE] = LINES
    elif kind == SWAP_SIDES:
        s[SWAPPED] = 1
    if looks_for_region:
        regions = carray(row_pointer(), SCRATCH_ROWS)
        if territory_moves(b, s, seat, regions, 1) == 0:
            # Blocked without a region: straight to the forced elimination; paid for the last
            # one: the turn is over.
            if kind == NO_LINE:
                s[PHASE] = FORCED
            else:
                ends_turn = True
    check_victory(b, s)
    if s[PHASE] == OVER:
        note_lost_seats(b, s)
        s[PAYMENT] = 0
    elif ends_turn:
        _end_turn(b, s)
