"""moto's S3 server, asked over HTTP as any other, and made to refuse, to lie and to keep count.

As a program, ``python -m tests.s3_server HOST PORT FILE``: it refuses to be written to while FILE is there.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Slower</Message></Error>"


@dataclass(frozen=True)
class Request:
    """What was asked: ``key`` is below the bucket."""

    method: str
    key: str
    query: str
    conditions: tuple[str, ...]


class S3Server:
    """A server, on a free port of the loopback unless it is told another place.

    One request is answered after the other: moto looks at a condition and then writes, which in a
    real server is one step.

    Attributes:
        requests: all that was asked since it was last cleared.
        before: called with each request; what it returns that is true is the status it is refused with.
        blind: conditions of writes are left out before moto sees them.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        from moto.moto_server.werkzeug_app import (
            DomainDispatcherApplication,
            MotoRequestHandler,
            create_backend_app,
        )
        from werkzeug.serving import make_server

        class Quiet(MotoRequestHandler):
            def log(self, *arguments: Any) -> None:
                pass

        self.requests: list[Request] = []
        self.before: Callable[[Request], int | None] = lambda request: None
        self.blind = False
        self._moto: Application = DomainDispatcherApplication(create_backend_app)
        self._one_by_one = threading.Lock()
        self._server = make_server(host, port, self, threaded=True, request_handler=Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def asked(self, method: str, part: str = "") -> list[str]:
        """Keys of the requests of a method that have a part in them."""
        return [one.key for one in self.requests if one.method == method and part in one.key]

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        names = ("HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH")
        request = Request(
            environ["REQUEST_METHOD"],
            environ["PATH_INFO"].lstrip("/").partition("/")[2],
            environ["QUERY_STRING"],
            tuple(name for name in names if name in environ),
        )
        self.requests.append(request)
        status = self.before(request)
        if status:
            start(f"{status} Refused", [("Content-Type", "application/xml")])
            return [SLOW_DOWN if status == 503 else b""]
        if self.blind and request.method == "PUT":
            for name in names:
                environ.pop(name, None)
        with self._one_by_one:
            return list(self._moto(environ, start))


def main() -> None:
    host, port, path = sys.argv[1:]

    def refusing(request: Request) -> int | None:
        served.requests.clear()
        return 503 if request.method != "GET" and Path(path).exists() else None

    served = S3Server(host, int(port))
    served.before = refusing
    served._thread.join()


if __name__ == "__main__":
    main()
