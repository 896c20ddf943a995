"""Bytes change on the disk: every reader of every kind of file notices, and nothing sound is refused.

Each case changes one file of a finished generation (a bit flipped, the end cut off, two bytes swapped,
a piece written twice) and asks every public reader of it. ``make test`` does a few hundred cases a
kind, ``pytest -m faults`` ten thousand.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ringrift_pipeline.network import ModelError, load_model, read_model_metadata
from ringrift_pipeline.search import load_player
from ringrift_pipeline.search.errors import PlayerSpecError
from ringrift_pipeline.selfplay import load_plan
from ringrift_pipeline.selfplay.shards import ShardError, open_shard, read_metadata, read_shard
from ringrift_pipeline.store import Artefact, CorruptArtefactError, Store, StoreError
from ringrift_pipeline.training import (
    HARD_EXAMPLES,
    QUALITY_SCORES,
    TableError,
    open_window,
    read_table,
)
from ringrift_pipeline.training.state import StateError, load_state
from ringrift_pipeline.training.window import WindowError

from . import stages
from .conftest import NOW

CONFIG = stages.CONFIG
NOTICED = (StoreError, ModelError, ShardError, WindowError, TableError, StateError, PlayerSpecError)
TABLES = {"quality_scores": QUALITY_SCORES, "hard_examples": HARD_EXAMPLES}
Reader = Callable[[Path], Any]


def flipped(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    changed = data[place] ^ (1 << rng.randrange(8))
    return data[:place] + bytes([changed]) + data[place + 1 :]


def truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def swapped(data: bytes, rng: random.Random) -> bytes:
    for _ in range(1000):
        one, other = sorted((rng.randrange(len(data)), rng.randrange(len(data))))
        if data[one] != data[other]:
            content = bytearray(data)
            content[one], content[other] = content[other], content[one]
            return bytes(content)
    return flipped(data, rng)


def duplicated(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.randrange(1, 64))
    return data[:end] + data[start:end] + data[end:]


CHANGES = (flipped, truncated, swapped, duplicated)


def readers_of(kind: str, store: Store) -> dict[str, Reader]:
    """Public readers of an artefact's folder, by name; each is given the path of one changed file."""
    landed = store.require(CONFIG, NOW, kind)

    def current(path: Path) -> Artefact:
        return store.require(CONFIG, NOW, kind)

    def opened(path: Path) -> Artefact:
        return store.open(landed.path)

    found: dict[str, Reader] = {"Store.current": current, "Store.open": opened}
    if kind.startswith("selfplay-shard-"):
        found["read_shard"] = read_shard
        found["read_metadata"] = read_metadata
        found["open_shard"] = lambda path: open_shard(path).__enter__()
    elif kind == "window":
        found["open_window"] = lambda path: open_window(path.parent)
    elif kind == "ema_model":
        found["load_model"] = lambda path: load_model(path.parent)
        found["load_player"] = lambda path: load_player(str(path.parent), CONFIG)
        found["read_model_metadata"] = lambda path: read_model_metadata(path.parent)
    elif kind == "checkpoint":
        found["load_model"] = lambda path: load_model(path.parent)
        found["load_state"] = lambda path: load_state(path.parent)
    elif kind in TABLES:
        found["read_table"] = lambda path: read_table(path, TABLES[kind])
    elif kind == "training_state":
        found["load_state"] = lambda path: load_state(path.parent)
    return found


def applies(reader: str, path: Path) -> bool:
    """Does a reader look at this file at all?"""
    if reader == "load_state":
        return path.name.startswith("state.")
    if reader == "read_table":
        return path.suffix == ".parquet"
    if reader == "read_model_metadata":
        return path.name == "model.json"
    if reader in ("load_model", "load_player"):
        return path.name in ("model.json", "model.safetensors")
    if reader in ("read_shard", "read_metadata", "open_shard"):
        return path.name == "shard.arrow"
    return True


def kinds(root: Path) -> list[str]:
    return Store(root).kinds(CONFIG, NOW)


