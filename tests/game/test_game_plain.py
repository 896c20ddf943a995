"""The kernels' legal moves and collapses against a plain Python reading of the rules."""

from __future__ import annotations

import pytest

from ringrift_pipeline.game import CONFIGS
from ringrift_pipeline.game.state import move_key

from .plain import Plain
from .positions import board, moves, play, position, random_states

LARGE = ("square19", "hexagonal")


@pytest.mark.parametrize("config", CONFIGS)
def test_legal_moves_of_random_positions(config: str) -> None:
    large = config.startswith(LARGE)
    phases: set[str] = set()
    for seed in range(2 if large else 6):
        for state in random_states(config, 1000 + seed, every=41 if large else 7):
            plain = Plain(state.to_record())
            expected = plain.legal()
            found = [move.to_record() for move in state.legal_moves()]
            assert len(found) == len(expected), state
            assert {move_key(m) for m in found} == {move_key(m) for m in expected}, state
            phases.add(state.phase)
    assert {"ring_placement", "movement", "line_processing", "game_over"} <= phases


@pytest.mark.parametrize(
    "config", ["square8_2p", "square8_4p", "hex8_2p", "hex8_3p", "square19_2p"]
)
def test_regions_and_their_border_at_every_territory_choice(config: str) -> None:
    seen = 0
    for seed in range(1 if config.startswith(LARGE) else 12):
        for state in random_states(config, 77 + seed):
            if state.phase != "territory_processing" or state.array[6]:
                continue
            plain = Plain(state.to_record())
            for region in plain.regions():
                names = sorted(map(plain.name, region))
                after = play(state, "choose_territory_option", region=names)
                gone = {plain.name(cell) for cell in plain.after_border(region)}
                before = board(state)[2]
                assert set(board(after)[2]) == gone | set(before)
                assert all(board(after)[2][cell] == plain.seat for cell in gone)
                seen += 1
    assert seen > 5


def test_hexagonal_regions_and_border_on_a_closed_corner() -> None:
    stacks = {"-12,12,0": "1", "3,1,-4": "2"}
    wall = dict.fromkeys(["1,-12,11", "0,-11,11", "-1,-11,12"], 2)
    state = position("hexagonal_3p", stacks, wall | {"1,-11,10": 1}, phase="territory_processing")
    plain = Plain(state.to_record())
    assert plain.regions() == {frozenset({(0, -12)})}
    (region,) = plain.regions()
    after = play(state, "choose_territory_option", region=["0,-12,12"])
    assert {plain.name(c) for c in plain.after_border(region)} == set(board(after)[2])


def test_recovery_turns_agree(rare_recoveries: list) -> None:
    for state in rare_recoveries:
        expected = {move_key(m) for m in Plain(state.to_record()).legal()}
        assert {move_key(m) for m in moves(state)} == expected
    assert len(rare_recoveries) >= 10
