"""The whole loop for an hour, its processes killed (SIGKILL) at moments that chance picks.

    python benchmarks/soak.py [--quick] [--json] [--minutes N] [--every SECONDS] [--seed N]
        [--config CONFIG] [--set KEY=VALUE ...] [--retention MINUTES] [--data DIR] [--plot FILE]

``ringrift loop --ui`` works in an empty folder through the real daemon; the process that was killed
is the worker of a step, the process of a run, the daemon, the web server, the code server, whose death
takes the runs with it, or the command itself, one every ``--every`` seconds on average, none in the last
minute. Whatever ends the command, it is begun again at once, as any supervisor would; nobody does
anything else. Ctrl-C ends the soak early and reports.

A 99th percentile wants a hundred kills and more: ``--every 20`` gives some 170 in an hour, where the
default of 45 gives some 75.

Claims:

- generations completed, kills, how often the command had to be begun again;
- the share of time in which some step's own work was done that was not lost, as the steps note it in
  the history;
- from a kill to the next moment at which such work is done: 0 for a kill that stopped no step. The
  median and the 99th percentile, of all kills and by what was killed (the command and the code server
  are the slowest to come back). The reference is 20 s;
- games lost and games played twice, by every shard of every plan; generations made twice; how often
  the champion could not be loaded: all looked for meanwhile. They have to be 0;
- growth of memory (proportional set size), open files and threads of each service, by hour, from
  the samples of the same process, at most `GROWTH`; what stays on the disk of a generation once retention has made
  room, in artefacts and in Dagster's history, which nothing deletes.

Linux only: processes are found and measured in /proc. A short soak says that it works. The exit
code is 1 where a limit was not kept.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from orchestration import TINY, Claim, Span, union
from process_tree import FILES, PSS, THREADS, family, measured, steps

CONFIG = "square8_2p"
SMALLER = (  # of the smoke preset
    *("selfplay.games=160", "selfplay.games_per_shard=40", "search.simulations=16"),
    *("evaluation.games=48", "evaluation.max_games=96", "evaluation.simulations=16"),
    "evaluation.anchor_games=24",
)
MOST_GENERATIONS = 2_000
KINDS = ("step", "run", "daemon", "webserver", "code-server", "loop")
SERVICES = ("loop", "code-server", "daemon", "webserver")
TARGET = 20.0  # seconds from a kill to the next useful step
LOOK = 5.0  # seconds between two samples
QUIET = 60.0  # seconds without kills at the end
PATIENCE = 90.0  # seconds the command has to stop
GROWTH = {PSS: 30.0, FILES: 5.0, THREADS: 2.0}  # an hour, that counts as flat
UNITS = {PSS: "MB", FILES: "files", THREADS: "threads"}


# --- the soak -----------------------------------------------------------------------------------


@dataclass
class Soak:
    """What is known of a soak; times are seconds since the epoch."""

    config: str
    data: Path
    command: list[str]
    began: float = field(default_factory=time.time)
    ended: float = 0.0
    kills: list[tuple[float, str]] = field(default_factory=list)
    restarts: list[float] = field(default_factory=list)
    samples: list[tuple[float, str, int, dict[str, float]]] = field(default_factory=list)
    disk: list[tuple[float, int, float, float]] = field(default_factory=list)
    games: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    checked: set[int] = field(default_factory=set)
    unloadable: int = 0
    asked: bool = False
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin the command, its pages at ports of their own: a killed one's may live on a moment."""
        page, games = free_port(), free_port()
        with open(self.data.parent / "loop.log", "ab") as log:
            self.process = subprocess.Popen(
                [*self.command, "--port", str(page)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "RINGRIFT_PLAY_URL": f"http://127.0.0.1:{games}"},
            )

    def supervise(self) -> None:
        """Begin the command again if it has ended."""
        assert self.process is not None
        if self.process.poll() is not None:
            self.restarts.append(time.time())
            self.start()

    def kill(self, rng: random.Random) -> None:
        """Kill a process of a kind that chance picks, once there is one."""
        kind = rng.choice(KINDS)
        until = time.time() + 30.0
        while time.time() < until and not self.asked:
            assert self.process is not None
            mine = family(self.process.pid)
            there = [pid for pid, one in mine.items() if one == kind]
            if kind == "step":
                there = steps(self.data, mine)
            if there:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(sorted(there)), signal.SIGKILL)
                    self.kills.append((time.time(), kind))
                return
            self.supervise()
            time.sleep(0.05)

    def look(self) -> None:
        """Sample the processes; look at the champion and at generations that are decided."""
        from ringrift_pipeline.store import Store, StoreError

        assert self.process is not None
        now = time.time()
        for pid, kind in family(self.process.pid).items():
            if kind in SERVICES:
                with contextlib.suppress(OSError, StopIteration, IndexError):
                    self.samples.append((now, kind, pid, measured(pid)))
        store = Store(self.data)
        try:
            champion = store.champion(self.config)
            if champion is not None:
                store.open(champion.path)
        except StoreError:
            self.unloadable += 1
        for generation in store.generations(self.config):
            if generation in self.checked:
                continue
            if store.current(self.config, generation, "decision", verify=False) is not None:
                self.check(store, generation)

    def check(self, store: Any, generation: int) -> None:
        """Count the games of a generation, by their ids, against its plan."""
        from ringrift_pipeline.selfplay import load_plan
        from ringrift_pipeline.selfplay.shards import SHARD_FILE, column, read_shard, shard_kind

        self.checked.add(generation)
        for shard in load_plan(store, self.config, generation).shards:
            kind = shard_kind(shard["index"])
            found = store.current(self.config, generation, kind)
            ids: set[str] = set()
            if found is not None:
                ids = set(column(read_shard(found.file(SHARD_FILE)), "game_id"))
            self.games.update(ids)
            self.lost += shard["games"] - len(ids)

    def make_room(self) -> None:
        """What the job disk_retention does, down to what has to stay."""
        from ringrift_pipeline.orchestration.instance import open_instance
        from ringrift_pipeline.orchestration.retention import RetentionConfig, clear
        from ringrift_pipeline.orchestration.status import disk_usage
        from ringrift_pipeline.store import Store

        store = Store(self.data)
        with open_instance(self.data) as instance:
            clear(instance, store, RetentionConfig(budget_gb=1e-6, dry_run=False))
        history = disk_usage(self.data / "dagster") / 1e3
        artefacts = disk_usage(self.data / self.config) / 1e3
        self.disk.append((time.time(), len(self.checked), artefacts, history))

    def stop(self) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(PATIENCE)
            self.process.kill()
            self.process.wait()
        self.ended = time.time()


