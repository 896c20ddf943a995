"""A real loop while the computer's clock is turned on by a day and back by an hour.

The clock is that of every process of the loop, by a library that is loaded before all others
(``clock.c``): the computer's own is left alone.
"""

from __future__ import annotations

import json
import mmap
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import DagsterRunStatus

from ringrift_pipeline.orchestration.decisions import read_decision
from ringrift_pipeline.orchestration.instance import open_instance
from ringrift_pipeline.orchestration.places import services_folder
from ringrift_pipeline.store import Store

from . import stages
from .supervising import all_gone, loop

HOUR, DAY = 3_600, 86_400


class Clock:
    """``turn(seconds)``: from now on the clock is that far from the right time."""

    def __init__(self, folder: Path) -> None:
        compiler = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
        if compiler is None or sys.platform != "linux":
            pytest.skip("the clock is turned on Linux, with a C compiler, only")
        library, self._file = folder / "clock.so", folder / "turned"
        source = Path(__file__).with_name("clock.c")
        subprocess.run(
            [compiler, "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True
        )
        self._file.write_bytes(bytes(8))
        self.variables = {
            "LD_PRELOAD": str(library),
            "RINGRIFT_TEST_CLOCK": str(self._file),
        }

    def turn(self, seconds: int) -> None:
        with open(self._file, "r+b") as file, mmap.mmap(file.fileno(), 8) as place:
            place[:] = struct.pack("q", seconds)


@pytest.fixture
def clock(tmp_path: Path) -> Iterator[Clock]:
    made = Clock(tmp_path)
    made.turn(HOUR)
    says = "import time, datetime; print(time.time(), datetime.datetime.now().timestamp())"
    command = [sys.executable, "-c", says]
    found = subprocess.run(command, env=made.variables, capture_output=True, text=True, check=True)
    right = subprocess.run(command, capture_output=True, text=True, check=True)
    for turned, not_turned in zip(found.stdout.split(), right.stdout.split(), strict=True):
        assert HOUR - 60 < float(turned) - float(not_turned) < HOUR + 60
    made.turn(0)
    yield made


def test_a_loop_whose_clock_is_turned_comes_to_its_end(clock: Clock, tmp_path: Path) -> None:
    root = tmp_path / "data"
    config = stages.CONFIG
    command = loop(root, "--generations=2", **clock.variables)
    for step, turned in (
        ("selfplay_shards", DAY),  # on by a day: what is under way is not older for it
        ("checkpoint", DAY - HOUR),  # back by an hour
        ("evaluation", -HOUR),  # back by a day: the sensor's last look is in the future
    ):
        command.works_at(step)
        clock.turn(turned)
    command.until(lambda: read_decision(Store(root), config, 0), "decision")
    command.works_at("play")
    clock.turn(-2 * HOUR)
    assert command.end() == 0, command.told
    assert all_gone(root) == []
    summary = json.loads(command.shown)
    assert [one["generation"] for one in summary["generations"]] == [0, 1]
    store = Store(root)
    for generation in (0, 1):
        assert read_decision(store, config, generation) is not None
        for kind in store.kinds(config, generation):
            newest = store.artefacts(config, generation, kind)[-1]
            assert store.require(config, generation, kind) == newest
    with open_instance(root) as instance:
        statuses = [run.status for run in instance.get_runs()]
        assert statuses == [DagsterRunStatus.SUCCESS] * 2
    log = (services_folder(root) / "daemon.log").read_text()
    assert "the clock was turned back" in log
