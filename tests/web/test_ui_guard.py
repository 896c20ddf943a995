"""The guard before the Dagster UI, in front of an application that does what that does."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket as socketlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from ringrift_pipeline.web import Access, UIGuard, listen
from ringrift_pipeline.web.serving import server_of
from ringrift_pipeline.web.ui_guard import LARGEST_BODY

from .conftest import Answer, Client

RAN: list[str] = []


async def graphql(request: Request) -> Response:
    """Queries of a GET and of a POST of any kind run."""
    if request.method == "GET" and "text/html" in request.headers.get("Accept", ""):
        return HTMLResponse("<script>ask()</script>")
    RAN.append(request.query_params.get("query") or (await request.body()).decode())
    return JSONResponse({"data": None})


async def page(request: Request) -> Response:
    return HTMLResponse("<html>", headers={"Content-Security-Policy": "script-src 'nonce-x'"})


async def fails(request: Request) -> Response:
    raise RuntimeError


async def socket(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("open")
    await websocket.close()


def application() -> Starlette:
    return Starlette(
        routes=[
            Route("/graphql", graphql, methods=["GET", "POST"]),
            WebSocketRoute("/graphql", socket),
            Route("/file.js", lambda _: PlainTextResponse("code", headers={"Cache-Control": "x"})),
            Route("/fails", fails),
            Route("/", page),
        ]
    )


def running(token: str | None) -> Iterator[Client]:
    listening, access = listen("127.0.0.1", 0)
    access = Access(access.host, access.port, token)
    server = server_of(UIGuard(application(), access), websockets=True)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    yield Client(access)
    server.should_exit = True
    thread.join(10)
    listening.close()


@pytest.fixture(scope="module")
def ui() -> Iterator[Client]:
    yield from running(None)


@pytest.fixture(scope="module")
def guarded_ui() -> Iterator[Client]:
    yield from running("secret")


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    RAN.clear()


def refused(answer: Answer, status: int, field: str | None) -> None:
    assert answer.status == status and answer.json["field"] == field, answer.data
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert not RAN


MUTATION = {"query": "mutation { launch }"}


def test_its_own_page_asks_as_it_does(ui: Client) -> None:
    own = f"http://127.0.0.1:{ui.access.port}"
    headers = {"Origin": own, "Sec-Fetch-Site": "same-origin"}
    assert ui.post("/graphql", MUTATION, **headers).status == 200
    assert [json.dumps(MUTATION)] == RAN


@pytest.mark.parametrize("path", ["/graphql?query=mutation", "/graphql/?query=mutation"])
def test_a_query_is_not_a_get(ui: Client, path: str) -> None:
    refused(ui.get(path), 405, None)
    refused(ui.get(path, Accept="image/png,*/*"), 405, None)
    assert ui.get("/graphql", Accept="text/html").status == 200 and not RAN


@pytest.mark.parametrize(
    "path", ["/../file.js", "/x/%2e%2e/file.js", "/..%2ffile.js", "/..%5cx", "/.."]
)
def test_no_path_leads_up(ui: Client, path: str) -> None:
    refused(ui.get(path), 404, None)


@pytest.mark.parametrize(
    ("headers", "status", "field"),
    [
        ({"Host": "evil.example"}, 421, "Host"),
        ({"Origin": "http://evil.example"}, 403, "Origin"),
        ({"Origin": "null"}, 403, "Origin"),
        ({"Sec-Fetch-Site": "cross-site"}, 403, "Origin"),
        ({"Content-Type": "text/plain"}, 415, "Content-Type"),
        ({"Content-Type": "application/graphql"}, 415, "Content-Type"),
        ({"Content-Type": "text/plain; application/json"}, 415, "Content-Type"),
        ({"Content-Length": str(LARGEST_BODY + 1)}, 413, "Content-Length"),
        ({"Content-Length": "9" * 15}, 413, "Content-Length"),
        ({"Transfer-Encoding": "chunked"}, 411, "Content-Length"),
        ({"Content-Length": "2", "Transfer-Encoding": "chunked"}, 411, "Content-Length"),
    ],
)
def test_what_another_page_sends_does_not_run(
    ui: Client, headers: dict[str, str], status: int, field: str
) -> None:
    given = {"Content-Type": "application/json", **headers}
    body = b"" if field == "Content-Length" else json.dumps(MUTATION).encode()
    refused(ui.ask("POST", "/graphql?query=mutation", body, given), status, field)


def test_a_body_in_chunks_is_not_waited_for(ui: Client) -> None:
    """Its length, should it say one as well, is not what the server goes by."""
    head = (
        f"POST /graphql HTTP/1.1\r\nHost: 127.0.0.1:{ui.access.port}\r\nContent-Length: 2\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with socketlib.create_connection(("127.0.0.1", ui.access.port), timeout=20) as sending:
        sending.sendall(head.encode() + b"10\r\n" + b"x" * 16 + b"\r\n")  # and no end
        assert sending.recv(64).startswith(b"HTTP/1.1 411 ")
    assert not RAN


def opened(client: Client, **headers: str) -> str:
    """What a WebSocket's server says, or the status with which it is refused."""

    async def ask() -> str:
        address = f"ws://127.0.0.1:{client.access.port}/graphql"
        try:
            async with connect(address, additional_headers=headers, proxy=None) as connection:
                return str(await connection.recv())
        except InvalidStatus as error:
            policy = error.response.headers["content-security-policy"]
            assert "frame-ancestors 'none'" in policy
            return str(error.response.status_code)

    return asyncio.run(ask())


