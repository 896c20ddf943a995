"""What a CUDA device brings: inference by replayed graphs, selfplay, training; beside one core.

    python benchmarks/device.py [--quick] [--json]

Everything on square8 with two players, networks with fresh random weights, by the clock, a claim's
ratio to its reference in the same run. Where there is no CUDA device it says so and ends.

- **Inference**: positions a second of ``Evaluator.evaluate`` (encoding included, one core),
  batches of 128 and 512. The reference of float32 is the same call without graphs, kernel by
  kernel; that of bfloat16 is float32.
- **Selfplay**: evaluations a second of one process, the network on the device and on one core, by
  torch in both places.
- **Training**: rows a second of the whole training step, on the device and on the processor with
  ``training.threads``.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from inference import claim, positions

from ringrift_pipeline.enhancements import TrainingConfig
from ringrift_pipeline.game import get_rules
from ringrift_pipeline.network import Evaluator, NetworkConfig, RingRiftNetwork
from ringrift_pipeline.network.device_network import DeviceNetwork
from ringrift_pipeline.search import GumbelSearch
from ringrift_pipeline.selfplay import plan_generation, play_shards
from ringrift_pipeline.selfplay.play import play_search_games
from ringrift_pipeline.selfplay.stopping import Interrupted, Reporter
from ringrift_pipeline.store import Store
from ringrift_pipeline.training import build_window
from ringrift_pipeline.training.run import TrainingRun
from ringrift_pipeline.training.threads import reproducible, torch_threads
from ringrift_pipeline.training.window import open_window

CONFIG = "square8_2p"
SHAPES = ((4, 32), (6, 64), (6, 96))
BATCHES = (128, 512)

Claim = dict[str, Any]


def rate(call: Callable[[], object], each: float, seconds: float) -> float:
    """``each`` a second, as often as ``call`` goes into ``seconds``; the median call."""
    for _ in range(3):
        call()
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return each / float(np.median(times))


def inference(quick: bool) -> Iterator[Claim]:
    """Whole calls, graphs against launches and bfloat16 against float32."""
    rules = get_rules(CONFIG)
    for blocks, channels in SHAPES[:1] if quick else SHAPES:
        model = RingRiftNetwork(NetworkConfig(blocks, channels)).eval()
        for batch in BATCHES[:1] if quick else BATCHES:
            asked = positions(batch)
            replayed: dict[str, float] = {}
            for precision in ("float32", "bfloat16"):
                evaluator = Evaluator(model, rules, "cuda", precision=precision)
                graphs = evaluator._there
                assert graphs is not None
                plain = DeviceNetwork(graphs._network, graphs._head, graphs.device, graphs=False)
                found = {}
                for name, there in (("graphs", graphs), ("launches", plain)):
                    evaluator._there = there
                    call = functools.partial(evaluator.evaluate, *asked)
                    found[name] = rate(call, batch, 0.5 if quick else 1.5)
                replayed[precision] = found["graphs"]
                yield claim(
                    f"{blocks}x{channels}, batch {batch}, {precision}, graphs",
                    found["graphs"],
                    "positions/s",
                    found["launches"],
                )
            yield claim(
                f"{blocks}x{channels}, batch {batch}, bfloat16",
                replayed["bfloat16"],
                "positions/s",
                replayed["float32"],
            )


def simulations(model: RingRiftNetwork, device: str, seconds: float, games: int) -> float:
    """Evaluations a second of selfplay in one process."""
    rules, settings = get_rules(CONFIG), TrainingConfig()
    evaluator = Evaluator(model, rules, device, precision="auto")
    search = GumbelSearch(rules, evaluator, settings.search)
    asked, started = 0, 0.0
    evaluate = evaluator.evaluate

    def counted(*arrays: Any) -> Any:
        nonlocal asked, started
        started = started or time.perf_counter()  # what is compiled first does not count
        asked += len(arrays[0])
        return evaluate(*arrays)

    evaluator.evaluate = counted  # type: ignore[method-assign]
    settings = settings.with_overrides({"selfplay.parallel_games": games})
    stop = Reporter(None, lambda: started > 0.0 and time.perf_counter() - started > seconds)
    with contextlib.suppress(Interrupted):
        play_search_games(CONFIG, games, 2, settings, search, stop)
    return asked / (time.perf_counter() - started)


def selfplay(quick: bool) -> Iterator[Claim]:
    """Evaluations a second during selfplay, the network there and here."""
    torch.set_num_threads(1)
    for blocks, channels in SHAPES[:1] if quick else SHAPES:
        model = RingRiftNetwork(NetworkConfig(blocks, channels)).eval()
        seconds = 5.0 if quick else 12.0
        simulations(model, "cuda", 2.0, 256)  # what is compiled, and the graphs, once
        there = simulations(model, "cuda", seconds, 256)
        here = simulations(model, "cpu", seconds, 256)
        yield claim(f"selfplay, {blocks}x{channels}, one process", there, "evaluations/s", here)


def training(quick: bool) -> Iterator[Claim]:
    """Rows a second of whole training steps, there and here."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    for blocks, channels in SHAPES[:1] if quick else SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            store = Store(Path(folder))
            settings = TrainingConfig().with_overrides(
                {
                    "selfplay.games": 64,
                    "selfplay.games_per_shard": 64,
                    "network.blocks": blocks,
                    "network.channels": channels,
                }
            )
            plan = plan_generation(store, CONFIG, 0, settings, now)
            play_shards(store, plan, workers=1)
            window = open_window(build_window(store, plan).path)
            rates = {}
            for device in ("cuda", "cpu"):
                with torch_threads(1), reproducible(1):
                    run = TrainingRun(plan.on_device(device), window)
                    rates[device] = rate(run.step, settings.training.batch_size, 3.0)
        yield claim(f"training, {blocks}x{channels}", rates["cuda"], "rows/s", rates["cpu"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the smallest network alone")
    parser.add_argument("--json", action="store_true", help="one JSON object a claim")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing to measure")
        return
    if not options.json:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    for part in (inference, selfplay, training):
        for result in part(options.quick):
            if options.json:
                print(json.dumps(result), flush=True)
                continue
            line = f"{result['claim']:48s} {result['value']:12,.5g} {result['unit']:14s}"
            if result["ratio"] is not None:
                line += f" {result['ratio']:7.3f} of {result['reference']:,.5g}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
