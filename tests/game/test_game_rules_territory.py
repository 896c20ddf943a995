"""Territory (R140-R145; points 12-15)."""

from __future__ import annotations

from typing import Any

import pytest

from ringrift_pipeline.game import State, get_rules

from .positions import board, moves, pass_quietly, play, position, types

#: Two markers of seat 2 cut the corner (0,0) off; seat 1 has stacks outside.
CORNER = {"1,0": 2, "0,1": 2}
OUTSIDE = {"6,6": "11", "7,3": "2"}


def regions(state: State) -> list[list[str]]:
    return sorted(record["region"] for record in moves(state, "choose_territory_option"))


def territory(config: str, *args: Any, **kwargs: Any) -> State:
    return position(config, *args, phase="territory_processing", **kwargs)


def take(state: State, *cells: str) -> State:
    return play(state, "choose_territory_option", region=sorted(cells))


# --- which regions (R140-R143; point 12) --------------------------------------------------------
def test_r141_markers_of_one_colour_or_collapsed_cells_and_edges_close_a_region() -> None:
    assert regions(territory("square8_2p", OUTSIDE, CORNER)) == [["0,0"]]
    mixed = territory("square8_2p", OUTSIDE, {"1,0": 2}, {"0,1": 1})
    assert regions(mixed) == [["0,0"]]
    # Two colours together do not close it.
    assert regions(territory("square8_2p", OUTSIDE, {"1,0": 2, "0,1": 1})) == []


def test_r140_territory_adjacency_is_orthogonal_on_square_boards() -> None:
    # A diagonal of markers separates: cells do not connect through corners.
    diagonal = {"2,0": 2, "1,1": 2, "0,2": 2}
    assert regions(territory("square8_2p", OUTSIDE, diagonal)) == [["0,0", "0,1", "1,0"]]


def test_r140_hexagonal_adjacency_has_six_neighbours() -> None:
    stacks = {"4,-4,0": "1", "-3,4,-1": "12"}
    # The corner (-4,4,0) has three neighbours in the board; all must be closed.
    near = ["-3,3,0", "-4,3,1"]
    wall = dict.fromkeys(near, 2)
    assert regions(territory("hex8_2p", {"4,-4,0": "1", "0,0,0": "2"}, wall | {"-3,4,-1": 2})) == [
        ["-4,4,0"]
    ]
    assert regions(territory("hex8_2p", {"4,-4,0": "1", "0,0,0": "2"}, wall)) == []
    # A stack of seat 2 in the third: a region of two cells is open beyond it.
    assert regions(territory("hex8_2p", stacks, wall)) == []


def test_point_12_anyone_may_take_a_region_whatever_the_border_colour() -> None:
    for player in (1, 2):
        stacks = {"6,6": "11", "7,3": "22"}
        for colour in (1, 2):
            markers = dict.fromkeys(CORNER, colour)
            assert regions(territory("square8_2p", stacks, markers, player=player)) == [["0,0"]]


def test_r142_fewer_colours_inside_than_on_the_board() -> None:
    # The region holds both colours: never disconnected.
    wall = {f"3,{y}": 2 for y in range(8)}
    both_sides = {"0,0": "1", "1,1": "2", "6,6": "1", "7,3": "2"}
    assert regions(territory("square8_2p", both_sides, wall)) == []
    # One colour inside, two on the board.
    state = territory("square8_2p", {"0,0": "2", "6,6": "1", "7,3": "2"}, wall)
    assert regions(state) == [sorted(f"{x},{y}" for x in range(3) for y in range(8))]


def test_point_12_buried_rings_count_as_colours_on_the_board() -> None:
    # Both seats control stacks on either side; seat 3 has only a buried ring.
    wall = {f"3,{y}": 2 for y in range(8)}
    stacks = {"0,0": "1", "1,1": "2", "6,6": "1", "7,3": "32"}
    west = sorted(f"{x},{y}" for x in range(3) for y in range(8))
    east = sorted(f"{x},{y}" for x in range(4, 8) for y in range(8))
    assert regions(territory("square8_3p", stacks, wall)) == sorted([west, east])
    stacks["7,3"] = "22"
    assert regions(territory("square8_3p", stacks, wall)) == []


