"""The object API on top of the kernels: for people, tests and the UI."""

from __future__ import annotations

from typing import Any

import numpy as np

from ringrift_pipeline.game import layout, records
from ringrift_pipeline.game.board import Rules, get_rules
from ringrift_pipeline.game.compile import announced
from ringrift_pipeline.game.errors import IllegalMoveError, RecordError
from ringrift_pipeline.game.records import MoveKey, move_key
from ringrift_pipeline.game.turn import apply_move, initial_state, legal_moves


class Move:
    """One legal move of one position.

    Attributes:
        code: the packed move (int64, see ``layout``).
    """

    __slots__ = ("_key", "_record", "_row", "_rules", "code")

    def __init__(self, rules: Rules, row: np.ndarray, code: int) -> None:
        self._rules = rules
        self._row = row
        self._record: dict[str, Any] | None = None
        self._key: MoveKey | None = None
        self.code = code

    @property
    def type(self) -> str:
        """The move's type as in the trace format, ``place_ring`` ..."""
        return records.KIND_NAMES[self.code & layout.KIND_MASK]

    def to_record(self) -> dict[str, Any]:
        """The move's record as in the trace format."""
        if self._record is None:
            self._record = records.move_to_record(self._rules, self._row, self.code)
        return {k: list(v) if isinstance(v, list) else v for k, v in self._record.items()}

    @property
    def key(self) -> MoveKey:
        """Identity of the move as a record, hashable; see :func:`move_key`."""
        if self._key is None:
            self._key = records.key_of_move(self._rules, self._row, self.code)
        return self._key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Move) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        record = self.to_record()
        fields = ", ".join(f"{k}={v}" for k, v in record.items() if k != "type")
        return f"Move({record['type']}{', ' if fields else ''}{fields})"


