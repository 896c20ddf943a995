"""The server as a process has it: a socket, and running until it is told to stop."""

from __future__ import annotations

import contextlib
import logging
import secrets
import socket

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from ringrift_pipeline.web.guard import HEADERS, Access, is_local


def token_for(host: str) -> str | None:
    """A new token for a server that listens on ``host``; None for the loopback, which needs none."""
    return None if is_local(host) else secrets.token_urlsafe(32)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one. Raises OSError if it cannot be had."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    return socket.create_server(address, family=family)  # type: ignore[arg-type]


def listen(host: str, port: int) -> tuple[socket.socket, Access]:
    """A socket that listens, and how the server is reached; port 0 takes a free one.

    A host other than the loopback gets a token that every browser must bring. Raises OSError if
    the address cannot be had.
    """
    listening = bind(host, port)
    return listening, Access(host, listening.getsockname()[1], token_for(host))


class _Protocol(H11Protocol):
    """HTTP/1.1 by h11, which refuses what is not, two hosts, and more than 64 kB of headers."""

    def send_400_response(self, msg: str) -> None:
        """Say that it was no HTTP, with the headers that every answer has, and hang up."""
        told = {**HEADERS, "Content-Type": "text/plain; charset=utf-8", "Connection": "close"}
        headers = [(name.encode(), value.encode()) for name, value in told.items()]
        with contextlib.suppress(h11.LocalProtocolError):  # in the middle of an answer
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=msg.encode("ascii")),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def server_of(app: ASGIApp, websockets: bool = False) -> uvicorn.Server:
    """A server of an application, not running yet."""
    config = uvicorn.Config(
        app,
        http=_Protocol,
        access_log=False,
        lifespan="off",
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=2,
        ws="auto" if websockets else "none",
    )
    logging.getLogger("uvicorn.error").addFilter(lambda record: "Cancel " not in record.msg)
    return uvicorn.Server(config)


def serve(app: ASGIApp, listening: socket.socket, websockets: bool = False) -> None:
    """Answer requests until SIGINT or SIGTERM; what takes more than two seconds longer is dropped.

    The thread of a search that was dropped may still run when this returns. The caller's own
    handlers of those signals are called once the server has stopped.
    """
    server_of(app, websockets).run(sockets=[listening])
