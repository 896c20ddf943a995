"""The disk refuses to read a small file: it is named, fallen back from where something else says the
same, and neither moved, dropped nor written over by whoever only reads.
"""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from typing import Any, cast

import pytest

from ringrift_pipeline.store import (
    Artefact,
    CorruptArtefactError,
    Store,
    UnreadableArtefactError,
    append_jsonl,
    check_file,
    check_folder,
    quarantined,
    read_bounded,
    read_jsonl,
)
from ringrift_pipeline.store import artefacts as artefacts_module
from ringrift_pipeline.store.attach import attach, refuse_attached
from ringrift_pipeline.store.layout import Layout
from ringrift_pipeline.store.manifest import hash_file, sealed_bytes
from tests.bad_disk import unreadable

CONFIG, KIND = "square19_4p", "ema_model"
SAYS = "cannot be read: Input/output error"

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def put(store: Store, text: str, generation: int = 0) -> Artefact:
    with store.create(CONFIG, generation, KIND) as draft:
        (draft / "model.json").write_text(f'"{text}"')
    return draft.artefact


def files(store: Store) -> dict[str, tuple[int, bytes]]:
    """Every file of a store but locks: which it is, and what is in it."""
    found = {}
    for path in store.root.rglob("*"):
        if path.is_file() and "lock" not in str(path):
            descriptor = os.open(path, os.O_RDONLY)
            found[str(path)] = os.fstat(descriptor).st_ino, os.read(descriptor, 1 << 20)
            os.close(descriptor)
    return found


def refused(path: Path, call: Any, *arguments: Any) -> UnreadableArtefactError:
    """The error of ours, for that file, by which a call ends."""
    with pytest.raises(UnreadableArtefactError, match=SAYS) as error:
        call(*arguments)
    assert error.value.path == path and error.value.quarantined is None
    return error.value


def test_a_pointer_is_fallen_back_from_and_stays(store: Store) -> None:
    put(store, "old")
    made = put(store, "new")
    pointer, before = made.path.parent / "current.json", files(store)
    with unreadable(pointer):
        for verify in (True, False):
            error = refused(pointer, store.current, CONFIG, 0, KIND, verify)
        assert "last_good" in error.action and "is corrupt" not in str(error)
        assert store.last_good(CONFIG, 0, KIND) == made
        store.remove(CONFIG, 0, KIND, keep=made.path)  # nobody can tell what is current
    assert files(store) == before and not quarantined(store, CONFIG)
    assert store.current(CONFIG, 0, KIND) == made


def test_what_lands_next_is_current_again(store: Store) -> None:
    with unreadable(put(store, "old").path.parent / "current.json"):
        made = put(store, "new")
    assert store.current(CONFIG, 0, KIND) == made


@pytest.mark.parametrize("damaged", [True, False])
def test_a_pointer_that_becomes_unreadable_is_not_dropped(store: Store, damaged: bool) -> None:
    """Between its first reading, by which what it names is corrupt or it is so itself, and the next."""
    pointer = put(store, "a").path.parent / "current.json"
    data = pointer.read_bytes()
    if damaged:
        pointer.write_bytes(b"rotten")
    before = files(store)
    with unreadable(pointer):
        layout = Layout(store.root)
        text = None if damaged else data
        assert artefacts_module._drop_pointer(layout, CONFIG, pointer, text, "why") is None
        assert artefacts_module._moved_on(pointer, data)
    assert files(store) == before


def test_a_damaged_folder_is_put_aside_though_its_pointer_cannot_be_read(store: Store) -> None:
    made = put(store, "a")
    (made.path / "model.json").write_text("rotten")
    pointer = made.path.parent / "current.json"
    with (
        unreadable(pointer),
        pytest.raises(CorruptArtefactError, match="moved to") as error,
    ):
        store.open(made.path)
    assert not isinstance(error.value, UnreadableArtefactError)
    assert pointer.exists() and not made.path.exists()


def test_an_unread_artefact_names_the_file_and_stays(store: Store) -> None:
    made = put(store, "a")
    path = made.path / "model.json"
    with unreadable(path):
        found = store.require(CONFIG, 0, KIND, verify=False)
        refused(path, found.file, "model.json")
        refused(path, check_file, path)
        refused(path, check_folder, made.path)
        for call in (lambda: store.open(made.path), lambda: store.require(CONFIG, 0, KIND)):
            refused(made.path, call)
    with unreadable(made.path / "manifest.json"):
        refused(path, check_file, path)
        refused(made.path / "manifest.json", check_folder, made.path)
    assert store.require(CONFIG, 0, KIND).read_json("model.json") == "a"


