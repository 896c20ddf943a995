"""Artefacts: landing, every kind of damage, falling back, names."""

import errno
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringrift_pipeline.store import (
    Artefact,
    CorruptArtefactError,
    InvalidNameError,
    LockedError,
    MissingArtefactError,
    SerializationError,
    Store,
    StoreError,
    VanishedFileError,
    artefacts,
    generation_key,
    quarantined,
)
from ringrift_pipeline.store import (
    draft as drafting,
)
from ringrift_pipeline.store.atomic import fsync_path
from ringrift_pipeline.store.manifest import check_file, check_folder

CONFIG, GENERATION, KIND = "square8_2p", 3, "checkpoint"
FILES = {"model.bin": b"weights" * 50, "deep/er/metrics.jsonl": b'{"step": 1}\n', "empty": b""}


pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "data")


def make(store: Store, files: dict[str, bytes] = FILES, kind: str = KIND, **metadata) -> Artefact:
    with store.create(CONFIG, GENERATION, kind, metadata=metadata) as draft:
        for name, content in files.items():
            (draft / name).write_bytes(content)
    return draft.artefact


def everything(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def current(store: Store) -> Artefact | None:
    return store.current(CONFIG, GENERATION, KIND)


# --- landing ------------------------------------------------------------------------------------


def test_a_landed_artefact_reads_back(store: Store) -> None:
    made = make(store, **{"val/loss": 0.5, "parent": None})
    read = current(store)
    assert read == made and hash(read) == hash(made)
    assert read.metadata == {"val/loss": 0.5, "parent": None}
    assert (read.config, read.generation, read.kind) == (CONFIG, GENERATION, KIND)
    for name, content in FILES.items():
        assert read.file(name).read_bytes() == content
        assert read.files[name]["sha256"] == hashlib.sha256(content).hexdigest()
    assert read.path.parent == store.root / CONFIG / "generations" / "0003" / KIND
    assert store.open(read.path) == read
    assert store.kinds(CONFIG, GENERATION) == [KIND]
    with pytest.raises(MissingArtefactError, match=r"model\.bin"):
        read.file("../current.json")


def test_nothing_is_made_before_something_is_written(store: Store) -> None:
    store.create(CONFIG, GENERATION, KIND)
    assert store.current(CONFIG, GENERATION, KIND) is None
    assert store.last_good(CONFIG, GENERATION, KIND) is None
    assert store.champion(CONFIG) is None
    assert store.champions(CONFIG) == []
    assert store.artefacts(CONFIG, GENERATION, KIND) == []
    assert store.generations(CONFIG) == [] and store.configs() == [] and store.sweep() == []
    assert not store.root.exists()


def test_the_digest_is_of_the_content_alone(store: Store, tmp_path: Path) -> None:
    first = make(store, seconds=1.5)
    second = make(Store(tmp_path / "elsewhere"), seconds=2.5)
    assert first.digest == second.digest and first.path != second.path
    assert make(store, {**FILES, "empty": b"x"}).digest != first.digest
    assert make(store, {**FILES, "more": b""}).digest != first.digest
    assert make(store, kind="ema_model").digest != first.digest


def test_older_artefacts_stay_and_the_newest_is_current(store: Store) -> None:
    made = [make(store, {"n": bytes([n])}) for n in range(3)]
    assert store.artefacts(CONFIG, GENERATION, KIND) == made
    assert current(store) == made[-1]
    assert [store.open(a.path).file("n").read_bytes() for a in made] == [b"\0", b"\1", b"\2"]


def test_what_landed_before_another_is_removed_and_nothing_newer(store: Store) -> None:
    """Of two that write the same kind, each removes what came before its own."""
    made = [make(store, {"n": bytes([n])}) for n in range(3)]
    store.remove(CONFIG, GENERATION, KIND, keep=made[1].path)
    assert store.artefacts(CONFIG, GENERATION, KIND) == made[1:] and current(store) == made[2]
    store.remove(CONFIG, GENERATION, KIND)
    assert store.artefacts(CONFIG, GENERATION, KIND) == [] and current(store) is None


def test_metadata_may_be_completed_in_the_block(store: Store) -> None:
    with store.create(CONFIG, GENERATION, KIND, metadata={"a": 1}) as draft:
        draft.metadata["steps"] = 7
    assert current(store).metadata == {"a": 1, "steps": 7}


def test_a_moved_data_root_still_loads(store: Store, tmp_path: Path) -> None:
    made = make(store)
    store.promote(CONFIG, GENERATION, made, {})
    store.root.rename(tmp_path / "moved")
    moved = Store(tmp_path / "moved")
    assert current(moved).digest == made.digest
    assert moved.open(moved.champion(CONFIG).path).digest == made.digest


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_in_the_middle_leaves_nothing(store: Store, error) -> None:
    make(store)
    before = everything(store.root)
    with pytest.raises(error), store.create(CONFIG, GENERATION, KIND) as draft:
        (draft / "half").write_bytes(b"x" * 1000)
        raise error
    assert everything(store.root) == before
    with pytest.raises(StoreError):
        _ = draft.artefact


@pytest.mark.parametrize("bad", ["link", "manifest", "nan", "pipe"])
def test_what_cannot_be_kept_is_refused_and_leaves_nothing(store: Store, bad: str) -> None:
    make(store)
    before = everything(store.root)
    with (
        pytest.raises(StoreError) as caught,
        store.create(CONFIG, GENERATION, KIND) as draft,
    ):
        if bad == "link":
            (draft / "link").symlink_to("/etc/hostname")
        elif bad == "manifest":
            (draft / "manifest.json").write_text("{}")
        elif bad == "pipe":
            os.mkfifo(draft / "pipe")
        else:
            draft.metadata["losses"] = [1.0, float("nan")]
    if bad == "nan":
        assert "['losses'][1] is nan" in str(caught.value)
    assert everything(store.root) == before
    assert not list(store.root.rglob(".ringrift-tmp-*"))


@pytest.mark.parametrize("name", ["a", "deep/b", "deep/c"])
def test_a_draft_lands_with_every_file_or_not_at_all(store: Store, name: str) -> None:
    """A cleaner of temporary files has been there between the writing and the landing."""
    old = make(store)
    before = everything(store.root)
    with (
        pytest.raises(VanishedFileError, match=f"{name} was written and is gone.* run it again"),
        store.create(CONFIG, GENERATION, KIND) as draft,
    ):
        (draft / "a").write_bytes(b"a")
        inner = draft.folder("deep")
        (inner / "b").write_bytes(b"b")
        (draft / "deep/c").write_bytes(b"c")
        (draft.path / name).unlink()
        with pytest.raises(VanishedFileError, match=name):
            _ = draft.digest
    assert everything(store.root) == before and current(store) == old
    assert not list(store.root.rglob(".ringrift-tmp-*"))


@pytest.mark.parametrize("name", ["a", "manifest.json"])
@pytest.mark.parametrize("late", [False, True])
def test_a_file_that_vanishes_while_it_lands_is_named(
    store: Store, monkeypatch: pytest.MonkeyPatch, name: str, late: bool
) -> None:
    old = make(store)

    def gone(path: Path) -> None:
        if late:
            fsync_path(path)
        if path.name == name and path.parent.name.startswith(".ringrift-tmp-"):
            path.unlink()
        if not late:
            fsync_path(path)

    monkeypatch.setattr(drafting, "fsync_path", gone)
    with (
        pytest.raises(VanishedFileError, match=name),
        store.create(CONFIG, GENERATION, KIND) as draft,
    ):
        (draft / "a").write_bytes(b"a")
    assert current(store) == old


def test_a_draft_knows_of_all_its_files(store: Store) -> None:
    """Else one that vanished could be missing and nobody would know."""
    with (
        pytest.raises(StoreError, match="deep/b is not known to its draft"),
        store.create(CONFIG, GENERATION, KIND) as draft,
    ):
        (draft / "deep/a").write_bytes(b"a")
        (draft.path / "deep" / "b").write_bytes(b"b")
    assert current(store) is None


def test_bad_metadata_fails_before_the_work(store: Store) -> None:
    with pytest.raises(SerializationError, match=r"\['x'\] is a object"):
        store.create(CONFIG, GENERATION, KIND, metadata={"x": object()})


def test_a_draft_is_used_once(store: Store) -> None:
    draft = store.create(CONFIG, GENERATION, KIND)
    with pytest.raises(StoreError, match="with"):
        _ = draft.path
    with draft:
        pass
    with pytest.raises(StoreError, match="once"), draft:
        pass


# --- damage -------------------------------------------------------------------------------------


def damage(data: st.DataObject, folder: Path) -> str:
    """Change something about a landed folder in one of all the ways; returns which."""
    name = data.draw(st.sampled_from([*FILES, "manifest.json"]))
    path = folder / name
    content = path.read_bytes()
    how = data.draw(st.sampled_from(["flip", "cut", "grow", "remove", "extra", "link"]))
    if how == "flip" and content:
        bit = data.draw(st.integers(0, 8 * len(content) - 1))
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
    elif how == "cut" and content:
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    elif how == "remove":
        path.unlink()
    elif how == "extra":
        (path.parent / data.draw(st.sampled_from(["x", ".hidden", "model.bin~"]))).write_bytes(b"")
    elif how == "link":
        path.rename(folder.parent / "original")
        path.symlink_to(folder.parent / "original")
    else:
        path.write_bytes(content + data.draw(st.binary(min_size=1, max_size=5)))
    return f"{how} {name}"


@settings(max_examples=80)
@given(st.data())
def test_any_damage_is_found_quarantined_and_survived(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        old = make(store, {"model.bin": b"old"})
        new = make(store)
        what = damage(data, new.path)
        with pytest.raises(CorruptArtefactError) as caught:
            current(store)
        error = caught.value
        assert error.path == new.path and error.reason, what
        assert "last_good" in error.action and "ringrift train" in str(error)
        assert error.quarantined.is_dir() and not new.path.exists()
        note = json.loads(Path(f"{error.quarantined}.reason.json").read_text())
        assert note["reason"] == error.reason and note["found_at"] == str(new.path)
        assert current(store) is None
        assert store.last_good(CONFIG, GENERATION, KIND) == old
        assert current(store) == old


def flips(content: bytes):
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bytes(flipped)


def test_single_bits_of_a_manifest_count(store: Store) -> None:
    made = make(store, {"a": b"x"}, steps=10)
    outside = store.root.parent / "copy"
    made.path.rename(outside)
    manifest = outside / "manifest.json"
    good = manifest.read_bytes()
    for bad in list(flips(good))[::5]:  # 5 and 8 are coprime: every bit position of a byte
        manifest.write_bytes(bad)
        with pytest.raises(CorruptArtefactError) as caught:
            store.open(outside, verify=False)
        assert caught.value.quarantined is None  # not the store's own folder: left where it is
    manifest.write_bytes(good)
    assert store.open(outside).digest == made.digest


def test_single_bits_of_a_pointer_count(store: Store) -> None:
    made = make(store)
    pointer = made.path.parent / "current.json"
    good = pointer.read_bytes()
    for bad in list(flips(good))[::5]:
        pointer.write_bytes(bad)
        with pytest.raises(CorruptArtefactError) as caught:
            current(store)
        assert caught.value.quarantined.read_bytes() == bad
    assert not pointer.exists() and made.path.is_dir()
    assert store.last_good(CONFIG, GENERATION, KIND) == made  # the folder itself was sound
    assert pointer.read_bytes() == good


def test_a_pointer_to_a_deleted_folder_says_so_once(store: Store) -> None:
    made = make(store)
    made.path.rename(store.root / "gone")
    with pytest.raises(CorruptArtefactError, match="is gone"):
        current(store)
    assert current(store) is None


def test_a_folder_of_another_generation_is_not_taken(store: Store) -> None:
    made = make(store)
    other = store.root / CONFIG / "generations" / "0004" / KIND
    other.parent.mkdir(parents=True)
    made.path.parent.rename(other)
    with pytest.raises(CorruptArtefactError, match="belongs to square8_2p 0003"):
        store.current(CONFIG, 4, KIND)


def test_a_landed_folder_without_its_manifest_vouches_for_nothing(store: Store) -> None:
    """For readers that are given a path: a lost manifest is damage, and no leave to go unchecked."""
    with store.create("square8_2p", 0, "window") as draft:
        for name in ("a", "deeper/b"):
            (draft / name).write_bytes(b"bytes")
    landed = draft.artefact.path
    for name in ("a", "deeper/b"):
        check_file(landed / name)
    (landed / "manifest.json").unlink()
    for name in ("a", "deeper/b"):
        with pytest.raises(CorruptArtefactError, match=r"it has no manifest\.json"):
            check_file(landed / name)
    with pytest.raises(CorruptArtefactError, match=r"manifest\.json"):
        check_folder(landed)
    elsewhere = store.root.parent / "mine"
    shutil.copytree(landed, elsewhere)  # a copy under a name of one's own is nobody's artefact
    check_file(elsewhere / "a")
    check_folder(elsewhere)


def test_without_verify_files_are_not_hashed_but_the_manifest_is(store: Store) -> None:
    made = make(store)
    made.file("model.bin").write_bytes(b"changed")
    assert store.current(CONFIG, GENERATION, KIND, verify=False) == made
    (made.path / "manifest.json").write_bytes(b"{}")
    assert store.artefacts(CONFIG, GENERATION, KIND) == []
    with pytest.raises(CorruptArtefactError, match="no seal"):
        store.current(CONFIG, GENERATION, KIND, verify=False)


def test_last_good_passes_over_several_corrupt_ones(store: Store) -> None:
    made = [make(store, {"n": bytes([n])}) for n in range(4)]
    for artefact in made[1:]:
        artefact.file("n").write_bytes(b"bad")
    assert store.last_good(CONFIG, GENERATION, KIND) == made[0]
    assert store.artefacts(CONFIG, GENERATION, KIND) == [made[0]]
    made[0].file("n").unlink()
    assert store.last_good(CONFIG, GENERATION, KIND) is None


def test_open_of_a_corrupt_current_artefact_withdraws_the_pointer(store: Store) -> None:
    old, new = make(store, {"n": b"1"}), make(store, {"n": b"2"})
    new.file("n").write_bytes(b"3")
    with pytest.raises(CorruptArtefactError, match="another SHA-256") as caught:
        store.open(new.path)
    assert caught.value.quarantined is not None
    assert current(store) is None and store.open(old.path) == old


@pytest.mark.parametrize("damaged", ["model.bin", "manifest.json", "current.json"])
def test_nothing_is_taken_away_of_which_nobody_would_know(
    store: Store, monkeypatch: pytest.MonkeyPatch, damaged: str
) -> None:
    folder = make(store).path
    (folder.parent / damaged if damaged == "current.json" else folder / damaged).write_text("{}")
    before = everything(store.root)

    def full(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(artefacts, "write_json_atomic", full)
    with pytest.raises(OSError, match="No space left"):
        current(store)
    assert everything(store.root) == before
    monkeypatch.undo()
    with pytest.raises(CorruptArtefactError):
        current(store)
    assert [one.kind for one in quarantined(store, CONFIG)] == [KIND]


def test_a_newer_format_is_refused_not_quarantined(store: Store, monkeypatch) -> None:
    monkeypatch.setattr("ringrift_pipeline.store.manifest.FORMAT", 99)
    made = make(store)
    monkeypatch.undo()
    with pytest.raises(StoreError, match="99"):
        current(store)
    assert made.path.is_dir()


def test_missing_says_what_and_which_command(store: Store) -> None:
    for kind, command in {
        "selfplay-shard-0003": "ringrift selfplay --config square8_2p",
        "ema_model": "ringrift train --config square8_2p",
        "evaluation": "ringrift evaluate --config square8_2p",
    }.items():
        with pytest.raises(MissingArtefactError) as caught:
            store.require(CONFIG, 12, kind)
        assert kind in str(caught.value) and "0012" in str(caught.value)
        assert command in str(caught.value)
    with pytest.raises(MissingArtefactError, match="nowhere"):
        store.open(store.root / "nowhere")


# --- names --------------------------------------------------------------------------------------

BAD_NAMES = ["", ".", "..", "../up", "a/b", "/abs", "a\\b", ".hidden", "a\0b", "a\nb", "é", "-x"]


@pytest.mark.parametrize("name", [*BAD_NAMES, "dot.", "x" * 101, "a\n", None, 3])
def test_names_that_could_leave_the_store_are_refused(store: Store, name) -> None:
    artefact = make(store)
    calls = [
        lambda: store.create(name, 0, KIND),
        lambda: store.create(CONFIG, 0, name),
        lambda: store.current(name, 0, KIND),
        lambda: store.last_good(CONFIG, 0, name),
        lambda: store.write_plan(name, 0, {}),
        lambda: store.champion(name),
        lambda: store.promote(name, GENERATION, artefact, {}),
        lambda: store.generations(name),
        lambda: store.lock(CONFIG, name),
    ]
    before = everything(store.root.parent)
    for call in calls:
        with pytest.raises(InvalidNameError):
            call()
    assert everything(store.root.parent) == before


@settings(max_examples=300)
@given(st.text(max_size=12) | st.text(alphabet="./\\a-0_ ", max_size=6))
def test_an_accepted_name_is_one_path_part(name: str) -> None:
    store = Store("/nonexistent")
    try:
        store.current(name, 0, name)
    except InvalidNameError:
        return
    joined = os.path.normpath(f"/r/{name}")
    assert os.path.dirname(joined) == "/r" and os.path.basename(joined) == name


@pytest.mark.parametrize("generation", [-1, True, 1.0, "0001", None])
def test_a_generation_is_a_count(store: Store, generation) -> None:
    with pytest.raises(InvalidNameError, match="generation"):
        store.create(CONFIG, generation, KIND)


def test_generation_keys_are_padded() -> None:
    assert [generation_key(n) for n in (0, 7, 9999, 10000)] == ["0000", "0007", "9999", "10000"]
    assert Store.generation_key(7) == "0007"


def test_plan_json_is_no_kind(store: Store) -> None:
    with pytest.raises(InvalidNameError):
        store.create(CONFIG, 0, "plan.json")


def test_a_file_is_no_data_root(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="is a file"):
        Store(tmp_path / "file")


# --- concurrency and the rest -------------------------------------------------------------------


def test_concurrent_writers_and_readers_of_one_kind(store: Store) -> None:
    make(store, {"a": b"0", "b": b"0"})
    errors: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for step in range(8):
                content = f"{number} {step}".encode()
                make(store, {"a": content, "b": content})
                read = current(store)
                assert read.file("a").read_bytes() == read.file("b").read_bytes()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    made = store.artefacts(CONFIG, GENERATION, KIND)
    assert len(made) == 33 and current(store) in made


WRITER = """
import sys
from ringrift_pipeline.store import Store
store = Store(sys.argv[1])
for step in range(10):
    with store.create("square8_2p", 3, "checkpoint") as draft:
        for name in "ab":
            (draft / name).write_text(f"{sys.argv[2]} {step}")
    found = store.require("square8_2p", 3, "checkpoint")
    assert found.file("a").read_text() == found.file("b").read_text()
    store.sweep()
"""


def test_processes_that_create_the_same_kind(store: Store) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(store.root), str(number)])
        for number in range(3)
    ]
    assert [writer.wait() for writer in writers] == [0] * 3
    made = store.artefacts(CONFIG, GENERATION, KIND)
    assert len(made) == 30 and current(store) in made
    assert {a.file("a").read_text() for a in made} == {
        f"{w} {s}" for w in range(3) for s in range(10)
    }


