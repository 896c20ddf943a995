"""One position to analyse, and what an analysis finds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ringrift_pipeline.search import Player


@dataclass(eq=False)
class Job:
    """One turn of a query."""

    id: str
    turn: int  # moves made before it
    config: str
    row: np.ndarray  # (S,) int64 the position, which is not over
    player: Player
    visits: int  # simulations
    priority: int
    number: int  # jobs that arrived before it
    include_policy: bool = False
    max_moves: int | None = None

    @property
    def rank(self) -> tuple[int, int]:
        """What comes first is smaller: higher priority, then earlier arrival."""
        return (-self.priority, self.number)


@dataclass(frozen=True)
class Line:
    """A move that an analysis has looked at."""

    action: int  # its place among the legal moves
    value: np.ndarray | None  # (players,) float64 chances behind it, calibrated; None: unknown
    decisions: tuple[int, ...]  # packed moves of the principal variation, without forced ones
    follow: bool  # whether the forced moves belong to it


@dataclass(frozen=True)
class Findings:
    """What an analysis found of a position with ``n`` legal moves. Chances are calibrated."""

    moves: np.ndarray  # (n,) int64 packed legal moves in canonical order
    policy: np.ndarray  # (n,) float64 shares of play, sums to 1
    prior: np.ndarray | None  # (n,) float64 the network's policy; None where there is none
    visits: np.ndarray  # (n,) int64 simulations that began with each move
    root_visits: int  # simulations and the look at the position itself
    value: np.ndarray | None  # (players,) float64 chances; None: unknown
    raw: np.ndarray | None  # (players,) float64 the network's before search; None: not asked
    lines: list[Line]  # best first
