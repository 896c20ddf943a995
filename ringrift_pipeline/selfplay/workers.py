"""Playing all shards of a plan over worker processes.

Every worker has a pipe of its own, so a worker that is killed takes nothing with it but the
shard it was playing: a fresh worker takes its place and plays that shard again. What lands does
not depend on the number of workers, as each shard depends on the plan alone.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from ringrift_pipeline.selfplay.plan import Plan, load_plan
from ringrift_pipeline.selfplay.playing import finished_shard, play_shard, play_with
from ringrift_pipeline.selfplay.stopping import Interrupted, Progress, Reporter, ShouldStop

if TYPE_CHECKING:
    from ringrift_pipeline.store import Artefact, Store

ATTEMPTS = 3
"""How often a shard is begun before its dying workers are taken for a fault of ours."""


class SelfplayError(RuntimeError):
    """A shard could not be played; the message carries the worker's own error."""


def cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def play_shards(
    store: Store,
    plan: Plan,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    should_stop: ShouldStop | None = None,
) -> list[Artefact]:
    """Play every shard of a plan that is not finished yet and return all, by index.

    Parameters
    ----------
    workers:
        Processes; None takes ``selfplay.workers`` of the plan, 0 means one a core. With one, the
        calling process plays. The bytes of the shards are the same for any number.
    progress:
        Called with finished and planned games of the whole generation and a line with rates.

    Raises
    ------
    Interrupted
        if ``should_stop`` says so; finished shards stay.
    SelfplayError
        if a shard fails, or its workers die :data:`ATTEMPTS` times.
    """
    wanted = plan.settings.selfplay.workers if workers is None else workers
    if wanted < 0:
        raise ValueError(f"workers must be 0 (one a core) or more, not {wanted}")
    count = wanted or cores()
    artefacts = {index: finished_shard(store, plan, index) for index in range(len(plan.shards))}
    missing = [index for index, artefact in artefacts.items() if artefact is None]
    tally = _Tally(plan, missing, Reporter(progress, should_stop))
    tally.report()
    if min(count, len(missing)) <= 1:
        for index in missing:
            artefacts[index] = play_shard(
                store,
                plan,
                index,
                progress=tally.of(index),
                should_stop=should_stop,
            )
            tally.finish(index, artefacts[index])
    else:
        with _Crew(store, plan, min(count, len(missing)), tally) as crew:
            crew.play(missing)
        for index in missing:
            artefacts[index] = finished_shard(store, plan, index)
    result = [artefact for artefact in artefacts.values() if artefact is not None]
    if len(result) != len(artefacts):
        raise SelfplayError("a shard that had landed is no longer there: run again")
    return result


class _Tally:
    """Adds up the progress of all shards and reports it."""

    def __init__(self, plan: Plan, missing: Sequence[int], reporter: Reporter) -> None:
        self._total = plan.games
        self._before = sum(
            int(shard["games"]) for shard in plan.shards if shard["index"] not in missing
        )
        self._games = dict.fromkeys(missing, 0)
        self._positions = dict.fromkeys(missing, 0)
        self.reporter = reporter

    def of(self, index: int) -> Progress:
        """The progress callback of one shard that this process plays."""
        return lambda done, total, message: self.advance(index, done, None)

    def advance(self, index: int, games: int, positions: int | None) -> None:
        self._games[index] = games
        if positions is not None:
            self._positions[index] = positions
        self.report()

    def finish(self, index: int, artefact: Artefact | None) -> None:
        if artefact is not None:
            self.advance(index, artefact.metadata["games"], artefact.metadata["positions"])

    def report(self) -> None:
        """Report the games and positions of all shards, with rates."""
        played = sum(self._games.values())
        seconds = self.reporter.seconds
        self.reporter.report(
            self._before + played,
            self._total,
            f"{self._before + played}/{self._total} games, {played / seconds:.2f} games/s, "
            f"{sum(self._positions.values()) / seconds:.0f} positions/s",
        )


