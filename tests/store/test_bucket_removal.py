"""What a maker removes of a kind, beside others who are uploading to it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from s3_server import Request, S3Server
from test_bucket import (
    CONFIG,
    GENERATION,
    OTHER,
    current,
    impatient,
    key_of,
    make,
    refuse,
)

from ringrift_pipeline.store import Artefact, BucketError, Store, remote

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("no_waiting_for_the_disk")]

KIND = "checkpoint"


def remove(store: Store, keep: Artefact | None = None) -> None:
    store.remove(CONFIG, GENERATION, KIND, None if keep is None else keep.path)


def in_mid_upload(s3: S3Server, store: Store, then: Callable[[], None]) -> Artefact:
    """What lands; `then` is called when its files are there and its manifest is not."""

    def called(request: Request) -> None:
        if request.method == "PUT" and request.key.endswith("/manifest.json"):
            s3.before = lambda request: None
            then()

    s3.before = called
    return make(store)


def digests(store: Store) -> list[str]:
    return [one.digest for one in store.artefacts(CONFIG, GENERATION, KIND)]


def files(store: Store) -> dict[str, int]:
    assert store.remote is not None
    return store.remote.bucket.listing(f"{CONFIG}/generations")


def test_what_another_is_uploading_meanwhile_stays_and_is_whole(
    s3: S3Server, here: Store, there: Store
) -> None:
    """Two machines train the same generation: each removes the states before its own."""
    old, mine = make(here, {"n": b"1"}), make(here, OTHER)
    late = in_mid_upload(s3, there, lambda: remove(here, mine))
    assert digests(here) == [mine.digest, late.digest]
    assert not any(old.path.name in name for name in files(here))
    found = current(here)
    assert found is not None and found.digest == late.digest
    remove(here, mine)  # nor does it go when it has landed: it is newer
    assert digests(here) == [mine.digest, late.digest]
    remove(there, late)
    assert digests(here) == [late.digest]


def test_an_older_one_that_is_being_uploaded_goes_when_it_has_landed(
    s3: S3Server, here: Store, there: Store
) -> None:
    made: list[Artefact] = []

    def overtaken() -> None:
        made.append(make(here, OTHER))
        remove(here, made[0])

    late = in_mid_upload(s3, there, overtaken)
    assert here.open(here.root / key_of(late)).digest == late.digest
    found = current(there)
    assert found is not None and found.digest == made[0].digest
    remove(here, made[0])
    assert digests(there) == [made[0].digest]


def test_all_of_a_kind_is_all_but_what_is_being_uploaded(
    s3: S3Server, here: Store, there: Store
) -> None:
    make(here, OTHER)
    late = in_mid_upload(s3, there, lambda: remove(here))
    assert digests(here) == [late.digest]
    found = current(here)
    assert found is not None and found.digest == late.digest
    remove(here)
    assert not files(here)


def test_an_upload_that_was_given_up_goes(
    s3: S3Server, here: Store, there: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its machine is gone for good."""
    s3.before = lambda request: 503 if request.key.endswith("/manifest.json") else None
    with pytest.raises(BucketError):
        make(impatient(there))
    s3.before = lambda request: None
    mine = make(here, OTHER)
    remove(here, mine)
    assert len(files(here)) > len(mine.files) + 2  # beside manifest and pointer
    monkeypatch.setattr(remote, "GIVEN_UP", -1.0)
    remove(here, mine)
    assert len(files(here)) == len(mine.files) + 2 and current(here) == mine


def test_what_this_machine_could_not_upload_goes_with_what_is_there_of_it(
    s3: S3Server, here: Store
) -> None:
    s3.before = lambda request: 503 if request.key.endswith("/manifest.json") else None
    with pytest.raises(BucketError):
        make(impatient(here))
    refuse(s3, "PUT")
    with pytest.raises(BucketError):
        make(impatient(here))
    s3.before = lambda request: None
    mine = make(here, OTHER)
    remove(here, mine)
    assert here.remote is not None and not here.remote.pending.places()
    assert len(files(here)) == len(mine.files) + 2
    assert [path.name for path in mine.path.parent.iterdir() if path.is_dir()] == [mine.path.name]


@pytest.mark.parametrize("all_of_it", [True, False])
def test_what_another_process_of_this_machine_is_uploading_stays(
    here: Store, all_of_it: bool
) -> None:
    late, mine = make(here), make(here, OTHER)
    assert here.remote is not None
    place = here.remote.place(late.path)
    assert place is not None
    with here.remote.pending.added(place):
        remove(here, None if all_of_it else mine)
        assert late.path.is_dir() and here.remote.pending.has(place)
        assert here.remote.bucket.listing(place.key)
    remove(here, None if all_of_it else mine)
    assert not late.path.exists() and not here.remote.pending.has(place)
    assert not here.remote.bucket.listing(place.key)
