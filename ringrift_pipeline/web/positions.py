"""Games as the page sends them, replayed by the rules, and positions as the page shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ringrift_pipeline.drawing import area_of, board_svg, describe, path_of
from ringrift_pipeline.game import IllegalMoveError, Move, State, get_rules, new_game
from ringrift_pipeline.web.errors import RequestError

MOST_MOVES = 20_000  # of a game; the longest random one on the largest board has some 1,400


@dataclass(frozen=True)
class Played:
    """One move of a game, in the position before it; ``forced`` if it was the only one."""

    before: State
    code: int
    forced: bool

    @property
    def move(self) -> Move:
        """The move that was played."""
        return next(move for move in self.before.legal_moves() if move.code == self.code)

    def to_dict(self) -> dict[str, Any]:
        """``seat``, ``text`` and ``forced``, as the page shows a move."""
        text = describe(self.move.to_record())
        return {"seat": self.before.current_player, "text": text, "forced": self.forced}


class Game:
    """A game from a position on: ``plies`` are the moves made, ``state`` the position reached."""

    def __init__(self, start: State) -> None:
        self.state = start
        self.plies: list[Played] = []

    @property
    def last(self) -> dict[str, Any] | None:
        """Record of the newest move that touched a cell, None before there is one."""
        records = (played.move.to_record() for played in reversed(self.plies))
        return next((move for move in records if path_of(move) or area_of(move)), None)

    def play(self, code: int) -> None:
        """Play a packed move. Raises IllegalMoveError."""
        before = self.state
        self.state = before.apply_code(code)
        self.plies.append(Played(before, code, len(before.legal_codes()) == 1))

    def play_forced(self, most: int = MOST_MOVES) -> None:
        """Play on while there is one legal move only, until the game has ``most`` plies."""
        while len(self.plies) < most and len(codes := self.state.legal_codes()) == 1:
            self.play(codes[0])


def read_game(body: dict[str, Any]) -> Game:
    """The game of a request: its ``config``, ``swap_rule`` and ``moves`` (packed, oldest first).

    Raises RequestError naming the field that is wrong: an unknown config, the pie rule where there
    is none, a move that is not legal where it stands.
    """
    swap_rule, moves = body.get("swap_rule", False), body.get("moves", [])
    if not isinstance(swap_rule, bool):
        raise RequestError("swap_rule must be true or false", "swap_rule")
    if not isinstance(moves, list) or len(moves) > MOST_MOVES:
        raise RequestError(f"moves must be a list of at most {MOST_MOVES} packed moves", "moves")
    try:
        config = get_rules(text_of(body, "config")).config
    except ValueError as error:
        raise RequestError(str(error), "config") from None
    try:
        game = Game(new_game(config, swap_rule))
    except ValueError as error:
        raise RequestError(str(error), "swap_rule") from None
    for ply, code in enumerate(moves):
        if type(code) is not int:
            raise RequestError(f"moves[{ply}] must be a packed move, a whole number", "moves")
        try:
            game.play(code)
        except IllegalMoveError as error:
            raise RequestError(f"moves[{ply}]: {error}", "moves") from None
    return game


def text_of(body: dict[str, Any], field: str) -> str:
    """A text of a request. Raises RequestError if it is missing or none."""
    value = body.get(field)
    if not isinstance(value, str):
        raise RequestError(f"{field} must be a text", field)
    return value


def whole_number(body: dict[str, Any], field: str, default: int, low: int, high: int) -> int:
    """A whole number of a request, within bounds. Raises RequestError."""
    value = body.get(field, default)
    if type(value) is not int or not low <= value <= high:
        raise RequestError(f"{field} must be a whole number from {low} to {high}", field)
    return value


def show(
    state: State, last: dict[str, Any] | None, shares: Sequence[tuple[Move, float]] = ()
) -> dict[str, Any]:
    """A position as the page shows it, without its legal moves: standing, cells and picture.

    ``last`` is the record of the move that led here; ``shares`` are moves with their share of a
    policy. Both are drawn on the board.
    """
    record = state.to_record()
    resume = record.pop("resume")
    svg = board_svg(
        state.config,
        record,
        last_move=last,
        shares=[(move.to_record(), share) for move, share in shares],
    )
    return {
        **record,
        "config": state.config,
        "ply": resume["ply"],
        "swapped": bool(resume["swapped"]),
        "reason": state.reason,
        "ranking": state.ranking() if state.is_terminal else None,
        "rings_to_win": state.rules.ring_threshold,
        "territory_to_win": state.rules.territory_minimum,
        "svg": svg,
    }


def show_game(game: Game, since: int) -> dict[str, Any]:
    """A game as the page shows it: all packed moves, those since a ply in words, the position
    reached, its legal moves in words and cells.
    """
    legal = []
    for move in game.state.legal_moves():
        record = move.to_record()
        cells = {"path": path_of(record), "area": area_of(record)}
        legal.append({"code": move.code, "text": describe(record), **cells})
    return {
        "moves": [played.code for played in game.plies],
        "played": [played.to_dict() for played in game.plies[since:]],
        "position": show(game.state, game.last),
        "legal": legal,
    }
