"""What the fork server of a run has loaded ahead of its steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import json, os, sys
from pathlib import Path
import ringrift_pipeline.orchestration.preload
threads = len(os.listdir("/proc/self/task")) if Path("/proc/self/task").exists() else 1
before = set(sys.modules)
from dagster import DagsterInstance, job, op
from ringrift_pipeline.orchestration.instance import open_instance

@op
def nothing(): pass

@job
def empty(): nothing()

with open_instance(Path(sys.argv[1])) as instance:
    assert empty.execute_in_process(instance=instance).success
late = sorted(set(sys.modules) - before)
import ringrift_pipeline.evaluation.gate, ringrift_pipeline.training.improvement
scipy = sorted(name for name in set(sys.modules) - before if name.startswith("scipy"))
print(json.dumps({"threads": threads, "late": late, "scipy": scipy}))
"""


@pytest.mark.slow
def test_a_step_loads_next_to_nothing_of_dagster_itself(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE, str(tmp_path / "data")],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["threads"] == 1  # none of them would be there after the fork
    assert len(found["late"]) < 100, found["late"]
    assert not found["scipy"]
