"""The training window: shards of several generations as uncompressed memory-mapped columns.

One ``.npy`` file a column, rows ordered by generation, shard, game and decision. What varies in
length (a row's legal moves) lies flat behind ``offsets``. Values are stored relative to the
player to move, which is how the network sees the board.
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ringrift_pipeline.selfplay.ragged import offsets_of
from ringrift_pipeline.selfplay.stopping import Progress, Reporter, ShouldStop
from ringrift_pipeline.store import CorruptArtefactError, check_folder, naming, read_bounded
from ringrift_pipeline.store.bounded import parse_json
from ringrift_pipeline.store.locks import hold
from ringrift_pipeline.training.inputs import reuse, sealed_inputs
from ringrift_pipeline.training.mapped_columns import make_column
from ringrift_pipeline.training.split import split_of

if TYPE_CHECKING:
    import pyarrow as pa

    from ringrift_pipeline.selfplay.plan import Plan
    from ringrift_pipeline.store import Artefact, Folder, Store

KIND = "window"
WINDOW_FORMAT = 2
LARGEST_NAME = 64  # bytes of a game's name and the line's end
LARGEST_NAMES = 128 << 20  # bytes of all of them: those of a million games take 30 MB
ROWS_AT_ONCE = 1 << 20  # where all rows of a window would not fit into memory
UNKNOWN = -2
"""In ``owners`` and ``eliminated`` of games whose shards did not record their end."""


class WindowError(ValueError):
    """A window cannot be built or read; the message says which shard or column and why."""


@dataclass(frozen=True)
class Window:
    """Columns of a window, memory-mapped read-only; R rows, M legal moves, P players.

    Attributes
    ----------
    planes: (R, C, N, N) uint8 and ``globals``: (R, F) float32, the position as encoded.
    offsets: (R+1,) int64, where each row's moves begin.
    policy: (M,) float32; move_kind: (M,) uint8; move_cells: (M, 3) int16; move_rank: (M,).
    outcome, search_value: (R, P) float32, **mover first** (seat of the mover, then the next).
    full_search: (R,) bool; surprise: (R,) float32, nats, 0 where an opponent moved.
    opponent: (R,) bool, an earlier model moved, not the generation's champion.
    valued: (R,) bool, ``search_value`` is the champion's; the heuristic knows no values.
    game: (R,) int32, index into ``games``; generation: (R,) int32.
    ply, decision: (R,) int32; player: (R,) int8, seat of the mover from 0; phase: (R,) int8.
    holdout: (R,) bool, the row's game is held out.
    games: id of every game, G of them.
    owners: (G, N*N) int8, who owns each plane cell when the game ends: absolute seat from 0, -1 for
        nobody; ``eliminated``: (G, P) int16, rings credited to each absolute seat then. Both
        ``UNKNOWN`` where the shard does not tell.
    """

    planes: NDArray[np.uint8]
    globals: NDArray[np.float32]
    offsets: NDArray[np.int64]
    policy: NDArray[np.float32]
    move_kind: NDArray[np.uint8]
    move_cells: NDArray[np.int16]
    move_rank: NDArray
    outcome: NDArray[np.float32]
    search_value: NDArray[np.float32]
    full_search: NDArray[np.bool_]
    opponent: NDArray[np.bool_]
    valued: NDArray[np.bool_]
    surprise: NDArray[np.float32]
    game: NDArray[np.int32]
    generation: NDArray[np.int32]
    ply: NDArray[np.int32]
    decision: NDArray[np.int32]
    player: NDArray[np.int8]
    phase: NDArray[np.int8]
    holdout: NDArray[np.bool_]
    owners: NDArray[np.int8]
    eliminated: NDArray[np.int16]
    games: tuple[str, ...]
    config: str

    def __len__(self) -> int:
        return len(self.game)

    @property
    def players(self) -> int:
        """Seats of the game."""
        return self.outcome.shape[1]

    @property
    def training_rows(self) -> NDArray[np.int64]:
        """Indices of the rows whose game is not held out, ascending."""
        return np.flatnonzero(~self.holdout)

    @property
    def holdout_rows(self) -> NDArray[np.int64]:
        """Indices of the rows whose game is held out, ascending."""
        return np.flatnonzero(self.holdout)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Legal moves of every row, (R,) int64."""
        return np.diff(self.offsets)


