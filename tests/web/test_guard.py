"""Who is let in: hosts, origins, kinds of request, the token, and what browsers are told."""

from __future__ import annotations

import json
import socket
from http.cookies import SimpleCookie
from types import SimpleNamespace
from typing import Any

import pytest

from ringrift_pipeline.web import Access, guard, listen
from ringrift_pipeline.web.server import LARGEST_BODY

from .conftest import CONFIG, Answer, Client

GAME = {"config": CONFIG, "moves": []}
HOSTNAME = socket.gethostname()


def refused(answer: Answer, status: int, field: str | None) -> str:
    """The error of a refusal, which is JSON with the headers that every answer has."""
    assert answer.status == status, answer.data
    assert answer.headers["content-type"] == "application/json"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert set(answer.json) == {"error", "field"} and answer.json["field"] == field
    return str(answer.json["error"])


@pytest.mark.parametrize("path", ["/", "/games", "/static/page.js", "/api/setup", "/nothing"])
def test_every_answer_tells_the_browser_to_be_strict(client: Client, path: str) -> None:
    headers = client.get(path).headers
    policy = dict(
        part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";")
    )
    assert policy.pop("default-src") == policy.pop("base-uri") == "'none'"
    assert policy.pop("frame-ancestors") == policy.pop("form-action") == "'none'"
    assert policy["script-src"] == policy["style-src"] == "'self'"
    assert set(policy.values()) == {"'self'"}
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"  # the token is in the first address
    assert not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:80",
        "10.0.0.1",
        "localhost.evil.example",
        "",
        "[",
        "[::2]",
        "evil.example@localhost",
        "localhost/evil.example",
        "localhost?evil.example",
        "localhost#evil.example",
        "localhost:evil",
        "local\thost",
        "localhost,evil.example",
        "127.1",
        "0",
        "[::1].evil.example",
        "::1",
        "x" * 300,
    ],
)
def test_a_foreign_host_is_refused(client: Client, host: str) -> None:
    for path in ("/", "/api/games", "/static/page.js"):
        refused(client.get(path, Host=host), 421, "Host")
    assert client.post("/api/position", GAME, Host=host).status == 421


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1234", "127.0.0.1:1", "127.9.9.9", "[::1]:8"]
)
def test_names_of_this_machine_are_accepted_at_any_port(client: Client, host: str) -> None:
    assert client.get("/api/setup", Host=host).status == 200


def exchange(port: int, request: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers of what a server says to bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(request)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    head, _, _ = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.split(": ", 1) for line in lines)
    return int(first.split()[1]), {name.lower(): value for name, value in pairs}


WRONG_HOSTS = {
    "none": b"",
    "two": b"Host: 127.0.0.1\r\nHost: 127.0.0.1\r\n",
    "ours, then another's": b"Host: 127.0.0.1\r\nHost: evil.example\r\n",
    "another's, then ours": b"host: evil.example\r\nHost: 127.0.0.1\r\n",
    "folded": b"Host: 127.0.0.1\r\n evil.example\r\n",
    "with a blank before the colon": b"Host : 127.0.0.1\r\n",
    "with a null": b"Host: 127.0.0.1\0evil.example\r\n",
    "beyond ASCII": b"Host: \xe2\x84\xaaocalhost\r\n",
    "forwarded": b"Host: evil.example\r\nX-Forwarded-Host: 127.0.0.1\r\n",
}


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("path", ["/", "/static/page.js", "/api/setup", "/nothing"])
@pytest.mark.parametrize("name", WRONG_HOSTS)
def test_a_host_that_is_not_one_name_is_refused(
    client: Client, name: str, path: str, version: str
) -> None:
    line = f"GET {path} HTTP/{version}\r\n".encode()
    end = b"Connection: close\r\n\r\n"
    status, headers = exchange(client.access.port, line + WRONG_HOSTS[name] + end)
    assert status in (400, 421)
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET http://127.0.0.1/api/setup HTTP/1.1",
        b"GET //evil.example/api/setup HTTP/1.1",
        b"CONNECT 127.0.0.1:80 HTTP/1.1",
        b"GET /static/%2e%2e/server.py HTTP/1.1",
        b"GET /static/..%2fserver.py HTTP/1.1",
        b"GET /static/../server.py HTTP/1.1",
        b"GET /static/%00page.js HTTP/1.1",
        b"GET /static//etc/passwd HTTP/1.1",
        b"GET /static/page.js%20 HTTP/1.1",
        b"GET  / HTTP/1.1",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_odd_requests_get_nothing(client: Client, request_line: bytes) -> None:
    end = b"\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    status, headers = exchange(client.access.port, request_line + end)
    assert status in (400, 421)
    status, headers = exchange(
        client.access.port, request_line + end.replace(b"evil.example", b"127.0.0.1")
    )
    assert 400 <= status < 500
    assert headers["content-security-policy"].startswith("default-src 'none'")


