"""State rows in, arrays of encoded positions out; what the arrays mean is in ``encoding``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ringrift_pipeline.game import layout
from ringrift_pipeline.network.encoding import (
    NUM_GLOBALS,
    NUM_PLANES,
    ON_BOARD,
    content_planes,
    encode_batch,
)
from ringrift_pipeline.network.moves import CELL_ROLES, CELLS_PER_MOVE

if TYPE_CHECKING:
    from ringrift_pipeline.game import Rules


def _cell_of(rules: Rules) -> npt.NDArray[np.int32]:
    """(N*N,) padded cell of each plane cell, -1 off the board."""
    out = np.full(rules.size * rules.size, -1, dtype=np.int32)
    cells = np.asarray(rules.cells)
    out[np.asarray(rules.plane_of)[cells]] = cells
    return out


class Encoder:
    """Encodes batches of one config into buffers of its own; an instance serves one thread.

    Planes lie in memory cell by cell (channels last), as convolutions on the CPU want them.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._plane_of = np.ascontiguousarray(rules.plane_of, dtype=np.int32)
        self._cells = np.ascontiguousarray(rules.cells, dtype=np.int32)
        self._cell_of = _cell_of(rules)
        area = rules.size * rules.size
        self._content_plane = content_planes(rules.players)
        board = np.zeros((area, NUM_PLANES), dtype=np.uint8)
        board[self._cell_of >= 0, ON_BOARD] = 1
        self._board = board.reshape(-1)
        self._seen = np.empty(area, dtype=np.uint8)
        self._queue = np.empty(area, dtype=np.int64)
        self._rows = 0
        self._width = 0
        self._reserve(1, 1)

    def _reserve(self, batch: int, width: int) -> None:
        if batch > self._rows:
            self._rows = batch
            area = self.rules.size * self.rules.size
            self._planes = np.empty((batch, area * NUM_PLANES), dtype=np.uint8)
            self._globals = np.empty((batch, NUM_GLOBALS), dtype=np.float32)
        if self._rows * width > self._width:
            self._width = self._rows * width
            self._kinds = np.empty(self._width, dtype=np.uint8)
            self._move_cells = np.empty(self._width * CELLS_PER_MOVE, dtype=np.int16)
            self._ranks = np.empty(self._width, dtype=np.int16)
            self._legal = np.empty(self._width, dtype=np.bool_)

    def encode(
        self,
        states: npt.NDArray[np.int64],
        moves: npt.NDArray[np.int64],
        counts: npt.NDArray[np.int32],
        rows: int = 0,
    ) -> dict[str, npt.NDArray[Any]]:
        """As :func:`encode_states`, but the arrays are overwritten by the next call.

        ``planes`` is a view with the planes last in memory. ``planes`` and ``globals`` have at
        least ``rows`` rows, zero beyond the batch.
        """
        states = np.ascontiguousarray(states, dtype=np.int64)
        moves = np.ascontiguousarray(moves, dtype=np.int64)
        counts = np.ascontiguousarray(counts, dtype=np.int32)
        self._check(states, moves, counts)
        batch, width = moves.shape
        size = int(self.rules.size)
        rows = max(batch, rows)
        self._reserve(rows, width)
        planes, globals_ = self._planes[:rows], self._globals[:rows]
        planes[batch:], globals_[batch:] = 0, 0.0
        kinds = self._kinds[: batch * width].reshape(batch, width)
        cells = self._move_cells[: batch * width * CELLS_PER_MOVE].reshape(batch, width, -1)
        ranks = self._ranks[: batch * width].reshape(batch, width)
        legal = self._legal[: batch * width].reshape(batch, width)
        wrong = encode_batch(
            self.rules.constants,
            states,
            moves,
            counts,
            self._plane_of,
            self._cell_of,
            self._cells,
            self._content_plane,
            CELL_ROLES,
            self._board,
            self._seen,
            self._queue,
            planes,
            globals_,
            kinds,
            cells,
            ranks,
            legal,
        )
        if wrong >= 0:
            if states[wrong, layout.PLAYER] < 0:
                raise ValueError(f"state {wrong} of the batch is over: it has no player to move")
            raise ValueError(f"counts must lie in 0..{width}, the width of moves")
        return {
            "planes": planes.reshape(rows, size, size, NUM_PLANES).transpose(0, 3, 1, 2),
            "globals": globals_,
            "move_kind": kinds,
            "move_cells": cells,
            "move_rank": ranks,
            "legal_mask": legal,
        }

    def _check(
        self,
        states: npt.NDArray[np.int64],
        moves: npt.NDArray[np.int64],
        counts: npt.NDArray[np.int32],
    ) -> None:
        least = layout.HEADER + self._plane_of.shape[0]
        if states.ndim != 2 or states.shape[1] < least:
            raise ValueError(
                f"states must have shape (B, {least} or more) for {self.rules.config}, "
                f"got {states.shape}"
            )
        batch = states.shape[0]
        if moves.ndim != 2 or moves.shape[0] != batch or counts.shape != (batch,):
            raise ValueError(
                f"moves must be (B, L) and counts (B,) with B={batch}, "
                f"got {moves.shape} and {counts.shape}"
            )


def encode_states(
    rules: Rules,
    states: npt.NDArray[np.int64],
    moves: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int32],
) -> dict[str, npt.NDArray[Any]]:
    """Encode positions and their legal moves, relative to each position's player to move.

    Args:
        rules: the config's rules.
        states: (B, >= HEADER+P) int64 state rows; the compact rows of a shard will do.
        moves: (B, L) int64 packed legal moves in canonical order, padded at will.
        counts: (B,) number of legal moves of each state.

    Returns:
        ``planes`` (B, NUM_PLANES, N, N) uint8, ``globals`` (B, NUM_GLOBALS) float32,
        ``move_kind`` (B, L) uint8, ``move_cells`` (B, L, 3) int16 plane cells (-1 = none),
        ``move_rank`` (B, L) int16, ``legal_mask`` (B, L) bool.

    Raises:
        ValueError: shapes disagree, a count exceeds L, or a state is over.
    """
    features = Encoder(rules).encode(states, moves, counts)
    return {name: np.ascontiguousarray(array) for name, array in features.items()}
