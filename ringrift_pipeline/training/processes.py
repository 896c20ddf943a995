"""Training in several processes, one a device: those that torchrun started, or that we start.

``torch.multiprocessing`` starts ours and ends all of them when one fails; a pipe to each carries
progress, the wish to stop, the result and errors with their kind. What the processes say to each
other goes through ``torch.distributed``: NCCL between GPUs, gloo between CPUs.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import logging
import multiprocessing
import os
import signal
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import (
    ProcessContext,
    ProcessException,
    ProcessExitedException,
    start_processes,
)

from ringrift_pipeline.enhancements.replicas import ReplicaError, Replicas
from ringrift_pipeline.enhancements.training_config import TrainingConfig
from ringrift_pipeline.network import resolve_device
from ringrift_pipeline.selfplay.stopping import (
    Interrupted,
    Progress,
    ShouldStop,
    WorkerDiedError,
)

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for another at a step, or at a validation that the first one makes."""

_LOOK = 0.1  # seconds between two looks at the processes
_GRACE = 5.0  # seconds that processes have to end by themselves once one has failed
_LEFT = 130  # exit code of a process whose parent is gone
_TRAININGS = itertools.count()  # of one torchrun, so that none hears what is said in another


class ProcessesError(ValueError):
    """The training cannot be divided among as many processes; the message says what to change."""


class ProcessDiedError(ReplicaError, WorkerDiedError):
    """A process was killed, hung, or ended without a word; run again, training goes on from its last
    state.
    """


def process_count(settings: TrainingConfig) -> int:
    """How many processes ``training.processes`` asks for on this machine.

    Raises
    ------
    ProcessesError
        if there are not as many devices, or not as many rows in a batch.
    """
    device = resolve_device(settings.device)
    wanted = settings.training.processes
    if device.type == "cuda":
        there = 1 if device.index is not None else torch.cuda.device_count()
        count = wanted or there
        if count > there:
            raise ProcessesError(
                f"training.processes is {count}, one a device, but device {settings.device} is "
                f"{there} CUDA device(s): lower it, or 0 for as many as there are"
            )
    else:
        count = wanted or 1
        if count > 1 and device.type != "cpu":
            raise ProcessesError(
                f"training.processes is {count}: several processes train on CUDA devices or on "
                f"the CPU, not on {device.type}"
            )
    check_rows(settings, count)
    return count


def check_rows(settings: TrainingConfig, count: int) -> None:
    """ProcessesError unless each of ``count`` processes has a row of every batch."""
    rows = settings.training.batch_size
    if rows < count:
        raise ProcessesError(
            f"{count} training processes have no row each in a batch of {rows}: raise "
            "training.batch_size, or start fewer"
        )


@dataclass(frozen=True)
class Member:
    """One of the processes that train together, before and while they are joined.

    Attributes
    ----------
    rank, count:
        Which it is, and how many there are; rank 0 does what is done once.
    local_rank:
        Which of those on this machine: the number of its CUDA device.
    store:
        What they all read and write before they are joined.
    progress, should_stop:
        As every long work takes them; of one process each at least.
    leaving:
        What is called, in another thread, before this process leaves because the one that started it
        is gone.
    """

    rank: int
    count: int
    local_rank: int
    store: dist.Store
    progress: Progress | None = None
    should_stop: ShouldStop | None = None
    leaving: list[Callable[[], object]] = field(default_factory=list)

    def tell(self, name: str, text: str) -> None:
        """Tell the others, who :meth:`hear` it."""
        self.store.set(f"ringrift/{name}", text)

    def hear(self, name: str, patient: bool = False) -> str:
        """Wait for what another process tells, however long that takes.

        Whoever started the processes ends this one if another fails meanwhile. Raises Interrupted
        if this one is asked to stop, unless it is ``patient``.
        """
        key = f"ringrift/{name}"
        while not self.store.check([key]):
            if not patient and self.should_stop is not None and self.should_stop():
                raise Interrupted("training: stopped before it began; run again to go on")
            time.sleep(_LOOK)
        return self.store.get(key).decode()

    @contextlib.contextmanager
    def joined(self, settings: TrainingConfig) -> Iterator[tuple[Replicas, str]]:
        """In the process group of all: the replicas, and the name of this process's device.

        Raises
        ------
        ProcessesError
            if there is no such device, or no row for each process in a batch.
        ReplicaError
            if another process does not come.
        """
        check_rows(settings, self.count)
        device, backend = _own_device(settings, self.local_rank)
        if self.rank:  # what all have to say is said once
            logging.getLogger("ringrift_pipeline").setLevel(logging.ERROR)
        # torch warns of 1x1 convolutions, whose weights lie in memory alike in either order
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        try:
            dist.init_process_group(
                backend,
                store=self.store,
                rank=self.rank,
                world_size=self.count,
                timeout=TIMEOUT,
            )
        except RuntimeError as error:
            raise ReplicaError(f"the training processes cannot be joined: {error}") from error
        yield Replicas.of_group(), device
        dist.destroy_process_group()  # after an error the process ends, and the group with it


