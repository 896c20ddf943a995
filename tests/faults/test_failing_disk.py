"""The disk refuses one write, or all from one on, or takes half of it: the stage ends in what an
undisturbed one makes or in one error that names the cause, and then goes on when the disk is well.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ringrift_pipeline.store import Store

from . import stages
from .conftest import NOW
from .test_kills import made
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


def check(zygote: Zygote, copy_of: Copy, wanted: Any, stage: str, way: str, number: int) -> None:
    root = copy_of(stage)
    mode, error = WAYS[way]
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
        assert re.fullmatch(CLEAR, run.errors.strip().splitlines()[-1]), what
    assert zygote.run(root, stage, NOW) == 0, f"{what}\nagain: {zygote.log.read_text()}"
    Store(root).sweep()
    assert not list(root.rglob(".ringrift-tmp-*")), what
    assert made(root) == wanted, what


def events_of(zygote: Zygote, copy_of: Copy, stage: str) -> tuple[list[Any], Any]:
    root = copy_of(stage)
    run = zygote.traced(root, stage, NOW)
    assert run.status == 0, run.errors
    return run.events, made(root)


@pytest.mark.parametrize("stage", stages.NAMES)
def test_the_disk_is_full_at_a_few_events(stage: str, zygote: Zygote, copy_of: Copy) -> None:
    events, wanted = events_of(zygote, copy_of, stage)
    writes = [event.number for event in events if event.length > 1]
    check(zygote, copy_of, wanted, stage, "full", writes[len(writes) // 2])
    check(zygote, copy_of, wanted, stage, "short", writes[len(writes) // 3])


@pytest.mark.faults
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stage", stages.NAMES)
def test_every_event_fails(stage: str, way: str, zygote: Zygote, copy_of: Copy) -> None:
    events, wanted = events_of(zygote, copy_of, stage)
    for event in events:
        if way != "short" or event.length > 1:
            check(zygote, copy_of, wanted, stage, way, event.number)


@pytest.mark.parametrize(
    "every", (pytest.param(29, id="some"), pytest.param(1, id="all", marks=pytest.mark.faults))
)
@pytest.mark.parametrize("stage", stages.NAMES)
def test_a_file_that_vanished_is_named_or_not_needed(
    stage: str, every: int, zygote: Zygote, roots: dict[str, Path], copy_of: Copy
) -> None:
    events, wanted = events_of(zygote, copy_of, stage)
    before = made(roots[stage])
    own = [kind for kind in wanted if wanted[kind] != before.get(kind)]
    files = sorted(path.relative_to(roots[stage]) for path in roots[stage].rglob("*"))
    files = [path for path in files if (roots[stage] / path).is_file()]
    for path in files[stages.NAMES.index(stage) % every :: every]:
        root = copy_of(stage)
        (root / path).unlink()
        status = zygote.run(root, stage, NOW)
        errors = zygote.log.read_text()
        if status == 0:
            if stage != "plan":  # it plans with what is there
                found = made(root)
                assert [found[kind] for kind in own] == [wanted[kind] for kind in own], path
        else:
            last = errors.strip().splitlines()[-1]
            assert re.match(r"ringrift_pipeline\.\w+.*Error: ", last), f"{path}: {errors}"
