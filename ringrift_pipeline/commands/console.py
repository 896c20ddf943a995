"""What people see while something runs: bars on a terminal, a line every ten seconds elsewhere.

All of it goes to standard error; standard output has results only.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

FILE_WIDTH = 170  # characters
LINE_INTERVAL = 10.0  # seconds between two lines where there is no terminal

errors = Console(stderr=True, highlight=False, soft_wrap=True)
output = Console(highlight=False)
if not output.is_terminal:
    output.width = FILE_WIDTH  # a file or a pipe has no edge: keep tables whole


def say(text: str) -> None:
    """A line for people, on standard error."""
    errors.print(text, markup=False)


def plain(text: str) -> str:
    """A line of text that anybody may have chosen, without what a terminal would obey."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def print_json(value: Any) -> None:
    """The result, on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
    sys.stdout.flush()


def clock(seconds: float) -> str:
    """75 -> ``1:15``; 3725 -> ``1:02:05``."""
    minutes, rest = divmod(max(0, int(seconds)), 60)  # the clock may have been turned back
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def shown(value: float | None, form: str) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else format(value, form)


def interval(value: float | None, low: float | None, high: float | None, form: str) -> str:
    """``1236 (1166 to 1305)``."""
    if value is None:
        return "–"
    return f"{shown(value, form)} ({shown(low, form)} to {shown(high, form)})"


class Every:
    """True at the first call and then once an interval."""

    def __init__(self, seconds: float = LINE_INTERVAL) -> None:
        self._seconds = seconds
        self._next = -float("inf")

    def __call__(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True


class _Lines:
    def __init__(self, title: str) -> None:
        self._title = title
        self._due = Every()
        self._began = time.monotonic()

    def __call__(self, done: int, total: int, message: str = "") -> None:
        if self._due() or done == total:
            elapsed = clock(time.monotonic() - self._began)
            say(f"[{elapsed}] {self._title}: {message or f'{done} of {total}'}")


class _Bar:
    def __init__(self, bars: Progress, title: str) -> None:
        self._bars = bars
        self._task = bars.add_task(title, total=None, note="")

    def __call__(self, done: int, total: int, message: str = "") -> None:
        self._bars.update(self._task, completed=done, total=total or None, note=message)


@contextmanager
def progress(title: str) -> Iterator[Any]:
    """``with progress("selfplay") as report: report(done, total, message)``."""
    if not errors.is_terminal:
        yield _Lines(title)
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=errors,
    ) as bars:
        yield _Bar(bars, title)
