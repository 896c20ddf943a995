"""OpenVINO in torch's place: the same numbers, the same bits every time, and refused by name."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from ringrift_pipeline.game import get_rules
from ringrift_pipeline.network import (
    Evaluator,
    MissingBackendError,
    NonFiniteOutputError,
    backend_on,
    devices,
    resolve_backend,
)
from ringrift_pipeline.network.board_network import BoardNetwork
from ringrift_pipeline.network.encoding import NUM_GLOBALS, NUM_PLANES

from .conftest import Positions, random_positions, spread
from .test_model import network
from .test_precision import CONFIGS, log_policy

needs_openvino = pytest.mark.skipif(
    resolve_backend("auto", "cpu") != "openvino",
    reason="openvino is not installed (the extra 'openvino')",
)


def evaluated(which: Evaluator, p: Positions) -> tuple[np.ndarray, np.ndarray]:
    return which.evaluate(p.states, p.moves, p.counts)


@needs_openvino
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("batch", [1, 11])
def test_openvino_gives_what_torch_gives(config: str, batch: int) -> None:
    rules = get_rules(config)
    model = network(rules.geometry, blocks=3)  # the third has pooling in it
    p = spread(random_positions(config), batch)
    by_torch, by_openvino = (
        evaluated(Evaluator(model, rules, "cpu", backend=name), p) for name in ("torch", "openvino")
    )
    np.testing.assert_allclose(by_openvino[0], by_torch[0], atol=1e-4)
    np.testing.assert_allclose(by_openvino[1], by_torch[1], atol=1e-4)
    assert np.ptp(by_torch[1]) > 1e-3  # it had something to agree on


@needs_openvino
@pytest.mark.parametrize("config", CONFIGS)
def test_openvino_in_bfloat16_stays_close(config: str) -> None:
    rules = get_rules(config)
    model = network(rules.geometry, blocks=3)
    p = spread(random_positions(config), 12)
    exact = evaluated(Evaluator(model, rules, "cpu"), p)
    low = evaluated(Evaluator(model, rules, "cpu", precision="bfloat16", backend="openvino"), p)
    legal = np.arange(p.moves.shape[1]) < p.counts[:, None]
    first, second = log_policy(exact[0]), log_policy(low[0])
    divergence = np.where(legal, np.exp(first) * (first - second), 0.0).sum(axis=1)
    assert divergence.mean() < 1e-3
    assert np.abs(exact[1] - low[1]).max() < 0.02
    if devices.resolve_precision("auto", "cpu") == "bfloat16":  # elsewhere it may stay float32
        assert divergence.mean() > 0


@needs_openvino
def test_every_board_operation_of_openvino_is_that_of_torch() -> None:
    """Before any look-up: pooling blocks, the mask of a hexagon, every output."""
    from ringrift_pipeline.network.openvino_network import OpenVinoNetwork

    rules = get_rules("hex8_3p")
    model = network(rules.geometry, blocks=3)
    board = BoardNetwork(model, rules)
    assert board.mask is not None and any(block.pool is not None for block in board.blocks)
    planes = (
        np.random.default_rng(0)
        .integers(0, 4, (5, NUM_PLANES, rules.size, rules.size))
        .astype(np.uint8)
    )
    globals_ = np.random.default_rng(1).random((5, NUM_GLOBALS)).astype(np.float32)
    with torch.inference_mode():
        expected = board(torch.from_numpy(planes), torch.from_numpy(globals_))
    answers = OpenVinoNetwork(model, rules, "float32", 1)(planes, globals_)
    for answer, wanted in zip(answers, expected, strict=True):
        np.testing.assert_allclose(answer, wanted.numpy(), atol=1e-4)


@needs_openvino
def test_the_same_batch_is_the_same_bits_whatever_ran_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ringrift_pipeline.network import openvino_network

    monkeypatch.setattr(openvino_network, "MOST_SIZES", 2)  # graphs are dropped and made again
    rules = get_rules("square8_2p")
    model = network(rules.geometry, blocks=2)
    p = spread(random_positions("square8_2p"), 40)
    one = Evaluator(model, rules, "cpu", precision="bfloat16", backend="openvino")
    first = evaluated(one, p)
    for rows in (1, 2, 5, 9, 17, 33):
        evaluated(one, p.take(slice(rows)))
    assert len(one._board._requests) == 2
    other = Evaluator(model, rules, "cpu", precision="bfloat16", backend="openvino", threads=2)
    for again in (evaluated(one, p), evaluated(other, p)):
        assert again[0].tobytes() == first[0].tobytes()
        assert again[1].tobytes() == first[1].tobytes()


@pytest.mark.parametrize("asked", ["auto", "torch", "openvino", "tensorrt"])
def test_what_a_backend_means(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    for installed in (True, False):
        monkeypatch.setattr(devices, "find_spec", lambda name, found=installed: found or None)
        if asked == "tensorrt":
            with pytest.raises(ValueError, match="auto, torch or openvino, got 'tensorrt'"):
                resolve_backend(asked, "cpu")
        elif asked == "openvino" and not installed:
            with pytest.raises(MissingBackendError, match="ringrift-pipeline\\[openvino\\]"):
                resolve_backend(asked, "cpu")
        else:
            found = "openvino" if installed and asked != "torch" else "torch"
            assert resolve_backend(asked, "cpu") == found


def test_openvino_is_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_backend("auto", "cuda") == "torch"
    with pytest.raises(ValueError, match="not on cuda"):
        resolve_backend("openvino", "cuda")
    for chosen, there in (("openvino", "torch"), ("torch", "torch"), ("auto", "auto")):
        assert backend_on("cuda", chosen) == there
        assert backend_on("cpu", chosen) == chosen


@needs_openvino
@pytest.mark.parametrize("backend", ["torch", "openvino"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "layer", ["stem", "blocks.1.second", "policy.hidden", "value.conv", "value.hidden"]
)
def test_an_overflow_within_is_refused(layer: str, precision: str, backend: str) -> None:
    """OpenVINO's relu would make 0 of a NaN, and the answer look like any other."""
    rules = get_rules("square8_2p")
    model = network(rules.geometry, blocks=2)
    with torch.no_grad():
        weight = model.get_submodule(layer).weight  # what loads, and its sums are no numbers
        weight.copy_(torch.where(weight < 0, -3e38, 3e38))
    p = spread(random_positions("square8_2p"), 3)
    broken = Evaluator(model, rules, "cpu", precision=precision, backend=backend)
    with pytest.raises(NonFiniteOutputError, match="not finite"):
        evaluated(broken, p)


