"""What holds in every game, on random games of all twelve configs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ringrift_pipeline.game import (
    CONFIGS,
    IllegalMoveError,
    State,
    get_rules,
    kernels,
    layout,
    new_game,
)
from ringrift_pipeline.game.state import move_key

from .positions import board, random_states

SMALL = tuple(c for c in CONFIGS if c.startswith(("square8", "hex8")))
SEEDS = st.integers(0, 2**63 - 1)
QUICK = settings(
    max_examples=8,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
#: Longest games seen are 364 plies on the small boards and about 1,500 on the large ones.
MOST_PLIES = {"square8": 600, "hex8": 600, "square19": 3000, "hexagonal": 4000}


def check_row(config: str, row: np.ndarray) -> None:
    """Codes, masks, counts and rings of a row, counted anew from the codes alone."""
    rules = get_rules(config)
    header, players = layout.HEADER, rules.players
    codes = row[header : header + rules.padded]
    classes = codes & 15
    on_board = np.zeros(rules.padded, dtype=bool)
    on_board[rules.cells] = True
    assert (classes[~on_board] == layout.OFF_BOARD).all()
    assert (classes[on_board] < layout.STACK + players).all()
    # Each class occurs only for seats that exist.
    for base in (layout.MARKER, layout.COLLAPSED, layout.STACK):
        for seat in range(players, 4):
            assert not (classes == base + seat).any()
    # R021: one class a cell, counted and masked.
    masks, rows = int(rules.constants[layout.B_MASKS]), int(rules.constants[layout.B_ROWS])
    stride = int(rules.constants[layout.B_STRIDE])
    for cell_class in range(layout.CLASSES):
        cells = set(np.flatnonzero(classes == cell_class).tolist())
        if cell_class != layout.OFF_BOARD:
            assert row[layout.COUNT + cell_class] == len(cells)
        start = masks + cell_class * rows
        bits = {
            r * stride + c
            for r in range(rows)
            for c in range(stride)
            if (int(row[start + r]) >> c) & 1
        }
        assert bits == cells
    # R052: rings are conserved, and each colour stays within its supply.
    rings = [0] * 4
    for code in codes[classes >= layout.STACK].tolist():
        if code & 15 == layout.OFF_BOARD:
            continue
        tall, text = (code >> 4) & 63, code >> 10
        assert tall > 0 and text >> (2 * tall) == 0
        assert (code & 15) - layout.STACK == text & 3
        for i in range(tall):
            rings[(text >> (2 * i)) & 3] += 1
    hand = row[layout.HAND : layout.HAND + players]
    eliminated = row[layout.ELIMINATED : layout.ELIMINATED + players]
    assert row[layout.ON_BOARD : layout.ON_BOARD + 4].tolist() == rings
    total = sum(rings) + int(hand.sum()) + int(eliminated.sum())
    assert total == players * rules.rings_per_player
    assert all(rings[i] + hand[i] <= rules.rings_per_player for i in range(players))
    assert (hand >= 0).all() and (eliminated >= 0).all()


def progress(rules_row: np.ndarray) -> int:
    """Markers + collapsed + eliminated (RR-CANON-R191)."""
    count = rules_row[layout.COUNT :]
    return int(
        count[layout.MARKER : layout.STACK].sum()
        + rules_row[layout.ELIMINATED : layout.ELIMINATED + 4].sum()
    )


def run(config: str, seed: int, every: int) -> list[int]:
    """Play one random game in the kernels, checking as it goes; returns the packed moves."""
    rules = get_rules(config)
    b = rules.constants
    rng = np.array([seed], dtype=np.uint64)
    out = np.empty(rules.max_moves, dtype=np.int64)
    row = np.zeros(rules.state_size, dtype=np.int64)
    kernels.initial_state(b, row, 0)
    played: list[int] = []
    before = progress(row)
    board_part = slice(layout.HAND, layout.LOST_TURN)
    while True:
        ply = len(played)
        if ply % every == 0:
            check_row(config, row)
        kept = row.copy()
        count = kernels.legal_moves(b, row, out)
        assert (row == kept).all()  # listing moves changes nothing
        if row[layout.PHASE] == layout.OVER:
            assert count == 0
            break
        assert count > 0
        if ply % every == 0:
            assert len(set(out[:count].tolist())) == count
        move = int(out[kernels.random_below(rng, count)])
        kernels.apply_move(b, row, move)
        now = progress(row)
        assert now >= before
        kind = move & layout.KIND_MASK
        if layout.SKIP_PLACEMENT <= kind <= layout.NO_TERRITORY:
            assert (row[layout.HEADER :] == kept[layout.HEADER :]).all()
            assert (row[board_part] == kept[board_part]).all()
            assert now == before
        elif kind not in (layout.PLACE_RING, layout.PROCESS_LINE):
            # Everything but a placement and a line's collapse makes progress; a chosen line or
            # region keeps markers + collapsed at least.
            assert now > before or kind >= layout.CHOOSE_LINE_ALL
        before = now
        played.append(move)
        assert len(played) < MOST_PLIES[rules.board], "the game does not end"
    check_row(config, row)
    points = np.empty(rules.players)
    kernels.ranking_points(b, row, points)
    assert points.sum() == pytest.approx(1.0) and points.max() == 1.0
    assert points.argmax() == row[layout.WINNER]
    return played


@pytest.mark.parametrize("config", CONFIGS)
def test_invariants_of_random_games(config: str) -> None:
    large = config not in SMALL

    @settings(QUICK, max_examples=1 if large else 8)
    @given(seed=SEEDS)
    def check(seed: int) -> None:
        played = run(config, seed, every=17 if large else 3)
        if not large:
            assert run(config, seed, every=10**6) == played  # same seed, same game

    check()


@pytest.mark.parametrize("config", CONFIGS)
def test_legal_sets_have_no_duplicate_records(config: str) -> None:
    for seed in range(1 if config not in SMALL else 3):
        for state in random_states(config, 400 + seed, every=29 if config not in SMALL else 2):
            keys = [move_key(move.to_record()) for move in state.legal_moves()]
            assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("config", CONFIGS)
def test_object_api_and_kernels_play_the_same_game(config: str) -> None:
    """The same choices by index, one through ``State``, the other through the kernels."""
    rules = get_rules(config)
    limit = 10**6 if config in SMALL else 150
    choices = np.random.default_rng(11)
    out = np.empty(rules.max_moves, dtype=np.int64)
    row = np.zeros(rules.state_size, dtype=np.int64)
    kernels.initial_state(rules.constants, row, 0)
    state = new_game(config)
    ply = 0
    while not state.is_terminal and ply < limit:
        count = kernels.legal_moves(rules.constants, row, out)
        legal = state.legal_moves()
        assert [move.code for move in legal] == out[:count].tolist()
        assert len(legal) > 0
        pick = int(choices.integers(count))
        kernels.apply_move(rules.constants, row, out[pick])
        state = state.apply(legal[pick])
        assert (state.array == row).all()
        ply += 1
    if config in SMALL:
        assert state.winner == row[layout.WINNER] + 1
        ranking = state.ranking()
        assert ranking[0] == [state.winner]
        assert sorted(sum(ranking, [])) == list(range(1, rules.players + 1))
        assert state.current_player is None and state.phase == "game_over"


@pytest.mark.parametrize("config", SMALL)
def test_apply_is_pure(config: str) -> None:
    for state in random_states(config, 21, every=4):
        before = state.array.tobytes()
        record = json.dumps(state.to_record())
        for move in state.legal_moves()[:12]:
            state.apply(move)
        for wrong in (
            {"type": "place_ring", "to": "99,99", "count": 1},
            {"type": "forced_elimination", "to": "0,0", "extra": 1},
            {"type": "nonsense"},
            {},
            None,
            7,
            {"type": ["list"]},
            {"type": "place_ring", "to": {"a": []}, "count": []},
        ):
            with pytest.raises(IllegalMoveError):
                state.find_move(wrong)
        assert state.array.tobytes() == before
        assert json.dumps(state.to_record()) == record


def test_apply_refuses_a_move_of_another_position_and_changes_nothing() -> None:
    state = new_game("square8_2p")
    foreign = next(m for m in state.legal_moves() if m.to_record()["to"] == "3,3")
    later = state.apply(foreign)
    before = later.array.tobytes()
    with pytest.raises(IllegalMoveError) as caught:
        later.apply(foreign)
    assert caught.value.phase == "movement"
    assert caught.value.move == foreign.to_record()
    assert "move_stack" in caught.value.reason
    for part in ("place_ring", "movement", "move_stack"):
        assert part in str(caught.value)
    assert later.array.tobytes() == before
    with pytest.raises(IllegalMoveError):
        later.apply("place_ring")  # type: ignore[arg-type]
    # An equal move from elsewhere is as good as the position's own.
    twin = next(m for m in new_game("square8_2p").legal_moves() if m == foreign)
    assert state.apply(twin) == later


def test_array_is_read_only_and_copied() -> None:
    state = new_game("hex8_2p")
    with pytest.raises(ValueError, match="read-only"):
        state.array[0] = 3
    row = state.array.copy()
    twin = State.from_array("hex8_2p", row)
    row[:] = 0
    assert twin == state and hash(twin) == hash(state)
    with pytest.raises(ValueError, match="shape"):
        State.from_array("square8_2p", row)


# --- records ------------------------------------------------------------------------------------
def through_json(state: State) -> State:
    return State.from_record(json.loads(json.dumps(state.to_record())))


@pytest.mark.parametrize("config", CONFIGS)
def test_records_round_trip_at_every_ply(config: str) -> None:
    every = 1 if config in SMALL else 37
    for state in random_states(config, 31, every=every):
        twin = through_json(state)
        assert twin == state
        assert (twin.array == state.array).all()
        assert twin.to_record() == state.to_record()


def test_records_round_trip_with_the_pie_rule() -> None:
    for state in random_states("square8_2p", 4, swap_rule=True)[:40]:
        assert (through_json(state).array == state.array).all()


@pytest.mark.parametrize("config", ["square8_2p", "square8_4p", "hex8_3p"])
def test_a_game_continues_identically_from_its_record(config: str) -> None:
    """Also in the middle of a chain and while payments are due."""
    rules = get_rules(config)
    out = np.empty(rules.max_moves, dtype=np.int64)
    seen = set()
    for seed in range(3):
        for state in random_states(config, 50 + seed, every=1):
            kind = (state.phase, int(state.array[layout.PENDING]), int(state.array[layout.PAYMENT]))
            if state.is_terminal or kind in seen:
                continue
            seen.add(kind)
            ends = []
            for row in (state.array.copy(), through_json(state).array.copy()):
                rng = np.array([99], dtype=np.uint64)
                kernels.random_playout(rules.constants, row, rng, out)
                ends.append(row)
            assert (ends[0] == ends[1]).all()
    assert ("chain_capture", 0, 0) in seen
    assert ("territory_processing", 0, 1) in seen
    assert len(seen) >= 7


def test_mid_chain_the_record_names_the_chaining_stack() -> None:
    chains = [s for s in random_states("square8_2p", 3) if s.phase == "chain_capture"]
    assert chains
    for state in chains:
        record = state.to_record()
        assert record["must_move"] in record["stacks"]
        assert {m.to_record()["from"] for m in state.legal_moves()} == {record["must_move"]}
        assert [m.to_record() for m in through_json(state).legal_moves()] == [
            m.to_record() for m in state.legal_moves()
        ]


def test_move_records_find_their_move_again() -> None:
    for config in ("square8_3p", "hex8_2p"):
        for state in random_states(config, 8, every=5):
            for move in state.legal_moves():
                record = json.loads(json.dumps(move.to_record()))
                assert state.find_move(record).code == move.code


def test_returned_records_are_copies() -> None:
    state = new_game("square8_2p")
    (first, *_) = state.legal_moves()
    first.to_record()["to"] = "7,7"
    assert first.to_record()["to"] == "0,0"
    state.legal_moves().clear()
    assert len(state.legal_moves()) == 192
    state.to_record()["stacks"]["0,0"] = "1"
    assert board(state)[0] == {}
