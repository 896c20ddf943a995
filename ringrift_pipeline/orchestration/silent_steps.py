"""Steps that hang: whoever runs the daemon kills them, and Dagster does them again.

Only from outside can one be seen that was stopped, or hangs in code that lets no other thread of its
process run. A step says in its progress file how long it may be silent, if it tells regularly at all.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from ringrift_pipeline.orchestration.places import progress_folder
from ringrift_pipeline.orchestration.progress import StepProgress, read_progress

# Seconds at most that count between two looks: a computer at rest is no reason to kill.
STRIDE = 5.0


class SilentSteps:
    """The steps of one data root.

    Args:
        group: process group of the code server, in which all steps are: a process of another one
            has only inherited the number of a step that is gone.
    """

    def __init__(self, data: Path, group: int) -> None:
        self._data = data
        self._group = group
        self._looked = time.monotonic()
        self._silent: dict[tuple[str, str, int], tuple[float, float]] = {}

    def look(
        self, tell: Callable[[StepProgress], object] = lambda step: None
    ) -> list[StepProgress]:
        """Kill those that have been silent for too long, and return them. Call it often.

        Args:
            tell: called with each before it is killed.
        """
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, STRIDE), now
        before, self._silent = self._silent, {}
        killed = []
        for run in progress_folder(self._data).glob("*"):
            for step in read_progress(self._data, run.name):
                if step.silence is None:
                    continue
                which = (step.run_id, step.step, step.pid)
                updated, silent = before.get(which, (step.updated, 0.0))
                silent = silent + passed if updated == step.updated else 0.0
                self._silent[which] = (step.updated, silent)
                if silent > step.silence and self._is_step(step.pid):
                    tell(step)
                    if self._kill(step.pid):
                        del self._silent[which]
                        killed.append(step)
        return killed

    def _is_step(self, pid: int) -> bool:
        with contextlib.suppress(ProcessLookupError):
            return os.getpgid(pid) == self._group
        return False

    def _kill(self, pid: int) -> bool:
        with contextlib.suppress(ProcessLookupError):
            if self._is_step(pid):
                os.kill(pid, signal.SIGKILL)
                return True
        return False
