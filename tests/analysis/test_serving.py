"""Streams around the engine (a real process is spoken to in ``tests/cli/test_analyze.py``)."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from ringrift_pipeline.analysis import Ending, Engine, Roster, claimed_stdout, serve, serving
from ringrift_pipeline.analysis.limits import MAX_LINE

from .conftest import CONFIG

Emit = Callable[[dict[str, Any]], None]


class Watched(Engine):
    """Notes how many positions waited."""

    most = 0

    def step(self) -> None:
        self.most = max(self.most, self.waiting)
        super().step()


def served(text: bytes, make: Callable[[Emit], Engine], **options: Any) -> tuple[Ending, list[Any]]:
    read, write = os.pipe()
    with os.fdopen(read, "rb") as answers:
        try:
            ending = serve(make, io.BytesIO(text), write, **options)
        finally:
            os.close(write)
        return ending, [json.loads(line) for line in answers.read().splitlines()]


def engine_for(emit: Emit) -> Watched:
    return Watched(CONFIG, 4, Roster("random"), emit)


def short(count: int) -> bytes:
    return b"".join(
        json.dumps({"id": str(n), "maxMoves": 1}).encode() + b"\n" for n in range(count)
    )


def test_no_line_is_read_while_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "MAX_WAITING", 3)
    made: list[Watched] = []

    def make(emit: Emit) -> Engine:
        made.append(engine_for(emit))
        return made[0]

    ending, told = served(short(40), make)
    assert ending is Ending.END_OF_INPUT
    assert sorted(int(one["id"]) for one in told) == list(range(40))
    assert 1 <= made[0].most <= 3


def test_at_the_end_nothing_waits_unless_asked() -> None:
    """The end is seen before any work: the lines and the end arrive together."""
    ending, told = served(short(5), engine_for, wait=False)
    assert ending is Ending.END_OF_INPUT and len(told) < 5
    assert len(served(short(5), engine_for)[1]) == 5


def test_a_line_too_long_is_skipped_to_its_end() -> None:
    for size, long in ((MAX_LINE, False), (MAX_LINE + 1, True), (5 * MAX_LINE, True)):
        line = b'{"id":"b"' + b" " * (size - 10) + b"}\n"
        _, told = served(short(1) + line + short(1), engine_for)
        refused = [one for one in told if "error" in one]
        assert len(told) == 3 and len(refused) == (1 if long else 0)
        assert all(str(MAX_LINE) in one["error"] and "id" not in one for one in refused)


def test_an_interrupt_is_no_exception_and_the_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGINT)

    class Interrupted(Engine):
        def step(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            super().step()

    def make(emit: Emit) -> Engine:
        return Interrupted(CONFIG, 4, Roster("rollout"), emit)

    ending, told = served(short(30), make)
    assert ending is Ending.STOPPED and len(told) == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_whatever_else_is_printed_goes_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    with claimed_stdout() as answers:
        print("from Python")
        os.write(1, b"from elsewhere\n")
        os.write(answers, b"an answer\n")
    print("afterwards")
    out, err = capfd.readouterr()
    assert out == "an answer\nafterwards\n"
    assert sorted(err.splitlines()) == ["from Python", "from elsewhere"]
