"""Fixtures of the store's tests."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from .s3_server import S3Server


@pytest.fixture(scope="module")
def no_waiting_for_the_disk() -> Iterator[None]:
    """Thousands of real fsyncs would take a minute on a busy disk; test_store_crash.py does them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def s3_of_the_session() -> Iterator[S3Server]:
    for package in ("s3fs", "upath", "tenacity"):
        pytest.importorskip(package, reason=f"{package} is not installed (the extra 'bucket')")
    pytest.importorskip(
        "moto.moto_server", reason="moto[server] is not installed (the extra 'dev')"
    )
    server = S3Server()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.address)
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.delenv("AWS_PROFILE", raising=False)
        patch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        yield server
    server.close()


@pytest.fixture
def s3(s3_of_the_session: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server as it should be, with nobody told of a bucket by the environment."""
    server = s3_of_the_session
    monkeypatch.delenv("RINGRIFT_BUCKET", raising=False)
    server.requests.clear()
    yield server
    server.before = lambda request: None
    server.blind = False


@pytest.fixture
def bucket_url(s3: S3Server) -> str:
    """A new bucket, with a prefix."""
    from ringrift_pipeline.store.bucket import Bucket

    name = f"bucket-{secrets.token_hex(6)}"
    Bucket(f"s3://{name}")._fs.call_s3("create_bucket", Bucket=name)
    return f"s3://{name}/some/where"
