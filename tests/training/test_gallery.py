"""The gallery shows the positions that were mined, as the shards and the parent have them."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
import torch

from ringrift_pipeline.drawing import charts
from ringrift_pipeline.game import State, new_game
from ringrift_pipeline.network import load_model
from ringrift_pipeline.selfplay import Plan, iter_shards
from ringrift_pipeline.selfplay.plan import open_model
from ringrift_pipeline.selfplay.shards import column, compact_size, ragged_column, read_shard
from ringrift_pipeline.store import Artefact, Store
from ringrift_pipeline.training import (
    WindowDataset,
    build_window,
    mine_hard_examples,
    open_window,
    score_games,
)
from ringrift_pipeline.training.gallery import (
    SHOWN,
    Example,
    draw_gallery,
    find_examples,
    judged_by,
)

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def mined(store: Store, second: Plan) -> Artefact:
    score_games(store, second)
    return mine_hard_examples(store, second)


def hardest(mined: Artefact) -> list[dict]:
    frame = pl.read_parquet(mined.file("hard_examples.parquet"))
    return frame.sort("hardness", descending=True, maintain_order=True).head(SHOWN).to_dicts()


def boards(path) -> list[ElementTree.Element]:  # type: ignore[no-untyped-def]
    root = ElementTree.parse(path).getroot()
    return [one for one in root.iter(f"{SVG}svg") if one.get("class") == "board"]


def test_the_hardest_are_drawn_with_both_opinions(mined: Artefact) -> None:
    rows = hardest(mined)
    assert len(boards(mined.file("gallery.full.svg"))) == 2 * len(rows) == 2 * SHOWN
    few = boards(mined.file("gallery.svg"))
    assert 2 <= len(few) < 2 * SHOWN
    assert mined.file("gallery.svg").stat().st_size <= charts.MOST_BYTES
    text = mined.file("gallery.svg").read_text()
    assert f"{rows[0]['game_id']}, ply {rows[0]['ply']}:" in text
    assert f"hardness {rows[0]['hardness']:.2f} nats, most of it {rows[0]['reason']}" in text


def test_positions_and_opinions_are_those_of_shard_and_parent(
    store: Store, second: Plan, mined: Artefact
) -> None:
    window = open_window(build_window(store, second).path)
    rows = hardest(mined)
    assert second.parent is not None
    parent = open_model(store, second.parent)
    judged = judged_by(parent, window, [row["row"] for row in rows], "cpu")
    tables = [read_shard(shard.file("shard.arrow")) for shard in iter_shards(store, second)]
    model, dataset = load_model(parent.path), WindowDataset(window)
    for row, example in zip(rows, find_examples(store, second, rows, judged), strict=True):
        (found,) = [
            table.filter(pl_mask(table, row["game_id"], row["ply"]))
            for table in tables
            if pl_mask(table, row["game_id"], row["ply"]).any()
        ]
        size = compact_size(example.state.rules)
        assert np.array_equal(example.state.array[:size], column(found, "state")[0])
        _, moves = ragged_column(found, "moves")
        assert [move.code for move in example.state.legal_moves()] == moves.tolist()
        assert np.allclose(example.search, ragged_column(found, "policy")[1])
        mover = int(column(found, "player")[0])
        assert example.search_value == pytest.approx(column(found, "search_value")[0, mover])
        with torch.no_grad():
            logits, value = model(dataset.batch([row["row"]])["features"])
        assert example.network is not None
        alone = torch.softmax(logits[0, : len(moves)].double(), 0).numpy()
        assert np.allclose(example.network, alone, atol=1e-5)
        chance = torch.softmax(value[0, : window.players].double(), 0)[0]
        assert example.network_value == pytest.approx(float(chance), abs=1e-5)


def pl_mask(table, game: str, ply: int) -> np.ndarray:  # type: ignore[no-untyped-def]
    return (column(table, "game_id") == game) & (column(table, "ply") == ply)


def test_without_a_parent_there_is_one_opinion(store: Store, first: Plan) -> None:
    score_games(store, first)
    artefact = mine_hard_examples(store, first)
    assert len(boards(artefact.file("gallery.full.svg"))) == len(hardest(artefact))
    assert "network" not in artefact.file("gallery.full.svg").read_text()


def test_boards_too_large_for_the_event_log_are_in_the_file_alone(
    store: Store, second: Plan, mined: Artefact, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(charts, "MOST_BYTES", 1000)
    folder = tmp_path / "drawn"
    folder.mkdir()
    draw_gallery(folder, find_examples(store, second, hardest(mined), {}))
    assert [path.name for path in folder.iterdir()] == ["gallery.full.svg"]


def fullest(config: str) -> State:
    """The position of a random game in which most stands on the board."""
    rng = random.Random(5)
    state = best = new_game(config)
    most = -1
    for ply in range(10_000):
        codes = state.legal_codes()
        if not len(codes):
            break
        if ply % 10 == 0:
            record = state.to_record()
            rings = sum(map(len, record["stacks"].values()))
            there = rings + len(record["markers"]) + len(record["collapsed"])
            if there > most and len(codes) > 1:
                most, best = there, state
        state = state.apply_code(int(rng.choice(codes)))
    return best


@pytest.mark.parametrize(
    "config",
    ["square8_4p", "square19_2p", "square19_4p", "hex8_2p", "hexagonal_2p", "hexagonal_4p"],
)
def test_every_board_has_a_picture_in_the_event_log(config: str, tmp_path: Path) -> None:
    state = fullest(config)
    even = np.full(len(state.legal_codes()), 1.0 / len(state.legal_codes()))
    draw_gallery(tmp_path, [Example(state, ("a game", "hard"), even, even, 0.5, 0.4)] * SHOWN)
    assert (tmp_path / "gallery.svg").stat().st_size <= charts.MOST_BYTES
    assert len(boards(tmp_path / "gallery.svg")) >= 1
    assert len(boards(tmp_path / "gallery.full.svg")) == 2 * SHOWN


def test_where_two_boards_do_not_fit_one_is_shown(
    store: Store, second: Plan, mined: Artefact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = find_examples(store, second, hardest(mined)[:1], {})
    both = [replace(one, network=one.search, network_value=0.5) for one in drawn]
    draw_gallery(tmp_path, both)
    monkeypatch.setattr(charts, "MOST_BYTES", (tmp_path / "gallery.svg").stat().st_size - 1)
    draw_gallery(tmp_path, both)
    assert len(boards(tmp_path / "gallery.svg")) == 1
    assert "search" in (tmp_path / "gallery.svg").read_text()
