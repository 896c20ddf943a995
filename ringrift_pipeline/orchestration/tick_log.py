"""What a sensor logs, tick by tick: nothing again that its last tick had to log as well.

Whoever takes ``context.log`` makes Dagster open a file for that tick, which stays for weeks; a sensor
that waits for somebody ticks 17,000 times a day. The process remembers what it logged: one that is
started anew logs it once more.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from dagster import SensorEvaluationContext

from ringrift_pipeline.store import BucketError
from ringrift_pipeline.store.atomic import TEMPORARY

_TEMPORARY = re.compile(re.escape(TEMPORARY) + r"[\w.-]*")
_last: dict[tuple[Path, str], frozenset[str]] = {}  # by data root and sensor, of its last tick


def mark_of(error: Exception) -> str:
    """What stays the same of an error: how long a bucket was waited for is another time in every tick,
    and a temporary file has another name.
    """
    name = type(error).__name__
    if isinstance(error, BucketError):
        return f"{name} {error.bucket}"
    return f"{name}: {_TEMPORARY.sub(TEMPORARY, str(error))}"


class TickLog:
    """The log of one tick of a sensor on a data root, as a context manager.

    Args:
        sensor: its name.
    """

    def __init__(self, context: SensorEvaluationContext, data: Path, sensor: str) -> None:
        self._context = context
        self._place = (data, sensor)
        self._before = _last.get(self._place, frozenset())
        self._now: set[str] = set()

    def info(self, text: str, mark: str = "") -> None:
        """Log a line, unless the last tick had it. ``mark``: what stays the same of it, if not all."""
        self._log(logging.INFO, text, mark or text)

    def error(self, text: str, mark: str = "") -> None:
        """As `info`, of what went wrong."""
        self._log(logging.ERROR, text, mark or text)

    def _log(self, level: int, text: str, mark: str) -> None:
        if mark not in self._before | self._now:
            self._context.log.log(level, text)
        self._now.add(mark)

    def __enter__(self) -> TickLog:
        return self

    def __exit__(self, *_: object) -> None:
        _last[self._place] = frozenset(self._now)
