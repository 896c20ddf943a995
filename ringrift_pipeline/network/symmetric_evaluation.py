"""An evaluator that looks at every position from several sides and takes the mean."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from ringrift_pipeline.game import Rules
from ringrift_pipeline.network.errors import NonFiniteOutputError
from ringrift_pipeline.network.symmetry import BoardSymmetries


class _Evaluator(Protocol):
    rules: Rules

    def evaluate(
        self,
        states: npt.NDArray[np.int64],
        moves: npt.NDArray[np.int64],
        counts: npt.NDArray[np.int32],
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]: ...


class SymmetricEvaluator:
    """Averages another evaluator over symmetries of the board; costs as many evaluations.

    Args:
        inner: what evaluates; an :class:`Evaluator` of the network.
        symmetries: how many, the identity first; at most all that the board has.

    Raises:
        ValueError: fewer than 1.
    """

    def __init__(self, inner: _Evaluator, symmetries: int) -> None:
        if symmetries < 1:
            raise ValueError(f"symmetries must be at least 1, got {symmetries}")
        self.inner = inner
        self.rules = inner.rules
        self._board = BoardSymmetries(inner.rules)
        self.symmetries = min(symmetries, self._board.count)

    def evaluate(
        self,
        states: npt.NDArray[np.int64],
        moves: npt.NDArray[np.int64],
        counts: npt.NDArray[np.int32],
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """As the inner evaluator: mean probabilities, as logits (B, L), and mean values.

        Raises:
            ValueError: as the inner evaluator.
            NonFiniteOutputError: likewise; its rows are those of the batch.
        """
        batch, width = moves.shape
        which = np.repeat(np.arange(self.symmetries), batch)
        try:
            logits, values = self.inner.evaluate(
                self._board.states(np.tile(states, (self.symmetries, 1)), which),
                self._board.moves(np.tile(moves, (self.symmetries, 1)), which),
                np.tile(counts, self.symmetries),
            )
        except NonFiniteOutputError as error:
            rows = sorted({row % batch for row in error.rows})
            raise NonFiniteOutputError(str(error), rows) from None
        legal = np.arange(width) < counts[:, None]
        turned = logits.reshape(self.symmetries, batch, width).astype(np.float64)
        turned = np.where(legal, turned, -np.inf)
        turned -= turned.max(axis=2, keepdims=True)
        weights = np.exp(turned)
        mean = (weights / weights.sum(axis=2, keepdims=True)).mean(axis=0)
        out = logits[:batch].copy()  # whatever stands behind the legal moves
        out[legal] = np.log(np.maximum(mean[legal], 1e-30))
        return out, values.reshape(self.symmetries, batch, -1).mean(
            axis=0, dtype=np.float64
        ).astype(np.float32)


__all__ = ["SymmetricEvaluator"]
