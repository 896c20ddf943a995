"""Movement and captures (R090-R093, R100-R103; points 3, 4, 5) and the phases they lead to."""

from __future__ import annotations

import pytest

from .positions import board, moves, play, position, targets, types


# --- simple moves (R090-R092) ------------------------------------------------------------------
def test_r090_every_controlled_stack_and_no_other() -> None:
    state = position("square8_2p", {"0,0": "1", "5,5": "21", "7,0": "12"})
    assert {m["from"] for m in moves(state)} == {"0,0", "5,5"}


@pytest.mark.parametrize("height", [1, 2, 3, 7])
def test_r091_distance_at_least_the_height(height: int) -> None:
    state = position("square8_2p", {"0,0": "1" * height, "7,6": "2"})
    expected = {f"{d},0" for d in range(height, 8)} | {f"0,{d}" for d in range(height, 8)}
    expected |= {f"{d},{d}" for d in range(height, 8)}
    assert set(targets(state, "move_stack")) == expected


def test_r091_stacks_and_collapsed_cells_stop_a_move_markers_do_not() -> None:
    state = position(
        "square8_2p",
        {"0,0": "1", "0,4": "22", "7,6": "2"},
        {"1,1": 2, "3,3": 1},
        {"3,0": 2},
    )
    assert targets(state, "move_stack") == [
        *("0,1", "0,2", "0,3"),
        *("1,0", "1,1", "2,0", "2,2", "3,3", "4,4", "5,5", "6,6", "7,7"),
    ]


def test_r091_hexagonal_rays() -> None:
    state = position("hex8_2p", {"4,-4,0": "111", "-4,0,4": "2"})
    across = {"1,-1,0", "0,0,0", "-1,1,0", "-2,2,0", "-3,3,0", "-4,4,0"}
    assert set(targets(state, "move_stack")) == across | {"0,-4,4", "1,-4,3", "4,-1,-3", "4,0,-4"}


def test_r092_departure_marker_flip_and_collapse() -> None:
    state = position(
        "square8_3p",
        {"0,0": "1", "7,6": "2", "7,5": "3"},
        {"1,0": 2, "2,0": 1, "3,0": 3, "6,0": 2},
    )
    stacks, markers, collapsed = board(play(state, "move_stack", source="0,0", to="5,0"))
    assert stacks == {"5,0": "1", "7,6": "2", "7,5": "3"}
    assert markers == {"0,0": 1, "1,0": 1, "3,0": 1, "6,0": 2}
    assert collapsed == {"2,0": 1}


def test_r041_collapsing_on_the_way_counts_as_territory_of_the_mover() -> None:
    state = position("square8_2p", {"0,0": "1", "7,6": "2"}, {"1,0": 1, "2,0": 1})
    after = play(state, "move_stack", source="0,0", to="3,0")
    assert after.to_record()["territory"] == [2, 0]


@pytest.mark.parametrize("owner", [1, 2])
def test_point_4_landing_on_any_marker_costs_the_top_ring(owner: int) -> None:
    state = position("square8_2p", {"0,0": "11", "7,6": "22"}, {"3,0": owner}, hand=(3, 3))
    before = state.to_record()["eliminated"]
    after = play(state, "move_stack", source="0,0", to="3,0")
    stacks, markers, collapsed = board(after)
    assert stacks == {"3,0": "1", "7,6": "22"}
    assert markers == {"0,0": 1}
    assert collapsed == {}
    assert after.to_record()["eliminated"] == [before[0] + 1, before[1]]


def test_point_4_a_stack_of_one_vanishes_on_a_marker() -> None:
    state = position("square8_2p", {"0,0": "1", "7,6": "22", "4,0": "2"}, {"3,0": 2}, hand=(3, 3))
    after = play(state, "move_stack", source="0,0", to="3,0")
    stacks, markers, _ = board(after)
    assert stacks == {"7,6": "22", "4,0": "2"}
    assert markers == {"0,0": 1}
    assert after.phase == "line_processing"


def test_point_4_control_may_flip_on_landing() -> None:
    # Rings 2, 1 from the bottom: the top ring goes, seat 2 controls the rest; no capture follows
    # although seat 2's new neighbour could be overtaken.
    state = position("square8_2p", {"0,0": "21", "4,0": "2"}, {"3,0": 2}, hand=(3, 3))
    after = play(state, "move_stack", source="0,0", to="3,0")
    assert board(after)[0] == {"3,0": "2", "4,0": "2"}
    assert (after.phase, after.current_player) == ("line_processing", 1)


