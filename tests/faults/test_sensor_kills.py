"""The daemon is killed at any file event of a tick of ``evaluation_landed``.

Started again it does what is left: each generation has been started once, each model promoted once,
whether it died before anything was evaluated, in the midst of that, before, between or after the
submission of the runs, or once the cursor had been kept. ``python -m faults ticks`` kills it at every
event in the store, at some of the 15,000 in Dagster's SQLite files (which are opened and closed for each
query), and then until a hundred kills have hit each stage of the tick.
"""

from __future__ import annotations

import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from dagster import AssetKey, DagsterInstance, DagsterRunStatus

from ringrift_pipeline.orchestration import names
from ringrift_pipeline.orchestration.decisions import STARTED, read_decision
from ringrift_pipeline.orchestration.instance import open_instance
from ringrift_pipeline.orchestration.sensor import INTERVAL
from ringrift_pipeline.store import Store

from . import tally
from .tally import Cases
from .ticks import TWO
from .tracing import KILLED, Zygote

ENOUGH = 100  # kills a stage
SPREAD = 150  # of the events of a tick, equally far from each other, so many are tried
MODES = ("before", "torn", "after")
STAGES = (  # that a tick cannot do without
    "0 promoted, 0 decided",
    "2 promoted, 2 decided, not submitted",
    "2 runs made, 1 submitted",
    "2 runs submitted, cursor not kept",
    "cursor kept",
)


def runs(instance: DagsterInstance) -> list[tuple[str, str]]:
    return sorted(
        (run.job_name, run.tags[names.PARTITION_TAG])
        for run in instance.get_runs()
        if run.job_name.endswith("_generation")
    )


def stage_of(root: Path) -> str:
    """How far the tick had come when it was killed."""
    store = Store(root)
    promoted = sum(store.champion(config) is not None for config in TWO)
    decided = sum(read_decision(store, config, 0) is not None for config in TWO)
    with open_instance(root) as instance:
        made = [run for run in instance.get_runs() if run.job_name.endswith("_generation")]
        kept = any(
            one.instigator_data is not None and getattr(one.instigator_data, "cursor", None)
            for one in instance.all_instigator_state()
            if one.instigator_name == names.SENSOR
        )
    submitted = sum(run.status == DagsterRunStatus.QUEUED for run in made)
    if kept:
        return "cursor kept"
    if submitted == len(TWO):
        return "2 runs submitted, cursor not kept"
    if made:
        return f"{len(made)} runs made, {submitted} submitted"
    if decided == len(TWO):
        return f"{promoted} promoted, 2 decided, not submitted"
    return f"{promoted} promoted, {decided} decided"


def kill(
    ticker: Zygote, landed: Path, place: Path, mode: str, number: int, folder: str = ""
) -> str | None:
    """One kill, at an event below a ``folder`` of the data root, and the daemon's next life; the stage it
    hit, None if the tick ended before it.
    """
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(landed, place)
    run = ticker.traced(place, "tick", 0, mode, number, watched=place / folder)
    ended = time.time()
    if run.status == 0:
        return None
    assert run.status == KILLED, run.errors
    stage = stage_of(place)
    what = f"killed {mode} event {number} ({run.events[-1].name} {run.events[-1].path}): {stage}"
    go_on(ticker, place, ended, what)
    return stage


def go_on(ticker: Zygote, place: Path, ended: float, what: str, how: str = "tick") -> None:
    """Two ticks that nothing disturbs, the second of which finds nothing to do; then `check`.

    They come after the interval from when the tick before had ``ended``: when it began, which is what
    the daemon counts from, cannot be later, however slow the machine.
    """
    for _ in range(2):
        time.sleep(max(0.0, INTERVAL + 0.1 - (time.time() - ended)))
        assert ticker.run(place, how, 0) == 0, f"{what}: {ticker.log.read_text()}"
        ended = time.time()
    check(place, what)


def check(place: Path, what: str) -> None:
    store = Store(place)
    with open_instance(place) as instance:
        wanted = sorted((names.job_name(config), "0001") for config in TWO)
        assert runs(instance) == wanted, what
        for config in TWO:
            assert [one.generation for one in store.champions(config)] == [0], what
            decision = read_decision(store, config, 0)
            assert decision is not None and decision["promoted"], what
            assert decision["next"] == 1 or decision["end"] == STARTED, what
            partitions = instance.get_dynamic_partitions(names.partitions_name(config))
            assert partitions == ["0000", "0001"], what
            key = AssetKey([config, "champion"])
            events = instance.fetch_materializations(key, limit=10).records
            assert len(events) == 1, what


@pytest.mark.bounded
def test_a_daemon_killed_while_it_promotes(ticker: Zygote, landed: Path, tmp_path: Path) -> None:
    stage = kill(ticker, landed, tmp_path / "data", "torn", 8, TWO[0])
    assert stage is not None and stage != "cursor kept"


def test_a_daemon_killed_at_a_few_events_of_a_tick(
    ticker: Zygote, landed: Path, tmp_path: Path
) -> None:
    shutil.copytree(landed, tmp_path / "whole")
    events = ticker.traced(tmp_path / "whole", "tick", 0).events
    check(tmp_path / "whole", "undisturbed")
    for part, mode in ((0.25, "before"), (0.5, "torn"), (0.75, "after")):
        stage = kill(ticker, landed, tmp_path / "data", mode, int(part * len(events)))
        assert stage is not None


