"""A move's record in words and in cells."""

from __future__ import annotations

from typing import Any

_PATH = ("from", "target", "to", "extract")  # in the order in which a move touches them
_AREA = ("collapse", "line", "region")


def describe(move: dict[str, Any]) -> str:
    """A move's record in words: ``move_stack from 3,4 to 3,6``."""
    parts = [move["type"]]
    for name, value in move.items():
        if name == "type":
            continue
        shown = " ".join(value) if isinstance(value, list) else value
        parts.append(f"{name} {shown}")
    return " ".join(parts)


def path_of(move: dict[str, Any]) -> list[str]:
    """The cells that a move touches one after the other, at most three; none for a skip."""
    return [move[name] for name in _PATH if name in move]


def area_of(move: dict[str, Any]) -> list[str]:
    """The cells that a move collapses: its choice of a line, else the line, else the region."""
    return next((list(move[name]) for name in _AREA if name in move), [])
