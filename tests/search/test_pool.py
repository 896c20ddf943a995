from __future__ import annotations

import numpy as np
import pytest

from ringrift_pipeline.game import get_rules, layout
from ringrift_pipeline.network import Evaluator, NetworkConfig, RingRiftNetwork
from ringrift_pipeline.search import GumbelSearch, SearchError, SearchPool, SearchSettings
from ringrift_pipeline.search.cache import EvaluationCache, keep, key_of, look_up

from .conftest import HashEvaluator, after, decisions, legal

CONFIG = "square8_2p"
SETTINGS = SearchSettings(max_considered=8, c_visit=20.0, c_scale=0.5)


class TimelessEvaluator(HashEvaluator):
    """Looks at a position as the network does: not at the clock."""

    unseen = Evaluator.unseen

    def one(self, row, width):
        row = row.copy()
        row[list(self.unseen)] = 0
        return super().one(row, width)


def assert_same(found, place, alone):
    n = alone.counts[0]
    for name in ("moves", "policy", "prior", "visits"):
        assert np.array_equal(getattr(found, name)[place, :n], getattr(alone, name)[0, :n])
    for name in ("root_value", "search_value", "selected", "selected_index", "surprise"):
        pair = getattr(found, name)[place], getattr(alone, name)[0]
        assert np.array_equal(*pair, equal_nan=True)


@pytest.mark.parametrize("max_batch", [1, 7, 50])
@pytest.mark.parametrize("config", ["square8_2p", "hex8_3p"])
def test_searches_that_come_and_go_equal_lonely_ones(config, max_batch):
    """Slots are used again while others are at work, whatever fits into a batch."""
    rules = get_rules(config)
    rows = np.concatenate([decisions(config, 1)[::9], decisions(config, 2)[::7]])
    simulations = np.arange(len(rows)) * 7 % 60
    seeds = np.arange(len(rows), dtype=np.uint64) + 3
    evaluator = HashEvaluator(rules.players)
    pool = SearchPool(
        rules, evaluator, SETTINGS, slots=4, simulations=60, max_batch=max_batch, cached=True
    )
    lonely = GumbelSearch(rules, HashEvaluator(rules.players), SETTINGS)
    position_in: dict[int, int] = {}
    started = 0
    done = []
    while len(done) < len(rows):
        idle = [slot for slot in range(4) if slot not in position_in][: len(rows) - started]
        which = np.array(idle, dtype=np.int64)
        new = np.arange(started, started + len(idle))
        pool.start(which, rows[new], seeds[new], simulations[new])
        position_in.update(zip(idle, new.tolist(), strict=True))
        started += len(idle)
        ended = pool.step()
        assert pool.busy == (len(ended) < len(position_in))
        found = pool.take(ended)
        for place, slot in enumerate(ended.tolist()):
            index = position_in.pop(slot)
            alone = lonely.search(rows[index][None], seeds[[index]], simulations[[index]])
            assert_same(found, place, alone)
            done.append(index)
    assert sorted(done) == list(range(len(rows)))
    # Rounds go in whole: at most one that is wider than the limit, cut by the evaluator's limit.
    assert max(evaluator.batches) <= max_batch
    assert not pool.busy and len(pool.step()) == 0


def games(pool: SearchPool, count: int, plies: int) -> tuple[list, int]:
    """Follow ``count`` games by the searches' own choices; moves and results."""
    rows = np.array([decisions(CONFIG, seed)[3 * seed] for seed in range(count)])
    slots = np.arange(count)
    story = []
    for ply in range(plies):
        pool.start(slots, rows, slots.astype(np.uint64) + 100 * ply, 40)
        while pool.busy:
            pool.step()
        found = pool.take(slots)
        story += [found.selected, found.policy, found.search_value]
        rows = np.array(
            [after(CONFIG, row, int(move)) for row, move in zip(rows, found.selected, strict=True)]
        )
    return story, pool.evaluations


def test_remembered_evaluations_change_nothing_but_their_number():
    rules = get_rules(CONFIG)

    def play(evaluator, cached):
        pool = SearchPool(rules, evaluator, SETTINGS, slots=3, simulations=40, cached=cached)
        return games(pool, 3, 6)

    story, asked = play(TimelessEvaluator(2), cached=False)
    again, fewer = play(TimelessEvaluator(2), cached=True)
    assert all(np.array_equal(*pair) for pair in zip(story, again, strict=True))
    assert fewer < 0.97 * asked
    # One that looks at everything is asked everything: its answers may differ in time.
    assert play(HashEvaluator(2), cached=True)[1] == play(HashEvaluator(2), cached=False)[1]