def run(soak: Soak, minutes: float, every: float, retention: float, seed: int) -> None:
    """Soak for so long, or until somebody asks for the end."""
    rng = random.Random(seed)

    def ask(*_: object) -> None:
        soak.asked = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)
    end = time.time() + 60.0 * minutes
    room = time.time() + 60.0 * retention
    due = time.time() + min(every, 20.0) + rng.expovariate(1.0 / every)
    looked = 0.0
    soak.start()
    try:
        while time.time() < end and not soak.asked:
            soak.supervise()
            if time.time() >= due and time.time() < end - min(QUIET, 10.0 * minutes):
                soak.kill(rng)
                due = time.time() + rng.expovariate(1.0 / every)
            if time.time() - looked >= LOOK:
                soak.look()
                looked = time.time()
            if time.time() >= room and soak.checked:
                soak.make_room()
                room = time.time() + 60.0 * retention
            time.sleep(0.1)
    finally:
        soak.stop()


# --- what the history says ----------------------------------------------------------------------


def useful_work(data: Path, config: str) -> tuple[list[Span], Counter[str]]:
    """Spans of the work of steps that came to their end; runs that succeeded, by generation."""
    from dagster import DagsterEventType, DagsterRunStatus, RunsFilter

    from ringrift_pipeline.orchestration.instance import open_instance
    from ringrift_pipeline.orchestration.names import PARTITION_TAG, job_name
    from ringrift_pipeline.orchestration.step import BEGAN, SECONDS

    spans: list[Span] = []
    succeeded: Counter[str] = Counter()
    with open_instance(data) as instance:
        for run in instance.get_runs(RunsFilter(job_name=job_name(config))):
            if run.status == DagsterRunStatus.SUCCESS:
                succeeded[run.tags[PARTITION_TAG]] += 1
            for entry in instance.all_logs(run.run_id, of_type=DagsterEventType.ENGINE_EVENT):
                event = entry.dagster_event
                told = event.engine_event_data.metadata if event is not None else {}
                if SECONDS in told:
                    start = float(str(told[BEGAN].value))
                    spans.append((start, start + float(str(told[SECONDS].value))))
    return spans, succeeded


