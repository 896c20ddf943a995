"""The disk fails, or loses what was not synced, under a tick of ``evaluation_landed``.

A tick writes to the store (promotions, decisions) and, through Dagster, to its SQLite files. When the
disk is well again, or the machine, the ticks after that do what is left: each generation has been
started once, each model promoted once. Tried is every event in the store, and one in some of the 15,000
in Dagster's SQLite files, which are opened and closed for each query.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from pathlib import Path

import pytest

from . import tally
from .power_loss import Disk, Left, disks, lay_out
from .tally import Cases
from .test_failing_disk import WAYS
from .test_sensor_kills import check, go_on
from .ticks import TWO
from .tracing import Event, Traced, Zygote

MIXTURES = 2
APART = 200  # of so many events in Dagster's files one fails
MOMENTS = 400  # of so many events one is the last before the power goes


def recorded(ticker: Zygote, landed: Path, place: Path, folder: str = "") -> Traced:
    """A whole tick that nothing disturbs, and what it does below a ``folder`` of the data root."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(landed, place)
    run = ticker.traced(place, "tick", 0, watched=place / folder)
    assert run.status == 0, run.errors
    check(place, "undisturbed")
    return run


def refuse(
    ticker: Zygote, landed: Path, place: Path, way: str, number: int, folder: str = ""
) -> int:
    """One tick of which an event fails, and what comes after it; how many cases it was: 0 where the
    tick ended before that event.
    """
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(landed, place)
    mode, error = WAYS[way]
    run = ticker.traced(place, "tick", 0, mode, number, error, watched=place / folder)
    ended = time.time()
    spoilt = next((event for event in run.events if event.number == number), None)
    if spoilt is None:
        assert run.status == 0, run.errors
        return 0
    assert run.status in (0, 1), run.errors  # it goes on, or ends with an error: no crash
    what = f"{way} at event {number} ({spoilt.name} {spoilt.path}): {run.errors[-3000:]}"
    go_on(ticker, place, ended, what)
    return 1


def writes(events: list[Event]) -> list[int]:
    return [event.number for event in events if event.length > 1]


@pytest.mark.parametrize("way", WAYS)
def test_a_few_events_of_a_tick_fail(
    way: str, ticker: Zygote, landed: Path, tmp_path: Path
) -> None:
    found = writes(recorded(ticker, landed, tmp_path / "data").events)
    for part in (0.1, 0.5, 0.9):
        number = found[int(part * len(found))]
        assert refuse(ticker, landed, tmp_path / "data", way, number) == 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("folder", (*TWO, ""))
def test_the_events_of_a_tick_fail(
    folder: str, way: str, ticker: Zygote, landed: Path, tmp_path: Path
) -> None:
    """All those in the store, of a config's folder; and some of all."""
    cases = Cases("n-th write fails", f"a tick, {folder or 'some of all'}, {way}")
    events = recorded(ticker, landed, tmp_path / "data", folder).events
    if way == next(iter(WAYS)):
        cases.keep("# events traced", len(events))
    numbers = writes(events) if way == "short" else [event.number for event in events]
    for number in sorted(numbers)[:: 1 if folder else APART]:
        cases.run(
            f"event {number}",
            lambda n=number: refuse(ticker, landed, tmp_path / "data", way, n, folder),  # type: ignore[misc]
        )
    cases.settle()


def lose_power(
    ticker: Zygote, landed: Path, place: Path, cases: Cases, every: int, mixtures: int
) -> int:
    """After each ``every``-th event and the last; disks that were tried already are not tried again.
    Returns how many events there are.
    """
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(landed, place)
    disk = Disk(place)
    run = ticker.traced(place, "tick", 0, data=True)
    assert run.status == 0, run.errors
    tried: set[bytes] = set()
    for number, loss, left in disks(disk, run.events, run.data, tally.seed(), mixtures):
        if number % every and number != len(run.events):
            continue
        digest = digest_of(left)
        if digest in tried:
            continue
        tried.add(digest)

        def one(left: Left = left, what: str = f"{loss} lost after event {number}") -> None:
            shutil.rmtree(place, ignore_errors=True)
            lay_out(left, place)
            go_on(ticker, place, time.time(), what, how="start")

        cases.run(f"after event {number}, {loss} lost", one)
    return len(run.events)


def digest_of(left: Left) -> bytes:
    found = hashlib.sha256()
    for path, content in left.items():
        found.update(f"{path} {None if content is None else len(content)} ".encode())
        found.update(content or b"")
    return found.digest()


def test_the_power_goes_at_some_moments_of_a_tick(
    ticker: Zygote, landed: Path, tmp_path: Path
) -> None:
    cases = Cases("power loss, some", "a tick")
    lose_power(ticker, landed, tmp_path / "data", cases, every=1000, mixtures=0)
    cases.settle()


def test_the_power_goes_at_many_moments_of_a_tick(
    ticker: Zygote, landed: Path, tmp_path: Path
) -> None:
    cases = Cases("power loss", "a tick")
    events = lose_power(ticker, landed, tmp_path / "data", cases, MOMENTS, MIXTURES)
    cases.keep("# events recorded", events)
    cases.settle()
