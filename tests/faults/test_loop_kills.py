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
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from dagster import AssetKey, DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter
from dagster._core.storage.tags import SENSOR_NAME_TAG

from ringrift_pipeline.orchestration import names
from ringrift_pipeline.orchestration.champion import reconcile
from ringrift_pipeline.orchestration.decisions import CHECKS, FAULTS
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


def once_more(instance: DagsterInstance, store: Store) -> Iterator[tuple[str, str | None]]:
    """Generations, as keys, for each run that succeeded after another of the same one, and what is
    wrong with it. Nothing is, where it or the run that it retries was asked for anew, by a command that
    found no decision; which run was asked for first, their numbers tell.
    """
    filters = RunsFilter(job_name=names.job_name(CONFIG), statuses=[DagsterRunStatus.SUCCESS])
    asked: dict[str, set[str]] = {}
    for record in instance.get_run_records(filters, ascending=True):
        run = record.dagster_run
        key, first = run.tags[names.PARTITION_TAG], run.root_run_id or run.run_id
        known = asked.setdefault(key, set())
        again = bool(known)
        repeated = first in known
        known.add(first)
        if not again:
            continue
        root = instance.get_run_record_by_id(first)
        assert root is not None, f"{key}: nobody has asked for the run {first}"
        wrong = None
        if repeated:
            wrong = f"{first} succeeded, and was retried"
        elif SENSOR_NAME_TAG in root.dagster_run.tags:
            wrong = f"{first} was made by the sensor {root.dagster_run.tags[SENSOR_NAME_TAG]}"
        elif (decided := decided_at(store, key)) and decided < root.create_timestamp:
            wrong = f"{first} was asked for when the generation was decided"
        yield key, wrong


def decided_at(store: Store, key: str) -> datetime | None:
    """When a generation was first decided for good."""
    moments = [
        datetime.fromisoformat(one.created)
        for one in store.artefacts(CONFIG, int(key), "decision")
        if one.metadata.get("end") not in FAULTS
    ]
    return min(moments, default=None)


def check_once(data: Path, begun: int) -> None:
    """The history of the instance: no generation was made twice, no promotion reported twice.

    A command that is begun again, and finds a generation that nobody has decided on, asks anew for it
    unless it sees that a run of it has just succeeded. Where both succeed, the later run finds all of
    it made. Each start after the first may cost one such run, and nothing else may.
    """
    store = Store(data)
    with open_instance(data) as instance:
        succeeded = [DagsterRunStatus.SUCCESS]
        runs = instance.get_runs(RunsFilter(job_name=names.job_name(CONFIG), statuses=succeeded))
        key = AssetKey([CONFIG, names.CHAMPION])
        events = instance.fetch_materializations(key, limit=100).records
        more = list(once_more(instance, store))
    made = {run.tags[names.PARTITION_TAG] for run in runs}
    assert made == {names.generation_key(number) for number in range(LAST + 1)}, made
    assert not any(wrong for _, wrong in more), more
    assert len(more) <= begun - 1, f"{more}, the command was begun {begun} times"
    reported = [event.asset_materialization for event in events]
    told = Counter(one.metadata["digest"].value for one in reported if one is not None)
    assert told == Counter(champion.digest for champion in store.champions(CONFIG))


@pytest.fixture
def twice(tmp_path: Path) -> Iterator[Twice]:
    """Two generations that were made and decided, but for the newer one."""
    store = Store(tmp_path)
    with store.create(CONFIG, 0, "ema_model") as draft:
        (draft / "a").write_text("x")
    store.promote(CONFIG, 0, draft.artefact, {"why": "a test"})
    with open_instance(tmp_path) as instance:
        made = Twice(store, instance)
        made.succeed(0)
        made.decide(0)
        reconcile(instance, store)
        with pytest.raises(AssertionError):  # generation 1 was left out
            check_once(tmp_path, begun=1)
        made.succeed(1)
        check_once(tmp_path, begun=1)
        yield made


class Twice:
    """A history, written by hand."""

    def __init__(self, store: Store, instance: DagsterInstance) -> None:
        self.store, self.instance = store, instance

    def succeed(self, generation: int, root: str | None = None, **tags: str) -> str:
        """A run has made a generation; its id. ``root``: the run that it retries."""
        named = {names.PARTITION_TAG: names.generation_key(generation), **tags}
        job, status = names.job_name(CONFIG), DagsterRunStatus.SUCCESS
        parents = {"root_run_id": root, "parent_run_id": root}
        run = DagsterRun(job, status=status, tags=named, **parents)
        return self.instance.add_run(run).run_id

    def decide(self, generation: int, end: str | None = None) -> None:
        with self.store.create(CONFIG, generation, "decision", {"end": end}):
            pass

    def refused(self, why: str, begun: int = 9) -> None:
        with pytest.raises(AssertionError, match=why):
            check_once(self.store.root, begun)


@pytest.mark.bounded
def test_each_start_may_make_once_more_what_nobody_has_decided_on(twice: Twice) -> None:
    twice.decide(1, CHECKS)  # it has to be put right, which is no decision for good
    twice.succeed(1)
    twice.decide(1)
    check_once(twice.store.root, begun=2)
    twice.refused("begun 1 times", begun=1)


@pytest.mark.bounded
def test_a_generation_that_is_made_again_once_it_is_decided_is_found(twice: Twice) -> None:
    twice.decide(1)
    twice.succeed(1)
    twice.refused("when the generation was decided")


@pytest.mark.bounded
@pytest.mark.parametrize("retried", [False, True])
def test_a_generation_that_the_sensor_starts_once_more_is_found(
    twice: Twice, retried: bool
) -> None:
    sensors = {SENSOR_NAME_TAG: names.SENSOR}
    if retried:
        lost = DagsterRun(names.job_name(CONFIG), status=DagsterRunStatus.FAILURE, tags=sensors)
        twice.succeed(1, twice.instance.add_run(lost).run_id)
    else:
        twice.succeed(1, **sensors)
    twice.refused(f"made by the sensor {names.SENSOR}")


@pytest.mark.bounded
def test_a_run_that_is_retried_after_it_has_succeeded_is_found(twice: Twice) -> None:
    twice.succeed(1, twice.succeed(1))
    twice.refused("succeeded, and was retried")


@pytest.mark.bounded
def test_a_promotion_that_is_reported_twice_is_found(twice: Twice) -> None:
    key = AssetKey([CONFIG, names.CHAMPION])
    (event,) = twice.instance.fetch_materializations(key, limit=2).records
    assert event.asset_materialization is not None
    twice.instance.report_runless_asset_event(event.asset_materialization)
    twice.refused("Counter")


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
