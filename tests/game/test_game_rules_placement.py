"""Boards, rings, stacks and placement (R001-R003, R020-R023, R080-R082; points 1, 2, 6, 7)."""

from __future__ import annotations

import pytest

from ringrift_pipeline.game import CONFIGS, IllegalMoveError, get_rules, kernels, new_game

from .positions import board, moves, play, position, targets, types


# --- boards ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "cells", "rings", "rays"),
    [
        ("square8", 64, 18, 8),
        ("square19", 361, 72, 8),
        ("hex8", 61, 18, 6),
        ("hexagonal", 469, 96, 6),
    ],
)
def test_r001_r020_board_sizes_and_supplies(name: str, cells: int, rings: int, rays: int) -> None:
    for players in (2, 3, 4):
        rules = get_rules(f"{name}_{players}p")
        assert rules.num_cells == cells
        assert rules.rings_per_player == rings
        state = new_game(rules.config)
        assert state.to_record()["hand"] == [rings] * players
        # R001: rays from the middle of the empty board reach every direction.
        middle = "0,0,0" if rules.geometry == "hex" else f"{rules.size // 2},{rules.size // 2}"
        state = play(state, "place_ring", to=middle, count=1)
        near = [
            m["to"]
            for m in moves(state, "move_stack")
            if max(
                abs(int(a) - int(b))
                for a, b in zip(m["to"].split(","), middle.split(","), strict=True)
            )
            == 1
        ]
        assert len(near) == rays


def test_configs_are_the_twelve() -> None:
    assert len(CONFIGS) == len(set(CONFIGS)) == 12
    assert {c.rsplit("_", 1)[0] for c in CONFIGS} == {"square8", "square19", "hex8", "hexagonal"}


def test_r002_r003_hexagonal_coordinates_and_adjacency() -> None:
    state = position("hex8_2p", {"0,0,0": "1", "4,-4,0": "2"})
    near = {
        to for to in targets(state, "move_stack") if max(map(abs, map(int, to.split(",")))) == 1
    }
    assert near == {"1,0,-1", "0,1,-1", "-1,1,0", "-1,0,1", "0,-1,1", "1,-1,0"}
    assert all(sum(map(int, to.split(","))) == 0 for to in targets(state, "move_stack"))
    # Square boards step diagonally too.
    state = position("square8_2p", {"3,3": "1", "7,0": "2"})
    assert {"2,2", "2,3", "2,4", "3,2", "3,4", "4,2", "4,3", "4,4"} <= set(
        targets(state, "move_stack")
    )


@pytest.mark.parametrize(
    ("config", "threshold", "territory", "line"),
    [
        ("square8_2p", 18, 33, 4),
        ("square8_3p", 24, 22, 3),
        ("square8_4p", 30, 17, 3),
        ("square19_2p", 72, 181, 4),
        ("square19_3p", 96, 121, 4),
        ("square19_4p", 120, 91, 4),
        ("hex8_2p", 18, 31, 4),
        ("hex8_3p", 24, 21, 3),
        ("hex8_4p", 30, 16, 3),
        ("hexagonal_2p", 96, 235, 4),
        ("hexagonal_3p", 128, 157, 4),
        ("hexagonal_4p", 160, 118, 4),
    ],
)
def test_r061_r062_r120_thresholds(config: str, threshold: int, territory: int, line: int) -> None:
    rules = get_rules(config)
    assert rules.ring_threshold == threshold
    assert rules.territory_minimum == territory
    assert rules.line_length == line


# --- stacks ------------------------------------------------------------------------------------
def test_r021_r022_control_and_height_come_from_the_rings() -> None:
    # Bottom to top 2, 2, 1, 1: seat 1 controls it, height 4, cap 2.
    state = position("square8_2p", {"0,0": "2211", "4,0": "222", "0,5": "22", "7,7": "2"})
    assert "3,0" not in targets(state, "move_stack")  # height 4: no shorter move
    assert targets(state, "move_stack") == ["0,4", "4,4", "5,5", "6,6"]
    # Cap 2 overtakes the cap of 2 on (0,5), not the cap of 3 on (4,0).
    assert {m["target"] for m in moves(state, "overtaking_capture")} == {"0,5"}
    assert types(position("square8_2p", {"0,0": "2211", "7,7": "2"}, player=2)) == ["move_stack"]


def test_r023_stacks_are_never_split() -> None:
    state = position("square8_2p", {"0,0": "112", "3,3": "2"}, player=2)
    stacks, _, _ = board(play(state, "move_stack", source="0,0", to="4,0"))
    assert stacks == {"4,0": "112", "3,3": "2"}


# --- placement ---------------------------------------------------------------------------------
def test_r080_placement_is_the_only_choice_on_an_empty_board() -> None:
    state = new_game("square8_2p")
    assert types(state) == ["place_ring"]
    assert len(state.legal_moves()) == 64 * 3


def test_r080_no_hand_means_no_placement() -> None:
    state = position("square8_2p", {"3,3": "1", "6,6": "2"}, phase="ring_placement", hand=(0, 5))
    assert moves(state) == [{"type": "no_placement_action"}]
    assert play(state, "no_placement_action").phase == "movement"


