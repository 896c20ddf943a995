"""A loop through Dagster, of which one process after the other is killed at moments of chance: the
command itself, the daemon, the code server, the web server, a run's process, a step's.

Whoever started the loop starts it again when it has ended, and does nothing else. In the end there is
what an undisturbed loop has made: no game is lost or played twice, no generation made twice, and the
champion could be loaded at every moment.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dagster import AssetKey, DagsterRun, DagsterRunStatus, RunsFilter

from ringrift_pipeline.orchestration import names
from ringrift_pipeline.orchestration.champion import reconcile
from ringrift_pipeline.orchestration.instance import open_instance
from ringrift_pipeline.orchestration.loop import first_generation
from ringrift_pipeline.store import Store

from . import tally
from .outcomes import everything
from .tally import Cases

CONFIG, LAST, GAMES = "square8_2p", 1, 8
KILLS = 300
MEAN = 12.0  # seconds between two kills, on average, at first
PATIENCE = 900.0  # seconds that a loop nobody disturbs may take
ORPHANS = 120.0  # seconds within which what a killed command has left must have ended
STARTS = 12  # without a kill between them, after which a loop has failed
SETTINGS = {
    "seed": 5,
    "selfplay.games": GAMES,
    "selfplay.games_per_shard": 4,
    "selfplay.parallel_games": 4,
    "search.simulations": 4,
    "search.cheap_simulations": 2,
    "network.blocks": 1,
    "network.channels": 8,
    "network.value_channels": 4,
    "training.max_steps": 12,
    "training.batch_size": 32,
    "training.checkpoint_every": 3,
    "training.holdout_fraction": 0.3,
    "training.threads": 1,
    "training.precision": "float32",
    "search.precision": "float32",
    "quality.freshness_weight": 0.0,  # the time between two generations must not count
    "calibration.bins": 3,
    "calibration.min_games": 2,
    "calibration.bootstrap": 20,
    "evaluation.games": 4,
    "evaluation.max_games": 4,
    "evaluation.simulations": 2,
    "evaluation.anchor_games": 2,
}
SERVICE = "ringrift_pipeline.orchestration.service"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def left(data: Path) -> int:
    """Generations that are still to be finished."""
    return LAST + 1 - first_generation(Store(data), CONFIG, "auto")


def start(data: Path, log: Path) -> subprocess.Popen[bytes]:
    """``ringrift loop --ui`` for all that is left, in a session of its own."""
    words = [f"--set={name}={value}" for name, value in SETTINGS.items()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("RINGRIFT_DATA", None)
    environment["RINGRIFT_PLAY_URL"] = "http://pages.invalid"  # so that no page is served here
    with open(log, "ab") as output:
        return subprocess.Popen(
            [
                sys.executable, "-m", "ringrift_pipeline", "loop", "--data", str(data),
                "--config", CONFIG, "--preset=smoke", "--device=cpu", "--ui",
                "--port", str(free_port()), "--generations", str(left(data)), *words,
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )  # fmt: skip


def processes(data: Path) -> dict[int, tuple[int, str]]:
    """Of the processes that work on a data root: id -> parent and command line."""
    wanted = f"RINGRIFT_DATA={data}".encode()
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found[int(entry.name)] = (parent, line)
    return found


def victims(data: Path, loop: int) -> dict[str, list[int]]:
    """Kind of process -> ids. A run's process is the code server's child, a step's comes below."""
    alive = processes(data)
    found: dict[str, list[int]] = {"loop": [loop]}
    for number, (parent, line) in alive.items():
        if f"-m {SERVICE} " in line:
            kind = line.partition(f"-m {SERVICE} ")[2].split()[0]
        elif "resource_tracker" in line:
            continue
        else:
            above = alive.get(parent, (0, ""))[1]
            kind = "run" if f"{SERVICE} code-server" in above else "step"
        found.setdefault(kind, []).append(number)
    return found


def end_all(data: Path, loop: subprocess.Popen[bytes]) -> None:
    """Kill whatever a failed trial has left; only processes that work on its data root."""
    loop.kill()
    loop.wait()
    for number in processes(data):
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


