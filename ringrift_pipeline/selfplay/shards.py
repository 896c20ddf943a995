"""Shard files: one Arrow IPC file (zstd) of all decisions of a shard's games.

A shard holds everything training needs, so that training never runs the engine: the encoded
position and move descriptions beside the compact state they were made from. The bytes are a
function of the plan alone: no wall clock, no worker number, one thread writes.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ringrift_pipeline.selfplay.arrow_sizes import batch_sizes, check_schema
from ringrift_pipeline.selfplay.ragged import pad, unpad
from ringrift_pipeline.selfplay.records import Decisions, Games
from ringrift_pipeline.store import CorruptArtefactError, check_file
from ringrift_pipeline.store.kinds import shard_kind as shard_kind

if TYPE_CHECKING:
    from ringrift_pipeline.selfplay.plan import Plan

SHARD_FORMAT = 3
"""Format that is written. Of the two before it, which are still read, 1 lacks the last three
columns, and 2, which was written for games against an opponent, the last two."""
_READ = (1, 2, SHARD_FORMAT)
SHARD_FILE = "shard.arrow"
ROWS_PER_BATCH = 1024
LARGEST_SHARD = 8 << 30
"""Bytes that a shard may unpack to, batch by batch; of a hundred games on eight by eight they are 50 MB."""
LARGEST_TABLE = 1 << 30
"""Bytes of those columns of a shard that are read at once. Without the planes a row takes some 1 to 3
kB, so that they are those of thousands of games."""


class ShardError(ValueError):
    """A shard file cannot be written or read; the message names the file and the reason."""


def game_id(config: str, generation: int, shard: int, game: int) -> str:
    """Id of a game, unique over configs and generations."""
    return f"{config}-{generation:04d}-{shard:04d}-{game:04d}"


MEANINGS = {
    "game_id": "Id of the game: config, generation, shard and game (`square8_2p-0003-0001-0042`).",
    "game": "Index of the game within the shard.",
    "ply": "Moves made before, forced ones included.",
    "decision": "Decisions made before in this game.",
    "player": "Seat to move, from 0.",
    "state": "Compact state row before the move: header, then every padded cell.",
    "moves": "Packed legal moves in canonical order, two at least.",
    "policy": "Search policy over the moves; sums to 1.",
    "full_search": "Whether the policy may be trained on.",
    "selected": "The packed move that was played.",
    "outcome": "Share of the win of each absolute seat.",
    "root_value": "Value before search, by absolute seat.",
    "search_value": "Value after search, by absolute seat.",
    "surprise": "KL(search policy || prior), nats.",
    "game_plies": "Length of the whole game, forced plies included.",
    "reason": "How the game ended (layout.REASON), -1 if it was cut short.",
    "planes": "Encoded planes, mover first.",
    "globals": "Encoded globals, mover first.",
    "move_kind": "Kind of each legal move.",
    "move_cells": "Its cells as plane indices, -1 where it has none.",
    "move_rank": "Its rank among moves alike.",
    "opponent": "Whether an earlier model moved, which the player met (from format 2).",
    "owners": "Who owns each plane cell when the game ends: seat from 0, -1 nobody (from format 3).",
    "eliminated": "Rings credited to each absolute seat when the game ends (from format 3).",
}
"""What each column of a shard holds. Only decisions with more than one legal move have a row."""


@functools.lru_cache(maxsize=16)
def SHARD_SCHEMA(  # noqa: N802 - a constant of each config
    config: str, version: int = SHARD_FORMAT
) -> pa.Schema:
    """Arrow schema of a config's shards of a format, without file metadata; see `MEANINGS`."""
    from ringrift_pipeline.game import get_rules
    from ringrift_pipeline.network import NUM_GLOBALS, NUM_PLANES

    rules = get_rules(config)
    values = pa.list_(pa.field("item", pa.float32(), nullable=False), rules.players)
    columns: list[tuple[str, pa.DataType]] = [
        ("game_id", pa.string()),
        ("game", pa.int32()),
        ("ply", pa.int32()),
        ("decision", pa.int32()),
        ("player", pa.int8()),
        ("state", _fixed(pa.int64(), compact_size(rules))),
        ("moves", _ragged(pa.int64())),
        ("policy", _ragged(pa.float32())),
        ("full_search", pa.bool_()),
        ("selected", pa.int64()),
        ("outcome", values),
        ("root_value", values),
        ("search_value", values),
        ("surprise", pa.float32()),
        ("game_plies", pa.int32()),
        ("reason", pa.int8()),
        ("planes", _fixed(pa.uint8(), NUM_PLANES * rules.size * rules.size)),
        ("globals", _fixed(pa.float32(), NUM_GLOBALS)),
        ("move_kind", _ragged(pa.uint8())),
        ("move_cells", _ragged(_fixed(pa.int16(), 3))),
        ("move_rank", _ragged(pa.int16())),
    ]
    if version >= 2:
        columns.append(("opponent", pa.bool_()))
    if version >= 3:
        columns.append(("owners", _fixed(pa.int8(), rules.size * rules.size)))
        columns.append(("eliminated", _fixed(pa.int16(), rules.players)))
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns])


