from __future__ import annotations

import json

import numpy as np
import pytest

from ringrift_pipeline.game import State, get_rules, layout
from ringrift_pipeline.search import (
    EvaluationError,
    GumbelSearch,
    NonFiniteOutputError,
    SearchError,
    SearchSettings,
    SearchStopped,
    UniformEvaluator,
    stoppable,
)
from ringrift_pipeline.search.schedule import round_widths

from .conftest import HashEvaluator, after, decisions, game_rows, legal, result
from .plain_search import PlainSearch

SETTINGS = SearchSettings(max_considered=8, c_visit=20.0, c_scale=0.5)


def mixed_batch(config: str = "square8_2p", games: int = 6) -> tuple:
    """Positions of several games, forced ones among them, with seeds and simulations."""
    rows = np.array([game_rows(config, g)[7 * g + 3] for g in range(games)])
    seeds = np.arange(games, dtype=np.uint64) * 977 + 5
    simulations = np.array([1 + 9 * g for g in range(games)], dtype=np.int32)
    return rows, seeds, simulations


@pytest.mark.parametrize(
    ("config", "settings", "swap"),
    [
        ("square8_2p", SETTINGS, 0),
        ("square8_2p", SearchSettings(16, 50.0, 1.0, 0.0), 1),
        ("square8_3p", SETTINGS, 0),
        ("hex8_4p", SearchSettings(5, 3.0, 2.0, 1.0), 0),
        ("hex8_2p", SearchSettings(1, 50.0, 1.0, 1.0), 0),
    ],
)
def test_equals_a_plain_implementation(config, settings, swap):
    """Selection, halving, max^n backup, completed Q: everything, against the formulas."""
    players = get_rules(config).players
    rows = decisions(config, 3, swap)
    picked = rows[np.linspace(0, len(rows) - 1, 7).astype(int)]
    if swap:  # the positions in which the sides may be swapped
        picked = np.concatenate((picked, rows[rows[:, layout.TURN] == 2][:2]))
        kinds = [{m & layout.KIND_MASK for m in legal(config, row)} for row in picked]
        assert any(layout.SWAP_SIDES in k for k in kinds)
    simulations = np.array([1, 2, 7, 16, 33, 50, 64, 120, 120][: len(picked)], dtype=np.int32)
    seeds = np.arange(len(picked), dtype=np.uint64) + 11
    found = GumbelSearch(get_rules(config), HashEvaluator(players), settings).search(
        picked, seeds, simulations
    )
    for i, row in enumerate(picked):
        plain = PlainSearch(
            config, HashEvaluator(players), settings, row, seeds[i], int(simulations[i])
        )
        n = found.counts[i]
        assert found.moves[i, :n].tolist() == plain.root.moves
        assert found.visits[i, :n].tolist() == plain.visits
        assert found.selected_index[i] == plain.selected
        assert found.selected[i] == plain.root.moves[plain.selected]
        np.testing.assert_allclose(found.policy[i, :n], plain.policy, atol=1e-6)
        np.testing.assert_allclose(found.prior[i, :n], plain.root.prior(), atol=1e-6)
        np.testing.assert_allclose(found.root_value[i], plain.root.value, atol=1e-6)
        np.testing.assert_allclose(found.search_value[i], plain.search_value, atol=1e-6)
        np.testing.assert_allclose(found.surprise[i], plain.surprise, atol=1e-5)
        assert (found.policy[i, n:] == 0).all() and (found.visits[i, n:] == 0).all()


def test_visits_follow_sequential_halving():
    rows = decisions("square8_2p", 1)[:12]
    rules = get_rules("square8_2p")
    for simulations in (1, 13, 32, 100):
        found = GumbelSearch(rules, HashEvaluator(2), SETTINGS).search(
            rows, np.arange(12, dtype=np.uint64), simulations
        )
        assert (found.visits.sum(axis=1) == simulations).all()
        for i in range(len(rows)):
            widths = round_widths(min(8, int(found.counts[i])), simulations)
            expected = [sum(w > a for w in widths) for a in range(8)]
            ordered = np.sort(found.visits[i])[::-1][:8]
            assert ordered.tolist() == expected[: len(ordered)]


def test_a_game_does_not_depend_on_its_batch():
    rows, seeds, simulations = mixed_batch()
    search = GumbelSearch(get_rules("square8_2p"), HashEvaluator(2), SETTINGS)
    together = search.search(rows, seeds, simulations)
    for i in range(len(rows)):
        alone = search.search(rows[i : i + 1], seeds[i : i + 1], simulations[i : i + 1])
        n = alone.counts[0]
        for name in ("moves", "policy", "prior", "visits"):
            assert np.array_equal(getattr(together, name)[i, :n], getattr(alone, name)[0, :n])
        for name in ("root_value", "search_value", "selected", "surprise"):
            pair = getattr(together, name)[i], getattr(alone, name)[0]
            assert np.array_equal(*pair, equal_nan=True)


