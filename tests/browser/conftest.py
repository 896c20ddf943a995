"""The real programs that a browser looks at: ``ringrift ui`` and ``ringrift play``."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

START = 600.0  # seconds until a server answers; kernels may have to be compiled first
PROMPT = 120.0  # seconds until it has stopped


class Program:
    """A verb of the command line that serves pages until it is stopped."""

    def __init__(self, folder: Path, *words: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        environment.pop("RINGRIFT_DATA", None)
        self.log = folder / f"{words[0]}.log"
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ringrift_pipeline", *words],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def address(self) -> str:
        """``http://127.0.0.1:3000``, once it has been printed: then the server answers."""
        end = time.monotonic() + START
        while time.monotonic() < end:
            found = re.search(r"http://127\.0\.0\.1:\d+", self.log.read_text())
            if found:
                return found[0]
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.2)
        raise AssertionError(f"no address within {START:.0f} s: {self.log.read_text()}")

    def stop(self) -> None:
        """As Ctrl-C does."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        assert self.process.wait(PROMPT) == 0, self.log.read_text()


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """``program("ui", "--data", …)`` starts a verb; all are stopped as Ctrl-C stops them."""
    started: list[Program] = []

    def start(*words: str) -> Program:
        started.append(Program(tmp_path, *words))
        return started[-1]

    yield start
    for one in started:
        one.stop()


@pytest.fixture
def shot(tmp_path: Path) -> Callable[[Any, str], None]:
    """``shot(page, name)`` keeps a screenshot: in ``$RINGRIFT_SCREENSHOTS``, if that is set."""
    folder = Path(os.environ.get("RINGRIFT_SCREENSHOTS") or tmp_path)

    def take(page: Any, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=folder / f"{name}.png", animations="disabled")

    return take
