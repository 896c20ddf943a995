"""How a game ends and who comes where (RR-CANON-R170 to R178)."""

from __future__ import annotations

from ringrift_pipeline.game.bits import count_trailing_zeros
from ringrift_pipeline.game.cells import has_rings, stacks_on_board
from ringrift_pipeline.game.compile import inner_kernel, kernel
from ringrift_pipeline.game.layout import (
    B_PLAYERS,
    B_RING_THRESHOLD,
    B_TERRITORY_MINIMUM,
    BY_EARLY_LPS,
    BY_LPS,
    BY_RINGS,
    BY_STALEMATE_LAST_MOVER,
    BY_STALEMATE_TERRITORY,
    BY_TERRITORY,
    COUNT,
    ELIMINATED,
    HAND,
    LAST_MOVER,
    LOST_TURN,
    LPS_ACTED,
    LPS_ANCHOR,
    LPS_COUNT,
    LPS_HOLDER,
    MARKER,
    MUST_MOVE,
    OVER,
    PHASE,
    PLAYER,
    REASON,
    STACK,
    TERRITORY_COUNT,
    TURN,
    WINNER,
)
from ringrift_pipeline.game.movement import has_stack_move
from ringrift_pipeline.game.placement import has_placement

#: Rounds in which the candidate alone had a real action before it wins (R172).
LPS_ROUNDS = 3


@kernel
def has_real_action(b, s, seat):
    """Whether ``seat`` has a placement, a move or a capture in this position (R172)."""
    return has_placement(b, s, seat) or has_stack_move(b, s, seat)


@inner_kernel
def end_game(b, s, winner, reason):
    """Close the game."""
    s[PHASE] = OVER
    s[PLAYER] = -1
    s[WINNER] = winner
    s[REASON] = reason
    s[MUST_MOVE] = -1


@inner_kernel
def _stalemate(b, s):
    """Decide a bare board by R173; hands count but are not converted.

    Only those who tie on one rung go on to the next. On the last one the seat of the last
    recorded move wins if it is among them, else the lowest seat.
    """
    players = b[B_PLAYERS]
    tied = (1 << players) - 1
    for rung in range(3):
        best, leaders = -1, 0
        for seat in range(players):
            if (tied >> seat) & 1 == 0:
                continue
            if rung == 0:
                value = s[TERRITORY_COUNT + seat]
            elif rung == 1:
                value = s[ELIMINATED + seat] + s[HAND + seat]
            else:
                value = s[COUNT + MARKER + seat]
            if value > best:
                best, leaders = value, 0
            if value == best:
                leaders |= 1 << seat
        tied = leaders
        if tied & (tied - 1) == 0:
            end_game(b, s, count_trailing_zeros(tied), BY_STALEMATE_TERRITORY + rung)
            return
    last = s[LAST_MOVER]
    if last < 0 or (tied >> last) & 1 == 0:
        last = count_trailing_zeros(tied)
    end_game(b, s, last, BY_STALEMATE_LAST_MOVER)


@inner_kernel
def note_lost_seats(b, s):
    """Note the turn in which a seat lost its last ring (R175)."""
    for seat in range(b[B_PLAYERS]):
        if s[LOST_TURN + seat] == 0 and not has_rings(s, seat):
            s[LOST_TURN + seat] = s[TURN]


@inner_kernel
def check_victory(b, s):
    """End the game if the last move decided it; looked at after every move."""
    players = b[B_PLAYERS]
    all_territory = 0
    controlling = 0
    alive = 0
    last_controlling = -1
    for seat in range(players):
        if s[ELIMINATED + seat] >= b[B_RING_THRESHOLD]:
            end_game(b, s, seat, BY_RINGS)
            return
        all_territory += s[TERRITORY_COUNT + seat]
        if s[COUNT + STACK + seat] > 0:
            controlling += 1
            last_controlling = seat
        if has_rings(s, seat):
            alive += 1
    for seat in range(players):
        own = s[TERRITORY_COUNT + seat]
        if own >= b[B_TERRITORY_MINIMUM] and 2 * own > all_territory:
            end_game(b, s, seat, BY_TERRITORY)
            return
    if controlling == 1 and alive == 1:
        end_game(b, s, last_controlling, BY_EARLY_LPS)
        return
    if stacks_on_board(b, s) == 0:
        for seat in range(players):
            if has_placement(b, s, seat):
                return
        _stalemate(b, s)


@inner_kernel
def enter_turn(b, s, seat):
    """Keep the last-player-standing rounds as ``seat`` enters its turn (R172).

    Returns whether that ends the game.
    """
    players = b[B_PLAYERS]
    if s[LPS_ANCHOR] == -1:
        s[LPS_ANCHOR] = seat
        s[LPS_ACTED] = 0
    elif seat == s[LPS_ANCHOR]:
        alone, acting = -1, 0
        for other in range(players):
            if (s[LPS_ACTED] >> other) & 1 and has_rings(s, other):
                alone = other
                acting += 1
        if acting == 1:
            s[LPS_COUNT] = s[LPS_COUNT] + 1 if s[LPS_HOLDER] == alone else 1
            s[LPS_HOLDER] = alone
        else:
            s[LPS_HOLDER] = -1
            s[LPS_COUNT] = 0
        s[LPS_ACTED] = 0
    elif not has_rings(s, s[LPS_ANCHOR]):
        s[LPS_ANCHOR] = seat
        s[LPS_ACTED] = 0
        if s[LPS_HOLDER] != -1 and not has_rings(s, s[LPS_HOLDER]):
            s[LPS_HOLDER] = -1
            s[LPS_COUNT] = 0
    real = has_real_action(b, s, seat)
    if real and s[LPS_HOLDER] == seat and s[LPS_COUNT] >= LPS_ROUNDS:
        rival = False
        for other in range(players):
            if other != seat and has_rings(s, other) and has_real_action(b, s, other):
                rival = True
        if not rival:
            end_game(b, s, seat, BY_LPS)
            return True
    if real:
        s[LPS_ACTED] |= 1 << seat
    return False


@kernel
def ranking_points(b, s, out):
    """Share of the win of each seat of a finished game, float64 (players,), summing to 1."""
    for seat in range(b[B_PLAYERS]):
        out[seat] = 1.0 if s[WINNER] == seat else 0.0
