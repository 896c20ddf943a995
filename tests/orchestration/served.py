"""A code server with real runs, and what the UI asks of it, without the web server between."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterEventType, DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.test_utils import create_test_daemon_workspace_context
from dagster._core.workspace.load_target import GrpcServerTarget
from dagster._daemon.run_coordinator import QueuedRunCoordinatorDaemon
from dagster_graphql.client.query import (
    LAUNCH_PIPELINE_EXECUTION_MUTATION,
    LAUNCH_PIPELINE_REEXECUTION_MUTATION,
)
from dagster_graphql.schema import create_schema

from ringrift_pipeline.orchestration.instance import cancel_active, own_instance
from ringrift_pipeline.orchestration.progress import StepProgress, read_progress
from ringrift_pipeline.orchestration.services import Service
from tests.waiting import PATIENCE, until

ROOT = Path(__file__).resolve().parents[2]
TERMINATE = """
mutation ($run: String!) {
  terminateRun(runId: $run) { __typename ... on PythonError { message } }
}
"""


def is_gone(pid: int) -> bool:
    """Has the process ended? One that nobody has asked about counts."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    state = Path(f"/proc/{pid}/stat")
    try:
        return state.read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


@functools.cache
def _schema() -> Any:
    return create_schema()


def ask(workspace: Any, query: str, **variables: Any) -> Any:
    """The answer of the one field that a GraphQL query has."""
    context = workspace.create_request_context()
    result = asyncio.run(
        _schema().execute_async(query, context_value=context, variable_values=variables)
    )
    assert not result.errors, result.errors
    (answer,) = result.data.values()
    return answer


class Served:
    """The code location ``module`` on a data root, its queue worked by hand."""

    def __init__(self, data: Path, instance: DagsterInstance, module: str, socket: Path) -> None:
        self.data, self.instance, self.module, self.socket = data, instance, module, socket
        self.server = self.start()
        self.stack = ExitStack()
        self.connect()

    def start(self) -> Service:
        """A code server that answers."""
        from dagster._grpc.client import DagsterGrpcClient

        arguments = ("api", "grpc", "--socket", str(self.socket), "-m", self.module)
        server = Service(self.data, "code-server", *arguments, "-d", str(ROOT))
        server.wait_for(lambda: DagsterGrpcClient(socket=str(self.socket)).ping(""))
        return server

    def connect(self) -> None:
        """A workspace with the code server, as the daemon and the web server have it."""
        self.stack.close()
        target = GrpcServerTarget(
            host="localhost", port=None, socket=str(self.socket), location_name=self.module
        )
        self.workspace = self.stack.enter_context(
            create_test_daemon_workspace_context(target, self.instance)
        )
        self.queue = QueuedRunCoordinatorDaemon(interval_seconds=1)

    def ask(self, query: str, **variables: Any) -> Any:
        """What the UI is answered."""
        return ask(self.workspace, query, **variables)

    def launch(self, job: str, config: dict[str, Any], assets: list[Any] | None = None) -> str:
        """Launch a job as the launchpad does; the id of the run, which may still be queued."""
        selector: dict[str, Any] = {
            "repositoryLocationName": self.module,
            "repositoryName": "__repository__",
            "pipelineName": job,
        }
        tags = {}
        if assets:
            selector["assetSelection"] = [{"path": path} for path in assets]
            selector["assetCheckSelection"] = []
            tags = {"dagster/partition": "0000"}
        parameters = {
            "selector": selector,
            "runConfigData": config,
            "executionMetadata": {"tags": [{"key": k, "value": v} for k, v in tags.items()]},
        }
        return self.launched(
            self.ask(LAUNCH_PIPELINE_EXECUTION_MUTATION, executionParams=parameters)
        )

    def again(self, run_id: str) -> str:
        """Re-execute a run from failure, as the UI does."""
        parameters = {"parentRunId": run_id, "strategy": "FROM_FAILURE"}
        answer = self.ask(LAUNCH_PIPELINE_REEXECUTION_MUTATION, reexecutionParams=parameters)
        return self.launched(answer)

    def launched(self, answer: Any) -> str:
        assert answer["__typename"] == "LaunchRunSuccess", answer
        self.dequeue()
        return answer["run"]["runId"]

    def dequeue(self) -> None:
        """Let the daemon's queue look once."""
        assert [error for error in self.queue.run_iteration(self.workspace) if error] == []

    def is_finished(self, run_id: str) -> bool:
        """Has the run ended? One that is queued is let in, if that is possible."""
        run = self.run(run_id)
        if run.status == DagsterRunStatus.QUEUED:
            self.dequeue()
        return run.is_finished

    def terminate(self, run_id: str) -> None:
        """Terminate a run as the UI does."""
        assert self.ask(TERMINATE, run=run_id)["__typename"] == "TerminateRunSuccess"

    def run(self, run_id: str) -> DagsterRun:
        """The run as it is now."""
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run

    def finished(self, run_id: str, seconds: float = PATIENCE) -> DagsterRunStatus:
        """The status in which a run ended."""
        until(lambda: self.is_finished(run_id), f"run {run_id} ends", seconds)
        return self.run(run_id).status

    def step(self, run_id: str, name: str, seconds: float = PATIENCE) -> StepProgress:
        """The progress of a step that runs, once it does something."""

        def found() -> StepProgress | None:
            assert not self.is_finished(run_id), self.errors(run_id)
            for state in read_progress(self.data, run_id):
                if state.step == name:
                    return state
            return None

        return until(found, f"step {name} begins", seconds)

    def worker(self, run_id: str) -> int:
        """The process id of the run's worker."""
        for event in self.instance.all_logs(run_id, of_type=DagsterEventType.ENGINE_EVENT):
            data = event.dagster_event.engine_event_data if event.dagster_event else None
            if data is not None and "pid" in data.metadata and event.step_key is None:
                return int(str(data.metadata["pid"].value))
        raise AssertionError("the run has no worker yet")

    def steps(self, run_id: str, kind: DagsterEventType) -> list[str]:
        """Keys of the steps of a run that have an event of this kind."""
        return sorted(str(event.step_key) for event in self.instance.all_logs(run_id, of_type=kind))

    def errors(self, run_id: str) -> list[str]:
        """What a run's failures say."""
        return [
            str(event.dagster_event.event_specific_data)
            for event in self.instance.all_logs(run_id)
            if event.dagster_event is not None and event.dagster_event.is_failure
        ]

    def close(self) -> None:
        """Stop everything."""
        cancel_active(self.instance, self.socket, patience=5.0)
        self.stack.close()
        self.server.stop()


@contextmanager
def served(data: Path, module: str, socket: Path) -> Iterator[Served]:
    """The code location on the data root, with the environment of its processes set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RINGRIFT_DATA", str(data))
        patch.setenv("DAGSTER_HOME", str(data / "dagster"))
        with own_instance(data) as instance:
            opened = Served(data, instance, module, socket)
            try:
                yield opened
            finally:
                opened.close()