def test_headers_are_bounded(client: Client) -> None:
    line = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    many = b"".join(b"X-%d: y\r\n" % number for number in range(20_000))
    for more in (b"X: " + b"y" * 200_000 + b"\r\n", many):
        try:
            status, _ = exchange(client.access.port, line + more + b"Connection: close\r\n\r\n")
        except ConnectionError:  # hung up while we were still talking
            continue
        assert status == 400
    assert client.get("/").status == 200


def test_a_websocket_is_no_way_round(client: Client) -> None:
    asked = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    asked["Sec-WebSocket-Key"] = "AAAAAAAAAAAAAAAAAAAAAA=="
    refused(client.get("/api/setup", Host="evil.example", **asked), 421, "Host")
    assert client.get("/nothing", **asked).status == 404


def test_a_post_must_be_json_from_this_page(client: Client) -> None:
    own = f"http://127.0.0.1:{client.access.port}"
    for headers in ({}, {"Origin": own}, {"Origin": own, "Sec-Fetch-Site": "same-origin"}):
        assert client.post("/api/position", GAME, **headers).status == 200
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": own.replace("http:", "https:")},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": f"{own}.evil.example"},
        {"Origin": own, "Sec-Fetch-Site": "cross-site"},
        {"Origin": ""},
    ):
        refused(client.post("/api/position", GAME, **headers), 403, "Origin")
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""):
        answer = client.post("/api/position", GAME, **{"Content-Type": kind})
        refused(answer, 415, "Content-Type")
    kind = {"Content-Type": "application/json; charset=utf-8"}
    assert client.post("/api/position", GAME, **kind).status == 200


LINK = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Sec-Fetch-User": "?1"}
PICTURE = {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
PAGE, LISTED = f"/games/{CONFIG}/0001/0000/0001?ply=3", f"/api/games/{CONFIG}?1"


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
@pytest.mark.parametrize("site", ["cross-site", "same-site", "same-origin, none", ""])
def test_another_page_makes_the_machine_do_nothing(client: Client, site: str, method: str) -> None:
    """Not by a picture, and of data not by a link either."""
    for path in ("/api/setup", "/api/games", LISTED, "/api%2fgames", "/", PAGE, "/nothing"):
        for sent in ({}, PICTURE, {"Sec-Fetch-Mode": "cors"}, LINK):
            if sent is LINK and "api" not in path:
                continue
            answer = client.ask(method, path, headers={**sent, "Sec-Fetch-Site": site})
            assert answer.status == 403, (path, sent)
            if method == "GET":
                refused(answer, 403, "Origin")
    foreign = {"Origin": "http://evil.example"}  # of a browser that sends nothing else
    assert client.ask(method, LISTED, headers=foreign).status == 403


def test_a_page_and_who_opens_it_get_what_they_ask_for(client: Client) -> None:
    for path in ("/", "/games", PAGE, "/api/setup", LISTED, "/static/page.js"):
        for sent in ({}, PICTURE, LINK):
            for site in ({}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}):
                assert client.get(path, **sent, **site).status == 200
    for site in ("cross-site", "same-site"):  # a link in a mail, one in the Dagster UI
        for path in ("/", "/games", PAGE):
            assert client.get(path, **LINK, **{"Sec-Fetch-Site": site}).status == 200


@pytest.mark.parametrize("path", ["/api/position", "/api/choose", "/api/analyze"])
def test_what_makes_the_machine_work_is_not_a_get(client: Client, path: str) -> None:
    refused(client.get(path), 405, None)


def test_other_methods_and_places_are_refused(client: Client) -> None:
    for method in ("PUT", "DELETE", "OPTIONS", "PATCH"):
        refused(client.ask(method, "/api/setup"), 405, None)
    for path in ("/nothing", "/api/nothing", "/static/", "/static/nothing.js"):
        assert path in refused(client.get(path), 404, None)


