"""Several at once on one data root: loops, configs, daemons; one of them may die.

The quick ones are in ``tests/orchestration/test_once.py`` and ``test_backfill.py``.
"""

from __future__ import annotations

import multiprocessing
import random
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster import DagsterRunStatus, RunsFilter

from ringrift_pipeline.enhancements import TrainingConfig
from ringrift_pipeline.orchestration import names
from ringrift_pipeline.orchestration.decisions import read_decision
from ringrift_pipeline.orchestration.instance import open_instance, prepare_home
from ringrift_pipeline.orchestration.instance_file import instance_file
from ringrift_pipeline.orchestration.places import home_folder
from ringrift_pipeline.orchestration.sensor import INTERVAL
from ringrift_pipeline.orchestration.settings import run_config
from ringrift_pipeline.selfplay import collect, plan_generation, play_shards
from ringrift_pipeline.store import Store
from ringrift_pipeline.store.locks import folder_lock

from . import stages
from .outcomes import contents, made
from .supervising import Command, all_gone, launched, loop
from .test_loop_kills import SETTINGS, free_port
from .test_sensor_kills import runs
from .ticks import TWO
from .tracing import Zygote

ROUNDS = 100


def test_a_second_loop_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    """Of the same config, and of another one."""
    root = tmp_path / "data"
    first = loop(root, "--set=selfplay.games=4000", "--set=selfplay.games_per_shard=1000")
    first.works_at("play")
    for more in ((), ("--config=hex8_2p",)):
        second = loop(root, *more)
        assert second.end() == 2, second.told
        assert f"process {first.process.pid}" in second.told
        assert "stop that process" in second.told and "Traceback" not in second.told
    first.works_at("play", "collect", "checkpoint")
    first.ask()
    assert first.end() == 130, first.told
    assert all_gone(root) == []
    with open_instance(root) as instance:
        assert runs(instance) == [(names.job_name(stages.CONFIG), "0000")]


def test_a_second_verb_is_refused_and_one_that_was_killed_is_in_nobodys_way(
    tmp_path: Path,
) -> None:
    root = tmp_path / "data"
    line = ("--preset=smoke", "--device=cpu", "--generation=0", "--set=selfplay.games=4000")
    first = Command(root, "selfplay", *line)
    first.says("games/s")
    second = Command(root, "selfplay", *line)
    assert second.end() == 2, second.told
    assert f"process {first.process.pid}" in second.told
    first.process.send_signal(signal.SIGKILL)
    assert first.end() == -9
    third = Command(root, "selfplay", *line)
    third.says("games/s")
    third.ask()
    assert third.end() == 130, third.told


def _play(root: str, config: str) -> None:
    store = Store(root)
    settings = TrainingConfig().with_overrides(stages.TINY)
    plan = plan_generation(store, config, 0, settings, stages.NOW)
    play_shards(store, plan, workers=1)
    collect(store, plan)


