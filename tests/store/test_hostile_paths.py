"""Names and links that would lead out of the data root."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ringrift_pipeline.store import (
    CorruptArtefactError,
    InvalidNameError,
    OutsideError,
    Store,
    StoreError,
)
from ringrift_pipeline.store.artefacts import landing_name
from ringrift_pipeline.store.atomic import TEMPORARY
from ringrift_pipeline.store.layout import LARGEST_GENERATION, landed_when, parse_generation
from ringrift_pipeline.store.retention import delete, survey

CONFIG = "square8_2p"
NAMES = [
    "../up",
    "/etc",
    "a/b",
    "..",
    "a\0b",
    "a\n",
    "%2e%2e",
    "~",
    "x" * 101,
    "x" * 5000,
    "\ud800",
]
NUMBERS = [-1, 10**9, 10**5000, True, 1.0, "1", None]


def landed(store: Store, generation: int = 0, kind: str = "ema_model", text: str = "x") -> Path:
    store.write_plan(CONFIG, generation, {})
    with store.create(CONFIG, generation, kind) as draft:
        (draft / "file").write_text(text)
    return draft.artefact.path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "data")
    landed(made)
    return made


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A root of somebody else's, with the same config in it."""
    other = Store(tmp_path / "outside")
    landed(other, text="not yours")
    other.promote(CONFIG, 0, other.require(CONFIG, 0, "ema_model"), {})
    return other.root


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


