"""How far a running step is: one small JSON file per step, replaced in place, gone with it.

The step's process writes it, the command line reads it. Nothing depends on it, so it is not
fsynced and lies outside the artefacts.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ringrift_pipeline.orchestration.places import progress_folder

INTERVAL = 0.5  # seconds between two writes


@dataclass(frozen=True)
class StepProgress:
    """The content of a progress file. Times are seconds since the epoch."""

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


class ProgressFile:
    """Callable as the rooms' ``progress(done, total, message)``; thread-safe; use in a ``with``."""

    def __init__(self, data: Path, run_id: str, step: str, config: str, generation: str) -> None:
        name = re.sub(r"[^\w.-]", "_", step)
        self.path = progress_folder(data, run_id) / f"{name}.json"
        self._identity = {
            "run_id": run_id,
            "step": step,
            "config": config,
            "generation": generation,
        }
        self._started = time.time()
        self._last = 0.0
        self._lock = threading.Lock()

    def __enter__(self) -> ProgressFile:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._write(0, 0, "starting")
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.path.parent.rmdir()  # the last step of the run takes the folder with it

    def __call__(self, done: int, total: int, message: str = "") -> None:
        now = time.monotonic()
        with self._lock:
            if now - self._last < INTERVAL and done != total:
                return
            self._last = now
            self._write(done, total, message)

    def _write(self, done: int, total: int, message: str) -> None:
        state = StepProgress(
            **self._identity,
            done=int(done),
            total=int(total),
            message=str(message),
            started=self._started,
            updated=time.time(),
            pid=os.getpid(),
        )
        temporary = self.path.with_suffix(".tmp")
        with contextlib.suppress(OSError):  # progress must never fail a step
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(asdict(state)), encoding="utf-8")
            temporary.replace(self.path)


def read_progress(data: Path, run_id: str) -> list[StepProgress]:
    """The running steps of a run, in the order in which they began."""
    found = []
    for path in progress_folder(data, run_id).glob("*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError):  # gone or half-known: not running
            state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            found.append(StepProgress(**state))
    return sorted(found, key=lambda state: (state.started, state.step))


Progress = Callable[[int, int, str], None]
