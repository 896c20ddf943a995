"""Stale data and drift: checks that fail in real runs, and what a failure stops."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from dagster import DagsterInstance, build_sensor_context

from ringrift_pipeline.definitions import defs
from ringrift_pipeline.enhancements.training_config import TrainingConfig
from ringrift_pipeline.orchestration import names
from ringrift_pipeline.orchestration.settings import given
from ringrift_pipeline.selfplay import load_plan, plan_generation
from ringrift_pipeline.store import Store

from .conftest import TINY
from .test_checks import edit_json, edit_table, replace, run_check

pytestmark = pytest.mark.slow

CONFIG = "square8_2p"


def settings(**watch: Any) -> dict[str, Any]:
    """The tiny settings as a run is given them, with some of ``watch``."""
    return {**TINY, "last_generation": 9, "watch": watch}


def plan(store: Store, generation: int, **watch: Any) -> Any:
    values = settings(**watch)
    made = TrainingConfig.load(preset="smoke", environ={}, overrides=given(values))
    return plan_generation(store, CONFIG, generation, made)


def run_generation(
    generation: int, values: dict[str, Any], assets: tuple[str, ...] | None = None
) -> tuple[Any, set[str], Any]:
    """Run the job on a generation: result, assets made, what the sensor says after it."""
    with DagsterInstance.ephemeral() as instance:
        result, made = run_in(instance, generation, values, assets)
        sensor = defs.get_repository_def().get_sensor_def(names.SENSOR)
        with build_sensor_context(
            instance=instance, repository_def=defs.get_repository_def()
        ) as context:
            ticked = sensor.evaluate_tick(context)
        return result, made, ticked


def run_in(
    instance: DagsterInstance,
    generation: int,
    values: dict[str, Any],
    assets: tuple[str, ...] | None = None,
) -> tuple[Any, set[str]]:
    """Run the job on a generation, as of ``instance``: result, assets made."""
    job = defs.get_repository_def().get_job(names.job_name(CONFIG))
    key = names.generation_key(generation)
    instance.add_dynamic_partitions(names.partitions_name(CONFIG), [key])
    result = job.execute_in_process(
        run_config={"resources": {"settings": {"config": values}}},
        partition_key=key,
        instance=instance,
        asset_selection=[names.asset_key(CONFIG, name) for name in assets] if assets else None,
        raise_on_error=False,
    )
    made = {event.asset_key.path[-1] for event in result.get_asset_materialization_events()}
    return result, made


def judged(result: Any, name: str) -> Any:
    (found,) = [one for one in result.get_asset_check_evaluations() if one.check_name == name]
    return found


@pytest.fixture
def outdated(copied: Store) -> Store:
    """Generation 1 was planned (the night plays ahead), then generation 0 was promoted."""
    plan(copied, 1)
    copied.promote(CONFIG, 0, copied.require(CONFIG, 0, "ema_model"), {"gate": {}})
    return copied


def test_no_shard_of_the_champion_stops_training_and_promotion(outdated: Store) -> None:
    champion = outdated.champion(CONFIG)
    result, made, ticked = run_generation(1, settings())
    assert not result.success
    assert made == {"selfplay_shards"}  # nothing was scored, mined, trained, evaluated
    check = judged(result, "window_fresh")
    assert not check.passed and check.blocking and check.severity.value == "ERROR"
    assert "none of the window's 4 shards was played by the champion (generation 0000)" in (
        check.description
    )
    assert "ringrift loop --config square8_2p --resume never" in check.description
    assert not ticked.run_requests and not ticked.asset_events
    assert outdated.champion(CONFIG) == champion
    assert outdated.current(CONFIG, 1, "checkpoint") is None


def test_nor_can_training_alone_be_materialized(outdated: Store) -> None:
    """Where no check has looked, as the command line made what is there, the step refuses itself."""
    before = ("selfplay_shards", "quality_scores", "hard_examples")
    run_generation(1, settings(), before[:1])
    from ringrift_pipeline import training
    from ringrift_pipeline.selfplay import load_plan

    training.score_games(outdated, load_plan(outdated, CONFIG, 1))
    training.mine_hard_examples(outdated, load_plan(outdated, CONFIG, 1))
    result, made, _ = run_generation(1, settings(), ("checkpoint", "ema_model"))
    assert made == set() and not result.success
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert "none of the window's" in str(failure.step_failure_data.user_failure_data.description)


def why_failed(result: Any) -> str:
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    return str(failure.step_failure_data.user_failure_data.description)


def test_what_failed_a_check_is_not_gone_on_from_in_another_run(
    copied: Store, instance: DagsterInstance
) -> None:
    replace(
        copied, "quality_scores", edit_table(lambda table: table.with_columns(score=pl.lit(0.5)))
    )
    result, made = run_in(instance, 0, {}, ("quality_scores",))
    assert made == {"quality_scores"} and not judged(result, "scores_sound").passed
    for asset in ("hard_examples", "checkpoint"):
        result, made = run_in(instance, 0, {}, (asset,))
        assert made == set()
        assert why_failed(result).startswith(
            f"{asset} is not made from what has failed a blocking check: check scores_sound of "
            "quality_scores failed: all games have the same score. What to do: Materialize this"
        )
    result, made = run_in(instance, 0, {}, ("ema_model",))  # is made from nothing that failed
    assert made == {"ema_model"} and result.success
    # mended, and judged anew with what follows
    shutil.rmtree(copied.require(CONFIG, 0, "quality_scores").path)
    result, made = run_in(instance, 0, {}, ("quality_scores", "hard_examples"))
    assert made == {"quality_scores", "hard_examples"} and result.success
    result, made = run_in(instance, 0, {}, ("checkpoint",))
    assert made == {"checkpoint"} and result.success


def test_settings_of_the_generation_before_are_planned_with(copied: Store) -> None:
    """Somebody types one field into the launchpad, as a failed check asks."""
    values = {"network": {"channels": 12}}
    result, made, ticked = run_generation(1, values, names.ASSETS[:4])
    assert made == set(names.ASSETS[:4]) and result.success
    before, planned = (load_plan(copied, CONFIG, generation).settings for generation in (0, 1))
    assert planned == before.with_overrides(values)
    # such a network cannot go on from the one before, which is told
    note = "fresh weights: the parent differs in channels"
    check = judged(result, "parent_trained_on")
    assert not check.passed and check.severity.value == "WARN"
    assert check.description.startswith(f"{note}; what generation 0000 had learned is not in")
    assert "the parent's settings under network" in check.description
    assert f"not compared with its parent: {note}" in judged(result, "training_learned").description
    (shown,) = [
        event.materialization.metadata["parent_note"].value
        for event in result.get_asset_materialization_events()
        if event.asset_key.path[-1] == "checkpoint"
    ]
    assert shown == note


def test_a_generation_played_by_the_champion_trains(outdated: Store) -> None:
    """What the message advises helps: the next plan has the champion play."""
    result, made, _ = run_generation(2, settings(), names.ASSETS[:4])
    assert made == set(names.ASSETS[:4])
    check = run_check("selfplay_shards", "window_fresh", "0002")
    assert check.passed, check.description
    assert check.metadata["window/champions_shards"].value == 2
    assert check.metadata["window/champion_age"].value == 0
    assert result.success


def test_old_shards_stop_training(copied: Store) -> None:
    result, made, ticked = run_generation(1, settings(shard_hours=1e-9))
    assert not result.success and made == {"selfplay_shards"}
    check = judged(result, "window_fresh")
    assert not check.passed and "hours old, watch.shard_hours allows 1e-09" in check.description
    assert not ticked.run_requests


def test_a_champion_that_has_not_played_for_long_stops_training(copied: Store) -> None:
    """Going back to an older champion: its shards are in the window, but no recent ones."""
    heuristics = copied.require(CONFIG, 0, "selfplay-shard-0000")
    plan(copied, 0)
    old = copied.require(CONFIG, 0, "ema_model")
    copied.promote(CONFIG, 0, old, {})
    for generation in (1, 2, 3):
        made = plan(copied, generation, champion_age=1)
        for shard in made.shards:
            land_shard(copied, heuristics, generation, shard["index"], old.digest)
    newer = copied.require(CONFIG, 0, "ema_model")
    with copied.create(CONFIG, 3, "ema_model", newer.metadata) as draft:
        (draft / "note").write_text("another")
    copied.promote(CONFIG, 3, draft.artefact, {})
    for generation in (4, 5):
        made = plan(copied, generation, champion_age=1)
        for shard in made.shards:
            land_shard(copied, heuristics, generation, shard["index"], draft.artefact.digest)
    assert run_check("selfplay_shards", "window_fresh", "0005").passed
    copied.promote(CONFIG, 0, old, {}, again=True)
    check = run_check("selfplay_shards", "window_fresh", "0005")
    assert not check.passed and "is 2 generations old, watch.champion_age allows 1" in (
        check.description
    )
    assert run_check("selfplay_shards", "window_fresh", "0004").passed


def land_shard(store: Store, like: Any, generation: int, index: int, model: str | None) -> None:
    """A shard with the games of another, which says that ``model`` played it."""
    import pyarrow as pa

    from ringrift_pipeline.selfplay.shards import SHARD_FILE, read_shard

    table = read_shard(like.file(SHARD_FILE))
    told = {**table.schema.metadata, b"model": json.dumps(model).encode()}
    metadata = {**like.metadata, "model": model}
    with store.create(CONFIG, generation, f"selfplay-shard-{index:04d}", metadata) as draft:
        schema = table.schema.with_metadata(told)
        path = str(draft / SHARD_FILE)
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, schema) as out:
            out.write_table(table.cast(schema))


# -- drift ----------------------------------------------------------------------------------


def measures(**changes: float) -> dict[str, dict[str, float]]:
    values = {
        "plies": 120.0,
        "draw_rate": 0.02,
        "seat_1_share": 0.5,
        "seat_2_share": 0.5,
        "policy_entropy": 1.4,
    } | changes
    errors = {"plies": 2.0, "policy_entropy": 0.02}
    return {
        name: {"value": value, "error": errors.get(name, 0.02)} for name, value in values.items()
    }


def land_play(
    store: Store, generation: int, player: str = "network", whole: bool = True, **changes: float
) -> None:
    plan(store, generation)
    metadata = {"measures": measures(**changes), "selfplay/player": player}
    metadata |= {"selfplay/cut_short": 0.0} if whole else {}
    with store.create(CONFIG, generation, "selfplay_shards", metadata):
        pass


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"plies": 250.0}, "game length 250 leaves"),
        ({"draw_rate": 0.6}, "draw rate 0.6 leaves"),
        ({"seat_1_share": 0.9, "seat_2_share": 0.1}, "seat 1's share of the win 0.9 leaves"),
        ({"policy_entropy": 0.2}, "policy entropy 0.2 leaves"),
    ],
)
def test_drift_warns(store: Store, changes: dict[str, float], words: str) -> None:
    rng = np.random.default_rng(0)
    for generation in range(6):
        land_play(store, generation, plies=120.0 + rng.normal(0, 2))
    assert run_check("selfplay_shards", "play_steady", "0005").passed
    land_play(store, 6, **changes)
    check = run_check("selfplay_shards", "play_steady", "0006")
    assert not check.passed and not check.blocking and check.severity.value == "WARN"
    assert words in check.description and check.description.count("leaves") == 1
    assert check.metadata["drift/earlier"].value == 6


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"plies": 17.0}, "game length went from 120 to 256"),
        ({"policy_entropy": -0.1}, "policy entropy went from 1.4 to 0.6"),
        ({"draw_rate": 0.05}, "draw rate went from 0.02 to 0.42"),
        ({"seat_1_share": 0.03}, "seat 1's share of the win went from 0.5 to 0.74"),
    ],
)
def test_what_drifts_by_small_steps_warns_too(
    store: Store, step: dict[str, float], words: str
) -> None:
    """No step of it leaves the range of those before it."""
    ((name, each),) = step.items()
    start = measures()[name]["value"]
    for generation in range(9):
        land_play(store, generation, **{name: start + generation * each})
    assert run_check("selfplay_shards", "play_steady", "0003").passed
    check = run_check("selfplay_shards", "play_steady", "0008")
    assert not check.passed and words in check.description and "leaves" not in check.description


def test_a_draw_rate_that_counted_games_cut_short_is_not_compared_with(store: Store) -> None:
    for generation in range(6):
        land_play(store, generation, whole=False, draw_rate=0.6)
    land_play(store, 6, draw_rate=0.0)
    check = run_check("selfplay_shards", "play_steady", "0006")
    assert check.passed and check.metadata["drift/earlier"].value == 6
    assert "drift/draw_rate_chance" not in check.metadata
    assert "drift/plies_chance" in check.metadata


def test_three_generations_of_the_same_player_are_needed(store: Store) -> None:
    land_play(store, 0, "heuristic", plies=500.0)
    for generation in range(1, 4):
        land_play(store, generation)
    land_play(store, 4, plies=900.0)
    early = run_check("selfplay_shards", "play_steady", "0003")
    assert early.passed and "2 earlier generations to compare with" in early.description
    assert not run_check("selfplay_shards", "play_steady", "0004").passed


def test_four_seats_plot_every_chance_and_no_more_than_fifteen_numbers(store: Store) -> None:
    from ringrift_pipeline.orchestration.judgements import Judgement
    from ringrift_pipeline.orchestration.metadata import MOST_NUMBERS
    from ringrift_pipeline.orchestration.regressions import play_steady
    from ringrift_pipeline.orchestration.step import Step

    seats = {f"seat_{seat}_share": 0.25 for seat in range(1, 5)}
    for generation in range(5):
        land_play(store, generation, **seats)
    step = Step(CONFIG, 4, store, lambda *_: None, lambda: False)
    judged: Judgement = play_steady(step)
    assert judged.passed and len(judged.numbers) <= MOST_NUMBERS
    assert len([name for name in judged.numbers if name.endswith("_chance")]) == 7
    ranges = [name for name in judged.numbers if name.endswith(("_low", "_high"))]
    assert len(ranges) == 6 and "drift/plies_low" in ranges


def test_real_games_are_measured(copied: Store) -> None:
    """From the shards' own rows, by the definitions."""
    from ringrift_pipeline.selfplay.shards import SHARD_FILE, read_shard

    index = copied.require(CONFIG, 0, "selfplay_shards")
    games: dict[str, dict[str, Any]] = {}
    for number in range(2):
        shard = copied.require(CONFIG, 0, f"selfplay-shard-{number:04d}")
        for row in read_shard(shard.file(SHARD_FILE)).to_pylist():
            game = games.setdefault(row["game_id"], {**row, "entropies": []})
            if row["full_search"]:
                p = np.array([x for x in row["policy"] if x > 0])
                game["entropies"].append(-(p * np.log(p)).sum())
    found = index.metadata["measures"]

    def agrees(name: str, values: list[float]) -> None:
        assert found[name]["value"] == pytest.approx(np.mean(values), rel=1e-5), name
        error = np.std(values, ddof=1) / np.sqrt(len(values))
        assert found[name]["error"] == pytest.approx(error, rel=1e-4), name

    agrees("plies", [game["game_plies"] for game in games.values()])
    agrees("seat_1_share", [game["outcome"][0] for game in games.values()])
    agrees("seat_2_share", [game["outcome"][1] for game in games.values()])
    agrees("policy_entropy", [np.mean(g["entropies"]) for g in games.values() if g["entropies"]])
    drawn = np.mean([max(game["outcome"]) < 1 for game in games.values()])
    assert found["draw_rate"]["value"] == pytest.approx(drawn)
    assert index.metadata["selfplay/policy_entropy"] == found["policy_entropy"]["value"]
    shown = index.metadata["selfplay/draw_rate"]
    assert shown == found["draw_rate"]["value"]