@dataclass
class _Worker:
    process: Any
    connection: Connection
    index: int | None = field(default=None)


class _Crew:
    """Worker processes, each with a pipe; used as a context manager."""

    def __init__(self, store: Store, plan: Plan, size: int, tally: _Tally) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._arguments = (str(store.root), plan.config, plan.generation)
        self._store = store
        self._plan = plan
        self._size = size
        self._tally = tally
        self._workers: list[_Worker] = []

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.connection.send(None)
        deadline = time.monotonic() + 5.0
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.terminate()
                worker.process.join()
            worker.connection.close()
        self._workers.clear()

    def play(self, missing: Sequence[int]) -> None:
        """Hand out shards until all have landed."""
        waiting = deque(missing)
        attempts = dict.fromkeys(missing, 0)
        left = len(missing)
        while left:
            while waiting and (worker := self._idle()) is not None:
                worker.index = waiting.popleft()
                attempts[worker.index] += 1
                worker.connection.send(worker.index)
            for worker in self._ready():
                index = worker.index
                outcome = self._hear(worker)
                if outcome == "landed":
                    left -= 1
                elif outcome == "died" and index is not None:
                    if attempts[index] >= ATTEMPTS:
                        raise SelfplayError(
                            f"the workers that played shard {index} died {ATTEMPTS} times (killed, "
                            "or out of memory?): lower selfplay.parallel_games or the workers"
                        )
                    waiting.appendleft(index)
            self._tally.reporter.check(
                "selfplay: stopped; finished shards are kept, run again to play the others"
            )

    def _idle(self) -> _Worker | None:
        for worker in self._workers:
            if worker.index is None:
                return worker
        if len(self._workers) >= self._size:
            return None
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work, args=(theirs, *self._arguments), daemon=True, name="ringrift-selfplay"
        )
        process.start()
        theirs.close()
        worker = _Worker(process, ours)
        self._workers.append(worker)
        return worker

    def _ready(self) -> list[_Worker]:
        ready = wait([worker.connection for worker in self._workers], timeout=0.25)
        return [worker for worker in self._workers if worker.connection in ready]

    def _hear(self, worker: _Worker) -> str:
        """Take one message of a worker: "landed", "died", or "" for mere progress."""
        try:
            kind, index, *rest = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join()
            worker.connection.close()
            self._workers.remove(worker)
            return "died"
        if kind == "progress":
            self._tally.advance(index, *rest)
            return ""
        if kind == "failed":
            raise SelfplayError(f"shard {index} failed: {rest[0]}")
        worker.index = None
        self._tally.advance(index, *rest)
        return "landed"


def _work(connection: Connection, root: str, config: str, generation: int) -> None:
    """A worker process: plays the shards whose numbers come through the pipe, until None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it and says what to do
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    from ringrift_pipeline.store import Store

    store = Store(root)
    plan = load_plan(store, config, generation)
    stop = False

    def should_stop() -> bool:
        # While a shard is played, the parent says nothing but "stop"; its death ends the pipe.
        nonlocal stop
        stop = stop or connection.poll()
        return stop

    while True:
        try:
            index = connection.recv()
        except (EOFError, OSError):
            return
        if index is None or not _play_one(connection, store, plan, index, should_stop):
            return


def _play_one(
    connection: Connection, store: Store, plan: Plan, index: int, should_stop: ShouldStop
) -> bool:
    """Play a shard and tell the parent; False when this worker is to end."""

    def progress(done: int, total: int, message: str) -> None:
        connection.send(("progress", index, done, reporter.positions))

    reporter = Reporter(progress, should_stop)
    try:
        made = play_with(store, plan, index, reporter).metadata
        connection.send(("landed", index, made["games"], made["positions"]))
        return True
    except (Interrupted, BrokenPipeError):
        return False
    except Exception:
        connection.send(("failed", index, traceback.format_exc()))
        return False
