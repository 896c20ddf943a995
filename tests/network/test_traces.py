"""Descriptions are distinct on every position of every reference trace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ringrift_pipeline.game import State, get_rules, kernels, layout, read_traces
from ringrift_pipeline.network import encode_states

from .conftest import pack
from .test_moves import assert_distinct

TRACES = Path(__file__).resolve().parents[2].parent / "shared" / "traces"
FILES = sorted(TRACES.glob("*.jsonl.gz"))
BATCH = 256

pytestmark = pytest.mark.skipif(
    not FILES, reason="the reference traces are not beside the checkout"
)

#: Record types whose packed code follows from their cells.
_SIMPLE = {
    "move_stack": (layout.MOVE_STACK, ("from", "to")),
    "overtaking_capture": (layout.OVERTAKING_CAPTURE, ("from", "target", "to")),
    "continue_capture_segment": (layout.CONTINUE_CAPTURE, ("from", "target", "to")),
    "eliminate_rings_from_stack": (layout.ELIMINATE_RINGS, ("to",)),
    "forced_elimination": (layout.FORCED_ELIMINATION, ("to",)),
}


def code_of(rules, state, legal, record):
    """Packed code of a recorded move among ``legal``."""
    if len(legal) == 1:
        return int(legal[0])
    kind = record["type"]
    code = -1
    if kind == "place_ring":
        code = rules.cell_of[record["to"]] << 5 | record["count"] << 35
    elif kind in _SIMPLE:
        number, fields = _SIMPLE[kind]
        code = number
        for i, field in enumerate(fields):
            code |= rules.cell_of[record[field]] << (5 + 10 * i)
    if code >= 0:
        assert code in legal
        return code
    return State.from_array(rules.config, state).find_move(record).code


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name.split(".")[0])
def test_descriptions_are_distinct_on_every_trace(path):
    checked = 0
    states, moves = [], []

    def check(rules):
        p = pack(states, moves)
        features = encode_states(rules, p.states, p.moves, p.counts)
        assert_distinct(features)
        states.clear()
        moves.clear()

    for trace in read_traces(path):
        rules = get_rules(trace["config"])
        b = rules.constants
        state = np.zeros(rules.state_size, dtype=np.int64)
        buffer = np.zeros(rules.max_moves, dtype=np.int64)
        kernels.initial_state(b, state, trace["swap_rule"])
        for ply in trace["plies"]:
            count = kernels.legal_moves(b, state, buffer)
            legal = buffer[:count].copy()
            assert count == len(ply["legal"])
            states.append(state.copy())
            moves.append(legal)
            checked += 1
            if len(states) == BATCH:
                check(rules)
            kernels.apply_move(b, state, code_of(rules, state, legal, ply["legal"][ply["chosen"]]))
        assert state[layout.PHASE] == layout.OVER
        if states:
            check(rules)
    assert checked > 500
