"""Giving up a search that nobody waits for any longer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ringrift_pipeline.search.errors import SearchStopped

_should_stop: ContextVar[Callable[[], bool]] = ContextVar("should_stop", default=lambda: False)


@contextmanager
def stoppable(should_stop: Callable[[], bool]) -> Iterator[None]:
    """Within it a Gumbel search asks ``should_stop`` before each batch, and ends if it says so.

    The search then raises :class:`SearchStopped`; what searched may be asked again. This holds for
    the current context (of :mod:`contextvars`) only. A rollout search is not asked.
    """
    token = _should_stop.set(should_stop)
    try:
        yield
    finally:
        _should_stop.reset(token)


def check_stop() -> None:
    """Raise :class:`SearchStopped` if whoever waits for this context's search has given it up."""
    if _should_stop.get()():
        raise SearchStopped("the search was given up")