def test_r080_placement_is_optional_with_a_movable_stack() -> None:
    state = position("square8_2p", {"3,3": "1", "6,6": "2"}, phase="ring_placement", hand=(1, 0))
    assert types(state) == ["place_ring", "skip_placement"]
    after = play(state, "skip_placement")
    assert (after.phase, after.current_player) == ("movement", 1)
    assert {m["from"] for m in moves(after, "move_stack")} == {"3,3"}


def test_r080_placement_is_mandatory_without_stacks() -> None:
    state = position("square8_2p", {"6,6": "2"}, phase="ring_placement", hand=(3, 3))
    assert types(state) == ["place_ring"]


def test_r081_up_to_three_rings_of_the_hand() -> None:
    for hand, counts in ((1, {1}), (2, {1, 2}), (3, {1, 2, 3}), (7, {1, 2, 3})):
        state = position("square8_2p", {"6,6": "2"}, phase="ring_placement", hand=(hand, 0))
        assert {m["count"] for m in moves(state, "place_ring") if m["to"] == "0,0"} == counts
    state = position("square8_2p", {"6,6": "2"}, phase="ring_placement", hand=(7, 0))
    after = play(state, "place_ring", to="2,1", count=3)
    assert board(after)[0]["2,1"] == "111"
    assert after.to_record()["hand"] == [4, 0]


def test_r082_one_ring_on_a_stack_and_control_passes() -> None:
    state = position("square8_2p", {"2,2": "22", "6,6": "1"}, phase="ring_placement", hand=(5, 0))
    assert [m["count"] for m in moves(state, "place_ring") if m["to"] == "2,2"] == [1]
    after = play(state, "place_ring", to="2,2", count=1)
    assert board(after)[0]["2,2"] == "221"
    assert {m["from"] for m in moves(after)} == {"2,2"}
    assert [m["count"] for m in moves(state, "place_ring") if m["to"] == "6,6"] == [1]


def test_point_1_only_the_placed_stack_moves() -> None:
    state = position(
        "square8_2p", {"0,0": "1", "7,7": "1", "4,0": "2"}, phase="ring_placement", hand=(5, 5)
    )
    after = play(state, "place_ring", to="2,0", count=1)
    assert after.phase == "movement"
    assert {m["from"] for m in moves(after)} == {"2,0"}
    with pytest.raises(IllegalMoveError):
        after.find_move({"type": "move_stack", "from": "7,7", "to": "6,6"})
    # Without a placement every stack may move.
    assert {m["from"] for m in moves(play(state, "skip_placement"))} == {"0,0", "7,7"}


def test_point_2_no_placement_on_a_marker_or_collapsed_cell() -> None:
    state = position(
        "square8_2p",
        {"6,6": "2"},
        {"0,0": 1, "1,1": 2},
        {"3,3": 1},
        phase="ring_placement",
        hand=(5, 0),
    )
    assert not {"0,0", "1,1", "3,3"} & set(targets(state, "place_ring"))
    assert len(set(targets(state, "place_ring"))) == 61


def test_point_2_each_count_is_judged_by_itself() -> None:
    # The corner is walled in but for a stack with cap 2 next to it and free cells beyond: one
    # ring can neither move nor capture, two and three capture along the row.
    state = position(
        "square8_2p",
        {"1,0": "22"},
        {},
        {"0,1": 1, "1,1": 1},
        phase="ring_placement",
        hand=(5, 0),
    )
    assert [m["count"] for m in moves(state, "place_ring") if m["to"] == "0,0"] == [2, 3]


def test_r081_no_dead_placement_counts_the_distance() -> None:
    # In the corner of a corridor of two free cells, one and two rings can move, three cannot.
    walls = {f"{x},1": 2 for x in range(4)} | {"3,0": 2}
    state = position("square8_2p", {"6,6": "2"}, {}, walls, phase="ring_placement", hand=(5, 0))
    assert [m["count"] for m in moves(state, "place_ring") if m["to"] == "0,0"] == [1, 2]
    assert [m["count"] for m in moves(state, "place_ring") if m["to"] == "1,0"] == [1]


def test_r082_no_dead_placement_on_a_stack_judges_the_new_cap() -> None:
    # Height 3 after placing on a foreign stack: cap 1, and the only way out is a capture of cap 2.
    walls = {"0,1": 2, "1,1": 2}
    stacks = {"0,0": "22", "1,0": "22"}
    state = position("square8_2p", stacks, {}, walls, phase="ring_placement", hand=(5, 0))
    assert "0,0" not in targets(state, "place_ring")
    # On an own stack the cap grows and the capture is there.
    stacks = {"0,0": "21", "1,0": "22"}
    state = position("square8_2p", stacks, {}, walls, phase="ring_placement", hand=(5, 0))
    assert "0,0" in targets(state, "place_ring")


