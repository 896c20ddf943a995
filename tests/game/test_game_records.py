"""Typed errors: unknown configs, broken records, broken traces."""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ringrift_pipeline.game import (
    CONFIGS,
    IllegalMoveError,
    RecordError,
    State,
    get_rules,
    new_game,
    read_traces,
    replay_file,
    replay_trace,
)

from .positions import play, position, random_states


@pytest.mark.parametrize("name", ["square8", "square8_5p", "chess", "", "SQUARE8_2P", "hex_2p"])
def test_unknown_config_lists_the_names(name: str) -> None:
    for call in (new_game, get_rules):
        with pytest.raises(ValueError, match="unknown config") as caught:
            call(name)
        assert all(config in str(caught.value) for config in CONFIGS)


def test_unknown_config_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match="Did you mean 'square8_2p'"):
        new_game("sqare8_2p")


@pytest.mark.parametrize("name", [None, 3, ["square8_2p"], {"a": 1}])
def test_config_of_another_type(name: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        new_game(name)


def test_illegal_move_names_move_phase_and_reason() -> None:
    state = new_game("square8_2p")
    with pytest.raises(IllegalMoveError) as caught:
        state.find_move({"type": "move_stack", "from": "0,0", "to": "0,1"})
    error = caught.value
    assert error.move == {"type": "move_stack", "from": "0,0", "to": "0,1"}
    assert error.phase == "ring_placement"
    assert "place_ring" in error.reason
    for part in ("move_stack", "ring_placement", error.reason):
        assert part in str(error)
    with pytest.raises(IllegalMoveError, match="no move type 'jump'"):
        state.find_move({"type": "jump"})
    with pytest.raises(IllegalMoveError, match="not among the 192 legal moves"):
        state.find_move({"type": "place_ring", "to": "0,0", "count": 4})
    over = random_states("square8_2p", 1)[-1]
    with pytest.raises(IllegalMoveError, match="the game is over"):
        over.find_move({"type": "no_line_action"})


def test_errors_survive_pickling() -> None:
    import pickle

    error = IllegalMoveError({"type": "jump"}, "movement", "why")
    twin = pickle.loads(pickle.dumps(error))
    assert (twin.move, twin.phase, twin.reason, str(twin)) == (
        *(error.move, error.phase, error.reason, str(error)),
    )


# --- state records -------------------------------------------------------------------------------
def valid() -> dict[str, Any]:
    return position(
        "square8_3p",
        {"0,0": "12", "3,3": "1", "5,5": "3"},
        {"1,1": 2},
        {"7,7": 1},
        hand=(10, 10, 10),
    ).to_record()


def blocked(record: dict[str, Any]) -> None:
    """A forced elimination of a seat without a stack."""
    record["stacks"]["0,0"] = "21"
    record.update(phase="forced_elimination", player=2)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda r: r.pop("resume"), "resume"),
        (lambda r: r.pop("stacks"), "stacks"),
        (lambda r: r.pop("hand"), "hand"),
        (lambda r: r.pop("phase"), "phase"),
        (lambda r: r["resume"].pop("lps_anchor"), "lps_anchor"),
        (lambda r: r["resume"].pop("lost_turn"), "lost_turn"),
        (lambda r: r.update(phase="lunch"), "lunch"),
        (lambda r: r.update(player=4), "player"),
        (lambda r: r.update(player=None), "player"),
        (lambda r: r.update(player=True), "player"),
        (lambda r: r.update(winner=1), "winner"),
        (lambda r: r.update(status="completed"), "status"),
        (lambda r: r.update(must_move="9,9"), "must_move"),
        (lambda r: r.update(must_move="5,5"), "must_move"),
        (lambda r: r.update(hand=[10, 10]), "hand"),
        (lambda r: r.update(hand=[11, 10, 10]), "rings"),
        (lambda r: r.update(hand=[10, 10, -1]), "hand"),
        (lambda r: r.update(hand=[10**30, 10, 10]), "hand"),
        (lambda r: r.update(eliminated=[2**63, 0, 0]), "eliminated"),
        (lambda r: r.update(territory=[0, 0, 0]), "territory"),
        (lambda r: r["stacks"].update({"8,0": "1"}), "8,0"),
        (lambda r: r["stacks"].update({"1,1": "1"}), "twice"),
        (lambda r: r["stacks"].update({"2,2": ""}), "2,2"),
        (lambda r: r["stacks"].update({"2,2": "14"}), "2,2"),
        (lambda r: r["stacks"].update({"2,2": "1" * 28}), "2,2"),
        (lambda r: r["stacks"].update({"2,2": "²"}), "2,2"),
        (lambda r: r["stacks"].update({"2,2": 12}), "2,2"),
        (lambda r: r["markers"].update({"2,2": 0}), "2,2"),
        (lambda r: r["collapsed"].update({"0,0": 1}), "0,0"),
        (lambda r: r["resume"].update(config="chess"), "unknown config"),
        (lambda r: r["resume"].update(config=7), "config"),
        (lambda r: r["resume"].update(swap_rule=1), "swap_rule"),
        (lambda r: r["resume"].update(swap_rule=True), "swap_rule"),
        (lambda r: r["resume"].update(lps_anchor=3), "lps_anchor"),
        (lambda r: r["resume"].update(lps_acted=8), "lps_acted"),
        (lambda r: r["resume"].update(ply=2**70), "ply"),
        (lambda r: r["resume"].update(turn=-(2**70)), "turn"),
        (lambda r: r["resume"].update(lost_turn=[2**64, 0, 0]), "lost_turn"),
        (lambda r: r["resume"].update(payment=1), "payment"),
        (lambda r: r["resume"].update(reason=2), "reason"),
        (lambda r: r.update(pending_elimination=True), "pending_elimination"),
        (lambda r: r.update(pending_elimination=None), "pending_elimination"),
        (lambda r: r.update(phase="chain_capture"), "must_move"),
        (lambda r: blocked(r), "no legal move"),
    ],
)
def test_a_broken_state_record_names_its_fault(change: Any, names: str) -> None:
    record = valid()
    change(record)
    with pytest.raises(RecordError, match=names.replace(",", r"\,")):
        State.from_record(record)


