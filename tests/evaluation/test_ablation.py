"""Ablations: which runs, on which games, what they come to, and that a killed one goes on."""

from __future__ import annotations

import dataclasses
import gc
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ringrift_pipeline.drawing.charts import FULL, MOST_BYTES
from ringrift_pipeline.evaluation import AblationError, AblationFailed, ablate, ablation
from ringrift_pipeline.evaluation.ablation_report import (
    ENHANCEMENTS,
    MEASURES,
    compare,
    comparisons,
    draw_differences,
    verdicts,
)
from ringrift_pipeline.evaluation.ablation_runs import (
    VARIANTS,
    Figures,
    Material,
    Trial,
    TrialResult,
    run_trial,
    settings_of,
    split_window,
)
from ringrift_pipeline.evaluation.tables import ABLATION
from ringrift_pipeline.selfplay import Plan, load_plan, plan_generation, play_shards
from ringrift_pipeline.selfplay.stopping import Interrupted
from ringrift_pipeline.store import Artefact, Store
from ringrift_pipeline.store.locks import unheld
from ringrift_pipeline.training import (
    build_window,
    mine_hard_examples,
    open_window,
    read_table,
    score_games,
)
from ringrift_pipeline.training.hard_examples import read_hard_examples
from ringrift_pipeline.training.split import hash_fraction

from .test_evaluating import NOW, land_model, settings

CONFIG = "square8_2p"
TINY = {
    "selfplay.games": 16,
    "selfplay.games_per_shard": 16,
    "network.blocks": 1,
    "network.channels": 8,
    "network.value_channels": 8,
    "training.batch_size": 32,
    "training.checkpoint_every": 100,
    "mining.min_samples_before_mining": 32,
    "schedule.warmup_steps": 1,
    "calibration.bins": 4,
}
SEEDS, STEPS = 2, 3


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two generations of the heuristic's games, a model of the first; do not write."""
    store = Store(tmp_path_factory.mktemp("ablation") / "data")
    for number in range(2):
        when = NOW + timedelta(hours=number)
        plan = plan_generation(store, CONFIG, number, settings(**TINY), when)
        play_shards(store, plan, workers=1)
        if number == 0:
            land_model(store, CONFIG, 0, seed=0)
    return store.root


@pytest.fixture()
def store(original: Path, tmp_path: Path) -> Store:
    return Store(shutil.copytree(original, tmp_path / "data"))


@pytest.fixture(scope="module")
def whole(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Artefact]:
    """An ablation made in one go, in this process."""
    store = Store(shutil.copytree(original, tmp_path_factory.mktemp("whole") / "data"))
    yield ablate(store, plan_of(store), seeds=SEEDS, steps=STEPS, workers=1)


def plan_of(store: Store) -> Plan:
    return load_plan(store, CONFIG, 1)


def figures_of(artefact: Artefact) -> dict[str, np.ndarray]:
    found = {}
    for name in artefact.files:
        if name.startswith("runs/"):
            with np.load(artefact.file(name), allow_pickle=False) as arrays:
                found |= {f"{name}:{key}": arrays[key] for key in arrays.files}
    return found


def same_figures(one: Artefact, other: Artefact) -> bool:
    ours, theirs = figures_of(one), figures_of(other)
    return ours.keys() == theirs.keys() and all(
        np.array_equal(ours[name], theirs[name], equal_nan=True) for name in ours
    )


# -- which runs, on which games -------------------------------------------------------------


