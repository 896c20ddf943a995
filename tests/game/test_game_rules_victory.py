"""How games end and who comes where (R170-R178; points 18-21)."""

from __future__ import annotations

from typing import Any

import pytest

from ringrift_pipeline.game import State, new_game

from .positions import board, moves, pass_quietly, play, position

CORNER = {"1,0": 2, "0,1": 2}


def over(state: State) -> tuple[str, int | None, str | None]:
    return state.phase, state.winner, state.reason


def all_cells() -> list[str]:
    return [f"{x},{y}" for y in range(8) for x in range(8)]


# --- ring elimination and territory (R170, R171; point 18) ----------------------------------------
def test_r170_the_threshold_is_reached_not_passed() -> None:
    for have, ends in ((16, False), (17, True)):
        state = position(
            "square8_2p",
            {"0,0": "11", "7,6": "2"},
            {"3,0": 2},
            hand=(0, 36 - 3 - have),
            eliminated=(have, 0),
        )
        after = play(state, "move_stack", source="0,0", to="3,0")
        assert after.is_terminal == ends
        if ends:
            assert over(after) == ("game_over", 1, "ring_elimination")
            record = after.to_record()
            assert (record["status"], record["player"], record["winner"]) == ("completed", None, 1)
            assert after.legal_moves() == []


def test_r171_more_than_half_and_more_than_all_others_together() -> None:
    # square8_3p: 22 cells and more than the others together.
    cells = [c for c in all_cells() if c not in {"0,0", "1,0", "2,0", "7,6", "7,5"}]
    for mine, others, ends in ((21, 20, True), (20, 15, False), (21, 22, False), (21, 21, True)):
        collapsed = dict.fromkeys(cells[:mine], 1)
        collapsed |= {c: 2 + i % 2 for i, c in enumerate(cells[mine : mine + others])}
        state = position(
            "square8_3p",
            {"0,0": "1", "7,6": "2", "7,5": "3"},
            {"1,0": 1},
            collapsed,
        )
        after = play(state, "move_stack", source="0,0", to="2,0")
        assert after.to_record()["territory"][0] == mine + 1
        assert after.is_terminal == ends, (mine, others)
        if ends:
            assert over(after) == ("game_over", 1, "territory")


def test_point_18_victory_is_looked_at_after_every_move() -> None:
    # Reached in the middle of a turn, on landing, with a chain still open.
    state = position(
        "square8_2p",
        {"0,0": "11", "2,0": "2", "4,4": "2"},
        {"4,0": 2},
        hand=(0, 15),
        eliminated=(17, 0),
    )
    after = play(state, "overtaking_capture", source="0,0", target="2,0", to="4,0")
    assert over(after) == ("game_over", 1, "ring_elimination")


def test_point_18_rings_come_before_territory() -> None:
    # One collapse reaches both: a region with rings inside, on a board nearly seat 1's.
    cells = [c for c in all_cells() if c not in {"0,0", "6,6", "7,7", *CORNER}]
    state = position(
        "square8_2p",
        {"0,0": "22", "6,6": "1", "7,7": "2"},
        CORNER,
        dict.fromkeys(cells[:31], 1),
        phase="territory_processing",
        hand=(1, 15),
        eliminated=(16, 0),
    )
    after = play(state, "choose_territory_option", region=["0,0"])
    assert after.to_record()["territory"][0] >= 33
    assert over(after) == ("game_over", 1, "ring_elimination")


def test_point_18_lowest_seat_first_among_several_over_the_ring_threshold() -> None:
    # Only a record can have two at once (three players, 24 each).
    state = position(
        "square8_3p",
        {"0,0": "3", "7,6": "1"},
        hand=(0, 0, 4),
        eliminated=(0, 24, 24),
        player=3,
    )
    assert over(play(state, "move_stack", source="0,0", to="1,0")) == (
        *("game_over", 2, "ring_elimination"),
    )


