"""The current folder may be a data root that somebody has sent: nothing in it is imported,
and libraries take no settings from it.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ringrift_pipeline.libraries.current_folder import CurrentFolderError, unread
from ringrift_pipeline.orchestration.backend import Backend
from ringrift_pipeline.orchestration.instance import own_instance, prepare_home
from ringrift_pipeline.orchestration.leftovers import sweep_apart
from ringrift_pipeline.orchestration.places import CODE
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

NUMBA = ".numba_config.yaml"
MATPLOTLIB = "matplotlibrc"


@pytest.fixture
def sent(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, a data root with a trap in the place of what is imported, and with settings
    that would spring one.
    """
    prepare_home(data)
    for name in TRAPS:
        note = f"open({str(tmp_path / 'ran')!r}, 'a').write('{name} ')\nraise SystemExit\n"
        (data / f"{name}.py").write_text(note)
    (data / ".env").write_text(f"RINGRIFT_POOL=tpu\nPYTHONPATH={data}\n")
    installed = tmp_path / "installed"
    installed.mkdir()
    note = f"open({str(tmp_path / 'ran')!r}, 'a').write('locator ')\nraise SystemExit\n"
    (installed / "locators.py").write_text(note)
    path = [str(installed), os.environ.get("PYTHONPATH")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
    (tmp_path / "mine").write_text("mine")
    (data / NUMBA).write_text(
        f"chrome_trace: {tmp_path / 'mine'}\ncache_locator_classes: locators.Locator\n"
    )
    (data / MATPLOTLIB).write_text("text.usetex: true\naxes.facecolor: red\n")
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


def python(script: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A script as `ringrift` runs: in the current folder, which nothing is imported from."""
    line = [sys.executable, "-P", "-c", script, *arguments]
    return subprocess.run(line, capture_output=True, text=True, env={**os.environ, **more})


PLAYS = """
from ringrift_pipeline.game import new_game

print(len(new_game("square8_2p").legal_moves()))
"""


@pytest.mark.parametrize("settings", ["of traces and caches", "disable_jit: 1\n", "no: [yaml"])
def test_kernels_take_no_settings_from_it(sent: Path, settings: str) -> None:
    if "of" not in settings:
        (sent / NUMBA).write_text(settings)
    done = python(PLAYS)
    assert (done.returncode, done.stdout) == (0, "192\n"), done.stderr
    assert f"{sent / NUMBA} is not read" in done.stderr
    assert not ran(sent) and (sent.parent / "mine").read_text() == "mine"


RELOADS = """
import os, sys
from ringrift_pipeline.libraries.compiler import numba

os.chdir(sys.argv[1])
if len(sys.argv) > 2:
    os.environ["NUMBA_DEVELOPER_MODE"] = sys.argv[2]
numba.njit(lambda: 1)()
print(numba.config.DISABLE_JIT, numba.config.DEVELOPER_MODE)
"""


def test_nor_those_of_a_process_that_comes_there_later(sent: Path, tmp_path: Path) -> None:
    (sent / NUMBA).write_text("disable_jit: 1\n")
    os.chdir(tmp_path)
    assert python(RELOADS, str(sent)).stdout == "0 0\n"


def test_those_of_the_environment_they_take(sent: Path, tmp_path: Path) -> None:
    assert python(RELOADS, str(sent), NUMBA_DEVELOPER_MODE="1").stdout == "0 1\n"
    (sent / NUMBA).unlink()
    assert python(RELOADS, str(sent), "1").stdout == "0 1\n"


DRAWS = """
import sys
from pathlib import Path

import numpy as np

from ringrift_pipeline.enhancements.calibration_report import calibration_report
from ringrift_pipeline.training.calibrating import draw_stages
from ringrift_pipeline.training.pictures import draw_losses

folder = Path(sys.argv[1])
chances = np.linspace(0.05, 0.95, 60)
forecasts, won = (np.stack([each, 1 - each], 1) for each in (chances, (chances > 0.4) * 1.0))
report = calibration_report(forecasts, won, bootstrap=20)
draw_stages(folder, report, report)
draw_losses(folder, [{"step": n, "train/loss_policy": 1 / n} for n in range(1, 9)])
"""


def test_charts_take_no_settings_from_it(sent: Path, tmp_path: Path) -> None:
    drawn = []
    steered = {"tex": b"text.usetex: true\naxes.facecolor: red\n", "no text": b"\xff\xfe"}
    for name, settings in {"plain": b"", **steered}.items():
        folder = tmp_path / name
        folder.mkdir()
        (sent / MATPLOTLIB).unlink(missing_ok=True)
        if settings:
            (sent / MATPLOTLIB).write_bytes(settings)
        done = python(DRAWS, str(folder))
        assert done.returncode == 0, done.stderr
        assert (f"{sent / MATPLOTLIB} is not read" in done.stderr) == bool(settings)
        drawn.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert len(drawn[0]) == 4 and drawn[0] == drawn[1] == drawn[2]


def test_a_library_that_looks_there_in_another_way_is_refused(sent: Path) -> None:
    plain = os.path.exists
    with (
        pytest.warns(UserWarning, match=NUMBA),
        pytest.raises(CurrentFolderError, match=f"some_library .*{NUMBA}.*remove the file"),
        unread(NUMBA, "some_library", "nowhere"),
    ):
        assert Path(NUMBA).stat()
    assert os.path.exists is plain
    (sent / NUMBA).unlink()
    with unread(NUMBA, "some_library", "nowhere"):
        assert os.path.exists is plain


def test_an_editable_install_looks_for_nothing_there(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    source, wheels, installed = (tmp_path / name for name in ("source", "wheels", "installed"))
    source.mkdir()
    shutil.copytree(CODE / "ringrift_pipeline", source / "ringrift_pipeline")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CODE / name, source)
    build = "import sys; from setuptools.build_meta import build_editable as b; b(sys.argv[1])"
    wheels.mkdir()
    line = [sys.executable, "-P", "-c", build, str(wheels)]
    subprocess.run(line, cwd=source, check=True, capture_output=True)
    shutil.unpack_archive(next(wheels.iterdir()), installed, "zip")
    look = (
        "import os, site, sys; site.addsitedir(sys.argv[1]); import ringrift_pipeline.web as found;"
        "print(found.__file__, [place for place in sys.path if not os.path.isabs(place)])"
    )
    line = [sys.executable, "-I", "-S", "-c", look, str(installed)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == f"{source / 'ringrift_pipeline/web/__init__.py'} []\n", done.stderr