def test_runs_differ_in_the_enhancement_and_in_nothing_else() -> None:
    base = settings(**TINY, gradients__max_grad_norm=3.0)

    def flat(variant: str) -> dict[str, Any]:
        changed = base.with_overrides(settings_of(base, variant, 7))
        return {
            f"{group}.{name}": value
            for group, values in changed.to_dict().items()
            if isinstance(values, dict)
            for name, value in values.items()
        }

    def differing(one: str, other: str) -> set[str]:
        ours, theirs = flat(one), flat(other)
        return {name for name in ours if ours[name] != theirs[name]}

    switches = {
        "quality": {"quality.enabled"},
        "mining": {"mining.enabled"},
        "clipping": {"gradients.clipping", "gradients.max_grad_norm"},
        "schedule": {"schedule.name"},
    }
    assert len(VARIANTS) == 10
    for name, switch in switches.items():
        assert differing("everything", f"without_{name}") == switch
        assert differing("nothing", f"only_{name}") == switch
    bare = flat("nothing")
    assert bare["schedule.name"] == "constant" and not bare["mining.enabled"]
    assert not bare["gradients.clipping"] and not bare["quality.enabled"]
    unaveraged = settings(averaging__enabled=False)  # yet the average is tried, off every run
    assert settings_of(unaveraged, "nothing", 7)["averaging.enabled"] is True
    constant = settings(schedule__name="constant")
    assert settings_of(constant, "only_schedule", 7)["schedule.name"] == "warm_restarts"


def test_judges_are_new_games_that_nobody_trains_on(store: Store) -> None:
    plan = plan_of(store)
    window = open_window(build_window(store, plan).path)
    split = split_window(window, plan)
    judges = set(window.game[split.judges].tolist())
    assert len(judges) == split.games >= 2
    assert (window.generation[split.judges] == 1).all()
    assert not window.holdout[split.judges].any()
    assert split.window.holdout[split.judges].all()
    assert window.holdout[split.validation].all()
    trained = set(split.window.game[split.window.training_rows].tolist())
    everyone = set(window.game.tolist())
    assert trained == everyone - judges - set(window.game[window.holdout_rows].tolist())
    own = everyone - set(window.game[(window.generation == 0) | window.holdout].tolist())
    assert judges < own and len(judges) == len(own) // 2
    hashes = {game: hash_fraction(window.games[game]) for game in own}
    assert max(hashes[game] for game in judges) < min(hashes[game] for game in own - judges)


def test_games_that_judge_are_not_mined(store: Store) -> None:
    plan = plan_of(store)
    sources = build_window(store, plan), score_games(store, plan), mine_hard_examples(store, plan)
    split = split_window(open_window(sources[0].path), plan)
    assert np.isin(read_hard_examples(sources[2]).rows, split.judges).any()
    parent = store.require(CONFIG, 0, "ema_model")
    runs: list[Any] = []
    material = Material(plan, *sources, parent, (), steps=8)
    run_trial(material, Trial(0, "only_mining", 0), runs.append)
    assert runs[-1].facade.is_mining_active
    visits = runs[-1].stream.state_dict()["visits"]
    visited = np.flatnonzero(visits)
    assert len(visited) and not np.isin(visited, split.judges).any()


def test_too_few_games_are_refused(store: Store) -> None:
    plan = plan_of(store)
    window = open_window(build_window(store, plan).path)
    few = np.flatnonzero((window.generation == 0) | (window.game == window.game.max()))
    columns = {name: getattr(window, name)[few] for name in ("game", "generation", "holdout")}
    with pytest.raises(AblationError, match="selfplay.games"):
        split_window(dataclasses.replace(window, **columns), plan)
    for wrong in ({"seeds": 1}, {"steps": 0}, {"workers": -1}):
        with pytest.raises(AblationError, match=next(iter(wrong))):
            ablate(store, plan, **wrong)  # type: ignore[arg-type]


# -- a whole ablation -----------------------------------------------------------------------


