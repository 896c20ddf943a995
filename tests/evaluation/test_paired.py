"""``benchmarks/paired.py``: which weights it asks for, and what its exit code says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "paired.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARK), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_strength_is_not_claimed_of_random_weights() -> None:
    done = run("--games", "2")
    assert done.returncode == 2
    assert "--model is missing" in done.stderr and not done.stdout


@pytest.mark.whole
def test_a_loss_that_is_shown_fails() -> None:
    """With random weights the bare policy plays better than a search that trusts their values."""
    shape = ("--quick", "--json", "--blocks", "1", "--channels", "8", "--second", "simulations=1")
    lost = run(*shape, "--first", "simulations=16")
    assert json.loads(lost.stdout)["ratio"] < 1.0, lost
    assert lost.returncode == 1
    even = run(*shape, "--first", "simulations=1")
    assert json.loads(even.stdout)["value"] == 0.5
    assert even.returncode == 0
