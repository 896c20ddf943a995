"""Positions that random play reaches rarely, searched for once."""

from __future__ import annotations

import numpy as np
import pytest

from ringrift_pipeline.game import State, get_rules, kernels
from ringrift_pipeline.game.layout import RECOVERY_LINE


@pytest.fixture(scope="session")
def rare_recoveries() -> list[State]:
    """Forty positions of random games that offer a recovery slide."""
    found: list[State] = []
    for config in ("square8_2p", "square8_3p", "hex8_2p", "hex8_4p"):
        rules = get_rules(config)
        rng = np.array([5], dtype=np.uint64)
        out = np.empty(rules.max_moves, dtype=np.int64)
        row = np.zeros(rules.state_size, dtype=np.int64)
        here = 0
        for _ in range(200):
            kernels.initial_state(rules.constants, row, 0)
            while (count := kernels.legal_moves(rules.constants, row, out)) > 0:
                if out[0] & 31 >= RECOVERY_LINE:
                    found.append(State.from_array(config, row))
                    here += 1
                pick = kernels.random_below(rng, count)
                kernels.apply_move(rules.constants, row, out[pick])
            if here >= 10:
                break
    return found