CALLS: dict[str, Callable[[Store, str], object]] = {
    "create": lambda store, name: store.create(name, 0, "kind"),
    "kind": lambda store, name: store.create(CONFIG, 0, name),
    "current": lambda store, name: store.current(name, 0, "kind"),
    "plan": lambda store, name: store.read_plan(name, 0),
    "write_plan": lambda store, name: store.write_plan(name, 0, {}),
    "generations": lambda store, name: store.generations(name),
    "kinds": lambda store, name: store.kinds(name, 0),
    "champion": lambda store, name: store.champion(name),
    "champions": lambda store, name: store.champions(name),
    "switches": lambda store, name: store.set_switches(name, loop=False),
    "lock": lambda store, name: store.lock(CONFIG, name),
    "lock of a config": lambda store, name: store.lock(name, "lock"),
    "sweep": lambda store, name: store.sweep(name),
    "remove": lambda store, name: store.remove(name, 0, "kind"),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("call", CALLS)
def test_a_name_is_one_part_of_a_path(store: Store, call: str, name: str) -> None:
    before = sorted(store.root.parent.rglob("*"))
    with pytest.raises(InvalidNameError):
        CALLS[call](store, name)
    assert sorted(store.root.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "number", NUMBERS, ids=lambda number: repr(number)[:9] if number != 10**5000 else "huge"
)
def test_a_generation_is_a_number_of_at_most_nine_digits(store: Store, number: object) -> None:
    for call in (store.read_plan, store.kinds):
        with pytest.raises(InvalidNameError):
            call(CONFIG, number)  # type: ignore[arg-type]
    assert parse_generation(str(LARGEST_GENERATION)) == LARGEST_GENERATION
    for key in ("1" * 5000, str(10**9), "²", "٣٣٣٣", "+123", " 123", "0123\n", "-001"):
        assert parse_generation(key) is None


def test_a_copy_that_somebody_made_beside_is_no_config(store: Store) -> None:
    for name in (".backup", "square8_2p (copy)", "-x"):
        shutil.copytree(store.root / CONFIG, store.root / name)
    assert store.configs() == [CONFIG]
    assert {item.config for item in survey(store).candidates} <= {CONFIG}


# --- links --------------------------------------------------------------------------------------


def linked(path: Path, target: Path) -> None:
    """``path`` is a link from now on."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.symlink_to(target)


DEPTHS = {"generations": 1, "a generation": 2, "a kind": 3}


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_link_out_of_the_config_is_not_followed(store: Store, outside: Path, depth: str) -> None:
    parts = (CONFIG, "generations", "0000", "ema_model")[: DEPTHS[depth] + 1]
    linked(store.root.joinpath(*parts), outside.joinpath(*parts))
    before = contents(outside)
    for act in (
        lambda: store.current(CONFIG, 0, "ema_model"),
        lambda: store.current(CONFIG, 0, "ema_model", verify=False),
        lambda: store.last_good(CONFIG, 0, "ema_model"),
        lambda: store.artefacts(CONFIG, 0, "ema_model"),
        lambda: store.remove(CONFIG, 0, "ema_model"),
        lambda: store.create(CONFIG, 0, "ema_model").__enter__(),
    ):
        with pytest.raises(OutsideError, match="leads to .*outside"):
            act()
    if depth != "a kind":
        for act in (
            lambda: store.write_plan(CONFIG, 0, {}),
            lambda: store.read_plan(CONFIG, 0),
            lambda: store.write_plan(CONFIG, 1, {}) if depth == "generations" else act_fails(),
        ):
            with pytest.raises(OutsideError):
                act()
    assert contents(outside) == before


def act_fails() -> None:
    raise OutsideError


@pytest.mark.parametrize("depth", ["an artefact", "a file", "a folder of files"])
def test_an_artefact_is_no_link(store: Store, outside: Path, depth: str) -> None:
    """Not even to what verifies."""
    with store.create(CONFIG, 0, "ema_model") as draft:
        (draft / "file").write_text("x")
        (draft / "sub/file").write_text("y")
    path = draft.artefact.path
    elsewhere = outside / "copy"
    shutil.copytree(path, elsewhere)
    place = {"an artefact": "", "a file": "file", "a folder of files": "sub"}[depth]
    linked(path / place if place else path, elsewhere / place if place else elsewhere)
    if depth != "an artefact":
        unhashed = store.current(CONFIG, 0, "ema_model", verify=False)
        assert unhashed is not None
        with pytest.raises(CorruptArtefactError, match="is a link"):
            unhashed.file("file" if depth == "a file" else "sub/file")
    with pytest.raises(CorruptArtefactError, match="link|no plain file|missing"):
        store.current(CONFIG, 0, "ema_model")
    good = store.last_good(CONFIG, 0, "ema_model")
    assert good is not None and good.path != path  # the one that was there before
    assert (elsewhere / "file").read_text() == "x"  # what it led to is as it was


@pytest.mark.parametrize("name", ["champions.jsonl", "quarantine", ".locks"])
def test_nothing_is_written_through_a_link(store: Store, tmp_path: Path, name: str) -> None:
    precious = tmp_path / "precious"
    if name == "champions.jsonl":
        precious.write_text("alias ls=ls")
    else:
        precious.mkdir()
    linked(store.root / CONFIG / name, precious)
    with pytest.raises(OutsideError):
        if name == ".locks":
            with store.lock(CONFIG, "generation-0000"):
                pass
        elif name == "quarantine":
            artefact = store.require(CONFIG, 0, "ema_model")
            (artefact.path / "file").write_text("damaged")
            store.current(CONFIG, 0, "ema_model")
        else:
            store.promote(CONFIG, 0, store.require(CONFIG, 0, "ema_model"), {})
    assert (
        precious.read_text() == "alias ls=ls" if precious.is_file() else not any(precious.iterdir())
    )


def test_nothing_is_deleted_through_a_link(store: Store, outside: Path, tmp_path: Path) -> None:
    other = Store(outside)
    for generation in range(4):
        landed(other, generation, "window")
        store.write_plan(CONFIG, generation, {})
        linked(
            store.root / CONFIG / f"generations/{generation:04d}/window",
            outside / CONFIG / f"generations/{generation:04d}/window",
        )
    stray = outside / CONFIG / "generations" / "0000" / "window" / f"{TEMPORARY}1-x"
    stray.mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "note").touch()
    (store.root / CONFIG / "quarantine").mkdir()
    linked(store.root / CONFIG / "quarantine" / "old", tmp_path / "notes")
    before = contents(outside)
    found = survey(store, keep_generations=1)
    delete(store, found, found.candidates)
    assert store.sweep() == [] and store.sweep(CONFIG) == []
    assert contents(outside) == before and stray.is_dir()
    assert (tmp_path / "notes" / "note").exists()
    assert not os.path.lexists(store.root / CONFIG / "quarantine" / "old")  # the link itself went


def test_the_root_and_a_config_may_be_links(tmp_path: Path, outside: Path) -> None:
    """Somebody has moved them to another disk."""
    root = tmp_path / "root"
    linked(root, outside)
    found = Store(root).current(CONFIG, 0, "ema_model")
    assert found is not None
    second = Store(tmp_path / "second")
    second.root.mkdir()
    linked(second.root / CONFIG, outside / CONFIG)
    assert second.current(CONFIG, 0, "ema_model") is not None
    landed(second, 1)
    assert second.champion(CONFIG) is not None and second.sweep() == []
    with second.lock(CONFIG, "x"):
        pass


@pytest.mark.parametrize("text", ["../outside", "/etc", "a/../../..", "x\0", "x" * 300])
def test_what_a_file_names_stays_below(store: Store, outside: Path, text: str) -> None:
    """Whoever can write a file can seal it."""
    from ringrift_pipeline.store.manifest import open_seal, sealed_bytes

    artefact = store.require(CONFIG, 0, "ema_model")
    store.promote(CONFIG, 0, artefact, {})
    pointer = artefact.path.parent / "current.json"
    pointer.write_bytes(sealed_bytes({"artefact": text, "digest": artefact.digest}, "pointer"))
    with pytest.raises(StoreError):
        store.current(CONFIG, 0, "ema_model")
    champion = store.root / CONFIG / "champion.json"
    content = open_seal(champion.read_bytes())
    champion.write_bytes(sealed_bytes({**content, "path": text}, "champion"))
    assert store.champion(CONFIG).path == artefact.path  # type: ignore[union-attr]
    champion.write_bytes(sealed_bytes({**content, "path": text}, "champion"))
    (store.root / CONFIG / "champions.jsonl").unlink()  # which it was written again from
    with pytest.raises(StoreError):
        store.open(store.champion(CONFIG).path)  # type: ignore[union-attr]
    manifest = artefact.path / "manifest.json"
    content = open_seal(manifest.read_bytes())
    files = {text: next(iter(content["files"].values()))}
    manifest.write_bytes(sealed_bytes({**content, "files": files}, "manifest"))
    with pytest.raises(StoreError):
        store.open(artefact.path)
    assert contents(outside)


@pytest.mark.parametrize("last", ["99991231T235959.999999Z-x", "99991231T235959.999998Z-x"])
def test_no_folder_is_so_late_that_nothing_can_land_beside_it(store: Store, last: str) -> None:
    """Somebody has made it; what is behind the last microsecond of the year 9999 has no name."""
    kind = landed(store).parent
    (kind / last).mkdir()
    for text in ("y", "z"):
        assert landed(store, text=text).parent == kind
        current = store.require(CONFIG, 0, "ema_model")
        assert current.file("file").read_text() == text
    current.file("file").write_text("damaged")
    good = store.last_good(CONFIG, 0, "ema_model")
    assert good is not None and good.file("file").read_text() in ("x", "y")
    name = landing_name(store.root / "a folder", datetime.now(UTC), [last])  # as in a bucket
    assert landed_when(name) is not None
