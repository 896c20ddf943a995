"""Symmetries keep what the rules look at, turn planes and moves alike, and commute with moves."""

from __future__ import annotations

import numpy as np
import pytest

from ringrift_pipeline.game import CONFIGS, get_rules, kernels, layout
from ringrift_pipeline.network import BoardSymmetries, SymmetricEvaluator, encode_states
from tests.game.positions import position

from .conftest import random_positions, spread

EIGHT = [(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1) if dx or dy]
AXIAL = [(1, 0), (0, 1), (-1, 1), (-1, 0), (0, -1), (1, -1)]
COUNTS = {"square8": 8, "square19": 8, "hex8": 4, "hexagonal": 12}
# Moves that name a set of cells by some of them; on the turned board the rules may name others.
NAMED_OTHERWISE = (layout.CHOOSE_TERRITORY, layout.RECOVERY_LINE)


def board(config):
    return BoardSymmetries(get_rules(config))


@pytest.mark.parametrize("config", ["square8_2p", "square19_2p", "hex8_2p", "hexagonal_2p"])
def test_symmetries_are_distinct_and_keep_neighbours(config):
    rules = get_rules(config)
    tables = BoardSymmetries(rules).tables
    n = rules.size
    assert tables.shape == (COUNTS[config[:-3]], n * n)
    assert len({tuple(t) for t in tables.tolist()}) == len(tables)
    np.testing.assert_array_equal(tables[0], np.arange(n * n))
    cells = {int(p) for p in rules.plane_of[rules.cells]}
    kinds = [[(1, 0), (-1, 0), (0, 1), (0, -1)], EIGHT] if rules.geometry == "square" else [AXIAL]
    if config == "hex8_2p":
        kinds.append(EIGHT)  # the border flood of hex8
    for offsets in kinds:
        pairs = {
            (p, p + dy * n + dx)
            for p in cells
            for dx, dy in offsets
            if 0 <= p % n + dx < n and p + dy * n + dx in cells
        }
        for table in tables:
            assert set(table.tolist()) == set(range(n * n))
            assert {(int(table[p]), int(table[q])) for p, q in pairs} == pairs
    # A group: closed under composition.
    known = {tuple(t) for t in tables.tolist()}
    assert all(tuple(one[other]) in known for one in tables for other in tables)


def after(rules, state, moves):
    """Compact states after each of the moves, (K, S) int64."""
    results = np.tile(state, (len(moves), 1))
    for result, move in zip(results, moves, strict=True):
        kernels.apply_move(rules.constants, result, move)
    return results[:, : layout.HEADER + len(rules.plane_of)]


def legal(rules, state):
    buffer = np.zeros(rules.max_moves, np.int64)
    return buffer[: kernels.legal_moves(rules.constants, state, buffer)].copy()


def forms_equal_lines(rules, state, move):
    """Whether a recovery slide to a line forms two or more longest ones (RR-CANON-R112)."""
    start, to = int(move) >> 5 & 1023, int(move) >> 15 & 1023
    content = state[layout.HEADER :]
    own = layout.MARKER + state[layout.PLAYER]
    lengths = []
    for axis in rules.constants[layout.B_AXES :][: rules.constants[layout.B_NUM_AXES]]:
        length = 1
        for step in (int(axis), -int(axis)):
            at = to + step
            while at != start and content[at] == own:
                length, at = length + 1, at + step
        lengths.append(length)
    longest = max(lengths)
    return longest >= rules.line_length and lengths.count(longest) > 1


