"""Readers with little memory: a process that reads files and says what became of each.

``python -m faults.limited`` (from ``tests/``) reads lines of JSON, ``[reader, path]``, and answers each
with one: the names of the error's classes (empty where the file was accepted), what it said, and by
how many bytes the most memory that the process had at once has grown.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOM = 1 << 30  # bytes of address space beyond what is taken before the first file is read
SECONDS = 60  # of the processor that a reader may take
TESTS = Path(__file__).parent.parent
CONFIG = "square8_2p"


@dataclass(frozen=True)
class Said:
    """What became of a file."""

    kinds: tuple[str, ...]
    message: str
    grown: int


class Limited:
    """The process, until it is closed."""

    def __init__(self, log: Path) -> None:
        self.log = log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "faults.limited"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=TESTS,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])},
            )

    def read(self, cases: Iterable[tuple[str, Path]]) -> list[Said]:
        """Read every file, one after the other."""
        assert self.process.stdin is not None and self.process.stdout is not None
        found = []
        for reader, path in cases:
            self.process.stdin.write(json.dumps([reader, str(path)]) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
            assert line, f"{reader} of {path} ended the process: {self.log.read_text()[-3000:]}"
            kinds, message, grown = json.loads(line)
            found.append(Said(tuple(kinds), message, grown))
        return found

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()


def readers() -> dict[str, Callable[[Path], Any]]:
    """Every reader by name; all of them imported."""
    import torch

    from ringrift_pipeline.analysis.protocol import read_line, read_query
    from ringrift_pipeline.enhancements import TrainingConfig
    from ringrift_pipeline.evaluation.ablation_runs import TrialResult
    from ringrift_pipeline.game.replay import replay_file
    from ringrift_pipeline.network import load_model, read_model_metadata
    from ringrift_pipeline.orchestration.outbox import read_alert
    from ringrift_pipeline.orchestration.progress import read_progress
    from ringrift_pipeline.search import load_player
    from ringrift_pipeline.selfplay import load_plan
    from ringrift_pipeline.selfplay.shards import read_metadata, read_shard, shard_batches
    from ringrift_pipeline.store import Store, read_jsonl
    from ringrift_pipeline.training import HARD_EXAMPLES, QUALITY_SCORES, open_window, read_table
    from ringrift_pipeline.training.state import load_state

    torch.set_num_threads(1)
    tables = {"quality_scores": QUALITY_SCORES, "hard_examples": HARD_EXAMPLES}

    def root(path: Path) -> Store:
        return Store(next(folder for folder in path.parents if folder.name == "data"))

    def place(path: Path) -> tuple[int, str]:
        parts = path.parts[path.parts.index("generations") :]
        return int(parts[1]), parts[2]

    def all_of(path: Path) -> None:
        for _ in shard_batches(path):
            pass

    def progress(path: Path) -> None:
        if not read_progress(path.parents[3], path.parent.name):
            raise ValueError("no progress")

    return {
        "current": lambda path: root(path).require(CONFIG, *place(path)),
        "unhashed": lambda path: root(path).require(CONFIG, *place(path), verify=False),
        "open": lambda path: root(path).open(path.parent),
        "plan": lambda path: load_plan(root(path), CONFIG, place(path)[0]),
        "champion": lambda path: root(path).champion(CONFIG),
        "champions": lambda path: root(path).champions(CONFIG),
        "switches": lambda path: root(path).switches(CONFIG),
        "jsonl": read_jsonl,
        "shard": read_shard,
        "shard's batches": all_of,
        "shard's metadata": read_metadata,
        "model": lambda path: load_model(path.parent),
        "model's metadata": lambda path: read_model_metadata(path.parent),
        "player": lambda path: load_player(str(path.parent), CONFIG),
        "state": lambda path: load_state(path.parent, 1 << 20),
        "window": lambda path: open_window(path.parent),
        "table": lambda path: read_table(path, tables[path.stem]),
        "figures": lambda path: TrialResult.load(path, {}),
        "settings": lambda path: TrainingConfig.load(file=path, environ={}),
        "trace": replay_file,
        "query": lambda path: read_query(read_line(path.read_bytes())),
        "alert": read_alert,
        "progress": progress,
    }


def _peak() -> int:
    """The most memory that this process has had, bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def main() -> None:
    known = readers()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, resource.RLIM_INFINITY))
    answers = os.dup(1)
    os.dup2(2, 1)
    for wish in sys.stdin:
        reader, path = json.loads(wish)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _peak()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        kinds: list[str] = []
        message = ""
        try:
            known[reader](Path(path))
        except BaseException as error:
            kinds = [kind.__name__ for kind in type(error).__mro__]
            message = str(error)[:500]
        signal.setitimer(signal.ITIMER_PROF, 0)
        line = json.dumps([kinds, message, max(0, _peak() - before)]) + "\n"
        os.write(answers, line.encode())


if __name__ == "__main__":
    main()
