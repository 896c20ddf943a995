"""Jobs over worker processes, which tell how far they are and stop when they are asked to.

Every worker has a pipe of its own, read by a thread: one that is killed, or stopped in the midst of
a word, holds no lock that others wait for, and nobody waits for the rest of what it was saying.
"""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from typing import Any, Protocol

from ringrift_pipeline.selfplay.stopping import WorkerDiedError
from ringrift_pipeline.selfplay.workers import SILENCE

__all__ = ["Desk", "WorkerDiedError", "asked_to_stop", "tell", "work_through"]

POLL = 0.25  # seconds between two looks at what the workers say
GRACE = 3.0  # seconds that a worker has to end before it is killed
SIGN = 1.0  # seconds between two signs of life
STRIDE = 1.0  # seconds at most that count between two looks: a parent at rest is no reason to kill


class Desk(Protocol):
    """Where jobs come back to, in the process that hands them out."""

    def wanted(self, job: Any) -> bool:
        """Whether a job's result is still of use; asked before it begins and when it lands."""
        ...

    def land(self, job: Any, result: Any) -> None:
        """Take the result of a job."""
        ...

    def hear(self, message: Any) -> None:
        """Take what a worker told with `tell`."""
        ...

    def check(self) -> None:
        """Asked at least every half second; what it raises stops the workers."""
        ...


# -- in a worker ----------------------------------------------------------------------------

_worker: dict[str, Any] = {}


def tell(message: Any) -> None:
    """Send something to the desk; for work that runs in a worker, in the thread that was given it."""
    _worker["connection"].send(("told", message))
    _worker["signed"] = time.monotonic()


def asked_to_stop() -> bool:
    """Whether the work is to end early, with `Interrupted`; for work that runs in a worker.

    Asking is a sign of life: work asks often, or tells.
    """
    # while it works nothing is said to a worker but that it is to stop
    _worker["stop"] = _worker["stop"] or _worker["connection"].poll()
    if not _worker["stop"] and time.monotonic() - _worker["signed"] > SIGN:
        _worker["connection"].send(("sign", None))
        _worker["signed"] = time.monotonic()
    return bool(_worker["stop"])


