"""A config that begins with another config's model, and does not forget what that one knows."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from ringrift_pipeline.enhancements import EWCRegularizer
from ringrift_pipeline.game import get_rules, new_game
from ringrift_pipeline.network import Evaluator, RingRiftNetwork, load_model
from ringrift_pipeline.selfplay import (
    Interrupted,
    Plan,
    PlanError,
    load_plan,
    plan_generation,
    play_shards,
)
from ringrift_pipeline.store import Store
from ringrift_pipeline.training import (
    FinetuneError,
    WindowDataset,
    average,
    build_window,
    measure_fisher,
    mine_hard_examples,
    open_window,
    score_games,
    train,
)
from ringrift_pipeline.training.consolidation import FILE
from ringrift_pipeline.training.forward import held_out_losses

from .conftest import CONFIG, NOW, save_model_of, settings
from .test_loop import contents, records, stop_after

TARGET = "square8_3p"
LARGER = "square19_2p"


def planned(store: Store, generation: int = 0, config: str = TARGET, **overrides: object) -> Plan:
    """Generation of the fine-tuned config, its games played and scored."""
    changed = {"finetune__source": CONFIG, "finetune__ewc_samples": 60, **overrides}
    wanted = settings(selfplay__games=6, **changed)
    plan = plan_generation(store, config, generation, wanted, NOW + timedelta(hours=generation))
    play_shards(store, plan, workers=1)
    score_games(store, plan)
    mine_hard_examples(store, plan)
    return plan


def distance(one: RingRiftNetwork, other: RingRiftNetwork, by: dict | None = None) -> float:
    """Euclidean distance of two networks' weights, weighted by importance where that is given."""
    return sum(
        float(((1.0 if by is None else by[name]) * (a - b).detach().square()).sum())
        for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True)
    )


def test_training_starts_from_the_champion_of_the_other_config(store: Store) -> None:
    plan = planned(store, optimizer__learning_rate=1e-7)
    champion = store.champion(CONFIG)
    assert champion is not None
    reference = {
        "config": CONFIG,
        "generation": 0,
        "digest": champion.digest,
        "path": champion.path.relative_to(store.root).as_posix(),
    }
    assert plan.parent == reference
    assert plan.finetune == {"source": reference, "generation": 0, "samples": 60}
    checkpoint = train(store, plan)
    assert checkpoint.metadata["parent_note"] == "weights of square8_2p generation 0000"
    assert checkpoint.metadata["parent_config"] == CONFIG
    assert checkpoint.metadata["parent_digest"] == champion.digest
    source, trained = load_model(champion.path), load_model(checkpoint.path)
    assert 0 < distance(source, trained) < 1e-8
    assert distance(source, RingRiftNetwork(source.config, seed=99)) > 1
    assert average(store, plan).metadata["parent_config"] == CONFIG
    assert store.current(TARGET, 0, "fisher") is None  # no penalty: nothing measured


def test_square19_starts_from_square8(store: Store) -> None:
    """The very weights, on a board of another size, and the penalty measured on the small one."""
    plan = planned(
        store,
        config=LARGER,
        selfplay__max_plies=40,
        finetune__ewc_weight=1.0,
        optimizer__learning_rate=1e-7,
    )
    assert plan.parent is not None and plan.parent["config"] == CONFIG
    checkpoint = train(store, plan)
    assert checkpoint.metadata["parent_note"] == "weights of square8_2p generation 0000"
    source, trained = load_model(store.champion(CONFIG).path), load_model(checkpoint.path)
    assert 0 < distance(source, trained) < 1e-8
    assert open_window(build_window(store, plan).path).planes.shape[2:] == (19, 19)
    fisher = store.require(LARGER, 0, "fisher")
    assert fisher.metadata["source_config"] == CONFIG and fisher.metadata["rows"] == 60
    assert checkpoint.metadata["finetune/source_loss_before"] > 0
    evaluator = Evaluator(load_model(average(store, plan).path), get_rules(LARGER), "cpu")
    state = new_game(LARGER)
    moves = np.array([state.legal_codes()])
    counts = np.array([moves.shape[1]], np.int32)
    logits, value = evaluator.evaluate(state.array[None].copy(), moves, counts)
    assert np.isfinite(logits).all() and value.sum() == pytest.approx(1.0, abs=1e-5)


def test_with_a_penalty_the_weights_that_the_source_needs_stay(
    original: Path, store: Store, tmp_path: Path
) -> None:
    import shutil

    free = planned(store)
    loose = train(store, free)
    other = Store(shutil.copytree(original, tmp_path / "other"))
    plan = planned(other, finetune__ewc_weight=1e5)
    held = train(other, plan)
    fisher = other.require(TARGET, 0, "fisher")
    assert [0, "fisher", fisher.digest] in held.metadata["inputs"]["artefacts"]
    assert fisher.metadata["source_config"] == CONFIG and fisher.metadata["rows"] == 60
    source = load_model(store.champion(CONFIG).path)
    ewc = EWCRegularizer(RingRiftNetwork(source.config))
    ewc.load_state(fisher.file(FILE))
    assert all(torch.equal(ewc.anchors[n], p) for n, p in source.named_parameters())
    apart = [
        [distance(source, load_model(made.path), by) for made in (held, loose)]
        for by in (None, ewc.fisher)
    ]
    assert apart[0][0] < apart[0][1]
    assert apart[1][0] < 0.2 * apart[1][1]
    penalties = [record.get("train/penalty") for record in records(held)]
    assert max(p for p in penalties if p is not None) > 0
    assert all("train/penalty" not in record for record in records(loose))
    assert held.metadata["train/penalty"] > 0
    theirs = WindowDataset(open_window(build_window(store, load_plan(store, CONFIG, 0)).path))
    judged = theirs.window.holdout_rows[: plan.finetune["samples"]]
    for when, model in (("before", source), ("after", load_model(held.path / "best"))):
        loss = held_out_losses(model, theirs, judged, 1.0, 1.0).loss
        assert held.metadata[f"finetune/source_loss_{when}"] == pytest.approx(loss)