def hits(cases: Cases) -> tuple[Counter[str], dict[str, list[int]]]:
    """Stage -> how often this share has hit it, and at which events anybody did; of the ledger too."""
    counts: Counter[str] = Counter()
    where: dict[str, list[int]] = {}
    for case in cases.noted():
        for stage in case.kinds:
            counts[stage] += case.share == tally.share_name()
            where.setdefault(stage, []).append(int(case.name.rpartition("event ")[2]))
    return counts, where


def kill_every_stage(events: int, kill_at: Callable[[str, int], str | None]) -> Cases:
    """Kills before `SPREAD` events, and then at the stages that were hit least, until each was hit as
    often as is wanted. ``kill_at`` does one and tells the stage, None if there was nothing to kill.
    """
    each = dict.fromkeys(STAGES, tally.total(ENOUGH))
    cases = Cases("killed ticks", "a tick", sum(each.values()), each)
    cases.keep("# events traced", events)

    def one(mode: str, number: int) -> dict[str, int]:
        stage = kill_at(mode, number)
        return {stage: 1} if stage is not None else {}

    apart = max(1, events // SPREAD)
    for number in range(1, events + 1, apart):
        cases.run(f"before event {number}", lambda n=number: one("before", n))  # type: ignore[misc]
    again = [c.name for c in cases.noted() if c.bad and c.share == tally.share_name()]
    for name in again:  # of the random ones; the others were asked for above
        if found := re.fullmatch(r"share \S+, (kill \d+, (\w+) event (\d+))", name):
            kill_name, mode, event = found[1], found[2], int(found[3])
            cases.run(kill_name, lambda m=mode, e=event: one(m, e), ours=True)  # type: ignore[misc]
    reach = max(2, apart // 2)
    number = sum(c.name.startswith(f"share {tally.share_name()}, kill ") for c in cases.noted())
    while True:
        counts, where = hits(cases)
        if not where or min(counts[stage] for stage in where) >= tally.wanted(ENOUGH):
            break
        number += 1
        rng = random.Random(f"{tally.seed()} {tally.share()} {number}")
        least = min(sorted(where), key=lambda stage: counts[stage])
        mode, event = (
            rng.choice(MODES),
            max(1, rng.choice(where[least]) + rng.randint(-reach, reach)),
        )
        name = f"kill {number}, {mode} event {event}"
        cases.run(name, lambda m=mode, e=event: one(m, e), ours=True)  # type: ignore[misc]
    cases.settle()
    return cases


def test_a_daemon_killed_at_every_stage_a_hundred_times(
    ticker: Zygote, landed: Path, tmp_path: Path
) -> None:
    shutil.copytree(landed, tmp_path / "whole")
    events = len(ticker.traced(tmp_path / "whole", "tick", 0).events)

    def kill_at(mode: str, number: int) -> str | None:
        return kill(ticker, landed, tmp_path / "data", mode, number)

    cases = kill_every_stage(events, kill_at)
    assert {*STAGES} <= hits(cases)[1].keys()


@pytest.mark.parametrize("config", TWO)
def test_a_daemon_killed_at_every_event_in_the_store(
    config: str, ticker: Zygote, landed: Path, tmp_path: Path
) -> None:
    cases = Cases("killed ticks", f"the store, {config}")
    shutil.copytree(landed, tmp_path / "whole")
    watched = tmp_path / "whole" / config
    events = ticker.traced(tmp_path / "whole", "tick", 0, watched=watched).events
    cases.keep("# events traced", len(events))
    for mode in MODES:
        for event in events:
            if mode != "torn" or event.length > 1:

                def one(mode: str = mode, number: int = event.number) -> int:
                    stage = kill(ticker, landed, tmp_path / "data", mode, number, config)
                    return int(stage is not None)

                cases.run(f"{mode} event {event.number}", one)
    cases.settle()


@pytest.mark.bounded
def test_kills_of_a_tick_go_on_from_a_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RINGRIFT_FAULTS_LEDGER", str(tmp_path / "ledger"))
    monkeypatch.setenv("RINGRIFT_FAULTS_COUNT", "6")
    events, done = 3 * len(STAGES), []

    def kill_at(mode: str, number: int) -> str | None:
        if len(done) == 20:
            raise KeyboardInterrupt
        done.append((mode, number))
        return STAGES[(number - 1) // 3] if number <= events else None

    def again() -> Cases:
        monkeypatch.setattr(tally, "records", {})
        return kill_every_stage(events, kill_at)

    with pytest.raises(KeyboardInterrupt):
        again()
    before = len(done)
    assert before == 20 and (line := tally.figures()[0]).endswith("NOT FINISHED: a tick"), line
    done.clear()
    cases = again()
    counts, _ = hits(cases)
    assert counts.keys() == {*STAGES} and min(counts.values()) >= 6
    assert before + len(done) == len(cases.noted()), "one was done twice"
    done.clear()
    assert hits(again())[0] == counts and not done
    (line, _) = tally.figures()
    assert all(f"{counts[stage]} of 6 {stage}" in line for stage in STAGES)
    assert line.endswith("0 bad")
