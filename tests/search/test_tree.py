from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringrift_pipeline.game import get_rules, kernels, layout
from ringrift_pipeline.search import tree as trees
from ringrift_pipeline.search.errors import SearchError
from ringrift_pipeline.search.noise import derive_seeds, gumbel, mix, uniform
from ringrift_pipeline.search.tree import Tree

from .conftest import after, decisions, game_rows, legal

# A three-player tree by hand: node -> parent, and the value a visit of the node brings.
PARENT = [-1, 0, 0, 1, 1, 2, 3]
VALUE = np.array(
    [
        [0.30, 0.30, 0.40],
        [0.50, 0.25, 0.25],
        [0.10, 0.60, 0.30],
        [1.00, 0.00, 0.00],
        [0.20, 0.20, 0.60],
        [0.00, 0.50, 0.50],
        [0.00, 0.00, 1.00],
    ]
)
VISITS_IN_ORDER = [1, 2, 3, 4, 5, 3, 6, 3]  # node 3 is the end of a game, visited again


def hand_built(swapped: tuple[int, ...] = ()) -> Tree:
    tree = Tree(1, len(PARENT), 4, 3)
    tree.nodes[:, trees.PARENT] = PARENT
    tree.values[:, trees.RAW] = VALUE
    tree.values[:, trees.TOTAL] = 0.0
    tree.nodes[list(swapped), trees.SWAPPED] = 1
    return tree


def path(node: int) -> list[int]:
    return [node] if PARENT[node] < 0 else [node, *path(PARENT[node])]


def test_backup_on_a_hand_built_tree_of_three_players():
    tree = hand_built()
    leaves = np.array(VISITS_IN_ORDER)
    trees.back_up(leaves, tree.nodes, tree.values)
    for node in range(len(PARENT)):
        through = [leaf for leaf in VISITS_IN_ORDER if node in path(leaf)]
        assert tree.nodes[node, trees.VISITS] == len(through)
        total = tree.values[node, trees.TOTAL]
        np.testing.assert_allclose(total, VALUE[through].sum(axis=0), atol=1e-12)


def test_backup_exchanges_seats_where_the_sides_were_swapped():
    tree = hand_built(swapped=(1,))
    leaves = np.array([4])
    trees.back_up(leaves, tree.nodes, tree.values)
    np.testing.assert_allclose(tree.values[4, trees.TOTAL], [0.2, 0.2, 0.6])
    tree = hand_built(swapped=(1,))
    trees.back_up(np.array([3]), tree.nodes, tree.values)
    totals = tree.values[[3, 1, 0], trees.TOTAL]
    np.testing.assert_allclose(totals, [[1, 0, 0], [1, 0, 0], [0, 1, 0]])


def select(seat: int, means: list[list[float]], visits: list[int], priors: list[float]) -> int:
    """``select_edge`` on a node with the given children; the rest of the edges are untried."""
    tree = Tree(1, 1 + len(means), 4, 3)
    tree.nodes[0, trees.SEAT] = seat
    tree.values[0, trees.RAW] = [0.4, 0.3, 0.3]
    tree.nodes[0, trees.STORED], tree.nodes[0, trees.TRIED] = len(priors), len(means)
    for i, (mean, n) in enumerate(zip(means, visits, strict=True)):
        tree.nodes[1 + i, trees.VISITS] = n
        tree.values[1 + i, trees.TOTAL] = np.array(mean) * n
        tree.edges[i, trees.CHILD] = 1 + i
    tree.priors[: len(priors), trees.PRIOR] = priors
    tree.priors[: len(priors), trees.TAIL] = np.cumsum(priors[::-1])[::-1]
    return trees.select_edge(0, tree.nodes, tree.values, tree.edges, tree.priors, 50.0, 1.0)


def test_each_seat_maximises_its_own_component():
    means = [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]
    priors = [0.4, 0.35, 0.25]
    for seat in range(3):
        assert select(seat, means, [2, 2, 2], priors) == seat


def test_untried_edges_are_taken_in_the_order_of_their_prior():
    assert select(0, [], [], [0.5, 0.3, 0.2]) == 0
    assert select(0, [[0.1, 0.5, 0.4]], [3], [0.5, 0.3, 0.2]) == 1


def test_settle_plays_forced_moves_and_nothing_else():
    config = "square8_2p"
    rules = get_rules(config)
    buffer = np.empty(rules.max_moves, dtype=np.int64)
    for row in decisions(config, 5):
        for move in legal(config, row)[:5]:
            state = row.copy()
            kernels.apply_move(rules.constants, state, move)
            count = trees.settle(rules.constants, state, buffer)
            expected = after(config, row, move)
            assert np.array_equal(state, expected)
            assert buffer[:count].tolist() == legal(config, expected)
            assert (count == 0) == (state[layout.PLAYER] < 0) and count != 1
    row = game_rows(config, 5)[0].copy()
    before = row.copy()
    assert trees.settle(rules.constants, row, buffer) > 1 and np.array_equal(row, before)


