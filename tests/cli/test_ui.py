"""``ringrift ui``: the real thing in a process, stopped while it has nothing to do and while it has."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterEventType, DagsterRunStatus
from faults.supervising import launched

from ringrift_pipeline.commands.ui import GamesPage
from ringrift_pipeline.orchestration.instance import open_instance
from ringrift_pipeline.orchestration.names import partitions_name
from ringrift_pipeline.orchestration.presence import present
from ringrift_pipeline.orchestration.services import Service
from ringrift_pipeline.orchestration.status import status_of
from tests.waiting import until


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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


@pytest.fixture(autouse=True)
def page(monkeypatch: pytest.MonkeyPatch) -> int:
    """The port of the page of recorded games, free."""
    port = free_port()
    monkeypatch.setenv("RINGRIFT_PLAY_URL", f"http://127.0.0.1:{port}")
    return port


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
            start_new_session=True,  # a group of its own, as a shell gives what it starts
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
    return launched(port, parameters)


@pytest.mark.whole
def test_starts_everything_and_leaves_nothing(
    tmp_path: Path, ui: Callable[..., subprocess.Popen[str]], page: int
) -> None:
    data, port = tmp_path / "data", free_port()
    first = ui(port, "--json")
    assert first.stdout and answers_at_once(first.stdout.readline() + read_object(first.stdout))
    up = until(lambda: services(data, 4), "all four are up", 60)
    assert set(up) == {"daemon", "webserver", "code-server", "play"}
    assert up["webserver"].port == port and up["play"].port == page

    # the page that the assets link to has loaded nothing before somebody comes, and then answers
    assert resident(up["play"].pid) < 60e6
    assert game_page(page) == {"items": []}

    # a second one has the web pages alone, and leaves the first as it is
    other = free_port()
    second = ui(other)
    assert second.stderr
    told = [second.stderr.readline() for _ in range(3)]
    assert str(other) in told[0] and answers(other)
    assert f"Process {first.pid} " in told[1] and "its pages alone" in told[1]
    assert f"lead to whoever serves port {page} on 127.0.0.1" in told[2]
    second.send_signal(signal.SIGTERM)
    assert second.wait(timeout=120) == 0
    assert not answers(other) and is_free(other)
    assert first.poll() is None and answers(port) and game_page(page) == {"items": []}

    # stopped while a run is at work
    run_id = launch(port, data)
    with open_instance(data) as instance:
        until(lambda: status(instance, run_id) == DagsterRunStatus.STARTED, "the run works", 180)
        (running,) = status_of(data).running
        assert (running.config, running.generation) == ("hex8_2p", 0)
        os.killpg(first.pid, signal.SIGINT)  # as Ctrl-C in a terminal: to all of the group
        assert first.wait(timeout=180) == 0
        assert status(instance, run_id) == DagsterRunStatus.CANCELED
        # it was asked to stop, not only found dead
        assert instance.all_logs(run_id, of_type=DagsterEventType.RUN_CANCELING)
    assert processes_of(data) == []
    assert is_free(port) and is_free(page) and present(data) == []
    assert [*data.rglob(".ringrift-tmp-*")] == []


QUERY = json.dumps({"query": "{ version }"}).encode()


def asked(port: int, path: str, body: bytes | None = None, **headers: str) -> int:
    """The status that the web server answers with."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET" if body is None else "POST", path, body, named)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.whole
def test_beyond_this_machine_it_asks_for_a_token_and_gives_its_name(
    tmp_path: Path, ui: Callable[..., subprocess.Popen[str]], page: int
) -> None:
    port = free_port()
    process = ui(port, "--host", "0.0.0.0", "--no-daemon", "--no-play")
    assert process.stderr
    told = [process.stderr.readline() for _ in range(4)]
    assert f"http://{socket.gethostname()}:{port}/locations/" in told[0]
    token = told[0].rpartition("?token=")[2].strip()
    assert len(token) > 40 and "can launch runs" in told[-1]
    assert "recorded games" not in "".join(told) and is_free(page)
    json_type = {"Content_Type": "application/json"}
    for path in ("/", "/server_info", "/graphql?query={version}", "/favicon.ico", "/logs/x.out"):
        assert asked(port, path) == 401
    assert asked(port, "/graphql", QUERY, **json_type) == 401
    assert asked(port, f"/runs?token={token}") == 303
    cookie = {"Cookie": f"ringrift-{port}={token}"}
    assert asked(port, "/", **cookie) == 200
    assert asked(port, "/graphql", QUERY, **cookie, **json_type) == 200
    # nobody else on this machine can read it from the lists of processes
    data = tmp_path / "data"
    assert token not in "".join(processes_of(data))
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 0
    files = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    assert data / "dagster" / "services" / "webserver.log" in files
    assert [path for path, content in files.items() if token.encode() in content] == []


