"""What is read from finished trees, against a plain tree of objects searched beside them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ringrift_pipeline.game import get_rules, layout
from ringrift_pipeline.search import GumbelSearch, SearchError, SearchPool, SearchSettings

from .conftest import HashEvaluator, after, decisions, game_rows, legal, result
from .plain_search import Node, PlainSearch
from .test_gumbel import ends

SETTINGS = SearchSettings(max_considered=8, c_visit=20.0, c_scale=0.5)
DEPTH = 12
CASES = [
    ("square8_2p", SETTINGS, 0),
    ("square8_2p", SearchSettings(256, 50.0, 1.0, 0.0), 1),  # wide enough to try the swap
    ("square8_3p", SETTINGS, 0),
    ("hex8_4p", SearchSettings(5, 3.0, 2.0, 1.0), 0),
    ("hex8_2p", SearchSettings(1, 50.0, 1.0, 1.0), 0),
]


def positions(config: str, swap: int) -> np.ndarray:
    rows = decisions(config, 3, swap)
    picked = rows[np.linspace(0, len(rows) - 1, 7).astype(int)]
    if swap:  # the positions in which the sides may be swapped
        picked = np.concatenate((picked, rows[rows[:, layout.TURN] == 2][:2]))
    return picked


def best_line(node: Node, action: int, settings: SearchSettings, depth: int) -> list[int]:
    """The principal variation of an action, by its definition."""
    line = [node.moves[action]]
    node = node.children[action]
    while node.children and len(line) < depth:
        visits = {a: node.visits(a) for a in node.children}
        most = max(visits.values())
        prior = node.prior()
        scale = (settings.c_visit + most) * settings.c_scale

        def score(a, node=node, prior=prior, scale=scale):
            return math.log(prior[a]) + scale * np.mean(node.child_values(a), axis=0)[node.seat]

        best = max((a for a in visits if visits[a] == most), key=score)
        line.append(node.moves[best])
        node = node.children[best]
    return line


@pytest.mark.parametrize(("config", "settings", "swap"), CASES)
def test_values_and_lines_equal_those_of_a_plain_tree(config, settings, swap):
    rules = get_rules(config)
    picked = positions(config, swap)
    simulations = np.array([1, 2, 7, 16, 33, 64, 120, 260, 300][: len(picked)], dtype=np.int32)
    seeds = np.arange(len(picked), dtype=np.uint64) + 11
    search = GumbelSearch(rules, HashEvaluator(rules.players), settings)
    found = search.search(picked, seeds, simulations, depth=DEPTH)
    read = found.readout
    longest = swaps = 0
    for i, row in enumerate(picked):
        plain = PlainSearch(
            config, HashEvaluator(rules.players), settings, row, seeds[i], int(simulations[i])
        )
        known = read.actions[i] >= 0
        actions = read.actions[i][known].tolist()
        assert sorted(actions) == sorted(plain.root.children)
        assert sum(found.visits[i, a] for a in actions) == simulations[i]
        assert np.isnan(read.values[i][~known]).all() and not read.lengths[i][~known].any()
        for k, action in enumerate(actions):
            values = plain.root.child_values(action)
            assert len(values) == found.visits[i, action]
            np.testing.assert_allclose(read.values[i, k], np.mean(values, axis=0), atol=1e-6)
            assert read.exact[i, k] == (not plain.root.children[action].moves)
            line = best_line(plain.root, action, settings, DEPTH)
            assert read.lines[i, k, : read.lengths[i, k]].tolist() == line
            assert not read.lines[i, k, read.lengths[i, k] :].any()
            longest = max(longest, len(line))
            swaps += plain.root.swaps(action)
    assert longest >= 4
    assert (swaps > 0) == bool(swap)


@pytest.mark.parametrize("config", ["square8_2p", "hex8_3p"])
def test_search_value_is_made_of_what_is_read(config):
    """The improved policy over the actions' values, the untried ones at the mixed value."""
    rules = get_rules(config)
    rows = decisions(config, 5)[::8]
    settings = SearchSettings(max_considered=256, gumbel_scale=0.0)  # none stays untried
    found = GumbelSearch(rules, HashEvaluator(rules.players), settings).search(
        rows, np.zeros(len(rows), dtype=np.uint64), 256, depth=1
    )
    for i in range(len(rows)):
        actions = found.readout.actions[i][: found.counts[i]]
        assert sorted(actions.tolist()) == list(range(found.counts[i]))
        shares = found.policy[i, actions].astype(float)
        expected = shares @ found.readout.values[i, : found.counts[i]]
        np.testing.assert_allclose(found.search_value[i], expected, atol=1e-5)


