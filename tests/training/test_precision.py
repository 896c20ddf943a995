"""What search's arithmetic does to a trained model's policy: measured, shown, and checked."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ringrift_pipeline.game import get_rules
from ringrift_pipeline.network import (
    DIVERGENCE,
    Evaluator,
    load_model,
    resolve_precision,
    save_model,
)
from ringrift_pipeline.orchestration.checks import CHECKS, result
from ringrift_pipeline.orchestration.judgements import Judgement, judge, precision_holds
from ringrift_pipeline.orchestration.metadata import MOST_NUMBERS, of_artefact
from ringrift_pipeline.orchestration.step import Step
from ringrift_pipeline.selfplay import Plan, load_plan
from ringrift_pipeline.selfplay.shards import column, open_shard, ragged_column
from ringrift_pipeline.selfplay.windowing import iter_shards
from ringrift_pipeline.store import Artefact, Store
from ringrift_pipeline.training import average, mine_hard_examples, open_window, score_games, train
from ringrift_pipeline.training.precision import BATCH, ROWS, some_rows

from .conftest import CONFIG


@pytest.fixture(scope="module")
def finished(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with the second generation trained; do not write."""
    store = Store(shutil.copytree(original, tmp_path_factory.mktemp("precision") / "data"))
    plan = load_plan(store, CONFIG, 1)
    score_games(store, plan)
    mine_hard_examples(store, plan)
    train(store, plan)
    return store.root


@pytest.fixture()
def trained(finished: Path, tmp_path: Path) -> Store:
    return Store(shutil.copytree(finished, tmp_path / "trained"))


def planned(store: Store, precision: str) -> Plan:
    """The second generation's plan, with games of this ``search.precision``."""
    plan = load_plan(store, CONFIG, 1)
    settings = plan.settings.with_overrides({"search.precision": precision})
    return Plan.from_dict({**plan.raw, "settings": settings.to_dict(), "precision": precision})


def check(store: Store) -> Judgement:
    return judge(precision_holds, Step(CONFIG, 1, store, lambda *_: None, lambda: False))


def replace(store: Store, kind: str, change: Callable[[Path], object]) -> None:
    """Land a changed copy of the second generation's artefact."""
    old = store.require(CONFIG, 1, kind)
    with store.create(CONFIG, 1, kind, old.metadata) as draft:
        for name in old.files:
            shutil.copyfile(old.file(name), draft / name)
        change(draft.path)


def by_search(store: Store, plan: Plan, model: Artefact) -> np.ndarray:
    """KL(float32 || bfloat16) of the rows measured, by what search asks of the shards' states."""
    rules = get_rules(CONFIG)
    states, legal = [], []
    for shard in iter_shards(store, plan):
        with open_shard(shard.file("shard.arrow")) as reader:
            for batch in map(reader.get_batch, range(reader.num_record_batches)):
                states.append(column(batch, "state"))
                counts, flat = ragged_column(batch, "moves")
                legal += np.split(flat, np.cumsum(counts)[:-1])
    rows = some_rows(open_window(store.require(CONFIG, 1, "window").path))
    some = np.concatenate(states)[rows]
    counts = np.array([len(legal[row]) for row in rows], np.int32)
    moves = np.zeros((len(rows), int(counts.max())), np.int64)
    for place, row in zip(moves, rows, strict=True):
        place[: len(legal[row])] = legal[row]
    policies = []
    for precision, backend in (("float32", "torch"), ("bfloat16", "auto")):
        evaluator = Evaluator(
            load_model(model.path),
            rules,
            "cpu",
            precision=precision,
            backend=backend,
            max_batch=BATCH,
        )
        logits, _ = evaluator.evaluate(some, moves, counts)
        policies.append(torch.log_softmax(torch.from_numpy(logits).double(), dim=1).numpy())
    return (np.exp(policies[0]) * (policies[0] - policies[1])).sum(axis=1)


