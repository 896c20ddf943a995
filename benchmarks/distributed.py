"""What several workers come to: shards an hour, what a shard costs beside its games, memory, landing.

    python benchmarks/distributed.py [--quick] [--json]

Needs ``redis-server``, ``postgresql`` and the extra ``celery``; the servers are started here, on this
machine, and so are the workers, each with one core's worth of work at a time. Where the store knows
buckets and moto is installed, every process has a folder of its own in front of moto's server.

Whole generations are played by ``ringrift loop``: on two workers twice (two of them the first
time), half of one on one worker, and one by the executor of a single machine with two steps at a time. In turn
with the two workers two processes that know nothing of each other play the shards of the same plan, half of
them each. A shard takes a core some 40 s, as a step costs some three beside it (docs/scale.md): a network of
the preset `hour` plays it, which was trained for a moment and made champion by hand, for the heuristic plays
hundreds of games a second. By these seconds all of it takes some 25 minutes on two cores.

- **Rate**: shards an hour from the first shard's beginning to the last one's end, by what the shards say
  of themselves; of a worker's k shards that has k - 1 times what comes between two. Two workers should reach
  90% of the two processes.
- **Overhead**: seconds of a worker that a shard takes beside the playing of its games; the reference is
  the executor of a single machine.
- **Transfer**: of all steps' own seconds, a training's among them, those of requests to the bucket, as the
  steps' processes count them (not the processes that a step starts); their bytes.
- **Memory**: the most that daemon, code server and the runs take together, and a worker with what it
  works on, as proportional set sizes (Linux only).
- **Landing**: from an evaluation's landing to the first step of the generation that it starts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from orchestration import TINY, latency, read_runs  # noqa: E402
from process_tree import memory_of  # noqa: E402

from tests.distributed.cluster import Cluster, cluster, missing  # noqa: E402

CONFIG = "square8_2p"
TARGET = 0.9
MEASURED = 1  # the generation; the one before it makes the champion
GAMES, EACH = 2700, 450  # a generation's, a shard's: a core plays some eleven a second
QUICK = (48, 8)
NETWORK = ("network.blocks=4", "network.channels=32")
SEARCH = ("search.simulations=48", "search.cheap_simulations=12")

Claim = dict[str, Any]


def claim(
    name: str,
    value: float,
    unit: str,
    reference: float | None,
    target: float | None = None,
    *,
    more_is_better: bool = False,
    **more: Any,
) -> Claim:
    """One claim; a bigger ratio is better."""
    ratio = None
    if reference and value > 0:
        ratio = round(value / reference if more_is_better else reference / value, 3)
    return {
        "claim": f"distributed: {name}",
        "value": round(value, 4),
        "unit": unit,
        "reference": round(reference, 4) if reference is not None else None,
        "ratio": ratio,
        "target": target,
        **more,
    }


@dataclass(frozen=True)
class Played:
    """What the shards of a generation say of themselves. Times are seconds."""

    began: list[float]
    seconds: list[float]

    @property
    def span(self) -> float:
        ends = [began + seconds for began, seconds in zip(self.began, self.seconds, strict=True)]
        return max(ends) - min(self.began)

    @property
    def hourly(self) -> float:
        return 3600 * len(self.began) / self.span

    def beside(self, workers: int) -> float:
        """Seconds of a worker that a shard took beside its games."""
        return (workers * self.span - sum(self.seconds)) / len(self.began)


def shards(data: Path, generation: int) -> Played:
    """The shards of a generation."""
    from ringrift_pipeline.store import Store
    from ringrift_pipeline.store.kinds import shard_kind

    store = Store(data)
    count = len(store.read_plan(CONFIG, generation)["shards"])
    found = [
        store.require(CONFIG, generation, shard_kind(index)).metadata for index in range(count)
    ]
    return Played([one["started"] for one in found], [one["seconds"] for one in found])


# --- generations --------------------------------------------------------------------------------


class Memory(threading.Thread):
    """Looks every few seconds how much the loop and each worker take, and keeps the most."""

    def __init__(self, roots: dict[str, int]) -> None:
        super().__init__(daemon=True)
        self._roots = roots
        self._over = threading.Event()
        self.most: dict[str, float] = defaultdict(float)

    def run(self) -> None:
        while not self._over.wait(2.0):
            for name, root in self._roots.items():
                self.most[name] = max(self.most[name], memory_of(root))

    def stop(self) -> None:
        self._over.set()
        self.join()


def given(settings: list[str]) -> list[str]:
    """Settings as words of a command."""
    return ["--preset", "smoke", *(word for one in settings for word in ("--set", one))]


def make_champion(data: Path, settings: list[str], environment: dict[str, str]) -> None:
    """A generation of a few games and steps, whose model is champion whatever it is worth."""
    from ringrift_pipeline.store import Store

    few = ["selfplay.games=8", "selfplay.games_per_shard=8", "training.holdout_fraction=0.3"]
    for verb in ("selfplay", "train"):
        command = [sys.executable, "-m", "ringrift_pipeline", verb, "--config", CONFIG, "--json"]
        command += ["--data", str(data), *given([*settings, *few])]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=variables)
    store = Store(data)
    store.promote(
        CONFIG, 0, store.require(CONFIG, 0, "ema_model"), {"gate": {"reasons": ["by hand"]}}
    )


def loop(
    data: Path,
    settings: list[str],
    environment: dict[str, str],
    generations: int = 1,
    workers: dict[str, int] | None = None,
) -> dict[str, float]:
    """``ringrift loop``; the most memory that it and the workers took."""
    command = [sys.executable, "-m", "ringrift_pipeline", "loop", "--config", CONFIG, "--json"]
    command += ["--generations", str(generations), "--data", str(data)]
    command += ["--resume", "never", *given(settings)]  # not with the champion's own generation
    with open(os.devnull, "wb") as nowhere:
        process = subprocess.Popen(
            command, stdout=nowhere, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}
        )
        memory = Memory({"loop": process.pid, **(workers or {})})
        if sys.platform == "linux":
            memory.start()
        try:
            if process.wait():
                sys.exit(f"ringrift loop ended with code {process.returncode}")
        finally:
            if memory.is_alive():
                memory.stop()
    return dict(memory.most)


APART = """
import sys
from ringrift_pipeline.selfplay import load_plan, play_shard
from ringrift_pipeline.selfplay.warm_up import warm_up
from ringrift_pipeline.store import Store
root, config, first = sys.argv[1], sys.argv[2], int(sys.argv[3])
warm_up(config)
store = Store(root)
plan = load_plan(store, config, int(sys.argv[4]))
print("ready", flush=True)
sys.stdin.readline()
for index in range(first, len(plan.shards), 2):
    play_shard(store, plan, index)
