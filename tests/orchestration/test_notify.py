"""Notifiers against a real HTTP server, and the outbox that keeps what nobody has taken yet."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ringrift_pipeline.orchestration import notify
from ringrift_pipeline.orchestration.notify import (
    URL_VARIABLE,
    Alert,
    LogNotifier,
    NotifierResource,
    NotifyError,
    WebhookNotifier,
    WebhookUrlError,
    check_webhook,
)
from ringrift_pipeline.orchestration.outbox import REFUSED, TOLD, WAITING, Outbox
from ringrift_pipeline.store import Store

from .hooks import Hook, an_alert, quick

# --- the web hook -------------------------------------------------------------------------------


def test_the_payload_is_as_documented(hook: Hook) -> None:
    alert = an_alert(
        config="square8_2p", generation="0003", run_id="run-1", details={"step": "train"}
    )
    quick(hook.url).notify(alert)
    ((path, content, body),) = hook.got
    assert path == "/hook/s3cret?token=1" and content == "application/json"
    assert body == {
        "version": 1,
        "id": alert.id,
        "kind": "run_failed",
        "title": "square8_2p generation 0003 failed",
        "text": "square8_2p generation 0003 failed\nstep train: no room",
        "time": alert.time,
        "config": "square8_2p",
        "generation": "0003",
        "run_id": "run-1",
        "details": {"step": "train"},
    }
    assert alert.id == an_alert().id != an_alert("run-2").id


def test_a_server_in_trouble_is_asked_again_a_few_times(hook: Hook) -> None:
    hook.answers = [500, 503, 200]
    quick(hook.url).notify(an_alert())
    assert len(hook.got) == 3
    hook.answers = [429]
    with pytest.raises(NotifyError, match=r"answered 429 \(3 attempts\)") as caught:
        quick(hook.url).notify(an_alert())
    assert len(hook.got) == 6 and not caught.value.refused


@pytest.mark.parametrize(("status", "refused"), [(400, True), (422, True), (404, False)])
def test_what_is_refused_is_not_asked_again(hook: Hook, status: int, refused: bool) -> None:
    hook.answers = [status]
    with pytest.raises(NotifyError, match=f"answered {status}") as caught:
        quick(hook.url).notify(an_alert())
    assert len(hook.got) == 1
    assert caught.value.refused is refused  # 404: the address is wrong, which can be put right


def test_a_server_that_is_down_is_an_error_without_the_address(hook: Hook) -> None:
    url = hook.url
    hook.close()
    with pytest.raises(NotifyError, match="3 attempts") as caught:
        quick(url).notify(an_alert())
    assert "s3cret" not in str(caught.value) and "s3cret" not in repr(quick(url))


@pytest.mark.parametrize("slow", ["delay", "dribble"])
def test_a_slow_server_costs_a_bounded_time(hook: Hook, slow: str) -> None:
    setattr(hook, slow, 5.0 if slow == "delay" else 0.1)
    began = time.monotonic()
    with pytest.raises(NotifyError, match=r"0\.3 s|timed out"):
        quick(hook.url, timeout=0.3, attempts=2).notify(an_alert())
    assert time.monotonic() - began < 3.0
    assert len(hook.got) == 2


class SlowNames:
    """A name server that answers when it is let; ``given_up`` counts look-ups that did not wait for
    that."""

    def __init__(self, patience: float) -> None:
        self.answers = threading.Event()
        self.asked = self.given_up = 0
        self._patience, self._real = patience, socket.getaddrinfo

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        self.asked += 1
        self.given_up += not self.answers.wait(self._patience)
        return self._real(*arguments, **more)


def test_a_name_that_nobody_finds_costs_a_bounded_time(
    hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = SlowNames(5.0)
    monkeypatch.setattr(socket, "getaddrinfo", names)
    with pytest.raises(
        NotifyError, match=r"its address was not found within 0\.1 s \(2 attempts\)"
    ):
        quick(hook.url, timeout=0.1, attempts=2).notify(an_alert())
    assert names.asked == 1 and names.given_up == 0  # both waited for the same look-up
    names.answers.set()
    monkeypatch.undo()
    quick(hook.url).notify(an_alert("run-2"))
    assert len(hook.got) == 1  # what was given up is not posted later


def test_a_name_that_takes_several_attempts_is_found(
    hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the first of two name servers is down."""
    names = SlowNames(30.0)
    monkeypatch.setattr(socket, "getaddrinfo", names)
    answer = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: names.answers.set())
    monkeypatch.setattr(notify, "time", answer)
    quick(hook.url, timeout=1.0).notify(an_alert())
    assert names.asked == 1 and len(hook.got) == 1


