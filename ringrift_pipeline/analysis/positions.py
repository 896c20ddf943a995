"""From a query's moves to the positions they lead to."""

from __future__ import annotations

from typing import Any

import numpy as np

from ringrift_pipeline.analysis.limits import KEPT_POSITIONS
from ringrift_pipeline.analysis.protocol import AnalysisQuery, QueryError, shown
from ringrift_pipeline.game import (
    CONFIGS,
    IllegalMoveError,
    RecordError,
    State,
    new_game,
)
from ringrift_pipeline.game.records import MoveKey, move_key


class _Node:
    """A position and those already met behind it."""

    __slots__ = ("behind", "row")

    def __init__(self, row: np.ndarray) -> None:
        self.row = row
        self.behind: dict[MoveKey, _Node] = {}


class Positions:
    """Positions by the moves that lead to them.

    Front ends send a game again with every move that is made: what was replayed before is looked
    up. At most ``KEPT_POSITIONS`` and those of one query are kept; then all are forgotten.
    """

    def __init__(self) -> None:
        self._starts: dict[tuple[str, bytes], _Node] = {}
        self.kept = 0

    def clear(self) -> None:
        """Forget all positions."""
        self._starts.clear()
        self.kept = 0

    def of(self, query: AnalysisQuery, config: str) -> tuple[str, list[np.ndarray]]:
        """The query's config (``config`` where it names none) and its positions.

        Position i is a row (S,) int64 after the first i moves; they are shared: do not write.

        Raises:
            QueryError: an unknown config, a start or a move that is wrong; names which.
        """
        start = _start(query, config)
        if self.kept > KEPT_POSITIONS:
            self.clear()
        key = (start.config, start.array.tobytes())
        node = self._starts.get(key)
        if node is None:
            node = self._starts[key] = _Node(np.array(start.array))
            self.kept += 1
        rows = [node.row]
        state: State | None = None  # that of `node`, once it is new: then all behind it are
        for place, record in enumerate(query.moves):
            step = _key_of(record)
            behind = None if step is None else node.behind.get(step)
            if behind is None:
                if state is None:
                    state = State.from_array(start.config, node.row)
                state = _after(state, record, place)
                behind = _Node(np.array(state.array))
                if step is not None:
                    node.behind[step] = behind
                    self.kept += 1
            node = behind
            rows.append(node.row)
        return start.config, rows


def _start(query: AnalysisQuery, config: str) -> State:
    """The position before the first move. Raises QueryError."""
    if query.config is not None and query.config not in CONFIGS:
        raise QueryError(
            "config", f"{shown(query.config)} is not one of the configs {', '.join(CONFIGS)}"
        )
    if query.initial_state is None:
        try:
            return new_game(query.config or config, swap_rule=bool(query.swap_rule))
        except ValueError as error:
            raise QueryError("swapRule", str(error)) from None
    try:
        state = State.from_record(query.initial_state)
    except RecordError as error:
        place, _, reason = str(error).partition(": ")
        if not reason or not place.startswith("state"):
            raise QueryError("initialState", _cut(str(error))) from None
        raise QueryError("initialState" + place.removeprefix("state"), _cut(reason)) from None
    if query.config is not None and query.config != state.config:
        raise QueryError("config", f"initialState is a position of {state.config}")
    told = query.initial_state["resume"]["swap_rule"]
    if query.swap_rule is not None and query.swap_rule != told:
        raise QueryError("swapRule", f"initialState has swap_rule {str(told).lower()}")
    return state


def _after(state: State, record: dict[str, Any], place: int) -> State:
    try:
        return state.apply(state.find_move(record))
    except IllegalMoveError as error:
        raise QueryError(
            f"moves[{place}]",
            f"illegal move in phase {error.phase}: {_cut(error.reason)} ({shown(record)})",
        ) from None


def _key_of(record: dict[str, Any]) -> MoveKey | None:
    """Identity of a move, None for what is none."""
    try:
        key = move_key(record)
        hash(key)
    except TypeError:
        return None
    return key


def _cut(text: str) -> str:
    """A message that may repeat what it was given, cut short."""
    return text if len(text) <= 500 else text[:499] + "…"