def test_a_websocket_is_for_its_own_page(ui: Client) -> None:
    own = f"http://127.0.0.1:{ui.access.port}"
    assert opened(ui, Origin=own) == "open" and opened(ui) == "open"
    assert opened(ui, Origin="http://evil.example") == "403"
    assert opened(ui, Origin="null") == "403"


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_page_may_link_to_it_and_no_more(ui: Client, site: str) -> None:
    for path in ("/", "/file.js", "/nothing"):
        sent = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
        refused(ui.get(path, **sent), 403, "Origin")
    link = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert ui.get("/", **link, **{"Sec-Fetch-Site": site}).status == 200


def test_without_the_token_nothing_is_answered(guarded_ui: Client) -> None:
    for path in ("/", "/file.js", "/graphql", "/?token=wrong"):
        refused(guarded_ui.get(path), 401, "token")
    refused(guarded_ui.post("/graphql", MUTATION), 401, "token")
    assert opened(guarded_ui) == "401"
    answer = guarded_ui.get("/locations/x?token=secret")
    assert answer.status == 303 and answer.headers["location"] == "/locations/x"
    cookie = answer.headers["set-cookie"].split(";")[0]
    assert guarded_ui.get("/", Cookie=cookie).status == 200
    assert guarded_ui.post("/graphql", MUTATION, Cookie=cookie).status == 200
    assert opened(guarded_ui, Cookie=cookie) == "open"


def policies(answer: Answer) -> str:
    return answer.headers["content-security-policy"]


def test_every_answer_has_the_headers(ui: Client) -> None:
    for path in ("/", "/file.js", "/fails", "/nothing", "/graphql"):
        headers = ui.get(path, Accept="text/html").headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == ("x" if path == "/file.js" else "no-store")
    assert policies(ui.get("/file.js")).startswith("default-src 'none'")
    assert policies(ui.get("/nothing")).startswith("default-src 'none'")


def test_a_page_keeps_its_policy_and_gets_a_second(ui: Client) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", ui.access.port)
    connection.request("GET", "/")
    found: Any = connection.getresponse().headers.get_all("content-security-policy")
    connection.close()
    first, second = found
    assert first == "script-src 'nonce-x'"
    assert f"connect-src 'self' ws://127.0.0.1:{ui.access.port};" in second
    assert "frame-ancestors 'none'" in second
