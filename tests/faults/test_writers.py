"""Everything else that writes below a data root: killed, refused by the disk, left without power.

Also a list of all that writes, which has to be brought up when something new does.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ringrift_pipeline.orchestration.instance import sweep_home
from ringrift_pipeline.store import Store

from . import tally
from .power_loss import Disk, Left, disks, lay_out
from .tally import Cases
from .test_failing_disk import WAYS, named
from .test_kills import MODES, chosen
from .test_power_loss import AGAIN
from .tracing import KILLED, Event, Zygote
from .writers import WRITERS, Writer

MIXTURES = 6
NOT_DURABLE = ("a presence", "progress")  # of no use after the machine was down


@dataclass
class Trial:
    """A writer's data root before it writes, and what its events come to."""

    name: str
    writer: Writer
    zygote: Zygote
    folder: Path
    events: list[Event]
    before: Any
    after: Any

    def fresh(self) -> Path:
        """A copy of the data root as it was before."""
        root = self.folder / "now"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(self.folder / "before", root)
        return root

    def write(self, root: Path, **spoilt: Any) -> Any:
        return self.zygote.traced(root, f"write: {self.name}", 0, **spoilt)

    def check_between(self, root: Path, what: str) -> None:
        found = self.writer.read(root)
        whole = found in (self.before, self.after)
        assert whole or self.writer.between(self.before, found, self.after), f"{what}: {found}"

    def check_again(self, root: Path, what: str) -> None:
        """Done once more, undisturbed, it is as if nothing had been."""
        status = self.zygote.run(root, f"write: {self.name}", 0)
        assert status == 0, f"{what}: {self.zygote.log.read_text()}"
        assert swept(root, self.writer) == self.after, what
        assert not list(root.rglob(".ringrift-tmp-*")), what

    def killed(self, mode: str, number: int) -> None:
        root = self.fresh()
        run = self.write(root, mode=mode, number=number)
        assert run.status == KILLED, run.errors
        spoilt = run.events[-1]
        what = f"{self.name}, killed {mode} event {number} ({spoilt.name} {spoilt.path})"
        self.check_between(root, what)
        self.check_again(root, what)

    def refused(self, way: str, number: int) -> None:
        root = self.fresh()
        mode, error = WAYS[way]
        run = self.write(root, mode=mode, number=number, error=error)
        what = f"{self.name}, {way} at event {number}: {run.errors}"
        if run.status:
            assert self.name not in NOT_DURABLE, what  # nobody may fail for want of them
            assert way != "short" and run.status == 1, what
            assert named(run.errors, error), what
        self.check_between(root, what)
        self.check_again(root, what)

    def without_power(self, every: int, mixtures: int, cases: Cases) -> None:
        root = self.fresh()
        disk = Disk(root)
        run = self.write(root, data=True)
        assert run.status == 0, run.errors
        asked = 0
        for number, loss, left in disks(disk, run.events, run.data, tally.seed(), mixtures):
            last = number == len(run.events)
            if number % every and not last:
                continue
            asked += 1

            def one(
                left: Left = left, last: bool = last, again: bool = last or asked % AGAIN == 1
            ) -> dict[str, int] | None:
                place = self.folder / "left"
                shutil.rmtree(place, ignore_errors=True)
                lay_out(left, place)
                self.check_between(place, "after it")
                if last and self.name not in NOT_DURABLE:  # nothing that was promised is lost
                    assert swept(place, self.writer) == self.after
                if not again:
                    return None
                self.check_again(place, "after it")
                return {"done again": 1}

            cases.run(f"after event {number}, {loss} lost", one)


def swept(root: Path, writer: Writer) -> Any:
    Store(root).sweep()
    sweep_home(root)
    return writer.read(root)


@pytest.fixture
def trial(zygote: Zygote, tmp_path: Path) -> Iterator[Callable[[str], Trial]]:
    def prepared(name: str) -> Trial:
        writer, folder = WRITERS[name], tmp_path / "trial"
        folder.mkdir()
        assert zygote.run(folder / "before", f"prepare: {name}", 0) == 0, zygote.log.read_text()
        made = Trial(name, writer, zygote, folder, [], None, None)
        made.before = writer.read(made.fresh())
        root = made.fresh()
        run = made.write(root)
        assert run.status == 0, run.errors
        made.events, made.after = run.events, swept(root, writer)
        assert len(made.events) >= 3
        return made

    yield prepared


# One of each way to write: a pointer and a sealed line, one file, a removal, a notice, a value.
SOME = ("a promotion", "a switch", "retention", "an alert", "a value")


@pytest.mark.bounded
@pytest.mark.parametrize("name", SOME)
def test_a_writer_is_disturbed_at_a_few_events(name: str, trial: Callable[[str], Trial]) -> None:
    writer, which = trial(name), list(WRITERS).index(name)
    ways = chosen(writer.events)
    for way in ("rename", ("first", "torn", "last")[which % 3]):
        writer.killed(*ways[way])
    writer.refused(list(WAYS)[which % len(WAYS)], ways["torn"][1])
    cases = Cases("power loss, some", name)
    writer.without_power(8, 1, cases)
    cases.settle()


def at_every_event(
    cases: Cases, writer: Trial, ways: Iterable[str], partial: str, harm: Callable[[str, int], Any]
) -> None:
    """``harm`` in each of ``ways``; in the one called ``partial`` where there is a part to write."""
    for way in ways:
        for event in writer.events:
            if way != partial or event.length > 1:
                number = event.number
                cases.run(
                    f"{way}, event {number}",
                    lambda w=way, n=number: harm(w, n),  # type: ignore[misc]
                )


@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_killed_at_every_event(name: str, trial: Callable[[str], Trial]) -> None:
    cases = Cases("kills at file events", name)
    writer = trial(name)
    cases.keep("# events traced", len(writer.events))
    at_every_event(cases, writer, MODES, "torn", writer.killed)
    cases.settle()


@pytest.mark.parametrize("name", WRITERS)
def test_every_event_of_a_writer_fails(name: str, trial: Callable[[str], Trial]) -> None:
    cases = Cases("n-th write fails", name)
    writer = trial(name)
    at_every_event(cases, writer, WAYS, "short", writer.refused)
    cases.settle()


@pytest.mark.parametrize("name", WRITERS)
def test_the_power_goes_at_any_moment_of_a_writer(name: str, trial: Callable[[str], Trial]) -> None:
    cases = Cases("power loss", name)
    writer = trial(name)
    writer.without_power(1, MIXTURES, cases)
    cases.keep("# events recorded", len(writer.events))
    cases.settle()
