"""Two data roots, one bucket: landing, races, kills in mid-upload, refusals, damage."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec.asyn
import pytest
from s3_server import Request, S3Server

from ringrift_pipeline.store import (
    Artefact,
    BucketError,
    BucketSettingError,
    CorruptArtefactError,
    InvalidNameError,
    MissingArtefactError,
    Store,
    UnreliableHostError,
)
from ringrift_pipeline.store.bucket import Bucket, Seen
from ringrift_pipeline.store.manifest import sealed_bytes
from ringrift_pipeline.store.transfer import transferred
from tests.bad_disk import unreadable
from tests.drafts import Writer

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("no_waiting_for_the_disk")]

CONFIG, GENERATION, KIND = "square8_2p", 3, "checkpoint"
FILES = {"model.bin": b"weights" * 50, "deep/er/metrics.jsonl": b'{"step": 1}\n', "empty": b""}
OTHER = {"model.bin": b"other weights"}


def make(store: Store, files: dict[str, bytes] = FILES, kind: str = KIND, **metadata) -> Artefact:
    with store.create(CONFIG, GENERATION, kind, metadata=metadata) as draft:
        for name, content in files.items():
            (draft / name).write_bytes(content)
    return draft.artefact


def current(store: Store, verify: bool = True) -> Artefact | None:
    return store.current(CONFIG, GENERATION, KIND, verify)


def key_of(artefact: Artefact, name: str = "") -> str:
    key = f"{CONFIG}/generations/{GENERATION:04d}/{artefact.kind}/{artefact.path.name}"
    return f"{key}/{name}" if name else key


def impatient(store: Store, patience: float = 0.0) -> Store:
    """The store, with another patience."""
    other = pickle.loads(pickle.dumps(store))
    other.remote.bucket.patience = patience
    return other


def refuse(server: S3Server, *methods: str, status: int = 503) -> None:
    server.before = lambda request: status if request.method in methods else None


# --- one sees what the other did ----------------------------------------------------------------


def test_what_lands_here_is_read_there(here: Store, there: Store) -> None:
    made = make(here, **{"val/loss": 0.5})
    read = current(there)
    assert read is not None and read.digest == made.digest and read.metadata == {"val/loss": 0.5}
    assert read.path == there.root / key_of(made)
    for name, content in FILES.items():
        assert read.file(name).read_bytes() == content
    assert there.kinds(CONFIG, GENERATION) == [KIND]
    assert [one.digest for one in there.artefacts(CONFIG, GENERATION, KIND)] == [made.digest]
    assert there.open(there.root / key_of(made)) == read
    again = make(there, OTHER)
    found = current(here)
    assert found is not None and found.digest == again.digest
    assert [one.digest for one in here.artefacts(CONFIG, GENERATION, KIND)] == [
        made.digest,
        again.digest,
    ]
    assert not list((here.root / ".bucket" / "pending").iterdir())


def test_nothing_is_downloaded_twice(s3: S3Server, here: Store, there: Store) -> None:
    made = make(here)
    s3.requests.clear()
    with ThreadPoolExecutor(4) as pool:
        for read in pool.map(current, [there] * 4):
            assert read is not None
    there.require(CONFIG, GENERATION, KIND)
    there.open(there.root / key_of(made))
    there.last_good(CONFIG, GENERATION, KIND)
    assert sorted(s3.asked("GET", made.path.name + "/")) == sorted(
        f"some/where/{key_of(made, name)}" for name in (*FILES, "manifest.json")
    )
    s3.requests.clear()
    assert current(here) is not None  # whoever made it fetches none of it
    assert not s3.asked("GET", made.path.name + "/")


def test_without_verifying_the_files_come_when_they_are_asked_for(
    s3: S3Server, here: Store, there: Store
) -> None:
    made = make(here, games=7)
    s3.requests.clear()
    for _ in range(3):
        read = current(there, verify=False)
        assert read is not None and read.metadata == {"games": 7} and not read.path.exists()
    assert len(s3.asked("GET", made.path.name + "/")) == 1
    assert read.read_json is not None
    assert pickle.loads(pickle.dumps(read)).file("model.bin").read_bytes() == FILES["model.bin"]


def test_what_goes_through_the_bucket_is_counted(s3: S3Server, here: Store, there: Store) -> None:
    size = sum(map(len, FILES.values()))
    before = transferred()
    make(here)
    sent = transferred().since(before)
    assert current(there) is not None
    received = transferred().since(before).since(sent)
    for spent in (sent, received):
        assert spent.seconds > 0.0 and size < spent.bytes < size + 10_000  # manifest, pointer
    s3.before = lambda request: time.sleep(0.5)
    before = transferred()
    current(there)
    assert 0.5 <= transferred().since(before).seconds < 60.0


def test_a_window_stays_here(s3: S3Server, here: Store, there: Store) -> None:
    s3.requests.clear()
    made = make(here, kind="window")
    assert here.current(CONFIG, GENERATION, "window") == made
    assert not s3.requests
    assert there.current(CONFIG, GENERATION, "window") is None
    assert here.kinds(CONFIG, GENERATION) == ["window"] and not there.kinds(CONFIG, GENERATION)


def test_removed_here_is_gone_there(here: Store, there: Store) -> None:
    first, second = make(here), make(here, OTHER)
    assert current(there) is not None
    here.remove(CONFIG, GENERATION, KIND, keep=second.path)
    assert [one.digest for one in there.artefacts(CONFIG, GENERATION, KIND)] == [second.digest]
    assert not first.path.exists() and second.path.exists()
    here.remove(CONFIG, GENERATION, KIND)
    assert current(there) is None and not there.kinds(CONFIG, GENERATION)
    assert not here.remote.bucket.listing(f"{CONFIG}/generations")
    made = make(there)
    assert current(here) is not None and current(here).digest == made.digest


def test_names_that_are_none_are_refused_before_they_are_keys(s3: S3Server, here: Store) -> None:
    s3.requests.clear()
    for config, generation, kind in (("../x", 0, "a"), ("a", -1, "a"), ("a", 0, "../../b")):
        for ask in (here.current, here.last_good, here.artefacts, here.create, here.remove):
            with pytest.raises(InvalidNameError):
                ask(config, generation, kind)
    for ask in (here.generations, here.switches, here.champion, here.champions, here.signs):
        with pytest.raises(InvalidNameError):
            ask("../x")
    with pytest.raises(InvalidNameError):
        here.read_plan("../x", 0)
    assert not any(".." in one.key + one.query for one in s3.requests)


# --- races --------------------------------------------------------------------------------------


def test_of_many_landings_the_one_named_last_is_current(
    tmp_path: Path, bucket_url: str, here: Store
) -> None:
    stores = [Store(tmp_path / f"machine-{n}", bucket_url) for n in range(6)]
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda n: make(stores[n], {"n": b"%d" % n}), range(6)))
    last = max(made, key=lambda one: one.path.name)
    for store in (here, *stores):
        found = current(store)
        assert found is not None and found.digest == last.digest
    assert len(here.artefacts(CONFIG, GENERATION, KIND)) == 6


def test_a_pointer_that_moves_while_it_is_moved_stays_with_the_later(
    s3: S3Server, here: Store, there: Store
) -> None:
    make(here)
    late: list[Artefact] = []

    def overtaken(request: Request) -> None:
        if request.method == "PUT" and request.key.endswith("current.json") and not late:
            s3.before = lambda request: None
            late.append(make(there, OTHER))  # lands while the other is at its pointer

    s3.before = overtaken
    make(here, {"n": b"1"})
    assert late
    for store in (here, there):
        found = current(store)
        assert found is not None and found.digest == late[0].digest


def test_a_landing_is_named_behind_one_of_a_clock_that_is_ahead(
    here: Store, there: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datetime import UTC, datetime, timedelta

    import ringrift_pipeline.store.draft as drafting

    class Ahead(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(UTC) + timedelta(days=1)

    with monkeypatch.context() as patch:
        patch.setattr(drafting, "datetime", Ahead)
        make(here)
    made = make(there, OTHER)
    for store in (here, there):
        found = current(store)
        assert found is not None and found.digest == made.digest


def test_one_of_many_plans_holds(tmp_path: Path, bucket_url: str, here: Store) -> None:
    stores = [here, *(Store(tmp_path / f"machine-{n}", bucket_url) for n in range(5))]
    with ThreadPoolExecutor(6) as pool:
        told = list(pool.map(lambda n: stores[n].write_plan(CONFIG, 0, {"seed": n}), range(6)))
    assert len({plan["seed"] for plan in told}) == 1
    for store in stores:
        assert store.read_plan(CONFIG, 0) == told[0]
        assert store.generations(CONFIG) == [0] and store.configs() == [CONFIG]


def test_promotions_of_many_are_one_history(tmp_path: Path, bucket_url: str, here: Store) -> None:
    stores = [here, *(Store(tmp_path / f"machine-{n}", bucket_url) for n in range(3))]
    made = []
    for n in range(4):
        with here.create(CONFIG, n, "ema_model") as draft:
            (draft / "model").write_bytes(b"%d" % n)
        made.append(draft.artefact)

    def promote(n: int) -> None:
        store = stores[n]
        store.promote(CONFIG, n, store.require(CONFIG, n, "ema_model"), {"gate": n})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(promote, range(4)))
    history = here.champions(CONFIG)
    assert sorted(one.generation for one in history) == [0, 1, 2, 3]
    for store in stores:
        assert store.champions(CONFIG) == [
            type(one)(**{**one.__dict__, "path": store.root / one.path.relative_to(here.root)})
            for one in history
        ]
        champion = store.champion(CONFIG)
        assert champion is not None and champion.generation == history[-1].generation
        assert store.open(champion.path).digest == champion.digest
    promote(history[0].generation)  # a late repeat dethrones nobody
    assert here.champion(CONFIG) == history[-1] and len(here.champions(CONFIG)) == 4
    first = history[0].generation
    here.promote(CONFIG, first, made[first], {}, again=True)
    assert stores[1].champion(CONFIG).generation == first and len(here.champions(CONFIG)) == 5


def test_what_was_asked_for_later_stays_wherever(here: Store, there: Store) -> None:
    launched = datetime.now(UTC)
    here.set_switches(CONFIG, loop=True)
    assert there.set_switches(CONFIG, asked_at=launched, loop=False, nightly=False).paused == (
        "nightly",
    )


def test_switches_of_two_are_both_kept(here: Store, there: Store) -> None:
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(here.set_switches, CONFIG, loop=False)
        other = pool.submit(there.set_switches, CONFIG, nightly=False)
        one.result(), other.result()
    assert here.switches(CONFIG).paused == there.switches(CONFIG).paused == ("loop", "nightly")


# --- killed while it uploads ---------------------------------------------------------------------

LANDING = """
import sys
from pathlib import Path
from ringrift_pipeline.store import Store
store = Store(sys.argv[1], sys.argv[2])
with store.create("square8_2p", 3, "checkpoint") as draft:
    for name in ("a", "b", "c"):
        (draft / name).write_text(name)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "at", ["/a", "/b", "/manifest.json", "/current.json", "behind /current.json"]
)
def test_killed_in_mid_upload_the_old_one_stays_and_another_lands(
    s3: S3Server, here: Store, there: Store, bucket_url: str, at: str
) -> None:
    old = make(here)
    assert current(there) is not None
    child: list[subprocess.Popen] = []

    def kill(request: Request) -> int | None:
        behind = at.startswith("behind")
        marks = request.key.endswith("sign") if behind else request.key.endswith(at)
        if request.method == "PUT" and marks:
            s3.before = lambda request: None
            os.kill(child[0].pid, signal.SIGKILL)
            return 500  # it did not get there
        return None

    command = [sys.executable, "-c", LANDING, str(here.root), bucket_url]
    process = subprocess.Popen(command)
    child.append(process)
    s3.before = kill
    assert process.wait(timeout=300) == -signal.SIGKILL
    found = current(there)
    assert found is not None
    if at.startswith("behind"):
        assert set(found.files) == {"a", "b", "c"}
    else:
        assert found.digest == old.digest
        assert there.last_good(CONFIG, GENERATION, KIND) == found
    # the machine that was killed, begun again, uploads what is missing of it, no file a second time
    s3.requests.clear()
    here.sweep()
    found = current(there)
    assert found is not None and set(found.files) == {"a", "b", "c"}
    sent = {key.rpartition("/")[2] for key in s3.asked("PUT", found.path.name)}
    before = {"/b": {"a"}, "/manifest.json": {"a", "b", "c"}}.get(at, set())
    assert not sent & before
    made = make(there, OTHER)
    assert current(here) is not None and current(here).digest == made.digest


