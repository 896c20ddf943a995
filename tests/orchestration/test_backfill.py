"""Backfilling a range of generations of several configs, as the daemon does it."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, build_sensor_context
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.definitions.selector import (
    PartitionRangeSelector,
    PartitionsByAssetSelector,
    PartitionsSelector,
)
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.test_utils import (
    InProcessTestWorkspaceLoadTarget,
    create_run_for_test,
    create_test_daemon_workspace_context,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._daemon.backfill import execute_backfill_iteration
from dagster._daemon.run_coordinator import QueuedRunCoordinatorDaemon
from dagster_graphql.client.query import (
    LAUNCH_PARTITION_BACKFILL_MUTATION,
    LAUNCH_PIPELINE_REEXECUTION_MUTATION,
)

from ringrift_pipeline.definitions import defs
from ringrift_pipeline.orchestration import names
from ringrift_pipeline.orchestration.decisions import read_decision
from ringrift_pipeline.orchestration.generation_runs import makes_a_generation
from ringrift_pipeline.orchestration.instance import no_retry, open_instance, prepare_home
from ringrift_pipeline.orchestration.instance_file import instance_file
from ringrift_pipeline.orchestration.run_order import PRIORITY_TAG, order_tags
from ringrift_pipeline.orchestration.status import status_of
from ringrift_pipeline.store import Store

from .conftest import re_executing
from .landing import Land
from .served import ask
from .test_cancelled import tick
from .test_once import make, submit
from .ticking import sensor_tick

LOG = logging.getLogger("test")
TWO = ("square8_2p", "hex8_3p")
RANGE = ("0000", "0001", "0002")
WHAT = ("checkpoint", "ema_model")  # enough to see that a generation is one run


@pytest.fixture
def instance(data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DagsterInstance]:
    """The pipeline's own instance on a machine of many cores; what it launches does nothing."""
    monkeypatch.setenv("RINGRIFT_INSTANCE_MODULES", "dagster._core.test_utils")
    settings = yaml.safe_load(instance_file())
    settings["concurrency"]["runs"]["max_concurrent_runs"] = 8
    settings["run_launcher"] = {"module": "dagster._core.test_utils", "class": "MockedRunLauncher"}
    (prepare_home(data) / "dagster.yaml").write_text(yaml.safe_dump(settings))
    with open_instance(data) as made:
        for config in TWO:
            made.add_dynamic_partitions(names.partitions_name(config), list(RANGE))
        yield made


@contextmanager
def daemon(instance: DagsterInstance) -> Iterator[Any]:
    """A daemon's view of the code location."""
    target = LoadableTargetOrigin(executable_path=sys.executable, module_name=names.MODULE)
    origin = InProcessCodeLocationOrigin(
        target,
        container_image=None,
        entry_point=None,
        container_context=None,
        location_name=names.MODULE,
    )
    with create_test_daemon_workspace_context(
        InProcessTestWorkspaceLoadTarget(origin), instance
    ) as workspace:
        yield workspace


def test_generations_of_a_config_follow_each_other(
    instance: DagsterInstance, store: Store, land: Land
) -> None:
    queue = QueuedRunCoordinatorDaemon(interval_seconds=1)
    with daemon(instance) as workspace:
        add_backfill(instance, workspace)
        assert [each for each in execute_backfill_iteration(workspace, LOG) if each] == []
        backfilled = runs(instance)
        assert sorted(where(run) for run in backfilled) == sorted(
            (config, key) for config in TWO for key in RANGE
        )
        assert all(len(run.asset_selection or ()) == len(WHAT) for run in backfilled)
        for key in RANGE:  # both configs at once, each in ascending order
            list(queue.run_iteration(workspace))
            started = [run for run in runs(instance) if run.status == DagsterRunStatus.STARTING]
            assert sorted(where(run) for run in started) == sorted((name, key) for name in TWO)
            list(queue.run_iteration(workspace))
            assert len([run for run in runs(instance) if is_active(run)]) == len(TWO)
            for run in started:
                instance.report_run_failed(run)
    # what a backfill evaluates is neither promoted nor followed by another generation
    land("square8_2p", 1, tags=dict(backfilled[0].tags) | {names.PARTITION_TAG: "0001"})
    sensor = defs.get_repository_def().get_sensor_def(names.SENSOR)
    with build_sensor_context(
        instance=instance, repository_def=defs.get_repository_def()
    ) as context:
        result = sensor.evaluate_tick(context)
    assert result.run_requests == [] and "backfill" in (result.skip_message or "")
    assert store.champion("square8_2p") is None


