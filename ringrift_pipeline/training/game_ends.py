"""How games end, as targets of the network's auxiliary heads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ringrift_pipeline.training.window import UNKNOWN, Window

MAX_SEATS = 4
NOBODY = MAX_SEATS
"""Class of a cell that nobody owns; 0 to 3 are relative seats."""
NO_CLASS = -100
"""Class of a cell without a target: off the board, or of a game whose end is not known."""


class GameEnds:
    """The ends of a window's games, seen by each row's mover."""

    def __init__(self, window: Window) -> None:
        from ringrift_pipeline.game import get_rules, layout

        rules = get_rules(window.config)
        self._size = rules.size
        self._players = window.players
        self._game = np.array(window.game)
        self._player = np.array(window.player)
        self._owners = np.array(window.owners)
        on_board = np.zeros(rules.size**2, np.bool_)
        on_board[rules.plane_of[rules.cells]] = True
        # Off the board and unknown are alike from here on.
        self._owners[:, ~on_board] = UNKNOWN
        eliminated = np.asarray(window.eliminated, np.float32)
        threshold = float(rules.constants[layout.B_RING_THRESHOLD])
        others = (eliminated.sum(axis=1, keepdims=True) - eliminated) / max(1, self._players - 1)
        self._margin = (eliminated - others) / threshold
        self._margin[np.asarray(window.eliminated)[:, 0] == UNKNOWN] = np.nan

    def targets(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Territory (B, N, N) int64 and ring margin (B, 4) float32 of window rows (B,).

        Territory is the owner's seat relative to the mover, ``NOBODY`` or ``NO_CLASS``. The
        margin of a relative seat is the rings credited to it less the mean of the others', as a
        share of what wins the game; NaN for absent seats and where the end is not known.
        """
        game, mover = self._game[rows], self._player[rows].astype(np.int64)
        owners = self._owners[game].astype(np.int64)
        relative = (owners - mover[:, None]) % self._players
        territory = np.where(owners >= 0, relative, np.where(owners == -1, NOBODY, NO_CLASS))
        seats = (mover[:, None] + np.arange(self._players)) % self._players
        margin = np.full((len(rows), MAX_SEATS), np.nan, np.float32)
        margin[:, : self._players] = np.take_along_axis(self._margin[game], seats, axis=1)
        return territory.reshape(len(rows), self._size, self._size), margin
