from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringrift_pipeline.search.schedule import round_widths


def visit_table(considered: int, simulations: int) -> list[int]:
    """Visits of each action, best first, by walking the paper's algorithm action by action."""
    visits = [0] * considered
    phases = math.ceil(math.log2(considered))
    alive, spent = considered, 0
    while spent < simulations:
        each = max(1, math.floor(simulations / (phases * alive)))
        for _ in range(each):
            for action in range(alive):
                if spent < simulations:
                    visits[action] += 1
                    spent += 1
        alive = max(2, alive // 2)
    return visits


def test_examples_worked_out_by_hand():
    assert round_widths(16, 32) == (16, 8, 4, 4)
    assert round_widths(4, 16) == (4, 4, 2, 2, 2, 2)
    assert round_widths(16, 64) == (16, 8, 8, 4, 4, 4, 4) + (2,) * 8
    assert round_widths(16, 8) == (8,)
    assert round_widths(2, 5) == (2, 2, 1)
    assert round_widths(1, 3) == (1, 1, 1)
    assert round_widths(5, 0) == ()


@given(st.integers(2, 200), st.integers(0, 1000))
def test_visits_equal_the_paper_s_schedule(considered, simulations):
    widths = round_widths(considered, simulations)
    assert sum(widths) == simulations
    assert all(a >= b for a, b in zip(widths, widths[1:], strict=False))
    visits = [sum(w > action for w in widths) for action in range(considered)]
    assert visits == visit_table(considered, simulations)


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="at least one action"):
        round_widths(0, 4)
    with pytest.raises(ValueError, match="negative"):
        round_widths(4, -1)