class Trial:
    """One loop on a data root, started again and again until it has come to its end."""

    def __init__(self, data: Path, log: Path, rng: random.Random) -> None:
        self.data, self.log, self.rng = data, log, rng
        self.killed: Counter[str] = Counter()
        self.begun = 0  # times that the command was started

    def run(self, kills: int) -> None:
        """To the end, with at most so many kills."""
        starts = 0
        while left(self.data) > 0:
            starts += 1
            assert starts <= STARTS, f"it does not start: {self.said()}"
            self.begun += 1
            loop = start(self.data, self.log)
            try:
                if self._disturb(loop, kills):
                    starts = 0
            except BaseException:
                end_all(self.data, loop)
                raise
        deadline = time.monotonic() + ORPHANS
        while alive := processes(self.data):  # of a command that was killed
            assert time.monotonic() < deadline, f"left running: {alive}"
            time.sleep(1.0)

    def said(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]

    def _disturb(self, loop: subprocess.Popen[bytes], kills: int) -> bool:
        """Kill one process after the other until the loop has ended; was any killed?"""
        any_killed, deadline = False, time.monotonic() + PATIENCE
        while loop.poll() is None:
            assert time.monotonic() < deadline, f"it does not end: {self.said()}"
            more = sum(self.killed.values()) < kills
            with contextlib.suppress(subprocess.TimeoutExpired):
                slower = 1 + sum(self.killed.values()) / 20  # for the machine may be a slow one
                loop.wait(self.rng.expovariate(1 / MEAN) * slower if more else 1.0)
                break
            if not more:
                continue
            alive = victims(self.data, loop.pid)
            kind = self.rng.choice(sorted(alive))
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.rng.choice(sorted(alive[kind])), signal.SIGKILL)
                self.killed[kind] += 1
                any_killed, deadline = True, time.monotonic() + PATIENCE
            champion = Store(self.data).champion(CONFIG)
            if champion is not None:
                Store(self.data).open(champion.path)
        return any_killed


def result(data: Path) -> dict[str, Any]:
    store = Store(data)
    store.sweep()
    found = everything(data, CONFIG, LAST, GAMES)
    for generation in range(LAST + 1):
        decision = store.require(CONFIG, generation, "decision")
        found[f"{CONFIG} {generation} promoted"] = decision.metadata["promoted"]
    return found


def check_once(data: Path, begun: int) -> None:
    """The history of the instance: no generation was made twice, no promotion reported twice.

    A command that is begun again asks anew for a generation that nobody has decided on yet, also
    when a run of it has just succeeded: that run finds all of it made. Each start after the first
    may cost one such run, and nothing else may.
    """
    with open_instance(data) as instance:
        succeeded = [DagsterRunStatus.SUCCESS]
        runs = instance.get_runs(RunsFilter(job_name=names.job_name(CONFIG), statuses=succeeded))
        key = AssetKey([CONFIG, names.CHAMPION])
        events = instance.fetch_materializations(key, limit=100).records
    made = Counter(run.tags[names.PARTITION_TAG] for run in runs)
    every = {names.generation_key(number) for number in range(LAST + 1)}
    assert made.keys() == every, made
    assert made.total() - len(every) <= begun - 1, f"{made}, the command was begun {begun} times"
    reported = [event.asset_materialization for event in events]
    told = Counter(one.metadata["digest"].value for one in reported if one is not None)
    assert told == Counter(champion.digest for champion in Store(data).champions(CONFIG))


@pytest.mark.bounded
def test_what_was_done_twice_is_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.create(CONFIG, 0, "ema_model") as draft:
        (draft / "a").write_text("x")
    store.promote(CONFIG, 0, draft.artefact, {"why": "a test"})

    def succeed(generation: int) -> None:
        tags = {names.PARTITION_TAG: names.generation_key(generation)}
        job = names.job_name(CONFIG)
        instance.add_run(DagsterRun(job, status=DagsterRunStatus.SUCCESS, tags=tags))

    with open_instance(tmp_path) as instance:
        succeed(0)
        reconcile(instance, store)
        with pytest.raises(AssertionError):  # generation 1 was left out
            check_once(tmp_path, begun=1)
        succeed(1)
        check_once(tmp_path, begun=1)
        succeed(1)
        check_once(tmp_path, begun=2)
        with pytest.raises(AssertionError, match="begun 1 times"):
            check_once(tmp_path, begun=1)
        key = AssetKey([CONFIG, names.CHAMPION])
        (event,) = instance.fetch_materializations(key, limit=2).records
        assert event.asset_materialization is not None
        instance.report_runless_asset_event(event.asset_materialization)
        with pytest.raises(AssertionError):
            check_once(tmp_path, begun=2)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    trial = Trial(folder / "data", folder / "log", random.Random(0))
    trial.run(kills=0)
    check_once(folder / "data", trial.begun)
    yield result(folder / "data")


def test_a_loop_through_dagster_killed_again_and_again(
    undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    cases = Cases("random kills through Dagster", "a loop", tally.total(KILLS))
    number = 0
    while cases.counted < (wanted := tally.wanted(KILLS)):
        folder = tmp_path / f"loop-{number}"
        folder.mkdir()

        def one(folder: Path = folder, number: int = number) -> dict[str, int]:
            rng = random.Random(f"{tally.seed()} {tally.share()} {number}")
            trial = Trial(folder / "data", folder / "log", rng)
            trial.run(kills=wanted - cases.counted)
            assert result(folder / "data") == undisturbed, trial.said()
            check_once(folder / "data", trial.begun)
            return {f"of a {kind} process": count for kind, count in trial.killed.items()}

        cases.run(f"loop {number}", one, ours=True)
        number += 1
        print(f"{cases.counted} kills", file=sys.stderr, flush=True)
    cases.settle()