def test_a_game_cut_short_is_no_draw() -> None:
    from ringrift_pipeline.selfplay.measures import measure_play

    outcome = np.array([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5], [0.0, 1.0]])
    whole = np.array([True, True, False, True])
    found = measure_play(np.full(4, 60), outcome, np.full(4, np.nan), whole)
    assert found["draw_rate"]["value"] == pytest.approx(1 / 3)
    assert found["seat_1_share"]["value"] == 0.5  # of all
    few = measure_play(np.full(4, 60), outcome, np.full(4, np.nan), whole & (outcome[:, 0] == 1))
    assert "draw_rate" not in few and "plies" in few


# -- the gate -------------------------------------------------------------------------------


def test_a_refusal_says_why(copied: Store) -> None:
    def refuse(report: dict[str, Any]) -> None:
        report["gate"] |= {"promote": False, "reasons": ["loses to heuristic: 12% of the wins"]}

    replace(copied, "evaluation", edit_json("report.json", refuse))
    check = run_check("evaluation", "gate_passed")
    assert not check.passed and not check.blocking and check.severity.value == "WARN"
    assert check.description.startswith(
        "promotion refused, there is still no champion: loses to heuristic: 12% of the wins. What"
    )
    assert "even is 50.0%" in check.metadata["random wins"].value


