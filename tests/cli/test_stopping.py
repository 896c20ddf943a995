"""Ctrl-C and SIGTERM, once and twice, on a process that saves."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ringrift_pipeline.store import Store
from ringrift_pipeline.store.atomic import TEMPORARY

CONFIG = "square8_2p"
WORK = """
import sys, time
from ringrift_pipeline.commands.stopping import stoppable
from ringrift_pipeline.selfplay.stopping import Interrupted
from ringrift_pipeline.store import Store

store = Store(sys.argv[1])
with store.create("square8_2p", 0, "state", {"step": 1}) as draft:
    (draft / "weights").write_bytes(b"1" * 1000)
try:
    with stoppable(lambda: store.remove_own("square8_2p")) as should_stop:
        print("working", flush=True)
        while not should_stop():
            time.sleep(0.01)
        with store.create("square8_2p", 0, "state", {"step": 2}) as draft:
            (draft / "weights").write_bytes(b"2" * 500)
            print("saving", flush=True)
            if sys.argv[2] == "slowly":
                try:
                    time.sleep(600)
                except BaseException:  # a library that drops what comes up in it
                    time.sleep(600)
            (draft / "weights").write_bytes(b"2" * 1000)
        raise Interrupted("stopped at step 2; run again to go on")
except KeyboardInterrupt:
    sys.exit(130)
"""


@contextmanager
def working(root: Path, how: str) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", WORK, str(root), how]
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        yield process
        process.kill()


def state_of(store: Store) -> tuple[int, bytes]:
    artefact = store.require(CONFIG, 0, "state")
    return artefact.metadata["step"], artefact.file("weights").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_once_it_saves_and_stops(tmp_path: Path, number: int) -> None:
    with working(tmp_path, "quickly") as process:
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopping" in told and "run again to go on" in told and "Traceback" not in told
    assert state_of(Store(tmp_path)) == (2, b"2" * 1000)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_again_in_the_midst_of_the_save_it_ends_at_once(tmp_path: Path, number: int) -> None:
    with working(tmp_path, "slowly") as process:
        process.send_signal(number)
        assert process.stdout is not None and process.stdout.readline() == "saving\n"
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped at once" in told and "Traceback" not in told
    assert state_of(Store(tmp_path)) == (1, b"1" * 1000)  # what was there is there
    assert not [*tmp_path.rglob(f"{TEMPORARY}*")]  # and nothing half written beside it
