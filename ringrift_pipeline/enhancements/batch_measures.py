"""What a batch showed of its samples: checked, finite, each sample once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ringrift_pipeline.enhancements.sample_slots import as_floats, as_games, as_indices, run_starts

LARGEST_MEASURE = 1e150  # of what is beyond, sums and products would not be finite


@dataclass(frozen=True)
class BatchMeasures:
    """Measures of K distinct samples.

    Attributes:
        rows: (K,) int64 data-set rows.
        loss: (K,) float64.
        excess: (K,) float64, loss above the reference model's.
        extra: uncertainty, surprise and the like by key, (K,) float64 each, where given.
        games: (K,) int64, or None.
        recorded: samples of the batch that these are, repeats included.
        skipped: samples left out because a number was not finite, or above ``LARGEST_MEASURE``.
    """

    rows: np.ndarray
    loss: np.ndarray
    excess: np.ndarray
    extra: dict[int, np.ndarray]
    games: np.ndarray | None
    recorded: int
    skipped: int

    def piece(self, part: slice | np.ndarray) -> BatchMeasures:
        """The same of some of the rows, by a slice or (K,) bool."""
        return BatchMeasures(
            self.rows[part],
            self.loss[part],
            self.excess[part],
            {key: values[part] for key, values in self.extra.items()},
            None if self.games is None else self.games[part],
            self.recorded,
            self.skipped,
        )


def read_measures(
    indices: Any,
    losses: Any,
    reference_losses: Any | None,
    games: Any | None,
    extra: dict[int, tuple[Any | None, str]],
) -> BatchMeasures:
    """Measures of a batch; every argument has shape (B,).

    A sample that occurs more than once counts with the mean of its numbers and its first game.

    Args:
        indices: data-set rows.
        losses: the loss of each.
        reference_losses: a reference model's, or None.
        games: game of each, or None.
        extra: further numbers by key, each with its name for messages; None leaves one out.

    Raises:
        ValueError: lengths that differ, rows or games that are negative or not whole.
    """
    rows = as_indices(indices)
    size = rows.size
    loss = as_floats(losses, size, "losses")
    excess = loss
    if reference_losses is not None:
        excess = loss - as_floats(reference_losses, size, "reference_losses")
    columns = {
        key: as_floats(values, size, name)
        for key, (values, name) in extra.items()
        if values is not None
    }
    game = None if games is None else as_games(games, size)
    largest = np.abs(loss)
    for other in columns.values() if excess is loss else (excess, *columns.values()):
        largest += np.abs(other)
    finite = largest <= LARGEST_MEASURE  # not where one is NaN
    recorded = int(np.count_nonzero(finite))
    measures = BatchMeasures(rows, loss, excess, columns, game, recorded, size - recorded)
    if recorded < size:
        measures = measures.piece(finite)
    order = np.argsort(measures.rows, kind="stable")
    ordered = measures.rows[order]
    starts = run_starts(ordered)
    if recorded == 0 or starts.all():
        return measures
    at = np.flatnonzero(starts)
    times = np.diff(at, append=recorded)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values[order], at) / times

    return BatchMeasures(
        ordered[at],
        mean(measures.loss),
        mean(measures.excess),
        {key: mean(values) for key, values in measures.extra.items()},
        None if measures.games is None else measures.games[order[at]],
        recorded,
        size - recorded,
    )


__all__ = ["LARGEST_MEASURE", "BatchMeasures", "read_measures"]