COLUMNS = frozenset(Window.__dataclass_fields__) - {"games", "config"}  # a file each

# column -> (dtype, what one element is beside the first axis); "rows" or "moves" first.
_ROW_COLUMNS = {
    "outcome": np.float32,
    "search_value": np.float32,
    "full_search": np.bool_,
    "opponent": np.bool_,
    "valued": np.bool_,
    "surprise": np.float32,
    "game": np.int32,
    "generation": np.int32,
    "ply": np.int32,
    "decision": np.int32,
    "player": np.int8,
    "phase": np.int8,
    "holdout": np.bool_,
}


def build_window(
    store: Store,
    plan: Plan,
    *,
    progress: Progress | None = None,
    should_stop: ShouldStop | None = None,
) -> Artefact:
    """Materialise the plan's window; the current one is returned if it has the same inputs.

    Raises
    ------
    WindowError
        if the shards hold no rows or fewer than two games, or a row that play cannot have made (a
        number that is not finite, a policy that is no distribution): it names shard, game and ply.
    MissingArtefactError
        if a shard of the plan has not been played.
    """
    from ringrift_pipeline.selfplay import iter_shards
    from ringrift_pipeline.selfplay.soundness import first_fault

    shards = list(iter_shards(store, plan, progress=progress, should_stop=should_stop))
    inputs = sealed_inputs(plan, KIND, shards) | {"format": WINDOW_FORMAT}
    columns = (f"{name}.npy" for name in COLUMNS)
    existing = reuse(store, plan, KIND, inputs, "window.json", "games.txt", *columns)
    if existing is not None:
        return existing
    reporter = Reporter(progress, should_stop)
    with store.create(plan.config, plan.generation, KIND, metadata={"inputs": inputs}) as draft:
        sizes = [_shape_of(shard.file("shard.arrow")) for shard in shards]
        writer = _Writer(draft, plan, sizes)
        for number, shard in enumerate(shards):
            for batch, heuristic in _batches(shard.file("shard.arrow")):
                reporter.check("window: stopped while copying shards; nothing was kept")
                fault = first_fault(batch)
                if fault is not None:
                    raise WindowError(
                        f"{shard.kind} of generation {shard.generation:04d} ({shard.path}): "
                        f"{fault}; remove the shard and play it again"
                    )
                writer.append(batch, shard.generation, heuristic)
            reporter.report(number + 1, len(shards), f"{writer.rows} rows")
        summary = writer.close()
        draft.metadata.update(summary)
    return draft.artefact


def open_window(folder: Path) -> Window:
    """Map the columns of a window artefact's folder, which no cache drops while they are mapped.

    Raises
    ------
    WindowError
        if the folder holds no window of this format, or a damaged one.
    """
    try:
        held = hold(folder)
    except OSError as error:
        raise WindowError(f"{folder} holds no training window: {error}") from error
    try:
        return _mapped(folder, held)
    except BaseException:
        os.close(held)
        raise


def _mapped(folder: Path, held: int) -> Window:
    """See :func:`open_window`; the folder is let go of when no row can be read any more."""
    try:
        check_folder(folder)
        header = parse_json(read_bounded(folder / "window.json"))
    except (OSError, ValueError, RecursionError, CorruptArtefactError) as error:
        raise WindowError(f"{folder} holds no training window: {error}") from error
    found = header.get("format") if isinstance(header, dict) else None
    if found != WINDOW_FORMAT:
        raise WindowError(
            f"{folder} has window format {found!r}, this version reads "
            f"{WINDOW_FORMAT}: remove it, the next training builds it again"
        )
    try:
        unknown = set(header["columns"]) - COLUMNS
        if unknown:
            raise ValueError(f"there is no column {min(unknown)!r}")
        columns = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in header["columns"]
        }
        most = min(LARGEST_NAMES, LARGEST_NAME * len(columns["owners"]))
        games = tuple(read_bounded(folder / "games.txt", most).decode("utf-8").split())
        window = Window(**columns, games=games, config=header["config"])
        _check_columns(window)
        weakref.finalize(window.planes.base, os.close, held)  # that of a map is the map
        return window
    except (*_DAMAGED, AttributeError) as error:
        raise WindowError(f"{folder} holds a damaged training window: {error}") from error


