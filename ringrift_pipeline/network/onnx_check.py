"""Whether an ONNX file gives what the network itself gives."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from ringrift_pipeline.network.encoder import encode_states
from ringrift_pipeline.network.evaluator import features_to_tensors
from ringrift_pipeline.network.model import RingRiftNetwork
from ringrift_pipeline.network.move_logits import MASKED_LOGIT
from ringrift_pipeline.network.onnx_export import OUTPUTS, ExportError, example_position

if TYPE_CHECKING:
    from ringrift_pipeline.game import Rules

TOLERANCE = 1e-4
POSITIONS = 16

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Agreement:
    """How far ONNX Runtime was from torch, at most, over all outputs of ``positions`` positions."""

    deviation: float
    positions: int


def compare(path: Path, network: RingRiftNetwork, rules: Rules) -> Agreement | None:
    """Run the file at ``path`` and ``network`` on the same positions; None without onnxruntime.

    The positions are the one that an export ships and ``POSITIONS`` of a random game, all with a
    choice of moves.

    Raises:
        ExportError: onnxruntime cannot run the file, or some output differs by more than 1e-4.
    """
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    asked = (example_position(rules), played_positions(rules))
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        found = [session.run(list(OUTPUTS), features) for features in asked]
    except Exception as error:  # its own classes, which have nothing else in common
        raise ExportError(
            f"onnxruntime {onnxruntime.__version__} cannot run the ONNX file that was written: "
            f"{error}; install another version of onnxruntime, or none to go without the check"
        ) from error
    most = dict.fromkeys(OUTPUTS, 0.0)
    for features, there in zip(asked, found, strict=True):
        here = answers(network, rules, features)
        for name, output in zip(OUTPUTS, there, strict=True):
            away = np.abs(output.astype(np.float64) - here[name]).max()
            most[name] = float(np.maximum(most[name], away))  # a NaN stays one
    positions = sum(len(features["legal_mask"]) for features in asked)
    wrong = {name: away for name, away in most.items() if not away <= TOLERANCE}
    if wrong:
        raise ExportError(
            "nothing is exported: ONNX is not what torch gives, "
            + ", ".join(f"{name} differs by up to {away:.2g}" for name, away in wrong.items())
            + f" on {positions} positions ({TOLERANCE:g} is allowed); try other versions of torch, "
            "onnxscript and onnxruntime"
        )
    return Agreement(max(most.values()), positions)


def answers(
    network: RingRiftNetwork, rules: Rules, features: Mapping[str, npt.NDArray[Any]]
) -> Arrays:
    """What the network itself, not its ONNX form, says of encoded positions: arrays by `OUTPUTS`."""
    tensors = features_to_tensors(features)
    network = copy.deepcopy(network).cpu().float().eval()
    with torch.no_grad():
        logits, value = network(tensors)
    logits = logits.masked_fill(~tensors["legal_mask"], MASKED_LOGIT)
    found = (logits, logits.softmax(dim=1), value[:, : int(rules.players)].softmax(dim=1))
    return {name: answer.numpy() for name, answer in zip(OUTPUTS, found, strict=True)}


def played_positions(rules: Rules, rows: int = POSITIONS, seed: int = 0) -> Arrays:
    """Encoded positions spread over one game of random moves, at most ``rows``, as
    ``encode_states`` has them.
    """
    from ringrift_pipeline.game import kernels, layout

    generator = np.random.default_rng(seed)
    state = np.zeros(rules.state_size, dtype=np.int64)
    buffer = np.empty(rules.max_moves, dtype=np.int64)
    kernels.initial_state(rules.constants, state, False)
    met = []
    while state[layout.PHASE] != layout.OVER:
        count = kernels.legal_moves(rules.constants, state, buffer)
        if count > 1:
            met.append((state.copy(), buffer[:count].copy()))
        kernels.apply_move(rules.constants, state, buffer[generator.integers(count)])
    kept = [met[at] for at in np.unique(np.linspace(0, len(met) - 1, rows).astype(int))]
    counts = np.array([len(legal) for _, legal in kept], dtype=np.int32)
    moves = np.zeros((len(kept), int(counts.max())), dtype=np.int64)
    for row, (_, legal) in zip(moves, kept, strict=True):
        row[: len(legal)] = legal
    return encode_states(rules, np.array([state for state, _ in kept]), moves, counts)