def test_what_was_not_uploaded_does_not_take_the_place_of_what_landed_since(
    s3: S3Server, here: Store, there: Store
) -> None:
    refuse(s3, "PUT")
    with pytest.raises(BucketError):
        make(impatient(here))
    s3.before = lambda request: None
    later = make(there, OTHER)
    found = current(here)  # uploads the older one on the way
    assert found is not None and found.digest == later.digest
    assert len(there.artefacts(CONFIG, GENERATION, KIND)) == 2


# --- a bucket that refuses -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "seconds"),
    [(500, 4.0), (503, 4.0), pytest.param(503, 60.0, marks=pytest.mark.faults)],
)
def test_a_bucket_that_refuses_for_a_while_is_waited_for(
    s3: S3Server,
    here: Store,
    there: Store,
    caplog: pytest.LogCaptureFixture,
    status: int,
    seconds: float,
) -> None:
    make(here)
    until = time.monotonic() + seconds

    def busy(request: Request) -> int | None:
        return status if request.method == "PUT" and time.monotonic() < until else None

    s3.before = busy
    made = make(impatient(here, 300.0), OTHER)
    assert current(there) is not None and current(there).digest == made.digest
    assert "refuses uploading" in caplog.text and "of 300 s" in caplog.text


def test_refused_for_too_long_nothing_is_lost(s3: S3Server, here: Store, there: Store) -> None:
    old = make(here)
    refuse(s3, "PUT")
    with pytest.raises(BucketError, match=r"SlowDown.*What to do: start .* again once") as caught:
        make(impatient(here, 0.2), OTHER)
    told = f"lies in {here.root} on {socket.gethostname()}, and is uploaded when this machine next asks"
    assert told in str(caught.value) and "another machine makes it again" in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert current(there).digest == old.digest
    with pytest.raises(BucketError):
        current(impatient(here))  # still: what is current here is not known
    refuse(s3, "GET", "PUT")
    with pytest.raises(BucketError) as caught:
        current(impatient(there))
    assert "lies in" not in str(caught.value)  # nothing of it is there
    s3.before = lambda request: None
    s3.requests.clear()
    found = current(here)
    assert found is not None and found.files.keys() == OTHER.keys()
    assert current(there).digest == found.digest
    assert len(s3.asked("PUT", "model.bin")) == 1


