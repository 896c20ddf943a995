"""Bytes change on the disk: every reader of every kind of file notices, and nothing sound is refused.

Each case changes one file (a bit flipped, the end cut off, two bytes swapped, a piece written twice)
and asks every public reader of it. ``make test`` does some thirty cases a kind of what the loop makes,
``python -m faults corruption`` ten thousand of every kind there is.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from dagster import build_input_context, build_output_context

from ringrift_pipeline.evaluation.evaluating import decide_again
from ringrift_pipeline.network import ModelError, load_model, read_model_metadata
from ringrift_pipeline.orchestration.io_managers import JsonIOManager
from ringrift_pipeline.search import load_player
from ringrift_pipeline.search.errors import PlayerSpecError
from ringrift_pipeline.selfplay import load_plan
from ringrift_pipeline.selfplay.shards import ShardError, open_shard, read_metadata, read_shard
from ringrift_pipeline.store import Artefact, CorruptArtefactError, Store, StoreError, quarantined
from ringrift_pipeline.training import (
    HARD_EXAMPLES,
    QUALITY_SCORES,
    TableError,
    open_window,
    read_table,
)
from ringrift_pipeline.training.consolidation import open_regularizer
from ringrift_pipeline.training.hard_examples import read_hard_examples
from ringrift_pipeline.training.state import StateError, load_state
from ringrift_pipeline.training.window import WindowError

from . import stages, tally
from .conftest import NOW, Roots
from .tally import Cases
from .tracing import Zygote
from .writers import CONFIG as WRITERS_CONFIG

CONFIG = stages.CONFIG
NOTICED = (StoreError, ModelError, ShardError, WindowError, TableError, StateError, PlayerSpecError)
TABLES = {"quality_scores": QUALITY_SCORES, "hard_examples": HARD_EXAMPLES}
SOME, ALL, CHUNK = 30, 10_000, 250
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


def chunks() -> Iterator[tuple[int, int]]:
    """Where each chunk of the cases of a kind begins, and how many it is."""
    total = tally.total(ALL)
    for start in range(0, total, CHUNK):
        yield start, min(CHUNK, total - start)


PASSING = ("training_state", "evaluation-part-", "ablation-run-")
THERE = [k for k, by in stages.KINDS.items() if by in stages.STAGES and k not in PASSING]
CHANGES = (flipped, truncated, swapped, duplicated)


def readers_of(
    kind: str, store: Store, config: str = CONFIG, generation: int = NOW
) -> dict[str, Reader]:
    """Public readers of an artefact's folder, by name; each is given the path of one changed file."""
    landed = store.require(config, generation, kind)

    def current(path: Path) -> Artefact:
        return store.require(config, generation, kind)

    def opened(path: Path) -> Artefact:
        return store.open(landed.path)

    def file(path: Path) -> Path:
        return landed.file(path.relative_to(landed.path).as_posix())

    found: dict[str, Reader] = {"Store.current": current, "Store.open": opened, "file": file}
    if kind.startswith("selfplay-shard-"):
        found["read_shard"] = read_shard
        found["read_metadata"] = read_metadata
        found["open_shard"] = lambda path: open_shard(path).__enter__()
    elif kind == "window":
        found["open_window"] = lambda path: open_window(path.parent)
    elif kind == "ema_model":
        found["load_model"] = lambda path: load_model(path.parent)
        found["load_player"] = lambda path: load_player(str(path.parent), config)
        found["read_model_metadata"] = lambda path: read_model_metadata(path.parent)
    elif kind == "checkpoint":
        found["load_model"] = lambda path: load_model(path.parent)
        found["load_state"] = lambda path: load_state(path.parent)
    elif kind in TABLES:
        found["read_table"] = lambda path: read_table(path, TABLES[kind])
    elif kind == "training_state":
        found["load_state"] = lambda path: load_state(path.parent)
    elif kind == "evaluation":
        plan = load_plan(store, config, generation)
        found["decide_again"] = lambda path: decide_again(store, plan, landed)
    elif kind == "fisher":
        source = load_plan(store, config, generation).finetune["source"]  # type: ignore[index]
        model = load_model(store.root / source["path"])
        found["open_regularizer"] = lambda path: open_regularizer(landed, model, 1.0)
    if kind == "hard_examples":
        found["read_hard_examples"] = lambda path: read_hard_examples(landed)
    return found


LOOKED_AT = {  # by readers that look at some of the files only
    "load_state": ("state.safetensors", "state.json"),
    "read_model_metadata": ("model.json",),
    "load_model": ("model.json", "model.safetensors"),
    "load_player": ("model.json", "model.safetensors"),
    "read_shard": ("shard.arrow",),
    "read_metadata": ("shard.arrow",),
    "open_shard": ("shard.arrow",),
    "decide_again": ("games.parquet",),
    "open_regularizer": ("fisher.safetensors",),
}


def applies(reader: str, path: Path) -> bool:
    """Does a reader look at this file at all?"""
    if reader in ("read_table", "read_hard_examples"):
        return path.suffix == ".parquet"
    if reader == "file":
        return path.name != "manifest.json"
    return reader not in LOOKED_AT or path.name in LOOKED_AT[reader]


