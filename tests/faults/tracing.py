"""File events of a command: what it does to a folder, call by call, and what becomes of it when one
of them is spoilt. The work is done by ``tracer.c``, which sees the system calls themselves.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import platform
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import ringrift_pipeline

SOURCE = Path(__file__).with_name("tracer.c")
KILLED = 137
PATIENCE = 600.0  # seconds that a stage, or the compiling of the kernels, may take


@dataclass(frozen=True)
class Event:
    """One system call that may have changed something below the folder.

    Attributes:
        number: from 1, in the order in which the calls were begun.
        thread: which made it.
        name: ``open`` (that makes or empties a file), ``write``, ``rename``, ``fsync``, …
        result: what it returned; negative ``errno``; None if the command was killed before.
        inode: device and number of the file, "" where unknown.
        offset, length: of a write; length also of ``truncate`` and, 0, of an ``open`` that empties
            its file; offset of a ``fallocate`` the size that its file has at least then; -1 where
            there is none.
        place: where its bytes are in the recorded data, -1 where there are none; of a file that was
            mapped, all of them when it is synced.
        path, second: absolute, second for ``rename`` and ``link``.
    """

    number: int
    thread: int
    name: str
    result: int | None
    inode: str
    offset: int
    length: int
    place: int
    path: str
    second: str


@dataclass(frozen=True)
class Traced:
    """A traced run: exit status (137 when killed), its events in order of ending, bytes written."""

    status: int
    events: list[Event]
    data: bytes
    errors: str


@functools.cache
def tracer() -> Path:
    """The compiled tracer; skips the test where it cannot work."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("system calls are traced on Linux, x86_64, only")
    compiler = next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
    if compiler is None:
        pytest.skip("no C compiler here to build the tracer with")
    folder = Path(tempfile.mkdtemp(prefix="ringrift-tracer-"))
    program = folder / "tracer"
    subprocess.run([compiler, "-O2", "-o", program, SOURCE], check=True)
    done = subprocess.run([program, folder, "-", "-", "none", "0", "--", "true"], check=False)
    if done.returncode != 0:
        pytest.skip("this machine does not let a process trace its child")
    return program


@functools.cache
def call_filter() -> str:
    """The tracer's seccomp filter, in hexadecimal."""
    done = subprocess.run([tracer(), "--filter"], check=True, capture_output=True, text=True)
    return done.stdout


class Zygote:
    """Forks of a process that has everything loaded (``zygote.py``), to work below ``folder``."""

    def __init__(self, folder: Path, works: str = "stages") -> None:
        self.log = folder / "stage.log"
        self._said = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "faults.zygote", works],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "POLARS_MAX_THREADS": "1",
                "PYTHONPATH": str(Path(ringrift_pipeline.__file__).parents[1]),
            },
        )
        while self._answer() != "ready":  # the kernels' compiling is told of first
            pass

    def run(self, root: Path, stage: str, generation: int) -> int:
        """Do a stage; its exit status."""
        self._ask(root, stage, generation, stopped=False)
        self._answer()
        return int(self._answer())

    def traced(
        self, root: Path, stage: str, generation: int, mode: str = "none", number: int = 0,
        error: int = errno.ENOSPC, data: bool = False, watched: Path | None = None,
    ) -> Traced:  # fmt: skip
        """Do a stage as :func:`traced` runs a command; of what it does below ``watched``, if given."""
        self._ask(root, stage, generation, stopped=True)
        process = self._answer()
        try:
            found = traced([f"@{process}"], watched or root, mode, number, error, data)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)
            raise
        finally:
            self._answer()
        return replace(found, errors=self.log.read_text())

    def killed_after(self, root: Path, stage: str, generation: int, seconds: float) -> int:
        """Do a stage and kill it, and all it has started, after some seconds; its status."""
        self._ask(root, stage, generation, stopped=False)
        process = int(self._answer())
        self._hears(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
        return int(self._answer())

    def worker_killed(
        self, root: Path, stage: str, generation: int, rng: random.Random
    ) -> tuple[int, bool]:
        """Do a stage and kill one of the workers that it starts, some moment after all are there.

        Returns its status, and whether one was killed.
        """
        self._ask(root, stage, generation, stopped=False)
        process, seconds = int(self._answer()), rng.uniform(0.0, 6.0)
        killed = False
        while not killed and not self._hears(0.05):
            workers = workers_of(process)
            if len(workers) < 2 or self._hears(seconds):
                continue
            if workers := workers_of(process):
                os.kill(rng.choice(workers), signal.SIGKILL)
                killed = True
        return int(self._answer()), killed

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    def _ask(self, root: Path, stage: str, generation: int, stopped: bool) -> None:
        wish = {
            "root": str(root),
            "stage": stage,
            "generation": generation,
            "filter": call_filter() if stopped else "",
            "log": str(self.log),
        }
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(wish).encode() + b"\n")

    def _answer(self) -> str:
        while b"\n" not in self._said:
            assert self._hears(PATIENCE), f"the zygote does not answer for {PATIENCE:.0f} s"
        line, _, self._said = self._said.partition(b"\n")
        return line.decode().strip()

    def _hears(self, seconds: float) -> bool:
        """Whether the zygote says something within some seconds, or has said it already."""
        assert self.process.stdout is not None
        if b"\n" in self._said:
            return True
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            return False
        said = os.read(self.process.stdout.fileno(), 4096)
        assert said, "the zygote has died"
        self._said += said
        return True


def workers_of(process: int) -> list[int]:
    """Workers that a process has started with ``multiprocessing``, in the order of their ids."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process and "spawn_main" in (entry / "cmdline").read_text():
                found.append(int(entry.name))
    return sorted(found)


def traced(
    command: Sequence[str | Path],
    root: Path,
    mode: str = "none",
    number: int = 0,
    error: int = errno.ENOSPC,
    data: bool = False,
    environment: dict[str, str] | None = None,
    timeout: float = 600.0,
) -> Traced:
    """Run ``command`` and spoil event ``number`` of those below ``root``; modes as in the tracer."""
    with tempfile.TemporaryDirectory(prefix="ringrift-trace-") as folder:
        lines, kept = Path(folder) / "trace", Path(folder) / "data"
        done = subprocess.run(
            [
                tracer(),
                root.resolve(),
                lines,
                kept if data else "-",
                mode,
                str(number),
                str(error),
                "--",
                *command,
            ],
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **(environment or {})},
        )
        assert done.returncode != 125, done.stderr
        events = [_event(line) for line in lines.read_text().splitlines() if line[:3] != "end"]
        return Traced(done.returncode, events, kept.read_bytes() if data else b"", done.stderr)


def _event(line: str) -> Event:
    number, thread, name, result, inode, offset, length, place, path, second = line.split("\t")
    return Event(
        int(number),
        int(thread),
        name,
        None if result == "killed" else int(result),
        "" if inode == "-" else inode,
        int(offset),
        int(length),
        int(place),
        "" if path == "-" else path,
        "" if second == "-" else second,
    )
