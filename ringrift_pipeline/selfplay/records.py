"""What selfplay remembers of a game's decisions until the shard is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ringrift_pipeline.game import layout
from ringrift_pipeline.selfplay.ragged import flat_positions, offsets_of

if TYPE_CHECKING:
    from ringrift_pipeline.game import Rules


def owners_of(rules: Rules, state: NDArray[np.int64]) -> NDArray[np.int8]:
    """Who owns each cell of the plane in ``state`` (S,): (N*N,), seats from 0, -1 for nobody.

    A collapsed cell is its collapser's, a stack is that of its top ring; markers, empty cells and
    cells off the board are nobody's.
    """
    content = state[layout.HEADER + rules.cells] & 15
    owners = np.full(rules.size * rules.size, -1, np.int8)
    seat = np.full(len(content), -1, np.int8)
    for first in (layout.COLLAPSED, layout.STACK):
        owned = (content >= first) & (content < first + 4)
        seat[owned] = content[owned] - first
    owners[rules.plane_of[rules.cells]] = seat
    return owners


@dataclass(frozen=True)
class Games:
    """Outcome of every game of a shard.

    Attributes
    ----------
    outcome: (games, players) float32, share of the win per absolute seat, rows sum to 1.
    plies: (games,) int32, moves of the game, forced ones included.
    reason: (games,) int8, ``layout.REASON`` of the last state, -1 for a game cut short.
    owners: (games, N*N) int8, who owns each cell of the last state (:func:`owners_of`).
    eliminated: (games, players) int16, rings credited to each absolute seat in it.
    """

    outcome: NDArray[np.float32]
    plies: NDArray[np.int32]
    reason: NDArray[np.int8]
    owners: NDArray[np.int8]
    eliminated: NDArray[np.int16]


@dataclass(frozen=True)
class Decisions:
    """Decisions of many games, ordered by game and decision; R rows, M moves in all.

    Attributes
    ----------
    game: (R,) int32, index of the game within the shard.
    decision: (R,) int32, number of the decision within its game, from 0.
    state: (R, S) int64, complete state rows before the move.
    offsets: (R+1,) int64, where each row's moves begin in ``moves`` and ``policy``.
    moves: (M,) int64, packed legal moves in canonical order.
    policy: (M,) float32, search policy.
    selected: (R,) int64, the packed move that was played.
    full_search: (R,) bool, the policy may be trained on.
    root_value, search_value: (R, players) float32, value before and after search,
        absolute seats.
    surprise: (R,) float32, KL(policy || prior) in nats.
    opponent: (R,) bool, an earlier model moved, not the champion.
    """

    game: NDArray[np.int32]
    decision: NDArray[np.int32]
    state: NDArray[np.int64]
    offsets: NDArray[np.int64]
    moves: NDArray[np.int64]
    policy: NDArray[np.float32]
    selected: NDArray[np.int64]
    full_search: NDArray[np.bool_]
    root_value: NDArray[np.float32]
    search_value: NDArray[np.float32]
    surprise: NDArray[np.float32]
    opponent: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.game)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Legal moves of every row, (R,)."""
        return np.diff(self.offsets)


class Recorder:
    """Collects decisions in the order in which they are made, many games at a time."""

    def __init__(self, state_size: int, players: int) -> None:
        self._parts: list[dict[str, NDArray]] = []
        self._state_size = state_size
        self._players = players
        self.rows = 0

    def add(
        self,
        *,
        game: NDArray,
        decision: NDArray,
        state: NDArray,
        counts: NDArray,
        moves: NDArray,
        policy: NDArray,
        selected: NDArray,
        full_search: NDArray,
        root_value: NDArray,
        search_value: NDArray,
        surprise: NDArray,
        opponent: bool = False,
    ) -> None:
        """Add K decisions: shapes as in :class:`Decisions`, ``moves`` and ``policy`` flat.

        ``opponent`` holds for all of them.

        The arrays are kept, not copied: the caller must not write to them any more.
        """
        self.rows += len(game)
        self._parts.append(
            {
                "game": game,
                "decision": decision,
                "state": state,
                "counts": counts,
                "moves": moves,
                "policy": policy,
                "selected": selected,
                "full_search": full_search,
                "root_value": root_value,
                "search_value": search_value,
                "surprise": surprise,
                "opponent": np.full(len(game), opponent, np.bool_),
            }
        )

    def finish(self) -> Decisions:
        """All decisions, ordered by game and decision."""
        empty: dict[str, NDArray] = {
            "game": np.zeros(0, np.int32),
            "decision": np.zeros(0, np.int32),
            "state": np.zeros((0, self._state_size), np.int64),
            "counts": np.zeros(0, np.int64),
            "moves": np.zeros(0, np.int64),
            "policy": np.zeros(0, np.float32),
            "selected": np.zeros(0, np.int64),
            "full_search": np.zeros(0, np.bool_),
            "root_value": np.zeros((0, self._players), np.float32),
            "search_value": np.zeros((0, self._players), np.float32),
            "surprise": np.zeros(0, np.float32),
            "opponent": np.zeros(0, np.bool_),
        }
        joined = {
            name: np.concatenate(
                [none] + [part.pop(name) for part in self._parts], dtype=none.dtype
            )
            for name, none in empty.items()
        }
        self._parts.clear()
        order = np.lexsort((joined["decision"], joined["game"]))
        counts = joined.pop("counts")
        inner = flat_positions(offsets_of(counts)[:-1][order], counts[order])
        ragged = {name: joined.pop(name)[inner] for name in ("moves", "policy")}
        return Decisions(
            offsets=offsets_of(counts[order]),
            **ragged,
            **{name: column[order] for name, column in joined.items()},
        )