def test_point_18_territory_comes_before_early_last_player_standing() -> None:
    cells = [c for c in all_cells() if c not in {"0,0", "1,0", "2,0"}]
    state = position(
        "square8_2p",
        {"0,0": "1"},
        {"1,0": 1},
        dict.fromkeys(cells[:40], 1),
        hand=(0, 0),
        eliminated=(17, 18),
    )
    after = play(state, "move_stack", source="0,0", to="2,0")
    # Seat 2's 18 rings would win first: they are looked at first.
    assert over(after) == ("game_over", 2, "ring_elimination")
    state = position(
        "square8_3p",
        {"0,0": "1"},
        {"1,0": 1},
        dict.fromkeys(cells[:40], 1),
        hand=(0, 0, 0),
        eliminated=(17, 18, 18),
    )
    after = play(state, "move_stack", source="0,0", to="2,0")
    assert over(after) == ("game_over", 1, "territory")


# --- early last player standing (point 19) --------------------------------------------------------
@pytest.mark.parametrize(
    ("stacks", "hand", "ends"),
    [
        ({"0,0": "1"}, (0, 0, 0), True),
        ({"0,0": "1"}, (5, 0, 0), True),  # the one may have a hand
        ({"0,0": "1"}, (0, 1, 0), False),  # a ring in another's hand
        ({"0,0": "21"}, (0, 0, 0), False),  # a buried ring
        ({"0,0": "1", "7,6": "2"}, (0, 0, 0), False),  # another stack
    ],
)
def test_point_19_one_controls_stacks_and_nobody_else_has_a_ring(
    stacks: dict[str, str], hand: tuple[int, ...], ends: bool
) -> None:
    rest = 54 - sum(map(len, stacks.values())) - sum(hand)
    state = position("square8_3p", stacks, hand=hand, eliminated=(rest - 40, 20, 20))
    height = len(stacks["0,0"])
    after = play(state, "move_stack", source="0,0", to=f"{height},0")
    assert after.is_terminal == ends
    if ends:
        assert over(after) == ("game_over", 1, "early_lps_only_rings_left")


def test_point_19_not_without_a_stack() -> None:
    # Only seat 1 has rings, but all in hand: the last stack on the board has just vanished.
    state = position(
        "square8_2p", {"0,0": "2"}, {"1,0": 1}, player=2, hand=(4, 0), eliminated=(15, 16)
    )
    after = play(state, "move_stack", source="0,0", to="1,0")
    assert not after.is_terminal


# --- bare board (R173; point 20) ------------------------------------------------------------------
def bare(
    config: str,
    territory: tuple[int, ...],
    eliminated: tuple[int, ...],
    hand: tuple[int, ...],
    markers: tuple[int, ...] = (),
    player: int = 1,
) -> State:
    """The state after the forced elimination of the last stack, on (0,0).

    Every other cell is collapsed or a marker (in the middle of the board), but (7,7) if the
    counts leave a cell over: nobody can place. The figures are those of the resulting position.
    """
    rows = [f"{x},{y}" for y in (3, 4) for x in range(8)]
    rest = [c for c in all_cells() if c not in {"0,0", "7,7", *rows}]
    field = {rows.pop(): seat for seat, n in enumerate(markers, start=1) for _ in range(n)}
    cells = ["7,7", *rest, *rows]
    collapsed = {cells.pop(): seat for seat, n in enumerate(territory, start=1) for _ in range(n)}
    assert cells in ([], ["7,7"])
    before = list(eliminated)
    before[player - 1] -= 1
    state = position(
        config,
        {"0,0": str(player)},
        field,
        collapsed,
        phase="forced_elimination",
        player=player,
        hand=hand,
        eliminated=tuple(before),
    )
    after = play(state, "forced_elimination", to="0,0")
    assert board(after)[0] == {}
    assert after.is_terminal
    assert after.to_record()["eliminated"] == list(eliminated)
    assert after.to_record()["hand"] == list(hand)  # hands are not converted
    return after


