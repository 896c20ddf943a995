"""``ringrift analyze`` as another program meets it: a process, two pipes, a line at a time."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ringrift_pipeline.analysis.limits import MAX_LINE
from ringrift_pipeline.game import new_game

PATIENCE = 180.0  # seconds; kernels may have to be compiled


class Talk:
    """A running engine."""

    def __init__(self, *arguments: str, data: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ringrift_pipeline", "analyze", "--data", str(data), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._lines: queue.Queue[bytes] = queue.Queue()
        self.errors: list[bytes] = []
        assert self.process.stdout and self.process.stderr and self.process.stdin
        self.stdin = self.process.stdin
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, self._lines.put)),
            threading.Thread(target=self._read, args=(self.process.stderr, self.errors.append)),
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream: Any, put: Any) -> None:
        for line in stream:
            put(line)

    def send(self, *queries: dict[str, Any] | bytes) -> None:
        for query in queries:
            line = query if isinstance(query, bytes) else json.dumps(query).encode()
            self.stdin.write(line + b"\n")
        self.stdin.flush()

    def hear(self, count: int = 1) -> list[dict[str, Any]]:
        """The next answers; each is one whole line of JSON."""
        return [self._parsed(self._lines.get(timeout=PATIENCE)) for _ in range(count)]

    @staticmethod
    def _parsed(line: bytes) -> dict[str, Any]:
        assert line.endswith(b"\n")
        return json.loads(line)

    def end(self) -> tuple[int, list[dict[str, Any]], str]:
        """Exit code, the answers not heard yet, and what stands on standard error."""
        code = self.process.wait(PATIENCE)
        for reader in self._readers:
            reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream
            stream.close()
        rest = []
        while not self._lines.empty():
            rest.append(self._parsed(self._lines.get()))
        return code, rest, b"".join(self.errors).decode()


@contextlib.contextmanager
def talk(*arguments: str, data: Path) -> Iterator[Talk]:
    talking = Talk(*arguments, data=data)
    try:
        yield talking
    finally:
        if talking.process.poll() is None:
            talking.process.kill()
        with contextlib.suppress(OSError):
            talking.stdin.close()
        with contextlib.suppress(ValueError):  # the streams are closed already
            talking.end()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small untrained network for square boards."""
    from ringrift_pipeline.network import NetworkConfig, RingRiftNetwork, save_model

    folder = tmp_path_factory.mktemp("model") / "model"
    return save_model(folder, RingRiftNetwork(NetworkConfig(1, 8, 8)))


def test_a_conversation(model: Path, tmp_path: Path) -> None:
    """Answers come while the input stays open; only JSON is on standard output."""
    with talk("--player", str(model), "--simulations", "12", data=tmp_path) as engine:
        engine.send({"id": "first"})
        (told,) = engine.hear()
        assert told["id"] == "first" and told["rootInfo"]["visits"] == 13
        state, moves = new_game("square8_2p"), []
        for _ in range(12):  # the engine plays both seats; what it says is legal
            move = told["moveInfos"][0]["move"]
            moves.append(move)
            state = state.apply(state.find_move(move))
            engine.send({"id": f"ply {len(moves)}", "moves": moves, "maxVisits": 20})
            (told,) = engine.hear()
            assert told["id"] == f"ply {len(moves)}" and told["turnNumber"] == len(moves)
            assert told["rootInfo"]["currentPlayer"] == state.current_player
        engine.send(b"nonsense", {"id": "odd", "config": "chess"})
        faults = engine.hear(2)
        assert "error" in faults[0] and "id" not in faults[0]
        assert faults[1]["id"] == "odd" and faults[1]["field"] == "config"
        engine.send(b'{"id": "' + b"a" * (2 * MAX_LINE) + b'"}')
        assert str(MAX_LINE) in engine.hear()[0]["error"]
        engine.send({"id": "heuristic", "player": "heuristic"})
        assert engine.hear()[0]["moveInfos"]
        engine.send({"id": "rollout", "player": "rollout", "config": "hex8_3p", "maxVisits": 9})
        assert engine.hear()[0]["rootInfo"]["visits"] == 9
        engine.send({"id": "v", "action": "query_version"})
        assert engine.hear()[0]["version"]
        engine.stdin.close()
        code, rest, said = engine.end()
    assert (code, rest) == (0, [])
    assert "ready: square8_2p" in said and "Traceback" not in said


def test_at_the_end_of_input_what_waits_is_answered(tmp_path: Path) -> None:
    with talk("--player", "heuristic", "--config", "hex8_2p", data=tmp_path) as engine:
        engine.send(*({"id": str(n)} for n in range(300)))
        engine.stdin.write(b'{"id": "no newline at the end"}')
        engine.stdin.close()
        code, told, said = engine.end()
    assert code == 0 and "Traceback" not in said
    assert {one["id"] for one in told} == {*map(str, range(300)), "no newline at the end"}
    assert len(told) == 301 and all(one["moveInfos"] for one in told)


def test_without_waiting_what_waits_is_dropped(tmp_path: Path) -> None:
    arguments = ("--player", "rollout", "--config", "square19_2p", "--quit-without-waiting")
    with talk(*arguments, data=tmp_path) as engine:
        engine.send({"id": "one", "maxVisits": 1})
        assert engine.hear()[0]["id"] == "one"
        engine.send(*({"id": f"long {n}", "maxVisits": 300} for n in range(600)))
        engine.stdin.close()
        code, told, said = engine.end()
    assert code == 0 and len(told) < 500 and "Traceback" not in said


def test_an_interrupt_stops_it_between_two_lines(tmp_path: Path) -> None:
    """Whether it waits for input or works; the exit code is that of every verb."""
    for busy in (False, True):
        with talk("--player", "rollout", "--config", "hex8_2p", data=tmp_path) as engine:
            engine.send({"id": "one", "maxVisits": 2})
            assert engine.hear()[0]["id"] == "one"
            if busy:
                engine.send(*({"id": f"long {n}", "maxVisits": 400} for n in range(2000)))
                engine.hear(2)
            engine.process.send_signal(signal.SIGINT)
            code, told, said = engine.end()
        assert code == 130 and len(told) < 1500
        assert "Traceback" not in said and "Fatal" not in said


def test_it_ends_when_nobody_reads(tmp_path: Path) -> None:
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "ringrift_pipeline", "analyze", "--player", "random"],
        stdin=subprocess.PIPE,
        stdout=write,
        stderr=subprocess.PIPE,
        env={**os.environ, "RINGRIFT_DATA": str(tmp_path)},
    )
    os.close(write)
    os.close(read)
    _, said = process.communicate(b'{"id": "a"}\n', timeout=PATIENCE)
    assert process.returncode == 0
    assert b"Traceback" not in said and b"Exception" not in said


def test_without_a_champion_queries_may_name_a_player(tmp_path: Path) -> None:
    with talk(data=tmp_path) as engine:
        engine.send({"id": "a"}, {"id": "b", "player": "random"})
        first, second = engine.hear(2)
        engine.stdin.close()
        code, _, said = engine.end()
    assert code == 0
    assert first["id"] == "a" and first["field"] == "player" and "ringrift loop" in first["error"]
    assert second["id"] == "b" and second["moveInfos"]
    assert "name a player" in said