ENDS = """
import gc, signal, subprocess, threading
import numpy as np
from ringrift_pipeline.game import get_rules
from ringrift_pipeline.network import NetworkConfig, RingRiftNetwork
from ringrift_pipeline.network.encoding import NUM_GLOBALS, NUM_PLANES
from ringrift_pipeline.network.openvino_network import OpenVinoNetwork

rules = get_rules("square8_2p")
model = RingRiftNetwork(NetworkConfig(blocks=1, channels=8, geometry=rules.geometry, players=2))
shape = (1, NUM_PLANES, rules.size, rules.size)
kept = [OpenVinoNetwork(model, rules, "float32", 1)]
kept[0](np.zeros(shape, np.uint8), np.zeros((1, NUM_GLOBALS), np.float32))

def drop():
    kept.clear()
    gc.collect()

thread = threading.Thread(target=drop)
thread.start()
thread.join()
told = []
signal.signal(signal.SIGCHLD, lambda *_: told.append(1))
for _ in range(3):
    subprocess.run(["true"], check=True)
assert told
"""


@needs_openvino
def test_signals_are_heard_when_a_network_is_gone() -> None:
    """OpenVINO's last object would take its stack for signals along, from another thread without
    giving the thread's own back, and the next signal would kill the process.
    """
    subprocess.run([sys.executable, "-c", ENDS], check=True)
