"""The twelve configs: boards, adjacency, thresholds, as tables for the kernels."""

from __future__ import annotations

import difflib
import functools
from dataclasses import dataclass

import numpy as np

from ringrift_pipeline.game import layout

#: Board name -> (geometry, side of the bounding box, rings per player) (RR-CANON-R001, R020).
BOARDS = {
    "square8": ("square", 8, 18),
    "square19": ("square", 19, 72),
    "hex8": ("hex", 9, 18),
    "hexagonal": ("hex", 25, 96),
}
CONFIGS: tuple[str, ...] = tuple(f"{board}_{n}p" for board in BOARDS for n in (2, 3, 4))

#: Rays of movement, capture and lines (RR-CANON-R003); hexagonal ones in axial (x, y).
_DIRECTIONS = {
    "square": ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)),
    "hex": ((1, 0), (0, 1), (-1, 1), (-1, 0), (0, -1), (1, -1)),
}
#: Line axes in the order that decides between equally long recovery lines.
_AXES = {
    "square": ((1, 0), (1, 1), (0, 1), (1, -1)),
    "hex": ((1, 0), (1, -1), (0, -1)),
}


@dataclass(frozen=True, eq=False)
class Rules:
    """One config's rules as tables.

    Attributes:
        config: name of the config, ``square8_2p`` ... ``hexagonal_4p``.
        board: ``square8``, ``square19``, ``hex8`` or ``hexagonal``.
        geometry: ``square`` or ``hex``.
        players: number of seats, 2 to 4.
        size: side N of the square box that holds the board (8, 19, 9, 25).
        constants: int64 array, first argument ``b`` of every kernel.
        state_size: length S of a state row.
        max_moves: length of a buffer that holds any legal set.
        cells: int32 (number of cells,), padded index of each cell, row by row.
        plane_of: int32 (P,), padded index -> y * N + x in the box, -1 off the board.
        names: cell names of the trace format by padded index, "" off the board.
    """

    config: str
    board: str
    geometry: str
    players: int
    size: int
    rings_per_player: int
    ring_threshold: int
    territory_minimum: int
    line_length: int
    constants: np.ndarray
    state_size: int
    max_moves: int
    cells: np.ndarray
    plane_of: np.ndarray
    names: tuple[str, ...]
    cell_of: dict[str, int]

    @property
    def num_cells(self) -> int:
        """Number of cells on the board (64, 361, 61, 469)."""
        return len(self.cells)

    @property
    def padded(self) -> int:
        """Number of padded cells; ``state[HEADER : HEADER + padded]`` are the cell codes."""
        return int(self.constants[layout.B_PADDED])


def _coordinates(geometry: str, size: int) -> list[tuple[int, int, str]]:
    """(column, row, name) of every cell, row by row."""
    if geometry == "square":
        return [(x, y, f"{x},{y}") for y in range(size) for x in range(size)]
    radius = size // 2
    span = range(-radius, radius + 1)
    return [
        (x + radius, y + radius, f"{x},{y},{-x - y}")
        for y in span
        for x in span
        if abs(x + y) <= radius
    ]


def parse_config(config: str) -> tuple[str, int]:
    """Split a config name into board and number of players.

    Raises:
        ValueError: unknown name; the message lists the valid ones.
    """
    if config not in CONFIGS:
        near = difflib.get_close_matches(str(config), CONFIGS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown config {config!r}.{hint} Valid configs: {', '.join(CONFIGS)}")
    board, players = config.rsplit("_", 1)
    return board, int(players[0])


def get_rules(config: str) -> Rules:
    """The tables of one config (made once).

    Raises:
        ValueError: unknown config; the message lists the valid ones.
    """
    return _make_rules(*parse_config(config))


@functools.cache
def _make_rules(board: str, players: int) -> Rules:
    config = f"{board}_{players}p"
    geometry, size, rings = BOARDS[board]
    stride, rows = size + 1, size + 2
    padded = rows * stride + 1
    coordinates = _coordinates(geometry, size)
    cells = np.array([(y + 1) * stride + x + 1 for x, y, _ in coordinates], dtype=np.int32)
    names = [""] * padded
    plane_of = np.full(padded, -1, dtype=np.int32)
    for cell, (x, y, name) in zip(cells, coordinates, strict=True):
        names[cell] = name
        plane_of[cell] = y * size + x

    small = size <= 9
    line_length = 3 if small and players > 2 else 4
    ring_threshold = rings * (players + 1) // 3
    territory_minimum = len(cells) // players + 1

    b = np.zeros(layout.B_LENGTH, dtype=np.int64)
    b[layout.B_SIZE] = size
    b[layout.B_STRIDE] = stride
    b[layout.B_PADDED] = padded
    b[layout.B_ROWS] = rows
    b[layout.B_INVERSE] = 65536 // stride + 1
    b[layout.B_MASKS] = layout.HEADER + padded
    b[layout.B_STATE] = layout.HEADER + padded + layout.CLASSES * rows
    b[layout.B_PLAYERS] = players
    b[layout.B_RINGS] = rings
    b[layout.B_RING_THRESHOLD] = ring_threshold
    b[layout.B_TERRITORY_MINIMUM] = territory_minimum
    b[layout.B_LINE_LENGTH] = line_length
    b[layout.B_HEX] = geometry == "hex"
    b[layout.B_BORDER_FLOOD] = board != "hexagonal"
    b[layout.B_NUM_CELLS] = len(cells)
    directions, axes = _DIRECTIONS[geometry], _AXES[geometry]
    b[layout.B_NUM_DIRECTIONS] = len(directions)
    for i, (dx, dy) in enumerate(directions):
        b[layout.B_DIRECTIONS + i] = dy * stride + dx
    b[layout.B_NUM_AXES] = len(axes)
    for i, (dx, dy) in enumerate(axes):
        b[layout.B_AXES + i] = dy * stride + dx
    for cell in cells:
        row = int(cell) // stride
        if (int(cell) * int(b[layout.B_INVERSE])) >> 16 != row:
            raise AssertionError(f"row arithmetic fails for cell {cell} of {config}")
        b[layout.B_ON_BOARD + row] |= 1 << (int(cell) - row * stride)
    b.setflags(write=False)
    return Rules(
        config=config,
        board=board,
        geometry=geometry,
        players=players,
        size=size,
        rings_per_player=rings,
        ring_threshold=ring_threshold,
        territory_minimum=territory_minimum,
        line_length=line_length,
        constants=b,
        state_size=int(b[layout.B_STATE]),
        # A free cell is reached along an axis from at most two stacks on either side (one by a
        # move, one by a capture); recovery slides get what is left of the buffer.
        max_moves=max(8192, 4 * len(axes) * len(cells)),
        cells=cells,
        plane_of=plane_of,
        names=tuple(names),
        cell_of={name: cell for cell, name in enumerate(names) if name},
    )
