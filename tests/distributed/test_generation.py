"""One whole generation on two workers, and what may happen in the middle of a real shard: its worker
dies, the bucket refuses to be written to, Redis and PostgreSQL are restarted.

Every process has an empty folder of its own, and shares nothing with the others but Redis, PostgreSQL
and the bucket.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterEventType, DagsterInstance, DagsterRunStatus

from ringrift_pipeline.orchestration import names
from ringrift_pipeline.orchestration.instance import open_instance
from ringrift_pipeline.orchestration.progress import read_progress
from ringrift_pipeline.selfplay import load_plan, play_shards
from ringrift_pipeline.store import Store
from ringrift_pipeline.store.kinds import shard_kind
from tests.faults.supervising import TINY
from tests.orchestration.served import Served, served
from tests.waiting import PATIENCE, until

from .cluster import ROOT, Cluster, cluster, has_buckets
from .conftest import PATIENCE as SETTINGS

pytestmark = [pytest.mark.services, pytest.mark.slow]

CONFIG = "square8_2p"
GAMES = ["--set=selfplay.games=16", "--set=selfplay.games_per_shard=4"]
SHARDS = 4
PROCESSES = 2
SELFPLAY = names.node_name(CONFIG, "selfplay_shards")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster of its own, with the environment of this process set to it."""
    if not has_buckets():
        pytest.skip("no bucket here: moto[server] or s3fs is not installed (make services)")
    with cluster() as made:
        for name, value in {**made.environment(), **SETTINGS}.items():
            monkeypatch.setenv(name, value)
        made.prepare(made.data)
        monkeypatch.setenv("RINGRIFT_DATA", str(made.data))
        yield made


def worked_by(instance: DagsterInstance, run_id: str) -> dict[str, list[str]]:
    """By step the workers that have begun it, in order."""
    found = defaultdict(list)
    for event in instance.all_logs(run_id, of_type=DagsterEventType.ENGINE_EVENT):
        data = event.dagster_event.engine_event_data if event.dagster_event else None
        if data is not None and "Celery worker" in data.metadata:
            worker = str(data.metadata["Celery worker"].value).partition("@")[0]
            found[str(event.step_key)].append(worker)
    return found


def shards(store: Store) -> list[bytes]:
    """The shards' files, each of which has landed once."""
    found = []
    for index in range(SHARDS):
        landed = store.artefacts(CONFIG, 0, shard_kind(index))
        assert len(landed) == 1, index
        found.append(store.require(CONFIG, 0, shard_kind(index)).file("shard.arrow").read_bytes())
    return found