def test_a_trace_state_needs_resume() -> None:
    record = valid()
    del record["resume"]
    with pytest.raises(RecordError, match="replay a trace from its first ply"):
        State.from_record(record)


@pytest.mark.parametrize("record", [None, [], "state", 3, {}])
def test_something_else_is_no_state_record(record: Any) -> None:
    with pytest.raises(RecordError):
        State.from_record(record)


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.sampled_from([2**31, 2**63, 2**64, -(2**63) - 1, 10**40]),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(["1", "12", "²", "٣", "0,0", "1,1", "movement", "game_over", "1" * 30]),
    st.lists(st.integers(-1, 20), max_size=5),
    st.dictionaries(st.sampled_from(["0,0", "7,7", "9,9", "x"]), st.integers(-1, 4), max_size=3),
    st.dictionaries(st.sampled_from(["0,0", "7,7", "9,9"]), st.sampled_from(["1", "213", "5"])),
)


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a nested record."""
    found = [prefix] if prefix else []
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        found += paths(inner, (*prefix, key))
    return found


def mutate(draw: Any, record: Any) -> None:
    """Change one place of a nested record: replace it by junk, drop it, or add beside it."""
    place = draw(st.sampled_from(paths(record)))
    parent = record
    for key in place[:-1]:
        parent = parent[key]
    action = draw(st.sampled_from(["replace", "drop", "add"]))
    if action == "replace":
        parent[place[-1]] = draw(JUNK)
    elif action == "drop":
        del parent[place[-1]]
    elif isinstance(parent, dict):
        parent[draw(st.sampled_from(["0,0", "4,4", "extra", "stacks"]))] = draw(JUNK)
    else:
        parent.append(draw(JUNK))


SAMPLES = [
    s.to_record() for config in ("square8_2p", "hex8_3p") for s in random_states(config, 5, every=9)
]


@settings(
    max_examples=400,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_hostile_state_records_never_crash_or_hang(data: Any) -> None:
    record = copy.deepcopy(data.draw(st.sampled_from(SAMPLES)))
    for _ in range(data.draw(st.integers(1, 3))):
        mutate(data.draw, record)
    try:
        state = State.from_record(record)
    except RecordError as error:
        assert str(error)
        return
    # Still valid: then it must behave. Play it to its end.
    for _ in range(4000):
        legal = state.legal_moves()
        if state.is_terminal:
            assert legal == []
            break
        assert legal
        [move.to_record() for move in legal]
        state = state.apply(legal[len(legal) // 2])
    else:
        pytest.fail("a game from a mutated record does not end")
    assert State.from_record(json.loads(json.dumps(state.to_record()))) == state


# --- traces ---------------------------------------------------------------------------------------
def small_trace(config: str = "square8_2p") -> dict[str, Any]:
    """A whole game of our own as a trace, in the reference's format."""

    def bare(state: State) -> dict[str, Any]:
        return {k: v for k, v in state.to_record().items() if k != "resume"}

    state = new_game(config)
    trace: dict[str, Any] = {
        "format": "ringrift-trace/1",
        "config": config,
        "swap_rule": False,
        "initial": bare(state),
        "plies": [],
    }
    while not state.is_terminal:
        legal = state.legal_moves()
        chosen = (len(trace["plies"]) * 7919) % len(legal)
        ply = {"phase": state.phase, "player": state.current_player}
        state = state.apply(legal[chosen])
        trace["plies"].append(
            ply | {"legal": [m.to_record() for m in legal], "chosen": chosen, "after": bare(state)}
        )
    return trace | {"winner": state.winner, "reason": state.reason}


