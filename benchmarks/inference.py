"""How fast positions are evaluated on the CPU: every backend, what a call's time goes to, bfloat16.

    python benchmarks/inference.py [--quick] [--json] [--model FOLDER]

Four parts, all on square8 with two players and positions of random games.

*Backends*: the dense part of the network (everything but the look-up of moves) by torch, by
``torch.compile``, by ONNX Runtime and by OpenVINO, one thread, in processor time. The reference
is a bare residual tower of the same size in torch, same arithmetic, same batch: convolutions,
relu and sums, without pooling, globals or heads. It is what the processor can do, and re-created
here because processors differ. Float32 answers must agree to 1e-4. A backend that cannot be had
ends the run with exit code 1 and a line that says what to install; with ``--quick`` it is left out
with that line (and ``torch.compile``, which takes long to compile, without one).

*Calls*: what ``Evaluator.evaluate`` spends on encoding, network and look-up of moves; its
reference is the plain way, fresh arrays and the training network's own ``forward`` in float32.

*Two processes*: positions a second of two processes of one thread each, by the clock.

*bfloat16*: mean KL divergence of the policy from float32's, of the network in ``--model`` or of
an untrained one; the reference is the most that we allow.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F

from ringrift_pipeline.game import get_rules, kernels, layout
from ringrift_pipeline.network import (
    BoardNetwork,
    Evaluator,
    NetworkConfig,
    RingRiftNetwork,
    encode_states,
    features_to_tensors,
    load_model,
    resolve_backend,
)
from ringrift_pipeline.network.openvino_network import OpenVinoNetwork

CONFIG = "square8_2p"
SHAPES = ((4, 32), (6, 64), (6, 96))
BATCHES = (128, 16, 1)
COMPILED_BATCHES = (128, 16)  # by torch.compile, which takes long for each
#: What a backend needs, by the first word of its name.
NEEDS = {
    "onnxruntime": "pip install 'ringrift-pipeline[onnx]'",
    "openvino": "pip install openvino 'ringrift-pipeline[onnx]'",
    "torch.compile": "a C++ compiler (Debian: apt install g++)",
}
#: What one thread must reach of a bare tower by torch, and of the plain way by a whole call.
LEAST_OF_TOWER, LEAST_OF_PLAIN = 0.5, 1.1
MOST_KL = 1e-3

Claim = dict[str, Any]
Run = Callable[[], object]


def claim(
    name: str,
    value: float,
    unit: str,
    reference: float | None = None,
    target: float | None = None,
    smaller_is_better: bool = False,
) -> Claim:
    ratio = None
    if reference is not None:
        ratio = reference / value if smaller_is_better else value / reference
    return {
        "claim": name,
        "value": float(f"{value:.4g}"),
        "unit": unit,
        "reference": reference and float(f"{reference:.4g}"),
        "ratio": ratio and float(f"{ratio:.4g}"),
        "target": target,
    }


def medians(runs: dict[str, Run], seconds: float) -> dict[str, float]:
    """Median processor time of each, in seconds, taken in turns for about ``seconds`` in all."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(), run()
    end = time.monotonic() + seconds
    while time.monotonic() < end or min(map(len, taken.values())) < 5:
        for name, run in runs.items():
            started = time.process_time()
            run()
            taken[name].append(time.process_time() - started)
    return {name: float(np.median(times)) for name, times in taken.items()}