def _own_device(settings: TrainingConfig, local_rank: int) -> tuple[str, str]:
    """A process's device, and the backends of its group."""
    device = resolve_device(settings.device)
    if device.type != "cuda":
        return str(device), "gloo"
    if device.index is not None or local_rank >= torch.cuda.device_count():
        raise ProcessesError(
            f"training process {local_rank} of this machine has no CUDA device of its own: device "
            f"is {settings.device}, and there are {torch.cuda.device_count()}; start one process a "
            "device, with device cuda"
        )
    torch.cuda.set_device(local_rank)
    return f"cuda:{local_rank}", "cpu:gloo,cuda:nccl"


def by_torchrun(progress: Progress | None = None, should_stop: ShouldStop | None = None) -> Member:
    """This process among those that torchrun started."""
    store, rank, count = next(iter(dist.rendezvous("env://", timeout=TIMEOUT)))
    store = dist.PrefixStore(f"training-{next(_TRAININGS)}", store)
    return Member(rank, count, int(os.environ["LOCAL_RANK"]), store, progress, should_stop)


# --- processes that we start ---------------------------------------------------------------------


def run_together(
    count: int,
    work: Callable[..., Any],
    *arguments: Any,
    progress: Progress | None = None,
    should_stop: ShouldStop | None = None,
) -> Any:
    """``work(member, *arguments)`` in ``count`` processes of this machine; what the first returns.

    ``work`` is a function of a module, and all that it is given and returns can be pickled and holds no
    tensors, whose memory would go with the process. Of the callbacks the first process has the like in its :class:`Member`. No process outlives this call,
    nor this process.

    Raises
    ------
    ProcessDiedError
        if a process is killed, or the others wait for it for `TIMEOUT`; it names which.
    Exception
        what ``work`` raised in a process; ended are all then.
    """
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(count)]
    ours, theirs = [pipe[0] for pipe in pipes], [pipe[1] for pipe in pipes]
    with tempfile.TemporaryDirectory(prefix="ringrift-training-") as folder:
        # Ctrl-C is this process's, who passes it on
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            started = start_processes(
                _child, (count, folder, theirs, work, arguments), count, join=False
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        assert started is not None
        for connection in theirs:
            connection.close()
        heard = _Heard(ours, progress)
        deaf = _deaf_ones(started)
        asked = False
        try:
            while not started.join(_LOOK, _GRACE):
                heard.listen()
                if not asked and should_stop is not None and should_stop():
                    asked = True
                    with contextlib.suppress(OSError):
                        ours[0].send("stop")
        except ProcessException as ended:
            heard.listen()
            raise heard.error(ended, started, deaf) from None
        finally:
            _end(started)
        heard.listen()
    return heard.result


class _Heard:
    """What the processes say."""

    def __init__(self, connections: list[Connection], progress: Progress | None) -> None:
        self._connections = connections
        self._progress = progress
        self._errors: dict[int, tuple[BaseException, str]] = {}
        self.result: Any = None

    def listen(self) -> None:
        """Take what has been said since the last call."""
        for rank, connection in enumerate(self._connections):
            while (said := _next(connection)) is not None:
                self._take(rank, *said)

    def _take(self, rank: int, kind: str, *said: Any) -> None:
        if kind == "progress" and self._progress is not None:
            self._progress(*said)
        elif kind == "result" and rank == 0:
            self.result = said[0]
        elif kind == "error":
            self._errors[rank] = said[0], said[1]

    def error(
        self, ended: ProcessException, processes: ProcessContext, deaf: set[int]
    ) -> BaseException:
        """The error to raise, now that all have ended: the one that the others come from. ``deaf`` are
        those that had to be killed.
        """
        for rank, (error, text) in sorted(self._errors.items()):
            if not isinstance(error, ReplicaError):
                error.add_note(f"In training process {rank}:\n{text}")
                return error
        if ended.error_index not in self._errors:
            if isinstance(ended, ProcessExitedException):
                return _killed(ended.error_index, ended.exit_code)
            return ProcessDiedError(str(ended).strip())  # it could not say why: that is its trace
        for rank, process in enumerate(processes.processes):
            code = process.exitcode
            if code not in (0, -signal.SIGTERM) and rank not in self._errors.keys() | deaf:
                return _killed(rank, code)
        silent = [
            rank
            for rank, process in enumerate(processes.processes)
            if (process.exitcode == -signal.SIGTERM or rank in deaf) and rank not in self._errors
        ]
        error, _ = self._errors[min(self._errors)]
        if silent:
            return ProcessDiedError(f"training process {silent[0]} hung, and was ended: {error}")
        return error


def _next(connection: Connection) -> Any:
    """What has come through a pipe and was not heard yet; None for nothing."""
    try:
        return connection.recv() if connection.poll() else None
    except (EOFError, OSError):
        return None


def _killed(rank: int, code: int) -> ProcessDiedError:
    how = f"ended with exit code {code}"
    if code < 0:
        how = f"was killed ({signal.Signals(-code).name})"
        how += ", perhaps for want of memory" if code == -signal.SIGKILL else ""
    return ProcessDiedError(
        f"training process {rank} {how}; run again to go on with the last state"
    )


def _deaf_ones(processes: ProcessContext) -> set[int]:
    """Of processes that have just been started, the ranks of those that are killed once they have not
    ended when they were told to: torch does so, and does not say which.
    """
    deaf: set[int] = set()

    def kill(rank: int, really: Callable[[], None]) -> None:
        deaf.add(rank)
        really()

    for rank, process in enumerate(processes.processes):
        process.kill = functools.partial(kill, rank, process.kill)
    return deaf


def _end(processes: ProcessContext) -> None:
    """No process is left behind, whatever came in between."""
    for process in processes.processes:
        if process.is_alive():
            process.kill()
        process.join()


def _child(
    rank: int,
    count: int,
    folder: str,
    connections: list[Connection],
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # blocked until here
    leaving: list[Callable[[], object]] = []
    threading.Thread(target=_leave_with_parent, args=(leaving,), daemon=True).start()
    for other, connection in enumerate(connections):
        if other != rank:
            connection.close()
    pipe = connections[rank]
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if os.path.isdir("/sys/class/net/lo"):  # all are on this machine: no other may listen
            os.environ.setdefault(variable, "lo")

    def say(*said: Any) -> None:
        pipe.send(said)

    def progress(done: int, total: int, message: str) -> None:
        say("progress", done, total, message)

    try:
        store = dist.FileStore(str(Path(folder) / "store"), count)
        member = Member(rank, count, rank, store, leaving=leaving)
        if rank == 0:  # a stop is all that is ever sent
            member = replace(member, progress=progress, should_stop=pipe.poll)
        result = work(member, *arguments)
        say("result", result if rank == 0 else None)
    except Exception as error:
        say("error", _portable(error), traceback.format_exc())
        raise


def _portable(error: Exception) -> Exception:
    """The error, or one of its text where it cannot be sent, or be made again at the other end."""
    try:
        ForkingPickler.dumps(error)
        return copy.copy(error)
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def _leave_with_parent(leaving: list[Callable[[], object]]) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        try:
            for call in leaving:
                call()
        finally:
            os._exit(_LEFT)


__all__ = [
    "TIMEOUT",
    "Member",
    "ProcessDiedError",
    "ProcessesError",
    "by_torchrun",
    "check_rows",
    "process_count",
    "run_together",
]
