"""Errors of search and players."""

from __future__ import annotations

from ringrift_pipeline.network.errors import EvaluationError, NonFiniteOutputError


class SearchError(ValueError):
    """A search or player was asked for something that makes no sense."""


class PlayerSpecError(ValueError):
    """A player specification names no player; the message lists the valid ones."""


class SearchStopped(Exception):
    """A search was given up by whoever asked for it (see :func:`~.stopping.stoppable`)."""


__all__ = [
    "EvaluationError",
    "NonFiniteOutputError",
    "PlayerSpecError",
    "SearchError",
    "SearchStopped",
]
