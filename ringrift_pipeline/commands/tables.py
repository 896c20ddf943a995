"""Tables that fit the terminal: turned on their side, and in parts, where it is too narrow."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from ringrift_pipeline.commands.console import output

BOUNDLESS = 100_000  # characters, more than any table is wide


def fitting(
    title: str,
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    console: Console = output,
    caption: str | None = None,
) -> list[Table]:
    """One row an entry; or one column an entry, as many side by side as the console is wide.

    Parameters
    ----------
    names:
        What the cells of a row are; the first tells the entries apart.
    rows:
        An entry each, its cells in the order of ``names``; plain text.
    caption:
        Stands below the last table.
    """
    upright = _table(title, [names, *rows], console.width)
    if not rows or fits(upright, console):
        upright.caption = caption
        return [upright]
    tables = []
    for first, end in pairwise([0, *_ends(names, rows, console)]):
        whole = "" if first else title
        tables.append(_table(whole, _turned(names, rows[first:end]), console.width))
    tables[-1].caption = caption
    return tables


def fits(table: Table, console: Console = output) -> bool:
    """Whether no cell of ``table`` would be broken."""
    boundless = console.options.update(max_width=BOUNDLESS)
    return Measurement.get(console, boundless, table).maximum <= console.width


def _ends(names: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> list[int]:
    """Where each part ends: as many rows as fit side by side, one at least."""
    ends, first = [], 0
    for end in range(1, len(rows) + 1):
        if end - first > 1 and not fits(_table("", _turned(names, rows[first:end])), console):
            first = end - 1
            ends.append(first)
    return [*ends, len(rows)]


def _turned(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    return list(zip(names, *rows, strict=True))


def _table(title: str, lines: Sequence[Sequence[str]], width: int = 0) -> Table:
    """At least as wide as its title, up to ``width``. Of ``lines`` the first is the head; the first
    column stands to the left, the others, numbers, to the right.
    """
    table = Table(title=title or None, min_width=min(len(title), width))
    for number, name in enumerate(lines[0]):
        table.add_column(name, justify="right" if number else "left")
    for line in lines[1:]:
        table.add_row(*line)
    return table
