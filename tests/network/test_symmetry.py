"""Symmetries keep what the rules look at, and turn planes and moves alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ringrift_pipeline.game import get_rules, layout
from ringrift_pipeline.network import (
    encode_states,
    features_to_tensors,
    symmetry_tables,
    transform_features,
)

from .conftest import random_positions, spread

EIGHT = [(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1) if dx or dy]
AXIAL = [(1, 0), (0, 1), (-1, 1), (-1, 0), (0, -1), (1, -1)]


@pytest.mark.parametrize(
    "config, count", [("square8_2p", 8), ("square19_2p", 8), ("hex8_2p", 4), ("hexagonal_2p", 12)]
)
def test_symmetries_are_distinct_and_keep_neighbours(config, count):
    rules = get_rules(config)
    tables = symmetry_tables(rules)
    n = rules.size
    assert tables.shape == (count, n * n)
    assert len({tuple(t) for t in tables.tolist()}) == count
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


@pytest.mark.parametrize("config", ("square8_2p", "hex8_3p", "hexagonal_2p"))
def test_turned_features_are_those_of_the_turned_position(config):
    rules = get_rules(config)
    p = spread(random_positions(config), 24)
    simple = (layout.PLACE_RING, layout.MOVE_STACK, layout.OVERTAKING_CAPTURE)
    kinds = p.moves & layout.KIND_MASK
    legal = np.arange(p.moves.shape[1]) < p.counts[:, None]
    p = p.take(np.flatnonzero((np.isin(kinds, simple) | ~legal).all(axis=1)))
    assert len(p.counts) > 5
    tables = symmetry_tables(rules)
    which = np.arange(len(p.counts)) % len(tables)
    padded_of = np.full(rules.size**2, -1)
    padded_of[rules.plane_of[rules.cells]] = rules.cells

    states = p.states[:, : layout.HEADER + len(rules.plane_of)].copy()
    moves = p.moves.copy()
    for row, table in enumerate(tables[which]):

        def image(cell, table=table):
            return int(padded_of[table[rules.plane_of[cell]]])

        for cell in rules.cells:
            states[row, layout.HEADER + image(cell)] = p.states[row, layout.HEADER + cell]
        if states[row, layout.MUST_MOVE] >= 0:
            states[row, layout.MUST_MOVE] = image(states[row, layout.MUST_MOVE])
        for column in range(p.counts[row]):
            code = int(p.moves[row, column])
            fields = {layout.PLACE_RING: 1, layout.MOVE_STACK: 2}.get(code & 31, 3)
            for shift in (5, 15, 25)[:fields]:
                cell = code >> shift & 1023
                code += (image(cell) - cell) << shift
            moves[row, column] = code
    expected = features_to_tensors(encode_states(rules, states, moves, p.counts))
    before = features_to_tensors(encode_states(rules, p.states, p.moves, p.counts))
    got = transform_features(before, torch.from_numpy(tables), torch.from_numpy(which))
    assert set(got) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name
        assert got[name].dtype == before[name].dtype
