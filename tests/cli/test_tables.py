"""Tables of the command line on wide and on narrow terminals."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ringrift_pipeline.commands.tables import fitting

NAMES = ("config", "games", "rating (95%)")
CELL = st.text("abcdefgh0123456789,()", min_size=1, max_size=24)


def printed(rows: list[tuple[str, ...]], width: int, names: tuple[str, ...] = NAMES) -> list[str]:
    """The lines of the tables, box characters replaced by spaces."""
    console = Console(file=io.StringIO(), width=width)
    for table in fitting("what it is", names, rows, console=console, caption="the end"):
        console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return ["".join(" " if ord(c) > 0x2000 else c for c in line) for line in text.splitlines()]


@given(st.lists(st.tuples(CELL, CELL, CELL), max_size=9), st.integers(50, 120))
def test_no_cell_is_broken_lost_or_out_of_order(rows: list[tuple[str, ...]], width: int) -> None:
    lines = printed(rows, width)
    assert max(map(len, lines)) <= width
    words = [line.split() for line in lines]
    if ["config", "games", "rating", "(95%)"] in words:  # upright: a line an entry
        assert [tuple(w) for w in words if len(w) == 3 and w != ["what", "it", "is"]] == rows
        return
    for name, cells in zip(("config", "games"), zip(*rows, strict=True), strict=False):
        found = [cell for w in words if w[:1] == [name] for cell in w[1:]]
        assert found == list(cells)
    ratings = [cell for w in words if w[:2] == ["rating", "(95%)"] for cell in w[2:]]
    assert ratings == [row[2] for row in rows]


def test_it_stands_upright_where_it_fits_and_lies_where_it_does_not() -> None:
    names = ("config", "games", "newest", "evaluated", "rating")
    rows = [(f"square{n}_2p", "1,600", "0012", "0011", "1809") for n in (8, 19, 21)]
    wide, narrow = printed(rows, 60, names), printed(rows, 42, names)
    assert sum("square" in line for line in wide) == 3
    heads = [line.split() for line in narrow if "square" in line]
    assert heads == [["config", "square8_2p", "square19_2p"], ["config", "square21_2p"]]
    assert sum("what it is" in line for line in narrow) == 1
    assert "the end" in narrow[-1] and "the end" in wide[-1]