def test_a_name_that_there_is_not_is_looked_for_again(
    hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo
    answers = [socket.gaierror("Temporary failure in name resolution"), UnicodeError("too long")]

    def find(*arguments: Any, **more: Any) -> Any:
        if answers:
            raise answers.pop(0)
        return real(*arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", find)
    with pytest.raises(NotifyError, match="Temporary failure"):
        quick(hook.url, attempts=1).notify(an_alert())
    quick(hook.url, attempts=2).notify(an_alert())
    assert not answers and len(hook.got) == 1


def test_of_several_addresses_the_first_that_answers_is_taken(
    hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    (good,) = socket.getaddrinfo(*hook.server.server_address[:2], type=socket.SOCK_STREAM)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        refusing = (*good[:4], closed.getsockname())
    odd = (-1, *good[1:])  # of a family that this machine does not have
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [odd, refusing, good])
    quick(hook.url, attempts=1).notify(an_alert())
    assert len(hook.got) == 1
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [])
    with pytest.raises(NotifyError, match="its name has no address"):
        quick(hook.url, attempts=1).notify(an_alert())


@pytest.fixture
def secure_hook(hook: Hook, tmp_path: Path) -> Iterator[Hook]:
    """With TLS, and a certificate of its own, ``tmp_path / "cert.pem"``."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here: apt install openssl")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    request += ["-subj", "/CN=hook", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*request, "-keyout", key, "-out", cert], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    hook.server.socket = context.wrap_socket(hook.server.socket, server_side=True)
    yield hook


def test_with_tls_the_server_must_be_who_it_should(
    secure_hook: Hook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = secure_hook.url.replace("http://127.0.0.1", "https://localhost")
    with pytest.raises(NotifyError, match="certificate verify failed"):
        quick(url, attempts=1, timeout=10.0).notify(an_alert())
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    quick(url, attempts=1, timeout=10.0).notify(an_alert())
    with pytest.raises(NotifyError, match="not valid for '127.0.0.1'"):
        quick(url.replace("localhost", "127.0.0.1"), attempts=1, timeout=10.0).notify(an_alert())
    assert len(secure_hook.got) == 1


def test_a_server_that_begins_no_tls_costs_a_bounded_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(NotifyError, match=r"no answer within 0\.3 s|timed out"):
            quick(url, timeout=0.3, attempts=1).notify(an_alert())


def test_all_attempts_end_within_a_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    given: list[float] = []

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds

    def post(self: WebhookNotifier, body: bytes, seconds: float) -> int:
        given.append(seconds)
        wait(seconds)
        raise TimeoutError(f"no answer within {seconds:g} s")

    monkeypatch.setattr(notify, "time", SimpleNamespace(monotonic=lambda: now, sleep=wait))
    monkeypatch.setattr(WebhookNotifier, "_post", post)
    for timeout, attempts, tried in ((5.0, 3, 3), (15.0, 5, 2), (1.0, 5, 5)):
        began = now
        given.clear()
        with pytest.raises(NotifyError, match=f"{tried} attempts"):
            WebhookNotifier("http://host/", timeout=timeout, attempts=attempts).notify(an_alert())
        assert len(given) == tried and min(given) > 0.0 and max(given) <= timeout
        assert now - began <= notify.IN_ALL


def test_redirects_are_not_followed(hook: Hook) -> None:
    other = Hook()
    try:
        hook.answers = [302]
        hook.headers = {"Location": other.url}
        with pytest.raises(NotifyError, match="redirects are not followed"):
            quick(hook.url).notify(an_alert())
        assert other.got == [] and len(hook.got) == 1
    finally:
        other.close()


def test_nothing_in_an_alert_decides_where_it_goes(hook: Hook) -> None:
    other = Hook()
    try:
        data = {"webhook_url": other.url, "url": other.url, "Location": other.url}
        alert = an_alert(config=other.url, run_id=f"{other.url}\r\nHost: elsewhere", details=data)
        quick(hook.url).notify(alert)
        assert other.got == [] and len(hook.got) == 1
    finally:
        other.close()


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://host/x",
        "host/path",
        "http://",
        "https://name:word@host/",
        "http://host:port/",
        "http://[host/",
        "http://host/a b",
        "http://host/\r\nX: y",
    ],
)
def test_only_web_addresses_are_taken(url: str) -> None:
    with pytest.raises(WebhookUrlError):
        WebhookNotifier(url)


# --- the resource -------------------------------------------------------------------------------


def test_the_environment_chooses(
    hook: Hook, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    with caplog.at_level(logging.ERROR, "ringrift.alerts"):
        NotifierResource().notify(an_alert())
    assert "generation 0003 failed" in caplog.text and hook.got == []
    monkeypatch.setenv(URL_VARIABLE, hook.url)
    NotifierResource().notify(an_alert())
    assert len(hook.got) == 1
    monkeypatch.setenv(URL_VARIABLE, "nonsense")
    NotifierResource(webhook_url=hook.url).notify(an_alert())
    assert len(hook.got) == 2
    with pytest.raises(WebhookUrlError):
        NotifierResource().notify(an_alert())


def test_an_address_in_the_environment_is_refused_by_the_variables_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for good in ("", "https://host/path"):
        monkeypatch.setenv(URL_VARIABLE, good)
        check_webhook()
    monkeypatch.setenv(URL_VARIABLE, "nonsense")
    with pytest.raises(WebhookUrlError, match=f"{URL_VARIABLE}: .* must be like https://host/path"):
        check_webhook()


def test_the_variables_are_taken_for_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    from ringrift_pipeline.enhancements.training_config import TrainingConfig

    TrainingConfig.load(
        environ={
            URL_VARIABLE: "http://host/",
            "RINGRIFT_TIMEZONE": "UTC",
            "RINGRIFT_DISK_BUDGET_GB": "5",
        }
    )


# --- the outbox ---------------------------------------------------------------------------------


def again(outbox: Outbox) -> Outbox:
    """As another process sees it."""
    return Outbox(Store(outbox.folder.parents[1]))


def test_what_cannot_be_told_waits_until_it_can(outbox: Outbox, hook: Hook) -> None:
    port, url = hook.server.server_address[1], hook.url
    hook.close()
    for number in range(3):
        time_of = f"2026-01-01T00:00:0{number}+00:00"
        assert outbox.put(an_alert(f"run-{number}", time=time_of, run_id=f"run-{number}"))
    said: list[str] = []
    assert outbox.deliver(quick(url, attempts=1), said.append) == []
    assert len(said) == 1 and "kept" in said[0]  # one attempt, not one an alert
    up = Hook(int(port))
    try:
        told = again(outbox).deliver(quick(up.url))
        assert [alert.run_id for alert in told] == ["run-0", "run-1", "run-2"]
        assert [body["run_id"] for _, _, body in up.got] == ["run-0", "run-1", "run-2"]
        assert again(outbox).deliver(quick(up.url)) == [] and len(up.got) == 3
    finally:
        up.close()


def test_an_alert_is_told_once_however_often_it_is_put(outbox: Outbox) -> None:
    told: list[Alert] = []
    notifier = SimpleNamespace(notify=told.append)
    puts: list[bool] = []

    def put() -> None:
        puts.append(again(outbox).put(an_alert()))
        again(outbox).deliver(notifier)

    threads = [threading.Thread(target=put) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outbox.deliver(notifier)
    assert sum(puts) == 1 and len(told) == 1
    assert not outbox.put(an_alert()) and not outbox.deliver(notifier)


def test_a_refused_alert_does_not_hold_up_the_others(outbox: Outbox, hook: Hook) -> None:
    outbox.put(an_alert("run-0", time="2026-01-01T00:00:00+00:00"))
    outbox.put(an_alert("run-1", time="2026-01-01T00:00:01+00:00"))
    hook.answers = [400, 204]
    assert [alert.key for alert in outbox.deliver(quick(hook.url))] == ["run-1"]
    assert not outbox.put(an_alert("run-0"))
    assert len(list((outbox.folder / "refused").iterdir())) == 1


@pytest.mark.parametrize("answer", [204, 400])
def test_a_missing_folder_does_not_tell_again_and_again(
    outbox: Outbox, hook: Hook, answer: int
) -> None:
    """A copy of a data root may lack the folders that were empty."""
    outbox.put(an_alert())
    for state in (TOLD, REFUSED):
        (outbox.folder / state).rmdir()
    hook.answers = [answer]
    for _ in range(2):
        outbox.deliver(quick(hook.url))
    assert len(hook.got) == 1 and outbox.waiting() == 0
    assert not outbox.put(an_alert())
    (outbox.folder / WAITING).rmdir()
    assert outbox.deliver(quick(hook.url)) == [] and outbox.waiting() == 0
    assert outbox.put(an_alert("run-2")) and outbox.waiting() == 1


def test_a_crash_after_the_answer_tells_once_more_with_the_same_id(
    outbox: Outbox, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox.put(an_alert())

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Outbox, "_move", crash)
        with pytest.raises(KeyboardInterrupt):
            outbox.deliver(quick(hook.url))
    for _ in range(3):
        again(outbox).deliver(quick(hook.url))
    assert [body["id"] for _, _, body in hook.got] == [an_alert().id] * 2


def test_a_file_that_is_no_alert_is_laid_aside(outbox: Outbox) -> None:
    outbox.put(an_alert())
    (outbox.folder / "waiting" / "odd.json").write_text('{"kind": 1')
    (outbox.folder / "waiting" / "new.json").write_text('{"from": "a version to come"}')
    said: list[str] = []
    told = outbox.deliver(LogNotifier(), said.append)
    assert len(told) == 1 and sum("laid aside" in line for line in said) == 2


def test_under_an_address_that_cannot_be_used_alerts_wait_and_are_logged_once(
    outbox: Outbox,
    hook: Hook,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(URL_VARIABLE, "nonsense")
    for number in range(2):
        outbox.put(an_alert(f"bad-address-{number}", time=f"2026-01-01T00:00:0{number}+00:00"))
    said: list[str] = []
    with caplog.at_level(logging.ERROR, "ringrift.alerts"):
        for _ in range(3):
            assert again(outbox).deliver(NotifierResource(), said.append) == []
    assert caplog.text.count("generation 0003 failed") == 2 == outbox.waiting()
    assert all("kept" in line and "https://host/path" in line for line in said)
    monkeypatch.setenv(URL_VARIABLE, hook.url)
    assert len(outbox.deliver(NotifierResource())) == 2 == len(hook.got)


def test_the_alerts_of_the_last_day_newest_first(outbox: Outbox, hook: Hook) -> None:
    assert outbox.recent(3600.0, 10) == []
    for number in range(4):
        outbox.put(an_alert(f"run-{number}", time=f"2026-01-01T00:00:0{number}+00:00"))
    hook.answers = [204, 400, 404]
    outbox.deliver(quick(hook.url))
    (outbox.folder / WAITING / "odd.json").write_text("{")
    ages = {0: 50.0, 1: 10.0, 2: 30.0, 3: 4000.0}  # of each alert, seconds
    now = time.time()
    for state in (WAITING, TOLD, REFUSED):
        for number, age in ages.items():
            path = outbox.folder / state / f"{an_alert(f'run-{number}').id}.json"
            if path.exists():
                os.utime(path, (now - age, now - age))
    found = outbox.recent(3600.0, 10)
    assert [one.state for one in found] == [REFUSED, WAITING, TOLD]
    assert [one.id for one in found] == [an_alert(f"run-{number}").id for number in (1, 2, 0)]
    assert {(one.kind, one.title) for one in found} == {("run_failed", an_alert().title)}
    assert outbox.recent(3600.0, 2) == found[:2]
