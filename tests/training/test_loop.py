from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ringrift_pipeline.network import RingRiftNetwork, load_model, read_model_metadata
from ringrift_pipeline.selfplay import Interrupted, Plan, plan_generation
from ringrift_pipeline.store import Artefact, MissingArtefactError, Store
from ringrift_pipeline.training import (
    ResumeError,
    WindowDataset,
    build_window,
    mine_hard_examples,
    open_window,
    score_games,
    train,
)
from ringrift_pipeline.training import loop as training_loop
from ringrift_pipeline.training.forward import held_out_losses
from ringrift_pipeline.training.run import network_config, new_rows, planned_steps

from .conftest import CONFIG, NOW, settings


def prepare(store: Store, plan: Plan) -> None:
    score_games(store, plan)
    mine_hard_examples(store, plan)


def contents(artefact: Artefact) -> dict[str, str]:
    return {name: entry["sha256"] for name, entry in artefact.files.items()}


def records(artefact: Artefact) -> list[dict]:
    return [json.loads(line) for line in artefact.file("metrics.jsonl").read_text().splitlines()]


def stop_after(polls: int):
    left = polls

    def should_stop() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    return should_stop


def test_the_policy_loss_is_told_of_the_rows_that_have_a_policy(store: Store, second: Plan) -> None:
    """As that of held-out games; the loss itself is a mean over all rows, cheap searches too."""
    prepare(store, second)
    artefact = train(store, second)
    training = second.settings.training
    for told in (*records(artefact), artefact.metadata):
        if told.get("train/loss") is None:  # a look at the held-out games
            continue
        over_all = told["train/loss"] - training.value_weight * told["train/loss_value"]
        assert told["train/loss_policy"] > 1.05 * over_all / training.policy_weight > 0.0


def test_a_run_stopped_twice_ends_in_the_same_bytes(store: Store, second: Plan) -> None:
    """Mining, quality sampling, schedule, clipping, EMA and optimizer all go on unchanged."""
    prepare(store, second)
    whole = train(store, second, resume="never")
    # The checkpoint of `whole` is current, so the states are named by their paths.
    with pytest.raises(Interrupted, match="run again to go on"):
        train(store, second, resume="never", should_stop=stop_after(6))
    state = store.require(CONFIG, 1, "training_state")
    with pytest.raises(Interrupted, match="stopped at step 10"):
        train(store, second, resume=state.path, should_stop=stop_after(4))
    state = store.require(CONFIG, 1, "training_state")
    assert 0 < state.metadata["step"] < whole.metadata["train/steps"]
    resumed = train(store, second, resume=state.path)
    assert resumed.metadata["resumed_from_step"] == state.metadata["step"]
    assert contents(resumed) == contents(whole) and resumed.digest == whole.digest
    assert train(store, second) == resumed


def test_auto_resumes_and_then_returns_what_is_there(store: Store, first: Plan) -> None:
    prepare(store, first)
    heard: list[tuple[int, int]] = []
    with pytest.raises(Interrupted):
        train(store, first, should_stop=stop_after(5))
    assert len(store.artefacts(CONFIG, 0, "training_state")) == 1
    done = train(store, first, progress=lambda at, total, text: heard.append((at, total)))
    assert done.metadata["resumed_from_step"] == 5
    assert heard[-1] == (14, 14) and heard[0][0] == 6
    assert train(store, first) == done
    assert len(store.artefacts(CONFIG, 0, "training_state")) == 1  # older ones are removed