def test_point_20_not_while_someone_can_place_one_ring() -> None:
    # The vanished stack leaves (1,0) empty between (0,0), a marker, and a free cell.
    state = position("square8_2p", {"0,0": "1"}, {"1,0": 1}, {}, hand=(0, 4), eliminated=(15, 16))
    after = play(state, "move_stack", source="0,0", to="1,0")
    assert not after.is_terminal
    assert pass_quietly(after).current_player == 2


def test_point_20_nobody_can_place() -> None:
    # No rings in hand at all.
    state = position("square8_2p", {"0,0": "1"}, {"1,0": 1}, hand=(0, 0), eliminated=(17, 18))
    # Seat 2 is over the threshold already; take three seats instead.
    assert over(play(state, "move_stack", source="0,0", to="1,0"))[2] == "ring_elimination"
    state = position(
        "square8_3p", {"0,0": "1"}, {"1,0": 1}, {"7,7": 2}, hand=(0, 0, 0), eliminated=(17, 18, 18)
    )
    after = play(state, "move_stack", source="0,0", to="1,0")
    assert over(after) == ("game_over", 2, "stalemate_ladder:territory_control")


def test_point_20_territory_first() -> None:
    after = bare("square8_3p", (20, 21, 22), (20, 10, 1), (10, 7, 6))
    assert over(after) == ("game_over", 3, "stalemate_ladder:territory_control")


def test_point_20_then_eliminated_plus_hand() -> None:
    # 14 + 2 against 9 + 11: the hand counts.
    after = bare("square8_2p", (31, 31), (14, 9), (2, 11))
    assert over(after) == ("game_over", 2, "stalemate_ladder:ring_elimination")
    after = bare("square8_2p", (31, 31), (15, 14), (4, 3))
    assert over(after) == ("game_over", 1, "stalemate_ladder:ring_elimination")


def test_point_20_then_markers() -> None:
    after = bare("square8_2p", (29, 29), (14, 14), (4, 4), (2, 3))
    assert over(after) == ("game_over", 2, "stalemate_ladder:last_player_standing")
    after = bare("square8_2p", (29, 29), (14, 14), (4, 4), (3, 2), player=2)
    assert over(after) == ("game_over", 1, "stalemate_ladder:last_player_standing")


@pytest.mark.parametrize("mover", [1, 2])
def test_point_20_then_the_seat_of_the_last_recorded_move(mover: int) -> None:
    after = bare("square8_2p", (29, 29), (14, 14), (4, 4), (2, 2), player=mover)
    assert over(after) == ("game_over", mover, "stalemate_ladder:last_player_standing")


def test_point_20_only_the_tied_go_on_to_the_next_rung() -> None:
    # Seats 1 and 2 tie on territory; seat 3 has more rings but less territory (R173 ranks by
    # one criterion after the other), so it is out of it.
    after = bare("square8_3p", (21, 21, 20), (5, 6, 19), (6, 6, 12), (0, 0, 1), player=3)
    assert over(after) == ("game_over", 2, "stalemate_ladder:ring_elimination")
    # The same with markers: seat 3 has most of them.
    after = bare("square8_3p", (21, 21, 15), (10, 10, 8), (8, 8, 10), (1, 2, 3), player=3)
    assert over(after) == ("game_over", 2, "stalemate_ladder:last_player_standing")


@pytest.mark.parametrize(("mover", "winner"), [(1, 1), (2, 2), (3, 1)])
def test_point_20_the_last_mover_wins_among_the_tied_else_the_lowest_seat(
    mover: int, winner: int
) -> None:
    after = bare("square8_3p", (21, 21, 18), (10, 10, 10), (8, 8, 8), (1, 1, 1), player=mover)
    assert over(after) == ("game_over", winner, "stalemate_ladder:last_player_standing")