def test_bodies_are_bounded_and_must_be_objects(client: Client) -> None:
    kind = {"Content-Type": "application/json"}

    def send(body: bytes, **headers: str) -> Answer:
        return client.ask("POST", "/api/position", body, {**kind, **headers})

    fits = json.dumps(GAME).encode().ljust(LARGEST_BODY)
    assert send(fits).status == 200
    refused(send(fits + b" "), 413, "body")
    chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(fits) + 1, fits + b" ")
    refused(send(chunk, **{"Transfer-Encoding": "chunked"}), 413, "body")
    for body in (b"", b"{", b"\xff", b"[" * 100_000, b"1" * 5000):
        refused(send(body), 400, "body")
    refused(send(b"[]"), 400, "body")


# --- the token ------------------------------------------------------------------------------------


def cookie(answer: Answer) -> tuple[str, Any]:
    [(name, morsel)] = SimpleCookie(answer.headers["set-cookie"]).items()
    return f"{name}={morsel.value}", morsel


def test_without_the_token_nothing_is_answered(guarded: Client) -> None:
    for path in ("/", "/games", "/static/page.js", "/api/setup", "/?token=", "/?token=Secret"):
        refused(guarded.get(path), 401, "token")
    refused(guarded.post("/api/position", GAME), 401, "token")
    refused(guarded.post("/api/position?token=secret", GAME), 401, "token")
    refused(guarded.get("/", Cookie=f"{guarded.access.cookie}=wrong"), 401, "token")
    refused(guarded.get("/", Cookie="other=secret"), 401, "token")


def test_the_token_becomes_a_cookie(guarded: Client) -> None:
    answer = guarded.get("/games/square8_2p/0000?ply=3&token=secret")
    assert answer.status == 303
    assert answer.headers["location"] == "/games/square8_2p/0000?ply=3"
    sent, morsel = cookie(answer)
    assert morsel["httponly"] and morsel["samesite"].lower() == "strict" and morsel["path"] == "/"
    for path in ("/", "/api/setup"):
        assert guarded.get(path, Cookie=sent).status == 200
    assert guarded.post("/api/position", GAME, Cookie=sent).status == 200
    foreign = guarded.post("/api/position", GAME, Cookie=sent, Origin="http://evil.example")
    refused(foreign, 403, "Origin")
    refused(guarded.get("/", Cookie=sent, Host="evil.example"), 421, "Host")


def test_tokens_are_compared_in_constant_time(
    guarded: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what does not end at the first character that differs, in the address and in the cookie."""
    compared: list[bytes] = []
    monkeypatch.setattr(
        guard, "secrets", SimpleNamespace(compare_digest=lambda a, b: compared.append(a) or False)
    )
    refused(guarded.get("/?token=secret"), 401, "token")  # for that says no
    refused(guarded.get("/", Cookie=f"{guarded.access.cookie}=secret"), 401, "token")
    assert compared == [b"secret", b"secret"]


def test_the_redirect_stays_here(guarded: Client) -> None:
    assert guarded.get("//evil.example/?token=secret").headers["location"] == "/evil.example/"


# --- where it listens -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listens", "host", "known"),
    [
        ("127.0.0.1", "192.168.0.7:3001", False),
        ("0.0.0.0", "192.168.0.7:3001", True),
        ("0.0.0.0", "localhost", True),
        ("0.0.0.0", "evil.example", False),
        ("0.0.0.0", f"{HOSTNAME}:3001", True),
        ("127.0.0.1", f"{HOSTNAME}.evil.example:3001", False),
        ("board.example", "board.example:3001", True),
        ("::", "[fe80::1]:3001", True),
    ],
)
def test_hosts_that_are_known(listens: str, host: str, known: bool) -> None:
    assert Access(listens, 3001, "t").knows(host) is known


def test_only_the_loopback_needs_no_token() -> None:
    for host, asked in (("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)):
        listening, access = listen(host, 0)
        with listening:
            assert (access.token is not None) is asked
            assert access.port == listening.getsockname()[1] > 0
    listening, first = listen("0.0.0.0", 0)
    with listening:
        assert first.token is not None and access.token is not None
        assert len(first.token) > 40 and first.token != access.token
        assert first.url("/games").endswith(f":{first.port}/games?token={first.token}")
    assert Access("127.0.0.1", 5).url() == "http://127.0.0.1:5/"
    assert Access("::1", 5).url() == "http://[::1]:5/"
