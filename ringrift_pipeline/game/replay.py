"""Replaying traces: the same legal moves and the same state at every ply, or the difference.

A file has a game a line (JSON; ``.jsonl``, ``.jsonl.gz``), an object with

* ``format``: "ringrift-trace/1"; ``config``: "square8_2p" and so on; ``swap_rule``: true where seat 2 may
  swap (false where it is missing);
* ``initial``: the state before the first ply, as `State.to_record` gives it;
* ``plies``: a list of objects: ``phase`` and ``player`` (from 1) to move; ``legal``, all legal moves as
  `Move.to_record` gives them, in any order; ``chosen``, the index in it of the move that was played;
  ``after``, the state after it;
* ``winner``, the seat from 1 or null for a draw; ``reason``: how the game ended.

``must_move`` and ``resume`` of a state may be there and are not compared.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ringrift_pipeline.game.errors import RecordError
from ringrift_pipeline.game.records import MoveKey, move_key
from ringrift_pipeline.game.state import State, new_game

FORMAT = "ringrift-trace/1"
LARGEST_LINE = 64 << 20  # characters of a game
#: Informational in the format; not compared.
_IGNORED = ("must_move", "resume")


@dataclass(frozen=True)
class ReplayReport:
    """What a replay found.

    Attributes:
        config: config of the game, "" where it could not be read.
        plies: plies that agreed.
        ply: first ply that differs, or None; -1 is the initial state, ``len(plies)`` the outcome.
        field: what differs there (``legal``, ``phase``, ``after.stacks`` ...), or None.
        detail: expected against found, in words.
    """

    config: str
    plies: int
    ply: int | None = None
    field: str | None = None
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Whether the whole game agreed."""
        return self.ply is None


def _compare(expected: dict[str, Any], state: State) -> tuple[str, str] | None:
    """First field of a state record that differs, with both values."""
    found = state.to_record()
    for field in found:
        if field in _IGNORED:
            continue
        if field not in expected:
            raise RecordError(f"state: field {field!r} is missing")
        if expected[field] != found[field]:
            return field, f"expected {expected[field]!r}, found {found[field]!r}"
    return None


def _compare_moves(expected: list[MoveKey], found: dict[MoveKey, int]) -> str | None:
    """What differs between two sets of legal moves, in words, or None."""
    wanted = set(expected)
    if len(wanted) == len(expected) and wanted == found.keys():
        return None
    missing = [dict(key) for key in expected if key not in found]
    extra = [dict(key) for key in found if key not in wanted]
    return (
        f"{len(expected)} expected ({len(wanted)} different), {len(found)} found; "
        f"missing {missing[:3]}, not expected {extra[:3]}"
    )


def replay_trace(trace: Any) -> ReplayReport:
    """Replay one game and compare every ply.

    Raises:
        RecordError: the trace itself is malformed or truncated.
    """
    if not isinstance(trace, dict):
        raise RecordError(f"a trace is an object, not {type(trace).__name__}")
    if trace.get("format") != FORMAT:
        raise RecordError(f"format is {trace.get('format')!r}, expected {FORMAT!r}")
    for key in ("config", "initial", "plies", "winner", "reason"):
        if key not in trace:
            raise RecordError(f"trace: field {key!r} is missing; is the trace truncated?")
    if not isinstance(trace["config"], str):
        raise RecordError(f"trace.config: {trace['config']!r} is not the name of a config")
    swap_rule = trace.get("swap_rule", False)
    if not isinstance(swap_rule, bool):
        raise RecordError(f"trace.swap_rule: {swap_rule!r} is not true or false")
    try:
        state = new_game(trace["config"], swap_rule=swap_rule)
    except ValueError as error:
        raise RecordError(f"trace.config: {error}") from None
    config, plies = trace["config"], trace["plies"]
    if not isinstance(plies, list):
        raise RecordError("trace.plies is not a list")
    difference = _compare(_object(trace["initial"], "trace.initial"), state)
    if difference:
        return ReplayReport(config, 0, -1, f"initial.{difference[0]}", difference[1])
    for i, ply in enumerate(plies):
        ply = _object(ply, f"ply {i}")
        for key in ("legal", "chosen", "after", "phase", "player"):
            if key not in ply:
                raise RecordError(f"ply {i}: field {key!r} is missing")
        for field, found in (("phase", state.phase), ("player", state.current_player)):
            if ply[field] != found:
                return ReplayReport(
                    config, i, i, field, f"expected {ply[field]!r}, found {found!r}"
                )
        legal = ply["legal"]
        try:
            expected = [move_key(record) for record in legal]
        except (AttributeError, TypeError):
            raise RecordError(f"ply {i}: legal is not a list of moves") from None
        moves = state.legal_keys()
        detail = _compare_moves(expected, moves)
        if detail:
            return ReplayReport(config, i, i, "legal", detail)
        chosen = ply["chosen"]
        if type(chosen) is not int or not 0 <= chosen < len(expected):
            raise RecordError(f"ply {i}: chosen {chosen!r} is not an index into {len(legal)} moves")
        state = state._after(moves[expected[chosen]])
        difference = _compare(_object(ply["after"], f"ply {i}: after"), state)
        if difference:
            return ReplayReport(config, i, i, f"after.{difference[0]}", difference[1])
    if not state.is_terminal:
        raise RecordError(f"the game is not over after {len(plies)} plies: the trace is truncated")
    for field, found in (("winner", state.winner), ("reason", state.reason)):
        if trace[field] != found:
            return ReplayReport(
                config, len(plies), len(plies), field, f"expected {trace[field]!r}, found {found!r}"
            )
    return ReplayReport(config, len(plies))


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RecordError(f"{where} is not an object")
    return value


def read_traces(path: Path | str) -> Iterator[Any]:
    """The games of a ``.jsonl`` or ``.jsonl.gz`` file, one by one.

    Raises:
        RecordError: a line is not JSON or the file is truncated; names the line.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            while line := lines.readline(LARGEST_LINE + 1):
                number += 1
                if len(line) > LARGEST_LINE:
                    raise RecordError(
                        f"{path.name} line {number} has more than {LARGEST_LINE} characters; the "
                        "longest games known take 17 million"
                    )
                if line.strip():
                    try:
                        yield json.loads(line)
                    except (ValueError, RecursionError) as error:
                        raise RecordError(f"{path.name} line {number}: {error}") from None
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
        raise RecordError(f"{path.name} after line {number}: {error}") from None


def replay_file(
    path: Path | str, progress: Callable[[int, ReplayReport], None] | None = None
) -> list[ReplayReport]:
    """Replay every game of a file; ``progress`` gets the number of games done and each report.

    Raises:
        RecordError: the file or a trace in it is malformed; names the game.
    """
    reports = []
    for number, trace in enumerate(read_traces(path), start=1):
        try:
            reports.append(replay_trace(trace))
        except RecordError as error:
            raise RecordError(f"{Path(path).name} game {number}: {error}") from None
        if progress is not None:
            progress(number, reports[-1])
    if not reports:
        raise RecordError(f"{Path(path).name}: no game in the file")
    return reports
