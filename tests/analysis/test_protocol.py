"""Whatever a line holds is answered, with the id and the field that is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ringrift_pipeline.analysis import Roster
from ringrift_pipeline.analysis.limits import MAX_LINE, MAX_MOVES, MAX_NAME, MAX_VISITS
from ringrift_pipeline.game import new_game

from .conftest import CONFIG, Desk, game

PLACE = {"type": "place_ring", "to": "3,3", "count": 1}
SLIDE = {"type": "move_stack", "from": "3,3", "to": "3,6"}


def changed(record: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**record, **fields}


START = new_game(CONFIG).to_record()
FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({"config": "square9_2p"}, "config", "square8_2p, square8_3p"),
    ({"config": 8}, "config", "string, got 8"),
    ({"moves": PLACE}, "moves", "list"),
    ({"moves": [PLACE, 3]}, "moves[1]", "object, got 3"),
    ({"moves": [PLACE] * (MAX_MOVES + 1)}, "moves", str(MAX_MOVES)),
    ({"moves": [{}]}, "moves[0]", "ring_placement"),
    ({"moves": [PLACE, PLACE]}, "moves[1]", "phase movement: seat 1 may only choose from move_st"),
    ({"moves": [PLACE, SLIDE, SLIDE]}, "moves[2]", "phase line_processing"),
    ({"moves": [changed(PLACE, to="9,9")]}, "moves[0]", "not among the 192 legal moves"),
    ({"moves": [changed(PLACE, type="jump")]}, "moves[0]", "no move type 'jump'"),
    ({"moves": [changed(PLACE, to=[{}])]}, "moves[0]", "malformed"),
    ({"moves": [changed(PLACE, to="x" * 5000)]}, "moves[0]", "…"),
    ({"initialState": {}}, "initialState", "resume"),
    ({"initialState": [1]}, "initialState", "object"),
    ({"initialState": changed(START, hand=[18, -1])}, "initialState.hand", "counts"),
    ({"initialState": changed(START, stacks={"3,3": "7"})}, "initialState.stacks[3,3]", "rings"),
    ({"initialState": START, "config": "hex8_2p"}, "config", "position of square8_2p"),
    ({"initialState": START, "swapRule": True}, "swapRule", "false"),
    ({"config": "square8_3p", "swapRule": True}, "swapRule", "two players"),
    ({"swapRule": "yes"}, "swapRule", "boolean"),
    ({"analyzeTurns": []}, "analyzeTurns", "at least 1"),
    ({"analyzeTurns": [1]}, "analyzeTurns[0]", "beyond the 0 moves"),
    ({"moves": [PLACE], "analyzeTurns": [0, 1, 0]}, "analyzeTurns[2]", "twice"),
    ({"analyzeTurns": [-1]}, "analyzeTurns[0]", "greater than or equal to 0"),
    ({"analyzeTurns": [0, True]}, "analyzeTurns[1]", "integer"),
    ({"maxVisits": 0}, "maxVisits", "greater than or equal to 1"),
    ({"maxVisits": MAX_VISITS + 1}, "maxVisits", f"less than or equal to {MAX_VISITS}, got 10001"),
    ({"maxVisits": 10**30}, "maxVisits", f"less than or equal to {MAX_VISITS}"),
    ({"maxVisits": 8.5}, "maxVisits", "integer"),
    ({"player": "nobody"}, "player", "no such path exists"),
    ({"model": "generation:x"}, "player", "must be a number"),
    ({"player": "champion"}, "player", "champion of square8_2p"),
    ({"player": "a\0b"}, "player", "no such path exists"),
    ({"player": "x" * (MAX_NAME + 1)}, "player", str(MAX_NAME)),
    ({"player": "random", "model": "heuristic"}, "model", "differ"),
    ({"includePolicy": 1}, "includePolicy", "boolean"),
    ({"maxMoves": 0}, "maxMoves", "greater than"),
    ({"priority": "high"}, "priority", "integer"),
    ({"priority": 1 << 40}, "priority", "less than"),
    ({"action": "fly"}, "action", "query_version"),
    ({"action": None}, "action", "query_version"),
    ({"action": "terminate"}, "terminateId", "id of the query"),
    ({"action": "terminate", "terminateId": 4}, "terminateId", "string"),
    ({"action": "terminate_all", "turnNumbers": ["a"]}, "turnNumbers[0]", "integer"),
]


@pytest.mark.parametrize(("fault", "field", "words"), FAULTS)
def test_a_fault_is_named_with_id_and_field(
    fault: dict[str, Any], field: str, words: str, tmp_path: Any
) -> None:
    desk = Desk(Roster("heuristic", data=tmp_path))
    desk.send({"id": "it", **fault})
    (told,) = desk.heard()
    assert set(told) == {"id", "error", "field"}
    assert told["id"] == "it" and told["field"] == field
    assert words in told["error"] and len(told["error"]) < 1000
    assert desk.engine.waiting == 0


@pytest.mark.parametrize(
    ("line", "field", "words"),
    [
        (b"nonsense", None, "no JSON"),
        (b'{"id": "a"', None, "no JSON"),
        (b'{"id": "a", "maxVisits": NaN}', None, "NaN"),
        (b'{"id": "a", "maxVisits": ' + b"9" * 5000 + b"}", None, "no JSON"),
        (b'"\xff"', None, "no JSON"),
        (b"[1, 2]", None, "an object, not list"),
        (b"[" * 100_000, None, "nested too deeply"),
        (b" " * MAX_LINE + b"{}", None, f"more than {MAX_LINE} bytes"),
        (b"{}", "id", "id is missing"),
        (b'{"id": 7}', "id", "string, got 7"),
        (b'{"id": null, "action": "query_version"}', "id", "string, got null"),
        (b'{"id": "' + b"a" * (MAX_NAME + 1) + b'"}', "id", "at most 1000"),
    ],
)
def test_a_line_without_a_readable_id_is_answered_without_one(
    line: bytes, field: str | None, words: str, plain: Desk
) -> None:
    plain.send(line)
    (told,) = plain.heard()
    assert "id" not in told and words in told["error"] and len(told["error"]) < 1000
    assert told.get("field") == field
    assert plain.ask()[0]["moveInfos"]  # the engine goes on


def test_unknown_fields_are_named_and_the_rest_is_answered(plain: Desk) -> None:
    told = plain.ask(rules="chinese", komi=7.5)
    assert [(t["id"], t.get("field")) for t in told] == [("q", "rules"), ("q", "komi"), ("q", None)]
    assert "ignored" in told[0]["warning"] and told[2]["moveInfos"]
    many = plain.ask(**{f"odd{i}": i for i in range(500)})
    assert len(many) == 21 and "480 more" in many[19]["warning"]
    (warned, version) = plain.ask(action="query_version", moves=[])
    assert warned["field"] == "moves" and version["version"]
    (told,) = plain.ask(maxVisits=None, config=None, analyzeTurns=None)  # null is as if absent
    assert told["moveInfos"]


def test_blank_lines_are_nothing(plain: Desk) -> None:
    plain.send(b"", b"\n", b"  \r\n")
    assert plain.finish() == []


# --- fuzzing ------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    ["", "a", CONFIG, "hex8_3p", "random", "place_ring", "3,3", "0,0,0", "1", "12", "movement"]
) | st.text(max_size=6)
LEAVES = st.none() | st.booleans() | st.integers(-3, 400) | st.integers() | st.floats() | WORDS
JSONISH = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)
FIELDS = [
    "id", "config", "moves", "initialState", "swapRule", "analyzeTurns", "maxVisits", "player",
    "model", "includePolicy", "maxMoves", "priority", "action", "terminateId", "turnNumbers", "odd",
]  # fmt: skip
MOVES, STATES = game(seed=1)


def edited(draw: Any, value: Any, depth: int = 0) -> Any:
    """The value with one thing inside it, at any depth, replaced, removed or added."""
    if isinstance(value, dict) and value and depth < 6 and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(value)))
        rest = {k: v for k, v in value.items() if k != key}
        how = draw(st.integers(0, 9))
        if how == 0:
            return rest
        if how == 1:
            return {**value, draw(WORDS): draw(JSONISH)}
        return {**rest, key: edited(draw, value[key], depth + 1)}
    if isinstance(value, list) and value and depth < 6 and draw(st.integers(0, 4)):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], edited(draw, value[place], depth + 1), *value[place + 1 :]]
    return draw(JSONISH)


@st.composite
def queries(draw: Any) -> Any:
    """Queries that are nearly right."""
    turn = draw(st.integers(0, len(MOVES)))
    query: dict[str, Any] = {"id": "it", "player": "random", "moves": MOVES[:turn]}
    if draw(st.booleans()):
        query.update(initialState=STATES[turn].to_record(), moves=MOVES[turn : turn + 3])
    if draw(st.booleans()):
        query["analyzeTurns"] = draw(st.lists(st.integers(0, 4), max_size=4))
    if draw(st.integers(0, 5)) == 0:
        query = {"id": "it", "action": draw(st.sampled_from(["terminate", "clear_cache", "x"]))}
    if draw(st.booleans()):
        query[draw(st.sampled_from(FIELDS))] = draw(JSONISH)
    return edited(draw, query) if draw(st.booleans()) else query


LINES = (
    st.binary(max_size=60)
    | JSONISH.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(st.sampled_from(FIELDS), JSONISH).map(lambda v: json.dumps(v).encode())
    | queries().map(lambda value: json.dumps(value).encode())
)
FUZZED = Desk(Roster("random", data="no-such-folder"))


def no_json(constant: str) -> None:
    """NaN and Infinity, which Python reads."""
    raise ValueError(constant)


@settings(max_examples=400)
@given(LINES)
@example(b'{"id": "it", "player": "random", "moves": [], "config": {"NaN": null}}')
def test_any_line_is_answered_and_its_id_repeated(line: bytes) -> None:
    desk = FUZZED
    desk.send(line)
    told = desk.finish()
    json.dumps(told, allow_nan=False)
    if not line.strip():
        assert told == []
        return
    answers = [one for one in told if "warning" not in one]
    assert answers
    assert all(("error" in one) + ("rootInfo" in one) + ("action" in one) == 1 for one in answers)
    try:
        raw = json.loads(line, parse_constant=no_json)
    except (ValueError, RecursionError):
        raw = None
    name = raw.get("id") if isinstance(raw, dict) else None
    if isinstance(name, str):
        assert all(one["id"] == name for one in told)
        if "error" not in answers[0] and "action" not in raw:
            turns = raw.get("analyzeTurns") or [len(raw.get("moves", []))]
            assert sorted(one["turnNumber"] for one in answers) == sorted(turns)
    else:
        assert len(told) == 1 and "id" not in told[0]
    assert not any("failed" in one.get("error", "") for one in answers), answers
