"""The server as a process has it: a socket, and running until it is told to stop."""

from __future__ import annotations

import logging
import secrets
import socket

import uvicorn
from starlette.types import ASGIApp

from ringrift_pipeline.web.guard import Access, is_local


def listen(host: str, port: int) -> tuple[socket.socket, Access]:
    """A socket that listens, and how the server is reached; port 0 takes a free one.

    A host other than the loopback gets a token that every browser must bring. Raises OSError if
    the address cannot be had.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    listening = socket.create_server(address, family=family)  # type: ignore[arg-type]
    token = None if is_local(host) else secrets.token_urlsafe(32)
    return listening, Access(host, listening.getsockname()[1], token)


def server_of(app: ASGIApp) -> uvicorn.Server:
    """A server of an application, not running yet."""
    config = uvicorn.Config(
        app,
        access_log=False,
        lifespan="off",
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=2,
        ws="none",
    )
    logging.getLogger("uvicorn.error").addFilter(lambda record: "Cancel " not in record.msg)
    return uvicorn.Server(config)


def serve(app: ASGIApp, listening: socket.socket) -> None:
    """Answer requests until SIGINT or SIGTERM; what takes more than two seconds longer is dropped.

    The thread of a search that was dropped may still run when this returns. The caller's own
    handlers of those signals are called once the server has stopped.
    """
    server_of(app).run(sockets=[listening])