# --- last player standing (R172; point 21) --------------------------------------------------------
# Seat 1 alone has a real action: the others' stacks are walled in on single cells.
OPEN = {"0,0", "1,0", "2,0", "3,0", "0,1", "1,1", "2,1", "3,1"}
PRISON = {"7,7", "5,7"}


def prison(
    player: int, phase: str = "ring_placement", stacks: dict[str, str] | None = None, **more: Any
) -> State:
    collapsed = {
        c: 1 + i % 2 for i, c in enumerate(c for c in all_cells() if c not in OPEN | PRISON)
    }
    return position(
        "square8_2p",
        stacks or {"0,0": "1", "7,7": "1212", "5,7": "12"},
        {},
        collapsed,
        phase=phase,
        player=player,
        hand=(0, 0),
        **more,
    )


def resume(state: State) -> dict[str, Any]:
    return state.to_record()["resume"]


def end_turn(state: State) -> State:
    """End a turn that has nothing left to do."""
    return play(state, "no_territory_action")


def closing(seats: int, player: int, **more: Any) -> State:
    """A turn of ``player`` about to end on an open board where every seat has a stack."""
    stacks = {"0,0": "1", "7,7": "2", "0,7": "3", "7,0": "4"}
    return position(
        f"square8_{seats}p",
        dict(list(stacks.items())[:seats]),
        phase="territory_processing",
        player=player,
        hand=(0,) * seats,
        **more,
    )


def test_point_21_the_first_turn_is_not_counted() -> None:
    state = new_game("square8_2p")
    assert resume(state)["lps_anchor"] == -1
    state = play(state, "place_ring", to="0,0", count=1)
    state = pass_quietly(play(state, "move_stack", source="0,0", to="0,1"))
    # Seat 2 is the first to enter ring_placement after it.
    assert resume(state)["lps_anchor"] == 1
    assert resume(state)["lps_acted"] == 0b10


def test_point_21_availability_at_the_start_of_the_turn_counts() -> None:
    after = end_turn(closing(2, 1, lps_anchor=0, lps_acted=0b01))
    assert resume(after)["lps_acted"] == 0b11
    # A blocked seat enters without one.
    state = prison(1, "territory_processing", lps_anchor=0, lps_acted=0b01)
    after = play(state, "skip_territory_processing")
    assert after.current_player == 2
    assert resume(after)["lps_acted"] == 0b01


@pytest.mark.parametrize(
    ("acted", "holder", "count", "expected"),
    [
        (0b010, -1, 0, (1, 1)),  # exactly one: starts at one
        (0b010, 1, 2, (1, 3)),  # the same one again: rises
        (0b010, 2, 2, (1, 1)),  # another one: starts anew
        (0b110, 1, 2, (-1, 0)),  # two: cleared
        (0b000, 1, 2, (-1, 0)),  # nobody: cleared
    ],
)
def test_point_21_a_round_closes_when_the_anchor_enters(
    acted: int, holder: int, count: int, expected: tuple[int, int]
) -> None:
    state = closing(3, 3, lps_anchor=0, lps_acted=acted, lps_holder=holder, lps_count=count)
    after = end_turn(state)
    assert after.current_player == 1
    assert (resume(after)["lps_holder"], resume(after)["lps_count"]) == expected
    # The new round begins with the anchor itself.
    assert resume(after)["lps_acted"] == 0b001


def test_point_21_players_without_a_ring_at_the_close_are_ignored() -> None:
    # Seats 2 and 3 acted; seat 3 has no ring any more.
    state = position(
        "square8_3p",
        {"0,0": "1", "7,7": "2"},
        phase="territory_processing",
        player=2,
        hand=(0, 0, 0),
        lps_anchor=0,
        lps_acted=0b110,
        lps_holder=1,
        lps_count=1,
    )
    after = end_turn(state)
    assert after.current_player == 1
    assert (resume(after)["lps_holder"], resume(after)["lps_count"]) == (1, 2)


