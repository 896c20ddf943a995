"""A backfill of all generations of two configs, launched as in the UI and run to its end: real web server,
real daemon, real runs, in a `gpu` pool of one. (Its order, quickly: ``test_backfill.py``.)
"""

from __future__ import annotations

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster import AssetRecordsFilter, DagsterEventType, DagsterInstance, RunRecord, RunsFilter
from faults.outcomes import everything
from faults.supervising import Command, all_gone, answered
from faults.test_loop_kills import GAMES, SETTINGS, free_port

from ringrift_pipeline.cli import run as ringrift
from ringrift_pipeline.enhancements.training_config import TrainingConfig
from ringrift_pipeline.orchestration import names, pools
from ringrift_pipeline.orchestration.instance import open_instance, prepare_home
from ringrift_pipeline.orchestration.instance_file import instance_file
from ringrift_pipeline.orchestration.places import progress_folder
from ringrift_pipeline.orchestration.settings import run_config
from ringrift_pipeline.orchestration.status import Status, status_of
from ringrift_pipeline.selfplay import load_plan
from ringrift_pipeline.store import Store
from tests.waiting import until

from .test_termination import half_written

pytestmark = pytest.mark.whole

TWO = ("hex8_3p", "square8_2p")
RANGE = ("0000", "0001")
SHARDS = 2
LAUNCH = """
mutation ($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message }
  }
}
"""
PROGRESS = """
query ($id: String!) {
  partitionBackfillOrError(backfillId: $id) {
    __typename
    ... on PythonError { message }
    ... on PartitionBackfill {
      status
      assetBackfillData { assetBackfillStatuses { ... on AssetPartitionsStatusCounts {
        assetKey { path }
        numPartitionsTargeted numPartitionsInProgress numPartitionsMaterialized numPartitionsFailed
      } } }
    }
  }
}
"""
PATIENCE = 3600.0  # seconds for what takes two minutes on a machine that has nothing else to do


def parameters() -> dict[str, Any]:
    """What the UI sends for all assets of both configs. Of several it offers all generations only."""
    settings = TrainingConfig().with_overrides({"device": "cpu", **SETTINGS})
    return {
        "tags": [],
        "assetSelection": [{"path": [config, name]} for config in TWO for name in names.ASSETS],
        "allPartitions": True,
        "runConfigData": json.dumps(run_config(settings)),
    }


class Progress:
    """What the backfill's page has shown so far: of every asset the generations that are made, worked
    on or waited for, and failed, out of those asked for; and what ``ringrift status`` says meanwhile.
    """

    def __init__(self, port: int, root: Path, backfill: str) -> None:
        self.port, self.root, self.backfill = port, root, backfill
        self.shown: list[dict[tuple[str, str], tuple[int, int, int, int]]] = []
        self.statuses: list[Status] = []

    def is_over(self) -> bool:
        """Look once more. Did it succeed? It may not fail."""
        time.sleep(1.0)
        answer = answered(self.port, PROGRESS, id=self.backfill)
        assert answer["__typename"] == "PartitionBackfill", answer
        said = answer["assetBackfillData"]
        self.shown.append(
            {
                tuple(one["assetKey"]["path"]): (
                    one["numPartitionsMaterialized"],
                    one["numPartitionsInProgress"],
                    one["numPartitionsFailed"],
                    one["numPartitionsTargeted"],
                )
                for one in (said["assetBackfillStatuses"] if said else ())
            }
        )
        self.statuses.append(status_of(self.root))
        assert answer["status"] in ("REQUESTED", "COMPLETED_SUCCESS"), answer
        return bool(answer["status"] == "COMPLETED_SUCCESS")


def test_a_backfill_of_several_generations_of_several_configs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    settings = yaml.safe_load(instance_file())
    settings["concurrency"]["runs"]["max_concurrent_runs"] = 2  # however few cores there are
    settings["run_monitoring"]["start_timeout_seconds"] = 900  # however busy they are
    (prepare_home(root) / "dagster.yaml").write_text(yaml.safe_dump(settings))
    with open_instance(root) as instance:
        for config in TWO:
            instance.add_dynamic_partitions(names.partitions_name(config), list(RANGE))
    port = free_port()
    command = Command(root, "ui", "--no-play", "--port", str(port), RINGRIFT_POOL="gpu")
    try:
        command.says("Ctrl-C stops it.")
        answer = answered(port, LAUNCH, params=parameters())
        assert answer["__typename"] == "LaunchBackfillSuccess", answer
        progress = Progress(port, root, answer["backfillId"])
        until(progress.is_over, "the backfill is over", PATIENCE)
        at_the_end = status_of(root)
    finally:
        command.ask()
        assert command.end() == 0, command.told
    assert all_gone(root) == []
    with open_instance(root) as instance:
        records = list(
            instance.get_run_records(RunsFilter(tags={names.BACKFILL_TAG: answer["backfillId"]}))
        )
        assert len(instance.get_run_records()) == len(records)  # nothing else was started
        each_generation_is_one_run_after_the_other(records)
        one_step_at_a_time_was_on_the_gpu(instance, records)
        each_was_made_once(instance, root)
    the_second_learnt_from_the_first(Store(root))
    progress_was_shown(progress)
    status_is_right(root, progress.statuses, at_the_end, capsys)
    assert half_written(root) == [] and [*progress_folder(root).rglob("*.json")] == []