_DAMAGED = (
    OSError, EOFError, LookupError, TypeError, ValueError, SyntaxError, TokenError, OverflowError,
)  # fmt: skip


def _check_columns(window: Window) -> None:
    """What must hold between the columns, so that no row leads out of another. Raises ValueError."""
    rows, offsets = len(window.offsets) - 1, window.offsets
    for name in ("planes", "globals", *_ROW_COLUMNS):
        if len(getattr(window, name)) != rows:
            raise ValueError(f"column {name!r} does not have the {rows} rows of 'offsets'")
    for name in ("policy", "move_kind", "move_cells", "move_rank"):
        if len(getattr(window, name)) != offsets[-1]:
            raise ValueError(f"column {name!r} does not end where 'offsets' says")
    starts = range(0, rows, ROWS_AT_ONCE)
    falls = ((np.diff(offsets[start : start + ROWS_AT_ONCE + 1]) < 0).any() for start in starts)
    if rows < 1 or offsets[0] != 0 or any(falls):
        raise ValueError("column 'offsets' does not ascend from 0")
    games = len(window.games)
    if window.game.min() < 0 or window.game.max() >= games:
        raise ValueError(f"column 'game' names games beyond the {games} there are")
    if len(window.owners) != games or len(window.eliminated) != games:
        raise ValueError(f"columns 'owners' and 'eliminated' do not have the {games} games")


def _shape_of(path: Path) -> tuple[int, int]:
    """Rows and legal moves of a shard file."""
    from ringrift_pipeline.selfplay.shards import shard_batches

    rows = moves = 0
    for batch in shard_batches(path, ("game", "move_kind")):
        rows += len(batch)
        moves += len(batch.column("move_kind").flatten())
    return rows, moves


def _batches(path: Path) -> Iterator[tuple[pa.RecordBatch, bool]]:
    """Record batches of a shard, each with whether the heuristic played it."""
    from ringrift_pipeline.selfplay.shards import shard_batches

    for batch in shard_batches(path):
        yield batch, json.loads(batch.schema.metadata[b"player"]) == "heuristic"


def relative_to_mover(values: NDArray, player: NDArray) -> NDArray:
    """Per-seat values (R, P) rotated so that the mover (``player``, (R,)) comes first."""
    players = values.shape[1]
    seats = (np.asarray(player, np.int64)[:, None] + np.arange(players)) % players
    return np.take_along_axis(values, seats, axis=1)


