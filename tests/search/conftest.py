"""Positions of random games, and evaluators whose answers are easy to predict."""

from __future__ import annotations

import functools

import numpy as np

from ringrift_pipeline.game import get_rules, kernels
from ringrift_pipeline.search.noise import hash_row, uniform


def legal(config: str, row: np.ndarray) -> list[int]:
    rules = get_rules(config)
    buffer = np.empty(rules.max_moves, dtype=np.int64)
    return [int(m) for m in buffer[: kernels.legal_moves(rules.constants, row, buffer)]]


def after(config: str, row: np.ndarray, move: int) -> np.ndarray:
    """The position after a move and the forced moves that follow it."""
    rules = get_rules(config)
    row = row.copy()
    kernels.apply_move(rules.constants, row, move)
    while len(moves := legal(config, row)) == 1:
        kernels.apply_move(rules.constants, row, moves[0])
    return row


def result(config: str, row: np.ndarray) -> np.ndarray:
    """Share of the win of every seat in a finished position."""
    rules = get_rules(config)
    points = np.zeros(rules.players)
    kernels.ranking_points(rules.constants, row, points)
    return points


@functools.cache
def game_rows(config: str, seed: int, swap: int = 0) -> np.ndarray:
    """Every position of one random game but the last, (plies, S) int64."""
    rules = get_rules(config)
    rng = np.random.default_rng(seed)
    row = np.zeros(rules.state_size, dtype=np.int64)
    kernels.initial_state(rules.constants, row, swap)
    rows = []
    while moves := legal(config, row):
        rows.append(row.copy())
        kernels.apply_move(rules.constants, row, moves[rng.integers(len(moves))])
    return np.array(rows)


def decisions(config: str, seed: int, swap: int = 0) -> np.ndarray:
    """The positions of a random game that offer two or more moves."""
    rows = game_rows(config, seed, swap)
    return rows[[len(legal(config, row)) > 1 for row in rows]]


class HashEvaluator:
    """Arbitrary logits and values that are a pure function of each row; counts its work."""

    def __init__(self, players: int, spread: float = 3.0) -> None:
        self.players = players
        self.spread = spread
        self.batches: list[int] = []
        self.shown: list[tuple[np.ndarray, np.ndarray, int]] = []

    def one(self, row: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        key = np.uint64(hash_row(row, 7))
        logits = np.array([self.spread * uniform(key, i) for i in range(width)], dtype=np.float32)
        raw = np.array([0.05 + uniform(key, 10_000 + p) for p in range(self.players)])
        return logits, (raw / raw.sum()).astype(np.float32)

    def evaluate(self, states, moves, counts):
        self.batches.append(len(states))
        logits = np.full(moves.shape, np.nan, dtype=np.float32)
        values = np.empty((len(states), self.players), dtype=np.float32)
        for i, row in enumerate(states):
            self.shown.append((row.copy(), moves[i].copy(), int(counts[i])))
            logits[i, : counts[i]], values[i] = self.one(row, int(counts[i]))
        return logits, values
