from __future__ import annotations

import gc
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringrift_pipeline.game import layout
from ringrift_pipeline.selfplay import (
    Plan,
    iter_shards,
    plan_generation,
    play_shards,
    read_shard,
    shard_kind,
)
from ringrift_pipeline.store import Store
from ringrift_pipeline.store.locks import unheld
from ringrift_pipeline.training import WindowDataset, WindowError, build_window, open_window
from ringrift_pipeline.training.split import hash_fraction, is_held_out, split_games

from .conftest import CONFIG, NOW, settings


def rows_of(store: Store, plan: Plan) -> list[dict]:
    return [
        row | {"generation": shard.generation}
        for shard in iter_shards(store, plan)
        for row in read_shard(shard.file("shard.arrow")).to_pylist()
    ]


def test_columns_hold_what_the_shards_hold_mover_first(store: Store, second: Plan) -> None:
    artefact = build_window(store, second)
    window = open_window(artefact.path)
    rows = rows_of(store, second)
    assert len(window) == len(rows) == artefact.metadata["rows"]
    assert {row["generation"] for row in rows} == {0, 1}
    for index, row in enumerate(rows):
        mover = row["player"]
        moves = slice(window.offsets[index], window.offsets[index + 1])
        assert window.games[window.game[index]] == row["game_id"]
        assert window.generation[index] == row["generation"]
        assert window.ply[index] == row["ply"] and window.decision[index] == row["decision"]
        assert window.phase[index] == row["state"][layout.PHASE]
        assert window.player[index] == mover
        for name in ("outcome", "search_value"):
            turned = row[name][mover:] + row[name][:mover]
            assert getattr(window, name)[index].tolist() == turned
        assert window.planes[index].reshape(-1).tolist() == row["planes"]
        assert window.globals[index].tolist() == row["globals"]
        assert window.policy[moves].tolist() == row["policy"]
        assert window.move_kind[moves].tolist() == row["move_kind"]
        assert window.move_cells[moves].tolist() == row["move_cells"]
        assert window.full_search[index] == row["full_search"]
        assert window.surprise[index] == np.float32(row["surprise"])
        assert window.valued[index] == (row["generation"] == 1)
        assert window.owners[window.game[index]].tolist() == row["owners"]
        assert window.eliminated[window.game[index]].tolist() == row["eliminated"]


