"""A writer is killed (SIGKILL) at any of its file events: before it, in the middle of it, after it.

Whatever was there before is still there, what was half written is swept, and doing the stage again
makes what an undisturbed one would have made. The bounded set of ``make test`` takes a few events of
every stage; ``pytest -m faults`` takes them all.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ringrift_pipeline.store import Artefact, CorruptArtefactError, Store

from . import stages
from .conftest import NOW
from .tracing import KILLED, Zygote

CONFIG = stages.CONFIG
TIMED = {"shards.json", "summary.json"}  # they say how long it took
# An artefact's folder is named by the moment at which it landed.
FOLDER = re.compile(rb"\d{8}T\d{6}\.\d{6}Z-[0-9a-f]{8}")
Copy = Callable[[str], Path]


def made(root: Path) -> dict[str, Any]:
    """Kind -> names and digests of the files of generation 1, but for those that tell of time."""
    store = Store(root)
    found: dict[str, Any] = {}
    for kind in store.kinds(CONFIG, NOW):
        try:
            artefact = store.current(CONFIG, NOW, kind)
        except CorruptArtefactError:
            continue
        if artefact is not None:
            found[kind] = contents(artefact)
    champion = store.champion(CONFIG)
    found["champion"] = champion and (champion.generation, champion.digest)
    found["promotions"] = [one.generation for one in store.champions(CONFIG)]
    return found


def contents(artefact: Artefact) -> dict[str, str]:
    """Names and hashes of an artefact's files; names of folders in them do not count."""
    found = {}
    for name in artefact.files:
        if name in TIMED:
            continue
        data = (artefact.path / name).read_bytes()
        if name.endswith(".json"):
            data = FOLDER.sub(b"*", data)
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def check_kill(zygote: Zygote, copy_of: Copy, wanted: Any, stage: str, mode: str, n: int) -> None:
    root = copy_of(stage)
    run = zygote.traced(root, stage, NOW, mode, n)
    assert run.status == KILLED, f"{stage}: event {n} was not reached: {run.errors}"
    what = f"{stage}, killed {mode} event {n} ({run.events[-1].name} {run.events[-1].path})"
    champion = Store(root).champion(CONFIG)
    assert champion is not None, what
    Store(root).open(champion.path)  # loadable at any moment
    assert zygote.run(root, stage, NOW) == 0, f"{what}: {zygote.log.read_text()}"
    Store(root).sweep()
    assert not list(root.rglob(".ringrift-tmp-*")), what
    assert not list(root.rglob("quarantine/*")), what
    assert made(root) == wanted, what


@pytest.mark.parametrize("stage", stages.NAMES)
def test_a_stage_killed_at_a_few_file_events(
    stage: str, zygote: Zygote, roots: dict[str, Path], copy_of: Copy
) -> None:
    root = copy_of(stage)
    run = zygote.traced(root, stage, NOW)
    assert run.status == 0, run.errors
    wanted = made(root)
    events = len(run.events)
    assert events >= 8
    # the last rename makes it current; the middle is somewhere among its files
    renames = [event.number for event in run.events if event.name in ("rename", "link")]
    for mode, number in (("before", renames[-1]), ("torn", events // 2), ("after", renames[-1])):
        check_kill(zygote, copy_of, wanted, stage, mode, number)


@pytest.mark.faults
@pytest.mark.parametrize("mode", ("before", "torn", "after"))
@pytest.mark.parametrize("stage", stages.NAMES)
def test_a_stage_killed_at_every_file_event(
    stage: str, mode: str, zygote: Zygote, roots: dict[str, Path], copy_of: Copy
) -> None:
    root = copy_of(stage)
    run = zygote.traced(root, stage, NOW)
    wanted = made(root)
    for event in run.events:
        if mode != "torn" or event.length > 1:
            check_kill(zygote, copy_of, wanted, stage, mode, event.number)
