"""What ``ringrift loop`` shows of many generations."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from rich.console import Console

from ringrift_pipeline.commands import loop
from ringrift_pipeline.orchestration.loop import GenerationState, Snapshot

CONFIG = "square8_2p"


def snapshot(count: int, decided: int, first: int = 0) -> Snapshot:
    states = [GenerationState(number) for number in range(first, first + count)]
    for state in states[:decided]:
        state.decided, state.status, state.run_id = True, "success", "some"
        state.assets = dict.fromkeys(state.assets, "done")
        state.seconds = dict.fromkeys(state.assets, 1.0)
    return Snapshot(CONFIG, states, 60.0)


def shown(of: Snapshot) -> list[str]:
    """The lines of the picture that tell of generations."""
    console = Console(width=400)
    with console.capture() as captured:
        console.print(loop._picture(of))
    lines = [line.strip() for line in captured.get().splitlines()]
    named = [line.split()[1] if line.startswith(CONFIG) else line for line in lines]
    return [line for line in named if line and "since the start" not in line]


@pytest.mark.parametrize(
    ("count", "decided", "expected"),
    [
        (3, 1, ["0007", "0008", "0009"]),
        (8, 8, [f"{number:04d}" for number in range(7, 15)]),
        (2000, 0, [*(f"{number:04d}" for number in range(7, 15)), "1992 to come"]),
        (2000, 500, ["493 before", *(f"{n:04d}" for n in range(500, 508)), "1499 to come"]),
        (2000, 2000, ["1992 before", *(f"{number:04d}" for number in range(1999, 2007))]),
    ],
)
def test_the_picture_has_the_newest_generations_and_fits(
    count: int, decided: int, expected: list[str]
) -> None:
    assert shown(snapshot(count, decided, first=7)) == expected


def test_each_asset_is_told_once_and_none_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(loop, "errors", SimpleNamespace(is_terminal=False))
    monkeypatch.setattr(loop, "say", said.append)

    def watch() -> Iterator[Snapshot]:
        yield from (snapshot(4, decided) for decided in (0, 1, 3, 3))

    loop._watch(SimpleNamespace(watch=watch), None)
    told = [line.split("] ")[1] for line in said if " done after " in line]
    assert len(told) == len(set(told)) == 3 * len(GenerationState(0).assets)
