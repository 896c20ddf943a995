"""Recovery (R110-R115; point 17)."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from ringrift_pipeline.game import State

from .positions import board, moves, play, position, targets, types


def recovery(config: str, stacks: dict[str, str], markers: dict[str, int], *args: Any, **kw: Any):
    return position(config, stacks, markers, *args, **{"hand": (0, 5), **kw})


def slides(state: State, mode: str | None = None) -> list[dict[str, Any]]:
    return [m for m in moves(state, "recovery_slide") if mode in (None, m["mode"])]


#: One slide of (3,1) down to (3,0) makes a row of four.
NEARLY = {"0,0": 1, "1,0": 1, "2,0": 1, "3,1": 1}


# --- who may (R110) ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("stacks", "markers", "eligible"),
    [
        ({"5,5": "12"}, {"2,2": 1}, True),
        ({"5,5": "1212"}, {"2,2": 1}, True),
        ({"5,5": "12"}, {"2,2": 2}, False),  # no marker
        ({"5,5": "22"}, {"2,2": 1}, False),  # no buried ring
        ({"5,5": "12", "7,7": "1"}, {"2,2": 1}, False),  # controls a stack
    ],
)
def test_r110_eligibility(stacks: dict[str, str], markers: dict[str, int], eligible: bool) -> None:
    state = recovery("square8_2p", stacks, markers)
    assert ("recovery_slide" in types(state)) == eligible
    assert ("skip_recovery" in types(state)) == eligible
    if "7,7" not in stacks and not eligible:
        assert types(state) == ["no_movement_action"]


def test_r110_is_independent_of_rings_in_hand() -> None:
    state = position("square8_2p", {"5,5": "12"}, {"2,2": 1}, phase="ring_placement", hand=(3, 3))
    assert "recovery_slide" in types(play(state, "skip_placement"))


# --- where a marker slides (R111, R112) -----------------------------------------------------------
def test_r111_fallback_goes_to_adjacent_empty_cells() -> None:
    state = recovery(
        "square8_2p", {"5,5": "12"}, {"2,2": 1, "1,1": 2, "3,3": 1}, {"1,2": 2, "3,2": 1}
    )
    assert sorted(m["to"] for m in slides(state) if m["from"] == "2,2") == [
        *("1,3", "2,1", "2,3", "3,1"),
    ]
    assert {m["mode"] for m in slides(state)} == {"fallback"}


def test_r111_hexagonal_slides_use_six_directions() -> None:
    state = recovery("hex8_2p", {"3,0,-3": "12"}, {"0,0,0": 1})
    assert sorted(m["to"] for m in slides(state)) == sorted(
        ["1,0,-1", "0,1,-1", "-1,1,0", "-1,0,1", "0,-1,1", "1,-1,0"]
    )


def test_r111_the_source_becomes_empty() -> None:
    state = recovery("square8_2p", {"5,5": "12"}, {"2,2": 1})
    after = play(state, "recovery_slide", source="2,2", to="2,3", mode="fallback", extract="5,5")
    assert board(after) == ({"5,5": "2"}, {"2,3": 1}, {})


def test_point_17_with_a_line_no_fallback_and_no_strike() -> None:
    state = recovery("square8_2p", {"5,5": "12", "4,1": "2"}, NEARLY)
    assert {m["mode"] for m in slides(state)} == {"line"}
    assert {(m["from"], m["to"]) for m in slides(state)} == {("3,1", "3,0")}
    # Without the line both are there.
    state = recovery("square8_2p", {"5,5": "12", "4,1": "2"}, {"3,1": 1})
    assert {m["mode"] for m in slides(state)} == {"fallback", "stack_strike"}


def test_point_11_required_length_in_recovery() -> None:
    short = {"0,0": 1, "1,0": 1, "2,1": 1}
    three = position("square8_3p", {"5,5": "12", "7,7": "3"}, short, hand=(0, 5, 5))
    assert {m["mode"] for m in slides(three)} == {"line"}
    two = recovery("square8_2p", {"5,5": "12"}, short)
    assert {m["mode"] for m in slides(two)} == {"fallback"}


def test_r112_the_sliding_marker_does_not_count_where_it_was() -> None:
    # (3,0) slides away from the row: (0..2,0) and its old cell make no line.
    state = recovery("square8_2p", {"5,5": "12"}, {"1,0": 1, "2,0": 1, "3,0": 1, "3,1": 2})
    assert {m["mode"] for m in slides(state)} == {"fallback"}
    # Sliding along the row keeps three in a row, not four.
    assert ("3,0", "4,0") in {(m["from"], m["to"]) for m in slides(state)}


# --- payment (R113; point 17) ---------------------------------------------------------------------
def test_point_17_one_move_for_each_stack_that_can_pay() -> None:
    stacks = {"5,5": "12", "7,7": "112", "5,2": "22", "2,6": "212"}
    state = recovery("square8_2p", stacks, NEARLY)
    assert sorted(m["extract"] for m in slides(state)) == ["2,6", "5,5", "7,7"]
    assert all("collapse" not in m for m in slides(state))


def test_r113_the_bottommost_own_ring_is_extracted() -> None:
    stacks = {"5,5": "212122", "7,7": "12"}
    state = recovery("square8_2p", stacks, NEARLY, hand=(0, 3))
    before = state.to_record()["eliminated"]
    after = play(state, "recovery_slide", source="3,1", to="3,0", mode="line", extract="5,5")
    stacks_after, markers, collapsed = board(after)
    assert stacks_after == {"5,5": "22122", "7,7": "12"}
    assert markers == {}
    assert collapsed == dict.fromkeys(["0,0", "1,0", "2,0", "3,0"], 1)
    assert after.to_record()["eliminated"] == [before[0] + 1, before[1]]
    assert after.to_record()["territory"] == [4, 0]


def test_point_17_the_turn_passes_through_line_processing() -> None:
    state = recovery("square8_2p", {"5,5": "112"}, NEARLY)
    after = play(state, "recovery_slide", source="3,1", to="3,0", mode="line", extract="5,5")
    assert after.phase == "line_processing"
    assert moves(after) == [{"type": "no_line_action"}]
    assert play(after, "no_line_action").phase == "territory_processing"


# --- stack strike (R112, point 17) ----------------------------------------------------------------
def test_point_17_strike_removes_the_marker_and_the_top_ring() -> None:
    state = recovery("square8_2p", {"2,3": "122", "6,6": "12"}, {"2,2": 1, "7,0": 2})
    strikes = slides(state, "stack_strike")
    assert {(m["from"], m["to"]) for m in strikes} == {("2,2", "2,3")}
    assert sorted(m["extract"] for m in strikes) == ["2,3", "6,6"]
    before = state.to_record()["eliminated"]
    after = play(
        state, "recovery_slide", source="2,2", to="2,3", mode="stack_strike", extract="6,6"
    )
    assert board(after) == ({"2,3": "12", "6,6": "2"}, {"7,0": 2}, {})
    # Both the struck ring and the extracted one are credited to the mover.
    assert after.to_record()["eliminated"] == [before[0] + 2, before[1]]
    assert after.phase == "line_processing"


def test_point_17_the_struck_stack_may_pay_chosen_before_the_strike() -> None:
    state = recovery("square8_2p", {"2,3": "12"}, {"2,2": 1})
    after = play(
        state, "recovery_slide", source="2,2", to="2,3", mode="stack_strike", extract="2,3"
    )
    # The strike takes the top ring, the payment the ring that was buried: nothing is left.
    assert board(after)[0] == {}
    # A stack whose buried ring comes to the top by the strike pays with it all the same.
    state = recovery("square8_2p", {"2,3": "212", "6,6": "22"}, {"2,2": 1})
    after = play(
        state, "recovery_slide", source="2,2", to="2,3", mode="stack_strike", extract="2,3"
    )
    assert board(after)[0] == {"2,3": "2", "6,6": "22"}


def test_strike_may_bring_the_mover_back_into_control() -> None:
    state = recovery("square8_2p", {"2,3": "12", "6,6": "12"}, {"2,2": 1})
    after = play(
        state, "recovery_slide", source="2,2", to="2,3", mode="stack_strike", extract="6,6"
    )
    assert board(after)[0] == {"2,3": "1", "6,6": "2"}


# --- long lines and windows (R112; point 17) ------------------------------------------------------
LONG = {"0,0": 1, "1,0": 1, "2,0": 1, "4,0": 1, "5,0": 1, "3,1": 1}


def test_point_17_free_windows_must_contain_the_destination() -> None:
    state = recovery("square8_2p", {"5,5": "12"}, LONG)
    at = [m for m in slides(state) if (m["from"], m["to"]) == ("3,1", "3,0")]
    free = [m for m in at if "collapse" in m]
    assert all("extract" not in m for m in free)
    cells = [f"{x},0" for x in range(6)]
    assert sorted(m["collapse"] for m in free) == [cells[0:4], cells[1:5], cells[2:6]]
    whole = [m for m in at if "collapse" not in m]
    assert [m["extract"] for m in whole] == ["5,5"]


def test_point_17_windows_without_the_destination_are_not_offered() -> None:
    # Seven in a row, completed at its end: only the window at that end holds the destination.
    markers = {f"{x},0": 1 for x in range(5)} | {"6,1": 1}
    state = recovery("square8_2p", {"5,5": "12"}, markers)
    at = [m for m in slides(state) if (m["from"], m["to"]) == ("6,1", "5,0")]
    assert [m["collapse"] for m in at if "collapse" in m] == [["2,0", "3,0", "4,0", "5,0"]]


def test_r112_a_free_window_collapses_its_cells_only_and_nothing_is_paid() -> None:
    state = recovery("square8_2p", {"5,5": "12"}, LONG)
    window = ["1,0", "2,0", "3,0", "4,0"]
    after = play(state, "recovery_slide", source="3,1", to="3,0", mode="line", collapse=window)
    stacks, markers, collapsed = board(after)
    assert stacks == {"5,5": "12"}
    assert markers == {"0,0": 1, "5,0": 1}
    assert collapsed == dict.fromkeys(window, 1)
    assert after.to_record()["eliminated"] == state.to_record()["eliminated"]


def test_r112_the_whole_long_line_is_paid() -> None:
    state = recovery("square8_2p", {"5,5": "12"}, LONG)
    after = play(state, "recovery_slide", source="3,1", to="3,0", mode="line", extract="5,5")
    assert board(after)[2] == {f"{x},0": 1 for x in range(6)}
    assert board(after)[0] == {"5,5": "2"}


# --- two lines at once (point 17) -----------------------------------------------------------------
def along(x: int, y: int, dx: int, dy: int, count: int) -> list[str]:
    return [f"{x + i * dx},{y + i * dy}" for i in range(count)]


def test_point_17_of_two_lines_the_longest_collapses() -> None:
    # (4,4) completes a column of five and a row of four.
    row = ["1,4", "2,4", "3,4"]
    column = ["4,0", "4,1", "4,2", "4,3"]
    state = recovery("square8_2p", {"7,7": "12"}, dict.fromkeys([*row, *column, "5,5"], 1))
    after = play(state, "recovery_slide", source="5,5", to="4,4", mode="line", extract="7,7")
    assert board(after)[2] == dict.fromkeys([*column, "4,4"], 1)
    assert board(after)[1] == dict.fromkeys(row, 1)


SQUARE_ARMS = {
    "row": along(1, 4, 1, 0, 3),  # (1,0)
    "diagonal": along(1, 1, 1, 1, 3),  # (1,1)
    "column": along(4, 1, 0, 1, 3),  # (0,1)
    "falling": along(5, 3, 1, -1, 3),  # (1,-1)
}
SQUARE_ORDER = ["row", "diagonal", "column", "falling"]


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(range(4), 2)))
def test_point_17_of_equal_lines_the_first_axis(first: int, second: int) -> None:
    winner, loser = SQUARE_ORDER[first], SQUARE_ORDER[second]
    markers = dict.fromkeys([*SQUARE_ARMS[winner], *SQUARE_ARMS[loser], "4,5"], 1)
    state = recovery("square8_2p", {"7,7": "12"}, markers)
    after = play(state, "recovery_slide", source="4,5", to="4,4", mode="line", extract="7,7")
    assert board(after)[2] == dict.fromkeys([*SQUARE_ARMS[winner], "4,4"], 1)
    assert board(after)[1] == dict.fromkeys(SQUARE_ARMS[loser], 1)


def hexes(dx: int, dy: int) -> list[str]:
    return [f"{i * dx},{i * dy},{-i * (dx + dy)}" for i in (1, 2, 3)]


@pytest.mark.parametrize(
    ("winner", "loser"),
    [
        ((1, 0), (1, -1)),
        ((1, 0), (0, -1)),
        ((1, -1), (0, -1)),
        ((-1, 0), (-1, 1)),
        ((-1, 1), (0, 1)),
    ],
)
def test_point_17_axis_order_on_hexagonal_boards(
    winner: tuple[int, int], loser: tuple[int, int]
) -> None:
    source = next(
        f"{x},{y},{-x - y}"
        for x, y in ((-1, 0), (0, 1), (1, 0), (0, -1), (-1, 1), (1, -1))
        if f"{x},{y},{-x - y}" not in {*hexes(*winner), *hexes(*loser)}
        and (-x, -y) not in (winner, loser)
    )
    markers = dict.fromkeys([*hexes(*winner), *hexes(*loser), source], 1)
    state = recovery("hexagonal_2p", {"9,0,-9": "12"}, markers, hand=(0, 90))
    at = [m for m in slides(state) if m["to"] == "0,0,0" and m["from"] == source]
    assert len(at) == 1
    after = state.apply(state.find_move({"type": "recovery_slide", **at[0]}))
    assert board(after)[2] == dict.fromkeys([*hexes(*winner), "0,0,0"], 1)


# --- afterwards (R114, R115) ----------------------------------------------------------------------
def test_r114_territory_after_a_slide_is_paid_by_buried_rings() -> None:
    # The slide closes the corner: (1,1) goes to (1,0) and seat 1's two markers cut (0,0) off.
    state = recovery("square8_2p", {"5,5": "112", "0,0": "2"}, {"0,1": 1, "1,1": 1}, hand=(0, 5))
    after = play(state, "recovery_slide", source="1,1", to="1,0", mode="fallback", extract="5,5")
    after = play(after, "no_line_action")
    assert moves(after, "choose_territory_option") == [{"region": ["0,0"]}]
    due = play(after, "choose_territory_option", region=["0,0"])
    assert moves(due) == [{"type": "eliminate_rings_from_stack", "to": "5,5"}]
    before = due.to_record()["eliminated"]
    paid = play(due, "eliminate_rings_from_stack", to="5,5")
    assert board(paid)[0] == {"5,5": "2"}
    assert paid.to_record()["eliminated"] == [before[0] + 1, before[1]]


def test_r112_skipping_keeps_everything() -> None:
    state = recovery("square8_2p", {"5,5": "12"}, NEARLY)
    after = play(state, "skip_recovery")
    assert board(after) == board(state)
    assert after.phase == "line_processing"


def test_r111_no_slide_onto_markers_or_collapsed_cells() -> None:
    walls = dict.fromkeys(["0,1", "1,1"], 2)
    state = recovery("square8_2p", {"5,5": "12"}, {"0,0": 1, "1,0": 2}, walls)
    assert moves(state) == [{"type": "skip_recovery"}]
    assert targets(state, "recovery_slide") == []


def test_point_17_of_two_equal_lines_the_axis_decides_so_a_turned_board_is_no_turned_game() -> None:
    """The only rule that knows a direction: what symmetric training takes for the same is not."""
    row, column = ["0,3", "1,3", "2,3"], ["3,4", "3,5", "3,6"]

    def after(turn: bool) -> set[str]:
        def turned(cell: str) -> str:
            return cell[::-1] if turn else cell

        markers = {turned(cell): 1 for cell in [*row, *column, "4,3"]}
        state = recovery("square8_2p", {turned("7,6"): "12"}, markers)
        end = play(
            state,
            "recovery_slide",
            source=turned("4,3"),
            to="3,3",
            mode="line",
            extract=turned("7,6"),
        )
        return set(board(end)[2])

    assert after(False) == {*row, "3,3"}
    assert after(True) == {"3,3", *(cell[::-1] for cell in column)}
