"""The guards on real runs: break the thing, watch it heal."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster import DagsterEventType, DagsterRunStatus, RunsFilter
from dagster._core.test_utils import create_run_for_test
from dagster._daemon.auto_run_reexecution.auto_run_reexecution import (
    consume_new_runs_for_automatic_reexecution,
)
from dagster._daemon.monitoring.concurrency import execute_concurrency_slots_iteration

from ringrift_pipeline.orchestration import watchdog
from ringrift_pipeline.orchestration.failure_sensor import first_failure
from ringrift_pipeline.orchestration.instance import (
    cancel_active,
    prepare_home,
    sweep_lost_runs,
)
from ringrift_pipeline.orchestration.instance_file import instance_file
from ringrift_pipeline.orchestration.killed_steps import report_hung
from ringrift_pipeline.orchestration.progress import read_progress
from ringrift_pipeline.orchestration.silent_steps import SilentSteps
from ringrift_pipeline.store.atomic import TEMPORARY
from tests.waiting import until

from . import toy
from .served import Served, is_gone, served
from .test_termination import workers_of

LOG = logging.getLogger("test")
# from the first look that finds the run over to the end of a deaf step, and some for a busy machine
SOON = watchdog.INTERVAL + watchdog.GRACE + 20.0


@pytest.fixture(scope="module")
def on_a_gpu() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RINGRIFT_POOL", "gpu")
        yield


@pytest.fixture(scope="module")
def toys(on_a_gpu: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = Path(tempfile.mkdtemp(prefix="ringrift-test-"))  # a socket's path must be short
    try:
        data = tmp_path_factory.mktemp("toys")
        settings = yaml.safe_load(instance_file())
        settings["concurrency"]["runs"]["max_concurrent_runs"] = 3  # they sleep
        (prepare_home(data) / "dagster.yaml").write_text(yaml.safe_dump(settings))
        with served(data, toy.MODULE, folder / "code.sock") as opened:
            yield opened
    finally:
        shutil.rmtree(folder)


def behaving(mode: str) -> dict[str, Any]:
    return {"ops": {"second": {"config": {"mode": mode}}}}


@pytest.mark.whole
def test_deaf_steps_are_gone_soon_after_their_runs(toys: Served) -> None:
    """One whose run is terminated as the UI does it, one whose run worker is killed."""
    terminated = toys.launch("guarded", behaving("draft"))
    killed = toys.launch("guarded", behaving("deaf"))
    steps = {run_id: toys.step(run_id, "second") for run_id in (terminated, killed)}
    half = toys.data / toy.CONFIG / "generations" / "0000" / "half"
    until(lambda: [*half.glob(f"{TEMPORARY}*/rows")], "half an artefact is there", 10.0)
    began = time.monotonic()
    os.kill(toys.worker(killed), signal.SIGKILL)
    toys.terminate(terminated)
    for step in steps.values():
        until(lambda step=step: is_gone(step.pid), f"{step} ends", SOON)  # type: ignore[misc]
    assert time.monotonic() - began > 1.0  # they were deaf: only the watchdog ended them
    assert toys.finished(terminated) == DagsterRunStatus.CANCELED
    assert toys.finished(killed) == DagsterRunStatus.FAILURE
    for run_id in steps:
        assert toys.steps(run_id, DagsterEventType.STEP_SUCCESS) == ["first"]
        assert read_progress(toys.data, run_id) == []
    assert [*half.iterdir()] == []  # nothing half-written is left


def test_an_orphan_ends_and_its_success_does_not_land(toys: Served) -> None:
    go = toy.note(toys.data, "go")
    go.unlink(missing_ok=True)
    run_id = toys.launch("guarded", behaving("wait"))
    step = toys.step(run_id, "second")
    os.kill(toys.worker(run_id), signal.SIGKILL)
    assert toys.finished(run_id) == DagsterRunStatus.FAILURE
    if not is_gone(step.pid):  # the watchdog looks every two seconds: be quicker than it
        go.touch()
    until(lambda: is_gone(step.pid), "the orphan ends", SOON)
    assert toys.steps(run_id, DagsterEventType.STEP_SUCCESS) == ["first"]
    assert toys.run(run_id).status == DagsterRunStatus.FAILURE


MARK_AS_CANCELED = """
mutation ($run: String!) {
  terminateRun(runId: $run, terminatePolicy: MARK_AS_CANCELED_IMMEDIATELY) { __typename }
}
"""


@pytest.mark.parametrize("by", ["the UI", "Ctrl-C"])
def test_a_run_that_is_terminated_while_it_starts_is_cancelled_for_good(
    toys: Served, by: str
) -> None:
    """The UI can only mark it, and its process sees that. One that is asked to end, as by Ctrl-C, ends
    without a word: Dagster alone takes the run for lost, and retries it.
    """
    hold = toy.note(toys.data, "hold")
    hold.touch()
    try:
        run_id = toys.launch("guarded", behaving("pass"))
        workers = until(lambda: workers_of(toys.server.pid), "the run has a process")
        time.sleep(1.0)  # it loads what it is to run
        assert toys.run(run_id).status == DagsterRunStatus.STARTING
        if by == "the UI":
            answer = toys.ask(MARK_AS_CANCELED, run=run_id)
            assert answer["__typename"] == "TerminateRunSuccess"
        else:
            cancel_active(toys.instance, toys.socket, patience=1.0)
    finally:
        hold.unlink()
    for pid in workers:
        until(lambda pid=pid: is_gone(pid), "the run's process ends")  # type: ignore[misc]
    time.sleep(2.0)  # the code server looks for lost runs every half a second
    records = toys.instance.get_run_records(RunsFilter(run_ids=[run_id]))
    list(consume_new_runs_for_automatic_reexecution(toys.workspace, records, LOG))
    assert [run.run_id for run in toys.instance.get_runs() if run.parent_run_id == run_id] == []
    assert toys.run(run_id).status == DagsterRunStatus.CANCELED
    assert toys.steps(run_id, DagsterEventType.STEP_START) == []


@pytest.mark.whole
def test_after_a_reboot_a_lost_run_is_resumed_at_the_step_that_failed(toys: Served) -> None:
    log = toy.note(toys.data, "first")
    log.unlink(missing_ok=True)
    run_id = toys.launch("guarded", behaving("deaf"))
    step = toys.step(run_id, "second")
    toys.stack.close()
    os.killpg(toys.server.pid, signal.SIGKILL)  # code server, run worker and step: all at once
    until(lambda: is_gone(step.pid), "the step is gone", SOON)
    toys.server.stop()
    assert toys.run(run_id).status == DagsterRunStatus.STARTED  # nobody was there to notice

    assert sweep_lost_runs(toys.instance) == [run_id]
    toys.socket.unlink(missing_ok=True)
    toys.server = toys.start()
    toys.connect()
    toy.note(toys.data, "healed").touch()
    records = toys.instance.get_run_records(RunsFilter(run_ids=[run_id]))
    list(consume_new_runs_for_automatic_reexecution(toys.workspace, records, LOG))
    toys.dequeue()
    (resumed,) = [run for run in toys.instance.get_runs() if run.parent_run_id == run_id]
    assert toys.finished(resumed.run_id) == DagsterRunStatus.SUCCESS
    assert toys.steps(resumed.run_id, DagsterEventType.STEP_SUCCESS) == ["second"]
    assert log.read_text().split() == [run_id]  # the first step was not run again


def test_a_lost_slot_is_freed(toys: Served) -> None:
    storage: Any = toys.instance.event_log_storage
    lost = create_run_for_test(toys.instance, status=DagsterRunStatus.STARTED)
    toys.instance.report_run_failed(lost)
    assert storage.claim_concurrency_slot("gpu", lost.run_id, "play").is_claimed
    assert not storage.claim_concurrency_slot("gpu", "another", "play").is_claimed
    storage.free_concurrency_slot_for_step("another", "play")  # gives up waiting

    def freed() -> bool:
        list(execute_concurrency_slots_iteration(toys.workspace, LOG))
        return not storage.get_concurrency_info("gpu").active_slot_count

    assert not freed()  # its steps may still be on their way out
    until(freed, "the slot is freed", 8.0)
    # at the daemon's start nobody can be on their way any more
    lost = create_run_for_test(toys.instance, status=DagsterRunStatus.STARTED)
    assert storage.claim_concurrency_slot("gpu", lost.run_id, "play").is_claimed
    sweep_lost_runs(toys.instance)
    assert storage.claim_concurrency_slot("gpu", "another", "play").is_claimed
    storage.free_concurrency_slot_for_step("another", "play")


@pytest.mark.faults
@pytest.mark.parametrize(("mode", "tries"), [("pass", 2), ("deaf", 3)])
def test_a_step_that_hangs_is_killed_and_done_again_and_not_for_ever(
    toys: Served, mode: str, tries: int
) -> None:
    run_id = toys.launch("hanging", {"ops": {"hangs": {"config": {"mode": mode}}}})
    steps = SilentSteps(toys.data, toys.server.pid)
    killed = []
    while not toys.is_finished(run_id):
        killed += steps.look(lambda step: report_hung(toys.instance, step))
        time.sleep(0.1)
    assert len(killed) == (1 if mode == "pass" else 3)
    assert toy.note(toys.data, f"hung-{run_id}").read_text() == "x" * tries
    if mode == "pass":
        assert toys.run(run_id).status == DagsterRunStatus.SUCCESS
    else:
        assert toys.run(run_id).status == DagsterRunStatus.FAILURE
        step, why = first_failure(toys.instance, run_id)
        assert step == "hangs" and why.startswith("it hung: it had told nothing for 2 s")


@pytest.mark.whole
def test_one_step_at_a_time_is_on_the_gpu(toys: Served) -> None:
    runs = [toys.launch("crowded", {}) for _ in range(2)]
    assert [toys.finished(run_id) for run_id in runs] == [DagsterRunStatus.SUCCESS] * 2
    lines = toy.note(toys.data, "gpu").read_text().splitlines()
    times = sorted(tuple(map(float, line.split())) for line in lines)
    assert len(times) == 4
    assert all(earlier[1] <= later[0] for earlier, later in pairwise(times))
    assert waited_in_the_pool(toys, runs[0]) == []  # its own executor held them back, at once


def waited_in_the_pool(toys: Served, run_id: str) -> list[str]:
    """What a run's log says of steps that the pool kept waiting."""
    messages = [event.message for event in toys.instance.all_logs(run_id)]
    return [message for message in messages if "blocked by" in message]
