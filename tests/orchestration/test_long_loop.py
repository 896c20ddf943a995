"""A loop of many generations: what a look at it reads does not grow with them, and nothing is missed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.test_utils import create_run_for_test

from ringrift_pipeline.enhancements.training_config import TrainingConfig
from ringrift_pipeline.orchestration import loop, names
from ringrift_pipeline.orchestration.decisions import CHECKS, LIMIT, read_decision
from ringrift_pipeline.orchestration.instance import open_instance
from ringrift_pipeline.orchestration.loop import Loop, LoopError, LoopRequest, Snapshot
from ringrift_pipeline.store import Store

CONFIG = "square8_2p"


@pytest.fixture
def instance(data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DagsterInstance]:
    monkeypatch.setattr(loop, "LOOK", 0.0)
    with open_instance(data) as made:
        yield made


def entered(data: Path, instance: DagsterInstance, generations: int) -> Loop:
    """A loop that is watched, and has started nothing."""
    settings = TrainingConfig.preset("smoke")
    work = Loop(LoopRequest(CONFIG, data, settings, generations=generations))
    work._instance = instance
    work._before = dict.fromkeys(work.states)
    return work


def run(
    instance: DagsterInstance, generation: int, status: DagsterRunStatus = DagsterRunStatus.SUCCESS
) -> str:
    """The id of a run that has made a generation, or is at it."""
    tags = {names.CONFIG_TAG: CONFIG, names.PARTITION_TAG: names.generation_key(generation)}
    job = names.job_name(CONFIG)
    return create_run_for_test(instance, job_name=job, status=status, tags=tags).run_id


def decide(store: Store, generation: int, run_id: str, **more: Any) -> None:
    decision = {"promoted": False, "reasons": ["it lost"], "end": None, "next": generation + 1}
    with store.create(CONFIG, generation, "decision", decision | {"run": run_id} | more):
        pass


def made(work: Loop, generations: int) -> list[str]:
    """So many are decided, each followed by the next, of which the last one is at work. Their runs."""
    runs = [run(work.instance, generation) for generation in range(generations)]
    for generation, run_id in enumerate(runs):
        decide(work.store, generation, run_id)
    run(work.instance, generations, DagsterRunStatus.STARTED)
    return runs


def decided(snapshot: Snapshot) -> int:
    return sum(state.decided for state in snapshot.generations)


@pytest.mark.parametrize("generations", [3, 12])
def test_a_look_reads_no_decision_but_the_newest(
    data: Path, instance: DagsterInstance, generations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = entered(data, instance, generations + 3)
    made(work, generations)
    asked: list[int] = []

    def read(store: Store, config: str, generation: int) -> dict[str, Any] | None:
        asked.append(generation)
        return read_decision(store, config, generation)

    monkeypatch.setattr(loop, "read_decision", read)
    looks = work.watch()
    assert decided(next(looks)) == generations
    assert sorted(asked) == list(range(generations))  # each of them once
    asked.clear()
    for _ in range(3):
        assert decided(next(looks)) == generations
    assert asked == [generations - 1] * 3


def test_the_newest_decision_may_be_another_one_since(
    data: Path, instance: DagsterInstance
) -> None:
    """Its evaluation was made again while the next generation is at work."""
    work = entered(data, instance, 5)
    made(work, 3)
    looks = work.watch()
    next(looks)
    next(looks)
    decide(work.store, 2, "again", end=CHECKS, reasons=["no_leakage failed"], next=None)
    with pytest.raises(LoopError, match="0002: no_leakage failed"):
        next(looks)


def test_a_fault_is_found_though_later_ones_were_decided_before_the_same_look(
    data: Path, instance: DagsterInstance
) -> None:
    work = entered(data, instance, 5)
    runs = made(work, 3)
    decide(work.store, 1, runs[1], end=CHECKS, reasons=["no_leakage failed"], next=None)
    looks = work.watch()
    next(looks)
    with pytest.raises(LoopError, match="0001: no_leakage failed"):
        next(looks)


def test_a_generation_that_nothing_follows_ends_the_loop(
    data: Path, instance: DagsterInstance
) -> None:
    work = entered(data, instance, 5)
    for generation in range(2):
        decide(work.store, generation, run(instance, generation))
    decide(work.store, 1, "again", end=LIMIT, reasons=["the last one asked for"], next=None)
    looks = work.watch()
    assert decided(next(looks)) == 2
    with pytest.raises(LoopError, match="0002 was not started: the last one asked for"):
        next(looks)