def test_a_generation_on_two_workers(alone: Cluster, tmp_path: Path) -> None:
    alone.worker("player", "selfplay", alone.root("player"))
    alone.worker("device", "gpu,selfplay", alone.root("device"))
    alone.ready()
    words = [sys.executable, "-m", "ringrift_pipeline", "loop", "--config", CONFIG, "--json"]
    done = subprocess.run(
        [*words, "--data", str(alone.data), *TINY, *GAMES, f"--set=training.processes={PROCESSES}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=10 * PATIENCE,
    )
    said = f"{done.stderr}\n" + "\n".join(worker.says()[-3000:] for worker in alone.workers)
    assert done.returncode == 0, said
    (summary,) = json.loads(done.stdout)["generations"]
    assert summary["games"] == 16 and summary["promoted"] is not None

    with open_instance(alone.data) as instance:
        (record,) = instance.get_run_records(limit=10)
        run = record.dagster_run
        assert run.status == DagsterRunStatus.SUCCESS
        by = worked_by(instance, run.run_id)
        kinds = {event.event_type for event in _events(instance, run.run_id)}
    for name in ("checkpoint", "ema_model", "ensemble", "calibration_report", "hard_examples"):
        assert by[names.node_name(CONFIG, name)] == ["device"], name
    assert all(len(by[f"{SELFPLAY}.play[{index:04d}]"]) == 1 for index in range(SHARDS))
    assert DagsterEventType.STEP_UP_FOR_RETRY not in kinds

    # The step of a worker divides a training among processes as a command does.
    store = Store(alone.data)
    assert store.require(CONFIG, 0, "checkpoint").metadata["train/processes"] == PROCESSES
    for kind in ("checkpoint", "ema_model", "ensemble", "calibration_report"):
        assert len(store.artefacts(CONFIG, 0, kind)) == 1, kind

    # Each has in its folder what it made or read, the daemon's machine nothing that it did not ask for.
    def has(root: Path, name: str) -> bool:
        return next(root.rglob(name), None) is not None

    player, device = (alone.folder / "roots" / name for name in ("player", "device"))
    assert has(player, "shard.arrow") and has(device, "model.safetensors")
    assert not has(alone.data, "shard.arrow")

    # What two workers played is, byte for byte, what one process plays.
    played = shards(store)
    apart = Store(tmp_path / "apart")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RINGRIFT_BUCKET", raising=False)
        apart = Store(tmp_path / "apart")
        apart.write_plan(CONFIG, 0, store.read_plan(CONFIG, 0))
        play_shards(apart, load_plan(apart, CONFIG, 0), workers=1)
        assert played == shards(apart)


def test_a_bucket_that_refuses_for_a_minute_costs_a_minute(
    alone: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """And what else the shards need is restarted in that minute."""
    assert alone.bucket is not None
    for name in ("one", "two"):
        alone.worker(name, "selfplay", alone.root(name))
    alone.ready()
    with served(alone.data, names.MODULE, tmp_path_factory.mktemp("s") / "code") as serving:
        run = launch_selfplay(serving, 3600)
        until(lambda: in_the_middle(serving, alone, run), "a shard is being played")
        alone.bucket.refuse(True)
        time.sleep(20.0)
        alone.redis.stop()
        alone.postgres.stop()
        time.sleep(10.0)
        alone.redis.start()
        alone.postgres.start()
        time.sleep(30.0)
        assert not serving.is_finished(run), serving.errors(run)
        alone.bucket.refuse(False)
        assert serving.finished(run, 3 * PATIENCE) == DagsterRunStatus.SUCCESS, serving.errors(run)
        assert serving.steps(run, DagsterEventType.STEP_UP_FOR_RETRY) == []
    assert "refuses" in "".join(worker.says() for worker in alone.workers)
    assert len(set(shards(Store(alone.data)))) == SHARDS


def launch_selfplay(serving: Served, games: int) -> str:
    """A run that plays so many games, in four shards."""
    shard = {"games": games, "games_per_shard": games // SHARDS}
    settings = {"preset": "smoke", "device": "cpu", "selfplay": shard}
    serving.instance.add_dynamic_partitions(names.partitions_name(CONFIG), ["0000"])
    config = {"resources": {"settings": {"config": settings}}}
    return serving.launch(names.job_name(CONFIG), config, [[CONFIG, "selfplay_shards"]])


def in_the_middle(serving: Served, servers: Cluster, run: str) -> Any:
    """The step of a shard of which some games are played, and some are not."""
    assert not serving.is_finished(run), serving.errors(run)
    for step in read_progress(servers.data, run):
        if ".play[" in step.step and 0 < step.done < step.total:
            return step
    return None


def _events(instance: DagsterInstance, run_id: str) -> list[Any]:
    return [event.dagster_event for event in instance.all_logs(run_id) if event.dagster_event]


def test_a_shard_whose_worker_dies_is_played_again_elsewhere_once(
    alone: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    workers = {name: alone.worker(name, "selfplay", alone.root(name)) for name in ("one", "two")}
    alone.ready()
    with served(alone.data, names.MODULE, tmp_path_factory.mktemp("s") / "code") as serving:
        run = launch_selfplay(serving, 2400)
        step = until(lambda: in_the_middle(serving, alone, run), "a shard is being played")
        first = step.message.rpartition(" on ")[2].partition("@")[0]
        workers[first].kill()
        (other,) = set(workers) - {first}
        assert serving.finished(run, 3 * PATIENCE) == DagsterRunStatus.SUCCESS, serving.errors(run)
        by = worked_by(serving.instance, run)
        assert by.pop(step.step) == [first, other]
        assert all(len(begun) == 1 for begun in by.values()), by
        again = serving.steps(run, DagsterEventType.STEP_UP_FOR_RETRY)
        assert again == [step.step]

        # Another run finds all of them, and hands out none.
        run = launch_selfplay(serving, 2400)
        assert serving.finished(run) == DagsterRunStatus.SUCCESS, serving.errors(run)
        steps = serving.steps(run, DagsterEventType.STEP_SUCCESS)
        assert steps == [f"{SELFPLAY}.collect", f"{SELFPLAY}.plan"]
    assert len(set(shards(Store(alone.data)))) == SHARDS