TRACE = small_trace()
PLIES = len(TRACE["plies"])


def test_a_trace_of_our_own_replays() -> None:
    report = replay_trace(copy.deepcopy(TRACE))
    assert report.ok and report.plies == PLIES and report.config == "square8_2p"


def difference(change: Any) -> tuple[int | None, str | None]:
    trace = copy.deepcopy(TRACE)
    change(trace)
    report = replay_trace(trace)
    assert not report.ok and report.detail
    return report.ply, report.field


def test_replay_names_the_first_ply_and_field_that_differ() -> None:
    assert difference(lambda t: t["initial"].update(hand=[17, 18])) == (-1, "initial.hand")
    assert difference(lambda t: t["plies"][4].update(phase="movement"))[0] == 4
    assert difference(lambda t: t["plies"][0].update(phase="movement")) == (0, "phase")
    assert difference(lambda t: t["plies"][3].update(player=2 + 1)) == (3, "player")
    assert difference(lambda t: t["plies"][2]["legal"].pop()) == (2, "legal")
    assert difference(lambda t: t["plies"][2]["legal"].append({"type": "jump"})) == (2, "legal")
    doubled = difference(lambda t: t["plies"][0]["legal"].append(t["plies"][0]["legal"][0]))
    assert doubled == (0, "legal")
    assert difference(lambda t: t["plies"][5]["after"].update(eliminated=[1, 0])) == (
        *(5, "after.eliminated"),
    )
    assert difference(lambda t: t["plies"][5]["after"]["stacks"].update({"0,0": "12"})) == (
        *(5, "after.stacks"),
    )
    loser = 3 - TRACE["winner"]
    assert difference(lambda t: t.update(winner=loser)) == (PLIES, "winner")
    assert difference(lambda t: t.update(reason="resigned")) == (PLIES, "reason")
    # The order of the cells of a region or line does not matter, nor that of the moves.
    trace = copy.deepcopy(TRACE)
    for ply in trace["plies"]:
        chosen = ply["legal"][ply["chosen"]]
        ply["legal"].reverse()
        ply["chosen"] = ply["legal"].index(chosen)
    assert replay_trace(trace).ok


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("format"),
        lambda t: t.update(format="ringrift-trace/2"),
        lambda t: t.pop("config"),
        lambda t: t.update(config="chess"),
        lambda t: t.update(config=None),
        lambda t: t.update(config=[]),
        lambda t: t.pop("initial"),
        lambda t: t.update(initial=[]),
        lambda t: t["initial"].pop("stacks"),
        lambda t: t.update(plies={}),
        lambda t: t.update(plies=[7]),
        lambda t: t.update(swap_rule=True, config="square8_3p"),
        lambda t: t.update(swap_rule="no"),
        lambda t: t.pop("winner"),
        lambda t: t.pop("reason"),
        lambda t: t["plies"].clear(),
        lambda t: t["plies"].pop(),
        lambda t: t["plies"][3].pop("after"),
        lambda t: t["plies"][3].pop("legal"),
        lambda t: t["plies"][3].update(legal=[[]]),
        lambda t: t["plies"][3].update(legal=3),
        lambda t: t["plies"][3].update(chosen=10**6),
        lambda t: t["plies"][3].update(chosen=-1),
        lambda t: t["plies"][3].update(chosen="0"),
        lambda t: t["plies"][3].update(chosen=None),
        lambda t: t["plies"][3].update(after=None),
        lambda t: t["plies"][3]["after"].pop("hand"),
        lambda t: t["plies"][0]["legal"][0].update({"to": {}}),
        lambda t: t["plies"][0]["legal"][0].update({"to": ["a", 1]}),
    ],
)
def test_a_malformed_trace_is_a_record_error(change: Any) -> None:
    trace = copy.deepcopy(TRACE)
    change(trace)
    with pytest.raises(RecordError):
        replay_trace(trace)


