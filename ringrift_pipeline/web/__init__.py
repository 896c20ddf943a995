"""The page of ``ringrift play``: a game against any player, and every recorded game, in a browser.

The server keeps no games: the page sends the moves so far with every request and the rules replay
them, some 80,000 plies a second. What is kept is a handful of loaded players and open shards.
"""

from ringrift_pipeline.web.errors import RequestError
from ringrift_pipeline.web.guard import Access
from ringrift_pipeline.web.players import Players
from ringrift_pipeline.web.server import Defaults, create_app
from ringrift_pipeline.web.serving import listen, serve

__all__ = ["Access", "Defaults", "Players", "RequestError", "create_app", "listen", "serve"]
