"""A step that trains, mines or evaluates is stopped (SIGSTOP) in the midst of its work.

Whoever runs the daemon sees that it tells nothing any more and kills it; begun again, as Dagster's
policy `LOST` does it, it makes what it would have made.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import ringrift_pipeline
from ringrift_pipeline.orchestration.silent_steps import SilentSteps

from .conftest import NOW
from .outcomes import made
from .test_kills import undisturbed
from .tracing import PATIENCE, Zygote

STEP = """
import sys
from pathlib import Path

from faults import stages
from ringrift_pipeline.orchestration import progress
from ringrift_pipeline.selfplay import load_plan
from ringrift_pipeline.store import Store

progress.INTERVAL = 0.0
root, stage, generation = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
store = Store(root)
place = (root, "run", stage, stages.CONFIG, f"{generation:04d}")
with progress.ProgressFile(*place, None, 2.0) as file:

    def told(done, total, message):
        file(done, total, message)
        print("told", flush=True)
        sys.stdin.readline()  # the test says when to go on

    stages.STAGES[stage](store, load_plan(store, stages.CONFIG, generation), progress=told)
"""


@pytest.mark.parametrize("stage", ["mine_hard_examples", "train", "evaluate"])
def test_a_stopped_step_is_killed_and_makes_the_same_when_it_is_begun_again(
    stage: str, zygote: Zygote, copy_of: Callable[[str], Path]
) -> None:
    _, wanted = undisturbed(zygote, copy_of, stage)
    root = copy_of(stage)
    command = [sys.executable, "-c", STEP, str(root), stage, str(NOW)]
    with subprocess.Popen(
        command,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONPATH": str(Path(ringrift_pipeline.__file__).parents[1])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None and process.stdin is not None
            assert process.stdout.readline()
            time.sleep(1.0)
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline()  # it tells more than once while it works
            process.send_signal(signal.SIGSTOP)
            steps = SilentSteps(root, os.getpgid(process.pid))
            end = time.monotonic() + PATIENCE
            killed: list[str] = []
            while not killed and time.monotonic() < end:
                killed = [one.step for one in steps.look()]
                time.sleep(0.05)
            assert killed == [stage]
            assert process.wait(timeout=60) == -signal.SIGKILL
        finally:
            process.kill()
    assert zygote.run(root, stage, NOW) == 0, zygote.log.read_text()
    assert made(root) == wanted