def test_point_21_an_anchor_without_rings_hands_over() -> None:
    stacks = {"0,0": "1", "7,7": "2"}

    def after(holder: int) -> dict[str, Any]:
        state = position(
            "square8_3p",
            stacks,
            phase="territory_processing",
            player=1,
            hand=(0, 0, 0),
            lps_anchor=2,
            lps_acted=0b001,
            lps_holder=holder,
            lps_count=2,
        )
        return resume(end_turn(state))

    kept = after(0)
    # The player now entering is the anchor, the unfinished round is dropped, the count is kept.
    assert kept["lps_anchor"] == 1
    assert kept["lps_acted"] == 0b010
    assert (kept["lps_holder"], kept["lps_count"]) == (0, 2)
    dropped = after(2)
    assert (dropped["lps_holder"], dropped["lps_count"]) == (-1, 0)


def standing(count: int, anchor: int = 1, **more: Any) -> State:
    """Seat 2, blocked, is about to end its turn by a forced elimination; seat 1 holds the count."""
    return prison(
        2,
        "forced_elimination",
        {"0,0": "1", "7,7": "1212", "5,7": "12"},
        lps_anchor=anchor,
        lps_acted=0b01 if anchor == 0 else 0b00,
        lps_holder=0,
        lps_count=count,
        eliminated=(14, 15),
        **more,
    )


def test_point_21_declared_with_three_rounds_behind_it() -> None:
    # The anchor is seat 1: entering closes its third round.
    for count, ends in ((1, False), (2, True)):
        after = play(standing(count, anchor=0), "forced_elimination", to="5,7")
        assert after.is_terminal == ends, count
    assert over(after) == ("game_over", 1, "last_player_standing_R172")


def test_point_21_declared_when_the_candidate_enters_though_another_is_the_anchor() -> None:
    after = play(standing(3, anchor=1), "forced_elimination", to="5,7")
    assert over(after) == ("game_over", 1, "last_player_standing_R172")
    after = play(standing(2, anchor=1), "forced_elimination", to="5,7")
    assert not after.is_terminal


def test_point_21_not_while_another_has_a_real_action_and_the_count_stays() -> None:
    # Seat 2 has a second, free stack now.
    state = prison(
        2,
        "territory_processing",
        {"0,0": "1", "3,1": "2", "7,7": "1212", "5,7": "12"},
        lps_anchor=1,
        lps_holder=0,
        lps_count=3,
    )
    kinds = {m["type"] for m in moves(state)}
    after = play(
        state,
        "skip_territory_processing"
        if "skip_territory_processing" in kinds
        else "no_territory_action",
    )
    assert after.current_player == 1
    assert (resume(after)["lps_holder"], resume(after)["lps_count"]) == (0, 3)


def test_point_21_not_without_a_real_action_of_its_own() -> None:
    # Seat 1's stack is walled in as well.
    state = prison(
        2,
        "forced_elimination",
        {"7,7": "1212", "5,7": "21"},
        lps_anchor=1,
        lps_holder=0,
        lps_count=3,
        eliminated=(15, 15),
    )
    after = play(state, "forced_elimination", to="7,7")
    assert not after.is_terminal


def test_r172_recovery_is_no_real_action() -> None:
    # Seat 2: no stack, a marker, a buried ring: it may recover, yet seat 1 stands alone.
    state = position(
        "square8_2p",
        {"0,0": "21"},
        {"5,5": 2},
        phase="territory_processing",
        player=2,
        hand=(0, 0),
        lps_anchor=1,
        lps_holder=0,
        lps_count=3,
    )
    assert over(end_turn(state)) == ("game_over", 1, "last_player_standing_R172")


def test_r172_buried_rings_keep_a_player_in_the_rotation() -> None:
    # As above but with two rounds: the game goes on, and seat 2's empty turn comes again.
    state = position(
        "square8_2p",
        {"0,0": "21"},
        {"5,5": 2},
        phase="territory_processing",
        player=2,
        hand=(0, 0),
        lps_anchor=1,
        lps_holder=0,
        lps_count=2,
    )
    after = end_turn(state)
    assert not after.is_terminal
    after = pass_quietly(
        play(play(after, "no_placement_action"), "move_stack", source="0,0", to="0,5")
    )
    assert after.current_player == 2


