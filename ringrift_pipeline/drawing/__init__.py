"""A board as text for a terminal or as an SVG picture, moves in words; charts of reports.

Knows only `libraries` and `game`, of this only records and the boards' tables; importing it compiles
nothing.
"""

from ringrift_pipeline.drawing.moves import area_of, describe, path_of
from ringrift_pipeline.drawing.svg import board_svg
from ringrift_pipeline.drawing.text import COLORS, LEGEND, all_cells, draw, standing

__all__ = [
    "COLORS",
    "LEGEND",
    "all_cells",
    "area_of",
    "board_svg",
    "describe",
    "draw",
    "path_of",
    "standing",
]
