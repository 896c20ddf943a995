"""Planes and globals against an independent decoding, and their invariances."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from ringrift_pipeline.game import CONFIGS, get_rules, layout
from ringrift_pipeline.network import (
    GLOBAL_NAMES,
    NUM_GLOBALS,
    NUM_PLANES,
    PLANE_NAMES,
    encode_states,
)
from ringrift_pipeline.network.encoder import Encoder

from .conftest import random_positions, spread

SEATS = ("mover", "next", "third", "fourth")


def naive_planes(rules, state):
    """The board planes (all but the legal-move ones), decoded with plain Python numbers."""
    n = rules.size
    planes = {name: np.zeros(n * n, dtype=int) for name in PLANE_NAMES}
    mover = int(state[layout.PLAYER])

    def relative(seat: int) -> str:
        return SEATS[(seat - mover) % rules.players]

    for cell in rules.cells:
        code = int(state[layout.HEADER + cell])
        at = int(rules.plane_of[cell])
        planes["on_board"][at] = 1
        content = code % 16
        if 1 <= content <= 4:
            planes[f"marker_of_{relative(content - 1)}"][at] = 1
        elif 5 <= content <= 8:
            planes[f"collapsed_of_{relative(content - 5)}"][at] = 1
        elif 9 <= content <= 12:
            height = (code >> 4) % 64
            rings = [(code >> (10 + 2 * k)) % 4 for k in range(height)]  # top first
            assert rings[0] == content - 9
            cap = next((k for k, ring in enumerate(rings) if ring != rings[0]), height)
            planes[f"stack_of_{relative(rings[0])}"][at] = 1
            planes["stack_height"][at] = height
            planes["cap_height"][at] = cap
            for ring in rings[cap:]:
                planes[f"rings_below_cap_of_{relative(ring)}"][at] += 1
            if cap < height:
                planes[f"ring_under_cap_of_{relative(rings[cap])}"][at] = 1
    if state[layout.MUST_MOVE] >= 0:
        planes["must_move"][rules.plane_of[state[layout.MUST_MOVE]]] = 1
    return planes


@pytest.mark.parametrize("config", CONFIGS)
def test_planes_match_an_independent_decoding(config):
    rules = get_rules(config)
    positions = spread(random_positions(config), 12)
    features = encode_states(rules, positions.states, positions.moves, positions.counts)
    batch, n = len(positions.counts), rules.size
    assert features["planes"].shape == (batch, NUM_PLANES, n, n)
    assert features["planes"].dtype == np.uint8
    assert features["globals"].shape == (batch, NUM_GLOBALS)
    assert np.isfinite(features["globals"]).all()
    for row, state in enumerate(positions.states):
        expected = naive_planes(rules, state)
        for index, name in enumerate(PLANE_NAMES):
            if name.startswith("legal_"):
                continue
            got = features["planes"][row, index].reshape(-1)
            np.testing.assert_array_equal(got, expected[name], err_msg=f"{name}, row {row}")


@pytest.mark.parametrize("config", ("square8_2p", "square8_3p", "hex8_4p"))
def test_globals_match_an_independent_count(config):
    rules = get_rules(config)
    positions = spread(random_positions(config, decisions=False), 25)
    features = encode_states(rules, positions.states, positions.moves, positions.counts)
    for row, state in enumerate(positions.states):
        got = dict(zip(GLOBAL_NAMES, features["globals"][row], strict=True))
        planes = naive_planes(rules, state)
        phases = [n for n in layout.PHASE_NAMES[:7] if got[f"phase_{n}"] == 1]
        assert phases == [layout.PHASE_NAMES[state[layout.PHASE]]]
        assert [got[f"players_{k}"] for k in (2, 3, 4)] == [k == rules.players for k in (2, 3, 4)]
        for r, seat in enumerate(SEATS):
            if r >= rules.players:
                assert all(got[n] == 0 for n in GLOBAL_NAMES if n.endswith("_" + seat))
                continue
            p = (state[layout.PLAYER] + r) % rules.players
            stack = planes[f"stack_of_{seat}"]
            caps = (planes["cap_height"] * stack).sum()
            buried = planes[f"rings_below_cap_of_{seat}"].sum()
            expected = {
                "hand": state[layout.HAND + p] / rules.rings_per_player,
                "eliminated": state[layout.ELIMINATED + p] / rules.ring_threshold,
                "territory": planes[f"collapsed_of_{seat}"].sum() / rules.territory_minimum,
                "stacks": stack.sum() / 8,
                "caps": caps / rules.rings_per_player,
                "buried": buried / rules.rings_per_player,
                "markers": 4 * planes[f"marker_of_{seat}"].sum() / rules.num_cells,
            }
            for name, value in expected.items():
                assert got[f"{name}_{seat}"] == pytest.approx(value, abs=1e-5), (name, seat)


def rotated(rules, state, shift):
    """The same position with every seat renamed to (seat + shift) mod players."""
    out = state[: layout.HEADER + rules.plane_of.shape[0]].copy()
    players = rules.players

    def rename(seat):
        return (seat + shift) % players

    for field in (layout.PLAYER, layout.LPS_ANCHOR, layout.LPS_HOLDER, layout.LAST_MOVER):
        if state[field] >= 0:
            out[field] = rename(state[field])
    counts = (layout.MARKER, layout.COLLAPSED, layout.STACK)
    for base in (
        layout.HAND,
        layout.ELIMINATED,
        layout.ON_BOARD,
        *(layout.COUNT + content for content in counts),
    ):
        for seat in range(players):
            out[base + rename(seat)] = state[base + seat]
    acted = int(state[layout.LPS_ACTED])
    out[layout.LPS_ACTED] = sum(1 << rename(p) for p in range(players) if acted >> p & 1)
    for cell in rules.cells:
        code = int(state[layout.HEADER + cell])
        content = code & 15
        if content in (0, 15):
            continue
        base = 1 if content < 5 else 5 if content < 9 else 9
        new = base + rename(content - base)
        if base == 9:
            height = code >> 4 & 63
            rings = 0
            for k in range(height):
                rings |= rename(code >> (10 + 2 * k) & 3) << (2 * k)
            new |= height << 4 | rings << 10
        out[layout.HEADER + cell] = new
    return out


@pytest.mark.parametrize("config", CONFIGS)
def test_renaming_seats_changes_nothing(config):
    rules = get_rules(config)
    positions = spread(random_positions(config), 10)
    # The border colour inside a territory move is a seat too; leave those moves out.
    keep = [
        i
        for i, (m, c) in enumerate(zip(positions.moves, positions.counts, strict=True))
        if not (m[:c] & layout.KIND_MASK == layout.CHOOSE_TERRITORY).any()
    ]
    positions = positions.take(np.array(keep))
    before = encode_states(rules, positions.states, positions.moves, positions.counts)
    for shift in range(1, rules.players):
        states = np.array([rotated(rules, s, shift) for s in positions.states])
        after = encode_states(rules, states, positions.moves, positions.counts)
        for name, array in before.items():
            np.testing.assert_array_equal(array, after[name], err_msg=f"{name}, shift {shift}")


def test_legal_planes_mark_the_cells_of_moves():
    rules = get_rules("square8_2p")
    positions = random_positions("square8_2p", games=2)
    features = encode_states(rules, positions.states, positions.moves, positions.counts)
    origin = PLANE_NAMES.index("legal_origin")
    for row in range(len(positions.counts)):
        wanted = np.zeros((3, 64), dtype=bool)
        for code in positions.moves[row, : positions.counts[row]]:
            kind, fields = code & 31, [code >> s & 1023 for s in (5, 15, 25, 35)]
            if kind == layout.PLACE_RING:
                wanted[1, rules.plane_of[fields[0]]] = True
            elif kind == layout.MOVE_STACK:
                wanted[0, rules.plane_of[fields[0]]] = True
                wanted[1, rules.plane_of[fields[1]]] = True
            elif kind in (layout.OVERTAKING_CAPTURE, layout.CONTINUE_CAPTURE):
                for role, field in zip((0, 2, 1), fields, strict=False):
                    wanted[role, rules.plane_of[field]] = True
            elif kind >= layout.PROCESS_LINE:
                break
        else:
            got = features["planes"][row, origin : origin + 3].reshape(3, 64)
            np.testing.assert_array_equal(got.astype(bool), wanted)


def test_compact_rows_encode_like_whole_ones():
    rules = get_rules("hex8_3p")
    positions = spread(random_positions("hex8_3p"), 8)
    compact = positions.states[:, : layout.HEADER + rules.plane_of.shape[0]]
    whole = encode_states(rules, positions.states, positions.moves, positions.counts)
    short = encode_states(rules, compact, positions.moves, positions.counts)
    for name in whole:
        np.testing.assert_array_equal(whole[name], short[name])


def test_bad_batches_are_refused():
    rules = get_rules("square8_2p")
    p = spread(random_positions("square8_2p"), 3)
    with pytest.raises(ValueError, match="states must have shape"):
        encode_states(rules, p.states[:, :40], p.moves, p.counts)
    with pytest.raises(ValueError, match="moves must be"):
        encode_states(rules, p.states, p.moves[:2], p.counts)
    with pytest.raises(ValueError, match="counts must lie"):
        encode_states(rules, p.states, p.moves, p.counts + p.moves.shape[1])
    over = p.states.copy()
    over[1, layout.PLAYER] = -1
    with pytest.raises(ValueError, match="state 1 of the batch is over"):
        encode_states(rules, over, p.moves, p.counts)


def test_encoding_alone_does_not_load_torch():
    code = (
        "import sys; from ringrift_pipeline.network import encode_states; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_rows_beyond_the_batch_are_zero_whatever_was_encoded_before():
    encoder = Encoder(get_rules("hex8_2p"))
    p = spread(random_positions("hex8_2p"), 8)
    encoder.encode(p.states, p.moves, p.counts)
    wanted = encode_states(encoder.rules, p.states[:3], p.moves[:3], p.counts[:3])
    found = encoder.encode(p.states[:3], p.moves[:3], p.counts[:3], rows=8)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name][:3], array, err_msg=name)
    for name in ("planes", "globals"):
        assert len(found[name]) == 8 and not found[name][3:].any()
