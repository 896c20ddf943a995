from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ringrift_pipeline.game import ENGINE_VERSION, get_rules, kernels, layout
from ringrift_pipeline.network import encode_states
from ringrift_pipeline.selfplay import (
    SHARD_SCHEMA,
    Plan,
    ShardError,
    collect,
    iter_shards,
    missing_shards,
    play_shard,
    playing,
    read_metadata,
    read_shard,
    shard_kind,
)
from ringrift_pipeline.selfplay.playing import finished_shard
from ringrift_pipeline.selfplay.shards import column, ragged_column
from ringrift_pipeline.store import Artefact, Store

from .conftest import CONFIG

Played = tuple[Store, Plan]


def tables(played: Played) -> list[pa.Table]:
    store, plan = played
    return [read_shard(shard.file("shard.arrow")) for shard in iter_shards(store, plan)]


@pytest.fixture(params=["played", "searched"])
def either(request: pytest.FixtureRequest) -> Played:
    return request.getfixturevalue(request.param)


def replay(table: pa.Table) -> None:
    """Play the recorded games by the engine and compare every row."""
    rules = get_rules(CONFIG)
    moves = np.zeros(rules.max_moves, np.int64)
    rows = table.to_pylist()
    at = 0
    while at < len(rows):
        game, decision = rows[at]["game"], 0
        state = np.zeros(rules.state_size, np.int64)
        kernels.initial_state(rules.constants, state, False)
        while state[layout.PHASE] != layout.OVER:
            count = kernels.legal_moves(rules.constants, state, moves)
            move = moves[0]
            if count > 1:
                row = rows[at]
                assert (row["game"], row["decision"]) == (game, decision)
                assert row["ply"] == state[layout.PLY]
                assert row["player"] == state[layout.PLAYER]
                assert row["state"] == state[: len(row["state"])].tolist()
                assert row["moves"] == moves[:count].tolist()
                assert len(row["policy"]) == count and row["selected"] in row["moves"]
                move = row["selected"]
                at, decision = at + 1, decision + 1
            kernels.apply_move(rules.constants, state, move)
        shares = np.zeros(rules.players)
        kernels.ranking_points(rules.constants, state, shares)
        for row in rows[at - decision : at]:
            assert row["outcome"] == pytest.approx(shares.tolist())
            assert row["game_plies"] == state[layout.PLY]
            assert row["reason"] == state[layout.REASON]


def test_every_recorded_game_is_one_that_the_engine_plays(either: Played) -> None:
    for table in tables(either):
        replay(table)


def test_positions_are_encoded_as_the_network_reads_them(either: Played) -> None:
    rules = get_rules(CONFIG)
    for table in tables(either):
        counts, moves = ragged_column(table, "moves")
        padded = np.zeros((len(counts), counts.max()), np.int64)
        legal = np.arange(counts.max()) < counts[:, None]
        padded[legal] = moves
        encoded = encode_states(rules, column(table, "state"), padded, counts.astype(np.int32))
        assert np.array_equal(column(table, "planes"), encoded["planes"].reshape(len(counts), -1))
        assert np.array_equal(column(table, "globals"), encoded["globals"])
        for name in ("move_kind", "move_cells", "move_rank"):
            assert np.array_equal(ragged_column(table, name)[1], encoded[name][legal])


def test_heuristic_rows_claim_neither_prior_nor_value(played: Played) -> None:
    for table in tables(played):
        assert column(table, "full_search").all()
        assert (column(table, "surprise") == 0).all()
        assert (column(table, "root_value") == 0.5).all()
        assert (column(table, "search_value") == 0.5).all()


def test_searched_rows_hold_values_surprise_and_both_kinds_of_search(searched: Played) -> None:
    joined = pa.concat_tables(tables(searched))
    full = column(joined, "full_search")
    assert 0.3 < full.mean() < 0.7  # the fraction asked for is one half
    for name in ("root_value", "search_value"):
        values = column(joined, name)
        assert (values >= 0).all()
        np.testing.assert_allclose(values.sum(axis=1), 1.0, atol=1e-5)
    assert (column(joined, "surprise") >= -1e-6).all() and column(joined, "surprise").max() > 0


def test_metadata_says_where_a_shard_comes_from(played: Played, searched: Played) -> None:
    store, plan = played
    shard = store.require(CONFIG, 0, shard_kind(2))
    about = read_metadata(shard.file("shard.arrow"))
    assert about["config"] == CONFIG and about["generation"] == 0 and about["shard"] == 2
    assert about["seed"] == plan.shards[2]["seed"] and about["games"] == 1
    assert about["engine_version"] == ENGINE_VERSION
    assert about["player"] == "heuristic" and about["model"] is None
    assert about["counts"]["rows"] == shard.metadata["positions"]
    store, plan = searched
    about = read_metadata(store.require(CONFIG, 1, shard_kind(0)).file("shard.arrow"))
    assert plan.champion is not None
    assert about["player"] == "network" and about["model"] == plan.champion["digest"]


