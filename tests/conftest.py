"""What every room's tests share."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from s3_server import S3Server

REPOSITORY = Path(__file__).resolve().parent.parent
TRACES = REPOSITORY.parent / "shared" / "traces"

# How long an example takes says something of the machine, and nothing of what is tested.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session")
def traces_folder() -> Path:
    """Folder of the reference traces; the test is skipped where they are absent."""
    if not TRACES.is_dir():
        pytest.skip(f"the reference traces are not here ({TRACES} is missing)")
    return TRACES


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, driven by Playwright; the test is skipped where either is missing.

    A module's own: while one is driven its event loop counts as running, so that a process can drive
    no second one, and other tests no loop of their own.
    """
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    named = os.environ.get("RINGRIFT_CHROMIUM")
    path = named or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no Chromium here: install it or name it in RINGRIFT_CHROMIUM")
    with api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def s3_of_the_session() -> Iterator[S3Server]:
    for package in ("s3fs", "upath", "tenacity"):
        pytest.importorskip(package, reason=f"{package} is not installed (the extra 'bucket')")
    pytest.importorskip("moto.moto_server", reason="moto[server] is not installed (make services)")
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
