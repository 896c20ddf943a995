"""The list of ratings of a config: whose games count, what it says, how it is shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ringrift_pipeline.drawing.charts import MOST_BYTES
from ringrift_pipeline.evaluation import evaluate, rating_list
from ringrift_pipeline.evaluation.rating_curve import (
    MOST_POINTS,
    MOST_ROWS,
    draw_curve,
    write_list,
)
from ringrift_pipeline.evaluation.rating_list import play_anchors, rate_all
from ringrift_pipeline.evaluation.ratings import fit_ratings
from ringrift_pipeline.evaluation.tables import RATING_LIST
from ringrift_pipeline.selfplay import Plan, load_plan
from ringrift_pipeline.store import Artefact, MissingArtefactError, Store
from ringrift_pipeline.training import read_table

from .test_evaluating import generation

CONFIG = "square8_2p"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[Plan], list[Artefact]]:
    """Two generations, rated as the loop does it; the first one is champion."""
    store = Store(tmp_path_factory.mktemp("listed"))
    plans, lists = [], []
    for number in range(2):
        plan, model = generation(store, number, evaluation__anchor_games=6)
        evaluate(store, plan)
        play_anchors(store, plan)
        plans.append(plan)
        lists.append(rate_all(store, CONFIG, number))
        if number == 0:
            store.promote(CONFIG, 0, model, {})
    return store, plans, lists


@pytest.fixture
def copied(made: tuple[Store, list[Plan], list[Artefact]], tmp_path: Path) -> Store:
    shutil.copytree(made[0].root, tmp_path / "data")
    return Store(tmp_path / "data")


def rows(artefact: Artefact) -> dict[str, dict[str, Any]]:
    table = read_table(artefact.file("ratings.parquet"), RATING_LIST)
    return {row["player"]: row for row in table.iter_rows(named=True)}


def test_everybody_is_on_one_list(made: tuple[Store, list[Plan], list[Artefact]]) -> None:
    store, _, lists = made
    listed = rows(lists[1])
    baselines = {"random", "heuristic", "rollout"}
    assert set(listed) == baselines | {"generation:0000", "generation:0001"}
    assert set(rows(lists[0])) == baselines | {"generation:0000"}
    assert listed["heuristic"]["rating"] == 1200.0 and listed["heuristic"]["anchor"]
    for name, row in listed.items():
        assert row["low"] <= row["rating"] <= row["high"]
        number = None if name in baselines else int(name[-4:])
        assert row["generation"] == number
        assert (row["promoted"] is None) == (number is None)


def test_it_is_the_fit_of_all_their_games(
    made: tuple[Store, list[Plan], list[Artefact]],
) -> None:
    store, _, lists = made
    tables = []
    for folder in ("0000/anchor_games", "0000/evaluation", "0001/evaluation"):
        (path,) = store.root.glob(f"{CONFIG}/generations/{folder}/*/games.parquet")
        own = pl.format("{}-{}-{}", pl.lit(folder), "match", "set").alias("set")
        tables.append(pl.read_parquet(path).with_columns(own).select("players", "ranks", "set"))
    games = pl.concat(tables)
    fit = fit_ratings(games, depth=1)
    listed = rows(lists[1])
    assert lists[1].metadata["games"] == games.height
    for name in fit.players:
        assert listed[name]["rating"] == pytest.approx(fit[name])
        assert (listed[name]["low"], listed[name]["high"]) == pytest.approx(fit.interval(name))


def test_the_baselines_meet_once_a_config(
    made: tuple[Store, list[Plan], list[Artefact]],
) -> None:
    store, plans, _ = made
    first = store.require(CONFIG, 0, "anchor_games")
    assert play_anchors(store, plans[1]) == first
    assert store.current(CONFIG, 1, "anchor_games") is None
    games = pl.read_parquet(first.file("games.parquet"))
    assert games["match"].unique(maintain_order=True).to_list() == ["rollout", "heuristic"]
    assert games.group_by("match").len()["len"].to_list() == [6, 6]


def test_damaged_games_of_the_baselines_are_played_again(copied: Store) -> None:
    plan = load_plan(copied, CONFIG, 1)
    first = copied.require(CONFIG, 0, "anchor_games")
    first.file("games.parquet").write_bytes(b"rotten")
    again = play_anchors(copied, plan)
    assert again is not None and (again.generation, again.digest) != (0, first.digest)
    assert again.files["games.parquet"] == first.files["games.parquet"]


def test_the_same_games_are_not_rated_twice(
    made: tuple[Store, list[Plan], list[Artefact]],
) -> None:
    store, _, lists = made
    assert rate_all(store, CONFIG, 1) == lists[1]


def let_pass(store: Store, number: int) -> None:
    """The gate has let a generation through."""
    old = store.require(CONFIG, number, "evaluation")
    report = old.read_json("report.json")
    report["gate"]["promote"] = True
    with store.create(CONFIG, number, "evaluation", old.metadata) as draft:
        for name in old.files:
            shutil.copyfile(old.file(name), draft / name)
        (draft / "report.json").write_text(json.dumps(report))


def test_the_newest_champion_is_set_beside_those_before_it(copied: Store) -> None:
    let_pass(copied, 0)
    assert rate_all(copied, CONFIG, 0).metadata["champion_fall"] is None
    let_pass(copied, 1)
    artefact = rate_all(copied, CONFIG, 1)
    fall, listed_rows = artefact.metadata["champion_fall"], rows(artefact)
    assert (fall["model"], fall["earlier"]) == ("generation:0001", "generation:0000")
    one, other = (listed_rows[fall[name]] for name in ("model", "earlier"))
    assert fall["difference"] == pytest.approx(one["rating"] - other["rating"])
    # of the difference: narrower than what independent ratings would have, they share the anchor
    apart = np.hypot(one["high"] - one["low"], other["high"] - other["low"])
    assert 0.0 < fall["high"] - fall["low"] < 0.99 * apart


def test_its_metadata_have_the_ratings_of_the_generations(
    made: tuple[Store, list[Plan], list[Artefact]],
) -> None:
    listed = rows(made[2][1])
    assert made[2][1].metadata["ratings"] == {
        f"{number:04d}": pytest.approx(
            [listed[f"generation:{number:04d}"][name] for name in ("rating", "low", "high")]
        )
        for number in (0, 1)
    }


def test_a_list_that_a_version_before_made_is_made_anew(copied: Store) -> None:
    old = copied.require(CONFIG, 1, "rating_list")
    kept = {name: value for name, value in old.metadata.items() if name != "ratings"}
    with copied.create(CONFIG, 1, "rating_list", kept) as draft:
        for name in old.files:
            shutil.copyfile(old.file(name), draft / name)
    assert rate_all(copied, CONFIG, 1).metadata == old.metadata


def replay_gauntlet(store: Store, **changes: Any) -> None:
    """A gauntlet of the champion with games that it won."""
    own = store.require(CONFIG, 0, "evaluation")
    report = {
        "models": {"generation:0000": store.require(CONFIG, 0, "ema_model").digest},
        "simulations": own.read_json("report.json")["simulations"],
        "opening_decisions": own.read_json("report.json")["opening_decisions"],
    } | changes
    games = pl.read_parquet(own.file("games.parquet")).with_columns(
        pl.when(pl.col("rotation") == 0)
        .then(pl.lit([0, 1]))
        .otherwise(pl.lit([1, 0]))
        .alias("ranks")
    )
    with store.create(CONFIG, 0, "gauntlet", {}) as draft:
        (draft / "report.json").write_text(json.dumps(report))
        games.write_parquet(draft / "games.parquet")


def test_a_gauntlets_games_count(copied: Store) -> None:
    before = rows(rate_all(copied, CONFIG, 1))
    replay_gauntlet(copied)
    after = rows(rate_all(copied, CONFIG, 1))
    assert after["generation:0000"]["rating"] > before["generation:0000"]["rating"]
    assert after["generation:0000"]["games"] == before["generation:0000"]["games"] + 12


@pytest.mark.parametrize(
    "changes", [{"simulations": 99}, {"models": {"generation:0000": "0" * 64}}]
)
def test_games_of_others_do_not_count(copied: Store, changes: dict[str, Any]) -> None:
    """Played with another search, or by a model that has been trained anew since."""
    before = rows(rate_all(copied, CONFIG, 1))
    replay_gauntlet(copied, **changes)
    assert rows(rate_all(copied, CONFIG, 1)) == before


def test_the_heuristic_is_reached_through_random(tmp_path: Path) -> None:
    store = Store(tmp_path)
    plan, _ = generation(store, 0, evaluation__opponents=("random",), evaluation__anchor_games=4)
    evaluate(store, plan)
    without = rate_all(store, CONFIG, 0)
    assert set(rows(without)) == {"random", "generation:0000"}
    assert rows(without)["random"]["rating"] == 0.0
    play_anchors(store, plan)
    listed = rows(rate_all(store, CONFIG, 0))
    assert set(listed) == {"random", "heuristic", "rollout", "generation:0000"}
    assert listed["heuristic"]["rating"] == 1200.0


def test_no_baseline_games_if_none_are_wanted(tmp_path: Path) -> None:
    plan, _ = generation(Store(tmp_path), 0, evaluation__anchor_games=0)
    assert play_anchors(Store(tmp_path), plan) is None


def test_nothing_evaluated(tmp_path: Path) -> None:
    with pytest.raises(MissingArtefactError, match="evaluation"):
        rate_all(Store(tmp_path), CONFIG, 0)


def many(generations: int) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    names = ["heuristic", "random", *(f"generation:{g:04d}" for g in range(generations))]
    rating = [1200.0, 500.0, *(1200 + 5.0 * g for g in range(generations))]
    half = rng.uniform(20, 90, len(names))
    return pl.DataFrame(
        {
            "player": names,
            "rating": rating,
            "standard_error": half / 2,
            "low": np.array(rating) - half,
            "high": np.array(rating) + half,
            "games": [96] * len(names),
            "share": [0.5] * len(names),
            "anchor": [name == "heuristic" for name in names],
            "generation": [None, None, *range(generations)],
            "promoted": [None, None, *(g % 3 == 0 for g in range(generations))],
        }
    ).sort("rating", descending=True)


def test_the_curve_is_a_small_picture_and_the_same_every_time(tmp_path: Path) -> None:
    frame = many(200)

    def drawn(table: pl.DataFrame) -> list[bytes]:
        draw_curve(tmp_path, table, CONFIG, 0.95)
        return [(tmp_path / f"rating_curve{end}").read_bytes() for end in (".png", ".full.svg")]

    small, whole = drawn(frame)
    assert small.startswith(b"\x89PNG") and 4_000 < len(small) < MOST_BYTES
    assert b"<svg" in whole
    assert b"<!-- passed the gate -->" in whole and b"promoted" not in whole
    assert [small, whole] == drawn(frame)
    moved = frame.with_columns(pl.col("rating") + pl.col("generation").fill_null(0) % 10)
    changed = drawn(moved)
    assert small != changed[0] and whole != changed[1]


def test_the_text_has_the_newest_generations_and_all_baselines(tmp_path: Path) -> None:
    write_list(tmp_path / "list.md", many(MOST_ROWS + 7), 0.9)
    text = (tmp_path / "list.md").read_text()
    assert "90% interval" in text and "| heuristic | 1200 | given |" in text and "random" in text
    assert "| passed the gate |" in text and "promoted" not in text
    assert "generation:0007" in text and "generation:0006" not in text
    assert "7 older generations" in text
    assert text.index("generation:0066") < text.index("generation:0010")  # strongest first


def test_generations_long_before_keep_their_rating(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    lists = []
    for number in range(3):
        plan, _ = generation(store, number, evaluation__anchor_games=4)
        evaluate(store, plan)
        play_anchors(store, plan)
        lists.append(rate_all(store, CONFIG, number))
    assert [one.metadata["carried"] for one in lists] == [0, 0, 0]
    monkeypatch.setattr(rating_list, "FITTED", 1)
    shorter = rate_all(store, CONFIG, 2)
    assert shorter.metadata["carried"] == 2
    assert set(rows(shorter)) == set(rows(lists[2]))
    for name in ("generation:0000", "generation:0001"):
        assert rows(shorter)[name] == rows(lists[1])[name] != rows(lists[2])[name]
    alone = shorter.metadata["games"]
    assert alone < lists[2].metadata["games"]
    assert [e[1] for e in shorter.metadata["inputs"]] == [
        "anchor_games",
        "evaluation",
        "rating_list",
    ]
    # whom the newest met is fitted with it
    store.promote(CONFIG, 0, store.require(CONFIG, 0, "ema_model"), {})
    plan, _ = generation(store, 3, evaluation__anchor_games=4)
    evaluate(store, plan)
    with_champion = rate_all(store, CONFIG, 3)
    assert with_champion.metadata["carried"] == 2
    assert [e[:2] for e in with_champion.metadata["inputs"]] == [
        [0, "anchor_games"],
        [0, "evaluation"],
        [3, "evaluation"],
        [2, "rating_list"],
    ]


def test_the_picture_of_many_generations_is_no_larger(tmp_path: Path) -> None:
    sizes = []
    for generations in (MOST_POINTS, 20 * MOST_POINTS):
        draw_curve(tmp_path, many(generations), CONFIG, 0.95)
        sizes.append((tmp_path / "rating_curve.full.svg").stat().st_size)
        assert (tmp_path / "rating_curve.png").stat().st_size <= MOST_BYTES
    assert sizes[1] < 1.2 * sizes[0]