def test_the_divergence_is_that_of_what_search_evaluates(trained: Store) -> None:
    plan = planned(trained, "bfloat16")
    model = average(trained, plan)
    expected = by_search(trained, plan, model)
    told = model.metadata
    assert told["search_precision"] == "bfloat16"
    assert told["precision_positions"] == len(expected) <= ROWS
    assert told[DIVERGENCE] == pytest.approx(expected.mean(), rel=1e-3)
    assert 0.0 < told[DIVERGENCE] < 1e-3
    assert check(trained).passed and check(trained).numbers == {DIVERGENCE: told[DIVERGENCE]}
    # The window made again, as on another machine, is the same one.
    trained.remove(CONFIG, 1, "window")
    trained.remove(CONFIG, 1, "ema_model")
    assert average(trained, plan).metadata[DIVERGENCE] == told[DIVERGENCE]


def test_it_is_among_the_numbers_that_are_plotted(trained: Store) -> None:
    model = average(trained, planned(trained, "bfloat16"))
    shown = of_artefact(model)
    assert shown[DIVERGENCE] == pytest.approx(model.metadata[DIVERGENCE], rel=1e-5)
    assert shown["search_precision"] == "bfloat16"
    plotted = [name for name, value in shown.items() if isinstance(value, (int, float))]
    assert len(plotted) == MOST_NUMBERS


def sharpened(folder: Path) -> None:
    """A policy so sharp that eight bits of a number no longer tell it."""
    model = load_model(folder / "best")
    with torch.no_grad():
        for parameter in (*model.policy.planes.parameters(), model.policy.kind_out):
            parameter.mul_(1000.0)
    save_model(folder / "best", model, {})


def test_a_policy_that_search_does_not_keep_is_warned_of(trained: Store) -> None:
    replace(trained, "checkpoint", sharpened)
    plan = planned(trained, "bfloat16")
    model = average(trained, plan)
    assert model.metadata[DIVERGENCE] > 1e-3
    assert model.metadata[DIVERGENCE] == pytest.approx(
        by_search(trained, plan, model).mean(), rel=1e-3
    )
    found = check(trained)
    assert not found.passed and "in bfloat16 the policy is" in found.why
    (recipe,) = [one for one in CHECKS if one.name == "precision_holds"]
    shown = result(recipe, found, [CONFIG, "ema_model"])
    assert shown.severity.value == "WARN" and recipe.asset == "ema_model"
    assert "search.precision set to float32" in str(shown.description)
    # What it says to do helps.
    trained.remove(CONFIG, 1, "ema_model")
    exact = average(trained, planned(trained, "float32"))
    assert exact.metadata["search_precision"] == "float32" and exact.metadata[DIVERGENCE] == 0.0
    assert check(trained).passed


def test_models_of_earlier_versions_are_kept_as_they_are(trained: Store) -> None:
    plan = planned(trained, "bfloat16")
    new = average(trained, plan)
    about = {
        name: value
        for name, value in new.metadata.items()
        if "precision" not in name  # all that this version adds
    }
    with trained.create(CONFIG, 1, "ema_model", about) as draft:
        for name in new.files:
            shutil.copyfile(new.file(name), draft / name)
    assert draft.artefact.digest == new.digest  # what is told of it is no part of it
    assert average(trained, plan) == draft.artefact
    found = check(trained)
    assert found.passed and found.why.startswith("not measured: it was made by an earlier version")


def test_where_its_backend_is_not_installed_torch_measures_it(
    trained: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(trained, "bfloat16")
    plan = Plan.from_dict({**plan.raw, "backend": "openvino"})
    monkeypatch.setattr("ringrift_pipeline.network.devices.find_spec", lambda name: None)
    told = average(trained, plan).metadata
    assert told["precision_backend"] == "torch" and 0.0 < told[DIVERGENCE] < 1e-3
    assert check(trained).passed


def test_where_the_games_are_gone_the_model_is_made_all_the_same(trained: Store) -> None:
    for generation in trained.generations(CONFIG):
        for kind in trained.kinds(CONFIG, generation):
            if kind == "window" or kind.startswith("selfplay-shard-"):
                trained.remove(CONFIG, generation, kind)
    model = average(trained, planned(trained, "bfloat16"))
    assert DIVERGENCE not in model.metadata
    found = check(trained)
    assert not found.passed
    assert "could not be measured: there are no positions to measure it on" in found.why
    assert DIVERGENCE not in of_artefact(model)
    assert resolve_precision("auto", models=[model.metadata]) == "float32"
