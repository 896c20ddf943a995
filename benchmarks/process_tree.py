"""The processes of a loop or a worker and what they take, from /proc (Linux)."""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from pathlib import Path

SERVICE = "ringrift_pipeline.orchestration.service"
PSS, FILES, THREADS = "memory", "open files", "threads"


def processes() -> dict[int, tuple[int, str]]:
    """Parent and command line of everything that runs, by process id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found[int(folder.name)] = (parent, line)
    return found


def family(root: int) -> dict[int, str]:
    """What the process ``root`` has started, and they: a kind by process id, "" for others."""
    known = processes()
    below = defaultdict(list)
    for pid, (parent, _) in known.items():
        below[parent].append(pid)
    kinds: dict[int, str] = {root: "loop"}
    left = [root]
    while left:
        parent = left.pop()
        for pid in below[parent]:
            line = known[pid][1]
            kinds[pid] = ""
            if SERVICE in line:
                kinds[pid] = line.split(SERVICE, 1)[1].split()[0]
            elif kinds[parent] == "code-server" and "spawn_main" in line:
                kinds[pid] = "run"
            left.append(pid)
    return kinds


def steps(data: Path, mine: dict[int, str]) -> list[int]:
    """Process ids of the steps that run, as they say it themselves, of the family ``mine``."""
    found = []
    for path in (data / "dagster" / "progress").glob("*/*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            found.append(int(json.loads(path.read_text())["pid"]))
    return [pid for pid in found if pid in mine]


def measured(pid: int) -> dict[str, float]:
    """What a process takes."""
    folder = Path(f"/proc/{pid}")
    text = (folder / "smaps_rollup").read_text()
    pss = next(line for line in text.splitlines() if line.startswith("Pss:"))
    threads = (folder / "status").read_text().split("Threads:")[1].split()[0]
    return {
        PSS: int(pss.split()[1]) * 1024 / 1e6,
        FILES: len(list((folder / "fd").iterdir())),
        THREADS: int(threads),
    }


def memory_of(root: int) -> float:
    """MB of a process and all that it has started, as proportional set sizes; 0 elsewhere than on Linux."""
    total = 0.0
    for pid in family(root):
        with contextlib.suppress(OSError, StopIteration):
            total += measured(pid)[PSS]
    return total
