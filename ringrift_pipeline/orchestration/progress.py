"""How far a running step is: one small JSON file per step, replaced in place, gone with it.

The step's process writes it, the command line reads it. Of a step on another machine the process of
its run writes it, from what the worker tells. Nothing depends on it, so it is not
fsynced and lies outside the artefacts. Every ten seconds the run's own log gets a line as well,
which is what the UI shows.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ringrift_pipeline.orchestration import remote
from ringrift_pipeline.orchestration.places import one_part, progress_folder
from ringrift_pipeline.store import read_bounded

INTERVAL = 0.5  # seconds between two writes
LARGEST = 1 << 20  # bytes of a progress file
TELL_INTERVAL = 10.0  # seconds between two lines in the run's log


@dataclass(frozen=True)
class StepProgress:
    """The content of a progress file. Times are seconds since the epoch.

    ``silence`` is how long the step may tell nothing before it is taken for hung, None: for ever.
    """

    run_id: str
    step: str
    config: str
    generation: str
    done: int
    total: int
    message: str
    started: float
    updated: float
    pid: int
    silence: float | None = None


class ProgressFile:
    """Callable as the rooms' ``progress(done, total, message)``; thread-safe; use in a ``with``.

    ``tell`` takes a line for people now and then; what it raises is not the step's business.
    """

    def __init__(
        self,
        data: Path,
        run_id: str,
        step: str,
        config: str,
        generation: str,
        tell: Callable[[str], object] | None = None,
        silence: float | None = None,
    ) -> None:
        self.path = _path(data, run_id, step)
        self._identity = {
            "run_id": run_id,
            "step": step,
            "config": config,
            "generation": generation,
        }
        self._started = time.time()
        self._silence = silence
        self._last = 0.0
        self._tell = tell
        self._told = time.monotonic()
        self._lock = threading.Lock()

    def __enter__(self) -> ProgressFile:
        self._write(0, 0, "starting")
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.remove()

    def remove(self) -> None:
        """The file goes, whoever holds the lock."""
        if remote.current() is None:
            _remove(self.path)

    def __call__(self, done: int, total: int, message: str = "") -> None:
        now = time.monotonic()
        with self._lock:
            if now - self._last < INTERVAL and done != total:
                return
            self._last = now
            self._write(done, total, message)
            if self._tell is None or now - self._told < TELL_INTERVAL:
                return
            self._told = now
        with contextlib.suppress(Exception):  # a database busy for a moment must not fail a step
            self._tell(describe(done, total, message))

    def _write(self, done: int, total: int, message: str) -> None:
        state = StepProgress(
            **self._identity,
            done=int(done),
            total=int(total),
            message=str(message),
            started=self._started,
            updated=time.time(),
            pid=os.getpid(),
            silence=self._silence,
        )
        if (step := remote.current()) is not None:
            step.progress = state  # its number and its disk are another machine's
        else:
            _write(self.path, state)


def _write(path: Path, state: StepProgress) -> None:
    temporary = path.with_suffix(".tmp")
    with contextlib.suppress(OSError):  # progress must never fail a step
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(asdict(state)), encoding="utf-8")
        temporary.replace(path)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
        path.parent.rmdir()  # the last step of the run takes the folder with it


def _path(data: Path, run_id: str, step: str) -> Path:
    return progress_folder(data, run_id) / f"{one_part(step)}.json"


def note_progress(data: Path, told: StepProgress, worker: str) -> None:
    """Keep what a step on another machine has told, for those who read it here. Its process is
    nobody's here, and nobody's to kill.
    """
    message = ", ".join(part for part in (told.message, f"on {worker}") if part)
    _write(_path(data, told.run_id, told.step), replace(told, message=message, pid=0, silence=None))


def forget_progress(data: Path, run_id: str, step: str) -> None:
    """The step on another machine has ended."""
    _remove(_path(data, run_id, step))


def describe(done: int, total: int, message: str = "") -> str:
    """``40 of 100: 40/100 games, 3.1 games/s``; what is not known is left out."""
    counted = f"{done} of {total}" if total else ""
    return ": ".join(part for part in (counted, message) if part) or "working"


def read_progress(data: Path, run_id: str) -> list[StepProgress]:
    """The running steps of a run, in the order in which they began."""
    found = []
    for path in progress_folder(data, run_id).glob("*.json"):
        with contextlib.suppress(OSError, ValueError):  # gone or half-known: not running
            found.append(parse_progress(read_bounded(path, LARGEST)))
    return sorted(found, key=lambda state: (state.started, state.step))


def parse_progress(data: bytes) -> StepProgress:
    """The content of a progress file. Raises ValueError for anything else: who watches the steps
    must not fail over what lies there.
    """
    try:
        state = StepProgress(**json.loads(data))
    except (TypeError, RecursionError) as error:
        raise ValueError(f"no progress: {error}") from None
    texts = (state.run_id, state.step, state.config, state.generation, state.message)
    counts = (state.done, state.total, state.pid)
    times = (state.started, state.updated, *(() if state.silence is None else (state.silence,)))
    if not (
        all(isinstance(text, str) for text in texts)
        and all(type(count) is int and abs(count) < 1 << 62 for count in counts)
        and 0 <= state.pid < 1 << 31
        and all(type(moment) in (int, float) and abs(moment) < 1e12 for moment in times)
    ):
        raise ValueError("no progress: a value is not of its kind")
    return state


Progress = Callable[[int, int, str], None]
