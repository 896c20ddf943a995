"""What rows of a shard can be: every number finite and in its range, every distribution one.

The same rules hold where a shard is written, where it is copied into a training window, and where
the pipeline checks it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ringrift_pipeline.selfplay.ragged import offsets_of

if TYPE_CHECKING:
    import pyarrow as pa

NEAR_ONE = 1e-3
"""How far the sum of a distribution in float32 may be from 1."""

BAD_POLICY = "a policy that is no distribution"


def no_distribution(shares: NDArray) -> NDArray[np.bool_]:
    """Which rows of ``shares`` (R, K) are no distribution, (R,): NaN is in none."""
    shares = shares.astype(np.float64)
    inside = ((shares >= 0.0) & (shares <= 1.0 + NEAR_ONE)).all(axis=1)
    return ~(inside & (np.abs(shares.sum(axis=1) - 1.0) <= NEAR_ONE))


def no_policy(policy: NDArray, starts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the policies that begin at ``starts`` (R,) in ``policy`` (M,) are none, (R,)."""
    bad_share = ~((policy >= 0.0) & (policy <= 1.0 + NEAR_ONE))  # NaN is not between either
    sums = np.add.reduceat(policy.astype(np.float64), starts)
    return np.logical_or.reduceat(bad_share, starts) | ~(np.abs(sums - 1.0) <= NEAR_ONE)


def odd_surprise(surprise: NDArray) -> NDArray[np.bool_]:
    """Which surprises (R,), nats, are not finite or below 0, (R,)."""
    return ~(np.isfinite(surprise) & (surprise >= -NEAR_ONE))


def odd_planes(planes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which positions ``planes`` (R, C, ...) have something in between on a yes-or-no plane."""
    from ringrift_pipeline.network.encoding import FLAG_PLANES

    most = planes.reshape(*planes.shape[:2], -1).max(axis=2, initial=0)
    return (most[:, FLAG_PLANES] > 1).any(axis=1)


def odd_rows(table: pa.RecordBatch | pa.Table) -> dict[str, NDArray[np.bool_]]:
    """What is wrong with a shard's rows, each with (R,) bool in which of them.

    Judged is what can be by the columns that the table has.
    """
    from ringrift_pipeline.game import layout
    from ringrift_pipeline.selfplay.shards import column

    names = set(table.schema.names)
    if not table.num_rows:
        return {}
    found = _odd_choices(table, names)
    for name, words in (
        ("outcome", "shares of the win"),
        ("root_value", "values before search"),
        ("search_value", "values after search"),
    ):
        if name in names:
            found[f"{words} that are no distribution"] = no_distribution(column(table, name))
    if "surprise" in names:
        found["a surprise that is not finite"] = odd_surprise(column(table, "surprise"))
    if {"game", "ply", "game_plies"} <= names:
        game, ply = column(table, "game"), column(table, "ply")
        back = np.zeros(len(ply), np.bool_)
        back[1:] = (game[1:] == game[:-1]) & (ply[1:] <= ply[:-1])
        found["a ply that is not after the one before"] = back
        found["a ply beyond the game's end"] = ply >= column(table, "game_plies")
    if "reason" in names:
        reason = column(table, "reason")
        found["an end that no game has"] = (reason < -1) | (reason >= len(layout.REASON_NAMES))
    if "globals" in names:
        found["globals that are not finite"] = ~np.isfinite(column(table, "globals")).all(axis=1)
    if "planes" in names:
        from ringrift_pipeline.network.encoding import NUM_PLANES

        planes = column(table, "planes")
        found["a plane out of its range"] = odd_planes(planes.reshape(len(planes), NUM_PLANES, -1))
    return found


def _odd_choices(table: pa.RecordBatch | pa.Table, names: set[str]) -> dict[str, NDArray[np.bool_]]:
    """`odd_rows` by policy, legal moves and the move that was played."""
    from ringrift_pipeline.selfplay.shards import column, ragged_column

    if "policy" not in names:
        return {}
    counts, policy = ragged_column(table, "policy")
    found = {"fewer than two moves": counts < 2}
    if "moves" in names:
        widths, moves = ragged_column(table, "moves")
        found["policy and moves differ in number"] = counts != widths
    if any(bad.any() for bad in found.values()):
        return found
    starts = offsets_of(counts)[:-1]
    found[BAD_POLICY] = no_policy(policy, starts)
    if {"moves", "selected"} <= names:
        played = moves == np.repeat(column(table, "selected"), counts)
        found["a move that was not legal"] = ~np.logical_or.reduceat(played, starts)
    return found


def first_fault(table: pa.RecordBatch | pa.Table) -> str | None:
    """What is wrong with the rows of a shard, in how many, and the first; None if nothing is.

    The table has ``game_id`` and ``ply``; of the other columns, those to be judged.
    """
    for what, bad in odd_rows(table).items():
        if bad.any():
            row = int(bad.argmax())
            game = table.column("game_id")[row]
            ply = table.column("ply")[row]
            return f"{what} in {int(bad.sum())} of {len(bad)} rows, first in game {game}, ply {ply}"
    return None


__all__ = [
    "BAD_POLICY",
    "NEAR_ONE",
    "first_fault",
    "no_distribution",
    "no_policy",
    "odd_planes",
    "odd_rows",
    "odd_surprise",
]
