"""Lines (R120-R123; points 8-11)."""

from __future__ import annotations

from typing import Any

import pytest

from .positions import board, moves, pass_quietly, play, position, types

ROW = {f"{x},0": 1 for x in range(4)}
CALM = {"6,6": "1", "7,3": "2"}


def lines(config: str, markers: dict[str, int], stacks: dict[str, str] | None = None, **more: Any):
    return position(
        config, CALM if stacks is None else stacks, markers, phase="line_processing", **more
    )


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ("square8_2p", 4),
        ("square8_3p", 3),
        ("square8_4p", 3),
        ("square19_2p", 4),
        ("square19_4p", 4),
    ],
)
def test_point_11_required_length_on_square_boards(config: str, length: int) -> None:
    short = lines(config, {f"{x},0": 1 for x in range(length - 1)})
    assert moves(short) == [{"type": "no_line_action"}]
    exact = lines(config, {f"{x},0": 1 for x in range(length)})
    assert moves(exact) == [{"type": "process_line", "line": [f"{x},0" for x in range(length)]}]


@pytest.mark.parametrize(
    ("config", "length"),
    [("hex8_2p", 4), ("hex8_3p", 3), ("hex8_4p", 3), ("hexagonal_2p", 4), ("hexagonal_4p", 4)],
)
def test_point_11_required_length_on_hexagonal_boards(config: str, length: int) -> None:
    stacks = {"0,3,-3": "1", "-3,3,0": "2"}
    cells = [f"{x},0,{-x}" for x in range(length)]
    assert types(lines(config, dict.fromkeys(cells[:-1], 1), stacks)) == ["no_line_action"]
    assert moves(lines(config, dict.fromkeys(cells, 1), stacks), "process_line") == [
        {"line": sorted(cells)}
    ]


@pytest.mark.parametrize("step", [(1, 0), (0, 1), (1, 1), (1, -1)])
def test_r120_lines_run_along_all_axes(step: tuple[int, int]) -> None:
    cells = sorted(f"{1 + i * step[0]},{4 + i * step[1]}" for i in range(-1, 3))
    if step == (1, 1):
        cells = sorted(f"{i},{i}" for i in range(1, 5))
    state = lines("square8_2p", dict.fromkeys(cells, 1))
    assert moves(state, "process_line") == [{"line": cells}]


@pytest.mark.parametrize("step", [(1, 0), (0, 1), (1, -1)])
def test_r120_hexagonal_axes_and_no_fourth(step: tuple[int, int]) -> None:
    stacks = {"0,3,-3": "1", "-3,3,0": "2"}

    def along(dx: int, dy: int) -> list[str]:
        at = [(-1 + i * dx, -1 + i * dy) for i in range(4)]
        return sorted(f"{x},{y},{-x - y}" for x, y in at)

    assert moves(lines("hexagonal_2p", dict.fromkeys(along(*step), 1), stacks), "process_line") == [
        {"line": along(*step)}
    ]
    assert types(lines("hexagonal_2p", dict.fromkeys(along(1, 1), 1), stacks)) == ["no_line_action"]


def test_r120_a_line_is_broken_by_anything_else() -> None:
    for hole in ("foreign", "stack", "collapsed", "empty"):
        markers = dict(ROW)
        stacks, collapsed = dict(CALM), {}
        del markers["1,0"]
        if hole == "foreign":
            markers["1,0"] = 2
        elif hole == "stack":
            stacks["1,0"] = "1"
        elif hole == "collapsed":
            collapsed["1,0"] = 1
        state = position("square8_2p", stacks, markers, collapsed, phase="line_processing")
        assert types(state) == ["no_line_action"], hole


def test_point_8_longer_lines_offer_all_or_any_window() -> None:
    cells = [f"{x},0" for x in range(6)]
    state = lines("square8_2p", dict.fromkeys(cells, 1))
    assert types(state) == ["choose_line_option"]
    chosen = [m["collapse"] for m in moves(state, "choose_line_option")]
    assert sorted(chosen) == sorted([cells, cells[0:4], cells[1:5], cells[2:6]])
    assert all(m["line"] == cells for m in moves(state, "choose_line_option"))


def test_point_8_all_must_be_paid_a_window_is_free() -> None:
    cells = [f"{x},0" for x in range(5)]
    state = lines("square8_2p", dict.fromkeys(cells, 1))
    everything = play(state, "choose_line_option", line=cells, collapse=cells)
    assert board(everything)[2] == dict.fromkeys(cells, 1)
    assert everything.to_record()["pending_elimination"] is True
    assert everything.phase == "line_processing"
    window = play(state, "choose_line_option", line=cells, collapse=cells[1:])
    assert board(window)[2] == dict.fromkeys(cells[1:], 1)
    assert board(window)[1] == {"0,0": 1}
    # Point 9: nothing to pay and no line left, so the turn goes straight to the territory phase.
    assert window.phase == "territory_processing"
    assert window.to_record()["pending_elimination"] is False
    assert window.to_record()["eliminated"] == state.to_record()["eliminated"]


def test_r122_collapsed_cells_belong_to_the_mover() -> None:
    after = play(lines("square8_2p", ROW), "process_line", line=list(ROW))
    assert board(after)[2] == ROW
    assert after.to_record()["territory"] == [4, 0]


