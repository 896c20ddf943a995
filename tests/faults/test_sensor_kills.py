"""The daemon is killed at any file event of a tick of ``evaluation_landed``.

Started again it does what is left: each generation has been started once, each model promoted once,
whether it died before anything was evaluated, in the midst of that, before, between or after the
submission of the runs, or once the cursor had been kept. ``python -m faults ticks`` goes on until a
hundred kills have hit each stage of the tick.
"""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from pathlib import Path

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


def kill(ticker: Zygote, landed: Path, place: Path, mode: str, number: int) -> str | None:
    """One kill and the daemon's next life; the stage it hit, None if the tick ended before it."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(landed, place)
    began = time.time()
    run = ticker.traced(place, "tick", 0, mode, number)
    if run.status == 0:
        return None
    assert run.status == KILLED, run.errors
    stage = stage_of(place)
    what = f"killed {mode} event {number} ({run.events[-1].name} {run.events[-1].path}): {stage}"
    go_on(ticker, place, began, what)
    return stage


def go_on(ticker: Zygote, place: Path, began: float, what: str, how: str = "tick") -> None:
    """Two ticks that nothing disturbs, the second of which finds nothing to do; then `check`."""
    for _ in range(2):
        time.sleep(max(0.0, INTERVAL + 0.1 - (time.time() - began)))
        began = time.time()
        assert ticker.run(place, how, 0) == 0, f"{what}: {ticker.log.read_text()}"
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


def test_a_daemon_killed_at_a_few_events_of_a_tick(
    ticker: Zygote, landed: Path, tmp_path: Path
) -> None:
    shutil.copytree(landed, tmp_path / "whole")
    events = ticker.traced(tmp_path / "whole", "tick", 0).events
    check(tmp_path / "whole", "undisturbed")
    for part, mode in ((0.25, "before"), (0.5, "torn"), (0.75, "after")):
        stage = kill(ticker, landed, tmp_path / "data", mode, int(part * len(events)))
        assert stage is not None


def test_a_daemon_killed_at_every_stage_a_hundred_times(
    ticker: Zygote, landed: Path, tmp_path: Path
) -> None:
    which, parts = tally.share()
    cases = Cases("killed ticks", f"share {which + 1}/{parts}")
    hits: Counter[str] = Counter()
    where: dict[str, list[int]] = {}  # the events at which a stage was hit

    def one(mode: str, number: int) -> int:
        stage = kill(ticker, landed, tmp_path / "data", mode, number)
        if stage is None:
            return 0
        hits[stage] += 1
        where.setdefault(stage, []).append(number)
        return 1

    shutil.copytree(landed, tmp_path / "whole")
    events = len(ticker.traced(tmp_path / "whole", "tick", 0).events)
    cases.keep("# events traced", events)
    for number in range(1, events + 1):
        cases.run(f"before event {number}", lambda n=number: one("before", n))  # type: ignore[misc]
    rng = random.Random(f"{tally.seed()} {which}")
    number = 0
    while hits and min(hits.values()) < tally.wanted(ENOUGH):
        stage = min(hits, key=lambda stage: hits[stage])
        mode, event = rng.choice(MODES), max(1, rng.choice(where[stage]) + rng.randint(-2, 2))
        cases.run(f"kill {number}", lambda m=mode, e=event: one(m, e), ours=True)  # type: ignore[misc]
        number += 1
    for stage, count in hits.items():
        cases.keep(f"# at: {stage}", count)
    cases.settle()
    assert {*STAGES} <= hits.keys()
