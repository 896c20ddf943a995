"""Real commands under a supervisor that asks, waits, and kills."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ringrift_pipeline.orchestration.places import progress_folder

PATIENCE = 600.0  # seconds for what takes some on a machine that has nothing else to do

TINY = [
    "--preset=smoke",
    "--generations=1",
    "--device=cpu",
    "--set=selfplay.games=8",
    "--set=selfplay.games_per_shard=4",
    "--set=search.simulations=4",
    "--set=search.cheap_simulations=2",
    "--set=network.blocks=1",
    "--set=network.channels=8",
    "--set=training.max_steps=3",
    "--set=training.holdout_fraction=0.3",
    "--set=calibration.min_games=2",
    "--set=calibration.bootstrap=20",
    "--set=evaluation.games=4",
    "--set=evaluation.max_games=4",
    "--set=evaluation.simulations=2",
]


LAUNCH = """
mutation ($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
  }
}
"""


def answered(port: int, query: str, **variables: Any) -> dict[str, Any]:
    """What the web server on this port says of the one field that a GraphQL query has."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql",
        json.dumps({"query": query, "variables": variables}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as page:
        told = json.load(page)
    assert not told.get("errors"), told
    (answer,) = told["data"].values()
    return dict(answer)


def launched(port: int, parameters: dict[str, Any]) -> str:
    """Launch a run over HTTP, as the launchpad of the web server on this port does; its id."""
    answer = answered(port, LAUNCH, params=parameters)
    assert answer["__typename"] == "LaunchRunSuccess", answer
    return str(answer["run"]["runId"])


class Command:
    """``ringrift …`` in a process; what it says on standard error is kept as it comes."""

    def __init__(self, root: Path, verb: str, *more: str, **variables: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
        environment.pop("RINGRIFT_DATA", None)
        self.root = root
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ringrift_pipeline", verb, "--data", str(root), *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.shown = ""
        self._readers = [threading.Thread(target=self._read), threading.Thread(target=self._hear)]
        for reader in self._readers:
            reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.shown = self.process.stdout.read()

    def _hear(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(self.process.stderr)

    @property
    def told(self) -> str:
        return "".join(self.lines)

    def says(self, text: str) -> None:
        """Until it has said that."""
        self.until(lambda: text in self.told, f"{text!r}")

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if found := condition():
                return found
            assert self.process.poll() is None, f"it ended before {what}:\n{self.told}"
            time.sleep(0.02)
        raise AssertionError(f"no {what}:\n{self.told}")

    def works_at(self, *steps: str) -> None:
        """Until a step of one of these names is under way."""
        folder = progress_folder(self.root)
        self.until(
            lambda: any(step in path.name for path in folder.glob("*/*.json") for step in steps),
            f"step {steps}",
        )

    def ask(self, number: int = signal.SIGTERM, everybody: bool = False) -> None:
        """Send a signal to it, or also to all that it has started, as the end of a container does."""
        for pid in descendants(self.process.pid) if everybody else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def end(self, deadline: float = PATIENCE) -> int:
        """Its exit code; -9 if it had to be killed, with all it had started, at the deadline."""
        try:
            self.process.wait(timeout=deadline)
        except subprocess.TimeoutExpired:
            self.ask(signal.SIGKILL, everybody=True)
        code = self.process.wait()
        for reader in self._readers:
            reader.join(timeout=30.0)
        return code


def descendants(pid: int) -> list[int]:
    """Process ids of all that a process has started, and they."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found, left = [], [pid]
    while left:
        below = children.get(left.pop(), [])
        found += below
        left += below
    return found


def processes_of(data: Path) -> list[str]:
    """Command lines of the processes that work on a data root, whoever started them."""
    wanted = f"RINGRIFT_DATA={data}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append((entry / "cmdline").read_text().replace("\0", " "))
    return found


def all_gone(data: Path, seconds: float = 60.0) -> list[str]:
    """What still works on a data root after some seconds at most."""
    end = time.monotonic() + seconds
    while (left := processes_of(data)) and time.monotonic() < end:
        time.sleep(0.1)
    return left


def loop(root: Path, *more: str, **variables: str) -> Command:
    return Command(root, "loop", "--json", *TINY, *more, **variables)


def verb(root: Path, name: str, *more: str) -> Command:
    """``ringrift selfplay``, ``train`` or ``evaluate`` of generation 1."""
    return Command(root, name, "--json", "--generation=1", *more)
