"""Playing all shards of a plan over worker processes.

Every worker has a pipe of its own, so a worker that is killed, runs out of memory or hangs takes
nothing with it but the shard it was playing: a fresh worker takes its place and plays that shard
again. What lands does not depend on the number of workers, as each shard depends on the plan alone.
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

SILENCE = 1800.0
"""Seconds without a sign of life after which a worker is taken for hung. One that plays gives a
sign every second; before it can, kernels may have to be compiled, by a processor that others want."""

_SIGN = 1.0  # seconds between two signs of life
_STRIDE = 1.0  # seconds at most that count between two looks: a parent at rest is no reason to kill
_ADVICE = "lower selfplay.parallel_games or the workers if memory is short"
# Seconds that workers are given to end when asked to, and then when told to.
_ASKED, _TOLD = 5.0, 2.0


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
    silence: float = SILENCE,
) -> list[Artefact]:
    """Play every shard of a plan that is not finished yet and return all, by index.

    Parameters
    ----------
    workers:
        Processes; None takes ``selfplay.workers`` of the plan, 0 means one a core. With one, the
        calling process plays. The bytes of the shards are the same for any number.
    progress:
        Called with finished and planned games of the whole generation and a line with rates.
    silence:
        Seconds without a sign of life after which a worker process is killed, and its shard played
        by another.

    Raises
    ------
    Interrupted
        if ``should_stop`` says so; finished shards stay.
    SelfplayError
        if a shard fails, or its workers die or hang :data:`ATTEMPTS` times, or memory is short
        where the calling process plays.
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
            try:
                artefacts[index] = play_shard(
                    store,
                    plan,
                    index,
                    progress=tally.of(index),
                    should_stop=should_stop,
                )
            except Exception as error:
                if not _is_shortage(error):
                    raise
                raise SelfplayError(f"shard {index} ran out of memory: {_ADVICE}") from error
            tally.finish(index, artefacts[index])
    else:
        with _Crew(store, plan, min(count, len(missing)), tally, silence) as crew:
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
    silent: float = 0.0  # seconds since it gave a sign of life
    end: str = ""  # how it ends, where that is known before it has


class _Crew:
    """Worker processes, each with a pipe; used as a context manager."""

    def __init__(self, store: Store, plan: Plan, size: int, tally: _Tally, silence: float) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._arguments = (str(store.root), plan.config, plan.generation)
        self._store = store
        self._plan = plan
        self._size = size
        self._tally = tally
        self._silence = silence
        self._looked = time.monotonic()
        self._workers: list[_Worker] = []

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.connection.send(None)
        self._wait_for_ends(_ASKED)
        for worker in self._workers:
            worker.process.terminate()
        self._wait_for_ends(_TOLD)
        for worker in self._workers:
            worker.process.kill()  # one that was stopped hears nothing else
            worker.process.join()
            worker.connection.close()
        self._workers.clear()

    def _wait_for_ends(self, patience: float) -> None:
        """Until all workers have ended, or some seconds have passed."""
        deadline = time.monotonic() + patience
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))

    def play(self, missing: Sequence[int]) -> None:
        """Hand out shards until all have landed."""
        waiting = deque(missing)
        attempts = dict.fromkeys(missing, 0)
        left = len(missing)
        while left:
            while waiting and (worker := self._idle()) is not None:
                worker.index = waiting.popleft()
                worker.silent = 0.0
                attempts[worker.index] += 1
                with contextlib.suppress(OSError):  # it is dead: that is heard next
                    worker.connection.send(worker.index)
            for worker in self._ready():
                index = worker.index
                outcome = self._hear(worker)
                if outcome == "landed":
                    left -= 1
                elif outcome == "died" and index is not None:
                    if attempts[index] >= ATTEMPTS:
                        raise SelfplayError(
                            f"shard {index} was begun {ATTEMPTS} times and its worker died each "
                            f"time, the last one {worker.end}: {_ADVICE}"
                        )
                    waiting.appendleft(index)
            self._kill_silent()
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
            worker.process.join(_TOLD)
            if worker.process.exitcode is None:
                worker.end = worker.end or "hung after it had closed its pipe"
                worker.process.kill()
                worker.process.join()
            worker.end = worker.end or _end_of(worker.process.exitcode)
            worker.connection.close()
            self._workers.remove(worker)
            return "died"
        worker.silent = 0.0
        if kind == "sign":
            return ""
        if kind == "progress":
            self._tally.advance(index, *rest)
            return ""
        if kind == "short":
            worker.end = "out of memory"
            return ""
        if kind == "failed":
            raise SelfplayError(f"shard {index} failed: {rest[0]}")
        worker.index = None
        self._tally.advance(index, *rest)
        return "landed"

    def _kill_silent(self) -> None:
        """Kill the workers that have given no sign of life for too long; their ends are heard."""
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, _STRIDE), now
        for worker in self._workers:
            worker.silent += passed
            if worker.index is not None and worker.silent > self._silence:
                worker.end = f"hung, without a sign of life for {self._silence:.0f} s"
                worker.process.kill()


def _end_of(code: int | None) -> str:
    """How a process ended, in words."""
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"with exit code {code}"


def _is_shortage(error: BaseException) -> bool:
    """Does an error say that there is no memory? Torch has a RuntimeError for it."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error))
    )


def _work(connection: Connection, root: str, config: str, generation: int) -> None:
    """A worker process: plays the shards whose numbers come through the pipe, until None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it and says what to do
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    from ringrift_pipeline.store import Store

    store = Store(root)
    plan = load_plan(store, config, generation)
    stop = False
    signed = time.monotonic()

    def should_stop() -> bool:
        # While a shard is played, the parent says nothing but "stop"; its death ends the pipe.
        nonlocal stop, signed
        stop = stop or connection.poll()
        if not stop and time.monotonic() - signed > _SIGN:
            signed = time.monotonic()
            connection.send(("sign", None))
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
    except Exception as error:
        short = _is_shortage(error)
        with contextlib.suppress(OSError, MemoryError):
            connection.send(
                ("short", index) if short else ("failed", index, traceback.format_exc())
            )
        return False
