"""The web hook cannot be turned against other addresses by what alerts hold or servers answer, and
no file among the alerts stops them.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from ringrift_pipeline.orchestration.damage import tell_damage
from ringrift_pipeline.orchestration.notify import LogNotifier, NotifyError
from ringrift_pipeline.orchestration.outbox import Outbox
from ringrift_pipeline.store import Store

from .hooks import Hook, an_alert, quick

ADDRESSES = """
import json, socket, sys
from ringrift_pipeline.orchestration.notify import Alert, NotifyError, WebhookNotifier

seen = []
def watch(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        seen.append([event, arguments[0]])
    elif event in ("socket.connect", "socket.sendto", "urllib.Request"):
        seen.append([event, list(arguments[1]) if event == "socket.connect" else str(arguments[1:])])
    elif event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn"):
        seen.append([event, str(arguments)])
sys.addaudithook(watch)
notifier = WebhookNotifier(sys.argv[1], timeout=5.0, attempts=1)
for alert in json.load(sys.stdin):
    try:
        notifier.notify(Alert(**alert))
    except NotifyError:
        pass
print(json.dumps(seen))
"""
INTERNAL = (
    "http://169.254.169.254/latest/meta-data/", "http://localhost:22/", "http://[::1]:80/",
    "http://2130706433/", "http://internal.example/", "file:///etc/passwd", "gopher://127.0.0.1:70/_x",
    "//127.0.0.1/", "http://user@10.0.0.1/\r\nHost: 10.0.0.1\r\n\r\nGET /", "$(curl 10.0.0.1)",
)  # fmt: skip


def connections(url: str, alerts: list[dict[str, Any]]) -> list[list[Any]]:
    """Every name that a process looks up and every address that it connects to, telling alerts."""
    # proxies are part of the environment of whoever runs this, and are not asked either
    proxies = {name: "http://192.0.2.1:3128" for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY")}
    done = subprocess.run(
        [sys.executable, "-c", ADDRESSES, url],
        input=json.dumps(alerts),
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **proxies},
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def test_one_address_is_asked_whatever_the_data_says(hook: Hook) -> None:
    alerts = []
    for text in INTERNAL:
        details = {
            "url": text,
            "webhook_url": text,
            "error": text,
            text: [text, {"Location": text}],
        }
        alerts.append(
            {
                "kind": text, "key": text, "title": text, "text": text, "config": text,
                "generation": text, "run_id": text, "time": text, "details": details,
            }
        )  # fmt: skip
    host, port = hook.server.server_address[:2]
    seen = connections(hook.url, alerts)
    assert len(hook.got) == len(INTERNAL)
    assert {path for path, _, _ in hook.got} == {"/hook/s3cret?token=1"}
    assert [body["title"] for _, _, body in hook.got] == list(INTERNAL)
    asked = [address for event, address in seen if event == "socket.connect"]
    assert asked == [[host, port]] * len(INTERNAL)
    assert {tuple(one) for one in seen if one[0] != "socket.connect"} <= {
        ("socket.getaddrinfo", host)
    }


@pytest.mark.parametrize("to", ["http://127.0.0.1:{port}/", "//127.0.0.1:{port}/", "/elsewhere"])
def test_an_answer_sends_nobody_elsewhere(hook: Hook, to: str) -> None:
    """Not to an internal address, and not to another path of the same one."""
    statuses = [300, 301, 302, 303, 307, 308]
    other = Hook()
    try:
        port = other.server.server_address[1]
        hook.answers = list(statuses)
        hook.headers = {
            "Location": to.format(port=port),
            "Refresh": f"0; url=http://127.0.0.1:{port}/",
            "Content-Location": f"http://127.0.0.1:{port}/",
            "Alt-Svc": f'h2="127.0.0.1:{port}"',
            "Set-Cookie": "x=y",
        }
        alerts = [
            {"kind": "k", "key": "k", "title": str(status), "text": "t"} for status in statuses
        ]
        seen = connections(hook.url, alerts)
        assert other.got == []
        assert [body["title"] for _, _, body in hook.got] == [str(status) for status in statuses]
        assert hook.answers == statuses[-1:]  # each was given once
        asked = ["socket.connect", list(hook.server.server_address[:2])]
        assert [one for one in seen if one[0] == "socket.connect"] == [asked] * len(statuses)
    finally:
        other.close()


class Endless:
    """A server that answers every request with the same bytes, again and again."""

    def __init__(self, piece: bytes, first: bytes = b"") -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}/"
        self.piece, self.first = piece, first
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.recv(65536)
                connection.sendall(self.first)
                while True:
                    connection.sendall(self.piece)


ENDLESS = {
    "interim answers": (b"HTTP/1.1 100 Continue\r\n\r\n", b""),
    "a status line": (b"x" * 65536, b""),
    "headers": (b"X-Header: value\r\n" * 1000, b"HTTP/1.1 200 OK\r\n"),
    "one header": (b"x" * 65536, b"HTTP/1.1 200 OK\r\nX-Header: "),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.9\r\n", b""),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_an_endless_answer_ends(what: str) -> None:
    piece, first = ENDLESS[what]
    server = Endless(piece, first)
    try:
        with pytest.raises(NotifyError):
            quick(server.url, attempts=1).notify(an_alert())
    finally:
        server.listening.close()


def test_an_endless_body_is_not_read(hook: Hook) -> None:
    server = Endless(b"x" * 65536, b"HTTP/1.1 200 OK\r\n\r\n")
    try:
        quick(server.url, attempts=1).notify(an_alert())
    finally:
        server.listening.close()


def test_a_launch_cannot_name_the_address() -> None:
    """The resource is the sensors' alone: no job takes it, so that no run's configuration has it."""
    from ringrift_pipeline.definitions import defs

    for job in defs.get_repository_def().get_all_jobs():
        assert "notifier" not in job.get_required_resource_defs(), job.name


def nested(count: int) -> list[Any]:
    """An empty list in so many others: JSON of 600 can be read, and not everything can go as deep."""
    made: list[Any] = []
    for _ in range(count):
        made = [made]
    return made


BAD_ALERTS = {
    "another's name": lambda good: json.dumps({**good, "key": "run-2"}),
    "no text": lambda good: json.dumps({**good, "title": None}),
    "no time": lambda good: json.dumps({**good, "time": 7}),
    "no object": lambda good: "[1]",
    "a list of lists": lambda good: "[" * 100_000,
    "600 lists": lambda good: json.dumps({**good, "details": {"x": nested(600)}}),
    "no number": lambda good: json.dumps({**good, "details": {"x": float("nan")}}),
    "half": lambda good: json.dumps(good)[:40],
    "too much": lambda good: json.dumps({**good, "text": "x" * 2_000_000}),
    "no UTF-8": lambda good: b"\xff\xfe",
}


@pytest.mark.parametrize("what", BAD_ALERTS)
def test_a_bad_file_does_not_hold_up_the_others(outbox: Outbox, what: str, tmp_path: Path) -> None:
    """A sensor that fails over it would tell nobody anything again."""
    outbox.put(an_alert("run-0"))
    outbox.put(an_alert("run-1"))
    path = outbox.folder / "waiting" / f"{an_alert('run-1').id}.json"
    made = BAD_ALERTS[what](json.loads(path.read_text()))
    path.write_bytes(made if isinstance(made, bytes) else made.encode())
    said: list[str] = []
    for _ in range(2):
        outbox.deliver(LogNotifier(), said.append)
    assert sum("laid aside" in line for line in said) == 1
    assert sum("told: " in line for line in said) == 1
    assert [*(outbox.folder / "waiting").iterdir()] == []
    assert (outbox.folder / "refused" / path.name).exists()
    assert [one.title for one in outbox.recent(3600.0, 10)] == [an_alert().title]


def test_what_is_no_file_does_not_hold_up_the_others(outbox: Outbox) -> None:
    outbox.put(an_alert("run-0"))
    (outbox.folder / "waiting" / "x.json").mkdir()
    said: list[str] = []
    assert [alert.key for alert in outbox.deliver(LogNotifier(), said.append)] == ["run-0"]
    assert any("x.json is no alert" in line for line in said)


def test_no_link_and_no_pipe_is_read(outbox: Outbox, tmp_path: Path) -> None:
    outbox.put(an_alert())
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps({"kind": "k", "key": "k", "title": "t", "text": "secret"}))
    waiting = outbox.folder / "waiting"
    (waiting / "link.json").symlink_to(secret)
    os.mkfifo(waiting / "pipe.json")  # reading it would wait for a writer for ever
    told = outbox.deliver(LogNotifier())
    assert [alert.key for alert in told] == ["run-1"] and secret.exists()


def test_a_file_without_a_name_does_not_hold_up_the_others(outbox: Outbox) -> None:
    outbox.put(an_alert("run-0"))
    (outbox.folder / "waiting" / ".json").write_text("{}")
    assert [alert.key for alert in outbox.deliver(LogNotifier())] == ["run-0"]
    assert (outbox.folder / "refused" / ".json").read_text() == "{}"
    assert outbox.waiting() == 0 and len(outbox.recent(3600.0, 10)) == 1


@pytest.mark.parametrize("which", ["what is no alert", "an alert that is refused"])
def test_what_cannot_be_laid_aside_does_not_hold_up_the_others(
    outbox: Outbox, hook: Hook, which: str
) -> None:
    for number in range(2):
        outbox.put(an_alert(f"run-{number}", time=f"2026-01-01T00:00:0{number}+00:00"))
    path = outbox.folder / "waiting" / f"{an_alert('run-0').id}.json"
    if which == "what is no alert":
        path.write_text("{}")
    else:
        hook.answers = [400, 200]
    (outbox.folder / "refused" / path.name).mkdir()
    said: list[str] = []
    assert [one.key for one in outbox.deliver(quick(hook.url), said.append)] == ["run-1"]
    assert [line for line in said if line.startswith(f"{path} cannot be moved to ")]
    assert path.exists() and outbox.waiting() == 1
    asked = len(hook.got)
    assert outbox.deliver(quick(hook.url)) == [] and len(hook.got) == asked


def test_an_alert_that_cannot_be_moved_is_told_once(outbox: Outbox, hook: Hook) -> None:
    for number in range(2):
        outbox.put(an_alert(f"run-{number}", time=f"2026-01-01T00:00:0{number}+00:00"))
    path = outbox.folder / "told" / f"{an_alert('run-0').id}.json"
    path.mkdir()
    said: list[str] = []
    told = [one.key for _ in range(3) for one in outbox.deliver(quick(hook.url), said.append)]
    assert told == ["run-0", "run-1"] and len(hook.got) == 2
    assert sum(f" cannot be moved to {path.parent}: " in line for line in said) == 3
    path.rmdir()
    assert outbox.deliver(quick(hook.url)) == [] and len(hook.got) == 2
    assert path.is_file() and outbox.waiting() == 0


def test_a_name_that_is_no_text_hides_no_damage(outbox: Outbox, hook: Hook, tmp_path: Path) -> None:
    aside = tmp_path / "data" / "square8_2p" / "quarantine"
    aside.mkdir(parents=True)
    names = (b"\xff", b"", b"7-selfplay-shard-0000-20260102T030405.000006Z-01234567-89abcdef")
    for name in names:
        (aside / os.fsdecode(name + b".reason.json")).write_text("{}")
    tell_damage(Store(tmp_path / "data"), outbox, "square8_2p")
    assert len(outbox.deliver(quick(hook.url))) == len(names) == len(hook.got)
    assert any("\\udcff" in body["text"] for _, _, body in hook.got)
