"""The turn: phases and bookkeeping, forced elimination, rotation, the pie rule.

R070-R075, R100, R180, R201; points 16 and 22.
"""

from __future__ import annotations

from typing import Any

import pytest

from ringrift_pipeline.game import IllegalMoveError, new_game

from .positions import board, moves, pass_quietly, play, position, types

#: All but these cells are collapsed, so that stacks on them cannot move.
OPEN = {"0,0", "4,4", "7,7"}


def walled(open_cells: set[str] = OPEN) -> dict[str, int]:
    return {
        f"{x},{y}": 1 + (x + y) % 2
        for x in range(8)
        for y in range(8)
        if f"{x},{y}" not in open_cells
    }


# --- phases (R070-R075) ------------------------------------------------------------------------
def test_r070_r073_a_whole_turn_visits_every_phase_in_order() -> None:
    state = new_game("square8_2p")
    seen = []
    for kind, fields in (
        ("place_ring", {"to": "0,0", "count": 1}),
        ("move_stack", {"source": "0,0", "to": "3,0"}),
        ("no_line_action", {}),
        ("no_territory_action", {}),
    ):
        seen.append(state.phase)
        state = play(state, kind, **fields)
    assert seen == ["ring_placement", "movement", "line_processing", "territory_processing"]
    assert (state.phase, state.current_player) == ("ring_placement", 2)


def test_r073_every_turn_starts_in_ring_placement_even_with_an_empty_hand() -> None:
    state = position(
        "square8_2p", {"3,3": "1", "6,6": "2"}, phase="territory_processing", hand=(4, 0)
    )
    after = play(state, "no_territory_action")
    assert (after.phase, after.current_player) == ("ring_placement", 2)
    assert moves(after) == [{"type": "no_placement_action"}]


def test_r074_r075_nothing_happens_between_moves() -> None:
    # A closed corner and a line are there, but each takes its own recorded move.
    state = position(
        "square8_2p",
        {"6,6": "11", "7,3": "2", "5,0": "1"},
        {"1,0": 2, "0,1": 2} | {f"{x},7": 1 for x in range(4)},
    )
    after = play(state, "move_stack", source="5,0", to="4,0")
    assert board(after)[2] == {}
    assert after.phase == "line_processing"
    assert types(after) == ["process_line"]


def test_r075_bookkeeping_is_the_only_move_of_an_empty_phase() -> None:
    state = position("square8_2p", {"4,4": "1"}, {}, walled(), phase="ring_placement", hand=(0, 3))
    for expected in ("no_placement_action", "no_movement_action", "no_line_action"):
        assert moves(state) == [{"type": expected}]
        before = board(state)
        state = play(state, expected)
        assert board(state) == before


# --- forced elimination (R072, R100; point 16) --------------------------------------------------
def blocked(stacks: dict[str, str], hand: tuple[int, int] = (0, 0), **more: Any):
    return position("square8_2p", stacks, {}, walled(), phase="ring_placement", hand=hand, **more)


def test_point_16_without_a_region_it_follows_no_line_action_directly() -> None:
    # One open cell with one stack of two colours: no region leaves a stack outside.
    state = position(
        "square8_2p", {"4,4": "211"}, {}, walled({"4,4"}), phase="ring_placement", hand=(0, 0)
    )
    state = play(play(state, "no_placement_action"), "no_movement_action")
    after = play(state, "no_line_action")
    assert after.phase == "forced_elimination"
    assert moves(after) == [{"type": "forced_elimination", "to": "4,4"}]
    before = after.to_record()["eliminated"]
    done = play(after, "forced_elimination", to="4,4")
    assert board(done)[0] == {"4,4": "2"}
    assert done.to_record()["eliminated"] == [before[0] + 2, before[1]]


def test_point_16_with_a_region_it_follows_the_skip() -> None:
    # (0,0) is seat 2's, walled in by collapsed cells: a region that seat 1 may take.
    state = blocked({"0,0": "2", "4,4": "1", "7,7": "1"}, hand=(0, 4))
    state = play(play(state, "no_placement_action"), "no_movement_action")
    after = play(state, "no_line_action")
    assert after.phase == "territory_processing"
    assert "choose_territory_option" in types(after)
    skipped = play(after, "skip_territory_processing")
    assert skipped.phase == "forced_elimination"
    assert sorted(m["to"] for m in moves(skipped)) == ["4,4", "7,7"]
    # Taking a region changes the board: no forced elimination then.
    taken = play(after, "choose_territory_option", region=["0,0"])
    paid = play(taken, "eliminate_rings_from_stack", to="7,7")
    assert (paid.phase, paid.current_player) == ("ring_placement", 2)


def test_point_16_not_after_a_change_of_the_board() -> None:
    state = position(
        "square8_2p", {"3,3": "1", "6,6": "2"}, phase="line_processing", hand=(0, 0), changed=1
    )
    after = play(state, "no_line_action")
    assert after.phase == "territory_processing"
    assert play(after, "no_territory_action").current_player == 2