def test_the_report_says_what_the_runs_say(whole: Artefact) -> None:
    report = whole.read_json("report.json")
    assert report["start"] == "weights of generation 0000"
    assert report["ensemble_with"] == ["generation 0000"] and report["left_out"] == []
    assert report["ended_early"] == {}
    assert list(report["verdicts"]) == list(ENHANCEMENTS) == list(whole.metadata["verdicts"])
    frame = read_table(whole.file("table.parquet"), ABLATION)
    assert frame.height == len(ENHANCEMENTS) * 2 * len(MEASURES)
    figures = figures_of(whole)
    pairs = {
        ("mining", "off in turn"): ("everything", "averaged", "without_mining", "averaged"),
        ("mining", "on alone"): ("only_mining", "last", "nothing", "last"),
        ("ema", "off in turn"): ("everything", "averaged", "everything", "last"),
        ("ema", "on alone"): ("nothing", "averaged", "nothing", "last"),
        ("ensemble", "off in turn"): ("everything", "ensemble", "everything", "averaged"),
        ("ensemble", "on alone"): ("nothing", "ensemble", "nothing", "last"),
    }
    for (name, setting), (on, model, off, other) in pairs.items():
        for measure in MEASURES:
            row = frame.filter(
                (pl.col("enhancement") == name)
                & (pl.col("setting") == setting)
                & (pl.col("measure") == measure)
            ).to_dicts()[0]
            differences = [
                np.mean(
                    figures[f"runs/{on}-{seed:04d}.npz:{model}.{measure}"]
                    - figures[f"runs/{off}-{seed:04d}.npz:{other}.{measure}"]
                )
                for seed in range(SEEDS)
            ]
            assert row["difference"] == pytest.approx(np.mean(differences), abs=1e-12)
            assert row["difference"] != 0.0
            assert row["low_all"] < row["low"] < row["difference"] < row["high"]
            assert row["p_corrected"] >= row["p"]
    games = {len(figures[name]) for name in figures if name.endswith("_loss")}
    assert games == {report["games"]}