def test_two_configs_at_once_each_played_twice(tmp_path: Path) -> None:
    """Four processes that know nothing of each other make what one alone makes."""
    context = multiprocessing.get_context("spawn")
    jobs = [("alone", config) for config in TWO]
    jobs += [("together", config) for config in TWO for _ in range(2)]
    for place in ("alone", "together"):
        processes = [
            context.Process(target=_play, args=(str(tmp_path / where), config))
            for where, config in jobs
            if where == place
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0
    alone, together = Store(tmp_path / "alone"), Store(tmp_path / "together")
    for config in TWO:
        kinds = alone.kinds(config, 0)
        assert kinds == together.kinds(config, 0) and len(kinds) == 3
        for kind in kinds:
            mine, theirs = alone.require(config, 0, kind), together.require(config, 0, kind)
            assert contents(mine) == contents(theirs)
        assert not [*together.root.rglob("quarantine/*")]


# --- two configs through one daemon --------------------------------------------------------------


def launch(port: int, root: Path, config: str) -> str:
    """Launch generation 0 of a config, and no later one, as the launchpad does; the run's id."""
    settings = TrainingConfig().with_overrides({"device": "cpu", **SETTINGS})
    parameters = {
        "selector": {
            "repositoryLocationName": names.MODULE,
            "repositoryName": "__repository__",
            "jobName": names.job_name(config),
        },
        "runConfigData": run_config(settings, last_generation=0),
        "executionMetadata": {"tags": [{"key": names.PARTITION_TAG, "value": "0000"}]},
    }
    with open_instance(root) as instance:
        instance.add_dynamic_partitions(names.partitions_name(config), ["0000"])
    return launched(port, parameters)


def made_through_the_ui(root: Path, configs: Sequence[str]) -> tuple[dict[str, Any], list[Any]]:
    """What ``ringrift ui`` makes of a generation of each, launched together; their runs' times."""
    roomy = yaml.safe_load(instance_file())
    roomy["concurrency"]["runs"]["max_concurrent_runs"] = 2  # however few cores there are
    (prepare_home(root) / "dagster.yaml").write_text(yaml.safe_dump(roomy))
    port = free_port()
    command = Command(root, "ui", "--no-play", "--port", str(port))
    try:
        command.says("Ctrl-C stops it.")
        ids = [launch(port, root, config) for config in configs]
        with open_instance(root) as instance:
            for run_id in ids:
                command.until(
                    lambda run_id=run_id: instance.get_run_by_id(run_id).is_finished,  # type: ignore[union-attr, misc]
                    f"end of the run {run_id}",
                )
                run = instance.get_run_by_id(run_id)
                assert run is not None and run.status == DagsterRunStatus.SUCCESS, run
            for config in configs:
                command.until(
                    lambda config=config: read_decision(Store(root), config, 0),  # type: ignore[misc]
                    f"decision on {config}",
                )
            records = instance.get_run_records(RunsFilter(run_ids=ids))
    finally:
        command.ask()
        assert command.end() == 0, command.told
    assert all_gone(root) == []
    found = made(root)
    for config in configs:
        decision = read_decision(Store(root), config, 0)
        assert decision is not None
        found[f"{config} promoted"] = decision["promoted"]
    return found, [(record.start_time, record.end_time) for record in records]


def test_two_configs_at_once_through_one_daemon_make_what_each_makes_alone(
    tmp_path: Path,
) -> None:
    together, times = made_through_the_ui(tmp_path / "together", TWO)
    (one, two) = times
    assert max(one[0], two[0]) < min(one[1], two[1])  # they were at work at once
    alone: dict[str, Any] = {}
    for config in TWO:
        alone |= made_through_the_ui(tmp_path / config, [config])[0]
    assert len([name for name in alone if name.endswith("evaluation")]) == len(TWO)
    assert together == alone


# --- two daemons --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tickers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Zygote, Zygote]]:
    both = [Zygote(tmp_path_factory.mktemp(name), "ticks") for name in ("one", "other")]
    yield both[0], both[1]
    for zygote in both:
        zygote.close()


def test_two_daemons_by_mistake_a_hundred_times(
    tickers: tuple[Zygote, Zygote], tmp_path: Path
) -> None:
    """In the midst of a tick both, in every other round one of them is killed at some moment."""
    landed = tmp_path / "landed"
    one, other = tickers
    assert one.run(landed, "tick", 0) == 0, (
        one.log.read_text()
    )  # Dagster cannot begin twice at once
    assert one.run(landed, "land", 0) == 0, one.log.read_text()
    rng = random.Random(0)
    for number in range(ROUNDS):
        root = tmp_path / "data"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(landed, root)
        with ThreadPoolExecutor(2) as pool:
            with folder_lock(home_folder(root)):
                ticks = [pool.submit(one.run, root, "tick beside another", 0)]
                time.sleep(INTERVAL + 0.3)
                if number % 2:
                    after = rng.uniform(0.0, 2.0)
                    ticks.append(
                        pool.submit(other.killed_after, root, "tick beside another", 0, after)
                    )
                else:
                    ticks.append(pool.submit(other.run, root, "tick beside another", 0))
                time.sleep(rng.uniform(0.0, 1.0))
            statuses = [tick.result() for tick in ticks]
        assert statuses[0] == 0 and statuses[1] in (0, -9), (number, one.log.read_text())
        for _ in range(2):  # the one that is left
            time.sleep(INTERVAL + 0.1)
            assert one.run(root, "tick", 0) == 0, (number, one.log.read_text())
        store = Store(root)
        with open_instance(root) as instance:
            wanted = sorted((names.job_name(config), "0001") for config in TWO)
            assert runs(instance) == wanted, number
            for run in instance.get_runs():
                if run.job_name.endswith("_generation"):
                    assert run.status == DagsterRunStatus.QUEUED, number
            for config in TWO:
                assert [found.generation for found in store.champions(config)] == [0], number
