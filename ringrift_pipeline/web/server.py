"""The routes: the page, its files, games to play and games to look at."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ringrift_pipeline.game import CONFIGS, get_rules
from ringrift_pipeline.network.errors import EvaluationError
from ringrift_pipeline.search import SearchStopped, stoppable
from ringrift_pipeline.selfplay.shards import ShardError
from ringrift_pipeline.store import BucketError, StoreError
from ringrift_pipeline.web.errors import RequestError
from ringrift_pipeline.web.games import RecordedGames
from ringrift_pipeline.web.guard import Access, Guard
from ringrift_pipeline.web.players import BASELINES, Players
from ringrift_pipeline.web.positions import MOST_MOVES, read_game, show_game, text_of, whole_number

STATIC = Path(__file__).parent / "static"
KINDS = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
FILES = {path.name: path for path in sorted(STATIC.iterdir()) if path.is_file()}
LARGEST_BODY = 512 * 1024  # bytes; 20,000 packed moves of the largest board need 320 kB
MOST_SIMULATIONS = 10_000
LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True)
class Defaults:
    """What the page offers first: a config, who sits where, simulations, pie rule, seed."""

    config: str = "square8_2p"
    players: tuple[str, ...] = ("human", "heuristic")
    simulations: int = 64
    swap_rule: bool = False
    seed: int = 0


def create_app(
    data: Path,
    access: Access,
    *,
    players: Players | None = None,
    defaults: Defaults | None = None,
) -> ASGIApp:
    """The ASGI application over a data root, for a server that is reached by ``access``.

    Errors are JSON: ``error`` (a sentence) and ``field`` (of the request that is wrong, or null).
    """
    routes = _Routes(RecordedGames(data), players or Players(data), defaults or Defaults())
    app = Starlette(
        routes=routes.routes(),
        exception_handlers={
            HTTPException: _http_error,
            RequestError: _request_error,
            StoreError: _data_error,
            BucketError: _bucket_error,
            ShardError: _data_error,
            EvaluationError: _model_error,
            Exception: _our_error,
        },
    )
    return Guard(app, access)


def _error(message: str, field: str | None, status: int) -> JSONResponse:
    message = message.encode("utf-8", "backslashreplace").decode()  # half a character is none
    return JSONResponse({"error": message, "field": field}, status)


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = f"{request.method} {request.scope['path']}: {error.detail}"  # a URL fails by its query
    return _error(said, None, error.status_code)


def _request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return _error(str(error), error.field, error.status)


def _data_error(request: Request, error: Exception) -> Response:
    return _error(str(error), None, 409)


def _bucket_error(request: Request, error: Exception) -> Response:
    return _error(str(error), None, 503)


def _model_error(request: Request, error: Exception) -> Response:
    return _error(str(error), None, 500)


def _our_error(request: Request, error: Exception) -> Response:
    return _error(f"{type(error).__name__}: {error} (a fault of this server)", None, 500)


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object of a POST. Raises RequestError if it is too large or none."""
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > LARGEST_BODY:
            raise RequestError(f"more than {LARGEST_BODY} bytes", "body", 413)
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise RequestError("the body is not JSON", "body", 400) from None
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object", "body", 400)
    return body


