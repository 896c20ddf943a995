"""The board as a picture: it shows what the record says, is compact and holds nothing active."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import pytest

from ringrift_pipeline.drawing import all_cells, board_svg
from ringrift_pipeline.game import CONFIGS, RecordError, State, new_game

XML = "{http://www.w3.org/2000/svg}"


def positions(config: str, seed: int = 1) -> Iterator[State]:
    """Every position of a random game."""
    rng = random.Random(seed)
    state = new_game(config)
    while not state.is_terminal:
        yield state
        state = state.apply(rng.choice(state.legal_moves()))
    yield state


def busy(config: str) -> dict[str, Any]:
    """The record of a random game that has the most of whatever it has least of."""
    records = [state.to_record() for state in positions(config)]
    return max(records, key=lambda r: min(len(r["stacks"]), len(r["markers"]), len(r["collapsed"])))


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def by_class(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [item for item in root.iter() if name in item.get("class", "").split()]


@pytest.mark.parametrize("config", CONFIGS)
def test_every_board_is_drawn_with_all_its_cells(config: str) -> None:
    state = new_game(config)
    root = parsed(board_svg(config, state.to_record()))
    named = [item.get("data-cell") for item in root.iter() if item.get("data-cell")]
    assert named == all_cells(state.rules)
    assert len({item.get("d") for item in root.iter() if item.get("data-cell")}) == len(named)
    assert f"{config}: seat 1 to move, ring_placement" == root.get("aria-label")


@pytest.mark.parametrize("config", ["square8_4p", "hex8_3p"])
def test_every_ring_marker_and_collapsed_cell_is_there(config: str) -> None:
    record = busy(config)
    assert record["stacks"] and record["markers"] and record["collapsed"]
    root = parsed(board_svg(config, record))
    rings = Counter(item.get("class") for item in root.iter(f"{XML}circle"))
    assert rings == Counter(f"s{digit}" for rings in record["stacks"].values() for digit in rings)
    heights = [text.text for text in by_class(root, "stacks")[0].iter(f"{XML}text")]
    tall = [str(len(rings)) for rings in record["stacks"].values() if len(rings) > 1]
    assert heights == tall
    tinted = {
        item.get("data-cell"): item.get("class") for item in root.iter() if item.get("data-cell")
    }
    for cell, seat in record["collapsed"].items():
        assert tinted.pop(cell) == f"s{seat}"
    assert set(tinted.values()) == {None}
    for seat in {*record["markers"].values()}:
        filled = [
            item
            for item in by_class(root, f"s{seat}")
            if item.tag == f"{XML}path" and not item.get("data-cell")
        ]
        shapes = sum(
            item.get("d", "").count("M") for item in filled if "won" not in item.get("class", "")
        )
        assert shapes == sum(owner == seat for owner in record["markers"].values())


@pytest.mark.parametrize("config", ["square8_4p", "hex8_3p"])
def test_a_compact_picture_shows_the_same(config: str) -> None:
    record = busy(config)
    plain, small = board_svg(config, record), board_svg(config, record, compact=True)
    assert "data-cell" not in small and len(small) < 0.6 * len(plain)
    root = parsed(small)
    cells = by_class(root, "cells")[0]
    drawn = {path.get("class"): path.get("d", "").count("h0") for path in cells}
    every = len(all_cells(new_game(config).rules))
    assert drawn.pop(None) == every - len(record["collapsed"])
    assert drawn == {f"s{seat}": n for seat, n in Counter(record["collapsed"].values()).items()}
    for name in ("circle", "text"):
        assert len([*root.iter(f"{XML}{name}")]) == len([*parsed(plain).iter(f"{XML}{name}")])


@pytest.mark.parametrize("config", ["square19_2p", "hexagonal_2p"])
def test_the_empty_cells_of_a_compact_picture_are_one_path_through_all(config: str) -> None:
    state = new_game(config)
    (path,) = by_class(parsed(board_svg(config, state.to_record(), compact=True)), "cells")[0]
    x = y = 0.0
    found = set()
    for kind, a, b in re.findall(r"([Mm])(-?[\d.]+) (-?[\d.]+)h0", path.get("d", "")):
        x, y = (float(a), float(b)) if kind == "M" else (x + float(a), y + float(b))
        found.add((x, y))
    plain = parsed(board_svg(config, state.to_record()))
    outlines = [item.get("d", "") for item in plain.iter() if item.get("data-cell")]
    starts = [re.match(r"M(-?[\d.]+) (-?[\d.]+)", outline) for outline in outlines]
    dx, dy = (18.5, 18.5) if config.startswith("square") else (0.0, 21.0)
    assert found == {(float(at[1]) + dx, float(at[2]) + dy) for at in starts if at}
    assert len(found) == len(all_cells(state.rules))


def test_seats_differ_in_shape() -> None:
    record = new_game("square8_4p").to_record()
    shapes = set()
    for seat in range(1, 5):
        root = parsed(board_svg("square8_4p", {**record, "markers": {"3,3": seat}}))
        (path,) = [item.get("d") for item in by_class(root, f"s{seat}")]
        assert path is not None
        shapes.add(re.sub(r"[\d.]+", "", path))
    assert len(shapes) == 4


@pytest.mark.parametrize("config", ["square8_2p", "square8_3p", "square8_4p", "hex8_4p"])
def test_small_boards_stay_well_under_20_kb(config: str) -> None:
    longest = 0
    for state in positions(config, seed=4):
        moves = [(move.to_record(), 0.2) for move in state.legal_moves()[:5]]
        svg = board_svg(config, state.to_record(), shares=moves)
        longest = max(longest, len(svg.encode()))
    assert 5_000 < longest < 15_000


def test_nothing_in_it_is_active_or_elsewhere() -> None:
    svg = board_svg("square8_4p", busy("square8_4p"))
    assert not re.search(r"<script|<style|style=|href|url\(|\son\w+=|<foreignObject|\bid=", svg)
    assert re.findall(r"https?://[^\"]+", svg) == ["http://www.w3.org/2000/svg"]


def test_last_move_highlights_and_shares_are_drawn_on_request_only() -> None:
    record = new_game("square8_2p").to_record()
    plain = parsed(board_svg("square8_2p", record))
    for name in ("last", "lit", "shares", "labels"):
        assert not by_class(plain, name)
    move = {"type": "move_stack", "from": "0,0", "to": "0,4"}
    root = parsed(
        board_svg(
            "square8_2p",
            record,
            last_move=move,
            highlighted=["2,2", "2,2", "3,3"],
            shares=[(move, 0.61), ({"type": "place_ring", "to": "5,5", "count": 1}, 0.2)]
            + [({"type": "skip_placement"}, 0.19)],
        )
    )
    assert by_class(root, "last")[0].get("d", "").count("M") == 2
    assert by_class(root, "lit")[0].get("d", "").count("M") == 2
    labels = [text.text for text in by_class(root, "labels")[0].iter(f"{XML}text")]
    assert labels == ["61%", "20%"]  # a skip has no cell
    widths = [
        float(w) for item in root.iter() if (w := item.get("stroke-width")) and item.get("opacity")
    ]
    assert widths[0] > widths[1]


@pytest.mark.parametrize(
    "changed",
    [
        {"markers": {"8,0": 1}},
        {"stacks": {'"><script>': "1"}},
        {"collapsed": {"0,0,0": 2}},
    ],
)
def test_a_cell_that_the_board_has_not_is_refused(changed: dict[str, Any]) -> None:
    record = {**new_game("square8_2p").to_record(), **changed}
    with pytest.raises(RecordError, match="is no cell of square8"):
        board_svg("square8_2p", record)


def test_bad_names_are_refused() -> None:
    record = new_game("square8_2p").to_record()
    with pytest.raises(ValueError, match="square8_2p"):
        board_svg("square9_2p", record)
    with pytest.raises(RecordError, match="9,9"):
        board_svg("square8_2p", record, highlighted=["9,9"])
    with pytest.raises(RecordError, match="9,9"):
        board_svg("square8_2p", record, last_move={"type": "place_ring", "to": "9,9"})