def test_a_pass_is_the_gates_word_and_no_promotion(copied: Store) -> None:
    def let_through(report: dict[str, Any]) -> None:
        report["gate"] |= {"promote": True, "reasons": ["beats everybody"]}

    replace(copied, "evaluation", edit_json("report.json", let_through))
    check = run_check("evaluation", "gate_passed")
    assert check.passed and check.description == "the gate lets it through: beats everybody"
    assert copied.champion(CONFIG) is None


@pytest.mark.parametrize(
    ("difference", "half", "falls"), [(-100.0, 60.0, True), (-40.0, 60.0, False), (90, 60, False)]
)
def test_a_champion_that_has_fallen_is_told_of(
    copied: Store, difference: float, half: float, falls: bool
) -> None:
    fall = {
        "model": "generation:0002",
        "earlier": "generation:0001",
        "difference": difference,
        "low": difference - half,
        "high": difference + half,
    }
    replace(copied, "rating_list", metadata={"champion_fall": fall})
    check = run_check("evaluation", "champions_rise")
    assert check.passed is not falls and not check.blocking
    assert f"generation:0002, the newest to pass the gate, is {difference:+.0f}" in str(check)
    assert "beyond doubt" in check.description


def test_one_champion_alone_has_fallen_below_nobody(copied: Store) -> None:
    replace(copied, "rating_list", metadata={"champion_fall": None})
    check = run_check("evaluation", "champions_rise")
    assert check.passed and "no two have passed the gate" in check.description


def test_the_list_of_ratings_is_on_the_evaluation(played: Any, tmp_path: Path) -> None:
    import base64

    event = played.instance.get_latest_materialization_event(
        names.asset_key(played.config, "evaluation")
    )
    metadata = event.asset_materialization.metadata
    text = str(metadata["rating_list"].value)
    for player in ("random", "heuristic", "rollout", "generation:0000"):
        assert f"| {player} |" in text
    data = base64.b64decode(str(metadata["rating_curve"].value).split("base64,")[1].rstrip(")"))
    assert data.startswith(b"\x89PNG") and len(data) < 50_000