# --- where captures are offered (R093; point 3) ------------------------------------------------
def test_point_3_moves_and_captures_are_both_offered() -> None:
    state = position("square8_2p", {"0,0": "1", "2,0": "2"})
    assert types(state) == ["move_stack", "overtaking_capture"]
    assert targets(state, "overtaking_capture") == ["3,0", "4,0", "5,0", "6,0", "7,0"]
    assert "1,0" in targets(state, "move_stack")


def test_point_3_capture_from_movement_goes_to_the_chain_or_to_lines() -> None:
    state = position("square8_2p", {"0,0": "1", "2,0": "2", "4,4": "2"})
    after = play(state, "overtaking_capture", source="0,0", target="2,0", to="4,0")
    assert after.phase == "chain_capture"
    assert {m["target"] for m in moves(after, "continue_capture_segment")} == {"4,4"}
    assert types(after) == ["continue_capture_segment"]
    after = play(state, "overtaking_capture", source="0,0", target="2,0", to="7,0")
    assert after.phase == "line_processing"


def test_r093_after_a_move_only_the_landing_stack_may_capture_and_may_decline() -> None:
    state = position("square8_2p", {"0,0": "1", "7,7": "1", "7,5": "2", "3,3": "2"})
    after = play(state, "move_stack", source="0,0", to="3,0")
    assert after.phase == "capture"
    assert types(after) == ["overtaking_capture", "skip_capture"]
    assert {(m["from"], m["target"]) for m in moves(after, "overtaking_capture")} == {
        ("3,0", "3,3")
    }
    assert play(after, "skip_capture").phase == "line_processing"
    # No capture from the landing cell: straight to lines, although (7,7) could capture.
    assert play(state, "move_stack", source="0,0", to="1,0").phase == "line_processing"


# --- capture segments (R101, R102) -------------------------------------------------------------
def test_r101_cap_against_cap() -> None:
    for attacker, target, legal in (
        ("1", "2", True),
        ("1", "22", False),
        ("11", "22", True),
        ("221", "22", False),
        ("1", "112", True),
        ("211", "122", True),
        ("211", "1222", False),
    ):
        state = position("square8_2p", {"0,0": attacker, "2,0": target, "7,7": "2"})
        found = any(m["target"] == "2,0" for m in moves(state, "overtaking_capture"))
        assert found == legal, (attacker, target)


def test_r101_total_distance_at_least_the_height() -> None:
    state = position("square8_2p", {"0,0": "1111", "1,0": "2", "7,6": "2"})
    assert targets(state, "overtaking_capture") == ["4,0", "5,0", "6,0", "7,0"]


def test_r101_path_is_free_of_stacks_and_collapsed_cells() -> None:
    state = position("square8_2p", {"0,0": "1", "2,0": "2", "5,0": "2", "7,6": "2"})
    assert targets(state, "overtaking_capture") == ["3,0", "4,0"]
    state = position("square8_2p", {"0,0": "1", "2,0": "2", "7,6": "2"}, {}, {"5,0": 1})
    assert targets(state, "overtaking_capture") == ["3,0", "4,0"]
    state = position("square8_2p", {"0,0": "1", "2,0": "2", "7,6": "2"}, {}, {"1,0": 1})
    assert targets(state, "overtaking_capture") == []
    state = position("square8_2p", {"0,0": "1", "7,0": "2"})
    assert targets(state, "overtaking_capture") == []


def test_r101_landing_on_markers_is_legal() -> None:
    state = position("square8_2p", {"0,0": "1", "2,0": "2"}, {"3,0": 1, "4,0": 2}, {"5,0": 2})
    assert targets(state, "overtaking_capture") == ["3,0", "4,0"]


def test_r102_the_captured_ring_goes_underneath() -> None:
    state = position("square8_3p", {"0,0": "31", "2,0": "232", "7,6": "2", "7,5": "3"})
    after = play(state, "overtaking_capture", source="0,0", target="2,0", to="4,0")
    assert board(after)[0] == {"2,0": "23", "4,0": "231", "7,6": "2", "7,5": "3"}
    assert board(after)[1] == {"0,0": 1}


