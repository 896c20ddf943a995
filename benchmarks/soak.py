"""The whole loop for an hour, its processes killed (SIGKILL) at moments that chance picks.

    python benchmarks/soak.py [--quick] [--json] [--minutes N] [--every SECONDS] [--seed N]
        [--kinds KIND ...] [--config CONFIG] [--set KEY=VALUE ...] [--retention MINUTES] [--data DIR] [--plot FILE]

``ringrift loop --ui`` works in an empty folder through the real daemon; the process that was killed
is the worker of a step, the process of a run, the daemon, the web server, the code server, whose death
takes the runs with it, or the command itself, one every ``--every`` seconds on average, none in the last
minute. Whatever ends the command, it is begun again at once, as any supervisor would; and every
``--retention`` minutes the soak deletes what the job ``disk_retention`` would with a budget of nothing.
Nobody does anything else. Ctrl-C ends the soak early and reports.

A 99th percentile wants a hundred kills and more: ``--every 20`` gives some 170 in an hour, where the
default of 45 gives some 75. How a service grows wants one that is not killed: ``--kinds step run``.

Claims:

- generations completed, one for every ten minutes and one in any case; kills, one at least; how often
  the command had to be begun again;
- the share of time in which some step's own work was done that was not lost, as the steps note it in
  the history: of each step of a generation the first work that came to its end. A step that is run
  again and finds everything made does no useful work;
- from a kill to the next moment at which such work is done: 0 for a kill that stopped no step. The
  median and the 99th percentile, of all kills, of those that left no useful work, and by what was
  killed (the command and the code server are the slowest to come back). The reference is 20 s for what
  one kill costs: a wait ends where such work is begun, also if another kill then cuts it off, and one
  into which another kill falls before that (but of the web server, which stops no work) counts as one
  that lasted to that kill at least (Kaplan and Meier's estimate); the whole waits, up to work that came to
  its end, are told too. A kill after which no work is done any more counts as endless, and none may be;
- games lost and games in two shards, by every shard of every plan; shards played twice, by the folders
  that landed; generations made twice; how often the champion could not be loaded, or was gone: all
  looked for meanwhile. They have to be 0;
- growth of memory (proportional set size), open files and threads of each service, by hour, from
  the samples of the same process, at most `soak_claims.GROWTH`: of processes that were there for a
  quarter of an hour, without their first five minutes;
- what stays on the disk of a generation once retention has made room, in artefacts (of those that lie
  behind: of the newest everything stays, and of the champion's) and in Dagster's history, which nothing
  deletes: at most `soak_claims.STAYS`, for the settings of the default.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from orchestration import TINY
from process_tree import PSS, family, measured, steps
from soak_claims import KINDS, NEWEST, SERVICES, Disk, Seen, claims, kept, useful_work

CONFIG = "square8_2p"
SMALLER = (  # of the smoke preset
    *("selfplay.games=160", "selfplay.games_per_shard=40", "search.simulations=16"),
    *("evaluation.games=48", "evaluation.max_games=96", "evaluation.simulations=16"),
    "evaluation.anchor_games=24",
)
MOST_GENERATIONS = 2_000
LOOK = 5.0  # seconds between two samples
QUIET = 60.0  # seconds without kills at the end
PATIENCE = 90.0  # seconds the command has to stop


# --- the soak -----------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Soak(Seen):
    """A soak that goes on."""

    config: str
    data: Path
    command: list[str]
    kinds: list[str]
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
        kind = rng.choice(self.kinds)
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
        """Sample the processes; look at what is in the store."""
        assert self.process is not None
        now = time.time()
        for pid, kind in family(self.process.pid).items():
            if kind in SERVICES:
                with contextlib.suppress(OSError, StopIteration, IndexError):
                    self.samples.append((now, kind, pid, measured(pid)))
        self.look_at_store()

    def look_at_store(self) -> None:
        """The champion, shards that landed, and generations that are decided."""
        from ringrift_pipeline.store import Store

        store = Store(self.data)
        self.see_champion(store, self.config)
        self.see_landings(store, self.config)
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
        self.see_landings(store, self.config)
        with open_instance(self.data) as instance:
            clear(instance, store, RetentionConfig(budget_gb=1e-6, dry_run=False))
        folder, champion = self.data / self.config, store.champion(self.config)
        reigns = None if champion is None else champion.generation
        behind = [n for n in store.generations(self.config)[:-NEWEST] if n != reigns]
        stayed = sum(disk_usage(folder / "generations" / f"{n:04d}") for n in behind) / 1e3
        history = disk_usage(self.data / "dagster") / 1e3
        decided, artefacts = len(self.checked), disk_usage(folder) / 1e3
        look = Disk(time.time(), decided, artefacts, len(behind), stayed, history)
        self.disk.append(look)

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
        soak.look_at_store()
        if soak.checked:
            soak.make_room()


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
    memory.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    if soak.disk:
        at, _, artefacts, _, _, history = np.array(soak.disk).T
        disk.plot((at - soak.began) / 60.0, artefacts / 1e3, marker=".", label="artefacts")
        disk.plot((at - soak.began) / 60.0, history / 1e3, marker=".", label="history")
        disk.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    disk.set(
        xlabel="minutes", ylabel="MB", title="disk after retention, the newest generations among it"
    )
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
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="to be killed"
    )
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
        soak = Soak(
            config=arguments.config,
            data=data,
            command=command,
            kinds=arguments.kinds,
            began=time.time(),
        )
        run(soak, arguments.minutes, arguments.every, arguments.retention, arguments.seed)
        missed = False
        work = useful_work(soak.data, soak.config)
        for each in claims(soak, work, means=not arguments.quick):
            print(json.dumps(each, allow_nan=False), flush=True)
            missed |= not kept(each)
        if arguments.plot is not None:
            draw(soak, arguments.plot)
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()
