"""The power goes at any moment of a write to the store: what was there before still loads."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from ringrift_pipeline.store import CorruptArtefactError, Store
from ringrift_pipeline.store.kinds import PART_PREFIXES

from . import stages
from .conftest import BEFORE, NOW
from .power_loss import Disk, Left, disks, lay_out
from .tracing import Zygote, traced

CONFIG, KIND = "hex8_3p", "ema_model"
MIXTURES = 6
PASSING = ("training_state", *PART_PREFIXES)  # replaced while a stage works, gone when it is done
# The power goes after each eleventh event and the last, or after every one.
SOME_OR_ALL = (pytest.param(11, id="some"), pytest.param(1, id="all", marks=pytest.mark.faults))

WRITERS = {
    "an artefact": """
with store.create(CONFIG, 0, KIND) as draft:
    (draft.path / "weights").write_bytes(b"new" * 30_000)
    (draft.path / "sub").mkdir()
    (draft.path / "sub" / "more").write_text("new")
""",
    "a plan": 'store.write_plan(CONFIG, 1, {"text": "new" * 3000})',
    "a promotion": 'store.promote(CONFIG, 0, store.require(CONFIG, 0, KIND), {"text": "new"})',
    "a removal": "remove_landed(store.artefacts(CONFIG, 0, KIND)[0].path)",
    "a switch": "store.set_switches(CONFIG, loop=False)",
}
PROLOGUE = f"""
import sys
from ringrift_pipeline.store import Store
from ringrift_pipeline.store.artefacts import remove_landed
store, CONFIG, KIND = Store(sys.argv[1]), {CONFIG!r}, {KIND!r}
"""


def prepared(root: Path) -> Store:
    store = Store(root)
    store.write_plan(CONFIG, 0, {"text": "old"})
    for text in ("older", "old"):
        with store.create(CONFIG, 0, KIND) as draft:
            (draft.path / "weights").write_text(text)
    return store


def test_the_model_of_a_disk_loses_what_was_not_synced(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "old").write_text("safe")
    script = """
import os, sys
os.chdir(sys.argv[1])
with open("new", "wb") as file:
    file.write(b"a" * 10)
    file.flush()
    os.fsync(file.fileno())
    file.write(b"b" * 10)
os.rename("old", "name")
folder = os.open(".", os.O_RDONLY)
os.fsync(folder)
os.unlink("new")
"""
    disk = Disk(root)
    run = traced([sys.executable, "-c", script, root], root, data=True)
    assert run.status == 0
    names = [event.name for event in run.events]
    assert names == ["open", "write", "fsync", "write", "rename", "fsync", "unlink"]
    found: dict[tuple[int, str], Left] = {
        (number, loss): left for number, loss, left in disks(disk, run.events, run.data, 0, 0)
    }
    assert found[0, "all"] == {"old": b"safe"}
    assert found[1, "all"] == {"old": b"safe"}
    assert found[2, "bytes"] == {"old": b"safe", "new": b""}
    assert found[3, "bytes"] == {"old": b"safe", "new": b"a" * 10}
    assert found[3, "all"] == {"old": b"safe"}  # its bytes are safe, its name is not
    assert found[5, "names"] == {"old": b"safe"}
    assert found[5, "nothing"] == {"name": b"safe", "new": b"a" * 10 + b"b" * 10}
    assert found[6, "all"] == {"name": b"safe", "new": b"a" * 10}
    assert found[7, "all"] == found[6, "all"] and found[7, "nothing"] == {"name": b"safe"}


@pytest.mark.parametrize("name", WRITERS)
def test_whatever_the_power_took_the_old_or_the_new_loads(name: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    store = prepared(root)
    before = loaded(store)
    disk = Disk(root)
    run = traced([sys.executable, "-c", PROLOGUE + WRITERS[name], root], root, data=True)
    assert run.status == 0, run.errors
    after = loaded(Store(root))
    assert before != after
    states = set()
    for number, loss, left in disks(disk, run.events, run.data, 0, MIXTURES):
        place = tmp_path / f"{number}-{loss}"
        lay_out(left, place)
        found = loaded(Store(place))
        states.add(found)
        for one, old, new in zip(found, before, after, strict=True):
            assert one in (old, new), f"after event {number}, {loss} lost: {found}"
    assert found == after  # nothing that was promised is lost
    assert before in states


def loaded(store: Store) -> tuple[object, ...]:
    """All that can be read, after what is damaged was put aside."""
    store.sweep()
    values: list[object] = []
    try:
        model = store.current(CONFIG, 0, KIND)
    except CorruptArtefactError:
        model = store.last_good(CONFIG, 0, KIND)
    assert model is not None
    values.append(model.file("weights").read_bytes())
    values.append(
        tuple(str(store.read_plan(CONFIG, number)) for number in store.generations(CONFIG))
    )
    champion = store.champion(CONFIG)
    values.append(None if champion is None else champion.digest)
    values.append(len(store.champions(CONFIG)))
    values.append(store.switches(CONFIG))
    values.append(len(store.artefacts(CONFIG, 0, KIND)))
    return tuple(values)


@pytest.mark.parametrize("every", SOME_OR_ALL)
@pytest.mark.parametrize("stage", stages.NAMES)
def test_the_power_goes_during_a_stage(
    stage: str, every: int, zygote: Zygote, copy_of: Any, tmp_path: Path
) -> None:
    root = copy_of(stage)
    before = kinds(root)
    disk = Disk(root)
    run = zygote.traced(root, stage, NOW, data=True)
    assert run.status == 0, run.errors
    after = kinds(root)
    mixtures = MIXTURES if every == 1 else 1
    for number, loss, left in disks(disk, run.events, run.data, 1, mixtures):
        if number % every and number < len(run.events):
            continue
        place = tmp_path / "left"
        lay_out(left, place)
        found = kinds(place)
        for kind in after.keys() | before.keys():
            allowed = (before.get(kind), after.get(kind))
            assert found.get(kind) in allowed, f"after event {number}, {loss} lost: {kind}"
        if number == len(run.events):
            assert found == after, f"{loss} lost after the end"
        shutil.rmtree(place)


def kinds(root: Path) -> dict[str, object]:
    """Kind -> digest of the artefact of either generation that loads; champion and plans."""
    store = Store(root)
    store.sweep()
    found: dict[str, object] = {}
    for generation in (BEFORE, NOW):
        for kind in store.kinds(stages.CONFIG, generation):
            if kind.startswith(PASSING):
                store.last_good(stages.CONFIG, generation, kind)
                continue
            artefact = store.last_good(stages.CONFIG, generation, kind)
            if artefact is not None:
                found[f"{generation} {kind}"] = artefact.digest
        if generation in store.generations(stages.CONFIG):
            found[f"{generation} plan"] = str(store.read_plan(stages.CONFIG, generation))
    champion = store.champion(stages.CONFIG)
    assert champion is not None
    found["champion"] = (champion.digest, store.open(champion.path).digest)
    return found
