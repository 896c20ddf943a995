"""The server of the page to play on is killed while it answers: it writes nothing, so nothing can be
half written, and started again it answers as before.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from . import stages, tally
from .tally import Cases

KILLS = 20
Copy = Callable[[str], Path]


@contextlib.contextmanager
def playing(data: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``ringrift play`` on a free port; the process and the address that it printed."""
    command = [sys.executable, "-m", "ringrift_pipeline", "play", "--data", str(data)]
    process = subprocess.Popen(
        [*command, "--port", "0", "--no-browser"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.match(r"Play on (http://\S+)", line):
                break
        else:
            raise AssertionError(f"no address, exit {process.wait(10)}")
        yield process, found[1].rstrip("/")
    finally:
        process.kill()
        process.wait(10)
        process.stderr.close()


def ask(address: str, path: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def files(data: Path) -> dict[str, str]:
    return {
        str(path.relative_to(data)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(data.rglob("*"))
        if path.is_file()
    }


def requests(address: str) -> list[Any]:
    """A move of a searching player, a listing and a recorded game: what a session reads."""
    body = {
        "config": stages.CONFIG,
        "moves": [],
        "swap_rule": False,
        "player": "champion",
        "simulations": 400,
        "seed": 1,
    }
    shards = ask(address, f"/api/games/{stages.CONFIG}/0001")
    return [ask(address, "/api/choose", body), ask(address, "/api/games"), shards]


def kill(data: Path, wanted: list[Any], before: dict[str, str], seconds: float) -> None:
    """Kill a server some seconds after its first visitor came; the next one answers as it would have."""
    with playing(data) as (process, address):
        done: list[Any] = []

        def visit() -> None:
            with contextlib.suppress(OSError, ValueError, http.client.HTTPException):  # it dies
                while True:
                    done.append(requests(address))

        visitor = threading.Thread(target=visit, daemon=True)
        visitor.start()
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        visitor.join(30)
        assert not visitor.is_alive()
        assert all(one == wanted for one in done)
    assert files(data) == before
    with playing(data) as (_, address):
        assert requests(address) == wanted


def undisturbed(data: Path) -> tuple[list[Any], dict[str, str]]:
    """What a server answers, and the files that are there."""
    before = files(data)
    with playing(data) as (_, address):
        return requests(address), before


@pytest.mark.bounded
def test_a_server_killed_once(copy_of: Copy) -> None:
    data = copy_of("end")
    kill(data, *undisturbed(data), 0.5)


def test_a_server_killed_while_it_answers(copy_of: Copy) -> None:
    cases = Cases("killed servers", "play page")
    data = copy_of("end")
    wanted, before = undisturbed(data)
    for number in range(tally.total(KILLS)):
        rng = random.Random(f"{tally.seed()} {number}")
        cases.run(
            f"kill {number}",
            lambda r=rng: kill(data, wanted, before, r.uniform(0.0, 4.0)),  # type: ignore[misc]
        )
    cases.settle()
