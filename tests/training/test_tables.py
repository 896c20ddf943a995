from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from pyarrow import parquet

from ringrift_pipeline.network import load_model
from ringrift_pipeline.selfplay import Plan, iter_shards, plan_generation, read_shard
from ringrift_pipeline.store import MissingArtefactError, Store
from ringrift_pipeline.training import (
    HARD_EXAMPLES,
    QUALITY_SCORES,
    TableError,
    WindowDataset,
    build_window,
    forward,
    hard_examples,
    mine_hard_examples,
    open_window,
    read_table,
    score_games,
)
from ringrift_pipeline.training.hard_examples import TABLE as HARD
from ringrift_pipeline.training.quality import game_scores
from ringrift_pipeline.training.tables import polars_schema, write_table

from .conftest import CONFIG, NOW, settings


def entropy(policy: list[float]) -> float:
    p = np.array([share for share in policy if share > 0], np.float64)
    return float(-(p * np.log(p)).sum())


def test_scores_summarise_the_rows_of_each_game(store: Store, second: Plan) -> None:
    artefact = score_games(store, second)
    table = read_table(artefact.file("scores.parquet"), QUALITY_SCORES)
    by_game = {row["game_id"]: row for row in table.to_dicts()}
    seen = 0
    for shard in iter_shards(store, second):
        rows = read_shard(shard.file("shard.arrow")).to_pylist()
        for game in {row["game_id"] for row in rows}:
            mine = [row for row in rows if row["game_id"] == game]
            score = by_game[game]
            seen += 1
            assert score["length"] == mine[0]["game_plies"] and score["decisions"] == len(mine)
            assert score["generation"] == shard.generation
            assert score["policy_entropy"] == pytest.approx(
                np.mean([entropy(row["policy"]) for row in mine]), rel=1e-5
            )
            if shard.generation == 0:  # the heuristic has no prior: unknown, not zero
                assert score["surprise"] is None and score["surprise_score"] == 0.5
                assert score["balance_score"] == 0.5
            else:
                assert score["surprise"] == pytest.approx(
                    np.mean([row["surprise"] for row in mine]), rel=1e-4, abs=1e-7
                )
    assert seen == table.height == artefact.metadata["games"] == 24
    assert artefact.metadata["own_games"] == 12


def test_freshness_is_one_half_after_one_half_life(store: Store, second: Plan) -> None:
    table = read_table(score_games(store, second).file("scores.parquet"), QUALITY_SCORES)
    # Generation 0 was planned 24 hours, one half-life, before generation 1.
    fresh = table.group_by("generation").agg(pl.col("freshness_score").unique()).sort("generation")
    assert [values.to_list() for values in fresh["freshness_score"]] == [
        pytest.approx([0.5]),
        pytest.approx([1.0]),
    ]


def test_scores_are_weighted_means_in_the_unit_interval(store: Store, first: Plan) -> None:
    artefact = score_games(store, first)
    assert score_games(store, first) == artefact
    table = read_table(artefact.file("scores.parquet"), QUALITY_SCORES)
    terms = [name for name in table.columns if name.endswith("_score")]
    assert len(terms) == 6
    np.testing.assert_allclose(
        table["score"].to_numpy(), table.select(terms).to_numpy().mean(axis=1), rtol=1e-9
    )
    assert game_scores(artefact)[table["game_id"][0]] == table["score"][0]


def test_without_a_model_hardness_is_surprise_against_the_uniform_prior(
    store: Store, first: Plan
) -> None:
    artefact = mine_hard_examples(store, first)
    assert mine_hard_examples(store, first) == artefact
    table = read_table(artefact.file(HARD), HARD_EXAMPLES)
    window = open_window(build_window(store, first).path)
    assert set(table["row"].to_list()) == set(window.training_rows.tolist())
    assert set(table["reason"]) == {"uniform_prior_surprise"}
    for row in table.to_dicts()[::17]:
        at = row["row"]
        policy = window.policy[window.offsets[at] : window.offsets[at + 1]]
        expected = np.log(len(policy)) - entropy(policy.tolist())
        assert row["hardness"] == pytest.approx(expected, abs=1e-6)
        assert row["game_id"] == window.games[window.game[at]] and row["ply"] == window.ply[at]


def test_hardness_is_the_parents_divergence_and_surprise(store: Store, second: Plan) -> None:
    artefact = mine_hard_examples(store, second)
    table = read_table(artefact.file(HARD), HARD_EXAMPLES)
    window = open_window(build_window(store, second).path)
    own = np.flatnonzero(~window.holdout & (window.generation == 1))
    assert sorted(table["row"].to_list()) == own.tolist()  # none of generation 0, none held out
    assert second.parent is not None
    model = load_model(store.root / second.parent["path"])
    dataset = WindowDataset(window)
    weight = second.settings.mining.surprise_weight
    for row in table.to_dicts()[::29]:
        batch = dataset.batch([row["row"]])
        logits, value = (part.double().detach().numpy()[0] for part in model(batch["features"]))
        prior = np.exp(logits - logits.max())
        prior /= prior.sum()
        target = batch["policy_targets"][0].double().numpy()
        policy = sum(t * np.log(t / p) for t, p in zip(target, prior, strict=True) if t > 0)
        chances = np.exp(value[:2]) / np.exp(value[:2]).sum()
        wanted = window.search_value[row["row"]].astype(np.float64)
        searched = sum(w * np.log(w / c) for w, c in zip(wanted, chances, strict=True) if w > 0)
        assert row["policy_loss"] == pytest.approx(max(policy, 0), abs=1e-5)
        assert row["value_loss"] == pytest.approx(max(searched, 0), abs=1e-5)
        total = row["policy_loss"] + row["value_loss"] + weight * row["surprise"]
        assert row["hardness"] == pytest.approx(total)


