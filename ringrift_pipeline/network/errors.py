"""What is raised where a network, or anything in its place, answers with what is no number."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ringrift_pipeline.game import Rules


class EvaluationError(RuntimeError):
    """An evaluator returned the wrong shape, or a number that is not finite."""


class MissingBackendError(ImportError):
    """What is to run a network is not installed; the message says what to do."""


class NonFiniteOutputError(EvaluationError):
    """A policy or value that is NaN or infinite; the message names model and position.

    Attributes:
        rows: which positions of the batch (or rows of a window) it was.
        slots: which searches of a pool, where it was one.
    """

    slots: tuple[int, ...] = ()

    def __init__(self, message: str, rows: Sequence[int] = ()) -> None:
        super().__init__(message, tuple(int(row) for row in rows))
        self.rows: tuple[int, ...] = self.args[1]

    def __str__(self) -> str:
        return str(self.args[0])


def check_outputs(
    model: str,
    rules: Rules,
    states: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int32],
    logits: npt.NDArray[np.float32],
    values: npt.NDArray[np.float32],
) -> None:
    """Refuse what a model says of positions unless every number of it is finite.

    Args:
        model: its name, for the message.
        states: (B, S) int64; the first that is refused is told whole, as a position that
            ``ringrift analyze`` takes as ``initialState``.
        counts: (B,) number of legal moves.
        logits: (B, L) float32, of which the first ``counts`` of a row count.
        values: (B, players) float32, values or their logits.

    Raises:
        NonFiniteOutputError: naming model, number of positions and the first of them.
    """
    # The sums are finite unless an entry is not, or they overflow, which is then looked into.
    with np.errstate(invalid="ignore", over="ignore"):
        if np.isfinite(logits.sum()) and np.isfinite(values.sum()):
            return
    legal = np.arange(logits.shape[1]) < np.asarray(counts)[:, None]
    policies = np.logical_or.reduce(~np.isfinite(logits) & legal, axis=1)
    bad = np.flatnonzero(policies | ~np.isfinite(values).all(axis=1))
    if not bad.size:
        return
    from ringrift_pipeline.game.records import state_to_record

    row = int(bad[0])
    what = "policy" if policies[row] else "value"
    position = json.dumps(state_to_record(rules, states[row]), separators=(",", ":"))
    raise NonFiniteOutputError(
        f"{model} gives a {what} that is not finite for {bad.size} of {len(states)} positions; "
        "use an earlier model, or float32 where it computes in bfloat16; the first position: "
        f"{position}",
        bad.tolist(),
    )


__all__ = ["EvaluationError", "NonFiniteOutputError", "check_outputs"]
