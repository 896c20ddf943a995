"""What a facade takes in: facts for the miner, batches, optimizers and saved states."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from ringrift_pipeline.enhancements.facade_config import FacadeConfig
from ringrift_pipeline.enhancements.loss_parts import LossParts
from ringrift_pipeline.enhancements.per_sample_loss import compute_per_sample_loss
from ringrift_pipeline.enhancements.training_config import TrainingConfig
from ringrift_pipeline.enhancements.training_facade import TrainingEnhancementsFacade

from .small_training import fingerprint
from .test_training_facade import Net, make_batch, new, steady

FACTS = {
    "surprise": np.linspace(0.0, 3.0, 8),
    "reference_loss": np.linspace(0.0, 1.5, 8),
    "games": np.array([0, 0, 0, 0, 0, 0, 0, 1]),
    "uncertainty": np.linspace(2.0, 0.5, 8),
}
MINING: dict = {
    "hard_buffer_size": 64,
    "hard_min_samples_before_mining": 0,
    "hard_loss_threshold_percentile": 0.0,
    "hard_uncertainty_weight": 0.0,
    "hard_surprise_weight": 1.0,
}


def test_games_that_are_hashes_of_64_bits_are_taken() -> None:
    facade = new(**MINING, hard_max_game_share=0.25)
    games = np.array([2**63 + 5] * 7 + [2**64 - 1], np.uint64)
    facade.train_step(make_batch(3) | {"indices": torch.arange(8), "games": games})
    assert sorted(np.bincount((games == games[7])[facade.get_hard_indices(8)])) == [1, 2]


@pytest.mark.parametrize("fact", ["surprise", "reference_loss", "games", "uncertainty", "entropy"])
def test_what_a_batch_tells_of_its_samples_reaches_the_miner(fact: str) -> None:
    """Hardness against its formula by hand, with the fact and without."""
    batch = make_batch(3) | {"indices": torch.arange(8)}
    uncertain = 2.0 if fact in ("uncertainty", "entropy") else 0.0
    with_it = new(**{**MINING, "hard_uncertainty_weight": uncertain}, hard_max_game_share=0.25)
    without = new(**MINING, hard_max_game_share=0.25)
    logits, value = with_it.model.eval()(batch["features"])
    losses = compute_per_sample_loss(
        logits, batch["policy_targets"], value, batch["value_targets"]
    ).detach()
    log_probs = logits.detach().log_softmax(dim=1)
    entropy = -(log_probs.exp() * log_probs).sum(dim=1).numpy()
    told = {name: values for name, values in FACTS.items() if name == fact}
    with_it.train_step(batch | told)
    without.train_step(batch)
    expected = losses.double().numpy()
    if fact == "reference_loss":
        expected = np.maximum(expected - FACTS["reference_loss"], 0.0)
    expected = expected + uncertain * (FACTS[fact] if fact == "uncertainty" else entropy)
    expected = expected + (FACTS["surprise"] if fact == "surprise" else 0.0)
    assert with_it.miner is not None and without.miner is not None
    found = {example.index: example for example in with_it.miner.hardest()}
    plain = {example.index: example for example in without.miner.hardest()}
    hardness = [found[row].hardness for row in range(8)]
    assert hardness == pytest.approx(expected.clip(1e-30), rel=3e-3)  # faded by 8 samples
    if fact == "games":
        assert [found[row].game for row in range(8)] == FACTS["games"].tolist()
        drawn = with_it.get_hard_indices(8)  # at most 2 of a game
        assert sorted(np.bincount(FACTS["games"][drawn], minlength=2)) == [1, 2]
        assert len(without.get_hard_indices(8)) == 8
    else:
        assert hardness != pytest.approx([plain[row].hardness for row in range(8)], rel=0.05)
        order = [example.index for example in with_it.miner.hardest()]
        assert order == sorted(range(8), key=lambda row: -expected[row])[:8] or fact == (
            "reference_loss"  # where several are 0
        )


def with_value(state: dict, path: str, value: object) -> dict:
    head, _, rest = path.partition(".")
    return {**state, head: with_value(state[head], rest, value) if rest else value}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("progress", {}),
        ("unaveraged", []),
        ("curriculum_scale", math.nan),
        ("quality", torch.tensor([math.nan, 2.0])),
        ("quality", torch.tensor([1.0, -1.0])),
        ("parts.clipper.average", [-5.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("parts.monitor.losses", [math.nan, 1.0]),
        ("parts.accumulator.batches", 2),
        ("progress.epoch", -1),
        ("snapshot_extra.unaveraged", [1]),
    ],
)
def test_damage_that_would_show_later_is_refused_at_once(path: str, value: object) -> None:
    facade = new(gradient_accumulation_steps=2)
    facade.set_quality_scores(np.linspace(0.2, 1.0, 64))
    for step in range(7):
        facade.train_step(make_batch(step))
    saved = facade.state_dict()
    with pytest.raises(ValueError, match=path.rpartition(".")[2]):
        facade.load_state_dict(with_value(saved, path, value))
    assert fingerprint(facade.state_dict()) == fingerprint(saved)


def test_the_state_of_another_kind_of_optimizer_is_refused() -> None:
    model = Net()
    adam = TrainingEnhancementsFacade(
        model=model, optimizer=torch.optim.AdamW(model.parameters(), lr=0.01)
    )
    facade = new()
    for other in (facade, adam):
        steady(other, 2)
    before = fingerprint(facade.state_dict())
    with pytest.raises(ValueError, match="another kind of optimizer: .*momentum"):
        facade.load_state_dict(adam.state_dict())
    with pytest.raises(ValueError, match="another kind of optimizer: .*betas"):
        adam.load_state_dict(facade.state_dict())
    assert fingerprint(facade.state_dict()) == before
    steady(facade, 2)


def test_an_optimizer_of_another_model_is_refused() -> None:
    model, other = Net(), Net(1)
    for parameters in (other.parameters(), [*model.parameters(), *other.parameters()]):
        with pytest.raises(ValueError, match="optimizer: .* are not the model's"):
            TrainingEnhancementsFacade(model=model, optimizer=torch.optim.SGD(parameters, lr=0.1))
    scale = nn.Parameter(torch.ones(()))
    TrainingEnhancementsFacade(  # a loss function may have something of its own to train
        model=model,
        optimizer=torch.optim.SGD([*model.parameters(), scale], lr=0.1),
        loss_fn=lambda model, batch: scale * model(batch["features"])[1].square().sum(dim=1),
    )


def test_a_name_that_is_nearly_right_is_refused() -> None:
    facade = new()
    with pytest.raises(ValueError, match="unknown entry 'weight': did you mean 'weights'"):
        facade.train_step(make_batch(0) | {"weight": torch.ones(8)})
    with pytest.raises(ValueError, match="unknown entry 'phase'"):
        facade.train_step(make_batch(0) | {"phase": torch.ones(8)})
    model = Net()
    own = TrainingEnhancementsFacade(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        loss_fn=lambda model, batch: model(batch["features"])[1].square().sum(dim=1),
    )
    own.train_step(make_batch(0) | {"phase": torch.ones(8), "feature_noise": torch.ones(8)})
    with pytest.raises(ValueError, match="unknown entry 'weight': did you mean 'weights'"):
        own.train_step(make_batch(0) | {"weight": torch.ones(8)})


def other_form(losses: torch.Tensor, kind: str) -> object:
    """What a loss function that is not written as it should be gives for losses (B,)."""
    parts = LossParts(losses, losses.detach(), losses.detach())
    return {
        "detached": losses.detach(),
        "whole": losses.detach().long(),
        "matrix": losses.unsqueeze(1),
        "scalar": losses.mean(),
        "list": [losses],
        "None": None,
        "meta": losses.to("meta"),
        "parts detached": parts._replace(total=losses.detach()),
        "parts matrix": parts._replace(total=losses.unsqueeze(1)),
        "parts policy": parts._replace(policy=torch.ones(3)),
        "parts value": parts._replace(value=losses.sum()),
        "parts no value": parts._replace(value=None),  # type: ignore[arg-type]
        "parts whole value": parts._replace(value=torch.ones(8, dtype=torch.int64)),
        "parts entropy": parts._replace(entropy=torch.ones(8, 1)),
        "parts of a few": LossParts(*[p[:5] for p in parts[:3]]),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("detached", "total"),
        ("whole", "total"),
        ("matrix", "total"),
        ("scalar", "total"),
        ("list", "losses"),
        ("None", "losses"),
        ("meta", "total"),
        ("parts detached", "total"),
        ("parts matrix", "total"),
        ("parts policy", "policy"),
        ("parts value", "value"),
        ("parts no value", "value"),
        ("parts whole value", "value"),
        ("parts entropy", "entropy"),
        ("parts of a few", "indices has 8"),
    ],
)
def test_losses_of_another_form_are_refused_and_change_nothing(kind: str, named: str) -> None:
    """In the middle of an accumulation, with mining that counts and dropout that draws."""
    wrong = ""

    def loss_fn(model: nn.Module, batch: dict) -> object:
        logits, value = model(batch["features"])
        losses = logits.square().sum(dim=1) + value.square().sum(dim=1)
        return other_form(losses, wrong) if wrong else losses

    model = Net(dropout=0.3)
    facade = TrainingEnhancementsFacade(
        model,
        torch.optim.SGD(model.parameters(), lr=0.01),
        FacadeConfig(hard_min_samples_before_mining=0, gradient_accumulation_steps=3),
        loss_fn=loss_fn,  # type: ignore[arg-type]
    )
    for step in range(7):
        facade.train_step(make_batch(step, rows=16))
    assert facade.accumulator.pending_batches == 1

    def state() -> dict:
        saved = facade.state_dict()
        saved["model"].pop("calls")  # what the forward pass itself counts
        return saved

    before = fingerprint(state())
    wrong = kind
    with pytest.raises(ValueError, match=named) as refusal:
        facade.train_step(make_batch(7, rows=16))
    assert named.startswith("indices") or "loss_fn" in str(refusal.value)
    assert fingerprint(state()) == before
    wrong = ""
    assert [facade.train_step(make_batch(step, rows=16)).stepped for step in (7, 8)] == [
        False,
        True,
    ]


def test_a_frozen_model_is_refused() -> None:
    facade = new()
    facade.model.requires_grad_(False)
    with pytest.raises(ValueError, match="the model: the losses .* do not depend"):
        facade.train_step(make_batch(0))


def test_weights_gone_bad_do_not_reach_the_average(caplog: pytest.LogCaptureFixture) -> None:
    facade = new(enable_anomaly_detection=False, averaging_interval=1)
    steady(facade, 3)
    assert facade.averager is not None
    before = facade.averager.get_averaged_state_dict()
    with torch.no_grad():
        next(facade.model.parameters())[0] = math.inf
    facade._unaveraged = [1, 8]  # a step that ended there
    facade.update_average()
    assert "not finite" in caplog.text
    for name, tensor in facade.averager.get_averaged_state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize(
    "progress", [10**400, "abc", math.nan, True], ids=["huge", "text", "nan", "flag"]
)
def test_progress_is_checked_whether_the_curriculum_is_on_or_off(
    progress: object, enabled: bool
) -> None:
    facade = new(enable_curriculum_lr=enabled)
    with pytest.raises(ValueError, match="progress"):
        facade.get_curriculum_lr_scale(progress)


@pytest.mark.parametrize("steps", [1, 2])
def test_sparse_gradients_are_refused_before_anything_moves(steps: int) -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows, self.scale = nn.Embedding(8, 1, sparse=True), nn.Parameter(torch.ones(1))

    model = Table()
    facade = TrainingEnhancementsFacade(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        config=FacadeConfig(gradient_accumulation_steps=steps),
        loss_fn=lambda model, batch: (model.scale * model.rows(batch["features"]))[:, 0].square(),
    )
    before = fingerprint(facade.state_dict())
    with pytest.raises(ValueError, match="sparse=False"):
        facade.train_step({"features": torch.arange(8)})
    assert fingerprint(facade.state_dict()) == before
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", ["constant", "warm_restarts", "adaptive"])
def test_a_group_added_under_a_schedule_is_refused_before_anything_moves(name: str) -> None:
    schedule = TrainingConfig.from_dict({"schedule.name": name}).schedule
    model = Net()
    first, *others = model.parameters()
    facade = TrainingEnhancementsFacade(
        model=model,
        optimizer=torch.optim.SGD([first], lr=0.01),
        config=FacadeConfig(schedule=schedule, total_steps=100, enable_gradient_clipping=False),
    )
    facade.train_step(make_batch(0))
    facade.optimizer.add_param_group({"params": others, "lr": 0.005})
    scheduler = facade.scheduler
    assert scheduler is not None
    before = fingerprint(facade.state_dict())
    for call in (
        lambda: facade.train_step(make_batch(1)),
        scheduler.on_optimizer_step,
        lambda: scheduler.scale_lr(0.5),
    ):
        with pytest.raises(ValueError, match="2 parameter groups, its schedule was built for 1"):
            call()
    assert fingerprint(facade.state_dict()) == before