def test_the_fisher_is_measured_on_the_sources_own_rows(store: Store) -> None:
    plan = planned(store, finetune__ewc_weight=1.0)
    artefact = measure_fisher(store, plan)
    source = load_plan(store, CONFIG, 0)
    window = open_window(build_window(store, source).path)
    assert window.players == 2
    # all the rows, so that which are drawn plays no part
    whole = plan.raw | {"finetune": {**plan.finetune, "samples": len(window)}}
    everything = measure_fisher(_with_plan(store, whole), Plan.from_dict(whole))
    assert everything.metadata["rows"] == len(window)
    ewc = EWCRegularizer(load_model(store.champion(CONFIG).path))
    ewc.load_state(everything.file(FILE))
    by_hand = EWCRegularizer(load_model(store.champion(CONFIG).path), seed=plan.seed_for("fisher"))
    dataset = WindowDataset(window)
    order = np.argsort(window.counts, kind="stable")
    by_hand.compute_fisher(dataset.batches(order, 7), num_samples=len(window))
    for name, value in by_hand.fisher.items():
        torch.testing.assert_close(ewc.fisher[name], value, rtol=1e-2, atol=1e-5)
    assert artefact.digest != everything.digest


def _with_plan(store: Store, raw: dict) -> Store:
    """A copy of the store in which the fine-tuned generation has another plan."""
    import shutil

    root = store.root.parent / "replanned"
    shutil.copytree(store.root, root, ignore=shutil.ignore_patterns(TARGET))
    other = Store(root)
    other.write_plan(TARGET, 0, raw)
    return other


def test_a_fine_tuning_run_stopped_ends_in_the_same_bytes(store: Store) -> None:
    plan = planned(store, finetune__ewc_weight=100.0)
    build_window(store, load_plan(store, CONFIG, 0))
    with pytest.raises(Interrupted, match="while measuring what the source needs"):
        train(store, plan, should_stop=stop_after(0))
    assert store.current(TARGET, 0, "fisher") is None
    whole = train(store, plan, resume="never")
    fisher = store.require(TARGET, 0, "fisher")
    with pytest.raises(Interrupted, match="stopped at step"):
        train(store, plan, resume="never", should_stop=stop_after(6))
    state = store.require(TARGET, 0, "training_state")
    assert 0 < state.metadata["step"] < whole.metadata["train/steps"]
    resumed = train(store, plan, resume=state.path)
    assert contents(resumed) == contents(whole)
    assert store.require(TARGET, 0, "fisher").path == fisher.path  # measured once


def test_later_generations_keep_what_the_first_began_with(store: Store) -> None:
    first = planned(store)
    train(store, first)
    average(store, first)
    save_model_of(store, 1)  # the source's config goes on; that changes nothing here
    later = planned(
        store, 1, finetune__ewc_weight=50.0, finetune__ewc_samples=7, finetune__source=""
    )
    assert later.finetune == first.finetune
    assert later.parent is not None and "config" not in later.parent
    checkpoint = train(store, later)
    assert checkpoint.metadata["parent_note"] == "weights of generation 0000"
    fisher = store.require(TARGET, 0, "fisher")
    assert fisher.metadata["rows"] == 60
    assert fisher.metadata["source_digest"] == first.finetune["source"]["digest"]
    assert [0, "fisher", fisher.digest] in checkpoint.metadata["inputs"]["artefacts"]
    assert store.current(TARGET, 1, "fisher") is None
    wider = planned(store, 2, finetune__ewc_weight=50.0, network__channels=12)
    with pytest.raises(FinetuneError, match="has shape"):
        train(store, wider)


def test_without_a_source_a_plan_says_nothing_of_it(store: Store, first: Plan) -> None:
    assert first.finetune is None and "finetune" not in first.raw
    with pytest.raises(FinetuneError, match="was not fine-tuned"):
        measure_fisher(store, first)


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    (
        ("square8_4p", {"finetune__source": "square19_2p"}, "square19_2p has no champion"),
        ("square8_4p", {"finetune__source": "square8_2p/0044"}, "generation has no model"),
        ("square8_4p", {"finetune__source": "round8_2p"}, "round8_2p"),
        ("hex8_2p", {}, "square8_2p' has square cells, hex8_2p hex"),
        ("square8_4p", {"network__channels": 12}, "network.channels 8, not 12"),
    ),
)
def test_a_source_that_does_not_fit_is_refused_at_planning(
    store: Store, config: str, overrides: dict, message: str
) -> None:
    wanted = settings(**{"finetune__source": CONFIG, **overrides})
    with pytest.raises(PlanError, match=message):
        plan_generation(store, config, 0, wanted, NOW)
    assert store.generations(config) == []


def test_one_generation_can_be_named(store: Store) -> None:
    save_model_of(store, 1, promote=False)
    plan = plan_generation(store, TARGET, 0, settings(finetune__source=f"{CONFIG}/0001"), NOW)
    assert plan.parent is not None and plan.parent["generation"] == 1
    assert json.loads(json.dumps(plan.raw)) == plan.raw
    for bad in ("square8", "square8_2p/x", "../square8_2p"):
        with pytest.raises(ValueError, match="finetune.source"):
            settings(finetune__source=bad)
