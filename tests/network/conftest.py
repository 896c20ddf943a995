"""Positions of real games for the network's tests."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch

from ringrift_pipeline.game import get_rules, kernels, layout


@dataclass(frozen=True)
class Positions:
    """A batch of unfinished positions: states (B, S), moves (B, L), counts (B,)."""

    states: npt.NDArray[np.int64]
    moves: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int32]

    def take(self, index: npt.NDArray[np.int64] | slice) -> Positions:
        return Positions(self.states[index], self.moves[index], self.counts[index])


@functools.cache
def random_positions(
    config: str, games: int = 1, seed: int = 0, decisions: bool = True
) -> Positions:
    """Every position of uniformly random games; with ``decisions``, those with a choice."""
    rules = get_rules(config)
    rng = np.random.default_rng([seed, *config.encode()])
    buffer = np.zeros(rules.max_moves, dtype=np.int64)
    states, moves = [], []
    for _ in range(games):
        state = np.zeros(rules.state_size, dtype=np.int64)
        kernels.initial_state(rules.constants, state, False)
        while state[layout.PHASE] != layout.OVER:
            count = kernels.legal_moves(rules.constants, state, buffer)
            if count > 1 or not decisions:
                states.append(state.copy())
                moves.append(buffer[:count].copy())
            kernels.apply_move(rules.constants, state, buffer[rng.integers(count)])
    return pack(states, moves)


def pack(states: list[npt.NDArray[np.int64]], moves: list[npt.NDArray[np.int64]]) -> Positions:
    """One batch, the moves padded with zeros."""
    counts = np.array([len(m) for m in moves], dtype=np.int32)
    padded = np.zeros((len(moves), int(counts.max())), dtype=np.int64)
    for row, legal in zip(padded, moves, strict=True):
        row[: len(legal)] = legal
    return Positions(np.array(states), padded, counts)


def spread(positions: Positions, count: int) -> Positions:
    """``count`` positions, evenly spread over the batch."""
    return positions.take(np.linspace(0, len(positions.counts) - 1, count).astype(np.int64))


@pytest.fixture(autouse=True)
def _single_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