def test_a_pool_for_games_remembers_evaluations():
    rules = get_rules(CONFIG)
    row = decisions(CONFIG, 1)[10:11]
    pool = GumbelSearch(rules, TimelessEvaluator(2), SETTINGS).pool(1, 40)
    asked = []
    for _ in range(2):
        before = pool.evaluations
        pool.start(np.arange(1), row, np.zeros(1, dtype=np.uint64), 40)
        while pool.busy:
            pool.step()
        pool.take(np.arange(1))
        asked.append(pool.evaluations - before)
    assert asked[1] < asked[0] / 2


@pytest.mark.parametrize("config", ["square8_3p", "hex8_2p"])
def test_the_network_does_not_look_at_what_is_left_out_of_the_key(config):
    rules = get_rules(config)
    shape = NetworkConfig(2, 8, 8, rules.geometry, rules.players)
    evaluator = Evaluator(RingRiftNetwork(shape, seed=3), rules, "cpu", threads=1)
    rows = decisions(config, 4)[::5]
    moves = np.zeros((len(rows), rules.max_moves), dtype=np.int64)
    counts = np.zeros(len(rows), dtype=np.int32)
    from ringrift_pipeline.search.tree import list_moves

    wide = list_moves(rules.constants, rows, moves, counts)
    moves = np.ascontiguousarray(moves[:, :wide])
    changed = rows.copy()
    changed[:, list(evaluator.unseen)] += 1
    for one, other in zip(
        evaluator.evaluate(rows, moves, counts),
        evaluator.evaluate(changed, moves, counts),
        strict=True,
    ):
        assert np.array_equal(one, other)
    # What is left out is not more than that: any other word that games change is in the key.
    seen = np.setdiff1d(np.arange(layout.HEADER + rules.padded), evaluator.unseen)
    pool = SearchPool(rules, evaluator, SETTINGS, slots=1, simulations=1, cached=True)
    keys = {key_of(row, pool._cache.seen, 5) for row in rows}
    assert len(keys) == len({row[seen].tobytes() for row in rows})
    assert {key_of(row, seen, 5) for row in rows} == {key_of(row, seen, 5) for row in changed}
    different = {row[seen].tobytes() for row in rows}
    assert len({key_of(row, seen, 5) for row in rows}) == len(different)
    assert key_of(rows[0], seen, 5) != key_of(rows[0], seen, 6)


@pytest.mark.parametrize("config", ["square8_2p", "square19_2p", "hexagonal_2p"])
def test_the_ring_has_room_for_what_the_table_names(config):
    rules = get_rules(config)
    pool = SearchPool(rules, TimelessEvaluator(2), SETTINGS, slots=1, simulations=1, cached=True)
    room = len(pool._cache.ring) / len(pool._cache.table)
    moves = np.mean([len(legal(config, row)) for row in decisions(config, 1)])
    assert moves + rules.players <= room <= 4 * moves


def test_the_cache_forgets_what_it_overwrites():
    cache = EvaluationCache(4, np.arange(2), width=7)  # a ring of 28 numbers
    kept = (cache.table, cache.ring, cache.head)
    rng = np.random.default_rng(0)
    known: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    hits = 0
    for step in range(400):
        key = np.uint64(1 + rng.integers(12))
        count = 1 + int(key) % 7
        place = look_up(key, count, *kept)
        if place >= 0:
            hits += 1
            assert place + 2 + count <= 28
            logits, values = known[int(key)]
            assert np.array_equal(cache.ring[place : place + 2], values)
            assert np.array_equal(cache.ring[place + 2 : place + 2 + count], logits[:count])
        else:
            logits = np.full(9, step, dtype=np.float32)
            values = np.array([step, -step], dtype=np.float32)
            known[int(key)] = logits, values
            keep(key, count, logits, values, *kept)
    assert 20 < hits < 380
    assert look_up(np.uint64(99), 3, *kept) == -1
    wide = np.zeros(27, dtype=np.float32)
    keep(np.uint64(99), 27, wide, wide[:2], *kept)
    assert look_up(np.uint64(99), 27, *kept) == -1


def test_bad_pools_and_finished_games_are_refused():
    rules = get_rules(CONFIG)
    for name in ("slots", "simulations", "max_batch"):
        sizes = {"slots": 2, "simulations": 4, "max_batch": 8, name: -1}
        with pytest.raises(SearchError, match=name):
            SearchPool(rules, HashEvaluator(2), **sizes)
    pool = SearchPool(rules, HashEvaluator(2), slots=2, simulations=4)
    row = decisions(CONFIG, 0)[-1].copy()
    row[layout.PHASE], row[layout.PLAYER] = layout.OVER, -1
    with pytest.raises(SearchError, match="row 0 is over"):
        pool.start(np.array([1]), row[None], np.zeros(1, dtype=np.uint64), 4)
