"""A generation that met an earlier model, mined with the doubts of the last ensemble."""

from __future__ import annotations

import math
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ringrift_pipeline.drawing import charts
from ringrift_pipeline.network import load_model
from ringrift_pipeline.selfplay import (
    Interrupted,
    Plan,
    PlanError,
    iter_shards,
    plan_generation,
    play_shards,
    read_shard,
)
from ringrift_pipeline.selfplay.shards import column
from ringrift_pipeline.store import Store
from ringrift_pipeline.store.atomic import write_json_atomic
from ringrift_pipeline.training import (
    HARD_EXAMPLES,
    WindowDataset,
    build_window,
    mine_hard_examples,
    open_window,
    read_table,
)
from ringrift_pipeline.training.hard_examples import read_hard_examples
from ringrift_pipeline.training.pictures import draw_disagreement
from ringrift_pipeline.training.run import TrainingRun

from .conftest import CONFIG, NOW, save_evaluation_of, save_model_of, settings

LATER = NOW + timedelta(hours=48)


def save_ensemble(store: Store, generations: tuple[int, ...]) -> None:
    """Land an ensemble of these generations' models as generation 1's; later ones weigh more."""
    models = [store.require(CONFIG, generation, "ema_model") for generation in generations]
    listing = [
        {
            "name": f"ema-{model.generation:04d}",
            "kind": model.kind,
            "generation": model.generation,
            "digest": model.digest,
            "path": model.path.relative_to(store.root).as_posix(),
            "weight": 1.0 + model.generation,
        }
        for model in models
    ]
    with store.create(CONFIG, 1, "ensemble") as draft:
        write_json_atomic(draft / "members.json", listing)


