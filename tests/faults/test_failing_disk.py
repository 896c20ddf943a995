"""The disk refuses one write, or all from one on, or takes half of it: the stage ends in what an
undisturbed one makes or in one error that names the cause, and then goes on when the disk is well.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ringrift_pipeline.store import Store
from ringrift_pipeline.store.kinds import TRAINING_STATE
from ringrift_pipeline.store.layout import PLAN

from . import stages
from .conftest import NOW, Roots
from .outcomes import FOLDER, made
from .tally import Cases
from .test_kills import undisturbed
from .tracing import Zygote

CONFIG = stages.CONFIG
Copy = Callable[[str], Path]
WAYS = {
    "full": ("failing", errno.ENOSPC),
    "broken": ("fail", errno.EIO),
    "read-only": ("failing", errno.EROFS),
    "short": ("short", 0),
}
CLEAR = r"[\w.]+(Error|Exception): .+"
ONE_PROCESS = [stage for stage in (*stages.NAMES, *stages.LATER) if stage not in stages.MULTI]


def named(errors: str, error: int) -> bool:
    """Does a traceback end in an error, and name its cause, as the libraries do?"""
    cause = rf"{os.strerror(error)}|[Ee]rrno {error}\b|os error {error}\b|code: {error}\b"
    return bool(re.fullmatch(CLEAR, errors.strip().splitlines()[-1]) and re.search(cause, errors))


def check(zygote: Zygote, copy_of: Copy, wanted: Any, stage: str, way: str, number: int) -> None:
    root = copy_of(stage)
    mode, error = WAYS[way]
    if way == "read-only" and number % 2:
        error = errno.EACCES  # the folder is, not the disk
    run = zygote.traced(root, stage, NOW, mode, number, error)
    spoilt = next(event for event in run.events if event.number == number)
    what = f"{stage}, {way} at event {number} ({spoilt.name} {spoilt.path}): {run.errors}"
    champion = Store(root).champion(CONFIG)
    assert champion is not None, what
    Store(root).open(champion.path)
    if run.status == 0:
        assert made(root) == wanted, what
    else:
        assert way != "short", what
        assert run.status == 1, what
        assert named(run.errors, error), what
    assert zygote.run(root, stage, NOW) == 0, f"{what}\nagain: {zygote.log.read_text()}"
    Store(root).sweep()
    assert not list(root.rglob(".ringrift-tmp-*")), what
    assert made(root) == wanted, what


@pytest.mark.bounded
@pytest.mark.parametrize(("stage", "way"), (("mine_hard_examples", "full"), ("promote", "short")))
def test_the_disk_is_full_at_an_event(stage: str, way: str, zygote: Zygote, copy_of: Copy) -> None:
    events, wanted = undisturbed(zygote, copy_of, stage)
    writes = [event.number for event in events if event.length > 1]
    check(zygote, copy_of, wanted, stage, way, writes[len(writes) // 2])


@pytest.mark.bounded
def test_the_disk_is_full_while_the_window_is_built(zygote: Zygote, copy_of: Copy) -> None:
    """Its columns are stored through maps: what has no block there ends the process by a signal."""
    events, wanted = undisturbed(zygote, copy_of, "mine_hard_examples")
    mapped = {event.inode for event in events if event.name == "mmap"}
    allocated = [event for event in events if event.name == "fallocate"]
    assert len(allocated) > 20 and mapped == {event.inode for event in allocated}
    for event in (allocated[0], allocated[-1]):
        assert event.offset > 1 and event.path.endswith(".npy")
        check(zygote, copy_of, wanted, "mine_hard_examples", "full", event.number)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stage", ONE_PROCESS)
def test_every_event_fails(stage: str, way: str, zygote: Zygote, copy_of: Copy) -> None:
    cases = Cases("n-th write fails", f"{stage}, {way}")
    events, wanted = undisturbed(zygote, copy_of, stage)
    for event in events:
        if way != "short" or event.length > 1:
            number = event.number
            cases.run(
                f"event {number}",
                lambda n=number: check(zygote, copy_of, wanted, stage, way, n),  # type: ignore[misc]
            )
    cases.settle()


def check_vanished(
    zygote: Zygote, copy_of: Copy, before: Any, wanted: Any, stage: str, path: Path, event: int = 0
) -> None:
    """A file is gone when the stage begins, or before one of its events."""
    own = [kind for kind in wanted if wanted[kind] != before.get(kind)]
    root = copy_of(stage)
    if event:
        run = zygote.traced(root, stage, NOW, f"lose:{root / path}", event)
        status, errors = run.status, run.errors
    else:
        (root / path).unlink()
        status = zygote.run(root, stage, NOW)
        errors = zygote.log.read_text()
    if status == 0:
        if stage != "plan":  # it plans with what is there
            found = made(root)
            same = [found.get(kind) for kind in own] == [wanted[kind] for kind in own]
            # a stage does without what is of an earlier generation, and says so
            gone = f"{path} is gone" if path.name == PLAN else f"{path.parent} is corrupt"
            assert same or ("/0000/" in str(path) and gone in errors), f"{path}: {errors}"
    else:
        last = errors.strip().splitlines()[-1]
        assert re.match(r"ringrift_pipeline\.\w+.*Error: ", last), f"{path}: {errors}"
        assert path.name in errors or path.parent.name in errors, f"{path}: {errors}"


def files_of(roots: Roots, stage: str) -> list[Path]:
    root = roots[stage]
    return sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())


def case(number: int, path: Path) -> str:
    return f"{number} {FOLDER.sub(b'*', str(path).encode()).decode()}"


@pytest.mark.parametrize("stage", stages.NAMES)
def test_a_file_that_vanished_is_named_or_not_needed(
    stage: str, zygote: Zygote, roots: Roots, copy_of: Copy
) -> None:
    cases = Cases("vanished files", stage)
    _, wanted = undisturbed(zygote, copy_of, stage)
    before = made(roots[stage])
    for number, name in enumerate(files_of(roots, stage)):
        cases.run(
            case(number, name),
            lambda n=name: check_vanished(zygote, copy_of, before, wanted, stage, n),  # type: ignore[misc]
        )
    cases.settle()


@pytest.mark.parametrize("stage", stages.NAMES)
def test_a_file_that_vanishes_meanwhile_is_named_or_not_needed(
    stage: str, zygote: Zygote, roots: Roots, copy_of: Copy
) -> None:
    """At each event another file of those that were there when the stage began."""
    cases = Cases("files that vanish meanwhile", stage)
    events, wanted = undisturbed(zygote, copy_of, stage)
    before, files = made(roots[stage]), files_of(roots, stage)
    for number in range(1, len(events) + 1):
        name = files[(number * 7) % len(files)]
        cases.run(
            case(number, name),
            lambda n=number, f=name: check_vanished(  # type: ignore[misc]
                zygote, copy_of, before, wanted, stage, f, n
            ),
        )
    cases.settle()


def check_own_vanishes(
    zygote: Zygote, copy_of: Copy, wanted: Any, stage: str, number: int, says: str = ""
) -> None:
    """What the stage has just written is gone."""
    root = copy_of(stage)
    run = zygote.traced(root, stage, NOW, "vanish", number)
    spoilt = next(event for event in run.events if event.number == number)
    what = f"{stage}, vanished at event {number} ({spoilt.name} {spoilt.path}): {run.errors}"
    assert run.status in (0, 1) and re.search(says, run.errors), what
    if run.status:
        last = run.errors.strip().splitlines()[-1]
        assert named(run.errors, errno.ENOENT) or re.match(
            r"ringrift_pipeline\.\w+.*Error: ", last
        ), what
    assert zygote.run(root, stage, NOW) == 0, f"{what}\nagain: {zygote.log.read_text()}"
    champion = Store(root).champion(CONFIG)
    assert champion is not None, what
    Store(root).open(champion.path)
    Store(root).sweep()
    assert not list(root.rglob(".ringrift-tmp-*")), what
    found = made(root)
    if stage == "train" and f"/{TRAINING_STATE}/" in run.errors:
        # the training has ended and needs it no more; it is told that it was put aside
        wanted = {
            kind: has for kind, has in wanted.items() if kind in found or TRAINING_STATE not in kind
        }
    assert found == wanted, what


@pytest.mark.parametrize("stage", ONE_PROCESS)
def test_what_a_stage_wrote_vanishes(stage: str, zygote: Zygote, copy_of: Copy) -> None:
    cases = Cases("what was written vanishes", stage)
    events, wanted = undisturbed(zygote, copy_of, stage)
    for event in events:
        cases.run(
            f"event {event.number}",
            lambda n=event.number: check_own_vanishes(zygote, copy_of, wanted, stage, n),  # type: ignore[misc]
        )
    cases.settle()


@pytest.mark.bounded
def test_a_draft_does_not_land_without_a_file(zygote: Zygote, copy_of: Copy) -> None:
    """A picture: nobody reads it, so that nobody would notice."""
    events, wanted = undisturbed(zygote, copy_of, "mine_hard_examples")
    picture = next(e for e in events if e.length > 1 and str(e.path).endswith(".full.svg"))
    says = r"VanishedFileError: .*\.full\.svg was written and is gone"
    check_own_vanishes(zygote, copy_of, wanted, "mine_hard_examples", picture.number, says)


@pytest.mark.bounded
def test_a_plan_that_vanished_is_named(zygote: Zygote, roots: Roots, copy_of: Copy) -> None:
    _, wanted = undisturbed(zygote, copy_of, "average")
    path = Path(CONFIG, "generations", "0001", "plan.json")
    check_vanished(zygote, copy_of, made(roots["average"]), wanted, "average", path)