@pytest.fixture(scope="module")
def finished(roots: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "data"
    shutil.copytree(roots["end"], folder)
    return folder


AMOUNTS = (pytest.param(160, id="some"), pytest.param(10_000, id="all", marks=pytest.mark.faults))


@pytest.mark.parametrize("amount", AMOUNTS)
def test_every_reader_of_an_artefact_notices(finished: Path, amount: int) -> None:
    store = Store(finished)
    assert len(kinds(finished)) > 10
    for kind in kinds(finished):
        artefact = store.current(CONFIG, NOW, kind)
        if artefact is None:
            continue
        readers = readers_of(kind, store)
        files = sorted(path for path in artefact.path.rglob("*") if path.is_file())
        for name, read in readers.items():  # no false alarm
            for path in files:
                if applies(name, path) and path.name != "manifest.json":
                    read(path)
        rng = random.Random(kind)
        damageable = [path for path in files if path.stat().st_size]
        for case in range(amount):
            path = rng.choice(damageable)
            change = CHANGES[case % len(CHANGES)]
            spoil(store, artefact, path, change(path.read_bytes(), rng), readers, change.__name__)
        assert store.require(CONFIG, NOW, kind).digest == artefact.digest


def spoil(
    store: Store,
    artefact: Artefact,
    path: Path,
    content: bytes,
    readers: dict[str, Reader],
    change: str,
) -> None:
    """Change a file, let everybody read it, and put everything back."""
    pointer = artefact.path.parent / "current.json"
    before, named = path.read_bytes(), pointer.read_bytes()
    assert content != before
    for name, read in sorted(readers.items(), key=lambda item: item[0].startswith("Store")):
        if not applies(name, path):
            continue
        path.write_bytes(content)
        with pytest.raises(NOTICED) as caught:
            read(path)
            pytest.fail(f"{name} did not notice: {path} {change}")
        assert str(path.name) in str(caught.value) or str(path.parent) in str(caught.value)
        error = caught.value
        if isinstance(error, CorruptArtefactError) and error.quarantined is not None:
            assert not path.exists() and error.quarantined.is_dir()
            error.quarantined.rename(artefact.path)
            note = error.quarantined.with_name(error.quarantined.name + ".reason.json")
            note.unlink()
            pointer.write_bytes(named)
    path.write_bytes(before)


@pytest.mark.parametrize("amount", AMOUNTS)
def test_every_sealed_file_is_noticed(finished: Path, amount: int) -> None:
    """Plans, champions, their history, pointers and switches."""
    store = Store(finished)
    store.set_switches(CONFIG, nightly=False)
    folder = finished / CONFIG
    readers: dict[Path, Reader] = {
        folder / "champion.json": lambda _: store.champion(CONFIG),
        folder / "champions.jsonl": lambda _: store.champions(CONFIG),
        folder / "switches.json": lambda _: store.switches(CONFIG),
        folder / "generations" / "0001" / "plan.json": lambda _: load_plan(store, CONFIG, NOW),
        folder / "generations" / "0001" / "ema_model" / "current.json": lambda _: store.require(
            CONFIG, NOW, "ema_model"
        ),
    }
    for path, read in readers.items():
        whole = path.read_bytes()
        sound = read(path)
        rng = random.Random(path.name)
        for case in range(amount):
            change = CHANGES[case % len(CHANGES)]
            path.write_bytes(change(whole, rng))
            try:
                found = read(path)
            except StoreError:
                pass
            else:  # the last line of the history was cut off within: written again, as it was
                assert path.name == "champions.jsonl" and found == sound, (path, change.__name__)
            path.write_bytes(whole)
            for moved in (folder / "quarantine").glob("*"):
                shutil.rmtree(moved) if moved.is_dir() else moved.unlink()
        assert read(path) == sound


def test_a_damaged_artefact_is_put_aside_and_the_last_good_one_serves(finished: Path) -> None:
    store = Store(finished)
    before = store.require(CONFIG, NOW, "quality_scores")
    with store.create(CONFIG, NOW, "quality_scores") as draft:
        for name in before.files:
            shutil.copy(before.path / name, draft.path / name)
    path = next(path for path in draft.artefact.path.glob("*.parquet"))
    path.write_bytes(flipped(path.read_bytes(), random.Random(0)))
    with pytest.raises(CorruptArtefactError, match="SHA-256"):
        store.current(CONFIG, NOW, "quality_scores")
    again = store.last_good(CONFIG, NOW, "quality_scores")
    assert again is not None and again.path == before.path
    assert store.require(CONFIG, NOW, "quality_scores") == before