@pytest.fixture(scope="module")
def third_played(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root whose generation 2 has an ensemble of two; half its games meet an opponent."""
    root = shutil.copytree(original, tmp_path_factory.mktemp("third") / "data")
    store = Store(root)
    save_model_of(store, 1, promote=False)
    save_evaluation_of(store, 1)
    save_ensemble(store, (1, 0))
    plan = plan_generation(store, CONFIG, 2, settings(selfplay__opponent_fraction=0.5), LATER)
    play_shards(store, plan, workers=1)
    return root


@pytest.fixture()
def third(third_played: Path, tmp_path: Path) -> tuple[Store, Plan]:
    store = Store(shutil.copytree(third_played, tmp_path / "data"))
    return store, Plan.from_dict(store.read_plan(CONFIG, 2))


def shannon(p: np.ndarray) -> float:
    return float(-(p[p > 0] * np.log(p[p > 0])).sum())


def jensen_shannon(parts: list[np.ndarray], weights: np.ndarray) -> float:
    mixed = sum(w * p for w, p in zip(weights, parts, strict=True))
    return shannon(mixed) - sum(w * shannon(p) for w, p in zip(weights, parts, strict=True))


def test_an_opponents_moves_train_the_value_and_not_the_policy(third: tuple[Store, Plan]) -> None:
    store, plan = third
    window = open_window(build_window(store, plan).path)
    expected = []
    for shard in iter_shards(store, plan):  # of three generations, two of them in the old format
        table = read_shard(shard.file("shard.arrow"))
        known = "opponent" in table.column_names
        expected.append(column(table, "opponent") if known else np.zeros(len(table), bool))
    assert np.array_equal(window.opponent, np.concatenate(expected))
    theirs = np.flatnonzero(window.opponent)
    assert len(theirs) > 50 and (window.generation[theirs] == 2).all()
    assert not window.full_search[theirs].any() and not window.surprise[theirs].any()
    ours = np.flatnonzero((window.generation == 2) & ~window.opponent)
    assert window.surprise[ours].max() > 0
    batch = WindowDataset(window).batch(theirs)
    assert not batch["policy_targets"].any()
    assert np.allclose(batch["value_targets"][:, :2].numpy(), window.outcome[theirs])
    assert np.allclose(batch["value_targets"].sum(dim=1).numpy(), 1.0)


def test_disagreement_is_in_the_hardness_of_mined_rows(third: tuple[Store, Plan]) -> None:
    store, plan = third
    said: list[tuple[int, int]] = []
    artefact = mine_hard_examples(store, plan, lambda done, total, _: said.append((done, total)))
    assert mine_hard_examples(store, plan) == artefact
    assert plan.ensemble is not None
    read = {(kind, digest) for _, kind, digest in artefact.metadata["inputs"]["artefacts"]}
    assert ("ensemble", plan.ensemble["digest"]) in read
    window = open_window(build_window(store, plan).path)
    table = read_table(artefact.file("hard_examples.parquet"), HARD_EXAMPLES)
    mined = ~window.holdout & (window.generation == 2) & ~window.opponent
    assert sorted(table["row"].to_list()) == np.flatnonzero(mined).tolist()
    assert said[-1] == (2 * mined.sum(), 2 * mined.sum())
    models = [load_model(store.require(CONFIG, g, "ema_model").path) for g in (1, 0)]
    weights = np.array([2.0, 1.0]) / 3
    mining = plan.settings.mining
    dataset = WindowDataset(window)
    kinds = set()
    for row in table.to_dicts()[::23]:
        at = row["row"]
        batch = dataset.batch([at])
        policies, values = [], []
        for model in models:
            logits, value = (part.double().detach().numpy()[0] for part in model(batch["features"]))
            policies.append(np.exp(logits) / np.exp(logits).sum())
            values.append(np.exp(value[:2]) / np.exp(value[:2]).sum())
        apart = jensen_shannon(values, weights)
        if window.full_search[at]:
            apart += jensen_shannon(policies, weights)
        kinds.add(bool(window.full_search[at]))
        assert row["uncertainty"] == pytest.approx(apart, abs=2e-6) and apart > 0
        terms = {
            "policy_loss": row["policy_loss"],
            "value_loss": row["value_loss"],
            "surprise": mining.surprise_weight * row["surprise"],
            "uncertainty": mining.uncertainty_weight * row["uncertainty"],
        }
        assert row["hardness"] == pytest.approx(sum(terms.values()))
        assert row["reason"] == max(terms, key=terms.__getitem__)
    assert kinds == {True, False}
    assert artefact.metadata["train/uncertainty_mean"] == pytest.approx(
        table["uncertainty"].mean(), rel=1e-6
    )
    # The miner of the next training starts with it.
    examples = read_hard_examples(artefact)
    assert np.array_equal(examples.hardness, table["hardness"])
    assert np.array_equal(examples.uncertainty, table["uncertainty"])
    miner = TrainingRun(plan, window, hard_examples=examples).facade.miner
    assert miner is not None and miner.get_statistics()["tracked_examples"] == table.height
    build_window(store, heavier(plan))
    with pytest.raises(Interrupted, match="scoring"):
        mine_hard_examples(store, heavier(plan), should_stop=lambda: True)


def test_mining_is_told_what_the_search_would_lose(third: tuple[Store, Plan]) -> None:
    """Loss beyond the search's own, the ensemble's doubt, the surprise and the game of each row."""
    store, plan = third
    window = open_window(build_window(store, plan).path)
    examples = read_hard_examples(mine_hard_examples(store, plan))
    share = plan.settings.with_overrides(
        {"training.search_value_share": 0.25, "training.policy_weight": 0.5}
    )
    run = TrainingRun(
        Plan.from_dict({**plan.raw, "settings": share.to_dict()}), window, hard_examples=examples
    )
    seen: list[dict[str, Any]] = []
    step = run.facade.train_step
    run.facade.train_step = lambda batch: (seen.append(batch), step(batch))[1]  # type: ignore[method-assign]
    run.step()
    batch = seen[0]
    doubt = dict(zip(examples.rows.tolist(), examples.uncertainty, strict=True))
    for place, row in enumerate(batch["indices"]):
        policy = window.policy[window.offsets[row] : window.offsets[row + 1]].astype(float)
        loss = 0.0
        if window.full_search[row]:
            loss = -0.5 * sum(p * math.log(p) for p in policy if p > 0)
        searched = window.search_value[row].astype(float)
        target = window.outcome[row].astype(float)
        if window.valued[row]:
            target = 0.75 * target + 0.25 * searched
        loss -= sum(t * math.log(max(s, 1e-3)) for t, s in zip(target, searched, strict=True))
        assert batch["reference_loss"][place] == pytest.approx(loss, rel=1e-4, abs=1e-5)
        assert batch["uncertainty"][place] == pytest.approx(doubt.get(int(row), 0.0), rel=1e-6)
        assert batch["surprise"][place] == window.surprise[row]
        assert batch["games"][place] == window.game[row]
    assert batch["uncertainty"].any()


def heavier(plan: Plan, weight: float = 1e6) -> Plan:
    """The plan with another weight of uncertainty."""
    changed = plan.settings.with_overrides({"mining.uncertainty_weight": weight})
    return Plan.from_dict({**plan.raw, "settings": changed.to_dict()})


def test_the_weight_decides_how_much_it_counts(third: tuple[Store, Plan]) -> None:
    store, plan = third

    def mined(weight: float) -> pl.DataFrame:
        file = mine_hard_examples(store, heavier(plan, weight)).file("hard_examples.parquet")
        return read_table(file, HARD_EXAMPLES).sort("row")

    none, much = mined(0.0), mined(1e6)
    assert "uncertainty" not in set(none["reason"])
    assert set(much["reason"]) == {"uncertainty"}
    assert none["uncertainty"].equals(much["uncertainty"])
    np.testing.assert_allclose(
        much["hardness"] - none["hardness"], 1e6 * none["uncertainty"], rtol=1e-9
    )


def test_an_ensemble_of_one_has_no_doubts_and_another_is_another_input(
    third: tuple[Store, Plan],
) -> None:
    store, plan = third
    both = mine_hard_examples(store, plan)
    plain = mine_hard_examples(store, Plan.from_dict({**plan.raw, "ensemble": None}))
    table = read_table(plain.file("hard_examples.parquet"), HARD_EXAMPLES)
    assert not any(table["uncertainty"]) and "uncertainty" not in set(table["reason"])
    assert plain.metadata["ensemble_members"] == []
    assert both.metadata["ensemble_members"] == ["ema-0001", "ema-0000"]
    # A member that is no longer there leaves one alone.
    shutil.rmtree(store.require(CONFIG, 0, "ema_model").path)
    alone = mine_hard_examples(store, plan)
    assert alone.metadata["ensemble_members"] == []
    assert alone.metadata["inputs"] != both.metadata["inputs"]
    assert plan.ensemble is not None
    gone = {**plan.raw, "ensemble": {**plan.ensemble, "digest": "0" * 64}}
    with pytest.raises(PlanError, match="restore that folder"):
        mine_hard_examples(store, Plan.from_dict(gone))


def test_the_picture_names_the_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(charts, "save_chart", lambda figure, *_: kept.append(figure))
    draw_disagreement(tmp_path, np.arange(20), np.full(20, 0.1), np.full(20, 0.2))
    policy, value = kept[0].axes
    assert policy.get_ylabel() == "nats"
    assert value.get_ylabel() == "standard deviation, share of the win"