@pytest.mark.whole
def test_a_backfill_beside_the_sensor(instance: DagsterInstance, store: Store, land: Land) -> None:
    """The loop goes on while a backfill makes the same generations: each has its one run of the
    loop, none of a config work at the same time, and what the backfill evaluates decides nothing.
    """
    config, job = TWO[0], names.job_name(TWO[0])
    queue = QueuedRunCoordinatorDaemon(interval_seconds=1)
    with daemon(instance) as workspace:
        add_backfill(instance, workspace)
        assert [each for each in execute_backfill_iteration(workspace, LOG) if each] == []
        (filling,) = [run for run in runs(instance) if where(run) == (config, "0001")]
        land(config, 0)  # the loop's own, and what the backfill makes of the next, in one tick
        land(config, 1, tags=dict(filling.tags))
        sensor_tick(workspace)
        (following,) = [
            run for run in runs(instance) if run.job_name == job and not run.is_finished
        ]
        assert where(following) == (config, "0001")
        assert store.champion(config).generation == 0  # type: ignore[union-attr]
        done: list[str] = []
        while waiting := [run for run in runs(instance) if not run.is_finished]:
            list(queue.run_iteration(workspace))
            working = [run for run in runs(instance) if is_active(run)]
            for name in TWO:
                assert len([run for run in working if where(run)[0] == name]) <= 1
            assert working, waiting
            for run in working:
                done.append(run.run_id)
                instance.report_run_failed(run)
        assert following.run_id in done and len(done) == len(set(done)) == len(TWO) * len(RANGE) + 1
        started = [run for run in runs(instance) if run.job_name == job and not run.parent_run_id]
        assert [run.tags[names.PARTITION_TAG] for run in started] == ["0001"]


def from_its_assets(*keys: str) -> dict[str, Any]:
    """What the UI sends for generations of all assets of a config."""
    assets = [{"path": [TWO[0], name]} for name in names.ASSETS]
    return {"assetSelection": assets, "partitionNames": keys, "fromFailure": False, "tags": []}


def from_the_job(*keys: str) -> dict[str, Any]:
    """What it sends for generations of a config's job, on the job's page."""
    selector = {
        "partitionSetName": f"{names.job_name(TWO[0])}_partition_set",
        "repositorySelector": {
            "repositoryLocationName": names.MODULE,
            "repositoryName": "__repository__",
        },
    }
    return {**from_its_assets(*keys), "selector": selector}


def backfilled_by(workspace: Any, parameters: dict[str, Any]) -> list[DagsterRun]:
    """The runs that the daemon asks for once the UI has sent this, the lowest generation first."""
    answer = ask(workspace, LAUNCH_PARTITION_BACKFILL_MUTATION, backfillParams=parameters)
    assert answer["__typename"] == "LaunchBackfillSuccess", answer
    assert [each for each in execute_backfill_iteration(workspace, LOG) if each] == []
    found = [run for run in runs(workspace.instance) if run.tags[names.BACKFILL_TAG]]
    return sorted(found, key=where)


@pytest.mark.parametrize("launch", [from_its_assets, from_the_job])
def test_a_run_of_a_backfill_that_is_executed_again_decides_nothing_either(
    instance: DagsterInstance, data: Path, store: Store, land: Land, launch: Any
) -> None:
    """Dagster counts it as none of the backfill's once that is over."""
    config = TWO[0]
    with daemon(instance) as workspace:
        filled = backfilled_by(workspace, launch(*RANGE))
        for run in filled:
            instance.report_run_failed(run)
            no_retry(instance, run.run_id)
        for _ in range(3):  # it notes its runs, their end, and its own
            list(execute_backfill_iteration(workspace, LOG))
        (backfill,) = instance.get_backfills()
        assert backfill.status == BulkActionStatus.COMPLETED_FAILED
        again = filled[0]
        for strategy, ends in (  # and that one again
            ("FROM_FAILURE", instance.report_run_failed),
            ("ALL_STEPS", instance.report_run_canceled),
        ):
            parameters = {"parentRunId": again.run_id, "strategy": strategy}
            answer = ask(
                workspace, LAUNCH_PIPELINE_REEXECUTION_MUTATION, reexecutionParams=parameters
            )
            assert answer["__typename"] == "LaunchRunSuccess", answer
            again = runs(instance)[0]
            assert where(again) == (config, "0000") and again.parent_run_id is not None
            assert names.BACKFILL_TAG not in again.tags
            assert again.tags[names.FILLED_TAG] == backfill.backfill_id
            assert again.tags[PRIORITY_TAG] == "-1" and not makes_a_generation(again, config)
            assert status_of(data).following == []
            ends(again)
        assert status_of(data).cancelled == []  # the loop does not stand there
        before = len(runs(instance))
        land(config, 0, tags=dict(again.tags))
        sensor_tick(workspace)
    assert len(runs(instance)) == before + 1 and store.champion(config) is None
    assert read_decision(store, config, 0) is None


def test_it_is_told_by_the_run_that_it_executes_again(instance: DagsterInstance) -> None:
    """An earlier version put no tag of ours on that one."""
    filled = make(instance, **{names.BACKFILL_TAG: "some"})
    again = make(instance, **re_executing(filled.run_id))
    submit(instance, again)
    (found,) = [run for run in runs(instance) if run.run_id == again.run_id]
    assert names.BACKFILL_TAG not in found.tags and names.backfill_in(found.tags) == "some"