class _Routes:
    """Every answer, as a function of the request and of what is kept."""

    def __init__(self, games: RecordedGames, players: Players, defaults: Defaults) -> None:
        self.recorded = games
        self.players = players
        self.defaults = defaults
        self.most_simulations = max(MOST_SIMULATIONS, defaults.simulations)

    def routes(self) -> list[Route]:
        return [
            Route("/", self.page),
            Route("/games", self.page),
            Route("/games/{place:path}", self.page),
            Route("/static/{name}", self.file),
            Route("/api/setup", self.setup),
            Route("/api/position", _post(self.position), methods=["POST"]),
            Route("/api/choose", _post(self.choose), methods=["POST"]),
            Route("/api/analyze", _post(self.analyze), methods=["POST"]),
            Route("/api/games", self.listing),
            Route("/api/games/{config}", self.listing),
            Route("/api/games/{config}/{generation}", self.listing),
            Route("/api/games/{config}/{generation}/{shard}", self.listing),
            Route("/api/games/{config}/{generation}/{shard}/{game}", self.game),
        ]

    def page(self, request: Request) -> Response:
        return _file("page.html")

    def file(self, request: Request) -> Response:
        return _file(request.path_params["name"])

    def setup(self, request: Request) -> Response:
        configs = {
            config: {"seats": get_rules(config).players, "networks": self.players.known(config)}
            for config in CONFIGS
        }
        first = self.defaults
        return JSONResponse(
            {
                "configs": configs,
                "baselines": BASELINES,
                "folders": self.players.folders,
                "defaults": {
                    "config": first.config,
                    "players": first.players,
                    "simulations": first.simulations,
                    "swap_rule": first.swap_rule,
                    "seed": first.seed,
                },
                "most_simulations": self.most_simulations,
            }
        )

    def position(self, body: dict[str, Any]) -> dict[str, Any]:
        """The position after ``moves`` and the forced ones that follow."""
        game = read_game(body)
        game.play_forced()
        return show_game(game, whole_number(body, "since", 0, 0, MOST_MOVES))

    def choose(self, body: dict[str, Any]) -> dict[str, Any]:
        """The position after the move that ``player`` chooses, and the forced ones."""
        game = read_game(body)
        if game.state.is_terminal:
            raise RequestError("the game is over: there is no move to choose", "moves")
        spec, simulations = self._player(body)
        seed = whole_number(body, "seed", 0, 0, LARGEST_SEED)
        game.play(self.players.choose(game.state, spec, simulations, seed))
        game.play_forced()
        return show_game(game, whole_number(body, "since", 0, 0, MOST_MOVES))

    def analyze(self, body: dict[str, Any]) -> dict[str, Any]:
        """What ``player`` thinks of the position after ``moves``."""
        game = read_game(body)
        if game.state.is_terminal:
            raise RequestError("the game is over: there is nothing to analyze", "moves")
        return self.players.analyze(game, *self._player(body))

    def _player(self, body: dict[str, Any]) -> tuple[str, int]:
        simulations = whole_number(body, "simulations", 64, 1, self.most_simulations)
        return text_of(body, "player"), simulations

    def listing(self, request: Request) -> Response:
        """Configs, or a config's generations, a generation's shards, a shard's games."""
        names = list(request.path_params.values())
        recorded = self.recorded
        levels: list[Callable[..., list[dict[str, Any]]]]
        levels = [recorded.configs, recorded.generations, recorded.shards, recorded.games]
        return JSONResponse({"items": levels[len(names)](*names)})

    def game(self, request: Request) -> Response:
        """A recorded game, or with ``?ply=`` one ply of it."""
        names = list(request.path_params.values())
        ply = request.query_params.get("ply")
        if ply is None:
            return JSONResponse(self.recorded.game(*names))
        if not (ply.isascii() and ply.isdecimal() and len(ply) < 7):
            raise RequestError(f"ply must be a whole number, not {ply!r}", "ply")
        return JSONResponse(self.recorded.ply(int(ply), *names))


def _file(name: str) -> Response:
    if name not in FILES:
        raise HTTPException(404)
    return FileResponse(FILES[name], media_type=KINDS[FILES[name].suffix])


def _post(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[..., Any]:
    """A route that answers a JSON object with one, in a worker thread.

    Where the client hangs up or the server stops, the search for an answer is given up.
    """

    async def endpoint(request: Request) -> Response:
        try:
            body = await _body(request)
        except ClientDisconnect:
            return Response(status_code=499)
        gone = threading.Event()
        watching = asyncio.create_task(_watch(request, gone))
        try:
            with stoppable(gone.is_set):  # the thread works in a copy of this context
                return JSONResponse(await run_in_threadpool(answer, body))
        except SearchStopped:
            return Response(status_code=499)
        except asyncio.CancelledError:
            return _error("the server was stopped", None, 503)
        finally:
            gone.set()
            watching.cancel()

    return endpoint


async def _watch(request: Request, gone: threading.Event) -> None:
    """Set ``gone`` when the client of a request that was read to its end hangs up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    gone.set()
