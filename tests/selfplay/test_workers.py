from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ringrift_pipeline.selfplay import (
    Interrupted,
    Plan,
    SelfplayError,
    collect,
    plan_generation,
    play_shard,
    play_shards,
    shard_kind,
    workers,
)
from ringrift_pipeline.selfplay.stopping import Reporter
from ringrift_pipeline.store import CorruptArtefactError, MissingArtefactError, Store

from .conftest import CONFIG, NOW, prepared, settings


def shard_bytes(store: Store, plan: Plan) -> list[bytes]:
    return [
        store.require(plan.config, plan.generation, shard_kind(index))
        .file("shard.arrow")
        .read_bytes()
        for index in range(len(plan.shards))
    ]


class Deaf:
    """A process that does not end by itself."""

    exitcode: int | None = None

    def join(self, timeout: float | None = None) -> None:
        assert timeout is not None or self.exitcode is not None, "it would be waited for for ever"

    def kill(self) -> None:
        self.exitcode = -signal.SIGKILL


def test_a_worker_that_closes_its_pipe_and_hangs_is_killed(met: tuple[Store, Plan]) -> None:
    store, plan = met
    crew = workers._Crew(store, plan, 1, workers._Tally(plan, [], Reporter()), 60.0)
    ours, theirs = multiprocessing.Pipe()
    theirs.close()
    worker = workers._Worker(Deaf(), ours)
    crew._workers.append(worker)
    assert crew._hear(worker) == "died"
    assert worker.end == "hung after it had closed its pipe" and not crew._workers


def test_workers_do_not_change_the_bytes_and_a_killed_one_is_replaced(
    met: tuple[Store, Plan], store: Store
) -> None:
    """Games of the champion alone and against an earlier model."""
    alone, reference = met
    plan = prepared(store)
    killed: list[int] = []
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int, message: str) -> None:
        seen.append((done, total))
        assert "games/s" in message and "positions/s" in message
        children = multiprocessing.active_children()
        if not killed and len(children) == 2:
            killed.append(children[0].pid or 0)
            os.kill(killed[0], signal.SIGKILL)

    artefacts = play_shards(store, plan, workers=2, progress=progress)
    assert killed and [a.metadata["games"] for a in artefacts] == [2, 2, 1]
    assert shard_bytes(store, plan) == shard_bytes(alone, reference)
    assert [a.digest for a in artefacts] == [
        alone.require(CONFIG, 3, shard_kind(index)).digest for index in range(3)
    ]
    assert seen[-1] == (5, 5) and all(total == 5 for _, total in seen)
    assert not multiprocessing.active_children()


def test_a_stop_leaves_finished_shards_and_nothing_else(store: Store) -> None:
    plan = plan_generation(store, CONFIG, 0, settings(), NOW)
    polls = 0

    def should_stop() -> bool:
        nonlocal polls
        polls += 1
        return store.current(CONFIG, 0, shard_kind(0), verify=False) is not None

    with pytest.raises(Interrupted, match="run again"):
        play_shards(store, plan, workers=1, should_stop=should_stop)
    assert polls > 1
    first = store.require(CONFIG, 0, shard_kind(0))
    assert store.current(CONFIG, 0, shard_kind(1)) is None
    with pytest.raises(MissingArtefactError):
        collect(store, plan)
    artefacts = play_shards(store, plan, workers=1)
    assert artefacts[0] == first and len(artefacts) == 3


def test_a_corrupt_shard_is_played_again_with_the_same_bytes(store: Store) -> None:
    plan = plan_generation(store, CONFIG, 0, settings(), NOW)
    good = play_shard(store, plan, 0)
    path = good.file("shard.arrow")
    data = path.read_bytes()
    path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    again = play_shard(store, plan, 0)
    assert again.path != good.path and again.digest == good.digest
    assert again.file("shard.arrow").read_bytes() == data
    again.file("shard.arrow").write_bytes(b"")
    with pytest.raises(CorruptArtefactError):
        collect(store, plan)


def test_a_shard_that_landed_without_its_games_is_played_again(store: Store) -> None:
    """As it could once, where the file had vanished before."""
    plan = plan_generation(store, CONFIG, 0, settings(), NOW)
    good = play_shard(store, plan, 0)
    with store.create(CONFIG, 0, good.kind, good.metadata):
        pass
    again = play_shard(store, plan, 0)
    assert again.digest == good.digest and store.current(CONFIG, 0, good.kind) == again


def test_batches_of_parallel_games_belong_to_the_plan_not_to_chance(store: Store) -> None:
    """More games than slots: the shard still holds each game once, in order."""
    plan = plan_generation(
        store, CONFIG, 0, settings(selfplay__games=3, selfplay__games_per_shard=3), NOW
    )
    artefact = play_shard(store, plan, 0)
    assert artefact.metadata["games"] == 3 and artefact.metadata["player"] == "heuristic"


def test_progress_is_thinned_but_its_end_is_not() -> None:
    heard: list[int] = []
    reporter = Reporter(lambda done, total, message: heard.append(done), interval=3600)
    for done in range(101):
        reporter.report(done, 100, "")
    assert heard == [0, 100]
    reporter.check("no stop was asked for")
    with pytest.raises(Interrupted, match="because"):
        Reporter(should_stop=lambda: True).check("because")


def test_negative_workers_are_refused(played: tuple[Store, Plan]) -> None:
    with pytest.raises(ValueError, match="one a core"):
        play_shards(*played, workers=-1)


@pytest.mark.parametrize("allocate", [np.empty, torch.empty], ids=["numpy", "torch"])
def test_a_shortage_of_memory_names_the_shard(
    store: Store, monkeypatch: pytest.MonkeyPatch, allocate: Callable[[int], Any]
) -> None:
    """The libraries' own errors, of an allocation that no machine has room for."""
    plan = plan_generation(store, CONFIG, 0, settings(), NOW)
    monkeypatch.setattr(workers, "play_shard", lambda *_, **__: allocate(1 << 55))
    with pytest.raises(SelfplayError, match="shard 0 ran out of memory: lower"):
        play_shards(store, plan, workers=1)


def test_another_error_is_not_taken_for_a_shortage(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_generation(store, CONFIG, 0, settings(), NOW)
    monkeypatch.setattr(workers, "play_shard", lambda *_, **__: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        play_shards(store, plan, workers=1)
