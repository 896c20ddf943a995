"""What retention deletes in a bucket, and what it never does."""

from __future__ import annotations

from pathlib import Path

import pytest
from s3_server import Request, S3Server
from test_store_retention import CONFIG, kinds, named, play, put, three

from ringrift_pipeline.store import CorruptArtefactError, Store, retention
from ringrift_pipeline.store import remote as remote_of_a_store
from ringrift_pipeline.store.retention import (
    LEFT_OVER,
    QUARANTINED,
    STATE,
    SUPERSEDED,
    UNREAD,
    Stored,
    delete,
    survey,
)

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("no_waiting_for_the_disk")]


@pytest.fixture
def here(tmp_path: Path, bucket_url: str) -> Store:
    return Store(tmp_path / "here", bucket_url)


@pytest.fixture
def there(tmp_path: Path, bucket_url: str) -> Store:
    return Store(tmp_path / "there", bucket_url)


def test_what_may_go_is_the_same_by_another_machine(here: Store, there: Store) -> None:
    three(here)
    old = put(here, 0, "ema_model")
    put(here, 0, "ema_model")
    put(here, 0, "training_state")
    broken = put(here, 0, "evaluation")
    remote = here.remote
    assert remote is not None
    key = broken.path.relative_to(here.root).as_posix()
    remote.bucket.write(f"{key}/a", (broken.path / "a").read_bytes()[:-1] + b"X")
    with pytest.raises(CorruptArtefactError):
        there.require(CONFIG, 0, "evaluation")
    found = survey(there, keep_generations=1)
    assert kinds(found.candidates) == [
        (0, "ema_model", SUPERSEDED),
        (0, "ema_model", SUPERSEDED),
        (0, "training_state", LEFT_OVER),
        (None, "quarantine", QUARANTINED),
        (0, "checkpoint", STATE),
        (1, "checkpoint", STATE),
        (0, "selfplay-shard-0000", UNREAD),
        (0, "selfplay-shard-0001", UNREAD),
    ]
    assert found.candidates[1].path == there.root / old.path.relative_to(here.root)
    assert found.bytes == sum(remote.bucket.listing("").values())
    why = {(item.generation, item.kind): item.why for item in found.protected}
    assert why[1, "selfplay-shard-0000"] == f"in the window of the plan of {CONFIG} 0002"


def test_it_goes_in_the_bucket_and_never_a_champion_or_a_shard_of_a_window(
    here: Store, there: Store
) -> None:
    shards = three(here)
    for generation in (0, 1):
        model = here.require(CONFIG, generation, "ema_model")
        here.promote(CONFIG, generation, model, {})
    put(here, 0, "ema_model")  # takes the champion's place as the current one
    play(here, 3, shards[2], champion=named(here, here.require(CONFIG, 1, "ema_model")))
    found = survey(there, keep_generations=1)
    gone = delete(there, found, found.surplus(0))
    assert len(gone) == len(found.candidates) > 0
    remote = there.remote
    assert remote is not None
    for item in gone:
        assert not remote.bucket.listing(item.path.relative_to(there.root).as_posix())
    for champion in there.champions(CONFIG):
        assert there.open(champion.path).digest == champion.digest
    for shard in shards[2]:
        assert there.require(CONFIG, 2, shard.kind).digest == shard.digest
    assert there.current(CONFIG, 0, "checkpoint") is None
    assert here.current(CONFIG, 0, "checkpoint") is None  # though its files are here yet
    assert survey(there, keep_generations=1).bytes < found.bytes
    assert not [item for item in survey(here, keep_generations=1).candidates if item in gone]


@pytest.mark.parametrize("every", [3600.0, -1.0])
def test_what_a_deletion_asks_does_not_grow_with_the_history(
    every: float, s3: S3Server, here: Store, there: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing of plans is a request for each thousand."""
    three(here)
    here.promote(CONFIG, 2, here.require(CONFIG, 2, "ema_model"), {})
    monkeypatch.setattr(retention, "LOOK_AGAIN", every)
    found = survey(there, keep_generations=1)
    s3.requests.clear()
    gone = delete(there, found, found.candidates)
    assert len(gone) == len(found.candidates) > 3
    for what in ("plans", "champions"):
        listed = [one for one in s3.requests if one.method == "GET" and what in one.query]
        assert len(listed) == (1 if every > 0 else len(gone))
    if every > 0:  # pointer read and written, listing, three objects; next plan, next promotion
        assert len(s3.requests) <= 3 + 8 * len(gone)


@pytest.mark.parametrize("what", ["plan", "promotion"])
def test_a_plan_or_a_promotion_of_another_machine_ends_a_deletion(
    what: str, here: Store, there: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    three(here)
    found = survey(there, keep_generations=1)
    remove = retention._remove

    def then(store: Store, item: Stored) -> bool:
        removed = remove(store, item)
        if what == "plan":
            here.write_plan(CONFIG, 3, {})
        else:
            here.promote(CONFIG, 0, here.require(CONFIG, 0, "ema_model"), {})
        return removed

    monkeypatch.setattr(retention, "_remove", then)
    assert delete(there, found, found.candidates) == list(found.candidates[:1])


def test_an_upload_that_was_given_up_goes_and_one_under_way_stays(
    s3: S3Server, here: Store, there: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    three(here)
    remote = here.remote
    assert remote is not None
    remote.bucket.patience = 0.0

    def refuse(request: Request) -> int | None:
        return 503 if request.method == "PUT" and request.key.endswith("/manifest.json") else None

    s3.before = refuse
    with pytest.raises(Exception, match="refuses uploading"):
        put(here, 0, "checkpoint")
    s3.before = lambda request: None
    before = survey(there, keep_generations=1)
    assert (0, "checkpoint", LEFT_OVER) not in kinds(before.candidates)
    monkeypatch.setattr(remote_of_a_store, "GIVEN_UP", -1.0)
    found = survey(there, keep_generations=1)
    (left,) = (item for item in found.candidates if item.kind == "checkpoint" and not item.digest)
    assert left.why == LEFT_OVER
    assert delete(there, found, [left]) == [left]
    assert len(there.artefacts(CONFIG, 0, "checkpoint")) == 1
    assert there.require(CONFIG, 0, "checkpoint")
