"""Shards that somebody has made, with a manifest that fits: every reader of one refuses rows whose
lists lead out of their values, and values that are missing, instead of reading what lies beyond.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ringrift_pipeline.orchestration.integrity import shards_sound
from ringrift_pipeline.selfplay import Plan, ShardError, collect, read_shard, shard_kind
from ringrift_pipeline.selfplay.collecting import moves_of_games
from ringrift_pipeline.selfplay.shards import SHARD_FILE, column, ragged_column, shard_batches
from ringrift_pipeline.store import Store
from ringrift_pipeline.training import build_window, score_games
from ringrift_pipeline.training.gallery import find_examples
from ringrift_pipeline.web.errors import RequestError
from ringrift_pipeline.web.games import RecordedGames

from .conftest import CONFIG

Played = tuple[Store, Plan]
KIND = shard_kind(0)


def unpacked(table: pa.Table) -> bytes:
    """The table as a shard whose buffers are not packed."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as out:
        out.write_table(table, max_chunksize=1024)
    return sink.getvalue().to_pybytes()


def beyond(table: pa.Table) -> bytes:
    """Where the lists of a row end, in every column of lists, leads out of their values; so do texts."""
    data, last = unpacked(table), table.to_batches()[-1]
    texts = [len(text) for text in last.column("game_id").to_pylist()]
    for counts in (ragged_column(last, "policy")[0], texts):
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype("<i4")
        assert offsets.tobytes() in data
        data = data.replace(offsets.tobytes(), (offsets + 300_000 * (offsets > 0)).tobytes())
    return data


def missing(table: pa.Table) -> bytes:
    """A game has neither a number nor an id."""
    for name in ("game", "game_id"):
        field = table.schema.field(name)
        values = pa.array([None, *table.column(name).to_pylist()[1:]], field.type)
        table = table.set_column(table.schema.get_field_index(name), field, values)
    return unpacked(table)


@pytest.fixture(params=[beyond, missing])
def hostile(request: pytest.FixtureRequest, played: Played, tmp_path: Path) -> Played:
    """Its first shard is such a one, and verifies."""
    store = Store(tmp_path / "data")
    shutil.copytree(played[0].root, store.root, dirs_exist_ok=True)
    old = store.require(CONFIG, 0, KIND)
    changed = request.param(read_shard(old.file(SHARD_FILE)))
    with store.create(CONFIG, 0, KIND, old.metadata) as draft:
        (draft / SHARD_FILE).write_bytes(changed)
    return store, played[1]


class _Step:
    """As much of a step as the judgement looks at."""

    def __init__(self, store: Store, plan: Plan) -> None:
        self.store, self.config, self.generation = store, plan.config, plan.generation
        self.plan = lambda: plan


def listed(store: Store, plan: Plan) -> None:
    RecordedGames(store.root).games(CONFIG, "0000", "0000")


def shown(store: Store, plan: Plan) -> None:
    row = {"game_id": f"{CONFIG}-0000-0000-0000", "ply": 0, "row": 0}
    find_examples(store, plan, [row], {})


def judged(store: Store, plan: Plan) -> None:
    judgement = shards_sound(_Step(store, plan))  # type: ignore[arg-type]
    if not judgement.passed:
        raise ShardError(judgement.why)


READERS: dict[str, Callable[[Store, Plan], object]] = {
    "all batches": lambda store, _: list(
        shard_batches(store.require(CONFIG, 0, KIND).file(SHARD_FILE))
    ),
    "moves": lambda store, _: moves_of_games([store.require(CONFIG, 0, KIND)]),
    "collecting": collect,
    "scoring": score_games,
    "the window": build_window,
    "the page": listed,
    "the gallery": shown,
    "a check": judged,
}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_it(hostile: Played, reader: str) -> None:
    with pytest.raises((ShardError, RequestError), match="is damaged"):
        READERS[reader](*hostile)


def test_a_shard_without_rows_has_columns_of_their_widths(played: Played) -> None:
    store, plan = played
    table = read_shard(store.require(CONFIG, plan.generation, KIND).file(SHARD_FILE))
    for name in table.schema.names:
        kind = table.schema.field(name).type
        if pa.types.is_fixed_size_list(kind):
            assert column(table.slice(0, 0), name).shape == (0, kind.list_size)
        elif pa.types.is_list(kind) and pa.types.is_fixed_size_list(kind.value_type):
            lengths, flat = ragged_column(table.slice(0, 0), name)
            assert (len(lengths), flat.shape) == (0, (0, kind.value_type.list_size))
