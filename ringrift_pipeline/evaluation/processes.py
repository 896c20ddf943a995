"""Jobs over worker processes, which tell how far they are and stop when they are asked to."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from typing import Any, Protocol

__all__ = ["Desk", "WorkerDiedError", "asked_to_stop", "tell", "work_through"]

POLL = 0.25  # seconds between two looks at what the workers say
GRACE = 3.0  # seconds that a worker has to end before it is killed


class WorkerDiedError(RuntimeError):
    """A worker process ended before its job did."""


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


_worker: dict[str, Any] = {}


def tell(message: Any) -> None:
    """Send something to the desk; for work that runs in a worker."""
    _worker["messages"].put(message)


def asked_to_stop() -> bool:
    """Whether the work is to end early, with `Interrupted`; for work that runs in a worker."""
    return bool(_worker["stopping"].is_set())


def work_through(jobs: Sequence[Any], work: Callable[[Any], Any], workers: int, desk: Desk) -> None:
    """Do ``work(job)`` for every job in worker processes; results land as they come.

    Workers have one thread each, do not hear Ctrl-C, and are gone when this process is.

    Args:
        jobs: begun in this order; anything that pickles.
        work: a function of a module.
        workers: processes, at least 1.
        desk: hears and takes.

    Raises:
        WorkerDiedError: if a worker is killed, or runs out of memory.
        Exception: what a job or the desk raises; the workers have ended then.
    """
    context = multiprocessing.get_context("spawn")
    messages, stopping = context.Queue(), context.Event()
    waiting = list(jobs)
    running: dict[Future[Any], Any] = {}
    strangers = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(messages, stopping)
    )
    complete = False
    try:
        while running or waiting:
            while waiting and len(running) < workers:
                job = waiting.pop(0)
                if desk.wanted(job):
                    running[pool.submit(work, job)] = job
            done, _ = wait(list(running), timeout=POLL, return_when=FIRST_COMPLETED)
            _hear(messages, desk)
            for future in done:
                job = running.pop(future)
                if desk.wanted(job):
                    desk.land(job, future.result())
            desk.check()
        complete = True
    except BrokenProcessPool as error:
        desk.check()  # a supervisor may have told the workers to end as well as us
        raise WorkerDiedError("a worker process died (killed, or out of memory?)") from error
    finally:
        stopping.set()
        if not complete:  # one that is still importing or compiling would not hear it for long
            _end(set(multiprocessing.active_children()) - strangers)
        pool.shutdown(wait=True, cancel_futures=True)
        messages.close()
        messages.cancel_join_thread()


def _end(processes: set[Any]) -> None:
    """Tell processes to end, and kill those that do not: one that was stopped hears nothing else."""
    left = {process.sentinel: process for process in processes}
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE
    while left and time.monotonic() < deadline:
        for ended in wait_for(list(left), max(0.0, deadline - time.monotonic())):
            del left[ended]
    for process in left.values():
        process.kill()


def _start_worker(messages: Any, stopping: Any) -> None:
    """First thing in a worker: one thread, no Ctrl-C, and gone when its parent is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    _worker.update(messages=messages, stopping=stopping)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            wait_for([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True, name="ringrift-parent-watch").start()


def _hear(messages: Any, desk: Desk) -> None:
    while True:
        try:
            message = messages.get_nowait()
        except queue.Empty:
            return
        desk.hear(message)