@pytest.mark.parametrize("config", ["square8_2p", "hex8_3p"])
def test_lines_can_be_played_and_exact_values_are_results(config):
    rules = get_rules(config)
    rows = np.array([row for row, _, _ in ends(config, 4)])
    evaluator = HashEvaluator(rules.players)
    search = GumbelSearch(rules, evaluator, SearchSettings(64, gumbel_scale=0.0))
    found = search.search(rows, np.zeros(len(rows), dtype=np.uint64), 200, depth=3)
    exact = 0
    for i, row in enumerate(rows):
        for k in np.flatnonzero(found.readout.actions[i] >= 0):
            position = row
            for move in found.readout.lines[i, k, : found.readout.lengths[i, k]].tolist():
                assert move in legal(config, position)
                position = after(config, position, move)
            if found.readout.exact[i, k]:
                exact += 1
                assert found.readout.lengths[i, k] == 1
                assert np.array_equal(found.readout.values[i, k], result(config, position))
    assert exact > 5
    assert found.readout.lengths.max() == 3


def test_a_readout_changes_no_result_and_is_absent_unless_asked_for():
    config = "square8_2p"
    rules = get_rules(config)
    rows, seeds = decisions(config, 1)[:9], np.arange(9, dtype=np.uint64)
    search = GumbelSearch(rules, HashEvaluator(2), SETTINGS)
    plain = search.search(rows, seeds, 30)
    read = search.search(rows, seeds, 30, depth=5)
    assert plain.readout is None and read.readout is not None
    for name in ("moves", "counts", "policy", "prior", "visits", "search_value", "selected"):
        assert np.array_equal(getattr(plain, name), getattr(read, name))
    with pytest.raises(SearchError, match="depth"):
        search.search(rows, seeds, 30, depth=0)


def test_a_position_with_one_move_has_nothing_to_read():
    config = "square8_2p"
    forced = next(row for row in game_rows(config, 1) if len(legal(config, row)) == 1)
    rows = np.array([forced, decisions(config, 1)[4]])
    found = GumbelSearch(get_rules(config), HashEvaluator(2), SETTINGS).search(
        rows, np.zeros(2, dtype=np.uint64), 10, depth=4
    )
    assert found.counts[0] == 1 and (found.readout.actions[0] == -1).all()
    assert (found.readout.actions[1] >= 0).any()


def test_searches_given_up_leave_the_others_alone():
    config = "square8_2p"
    rules = get_rules(config)
    rows, seeds = decisions(config, 2)[:4], np.arange(4, dtype=np.uint64)
    alone = GumbelSearch(rules, HashEvaluator(2), SETTINGS).search(rows, seeds, 60)
    pool = SearchPool(rules, HashEvaluator(2), SETTINGS, slots=4, simulations=60, max_batch=16)
    pool.start(np.arange(4), rows, seeds, 60)
    pool.step()
    pool.step()
    pool.drop(np.array([1, 3]))
    pool.start(np.array([3]), rows[1:2], seeds[1:2], 60)  # the slot is free again
    ended: set[int] = set()
    while pool.busy:
        ended |= set(pool.step().tolist())
    assert ended == {0, 2, 3}
    found = pool.take(np.array([0, 3, 2]))
    assert np.array_equal(found.visits, alone.visits[:3, : found.visits.shape[1]])
    assert np.array_equal(found.search_value, alone.search_value[:3])