def test_table_and_picture_are_for_people(whole: Artefact) -> None:
    text = whole.file("table.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 2 * len(ENHANCEMENTS)
    assert all(line.count("|") == len(MEASURES) + 4 for line in rows)
    picture = whole.file("ablation.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) < 36_000


@pytest.mark.whole
def test_a_killed_ablation_goes_on_and_ends_in_the_same_figures(
    store: Store, whole: Artefact
) -> None:
    plan = plan_of(store)

    def kept() -> int:
        return sum(kind.startswith("ablation-run-") for kind in store.kinds(CONFIG, 1))

    def kill(done: int, total: int, message: str) -> None:
        if kept() >= 3:
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)

    with pytest.raises(AblationFailed, match="run again"):
        ablate(store, plan, seeds=SEEDS, steps=STEPS, workers=2, progress=kill)
    before = kept()
    assert 3 <= before < len(VARIANTS) * SEEDS
    seen: list[tuple[int, int]] = []

    def watch(done: int, total: int, message: str) -> None:
        if "runs" in message:
            seen.append((done, total))

    artefact = ablate(store, plan, seeds=SEEDS, steps=STEPS, workers=1, progress=watch)
    total = len(VARIANTS) * SEEDS * STEPS
    assert seen[0] == (before * STEPS, total) and seen[-1] == (total, total)
    assert same_figures(artefact, whole)
    for name in ("report.json", "table.parquet", "table.md", "ablation.png"):
        assert artefact.file(name).read_bytes() == whole.file(name).read_bytes()
    assert kept() == 0
    # the same again is there; more seeds begin with the runs that there are; never begins anew
    assert ablate(store, plan, seeds=SEEDS, steps=STEPS) == artefact
    for more, first in (({}, SEEDS), ({"resume": "never"}, 0), ({"fresh": True}, 0)):
        seen.clear()
        with pytest.raises(Interrupted, match="run again"):
            ablate(
                store,
                plan,
                seeds=SEEDS + 1,
                steps=STEPS,
                workers=1,
                progress=watch,
                should_stop=lambda: True,
                **more,  # type: ignore[arg-type]
            )
        assert seen[0][0] == first * len(VARIANTS) * STEPS


# -- the verdicts ---------------------------------------------------------------------------


def planted(
    rng: np.random.Generator, effects: dict[str, float], seeds: int = 5, games: int = 60
) -> dict[tuple[str, int], TrialResult]:
    """Results of runs whose policy loss is higher by ``effects`` where a variant is named."""
    by_game = rng.normal(size=games)
    results = {}
    for seed in range(seeds):
        for variant in VARIANTS:
            models = {}
            for model in ("averaged", "last", "ensemble"):
                noise = 0.01 * rng.normal() + 0.05 * rng.normal(size=(2, games))
                models[model] = Figures(
                    2.0 + by_game + noise[0] + effects.get(variant, 0.0),
                    0.6 + by_game + noise[1],
                    0.02 + 0.01 * rng.normal(),
                    0.02 + 0.01 * rng.normal(size=40),
                )
            results[variant, seed] = TrialResult(models, 1, 1, "", 0.0)
    return results


def test_its_window_is_held_between_two_runs_as_well(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run opens it anew, and a cache must not have dropped it by then."""
    free: list[bool] = []

    def is_free(window: Artefact) -> bool:
        gc.collect()
        with unheld(window.path) as nobody:
            return nobody

    def run(material: Material, *_: object) -> TrialResult:
        free.append(is_free(material.window))
        raise Interrupted("enough")

    monkeypatch.setattr(ablation, "run_trial", run)
    with pytest.raises(Interrupted):
        ablate(store, plan_of(store), seeds=SEEDS, steps=STEPS, workers=1)
    assert free == [False]
    assert is_free(store.require(CONFIG, 1, "window"))


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    result = planted(np.random.default_rng(1), {}, seeds=1)[next(iter(VARIANTS)), 0]
    facts = result.save(tmp_path / "figures.npz")
    found = TrialResult.load(tmp_path / "figures.npz", facts)
    assert found.models.keys() == result.models.keys()
    for name, figures in result.models.items():
        for item in dataclasses.fields(Figures):
            ours, read = getattr(figures, item.name), getattr(found.models[name], item.name)
            np.testing.assert_array_equal(read, ours)
    with pytest.raises(AblationError, match="cannot be read"):
        TrialResult.load(tmp_path / "figures.npz", {"seconds": 1.0})


def test_a_planted_effect_is_found_and_nothing_else() -> None:
    rng = np.random.default_rng(1)
    good = {"without_mining": 0.2, "only_clipping": 0.2}
    rows = compare(planted(rng, good), 5, True, 0.95)
    assert verdicts(rows) == {
        "quality": "undecided",
        "mining": "helps",
        "clipping": "hurts",
        "schedule": "undecided",
        "ema": "undecided",
        "ensemble": "undecided",
    }
    certain = [row for row in rows if row["verdict"] != "undecided"]
    assert {(row["enhancement"], row["setting"], row["measure"]) for row in certain} == {
        ("mining", "off in turn", "policy_loss"),
        ("clipping", "on alone", "policy_loss"),
    }
    torn = {"without_mining": 0.2, "only_mining": 0.2}  # better in one setting, worse in the other
    assert verdicts(compare(planted(rng, torn), 5, True, 0.95))["mining"] == "undecided"


def test_without_effects_few_tables_have_any_verdict() -> None:
    rng = np.random.default_rng(2)
    repeats = 120
    wrong = 0
    for _ in range(repeats):
        rows = compare(planted(rng, {}), 5, True, 0.95)
        wrong += any(row["verdict"] != "undecided" for row in rows)
    assert wrong / repeats < 0.1, wrong


def test_without_earlier_models_there_is_no_ensemble() -> None:
    assert {item.enhancement for item in comparisons(False)} == set(ENHANCEMENTS) - {"ensemble"}
    rows = compare(planted(np.random.default_rng(3), {}), 5, False, 0.95)
    assert "ensemble" not in verdicts(rows)
    assert len(rows) == 10 * len(MEASURES)


@pytest.mark.parametrize("ensemble", [True, False])
def test_the_picture_of_all_enhancements_is_small_and_the_whole_is_beside_it(
    ensemble: bool, tmp_path: Path
) -> None:
    effects = {"without_mining": 0.2, "only_clipping": 0.2}
    rows = compare(planted(np.random.default_rng(1), effects), 5, ensemble, 0.95)
    drawn = []
    for name in ("one", "again"):
        (tmp_path / name).mkdir()
        draw_differences(tmp_path / name, pl.DataFrame(rows), CONFIG, 0.95)
        assert {path.name for path in (tmp_path / name).iterdir()} == {
            "ablation.png",
            f"ablation{FULL}",
        }
        drawn.append((tmp_path / name / "ablation.png").read_bytes())
    assert drawn[0] == drawn[1] and drawn[0].startswith(b"\x89PNG")
    assert 4_000 < len(drawn[0]) <= MOST_BYTES