def test_everything_is_durable_before_what_names_it(store: Store, monkeypatch) -> None:
    """Files, then the manifest, then the folder's name, then the pointer: by inode, in order."""
    steps: list[tuple[str, int]] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def record(what: str, inode: int) -> None:
        steps.append((what, inode))

    def spy_fsync(descriptor: int) -> None:
        fsync(descriptor)
        record("fsync", os.fstat(descriptor).st_ino)

    def spy_rename(old: Path, new: Path) -> None:
        record("rename", os.stat(old).st_ino)
        rename(old, new)

    def spy_replace(old: Path, new: Path) -> None:
        record("replace", os.stat(old).st_ino)
        replace(old, new)

    with store.create(CONFIG, GENERATION, KIND) as draft:
        (draft / "a").write_bytes(b"a")
        (draft / "deep/b").write_bytes(b"b")
        monkeypatch.setattr(os, "fsync", spy_fsync)
        monkeypatch.setattr(os, "rename", spy_rename)
        monkeypatch.setattr(os, "replace", spy_replace)
    path = draft.artefact.path
    inode = {name: (path / name).stat().st_ino for name in ("a", "deep", "deep/b", "manifest.json")}
    folder, parent = path.stat().st_ino, path.parent.stat().st_ino
    pointer = (path.parent / "current.json").stat().st_ino
    manifest = steps.index(("fsync", inode["manifest.json"]))
    renamed = steps.index(("rename", folder))
    pointed = steps.index(("replace", pointer))
    for name in ("a", "deep", "deep/b"):
        assert steps.index(("fsync", inode[name])) < manifest
    assert ("fsync", folder) in steps[manifest:renamed]
    assert ("fsync", parent) in steps[renamed:pointed]
    assert ("fsync", pointer) in steps[renamed:pointed]
    assert ("fsync", parent) in steps[pointed:]


def test_errors_and_stores_cross_process_borders(store: Store) -> None:
    for error in (
        CorruptArtefactError(Path("/p"), "reason", "action", Path("/q")),
        MissingArtefactError("it", "make it"),
        LockedError("x", Path("/l"), {"pid": 1, "host": "h", "since": "t", "command": "c"}),
        InvalidNameError("no"),
        VanishedFileError(Path("/p")),
    ):
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error) and str(copy) == str(error)
        assert copy.__dict__ == error.__dict__
    assert pickle.loads(pickle.dumps(store)).root == store.root


def test_importing_the_store_is_light() -> None:
    code = (
        "import sys, ringrift_pipeline.store; "
        "print(*sorted({'numpy', 'torch', 'numba', 'dagster', 'filelock'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