def test_edges_grow_without_losing_what_is_there():
    """Two slots: what each node finds behind its first edge is the same afterwards."""
    tree = Tree(2, 2, 4, 2, edge_room=3)
    tree.edges[:, trees.MOVE] = np.arange(6)
    tree.priors[:, trees.TAIL] = np.arange(6) / 8
    tree.nodes[:, trees.FIRST] = [0, 2, 3, 5]
    tree.reserve_edges(3)
    assert tree.edge_room == 3
    tree.reserve_edges(100)
    assert tree.edge_room == 100 and len(tree.edges) == len(tree.priors) == 200
    first = tree.nodes[:, trees.FIRST]
    assert tree.edges[first, trees.MOVE].tolist() == [0, 2, 3, 5]
    assert (tree.priors[first, trees.TAIL] * 8).tolist() == [0, 2, 3, 5]


def test_edges_that_no_number_or_memory_is_there_for_are_refused():
    tree = Tree(2, 2, 4, 2, edge_room=3)
    edges = tree.edges.copy()
    with pytest.raises(SearchError, match=r"grown to 1073741824 edges.*selfplay\.parallel_games"):
        tree.reserve_edges(2**30)  # for both slots 1 more than an int32 counts to
    assert tree.edge_room == 3 and np.array_equal(tree.edges, edges)
    # An empty tree has no memory at all; whatever this machine has, this is more.
    many = trees.memory_here() // trees.EDGE_BYTES + 1
    with pytest.raises(SearchError, match="there is no room here"):
        Tree(1, 1, 4, 2, edge_room=0).reserve_edges(many)


@pytest.mark.parametrize("first", [0, 4])
def test_expand_keeps_the_best_edges_in_order(first):
    tree = Tree(1, 2, 4, 2)
    logits = np.array([0.0, 2.0, 1.0, 2.0, -1.0], dtype=np.float32)
    moves = np.array([10, 11, 12, 13, 14])
    tree.edges[:] = -7
    trees.expand(
        1, 5, 3, moves, logits, first, np.empty(5), np.empty(5, dtype=np.int64),
        tree.nodes, tree.edges, tree.priors,
    )  # fmt: skip
    prior = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum()
    stored = slice(first, first + 3)
    assert tree.nodes[1, trees.STORED] == 3 and tree.nodes[1, trees.FIRST] == first
    assert tree.edges[stored].tolist() == [[11, -1], [13, -1], [12, -1]]
    assert (tree.edges[:first] == -7).all() and (tree.edges[first + 3 :] == -7).all()
    np.testing.assert_allclose(tree.priors[stored, trees.PRIOR], prior[[1, 3, 2]])
    tails = [1.0, 1.0 - prior[1], 1.0 - 2 * prior[1]]
    np.testing.assert_allclose(tree.priors[stored, trees.TAIL], tails)


@given(st.lists(st.sampled_from([-1.5, 0.0, 0.25, 2.0, 7.0]), min_size=1, max_size=60), st.data())
def test_rank_best_equals_a_stable_sort(keys, data):
    keep = data.draw(st.integers(0, len(keys)))
    order = np.full(len(keys), -1)
    trees.rank_best(np.array(keys), len(keys), keep, order)
    expected = sorted(range(len(keys)), key=lambda i: -keys[i])
    assert order[:keep].tolist() == expected[:keep]
    assert sorted(order.tolist()) == list(range(len(keys)))
    trees.best_few(np.array(keys), len(keys), keep, order)
    assert order[:keep].tolist() == expected[:keep]


def test_noise_is_gumbel_and_seeded():
    """Kolmogorov-Smirnov distance to the Gumbel distribution, 20,000 draws."""
    draws = np.sort([gumbel(np.uint64(12), i) for i in range(20_000)])
    expected = np.exp(-np.exp(-draws))
    distance = np.abs(expected - (np.arange(20_000) + 0.5) / 20_000).max()
    assert distance < 1.95 / np.sqrt(20_000)
    assert 0.0 < uniform(np.uint64(0), 0) < 1.0
    # The reference outputs of SplitMix64 started at 0.
    assert [mix(np.uint64(0), i) for i in range(2)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    assert derive_seeds(5, 2, 3).tolist() == derive_seeds(5, 0, 5).tolist()[2:]
    assert len(set(derive_seeds(5, 0, 100).tolist()) | set(derive_seeds(6, 0, 100).tolist())) == 200