def test_columns_are_memory_mapped_and_read_only(store: Store, first: Plan) -> None:
    window = open_window(build_window(store, first).path)
    assert isinstance(window.planes, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        window.planes[0] = 0


@pytest.mark.parametrize("vanished", ["window.json", "games.txt", "policy.npy"])
def test_a_window_that_landed_without_a_file_is_built_again(
    vanished: str, store: Store, first: Plan
) -> None:
    """As it could once, where the file had vanished before."""
    whole = build_window(store, first)
    with store.create(CONFIG, 0, whole.kind, whole.metadata) as draft:
        for name in sorted(whole.files.keys() - {vanished}):
            shutil.copyfile(whole.file(name), draft / name)
    again = build_window(store, first)
    assert again.digest == whole.digest and store.current(CONFIG, 0, whole.kind) == again


def test_no_game_lies_on_both_sides_and_the_split_outlives_the_window(
    store: Store, first: Plan, second: Plan
) -> None:
    earlier = open_window(build_window(store, first).path)
    window = open_window(build_window(store, second).path)
    held_out = set(window.game[window.holdout_rows])
    trained = set(window.game[window.training_rows])
    assert held_out and trained and not held_out & trained
    assert len(window.holdout_rows) + len(window.training_rows) == len(window)
    fraction = second.settings.training.holdout_fraction
    for index, game in enumerate(window.games):
        assert (index in held_out) == is_held_out(game, fraction)
    before = {earlier.games[game] for game in earlier.game[earlier.holdout_rows]}
    assert before <= {window.games[game] for game in held_out}


def planned_again(store: Store, *fractions: float) -> list[Plan]:
    """The played generations as if they had been planned to hold out these shares."""
    plans = []
    for generation, fraction in enumerate(fractions):
        (store.root / CONFIG / "generations" / f"{generation:04d}" / "plan.json").unlink()
        changed = settings(training__holdout_fraction=fraction)
        plans.append(plan_generation(store, CONFIG, generation, changed, NOW))
    return plans


def sides(store: Store, plan: Plan) -> tuple[set[str], set[str]]:
    """Ids of the games that a plan's window trains on, and of those that it holds out."""
    window = open_window(build_window(store, plan).path)
    trained, held_out = (
        {window.games[game] for game in np.unique(window.game[rows])}
        for rows in (window.training_rows, window.holdout_rows)
    )
    return trained, held_out


def as_earlier_versions_wrote(plan: Plan) -> Plan:
    return Plan.from_dict({name: one for name, one in plan.raw.items() if name != "holdout"})


def test_a_higher_share_holds_out_no_game_that_was_trained_on(store: Store) -> None:
    first, second = planned_again(store, 0.1, 0.3)
    assert len(second.window) == len(first.shards)
    trained_before, held_before = sides(store, first)
    trained, held_out = sides(store, second)
    assert any(is_held_out(game, 0.3) for game in trained_before)
    assert not trained_before & held_out
    assert held_out == held_before | {
        game for game in trained | held_out if "-0001-" in game and is_held_out(game, 0.3)
    }
    assert len(held_out) > len(held_before)
    # a plan without the note, of an earlier version, keeps the window that it had
    old = sides(store, as_earlier_versions_wrote(second))[1]
    assert old == {game for game in trained | held_out if is_held_out(game, 0.3)}
    assert old & trained_before


def test_a_lower_share_holds_for_all_games(store: Store) -> None:
    plans = planned_again(store, 0.3, 0.1)
    trained, held_out = sides(store, plans[1])
    assert held_out == {game for game in trained | held_out if is_held_out(game, 0.1)}


def test_with_one_share_windows_are_what_they_were(store: Store) -> None:
    for plan in planned_again(store, 0.3, 0.3):
        now = build_window(store, plan)
        before = build_window(store, as_earlier_versions_wrote(plan))
        assert now.path != before.path and now.files == before.files


def test_only_what_is_new_is_held_out_for_want_of_others() -> None:
    ids = [f"game-{number}" for number in range(20)]
    hashes = np.array([hash_fraction(game) for game in ids])
    fresh = hashes > np.median(hashes)
    assert split_games(ids, 1e-9).nonzero()[0].tolist() == [hashes.argmin()]
    (held_out,) = split_games(ids, 1e-9, fresh).nonzero()[0]
    assert fresh[held_out] and hashes[held_out] == hashes[fresh].min()
    # each by its own share
    shares = np.where(fresh, 0.9, 0.1)
    assert np.array_equal(split_games(ids, shares, fresh), hashes < shares)


def test_a_window_is_built_once_and_again_when_damaged(store: Store, first: Plan) -> None:
    artefact = build_window(store, first)
    assert build_window(store, first) == artefact
    path = artefact.file("outcome.npy")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    again = build_window(store, first)
    assert again.path != artefact.path and again.digest == artefact.digest


@given(st.integers(2, 60), st.floats(0.01, 0.89), st.integers(0, 1000))
def test_split_holds_out_some_and_not_all(games: int, fraction: float, salt: int) -> None:
    ids = [f"square8_2p-{salt:04d}-0000-{number:04d}" for number in range(games)]
    flags = split_games(ids, fraction)
    assert 0 < flags.sum() < games
    by_hash = np.array([is_held_out(game, fraction) for game in ids])
    if 0 < by_hash.sum() < games:
        assert np.array_equal(flags, by_hash)


def test_hashes_are_uniform() -> None:
    values = np.sort([hash_fraction(f"game-{number}") for number in range(4000)])
    assert np.abs(values - (np.arange(4000) + 0.5) / 4000).max() < 0.03


def test_games_of_older_shards_have_no_known_end(store: Store, first: Plan) -> None:
    shard = store.require(CONFIG, 0, shard_kind(0)).file("shard.arrow")
    table = read_shard(shard)
    old = table.select(table.column_names[:-3])
    old = old.replace_schema_metadata({**table.schema.metadata, b"format": b"1"})
    with store.create(CONFIG, 0, shard_kind(0)) as draft:
        path = str(draft / "shard.arrow")
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, old.schema) as out:
            out.write_table(old)
    window = open_window(build_window(store, first).path)
    ours = set(table["game_id"].to_pylist())
    for number, game in enumerate(window.games):
        assert (window.owners[number] == -2).all() == (game in ours)
        assert (window.eliminated[number] == -2).all() == (game in ours)
    assert 0 < len(ours) < len(window.games) and not window.opponent.any()