"""


def independent(worked: Worked) -> Played:
    """Two processes that play half of a plan's shards each, in one folder, beginning together."""
    from ringrift_pipeline.store import Store

    environment = {
        name: value for name, value in os.environ.items() if name != "RINGRIFT_BUCKET"
    } | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder, _without_bucket():
        for name, content in worked.champion.items():
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / name).write_bytes(content)
        Store(folder).write_plan(CONFIG, MEASURED, worked.plan)
        both = [
            subprocess.Popen(
                [sys.executable, "-c", APART, folder, CONFIG, str(first), str(MEASURED)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
            )
            for first in (0, 1)
        ]
        for process in both:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        for process in both:
            assert process.stdin is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
        if any([process.wait() for process in both]):
            sys.exit("a process that played by itself has failed")
        return shards(Path(folder), MEASURED)


@contextlib.contextmanager
def _without_bucket() -> Iterator[None]:
    bucket = os.environ.pop("RINGRIFT_BUCKET", None)
    try:
        yield
    finally:
        if bucket is not None:
            os.environ["RINGRIFT_BUCKET"] = bucket


@dataclass(frozen=True)
class Steps:
    """What the steps of whole generations say of their own seconds, and of requests to the bucket."""

    seconds: float = 0.0
    transfer: float = 0.0
    bytes: int = 0


def steps(data: Path) -> Steps:
    """All steps of all runs together, a training's among them."""
    from ringrift_pipeline.orchestration.instance import open_instance
    from ringrift_pipeline.orchestration.step import SECONDS, TRANSFER_BYTES, TRANSFER_SECONDS

    found: dict[str, float] = defaultdict(float)
    with open_instance(data) as instance:
        for record in instance.get_run_records():
            for entry in instance.all_logs(record.dagster_run.run_id):
                event = entry.dagster_event
                if event is None or event.event_type_value != "ENGINE_EVENT":
                    continue
                metadata = event.engine_event_data.metadata
                for name in {SECONDS, TRANSFER_SECONDS, TRANSFER_BYTES}.intersection(metadata):
                    found[name] += float(metadata[name].value)
    return Steps(found[SECONDS], found[TRANSFER_SECONDS], int(found[TRANSFER_BYTES]))


# --- the figures --------------------------------------------------------------------------------


@contextlib.contextmanager
def known(servers: Cluster) -> Iterator[None]:
    """This process reads what the cluster has made."""
    before = dict(os.environ)
    os.environ.update(servers.environment())
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@dataclass(frozen=True)
class Worked:
    """What generations on workers come to: shards and plan of the first, the files of the champion that
    played it, all steps, the most memory by process, and what an evaluation's landing takes, where a second
    generation followed.
    """

    shards: Played
    plan: dict[str, Any]
    champion: dict[str, bytes]
    steps: Steps
    memory: dict[str, float]
    landing: Claim | None


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def on_workers(count: int, generations: int, settings: list[str]) -> Worked:
    """Generations on workers."""
    from ringrift_pipeline.store import Store

    with cluster() as servers:
        data = servers.prepare(servers.data)
        for number in range(count):
            queues = "selfplay,gpu" if number == 0 else "selfplay"
            servers.worker(f"worker{number}", queues, servers.root(f"worker{number}"))
        with known(servers):
            make_champion(data, settings, servers.environment())
        servers.ready()
        pids = {worker.name: worker.process.pid for worker in servers.workers}
        memory = loop(data, settings, servers.environment(), generations, pids)
        with known(servers):
            plan = Store(data).read_plan(CONFIG, MEASURED)
            model = data / plan["champion"]["path"]
            return Worked(
                shards(data, MEASURED),
                plan,
                {str(file.relative_to(data)): file.read_bytes() for file in files(model)},
                steps(data),
                memory,
                latency(read_runs(data)),
            )


def wanted(games: int, each: int, quick: bool) -> list[str]:
    """The settings of a generation of so many games. What follows the games is as short as it can be."""
    players = () if quick else (*NETWORK, *SEARCH, "training.holdout_fraction=0.02")
    return [
        *(word for word in TINY if not word.startswith("selfplay.")),
        *players,
        f"selfplay.games={games}",
        f"selfplay.games_per_shard={each}",
        f"selfplay.parallel_games={min(each, 100)}",
        "selfplay.workers=1",
        "device=cpu",
    ]


def figures(quick: bool) -> Iterator[Claim]:
    """All of it."""
    games, each = QUICK if quick else (GAMES, EACH)
    settings = wanted(games, each, quick)
    first = on_workers(2, 2, settings)
    two, apart = [first.shards], [independent(first)]
    if not quick:  # in turn: a machine is not the same all the time
        again = on_workers(2, 1, settings)
        two.append(again.shards)
        apart.append(independent(again))
    one = on_workers(1, 1, wanted(games // 2, each, quick)).shards  # as many as either of two plays
    with tempfile.TemporaryDirectory() as folder, _without_bucket():
        make_champion(Path(folder), settings, {"RINGRIFT_EXECUTOR": "local"})
        loop(Path(folder), settings, {"RINGRIFT_EXECUTOR": "local"})
        local = shards(Path(folder), MEASURED)
    reference = statistics.fmean(played.hourly for played in apart)
    yield claim(
        f"two workers, {len(two[0].began)} shards of {each} games, against two processes apart, "
        f"means of {len(two)}",
        statistics.fmean(played.hourly for played in two),
        "shards/h",
        reference,
        None if quick else TARGET,
        more_is_better=True,
        all=[round(played.hourly, 1) for played in two],
        all_apart=[round(played.hourly, 1) for played in apart],
    )
    yield claim(
        "one worker, against half of two processes apart",
        one.hourly,
        "shards/h",
        reference / 2,
        more_is_better=True,
    )
    yield claim(
        "a shard's seconds beside its games, two workers, against one machine's executor",
        statistics.fmean(played.beside(2) for played in two),
        "s",
        local.beside(2),
        median_shard=round(statistics.median(two[0].seconds), 3),
        processes_apart=round(statistics.fmean(played.beside(2) for played in apart), 3),
    )
    spent = first.steps
    if spent.transfer:
        yield claim(
            "share of the steps' seconds that went into the bucket, two generations, training included",
            spent.transfer / spent.seconds,
            "",
            None,
            seconds=round(spent.transfer, 3),
            bytes=spent.bytes,
        )
    memory, landed = first.memory, first.landing
    if memory.get("loop"):
        workers = [size for name, size in memory.items() if name != "loop"]
        yield claim("memory of daemon, code server and runs, most", memory["loop"], "MB", None)
        yield claim("memory of a worker with its step, most", max(workers), "MB", None, all=workers)
    if landed is not None:
        yield {**landed, "claim": landed["claim"].replace("orchestration", "distributed", 1)}


def told(claims: Iterator[Claim]) -> None:
    """Measure, and write each claim as it comes; without the servers say what is missing."""
    if reason := missing():
        print(f"nothing measured: {reason}", file=sys.stderr)
        return
    began = time.monotonic()
    for each in claims:
        print(json.dumps(each), flush=True)
    load = os.getloadavg()[0]
    print(f"{time.monotonic() - began:.0f} s in all, load {load:.1f}", file=sys.stderr)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny shards, whose rates mean little")
    parser.add_argument("--json", action="store_true", help="only the JSON lines (as always)")
    told(figures(parser.parse_args().quick))


if __name__ == "__main__":
    main()