def test_point_12_control_counts_not_the_buried_rings_inside() -> None:
    # Seat 1's ring inside is buried: seat 1 controls nothing there.
    wall = {f"3,{y}": 2 for y in range(8)}
    stacks = {"0,0": "12", "6,6": "1", "7,3": "2"}
    assert len(regions(territory("square8_2p", stacks, wall))) == 1


def test_r143_a_stack_of_the_mover_must_stand_outside() -> None:
    assert regions(territory("square8_2p", {"0,0": "1", "7,3": "2"}, CORNER)) == [
        sorted(f"{x},{y}" for x in range(8) for y in range(8) if f"{x},{y}" not in {"0,0", *CORNER})
    ]
    assert regions(territory("square8_2p", {"0,0": "1", "7,3": "2", "6,6": "1"}, CORNER)) == [
        ["0,0"]
    ]
    # Seat 2 controls nothing at all, though it has a ring on the board.
    state = territory("square8_2p", {"0,0": "1", "7,3": "21"}, CORNER, player=2)
    assert regions(state) == []


def test_point_12_walled_in_by_collapsed_cells_alone_needs_exactly_one_colour() -> None:
    closed = {"1,0": 1, "0,1": 1}
    assert regions(territory("square8_2p", {"0,0": "2", "6,6": "1", "7,3": "2"}, {}, closed)) == [
        ["0,0"]
    ]
    # No stack inside and no marker anywhere: there is no border colour to find it by.
    assert regions(territory("square8_2p", OUTSIDE, {}, closed)) == []
    # A marker of either colour anywhere on the board, not in the region, is enough for B.
    assert regions(territory("square8_2p", OUTSIDE, {"4,4": 2}, closed)) == [["0,0"]]
    # With markers of both colours inside and no stack: for neither B it is free of B.
    wide = {f"2,{y}": 1 for y in range(8)}
    inside = {"0,0": 1, "1,5": 2}
    cells = sorted(f"{x},{y}" for x in (0, 1) for y in range(8))
    assert cells not in regions(territory("square8_2p", OUTSIDE, inside, wide))
    # With one stack inside it is listed through its single colour.
    assert cells in regions(territory("square8_2p", OUTSIDE | {"1,1": "2"}, inside, wide))


def test_point_12_collapsed_walls_need_two_colours_with_rings_on_the_board() -> None:
    closed = {"1,0": 1, "0,1": 1}
    stacks = {"0,0": "1", "6,6": "1"}
    assert regions(territory("square8_2p", stacks, {}, closed, hand=(3, 3))) == []


def test_point_12_regions_nest_and_overlap_and_hold_foreign_markers() -> None:
    # Seat 2's wall encloses the corner block; within it seat 1's markers close the very corner.
    outer = {"3,0": 2, "3,1": 2, "3,2": 2, "3,3": 2, "2,3": 2, "1,3": 2, "0,3": 2}
    inner = {"1,0": 1, "0,1": 1}
    block = sorted(f"{x},{y}" for x in range(3) for y in range(3))
    found = regions(territory("square8_2p", OUTSIDE, outer | inner))
    assert ["0,0"] in found
    assert block in found  # holds the two foreign markers
    assert len(found) == 2


def test_point_12_a_region_through_two_colours_appears_once() -> None:
    # Closed by collapsed cells, while both seats have markers elsewhere on the board.
    closed = {"1,0": 1, "0,1": 1}
    state = territory("square8_2p", OUTSIDE | {"0,0": "2"}, {"4,4": 1, "5,2": 2}, closed)
    assert regions(state) == [["0,0"]]


# --- collapse (R145; point 13) -------------------------------------------------------------------
@pytest.mark.parametrize("config", ["square8_2p", "square19_2p"])
def test_point_13_border_flood_of_any_colour_on_square_boards(config: str) -> None:
    # From the border the flood goes through (2,1) [diagonal contact, own colour], (3,2) [foreign
    # colour] and (3,3); (5,5) touches nothing.
    markers = CORNER | {"2,1": 2, "3,2": 1, "3,3": 2, "5,5": 2}
    after = take(territory(config, OUTSIDE, markers), "0,0")
    _, left, collapsed = board(after)
    assert collapsed == dict.fromkeys(["0,0", "1,0", "0,1", "2,1", "3,2", "3,3"], 1)
    assert left == {"5,5": 2}


