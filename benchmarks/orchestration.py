"""What Dagster costs: loading, memory, the step from one generation to the next, share of the time.

    python benchmarks/orchestration.py [--quick] [--json] [--data DIR]

- **Load**: seconds from ``import dagster`` done to every definition of the code location loaded, in
  a fresh process; median of five. The reference is the prototype's 0.23 s for 120 assets.
- **Memory**: ``ringrift ui`` with nothing to do and all that it starts (web server, daemon, code
  server, the page of recorded games); the sum of their proportional set sizes, so that shared pages
  count once (Linux only). The reference is ``dagster dev`` of the prototype: five processes of at
  least 100 MB.
- **Latency**: from the landing of an evaluation to the first step of the run that the sensor
  starts for the next generation; median. The reference is the prototype's 2.5 s on a quiet machine,
  whose steps loaded nothing.
- **Share**: of a generation's wall time, what is not some step's own work: run and steps starting,
  waiting, storing events, the sensor. A generation begins where the one before it ended. The
  reference is what it may be: 5%, or 20 s where that is more.

Latency and share are read from the run history: of a loop that is run here (two generations of the
``smoke`` preset; ``--quick``: tiny ones, whose share means nothing), or of ``--data``, where nothing
is run and nothing else is measured. A history from before steps noted their own time has the time
between a step's start and success events in its place.

The file is not called dagster.py: beside it no benchmark could import Dagster.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from process_tree import family, memory_of

CONFIG = "square8_2p"
PROTOTYPE_LOAD = 0.23  # s
PROTOTYPE_MEMORY = 500.0  # MB
PROTOTYPE_LATENCY = 2.5  # s
SERVICES = ("webserver", "daemon", "code-server", "play")
SHARE = 0.05
LEAST_SECONDS = 20.0
FOLLOWS = 120.0  # seconds after which a run is no longer the sensor's answer to the one before
TINY = (
    *("selfplay.games=8", "selfplay.games_per_shard=4", "search.simulations=4"),
    *("search.cheap_simulations=2", "network.blocks=1", "network.channels=8"),
    *("training.max_steps=3", "training.holdout_fraction=0.3", "calibration.min_games=2"),
    *("evaluation.games=4", "evaluation.max_games=4", "evaluation.simulations=2"),
)

Claim = dict[str, Any]
Span = tuple[float, float]


def claim(
    name: str, value: float, unit: str, reference: float, target: float | None, **more: Any
) -> Claim:
    """One claim whose value had better be small; a ratio of 1 is the reference."""
    return {
        "claim": name,
        "value": round(value, 4),
        "unit": unit,
        "reference": round(reference, 4),
        "ratio": round(reference / value, 3) if value > 0 else None,
        "target": target,
        **more,
    }


# --- load and memory ----------------------------------------------------------------------------

LOADING = """
import time, dagster
began = time.perf_counter()
from ringrift_pipeline.definitions import defs
defs.get_repository_def().load_all_definitions()
print(time.perf_counter() - began)
"""


def load_time(times: int) -> Claim:
    """Fresh processes that load every definition."""
    command = [sys.executable, "-W", "ignore", "-c", LOADING]
    seconds = [
        float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
        for _ in range(times)
    ]
    name = "orchestration: loading the code location, after import dagster"
    return claim(name, statistics.median(seconds), "s", PROTOTYPE_LOAD, None, all=seconds)


def idle_memory(seconds: float) -> Claim:
    """All of ``ringrift ui`` on an empty data root, ``seconds`` after it has told its address."""
    environment = {**os.environ, "RINGRIFT_PLAY_URL": f"http://127.0.0.1:{_free_port()}"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "ringrift_pipeline", "ui", "--json", "--data", folder]
        command += ["--port", str(_free_port())]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as ui:
            try:
                assert ui.stdout is not None
                if not ui.stdout.readline():
                    sys.exit("ringrift ui has ended")
                time.sleep(seconds)
                parts = memory_by_kind(ui.pid)
            finally:
                ui.terminate()
    name = "orchestration: memory of ringrift ui and all that it starts, idle"
    return claim(name, sum(parts.values()), "MB", PROTOTYPE_MEMORY, None, parts=parts)


def memory_by_kind(root: int) -> dict[str, float]:
    """MB of each service that ``ringrift ui`` has started, with whatever that has started; and of the
    rest, itself.
    """
    services = {kind: pid for pid, kind in family(root).items() if kind in SERVICES}
    parts = {kind: memory_of(pid) for kind, pid in services.items()}
    parts["ringrift ui"] = memory_of(root) - sum(parts.values())
    return {kind: round(size, 1) for kind, size in parts.items()}


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- latency and share, from a run history ------------------------------------------------------


@dataclass
class Run:
    """What is read of a generation's run; times are seconds since the epoch."""

    config: str
    generation: int
    created: float
    ended: float
    landed: float | None = None  # the evaluation
    first_step: float | None = None
    bodies: list[Span] = field(default_factory=list)
    noted: bool = False  # the steps said themselves how long they worked