def each_generation_is_one_run_after_the_other(records: list[RunRecord]) -> None:
    times: dict[tuple[str, str], tuple[float, float]] = {}
    for record in records:
        run = record.dagster_run
        where = run.tags[names.CONFIG_TAG], run.tags[names.PARTITION_TAG]
        assert where not in times and run.status.value == "SUCCESS" and run.parent_run_id is None
        assert record.start_time is not None and record.end_time is not None
        times[where] = record.start_time, record.end_time
    assert sorted(times) == [(config, key) for config in TWO for key in RANGE]
    for config in TWO:
        for before, after in pairwise(RANGE):
            assert times[config, before][1] <= times[config, after][0]
    begun = [times[config, RANGE[0]] for config in TWO]  # of both configs at once
    assert max(start for start, _ in begun) < min(end for _, end in begun)


def is_on_the_gpu(step: str) -> bool:
    """Is the step one that waits in the pool?"""
    _, _, name = step.partition("__")
    return name in pools.ON_THE_DEVICE or name.startswith("selfplay_shards.play[")


def one_step_at_a_time_was_on_the_gpu(instance: DagsterInstance, records: list[RunRecord]) -> None:
    spans = []
    for record in records:
        events = {
            kind: {
                event.step_key: event.timestamp
                for event in instance.all_logs(record.dagster_run.run_id, of_type=kind)
            }
            for kind in (DagsterEventType.STEP_START, DagsterEventType.STEP_SUCCESS)
        }
        began, ended = events.values()
        assert began.keys() == ended.keys()
        pooled = [step for step in began if is_on_the_gpu(str(step))]
        others = pools.ON_THE_DEVICE & {*names.ASSETS} - {"selfplay_shards"}
        assert len(pooled) == SHARDS + len(others)
        spans += [(began[step], ended[step], step) for step in pooled]
    for earlier, later in pairwise(sorted(spans)):
        assert earlier[1] <= later[0], (earlier, later)


def each_was_made_once(instance: DagsterInstance, root: Path) -> None:
    store = Store(root)
    for config in TWO:
        everything(root, config, len(RANGE) - 1, GAMES)  # all games, each once, every file verifies
        for key in RANGE:
            kinds = store.kinds(config, int(key))
            shards = {f"selfplay-shard-{index:04d}" for index in range(SHARDS)}
            assert {*names.ASSETS} | shards <= {*kinds}
            for kind in kinds:
                assert len([*store.artefacts(config, int(key), kind)]) == 1, (config, key, kind)
        for name in names.ASSETS:
            wanted = AssetRecordsFilter(names.asset_key(config, name))
            landed = instance.fetch_materializations(wanted, limit=9).records
            assert sorted(record.partition_key or "" for record in landed) == sorted(RANGE)


def the_second_learnt_from_the_first(store: Store) -> None:
    """From its model, and its games; a backfill promotes nobody, so there is no champion to play."""
    for config in TWO:
        first, second = (load_plan(store, config, int(key)) for key in RANGE)
        assert first.parent is None
        model = store.require(config, 0, "ema_model")
        assert second.parent is not None and second.parent["generation"] == 0
        assert second.parent["digest"] == model.digest
        assert first.champion is None and second.champion is None
        assert store.champion(config) is None
        assert store.current(config, 0, "decision") is None


def progress_was_shown(progress: Progress) -> None:
    assets = {(config, name) for config in TWO for name in names.ASSETS}
    shown = [counts for counts in progress.shown if counts]
    assert all(counts.keys() == assets for counts in shown)
    assert any(in_progress for counts in shown[:-1] for _, in_progress, _, _ in counts.values())
    for asset in assets:
        made = [counts[asset][0] for counts in shown]
        assert made == sorted(made)
    assert set(shown[-1].values()) == {(len(RANGE), 0, 0, len(RANGE))}


def status_is_right(
    root: Path, meanwhile: list[Status], at_the_end: Status, capsys: pytest.CaptureFixture[str]
) -> None:
    at_work = [
        # one that is just being made is in no queue yet, and has no tags of ours
        [(run.config, run.generation) for run in one.running if run.status != "not_started"]
        for one in meanwhile
    ]
    assert any(sorted(runs) == [(config, 0) for config in TWO] for runs in at_work)
    for one, runs in zip(meanwhile, at_work, strict=True):
        configs = [config for config, _ in runs]
        assert len(configs) == len(set(configs)) <= 2 and one.failed == one.cancelled == []
        assert {(run.config, run.generation) for run in one.waiting}.isdisjoint(runs)
    assert any({run.generation for run in one.waiting} == {1} for one in meanwhile)
    assert at_the_end.running == at_the_end.waiting == at_the_end.following == []
    assert {"daemon", "webserver"} <= {service.kind for service in at_the_end.services}

    assert ringrift(["status", "--data", str(root), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["running"] == found["waiting"] == found["following"] == found["services"] == []
    assert [one["config"] for one in found["configs"]] == sorted(TWO)
    for one in found["configs"]:
        assert (one["newest"], one["games"]) == (1, len(RANGE) * GAMES)
        assert one["evaluated"]["generation"] == 1 and one["champion"] is None
        assert one["paused"] == [] and one["stopped"] is None
