"""Positions written by hand, and short ways to look at them and to play on from them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ringrift_pipeline.game import State, get_rules, kernels
from ringrift_pipeline.game.layout import PHASE_NAMES

QUIET = {"no_line_action", "no_territory_action", "no_placement_action", "no_movement_action"}


def position(
    config: str,
    stacks: dict[str, str] | None = None,
    markers: dict[str, int] | None = None,
    collapsed: dict[str, int] | None = None,
    *,
    phase: str = "movement",
    player: int = 1,
    hand: tuple[int, ...] | None = None,
    eliminated: tuple[int, ...] | None = None,
    must_move: str | None = None,
    pending: bool = False,
    **resume: Any,
) -> State:
    """A state through ``State.from_record``.

    ``stacks`` are rings bottom to top, one digit a ring. Without ``hand`` every ring that is not
    on the board is in its owner's hand; with it, the rings left over are credited as eliminated,
    spread evenly, unless ``eliminated`` says otherwise. ``resume`` overrides what the trace form
    hides; the default is a late turn in which nothing has happened yet (``changed`` from the
    line phase on).
    """
    rules = get_rules(config)
    stacks, markers, collapsed = stacks or {}, markers or {}, collapsed or {}
    seats = range(1, rules.players + 1)
    on_board = [sum(rings.count(str(seat)) for rings in stacks.values()) for seat in seats]
    if hand is None:
        lost = sum(eliminated or ())
        hand = tuple(
            rules.rings_per_player - on_board[i] - (lost if i == rules.players - 1 else 0)
            for i in range(rules.players)
        )
    rest = rules.rings_per_player * rules.players - sum(on_board) - sum(hand)
    if eliminated is None:
        share, extra = divmod(rest, rules.players)
        eliminated = tuple(share + (i < extra) for i in range(rules.players))
    assert sum(eliminated) == rest, f"{rest} rings must be eliminated"
    past = phase not in ("ring_placement", "movement")
    hidden = {
        "config": config,
        "swap_rule": False,
        "payment": 0,
        "changed": int(past and phase != "forced_elimination"),
        "recovery": 0,
        "ply": 50,
        "turn": 10,
        "last_mover": player - 1,
        "swapped": 0,
        "lps_anchor": 0,
        "lps_holder": -1,
        "lps_count": 0,
        "lps_acted": 0,
        "reason": 0,
        "lost_turn": [0] * rules.players,
    }
    unknown = set(resume) - set(hidden)
    assert not unknown, f"no such resume fields: {unknown}"
    return State.from_record(
        {
            "stacks": stacks,
            "markers": markers,
            "collapsed": collapsed,
            "hand": list(hand),
            "eliminated": list(eliminated),
            "territory": [list(collapsed.values()).count(seat) for seat in seats],
            "phase": phase,
            "player": player,
            "status": "active",
            "winner": None,
            "must_move": must_move,
            "pending_elimination": pending,
            "resume": {**hidden, **resume},
        }
    )


def moves(state: State, kind: str | None = None) -> list[dict[str, Any]]:
    """Records of the legal moves, of one type if given, without their type then."""
    records = [move.to_record() for move in state.legal_moves()]
    if kind is None:
        return records
    return [
        {k: v for k, v in record.items() if k != "type"}
        for record in records
        if record["type"] == kind
    ]


def types(state: State) -> list[str]:
    """Types of the legal moves, each once, sorted."""
    return sorted({move.type for move in state.legal_moves()})


def targets(state: State, kind: str, key: str = "to") -> list[str]:
    """One field of the legal moves of a type, sorted."""
    return sorted(record[key] for record in moves(state, kind))


def play(state: State, kind: str, **fields: Any) -> State:
    """Play the move with this type and these fields (``source`` stands for ``from``)."""
    if "source" in fields:
        fields["from"] = fields.pop("source")
    return state.apply(state.find_move({"type": kind, **fields}))


def board(state: State) -> tuple[dict[str, str], dict[str, int], dict[str, int]]:
    """Stacks, markers and collapsed cells."""
    record = state.to_record()
    return record["stacks"], record["markers"], record["collapsed"]


def pass_quietly(state: State) -> State:
    """Play bookkeeping moves as long as they are the only legal ones."""
    while not state.is_terminal:
        legal = state.legal_moves()
        if len(legal) > 1 or legal[0].type not in QUIET:
            break
        state = state.apply(legal[0])
    return state


def random_states(config: str, seed: int, every: int = 1, swap_rule: bool = False) -> list[State]:
    """States of one uniformly random game, made by the kernels: every n-th ply and the last."""
    rules = get_rules(config)
    rng = np.array([seed], dtype=np.uint64)
    out = np.empty(rules.max_moves, dtype=np.int64)
    row = np.zeros(rules.state_size, dtype=np.int64)
    kernels.initial_state(rules.constants, row, int(swap_rule))
    states = []
    ply = 0
    while True:
        count = kernels.legal_moves(rules.constants, row, out)
        if count == 0 or ply % every == 0:
            states.append(State.from_array(config, row))
        if count == 0:
            return states
        kernels.apply_move(rules.constants, row, out[kernels.random_below(rng, count)])
        ply += 1


def phase_of(row: np.ndarray) -> str:
    """Name of the phase of a state row."""
    return PHASE_NAMES[int(row[1])]
