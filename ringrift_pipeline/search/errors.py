"""Errors of search and players."""

from __future__ import annotations


class SearchError(ValueError):
    """A search or player was asked for something that makes no sense."""


class EvaluationError(RuntimeError):
    """An evaluator returned the wrong shape, or a number that is not finite."""


class PlayerSpecError(ValueError):
    """A player specification names no player; the message lists the valid ones."""