def test_point_13_the_flood_never_enters_the_region() -> None:
    # The foreign marker inside touches the border, but what it touches on the far side of the
    # region stays: the flood passes outside only. (0,3) is an adjacent marker itself.
    wall = {"1,0": 2, "1,1": 2, "1,2": 2, "0,3": 2}
    after = take(territory("square8_2p", OUTSIDE, wall | {"0,1": 1}), "0,0", "0,1", "0,2")
    assert board(after)[2] == dict.fromkeys([*wall, "0,0", "0,1", "0,2"], 1)
    assert after.to_record()["territory"] == [7, 0]


@pytest.mark.parametrize(
    ("corner", "wall", "contact"),
    [
        # Each contact touches exactly one wall marker, by (1,1) and by (-1,-1) in axial
        # coordinates: no hexagonal neighbours, yet contacts of the flood.
        ("0,-4,4", ["1,-4,3", "0,-3,3", "-1,-3,4"], "1,-2,1"),
        ("4,0,-4", ["3,0,-3", "4,-1,-3", "3,1,-4"], "2,-1,-1"),
    ],
)
def test_point_13_hex8_floods_with_the_eight_square_offsets(
    corner: str, wall: list[str], contact: str
) -> None:
    stacks = {"-4,4,0": "1", "-4,0,4": "2"}
    markers = dict.fromkeys(wall, 2) | {contact: 1, "-1,1,0": 1}
    _, left, collapsed = board(take(territory("hex8_2p", stacks, markers), corner))
    assert collapsed == dict.fromkeys([corner, *wall, contact], 1)
    assert left == {"-1,1,0": 1}


def test_point_13_hexagonal_takes_the_adjacent_markers_only() -> None:
    stacks = {"-12,12,0": "1", "3,1,-4": "2"}
    wall = dict.fromkeys(["1,-12,11", "0,-11,11", "-1,-11,12"], 2)
    more = {"1,-11,10": 2, "2,-12,10": 2, "1,-10,9": 1}
    after = take(territory("hexagonal_2p", stacks, wall | more), "0,-12,12")
    _, left, collapsed = board(after)
    assert collapsed == dict.fromkeys(["0,-12,12", *wall], 1)
    assert left == more


# --- rings and payment (R145; points 14, 15) -----------------------------------------------------
def test_point_14_every_ring_inside_is_credited_to_the_mover() -> None:
    state = territory("square8_3p", OUTSIDE | {"0,0": "3212", "7,0": "3"}, CORNER, hand=(0, 0, 0))
    before = state.to_record()["eliminated"]
    after = take(state, "0,0")
    assert after.to_record()["eliminated"] == [before[0] + 4, before[1], before[2]]
    assert "0,0" not in board(after)[0]
    assert after.to_record()["territory"] == [3, 0, 0]


def test_point_14_the_next_ply_pays_a_whole_cap_from_outside() -> None:
    stacks = {"6,6": "2111", "5,3": "11", "4,7": "1", "7,3": "12"}
    due = take(territory("square8_2p", stacks, CORNER, hand=(0, 0)), "0,0")
    assert due.phase == "territory_processing"
    assert due.to_record()["pending_elimination"] is False
    assert sorted(m["to"] for m in moves(due)) == ["4,7", "5,3", "6,6"]
    assert types(due) == ["eliminate_rings_from_stack"]
    before = due.to_record()["eliminated"]
    paid = play(due, "eliminate_rings_from_stack", to="6,6")
    assert board(paid)[0] == {"6,6": "2", "5,3": "11", "4,7": "1", "7,3": "12"}
    assert paid.to_record()["eliminated"] == [before[0] + 3, before[1]]


def test_point_14_a_recovery_turn_pays_one_buried_ring_of_any_outside_stack() -> None:
    stacks = {"6,6": "1212", "5,3": "21", "7,3": "22", "2,5": "112"}
    state = territory("square8_2p", stacks, CORNER | {"4,0": 1}, recovery=1, hand=(0, 0), player=1)
    due = take(state, "0,0")
    assert sorted(m["to"] for m in moves(due)) == ["2,5", "6,6"]
    before = due.to_record()["eliminated"]
    paid = play(due, "eliminate_rings_from_stack", to="6,6")
    # R113: the bottommost ring of the mover.
    assert board(paid)[0]["6,6"] == "212"
    assert paid.to_record()["eliminated"] == [before[0] + 1, before[1]]


