"""Parts of large files whose upload nobody has finished."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from s3_server import S3Server

from ringrift_pipeline.store import BucketError
from ringrift_pipeline.store.bucket import Bucket
from ringrift_pipeline.store.unfinished import abort_uploads

pytestmark = pytest.mark.services

LONG_AGO = b"2010-11-10T20:48:33.000Z"  # when moto says that every upload was begun
PREFIX = "some/where"
FILE = (
    f"{PREFIX}/square8_2p/generations/0003/checkpoint/20260101T000000.000000Z-00/state.safetensors"
)
ASIDE = f"{PREFIX}/square8_2p/quarantine/0003-checkpoint/state.safetensors"
OTHERS = (
    f"{PREFIX}else/square8_2p/generations/0003/checkpoint/x/state.safetensors",
    f"{PREFIX}/films/holiday.mp4",  # somebody keeps it beside ours
    "generations",
)


@pytest.fixture
def bucket(bucket_url: str) -> Bucket:
    return Bucket(bucket_url, patience=0.0)


def begin(bucket: Bucket, key: str) -> None:
    """As who is killed in the middle of a file leaves it."""
    upload = bucket.ask("beginning", "create_multipart_upload", Key=key)["UploadId"]
    bucket.ask("sending", "upload_part", Key=key, UploadId=upload, PartNumber=1, Body=b"half")


def unfinished(bucket: Bucket) -> list[str]:
    found = bucket.ask("listing", "list_multipart_uploads").get("Uploads") or ()
    return sorted(one["Key"] for one in found)


@pytest.fixture
def begun(s3: S3Server) -> Iterator[Callable[[float], None]]:
    """``begun(hours)``: the server says that all of them were begun so long ago."""
    moto = s3._moto

    def say(hours: float) -> None:
        when = datetime.now(UTC) - timedelta(hours=hours)
        said = f"{when:%Y-%m-%dT%H:%M:%S}.000Z".encode()
        s3._moto = lambda *asked: [part.replace(LONG_AGO, said) for part in moto(*asked)]

    yield say
    s3._moto = moto


def test_ours_go_a_day_after_they_were_begun_and_nobody_elses(
    bucket: Bucket, begun: Callable[[float], None]
) -> None:
    for key in (FILE, ASIDE, *OTHERS):
        begin(bucket, key)
    begun(23.9)
    assert abort_uploads(bucket) == 0
    begun(24.1)
    assert len(unfinished(bucket)) == 5
    assert abort_uploads(bucket) == 2
    assert unfinished(bucket) == sorted(OTHERS)
    assert abort_uploads(bucket) == 0


def test_a_file_that_is_whole_stays(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"whole")
    key = FILE.removeprefix(f"{PREFIX}/")
    bucket.upload(tmp_path / "file", key)
    begin(bucket, FILE)  # and was to be written once more
    assert abort_uploads(bucket) == 1
    found = bucket.read(key)
    assert found is not None and found.data == b"whole"


def test_one_that_is_finished_meanwhile_is_no_error(bucket: Bucket, s3: S3Server) -> None:
    begin(bucket, FILE)
    moto = s3._moto

    def gone(environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        if environ["REQUEST_METHOD"] != "DELETE":
            return moto(environ, start)
        s3._moto = moto
        list(moto(dict(environ), lambda *_: None))
        return moto(environ, start)

    s3._moto = gone
    try:
        assert abort_uploads(bucket) == 0
    finally:
        s3._moto = moto
    assert unfinished(bucket) == []


@pytest.mark.parametrize(("method", "status"), [("GET", 403), ("GET", 501), ("DELETE", 403)])
def test_where_that_may_not_be_done_the_log_says_what_to_do(
    method: str, status: int, bucket: Bucket, s3: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    begin(bucket, FILE)
    s3.before = lambda request: status if request.method == method else None
    assert abort_uploads(bucket) == 0
    assert "AbortIncompleteMultipartUpload" in caplog.text and bucket.url in caplog.text
    s3.before = lambda request: 503 if request.method == method else None
    with pytest.raises(BucketError, match="refuses"):
        abort_uploads(bucket)


def test_all_pages_are_read(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    old = datetime(2020, 1, 1, tzinfo=UTC)

    def page(self: Bucket, what: str, method: str, **arguments: Any) -> dict[str, Any]:
        asked.append({"method": method, **arguments})
        if method != "list_multipart_uploads":
            return {}
        number = sum(one["method"] == method for one in asked)
        found = {"Key": f"{FILE}{number}", "UploadId": str(number), "Initiated": old}
        more = {"IsTruncated": True, "NextKeyMarker": found["Key"], "NextUploadIdMarker": "id"}
        return {"Uploads": [found], **(more if number < 3 else {"IsTruncated": False})}

    monkeypatch.setattr(Bucket, "ask", page)
    assert abort_uploads(bucket) == 3
    listed = [one for one in asked if one["method"] == "list_multipart_uploads"]
    assert [one.get("KeyMarker") for one in listed] == [None, f"{FILE}1", f"{FILE}2"]