def test_point_16_a_processed_line_is_a_change() -> None:
    # Blocked, but another's flips have left a line of seat 1.
    line = {f"{x},0": 1 for x in range(4)}
    open_cells = {"4,4", "7,7", *line}
    state = position(
        "square8_2p",
        {"4,4": "11", "7,7": "2"},
        line,
        walled(open_cells),
        phase="line_processing",
        hand=(0, 0),
        eliminated=(16, 17),
        changed=0,
    )
    paid = play(
        play(state, "process_line", line=sorted(line)), "eliminate_rings_from_stack", to="4,4"
    )
    assert play(paid, "no_line_action").phase == "territory_processing"


def test_point_16_not_without_a_stack() -> None:
    state = position("square8_2p", {"6,6": "12"}, phase="line_processing", hand=(0, 4), changed=0)
    after = play(state, "no_line_action")
    assert moves(after) == [{"type": "no_territory_action"}]
    assert play(after, "no_territory_action").current_player == 2


def test_r100_any_controlled_stack_and_its_whole_cap() -> None:
    state = position(
        "square8_2p",
        {"0,0": "1", "4,4": "2111", "7,7": "22"},
        {},
        walled(),
        phase="forced_elimination",
        hand=(0, 0),
        eliminated=(12, 17),
    )
    assert sorted(m["to"] for m in moves(state)) == ["0,0", "4,4"]
    before = state.to_record()["eliminated"]
    after = play(state, "forced_elimination", to="4,4")
    assert board(after)[0] == {"0,0": "1", "4,4": "2", "7,7": "22"}
    assert after.to_record()["eliminated"] == [before[0] + 3, before[1]]
    assert (after.phase, after.current_player) == ("ring_placement", 2)
    assert board(play(state, "forced_elimination", to="0,0"))[0] == {"4,4": "2111", "7,7": "22"}


def test_r072_a_player_who_can_place_is_not_blocked() -> None:
    open_cells = {"0,0", "0,1", "4,4"}
    state = position(
        "square8_2p", {"4,4": "1"}, {}, walled(open_cells), phase="ring_placement", hand=(2, 2)
    )
    assert types(state) == ["place_ring"]


# --- rotation (R201) ----------------------------------------------------------------------------
def end_turn(stacks: dict[str, str], hand: tuple[int, ...], player: int = 1, **more: Any):
    state = position(
        "square8_4p", stacks, {}, phase="territory_processing", player=player, hand=hand, **more
    )
    return play(state, "no_territory_action")


def test_r201_seats_without_any_ring_are_passed_over() -> None:
    after = end_turn({"0,0": "1", "4,4": "4"}, (3, 0, 0, 3))
    assert after.current_player == 4
    assert end_turn({"0,0": "1", "4,4": "4"}, (3, 0, 1, 3)).current_player == 3


def test_r201_buried_rings_keep_a_seat_in_the_rotation() -> None:
    after = end_turn({"0,0": "1", "4,4": "24"}, (3, 0, 0, 3))
    assert after.current_player == 2
    # With neither stack, hand nor marker it passes through its turn by bookkeeping alone.
    kinds = []
    while after.current_player == 2:
        (only,) = after.legal_moves()
        kinds.append(only.type)
        after = after.apply(only)
    assert kinds == [
        "no_placement_action",
        "no_movement_action",
        "no_line_action",
        "no_territory_action",
    ]
    assert after.current_player == 4


def test_r201_rotation_wraps_around() -> None:
    assert end_turn({"0,0": "1", "4,4": "4"}, (3, 3, 3, 3), player=4).current_player == 1
    assert end_turn({"0,0": "2", "4,4": "4"}, (0, 3, 3, 3), player=4).current_player == 2


# --- the pie rule (R180; point 22) ---------------------------------------------------------------
def first_turn(swap_rule: bool):
    state = new_game("square8_2p", swap_rule=swap_rule)
    state = play(state, "place_ring", to="3,3", count=2)
    return pass_quietly(play(state, "move_stack", source="3,3", to="3,6"))


def test_point_22_swap_is_offered_once_to_seat_2() -> None:
    plain, pie = first_turn(False), first_turn(True)
    assert "swap_sides" not in types(plain)
    assert types(pie) == ["place_ring", "swap_sides"]
    swapped = play(pie, "swap_sides")
    # The board state stays, and seat 2 goes on with its placement; no second swap.
    assert board(swapped) == board(pie)
    assert (swapped.phase, swapped.current_player) == ("ring_placement", 2)
    assert types(swapped) == ["place_ring"]
    assert moves(swapped) == moves(plain)
    later = play(swapped, "place_ring", to="0,0", count=1)
    later = pass_quietly(play(later, "move_stack", source="0,0", to="0,1"))
    assert later.current_player == 1
    assert "swap_sides" not in types(later)


def test_point_22_not_swapping_forgoes_it() -> None:
    state = play(first_turn(True), "place_ring", to="0,0", count=1)
    state = pass_quietly(play(state, "move_stack", source="0,0", to="0,1"))
    state = play(state, "place_ring", to="7,7", count=1)
    state = pass_quietly(play(state, "move_stack", source="7,7", to="7,6"))
    assert state.current_player == 2
    assert "swap_sides" not in types(state)


def test_point_22_only_two_players() -> None:
    with pytest.raises(ValueError, match="two players"):
        new_game("square8_3p", swap_rule=True)


def test_point_22_seat_1_is_not_offered_it() -> None:
    with pytest.raises(IllegalMoveError):
        new_game("square8_2p", swap_rule=True).find_move({"type": "swap_sides"})
