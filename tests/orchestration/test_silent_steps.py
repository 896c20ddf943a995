"""A step that hangs is killed by whoever runs the daemon; no other process is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ringrift_pipeline.orchestration import silent_steps
from ringrift_pipeline.orchestration.places import progress_folder
from ringrift_pipeline.orchestration.silent_steps import SilentSteps

STEP = """
import sys, time
from pathlib import Path
from ringrift_pipeline.orchestration import progress

progress.INTERVAL = 0.0
silence = float(sys.argv[3]) or None
place = (Path(sys.argv[1]), "run", sys.argv[2], "square8_2p", "0000")
with progress.ProgressFile(*place, None, silence) as told:
    print("working", flush=True)
    while True:
        time.sleep(0.05)
        if sys.argv[2] == "telling":
            told(1, 10)
"""


@contextmanager
def step(data: Path, name: str, silence: float) -> Iterator[subprocess.Popen[str]]:
    """A process that behaves like a step, in a process group of its own."""
    command = [sys.executable, "-c", STEP, str(data), name, str(silence)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "working\n"
            yield process
        finally:
            process.kill()


def look_for(steps: SilentSteps, seconds: float) -> list[str]:
    killed: list[str] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end and not killed:
        killed = [one.step for one in steps.look()]
        time.sleep(0.02)
    return killed


def test_a_step_that_was_stopped_is_killed(data: Path) -> None:
    with step(data, "telling", silence=1.0) as process:
        steps = SilentSteps(data, os.getpgid(process.pid))
        assert look_for(steps, 2.0) == []  # it tells how far it is
        process.send_signal(signal.SIGSTOP)
        assert look_for(steps, 60.0) == ["telling"]
        assert process.wait(timeout=60) == -signal.SIGKILL


def test_who_promised_nothing_and_who_only_has_a_steps_number_live(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silent_steps, "STRIDE", 0.05)
    with step(data, "quiet", silence=0.0) as quiet, step(data, "other", silence=0.2) as other:
        assert look_for(SilentSteps(data, os.getpgid(quiet.pid)), 1.0) == []
        assert quiet.poll() is None and other.poll() is None
        steps = SilentSteps(data, os.getpgid(other.pid))
        steps.look()
        time.sleep(0.5)
        assert steps.look() == []  # as after a night's rest: looks count, not the time between
        assert look_for(steps, 60.0) == ["other"]
        assert other.wait(timeout=60) == -signal.SIGKILL
        path = next(progress_folder(data, "run").glob("other*"))
        path.write_text(json.dumps(json.loads(path.read_text()) | {"pid": quiet.pid}))
        assert look_for(steps, 1.0) == []
        assert quiet.poll() is None