def test_the_seed_decides_and_match_play_has_none():
    row = decisions("square8_2p", 2)[:1]
    rules = get_rules("square8_2p")

    def chosen(scale, count=30):
        settings = SearchSettings(8, 20.0, 0.05, scale)
        search = GumbelSearch(rules, HashEvaluator(2, spread=0.3), settings)
        rows = np.repeat(row, count, axis=0)
        return search.search(rows, np.arange(count, dtype=np.uint64), 8).selected

    assert len(set(chosen(1.0).tolist())) > 5
    assert len(set(chosen(0.0).tolist())) == 1


def test_gumbel_top_k_samples_the_prior():
    """Without simulations the selected move is a sample of the softmax (Gumbel-max)."""
    row = decisions("square8_2p", 2)[-1:]
    search = GumbelSearch(get_rules("square8_2p"), HashEvaluator(2), SearchSettings())
    count = 4000
    found = search.search(np.repeat(row, count, axis=0), np.arange(count, dtype=np.uint64), 0)
    n = int(found.counts[0])
    frequency = np.bincount(found.selected_index, minlength=n) / count
    error = np.sqrt(found.prior[0] * (1 - found.prior[0]) / count)
    assert (np.abs(frequency - found.prior[0]) < 4.5 * error).all()
    assert np.allclose(found.policy, found.prior) and np.allclose(found.surprise, 0.0)


def test_states_are_left_alone_and_may_be_read_only():
    rows, seeds, simulations = mixed_batch()
    before = rows.copy()
    rows.setflags(write=False)
    GumbelSearch(get_rules("square8_2p"), HashEvaluator(2)).search(rows, seeds, simulations)
    assert np.array_equal(rows, before)


@pytest.mark.parametrize("config", ["square8_2p", "hex8_3p"])
def test_forced_moves_are_never_evaluated(config):
    rows = game_rows(config, 4)
    counts = np.array([len(legal(config, row)) for row in rows])
    assert (counts == 1).any()
    players = get_rules(config).players
    evaluator = HashEvaluator(players)
    found = GumbelSearch(get_rules(config), evaluator, SETTINGS).search(
        rows, np.arange(len(rows), dtype=np.uint64), 12
    )
    assert found.evaluations == len(evaluator.shown) > 0
    for row, moves, count in evaluator.shown:
        assert count >= 2
        assert moves[:count].tolist() == legal(config, row)
    forced = counts == 1
    assert (found.visits[forced] == 0).all() and (found.surprise[forced] == 0).all()
    assert (found.policy[forced, 0] == 1).all() and np.isnan(found.root_value[forced]).all()
    assert (found.selected[forced] == found.moves[forced, 0]).all()
    only_forced = GumbelSearch(get_rules(config), evaluator, SETTINGS)
    assert only_forced.search(rows[forced][:3], np.zeros(3, dtype=np.uint64), 9).evaluations == 0


def test_one_batch_a_round_over_all_games():
    rows = decisions("square8_2p", 0)
    rows = rows[[len(legal("square8_2p", row)) >= 16 for row in rows]][:5]
    evaluator = HashEvaluator(2)
    search = GumbelSearch(get_rules("square8_2p"), evaluator, SearchSettings())
    search.search(rows, np.arange(5, dtype=np.uint64), 32)
    assert evaluator.batches == [5, 80, 40, 20, 20]
    evaluator.batches.clear()
    small = GumbelSearch(get_rules("square8_2p"), evaluator, SearchSettings(), max_batch=32)
    small.search(rows, np.arange(5, dtype=np.uint64), 16)
    assert evaluator.batches == [5, 32, 32, 16]


def ends(config: str, games: int):
    """Decisions near the end of random games: row, its moves, the position after each."""
    for seed in range(games):
        for row in decisions(config, 100 + seed)[-8:]:
            moves = legal(config, row)
            yield row, moves, [after(config, row, move) for move in moves]


def wins(config: str, row: np.ndarray, seat: int) -> bool:
    return row[layout.PLAYER] < 0 and result(config, row)[seat] == 1.0


@pytest.mark.parametrize("config", ["square8_2p", "hex8_3p"])
def test_finds_a_win_in_one(config):
    rules = get_rules(config)
    search = GumbelSearch(rules, UniformEvaluator(rules), SearchSettings(256, gumbel_scale=0.0))
    tried = 0
    for row, moves, nexts in ends(config, 12):
        winning = [wins(config, child, row[layout.PLAYER]) for child in nexts]
        if not any(winning) or all(winning):
            continue
        tried += 1
        found = search.search(row[None], np.zeros(1, dtype=np.uint64), 2 * len(moves))
        assert winning[found.selected_index[0]]
        assert found.search_value[0, row[layout.PLAYER]] > 0.99
        assert found.policy[0][: len(moves)][np.array(winning)].sum() > 0.99
    assert tried >= 5


