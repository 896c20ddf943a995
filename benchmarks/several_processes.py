"""What several training processes are worth: rows a second of two against one with two threads.

    python benchmarks/several_processes.py [--quick] [--json]

The same training is made by one process whose batches two threads divide, and by two processes with a
thread each, in turn: heuristic games, the default network, clipping and hard examples switched on and the
rest as by default, so that there are no quality scores, no EWC and no curriculum. What counts is the
median step of each, as the process that lands measures it, which has the waiting for the other in it. Both
use two cores, so the ratio is what gradients, losses and rows cost on their way between processes, less what
two interpreters do at once that threads do one after the other. On a machine with other work the figure is
that work's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

CONFIG = "square8_2p"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TARGET = 0.9
SETTINGS = {
    "seed": 5,
    "device": "cpu",
    "selfplay.games": 16,
    "selfplay.games_per_shard": 8,
    "training.sample_reuse": 1000.0,
    "training.sample_reuse_limit": 1000.0,
    "gradients.clipping": True,
    "mining.enabled": True,
    "mining.min_samples_before_mining": 256,
}
SHAPES = {False: (6, 64), True: (2, 32)}  # blocks, channels
WARM = 3  # steps that do not count


def prepared(root: Path, quick: bool) -> None:
    """Games played, rows scored, the window built."""
    from ringrift_pipeline import training
    from ringrift_pipeline.enhancements import TrainingConfig
    from ringrift_pipeline.selfplay import plan_generation, play_shards
    from ringrift_pipeline.store import Store

    blocks, channels = SHAPES[quick]
    shape = {"network.blocks": blocks, "network.channels": channels}
    store = Store(root)
    settings = TrainingConfig().with_overrides({**SETTINGS, **shape})
    plan = plan_generation(store, CONFIG, 0, settings, NOW)
    play_shards(store, plan)
    training.mine_hard_examples(store, plan)
    training.build_window(store, plan)


def timed_steps(replicas: Any, root: str, steps: int, threads: int) -> tuple[float, int]:
    """Median seconds of a step, and its rows."""
    from ringrift_pipeline.selfplay import Plan, load_plan
    from ringrift_pipeline.store import Store
    from ringrift_pipeline.training import open_window
    from ringrift_pipeline.training.hard_examples import read_hard_examples
    from ringrift_pipeline.training.run import TrainingRun
    from ringrift_pipeline.training.threads import reproducible, torch_threads

    store = Store(root)
    plan = load_plan(store, CONFIG, 0)
    settings = plan.settings.with_overrides({"training.threads": threads})
    plan = Plan.from_dict({**plan.raw, "settings": settings.to_dict()})
    times = []
    with torch_threads(1), reproducible(5):
        run = TrainingRun(
            plan,
            open_window(store.require(CONFIG, 0, "window").path),
            hard_examples=read_hard_examples(store.require(CONFIG, 0, "hard_examples")),
            replicas=replicas,
        )
        run.validate_every = WARM + steps + 1  # steps alone
        for _ in range(WARM + steps):
            began = time.perf_counter()
            run.step()
            times.append(time.perf_counter() - began)
    return statistics.median(times[WARM:]), settings.training.batch_size


def together(member: Any, root: str, steps: int) -> tuple[float, int]:
    """The same by one of several processes, with one thread each."""
    from ringrift_pipeline.enhancements import TrainingConfig

    with member.joined(TrainingConfig(device="cpu")) as (replicas, _):
        return timed_steps(replicas, root, steps, 1)


def measure(root: Path, quick: bool, steps: int) -> list[dict[str, Any]]:
    from ringrift_pipeline.enhancements.replicas import Replicas
    from ringrift_pipeline.training.processes import run_together

    prepared(root, quick)
    load = os.getloadavg()[0]
    one, two = [], []
    for _ in range(1 if quick else 3):
        seconds, rows = timed_steps(Replicas(), str(root), steps, 2)
        one.append(rows / seconds)
        seconds, rows = run_together(2, together, str(root), steps)
        two.append(rows / seconds)
    alone, both = statistics.median(one), statistics.median(two)
    blocks, channels = SHAPES[quick]
    return [
        {
            "claim": f"training, {blocks}x{channels}, two processes against one with two threads",
            "value": round(both, 1),
            "unit": "rows/s",
            "reference": round(alone, 1),
            "ratio": round(both / alone, 3),
            "target": TARGET,
            "note": f"{steps} steps, {len(one)} times in turn; {load:.1f} processes at work on "
            f"{os.cpu_count()} cores before",
        }
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small network, a few steps")
    parser.add_argument("--json", action="store_true", help="JSON alone, on standard output")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options.quick, 10 if options.quick else 60)
    for claim in found:
        print(json.dumps(claim))


if __name__ == "__main__":
    main()
