"""Between a landing's name and the end of its upload: what goes, who reads, what counts as used."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from s3_server import Request, S3Server
from test_bucket import (
    CONFIG,
    FILES,
    GENERATION,
    KIND,
    OTHER,
    current,
    impatient,
    make,
    refuse,
)
from test_bucket_cache import cache_of, long_ago
from test_bucket_removal import in_mid_upload

from ringrift_pipeline.store import Artefact, BucketError, Store, VanishedFileError
from ringrift_pipeline.store.artefacts import folders
from ringrift_pipeline.store.atomic import TEMPORARY
from ringrift_pipeline.store.bucket import Bucket
from ringrift_pipeline.store.cache import Cache

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("no_waiting_for_the_disk")]


@pytest.fixture
def beside(here: Store, bucket_url: str) -> Store:
    """Another process's, on the same data root."""
    return Store(here.root, bucket_url)


def at_first(s3: S3Server, method: str, then: Callable[[], None]) -> None:
    """Call `then` at the next request of a method, before it is answered."""

    def called(request: Request) -> None:
        if request.method == method:
            s3.before = lambda request: None
            then()

    s3.before = called


def landing(store: Store) -> Path:
    """The folder that has landed last, or has got its name at least."""
    return folders(store.root / CONFIG / "generations" / f"{GENERATION:04d}" / KIND)[-1]


def digest(found: Artefact | None) -> str | None:
    return None if found is None else found.digest


# --- what goes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["", "model.bin", "manifest.json"])
@pytest.mark.parametrize("when", ["GET", "PUT"])
def test_what_goes_before_the_bucket_has_it_has_not_landed(
    s3: S3Server, here: Store, there: Store, when: str, what: str
) -> None:
    """Its maker, told that it had, would remove the one before it."""
    old = make(here, OTHER)

    def taken() -> None:
        gone = landing(here) / what
        assert gone != old.path
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()

    at_first(s3, when, taken)  # the listing before the upload, the first of three files
    with pytest.raises(VanishedFileError, match=what or KIND):
        make(here)
    for store in (here, there):
        assert digest(current(store)) == old.digest
    assert here.remote is not None and not here.remote.pending.places()
    assert landing(here) == old.path
    assert digest(current(there)) != make(here).digest == digest(current(there))


def test_what_goes_while_it_is_uploaded_later(s3: S3Server, here: Store) -> None:
    refuse(s3, "PUT")
    with pytest.raises(BucketError):
        make(impatient(here))
    at_first(s3, "PUT", lambda: (landing(here) / "model.bin").unlink())
    with pytest.raises(VanishedFileError, match=r"model\.bin"):
        current(here)
    assert current(here) is None
    assert here.remote is not None and not here.remote.pending.places()


def test_what_is_landing_is_not_anothers_to_remove(
    s3: S3Server, here: Store, there: Store, beside: Store
) -> None:
    """It waits for a bucket that refuses, and another process takes it for left over."""
    at_first(s3, "GET", lambda: beside.remove(CONFIG, GENERATION, KIND))
    made = make(here)
    assert made.path.is_dir() and digest(current(there)) == made.digest
    beside.remove(CONFIG, GENERATION, KIND)
    assert not made.path.exists() and current(there) is None


@pytest.mark.parametrize("when", ["while it is fetched", "when it is checked"])
def test_what_is_fetched_goes_before_it_has_its_name(
    when: str, here: Store, there: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bucket is not at fault, nor the machine: what it has stays."""
    made = make(here)
    fetched: list[str] = []

    def fetch(self: Bucket, key: str, path: Path, size: int) -> None:
        fetched.append(key)
        download(self, key, path, size)
        if len(fetched) == 1:
            shutil.rmtree(next(one for one in path.parents if one.name.startswith(TEMPORARY)))

    download = Bucket.download
    with monkeypatch.context() as patch:
        if when == "while it is fetched":
            patch.setattr(Bucket, "download", fetch)
        else:
            patch.setattr(Cache, "_check", lambda self, folder, *about: shutil.rmtree(folder))
        with pytest.raises(VanishedFileError):
            current(there)
    assert there.remote is not None and there.remote.quarantined(CONFIG) == {}
    assert digest(current(there)) == made.digest


# --- who reads ----------------------------------------------------------------------------------


def test_readers_do_not_wait_for_an_upload_nor_point_to_it(
    s3: S3Server, here: Store, there: Store, beside: Store
) -> None:
    seen: list[str | None] = []

    def read() -> None:
        beside.artefacts(CONFIG, GENERATION, KIND)
        seen.append(digest(beside.last_good(CONFIG, GENERATION, KIND)))
        seen.append(digest(current(there)))

    reader = threading.Thread(target=read)

    def meanwhile() -> None:
        reader.start()
        reader.join(20)
        seen.append("in time" if not reader.is_alive() else "it waits")

    made = in_mid_upload(s3, here, meanwhile)
    reader.join()
    assert seen == [made.digest, None, "in time"]
    assert digest(current(there)) == made.digest


# --- what counts as used ------------------------------------------------------------------------


def test_what_took_hours_to_upload_counts_as_used_then(s3: S3Server, here: Store) -> None:
    made = in_mid_upload(s3, here, lambda: long_ago(landing(here)))
    assert cache_of(here).trim(0) == [] and made.path.is_dir()


def test_what_took_hours_to_fetch_counts_as_used_then(
    here: Store, there: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(here)
    download = Bucket.download

    def slowly(self: Bucket, key: str, path: Path, size: int) -> None:
        download(self, key, path, size)
        if path.name == "model.bin":  # the last one
            long_ago(path.parent)

    monkeypatch.setattr(Bucket, "download", slowly)
    found = there.require(CONFIG, GENERATION, KIND)
    assert list(found.files)[-1] == "model.bin"
    assert cache_of(there).trim(0) == [] and found.path.is_dir()


def test_what_another_process_has_fetched_counts_as_used_then(
    here: Store, there: Store, bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was dropped while it was checked is fetched."""
    make(here, FILES)
    first = Store(there.root, bucket_url)
    one_by_one = Cache._only_one

    def second(self: Cache, place: object) -> object:
        monkeypatch.undo()
        long_ago(first.require(CONFIG, GENERATION, KIND).path)
        return one_by_one(self, place)  # type: ignore[arg-type]

    monkeypatch.setattr(Cache, "_only_one", second)
    found = there.require(CONFIG, GENERATION, KIND)
    assert cache_of(there).trim(0) == [] and found.path.is_dir()