def _work_on(connection: Connection, work: Callable[[Any], Any]) -> None:
    """A worker process: does the jobs that come through the pipe, until it is asked to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    _worker.update(connection=connection, stop=False, signed=time.monotonic())
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            wait_for([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True, name="ringrift-parent-watch").start()
    with contextlib.suppress(EOFError, OSError):
        connection.send(("sign", None))
        while (message := connection.recv()) is not None:
            try:
                answer = ("landed", work(message[0]))
            except Exception as error:
                answer = ("failed", _that_travels(error))
            try:
                connection.send(answer)
            except OSError:
                raise
            except Exception:  # nothing of it was sent
                connection.send(("failed", RuntimeError(traceback.format_exc())))


def _that_travels(error: Exception) -> Exception:
    """The error with this worker's traceback as a note; a plain one of its text where the other end
    could not make it again.
    """
    told = traceback.format_exc()
    try:
        error.add_note(told)
        return copy.copy(error)
    except Exception:
        return RuntimeError(told)


# -- in the process that hands jobs out -----------------------------------------------------


@dataclass(eq=False)
class _Worker:
    process: Any
    connection: Connection
    listener: Any = None
    job: tuple[Any] | None = None
    heard: bool = False  # anything at all: it has loaded what it works with
    silent: float = 0.0  # seconds since it gave a sign of life


def work_through(
    jobs: Sequence[Any],
    work: Callable[[Any], Any],
    workers: int,
    desk: Desk,
    silence: float = SILENCE,
) -> None:
    """Do ``work(job)`` for every job in worker processes; results land as they come.

    Workers have one thread each, do not hear Ctrl-C, and are gone when this process is.

    Args:
        jobs: begun in this order; anything that pickles.
        work: a function of a module.
        workers: processes, at least 1.
        desk: hears and takes.
        silence: seconds after which a worker with a job is taken for hung, and killed, if it has
            neither told anything nor asked whether it is to stop. One that is still loading has
            half an hour at least.

    Raises:
        WorkerDiedError: if a worker is killed, runs out of memory, or hangs.
        Exception: what a job or the desk raises; the workers have ended then.
    """
    context = multiprocessing.get_context("spawn")
    inbox: queue.SimpleQueue[tuple[_Worker, str, Any]] = queue.SimpleQueue()
    waiting = deque(jobs)
    crew: list[_Worker] = []
    complete = False
    try:
        looked = time.monotonic()
        while True:
            while waiting and (len(crew) < workers or any(one.job is None for one in crew)):
                job = waiting.popleft()
                if desk.wanted(job):
                    _give(job, crew, context, work, inbox)
            if not any(one.job is not None for one in crew):
                break
            for worker, kind, content in _said(inbox):
                worker.heard, worker.silent = True, 0.0
                if kind == "told":
                    desk.hear(content)
                elif kind == "gone":
                    crew.remove(worker)
                    worker.connection.close()  # nobody listens to it any more
                    worker.process.kill()  # as it closes its pipe it may not have ended yet
                    worker.process.join()
                    if worker.job is not None:
                        desk.check()  # a supervisor may have told the workers to end as well as us
                        raise WorkerDiedError("a worker process died (killed, or out of memory?)")
                elif kind != "sign":
                    assert worker.job is not None
                    (job,), worker.job = worker.job, None
                    if desk.wanted(job):
                        if kind == "failed":
                            raise content
                        desk.land(job, content)
            desk.check()
            now = time.monotonic()
            passed, looked = min(now - looked, STRIDE), now
            for worker in crew:
                worker.silent += passed
                patience = silence if worker.heard else max(silence, SILENCE)
                if worker.job is not None and worker.silent > patience:
                    worker.process.kill()
                    raise WorkerDiedError(
                        f"a worker process hung, without a sign of life for {patience:.0f} s, and "
                        "was killed"
                    )
        complete = True
    finally:
        for worker in crew:
            with contextlib.suppress(OSError):
                worker.connection.send(None)
        _end([worker.process for worker in crew], told=not complete)
        for worker in crew:
            worker.process.join()
            worker.listener.join()
            worker.connection.close()


def _give(
    job: Any, crew: list[_Worker], context: Any, work: Callable[[Any], Any], inbox: Any
) -> None:
    """Hand a job to a worker that has none, or to a new one."""
    worker = next((one for one in crew if one.job is None), None)
    if worker is None:
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_work_on, args=(theirs, work), daemon=True, name="ringrift-worker"
        )
        process.start()
        theirs.close()  # so that its end is heard
        worker = _Worker(process, ours)
        crew.append(worker)
        worker.listener = threading.Thread(
            target=_listen, args=(worker, inbox), daemon=True, name="ringrift-listener"
        )
        worker.listener.start()
    worker.job, worker.silent = (job,), 0.0
    with contextlib.suppress(OSError):  # it is dead: that is heard next
        worker.connection.send((job,))


def _listen(worker: _Worker, inbox: Any) -> None:
    """Put all that a worker says into the inbox, and that it is gone."""
    try:
        while True:
            inbox.put((worker, *worker.connection.recv()))
    except Exception:  # the pipe ended, perhaps within a word
        inbox.put((worker, "gone", None))


def _said(inbox: Any) -> Any:
    """What there is in the inbox, waiting a moment for the first of it."""
    with contextlib.suppress(queue.Empty):
        yield inbox.get(timeout=POLL)
        while True:
            yield inbox.get_nowait()


def _end(processes: Sequence[Any], told: bool) -> None:
    """Wait for processes that were asked to end, which are ``told`` so where they may not hear it
    for long, and kill those that do not: one that was stopped hears nothing else.
    """
    left = {process.sentinel: process for process in processes}
    for process in processes if told else ():
        process.terminate()
    deadline = time.monotonic() + GRACE
    while left and time.monotonic() < deadline:
        for ended in wait_for(list(left), max(0.0, deadline - time.monotonic())):
            del left[ended]  # type: ignore[arg-type]
    for process in left.values():
        process.kill()
