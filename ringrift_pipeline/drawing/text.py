"""A position as text: square boards as a grid, hexagonal ones as shifted rows."""

from __future__ import annotations

from typing import Any

from rich.text import Text

COLORS = ("red", "blue", "green", "yellow")  # of seats 1 to 4
WIDTH = 4  # characters a cell
LEGEND = (
    "On the board: 1x3 a stack of three rings, seat 1's on top; o2 a marker of seat 2; "
    "#1 space that seat 1 collapsed; · nothing. Columns are x; rows are y, or z on hexagonal boards."
)


def cell_text(record: dict[str, Any], cell: str) -> tuple[str, str]:
    """What stands on a cell, and its style.

    ``·`` empty, ``o2`` a marker of seat 2, ``#1`` space collapsed by seat 1, ``1x3`` a stack of height 3
    whose top ring is seat 1's.
    """
    if cell in record["stacks"]:
        rings = record["stacks"][cell]
        top = int(rings[-1])
        return f"{top}x{len(rings)}", f"bold {COLORS[top - 1]}"
    if cell in record["markers"]:
        seat = record["markers"][cell]
        return f"o{seat}", COLORS[seat - 1]
    if cell in record["collapsed"]:
        seat = record["collapsed"][cell]
        return f"#{seat}", f"reverse {COLORS[seat - 1]}"
    return "·", "dim"


def draw(record: dict[str, Any], cells: list[str]) -> Text:
    """The board of a state's record; ``cells`` are all its cells, ``"x,y"`` or ``"x,y,z"``.

    Columns are x. Rows are y, or z on hexagonal boards, where each row is shifted by half a cell.
    """
    points = [tuple(map(int, cell.split(","))) for cell in cells]
    hexagonal = len(points[0]) == 3
    row_of = 2 if hexagonal else 1
    rows = sorted({point[row_of] for point in points})
    text = Text()
    # On a hexagonal row z, x runs from a start that depends on z; half a cell a row centres it.
    leftmost = min(2 * point[0] + (point[2] if hexagonal else point[0] * 0) for point in points)
    if not hexagonal:
        header = "".join(f"{x:>{WIDTH}}" for x in sorted({point[0] for point in points}))
        text.append(f"{'':>4}{header}\n", style="dim")
    for row in rows:
        inside = sorted(point for point in points if point[row_of] == row)
        text.append(f"{row:>4}", style="dim")
        if hexagonal:
            indent = (2 * inside[0][0] + row - leftmost) * WIDTH // 2
            text.append(" " * indent)
        for point in inside:
            shown, style = cell_text(record, ",".join(map(str, point)))
            text.append(f"{shown:>{WIDTH}}", style=style)
        if hexagonal:
            text.append(f"   x {inside[0][0]} to {inside[-1][0]}", style="dim")
        text.append("\n")
    return text


def standing(record: dict[str, Any]) -> Text:
    """Rings in hand, rings eliminated and territory of every seat."""
    text = Text()
    seats = zip(record["hand"], record["eliminated"], record["territory"], strict=True)
    for seat, (hand, eliminated, territory) in enumerate(seats, start=1):
        text.append(f"seat {seat}", style=f"bold {COLORS[seat - 1]}")
        text.append(
            f": {hand} ring{'' if hand == 1 else 's'} in hand, {eliminated} eliminated, {territory} territory\n"
        )
    return text


def all_cells(rules: Any) -> list[str]:
    """Every cell of a board, as its records name them."""
    return [rules.names[int(cell)] for cell in rules.cells]