def test_hardness_in_low_precision_on_two_threads_is_almost_the_same(
    store: Store, second: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = read_table(mine_hard_examples(store, second).file(HARD), HARD_EXAMPLES)
    monkeypatch.setattr(forward, "resolve_precision", lambda precision, device: "bfloat16")
    changed = {"training.precision": "auto", "training.threads": 2}
    raw = second.settings.with_overrides(changed).to_dict()
    plan = Plan.from_dict({**second.raw, "settings": raw})
    low = read_table(mine_hard_examples(store, plan).file(HARD), HARD_EXAMPLES)
    assert low["row"].to_list() == exact["row"].to_list()
    for name in ("policy_loss", "value_loss"):
        one, other = low[name].to_numpy(), exact[name].to_numpy()
        assert 0 < np.abs(one - other).max() < 0.02
        assert np.corrcoef(one, other)[0, 1] > 0.999


def test_only_the_hardest_are_kept(store: Store, first: Plan) -> None:
    whole = mine_hard_examples(store, first)
    hardness = read_table(whole.file(HARD), HARD_EXAMPLES)["hardness"]
    small = Store(store.root.parent / "small")
    plan = plan_generation(small, CONFIG, 0, settings(mining__buffer_size=50), NOW)
    for index in range(len(plan.shards)):
        kind = f"selfplay-shard-{index:04d}"
        with small.create(CONFIG, 0, kind) as draft:
            source = store.require(CONFIG, 0, kind).file("shard.arrow")
            (draft / "shard.arrow").write_bytes(source.read_bytes())
    table = read_table(mine_hard_examples(small, plan).file(HARD), HARD_EXAMPLES)
    assert table.height == 50
    assert table["hardness"].min() >= hardness.sort(descending=True)[50]


def test_where_nobody_mines_evenly_spaced_decisions_are_enough(
    store: Store, second: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hard_examples, "GLANCE", 40)
    whole = mine_hard_examples(store, second)
    raw = second.settings.with_overrides({"mining.enabled": False}).to_dict()
    idle = Plan.from_dict({**second.raw, "settings": raw})
    few = mine_hard_examples(store, idle)
    assert few.metadata["scored_rows"] == 40 < whole.metadata["scored_rows"]
    every = {row["row"]: row for row in read_table(whole.file(HARD), HARD_EXAMPLES).to_dicts()}
    shown = read_table(few.file(HARD), HARD_EXAMPLES).to_dicts()
    assert len(shown) == 40
    for row in shown:
        assert row["hardness"] == pytest.approx(every[row["row"]]["hardness"], rel=1e-4, abs=1e-5)
    places = sorted(sorted(every).index(row["row"]) for row in shown)
    step = len(every) / 40
    assert places == [int(place * step) for place in range(40)]
    assert (few.path / "gallery.full.svg").exists()
    # whoever asks for all of them anew (an ablation does) has them
    asked = mine_hard_examples(store, idle, in_full=True)
    assert asked.metadata["scored_rows"] == len(every)


def test_unplayed_generations_are_refused(store: Store) -> None:
    plan = plan_generation(store, CONFIG, 2, settings(), NOW + timedelta(hours=48))
    for step in (score_games, mine_hard_examples, build_window):
        with pytest.raises(MissingArtefactError, match="selfplay-shard-0000"):
            step(store, plan)


def test_tables_that_break_their_schema_are_refused(tmp_path: Path) -> None:
    types = polars_schema(HARD_EXAMPLES)
    good = pl.DataFrame(
        [["a", 0, 0, 1.0, 0.5, 0.5, 0.0, 0.1, "surprise"]], schema=types, orient="row"
    )
    path = tmp_path / "table.parquet"
    write_table(path, good, HARD_EXAMPLES)
    assert read_table(path, HARD_EXAMPLES).equals(good)
    for column, value in (
        ("hardness", -1.0),
        ("hardness", float("nan")),
        ("reason", "because"),
        ("ply", -1),
    ):
        bad = good.with_columns(pl.lit(value).cast(types[column]).alias(column))
        with pytest.raises(TableError, match=column):
            write_table(path, bad.select(good.columns), HARD_EXAMPLES)
    with pytest.raises(TableError):
        write_table(path, good.drop("ply"), HARD_EXAMPLES)
    with pytest.raises(TableError):
        write_table(path, pl.concat([good, good]), HARD_EXAMPLES)
    path.write_bytes(b"PAR1 damaged")
    with pytest.raises(TableError, match="cannot be read"):
        read_table(path, HARD_EXAMPLES)


def test_a_table_with_two_columns_of_one_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    texts = pa.array(["a", "b"])
    for values in (texts, pa.array([1.0, 2.0])):
        parquet.write_table(pa.table([texts, values], ["reason", "reason"]), path)
        with pytest.raises(TableError, match="two of its columns have one name"):
            read_table(path, HARD_EXAMPLES)
        parquet.write_table(pa.table([texts, values], ["reason", "reason\0s"]), path)
        with pytest.raises(TableError, match="a column has a NUL in it"):  # polars reads no further
            read_table(path, HARD_EXAMPLES)
