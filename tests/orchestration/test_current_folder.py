"""The current folder may be a data root that somebody has sent: nothing in it is imported."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ringrift_pipeline.orchestration.backend import Backend
from ringrift_pipeline.orchestration.instance import own_instance, prepare_home
from ringrift_pipeline.orchestration.leftovers import sweep_apart
from ringrift_pipeline.orchestration.services import start_play, start_webserver

TRAPS = (
    "numpy",
    "yaml",
    "multiprocessing",
    "http",
    "statistics",
    "ringrift_pipeline",
    "sqlalchemy",
)


@pytest.fixture
def sent(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, a data root with a trap in the place of what is imported."""
    prepare_home(data)
    for name in TRAPS:
        note = f"open({str(tmp_path / 'ran')!r}, 'a').write('{name} ')\nraise SystemExit\n"
        (data / f"{name}.py").write_text(note)
    (data / ".env").write_text(f"RINGRIFT_POOL=tpu\nPYTHONPATH={data}\n")
    monkeypatch.chdir(data)
    return data


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ran(data: Path) -> str:
    note = data.parent / "ran"
    return note.read_text() if note.exists() else ""


def test_the_daemon_and_the_code_server_import_nothing_from_it(sent: Path) -> None:
    with own_instance(sent) as instance:
        backend = Backend(sent, instance)
        try:
            backend.begin()
            backend.check()
        finally:
            backend.stop()
    assert not ran(sent)
    assert "Loaded environment variables" not in "".join(
        service.log.read_text() for service in backend.services
    )


@pytest.mark.whole
def test_nor_does_a_web_server_without_them(sent: Path, port: int) -> None:
    service = start_webserver(sent, "127.0.0.1", port)
    service.stop()
    said = service.log.read_text()
    assert not ran(sent) and "tpu" not in said and "Error" not in said, said


def test_nor_the_page_of_games(sent: Path, port: int) -> None:
    service = start_play(sent, port)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as visitor:
            visitor.sendall(b"GET / HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
            assert visitor.recv(12) == b"HTTP/1.1 200"
    finally:
        service.stop()
    assert not ran(sent)


def test_nor_what_a_worker_does_before_its_steps(sent: Path) -> None:
    sweep_apart(sent)
    assert not ran(sent)


COMMAND = """
import multiprocessing
from ringrift_pipeline import cli

def works():
    worker = multiprocessing.get_context("spawn").Process(target=len, args=("",))
    worker.start()
    worker.join()
    return worker.exitcode

if __name__ == "__main__":
    cli.run = works
    cli.main()
"""


def test_nor_the_workers_of_a_command(sent: Path, tmp_path: Path) -> None:
    script = tmp_path / "bin" / "ringrift"  # as an installed one: the current folder is not its own
    script.parent.mkdir()
    script.write_text(COMMAND)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert not ran(sent) and done.returncode == 0, done.stderr