def test_the_time_before_it_was_stopped_counts(
    store: Store, first: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, tick = 0.0, 1000.0

    def monotonic() -> float:
        nonlocal now
        now += tick
        return now

    monkeypatch.setattr(training_loop, "time", SimpleNamespace(monotonic=monotonic))
    prepare(store, first)
    with pytest.raises(Interrupted):
        train(store, first, should_stop=stop_after(5))
    before = store.require(CONFIG, 0, "training_state").metadata["seconds"]
    tick = 0.001
    after = train(store, first).metadata
    assert 5000.0 <= before < after["train/seconds"] < before + 1.0
    assert after["train/rows_per_s"] > 1000.0  # of what was trained since


def test_training_lowers_the_held_out_loss_and_reports_it(store: Store, first: Plan) -> None:
    prepare(store, first)
    artefact = train(store, first)
    dataset = WindowDataset(open_window(build_window(store, first).path))
    rows = dataset.window.holdout_rows
    fresh = RingRiftNetwork(network_config(first), seed=first.seed_for("weights") % 2**63)
    before = held_out_losses(fresh, dataset, rows, 1.0, 1.0)
    best = load_model(artefact.path / "best")
    after = held_out_losses(best, dataset, rows, 1.0, 1.0)
    assert after.loss < before.loss
    assert artefact.metadata["val/loss"] == pytest.approx(after.loss, rel=1e-6)
    assert artefact.metadata["train/steps"] == 14
    assert artefact.metadata["parent_generation"] is None
    steps = [record for record in records(artefact) if "train/loss" in record]
    assert [record["step"] for record in steps] == list(range(1, 15))
    checks = [record for record in records(artefact) if "val/loss" in record]
    assert [record["step"] for record in checks] == [4, 8, 12, 14]
    assert min(record["val/loss"] for record in checks) == pytest.approx(after.loss, rel=1e-6)


def test_held_out_losses_against_one_row_at_a_time(store: Store, second: Plan) -> None:
    dataset = WindowDataset(open_window(build_window(store, second).path))
    rows = dataset.window.holdout_rows[-40:]
    model = RingRiftNetwork(network_config(second), seed=3)
    measured = held_out_losses(model, dataset, rows, 2.0, 0.5)
    policy, value, brier, agree, searched = 0.0, 0.0, 0.0, 0, 0
    each = []
    divergence = 0.0
    for row in rows:
        batch = dataset.batch([row])
        with torch.no_grad():
            logits, chances = model(batch["features"])
        log_policy = torch.log_softmax(logits[0].double(), 0)
        log_value = torch.log_softmax(chances[0].double(), 0)
        target, outcome = batch["policy_targets"][0].double(), batch["value_targets"][0].double()
        loss = -float((target * log_policy).sum())
        policy += loss
        value -= float((outcome * log_value).sum())
        each.append(2 * loss - 0.5 * float((outcome * log_value).sum()))
        brier += float((log_value.exp() - outcome).square().sum())
        if target.sum() > 0:
            searched += 1
            divergence += loss + float(torch.xlogy(target, target).sum())
            agree += int(logits[0].argmax() == target.argmax())
    assert 0 < searched < len(rows) == measured.rows and measured.policy_rows == searched
    assert measured.loss_policy == pytest.approx(policy / searched, rel=1e-5)
    assert measured.policy_divergence == pytest.approx(divergence / searched, rel=1e-4)
    assert measured.policy_accuracy == agree / searched
    assert measured.loss_value == pytest.approx(value / 40, rel=1e-5)
    assert measured.value_brier == pytest.approx(brier / 40, rel=1e-5)
    assert measured.loss == pytest.approx(2 * policy / 40 + 0.5 * value / 40, rel=1e-5)
    assert measured.by_row == pytest.approx(np.array(each), rel=1e-4)
    assert model.training


def test_training_starts_from_the_plans_parent(store: Store, second: Plan) -> None:
    prepare(store, second)
    artefact = train(store, second)
    assert second.parent is not None
    assert artefact.metadata["parent_generation"] == 0
    assert artefact.metadata["parent_digest"] == second.parent["digest"]
    assert artefact.metadata["parent_note"] == "weights of generation 0000"
    assert read_model_metadata(artefact.path)["parent_digest"] == second.parent["digest"]
    parent = load_model(store.root / second.parent["path"])
    trained = load_model(artefact.path)
    apart = max(
        float((a - b).detach().abs().max())
        for a, b in zip(parent.parameters(), trained.parameters(), strict=True)
    )
    assert 0 < apart < 0.5  # a fresh network would be further away
    dataset = WindowDataset(open_window(build_window(store, second).path))
    before, after = (
        held_out_losses(model, dataset, dataset.window.holdout_rows, 1.0, 1.0)
        for model in (parent, load_model(artefact.path / "best"))
    )
    games = dataset.window.game[dataset.window.holdout_rows]
    falls = before.by_row - after.by_row
    assert artefact.metadata["val/parent_loss"] == pytest.approx(before.loss, rel=1e-5)
    assert artefact.metadata["val/gain"] == pytest.approx(
        np.mean([falls[games == game].mean() for game in np.unique(games)]), abs=1e-5
    )
    low, high = (artefact.metadata[f"val/gain_{end}"] for end in ("low", "high"))
    assert low < artefact.metadata["val/gain"] < high


def test_a_parent_of_another_shape_gives_fresh_weights(store: Store) -> None:
    from ringrift_pipeline.selfplay import play_shards

    plan = plan_generation(
        store, CONFIG, 2, settings(network__channels=12, training__max_steps=1), NOW
    )
    play_shards(store, plan, workers=1)
    prepare(store, plan)
    artefact = train(store, plan)
    assert artefact.metadata["parent_note"] == "fresh weights: the parent differs in channels"
    assert load_model(artefact.path).config.channels == 12
    assert "val/gain" not in artefact.metadata


def test_steps_follow_rows_batches_and_limits(store: Store, first: Plan) -> None:
    def steps(rows: int, new: int, **overrides: object) -> int:
        other = Store(store.root.parent / f"steps-{rows}-{new}-{overrides}".strip())
        plan = plan_generation(other, CONFIG, 0, settings(training__max_steps=0, **overrides), NOW)
        return planned_steps(plan, rows, new)

    assert steps(1000, 1000, training__sample_reuse=3.0) == math.ceil(3000 / 32)
    assert steps(9000, 1000, training__sample_reuse=3.0) == math.ceil(3000 / 32)
    assert steps(1000, 500, gradients__accumulation_steps=4) == math.ceil(500 / 128)
    limited = {"training__sample_reuse": 9.0, "training__sample_reuse_limit": 2.0}
    assert steps(1000, 1000, **limited) == 2000 // 32
    assert steps(5000, 1000, **limited) == math.ceil(9000 / 32)
    assert steps(3, 0) == 1
    assert planned_steps(first, 10_000, 10_000) == 14


def test_new_rows_are_those_the_parent_has_not_seen(
    store: Store, first: Plan, second: Plan
) -> None:
    window = open_window(build_window(store, second).path)
    training = ~window.holdout
    own = int((training & (window.generation == 1)).sum())
    assert 0 < own < training.sum()
    assert second.parent is not None
    assert new_rows(second, window, fresh=False) == own
    assert new_rows(second, window, fresh=True) == training.sum()
    other = replace(second, parent={**second.parent, "config": "hex8_2p"})
    assert new_rows(other, window, fresh=False) == training.sum()
    skipped = replace(second, parent={**second.parent, "generation": -1})
    assert new_rows(skipped, window, fresh=False) == training.sum()
    assert new_rows(first, window, fresh=True) == training.sum()
    prepare(store, second)
    told = train(store, second).metadata
    assert told["train/new_rows"] == own
    assert told["train/reuse"] == told["train/samples"] / own
    assert told["train/passes"] == told["train/samples"] / training.sum()
    assert 1 <= told["train/max_visits"] <= second.settings.training.sample_reuse_limit


def test_enhancements_can_be_switched_off(store: Store) -> None:
    from ringrift_pipeline.selfplay import play_shards

    off = settings(
        quality__enabled=False,
        mining__enabled=False,
        gradients__accumulation_steps=2,
        training__max_steps=3,
    )
    plan = plan_generation(store, CONFIG, 2, off, NOW)
    play_shards(store, plan, workers=1)
    artefact = train(store, plan)  # needs neither scores nor hard examples
    assert artefact.metadata["train/samples"] == 3 * 2 * 32


def test_missing_inputs_and_foreign_states_are_refused(
    store: Store, first: Plan, second: Plan
) -> None:
    with pytest.raises(MissingArtefactError, match="quality_scores"):
        train(store, first)
    score_games(store, first)
    with pytest.raises(MissingArtefactError, match="hard_examples"):
        train(store, first)
    mine_hard_examples(store, first)
    with pytest.raises(Interrupted):
        train(store, first, should_stop=stop_after(1))
    state = store.require(CONFIG, 0, "training_state")
    prepare(store, second)
    with pytest.raises(ResumeError, match="another plan, window or parent"):
        train(store, second, resume=state.path)


def test_a_damaged_state_is_not_resumed(store: Store, first: Plan) -> None:
    prepare(store, first)
    with pytest.raises(Interrupted):
        train(store, first, should_stop=stop_after(3))
    path = store.require(CONFIG, 0, "training_state").file("state.safetensors")
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    assert train(store, first).metadata["resumed_from_step"] == 0


def test_two_trainings_of_one_generation_do_not_meet(
    store: Store, first: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ringrift_pipeline.store import LockedError
    from ringrift_pipeline.training import loop

    monkeypatch.setattr(loop, "PATIENCE", 0.1)
    prepare(store, first)
    with store.lock(CONFIG, "training-0000"), pytest.raises(LockedError):
        train(store, first)
    assert train(store, first).kind == "checkpoint"
