"""A writer is killed (SIGKILL) at any of its file events: before it, in the middle of it, after it.

Whatever was there before is still there, what was half written is swept, and doing the stage again
makes what an undisturbed one would have made. The bounded set of ``make test`` takes an event or four
of every stage of the loop; ``python -m faults kills`` takes them all, of all stages; with workers, where
it is the same stages that write, one of eight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ringrift_pipeline.store import Store

from . import stages
from .conftest import NOW
from .outcomes import made
from .tally import Cases
from .tracing import KILLED, Event, Zygote

CONFIG = stages.CONFIG
Copy = Callable[[str], Path]
MODES = ("before", "torn", "after")
WAYS = ("first", "rename", "torn", "last")
WITH_WORKERS = 8  # of so many events of a stage with workers one is tried
QUICK = ("plan", "average", "promote")  # all ways; of the others one each


def check_kill(
    zygote: Zygote, copy_of: Copy, wanted: Any, stage: str, mode: str, number: int
) -> int:
    root = copy_of(stage)
    run = zygote.traced(root, stage, NOW, mode, number)
    if stage in stages.MULTI and run.status == 0:
        return 0  # it had fewer events this time
    assert run.status == KILLED, f"{stage}: event {number} was not reached: {run.errors}"
    spoilt = run.events[-1]
    what = f"{stage}, killed {mode} event {number} ({spoilt.name} {spoilt.path})"
    champion = Store(root).champion(CONFIG)
    assert champion is not None, what
    Store(root).open(champion.path)  # loadable at any moment
    assert zygote.run(root, stage, NOW) == 0, f"{what}: {zygote.log.read_text()}"
    Store(root).sweep()
    assert not list(root.rglob(".ringrift-tmp-*")), what
    assert not list(root.rglob("quarantine/*")), what
    assert made(root) == wanted, what
    return 1


def chosen(events: Sequence[Event]) -> dict[str, tuple[str, int]]:
    """Way -> mode and event: the first, the rename that lands it, a write in the middle, the last."""
    middle = [events[len(events) // 2].number]  # of what renames or writes nothing
    renames = [event.number for event in events if event.name in ("rename", "link")] or middle
    writes = [event.number for event in events if event.length > 1] or middle
    return {
        "first": ("after", 1),
        "rename": ("before", renames[-1]),
        "torn": ("torn", writes[len(writes) // 2]),
        "last": ("before", len(events)),
    }


def undisturbed(zygote: Zygote, copy_of: Copy, stage: str) -> tuple[list[Event], Any]:
    """The events of a stage, and what is there after it."""
    root = copy_of(stage)
    run = zygote.traced(root, stage, NOW)
    assert run.status == 0, run.errors
    assert len(run.events) >= 8
    return run.events, made(root)


@pytest.mark.bounded
@pytest.mark.parametrize("stage", stages.NAMES)
def test_a_stage_killed_at_a_few_file_events(stage: str, zygote: Zygote, copy_of: Copy) -> None:
    events, wanted = undisturbed(zygote, copy_of, stage)
    which = stages.NAMES.index(stage) % len(WAYS)
    for way in WAYS if stage in QUICK else WAYS[which : which + 1]:
        check_kill(zygote, copy_of, wanted, stage, *chosen(events)[way])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stage", (*stages.NAMES, *stages.LATER))
def test_a_stage_killed_at_every_file_event(
    stage: str, mode: str, zygote: Zygote, copy_of: Copy
) -> None:
    cases = Cases("kills at file events", f"{stage}, {mode}")
    events, wanted = undisturbed(zygote, copy_of, stage)
    if mode == MODES[0]:
        cases.keep("# events traced", len(events))
    for event in events[:: WITH_WORKERS if stage in stages.MULTI else 1]:
        if mode != "torn" or event.length > 1:
            number = event.number
            cases.run(
                f"event {number}",
                lambda n=number: check_kill(zygote, copy_of, wanted, stage, mode, n),  # type: ignore[misc]
            )
    cases.settle()
