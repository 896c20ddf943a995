"""Rows of a window that cannot be trained on, and rows named so that a person finds them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ringrift_pipeline.enhancements.non_finite import MOST_NAMED
from ringrift_pipeline.network.errors import NonFiniteOutputError
from ringrift_pipeline.selfplay.ragged import offsets_of
from ringrift_pipeline.selfplay.soundness import (
    BAD_POLICY,
    no_distribution,
    no_policy,
    odd_planes,
    odd_surprise,
)
from ringrift_pipeline.training.window import Window, WindowError


class BadRowsError(WindowError):
    """Rows of a window that are no data; the message says what is wrong and names the rows.

    Attributes:
        rows: (N,) window rows, ascending.
        what: what is wrong, without the rows.
    """

    def __init__(self, message: str, rows: Sequence[int] = (), what: str = "") -> None:
        super().__init__(message, tuple(int(row) for row in rows), what or message)
        self.rows: tuple[int, ...] = self.args[1]
        self.what: str = self.args[2]

    def __str__(self) -> str:
        return str(self.args[0])


def name_rows(window: Window, rows: Sequence[int] | NDArray[np.int64]) -> str:
    """The first few of ``rows`` (N,) by number, game and ply; a game's id names its shard."""
    named = [
        f"row {row} (game {window.games[window.game[row]]}, ply {window.ply[row]}, decision "
        f"{window.decision[row]})"
        for row in map(int, rows[:MOST_NAMED])
    ]
    more = len(rows) - len(named)
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")


def check_rows(
    window: Window,
    rows: NDArray[np.int64],
    planes: NDArray[np.uint8],
    globals_: NDArray[np.float32],
    policy: NDArray[np.float32],
) -> None:
    """Refuse rows with a number that is not finite or out of its range.

    Parameters
    ----------
    rows:
        (B,) int64 rows of the window.
    planes, globals_:
        (B, C, N, N) and (B, F), theirs, as played.
    policy:
        Their policies, one after the other.

    Raises
    ------
    BadRowsError
        naming what is wrong, and the rows.
    """
    counts = window.offsets[rows + 1] - window.offsets[rows]
    wrong = {
        "a plane out of its range": odd_planes(planes),
        "globals that are not finite": ~np.isfinite(globals_).all(axis=1),
        BAD_POLICY: no_policy(policy, offsets_of(counts)[:-1]),
        "shares of the win that are no distribution": no_distribution(window.outcome[rows]),
        "values after search that are no distribution": no_distribution(window.search_value[rows]),
        "a surprise that is not finite": odd_surprise(window.surprise[rows]),
    }
    for what, bad in wrong.items():
        _refuse(what, window, np.flatnonzero(bad), rows)


def check_surprise(window: Window, rows: NDArray[np.int64] | None = None) -> None:
    """BadRowsError for a surprise of ``rows`` (K,), or of any row, that is not finite."""
    bad = odd_surprise(window.surprise if rows is None else window.surprise[rows])
    _refuse("a surprise that is not finite", window, np.flatnonzero(bad), rows)


def check_policies(
    window: Window,
    rows: NDArray[np.int64],
    policy: NDArray[np.floating],
    starts: NDArray[np.int64],
) -> None:
    """BadRowsError for a policy of ``rows`` (K,) that is no distribution; each begins at
    ``starts`` (K,) in ``policy`` (M,).
    """
    _refuse(BAD_POLICY, window, np.flatnonzero(no_policy(policy, starts)), rows)


def _refuse(
    what: str, window: Window, bad: NDArray[np.int64], rows: NDArray[np.int64] | None
) -> None:
    """BadRowsError if there are any places ``bad`` in ``rows`` (of the window where None)."""
    if bad.size:
        found = bad if rows is None else np.unique(rows[bad])
        raise BadRowsError(f"{what}: {name_rows(window, found)}", found.tolist(), what)


def check_outputs_of_rows(
    model: str, window: Window, rows: NDArray[np.int64], *outputs: NDArray[np.floating]
) -> None:
    """Refuse what a model says of rows unless all of it is finite.

    Parameters
    ----------
    model:
        Its name, for the message.
    rows:
        (K,) int64 rows of the window.
    outputs:
        (K,) or (K, …) each.

    Raises
    ------
    NonFiniteOutputError
        naming the model and the rows.
    """
    good = np.ones(len(rows), np.bool_)
    for output in outputs:
        good &= np.isfinite(output).reshape(len(rows), -1).all(axis=1)
    if not good.all():
        bad = rows[~good]
        raise NonFiniteOutputError(
            f"{model} gives what is not finite for {len(bad)} of {len(rows)} rows: "
            f"{name_rows(window, bad)}",
            bad.tolist(),
        )


__all__ = [
    "BadRowsError",
    "check_outputs_of_rows",
    "check_policies",
    "check_rows",
    "check_surprise",
    "name_rows",
]