def _fixed(kind: pa.DataType, length: int) -> pa.DataType:
    return pa.list_(pa.field("item", kind, nullable=False), length)


def _ragged(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("item", kind, nullable=False))


def compact_size(rules: Any) -> int:
    """Length of a compact state: header and padded cells, without the engine's masks."""
    from ringrift_pipeline.game import layout

    return layout.HEADER + len(rules.plane_of)


def shard_metadata(plan: Plan, index: int) -> dict[str, Any]:
    """What a shard's file says of where it comes from.

    No time and no path is in it: games planned alike in another folder give the same bytes.
    ``model`` is the champion; ``opponent``, where there is one, names the other model, in how
    many games (the first ones) it plays, and the champion's seat in the first of them.
    """
    from ringrift_pipeline import game
    from ringrift_pipeline.network import ENCODING_VERSION

    shard = plan.shard(index)
    champion = plan.champion
    met = shard.get("opponent")
    opponent = (
        {
            "opponent": {
                "model": met["digest"],
                "model_generation": met["generation"],
                "games": met["games"],
                "first_seat": met["first_seat"],
            }
        }
        if met
        else {}
    )
    return opponent | {
        "format": SHARD_FORMAT,
        "config": plan.config,
        "generation": plan.generation,
        "shard": index,
        "games": shard["games"],
        "seed": shard["seed"],
        "player": "network" if champion else "heuristic",
        "model": champion["digest"] if champion else None,
        "model_generation": champion["generation"] if champion else None,
        "engine_version": getattr(game, "ENGINE_VERSION", 1),
        "encoding_version": ENCODING_VERSION,
    }


def write_shard(path: Path, decisions: Decisions, games: Games, metadata: dict[str, Any]) -> None:
    """Write a shard's decisions to a new file; the same arguments give the same bytes.

    Raises
    ------
    ShardError
        naming the game and ply of a row that play cannot have made (`soundness.odd_rows`): a
        number that is not finite, a policy or value that is no distribution.
    """
    from ringrift_pipeline.selfplay.soundness import first_fault, no_distribution

    config = metadata["config"]
    cut = no_distribution(games.outcome)
    if cut.any():
        game = game_id(config, metadata["generation"], metadata["shard"], int(cut.argmax()))
        raise ShardError(f"{path.name}: the shares of the win of game {game} do not sum to 1")
    counts = {"rows": len(decisions), "moves": int(decisions.offsets[-1])}
    schema = SHARD_SCHEMA(config).with_metadata(
        {**{name: json.dumps(value) for name, value in metadata.items()}}
        | {"counts": json.dumps(counts)}
    )
    options = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema, options=options) as out:
        for start in range(0, len(decisions), ROWS_PER_BATCH):
            rows = slice(start, min(start + ROWS_PER_BATCH, len(decisions)))
            batch = _record_batch(schema, decisions, games, metadata, rows)
            fault = first_fault(batch)
            if fault is not None:
                raise ShardError(f"{path.name}: {fault}; nothing of the shard is kept")
            out.write_batch(batch)