class _Writer:
    """Copies record batches into memory-mapped columns of known size."""

    def __init__(self, folder: Folder, plan: Plan, sizes: list[tuple[int, int]]) -> None:
        from ringrift_pipeline.game import get_rules

        self._folder = folder
        self._plan = plan
        self._players = get_rules(plan.config).players
        self._size = get_rules(plan.config).size
        self._total_rows = sum(rows for rows, _ in sizes)
        self._total_moves = sum(moves for _, moves in sizes)
        if self._total_rows == 0:
            raise WindowError(
                f"the shards of {plan.config} generation {plan.generation:04d} hold no decisions"
            )
        self._columns: dict[str, np.memmap] = {}
        self._games: dict[str, int] = {}
        self._generations: list[int] = []  # of every game
        self._ended = 0
        self._owners: list[NDArray] = []  # (some games, ...) each
        self._eliminated: list[NDArray] = []
        self.rows = 0
        self._moves = 0

    def _column(self, name: str, length: int, like: NDArray) -> NDArray:
        if name not in self._columns:
            path, shape = self._folder / f"{name}.npy", (length, *like.shape[1:])
            self._columns[name] = make_column(path, like.dtype, shape)
        return self._columns[name]

    def append(self, batch: pa.RecordBatch, generation: int, heuristic: bool) -> None:
        from ringrift_pipeline.game import layout
        from ringrift_pipeline.selfplay.shards import column, ragged_column

        player = column(batch, "player")
        planes = column(batch, "planes")
        opponent = np.zeros(len(player), np.bool_)
        if "opponent" in batch.schema.names:
            opponent = column(batch, "opponent")
        rows = {
            "planes": planes.reshape(len(planes), -1, self._size, self._size),
            "globals": column(batch, "globals"),
            "outcome": relative_to_mover(column(batch, "outcome"), player),
            "search_value": relative_to_mover(column(batch, "search_value"), player),
            "full_search": column(batch, "full_search"),
            "opponent": opponent,
            "valued": ~opponent & (not heuristic),
            # what surprised another model says nothing of what ours has yet to learn
            "surprise": np.where(opponent, 0.0, column(batch, "surprise")),
            "game": self._game_indices(batch, generation),
            "generation": np.full(len(player), generation),
            "ply": column(batch, "ply"),
            "decision": column(batch, "decision"),
            "player": player,
            "phase": column(batch, "state")[:, layout.PHASE],
        }
        start, stop = self.rows, self.rows + len(player)
        for name, values in rows.items():
            values = values.astype(_ROW_COLUMNS.get(name, values.dtype), copy=False)
            self._column(name, self._total_rows, values)[start:stop] = values
        counts, _ = ragged_column(batch, "policy")
        offsets = self._column("offsets", self._total_rows + 1, np.zeros(1, np.int64))
        offsets[start : stop + 1] = offsets_of(counts) + self._moves
        end = self._moves + int(counts.sum())
        for name in ("policy", "move_kind", "move_cells", "move_rank"):
            _, flat = ragged_column(batch, name)
            self._column(name, self._total_moves, flat)[self._moves : end] = flat
        self.rows, self._moves = stop, end

    def _game_indices(self, batch: pa.RecordBatch, generation: int) -> NDArray[np.int64]:
        ids = batch.column("game_id").dictionary_encode()
        names = ids.dictionary.to_pylist()
        index = ids.indices.to_numpy(zero_copy_only=False)
        known = np.array([self._games.setdefault(game, len(self._games)) for game in names])
        fresh = known >= self._ended
        self._generations += [generation] * int(fresh.sum())
        self._note_ends(batch, np.unique(index, return_index=True)[1][fresh])
        return known[index]

    def _note_ends(self, batch: pa.RecordBatch, rows: NDArray[np.int64]) -> None:
        """Keep how the games end whose first rows these are."""
        from ringrift_pipeline.selfplay.shards import column

        if "owners" in batch.schema.names:
            self._owners.append(column(batch, "owners")[rows])
            self._eliminated.append(column(batch, "eliminated")[rows])
        else:
            self._owners.append(np.full((len(rows), self._size**2), UNKNOWN, np.int8))
            self._eliminated.append(np.full((len(rows), self._players), UNKNOWN, np.int16))
        self._ended += len(rows)

    def close(self) -> dict[str, Any]:
        games = list(self._games)
        if len(games) < 2:
            raise WindowError(
                f"the window holds {len(games)} game(s); at least 2 are needed to hold one out: "
                "raise selfplay.games"
            )
        held_out = split_of(self._plan, games, self._generations)
        game = self._columns["game"]
        flags = self._column("holdout", self._total_rows, held_out)
        for start in range(0, self._total_rows, ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            flags[rows] = held_out[game[rows]]
        for name, ends in (("owners", self._owners), ("eliminated", self._eliminated)):
            np.concatenate(ends, out=self._column(name, len(games), ends[0]))
        for name, values in self._columns.items():
            with naming(self._folder / f"{name}.npy"):
                values.flush()
        (self._folder / "games.txt").write_text("\n".join(games) + "\n")
        header = {
            "format": WINDOW_FORMAT,
            "config": self._plan.config,
            "generation": self._plan.generation,
            "columns": sorted(self._columns),
            "rows": self.rows,
            "moves": self._moves,
        }
        (self._folder / "window.json").write_text(json.dumps(header, indent=1, sort_keys=True))
        return {
            "rows": self.rows,
            "moves": self._moves,
            "games": len(games),
            "holdout_games": int(held_out.sum()),
            "holdout_rows": int(flags.sum()),
            "opponent_rows": int(self._columns["opponent"].sum()),
            "own_rows": int((self._columns["generation"] == self._plan.generation).sum()),
        }
