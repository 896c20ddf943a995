"""The engine on pipes: lines in on one, answers out on the other, until the end of either."""

from __future__ import annotations

import contextlib
import enum
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from ringrift_pipeline.analysis.engine import Engine
from ringrift_pipeline.analysis.limits import MAX_LINE, MAX_WAITING
from ringrift_pipeline.analysis.protocol import QueryError, too_long

#: Lines that may be read ahead of the engine.
_AHEAD = 64
#: Lines taken between two moments of work.
_AT_ONCE = 256


class Ending(enum.Enum):
    """Why serving ended."""

    END_OF_INPUT = "end of input"
    STOPPED = "stopped"  # SIGINT
    NOBODY_READS = "nobody reads the answers"


class _Lines:
    """Lines of a stream, read by a thread of its own, at most ``_AHEAD`` of them ahead."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        # SimpleQueue may be put to by a signal handler; the semaphore bounds it.
        self._queue: queue.SimpleQueue[bytes | QueryError | None] = queue.SimpleQueue()
        self._ahead = threading.Semaphore(_AHEAD)
        threading.Thread(target=self._read, name="analysis input", daemon=True).start()

    def _read(self) -> None:
        try:
            while line := self._stream.readline(MAX_LINE + 1):
                whole = len(line) <= MAX_LINE or line.endswith(b"\n")  # its end does not count
                end = whole
                while not end:
                    more = self._stream.readline(1 << 16)
                    end = not more or more.endswith(b"\n")
                self._ahead.acquire()
                self._queue.put(line if whole else too_long())
        except (OSError, ValueError):  # the stream was closed
            pass
        self._queue.put(None)

    def take(self, wait: bool) -> bytes | QueryError | None:
        """The next line, what was wrong with it, or None at the end (or after `wake`).

        Raises ``queue.Empty`` where there is none yet and ``wait`` is False.
        """
        item = self._queue.get(block=wait)
        if item is not None:
            self._ahead.release()
        return item

    def wake(self) -> None:
        """Let a waiting `take` return None. May be called by a signal handler."""
        self._queue.put(None)


def serve(
    engine_for: Callable[[Callable[[dict[str, Any]], None]], Engine],
    lines: BinaryIO,
    answers: int,
    *,
    wait: bool = True,
) -> Ending:
    """Serve queries from ``lines`` until it ends; for the main thread.

    SIGINT ends it after the moment of work that is under way; no line is left half written.
    While ``MAX_WAITING`` positions wait, no line is read.

    Args:
        engine_for: makes the engine, given where its answers go.
        lines: one query a line.
        answers: file descriptor; every answer is one line of JSON, written at once.
        wait: at the end of input, answer what still waits (else drop it).
    """
    try:
        engine = engine_for(lambda told: _write(answers, told))
        source = _Lines(lines)
        with _interrupts(source.wake) as stopped:
            return _serve(engine, source, stopped, wait)
    except BrokenPipeError:
        return Ending.NOBODY_READS


def _serve(engine: Engine, source: _Lines, stopped: threading.Event, wait: bool) -> Ending:
    ended = False
    while not stopped.is_set():
        for _ in range(_AT_ONCE):
            if ended or engine.waiting >= MAX_WAITING:
                break
            try:
                line = source.take(wait=not engine.waiting)
            except queue.Empty:
                break
            if line is None:
                ended = True
            elif isinstance(line, QueryError):
                engine.refuse(line)
            else:
                engine.receive(line)
            if stopped.is_set():
                return Ending.STOPPED
        if ended and not (wait and engine.waiting):
            return Ending.END_OF_INPUT
        engine.step()
    return Ending.STOPPED


@contextlib.contextmanager
def _interrupts(wake: Callable[[], None]) -> Iterator[threading.Event]:
    """SIGINT sets the event the first time and interrupts as usual the second."""
    stopped = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def stop(number: int, frame: Any) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, before)
        wake()

    signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def _write(descriptor: int, told: dict[str, Any]) -> None:
    """Write one answer as a line, whole. Raises BrokenPipeError where nobody reads."""
    text = json.dumps(told, separators=(",", ":"), allow_nan=False) + "\n"
    rest = memoryview(text.encode("ascii"))
    while rest:
        rest = rest[os.write(descriptor, rest) :]


@contextlib.contextmanager
def claimed_stdout() -> Iterator[int]:
    """A descriptor of standard output for answers; all else that is printed goes to stderr."""
    sys.stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield own
    finally:
        os.dup2(own, 1)
        os.close(own)
