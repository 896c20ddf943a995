"""Inference in bfloat16, where the moves are looked up, and what `auto` means."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ringrift_pipeline.game import get_rules
from ringrift_pipeline.network import (
    DIVERGENCE,
    Evaluator,
    devices,
    encode_states,
    resolve_precision,
)
from ringrift_pipeline.network.board_network import BoardNetwork
from ringrift_pipeline.network.device_network import DeviceNetwork
from ringrift_pipeline.network.encoder import Encoder
from ringrift_pipeline.network.move_logits import move_logits
from ringrift_pipeline.network.moves import INTERACTION_CHANNELS

from .conftest import random_positions, spread
from .test_model import network

CONFIGS = ("square8_2p", "hex8_3p", "square19_2p", "hexagonal_4p")


def log_policy(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("config", CONFIGS)
def test_bfloat16_is_used_and_stays_close(config):
    rules = get_rules(config)
    model = network(rules.geometry, blocks=3)
    p = spread(random_positions(config), 12)
    exact, low = (
        Evaluator(model, rules, "cpu", precision=precision).evaluate(p.states, p.moves, p.counts)
        for precision in ("float32", "bfloat16")
    )
    legal = np.arange(p.moves.shape[1]) < p.counts[:, None]
    first, second = log_policy(exact[0]), log_policy(low[0])
    divergence = np.where(legal, np.exp(first) * (first - second), 0.0).sum(axis=1)
    assert 0 < divergence.mean() < 1e-3
    assert (low[0][~legal] == exact[0][~legal]).all()
    assert 0 < np.abs(exact[1] - low[1]).max() < 0.02
    np.testing.assert_allclose(low[1].sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_moves_looked_up_on_the_device_have_the_same_logits(precision):
    rules = get_rules("hex8_2p")
    model = network("hex")
    p = spread(random_positions("hex8_2p"), 10)
    here = Evaluator(model, rules, "cpu", precision=precision)
    there = Evaluator(model, rules, "cpu", precision=precision)
    there._there = DeviceNetwork(there._board.network, model.policy, there.device)
    one, other = (each.evaluate(p.states, p.moves, p.counts) for each in (here, there))
    np.testing.assert_allclose(one[0], other[0], atol=1e-4)
    # the batch is filled up here and not there, so sums may be taken in another order
    np.testing.assert_allclose(one[1], other[1], atol=1e-6)


def test_logits_are_the_written_sums():
    """A move of every rank and number of cells, against the formula in float64."""
    rng = np.random.default_rng(5)
    kinds, width, planes, area = 4, INTERACTION_CHANNELS, 7, 9
    cells = rng.normal(size=(2, area, planes + 3 * width)).astype(np.float32)
    shapes = ((2, kinds), (kinds, width), (kinds, width), (kinds, 4), (kinds,))
    bias, embed, out, table, slope = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    index = rng.integers(0, planes, (kinds, 3))
    kind = rng.integers(0, kinds, (2, 6)).astype(np.uint8)
    where = rng.integers(-1, area, (2, 6, 3)).astype(np.int16)
    rank = rng.integers(0, 9, (2, 6)).astype(np.int16)
    counts = np.array([6, 4], dtype=np.int32)
    logits = np.empty((2, 8), dtype=np.float32)
    tables = (index, embed, out, table, slope)
    move_logits(cells, bias, kind, where, rank, counts, *tables, logits)
    for row in range(2):
        for i in range(counts[row]):
            k, r = int(kind[row, i]), int(rank[row, i])
            expected = float(bias[row, k]) + table[k, min(r, 3)] + slope[k] * math.log1p(r)
            inner = embed[k].astype(np.float64)
            for slot, cell in enumerate(where[row, i]):
                if cell >= 0:
                    expected += cells[row, cell, index[k, slot]]
                    first = planes + slot * width
                    inner = inner + cells[row, cell, first : first + width]
            expected += (np.maximum(inner, 0) * out[k]).sum()
            assert logits[row, i] == pytest.approx(expected, abs=1e-5)
        assert (logits[row, counts[row] :] == -1e9).all()


def test_an_encoder_gives_the_same_whatever_it_encoded_before():
    rules = get_rules("hex8_2p")
    p = spread(random_positions("hex8_2p"), 24)
    encoder = Encoder(rules)
    for rows in (slice(0, 3), slice(3, 24), slice(5, 9), slice(0, 24)):
        q = p.take(rows)
        for width in (q.moves.shape[1], int(q.counts.max())):
            fresh = encode_states(rules, q.states, q.moves[:, :width], q.counts)
            used = encoder.encode(q.states, q.moves[:, :width], q.counts)
            for name, array in fresh.items():
                np.testing.assert_array_equal(used[name], array, err_msg=name)
                assert used[name].dtype == array.dtype and array.flags.c_contiguous


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu avx512f avx512_bf16 sse\n", "bfloat16"),
        ("flags\t\t: fpu amx_bf16\n", "bfloat16"),
        ("flags\t\t: fpu avx512f avx512_bf16x\nmodel name : avx512_bf16\n", "float32"),
        ("Features\t: fp asimd bf16\n", "float32"),
        (None, "float32"),
    ],
)
def test_auto_is_bfloat16_where_the_processor_has_it(text, expected, tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(devices, "CPU_INFO", path)
    assert resolve_precision("auto", "cpu") == expected
    assert resolve_precision("float32", "cpu") == "float32"
    assert resolve_precision("bfloat16", "cpu") == "bfloat16"
    for measured, borne in ((1e-5, True), (1e-3, True), (1.1e-3, False), (None, False)):
        models = [{}, {DIVERGENCE: measured}]
        assert resolve_precision("auto", "cpu", models) == (expected if borne else "float32")
        assert resolve_precision("bfloat16", "cpu", models) == "bfloat16"
    model = Evaluator(network("square"), get_rules("square8_2p"), "cpu", precision="auto")
    assert model.precision == expected


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision must be auto, float32 or bfloat16, got 'int8'"):
        Evaluator(network("square"), get_rules("square8_2p"), "cpu", precision="int8")


def test_a_square_board_needs_no_mask_and_a_hexagon_does():
    for config, masked in (("square8_2p", False), ("hex8_2p", True)):
        rules = get_rules(config)
        board = BoardNetwork(network(rules.geometry), rules)
        assert (board.mask is not None) == masked
        assert not any(parameter.requires_grad for parameter in board.parameters())