@pytest.mark.whole
def test_another_sites_page_can_do_nothing_with_it(
    ui: Callable[..., subprocess.Popen[str]],
) -> None:
    port = free_port()
    process = ui(port, "--no-daemon", "--no-play")
    assert process.stderr and str(port) in process.stderr.readline()
    json_type = {"Content_Type": "application/json"}
    own = f"http://127.0.0.1:{port}"
    assert asked(port, "/graphql", QUERY, **json_type, Origin=own) == 200
    assert asked(port, "/graphql", QUERY, **json_type, Origin="http://evil.example") == 403
    assert asked(port, "/graphql?query={version}", b"", Content_Type="text/plain") == 415
    assert asked(port, "/graphql?query={version}") == 405
    for path in ("/", "/server_info", "/favicon.ico", "/locations", "/nothing/at/all"):
        assert asked(port, path, Host=f"evil.example:{port}") == 421
    assert asked(port, "/graphql", QUERY, **json_type, Host="evil.example") == 421
    for path in ("/logs/..%2f..%2fdagster.yaml", "/logs/../../dagster.yaml", "/_next/../../app.py"):
        assert asked(port, path) not in (200, 206)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 0


def test_a_page_of_games_that_is_deaf_is_not_waited_for(
    tmp_path: Path, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Service, "stop", lambda _: pytest.fail("it was asked to end"))
    with GamesPage(tmp_path):
        (pid,) = (one.pid for one in until(lambda: present(tmp_path), "the page is up"))
        os.kill(pid, signal.SIGSTOP)
    assert is_free(page) and present(tmp_path) == [] == processes_of(tmp_path)


@pytest.mark.parametrize("verb", ["status", "ui", "loop"])
def test_a_pool_that_means_nothing_is_one_line(verb: str, tmp_path: Path) -> None:
    """Whether it is asked for while modules load or after."""
    done = subprocess.run(
        [sys.executable, "-m", "ringrift_pipeline", verb, "--data", str(tmp_path)],
        env={**os.environ, "RINGRIFT_POOL": "tpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "RINGRIFT_POOL is 'tpu': set it to cpu or gpu" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("how", ["--daemon", "--no-daemon"])
def test_a_file_that_brings_code_along_is_one_line(
    how: str, tmp_path: Path, ui: Callable[..., subprocess.Popen[str]]
) -> None:
    home = tmp_path / "data" / "dagster"
    home.mkdir(parents=True)
    (home / "dagster.yaml").write_text("run_launcher: {module: evil, class: X}")
    process = ui(free_port(), how, "--no-play")
    told = process.communicate(timeout=120)[1]
    assert process.returncode == 2, told  # before anything was started
    assert "dagster.yaml: run_launcher names 'evil.X'" in told.splitlines()[-1]
    assert not processes_of(tmp_path / "data")


def services(data: Path, count: int) -> dict[str, Any]:
    """The services that are up, by kind, once there are so many."""
    up = {one.kind: one for one in status_of(data).services}
    return up if len(up) == count else {}


def resident(pid: int) -> float:
    """Bytes of memory that a process has."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return 1024.0 * int(line.split()[1])


def game_page(port: int) -> Any:
    """The games that the page lists."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/games", timeout=60) as answer:
        return json.load(answer)


def read_object(stream: Any) -> str:
    """The rest of a JSON object that is printed over several lines."""
    lines = []
    while not lines or lines[-1].rstrip() != "}":
        lines.append(stream.readline())
    return "".join(lines)


def answers_at_once(printed: str) -> bool:
    """Does the address that was printed answer, without any waiting?"""
    said = json.loads(printed)
    assert said["daemon"] is True and said["play"] == os.environ["RINGRIFT_PLAY_URL"]
    with urllib.request.urlopen(said["url"], timeout=60) as page:
        return b"Dagster" in page.read()


def status(instance: Any, run_id: str) -> DagsterRunStatus:
    return instance.get_run_by_id(run_id).status


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) != 0