def test_point_9_payment_is_one_ring_of_any_controlled_stack() -> None:
    stacks = {"6,6": "211", "5,2": "1", "7,3": "12"}
    state = lines("square8_2p", ROW, stacks, hand=(0, 0))
    due = play(state, "process_line", line=list(ROW))
    assert sorted(m["to"] for m in moves(due, "eliminate_rings_from_stack")) == ["5,2", "6,6"]
    assert types(due) == ["eliminate_rings_from_stack"]
    before = due.to_record()["eliminated"]
    paid = play(due, "eliminate_rings_from_stack", to="6,6")
    assert board(paid)[0]["6,6"] == "21"
    assert paid.to_record()["eliminated"] == [before[0] + 1, before[1]]
    # That ply stays in line_processing; an explicit no_line_action follows.
    assert paid.phase == "line_processing"
    assert paid.to_record()["pending_elimination"] is False
    assert moves(paid) == [{"type": "no_line_action"}]
    assert play(paid, "no_line_action").phase == "territory_processing"
    # A stack of one goes altogether.
    assert "5,2" not in board(play(due, "eliminate_rings_from_stack", to="5,2"))[0]


def test_point_9_payment_may_hand_the_stack_over() -> None:
    state = lines("square8_2p", ROW, {"6,6": "21", "7,3": "2"}, hand=(3, 0))
    due = play(state, "process_line", line=list(ROW))
    paid = play(due, "eliminate_rings_from_stack", to="6,6")
    assert board(paid)[0] == {"6,6": "2", "7,3": "2"}


def test_point_9_without_a_stack_nothing_is_paid() -> None:
    state = lines("square8_2p", ROW, {"7,3": "12"}, hand=(3, 3))
    after = play(state, "process_line", line=list(ROW))
    assert after.phase == "territory_processing"
    assert after.to_record()["pending_elimination"] is False
    # With a second line left the phase stays, still without payment.
    two = ROW | {f"{x},7": 1 for x in range(4)}
    after = play(
        lines("square8_2p", two, {"7,3": "12"}, hand=(3, 3)), "process_line", line=list(ROW)
    )
    assert after.phase == "line_processing"
    assert types(after) == ["process_line"]


def test_r121_each_line_is_chosen_and_lines_are_found_anew() -> None:
    # A row and a column share (0,0): taking one breaks the other.
    cross = ROW | {f"0,{y}": 1 for y in range(4)}
    state = lines("square8_2p", cross)
    row, column = sorted(ROW), [f"0,{y}" for y in range(4)]
    assert sorted(m["line"] for m in moves(state, "process_line")) == sorted([row, column])
    paid = play(play(state, "process_line", line=row), "eliminate_rings_from_stack", to="6,6")
    assert moves(paid) == [{"type": "no_line_action"}]
    # Two lines apart: both are offered, and the second after the first is paid.
    apart = ROW | {f"{x},7": 1 for x in range(4)}
    state = lines("square8_2p", apart, {"6,5": "11", "7,3": "2"})
    assert len(moves(state, "process_line")) == 2
    due = play(state, "process_line", line=row)
    assert types(due) == ["eliminate_rings_from_stack"]
    paid = play(due, "eliminate_rings_from_stack", to="6,5")
    assert moves(paid) == [{"type": "process_line", "line": [f"{x},7" for x in range(4)]}]


def test_point_9_free_window_with_another_line_left_stays_in_the_phase() -> None:
    markers = {f"{x},0": 1 for x in range(5)} | {f"{x},7": 1 for x in range(4)}
    state = lines("square8_2p", markers)
    long = [f"{x},0" for x in range(5)]
    after = play(state, "choose_line_option", line=long, collapse=long[:4])
    assert after.phase == "line_processing"
    assert types(after) == ["process_line"]


def test_point_10_only_the_movers_lines() -> None:
    both = ROW | {f"{x},7": 2 for x in range(4)}
    state = lines("square8_2p", both)
    assert moves(state) == [{"type": "process_line", "line": sorted(ROW)}]
    due = play(state, "process_line", line=sorted(ROW))
    rest = pass_quietly(play(due, "eliminate_rings_from_stack", to="6,6"))
    # The other line waits for its owner's turn.
    assert rest.current_player == 2
    turn = position("square8_2p", CALM, both, phase="line_processing", player=2)
    assert moves(turn) == [{"type": "process_line", "line": [f"{x},7" for x in range(4)]}]


def test_r073_no_line_leads_on_to_territory() -> None:
    state = lines("square8_2p", {"0,0": 1})
    after = play(state, "no_line_action")
    assert after.phase == "territory_processing"
    assert moves(after) == [{"type": "no_territory_action"}]
    assert play(after, "no_territory_action").phase == "ring_placement"


def test_r075_pending_elimination_survives_a_win_by_the_collapse() -> None:
    # 29 cells are seat 1's already; the line makes it 33 of 64 (R062).
    collapsed = {f"{x},{y}": 1 for y in (4, 5, 6) for x in range(8)} | {
        f"{x},7": 1 for x in range(5)
    }
    state = position(
        "square8_2p", {"6,2": "1", "7,2": "2"}, ROW, collapsed, phase="line_processing"
    )
    after = play(state, "process_line", line=sorted(ROW))
    assert (after.phase, after.winner, after.reason) == ("game_over", 1, "territory")
    assert after.to_record()["pending_elimination"] is True
    assert after.to_record()["player"] is None