def test_r102_markers_on_both_halves_of_the_path() -> None:
    state = position(
        "square8_2p",
        {"0,0": "1", "3,0": "2", "7,6": "2"},
        {"1,0": 2, "2,0": 1, "4,0": 1, "5,0": 2},
    )
    after = play(state, "overtaking_capture", source="0,0", target="3,0", to="6,0")
    stacks, markers, collapsed = board(after)
    assert stacks == {"6,0": "21", "7,6": "2"}
    assert markers == {"0,0": 1, "1,0": 1, "5,0": 1}
    assert collapsed == {"2,0": 1, "4,0": 1}


def test_point_4_in_a_capture_the_ring_goes_underneath_before_the_landing() -> None:
    # One ring takes one and lands on a marker: its own top ring goes, the captured one stays and
    # control flips to seat 2, which ends the chain although (4,4) could be overtaken.
    state = position(
        "square8_2p", {"0,0": "1", "2,0": "2", "4,4": "2", "7,6": "1"}, {"4,0": 1}, hand=(3, 3)
    )
    before = state.to_record()["eliminated"]
    after = play(state, "overtaking_capture", source="0,0", target="2,0", to="4,0")
    assert board(after)[0] == {"4,0": "2", "4,4": "2", "7,6": "1"}
    assert after.phase == "line_processing"
    assert after.to_record()["eliminated"] == [before[0] + 1, before[1]]


def test_point_5_own_stacks_may_be_captured() -> None:
    state = position("square8_2p", {"0,0": "1", "2,0": "1", "7,6": "2"})
    after = play(state, "overtaking_capture", source="0,0", target="2,0", to="3,0")
    assert board(after)[0] == {"3,0": "11", "7,6": "2"}


# --- chains (R103) -----------------------------------------------------------------------------
def test_r103_a_chain_must_go_on_and_may_turn_back() -> None:
    state = position("square8_2p", {"0,0": "1", "2,0": "22", "7,6": "2"}, hand=(3, 3))
    # Cap 1 against cap 2: not yet. A taller attacker takes both rings, going to and fro.
    assert not moves(state, "overtaking_capture")
    state = position("square8_2p", {"0,0": "11", "2,0": "22", "7,6": "2"}, hand=(3, 3))
    chain = play(state, "overtaking_capture", source="0,0", target="2,0", to="3,0")
    assert chain.phase == "chain_capture"
    assert {m["type"] for m in moves(chain)} == {"continue_capture_segment"}
    back = [m for m in moves(chain, "continue_capture_segment") if m["target"] == "2,0"]
    # Height 3 now: the landing is at distance 3, on the marker that the chain left behind.
    assert back == [{"from": "3,0", "target": "2,0", "to": "0,0"}]
    after = play(chain, "continue_capture_segment", source="3,0", target="2,0", to="0,0")
    assert board(after)[0] == {"0,0": "221", "7,6": "2"}
    assert after.phase == "line_processing"


def test_r103_lines_wait_for_the_end_of_the_chain() -> None:
    # The first segment completes a line of four markers; the chain goes on before it is offered.
    markers = {"0,1": 1, "0,2": 1, "0,3": 1}
    state = position("square8_2p", {"0,0": "1", "2,0": "2", "4,4": "2", "7,6": "1"}, markers)
    chain = play(state, "overtaking_capture", source="0,0", target="2,0", to="4,0")
    assert types(chain) == ["continue_capture_segment"]
    after = play(chain, "continue_capture_segment", source="4,0", target="4,4", to="4,7")
    assert after.phase == "line_processing"
    assert moves(after, "process_line") == [{"line": ["0,0", "0,1", "0,2", "0,3"]}]


def test_r103_a_chain_may_end_early_by_choice() -> None:
    state = position("square8_2p", {"0,0": "1", "2,0": "2", "4,4": "2", "7,6": "1"})
    after = play(state, "overtaking_capture", source="0,0", target="2,0", to="5,0")
    assert after.phase == "line_processing"


def test_r209_a_chain_offers_nothing_but_its_own_segments() -> None:
    state = position("square8_2p", {"0,0": "1", "2,0": "2", "4,4": "2", "7,7": "1", "7,5": "2"})
    chain = play(state, "overtaking_capture", source="0,0", target="2,0", to="4,0")
    assert {m["from"] for m in moves(chain)} == {"4,0"}
