"""The network on a device: sizes rounded up, and replayed graphs against plain calls."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ringrift_pipeline.game import get_rules
from ringrift_pipeline.network import BoardNetwork, Evaluator
from ringrift_pipeline.network import device_network as module
from ringrift_pipeline.network.device_network import DeviceNetwork, roomy
from ringrift_pipeline.network.encoder import Encoder

from .conftest import random_positions, spread
from .test_model import network

cuda = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_rounded_sizes_are_few_and_close():
    assert [roomy(n) for n in (1, 2, 7, 8, 9, 11, 16, 17, 33, 127, 128, 129)] == [
        1, 2, 7, 8, 10, 12, 16, 20, 40, 128, 128, 160,
    ]  # fmt: skip
    sizes = np.arange(1, 100_000)
    rounded = np.array([roomy(int(n)) for n in sizes])
    assert (rounded >= sizes).all() and (rounded < 1.25 * sizes + 1e-9).all()
    assert (np.diff(rounded) >= 0).all() and len(set(rounded.tolist())) < 70


def test_logits_are_those_of_the_network_one_position_after_the_other():
    rules = get_rules("square8_3p")
    p = spread(random_positions("square8_3p"), 7)
    model = network("square").requires_grad_(False)
    features = Encoder(rules).encode(p.states, p.moves, p.counts)
    here = DeviceNetwork(BoardNetwork(model, rules), model.policy, torch.device("cpu"))
    logits, value = here.evaluate(features, p.counts)
    tensors = {name: torch.from_numpy(array.copy()) for name, array in features.items()}
    policy, expected = model(tensors)
    legal = np.arange(p.moves.shape[1]) < p.counts[:, None]
    np.testing.assert_allclose(logits, policy.numpy()[legal], atol=1e-4)
    np.testing.assert_allclose(value[:, :3], expected.numpy()[:, :3], atol=1e-5)


class TestOnCuda:
    pytestmark = cuda

    @pytest.mark.parametrize("config", ["square8_2p", "hex8_4p", "square19_3p"])
    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_replays_agree_with_the_cpu(self, config, precision):
        rules = get_rules(config)
        p = spread(random_positions(config), 16)
        model = network(rules.geometry)
        here = Evaluator(model, rules, "cpu").evaluate(p.states, p.moves, p.counts)
        there = Evaluator(model, rules, "cuda", precision=precision)
        found = there.evaluate(p.states, p.moves, p.counts)
        far = 5e-2 if precision == "bfloat16" else 5e-3
        for one, other in zip(here, found, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-2, atol=far)

    @pytest.mark.parametrize("most", [64, 2])
    def test_batches_of_changing_size_leave_nothing_behind(self, monkeypatch, most):
        """The same batch has the same answer whatever ran before, graphs thrown away or not."""
        monkeypatch.setattr(module, "MOST_GRAPHS", most)
        rules = get_rules("square8_2p")
        p = spread(random_positions("square8_2p"), 40)
        replayed = Evaluator(network("square"), rules, "cuda")
        plain = Evaluator(network("square"), rules, "cuda")
        head = network("square").policy.cuda().requires_grad_(False)
        plain._there = DeviceNetwork(plain._network, head, plain.device, graphs=False)
        first = {}
        for size in (40, 3, 17, 40, 1, 3, 33, 17, 40):
            piece = slice(40 - size, 40)
            batch = p.states[piece], p.moves[piece], p.counts[piece]
            one, other = replayed.evaluate(*batch), plain.evaluate(*batch)
            for got, expected in zip(one, other, strict=True):
                np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)
            if size in first:
                np.testing.assert_array_equal(one[0], first[size][0])
                np.testing.assert_array_equal(one[1], first[size][1])
            first.setdefault(size, one)
        assert replayed._there is not None and replayed._there._graphs is not None
        assert len(replayed._there._graphs) <= most
