"""``benchmarks/many_generations.py`` makes a history and measures it, to its end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEASURED = {  # of each size; and the pages
    "making a generation",
    "status",
    "rating list",
    "start of a loop: tidying up",
    "survey of retention",
    "plan of the next generation",
    "tick: config_stalled",
    "tick: run_failed",
    "tick: evaluation_landed",
    "tick: evaluation_landed, an evaluation to decide on",
    "longest text or picture of an event",
    "Dagster's history a generation",
}
PAGES = 8


@pytest.mark.whole
def test_a_history_is_made_and_measured_at_each_size(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "many_generations.py"),
        "--folder",
        tmp_path,
    ]
    done = subprocess.run(
        [*command, "--generations", "3", "6"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, set[str]] = {"3": set(), "6": set()}
    for line in done.stdout.splitlines():
        claim = json.loads(line)
        size, _, what = claim["claim"].removeprefix("many generations: ").partition(", ")
        found[size].add(what)
        assert claim["value"] >= 0
    for measured in found.values():
        assert {what for what in measured if not what.startswith("page: ")} == MEASURED
        assert sum(what.startswith("page: ") for what in measured) == PAGES
    assert not [*tmp_path.iterdir()]  # it tidies up
