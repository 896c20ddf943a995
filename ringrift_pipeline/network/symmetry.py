"""Symmetries of the boards, to train on every position from every side and to evaluate it so.

The squares have eight. Of a hexagon's twelve, ``hexagonal`` has all, while hex8 keeps the four
that its border rule respects (it collapses along the axial offsets (1, 1) and (-1, -1) too).

Positions and moves follow the symmetry exactly, but for two kinds of packed moves that name a set
of cells by some of them: a turned region, and the window of a recovery that pays nothing, keep
their cells, though not always those by which the rules name them on the turned board. And one rule
knows a direction: a recovery slide that forms two lines of one length collapses the one of the
first axis (RR-CANON-R112), so what it leaves is not always the turn of what it leaves elsewhere.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ringrift_pipeline.game import layout

if TYPE_CHECKING:
    from ringrift_pipeline.game import Rules

_FIELDS = {
    layout.PLACE_RING: "a",
    layout.MOVE_STACK: "ab",
    layout.OVERTAKING_CAPTURE: "abc",
    layout.CONTINUE_CAPTURE: "abc",
    layout.PROCESS_LINE: "ab",
    layout.CHOOSE_LINE_ALL: "ab",
    layout.CHOOSE_LINE_WINDOW: "abcd",
    layout.CHOOSE_TERRITORY: "ab",
    layout.ELIMINATE_RINGS: "a",
    layout.FORCED_ELIMINATION: "a",
    layout.RECOVERY_LINE: "abcd",  # a field that names no cell is 0, which is off the board
    layout.RECOVERY_FALLBACK: "abc",
    layout.RECOVERY_STRIKE: "abc",
}
"""Which fields of a packed move are cells."""
_LINES = (layout.PROCESS_LINE, layout.CHOOSE_LINE_ALL, layout.CHOOSE_LINE_WINDOW)


def symmetry_tables(rules: Rules) -> npt.NDArray[np.int64]:
    """(K, N*N) where each symmetry sends each plane cell; row 0 is the identity.

    K is 8 on square boards, 12 on ``hexagonal``, 4 on hex8. Cells of the plane that are off the
    board stay where they are (they hold nothing).
    """
    n = rules.size
    y, x = np.divmod(np.arange(n * n), n)
    images = []
    if rules.geometry == "square":
        for flip in (False, True):
            u, v = (y, x) if flip else (x, y)
            for _ in range(4):
                images.append(v * n + u)
                u, v = n - 1 - v, u
    else:
        radius = n // 2
        for flip in (False, True):
            u, v = (y - radius, x - radius) if flip else (x - radius, y - radius)
            for turn in range(6):
                if rules.constants[layout.B_BORDER_FLOOD] == 0 or turn % 3 == 0:
                    images.append((v + radius) * n + u + radius)
                u, v = -v, u + v
    tables = np.tile(np.arange(n * n), (len(images), 1))
    on_board = rules.plane_of[rules.cells]
    for table, image in zip(tables, images, strict=True):
        table[on_board] = image[on_board]
    return tables


class BoardSymmetries:
    """The symmetries of a config's board, applied to arrays of positions and moves.

    Every method takes ``which``, one number in ``0..count - 1`` a row (0 is the identity), and
    leaves its arguments as they are.

    Raises:
        ValueError: ``which`` does not fit the rows, or holds no such symmetry.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.tables = symmetry_tables(rules)
        self._inverse = np.argsort(self.tables, axis=1)
        self._plane_image = self.tables.astype(np.int16)
        self._upright = -1 if rules.geometry == "hex" else 1

    @property
    def count(self) -> int:
        """Symmetries, the identity included."""
        return len(self.tables)

    def planes(self, planes: npt.NDArray, which: npt.NDArray[np.integer]) -> npt.NDArray:
        """Planes (B, C, N, N) of any dtype, each position turned by its ``which`` (B,)."""
        self._check(which, len(planes))
        flat = planes.reshape(*planes.shape[:2], -1)
        turned = np.empty_like(flat)
        for symmetry in np.unique(which):
            rows = np.flatnonzero(which == symmetry)
            turned[rows] = np.take(flat[rows], self._inverse[symmetry], axis=2)
        return turned.reshape(planes.shape)

    def cells(
        self,
        cells: npt.NDArray[np.int16],
        kinds: npt.NDArray[np.uint8],
        which: npt.NDArray[np.integer],
    ) -> npt.NDArray[np.int16]:
        """Described moves' plane cells (M, 3), turned by ``which`` (M,); -1, no cell, stays.

        ``kinds`` (M,) are their move kinds.
        """
        self._check(which, len(cells))
        turned = np.where(cells < 0, cells, self._plane_image[which[:, None], cells])
        lines = np.flatnonzero(np.isin(kinds, _LINES))
        y, x = np.divmod(turned[lines, :2].astype(np.int64), self.rules.size)
        backwards = lines[self._backwards(x, y)]
        turned[backwards, :2] = turned[backwards, 1::-1]
        return turned

    def states(
        self, states: npt.NDArray[np.int64], which: npt.NDArray[np.integer]
    ) -> npt.NDArray[np.int64]:
        """Compact states (B, HEADER + P) of ``states`` (B, S), turned by ``which`` (B,).

        The rows' masks, if any, are left out: they are the engine's, not the position's.
        """
        self._check(which, len(states))
        padded = len(self.rules.plane_of)
        turned = states[:, : layout.HEADER + padded].copy()
        images = self._padded[which]
        np.put_along_axis(turned, layout.HEADER + images, states[:, layout.HEADER :][:, :padded], 1)
        bound = states[:, layout.MUST_MOVE]
        moved = np.take_along_axis(images, np.maximum(bound, 0)[:, None], axis=1)[:, 0]
        turned[:, layout.MUST_MOVE] = np.where(bound < 0, bound, moved)
        return turned

    def moves(
        self, moves: npt.NDArray[np.int64], which: npt.NDArray[np.integer]
    ) -> npt.NDArray[np.int64]:
        """Packed moves (B, L), in their order, turned by ``which`` (B,); see the module."""
        self._check(which, len(moves))
        kinds = moves & layout.KIND_MASK
        fields = (moves[..., None] >> np.array([5, 15, 25, 35])) & 1023
        images = self._padded[which[:, None, None], np.minimum(fields, self._padded.shape[1] - 1)]
        fields = np.where(self._is_cell[kinds], images, fields)
        lines = np.isin(kinds, _LINES)
        y, x = np.divmod(fields[lines][:, :2], self.rules.constants[layout.B_STRIDE])
        swapped = fields[lines]
        backwards = self._backwards(x, y)
        swapped[backwards] = swapped[backwards][:, [1, 0, 3, 2]]
        fields[lines] = swapped
        packed = kinds
        for position, shift in enumerate((5, 15, 25, 35)):
            packed = packed | (fields[..., position] << shift)
        return packed

    def _backwards(self, x: npt.NDArray, y: npt.NDArray) -> npt.NDArray[np.bool_]:
        """Whether lines from (x, y)[:, 0] to (x, y)[:, 1] run against the order of the rules.

        They list a line from left to right, an upright one in the direction of its axis.
        """
        upright = (y[:, 1] - y[:, 0]) * self._upright
        return np.where(x[:, 0] == x[:, 1], upright, x[:, 1] - x[:, 0]) < 0

    @cached_property
    def _padded(self) -> npt.NDArray[np.int64]:
        """(K, P) where each symmetry sends each padded cell."""
        rules = self.rules
        padded_of = np.zeros(rules.size**2, np.int64)
        padded_of[rules.plane_of[rules.cells]] = rules.cells
        tables = np.tile(np.arange(len(rules.plane_of)), (self.count, 1))
        tables[:, rules.cells] = padded_of[self.tables[:, rules.plane_of[rules.cells]]]
        return tables

    @cached_property
    def _is_cell(self) -> npt.NDArray[np.bool_]:
        """(32, 4) which fields of a kind are cells."""
        table = np.zeros((layout.KIND_MASK + 1, 4), np.bool_)
        for kind, fields in _FIELDS.items():
            table[kind, : len(fields)] = True
        return table

    def _check(self, which: npt.NDArray[np.integer], rows: int) -> None:
        if np.shape(which) != (rows,) or np.asarray(which).dtype.kind not in "iu":
            raise ValueError(f"which must be {rows} whole numbers, got shape {np.shape(which)}")
        if rows and (which.min() < 0 or which.max() >= self.count):
            raise ValueError(
                f"which must lie in 0..{self.count - 1} on {self.rules.config}, "
                f"got {which.min()} to {which.max()}"
            )