@settings(
    max_examples=150,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_hostile_traces_never_crash(data: Any) -> None:
    trace = copy.deepcopy(HOSTILE)
    mutate(data.draw, trace)
    try:
        replay_trace(trace)
    except RecordError as error:
        assert str(error)


HOSTILE = small_trace("hex8_2p")
HOSTILE["plies"] = HOSTILE["plies"][:9]
for _ply in HOSTILE["plies"]:
    # Few legal moves, so that the places drawn are spread over the trace.
    keep = _ply["legal"][_ply["chosen"]]
    _ply["legal"] = [keep, *[m for m in _ply["legal"] if m != keep][:3]]
    _ply["chosen"] = 0


def write(path: Path, *lines: str) -> Path:
    path.write_bytes(
        gzip.compress("\n".join(lines).encode())
        if path.suffix == ".gz"
        else "\n".join(lines).encode()
    )
    return path


def test_files_replay_plain_or_compressed(tmp_path: Path) -> None:
    text = json.dumps(TRACE)
    seen: list[int] = []

    def note(number: int, _report: object) -> None:
        seen.append(number)

    for name in ("games.jsonl", "games.jsonl.gz"):
        seen.clear()
        reports = replay_file(write(tmp_path / name, text, "", text), progress=note)
        assert [r.ok for r in reports] == [True, True]
        assert seen == [1, 2]


def test_a_truncated_compressed_file_is_a_record_error(tmp_path: Path) -> None:
    path = write(tmp_path / "games.jsonl.gz", json.dumps(TRACE), json.dumps(TRACE))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(RecordError, match=r"games\.jsonl\.gz"):
        replay_file(path)


def test_flipped_bytes_in_a_compressed_file_are_a_record_error(tmp_path: Path) -> None:
    path = write(tmp_path / "games.jsonl.gz", json.dumps(TRACE))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(RecordError, match=r"games\.jsonl\.gz"):
        replay_file(path)


def test_something_else_named_gz_is_a_record_error(tmp_path: Path) -> None:
    path = tmp_path / "games.jsonl.gz"
    path.write_text("{}")
    with pytest.raises(RecordError):
        replay_file(path)


def test_broken_lines_are_named(tmp_path: Path) -> None:
    text = json.dumps(TRACE)
    with pytest.raises(RecordError, match="line 2"):
        replay_file(write(tmp_path / "a.jsonl", text, text[:500]))
    with pytest.raises(RecordError, match="game 2"):
        replay_file(write(tmp_path / "b.jsonl", text, "{}"))
    with pytest.raises(RecordError, match="no game"):
        replay_file(write(tmp_path / "c.jsonl", ""))
    (tmp_path / "d.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecordError, match=r"d\.jsonl"):
        replay_file(tmp_path / "d.jsonl")
    with pytest.raises(FileNotFoundError):
        replay_file(tmp_path / "absent.jsonl")


def test_deeply_nested_json_is_a_record_error(tmp_path: Path) -> None:
    with pytest.raises(RecordError):
        list(read_traces(write(tmp_path / "deep.jsonl", "[" * 200_000)))


def test_packed_moves_are_applied_and_others_refused() -> None:
    state = new_game("hex8_3p")
    for move, code in zip(state.legal_moves(), state.legal_codes(), strict=True):
        assert state.apply_code(code) == state.apply(move)
    absent = max(state.legal_codes()) + 1
    with pytest.raises(IllegalMoveError, match="ring_placement") as caught:
        state.apply_code(absent)
    assert caught.value.move == absent
    while not state.is_terminal:
        state = state.apply_code(state.legal_codes()[-1])
    with pytest.raises(IllegalMoveError, match="the game is over"):
        state.apply_code(absent)


def test_a_hand_made_game_round_trips_as_a_trace() -> None:
    state = play(new_game("hex8_2p"), "place_ring", to="0,0,0", count=2)
    assert State.from_record(json.loads(json.dumps(state.to_record()))) == state
