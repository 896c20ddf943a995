"""A board as an SVG picture that stands alone and that a page's style sheet can restyle."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ringrift_pipeline.drawing.moves import area_of, path_of
from ringrift_pipeline.drawing.text import all_cells

if TYPE_CHECKING:
    from ringrift_pipeline.game import Rules

STEP = 40.0  # between the centres of neighbours in a row
ROW = 35.0  # between rows of a hexagonal board; sqrt(3)/2 steps, but for what makes numbers short
MARGIN = 18.0  # for the coordinates
RING = 13.0  # radius
LEAN = 3.0  # that a ring lies above the one beneath it
TALLEST = 13.0  # that the top of a stack lies above its bottom, at most

FILLS = ("#c0443c", "#2f6cb0", "#2d8661", "#b4820e")  # of seats 1 to 4, as in COLORS
GROUND, CELL, INK, QUIET, ACCENT = "#fbfaf7", "#ebe6db", "#26241f", "#8b8577", "#7a3fb0"

Point = tuple[float, float]


def board_svg(
    config: str,
    record: dict[str, Any],
    *,
    last_move: dict[str, Any] | None = None,
    highlighted: Iterable[str] = (),
    shares: Sequence[tuple[dict[str, Any], float]] = (),
    compact: bool = False,
) -> str:
    """The board of a state's record as an SVG document, without scripts, styles or links.

    A seat is told by shape as well as colour: disc, diamond, triangle, square for seats 1 to 4.
    A marker is that shape; collapsed space is a tinted cell that holds its outline; a stack is its
    rings, bottom to top, the shape cut out of the top one around the stack's height. Colours are
    attributes, so that a style sheet overrides them by class: ``s1`` … ``s4`` (seat), ``cells``,
    ``last``, ``lit``, ``shares``; every cell is a path with its name in ``data-cell``.

    Parameters
    ----------
    config: name of the config that the record is of.
    record: a state as ``State.to_record`` or a trace has it.
    last_move: record of a move whose cells are outlined with dashes.
    highlighted: names of cells that are outlined.
    shares: move records with their shares (0 to 1), drawn as arrows or rings that are stronger
        the larger the share, with the share in percent; pass the few best moves.
    compact: for a picture that must be small: empty cells are one path and have no names, cells are
        dots of their size, rings have no class.

    Raises
    ------
    ValueError
        for an unknown config.
    RecordError
        for a cell that the board does not have; the message names it.
    """
    from ringrift_pipeline.game import get_rules

    rules = get_rules(config)
    centres = {cell: _centre(cell) for cell in all_cells(rules)}
    left, top = (min(point[i] for point in centres.values()) for i in (0, 1))
    right, bottom = (max(point[i] for point in centres.values()) for i in (0, 1))
    edge = STEP / 2 + 4
    x, y = left - edge - MARGIN, top - edge - MARGIN * (rules.geometry == "square")
    height = bottom + edge + MARGIN * (rules.geometry == "hex") - y
    box = f"{_n(x)} {_n(y)} {_n(right + edge - x)} {_n(height)}"
    picture = _Picture(rules, record, centres, compact)
    arrows, labels = picture.arrows(shares)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" role="img" class="board" '
        f'font-family="system-ui,sans-serif" text-anchor="middle" aria-label="{_label(config, record)}">'
        f'<rect class="ground" x="{_n(x)}" y="{_n(y)}" width="100%" height="100%" fill="{GROUND}"/>'
        + picture.coordinates()
        + picture.cells()
        + picture.outlines("last", _cells_of(last_move), QUIET, ' stroke-dasharray="5 4"')
        + picture.outlines("lit", highlighted, ACCENT)
        + arrows
        + picture.pieces()
        + labels
        + "</svg>"
    )


def _label(config: str, record: dict[str, Any]) -> str:
    if record["player"] is None:
        return f"{config}: seat {record['winner']} has won"
    return f"{config}: seat {record['player']} to move, {record['phase']}"


def _cells_of(move: dict[str, Any] | None) -> list[str]:
    return [] if move is None else [*path_of(move), *area_of(move)]


def _centre(cell: str) -> Point:
    x, y, *z = map(int, cell.split(","))
    return (STEP * (x + z[0] / 2), ROW * z[0]) if z else (STEP * x, STEP * y)


def _n(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")


def _dots(points: Sequence[Point]) -> str:
    """A path of lines of no length at the points: each is what its ends are drawn as."""
    x, y = points[0]
    parts: list[str] = []
    for a, b in points:
        parts.append(f"m{_n(a - x)} {_n(b - y)}h0" if parts else f"M{_n(a)} {_n(b)}h0")
        x, y = a, b
    return "".join(parts)


def _shape(seat: int, at: Point, size: float) -> str:
    """The path of a seat's shape around a point; all four cover about the same area."""
    x, y = at
    if seat == 1:
        r, d = _n(size), _n(2 * size)
        return f"M{_n(x - size)} {_n(y)}a{r} {r} 0 1 0 {d} 0a{r} {r} 0 1 0-{d} 0z"
    if seat == 2:
        r = _n(1.3 * size)
        return f"M{_n(x)} {_n(y - 1.3 * size)}l{r} {r}-{r} {r}-{r}-{r}z"
    if seat == 3:
        w, h = 1.45 * size, 2.3 * size
        return f"M{_n(x)} {_n(y - 0.62 * h)}l{_n(w)} {_n(h)}h-{_n(2 * w)}z"
    d = _n(1.8 * size)
    return f"M{_n(x - 0.9 * size)} {_n(y - 0.9 * size)}h{d}v{d}h-{d}z"