def _record_batch(
    schema: pa.Schema, decisions: Decisions, games: Games, metadata: dict[str, Any], rows: slice
) -> pa.RecordBatch:
    from ringrift_pipeline.game import get_rules, layout
    from ringrift_pipeline.network import encode_states

    rules = get_rules(metadata["config"])
    game = decisions.game[rows]
    counts = decisions.counts[rows]
    offsets = decisions.offsets[rows.start : rows.stop + 1]
    inner = slice(int(offsets[0]), int(offsets[-1]))
    moves = decisions.moves[inner]
    width = int(counts.max())
    local = offsets - offsets[0]
    states = decisions.state[rows]
    encoded = encode_states(
        rules, states, pad(moves, local[:-1], counts, width, 0), counts.astype(np.int32)
    )
    ids = np.array(
        [
            game_id(metadata["config"], metadata["generation"], metadata["shard"], number)
            for number in range(metadata["games"])
        ]
    )
    flat: dict[str, NDArray] = {
        "moves": moves,
        "policy": decisions.policy[inner],
        "move_kind": unpad(encoded["move_kind"], counts),
        "move_cells": unpad(encoded["move_cells"], counts),
        "move_rank": unpad(encoded["move_rank"], counts),
    }
    columns: dict[str, NDArray] = {
        "game_id": ids[game],
        "game": game,
        "ply": states[:, layout.PLY],
        "decision": decisions.decision[rows],
        "player": states[:, layout.PLAYER],
        "state": states,
        "full_search": decisions.full_search[rows],
        "selected": decisions.selected[rows],
        "outcome": games.outcome[game],
        "root_value": decisions.root_value[rows],
        "search_value": decisions.search_value[rows],
        "surprise": decisions.surprise[rows],
        "opponent": decisions.opponent[rows],
        "owners": games.owners[game],
        "eliminated": games.eliminated[game],
        "game_plies": games.plies[game],
        "reason": games.reason[game],
        "planes": encoded["planes"],
        "globals": encoded["globals"],
    }
    arrays = []
    for field in schema:
        if field.name in flat:
            values = _array(flat[field.name], field.type.value_type)
            arrays.append(
                pa.ListArray.from_arrays(pa.array(local, pa.int32()), values, type=field.type)
            )
        else:
            arrays.append(_array(columns[field.name], field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _array(values: NDArray, kind: pa.DataType) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        inner = np.ascontiguousarray(values).reshape(-1)
        items = pa.array(inner.astype(kind.value_type.to_pandas_dtype(), copy=False))
        return pa.FixedSizeListArray.from_arrays(items, type=kind)
    if pa.types.is_string(kind):
        return pa.array(values.tolist(), kind)
    return pa.array(values.astype(kind.to_pandas_dtype(), copy=False), kind)


@contextmanager
def open_shard(
    path: Path, columns: Sequence[str] | None = None, most: int = LARGEST_SHARD
) -> Iterator[pa.ipc.RecordBatchFileReader]:
    """Open a shard file for reading, all columns or only the named ones, which may take ``most`` bytes
    together. What comes out of it is not checked value by value: :func:`read_shard` and
    :func:`shard_batches` do that.

    Raises
    ------
    ShardError
        if the file is absent, damaged, no Arrow file, or has another format or schema, or games
        by other rules.
    """
    try:
        check_file(path)
        source = pa.memory_map(str(path), "r")
    except (OSError, CorruptArtefactError) as error:
        raise ShardError(f"{path}: cannot be read ({error})") from error
    with source:
        try:
            check_schema(memoryview(source.read_buffer()))
            reader = pa.ipc.open_file(source)
            if columns is not None:
                fields = [reader.schema.get_field_index(name) for name in columns]
                options = pa.ipc.IpcReadOptions(included_fields=fields)
                full, reader = reader.schema, pa.ipc.open_file(source, options=options)
            else:
                full = reader.schema
        except (pa.ArrowException, ValueError) as error:
            raise ShardError(f"{path}: is no shard, or a truncated one ({error})") from error
        except OSError as error:
            raise ShardError(f"{path}: cannot be read ({error})") from error
        metadata = full.metadata or {}
        known = {str(number).encode(): number for number in _READ}
        found = known.get(metadata.get(b"format", b""))
        if found is None:
            raise ShardError(
                f"{path}: has shard format {metadata.get(b'format')!r}, this version reads "
                f"{', '.join(map(str, _READ))}: play the generation again"
            )
        _check_versions(path, metadata)
        try:
            expected = SHARD_SCHEMA(json.loads(metadata.get(b"config", b"null")), found)
            _check_origin({name.decode(): json.loads(value) for name, value in metadata.items()})
        except (ValueError, TypeError, RecursionError) as error:
            raise ShardError(f"{path}: what it says of itself is damaged ({error})") from error
        if not full.equals(expected, check_metadata=False):
            raise ShardError(
                f"{path}: was written with another encoding of positions: play it again"
            )
        wanted = full.names if columns is None else columns
        _check_sizes(path, source, json.loads(metadata[b"config"]), _buffers(full, wanted), most)
        try:
            yield reader
        except pa.ArrowException as error:
            raise ShardError(f"{path}: is damaged ({error})") from error


def _check_versions(path: Path, metadata: dict[bytes, bytes]) -> None:
    """Refuse games by other rules, and positions that mean something else in the same columns."""
    from ringrift_pipeline.game import ENGINE_VERSION
    from ringrift_pipeline.network import ENCODING_VERSION

    for name, ours in (("engine_version", ENGINE_VERSION), ("encoding_version", ENCODING_VERSION)):
        found = metadata.get(name.encode())
        if found is not None and found != json.dumps(ours).encode():
            raise ShardError(
                f"{path}: has {name} {found.decode(errors='replace')}, this version reads "
                f"{json.dumps(ours)}: play the generation again"
            )


def _check_origin(about: dict[str, Any]) -> None:
    """What `shard_metadata` and `write_shard` say has the types they give it. Raises ValueError."""
    numbers = [about.get(name) for name in ("generation", "shard", "games")]
    counts = about.get("counts")
    numbers += [
        counts.get(name) if isinstance(counts, dict) else None for name in ("rows", "moves")
    ]
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError(
            "it does not say of what generation and shard it is, and of how many games"
        )
    if about.get("player") not in ("network", "heuristic"):
        raise ValueError("it does not say who played")


def _buffers(schema: pa.Schema, wanted: Sequence[str]) -> list[bool]:
    """Of every buffer of a batch, in their order, whether it is of a column that is wanted."""

    def count(kind: pa.DataType) -> int:
        if pa.types.is_fixed_size_list(kind):
            return 1 + count(kind.value_type)
        if pa.types.is_list(kind):
            return 2 + count(kind.value_type)
        return 3 if pa.types.is_string(kind) else 2

    return [field.name in wanted for field in schema for _ in range(count(field.type))]


def _check_sizes(
    path: Path, source: pa.MemoryMappedFile, config: str, wanted: list[bool], largest: int
) -> None:
    """Refuse a file that would take more memory than its rows can, or in the buffers that are wanted
    more than ``largest`` bytes, before any of it is unpacked.
    """
    source.seek(0)
    total = 0
    try:
        for size in batch_sizes(memoryview(source.read_buffer())):
            most = largest_batch(config)
            if not 0 <= size.rows <= ROWS_PER_BATCH or size.bytes > most:
                raise ValueError(
                    f"a batch of {size.rows} rows takes {size.bytes} bytes; there are at most "
                    f"{ROWS_PER_BATCH} rows of {most} bytes"
                )
            if len(size.buffers) != len(wanted):
                raise ValueError(f"a batch has {len(size.buffers)} buffers, not {len(wanted)}")
            total += sum(compress(size.buffers, wanted))
        if total > largest:
            raise ValueError(f"what is read of it takes {total} bytes, more than {largest}")
    except ValueError as error:
        raise ShardError(f"{path}: is damaged ({error})") from None


@functools.cache
def largest_batch(config: str) -> int:
    """Bytes that `ROWS_PER_BATCH` rows of a config can take at most."""
    from ringrift_pipeline.game import get_rules

    rules = get_rules(config)
    widths = [_width(field.type) for field in SHARD_SCHEMA(config)]
    moves = sum(ragged for _, ragged in widths) * rules.max_moves
    return (ROWS_PER_BATCH + 1) * (sum(fixed for fixed, _ in widths) + moves) + (1 << 16)


def _width(kind: pa.DataType) -> tuple[int, int]:
    """Bytes of a value, and of each of its items where their number varies; rounded up."""
    if pa.types.is_fixed_size_list(kind):
        return kind.list_size * _width(kind.value_type)[0] + 1, 0
    if pa.types.is_list(kind):
        return 5, _width(kind.value_type)[0]
    return (128 if pa.types.is_string(kind) else max(1, kind.bit_width // 8) + 1), 0


def _check_values(path: Path, rows: pa.RecordBatch) -> None:
    """Refuse lists that lead out of their values, and values that are missing."""
    rows.validate(full=True)
    for name in rows.schema.names:
        values = rows.column(name)
        while not values.null_count and pa.types.is_nested(values.type):
            values = values.flatten()
        if values.null_count:
            raise ShardError(f"{path}: is damaged (column {name!r} lacks values)")


def read_shard(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A shard as a table, all columns or only the named ones, checked value by value: no list leads
    out of its values. What takes more than `LARGEST_TABLE` is to be read by :func:`shard_batches`.
    :class:`ShardError` as in :func:`open_shard`, and for a row that does.
    """
    with open_shard(path, columns, LARGEST_TABLE) as reader:
        try:
            table = reader.read_all()
        except OSError as error:  # what a decompressor says of bad bytes
            raise ShardError(f"{path}: is damaged ({error})") from error
        for batch in table.to_batches():
            _check_values(path, batch)
        return table


def shard_batches(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The record batches of a shard, one in memory at a time, checked as :func:`read_shard` does."""
    with open_shard(path, columns) as reader:
        for index in range(reader.num_record_batches):
            try:
                batch = reader.get_batch(index)
            except OSError as error:
                raise ShardError(f"{path}: is damaged ({error})") from error
            _check_values(path, batch)
            yield batch


def read_metadata(path: Path) -> dict[str, Any]:
    """The file metadata of a shard: ``shard_metadata`` and ``counts`` of rows and moves."""
    with open_shard(path) as reader:
        return {name.decode(): json.loads(value) for name, value in reader.schema.metadata.items()}


def _rows(values: pa.FixedSizeListArray) -> NDArray:
    """Lists of K elements as an array (R, K), also where there are none."""
    flat = values.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(values), values.type.list_size)


def column(batch: pa.RecordBatch | pa.Table, name: str) -> NDArray:
    """A column of fixed-size elements as an array (R,) or (R, K), strings as objects."""
    values = batch.column(name)
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if pa.types.is_fixed_size_list(values.type):
        return _rows(values)
    return values.to_numpy(zero_copy_only=False)


def ragged_column(batch: pa.RecordBatch | pa.Table, name: str) -> tuple[NDArray, NDArray]:
    """Lengths (R,) and flat values (M,) or (M, K) of a column of lists."""
    values = batch.column(name)
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    lengths = values.value_lengths().to_numpy(zero_copy_only=False)
    flat = values.flatten()
    if pa.types.is_fixed_size_list(flat.type):
        return lengths, _rows(flat)
    return lengths, flat.to_numpy(zero_copy_only=False)
