"""Fuzz targets that people and programs talk to: the page's routes, the engine, the terminal."""

from __future__ import annotations

import asyncio
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

from .fuzzing import Target

HOST = b"127.0.0.1:3001"
LARGEST_ANSWER = 8 << 20


class RefusedError(Exception):
    """An answer that refuses, or a line that is refused; says where and how it begins."""

    def __init__(self, where: object, said: str = "") -> None:
        super().__init__(where, said)
        self.place = f"{where} {re.sub('[^a-z ]', '', said)[:24]}".strip()


def web_routes(folder: Path) -> Target:
    """Requests as bytes: a line, headers, a body. The answer must be one, whatever was sent."""
    from ringrift_pipeline.web import Access, Players, create_app

    data = folder / "nothing"
    (folder / "secret").write_text("root:x:0:0")
    app = create_app(data, Access("127.0.0.1", 3001), players=Players(data, device="cpu"))
    guarded = create_app(data, Access("0.0.0.0", 3001, "t" * 43), players=Players(data))
    loop = asyncio.new_event_loop()

    def run(request: bytes) -> None:
        scope, body = request_of(request)
        for served in (guarded, app):
            status, headers, said = loop.run_until_complete(answer_of(served, scope, body))
            check(served is guarded, scope, status, headers, said)
        if status >= 400:
            told = json.loads(said)
            said = str(told.get("error", ""))  # without a field it names the address first
            where = said if told.get("field") else said.rpartition(": ")[2]
            raise RefusedError(f"{status} {told.get('field')}", where)

    post = (
        b"\nHost: " + HOST + b"\nContent-Type: application/json\nOrigin: http://" + HOST + b"\n\n"
    )
    get = b"\nHost: " + HOST + b"\n\n"
    game = b'{"config": "square8_2p", "moves": [], "player": "random", "simulations": 2, "seed": 1}'
    cookie = b"\nHost: " + HOST + b"\nCookie: ringrift-3001=" + b"t" * 43 + b"\n\n"
    return Target(
        (
            *(b"GET " + path + get for path in (b"/", b"/games/square8_2p/0000/0000/0001")),
            b"GET /static/page.js" + get,
            b"GET /api/setup" + cookie,
            b"GET /api/games" + get,
            b"GET /?token=" + b"t" * 43 + get,
            *(b"POST /api/" + name + post + game for name in (b"position", b"choose", b"analyze")),
        ),
        run,
        (RefusedError,),
    )