def test_avoids_a_loss_in_two():
    config = "square8_2p"
    rules = get_rules(config)
    search = GumbelSearch(rules, UniformEvaluator(rules), SearchSettings(256, gumbel_scale=0.0))
    tried = 0
    for row, moves, nexts in ends(config, 30):
        me = int(row[layout.PLAYER])
        if len(moves) > 40 or any(wins(config, child, me) for child in nexts):
            continue

        def loses(child, me=me):
            if child[layout.PLAYER] < 0:
                return wins(config, child, 1 - me)
            replies = [after(config, child, m) for m in legal(config, child)]
            return child[layout.PLAYER] != me and any(wins(config, r, 1 - me) for r in replies)

        losing = [loses(child) for child in nexts]
        if not any(losing) or all(losing):
            continue
        tried += 1
        found = search.search(row[None], np.zeros(1, dtype=np.uint64), 100 * len(moves))
        assert not losing[found.selected_index[0]]
    assert tried >= 5


class Broken(UniformEvaluator):
    def __init__(self, rules, how):
        super().__init__(rules)
        self.how = how

    def evaluate(self, states, moves, counts):
        logits, value = super().evaluate(states, moves, counts)
        if self.how == "value":
            value[-1, 0] = np.nan
        elif self.how == "logit":
            logits[-1, 1] = -np.inf
        elif self.how == "leaf" and len(states) > 1:
            value[-1, 0] = np.inf
        elif self.how == "shape":
            value = value[:, :1]
        return logits, value


@pytest.mark.parametrize("how", ["value", "logit", "leaf", "shape"])
def test_a_broken_evaluator_is_found_out(how):
    rules = get_rules("square8_2p")
    row = decisions("square8_2p", 0)[5:6]
    with pytest.raises(EvaluationError, match="finite|shapes"):
        GumbelSearch(rules, Broken(rules, how)).search(row, np.zeros(1, dtype=np.uint64), 16)


@pytest.mark.parametrize("max_batch", [2, 128])
def test_what_is_not_finite_names_evaluator_position_and_search(max_batch):
    """In whichever piece of a batch it is."""
    rules = get_rules("square8_2p")
    rows = decisions("square8_2p", 0)[5:10]

    class Odd(UniformEvaluator):
        name = "no. 7"

        def evaluate(self, states, moves, counts):
            logits, value = super().evaluate(states, moves, counts)
            value[(states == rows[3]).all(axis=1), 1] = np.nan
            return logits, value

    pool = GumbelSearch(rules, Odd(rules), SETTINGS).pool(8, 4)
    pool.max_batch = max_batch
    slots = np.array([6, 0, 4, 2, 5])
    pool.start(slots, rows, np.zeros(5, dtype=np.uint64), 4)
    with pytest.raises(NonFiniteOutputError, match="no. 7 gives a value that is not") as caught:
        while pool.busy:
            pool.step()
    assert caught.value.slots == (2,)
    record = json.loads(str(caught.value).partition("position: ")[2])
    assert State.from_record(record) == State.from_array("square8_2p", rows[3])


def test_bad_input_is_refused():
    rules = get_rules("square8_2p")
    search = GumbelSearch(rules, UniformEvaluator(rules))
    row = decisions("square8_2p", 0)[5:6]
    seed = np.zeros(1, dtype=np.uint64)
    over = after("square8_2p", *last_decision("square8_2p"))
    with pytest.raises(SearchError, match="row 0 is over"):
        search.search(over[None], seed, 8)
    with pytest.raises(SearchError, match="must have shape"):
        search.search(row[:, :-1], seed, 8)
    with pytest.raises(SearchError, match="seeds"):
        search.search(row, np.zeros(2, dtype=np.uint64), 8)
    with pytest.raises(SearchError, match="simulations"):
        search.search(row, seed, np.array([1, 2]))
    with pytest.raises(SearchError, match="negative"):
        search.search(row, seed, -1)
    with pytest.raises(SearchError, match="max_considered"):
        GumbelSearch(rules, UniformEvaluator(rules), SearchSettings(max_considered=0))
    with pytest.raises(SearchError, match="c_scale"):
        GumbelSearch(rules, UniformEvaluator(rules), SearchSettings(c_scale=float("nan")))
    assert len(search.search(row[:0], seed[:0], 8).selected) == 0


def last_decision(config: str) -> tuple[np.ndarray, int]:
    """A position and a move that ends the game."""
    for row, moves, nexts in ends(config, 20):
        for move, child in zip(moves, nexts, strict=True):
            if child[layout.PLAYER] < 0:
                return row, move
    raise AssertionError("no game ended")


def test_a_search_that_is_given_up_ends_and_the_next_is_as_ever():
    rules = get_rules("square8_2p")
    rows, seeds, simulations = mixed_batch()
    expected = GumbelSearch(rules, HashEvaluator(2), SETTINGS).search(rows, seeds, simulations)
    search = GumbelSearch(rules, HashEvaluator(2), SETTINGS)
    asked = iter([False, False, True])
    with stoppable(lambda: next(asked)), pytest.raises(SearchStopped):
        search.search(rows, seeds, simulations)
    assert list(asked) == []  # asked before each batch
    found = search.search(rows, seeds, simulations)  # nobody is asked any longer
    for name in ("moves", "policy", "visits", "search_value", "selected", "surprise"):
        assert np.array_equal(getattr(found, name), getattr(expected, name), equal_nan=True), name