@pytest.mark.whole
def test_the_loop_goes_on_through_what_a_backfill_of_its_job_makes(
    instance: DagsterInstance, store: Store, land: Land
) -> None:
    """Whether that is made already or still waits, each generation has its one run of the loop."""
    config, job = TWO[0], names.job_name(TWO[0])

    def the_loops() -> list[str]:
        own = [run for run in runs(instance) if names.BACKFILL_TAG not in run.tags]
        return sorted(where(run)[1] for run in own if run.job_name == job)

    with daemon(instance) as workspace:
        filled = backfilled_by(workspace, from_the_job("0001", "0002"))
        assert {run.job_name for run in filled} == {job}
        land(config, 1, tags=dict(filled[0].tags))
        land(config, 0)
        tick(workspace, -1.0)
        assert the_loops() == ["0001"]
        land(config, 1)  # it verifies what is there
        land(config, 1, tags=dict(filled[0].tags))  # executed again before the sensor looks
        land(config, 2, tags=dict(filled[1].tags))
        tick(workspace, 0.0)
    assert the_loops() == ["0001", "0002"]
    assert [one.generation for one in store.champions(config)] == [0, 1]


def test_a_value_out_of_bounds_ends_a_backfill_before_it_has_a_run(
    instance: DagsterInstance,
) -> None:
    settings = {"training": {"batch_size": -4}}
    with daemon(instance) as workspace:
        add_backfill(instance, workspace, {"resources": {"settings": {"config": settings}}})
        (error,) = [each for each in execute_backfill_iteration(workspace, LOG) if each]
        (backfill,) = instance.get_backfills()
        assert backfill.failure_count == 1  # it is not tried again
        for said in (error, backfill.error):
            told = said.to_string() if said is not None else ""
            assert "training.batch_size" in told and "greater than or equal to 1 (got -4" in told
        assert [each for each in execute_backfill_iteration(workspace, LOG) if each] == []
    (backfill,) = instance.get_backfills()
    assert backfill.status == BulkActionStatus.FAILED
    assert runs(instance) == []


def add_backfill(
    instance: DagsterInstance, workspace: Any, run_config: dict[str, Any] | None = None
) -> None:
    selected = PartitionsSelector([PartitionRangeSelector(RANGE[0], RANGE[-1])])
    with partition_loading_context(dynamic_partitions_store=instance):
        backfill = PartitionBackfill.from_partitions_by_assets(
            backfill_id="range",
            asset_graph=workspace.create_request_context().asset_graph,
            backfill_timestamp=time.time(),
            tags={},
            dynamic_partitions_store=instance,
            partitions_by_assets=[
                PartitionsByAssetSelector(
                    asset_key=names.asset_key(config, name), partitions=selected
                )
                for config in TWO
                for name in WHAT
            ],
            title=None,
            description=None,
            run_config=run_config,
        )
    instance.add_backfill(backfill)


def runs(instance: DagsterInstance) -> list[DagsterRun]:
    return [*instance.get_runs()]


def where(run: DagsterRun) -> tuple[str, str]:
    return run.tags[names.ORDER_TAG], run.tags[names.PARTITION_TAG]


def is_active(run: DagsterRun) -> bool:
    return run.status in (DagsterRunStatus.STARTING, DagsterRunStatus.STARTED)


def test_which_runs_have_an_order() -> None:
    key = names.asset_key("hex8_3p", "checkpoint")
    other = names.asset_key("hex8_4p", "checkpoint")
    generation = {names.PARTITION_TAG: "0003"}
    with DagsterInstance.ephemeral() as instance:

        def tags_of(tags: dict[str, str], *keys: Any) -> dict[str, str]:
            run = create_run_for_test(instance, tags=tags, asset_selection=frozenset(keys))
            return order_tags(run)

        mine = {names.CONFIG_TAG: "hex8_3p", names.ORDER_TAG: "hex8_3p"}
        assert tags_of(generation, key) == mine
        assert tags_of({**generation, names.CONFIG_TAG: "hex8_3p"}) == mine
        filled = {**mine, names.FILLED_TAG: "b", PRIORITY_TAG: "-4"}
        assert tags_of({**generation, names.BACKFILL_TAG: "b"}, key) == filled
        assert tags_of({**generation, names.FILLED_TAG: "b"}, key) == filled
        assert tags_of(generation, key, other) == {}
        assert tags_of({names.CONFIG_TAG: "hex8_3p"}) == {}  # a gauntlet waits for nobody
        for odd in ("3", "²²²²", "abc"):  # people can add any partition; its step refuses it
            assert tags_of({names.PARTITION_TAG: odd, names.BACKFILL_TAG: "b"}, key) == {}
