"""The daemon and the code server under a `Backend`: one of them ends, and its runs go on."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import DagsterEventType, DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.test_utils import create_test_daemon_workspace_context
from dagster._core.workspace.load_target import GrpcServerTarget
from dagster_graphql.client.query import LAUNCH_PIPELINE_EXECUTION_MUTATION

from ringrift_pipeline.orchestration.backend import Backend
from ringrift_pipeline.orchestration.instance import own_instance
from ringrift_pipeline.orchestration.presence import present
from ringrift_pipeline.orchestration.progress import read_progress
from tests.waiting import until

from . import toy
from .served import ROOT, ask, is_gone


def launch(backend: Backend, instance: DagsterInstance) -> str:
    """A toy whose second step hangs, launched as the UI does it; the run's id."""
    target = GrpcServerTarget(
        host="localhost", port=None, socket=str(backend.socket), location_name=toy.MODULE
    )
    parameters = {
        "selector": {
            "repositoryLocationName": toy.MODULE,
            "repositoryName": "__repository__",
            "pipelineName": "guarded",
        },
        "runConfigData": {"ops": {"second": {"config": {"mode": "deaf"}}}},
    }
    with create_test_daemon_workspace_context(target, instance) as workspace:
        answer = ask(workspace, LAUNCH_PIPELINE_EXECUTION_MUTATION, executionParams=parameters)
    assert answer["__typename"] == "LaunchRunSuccess", answer
    return str(answer["run"]["runId"])


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DagsterInstance]:
    """A data root's, owned, as its daemon needs it."""
    monkeypatch.setenv("RINGRIFT_DATA", str(tmp_path))
    monkeypatch.chdir(ROOT)
    with own_instance(tmp_path) as owned:
        yield owned


@pytest.fixture
def backend(tmp_path: Path, instance: DagsterInstance) -> Iterator[Backend]:
    """The toys'; it has not begun."""
    made = Backend(tmp_path, instance, module=toy.MODULE)
    try:
        yield made
    finally:
        made.stop()


@pytest.mark.whole
def test_both_load_at_once_and_the_daemon_does_nothing_before_it_is_told(
    tmp_path: Path, instance: DagsterInstance, backend: Backend
) -> None:

    def loaded() -> bool:
        with contextlib.suppress(DagsterUserCodeUnreachableError):
            backend._ping()
            return {"code-server", "daemon"} <= {one.kind for one in present(tmp_path)}
        return False

    until(loaded, "both are up", 60)
    time.sleep(3.0)
    assert not backend.services[1].has_ended and not instance.get_daemon_heartbeats()
    backend.begin()
    until(lambda: instance.get_daemon_heartbeats(), "the daemon works", 60)
    backend.kill()  # as of a second Ctrl-C, after which nobody tidies up
    assert not backend.socket.parent.exists()


@pytest.mark.whole
def test_a_code_server_that_ends_is_started_again_and_its_runs_are_retried(
    tmp_path: Path, instance: DagsterInstance, backend: Backend
) -> None:
    backend.begin()
    run_id = launch(backend, instance)
    steps = until(
        lambda: [one for one in read_progress(tmp_path, run_id) if one.step == "second"],
        "the second step begins",
    )
    code_server, daemon = (service.pid for service in backend.services)
    os.kill(code_server, signal.SIGKILL)
    until(lambda: backend.services[0].has_ended, "the code server ends")
    toy.note(tmp_path, "healed").touch()
    backend.check()
    assert is_gone(steps[0].pid) and is_gone(daemon)

    def retried() -> list[DagsterRun]:
        backend.check()
        runs = instance.get_runs(RunsFilter(statuses=[DagsterRunStatus.SUCCESS]))
        return [run for run in runs if run.parent_run_id == run_id]

    (run,) = until(retried, "the run is retried")
    of_type = DagsterEventType.STEP_SUCCESS
    done = [event.step_key for event in instance.all_logs(run.run_id, of_type=of_type)]
    assert done == ["second"]  # it went on where it was
    assert not {code_server, daemon} & {service.pid for service in backend.services}
    told = backend.services[1].log.read_text()
    assert "the code server had ended" in told
    # The daemon began when the code server answered, not before.
    assert "The daemon ended" not in told

    # Somebody tidies up the temporary folder, and then the daemon ends.
    Path(backend.workspace[1]).unlink()
    backend.check()
    backend.services[1].kill()
    backend.services[1].wait()
    before = time.time()

    def beats() -> bool:
        backend.check()
        beaten = instance.get_daemon_heartbeats().values()
        return max(one.timestamp for one in beaten) > before

    until(beats, "the daemon works again")

    # Or the whole of it, with the socket.
    shutil.rmtree(backend.socket.parent)
    deaf = backend.services[0].pid
    backend.check()
    backend._ping()
    assert backend.services[0].pid != deaf and is_gone(deaf)
    assert stat.S_IMODE(backend.socket.parent.stat().st_mode) == 0o700
    before = time.time()
    until(beats, "both work again")