def test_schema_is_fixed_where_lengths_are(played: Played) -> None:
    schema = SHARD_SCHEMA(CONFIG)
    assert tables(played)[0].schema.equals(schema)
    assert schema.field("planes").type.list_size % 64 == 0
    assert schema.field("outcome").type.list_size == 2
    assert SHARD_SCHEMA("square8_3p").field("outcome").type.list_size == 3
    assert not pa.types.is_fixed_size_list(schema.field("moves").type)


def test_a_finished_shard_is_not_played_again(played: Played) -> None:
    store, plan = played
    before = store.artefacts(CONFIG, 0, shard_kind(0))
    assert play_shard(store, plan, 0) == before[-1]
    assert store.artefacts(CONFIG, 0, shard_kind(0)) == before


def test_only_shards_that_are_there_are_looked_at(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a bucket each look is a request, and a first run has none."""
    store, plan = played
    looked: list[int] = []

    def look(store: Store, plan: Plan, index: int) -> Artefact | None:
        looked.append(index)
        return finished_shard(store, plan, index)

    monkeypatch.setattr(playing, "finished_shard", look)
    assert missing_shards(store, plan) == [] and looked == list(range(len(plan.shards)))
    looked.clear()
    empty = Store(store.root.with_name("empty"))
    assert missing_shards(empty, plan) == list(range(len(plan.shards))) and not looked


def test_damaged_files_are_refused_by_name(played: Played, tmp_path: Path) -> None:
    store, _ = played
    data = store.require(CONFIG, 0, shard_kind(0)).file("shard.arrow").read_bytes()
    for name, content in (("cut", data[: len(data) // 2]), ("text", b"no shard"), ("empty", b"")):
        path = tmp_path / f"{name}.arrow"
        path.write_bytes(content)
        with pytest.raises(ShardError, match=f"{name}.arrow"):
            read_shard(path)
    with pytest.raises(ShardError, match="absent.arrow"):
        read_shard(tmp_path / "absent.arrow")
    other = tmp_path / "other.arrow"
    table = pa.table({"a": [1]}).replace_schema_metadata({"format": "77"})
    with pa.OSFile(str(other), "wb") as sink, pa.ipc.new_file(sink, table.schema) as out:
        out.write_table(table)
    with pytest.raises(ShardError, match="play the generation again"):
        read_shard(other)


@pytest.mark.parametrize("version, missing", [(1, 3), (2, 2)])
def test_shards_of_earlier_formats_are_read(
    played: Played, tmp_path: Path, version: int, missing: int
) -> None:
    table = tables(played)[0]
    kept = table.select(table.column_names[:-missing])
    for named, path in ((version, tmp_path / "old.arrow"), (3, tmp_path / "cut.arrow")):
        about = {**table.schema.metadata, b"format": str(named).encode()}
        old = kept.replace_schema_metadata(about)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, old.schema) as out:
            out.write_table(old)
    assert read_shard(tmp_path / "old.arrow").equals(kept)
    assert kept.schema.equals(SHARD_SCHEMA(CONFIG, version))
    with pytest.raises(ShardError, match="cut.arrow"):
        read_shard(tmp_path / "cut.arrow")


def test_of_the_longest_games_a_whole_one_is_shown() -> None:
    from ringrift_pipeline.selfplay.collecting import _shown_games

    games = {
        "id": np.array(["a", "b", "c", "d"], dtype=object),
        "plies": np.array([90, 70, 80, 90]),
        "reason": np.array([-1, 2, 0, -1]),
        "surprise_a_decision": np.array([0.1, 0.2, 0.3, 0.4]),
    }
    assert _shown_games(games) == {"longest": "c", "most surprising": "d"}
    games["reason"][:] = -1
    assert _shown_games(games)["longest"] == "a"
    games["surprise_a_decision"][:] = 0.0  # as the heuristic's are
    assert _shown_games(games) == {"longest": "a"}


def test_collect_counts_what_the_shards_hold(either: Played) -> None:
    store, plan = either
    artefact = collect(store, plan)
    assert collect(store, plan) == artefact
    summary = artefact.read_json("summary.json")
    rows = [
        row
        for table in tables(either)
        for row in table.select(["game_id", "outcome", "game_plies", "full_search"]).to_pylist()
    ]
    games = {row["game_id"]: row for row in rows}
    assert summary["games"] == len(games) == plan.games
    assert summary["positions"] == len(rows)
    assert summary["mean_plies"] == pytest.approx(
        np.mean([game["game_plies"] for game in games.values()])
    )
    assert summary["wins_seat_1"] == sum(game["outcome"][0] == 1 for game in games.values())
    assert summary["full_search_fraction"] == pytest.approx(
        np.mean([row["full_search"] for row in rows])
    )
    assert summary["cut_short"] == summary["endings"].get("cut_short", 0) / plan.games
    # the heuristic has no prior to be surprised at
    assert ("mean_surprise" in summary) == (summary["player"] != "heuristic")
    assert sum(summary["endings"].values()) == plan.games
    assert summary["distinct_games"] == plan.games
    assert artefact.metadata["selfplay/games_per_s"] == summary["games_per_s"] > 0
    index = artefact.read_json("shards.json")
    assert [entry["index"] for entry in index] == list(range(len(plan.shards)))
    for entry in index:
        assert store.open(store.root / entry["path"]).digest == entry["digest"]
