"""Between state rows or packed moves and the records of the trace format."""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np

from ringrift_pipeline.game import layout
from ringrift_pipeline.game.bits import SCRATCH_ROWS
from ringrift_pipeline.game.board import Rules, get_rules
from ringrift_pipeline.game.cells import put
from ringrift_pipeline.game.compile import kernel
from ringrift_pipeline.game.errors import RecordError
from ringrift_pipeline.game.territory import region_rows
from ringrift_pipeline.game.turn import initial_state, legal_moves

KIND_NAMES = (
    "place_ring",
    "skip_placement",
    "skip_capture",
    "skip_territory_processing",
    "skip_recovery",
    "swap_sides",
    "no_placement_action",
    "no_movement_action",
    "no_line_action",
    "no_territory_action",
    "move_stack",
    "overtaking_capture",
    "continue_capture_segment",
    "process_line",
    "choose_line_option",
    "choose_line_option",
    "choose_territory_option",
    "eliminate_rings_from_stack",
    "forced_elimination",
    "recovery_slide",
    "recovery_slide",
    "recovery_slide",
)
_MODES = {
    layout.RECOVERY_LINE: "line",
    layout.RECOVERY_FALLBACK: "fallback",
    layout.RECOVERY_STRIKE: "stack_strike",
}
#: Kinds of move whose record depends on the position.
_POSITIONAL = frozenset({layout.CHOOSE_TERRITORY, layout.RECOVERY_LINE})
#: Header fields that the trace form hides and ``resume`` carries, by name.
_HIDDEN = {
    "payment": layout.PAYMENT,
    "changed": layout.CHANGED,
    "recovery": layout.RECOVERY,
    "ply": layout.PLY,
    "turn": layout.TURN,
    "last_mover": layout.LAST_MOVER,
    "swapped": layout.SWAPPED,
    "lps_anchor": layout.LPS_ANCHOR,
    "lps_holder": layout.LPS_HOLDER,
    "lps_count": layout.LPS_COUNT,
    "lps_acted": layout.LPS_ACTED,
    "reason": layout.REASON,
}


#: Identity of a move: its fields as pairs, lists of cells as sorted tuples.
MoveKey = frozenset[tuple[str, Any]]


def move_key(record: dict[str, Any]) -> MoveKey:
    """Hashable identity of a move record; the order of its fields and cells does not matter.

    Raises:
        TypeError: a field holds something that no move record holds.
    """
    try:
        return frozenset(record.items())
    except TypeError:
        return frozenset(
            (key, tuple(sorted(value)) if isinstance(value, list) else value)
            for key, value in record.items()
        )


@functools.lru_cache(maxsize=1 << 16)
def _lasting_key(rules: Rules, move: int) -> MoveKey:
    return move_key(move_to_record(rules, rules.constants, move))


def key_of_move(rules: Rules, row: np.ndarray, move: int) -> MoveKey:
    """:func:`move_key` of a packed legal move of the position ``row``."""
    if move & layout.KIND_MASK in _POSITIONAL:
        return move_key(move_to_record(rules, row, move))
    return _lasting_key(rules, move)


