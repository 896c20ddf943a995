"""``benchmarks/soak.py``: each of its promises fails where it is not kept, by made-up observations."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from dagster import DagsterEvent, DagsterEventType
from dagster._core.events import EngineEventData

from ringrift_pipeline.enhancements.training_config import TrainingConfig
from ringrift_pipeline.orchestration.build import build_definitions
from ringrift_pipeline.orchestration.instance import open_instance
from ringrift_pipeline.orchestration.names import PARTITION_TAG, job_name
from ringrift_pipeline.orchestration.settings import run_config
from ringrift_pipeline.orchestration.step import BEGAN, SECONDS
from ringrift_pipeline.store import Store
from tests import loading

CONFIG = "square8_2p"
HOUR = 3600.0
SPANS = [(at + 5.0, at + 55.0) for at in range(0, 3600, 60)]  # work for 50 s of every minute


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    loading.benchmark(monkeypatch, "orchestration")  # which it imports from
    return loading.benchmark(monkeypatch, "soak_claims")


def seen(soak: ModuleType, **changed: Any) -> Any:
    """An hour in which every promise was kept, and what is otherwise."""
    told: dict[str, Any] = {
        "ended": HOUR,
        "kills": [(float(at), "step") for at in range(90, 3500, 45)],
        "samples": [
            (float(at), kind, 7, {"memory": 100.0, "open files": 9.0, "threads": 4.0})
            for kind in soak.SERVICES
            for at in range(0, 3600, 60)
        ],
        "disk": looks(soak, stayed=40_000.0, history=10_000.0),
        "games": Counter({f"game-{number}": 1 for number in range(48)}),
        "checked": set(range(12)),
    }
    made = soak.Seen(**told | changed)
    for generation in range(12):
        made.landings[generation, "selfplay-shard-0000"].add("one")
    return made


def looks(soak: ModuleType, stayed: float, history: float) -> list[Any]:
    """The disk after 2 and after 12 generations, of which 9 lie behind."""
    return [
        soak.Disk(300.0, 2, 60_000.0, 0, 0.0, 2000.0),
        soak.Disk(3600.0, 12, 150_000.0, 9, stayed, history),
    ]


def missed(soak: ModuleType, what: Any, spans: Any = SPANS, twice: str = "") -> list[str]:
    succeeded = Counter({f"{number:04d}": 1 for number in range(12)})
    succeeded.update([twice] if twice else [])
    found = [*soak.claims(what, soak.Work(spans, [], succeeded), means=True)]
    for each in found:
        json.dumps(each, allow_nan=False)
    return [each["claim"].removeprefix("soak: ") for each in found if not soak.kept(each)]


def test_an_hour_without_a_fault_is_kept(soak: ModuleType) -> None:
    assert missed(soak, seen(soak)) == []


def failures(soak: ModuleType) -> Iterator[tuple[Any, str]]:
    """What was seen, and the claim that is not kept."""
    yield seen(soak, checked=set()), "generations completed"
    yield seen(soak, checked={0, 1, 2, 3, 4}), "generations completed"
    yield seen(soak, ended=120.0, checked=set()), "generations completed"
    yield seen(soak, kills=[]), "kills"
    yield seen(soak, lost=1), "games lost"
    yield seen(soak, games=Counter({"game-1": 2})), "games in two shards"
    replayed = seen(soak)
    replayed.landings[3, "selfplay-shard-0000"].add("another")
    yield replayed, "shards played twice"
    yield seen(soak, checked={*range(11), 12}), "generations missing"
    yield seen(soak, unloadable=1), "champion not loadable"
    lately = "after retention, artefacts"
    yield seen(soak, disk=looks(soak, stayed=80_000.0, history=10_000.0)), lately
    yield seen(soak, disk=looks(soak, stayed=40_000.0, history=40_000.0)), "retention, history"
    one = looks(soak, stayed=40_000.0, history=10_000.0)[1:]
    yield seen(soak, disk=one * 3), "looks at the disk with a generation between them"
    none = [look._replace(behind=0) for look in looks(soak, stayed=0.0, history=10_000.0)]
    yield seen(soak, disk=none), "generations that lie behind, for their disk"
    grown = [
        (float(at), "daemon", 7, {"memory": 100.0 + at / 60, "open files": 9.0, "threads": 4.0})
        for at in range(0, 3600, 60)
    ]
    yield seen(soak, samples=grown), "growth of the daemon's memory"


def test_what_is_not_kept_is_told(soak: ModuleType) -> None:
    for what, name in failures(soak):
        found = missed(soak, what)
        assert len(found) == 1 and found[0].endswith(name), (found, name)
    assert missed(soak, seen(soak), twice="0003") == ["generations made twice"]


def test_growth_is_told_of_processes_that_were_there_for_long(soak: ModuleType) -> None:
    def samples(seconds: int, grows: float) -> list[tuple[float, int, float]]:
        """Some processes one after the other, each of which loads for five minutes."""
        return [
            (float(at), at // seconds, 100.0 * min(at % seconds, 300) + grows * (at % seconds))
            for at in range(0, 3600, 60)
        ]

    assert soak.slope(samples(600, 0.0)) is None
    assert soak.slope(samples(1800, 0.0)) == pytest.approx(0.0)
    assert soak.slope(samples(1800, 0.01)) == pytest.approx(36.0)
    told = [(at, "daemon", pid, {"memory": value, "open files": 1.0, "threads": 1.0})
            for at, pid, value in samples(600, 1.0)]  # fmt: skip
    assert missed(soak, seen(soak, samples=told)) == []
    found = soak.claims(seen(soak, samples=told), soak.Work(SPANS, [], Counter()), means=True)
    assert "soak: growth of the daemon's memory: killed too often to tell" in [
        each["claim"] for each in found
    ]


def test_a_kill_after_which_nothing_works_counts_as_endless(soak: ModuleType) -> None:
    kills = [(100.0, "run"), (300.0, "daemon"), (359.0, "loop")]
    waits = soak.to_next_work(kills, [(90.0, 120.0), (310.0, 340.0)])
    assert waits == [("run", 0.0), ("daemon", 10.0), ("loop", math.inf)]
    found = missed(soak, seen(soak, kills=kills), [(90.0, 120.0), (310.0, 340.0)])
    assert "kills after which no work was done any more" in found
    assert any("99th percentile of 3 kills" in each for each in found)
    assert any("99th percentile of 2 kills that left no useful work" in each for each in found)
    assert missed(soak, seen(soak), [])  # nothing ever came to its end


def test_percentiles_are_given_over_kills_that_stopped_work(soak: ModuleType) -> None:
    """Where most kills stop nothing, the time to come back is not hidden among their zeros."""
    kills = [(float(at), "webserver") for at in range(200)] + [(300.0, "loop")]
    spans = [(0.0, 250.0), (340.0, 350.0)]
    found = {
        each["claim"]: each
        for each in soak.waiting(kills, soak.Work(spans, [], Counter()), means=True)
    }
    over = "soak: from a kill to the next useful step, {} of {}"
    assert found[over.format("99th percentile", "201 kills")]["value"] == 0.0
    alone = found[over.format("median", "1 kills that left no useful work")]
    assert alone["value"] == 40.0 and not soak.kept(alone)


def test_a_wait_into_which_another_kill_falls_counts_up_to_that(soak: ModuleType) -> None:
    kills = [(100.0, "run"), (110.0, "run"), (200.0, "step"), (300.0, "loop"), (312.0, "step")]
    spans = [(0.0, 90.0), (125.0, 130.0), (208.0, 230.0), (330.0, 340.0)]
    waits = soak.to_next_work(kills, spans)
    assert [seconds for _, seconds in waits] == [25.0, 15.0, 8.0, 30.0, 18.0]
    cut = soak.alone(kills, [seconds for _, seconds in waits], [])
    assert cut == [(10.0, False), (15.0, True), (8.0, True), (12.0, False), (18.0, True)]
    # by hand: of 5 one ends at 8, of the 2 left after 10 and 12 one at 15, the last at 18
    assert soak.quantile(cut, 0.2) == 8.0
    assert soak.quantile(cut, 0.21) == soak.quantile(cut, 0.6) == 15.0  # 1 - 4/5 * 1/2
    assert soak.quantile(cut, 0.61) == soak.quantile(cut, 0.99) == 18.0
    assert soak.quantile(cut[:1], 0.5) == math.inf
    found = {
        each["claim"]: each["value"]
        for each in soak.waiting(kills, soak.Work(spans, [], Counter()), means=True)
    }
    assert found["soak: from a kill to the next useful step, 99th percentile of 5 kills"] == 18.0
    whole = "soak: with all kills that fall between, to the next useful step, {} of 5 kills"
    assert found[whole.format("99th percentile")] == 30.0
    assert found[whole.format("median")] == 18.0


def test_a_wait_ends_where_work_is_begun_that_another_kill_cuts_off(soak: ModuleType) -> None:
    kills = [(100.0, "loop"), (120.0, "daemon"), (121.0, "step"), (200.0, "webserver")]
    seconds = [30.0, 10.0, 9.0, 5.0]
    later = soak.Begun(112.0, 118.0)  # in a run that was started after the first kill
    assert soak.alone(kills, seconds, [later])[0] == (18.0, True)
    doomed = soak.Begun(50.0, 101.0)  # by a process of the killed command's that lived on a moment
    assert soak.alone(kills, seconds, [doomed])[0] == (20.0, False)
    assert soak.alone([(100.0, "step"), *kills[1:]], seconds, [doomed])[0] == (1.0, True)
    assert soak.alone(kills, seconds, [soak.Begun(112.0, 122.0)])[0] == (20.0, False)
    assert soak.alone(kills, seconds, [later])[3] == (5.0, True)
    # one that work of its own ended before the next kill is as long as it was
    assert soak.alone([(100.0, "step")], [15.0], [soak.Begun(0.0, 102.0)]) == [(15.0, True)]
    # the web server's death cuts nothing off
    assert soak.alone([(100.0, "run"), (105.0, "webserver")], [9.0, 4.0], [])[0] == (9.0, True)


def test_what_a_step_began_and_did_not_end_is_read_from_the_history(
    soak: ModuleType, tmp_path: Path
) -> None:
    """Killed twice, done the third time, and found made the fourth."""
    with open_instance(tmp_path) as instance:
        for seconds in (None, None, 0.5, 0.1):
            run = instance.create_run_for_job(
                build_definitions().resolve_job_def(job_name(CONFIG)),
                run_config=run_config(TrainingConfig.preset("smoke")),
                tags={PARTITION_TAG: "0003"},
            )
            time.sleep(1.1 * soak.TOLD)
            step = "square8_2p__checkpoint"
            for kind in (DagsterEventType.PIPELINE_START, DagsterEventType.STEP_START):
                key = step if kind == DagsterEventType.STEP_START else None
                event = DagsterEvent(kind.value, run.job_name, step_key=key)
                instance.report_dagster_event(event, run.run_id)
            if seconds is not None:
                told = EngineEventData({BEGAN: time.time(), SECONDS: seconds})
                instance.report_engine_event("done", run, told, step_key=step)
                ended = DagsterEvent(DagsterEventType.PIPELINE_SUCCESS.value, run.job_name)
                instance.report_dagster_event(ended, run.run_id)
    work = soak.useful_work(tmp_path, CONFIG)
    ((start, end),) = work.spans
    assert end - start == pytest.approx(0.5)
    assert len(work.begun) == 2 and all(one.run <= one.at < start for one in work.begun)
    assert work.succeeded == {"0003": 2}


def test_shards_that_landed_again_are_seen_though_one_was_deleted(
    soak: ModuleType, tmp_path: Path
) -> None:
    store, what = Store(tmp_path / "data"), soak.Seen(ended=1.0)
    store.write_plan(CONFIG, 0, {"seed": 1})
    for kind in ("selfplay-shard-0000", "selfplay-shard-0001", "window"):
        with store.create(CONFIG, 0, kind) as draft:
            (draft / "x").write_text(kind)
    what.see_landings(store, CONFIG)
    what.see_landings(store, CONFIG)
    assert {key: len(names) for key, names in what.landings.items()} == {
        (0, "selfplay-shard-0000"): 1,
        (0, "selfplay-shard-0001"): 1,
    }
    with store.create(CONFIG, 0, "selfplay-shard-0001") as draft:
        (draft / "x").write_text("the same games again")
    store.remove(CONFIG, 0, "selfplay-shard-0001", draft.artefact.path)
    what.see_landings(store, CONFIG)
    assert "shards played twice" in missed(soak, what)


def test_a_champion_that_was_there_has_to_stay(soak: ModuleType, tmp_path: Path) -> None:
    store, what = Store(tmp_path / "data"), soak.Seen()
    what.see_champion(store, CONFIG)
    assert what.unloadable == 0
    with store.create(CONFIG, 0, "ema_model") as draft:
        (draft / "x").write_text("a model")
    store.promote(CONFIG, 0, draft.artefact, {})
    what.see_champion(store, CONFIG)
    assert what.unloadable == 0
    what.see_champion(Store(tmp_path / "empty"), CONFIG)
    assert what.unloadable == 1
