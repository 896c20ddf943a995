"""Playout-cap randomisation: how many simulations each recorded decision was really given."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from ringrift_pipeline.game import get_rules
from ringrift_pipeline.search import GumbelSearch, SearchPool, SearchResult
from ringrift_pipeline.selfplay.play import Opponent, play_search_games
from ringrift_pipeline.selfplay.stopping import Reporter

from .conftest import settings

GAMES, FULL, CHEAP = 9, 11, 3


class Even:
    """An evaluator without an opinion; the search's noise chooses."""

    def evaluate(
        self, states: np.ndarray, moves: np.ndarray, counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(moves.shape, np.float32), np.full((len(states), 2), 0.5, np.float32)


@pytest.mark.parametrize("met", [0, 5])
def test_every_decision_is_searched_as_its_flag_says(
    met: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The full and the cheap budget, by the visits at the root; the opponent's is the cheap one."""
    chosen = settings(
        search__simulations=FULL,
        search__cheap_simulations=CHEAP,
        selfplay__full_search_fraction=0.4,
        selfplay__max_plies=40,
        selfplay__parallel_games=4,
    )
    rules = get_rules("square8_2p")
    evaluators = [Even(), Even()]
    champion, other = (GumbelSearch(rules, evaluator, chosen.search) for evaluator in evaluators)
    positions: dict[tuple[int, int], bytes] = {}
    searched: Counter[tuple[bool, bytes, int]] = Counter()
    start, take = SearchPool.start, SearchPool.take

    def started(pool: SearchPool, which: Any, states: Any, *more: Any) -> None:
        for slot, state in zip(which, states, strict=True):
            positions[id(pool), int(slot)] = state.tobytes()
        start(pool, which, states, *more)

    def taken(pool: SearchPool, which: np.ndarray, *more: Any) -> SearchResult:
        result = take(pool, which, *more)
        theirs = pool.evaluator is evaluators[1]
        for slot, visits in zip(which, result.visits.sum(axis=1), strict=True):
            searched[theirs, positions.pop((id(pool), int(slot))), int(visits)] += 1
        return result

    monkeypatch.setattr(SearchPool, "start", started)
    monkeypatch.setattr(SearchPool, "take", taken)
    opponent = Opponent(other, games=met, first_seat=1) if met else None
    decisions, _ = play_search_games("square8_2p", GAMES, 3, chosen, champion, Reporter(), opponent)
    budgets = np.where(decisions.full_search, FULL, CHEAP)
    size = decisions.state.shape[1] * decisions.state.itemsize  # a shard keeps this much of it
    found: Counter[tuple[bool, bytes, int]] = Counter()
    for (theirs, state, visits), count in searched.items():
        found[theirs, state[:size], visits] += count
    assert found == Counter(
        zip(
            decisions.opponent.tolist(),
            [row.tobytes() for row in decisions.state],
            budgets.tolist(),
            strict=True,
        )
    )
    ours = decisions.full_search[~decisions.opponent]
    assert 0.25 < ours.mean() < 0.55  # the fraction asked for is 0.4
    assert decisions.opponent.any() == bool(met)
    assert not decisions.full_search[decisions.opponent].any()
