"""``ringrift play``: the page as a process, from its address to Ctrl-C, and when it is not shown."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ringrift_pipeline import web
from ringrift_pipeline.cli import run
from ringrift_pipeline.commands import play
from ringrift_pipeline.drawing import LEGEND

if TYPE_CHECKING:
    from ringrift_pipeline.game import Move, State


@contextmanager
def playing(tmp_path: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``ringrift play`` on a free port; the process and the address that it printed."""
    command = [sys.executable, "-m", "ringrift_pipeline", "play", "--port", "0", *arguments]
    data = ["--data", str(tmp_path / "data")]
    process = subprocess.Popen([*command, *data], stderr=subprocess.PIPE, text=True)
    try:
        address = None
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.match(r"Play on (http://\S+)", line):
                address = found[1]
                break
        assert address is not None, process.wait(10)
        yield process, address
    finally:
        process.kill()
        process.wait(10)
        process.stderr.close()


def ask(address: str, path: str, body: object = None) -> dict[str, object]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        address.rstrip("/") + path, data, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def stop(process: subprocess.Popen[str], number: int = signal.SIGINT) -> tuple[int, str]:
    """Exit code and the rest of standard error."""
    process.send_signal(number)
    assert process.stderr is not None
    return process.wait(30), process.stderr.read()


def typed(tmp_path: Path, text: bytes, *more: str) -> subprocess.CompletedProcess[bytes]:
    """What a game in the terminal makes of what is typed."""
    command = [sys.executable, "-m", "ringrift_pipeline", "play", "--terminal", *more]
    return subprocess.run(
        [*command, "--data", str(tmp_path / "data")], input=text, capture_output=True, timeout=300
    )


def test_whatever_is_typed_is_an_answer_or_the_end(tmp_path: Path) -> None:
    lines = [
        "²".encode(),
        "٣".encode(),
        b"1" * 5000,
        b"99999999",
        b"-1",
        b"\xff\xfe\x00",
        b"[bold]",
        b"\x1b[2J",
        b"x" * 999,
        b"x" * 1_000_000,
        b"\r",
        b"",
    ]
    done = typed(tmp_path, b"\n".join([*lines, b"q", b"0"]))
    assert done.returncode == 130 and b"Traceback" not in done.stderr
    assert done.stdout.count(b"move> ") == len(lines) + 1
    assert done.stdout.decode().count(LEGEND) == 1
    assert b"there are moves 0 to" in done.stdout and b"\x1b" not in done.stdout
    assert done.stdout.count(b"no move has so long a text") == 2
    assert b"given up after 0 plies" in done.stderr and b"has ended" not in done.stderr
    nothing = typed(tmp_path, b"")
    assert nothing.returncode == 130 and b"the input has ended\ngiven up after" in nothing.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_page_is_served_with_what_was_asked_for_until_it_is_stopped(
    tmp_path: Path, number: int
) -> None:
    asked = ["--config", "hex8_3p", "-p", "human", "-p", "random", "--simulations", "7"]
    with playing(tmp_path, *asked, "--seed", "5") as (process, address):
        defaults = ask(address, "/api/setup")["defaults"]
        assert defaults == {
            "config": "hex8_3p",
            "players": ["human", "random", "random"],
            "simulations": 7,
            "swap_rule": False,
            "seed": 5,
        }
        with urllib.request.urlopen(address, timeout=60) as page:
            assert b"<title>RingRift</title>" in page.read()
        shown = ask(address, "/api/position", {"config": "hex8_3p"})
        assert len(shown["legal"]) > 50  # type: ignore[arg-type]
        code, said = stop(process, number)
    assert code == 0 and said.splitlines() == ["Ctrl-C stops it.", "stopped"]
    assert not (tmp_path / "data").exists()


def test_it_stops_in_the_middle_of_a_search(tmp_path: Path) -> None:
    with playing(tmp_path) as (process, address):
        game = {"config": "hexagonal_2p", "player": "rollout"}
        ask(address, "/api/choose", {**game, "simulations": 1})  # compiled before the clock runs
        host, port = address.split("/")[2].split(":")
        with socket.create_connection((host, int(port))) as connection:
            body = json.dumps({**game, "simulations": 10_000}).encode()
            head = (
                f"POST /api/choose HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            )
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            time.sleep(0.5)
            began = time.monotonic()
            code, said = stop(process)
            assert time.monotonic() - began < 10
    assert code == 0 and said.splitlines()[-1] == "stopped" and "Traceback" not in said


def test_beyond_this_machine_it_asks_for_a_token(tmp_path: Path) -> None:
    with playing(tmp_path, "--host", "0.0.0.0") as (process, address):
        found = re.fullmatch(r"http://[^/]+:(\d+)/\?token=(\S{40,})", address)
        assert found is not None
        here = f"http://127.0.0.1:{found[1]}/"
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(here, timeout=60)
        with refused.value as answer:
            assert answer.status == 401
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with opener.open(f"{here}?token={found[2]}", timeout=60) as page:
            assert b"<title>RingRift</title>" in page.read() and page.url == here
        code, said = stop(process)
        assert code == 0 and said and found[2] not in said  # it is told once
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("host", "opened"), [("127.0.0.1", 1), ("0.0.0.0", 0)])
def test_no_browser_is_given_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, opened: int
) -> None:
    """It would get the address as an argument, which all users of the machine can read."""
    addresses: list[str] = []
    monkeypatch.setattr(play, "_has_desktop", lambda: True)
    monkeypatch.setattr(play.webbrowser, "open", addresses.append)
    monkeypatch.setattr(web, "serve", lambda *_: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(play.os, "_exit", lambda code: None)  # this is no process of its own
    assert run(["play", "--host", host, "--port", "0", "--data", str(tmp_path / "data")]) == 0
    assert len(addresses) == opened and "token" not in str(addresses)


def test_a_port_that_is_taken_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert run(["play", "--port", port, "--data", str(tmp_path)]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if not x.startswith("Compil")]
    assert f"port {port} on 127.0.0.1 cannot be used" in line and "--port" in line


def test_players_alone_stay_in_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(tmp_path), "--seed", "3"]
    assert run(["play", "--player", "random", *data]) == 0
    captured = capsys.readouterr()
    assert "seat 1 (random): place_ring" in captured.out and "plies: seat" in captured.out
    assert run(["play", "--player", "random", "--quiet", *data]) == 0
    captured = capsys.readouterr()
    assert "place_ring" not in captured.out and "plies: seat" in captured.out
    assert LEGEND not in captured.out  # nobody looks at the board