def test_point_14_in_a_recovery_turn_a_buried_ring_outside_decides() -> None:
    # The only buried ring of seat 1 lies inside the corner: nothing pays for it.
    stacks = {"0,0": "12", "7,3": "2"}
    assert ["0,0"] not in regions(territory("square8_2p", stacks, CORNER, recovery=1))
    # A buried ring outside pays, though seat 1 controls no stack.
    stacks = {"0,0": "2", "7,3": "12"}
    assert regions(territory("square8_2p", stacks, CORNER, recovery=1)) == [["0,0"]]
    assert regions(territory("square8_2p", stacks, CORNER)) == []


def test_point_14_after_skip_recovery_no_region_can_be_taken() -> None:
    state = position("square8_2p", {"7,3": "12"}, CORNER | {"4,4": 1}, hand=(0, 5))
    assert "skip_recovery" in types(state)
    after = play(play(state, "skip_recovery"), "no_line_action")
    assert moves(after) == [{"type": "no_territory_action"}]


def test_point_15_after_the_last_payment_the_turn_ends() -> None:
    state = territory("square8_2p", {"6,6": "11", "4,5": "1", "7,3": "2"}, CORNER)
    paid = play(take(state, "0,0"), "eliminate_rings_from_stack", to="4,5")
    assert (paid.phase, paid.current_player) == ("ring_placement", 2)


def test_point_15_with_a_region_left_the_phase_goes_on() -> None:
    markers = CORNER | {"6,0": 2, "7,1": 2}
    state = territory("square8_2p", {"6,6": "11", "4,5": "1", "7,3": "2"}, markers)
    assert regions(state) == [["0,0"], ["7,0"]]
    paid = play(take(state, "0,0"), "eliminate_rings_from_stack", to="4,5")
    assert paid.phase == "territory_processing"
    assert types(paid) == ["choose_territory_option", "skip_territory_processing"]
    assert regions(paid) == [["7,0"]]
    # R143: once the only stack has paid, nothing can pay for the other region.
    alone = territory("square8_2p", {"6,6": "11", "7,3": "2"}, markers, hand=(3, 3))
    paid = play(take(alone, "0,0"), "eliminate_rings_from_stack", to="6,6")
    assert (paid.phase, paid.current_player) == ("ring_placement", 2)


def test_point_15_skip_ends_the_phase_for_good() -> None:
    markers = CORNER | {"6,0": 2, "7,1": 2}
    state = territory("square8_2p", {"6,6": "11", "4,5": "1", "7,3": "2"}, markers)
    assert "skip_territory_processing" in types(state)
    after = play(state, "skip_territory_processing")
    assert (after.phase, after.current_player) == ("ring_placement", 2)


def test_r144_regions_are_found_anew_after_each_collapse() -> None:
    # (3,0) is closed by markers of two colours. Taking the corner collapses them all, through
    # (2,0) and (3,1): now collapsed cells close it, and the marker at (5,5) serves as B.
    markers = CORNER | {"2,0": 1, "3,1": 2, "4,0": 2, "5,5": 2}
    state = territory("square8_2p", {"6,6": "11", "4,5": "1", "7,3": "2"}, markers)
    assert regions(state) == [["0,0"]]
    paid = play(take(state, "0,0"), "eliminate_rings_from_stack", to="4,5")
    assert board(paid)[2].keys() == {"0,0", *CORNER, "2,0", "3,1", "4,0"}
    assert regions(paid) == [["3,0"]]


def test_r073_the_whole_turn_ends_with_the_next_seat_placing() -> None:
    state = position("square8_2p", {"0,5": "1", "7,3": "2"}, hand=(3, 3))
    after = pass_quietly(play(state, "move_stack", source="0,5", to="2,5"))
    assert (after.phase, after.current_player) == ("ring_placement", 2)
    assert after.to_record()["resume"]["turn"] == state.to_record()["resume"]["turn"] + 1


def test_regions_never_span_the_whole_board() -> None:
    for config in ("square8_2p", "hex8_2p"):
        rules = get_rules(config)
        cells = [rules.names[c] for c in rules.cells]
        stacks = {cells[0]: "1", cells[-1]: "2"}
        assert regions(territory(config, stacks, {cells[7]: 1})) == []