@dataclass(frozen=True)
class Place:
    """An artefact that is damaged: its store, and what `Store.require` needs to find it."""

    store: Store
    config: str
    generation: int
    kind: str


@pytest.fixture(scope="module")
def place_of(
    zygote: Zygote, roots: Roots, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Place]:
    """Where there is an artefact of a kind, left there by an interrupted work if it is passing."""
    made: dict[str, Path] = {}

    def do(root: Path, stage: str, ends: int = 0) -> None:
        assert zygote.run(root, stage, NOW) == ends, zygote.log.read_text()

    def root_of(kind: str, stage: str) -> Path:
        place = tmp_path_factory.mktemp("damaged") / "data"
        if stage.startswith("write: "):
            do(place, stage.replace("write", "prepare"))
            do(place, stage)
            return place
        start = stage if kind in PASSING or stage in stages.LATER else "end"
        shutil.copytree(roots[start], place)
        if kind == "training_state":
            do(place, "train until step 5, saved", -9)
            assert stages.landed_step(Store(place), NOW) == 4
        elif kind in PASSING:
            whole = tmp_path_factory.mktemp("whole") / "data"
            shutil.copytree(roots[start], whole)
            events = zygote.traced(whole, stage, NOW).events
            into = f"/{kind.partition('-')[0]}/"
            landing = next(e.number for e in events if e.name == "rename" and into in e.second)
            zygote.traced(place, stage, NOW, "before", landing)
            Store(place).sweep()
        elif stage in stages.LATER:
            do(place, stage)
        return place

    def found(kind: str) -> Place:
        stage = stages.KINDS[kind]
        if kind not in made:
            made[kind] = root_of(kind, stage)
        store = Store(made[kind])
        config, generation = CONFIG, NOW
        if kind == "fisher":
            config, generation = stages.TARGET, 0
        if kind == "decision":
            config, generation = WRITERS_CONFIG, 0
        names = [name for name in store.kinds(config, generation) if name.startswith(kind)]
        return Place(store, config, generation, kind if kind in names else names[0])

    return found


def damage(place: Place, cases: int, rng: random.Random) -> None:
    """So many changes, of which every reader has to tell."""
    artefact = place.store.require(place.config, place.generation, place.kind)
    readers = readers_of(place.kind, place.store, place.config, place.generation)
    files = sorted(path for path in artefact.path.rglob("*") if path.is_file())
    for name, read in readers.items():  # no false alarm
        for path in files:
            if applies(name, path) and path.name != "manifest.json":
                read(path)
    damageable = [path for path in files if path.stat().st_size]
    for case in range(cases):
        path = rng.choice(damageable)
        change = CHANGES[case % len(CHANGES)]
        spoil(artefact, path, change(path.read_bytes(), rng), readers, change.__name__)
    again = place.store.require(place.config, place.generation, place.kind)
    assert again.digest == artefact.digest


def spoil(
    artefact: Artefact, path: Path, content: bytes, readers: dict[str, Reader], change: str
) -> None:
    """Change a file, let everybody read it, and put everything back."""
    pointer = artefact.path.parent / "current.json"
    before, named = path.read_bytes(), pointer.read_bytes()
    assert content != before
    for name, read in sorted(readers.items(), key=lambda item: item[0].startswith("Store")):
        if not applies(name, path):
            continue
        path.write_bytes(content)
        try:
            with pytest.raises(NOTICED) as caught:
                read(path)
                raise AssertionError(f"{name} did not notice: {path} {change}")
        except BaseException:
            if path.parent.is_dir():
                path.write_bytes(before)
            raise
        assert str(path.name) in str(caught.value) or str(path.parent) in str(caught.value)
        error = caught.value
        if isinstance(error, CorruptArtefactError) and error.quarantined is not None:
            assert not path.exists() and error.quarantined.is_dir()
            error.quarantined.rename(artefact.path)
            note = error.quarantined.with_name(error.quarantined.name + ".reason.json")
            note.unlink()
            pointer.write_bytes(named)
    path.write_bytes(before)


@pytest.mark.bounded
@pytest.mark.parametrize("kind", THERE)
def test_readers_notice_some_changes(kind: str, place_of: Callable[[str], Place]) -> None:
    damage(place_of(kind), SOME, random.Random(kind))


@pytest.mark.parametrize("kind", stages.KINDS)
def test_every_reader_of_an_artefact_notices(kind: str, place_of: Callable[[str], Place]) -> None:
    cases = Cases("changed bytes", kind)
    for start, size in chunks():

        def chunk(start: int = start, size: int = size) -> int:
            damage(place_of(kind), size, random.Random(f"{tally.seed()} {kind} {start}"))
            return size

        cases.run(f"from {start}", chunk, size=size)
    cases.settle()


# -- sealed files ---------------------------------------------------------------------------------

SEALED = ("champion.json", "champions.jsonl", "switches.json", "plan.json", "current.json", "value")


