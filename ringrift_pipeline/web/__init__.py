"""The page of ``ringrift play``: a game against any player, and every recorded game, in a browser;
and the guard that it shares with the Dagster UI.

The server keeps no games: the page sends the moves so far with every request and the rules replay
them, some 80,000 plies a second. What is kept is a handful of loaded players and open shards.

The names below are imported on first use, so that guarding another's pages loads no rules.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ringrift_pipeline.web.errors import RequestError
    from ringrift_pipeline.web.guard import Access
    from ringrift_pipeline.web.players import Players
    from ringrift_pipeline.web.server import Defaults, create_app
    from ringrift_pipeline.web.serving import bind, listen, serve, token_for
    from ringrift_pipeline.web.ui_guard import UIGuard

_MODULE_OF = {
    "Access": "guard",
    "Defaults": "server",
    "Players": "players",
    "RequestError": "errors",
    "UIGuard": "ui_guard",
    "bind": "serving",
    "create_app": "server",
    "listen": "serving",
    "serve": "serving",
    "token_for": "serving",
}

__all__ = [
    "Access",
    "Defaults",
    "Players",
    "RequestError",
    "UIGuard",
    "bind",
    "create_app",
    "listen",
    "serve",
    "token_for",
]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