class _Picture:
    """The parts of one picture, each a group of elements."""

    def __init__(
        self, rules: Rules, record: dict[str, Any], centres: dict[str, Point], compact: bool
    ) -> None:
        self.rules = rules
        self.record = record
        self.centres = centres
        self.compact = compact

    def at(self, cell: str) -> Point:
        try:
            return self.centres[cell]
        except KeyError:
            from ringrift_pipeline.game import RecordError

            raise RecordError(f"{cell!r} is no cell of {self.rules.board}") from None

    def outline(self, cell: str) -> str:
        x, y = self.at(cell)
        if self.rules.geometry == "square":
            return f"M{_n(x - 18.5)} {_n(y - 18.5)}h37v37h-37z"
        return f"M{_n(x)} {_n(y - 21)}l18 10v22l-18 10-18-10v-22z"

    def coordinates(self) -> str:
        """x along the upper edge (the lower one of a hexagonal board), y or z down the left one."""
        down = self.rules.geometry == "hex"
        ends: dict[int, Point] = {}  # of every column of equal x
        rows: dict[int, Point] = {}  # the leftmost cell of every row
        for cell, (x, y) in self.centres.items():
            parts = cell.split(",")
            column, row = int(parts[0]), int(parts[-1])
            if column not in ends or (y > ends[column][1]) == down:
                ends[column] = (x, y)
            if row not in rows or x < rows[row][0]:
                rows[row] = (x, y)
        aside, above = (10.0, -34.0) if down else (0.0, 25.0)
        texts = [(x + aside, y - above, text) for text, (x, y) in ends.items()]
        texts += [(x - STEP / 2 - 9, y + 4, text) for text, (x, y) in rows.items()]
        inside = "".join(f'<text x="{_n(x)}" y="{_n(y)}">{text}</text>' for x, y, text in texts)
        return f'<g class="edge" fill="{QUIET}" font-size="11">{inside}</g>'

    def cells(self) -> str:
        collapsed = self.record["collapsed"]
        for cell in collapsed:
            self.at(cell)
        if self.compact:
            return self.merged_cells(collapsed)
        paths = []
        for cell in self.centres:
            seat = collapsed.get(cell)
            tint = f' class="s{seat}" fill="{FILLS[seat - 1]}" fill-opacity=".42"' if seat else ""
            paths.append(f'<path data-cell="{cell}"{tint} d="{self.outline(cell)}"/>')
        return f'<g class="cells" fill="{CELL}">{"".join(paths)}</g>'

    def merged_cells(self, collapsed: dict[str, int]) -> str:
        """The empty cells as one path and each seat's space as one: dots at their centres."""
        owned: dict[int, list[str]] = {}
        for cell in self.centres:
            owned.setdefault(collapsed.get(cell, 0), []).append(cell)
        paths = []
        for seat, cells in sorted(owned.items()):
            look = f' class="s{seat}" stroke="{FILLS[seat - 1]}" opacity=".42"' if seat else ""
            paths.append(f'<path{look} d="{_dots([self.centres[cell] for cell in cells])}"/>')
        cap = "square" if self.rules.geometry == "square" else "round"
        return (
            f'<g class="cells" stroke="{CELL}" stroke-width="37" stroke-linecap="{cap}">'
            f"{''.join(paths)}</g>"
        )

    def outlines(self, name: str, cells: Iterable[str], stroke: str, more: str = "") -> str:
        path = "".join(self.outline(cell) for cell in dict.fromkeys(cells))
        if not path:
            return ""
        return (
            f'<path class="{name}" d="{path}" fill="none" stroke="{stroke}" '
            f'stroke-width="2.5"{more}/>'
        )

    def pieces(self) -> str:
        parts = []
        for seat in range(1, self.rules.players + 1):
            owned = [cell for cell, owner in self.record["collapsed"].items() if owner == seat]
            marked = [cell for cell, owner in self.record["markers"].items() if owner == seat]
            fill = FILLS[seat - 1]
            if owned:
                path = "".join(_shape(seat, self.at(cell), 5.5) for cell in owned)
                parts.append(
                    f'<path class="s{seat} won" d="{path}" fill="none" stroke="{fill}" '
                    'stroke-width="1.8"/>'
                )
            if marked:
                path = "".join(_shape(seat, self.at(cell), 6.5) for cell in marked)
                parts.append(f'<path class="s{seat}" d="{path}" fill="{fill}"/>')
        standing: dict[str, str] = self.record["stacks"]
        stacks = "".join(self.rings(cell, on) for cell, on in standing.items())
        holes = "".join(_shape(int(on[-1]), self.at(cell), 7.2) for cell, on in standing.items())
        heights = "".join(
            f'<text x="{_n(x)}" y="{_n(y + 4)}">{len(on)}</text>'
            for (x, y), on in ((self.at(cell), on) for cell, on in standing.items())
            if len(on) > 1
        )
        if standing:
            stacks += f'<path class="hole" d="{holes}" fill="{GROUND}"/>'
        return (
            f'<g class="pieces" stroke-width="1">{"".join(parts)}'
            f'<g class="stacks" stroke="{GROUND}" font-size="11" font-weight="600">{stacks}'
            f'<g fill="{INK}" stroke="none">{heights}</g></g></g>'
        )

    def rings(self, cell: str, rings: str) -> str:
        x, middle = self.at(cell)
        lean = min(LEAN, TALLEST / max(1, len(rings) - 1))
        parts = []
        for i, digit in enumerate(rings):
            y = middle + lean * ((len(rings) - 1) / 2 - i)
            seat = "" if self.compact else f' class="s{digit}"'
            parts.append(
                f'<circle{seat} cx="{_n(x)}" cy="{_n(y)}" r="{_n(RING)}" '
                f'fill="{FILLS[int(digit) - 1]}"/>'
            )
        return "".join(parts)

    def arrows(self, shares: Sequence[tuple[dict[str, Any], float]]) -> tuple[str, str]:
        """What lies beneath the pieces, and the labels above them."""
        if not shares:
            return "", ""
        strongest = max(share for _, share in shares) or 1.0
        said: dict[str, list[str]] = {}  # of each cell, the shares of the moves that end there
        lines = []
        for move, share in shares:
            path, area = path_of(move), area_of(move)
            strength = share / strongest
            look = f'opacity="{0.35 + 0.6 * strength:.2f}" stroke-width="{_n(1.5 + 3 * strength)}"'
            if len(path) > 1:
                points = [self.at(cell) for cell in path]
                d = "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in points)
                (x, y), end = points[-1], path[-1]
                lines.append(f'<g {look}><path d="{d}"/>')
                lines.append(f'<circle cx="{_n(x)}" cy="{_n(y)}" r="5" class="tip"/></g>')
            elif path or area:
                end = path[0] if path else area[len(area) // 2]
                around = "".join(self.outline(cell) for cell in area or path)
                lines.append(f'<path {look} d="{around}"/>')
            else:
                continue  # a skip has no cell
            said.setdefault(end, []).append(f"{share:.0%}")
        texts = []
        for cell, found in said.items():
            x, y = self.at(cell)
            for i, text in enumerate(found):
                place = y + 17 - 12 * (len(found) - 1 - i)  # below what stands on the cell
                texts.append(f'<text x="{_n(x)}" y="{_n(place)}">{text}</text>')
        arrows = (
            f'<g class="shares" fill="none" stroke="{ACCENT}" stroke-linecap="round">'
            f"{''.join(lines)}</g>"
        )
        labels = (
            f'<g class="labels" fill="{INK}" stroke="{GROUND}" stroke-width="3" '
            f'paint-order="stroke" font-size="11" font-weight="600">{"".join(texts)}</g>'
        )
        return arrows, labels