# --- ranking (R175-R178) --------------------------------------------------------------------------
def finish(config: str, **more: Any) -> State:
    """A position that seat 1 wins at once by the ring threshold."""
    threshold = {"square8_3p": 24, "square8_4p": 30}[config]
    seats = int(config[-2])
    eliminated = (threshold - 1, *more.pop("eliminated"))
    stacks = {"0,0": "11"} | more.pop("stacks", {})
    on_board = sum(map(len, stacks.values()))
    total = 18 * seats
    hand = more.pop("hand", None)
    if hand is None:
        rest = total - sum(eliminated) - on_board
        hand = (0, *[rest // (seats - 1) + (i < rest % (seats - 1)) for i in range(seats - 1)])
    markers = {"3,0": 1} | more.pop("markers", {})
    state = position(
        config, stacks, markers, more.pop("collapsed", {}), hand=hand, eliminated=eliminated, **more
    )
    return play(state, "move_stack", source="0,0", to="3,0")


def test_r177_territory_then_rings_then_markers() -> None:
    after = finish("square8_3p", eliminated=(5, 9), collapsed={"7,7": 2})
    assert after.ranking() == [[1], [2], [3]]
    after = finish("square8_3p", eliminated=(5, 9))
    assert after.ranking() == [[1], [3], [2]]
    after = finish("square8_3p", eliminated=(9, 9), markers={"7,7": 3, "7,5": 3, "7,3": 2})
    assert after.ranking() == [[1], [3], [2]]


def test_r178_ties_share_a_rank() -> None:
    after = finish("square8_3p", eliminated=(9, 9))
    assert after.ranking() == [[1], [2, 3]]
    after = finish("square8_4p", eliminated=(5, 5, 6))
    assert after.ranking() == [[1], [4], [2, 3]]


def test_r177_permanently_eliminated_later_is_better_and_never_is_best() -> None:
    after = finish(
        "square8_4p",
        eliminated=(8, 8, 8),
        hand=(0, 0, 0, 16),
        stacks={"7,7": "4"},
        lost_turn=[0, 4, 7, 0],
    )
    assert after.ranking() == [[1], [4], [3], [2]]


def test_r175_buried_rings_are_not_permanent_elimination() -> None:
    after = finish(
        "square8_3p", eliminated=(9, 9), hand=(0, 0, 9), stacks={"7,7": "23"}, lost_turn=[0, 0, 0]
    )
    assert after.to_record()["resume"]["lost_turn"] == [0, 0, 0]
    assert after.ranking() == [[1], [2, 3]]


def test_r175_the_turn_of_the_loss_is_noted() -> None:
    # Seat 2's last ring goes with the region.
    state = position(
        "square8_3p",
        {"0,0": "2", "6,6": "1", "7,3": "3", "5,4": "1"},
        CORNER,
        phase="territory_processing",
        hand=(4, 0, 4),
        turn=23,
    )
    due = play(state, "choose_territory_option", region=["0,0"])
    after = play(due, "eliminate_rings_from_stack", to="6,6")
    assert after.to_record()["resume"]["lost_turn"] == [0, 23, 0]
    assert after.current_player == 3


def test_r178_after_a_stalemate_hands_count_as_eliminated() -> None:
    after = bare("square8_3p", (20, 20, 22), (8, 14, 6), (10, 3, 13), (1, 0, 0))
    # 18, 17, 19 with their hands.
    assert after.ranking() == [[3], [1], [2]]


def test_ranking_before_the_end_is_as_the_position_stands() -> None:
    state = position("square8_2p", {"0,0": "1", "7,7": "2"}, {}, {"4,4": 2})
    assert state.ranking() == [[2], [1]]
