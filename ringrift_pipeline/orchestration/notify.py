"""Who is told when something goes wrong: the log, or a web hook.

The resource ``notifier`` of the sensors is anything with a method ``notify(alert)`` that returns
once the alert has been taken over and raises `NotifyError` where it has not. The one that comes
with the project posts to ``$RINGRIFT_WEBHOOK_URL`` where that is set, and logs otherwise; to tell
people some other way, put another object under that key in ``build.py``.

A web hook gets one HTTP POST an alert, ``Content-Type: application/json``::

    {
      "version": 1,
      "id": "9f86d0…",                what the alert is about, hashed: a repeat has the same
      "kind": "run_failed",           or checks_failed, plan_unusable, config_stalled,
                                      sensor_failed, damaged
      "title": "square8_2p generation 0003 failed",
      "text": "title, what happened, what to do",
      "time": "2026-11-22T05:00:00+00:00",
      "config": "square8_2p",         or null
      "generation": "0003",           or null
      "run_id": "6fd1…",              or null
      "details": {…}                  more, by name; depends on the kind
    }

Any answer of 200 to 299 counts as taken over. An alert comes at least once; after a crash between
the answer and its being noted it comes once more, with the same ``id``.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import logging
import os
import socket
import ssl
import threading
import time
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import urlsplit

from dagster import ConfigurableResource
from pydantic import Field

URL_VARIABLE = "RINGRIFT_WEBHOOK_URL"
VERSION = 1
IN_ALL = 20.0  # seconds for all attempts at an alert; Dagster gives a tick 60

_AGAIN = frozenset({408, 425, 429})  # and all from 500 on: worth another try at once
_REFUSED = frozenset({400, 413, 415, 422})  # this very alert is what the server cannot take


class NotifyError(Exception):
    """An alert was not taken over. ``refused``: and never will be, whoever asks again."""

    def __init__(self, message: str, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class WebhookUrlError(ValueError):
    """The address of the web hook cannot be used; the message says why, without its secrets."""


def alert_id(kind: str, key: str) -> str:
    """64 hex digits, the same for alerts of one kind and key."""
    return hashlib.sha256(f"{kind}\n{key}".encode()).hexdigest()


@dataclass(frozen=True)
class Alert:
    """Something that people should know.

    Attributes:
        kind: what sort of thing, a word.
        key: what it is about; of one kind and key people are told once.
        title: one line.
        text: what happened and what to do.
        time: ISO 8601 time in UTC.
        config, generation, run_id: where, as far as that can be said.
        details: more, JSON types.
    """

    kind: str
    key: str
    title: str
    text: str
    config: str | None = None
    generation: str | None = None
    run_id: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def id(self) -> str:
        """As `alert_id`."""
        return alert_id(self.kind, self.key)

    def payload(self) -> dict[str, Any]:
        """What a web hook gets."""
        fields = asdict(self)
        del fields["key"]
        fields["text"] = f"{self.title}\n{self.text}"
        return {"version": VERSION, "id": self.id, **fields}


class Notifier(Protocol):
    """Whoever passes alerts on."""

    def notify(self, alert: Alert) -> None:
        """Return once the alert has been taken over. Raises NotifyError."""


class LogNotifier:
    """Writes alerts to the log ``ringrift.alerts``, as errors."""

    def notify(self, alert: Alert) -> None:
        """Never fails."""
        logging.getLogger("ringrift.alerts").error("%s\n%s", alert.title, alert.text)


class WebhookNotifier:
    """Posts alerts as JSON to one address, which comes from whoever runs this and nowhere else.

    Nothing in an alert, and nothing that the server answers, decides where a request goes: there
    are no redirects. Each attempt has ``timeout`` seconds in all, however slowly name servers answer
    and the server dribbles; there are up to ``attempts`` of them within `IN_ALL`, with a pause that
    doubles.

    Raises:
        WebhookUrlError: ``url`` is no http or https address.
    """

    def __init__(
        self, url: str, *, timeout: float = 5.0, attempts: int = 3, pause: float = 0.5
    ) -> None:
        if not url.isascii() or any(sign <= " " for sign in url):
            raise WebhookUrlError("the web hook's address holds a blank or a sign beyond ASCII")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise WebhookUrlError(f"the web hook's address cannot be read: {error}") from None
        if parts.scheme not in ("http", "https") or not host:
            raise WebhookUrlError(
                f"the web hook's address must be like https://host/path, not {parts.scheme}:…"
            )
        if parts.username is not None:
            raise WebhookUrlError(
                "the web hook's address holds a name or password; put a token into its path"
            )
        self._secure = parts.scheme == "https"
        self._host, self._port = host, port or (443 if self._secure else 80)
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._timeout, self._attempts, self._pause = timeout, attempts, pause
        self._looking: Future[list[Any]] | None = None  # for the host's addresses, still

    def __repr__(self) -> str:  # the path often is a secret
        return f"WebhookNotifier({self._host!r})"

    def notify(self, alert: Alert) -> None:
        """Post it. Raises NotifyError with what the last attempt came to."""
        body = json.dumps(alert.payload()).encode("ascii")
        until = time.monotonic() + IN_ALL
        for attempt in range(1, self._attempts + 1):
            try:
                status = self._post(body, min(self._timeout, until - time.monotonic()))
            except (OSError, http.client.HTTPException, ValueError) as error:
                what = str(error) or type(error).__name__
            else:
                if 200 <= status < 300:
                    return
                what = f"it answered {status}"
                if 300 <= status < 400:
                    what += ": redirects are not followed, name the address it redirects to"
                if status < 500 and status not in _AGAIN:
                    raise NotifyError(f"{self._host}: {what}", refused=status in _REFUSED)
            pause = self._pause * 2 ** (attempt - 1)
            if attempt == self._attempts or time.monotonic() + pause >= until:
                break
            time.sleep(pause)
        raise NotifyError(f"{self._host}: {what} ({attempt} attempts)")

    def _post(self, body: bytes, seconds: float) -> int:
        """One attempt, of so many seconds; the status it was answered with."""
        until = time.monotonic() + seconds
        found = self._addresses(seconds)
        connection: http.client.HTTPConnection
        context = ssl.create_default_context() if self._secure else None
        if context is not None:
            connection = http.client.HTTPSConnection(self._host, self._port, context=context)
        else:
            connection = http.client.HTTPConnection(self._host, self._port)
        late = threading.Event()

        def give_up() -> None:
            late.set()
            with contextlib.suppress(OSError, TypeError):  # closed, or not open yet
                socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)

        # The socket's own timeout starts anew with every byte; this one does not.
        deadline = threading.Timer(until - time.monotonic(), give_up)
        deadline.daemon = True
        deadline.start()
        try:
            connection.sock = made = _connected(found, until)
            if context is not None:
                connection.sock = made = context.wrap_socket(
                    made, server_hostname=self._host, do_handshake_on_connect=False
                )
            if late.is_set():  # there was nothing yet to shut down
                raise TimeoutError
            if isinstance(made, ssl.SSLSocket):
                made.do_handshake()
            headers = {"Content-Type": "application/json", "User-Agent": "ringrift-pipeline"}
            connection.request("POST", self._path, body, headers)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            if late.is_set():
                raise TimeoutError(f"no answer within {seconds:.3g} s") from None
            raise
        finally:
            deadline.cancel()
            connection.close()

    def _addresses(self, seconds: float) -> list[Any]:
        """Where the host is. A look-up that takes longer is left to itself, and waited for by the next
        attempt.
        """
        if self._looking is None:
            self._looking = _looked_up(self._host, self._port)
        looking = self._looking
        try:
            return looking.result(seconds)
        except TimeoutError:
            raise TimeoutError(f"its address was not found within {seconds:.3g} s") from None
        finally:
            if looking.done():
                self._looking = None


def _looked_up(host: str, port: int) -> Future[list[Any]]:
    """What `socket.getaddrinfo` finds, once it has. It takes no timeout, so that a thread of its own has
    to wait for it, which does nothing else.
    """
    found: Future[list[Any]] = Future()

    def look() -> None:
        try:
            found.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except Exception as error:
            found.set_exception(error)

    threading.Thread(target=look, daemon=True).start()
    return found


def _connected(found: list[Any], until: float) -> socket.socket:
    """A connection to the first of these addresses that takes one. Each has its share of the time that
    is left. Raises OSError.
    """
    failed = OSError("its name has no address")
    for number, (family, kind, protocol, _, address) in enumerate(found):
        with contextlib.ExitStack() as unless_connected:
            try:
                made = unless_connected.enter_context(socket.socket(family, kind, protocol))
                share = (until - time.monotonic()) / (len(found) - number)
                made.settimeout(max(share, 0.001))
                made.connect(address)
                made.settimeout(max(until - time.monotonic(), 0.001))
            except OSError as error:
                failed = error
            else:
                unless_connected.pop_all()
                return made
    raise failed


def check_webhook() -> None:
    """Raises WebhookUrlError if ``$RINGRIFT_WEBHOOK_URL`` is set and cannot be used."""
    url = os.environ.get(URL_VARIABLE)
    if url:
        try:
            WebhookNotifier(url)
        except WebhookUrlError as error:
            raise WebhookUrlError(f"{URL_VARIABLE}: {error}") from None


class NotifierResource(ConfigurableResource):
    """The notifier that comes with the project: a web hook where one is set, else the log."""

    webhook_url: str = Field(
        default="",
        description=f"Where alerts are posted; empty means ${URL_VARIABLE}, else the log.",
    )
    timeout_seconds: float = Field(
        default=5.0, gt=0.0, le=15.0, description="Seconds that an attempt may take."
    )
    attempts: int = Field(default=3, ge=1, le=5, description="Attempts in one tick.")

    def notify(self, alert: Alert) -> None:
        """Pass it on. Raises NotifyError, WebhookUrlError."""
        url = self.webhook_url or os.environ.get(URL_VARIABLE, "")
        notifier: Notifier = LogNotifier()
        if url:
            notifier = WebhookNotifier(url, timeout=self.timeout_seconds, attempts=self.attempts)
        notifier.notify(alert)
