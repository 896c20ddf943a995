"""Atomic files and JSON lines."""

import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringrift_pipeline.store import (
    CorruptArtefactError,
    SerializationError,
    Store,
    append_jsonl,
    atomic,
    read_jsonl,
    write_bytes_atomic,
    write_json_atomic,
)
from ringrift_pipeline.store.atomic import ensure_folder, temporary_name

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def test_a_pipe_is_no_leftover_that_is_waited_for(tmp_path: Path) -> None:
    pipe = temporary_name(tmp_path)
    os.mkfifo(pipe)
    Store(tmp_path).sweep()  # would wait for a writer
    assert not pipe.exists()


def test_a_folder_that_a_killed_process_made_is_made_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed between making the folder and syncing what the folder is in."""
    synced: list[Path] = []
    monkeypatch.setattr(atomic, "fsync_path", synced.append)
    (tmp_path / "there").mkdir()
    ensure_folder(tmp_path / "there" / "new" / "below")
    assert synced == [tmp_path, tmp_path / "there", tmp_path / "there" / "new"]
    ensure_folder(tmp_path / "there" / "new" / "below")
    assert len(synced) == 3  # once a process
    shutil.rmtree(tmp_path / "there")
    ensure_folder(tmp_path / "there" / "new")
    assert synced[3:] == [tmp_path.parent, tmp_path, tmp_path / "there"]


@settings(max_examples=60)
@given(JSON)
def test_json_round_trips(tmp_path_factory, value) -> None:
    folder = tmp_path_factory.mktemp("json")
    write_json_atomic(folder / "new" / "x.json", value)
    assert json.loads((folder / "new" / "x.json").read_bytes()) == value
    append_jsonl(folder / "x.jsonl", value)
    append_jsonl(folder / "x.jsonl", value)
    assert read_jsonl(folder / "x.jsonl") == [value, value]
    assert len((folder / "x.jsonl").read_bytes().splitlines()) == 2


def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "x.json"
    write_json_atomic(path, {"a": 1})

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for step in ("fsync", "replace", "write"):
        with monkeypatch.context() as patch:
            patch.setattr(f"os.{step}", disk_full)
            with pytest.raises(OSError, match="No space"):
                write_bytes_atomic(path, b"new")
        assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
        assert json.loads(path.read_text()) == {"a": 1}
    for bad in (float("nan"), {"a": [object()]}, {"loop": ...}):
        with pytest.raises(SerializationError, match=r"x\.json"):
            write_json_atomic(path, bad)
        with pytest.raises(SerializationError, match=r"x\.jsonl"):
            append_jsonl(tmp_path / "x.jsonl", bad)
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_value_that_contains_itself_is_refused(tmp_path: Path) -> None:
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(SerializationError, match="contains itself"):
        write_json_atomic(tmp_path / "x.json", loop)


def test_scalars_of_array_libraries_and_paths(tmp_path: Path) -> None:
    value = {"f": np.float32(0.5), "i": np.int64(3), "b": np.bool_(True), "p": Path("a/b")}
    write_json_atomic(tmp_path / "x.json", value)
    expected = {"f": 0.5, "i": 3, "b": True, "p": "a/b"}
    assert json.loads((tmp_path / "x.json").read_text()) == expected
    with pytest.raises(SerializationError, match=r"\['n'\] is nan"):
        write_json_atomic(tmp_path / "x.json", {"n": np.float32("nan")})
    with pytest.raises(SerializationError, match=r"\['a'\] is a ndarray"):
        write_json_atomic(tmp_path / "x.json", {"a": np.zeros(3)})


@pytest.mark.parametrize("size", [0, 3, 4096, 9000])
def test_a_torn_line_is_cut_off(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.jsonl"
    assert read_jsonl(path) == []
    append_jsonl(path, {"n": 1})
    with open(path, "ab") as file:
        file.write(b"x" * size)
    assert read_jsonl(path) == [{"n": 1}]
    append_jsonl(path, {"n": 2})
    assert read_jsonl(path) == [{"n": 1}, {"n": 2}]


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"n": 1}\n{"n": \n{"n": 3}\n')
    with pytest.raises(CorruptArtefactError, match="line 2"):
        read_jsonl(path)


def test_concurrent_appends_never_mix(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"

    def append(number: int) -> None:
        for step in range(25):
            append_jsonl(path, {"who": number, "step": step, "pad": "x" * 3000})

    threads = [threading.Thread(target=append, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    values = read_jsonl(path)
    assert len(values) == 100
    for number in range(4):  # each writer's lines in its own order
        assert [v["step"] for v in values if v["who"] == number] == list(range(25))