def positions(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States (B, S), moves (B, L) and counts (B,) of decisions spread over random games."""
    rules = get_rules(CONFIG)
    rng = np.random.default_rng(0)
    buffer = np.empty(rules.max_moves, dtype=np.int64)
    states, legal = [], []
    while len(states) < max(count, 400):
        state = np.zeros(rules.state_size, dtype=np.int64)
        kernels.initial_state(rules.constants, state, False)
        while state[layout.PHASE] != layout.OVER:
            number = kernels.legal_moves(rules.constants, state, buffer)
            if number > 1:
                states.append(state.copy())
                legal.append(buffer[:number].copy())
            kernels.apply_move(rules.constants, state, buffer[rng.integers(number)])
    chosen = np.linspace(0, len(states) - 1, count).astype(int)
    counts = np.array([len(legal[index]) for index in chosen], dtype=np.int32)
    moves = np.zeros((count, int(counts.max())), dtype=np.int64)
    for row, index in enumerate(chosen):
        moves[row, : counts[row]] = legal[index]
    return np.array([states[index] for index in chosen]), moves, counts


def network(blocks: int, channels: int) -> RingRiftNetwork:
    return RingRiftNetwork(NetworkConfig(blocks=blocks, channels=channels)).eval()


# --- backends ------------------------------------------------------------------------------------
def tower(blocks: int, channels: int, batch: int, dtype: torch.dtype) -> Run:
    """A bare residual tower on 8x8 planes."""
    shape = (channels, channels, 3, 3)
    weight = (0.05 * torch.randn(shape)).to(dtype).contiguous(memory_format=torch.channels_last)
    bias = torch.zeros(channels, dtype=dtype)
    planes = torch.randn(batch, channels, 8, 8).to(dtype)
    planes = planes.contiguous(memory_format=torch.channels_last)

    def run() -> torch.Tensor:
        x = planes
        with torch.inference_mode():
            for _ in range(blocks):
                y = F.conv2d(F.relu(x), weight, bias, padding=1).relu_()
                x = F.conv2d(y, weight, bias, padding=1).add_(x)
        return x

    return run


def by_torch(model: RingRiftNetwork, dtype: torch.dtype, compiled: bool = False) -> Callable:
    board: Any = BoardNetwork(model, get_rules(CONFIG), dtype).eval()
    if compiled:
        import torch._inductor.config as inductor

        from ringrift_pipeline.game.compile import cache_root, private_folder

        place = private_folder(cache_root() / "kernels" / "inductor")  # not in /tmp, for all
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(place))
        inductor.freezing = True
        board = torch.compile(board, dynamic=False)

    def run(planes: np.ndarray, globals_: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            outputs = board(torch.from_numpy(planes), torch.from_numpy(globals_))
        return [output.numpy() for output in outputs]

    return run


def as_onnx(model: RingRiftNetwork, path: Path, batch: int) -> Path:
    """The dense part as ONNX with a fixed batch, for the libraries that read it."""
    import onnxscript  # noqa: F401

    states, moves, counts = positions(batch)
    features = encode_states(get_rules(CONFIG), states, moves, counts)
    arguments = (torch.from_numpy(features["planes"]), torch.from_numpy(features["globals"]))
    board = BoardNetwork(model, get_rules(CONFIG)).eval()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(board, arguments, dynamo=True, verbose=False)
    program.save(path)
    return path


def by_onnxruntime(path: Path) -> Callable:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))


def by_openvino(model: RingRiftNetwork, precision: str) -> Callable:
    run = OpenVinoNetwork(model, get_rules(CONFIG), precision, 1)
    return lambda *arrays: [output.copy() for output in run(*arrays)]


def makers(
    model: RingRiftNetwork, batch: int, folder: Path, compiled: bool
) -> dict[str, Callable[[], Callable]]:
    """How to make each backend, by name; making one raises where it cannot be had."""
    path = folder / f"{model.config.blocks}x{model.config.channels}-{batch}.onnx"

    def file() -> Path:
        return path if path.exists() else as_onnx(model, path, batch)

    found: dict[str, Callable[[], Callable]] = {
        "torch float32": lambda: by_torch(model, torch.float32),
        "torch bfloat16": lambda: by_torch(model, torch.bfloat16),
        "onnxruntime float32": lambda: by_onnxruntime(file()),
        "openvino float32": lambda: by_openvino(model, "float32"),
        "openvino bfloat16": lambda: by_openvino(model, "bfloat16"),
    }
    if compiled:
        found["torch.compile float32"] = lambda: by_torch(model, torch.float32, True)
        found["torch.compile bfloat16"] = lambda: by_torch(model, torch.bfloat16, True)
    return found


def backends(quick: bool) -> Iterator[Claim]:
    """Positions a second of every backend, one thread, against the bare tower."""
    left_out: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        for blocks, channels in SHAPES[:2] if quick else SHAPES:
            model = network(blocks, channels)
            for batch in BATCHES[:1] if quick else BATCHES:
                states, moves, counts = positions(batch)
                features = encode_states(get_rules(CONFIG), states, moves, counts)
                arrays = features["planes"], features["globals"]
                exact = by_torch(model, torch.float32)(*arrays)
                runs: dict[str, Run] = {
                    "tower float32": tower(blocks, channels, batch, torch.float32),
                    "tower bfloat16": tower(blocks, channels, batch, torch.bfloat16),
                }
                compiled = not quick and batch in COMPILED_BATCHES
                if compiled:
                    torch.compiler.reset()  # it gives up, silently, after a few sizes otherwise
                for name, make in makers(model, batch, Path(folder), compiled).items():
                    try:
                        run = make()
                        answer = run(*arrays)
                    except Exception as error:
                        reason = absence(name, error)
                        if not quick:
                            raise SystemExit(reason) from error
                        if name not in left_out:
                            print(f"left out: {reason}", file=sys.stderr, flush=True)
                        left_out.add(name)
                        continue
                    check(name, exact, answer)
                    runs[name] = lambda run=run, arrays=arrays: run(*arrays)
                times = medians(runs, 2.0 if quick else 8.0)
                for name in list(runs)[2:]:
                    kind = name.split()[-1]
                    yield claim(
                        f"dense {blocks}x{channels}, batch {batch}, {name}",
                        batch / times[name],
                        "positions/s",
                        batch / times[f"tower {kind}"],
                        LEAST_OF_TOWER if name == f"torch {kind}" and batch > 100 else None,
                    )


def absence(name: str, error: Exception) -> str:
    """Why a backend cannot be had, and what to do."""
    reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    needs = NEEDS.get(name.split()[0])
    return f"{name} ({reason})" + (f": needs {needs}" if needs else "")


def check(name: str, exact: list[np.ndarray], answer: list[np.ndarray]) -> None:
    """Every backend must give the same numbers, or its speed means nothing."""
    allowed = 1e-4 if name.endswith("float32") else 0.1
    worst = max(float(np.abs(a - b).max()) for a, b in zip(exact, answer, strict=True))
    if not worst < allowed:
        raise SystemExit(f"{name} differs from torch float32 by {worst}")


# --- whole calls ---------------------------------------------------------------------------------
def calls(quick: bool) -> Iterator[Claim]:
    """Where the time of a whole call goes, and how it compares with the plain way."""
    for blocks, channels in SHAPES[:2]:
        for batch in (128,) if quick else (512, 128, 32):
            for precision in ("float32", "bfloat16"):
                model = network(blocks, channels)
                times = call_times(model, batch, precision, 2.0 if quick else 6.0)
                where = f"call {blocks}x{channels}, batch {batch}, {precision}"
                for part in ("encoding", "network", "look-up"):
                    yield claim(f"{where}: {part}", times[part] / batch * 1e6, "us/position")
                yield claim(
                    where,
                    batch / times["whole"],
                    "positions/s",
                    batch / times["plain"],
                    LEAST_OF_PLAIN if batch > 100 else None,
                )


def call_times(
    model: RingRiftNetwork, batch: int, precision: str, seconds: float
) -> dict[str, float]:
    """Seconds of a call's parts, of a whole call, and of the plain way."""
    rules = get_rules(CONFIG)
    states, moves, counts = positions(batch)
    evaluator = Evaluator(model, rules, "cpu", precision=precision)
    network = BoardNetwork(model, rules, getattr(torch, evaluator.precision)).eval()
    features = evaluator._encoder.encode(states, moves, counts)
    tensors = [torch.from_numpy(features[name]) for name in ("planes", "globals")]
    logits = np.empty(moves.shape, dtype=np.float32)

    def plain() -> None:
        with torch.inference_mode():
            model(features_to_tensors(encode_states(rules, states, moves, counts)))

    def inferred() -> tuple[torch.Tensor, ...]:
        with torch.inference_mode():
            return network(*tensors)

    board = tuple(output.numpy() for output in inferred())
    return medians(
        {
            "encoding": lambda: evaluator._encoder.encode(states, moves, counts),
            "network": inferred,
            "look-up": lambda: evaluator._look_up(features, counts, board, logits),
            "whole": lambda: evaluator.evaluate(states, moves, counts),
            "plain": plain,
        },
        seconds,
    )


# --- two processes -------------------------------------------------------------------------------
def work(precision: str, blocks: int, channels: int, seconds: float) -> None:
    """A worker: says it is ready, waits for a line, evaluates, says how many positions."""
    states, moves, counts = positions(128)
    evaluator = Evaluator(network(blocks, channels), get_rules(CONFIG), "cpu", precision=precision)
    for _ in range(3):
        evaluator.evaluate(states, moves, counts)
    print("ready", flush=True)
    sys.stdin.readline()
    done, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        evaluator.evaluate(states, moves, counts)
        done += 128
    print(done, flush=True)


def together(workers: int, *task: object) -> float:
    """Positions a second of several workers that start at once."""
    seconds = float(str(task[-1]))
    command = [sys.executable, __file__, "--work", *map(str, task)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, **pipes) for _ in range(workers)]  # type: ignore
    for each in running:
        assert each.stdout is not None and each.stdout.readline() == "ready\n"
    for each in running:
        assert each.stdin is not None
        each.stdin.write("go\n")
        each.stdin.flush()
    return sum(int(each.communicate()[0]) for each in running) / seconds