def test_point_6_skip_is_alone_without_a_legal_placement() -> None:
    # Everything but a row of two cells is collapsed: seat 1 may move, but nothing can be placed.
    open_cells = {"0,0", "1,0"}
    walls = {
        f"{x},{y}": 1 + (x + y) % 2
        for x in range(8)
        for y in range(8)
        if f"{x},{y}" not in open_cells
    }
    state = position(
        "square8_2p", {"0,0": "1"}, {"1,0": 2}, walls, phase="ring_placement", hand=(4, 4)
    )
    assert moves(state) == [{"type": "skip_placement"}]
    after = play(state, "skip_placement")
    assert moves(after) == [{"type": "move_stack", "from": "0,0", "to": "1,0"}]


def test_point_6_no_placement_action_when_nothing_can_move_either() -> None:
    # Hand, a blocked stack, no legal placement: not eligible to skip.
    walls = {f"{x},{y}": 1 + (x + y) % 2 for x in range(8) for y in range(8)}
    for cell in ("0,0", "7,7"):
        del walls[cell]
    state = position(
        "square8_2p", {"0,0": "1", "7,7": "2"}, {}, walls, phase="ring_placement", hand=(4, 4)
    )
    assert moves(state) == [{"type": "no_placement_action"}]
    assert moves(play(state, "no_placement_action")) == [{"type": "no_movement_action"}]


def test_point_6_landing_on_a_stack_is_no_move() -> None:
    # The neighbour in the corridor is a stack whose cap is too tall: neither move nor capture.
    walls = {f"{x},1": 2 for x in range(8)}
    state = position("square8_2p", {"0,0": "1", "1,0": "22"}, {}, walls, hand=(0, 4))
    assert moves(state) == [{"type": "no_movement_action"}]
    state = position(
        "square8_2p", {"0,0": "1", "1,0": "22"}, {}, walls, phase="ring_placement", hand=(0, 4)
    )
    assert moves(state) == [{"type": "no_placement_action"}]


def test_point_6_recovery_eligible_player_may_skip_beside_placements() -> None:
    # Seat 1: no stack, a marker, a buried ring, rings in hand.
    state = position("square8_2p", {"3,3": "12"}, {"6,6": 1}, phase="ring_placement", hand=(3, 3))
    assert types(state) == ["place_ring", "skip_placement"]
    # Without the marker, or without the buried ring, skipping is not on offer.
    state = position("square8_2p", {"3,3": "12"}, phase="ring_placement", hand=(3, 3))
    assert types(state) == ["place_ring"]
    state = position("square8_2p", {"3,3": "22"}, {"6,6": 1}, phase="ring_placement", hand=(3, 3))
    assert types(state) == ["place_ring"]


def test_point_6_recovery_eligible_player_without_a_slide() -> None:
    # The marker is walled in, so no slide exists: skip_placement all the same, then skip_recovery.
    walls = {"6,7": 1, "6,6": 2, "7,6": 1}
    state = position(
        "square8_2p", {"3,3": "12"}, {"7,7": 1}, walls, phase="ring_placement", hand=(3, 3)
    )
    assert types(state) == ["place_ring", "skip_placement"]
    after = play(state, "skip_placement")
    assert moves(after) == [{"type": "skip_recovery"}]


def test_point_6_recovery_eligible_player_without_a_placement_skips_alone() -> None:
    walls = {f"{x},{y}": 1 + (x + y) % 2 for x in range(8) for y in range(8)}
    for cell in ("0,0", "7,7", "7,6"):
        del walls[cell]
    state = position(
        "square8_2p",
        {"0,0": "12"},
        {"7,7": 1, "7,6": 2},
        walls,
        phase="ring_placement",
        hand=(3, 3),
    )
    assert moves(state) == [{"type": "skip_placement"}]
    assert moves(play(state, "skip_placement")) == [{"type": "skip_recovery"}]
    # With an empty hand it is no_placement_action, and the slide is still refused.
    state = position(
        "square8_2p",
        {"0,0": "12"},
        {"7,7": 1, "7,6": 2},
        walls,
        phase="ring_placement",
        hand=(0, 3),
    )
    assert moves(state) == [{"type": "no_placement_action"}]
    assert moves(play(state, "no_placement_action")) == [{"type": "skip_recovery"}]


def test_point_7_tests_of_action_consider_one_ring_only() -> None:
    """Two rings can be placed where one cannot; as a real action (R172) they do not count."""
    walls = {f"{x},{y}": 1 + (x + y) % 2 for x in range(8) for y in range(8)}
    for cell in ("0,0", "1,0", "2,0"):
        del walls[cell]
    # A cap of 2 next to the corner, which only two rings can overtake, then a free cell.
    state = position(
        "square8_2p", {"1,0": "22"}, {"2,0": 2}, walls, phase="ring_placement", hand=(6, 0)
    )
    assert [m["count"] for m in moves(state, "place_ring") if m["to"] == "0,0"] == [2]
    assert not kernels.has_real_action(state.rules.constants, state.array.copy(), 0)
    one = position(
        "square8_2p", {"1,0": "2"}, {"2,0": 2}, walls, phase="ring_placement", hand=(6, 0)
    )
    assert kernels.has_real_action(one.rules.constants, one.array.copy(), 0)