def test_work_that_has_so_long_asks_no_longer(
    s3: S3Server, here: Store, there: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sensor's tick: Dagster gives it up after a minute."""
    made = make(here)
    short = Store(there.root, there.remote.bucket.url, within=0.5)
    found = current(short)
    assert found is not None and found.digest == made.digest
    refuse(s3, "GET")
    with pytest.raises(BucketError):
        current(short)  # with the usual patience of five minutes
    s3.before = lambda request: None
    s3.requests.clear()
    with pytest.raises(BucketError, match="no time left"):
        current(short)
    assert s3.requests == []
    assert current(there) is not None


def test_a_server_that_is_silent_is_left_in_time(s3: S3Server, here: Store, there: Store) -> None:
    make(here)
    stop = threading.Event()

    def silent(request: Request) -> int | None:
        stop.wait()
        return None

    s3.before = silent
    try:
        with pytest.raises(BucketError):
            current(Store(there.root, there.remote.bucket.url, within=0.5))
    finally:
        stop.set()


def test_a_silent_server_takes_no_more_patience_than_one_that_refuses(
    s3: S3Server, here: Store, there: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a try takes counts as well as the waits: after two tries a third is not begun."""
    make(here)
    asked = impatient(there, 1.0)
    monkeypatch.setattr("ringrift_pipeline.store.bucket.ANSWER", 1.0)
    stop, tries = threading.Event(), []
    ask = fsspec.asyn.sync

    def counted(*args: Any, **kwargs: Any) -> Any:
        tries.append(args)
        return ask(*args, **kwargs)

    def silent(request: Request) -> int | None:
        stop.wait()
        return None

    monkeypatch.setattr(fsspec.asyn, "sync", counted)
    s3.before = silent
    try:
        with pytest.raises(BucketError, match="for [1-9] s"):
            current(asked)
    finally:
        stop.set()
    assert len(tries) == 2


def test_nobody_listens(tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("RINGRIFT_BUCKET_PATIENCE", "0")
    with pytest.raises(BucketError, match="127.0.0.1:9"):
        Store(tmp_path / "data", "s3://nowhere").generations(CONFIG)


def test_an_answer_that_was_lost_is_no_lost_race(
    s3: S3Server, here: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write arrives, the answer does not, and the second try finds the condition broken."""
    monkeypatch.setattr("ringrift_pipeline.store.bucket.ANSWER", 5.0)
    moto = s3._moto
    lost: list[str] = []

    def loses(environ, start):
        answer = list(moto(environ, start))
        key = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] == "PUT" and key.endswith("plans/0000.json") and not lost:
            lost.append(key)
            raise ConnectionError("gone")
        return answer

    s3._moto = loses
    try:
        assert here.write_plan(CONFIG, 0, {"seed": 1}) == {"seed": 1}
    finally:
        s3._moto = moto
    assert lost


def test_a_refused_key_is_told_at_once(s3: S3Server, here: Store) -> None:
    make(here)
    refuse(s3, "PUT", status=403)
    began = time.monotonic()
    with pytest.raises(BucketError, match="AWS_ACCESS_KEY_ID"):
        make(impatient(here, 3600.0))
    assert time.monotonic() - began < 600.0


# --- damage ---------------------------------------------------------------------------------------


def overwrite(store: Store, key: str, data: bytes) -> None:
    store.remote.bucket.write(key, data)


@pytest.mark.parametrize(
    "harm",
    [
        lambda store, made: overwrite(
            store, key_of(made, "model.bin"), b"X" + FILES["model.bin"][1:]
        ),
        lambda store, made: overwrite(store, key_of(made, "model.bin"), b"short"),
        lambda store, made: store.remote.bucket.delete(key_of(made, "empty")),
        lambda store, made: overwrite(store, key_of(made, "manifest.json"), b"{}"),
    ],
    ids=["flipped", "cut", "missing", "manifest"],
)
def test_damage_in_the_bucket_is_noticed_and_put_aside(
    here: Store, there: Store, harm: Callable[[Store, Artefact], None]
) -> None:
    good, bad = make(here, OTHER), make(here)
    harm(here, bad)
    with pytest.raises(CorruptArtefactError, match="in the bucket") as caught:
        current(there)
    assert not (there.root / key_of(bad)).exists()
    assert current(there) is None
    moved = here.remote.bucket.listing(f"{CONFIG}/quarantine")
    assert any(bad.path.name in name and name.endswith("model.bin") for name in moved)
    assert any(name.endswith(".reason.json") for name in moved)
    assert not here.remote.bucket.listing(key_of(bad))
    assert "quarantine" in str(caught.value)
    found = there.last_good(CONFIG, GENERATION, KIND)
    assert found is not None and found.digest == good.digest
    assert current(here).digest == good.digest


def test_damage_on_the_way_harms_nobody_else(
    here: Store, there: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(here)
    download, torn = Bucket.download, []

    def tears_the_first(self: Bucket, key: str, path: Path, size: int) -> None:
        download(self, key, path, size)
        if not torn and path.name == "model.bin":
            torn.append(path.write_bytes(path.read_bytes()[:-1] + b"?"))

    monkeypatch.setattr(Bucket, "download", tears_the_first)
    found = current(there)
    assert torn and found is not None and found.file("model.bin").read_bytes() == FILES["model.bin"]
    assert there.remote is not None and there.remote.quarantined(CONFIG) == {}


def test_a_machine_that_damages_what_it_writes_takes_nothing_from_the_others(
    here: Store, there: Store, tmp_path: Path, bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(here, OTHER)
    made = make(here)
    before = here.remote.bucket.listing("")
    download = Bucket.download

    def tears(self: Bucket, key: str, path: Path, size: int) -> None:
        download(self, key, path, size)
        if path.is_relative_to(there.root) and path.name == "model.bin":
            path.write_bytes(path.read_bytes()[:-1] + b"?")

    monkeypatch.setattr(Bucket, "download", tears)
    for ask in (there.current, there.last_good):  # which goes back to no older one
        with pytest.raises(UnreliableHostError, match=re.escape(socket.gethostname())) as caught:
            ask(CONFIG, GENERATION, KIND)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert here.remote.bucket.listing("") == before
    third = current(Store(tmp_path / "third", bucket_url))
    assert third is not None and third.digest == made.digest


def test_a_machine_that_damages_it_in_another_way_each_time_proves_nothing(
    here: Store, there: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bad memory: what is hashed without being written is damaged as well."""
    make(here)
    before = here.remote.bucket.listing("")
    monkeypatch.setattr(
        Bucket, "download", lambda self, key, path, size: path.write_bytes(os.urandom(size))
    )
    monkeypatch.setattr(Bucket, "hash", lambda self, key, size: os.urandom(32).hex())
    with pytest.raises(UnreliableHostError):
        current(there)
    assert here.remote.bucket.listing("") == before and current(here) is not None


@pytest.mark.parametrize(
    ("name", "times"), [("manifest.json", 1), ("current.json", 1), ("manifest.json", 3)]
)
def test_a_manifest_and_a_pointer_are_read_again_before_they_count_as_damaged(
    here: Store, there: Store, monkeypatch: pytest.MonkeyPatch, name: str, times: int
) -> None:
    made = make(here)
    before = here.remote.bucket.listing("")
    read, torn = Bucket.read, []

    def tears(self: Bucket, key: str) -> Seen | None:
        seen = read(self, key)
        if seen is None or not key.endswith(name) or len(torn) == times:
            return seen
        torn.append(key)
        return seen._replace(data=seen.data[:-1] + b"%d" % len(torn))

    monkeypatch.setattr(Bucket, "read", tears)
    if times == 3:
        with pytest.raises(UnreliableHostError):
            current(there)
    found = current(there)
    assert len(torn) == times and found is not None and found.digest == made.digest
    assert here.remote.bucket.listing("") == before


def test_damage_here_is_mended_from_the_bucket(here: Store, there: Store) -> None:
    make(here)
    read = current(there)
    (read.path / "model.bin").write_bytes(b"X" + FILES["model.bin"][1:])
    again = current(there)
    assert again == read and again.file("model.bin").read_bytes() == FILES["model.bin"]
    assert list((there.root / CONFIG / "quarantine").iterdir())
    assert current(here) is not None


def test_a_damaged_pointer(here: Store, there: Store) -> None:
    made = make(here)
    overwrite(here, f"{CONFIG}/generations/0003/{KIND}/current.json", b"{}")
    with pytest.raises(CorruptArtefactError, match="seal"):
        current(there)
    assert current(there) is None
    assert there.last_good(CONFIG, GENERATION, KIND).digest == made.digest
    assert current(here).digest == made.digest


def test_damaged_records(here: Store, there: Store, tmp_path: Path, bucket_url: str) -> None:
    here.write_plan(CONFIG, 0, {"seed": 1})
    there.read_plan(CONFIG, 0)
    (there.root / CONFIG / "generations" / "0000" / "plan.json").write_text("{}")
    assert there.read_plan(CONFIG, 0) == {"seed": 1}  # the copy here is read again
    overwrite(here, f"{CONFIG}/plans/0000.json", b"{}")
    fresh = Store(tmp_path / "fresh", bucket_url)
    with pytest.raises(CorruptArtefactError, match="in the bucket"):
        fresh.read_plan(CONFIG, 0)
    with pytest.raises(MissingArtefactError, match="s3://"):
        fresh.read_plan(CONFIG, 1)
    overwrite(here, f"{CONFIG}/switches.json", b"{}")
    with pytest.raises(CorruptArtefactError):
        fresh.switches(CONFIG)
    assert fresh.set_switches(CONFIG, loop=False).paused == ("loop",)
    assert here.switches(CONFIG).paused == ("loop",)
    made = make(here)
    here.promote(CONFIG, GENERATION, made, {})
    overwrite(here, f"{CONFIG}/champions/000000001.json", b"{}")
    with pytest.raises(CorruptArtefactError, match="champions/000000001.json"):
        fresh.champion(CONFIG)


def test_names_in_the_bucket_that_lead_elsewhere(
    here: Store, there: Store, tmp_path: Path, bucket_url: str
) -> None:
    """Whoever can write to the bucket can write any key, and a manifest that fits its own seal."""
    from ringrift_pipeline.store.manifest import _digest, sealed_bytes

    made = make(here)
    client, name = here.remote.bucket._fs, here.remote.bucket.name
    base = f"some/where/{CONFIG}/generations/0003"
    for key in (f"{base}/{KIND}/../../../../up/manifest.json", f"{base}/../evil/current.json"):
        client.call_s3("put_object", Bucket=name, Key=key, Body=b"x")
    client.call_s3("put_object", Bucket=name, Key="some/where/../plans/0000.json", Body=b"x")
    assert there.kinds(CONFIG, GENERATION) == [KIND] and not there.configs()
    assert [one.digest for one in there.artefacts(CONFIG, GENERATION, KIND)] == [made.digest]
    manifest = json.loads((made.path / "manifest.json").read_bytes())
    del manifest["seal"]
    manifest["files"] = {"../../../../../escaped": manifest["files"]["empty"]}
    identity = {name: manifest[name] for name in ("config", "generation", "kind", "files")}
    manifest["digest"] = _digest(identity)
    overwrite(here, key_of(made, "manifest.json"), sealed_bytes(manifest, "manifest"))
    with pytest.raises(CorruptArtefactError, match="leads elsewhere"):
        current(there)
    for pointed in ("..", ".", "a/b", ".hidden", ""):
        data = sealed_bytes({"artefact": pointed, "digest": "0" * 64}, "pointer")
        overwrite(here, f"{CONFIG}/generations/0003/{KIND}/current.json", data)
        with pytest.raises(CorruptArtefactError):
            current(there)
    assert not list(tmp_path.rglob("*escaped*"))
    with pytest.raises(InvalidNameError, match="leads elsewhere"):
        here.remote.bucket.read("../x")


# --- which bucket, which folder --------------------------------------------------------------------


def test_a_server_that_ignores_conditions_is_refused_by_name(
    s3: S3Server, tmp_path: Path, bucket_url: str
) -> None:
    store = Store(tmp_path / "data", bucket_url)
    s3.blind = True
    with pytest.raises(BucketSettingError, match=rf"{bucket_url} at .*If-None-Match"):
        store.generations(CONFIG)
    s3.blind = False
    assert store.generations(CONFIG) == []
    assert not store.remote.bucket.listing("")  # nothing is left of the trial


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize("address", ["https://user:password@server", "user:password@server:9000"])
def test_a_servers_address_with_a_password_is_refused_and_not_repeated(
    variable: str, address: str, tmp_path: Path, bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client would ask in vain until the patience is over, or repeat it."""
    with monkeypatch.context() as patch:
        patch.setenv(variable, address)
        with pytest.raises(
            BucketSettingError, match=f"^{variable} is an address with an @"
        ) as told:
            Store(tmp_path, bucket_url)
        assert "password@" not in str(told.value) and list(tmp_path.iterdir()) == []
    mark = tmp_path / ".bucket" / "bucket.json"  # kept so by an earlier version: another server
    mark.parent.mkdir()
    mark.write_bytes(sealed_bytes({"bucket": bucket_url, "endpoint": address}, mark.name))
    assert Store(tmp_path, bucket_url).generations(CONFIG) == []
    assert b"password" not in mark.read_bytes()


def test_a_folder_is_the_cache_of_one_bucket(tmp_path: Path, here: Store, bucket_url: str) -> None:
    make(here)
    with pytest.raises(BucketSettingError, match=rf"RINGRIFT_BUCKET={bucket_url}"):
        Store(here.root)
    with pytest.raises(BucketSettingError, match="not of s3://another"):
        Store(here.root, "s3://another").generations(CONFIG)
    plain = Store(tmp_path / "plain")
    make(plain)
    with pytest.raises(BucketSettingError, match="holds generations"):
        Store(plain.root, bucket_url).generations(CONFIG)
    assert current(plain) is not None


def test_the_environment_names_the_bucket(
    tmp_path: Path, bucket_url: str, here: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(here)
    monkeypatch.setenv("RINGRIFT_BUCKET", bucket_url + "/")
    found = current(Store(tmp_path / "other"))
    assert found is not None and found.digest == made.digest
    for wrong in ("s3:/x", "http://x", "s3://Up", "s3://a/../b", "s3://bucket/a b"):
        monkeypatch.setenv("RINGRIFT_BUCKET", wrong)
        with pytest.raises(BucketSettingError, match="names no bucket"):
            Store(tmp_path / "other")
    monkeypatch.setenv("RINGRIFT_BUCKET", bucket_url)
    monkeypatch.setenv("RINGRIFT_BUCKET_PATIENCE", "soon")
    with pytest.raises(BucketSettingError, match="RINGRIFT_BUCKET_PATIENCE"):
        Store(tmp_path / "other")


def test_a_bucket_without_a_prefix(tmp_path: Path, bucket_url: str, here: Store) -> None:
    make(here)
    whole = Store(tmp_path / "whole", bucket_url.removesuffix("/some/where"))
    assert whole.configs() == [] and whole.kinds(CONFIG, GENERATION) == []
    whole.write_plan(CONFIG, 12, {"seed": 1})
    made = make(whole)
    again = Store(tmp_path / "again", bucket_url.removesuffix("/some/where"))
    assert again.configs() == [CONFIG] and again.generations(CONFIG) == [12]
    assert again.kinds(CONFIG, GENERATION) == [KIND]
    assert current(again).digest == made.digest
    assert here.configs() == []


def test_no_such_bucket(tmp_path: Path, s3: S3Server) -> None:
    with pytest.raises(BucketError, match="make the bucket"):
        Store(tmp_path / "data", "s3://nobody-made-this").generations(CONFIG)


def test_signs_of_life_are_the_buckets(here: Store, there: Store) -> None:
    assert there.signs(CONFIG) == (None, 0)
    here.write_plan(CONFIG, 0, {})
    first = there.signs(CONFIG)
    make(here)
    second = there.signs(CONFIG)
    assert first[0] is not None and second[0] >= first[0] and first[1] != second[1]
    assert there.signs(CONFIG) == second


# --- room here --------------------------------------------------------------------------------------


def test_the_cache_drops_what_the_bucket_has_and_nothing_else(
    s3: S3Server, here: Store, there: Store
) -> None:
    made = make(here)
    there.require(CONFIG, GENERATION, KIND)
    window = make(there, kind="window")
    refuse(s3, "PUT")
    with pytest.raises(BucketError):
        make(impatient(there), {"only": b"here"}, kind="evaluation")
    s3.before = lambda request: None
    cache = there.remote.cache
    assert cache.trim(0) == []  # all of it was used within the hour
    old = time.time() - 7200.0
    for folder in there.root.glob("*/generations/*/*/*/"):
        os.utime(folder, (old, old))
    os.utime(window.path, (old - 60, old - 60))
    assert cache.trim(10**9) == []
    assert cache.trim(0) == [window.path, there.root / key_of(made)]
    assert there.current(CONFIG, GENERATION, "evaluation").file("only").read_bytes() == b"here"
    assert current(there).file("model.bin").read_bytes() == FILES["model.bin"]
    assert here.current(CONFIG, GENERATION, "evaluation") is not None


def looked_long_ago(store: Store) -> None:
    (mark,) = store.root.glob(".bucket/looked")
    os.utime(mark, (1, 1))


def test_the_cache_keeps_to_its_budget(
    here: Store, there: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(here, {"n": b"x" * 2000}, kind="one")
    make(here, {"n": b"y" * 2000}, kind="two")
    there.require(CONFIG, GENERATION, "one")
    folder = there.root / key_of(first)
    os.utime(folder, (1, 1))
    monkeypatch.setenv("RINGRIFT_CACHE_GB", "0.000003")
    looked_long_ago(there)
    there.require(CONFIG, GENERATION, "two")
    assert not folder.exists()
    monkeypatch.setenv("RINGRIFT_CACHE_GB", "none")
    with pytest.raises(BucketSettingError, match="RINGRIFT_CACHE_GB"):
        there.require(CONFIG, GENERATION, "one")


FETCHING = """
import sys
from ringrift_pipeline.store import Store
Store(sys.argv[1], sys.argv[2]).require("square8_2p", 3, "two")
"""


def test_of_all_processes_one_looks_within_five_minutes(
    here: Store, there: Store, bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step is a process of its own."""
    first = make(here, {"n": b"x" * 2000}, kind="one")
    for kind in ("two", "three"):
        make(here, {"n": b"y" * 2000}, kind=kind)
    there.require(CONFIG, GENERATION, "one")
    folder = there.root / key_of(first)
    os.utime(folder, (1, 1))
    monkeypatch.setenv("RINGRIFT_CACHE_GB", "0.000003")
    command = [sys.executable, "-c", FETCHING, str(there.root), bucket_url]
    subprocess.run(command, check=True, timeout=300)
    assert folder.exists()
    looked_long_ago(there)
    there.require(CONFIG, GENERATION, "three")
    assert not folder.exists()


def test_what_lands_keeps_the_cache_to_its_budget(
    here: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(here, {"n": b"x" * 2000}, kind="one")
    os.utime(first.path, (1, 1))
    monkeypatch.setenv("RINGRIFT_CACHE_GB", "0.000003")
    make(here, {"n": b"y" * 2000}, kind="two")
    assert first.path.exists()  # somebody has looked just now: the landing before
    looked_long_ago(here)
    third = make(here, {"n": b"z" * 2000}, kind="three")
    assert not first.path.exists() and third.path.is_dir()
    assert here.require(CONFIG, GENERATION, "one").digest == first.digest


def test_leftovers_go_though_the_bucket_refuses(
    s3: S3Server, here: Store, bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RINGRIFT_BUCKET", bucket_url)
    refuse(s3, "PUT")
    with pytest.raises(BucketError):
        make(impatient(here))
    with Writer(here.root, CONFIG, KIND) as dead:
        dead.kill()
        assert dead.draft.is_dir()
        with pytest.raises(BucketError):
            impatient(here).sweep()
        assert not dead.draft.exists()
    assert here.remote.pending.places()


def test_what_the_disk_cannot_read_is_uploaded_later(
    s3: S3Server, here: Store, there: Store
) -> None:
    refuse(s3, "PUT")
    with pytest.raises(BucketError):
        make(impatient(here))
    s3.before = lambda request: None
    with unreadable(here.root):
        here.sweep()
    assert here.remote.pending.places() and current(there) is None
    here.sweep()
    assert not here.remote.pending.places() and current(there) is not None


def test_a_stopped_thread_leaves_no_lock(here: Store, there: Store) -> None:
    """An upload by one thread, and a reader who does not wait for it."""
    made = make(here)
    place = here.remote.place(made.path)
    with here.remote.pending.added(place):
        done = threading.Thread(target=current, args=(here,))
        done.start()
        done.join(60)
        assert not done.is_alive()
    here.sweep()
    assert not here.remote.pending.places()


def test_without_a_bucket_nothing_of_it_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from ringrift_pipeline.store import Store\n"
        f"store = Store({str(tmp_path)!r})\n"
        "with store.create('square8_2p', 0, 'kind') as draft: (draft / 'a').write_text('a')\n"
        "assert store.current('square8_2p', 0, 'kind')\n"
        "wrong = {'s3fs', 'upath', 'fsspec', 'botocore', 'aiobotocore', 'tenacity'}\n"
        "wrong |= {'ringrift_pipeline.store.remote'}\n"
        "print(wrong & set(sys.modules))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "RINGRIFT_BUCKET"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == "set()"
