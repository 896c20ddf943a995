"""Batched inference: padding, seats, temperature, determinism."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ringrift_pipeline.game import get_rules, layout
from ringrift_pipeline.network import (
    MASKED_LOGIT,
    Evaluator,
    encode_states,
    features_to_tensors,
    resolve_device,
)

from .conftest import random_positions, spread
from .test_model import network


@pytest.mark.parametrize("config", ("square8_2p", "square8_3p", "hex8_4p", "square19_3p"))
def test_evaluates_like_the_network_with_seats_rotated_back(config):
    rules = get_rules(config)
    model = network(rules.geometry)
    p = spread(random_positions(config), 9)
    logits, values = Evaluator(model, rules, "cpu").evaluate(p.states, p.moves, p.counts)
    assert logits.shape == p.moves.shape and logits.dtype == np.float32
    assert values.shape == (9, rules.players) and values.dtype == np.float32
    np.testing.assert_allclose(values.sum(axis=1), 1, atol=1e-6)
    features = features_to_tensors(encode_states(rules, p.states, p.moves, p.counts))
    with torch.inference_mode():
        policy, value = model(features)
    probability = value.softmax(dim=1).numpy()
    for row, state in enumerate(p.states):
        count = p.counts[row]
        np.testing.assert_allclose(logits[row, :count], policy[row, :count], atol=1e-4)
        assert (logits[row, count:] == MASKED_LOGIT).all()
        for relative in range(rules.players):
            seat = (state[layout.PLAYER] + relative) % rules.players
            assert values[row, seat] == pytest.approx(probability[row, relative], abs=1e-5)
    assert len(set(p.states[:, layout.PLAYER].tolist())) > 1


def test_wide_move_buffers_and_pieces_change_nothing():
    rules = get_rules("square8_2p")
    p = spread(random_positions("square8_2p"), 11)
    model = network("square")
    logits, values = Evaluator(model, rules, "cpu").evaluate(p.states, p.moves, p.counts)
    wide = np.full((11, rules.max_moves), 12345, dtype=np.int64)
    wide[:, : p.moves.shape[1]] = p.moves
    logits2, values2 = Evaluator(model, rules, "cpu").evaluate(p.states, wide, p.counts)
    np.testing.assert_array_equal(logits2[:, : p.moves.shape[1]], logits)
    assert (logits2[:, p.moves.shape[1] :] == MASKED_LOGIT).all()
    np.testing.assert_array_equal(values, values2)
    pieces = Evaluator(model, rules, "cpu", max_batch=4).evaluate(p.states, p.moves, p.counts)
    np.testing.assert_allclose(pieces[0], logits, atol=1e-4)
    np.testing.assert_allclose(pieces[1], values, atol=1e-5)


def test_the_network_meets_few_sizes_of_batch():
    """Each size costs memory that is never given back, and selfplay asks for every one in time."""
    rules = get_rules("square8_2p")
    p = spread(random_positions("square8_2p"), 128)
    evaluator = Evaluator(network("square"), rules, "cpu")
    sizes = []
    evaluator._board.network.register_forward_pre_hook(
        lambda _, inputs: sizes.append(len(inputs[0]))
    )
    whole, _ = evaluator.evaluate(p.states, p.moves, p.counts)
    for size in range(1, 128):
        logits, _ = evaluator.evaluate(p.states[:size], p.moves[:size], p.counts[:size])
        assert size <= sizes[-1] < size + 8
        np.testing.assert_allclose(logits, whole[:size], atol=1e-4)
    assert len(set(sizes)) <= 20


def test_same_batch_same_bits_and_threads_restored():
    rules = get_rules("square8_2p")
    p = spread(random_positions("square8_2p"), 16)
    model = network("square", channels=32)
    torch.set_num_threads(2)
    evaluator = Evaluator(model, rules, "cpu")
    first = evaluator.evaluate(p.states, p.moves, p.counts)
    assert torch.get_num_threads() == 2
    evaluator.evaluate(p.states[:5], p.moves[:5], p.counts[:5])
    torch.set_num_threads(1)
    again = Evaluator(model, rules, "cpu").evaluate(p.states, p.moves, p.counts)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_temperature_softens_values_and_leaves_the_policy():
    rules = get_rules("square8_3p")
    p = spread(random_positions("square8_3p"), 8)
    model = network("square")
    logits, sharp = Evaluator(model, rules, "cpu").evaluate(p.states, p.moves, p.counts)
    soft_logits, soft = Evaluator(model, rules, "cpu", value_temperature=3.0).evaluate(
        p.states, p.moves, p.counts
    )
    np.testing.assert_array_equal(logits, soft_logits)
    expected = sharp.astype(np.float64) ** (1 / 3)
    np.testing.assert_allclose(soft, expected / expected.sum(axis=1, keepdims=True), atol=1e-5)


def test_the_callers_model_is_left_alone():
    rules = get_rules("square8_2p")
    model = network("square").train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    p = spread(random_positions("square8_2p"), 4)
    evaluator = Evaluator(model, rules, "cpu")
    logits, _ = evaluator.evaluate(p.states, p.moves, p.counts)
    assert model.training and all(q.requires_grad for q in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    with torch.no_grad():
        for q in model.parameters():
            q.zero_()
    np.testing.assert_array_equal(evaluator.evaluate(p.states, p.moves, p.counts)[0], logits)


def test_bad_arguments_are_refused():
    rules = get_rules("square8_2p")
    model = network("square")
    with pytest.raises(ValueError, match="hex boards cannot evaluate square8_2p"):
        Evaluator(network("hex"), rules, "cpu")
    with pytest.raises(ValueError, match="value_temperature"):
        Evaluator(model, rules, "cpu", value_temperature=0.0)
    with pytest.raises(ValueError, match="threads"):
        Evaluator(model, rules, "cpu", threads=0)
    with pytest.raises(ValueError, match="max_batch"):
        Evaluator(model, rules, "cpu", max_batch=0)
    with pytest.raises(ValueError, match="unknown device"):
        resolve_device("abacus")
    p = spread(random_positions("square8_2p"), 4)
    with pytest.raises(ValueError, match="counts reach"):
        Evaluator(model, rules, "cpu").evaluate(p.states, p.moves[:, :2], p.counts)


def test_an_empty_batch_is_evaluated_to_nothing():
    rules = get_rules("square8_2p")
    logits, values = Evaluator(network("square"), rules, "cpu").evaluate(
        np.zeros((0, rules.state_size), dtype=np.int64),
        np.zeros((0, 5), dtype=np.int64),
        np.zeros(0, dtype=np.int32),
    )
    assert logits.shape == (0, 5) and values.shape == (0, 2)
