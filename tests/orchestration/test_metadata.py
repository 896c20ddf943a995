"""What goes into the event log: small pictures whole, large ones as paths, numbers that plot."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from ringrift_pipeline.orchestration.metadata import (
    FIRST,
    MOST_NUMBERS,
    MOST_PICTURE,
    numbers,
    of_artefact,
    picture,
)
from ringrift_pipeline.orchestration.places import game_address, own_play_port
from ringrift_pipeline.store import Store

WHOLE = "loss, whole (file on the server)"  # a path, which a browser cannot open


@pytest.mark.parametrize(
    ("name", "kind"), [("board.svg", "image/svg+xml"), ("loss.png", "image/png")]
)
def test_a_small_picture_is_in_the_event(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"\x89picture" * 100)
    text = str(picture(path).value)
    head, data = text.removeprefix(f"![{path.stem}](").removesuffix(")").split(",")
    assert head == f"data:{kind};base64"
    assert base64.b64decode(data) == path.read_bytes()


def test_a_large_picture_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / "board.svg"
    path.write_bytes(b"x" * (MOST_PICTURE * 3 // 4))
    assert picture(path).value == str(path)
    path.write_bytes(b"x" * (MOST_PICTURE * 3 // 4 - 60))
    assert len(str(picture(path).value)) <= MOST_PICTURE + 20


def test_a_long_text_is_a_path(store: Store) -> None:
    with store.create("square8_2p", 4, "evaluation") as draft:
        (draft / "long.md").write_text("x" * (MOST_PICTURE + 1))
        (draft / "short.md").write_text("x" * MOST_PICTURE)
        (draft / "large.png").write_bytes(b"x" * MOST_PICTURE)
    shown = of_artefact(draft.artefact)
    assert shown["long"].value == str(draft.artefact.path / "long.md")
    assert all(len(str(getattr(one, "value", one))) <= MOST_PICTURE for one in shown.values())


def test_an_artefact_shows_its_picture_and_where_the_whole_one_is(store: Store) -> None:
    about: dict[str, Any] = {"train/loss": 1.5, "parent_generation": 3, "note": "plain"}
    about["parent_note"] = "fresh weights"
    with store.create("square8_2p", 4, "checkpoint", about) as draft:
        (draft / "loss.png").write_bytes(b"small")
        (draft / "loss.full.svg").write_bytes(b"<svg/>")
        (draft / "list.md").write_text("# list")
        (draft / "metrics.jsonl").write_text(json.dumps({}))
    shown = of_artefact(draft.artefact)
    assert set(shown) == {
        "train/loss", "loss", WHOLE, "list", "digest", "path", "parent_generation", "parent_note",
    }  # fmt: skip
    assert list(shown).index("loss") < list(shown).index(WHOLE)  # first what can be looked at
    assert shown[WHOLE].value == str(draft.artefact.path / "loss.full.svg")
    assert shown["list"].value == "# list"
    assert shown["parent_generation"] == "3"  # a number would be plotted


def test_nothing_is_plotted_in_the_place_of_what_a_generation_lacks(store: Store) -> None:
    """Else an asset would plot more names than fifteen, over its generations."""
    every = [*FIRST["checkpoint"], *(f"val/more_{number}" for number in range(3))]
    shown: set[str] = set()
    for lacks in ("val/gain", "train/reuse", None):
        about = {name: 0.5 for name in every if name != lacks}
        with store.create("square8_2p", 4, "checkpoint", about) as draft:
            pass
        shown |= {name for name in of_artefact(draft.artefact) if name in every}
    assert shown == set(FIRST["checkpoint"]) and len(shown) == MOST_NUMBERS
    assert len(numbers({name: 1 for name in every})) == MOST_NUMBERS


@pytest.mark.parametrize(
    ("url", "address", "port"),
    [
        (None, "http://127.0.0.1:3001", 3001),
        ("http://localhost:4000/", "http://localhost:4000", 4000),
        ("http://trainer:3001", "http://trainer:3001", None),
        ("https://127.0.0.1:3001", "https://127.0.0.1:3001", None),
        ("http://127.0.0.1:3001/play", "http://127.0.0.1:3001/play", None),
        ("http://127.0.0.1:many", "http://127.0.0.1:many", None),
    ],
)
def test_links_lead_to_the_page_of_recorded_games(
    url: str | None, address: str, port: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RINGRIFT_PLAY_URL", raising=False)
    if url is not None:
        monkeypatch.setenv("RINGRIFT_PLAY_URL", url)
    link = game_address("square8_2p-0001-0000-0002?ply=7")
    assert link == f"{address}/games/square8_2p/0001/0000/0002?ply=7"
    assert own_play_port() == port