def read_runs(data: Path) -> list[Run]:
    """The whole generations in a history that succeeded, by config in ascending order."""
    from dagster import DagsterRunStatus, RunsFilter

    from ringrift_pipeline.orchestration.instance import open_instance
    from ringrift_pipeline.orchestration.names import CONFIGS, PARTITION_TAG, job_name
    from ringrift_pipeline.orchestration.places import home_folder

    if not (home_folder(data) / "dagster.yaml").exists():
        sys.exit(f"{data} has no run history: name the folder of a ringrift loop")
    found = []
    with open_instance(data) as instance:
        for config in CONFIGS:
            records = instance.get_run_records(
                RunsFilter(job_name=job_name(config), statuses=[DagsterRunStatus.SUCCESS]),
                ascending=True,
            )
            for record in records:
                run = Run(
                    config,
                    int(record.dagster_run.tags[PARTITION_TAG]),
                    record.create_timestamp.timestamp(),
                    record.end_time or 0.0,
                )
                read_events(run, instance.all_logs(record.dagster_run.run_id))
                found.append(run)
    return found


def read_events(run: Run, events: Sequence[Any]) -> None:
    """What a run's events say of it."""
    from dagster import DagsterEventType as Kind

    from ringrift_pipeline.orchestration.step import BEGAN, SECONDS

    started: dict[str, float] = {}
    outside: list[Span] = []
    for entry in events:
        event = entry.dagster_event
        if event is None:
            continue
        if event.event_type == Kind.STEP_START:
            started[event.step_key] = entry.timestamp
            run.first_step = min(run.first_step or entry.timestamp, entry.timestamp)
        elif event.event_type == Kind.STEP_SUCCESS and event.step_key in started:
            outside.append((started[event.step_key], entry.timestamp))
        elif event.event_type == Kind.ASSET_MATERIALIZATION:
            if event.asset_key.path[-1] == "evaluation":
                run.landed = entry.timestamp
        elif event.event_type == Kind.ENGINE_EVENT:
            metadata = event.engine_event_data.metadata
            if SECONDS in metadata:
                began = float(metadata[BEGAN].value)
                run.bodies.append((began, began + float(metadata[SECONDS].value)))
    run.noted = bool(run.bodies)
    run.bodies = run.bodies or outside


def union(spans: Sequence[Span]) -> float:
    """Seconds in which at least one of the spans is."""
    total, reached = 0.0, -float("inf")
    for began, ended in sorted(spans):
        total += max(0.0, ended - max(began, reached))
        reached = max(reached, ended)
    return total


def latency(runs: Sequence[Run]) -> Claim | None:
    """From an evaluation's landing to the next generation's first step."""
    seconds = [
        after.first_step - before.landed
        for before, after in pairwise(runs)
        if follows(before, after) and before.landed is not None and after.first_step is not None
    ]
    if not seconds:
        return None
    name = (
        f"orchestration: evaluation landed to the next run's first step, median of {len(seconds)}"
    )
    return claim(name, statistics.median(seconds), "s", PROTOTYPE_LATENCY, None, all=seconds)


def follows(before: Run, after: Run) -> bool:
    """Did the sensor start ``after`` because of ``before``?"""
    next_one = (before.config, before.generation + 1) == (after.config, after.generation)
    return next_one and after.created - before.ended < FOLLOWS


def share(runs: Sequence[Run], config: str, means: bool) -> Claim | None:
    """Dagster's share of the median generation of a config."""
    mine = [run for run in runs if run.config == config]
    walls = []
    for number, run in enumerate(mine):
        chained = number > 0 and follows(mine[number - 1], run)
        began = mine[number - 1].ended if chained else run.created
        walls.append((1 - union(run.bodies) / (run.ended - began), run.ended - began))
    if not walls:
        return None
    part, wall = sorted(walls)[len(walls) // 2]
    how = "" if mine[-1].noted else ", by the steps' events"
    name = (
        f"orchestration: Dagster's share of a generation of {config}, median of {len(walls)}{how}"
    )
    most = max(SHARE, LEAST_SECONDS / wall)
    target = 1.0 if means else None
    return claim(name, part, "of the wall time", most, target, seconds=part * wall, wall=wall)


def run_loop(data: Path, quick: bool) -> None:
    """Two generations in ``data`` through the real daemon."""
    command = [sys.executable, "-m", "ringrift_pipeline", "loop", "--config", CONFIG, "--json"]
    command += ["--generations", "2", "--preset", "smoke", "--data", str(data)]
    for setting in TINY if quick else ():
        command += ["--set", setting]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def from_history(data: Path, means: bool) -> Iterator[Claim]:
    """What a history says."""
    runs = read_runs(data)
    found = [latency(runs)]
    found += [share(runs, config, means) for config in sorted({run.config for run in runs})]
    yield from (each for each in found if each is not None)
    if not any(found):
        sys.exit(f"{data} holds no generation that has come to its end")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny generations, fewer repetitions")
    parser.add_argument("--json", action="store_true", help="only the JSON lines (as always)")
    parser.add_argument("--data", type=Path, help="read this history; run and measure nothing else")
    arguments = parser.parse_args()

    def report(claims: Iterator[Claim]) -> None:
        for each in claims:
            print(json.dumps(each), flush=True)

    if arguments.data is not None:
        report(from_history(arguments.data.resolve(), means=True))
        return
    report(iter([load_time(3 if arguments.quick else 5)]))
    if sys.platform == "linux":
        report(iter([idle_memory(5.0 if arguments.quick else 20.0)]))
    with tempfile.TemporaryDirectory() as folder:
        run_loop(Path(folder), arguments.quick)
        report(from_history(Path(folder), means=not arguments.quick))


if __name__ == "__main__":
    main()