def two_processes(quick: bool) -> Iterator[Claim]:
    """Whole calls of two processes against those of one, by the clock."""
    for blocks, channels in SHAPES[:1] if quick else SHAPES:
        for precision in ("bfloat16",) if quick else ("float32", "bfloat16"):
            task = (precision, blocks, channels, 2.0 if quick else 5.0)
            one = together(1, *task)
            yield claim(
                f"two processes, {blocks}x{channels}, batch 128, {precision}",
                together(2, *task),
                "positions/s",
                2 * one,
                0.8,
            )


# --- bfloat16 ------------------------------------------------------------------------------------
def divergence(model: RingRiftNetwork, count: int) -> Iterator[Claim]:
    """Mean KL of the bfloat16 policy, by each backend, from torch's in float32."""
    states, moves, counts = positions(count)
    rules = get_rules(CONFIG)
    legal = np.arange(moves.shape[1]) < counts[:, None]

    def log_policy(precision: str, backend: str) -> np.ndarray:
        evaluator = Evaluator(model, rules, "cpu", precision=precision, backend=backend)
        logits = evaluator.evaluate(states, moves, counts)[0].astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    exact = log_policy("float32", "torch")
    for backend in dict.fromkeys(("torch", resolve_backend("auto", "cpu"))):
        apart = exact - log_policy("bfloat16", backend)
        kl = np.where(legal, np.exp(exact) * apart, 0.0).sum(axis=1).mean()
        name = f"bfloat16 by {backend}, mean policy KL"
        yield claim(name, kl, "nats", MOST_KL, 1.0, smaller_is_better=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="fewer sizes, no torch.compile, no backend is a must"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a claim")
    parser.add_argument("--model", type=Path, help="folder of a trained square8_2p network")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.work:
        precision, blocks, channels, seconds = options.work
        work(precision, int(blocks), int(channels), float(seconds))
        return
    model = load_model(options.model) if options.model else network(6, 64)
    parts = [
        backends(options.quick),
        calls(options.quick),
        two_processes(options.quick),
        divergence(model, 512 if options.quick else 4096),
    ]
    for part in parts:
        for result in part:
            if options.json:
                print(json.dumps(result), flush=True)
                continue
            line = f"{result['claim']:54s} {result['value']:12,.5g} {result['unit']:12s}"
            if result["ratio"] is not None:
                line += f" {result['ratio']:8.2f} x reference"
            if result["target"] is not None:
                met = "met" if result["ratio"] >= result["target"] else "MISSED"
                line += f"  (target {result['target']:.2f}: {met})"
            print(line, flush=True)


if __name__ == "__main__":
    main()