def test_a_file_that_was_verified_before_names_itself_as_well(store: Store) -> None:
    path = put(store, "a").path / "model.json"
    os.utime(path, (1, 1))  # long ago: its hash is kept in mind
    found = store.require(CONFIG, 0, KIND)
    found.file("model.json")
    with unreadable(path):
        assert found.file("model.json") == path
        refused(path, found.read_json, "model.json")


def test_a_plan_is_refused_by_name(store: Store) -> None:
    store.write_plan(CONFIG, 0, {"seed": 1})
    path, before = store.root / CONFIG / "generations" / "0000" / "plan.json", files(store)
    with unreadable(path):
        error = refused(path, store.read_plan, CONFIG, 0)
        refused(path, store.write_plan, CONFIG, 0, {"seed": 2})
    assert "move the folder" not in error.action  # it may be well again
    assert files(store) == before


def test_switches_are_not_set_over_what_they_may_say(store: Store) -> None:
    store.set_switches(CONFIG, loop=False)
    path = store.root / CONFIG / "switches.json"
    with unreadable(path):
        refused(path, store.switches, CONFIG)
        with pytest.raises(UnreadableArtefactError, match="nothing starts by itself"):
            store.set_switches(CONFIG, nightly=True)
    assert store.switches(CONFIG).paused == ("loop",)


def test_the_champion_is_the_historys_last(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    models = [put(store, str(generation), generation) for generation in range(3)]
    for generation in (0, 1):
        store.promote(CONFIG, generation, models[generation], {})
    pointer, before = store.root / CONFIG / "champion.json", files(store)
    wanted, history = store.champion(CONFIG), store.champions(CONFIG)
    with unreadable(pointer):
        assert store.champion(CONFIG) == wanted
        assert f"champion.json' {SAYS}; the last line of champions.jsonl says" in caplog.text
        assert store.champions(CONFIG) == history
        assert store.promote(CONFIG, 0, models[0], {}) == wanted  # a repeat changes nothing
        assert files(store) == before
        assert not quarantined(store, CONFIG)
        store.promote(CONFIG, 2, models[2], {})  # and so it is written again
        assert [one.generation for one in store.champions(CONFIG)] == [0, 1, 2]
    champion = store.champion(CONFIG)
    assert champion is not None and champion.generation == 2
    assert [one.generation for one in store.champions(CONFIG)] == [0, 1, 2]


def test_a_history_that_cannot_be_read_stops_promotions_only(store: Store) -> None:
    models = [put(store, str(generation), generation) for generation in range(2)]
    champion = store.promote(CONFIG, 0, models[0], {})
    pointer, path = (store.root / CONFIG / f"champion{end}" for end in (".json", "s.jsonl"))
    before = files(store)
    with unreadable(path):
        assert store.champion(CONFIG) == champion
        refused(path, store.champions, CONFIG)
        refused(path, store.promote, CONFIG, 1, models[1], {})
        pointer.write_bytes(b"rotten")
        refused(path, store.champion, CONFIG)  # it says which, and nothing is put aside
        pointer.write_bytes(before[str(pointer)][1])
    assert files(store) == before
    path.unlink()
    with unreadable(pointer):
        error = refused(pointer, store.champion, CONFIG)
    assert "promote" not in error.action and store.champion(CONFIG) == champion


def test_the_cache_of_a_bucket_is_not_said_to_be_damaged(tmp_path: Path) -> None:
    mark = tmp_path / ".bucket" / "bucket.json"
    mark.parent.mkdir()
    mark.write_bytes(sealed_bytes({"bucket": "s3://a"}, "the mark"))
    with unreadable(mark):
        refused(mark, attach, tmp_path, cast(Any, None))
        refused(mark, refuse_attached, tmp_path)


def test_whatever_is_read_has_a_name(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_jsonl(path, {"n": 1})
    with unreadable(path):
        error = refused(path, read_jsonl, path)
        for read in (read_bounded, hash_file):
            with pytest.raises(OSError, match=rf"Input/output error: '{path}'") as named:
                read(path)
            assert named.value.errno == errno.EIO
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is UnreadableArtefactError and str(again) == str(error)
    assert read_jsonl(path) == [{"n": 1}]