def sealed_file(name: str, root: Path) -> tuple[Path, Reader]:
    """A sealed file of a finished root, and what reads it."""
    store = Store(root)
    generation = root / CONFIG / "generations" / "0001"
    if name == "switches.json":
        store.set_switches(CONFIG, nightly=False)
    if name == "value":
        said = {"step_key": "play", "name": "shard", "run_id": "5f0c"}
        context = build_output_context(**said)  # type: ignore[arg-type]
        manager = JsonIOManager(root=str(root))
        manager.handle_output(context, {"shard": 3, "path": "somewhere/else"})
        asked = build_input_context(upstream_output=context)
        (path,) = (root / "dagster" / "values").rglob("*.json")
        return path, lambda _: manager.load_input(asked)
    readers: dict[str, tuple[Path, Reader]] = {
        "champion.json": (root / CONFIG / name, lambda _: store.champion(CONFIG)),
        "champions.jsonl": (root / CONFIG / name, lambda _: store.champions(CONFIG)),
        "switches.json": (root / CONFIG / name, lambda _: store.switches(CONFIG)),
        "plan.json": (generation / name, lambda _: load_plan(store, CONFIG, NOW)),
        "current.json": (
            generation / "ema_model" / name,
            lambda _: store.require(CONFIG, NOW, "ema_model"),
        ),
    }
    return readers[name]


def damage_sealed(name: str, root: Path, cases: int, rng: random.Random) -> None:
    path, read = sealed_file(name, root)
    whole, sound = path.read_bytes(), read(path)
    for case in range(cases):
        change = CHANGES[case % len(CHANGES)]
        path.write_bytes(change(whole, rng))
        try:
            found = read(path)
        except StoreError:
            pass
        else:
            assert found == sound, (path, change.__name__)
            if name == "champion.json":  # written again from the history, the damaged one kept
                assert path.read_bytes() == whole and quarantined(Store(root), CONFIG)
            else:  # the history's last line was cut off within: written again, as it was
                assert name == "champions.jsonl"
        path.write_bytes(whole)
        for moved in (root / CONFIG / "quarantine").glob("*"):
            shutil.rmtree(moved) if moved.is_dir() else moved.unlink()
    assert read(path) == sound


@pytest.mark.bounded
@pytest.mark.parametrize("name", SEALED)
def test_some_changes_of_a_sealed_file(name: str, copy_of: Callable[[str], Path]) -> None:
    damage_sealed(name, copy_of("end"), SOME, random.Random(name))


@pytest.mark.parametrize("name", SEALED)
def test_every_change_of_a_sealed_file(name: str, copy_of: Callable[[str], Path]) -> None:
    cases = Cases("changed bytes", name)
    root = copy_of("end")
    for start, size in chunks():

        def chunk(start: int = start, size: int = size) -> int:
            damage_sealed(name, root, size, random.Random(f"{tally.seed()} {name} {start}"))
            return size

        cases.run(f"from {start}", chunk, size=size)
    cases.settle()


@pytest.mark.bounded
def test_a_damaged_artefact_is_put_aside_and_the_last_good_one_serves(
    copy_of: Callable[[str], Path],
) -> None:
    store = Store(copy_of("end"))
    before = store.require(CONFIG, NOW, "quality_scores")
    with store.create(CONFIG, NOW, "quality_scores") as draft:
        for name in before.files:
            shutil.copy(before.path / name, draft / name)
    path = next(path for path in draft.artefact.path.glob("*.parquet"))
    path.write_bytes(flipped(path.read_bytes(), random.Random(0)))
    with pytest.raises(CorruptArtefactError, match="SHA-256"):
        store.current(CONFIG, NOW, "quality_scores")
    again = store.last_good(CONFIG, NOW, "quality_scores")
    assert again is not None and again.path == before.path
    assert store.require(CONFIG, NOW, "quality_scores") == before


@pytest.mark.parametrize("kind", PASSING)
def test_what_an_interrupted_work_left_is_not_gone_on_from_when_it_is_damaged(
    kind: str, zygote: Zygote, place_of: Callable[[str], Place], copy_of: Callable[[str], Path]
) -> None:
    from .outcomes import made

    cases = Cases("damaged parts", kind)
    stage = stages.KINDS[kind]
    root = copy_of(stage)
    assert zygote.run(root, stage, NOW) == 0, zygote.log.read_text()
    wanted = made(root)
    place = place_of(kind)

    def one(number: int) -> None:
        rng = random.Random(f"{tally.seed()} {kind} {number}")
        shutil.rmtree(root)
        shutil.copytree(place.store.root, root)
        for artefact in Store(root).artefacts(place.config, place.generation, place.kind):
            path = rng.choice([artefact.path / name for name in artefact.files])
            path.write_bytes(CHANGES[number % len(CHANGES)](path.read_bytes(), rng))
        assert zygote.run(root, stage, NOW) == 0, zygote.log.read_text()
        assert made(root) == wanted

    for number in range(tally.total(20)):
        cases.run(f"case {number}", lambda n=number: one(n))  # type: ignore[misc]
    cases.settle()