def test_windows_that_cannot_be_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "data")
    plan = plan_generation(store, CONFIG, 0, settings(selfplay__games=1), NOW)
    play_shards(store, plan, workers=1)
    with pytest.raises(WindowError, match="at least 2"):
        build_window(store, plan)
    with pytest.raises(WindowError, match="holds no training window"):
        open_window(tmp_path)
    (tmp_path / "window.json").write_text('{"format": 99}')
    with pytest.raises(WindowError, match="format 99"):
        open_window(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_batches_against_rows_taken_one_by_one(store: Store, second: Plan, share: float) -> None:
    window = open_window(build_window(store, second).path)
    rows = rows_of(store, second)
    picked = np.random.default_rng(0).integers(0, len(window), 40)
    batch = WindowDataset(window, search_value_share=share).batch(picked)
    width = max(len(rows[index]["moves"]) for index in picked)
    assert batch["legal_mask"].shape == (40, width)
    assert batch["indices"].tolist() == picked.tolist()
    features = batch["features"]
    for at, index in enumerate(picked):
        row, mover = rows[index], rows[index]["player"]
        count = len(row["moves"])
        assert batch["legal_mask"][at].tolist() == [True] * count + [False] * (width - count)
        target = row["policy"] if row["full_search"] else [0.0] * count
        assert batch["policy_targets"][at].tolist() == target + [0.0] * (width - count)
        outcome = np.roll(row["outcome"], -mover)
        mixed = share if row["generation"] else 0.0  # the heuristic knows no values
        value = (1 - mixed) * outcome + mixed * np.roll(row["search_value"], -mover)
        np.testing.assert_allclose(batch["value_targets"][at, :2], value, rtol=1e-6)
        assert (batch["value_targets"][at, 2:] == 0).all()
        assert features["planes"][at].reshape(-1).tolist() == row["planes"]
        assert features["move_cells"][at, :count].tolist() == row["move_cells"]
        assert (features["move_cells"][at, count:] == -1).all()
        assert features["move_rank"][at, :count].tolist() == row["move_rank"]


def test_bad_batches_are_refused(store: Store, first: Plan) -> None:
    dataset = WindowDataset(open_window(build_window(store, first).path))
    with pytest.raises(WindowError, match="list of row indices"):
        dataset.batch([])
    for bad in (-1, len(dataset)):
        with pytest.raises(WindowError, match="must lie in"):
            dataset.batch([0, bad])
    with pytest.raises(ValueError, match="search_value_share"):
        WindowDataset(dataset.window, search_value_share=1.5)
    sizes = [len(part["indices"]) for part in dataset.batches(np.arange(25), 10)]
    assert sizes == [10, 10, 5]


def test_a_window_is_held_as_long_as_a_row_of_it_can_be_read(store: Store, first: Plan) -> None:
    """A cache that is over its budget would drop it, and free no disk: the next step builds it again."""
    folder = build_window(store, first).path

    def is_free() -> bool:
        gc.collect()
        with unheld(folder) as free:
            return free

    assert is_free()
    window = open_window(folder)
    dataset = WindowDataset(open_window(folder))
    del window
    assert not is_free()
    rows = dataset.window.planes[1:3]
    del dataset
    assert not is_free() and rows.any()
    del rows
    assert is_free()


def test_what_is_no_window_is_let_go_of(tmp_path: Path) -> None:
    (tmp_path / "window.json").write_text('{"format": 99}')
    with pytest.raises(WindowError):
        open_window(tmp_path)
    with unheld(tmp_path) as free:
        assert free