@pytest.mark.parametrize("config", CONFIGS)
def test_symmetry_commutes_with_apply(config):
    """Turn and move, or move and turn: all a position's moves lead to the same positions.

    A game is played on the board and, turned, on another; neither knows of the other. It does not
    hold of a recovery slide that forms two lines of one length: these games meet none, which is
    checked, and the next test is of that.
    """
    rules = get_rules(config)
    symmetries = board(config)
    assert symmetries.count == COUNTS[config[:-3]]
    rng = np.random.default_rng(list(config.encode()))
    large = rules.size > 9
    most = 3 if large else 60
    every = symmetries.count
    for number in (1, every // 2, every - 1) if large else range(1, every):
        which = np.array([number])
        ours, theirs = np.zeros((2, rules.state_size), np.int64)
        kernels.initial_state(rules.constants, ours, False)
        kernels.initial_state(rules.constants, theirs, False)
        while ours[layout.PHASE] != layout.OVER:
            moves = legal(rules, ours)
            slides = moves[moves & layout.KIND_MASK == layout.RECOVERY_LINE]
            assert not any(forms_equal_lines(rules, ours, slide) for slide in slides)
            turned = symmetries.moves(moves[None], which)[0]
            other = legal(rules, theirs)
            assert len(other) == len(moves)
            exact = ~np.isin(moves & layout.KIND_MASK, NAMED_OTHERWISE)
            assert set(turned[exact]) <= set(other)
            if exact.all():
                assert set(turned) == set(other)
            # what comes of them: of some moves of every position, of all where names differ
            some = rng.permutation(len(moves))[: most if exact.all() else None]
            results = symmetries.states(
                after(rules, ours, moves[some]), np.repeat(which, len(some))
            )
            if exact.all():
                partners = turned[some]
                reached = after(rules, theirs, partners)
                np.testing.assert_array_equal(reached, results)
            else:
                reached = after(rules, theirs, other)
                order = np.lexsort(reached.T), np.lexsort(results.T)
                np.testing.assert_array_equal(reached[order[0]], results[order[1]])
                same = (reached[None] == results[:1, None]).all(axis=2)
                partners = other[np.flatnonzero(same[0])]
            kernels.apply_move(rules.constants, ours, moves[some[0]])
            kernels.apply_move(rules.constants, theirs, partners[0])
        compact = symmetries.states(ours[None], which)[0]
        np.testing.assert_array_equal(compact, theirs[: len(compact)])


def recovery_position(config, markers, payer):
    """Seat 1 without a stack, its markers on these cells, a buried ring of it at ``payer``."""
    names = get_rules(config).names
    hand = (0, 90 if config == "hexagonal_2p" else 5)
    state = position(config, {names[payer]: "12"}, {names[at]: 1 for at in markers}, hand=hand)
    return state.array


@pytest.mark.parametrize(
    ("config", "lines", "source", "to", "payer"),
    [
        ("square8_2p", ("0,3 1,3 2,3", "3,4 3,5 3,6"), "4,3", "3,3", "7,6"),
        (
            "hexagonal_2p",
            ("1,0,-1 2,0,-2 3,0,-3", "1,-1,0 2,-2,0 3,-3,0"),
            "-1,1,0",
            "0,0,0",
            "9,0,-9",
        ),
    ],
)
def test_a_slide_that_forms_two_equal_lines_is_the_exception(config, lines, source, to, payer):
    """The line of the first axis collapses (RR-CANON-R112), whichever way the board is turned.

    Where a symmetry changes the order of the two lines' axes, other cells collapse than those that
    the symmetry sends the collapsed ones to; nothing else differs.
    """
    symmetries = board(config)
    rules = symmetries.rules
    axes = rules.constants[layout.B_AXES :][: rules.constants[layout.B_NUM_AXES]].tolist()
    arms = [[rules.cell_of[name] for name in line.split()] for line in lines]
    source, to, payer = (rules.cell_of[name] for name in (source, to, payer))
    state = recovery_position(config, [*arms[0], *arms[1], source], payer)
    (move,) = (
        move
        for move in legal(rules, state)
        if move & (1 << 25) - 1 == layout.RECOVERY_LINE | source << 5 | to << 15
    )
    assert forms_equal_lines(rules, state, move)
    alone = recovery_position(config, [*arms[0], source], payer)
    assert move in legal(rules, alone) and not forms_equal_lines(rules, alone, move)
    plane_cells = {int(p): cell for cell, p in enumerate(rules.plane_of) if rules.names[cell]}
    differing = 0
    for number in range(symmetries.count):
        which = np.array([number])
        table = symmetries.tables[number]
        image = {cell: plane_cells[int(table[p])] for p, cell in plane_cells.items()}
        turned_arms = [[image[cell] for cell in line] for line in arms]
        markers = [*turned_arms[0], *turned_arms[1], image[source]]
        turned = recovery_position(config, markers, image[payer])
        start = symmetries.states(state[None], which)[0]
        np.testing.assert_array_equal(start, turned[: len(start)])
        partner = symmetries.moves(np.array([[move]]), which)[0, 0]
        assert partner in legal(rules, turned)
        ours = symmetries.states(after(rules, state, [move]), which)[0]
        theirs = after(rules, turned, [partner])[0]
        steps = [line[1] - line[0] for line in turned_arms]
        order = [next(i for i, axis in enumerate(axes) if axis in (s, -s)) for s in steps]
        first = turned_arms[int(np.argmin(order))]
        collapsed = theirs[layout.HEADER :] == layout.COLLAPSED
        assert set(np.flatnonzero(collapsed)) == {*first, image[to]}
        changed = set(np.flatnonzero(ours != theirs) - layout.HEADER)
        if order[0] < order[1]:
            assert not changed
        else:
            assert changed == {*turned_arms[0], *turned_arms[1]}
            differing += 1
    assert 0 < differing < symmetries.count


@pytest.mark.parametrize("config", ("square8_2p", "hex8_3p", "hexagonal_2p"))
def test_turned_features_are_those_of_the_turned_position(config):
    symmetries = board(config)
    rules = symmetries.rules
    p = spread(random_positions(config), 60)
    kinds = p.moves & layout.KIND_MASK
    is_legal = np.arange(p.moves.shape[1]) < p.counts[:, None]
    regions = (np.isin(kinds, NAMED_OTHERWISE) & is_legal).any(axis=1)
    lines = (kinds == layout.CHOOSE_LINE_WINDOW) & is_legal  # its third cell is a line's end
    p = p.take(np.flatnonzero(~regions & ~lines.any(axis=1)))
    assert len(p.counts) > 20
    which = np.arange(len(p.counts)) % symmetries.count
    states, moves = symmetries.states(p.states, which), symmetries.moves(p.moves, which)
    expected = encode_states(rules, states, moves, p.counts)
    before = encode_states(rules, p.states, p.moves, p.counts)
    planes = symmetries.planes(before["planes"], which)
    np.testing.assert_array_equal(planes, expected["planes"])
    mask = before["legal_mask"]
    cells = symmetries.cells(
        before["move_cells"][mask],
        before["move_kind"][mask],
        np.repeat(which, p.counts),
    )
    np.testing.assert_array_equal(cells, expected["move_cells"][mask])
    assert cells.dtype == before["move_cells"].dtype and planes.dtype == np.uint8
    for name in ("globals", "move_kind", "legal_mask"):  # nothing else turns
        np.testing.assert_array_equal(before[name], expected[name])


def test_the_ends_of_a_line_are_listed_as_the_rules_list_them():
    """A line in the direction of every axis, turned by every symmetry, runs along an axis."""
    for config in ("square8_2p", "hex8_2p", "hexagonal_2p"):
        symmetries = board(config)
        rules = symmetries.rules
        axes = rules.constants[layout.B_AXES :][: rules.constants[layout.B_NUM_AXES]]
        middle = int(rules.cells[len(rules.cells) // 2])
        for axis in map(int, axes):
            move = np.array([[layout.PROCESS_LINE | middle << 5 | (middle + axis) << 15]])
            for number in range(symmetries.count):
                turned = int(symmetries.moves(move, np.array([number]))[0, 0])
                first, last = turned >> 5 & 1023, turned >> 15 & 1023
                assert last - first in axes
                cells = rules.plane_of[[middle, middle + axis]].astype(np.int16)
                described = symmetries.cells(
                    np.array([[*cells, -1]], np.int16),
                    np.array([layout.PROCESS_LINE], np.uint8),
                    np.array([number]),
                )
                assert described.tolist() == [[*rules.plane_of[[first, last]], -1]]


def test_numbers_of_symmetries_are_checked():
    symmetries = board("hex8_2p")
    planes = np.zeros((2, 1, 9, 9), np.uint8)
    for bad in ([0], [0, 4], [-1, 0], [0.0, 1.0]):
        with pytest.raises(ValueError, match="which must"):
            symmetries.planes(planes, np.array(bad))


class _Sided:
    """Likes moves and positions by where things lie on the plane, so each side looks different."""

    def __init__(self, rules):
        self.rules = rules
        self.seen = 0

    def evaluate(self, states, moves, counts):
        self.seen += len(states)
        features = encode_states(self.rules, states, moves, counts)
        logits = features["move_cells"][..., 0].astype(np.float32) / 20.0
        place = np.arange(self.rules.size**2)
        stacks = features["planes"][:, 1:3].reshape(len(states), 2, -1) @ place
        value = np.stack([stacks[:, 0] + 1.0, stacks[:, 1] + 2.0], axis=1)
        return logits, (value / value.sum(axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("config", ["square8_2p", "hex8_2p", "hexagonal_2p"])
def test_the_mean_over_all_symmetries_looks_the_same_from_every_side(config):
    count = COUNTS[config[:-3]]
    p = spread(random_positions(config), 60)
    kinds = p.moves & layout.KIND_MASK
    simple = np.isin(kinds, (layout.PLACE_RING, layout.MOVE_STACK)) | (
        np.arange(p.moves.shape[1]) >= p.counts[:, None]
    )
    p = p.take(np.flatnonzero(simple.all(axis=1)))
    assert len(p.counts) > 10
    inner = _Sided(get_rules(config))
    mean = SymmetricEvaluator(inner, 100)
    assert mean.symmetries == count
    logits, value = mean.evaluate(p.states, p.moves, p.counts)
    assert inner.seen == count * len(p.counts)
    plain_logits, plain_value = inner.evaluate(p.states, p.moves, p.counts)
    is_legal = np.arange(p.moves.shape[1]) < p.counts[:, None]
    np.testing.assert_allclose(value.sum(axis=1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(np.where(is_legal, np.exp(logits), 0).sum(axis=1), 1.0, rtol=1e-5)
    assert np.abs(value - plain_value).max() > 1e-2
    for number in range(1, count):
        which = np.full(len(p.counts), number)
        sides = board(config)
        turned = mean.evaluate(sides.states(p.states, which), sides.moves(p.moves, which), p.counts)
        np.testing.assert_allclose(turned[0][is_legal], logits[is_legal], atol=1e-4)
        np.testing.assert_allclose(turned[1], value, atol=1e-5)
    same = SymmetricEvaluator(inner, 1).evaluate(p.states, p.moves, p.counts)
    np.testing.assert_allclose(same[1], plain_value)
    with pytest.raises(ValueError, match="at least 1"):
        SymmetricEvaluator(inner, 0)
