"""Redis with TLS: both of Celery's clients look at its certificate."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import until

from .cluster import free_port

pytestmark = pytest.mark.services


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """That of a Redis with a certificate of its own, ``tmp_path / "cert.pem"``."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here: apt install openssl")
    key, cert, port = tmp_path / "key.pem", tmp_path / "cert.pem", free_port()
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    request += ["-subj", "/CN=keeper", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*request, "-keyout", key, "-out", cert], check=True, capture_output=True)
    server = ["redis-server", "--port", "0", "--tls-port", str(port), "--requirepass", "secret"]
    server += ["--tls-cert-file", str(cert), "--tls-key-file", str(key), "--tls-auth-clients", "no"]
    server += ["--save", "", "--dir", str(tmp_path), "--bind", "127.0.0.1"]
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(server, stdout=log, stderr=log)
    try:
        until(lambda: b"Ready to accept" in (tmp_path / "log").read_bytes(), "Redis is ready", 30.0)
        yield f"rediss://:secret@127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait()


def application(address: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is made of an address in the environment."""
    monkeypatch.setenv("RINGRIFT_EXECUTOR", "celery")  # the import says so, for all that follows
    monkeypatch.setenv("RINGRIFT_CELERY_BROKER", address)
    monkeypatch.delenv("RINGRIFT_CELERY_BACKEND", raising=False)
    from ringrift_pipeline.orchestration.celery_app import make_celery
    from ringrift_pipeline.orchestration.celery_settings import CelerySettings

    return make_celery(CelerySettings.from_environment())


def test_a_certificate_that_is_known_is_taken(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = application(f"{address}?ssl_ca_certs={tmp_path / 'cert.pem'}", monkeypatch)
    app.backend.store_result("a task", None, "SENT")
    assert app.backend.get_task_meta("a task", cache=False)["status"] == "SENT"
    with app.connection_for_read() as connection:
        connection.ensure_connection(max_retries=1)


def test_one_that_nobody_knows_is_refused_by_both(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = application(address, monkeypatch)
    with pytest.raises(Exception, match="certificate verify failed"):
        app.backend.client.ping()
    with (
        pytest.raises(Exception, match="certificate verify failed"),
        app.connection_for_read() as connection,
    ):
        connection.default_channel._size("selfplay")
