"""``averaging.enabled`` off: the candidate has the last weights, and all goes on as with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from ringrift_pipeline.enhancements import TrainingConfig
from ringrift_pipeline.evaluation import evaluate
from ringrift_pipeline.network import load_model, read_model_metadata
from ringrift_pipeline.orchestration.judgements import average_fits, judge, members_verify
from ringrift_pipeline.orchestration.metadata import of_artefact
from ringrift_pipeline.orchestration.step import Step
from ringrift_pipeline.selfplay import Interrupted, Plan, load_plan, plan_generation
from ringrift_pipeline.selfplay.opponents import ensemble_members
from ringrift_pipeline.selfplay.plan import open_model
from ringrift_pipeline.store import Artefact, Store
from ringrift_pipeline.training import (
    average,
    build_ensemble,
    build_window,
    calibrate,
    mine_hard_examples,
    open_window,
    score_games,
    train,
)
from ringrift_pipeline.training.auxiliary import FILE, heads_of
from ringrift_pipeline.training.loop import BEST, parent_model
from ringrift_pipeline.training.run import TrainingRun
from ringrift_pipeline.training.state import load_state

from .conftest import CONFIG, settings
from .test_learning import changed
from .test_loop import contents, stop_after

OFF = {
    "averaging__enabled": False,
    "training__territory_weight": 0.3,  # heads that the next training goes on with
    "evaluation__games": 4,
    "evaluation__max_games": 4,
    "evaluation__simulations": 2,
}


def without(plan: Plan) -> Plan:
    return changed(plan, **OFF)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(folder).state_dict())


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[n], other[n]) for n in one)


@pytest.fixture(scope="module")
def finished(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with the second generation trained without averaging; do not write."""
    store = Store(shutil.copytree(original, tmp_path_factory.mktemp("unaveraged") / "data"))
    plan = without(load_plan(store, CONFIG, 1))
    score_games(store, plan)
    mine_hard_examples(store, plan)
    train(store, plan)
    average(store, plan)
    return store.root


@pytest.fixture()
def trained(finished: Path, tmp_path: Path) -> Store:
    return Store(shutil.copytree(finished, tmp_path / "trained"))


@pytest.fixture()
def plan(trained: Store) -> Plan:
    return without(load_plan(trained, CONFIG, 1))


def candidate(store: Store) -> Artefact:
    return store.require(CONFIG, 1, "ema_model")


def test_the_candidate_is_the_checkpoints_last_weights_and_says_so(
    trained: Store, plan: Plan
) -> None:
    model, checkpoint = candidate(trained), trained.require(CONFIG, 1, "checkpoint")
    assert same(weights_of(model.path), weights_of(checkpoint.path))
    assert "averager" not in load_state(checkpoint.path)["facade"]["parts"]
    told = model.metadata
    assert told["weights"] == "last weights: averaging.enabled is off"
    assert told["half_life_samples"] is None and told["val/loss_gain"] == 0.0
    assert told["val/loss"] == checkpoint.metadata["val/last_loss"]
    assert told["train/step"] == checkpoint.metadata["train/steps"]
    about = read_model_metadata(checkpoint.path / BEST)
    assert (about["step"], about["val_loss"]) == (told["train/step"], told["val/loss"])
    assert of_artefact(model)["weights"] == told["weights"]
    assert average(trained, plan) == model
    step = Step(CONFIG, 1, trained, lambda *_: None, lambda: False)
    assert judge(average_fits, step).passed
    assert judge(average_fits, step).numbers["distance"] == 0.0


def test_the_last_weights_are_kept_whatever_the_validations_said(store: Store) -> None:
    """Those with the lowest held-out loss were others."""
    plan = changed(load_plan(store, CONFIG, 1), **OFF, mining__enabled=False)
    run = TrainingRun(plan, open_window(build_window(store, plan).path))
    while not run.finished:
        run.step()
        if run.best is not None:
            run.best_loss = -1.0  # none after the first is better
    assert run.best is not None and run.best_step < run.iteration == run.kept_step
    kept = run.best_model().state_dict()
    assert same(kept, {name: run.model.state_dict()[name] for name in kept})
    assert not torch.equal(kept["stem.weight"], run.best["stem.weight"])
    assert run.kept is not None
    assert heads_of(run.kept)  # the last ones too
    assert same(heads_of(run.kept), heads_of(run.model.state_dict()))


def test_a_run_that_was_stopped_ends_in_the_same_bytes(trained: Store, plan: Plan) -> None:
    whole = trained.require(CONFIG, 1, "checkpoint")
    with pytest.raises(Interrupted):
        train(trained, plan, resume="never", should_stop=stop_after(6))
    state = trained.require(CONFIG, 1, "training_state")
    resumed = train(trained, plan, resume=state.path)
    assert resumed.metadata["resumed_from_step"] == state.metadata["step"] > 0
    assert contents(resumed) == contents(whole)


def test_it_is_measured_calibrated_evaluated_and_trained_on(trained: Store, plan: Plan) -> None:
    model = candidate(trained)
    members = build_ensemble(trained, plan).read_json("members.json")
    # with room for three: its last weights are in it once
    assert [member["name"] for member in members] == ["ema-0001", "ema-0000"]
    assert judge(members_verify, Step(CONFIG, 1, trained, lambda *_: None, lambda: False)).passed
    assert calibrate(trained, plan).metadata["model"] == model.digest
    report = evaluate(trained, plan).read_json("report.json")
    assert report["candidate"]["digest"] == model.digest
    trained.promote(CONFIG, 1, model, {"gate": report["gate"]})
    following = plan_generation(trained, CONFIG, 2, settings(averaging__enabled=False))
    assert following.champion is not None and following.champion["digest"] == model.digest
    assert following.parent is not None and following.parent["digest"] == model.digest
    assert following.ensemble is not None
    ensemble = open_model(trained, following.ensemble)
    assert len(ensemble_members(trained, ensemble)) == 2
    parent, note = parent_model(without(following), open_model(trained, following.parent))
    assert parent is not None and note == "weights of generation 0001"
    last = load_state(trained.require(CONFIG, 1, "checkpoint").path)["facade"]["model"]
    assert (model.path / FILE).is_file()
    assert heads_of(last) and same(heads_of(dict(parent.state_dict())), heads_of(last))


def test_alone_it_is_an_ensemble_of_one(store: Store) -> None:
    plan = changed(load_plan(store, CONFIG, 0), **OFF, training__max_steps=2)
    score_games(store, plan)
    mine_hard_examples(store, plan)
    train(store, plan)
    average(store, plan)
    artefact = build_ensemble(store, plan)
    assert [member["name"] for member in artefact.read_json("members.json")] == ["ema-0000"]
    assert artefact.metadata["val/policy_disagreement"] == pytest.approx(0.0, abs=1e-6)


def test_it_is_a_setting_and_plans_of_earlier_versions_average(store: Store) -> None:
    assert TrainingConfig().with_overrides({"averaging.enabled": False}).averaging.enabled is False
    assert "averaging.enabled" in {field.name for field in TrainingConfig.fields()}
    plan = load_plan(store, CONFIG, 1)
    averaging = dict(plan.raw["settings"]["averaging"])
    assert averaging.pop("enabled") is True
    raw = {**plan.raw, "settings": {**plan.raw["settings"], "averaging": averaging}}
    assert Plan.from_dict(raw).settings.averaging.enabled
