"""The power goes at any moment of a stage: what was there before still loads, and done again on what is
left the stage makes what it makes undisturbed.

What was not synced is lost or kept, piece by piece and in any order (``power_loss.py``). Of the small
writers the same is asked in ``test_writers.py``.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ringrift_pipeline.store import Store
from ringrift_pipeline.store.kinds import PART_PREFIXES

from . import stages, tally
from .conftest import NOW
from .outcomes import exported, made
from .power_loss import Disk, Left, disks, lay_out
from .tally import Cases
from .tracing import Traced, Zygote, traced

MIXTURES = 6
AGAIN = 21  # of so many disks the stage is done again on one, and on those after the last event
PASSING = (
    "training_state",
    *PART_PREFIXES,
)  # replaced while a stage works; parts go when it is done
ONE_PROCESS = [stage for stage in (*stages.NAMES, *stages.LATER) if stage not in stages.MULTI]
Copy = Callable[[str], Path]


def replayed(root: Path, script: str) -> tuple[Traced, dict[tuple[int, str], Left]]:
    """A script's events, and the disks that may be left after each: by its number and what was lost."""
    disk = Disk(root)
    run = traced([sys.executable, "-c", script, root], root, data=True)
    assert run.status == 0, run.errors
    left = disks(disk, run.events, run.data, 0, 0)
    return run, {(number, loss): each for number, loss, each in left}


@pytest.mark.bounded
def test_the_model_of_a_disk_loses_what_was_not_synced(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "old").write_text("safe")
    script = """
import os, sys
os.chdir(sys.argv[1])
with open("new", "wb") as file:
    file.write(b"a" * 10)
    file.flush()
    os.fsync(file.fileno())
    file.write(b"b" * 10)
os.rename("old", "name")
folder = os.open(".", os.O_RDONLY)
os.fsync(folder)
os.unlink("new")
"""
    run, found = replayed(root, script)
    names = [event.name for event in run.events]
    assert names == ["open", "write", "fsync", "write", "rename", "fsync", "unlink"]
    assert found[0, "all"] == {"old": b"safe"}
    assert found[1, "all"] == {"old": b"safe"}
    assert found[2, "bytes"] == {"old": b"safe", "new": b""}
    assert found[3, "bytes"] == {"old": b"safe", "new": b"a" * 10}
    assert found[3, "all"] == {"old": b"safe"}  # its bytes are safe, its name is not
    assert found[5, "names"] == {"old": b"safe"}
    assert found[5, "nothing"] == {"name": b"safe", "new": b"a" * 10 + b"b" * 10}
    assert found[6, "all"] == {"name": b"safe", "new": b"a" * 10}
    assert found[7, "all"] == found[6, "all"] and found[7, "nothing"] == {"name": b"safe"}


@pytest.mark.bounded
def test_what_is_allocated_is_a_size_that_may_be_lost(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "old").write_text("0123456789")
    script = """
import mmap, os, sys
os.chdir(sys.argv[1])
with open("old", "r+b") as file:
    os.posix_fallocate(file.fileno(), 0, 4)
    os.posix_fallocate(file.fileno(), 4, 8)
    place = mmap.mmap(file.fileno(), 12)
    place[11:] = b"x"
    os.fsync(file.fileno())
"""
    run, disks_left = replayed(root, script)
    found = {which: left["old"] for which, left in disks_left.items()}
    assert [(event.name, event.offset) for event in run.events] == [
        ("fallocate", 4),
        ("fallocate", 12),
        ("mmap", -1),
        ("fsync", 0),
    ]
    assert found[1, "nothing"] == b"0123456789"
    assert found[3, "nothing"] == b"0123456789" + bytes(2)
    assert found[3, "all"] == b"0123456789"
    assert found[4, "all"] == b"0123456789\0x"


@pytest.mark.bounded
@pytest.mark.parametrize("stage", ("score_games", "promote"))
def test_the_power_goes_at_some_moments_of_a_stage(
    stage: str, zygote: Zygote, copy_of: Copy, tmp_path: Path
) -> None:
    cases = Cases("power loss, some", stage)
    check(stage, zygote, copy_of, tmp_path, cases, every=9, mixtures=1)
    cases.settle()


@pytest.mark.parametrize("stage", ONE_PROCESS)
def test_the_power_goes_at_any_moment_of_a_stage(
    stage: str, zygote: Zygote, copy_of: Copy, tmp_path: Path
) -> None:
    cases = Cases("power loss", stage)
    events = check(stage, zygote, copy_of, tmp_path, cases, every=1, mixtures=MIXTURES)
    cases.keep("# events recorded", events)
    cases.settle()


def check(
    stage: str, zygote: Zygote, copy_of: Copy, tmp_path: Path, cases: Cases, every: int, mixtures: int
) -> int:  # fmt: skip
    """After each ``every``-th event and the last, whatever was lost. Returns how many there are."""
    root = copy_of(stage)
    before = kinds(root)
    disk = Disk(root)
    run = zygote.traced(root, stage, NOW, data=True)
    assert run.status == 0, run.errors
    after, wanted = kinds(root), made(root)
    asked = durable = 0
    for number, loss, left in disks(disk, run.events, run.data, tally.seed(), mixtures):
        last = number == len(run.events)
        if number % every and not last:
            continue
        asked += 1

        def one(
            left: Left = left, last: bool = last, loss: str = loss,
            again: bool = last or asked % AGAIN == 1,
        ) -> dict[str, int] | None:  # fmt: skip
            nonlocal durable
            place = tmp_path / "left"
            shutil.rmtree(place, ignore_errors=True)
            lay_out(left, place)
            found = kinds(place)
            if stage == "train":  # a state that a restart could count on stays until a later one
                state = Store(place).last_good(stages.CONFIG, NOW, "training_state")
                step = 0 if state is None else int(state.metadata["step"])
                assert step >= durable, f"the state of step {durable} is lost"
                durable = max(durable, step) if loss == "all" else durable
            for kind in after.keys() | before.keys():
                assert found.get(kind) in (before.get(kind), after.get(kind)), kind
            assert found == after or not last  # nothing that was promised is lost
            if not again:
                return None
            assert zygote.run(place, stage, NOW) == 0, zygote.log.read_text()
            Store(place).sweep()
            assert not list(place.rglob(".ringrift-tmp-*"))
            assert made(place) == wanted
            return {"done again": 1}

        cases.run(f"after event {number}, {loss} lost", one)
    return len(run.events)


def kinds(root: Path) -> dict[str, object]:
    """Digests of the artefacts that load, of the champions and plans, and of what was exported."""
    store = Store(root)
    store.sweep()
    found: dict[str, object] = {}
    for config in store.configs():
        for generation in store.generations(config):
            for kind in store.kinds(config, generation):
                artefact = store.last_good(config, generation, kind)
                if artefact is not None and not kind.startswith(PASSING):
                    found[f"{config} {generation} {kind}"] = artefact.digest
            found[f"{config} {generation} plan"] = str(store.read_plan(config, generation))
        champion = store.champion(config)
        if champion is not None:
            found[f"{config} champion"] = champion.digest, store.open(champion.path).digest
    assert f"{stages.CONFIG} champion" in found
    if (root / "exported" / "model").exists():
        found["exported"] = exported(root / "exported" / "model")
    return found
