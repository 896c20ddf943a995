"""What goes from under a draft while it is written, or while it lands: it is named, and nothing lands."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ringrift_pipeline.store import Artefact, Store, VanishedFileError
from ringrift_pipeline.store.atomic import TEMPORARY, write_json_atomic
from ringrift_pipeline.store.draft import Draft

CONFIG, GENERATION, KIND = "square8_2p", 3, "checkpoint"

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "data")


@pytest.fixture
def old(store: Store) -> Artefact:
    """What is current before."""
    with create(store) as draft:
        (draft / "a").write_bytes(b"old")
    return draft.artefact


def create(store: Store) -> Draft:
    return store.create(CONFIG, GENERATION, KIND)


def check_only(store: Store, old: Artefact) -> None:
    """Nothing is there but what was."""
    assert store.current(CONFIG, GENERATION, KIND) == old
    assert not list(store.root.rglob(f"{TEMPORARY}*"))


def save(path: Path) -> None:
    save_file({"n": np.zeros(1)}, path)


@pytest.mark.parametrize(
    "write",
    [
        lambda draft: (draft / "b").write_text("b"),
        lambda draft: draft / "deep/b",
        lambda draft: save(draft / "b"),
    ],
    ids=["a text", "a folder", "tensors"],
)
def test_its_folder_goes_while_it_is_written(
    store: Store, old: Artefact, write: Callable[[Draft], Any]
) -> None:
    with pytest.raises(VanishedFileError, match=TEMPORARY), create(store) as draft:
        (draft / "a").write_bytes(b"a")
        shutil.rmtree(draft.path)
        write(draft)
    check_only(store, old)


def test_a_folder_in_it_goes_while_it_is_written(store: Store, old: Artefact) -> None:
    with pytest.raises(VanishedFileError, match="deep"), create(store) as draft:
        path = draft / "deep/b"
        path.parent.rmdir()
        save(path)
    check_only(store, old)


@pytest.mark.parametrize("name", ["a.json", "current.json"])
def test_the_bytes_of_a_file_go_before_they_have_its_name(
    store: Store, old: Artefact, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the draft, and the pointer to what has landed."""
    replace = os.replace

    def late(source: Path, target: Path) -> None:
        if target.name == name:
            source.unlink()
        replace(source, target)

    monkeypatch.setattr(os, "replace", late)
    with pytest.raises(VanishedFileError, match=TEMPORARY), create(store) as draft:
        write_json_atomic(draft / "a.json", {})
    check_only(store, old)


def test_its_folder_goes_before_it_has_its_name(
    store: Store, old: Artefact, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def late(source: Path, target: Path) -> None:
        shutil.rmtree(source)
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(VanishedFileError, match=TEMPORARY), create(store) as draft:
        (draft / "a").write_bytes(b"a")
    check_only(store, old)


@pytest.mark.parametrize("gone", [False, True])
def test_an_error_of_the_works_own_stays_what_it_is(
    store: Store, old: Artefact, gone: bool
) -> None:
    """An order to stop among them."""
    with pytest.raises(RuntimeError, match="stopped"), create(store) as draft:
        if gone:
            shutil.rmtree(draft.path)
        raise RuntimeError("stopped")
    check_only(store, old)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOSPC])
def test_what_goes_wrong_elsewhere_stays_what_it_is(
    store: Store, old: Artefact, number: int, tmp_path: Path
) -> None:
    error = OSError(number, os.strerror(number), str(tmp_path / "elsewhere"))
    with pytest.raises(OSError) as caught, create(store) as draft:
        (draft / "deep/a").write_bytes(b"a")
        raise error
    assert caught.value is error
    check_only(store, old)