class First:
    """A player that swaps where it may, plays the first move elsewhere, and notes its seats."""

    def __init__(self, swaps: bool) -> None:
        self.swaps, self.seats = swaps, list[int]()

    def choose(self, state: State) -> Move:
        self.seats.append(state.current_player or 0)
        legal = state.legal_moves()
        swaps = [move for move in legal if move.to_record()["type"] == "swap_sides"]
        return swaps[0] if self.swaps and swaps else legal[0]


@pytest.mark.parametrize("swaps", [True, False])
def test_players_change_seats_when_sides_are_swapped(
    swaps: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    players = {"champion": First(False), "heuristic": First(swaps)}
    monkeypatch.setattr(
        "ringrift_pipeline.search.load_player", lambda spec, *args, **settings: players[spec]
    )
    asked = ["play", "--swap-rule", "-p", "champion", "-p", "heuristic"]
    assert run([*asked, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    first, second = (player.seats for player in players.values())
    if swaps:
        assert second[0] == 2 and set(second[1:]) == {1} and set(first[:2]) == {1}
        assert first[-1] == 2 and told["players"] == ["heuristic", "champion"]
    else:
        assert set(first) == {1} and set(second) == {2}
        assert told["players"] == ["champion", "heuristic"]
    assert told["swapped"] is swaps
    assert run(asked) == 0
    captured = capsys.readouterr()
    assert f"seat {told['winner']} ({told['players'][told['winner'] - 1]})" in captured.out
    assert ("sides swapped" in captured.out) is swaps
    assert ("seat 2 (champion)" in captured.out) is swaps


def test_who_swaps_sides_is_asked_for_the_other_seat(tmp_path: Path) -> None:
    seats = ["-p", "random", "-p", "human", "--swap-rule"]
    done = typed(tmp_path, b"swap_sides\n0\n", *seats)
    assert done.returncode == 130  # the end of what is typed
    lines = [line.strip() for line in done.stdout.decode().splitlines()]
    turns = [line for line in lines if re.search(r"seat \d (to move|\()", line)]
    swap = next(i for i, line in enumerate(turns) if "swap_sides" in line)
    assert "seat 2 to move" in turns[swap - 1] and "seat 2 (human): swap_sides" in turns[swap]
    assert "seat 2 (random): place_ring" in turns[swap + 1]
    assert any("seat 1 to move" in line for line in turns[swap + 1 :])
    assert not any("seat 1 (random)" in line for line in turns[swap + 1 :])


def test_a_move_is_asked_for_until_it_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ringrift_pipeline.commands import play
    from ringrift_pipeline.game import new_game

    state = new_game("square8_2p")
    monkeypatch.setattr("sys.stdin", io.StringIO("²\n9999\ncount 1\n1\n"))
    assert play.ask(state, state.legal_moves(), {}) == state.legal_moves()[1]
    said = capsys.readouterr().out
    assert "no move contains that" in said and "there are moves 0 to " in said
    everything = len(state.legal_moves())
    assert f"… {everything - play.UNASKED} more; type part of a move, or ? for all" in said
    assert said.count("place_ring") == play.UNASKED + play.LISTED
    monkeypatch.setattr("sys.stdin", io.StringIO("?\n1\n"))
    play.ask(state, state.legal_moves(), {})
    assert capsys.readouterr().out.count("place_ring") == play.UNASKED + everything


def test_help_says_when_there_is_no_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")
    assert run(["play", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for said in ("--terminal", "--port", "--host", "--no-browser", "named for every seat"):
        assert said in text


def test_the_help_loads_no_server() -> None:
    code = (
        "import sys; from ringrift_pipeline.cli import run; run(['play', '--help']); "
        "bad = {'starlette', 'uvicorn', 'numba', 'torch', 'dagster'} & set(sys.modules); "
        "sys.exit(9 if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env={**os.environ})
    assert done.returncode == 0