def to_next_work(kills: list[tuple[float, str]], spans: list[Span]) -> list[tuple[str, float]]:
    """Seconds from each kill to the next work, with what was killed; a kill without any after it
    is left out.
    """
    found = []
    for at, kind in kills:
        waits = [max(start, at) - at for start, end in spans if end > at]
        if waits:
            found.append((kind, min(waits)))
    return found


def slope(samples: list[tuple[float, int, float]]) -> float:
    """Growth by hour of (time, process, value) by least squares, each process with a level of its
    own; 0 where no process was seen for long enough to tell.
    """
    by_process = defaultdict(list)
    for at, pid, value in samples:
        by_process[pid].append((at, value))
    top = bottom = 0.0
    for pairs in by_process.values():
        times, values = np.array(pairs[len(pairs) // 4 :]).T  # the beginning is loading
        if len(times) >= 3:
            times = times - times.mean()
            top += float((times * (values - values.mean())).sum())
            bottom += float((times**2).sum())
    return 3600.0 * top / bottom if bottom else 0.0


# --- claims -------------------------------------------------------------------------------------


def claim(name: str, value: float, unit: str, **more: Any) -> Claim:
    """One claim."""
    told = {"claim": f"soak: {name}", "value": round(value, 4), "unit": unit}
    return told | {"reference": None, "ratio": None, "target": None} | more


def limited(name: str, value: float, unit: str, most: float, means: bool, **more: Any) -> Claim:
    """One claim whose value is to be ``most`` at most."""
    ratio = most / value if value > 0 else None
    told = {"reference": most, "ratio": ratio and round(ratio, 3)}
    return claim(name, value, unit, **told, target=1.0 if means else None, **more)


def none(name: str, value: int, unit: str) -> Claim:
    """One claim whose value has to be 0."""
    return claim(name, value, unit, reference=0, ratio=0.0 if value else 1.0, target=1.0)


def claims(soak: Soak, means: bool) -> Iterator[Claim]:
    """All claims of a soak that is over."""
    spans, succeeded = useful_work(soak.data, soak.config)
    wall = soak.ended - soak.began
    load = [round(one, 2) for one in os.getloadavg()]
    yield claim(
        "generations completed",
        len(soak.checked),
        "generations",
        seconds=round(wall),
        load_average=load,
        cores=len(os.sched_getaffinity(0)),
    )
    kills = Counter(kind for _, kind in soak.kills)
    yield claim("kills", len(soak.kills), "kills", by_kind=dict(kills))
    yield claim(
        "times the command was begun again",
        len(soak.restarts),
        "times",
        after_its_own_kill=kills["loop"],
    )
    yield claim("share of time in work that was not lost", union(spans) / wall, "of the wall time")
    waits = to_next_work(soak.kills, spans)
    if waits:
        for share, name in ((50, "median"), (99, "99th percentile")):
            value = float(np.percentile([seconds for _, seconds in waits], share))
            what = f"from a kill to the next useful step, {name} of {len(waits)}"
            yield limited(what, value, "s", TARGET, means)
    for kind in KINDS:
        seconds = [wait for one, wait in waits if one == kind]
        if seconds:
            yield claim(
                f"from a kill of a {kind} to the next useful step, median of {len(seconds)}",
                float(np.median(seconds)),
                "s",
                most=round(max(seconds), 2),
                all=[round(one, 2) for one in seconds],
            )
    twice = sum(count - 1 for count in soak.games.values())
    expected = list(range(len(soak.checked)))
    yield claim("games counted", len(soak.games), "games")
    yield none("games lost", soak.lost, "games")
    yield none("games played twice", twice, "games")
    again = sum(count - 1 for count in succeeded.values())
    yield none("generations made twice", again, "generations")
    gaps = len(set(expected) ^ soak.checked)
    yield none("generations missing", gaps, "generations")
    yield none("champion not loadable", soak.unloadable, "looks")
    for kind in SERVICES:
        for what, unit in UNITS.items():
            values = [(at, pid, told[what]) for at, one, pid, told in soak.samples if one == kind]
            if values:
                yield limited(
                    f"growth of the {kind}'s {what}",
                    slope(values),
                    f"{unit} an hour",
                    GROWTH[what],
                    means,
                    last=round(values[-1][2], 1),
                    most=round(max(value for _, _, value in values), 1),
                )
    if len(soak.disk) > 1:
        (_, first, *before), (_, last, *after) = soak.disk[0], soak.disk[-1]
        for name, one, two in zip(("artefacts", "history"), before, after, strict=True):
            if last > first:
                each = (two - one) / (last - first)
                what = f"disk that stays of a generation after retention, {name}"
                yield claim(what, each, "kB", last=round(two), generations=last)


def draw(soak: Soak, path: Path) -> None:
    """Memory of the services, disk and kills over time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    memory, disk = figure.subplots(2, 1, sharex=True)
    for kind in SERVICES:
        told = [(at - soak.began, one[PSS]) for at, name, _, one in soak.samples if name == kind]
        if told:
            x, y = np.array(told).T
            memory.plot(x / 60.0, y, label=kind, linewidth=1)
    for at, kind in soak.kills:
        memory.axvline(
            (at - soak.began) / 60.0, color=f"C{KINDS.index(kind) + len(SERVICES)}", linewidth=0.5
        )
    memory.set(ylabel="MB", title="memory of the services; a line for every kill")
    memory.legend(fontsize=8)
    if soak.disk:
        at, _, artefacts, history = np.array(soak.disk).T
        disk.plot((at - soak.began) / 60.0, artefacts / 1e3, marker=".", label="artefacts")
        disk.plot((at - soak.began) / 60.0, history / 1e3, marker=".", label="history")
        disk.legend(fontsize=8)
    disk.set(xlabel="minutes", ylabel="MB", title="disk after retention")
    figure.savefig(path)


def free_port() -> int:
    """A port of the loopback that nobody listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="half a minute of tiny generations")
    parser.add_argument("--json", action="store_true", help="only the JSON lines (as always)")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=45.0, help="seconds between kills, the mean")
    parser.add_argument("--seed", type=int, default=1, help="of the kills")
    parser.add_argument("--config", default=CONFIG, help="board and player count")
    parser.add_argument("--set", action="append", dest="settings", help="of the loop, KEY=VALUE")
    parser.add_argument("--retention", type=float, default=5.0, help="minutes between two")
    parser.add_argument("--data", type=Path, help="an empty folder, which stays")
    parser.add_argument("--plot", type=Path, help="a picture of memory, disk and kills")
    arguments = parser.parse_args()
    if sys.platform != "linux":
        sys.exit("processes are found and measured in /proc: Linux only")
    settings = arguments.settings or SMALLER
    if arguments.quick:
        settings, arguments.minutes, arguments.every = TINY, 0.5, 8.0
    with tempfile.TemporaryDirectory() as folder:
        data = (arguments.data or Path(folder) / "data").resolve()
        if data.exists() and any(data.iterdir()):
            sys.exit(f"{data} is not empty")
        data.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "ringrift_pipeline", "loop", "--config", arguments.config]
        command += ["--generations", str(MOST_GENERATIONS), "--preset", "smoke"]
        command += ["--data", str(data), "--ui"]
        for setting in settings:
            command += ["--set", setting]
        soak = Soak(arguments.config, data, command)
        run(soak, arguments.minutes, arguments.every, arguments.retention, arguments.seed)
        missed = False
        for each in claims(soak, means=not arguments.quick):
            print(json.dumps(each), flush=True)
            known = each["target"] is not None and each["ratio"] is not None
            missed |= known and each["ratio"] < each["target"]
        if arguments.plot is not None:
            draw(soak, arguments.plot)
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()
