"""How long-running steps report progress, are asked to stop, and say that a process of theirs is lost."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

Progress = Callable[[int, int, str], None]
"""``progress(done, total, message)``; ``done`` and ``total`` in the unit the step counts."""

ShouldStop = Callable[[], bool]
"""``should_stop()``, polled at least once a second while a step works."""


class Interrupted(RuntimeError):
    """A step was asked to stop and did; what it had finished before is on disk.

    The message says what is left and how to go on.
    """


class WorkerDiedError(RuntimeError):
    """A process of several ended before its work did, or hung and was killed: the same may well succeed."""


class Reporter:
    """Forwards progress at most every ``interval`` seconds (and always the last one).

    Parameters
    ----------
    progress:
        The caller's callback, or None.
    should_stop:
        The caller's callback, or None.
    interval:
        Seconds between two reports.

    Attributes
    ----------
    positions:
        Positions recorded so far, where the work makes some.
    """

    def __init__(
        self,
        progress: Progress | None = None,
        should_stop: ShouldStop | None = None,
        interval: float = 0.5,
    ) -> None:
        self._progress = progress
        self._should_stop = should_stop
        self._interval = interval
        self._last = -float("inf")
        self.started = monotonic()
        self.positions = 0

    @property
    def seconds(self) -> float:
        """Seconds since this reporter was made, never zero."""
        return max(monotonic() - self.started, 1e-9)

    def report(self, done: int, total: int, message: str) -> None:
        """Pass the state of the work on, unless that was done a moment ago."""
        if self._progress is None:
            return
        now = monotonic()
        if done >= total or now - self._last >= self._interval:
            self._last = now
            self._progress(done, total, message)

    def check(self, what: str) -> None:
        """Raise :class:`Interrupted` with the text ``what`` if a stop was asked for."""
        if self._should_stop is not None and self._should_stop():
            raise Interrupted(what)
