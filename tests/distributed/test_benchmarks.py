"""The benchmarks of workers still run: they reach into what they measure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.services

ROOT = Path(__file__).resolve().parents[2]


def test_the_benchmark_of_workers_measures_all_that_it_names() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "workers.py")]
    command += ["--workers", "1", "--steps", "1", "--seconds", "0.1"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    claims = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    names = " ".join(one["claim"] for one in claims)
    for part in ("10000 that wait", "run's process", "PostgreSQL", "Redis", "idle worker"):
        assert part in names, names
    assert all(one["value"] > 0 for one in claims if "events" not in one["claim"])
