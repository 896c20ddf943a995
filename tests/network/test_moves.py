"""No two legal moves of a state share a description."""

from __future__ import annotations

import numpy as np
import pytest

from ringrift_pipeline.game import CONFIGS, get_rules, layout
from ringrift_pipeline.network import MOVE_KIND_NAMES, encode_states
from ringrift_pipeline.network.moves import CELL_ROLES, NO_ROLE

from .conftest import pack, random_positions


def description_keys(features):
    """(B, L) one number a description; padded entries get distinct negative ones."""
    cells = features["move_cells"].astype(np.int64) + 1
    key = features["move_kind"].astype(np.int64)
    for k in range(3):
        key = key * 1024 + cells[:, :, k]
    key = key * 32768 + features["move_rank"]
    width = key.shape[1]
    return np.where(features["legal_mask"], key, -1 - np.arange(width)[None, :])


def assert_distinct(features):
    keys = np.sort(description_keys(features), axis=1)
    same = keys[:, 1:] == keys[:, :-1]
    assert not same.any(), f"positions with equal descriptions: {np.flatnonzero(same.any(axis=1))}"


@pytest.mark.parametrize("config", CONFIGS)
def test_descriptions_are_distinct_on_random_games(config):
    rules = get_rules(config)
    small = rules.size < 10
    positions = random_positions(config, games=4 if small else 1)
    if not small:
        positions = positions.take(slice(0, 200))
    features = encode_states(rules, positions.states, positions.moves, positions.counts)
    assert_distinct(features)
    kinds, cells = features["move_kind"], features["move_cells"]
    legal = features["legal_mask"]
    assert (kinds < len(MOVE_KIND_NAMES)).all()
    # A cell is on the board exactly where its kind has one.
    present = (cells >= 0) & legal[:, :, None]
    wanted = (CELL_ROLES[kinds] != NO_ROLE) & legal[:, :, None]
    optional = kinds[:, :, None] == MOVE_KIND_NAMES.index("recovery_line_free")
    np.testing.assert_array_equal(present | optional, wanted | optional)
    assert (
        features["planes"][:, 0]
        .reshape(len(legal), -1)[np.nonzero(present)[0], cells[present]]
        .all()
    )
    # Kinds and cells alone tell nearly all moves apart: ranks are the exception.
    assert (features["move_rank"][legal] > 0).mean() < 0.01


def test_placements_of_one_two_and_three_rings_are_kinds_of_their_own():
    rules = get_rules("square8_2p")
    p = random_positions("square8_2p")
    features = encode_states(rules, p.states[:1], p.moves[:1], p.counts[:1])
    names = {MOVE_KIND_NAMES[k] for k in features["move_kind"][0][features["legal_mask"][0]]}
    assert names == {"place_ring_1", "place_ring_2", "place_ring_3"}
    assert (features["move_rank"] == 0).all()


def move(kind, a=0, b=0, c=0, d=0):
    return kind | a << 5 | b << 15 | c << 25 | d << 35


def test_rank_separates_what_kind_and_cells_cannot():
    """Lines through one window, and regions of one shape: the fields that do not fit in cells."""
    rules = get_rules("hexagonal_2p")
    p = random_positions("hexagonal_2p")
    u, v, w, x = (int(c) for c in rules.cells[[100, 101, 102, 103]])
    legal = np.array(
        [
            move(layout.CHOOSE_LINE_WINDOW, a=u, b=w, c=u, d=v),
            move(layout.CHOOSE_LINE_WINDOW, a=u, b=x, c=u, d=v),
            move(layout.CHOOSE_TERRITORY, a=u, b=v, c=30, d=0),
            move(layout.CHOOSE_TERRITORY, a=u, b=v, c=31, d=0),
            move(layout.CHOOSE_TERRITORY, a=u, b=v, c=32, d=0),
            move(layout.CHOOSE_TERRITORY, a=u, b=w, c=32, d=0),
        ]
    )
    features = encode_states(
        rules, p.states[:1], legal[None, :], np.array([len(legal)], dtype=np.int32)
    )
    np.testing.assert_array_equal(features["move_rank"][0], [0, 1, 0, 1, 2, 0])
    assert_distinct(features)


def test_free_and_paid_recoveries_differ():
    rules = get_rules("square8_2p")
    p = random_positions("square8_2p")
    u, v, w = (int(c) for c in rules.cells[[10, 11, 12]])
    legal = np.array(
        [
            move(layout.RECOVERY_LINE, a=u, b=v, c=w),
            move(layout.RECOVERY_LINE, a=u, b=v, d=w),
            move(layout.RECOVERY_FALLBACK, a=u, b=v, c=w),
            move(layout.RECOVERY_STRIKE, a=u, b=v, c=w),
        ]
    )
    features = encode_states(rules, p.states[:1], legal[None], np.array([4], dtype=np.int32))
    assert [MOVE_KIND_NAMES[k] for k in features["move_kind"][0]] == [
        "recovery_line",
        "recovery_line_free",
        "recovery_fallback",
        "recovery_stack_strike",
    ]
    assert (features["move_cells"][0] >= 0).all()
    assert (features["move_rank"] == 0).all()


def test_equal_moves_of_different_states_do_not_raise_the_rank():
    rules = get_rules("square8_2p")
    p = random_positions("square8_2p")
    same = pack([p.states[0]] * 5, [p.moves[0, : p.counts[0]]] * 5)
    features = encode_states(rules, same.states, same.moves, same.counts)
    assert (features["move_rank"] == 0).all()
    for row in range(1, 5):
        np.testing.assert_array_equal(features["move_cells"][0], features["move_cells"][row])


@pytest.mark.parametrize("config", ("square8_2p", "hex8_2p", "square8_4p"))
def test_third_territory_cell_is_the_middle_of_the_region(config):
    """The region flooded again in plain Python, over the neighbours that the rules table gives."""
    rules = get_rules(config)
    positions = random_positions(config, games=60 if rules.players == 2 else 30)
    kinds = positions.moves & layout.KIND_MASK
    legal = np.arange(kinds.shape[1])[None, :] < positions.counts[:, None]
    rows, columns = np.nonzero((kinds == layout.CHOOSE_TERRITORY) & legal)
    assert len(rows) > 10
    features = encode_states(rules, positions.states, positions.moves, positions.counts)
    stride = int(rules.constants[layout.B_STRIDE])
    if rules.geometry == "hex":
        offsets = [int(o) for o in rules.constants[layout.B_DIRECTIONS :][:6]]
    else:
        offsets = [1, -1, stride, -stride]
    for row, column in zip(rows, columns, strict=True):
        code = int(positions.moves[row, column])
        first, last, size, colour = (code >> s & 1023 for s in (5, 15, 25, 35))
        state = positions.states[row]

        def is_open(cell, state=state, colour=colour):
            content = int(state[layout.HEADER + cell]) & 15
            return content != 15 and not 5 <= content <= 8 and (colour == 0 or content != colour)

        region, frontier = {first}, [first]
        while frontier:
            here = frontier.pop()
            fresh = {here + o for o in offsets if is_open(here + o)} - region
            region |= fresh
            frontier.extend(fresh)
        ordered = sorted(region)
        assert (ordered[0], ordered[-1], len(ordered)) == (first, last, size)
        expected = [first, last, ordered[len(ordered) // 2]]
        got = features["move_cells"][row, column].tolist()
        assert got == [int(rules.plane_of[c]) for c in expected]