class State:
    """A position. Immutable: :meth:`apply` returns a new one."""

    __slots__ = ("_legal", "_row", "rules")

    def __init__(self, rules: Rules, row: np.ndarray) -> None:
        self.rules = rules
        # Never written after this; left writable because the kernels are compiled for that.
        self._row = row
        self._legal: list[Move] | None = None

    @classmethod
    def from_array(cls, config: str, row: np.ndarray) -> State:
        """A state from a row of shape (S,), int64; the row is copied.

        Raises:
            ValueError: unknown config or a row of another length.
        """
        rules = get_rules(config)
        row = np.array(row, dtype=np.int64)
        if row.shape != (rules.state_size,):
            raise ValueError(f"a {config} state has shape ({rules.state_size},), got {row.shape}")
        return cls(rules, row)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> State:
        """A state from :meth:`to_record`'s form (``resume`` included).

        Raises:
            RecordError: naming the field and what is wrong with it.
        """
        return cls(*records.state_from_record(record))

    @property
    def config(self) -> str:
        """Name of the config."""
        return self.rules.config

    @property
    def array(self) -> np.ndarray:
        """The int64 (S,) row underneath, as a read-only view."""
        view = self._row.view()
        view.setflags(write=False)
        return view

    @property
    def current_player(self) -> int | None:
        """Seat to move, from 1; None when the game is over."""
        return None if self.is_terminal else int(self._row[layout.PLAYER]) + 1

    @property
    def phase(self) -> str:
        """Phase of the turn (RR-CANON-R070), ``game_over`` at the end."""
        return layout.PHASE_NAMES[int(self._row[layout.PHASE])]

    @property
    def is_terminal(self) -> bool:
        """Whether the game is over."""
        return int(self._row[layout.PHASE]) == layout.OVER

    @property
    def winner(self) -> int | None:
        """Seat that won, from 1, or None."""
        return int(self._row[layout.WINNER]) + 1 if self.is_terminal else None

    @property
    def reason(self) -> str | None:
        """How the game ended, or None."""
        return layout.REASON_NAMES[int(self._row[layout.REASON])] if self.is_terminal else None

    def legal_moves(self) -> list[Move]:
        """Every legal move, in a fixed order; empty only when the game is over."""
        if self._legal is None:
            self._legal = [Move(self.rules, self._row, code) for code in self.legal_codes()]
        return list(self._legal)

    def legal_codes(self) -> list[int]:
        """The legal moves as packed moves, in the order of :meth:`legal_moves`."""
        buffer = np.empty(self.rules.max_moves, dtype=np.int64)
        with announced("the rules", "game", "legal_moves"):
            n = legal_moves(self.rules.constants, self._row, buffer)
        codes: list[int] = buffer[:n].tolist()
        return codes

    def legal_keys(self) -> dict[MoveKey, int]:
        """The legal moves by their identity, packed."""
        return {records.key_of_move(self.rules, self._row, c): c for c in self.legal_codes()}

    def find_move(self, record: Any) -> Move:
        """The legal move with this record.

        Raises:
            IllegalMoveError: no such move here; the message says why.
        """
        if not isinstance(record, dict) or not isinstance(record.get("type"), str):
            raise IllegalMoveError(record, self.phase, "not a move record with a 'type'")
        try:
            key = move_key(record)
            hash(key)
        except TypeError:
            raise IllegalMoveError(record, self.phase, "malformed fields") from None
        moves = self.legal_moves()
        for move in moves:
            if move.key == key:
                return move
        raise IllegalMoveError(record, self.phase, self._why_not(record["type"], moves))

    def _why_not(self, kind: str, moves: list[Move]) -> str:
        if self.is_terminal:
            return "the game is over"
        if kind not in records.KIND_NAMES:
            return f"there is no move type {kind!r}"
        offered = sorted({move.type for move in moves})
        if kind not in offered:
            return f"seat {self.current_player} may only choose from {', '.join(offered)}"
        same = sum(move.type == kind for move in moves)
        return f"it is not among the {same} legal moves of that type"

    def apply(self, move: Move) -> State:
        """The position after ``move``; this one stays as it is.

        Raises:
            IllegalMoveError: the move is not legal here.
        """
        if self._legal is None or not any(own is move for own in self._legal):
            record = move.to_record() if isinstance(move, Move) else move
            move = self.find_move(record)
        return self._after(move.code)

    def apply_code(self, code: int) -> State:
        """The position after a packed move, one of :meth:`legal_codes`.

        Raises:
            IllegalMoveError: the move is not legal here.
        """
        if code not in self.legal_codes():
            why = "the game is over" if self.is_terminal else "no legal move is packed so"
            raise IllegalMoveError(code, self.phase, why)
        return self._after(code)

    def _after(self, code: int) -> State:
        row = self._row.copy()
        apply_move(self.rules.constants, row, code)
        return State(self.rules, row)

    def ranking(self) -> list[list[int]]:
        """Groups of tied seats (from 1), best first (RR-CANON-R175 to R178).

        The winner stands alone at the top; the others follow by territory, eliminated rings,
        markers and the turn in which they lost their last ring. After a stalemate, rings in hand
        count as eliminated. Before the end it is the ranking as the position stands.
        """
        row, players = self._row, self.rules.players
        stalemate = row[layout.REASON] >= layout.BY_STALEMATE_TERRITORY

        def score(seat: int) -> tuple[int, ...]:
            lost = int(row[layout.LOST_TURN + seat])
            return (
                int(row[layout.TERRITORY_COUNT + seat]),
                int(row[layout.ELIMINATED + seat])
                + (int(row[layout.HAND + seat]) if stalemate else 0),
                int(row[layout.COUNT + layout.MARKER + seat]),
                1 if lost == 0 else 0,
                lost,
            )

        winner = int(row[layout.WINNER])
        groups: dict[tuple[int, ...], list[int]] = {}
        for seat in range(players):
            if seat != winner:
                groups.setdefault(score(seat), []).append(seat + 1)
        ordered = [groups[key] for key in sorted(groups, reverse=True)]
        return ([[winner + 1]] if winner >= 0 else []) + ordered

    def to_record(self) -> dict[str, Any]:
        """The trace format's state record, with ``resume`` (see :meth:`from_record`)."""
        return records.state_to_record(self.rules, self._row)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, State)
            and self.config == other.config
            and bool(np.array_equal(self._row, other._row))
        )

    def __hash__(self) -> int:
        return hash((self.config, self._row.tobytes()))

    def __repr__(self) -> str:
        return f"State({self.config}, ply {int(self._row[layout.PLY])}, {self.phase}, " + (
            f"won by {self.winner})" if self.is_terminal else f"seat {self.current_player} to move)"
        )


def new_game(config: str, swap_rule: bool = False) -> State:
    """The initial position of a config.

    Args:
        config: one of ``CONFIGS``.
        swap_rule: offer the pie rule to seat 2 (two players only, RR-CANON-R180).

    Raises:
        ValueError: unknown config (the message lists the valid ones), or the pie rule with three
            or four players.
    """
    rules = get_rules(config)
    if swap_rule and rules.players != 2:
        raise ValueError(f"the pie rule is for two players, {config} has {rules.players}")
    row = np.zeros(rules.state_size, dtype=np.int64)
    with announced("the first position", "game", "initial_state"):
        initial_state(rules.constants, row, int(swap_rule))
    return State(rules, row)


__all__ = ["IllegalMoveError", "Move", "RecordError", "State", "move_key", "new_game"]