def request_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The ASGI scope and the body that bytes stand for, more leniently than any parser would."""
    from urllib.parse import unquote

    head, _, body = data.partition(b"\n\n")
    first, *lines = head.split(b"\n")
    method, _, target = first.partition(b" ")
    raw, _, query = target.partition(b"?")
    pairs = (line.partition(b":") for line in lines)
    return {
        "type": "websocket" if method == b"WS" else "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method.decode("latin-1"),
        "scheme": "http",
        "path": unquote(raw.decode("latin-1")),
        "raw_path": raw,
        "query_string": query,
        "root_path": "",
        "headers": [(name.strip().lower(), value.strip()) for name, _, value in pairs],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 3001),
        "extensions": {"websocket.http.response": {}},
    }, body


async def answer_of(app: Any, scope: dict[str, Any], body: bytes) -> tuple[int, Any, bytes]:
    """Status, headers and body that an application answers with."""
    pieces = [body[at : at + 4096] for at in range(0, len(body), 4096)] or [b""]
    kind = scope["type"]
    waiting = [
        {"type": "http.request", "body": piece, "more_body": number < len(pieces) - 1}
        for number, piece in enumerate(pieces)
    ]
    if kind == "websocket":
        waiting = [{"type": "websocket.connect"}]
    told: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not waiting and kind == "http":
            await asyncio.Event().wait()  # the client stays until it has its answer
        return waiting.pop(0) if waiting else {"type": "websocket.disconnect", "code": 1000}

    async def send(message: Any) -> None:
        told.append(message)

    await app({**scope, "headers": list(scope["headers"])}, receive, send)
    assert told, "there was no answer"
    if told[0]["type"] == "websocket.close":
        return 403, None, b"{}"
    assert told[0]["type"].endswith("http.response.start"), told[0]
    said = b"".join(message.get("body", b"") for message in told[1:])
    return told[0]["status"], told[0]["headers"], said


def check(guarded: bool, scope: dict[str, Any], status: int, headers: Any, said: bytes) -> None:
    """What holds of every answer."""
    assert status < 500, said[:500]
    assert len(said) < LARGEST_ANSWER
    assert b"root:x:0:0" not in said and b"import annotations" not in said
    if headers is None:
        return
    found = {name.lower(): value for name, value in headers}
    assert len(found) == len(headers), headers
    assert found[b"content-security-policy"].startswith(b"default-src 'none'")
    assert found[b"x-content-type-options"] == b"nosniff"
    assert all(b"\n" not in part and b"\r" not in part for pair in headers for part in pair)
    if status >= 400 and scope["method"] != "HEAD":
        assert set(json.loads(said)) == {"error", "field"}
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    if status < 400:  # let in: then it named this server, once
        assert len(hosts) == 1
        assert (
            guarded or b"127." in hosts[0] or b"localhost" in hosts[0].lower() or b"[" in hosts[0]
        )
        if guarded:
            shown = b"\n".join(value for _, value in scope["headers"]) + scope["query_string"]
            assert b"t" * 43 in shown or b"%74" in shown


def analysis_engine(folder: Path) -> Target:
    """Lines to the engine, which answers each and never fails, with players that need no model."""
    from ringrift_pipeline.analysis import Engine, Roster

    told: list[dict[str, Any]] = []
    data = folder / "nothing"

    def run(lines: bytes) -> None:
        engine = Engine("square8_2p", 2, Roster("random", data=data, device="cpu"), told.append)
        told.clear()
        first: RefusedError | None = None
        for line in lines.split(b"\n")[:20]:
            before = len(told)
            engine.receive(line)
            left = 200
            while engine.waiting and left:
                engine.step()
                left -= 1
            assert len(told) > before or not line.strip() or engine.waiting, "no answer"
        for answer in told:
            json.dumps(answer, allow_nan=False).encode("ascii")
            said = str(answer.get("error", ""))
            assert "failed:" not in said, said
            if said and first is None:
                first = RefusedError(answer.get("field"), said)
        if first is not None:
            raise first

    move = {"type": "place_ring", "to": "3,3", "count": 1}
    queries: list[Any] = [
        {"id": "a", "moves": [move], "maxVisits": 2, "includePolicy": True, "priority": 3},
        {"id": "b", "config": "hex8_3p", "player": "heuristic", "analyzeTurns": [0], "maxMoves": 1},
        {"id": "c", "action": "query_version"},
        {"id": "d", "action": "query_models"},
        {"id": "e", "action": "clear_cache"},
        {"id": "f", "action": "terminate_all", "turnNumbers": [0]},
        {"id": "g", "model": "random", "swapRule": True, "moves": []},
    ]
    lines = [json.dumps(query).encode() for query in queries]
    return Target((*lines, b"\n".join(lines)), run, (RefusedError,), text=True)


def terminal_line(folder: Path) -> Target:
    """What is typed in a game in the terminal: a move is chosen, or the person gives up."""
    from ringrift_pipeline.commands import play
    from ringrift_pipeline.game import new_game
    from ringrift_pipeline.search import load_player

    state = new_game("square8_2p")
    legal = state.legal_moves()
    players = {2: load_player("heuristic", "square8_2p")}

    def run(data: bytes) -> None:
        before, out = sys.stdin, sys.stdout
        sys.stdin = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", errors="replace")
        sys.stdout = io.StringIO()
        try:
            assert play.ask(state, legal, players) in legal
        except KeyboardInterrupt:
            raise RefusedError("gave up") from None
        finally:
            sys.stdin, sys.stdout = before, out

    return Target(
        (
            b"0\n",
            b"12\n",
            b"?\nplace\n\nb2\n5\nq\n",
            b"h\nc3 3\n9\n",
            b"x" * 1200 + b"\n7\n",
        ),
        run,
        (RefusedError,),
    )
