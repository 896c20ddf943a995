"""What a cache drops, and what of a window it never does while somebody has it open."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_bucket import CONFIG, GENERATION, make

from ringrift_pipeline.store import Artefact, Store, artefacts
from ringrift_pipeline.store.cache import Cache
from ringrift_pipeline.store.locks import hold, unheld
from tests.bad_disk import unreadable

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("no_waiting_for_the_disk")]

HOURS = 7200.0  # seconds, longer ago than what counts as use


@pytest.fixture
def window(here: Store) -> Artefact:
    """One that mining has built hours ago."""
    made = make(here, kind="window")
    long_ago(made.path)
    return made


def long_ago(path: Path) -> None:
    then = time.time() - HOURS
    os.utime(path, (then, then))


def cache_of(store: Store) -> Cache:
    assert store.remote is not None
    return store.remote.cache


def current(store: Store) -> Artefact | None:
    return store.current(CONFIG, GENERATION, "window")


@pytest.mark.parametrize("how", ["by its name", "by its folder"])
def test_a_window_that_was_asked_for_counts_as_used(
    how: str, here: Store, window: Artefact
) -> None:
    """Between who finds it and who opens it, in another process, nobody drops it."""
    found = current(here) if how == "by its name" else here.open(window.path, verify=False)
    assert found == window
    assert cache_of(here).trim(0) == [] and window.path.is_dir()
    long_ago(window.path)
    assert cache_of(here).trim(0) == [window.path]


def test_one_that_is_used_while_the_cache_looks_stays(
    here: Store, window: Artefact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The walk through all that is there takes a while."""
    folders = Cache._folders

    def slowly(self: Cache) -> Iterator[Any]:
        seen = list(folders(self))
        assert current(here) == window
        yield from seen

    monkeypatch.setattr(Cache, "_folders", slowly)
    assert cache_of(here).trim(0) == [] and window.path.is_dir()


def test_one_that_is_dropped_while_it_is_checked_is_not_handed_out(
    here: Store, window: Artefact, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = artefacts.load_folder

    def late(path: Path, *, verify: bool) -> Artefact:
        found = load(path, verify=verify)
        cache_of(here).trim(0)
        return found

    monkeypatch.setattr(artefacts, "load_folder", late)
    assert current(here) is None and not window.path.exists()
    assert not (here.root / CONFIG / "quarantine").exists()


def test_what_comes_from_the_bucket_is_fetched_again_then(
    here: Store, tmp_path: Path, bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ringrift_pipeline.store import cache

    made = make(here)
    load, dropped = cache.load_folder, list[Path]()

    def late(path: Path, *, verify: bool) -> Artefact:
        found = load(path, verify=verify)
        if not dropped:
            long_ago(path)
            dropped.extend(cache_of(here).trim(0))
        return found

    monkeypatch.setattr(cache, "load_folder", late)
    found = here.current(CONFIG, GENERATION, made.kind)
    assert dropped == [made.path] and found == made and made.path.is_dir()


HOLDS = """
import sys
from pathlib import Path
from ringrift_pipeline.store.locks import hold
hold(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_window_stays_as_long_as_a_process_has_it_open(here: Store, window: Artefact) -> None:
    other = make(here, {"n": b"other"}, kind="checkpoint")
    long_ago(other.path)
    command = [sys.executable, "-c", HOLDS, str(window.path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with unheld(window.path) as free:
            assert not free
        os.close(hold(window.path))  # another reader is none too many
        assert cache_of(here).trim(0) == [other.path]  # the rest goes, also what came later
        process.kill()
        process.wait()
        assert cache_of(here).trim(0) == [window.path]
    assert current(here) is None


@pytest.mark.parametrize("whose", ["read", "landed"])
def test_files_that_were_dropped_since_are_fetched_when_they_are_asked_for(
    whose: str, here: Store
) -> None:
    """A long work reads some of what it was given at its end."""
    made = make(here, {"n": b"scores"})
    found = here.require(CONFIG, GENERATION, made.kind) if whose == "read" else made
    long_ago(made.path)
    assert cache_of(here).trim(0) == [made.path]
    assert found.file("n").read_bytes() == b"scores"


def test_a_kept_manifest_that_the_disk_refuses_to_read_is_fetched_again(
    here: Store, there: Store
) -> None:
    made = make(here)
    looked = there.artefacts(CONFIG, GENERATION, made.kind)
    (kept,) = there.root.rglob(".manifest-*")
    with unreadable(kept):
        assert there.artefacts(CONFIG, GENERATION, made.kind) == looked and len(looked) == 1
