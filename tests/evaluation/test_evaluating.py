"""The evaluation step on a store of its own, with small untrained networks."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ringrift_pipeline.enhancements import TrainingConfig
from ringrift_pipeline.evaluation import (
    EvaluationError,
    MatchError,
    evaluate,
    fit_ratings,
    set_scores,
)
from ringrift_pipeline.evaluation.evaluating import check_played, decide_again, games_of
from ringrift_pipeline.evaluation.gate import GateDecision, decide, sequential_test, sprt
from ringrift_pipeline.evaluation.opponents import field_of
from ringrift_pipeline.evaluation.tournament import job_edges
from ringrift_pipeline.selfplay import Plan, plan_generation
from ringrift_pipeline.selfplay.stopping import Interrupted
from ringrift_pipeline.store import Artefact, MissingArtefactError, Store
from ringrift_pipeline.training.tables import TableError

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TINY = {
    "seed": 7,
    "device": "cpu",
    "selfplay.workers": 1,
    "evaluation.games": 6,
    "evaluation.max_games": 12,
    "evaluation.simulations": 2,
}


def settings(**overrides: object) -> TrainingConfig:
    changed = {name.replace("__", "."): value for name, value in overrides.items()}
    return TrainingConfig().with_overrides({**TINY, **changed})


def land_model(store: Store, config: str, generation: int, seed: int) -> Artefact:
    from ringrift_pipeline.game import get_rules
    from ringrift_pipeline.network import NetworkConfig, RingRiftNetwork, save_model

    rules = get_rules(config)
    shape = NetworkConfig(1, 8, 8, rules.geometry, rules.players)
    with store.create(config, generation, "ema_model") as draft:
        save_model(draft, RingRiftNetwork(shape, seed=seed), {})
    return draft.artefact


def generation(
    store: Store, number: int, config: str = "square8_2p", **overrides: object
) -> tuple[Plan, Artefact]:
    plan = plan_generation(store, config, number, settings(**overrides), NOW)
    return plan, land_model(store, config, number, seed=number)


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[Plan], list[Artefact]]:
    """Generation 0, evaluated and made champion; generation 1, evaluated against it."""
    store = Store(tmp_path_factory.mktemp("evaluated"))
    plans, evaluations = [], []
    for number in range(2):
        plan, model = generation(store, number)
        plans.append(plan)
        evaluations.append(evaluate(store, plan))
        if number == 0:
            store.promote("square8_2p", 0, model, {"test": True})
    return store, plans, evaluations


def test_first_generation_meets_the_baselines(loop) -> None:
    store, plans, evaluations = loop
    artefact = evaluations[0]
    report = artefact.read_json("report.json")
    model = store.require("square8_2p", 0, "ema_model")
    assert report["candidate"] == {
        "name": "generation:0000",
        "generation": 0,
        "digest": model.digest,
    }
    assert report["champion"] is None
    assert [match["opponent"] for match in report["matches"]] == ["random", "heuristic"]
    assert [match["games"] for match in report["matches"]] == [6, 6]
    assert set(report["ratings"]) == {"generation:0000", "random", "heuristic"}
    assert report["ratings"]["heuristic"]["rating"] == 1200.0
    assert report["gate"]["first"] and report["gate"]["sprt"] is None
    assert report["gate"]["reasons"]


def test_report_follows_from_the_games(loop) -> None:
    store, plans, evaluations = loop
    artefact = evaluations[0]
    report = artefact.read_json("report.json")
    games = pl.read_parquet(artefact.file("games.parquet"))
    assert games.height == report["games"] == 12
    scores = {
        name: set_scores(games.filter(pl.col("match") == name), "generation:0000")
        for name in ("random", "heuristic")
    }
    for match in report["matches"]:
        assert match["win_rate"] == pytest.approx(scores[match["opponent"]].mean())
        assert match["low"] <= match["win_rate"] <= match["high"]
        assert np.mean(match["win_rate_by_seat"]) == pytest.approx(match["win_rate"])
    assert report["gate"]["promote"] == decide(scores).promote
    unique = games.with_columns(set=pl.format("{}/{}", "match", "set"))
    refit = fit_ratings(unique, depth=1)
    table = pl.read_parquet(artefact.file("ratings.parquet"))
    for player, rating in table.select("player", "rating").iter_rows():
        assert rating == pytest.approx(refit[player])
        assert rating == pytest.approx(report["ratings"][player]["rating"])
    metadata = artefact.metadata
    assert metadata["eval/win_rate_random"] == pytest.approx(scores["random"].mean())
    assert metadata["eval/elo"] == pytest.approx(refit["generation:0000"])
    assert metadata["eval/promote"] == int(report["gate"]["promote"])


def test_without_the_heuristic_it_is_rated_over_random_play(tmp_path: Path) -> None:
    store = Store(tmp_path)
    plan, _ = generation(store, 0, evaluation__opponents=["random"])
    metadata = evaluate(store, plan).metadata
    assert "eval/elo" not in metadata
    low, elo, high = (metadata[f"eval/elo_over_random{end}"] for end in ("_low", "", "_high"))
    assert low < elo < high
    games = pl.read_parquet(store.require("square8_2p", 0, "evaluation").file("games.parquet"))
    sets = games.with_columns(set=pl.format("{}/{}", "match", "set"))
    refit = fit_ratings(sets, anchor="random", anchor_rating=0.0, depth=1)
    assert elo == pytest.approx(refit["generation:0000"])


def test_later_generations_meet_the_champion(loop) -> None:
    store, plans, evaluations = loop
    report = evaluations[1].read_json("report.json")
    assert report["champion"]["name"] == "generation:0000"
    assert [m["opponent"] for m in report["matches"]] == ["random", "heuristic", "generation:0000"]
    assert report["matches"][2]["games"] <= 12
    assert report["gate"]["sprt"]["verdict"] == "continue"
    assert not report["gate"]["promote"]
    assert "not proven better" in " ".join(report["gate"]["reasons"])
    assert "eval/win_rate_champion" in evaluations[1].metadata
    # the champion's own evaluation says what it does against the baselines, and is rated too
    first = evaluations[0].read_json("report.json")
    shares = {match["opponent"]: match["win_rate"] for match in first["matches"]}
    for floor in report["gate"]["floors"]:
        assert floor["champion_share"] == pytest.approx(shares[floor["baseline"]])
    rated = pl.read_parquet(evaluations[1].file("ratings.parquet"))
    champion = rated.filter(pl.col("player") == "generation:0000")
    assert champion["games"][0] == 12 + report["matches"][2]["games"]


def test_same_inputs_same_bytes_and_no_second_playing(loop, tmp_path: Path) -> None:
    store, plans, evaluations = loop
    again = evaluate(store, plans[1], progress=lambda *_: pytest.fail("it played again"))
    assert again.path == evaluations[1].path

    other = Store(tmp_path)
    plan, _ = generation(other, 0)
    repeated = evaluate(other, plan)
    for name in ("report.json", "games.parquet", "ratings.parquet"):
        assert repeated.file(name).read_bytes() == evaluations[0].file(name).read_bytes(), name

    # another candidate in the same generation is evaluated anew
    land_model(other, "square8_2p", 0, seed=99)
    assert evaluate(other, plan).digest != repeated.digest


def test_a_killed_evaluation_goes_on_with_what_is_missing(loop, tmp_path: Path) -> None:
    store = Store(tmp_path)
    plan, _ = generation(store, 0)

    def parts() -> list[str]:
        return [kind for kind in store.kinds("square8_2p", 0) if kind.startswith("evaluation-")]

    with pytest.raises(Interrupted):
        evaluate(store, plan, should_stop=lambda: bool(parts()))
    kept = [store.require("square8_2p", 0, kind) for kind in parts()]
    assert kept and store.current("square8_2p", 0, "evaluation") is None
    games = sum(pl.read_parquet(part.file("games.parquet")).height for part in kept)
    told: list[int] = []
    finished = evaluate(store, plan, progress=lambda done, total, text: told.append(done))
    assert told[len(kept) - 1] == games  # before the first one is played
    assert not parts()
    whole = loop[2][0]
    for name in ("report.json", "games.parquet", "ratings.parquet"):
        assert finished.file(name).read_bytes() == whole.file(name).read_bytes(), name


def test_three_players(tmp_path: Path) -> None:
    store = Store(tmp_path)
    plan, _ = generation(store, 0, "square8_3p", evaluation__opponents=("random", "heuristic"))
    report = evaluate(store, plan).read_json("report.json")
    assert [match["games"] for match in report["matches"]] == [6, 6]
    assert [match["sets"] for match in report["matches"]] == [2, 2]
    assert report["matches"][0]["even"] == pytest.approx(1 / 3)
    assert len(report["matches"][0]["win_rate_by_seat"]) == 3
    json.dumps(report, allow_nan=False)


def test_an_opponent_that_cannot_be_met(tmp_path: Path) -> None:
    store = Store(tmp_path)
    plan, _ = generation(store, 0, evaluation__opponents=("random", "generation:0003"))
    with pytest.raises(EvaluationError, match="generation:0003, which is not earlier"):
        evaluate(store, plan)


def test_a_champion_that_is_not_to_be_met_stays(tmp_path: Path) -> None:
    """Settings cannot take the gate away: by the floors alone, this candidate would pass."""
    store = Store(tmp_path)
    _, champion = generation(store, 0)
    store.promote("square8_2p", 0, champion, {"test": True})
    strong = {"evaluation__opponents": ("heuristic",), "evaluation__games": 2}
    plan, _ = generation(store, 1, **strong)
    report = evaluate(store, plan).read_json("report.json")
    games = pl.read_parquet(store.require("square8_2p", 1, "evaluation").file("games.parquet"))
    assert set(games["match"]) == {"heuristic"}
    gate = report["gate"]
    assert not gate["promote"] and not gate["first"]
    assert any("name champion among evaluation.opponents" in one for one in gate["reasons"])


def test_a_verdict_needs_the_games_that_were_to_be_played(loop, tmp_path: Path) -> None:
    store, plans, evaluations = loop
    shutil.copytree(store.root, tmp_path / "data")
    store = Store(tmp_path / "data")

    games = pl.read_parquet(store.require("square8_2p", 1, "evaluation").file("games.parquet"))

    def decided(keep: pl.Expr) -> GateDecision:
        with store.create("square8_2p", 1, "evaluation", {}) as draft:
            games.filter(keep).write_parquet(draft / "games.parquet")
        return decide_again(store, plans[1], draft.artefact)

    match, last = pl.col("match"), pl.col("set").max().over("match")
    assert decided(pl.lit(True)).promote is evaluations[1].metadata["promote"]
    for missing, words in {
        "random": "to be met were generation:0000, heuristic, random",
        "generation:0000": "there are games against heuristic, random",
    }.items():
        with pytest.raises(MatchError, match=words):
            decided(match != missing)
    with pytest.raises(MatchError, match=r"against random: \d+ of \d+ rotated sets"):
        decided((match != "random") | (pl.col("set") < last))
    with pytest.raises(MatchError, match=r"against generation:0000: \d+ of \d+ rotated sets"):
        decided((match != "generation:0000") | (pl.col("set") < last))


def test_a_match_ends_where_its_test_was_asked_first_and_had_decided(loop) -> None:
    store, plans, _ = loop
    model = store.require("square8_2p", 1, "ema_model")
    field, _ = field_of(store, plans[1], model)
    settings = plans[1].settings.evaluation.model_copy(update={"max_games": 640})
    real = pl.read_parquet(store.require("square8_2p", 1, "evaluation").file("games.parquet"))
    assert field.champion is not None
    champion = pl.col("match") == field.champion.name
    one = real.filter(champion & (pl.col("set") == 0))
    won = one.with_columns(
        shares=pl.col("players").list.eval((pl.element() == field.candidate.name).cast(pl.Float64))
    )
    edges, test = job_edges(320, 2)[1:], sequential_test(settings)
    verdicts = [sprt(np.ones(edge), players=2, **test).verdict for edge in edges]
    end = verdicts.index("accept")
    assert 0 < end < len(edges) - 2

    def played(sets: int) -> None:
        match = pl.concat([won.with_columns(set=pl.lit(n, won["set"].dtype)) for n in range(sets)])
        games = pl.concat([real.filter(~champion), match])
        scores = {
            name: set_scores(games.filter(pl.col("match") == name), field.candidate.name)
            for name in games["match"].unique()
        }
        check_played(field, settings, games, scores, 2)

    played(edges[end])
    for sets in (1, edges[0], edges[end] - 1, edges[end] + 1, edges[end + 1], 320):
        with pytest.raises(MatchError, match=f"against generation:0000: {sets} of"):
            played(sets)


def test_the_champions_record_is_its_games_or_what_was_noted_of_them(loop, tmp_path: Path) -> None:
    store, plans, evaluations = loop
    shutil.copytree(store.root, tmp_path / "data")
    store = Store(tmp_path / "data")
    old = store.require("square8_2p", 0, "evaluation")
    report = old.read_json("report.json")
    evaluation = store.require("square8_2p", 1, "evaluation")

    def shares() -> dict[str, float | None]:
        floors = decide_again(store, plans[1], evaluation).floors
        return {floor.baseline: floor.champion_share for floor in floors}

    rates = {match["opponent"]: match["win_rate"] for match in report["matches"]}
    assert shares() == rates
    for match in report["matches"]:
        match["win_rate"] = 0.123
    with store.create("square8_2p", 0, "evaluation", old.metadata) as draft:
        shutil.copyfile(old.file("games.parquet"), draft / "games.parquet")
        (draft / "report.json").write_text(json.dumps(report))
    assert shares() == rates
    report["candidate"]["digest"] = "0" * 64  # another model's: it is no record any more
    with store.create("square8_2p", 0, "evaluation", old.metadata) as draft:
        (draft / "report.json").write_text(json.dumps(report))
    assert shares() == rates


@pytest.mark.parametrize("column", ["shares", "ranks", "set"])
def test_games_of_another_evaluation_are_looked_at_before_they_count(
    column: str, loop, tmp_path: Path
) -> None:
    """The champion's record is read in every later generation: its manifest alone does not say that it
    is a table of games.
    """
    store, plans, _ = loop
    shutil.copytree(store.root, tmp_path / "data")
    store = Store(tmp_path / "data")
    old = store.require("square8_2p", 0, "evaluation")
    with store.create("square8_2p", 0, "evaluation", old.metadata) as draft:
        shutil.copyfile(old.file("report.json"), draft / "report.json")
        games = (
            pl.read_parquet(old.file("games.parquet")).with_columns(pl.col(column).cast(pl.String))
            if column == "set"
            else pl.read_parquet(old.file("games.parquet")).drop(column)
        )
        games.write_parquet(draft / "games.parquet")
    with pytest.raises(TableError, match=column):
        games_of(store.require("square8_2p", 0, "evaluation"))
    with pytest.raises(TableError, match=column):
        decide_again(store, plans[1], store.require("square8_2p", 1, "evaluation"))


def test_networks_are_averaged_over_the_symmetries_asked_for(tmp_path: Path) -> None:

    store = Store(tmp_path)
    for number, symmetries in enumerate((1, 4)):
        plan, model = generation(store, number, evaluation__symmetries=symmetries)
        field, _ = field_of(store, plan, model)
        assert {one.symmetries for one in (field.candidate, *field.others)} == {symmetries}


def test_networks_are_computed_as_the_plan_says_and_as_they_bear_it(tmp_path: Path) -> None:
    from ringrift_pipeline.network import DIVERGENCE

    store = Store(tmp_path)
    _, champion = generation(store, 0)
    store.promote("square8_2p", 0, champion, {"test": True})
    plan, model = generation(store, 1)

    def arithmetic(about: dict[str, Any], **planned: str) -> list[tuple[str, str]]:
        candidate = replace(model, metadata=about)
        field, _ = field_of(store, Plan.from_dict({**plan.raw, **planned}), candidate)
        assert field.champion is not None
        return [
            (entrant.settings.precision, entrant.settings.backend)
            for entrant in (field.candidate, field.champion)
        ]

    low = {"precision": "bfloat16", "backend": "torch"}
    assert arithmetic({}, **low) == [("bfloat16", "torch")] * 2
    assert arithmetic({DIVERGENCE: 2e-3}, **low) == [("float32", "torch"), ("bfloat16", "torch")]
    exact = arithmetic({}, precision="float32", backend="openvino")
    assert exact == [("float32", "openvino")] * 2


def test_nothing_to_evaluate(tmp_path: Path) -> None:
    store = Store(tmp_path)
    plan = plan_generation(store, "square8_2p", 0, settings(), NOW)
    with pytest.raises(MissingArtefactError, match="ema_model"):
        evaluate(store, plan)


def test_importing_the_room_is_cheap() -> None:
    import subprocess
    import sys

    code = (
        "import sys, ringrift_pipeline.evaluation;"
        "assert not {'torch', 'numba', 'polars', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
