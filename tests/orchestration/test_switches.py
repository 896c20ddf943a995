"""Switches from the launchpad, and what a loop on a paused config is told."""

from __future__ import annotations

from typing import Any

import pytest
from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run

from ringrift_pipeline.definitions import defs
from ringrift_pipeline.enhancements.training_config import TrainingConfig
from ringrift_pipeline.orchestration import loop as looping
from ringrift_pipeline.orchestration.instance import open_instance
from ringrift_pipeline.orchestration.loop import Loop, LoopError, LoopRequest
from ringrift_pipeline.orchestration.names import CONFIGS, SENSOR
from ringrift_pipeline.orchestration.settings import LaunchRefusedError, run_config
from ringrift_pipeline.orchestration.submit import submit_generation
from ringrift_pipeline.orchestration.switches import JOB, OP, PausedError, SensorOffError, is_on
from ringrift_pipeline.store import Store

from .ticking import daemon, turn_off


def turn(instance: DagsterInstance, **config: Any) -> None:
    job = defs.get_repository_def().get_job(JOB)
    run_config = {"ops": {OP: {"config": config}}}
    assert job.execute_in_process(run_config=run_config, instance=instance).success


def test_the_job_turns_what_it_is_told_and_nothing_else(
    instance: DagsterInstance, store: Store
) -> None:
    turn(instance, config="hex8_3p", loop=False, nightly=False)
    turn(instance, config="hex8_3p", nightly=True)
    assert store.switches("hex8_3p").paused == ("loop",)
    assert store.switches("square8_2p").paused == ()
    turn(instance, config="all", gauntlet=False)
    assert all("gauntlet" in store.switches(config).paused for config in CONFIGS)
    assert store.switches("hex8_3p").paused == ("loop", "gauntlet")


def test_a_job_that_would_change_nothing_is_refused(instance: DagsterInstance) -> None:
    with pytest.raises(LaunchRefusedError) as caught:
        turn(instance, config="hex8_3p")
    assert "at least one of loop, nightly, gauntlet" in str(caught.value)


def test_a_job_that_waits_counts_for_what_it_names_only(
    instance: DagsterInstance, store: Store
) -> None:
    job = defs.get_repository_def().get_job(JOB)
    store.set_switches("hex8_3p", gauntlet=False)
    instance.create_run_for_job(
        job, run_config={"ops": {OP: {"config": {"config": "hex8_3p", "nightly": False}}}}
    )
    assert not is_on(instance, store, "hex8_3p", "nightly")
    assert is_on(instance, store, "hex8_3p", "loop")
    assert not is_on(instance, store, "hex8_3p", "gauntlet")
    assert is_on(instance, store, "square8_2p", "nightly")
    instance.create_run_for_job(
        job, run_config={"ops": {OP: {"config": {"config": "all", "nightly": True}}}}
    )
    assert is_on(instance, store, "hex8_3p", "nightly")  # the newest one


def test_what_is_asked_for_after_a_job_was_launched_outranks_it(
    instance: DagsterInstance, store: Store
) -> None:
    job = defs.get_repository_def().get_job(JOB)
    asked = {"ops": {OP: {"config": {"config": "hex8_3p", "loop": False, "nightly": False}}}}
    waits = instance.create_run_for_job(job, run_config=asked)
    store.set_switches("hex8_3p", loop=True)
    assert is_on(instance, store, "hex8_3p", "loop")
    assert not is_on(instance, store, "hex8_3p", "nightly")
    assert execute_run(InMemoryJob(job), waits, instance, raise_on_error=True).success
    assert store.switches("hex8_3p").paused == ("nightly",)


def request(store: Store) -> LoopRequest:
    return LoopRequest("hex8_3p", store.root, TrainingConfig.preset("smoke"), 1)


def test_a_loop_on_a_paused_config_says_so_before_it_starts_anything(store: Store) -> None:
    store.set_switches("hex8_3p", loop=False)
    with pytest.raises(PausedError, match="ringrift resume --config hex8_3p"):
        Loop(request(store))
    store.set_switches("hex8_3p", loop=True)
    Loop(request(store))


def test_a_loop_that_is_paused_meanwhile_does_not_wait_for_a_decision_that_does_not_come(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Loop(request(store))
    state = work.states[0]
    state.run_id, state.status = "r", "success"
    work._judge()
    store.set_switches("hex8_3p", loop=False)
    work._judge()  # the sensor is given a moment: the last generation is decided though paused
    monkeypatch.setattr(looping, "PAUSE_PATIENCE", -1.0)
    with pytest.raises(LoopError, match="generation 0000: the loop of hex8_3p is paused"):
        work._judge()


def test_a_loop_whose_sensor_is_turned_off_says_so_before_it_starts_anything(
    store: Store, no_servers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_instance(store.root) as instance:
        settings = run_config(TrainingConfig.preset("smoke"))
        waiting = submit_generation(instance, "hex8_3p", 0, settings)
    with Loop(request(store)) as work:  # nobody has touched the sensor
        monkeypatch.setattr(looping, "PAUSE_PATIENCE", -1.0)
        work.states[0].run_id, work.states[0].status = waiting, "success"
        work._judge()
        with daemon(work.instance) as workspace:
            turn_off(workspace, SENSOR)
        with pytest.raises(LoopError, match=f"0000: the sensor {SENSOR} is turned off.*Automation"):
            work._judge()
    with open_instance(store.root) as instance:
        waiting = submit_generation(instance, "hex8_3p", 0, settings)
    with pytest.raises(SensorOffError, match=f"{SENSOR} is turned off"), Loop(request(store)):
        pass
    with open_instance(store.root) as instance:
        run = instance.get_run_by_id(waiting)
        assert run is not None and run.status == DagsterRunStatus.QUEUED  # it was not replaced