def line_cells(rules: Rules, first: int, last: int) -> list[int]:
    """Padded cells of the straight line from ``first`` to ``last``, both included."""
    stride = int(rules.constants[layout.B_STRIDE])
    rows, columns = last // stride - first // stride, last % stride - first % stride
    length = max(abs(rows), abs(columns))
    step = (rows // length) * stride + columns // length if length else 0
    return [first + i * step for i in range(length + 1)]


def region_cells(rules: Rules, row: np.ndarray, move: int) -> list[int]:
    """Padded cells of the region that a ``choose_territory_option`` of this position takes."""
    region = np.zeros(SCRATCH_ROWS, dtype=np.int64)
    region_rows(rules.constants, row, (move >> 5) & 1023, (move >> 35) & 1023, region)
    stride = int(rules.constants[layout.B_STRIDE])
    inside = (region[rules.cells // stride] >> (rules.cells % stride)) & 1
    cells: list[int] = rules.cells[inside == 1].tolist()
    return cells


def move_to_record(rules: Rules, row: np.ndarray, move: int) -> dict[str, Any]:
    """The record of a packed legal move of the position ``row`` (fields as in the trace format)."""
    kind = move & layout.KIND_MASK
    a, b, c, d = ((move >> shift) & 1023 for shift in (5, 15, 25, 35))
    names = rules.names
    record: dict[str, Any] = {"type": KIND_NAMES[kind]}

    def named(cells: list[int]) -> list[str]:
        return sorted(names[cell] for cell in cells)

    if kind == layout.PLACE_RING:
        record.update({"to": names[a], "count": d})
    elif kind == layout.MOVE_STACK:
        record.update({"from": names[a], "to": names[b]})
    elif kind in (layout.OVERTAKING_CAPTURE, layout.CONTINUE_CAPTURE):
        record.update({"from": names[a], "target": names[b], "to": names[c]})
    elif kind == layout.PROCESS_LINE:
        record["line"] = named(line_cells(rules, a, b))
    elif kind in (layout.CHOOSE_LINE_ALL, layout.CHOOSE_LINE_WINDOW):
        line = line_cells(rules, a, b)
        chosen = line if kind == layout.CHOOSE_LINE_ALL else line_cells(rules, c, d)
        record.update({"line": named(line), "collapse": named(chosen)})
    elif kind == layout.CHOOSE_TERRITORY:
        record["region"] = named(region_cells(rules, row, move))
    elif kind in (layout.ELIMINATE_RINGS, layout.FORCED_ELIMINATION):
        record["to"] = names[a]
    elif kind in _MODES:
        record.update({"from": names[a], "to": names[b], "mode": _MODES[kind]})
        if c:
            record["extract"] = names[c]
        else:
            record["collapse"] = named(_free_window(rules, row, a, b, d))
    return record


def _free_window(rules: Rules, row: np.ndarray, start: int, to: int, first: int) -> list[int]:
    """Cells of the free window that begins at ``first`` and holds the slide's destination."""
    constants = rules.constants
    length = int(constants[layout.B_LINE_LENGTH])
    marker = layout.MARKER + int(row[layout.PLAYER])
    for axis in range(int(constants[layout.B_NUM_AXES])):
        step = int(constants[layout.B_AXES + axis])
        cells = [first + i * step for i in range(length)]
        if to in cells and all(
            cell == to or (row[layout.HEADER + cell] == marker and cell != start) for cell in cells
        ):
            return cells
    raise AssertionError("a free window does not hold its destination")


@functools.lru_cache(maxsize=1 << 14)
def _rings_text(code: int) -> str:
    """Rings of a stack's cell code, bottom to top, one digit a ring."""
    tall, rings = (code >> 4) & 63, code >> 10
    return "".join("1234"[(rings >> (2 * i)) & 3] for i in range(tall - 1, -1, -1))


def state_to_record(rules: Rules, row: np.ndarray) -> dict[str, Any]:
    """The trace format's state record of a row, with ``resume`` added."""
    stacks: dict[str, str] = {}
    markers: dict[str, int] = {}
    collapsed: dict[str, int] = {}
    codes = row[layout.HEADER + rules.cells]
    taken = codes.nonzero()[0]
    for cell, code in zip(rules.cells[taken].tolist(), codes[taken].tolist(), strict=True):
        cell_class = code & 15
        name = rules.names[cell]
        if cell_class >= layout.STACK:
            stacks[name] = _rings_text(code)
        elif cell_class >= layout.COLLAPSED:
            collapsed[name] = cell_class - layout.COLLAPSED + 1
        else:
            markers[name] = cell_class - layout.MARKER + 1
    head = row[: layout.HEADER].tolist()
    over = head[layout.PHASE] == layout.OVER

    def seats(field: int) -> list[int]:
        return head[field : field + rules.players]

    return {
        "stacks": stacks,
        "markers": markers,
        "collapsed": collapsed,
        "hand": seats(layout.HAND),
        "eliminated": seats(layout.ELIMINATED),
        "territory": seats(layout.TERRITORY_COUNT),
        "phase": layout.PHASE_NAMES[head[layout.PHASE]],
        "player": None if over else head[layout.PLAYER] + 1,
        "status": "completed" if over else "active",
        "winner": head[layout.WINNER] + 1 if over else None,
        "must_move": rules.names[head[layout.MUST_MOVE]] if head[layout.MUST_MOVE] >= 0 else None,
        "pending_elimination": bool(head[layout.PENDING]),
        "resume": {
            "config": rules.config,
            "swap_rule": bool(head[layout.SWAP_RULE]),
            **{name: head[field] for name, field in _HIDDEN.items()},
            "lost_turn": seats(layout.LOST_TURN),
        },
    }


#: Counts above this are nonsense, and would not fit a row.
_LARGEST = 1 << 40


def _need(record: dict[str, Any], key: str, kind: type | tuple[type, ...], where: str) -> Any:
    if key not in record:
        raise RecordError(f"{where}: field {key!r} is missing")
    value = record[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise RecordError(f"{where}: field {key!r} has the wrong type ({value!r})")
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise RecordError(f"{where}.{key}: {value} is out of range")
    return value


def _cell(rules: Rules, name: Any, where: str) -> int:
    cell = rules.cell_of.get(name) if isinstance(name, str) else None
    if cell is None:
        raise RecordError(f"{where}: {name!r} is not a cell of {rules.board}")
    return cell


def _seat(rules: Rules, value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= rules.players:
        raise RecordError(f"{where}: {value!r} is not a seat from 1 to {rules.players}")
    return value - 1


@kernel
def _write(b, s, cell, code):
    """:func:`put` for calls from Python."""
    put(b, s, cell, code)


def _read_cells(rules: Rules, row: np.ndarray, record: dict[str, Any]) -> None:
    """Write stacks, markers and collapsed cells of a record into a fresh row."""
    b = rules.constants
    seen: set[int] = set()

    def claim(name: Any, field: str) -> int:
        cell = _cell(rules, name, f"state.{field}")
        if cell in seen:
            raise RecordError(f"state.{field}: cell {name} is used twice (RR-CANON-R021)")
        seen.add(cell)
        return cell

    for field, base in (("markers", layout.MARKER), ("collapsed", layout.COLLAPSED)):
        for name, value in _need(record, field, dict, "state").items():
            _write(b, row, claim(name, field), base + _seat(rules, value, f"state.{field}[{name}]"))
    for name, text in _need(record, "stacks", dict, "state").items():
        cell = claim(name, "stacks")
        if not isinstance(text, str) or not re.fullmatch("[1-4]{1,27}", text):
            raise RecordError(f"state.stacks[{name}]: {text!r} is not a stack of 1 to 27 rings")
        rings = 0
        for digit in text:
            seat = _seat(rules, int(digit), f"state.stacks[{name}]")
            rings = (rings << 2) | seat
            row[layout.ON_BOARD + seat] += 1
        code = (layout.STACK + (rings & 3)) | (len(text) << 4) | (rings << 10)
        _write(b, row, cell, code)


def _read_seats(rules: Rules, record: dict[str, Any], key: str, where: str) -> list[int]:
    values = _need(record, key, list, where)
    ok = len(values) == rules.players and all(
        isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= _LARGEST for v in values
    )
    if not ok:
        raise RecordError(f"{where}.{key}: {values!r} is not {rules.players} counts")
    return values


def state_from_record(record: Any) -> tuple[Rules, np.ndarray]:
    """Read a state record with ``resume``; everything is checked.

    Raises:
        RecordError: naming the field and what is wrong with it.
    """
    if not isinstance(record, dict):
        raise RecordError(f"a state record is an object, not {type(record).__name__}")
    if "resume" not in record:
        raise RecordError(
            "state: field 'resume' is missing; the trace form hides what the rules need, "
            "so replay a trace from its first ply instead"
        )
    resume = _need(record, "resume", dict, "state")
    try:
        rules = get_rules(_need(resume, "config", str, "state.resume"))
    except ValueError as error:
        raise RecordError(f"state.resume.config: {error}") from None
    row = np.zeros(rules.state_size, dtype=np.int64)
    initial_state(rules.constants, row, int(_need(resume, "swap_rule", bool, "state.resume")))
    _read_cells(rules, row, record)
    for key, field in (("hand", layout.HAND), ("eliminated", layout.ELIMINATED)):
        for seat, value in enumerate(_read_seats(rules, record, key, "state")):
            row[field + seat] = value
    for seat, value in enumerate(_read_seats(rules, resume, "lost_turn", "state.resume")):
        row[layout.LOST_TURN + seat] = value
    for name, field in _HIDDEN.items():
        row[field] = _need(resume, name, int, "state.resume")
    _read_turn(rules, row, record)
    _check(rules, row, record)
    return rules, row


def _read_turn(rules: Rules, row: np.ndarray, record: dict[str, Any]) -> None:
    phase = _need(record, "phase", str, "state")
    if phase not in layout.PHASE_NAMES:
        raise RecordError(f"state.phase: unknown phase {phase!r}")
    row[layout.PHASE] = layout.PHASE_NAMES.index(phase)
    over = phase == "game_over"
    if _need(record, "status", str, "state") != ("completed" if over else "active"):
        raise RecordError(f"state.status: {record['status']!r} contradicts phase {phase!r}")
    player, winner = record.get("player"), record.get("winner")
    if over:
        if player is not None:
            raise RecordError(f"state.player: a finished game has none, found {player!r}")
        row[layout.PLAYER] = -1
        row[layout.WINNER] = _seat(rules, winner, "state.winner")
    else:
        if winner is not None:
            raise RecordError(f"state.winner: an active game has none, found {winner!r}")
        row[layout.PLAYER] = _seat(rules, player, "state.player")
    must_move = record.get("must_move")
    row[layout.MUST_MOVE] = -1 if must_move is None else _cell(rules, must_move, "state.must_move")
    row[layout.PENDING] = int(_need(record, "pending_elimination", bool, "state"))


def _check(rules: Rules, row: np.ndarray, record: dict[str, Any]) -> None:
    """What must hold between the fields (RR-CANON-R052)."""
    counts = [int(row[layout.TERRITORY_COUNT + seat]) for seat in range(rules.players)]
    if _read_seats(rules, record, "territory", "state") != counts:
        raise RecordError(
            f"state.territory: {record['territory']} but the collapsed cells are {counts}"
        )
    total = sum(
        int(row[field + seat])
        for field in (layout.HAND, layout.ELIMINATED, layout.ON_BOARD)
        for seat in range(rules.players)
    )
    if total != rules.rings_per_player * rules.players:
        raise RecordError(
            f"state: {total} rings in hands, stacks and eliminated, but {rules.config} has "
            f"{rules.rings_per_player * rules.players} (RR-CANON-R052)"
        )
    for seat in range(rules.players):
        own = int(row[layout.HAND + seat] + row[layout.ON_BOARD + seat])
        if own > rules.rings_per_player:
            raise RecordError(f"state: seat {seat + 1} owns {own} rings in play (RR-CANON-R020)")
    phase, must = int(row[layout.PHASE]), int(row[layout.MUST_MOVE])
    mover = int(row[layout.PLAYER])
    if phase in (layout.CAPTURE, layout.CHAIN) and must < 0:
        raise RecordError(f"state.must_move: phase {record['phase']} needs the moving stack")
    if must >= 0 and (
        phase not in (layout.MOVEMENT, layout.CAPTURE, layout.CHAIN)
        or int(row[layout.HEADER + must]) & 15 != layout.STACK + mover
    ):
        raise RecordError(f"state.must_move: no stack of seat {mover + 1} on {record['must_move']}")
    ranges = {
        "lps_anchor": (-1, rules.players - 1),
        "lps_holder": (-1, rules.players - 1),
        "last_mover": (-1, rules.players - 1),
        "lps_acted": (0, (1 << rules.players) - 1),
        "reason": (0, len(layout.REASON_NAMES) - 1),
    }
    flags = ("payment", "changed", "recovery", "swapped")
    for name, field in _HIDDEN.items():
        low, high = (0, 1) if name in flags else ranges.get(name, (0, 1 << 40))
        if not low <= row[field] <= high:
            raise RecordError(f"state.resume.{name}: {int(row[field])} is not in {low}..{high}")
    _check_phase(rules, row, record)


def _check_phase(rules: Rules, row: np.ndarray, record: dict[str, Any]) -> None:
    """What must hold between the phase and what is due in it."""
    phase, name = int(row[layout.PHASE]), record["phase"]
    over = phase == layout.OVER
    if over != (row[layout.REASON] > 0):
        raise RecordError(f"state.resume.reason: {int(row[layout.REASON])} contradicts {name}")
    if row[layout.PENDING] and phase not in (layout.LINES, layout.OVER):
        raise RecordError(f"state.pending_elimination: no line payment can be due in {name}")
    if row[layout.PAYMENT] and phase != layout.TERRITORY:
        raise RecordError(f"state.resume.payment: no territory payment can be due in {name}")
    if row[layout.RECOVERY] and phase not in (layout.LINES, layout.TERRITORY, layout.OVER):
        raise RecordError(f"state.resume.recovery: a turn in {name} has made no recovery slide")
    if row[layout.SWAP_RULE] and rules.players != 2:
        raise RecordError(f"state.resume.swap_rule: {rules.config} has no pie rule")
    if row[layout.SWAPPED] and not row[layout.SWAP_RULE]:
        raise RecordError("state.resume.swapped: the pie rule is off")
    if over:
        return
    try:
        count = legal_moves(rules.constants, row, np.empty(rules.max_moves, dtype=np.int64))
    except OverflowError as error:
        raise RecordError(f"state: {error}") from None
    if count == 0:
        raise RecordError(f"state.phase: seat {record['player']} has no legal move in {name}")
