"""Which decisions are kept as the hardest, without sorting all of them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ringrift_pipeline.training.hard_examples import hardest_places


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(1, 70))
def test_they_are_those_that_a_stable_sort_puts_first(values: list[int], most: int) -> None:
    hardness = np.array(values, np.float64)
    first = np.sort(np.argsort(-hardness, kind="stable")[:most])
    assert hardest_places(hardness, most).tolist() == first.tolist()
