"""``ringrift ui``: the real thing in a process, stopped while it has nothing to do and while it has."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterEventType, DagsterRunStatus

from ringrift_pipeline.orchestration.instance import open_instance
from ringrift_pipeline.orchestration.names import partitions_name
from ringrift_pipeline.orchestration.presence import present
from ringrift_pipeline.orchestration.status import status_of

LAUNCH = """
mutation ($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
  }
}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {seconds:.0f} s")


def processes_of(data: Path) -> list[str]:
    """Command lines of the processes that work on a data root, whoever started them."""
    wanted = f"RINGRIFT_DATA={data}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.fixture
def ui(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """``ui(port)`` starts ``ringrift ui`` on one data root; whatever is left is killed."""
    started = []

    def start(port: int, *more: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("RINGRIFT_DATA", None)
        line = [sys.executable, "-m", "ringrift_pipeline", "ui", "--data", str(tmp_path / "data")]
        process = subprocess.Popen(
            [*line, "--config", "hex8_2p", "--port", str(port), *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/server_info", timeout=10) as page:
            return page.status == 200
    except OSError:
        return False


def launch(port: int, data: Path) -> str:
    """Launch a run over HTTP, as the launchpad does; its id."""
    parameters = {
        "selector": {
            "repositoryLocationName": "ringrift_pipeline.definitions",
            "repositoryName": "__repository__",
            "jobName": "hex8_2p_generation",
            "assetSelection": [{"path": ["hex8_2p", "selfplay_shards"]}],
            "assetCheckSelection": [],
        },
        "runConfigData": {"resources": {"settings": {"config": {"preset": "day"}}}},
        "executionMetadata": {"tags": [{"key": "dagster/partition", "value": "0000"}]},
    }
    with open_instance(data) as instance:
        instance.add_dynamic_partitions(partitions_name("hex8_2p"), ["0000"])
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql",
        json.dumps({"query": LAUNCH, "variables": {"params": parameters}}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as page:
        answer = json.load(page)["data"]["launchRun"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    return answer["run"]["runId"]


@pytest.mark.slow
def test_starts_everything_and_leaves_nothing(
    tmp_path: Path, ui: Callable[..., subprocess.Popen[str]]
) -> None:
    data, port = tmp_path / "data", free_port()
    first = ui(port, "--json")
    assert first.stdout and answers_at_once(first.stdout.readline() + read_object(first.stdout))
    shown = status_of(data)
    assert {one.kind for one in shown.services} == {"daemon", "webserver", "code-server"}
    assert {one.port for one in shown.services if one.kind == "webserver"} == {port}

    # a second one has the pages alone, and leaves the first as it is
    other = free_port()
    second = ui(other)
    assert second.stderr
    told = [second.stderr.readline() for _ in range(3)]
    assert str(other) in told[0] and answers(other)
    assert f"Process {first.pid} " in told[1] and "its pages alone" in told[1]
    second.send_signal(signal.SIGINT)
    assert second.wait(timeout=120) == 0
    assert not answers(other) and is_free(other)
    assert first.poll() is None and answers(port)

    # stopped while a run is at work
    run_id = launch(port, data)
    with open_instance(data) as instance:
        wait_for(lambda: status(instance, run_id) == DagsterRunStatus.STARTED, 180, "the run works")
        (running,) = status_of(data).running
        assert (running.config, running.generation) == ("hex8_2p", 0)
        first.send_signal(signal.SIGTERM)
        assert first.wait(timeout=180) == 0
        assert status(instance, run_id) == DagsterRunStatus.CANCELED
        # it was asked to stop, not only found dead
        assert instance.all_logs(run_id, of_type=DagsterEventType.RUN_CANCELING)
    assert processes_of(data) == []
    assert is_free(port) and present(data) == []
    assert [*data.rglob(".ringrift-tmp-*")] == []


def read_object(stream: Any) -> str:
    """The rest of a JSON object that is printed over several lines."""
    lines = []
    while not lines or lines[-1].rstrip() != "}":
        lines.append(stream.readline())
    return "".join(lines)


def answers_at_once(printed: str) -> bool:
    """Does the address that was printed answer, without any waiting?"""
    said = json.loads(printed)
    assert said["daemon"] is True
    with urllib.request.urlopen(said["url"], timeout=60) as page:
        return b"Dagster" in page.read()


def status(instance: Any, run_id: str) -> DagsterRunStatus:
    return instance.get_run_by_id(run_id).status


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) != 0
