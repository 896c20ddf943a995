"""Small tests of the reference's defects, each with a re-creation of the defect to fail on.

`PROOFS[name].holds` is the test; it passes with ours and must fail with theirs, which is the
reference's behaviour in a few lines of our own.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ringrift_pipeline.enhancements import (
    AdaptiveGradientClipper,
    AdaptiveLRScheduler,
    CheckpointAverager,
    DataQualityScorer,
    EWCRegularizer,
    HardExampleMiner,
    PerSampleLossTracker,
    QualityWeightedSampler,
    SeedManager,
    WarmRestartsScheduler,
    compute_per_sample_loss,
)


@dataclass(frozen=True)
class Proof:
    """`holds(implementation)` asserts; `ours` passes it and `theirs` must not."""

    holds: Callable[[Any], None]
    ours: Any
    theirs: Any


def in_training(miner: HardExampleMiner, losses: Any) -> HardExampleMiner:
    miner.record_batch(np.arange(len(losses)), losses)
    return miner


def mixed_batch_is_full(draw: Callable[[int, int], Any]) -> None:
    assert len(draw(512, 10_000)) == 512


def cap_holds(hard_of: Callable[[int], Any]) -> None:
    drawn = np.concatenate([hard_of(2) for _ in range(50)])
    assert np.bincount(drawn).max() <= 3


def hard_by_weight(losses: np.ndarray) -> Callable[[int], np.ndarray]:
    """Draws in proportion to a loss that each draw only dampens."""
    rng, times = np.random.default_rng(0), np.zeros(losses.size)

    def draw(number: int) -> np.ndarray:
        weight = losses / (1.0 + 0.1 * times)
        chosen = rng.choice(losses.size, number, replace=False, p=weight / weight.sum())
        times[chosen] += 1
        return chosen

    return draw


def finds_the_hard_one(hard_of: Callable[[np.ndarray], Any]) -> None:
    losses = np.linspace(0.1, 1.0, 20)
    losses[3] = np.nan
    assert 19 in hard_of(losses)


def draws_from_zeros(hard_of: Callable[[np.ndarray], Any]) -> None:
    assert len(hard_of(np.zeros(20))) > 0


def hard_indices(losses: np.ndarray) -> np.ndarray:
    miner = HardExampleMiner(32, loss_threshold_percentile=90, min_samples_before_mining=0)
    return np.asarray(in_training(miner, losses).get_hard_indices(4))


def above_percentile(losses: np.ndarray) -> np.ndarray:
    return np.flatnonzero(losses >= np.percentile(losses, 90.0))


def drawn_in_proportion(losses: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.random.default_rng(0).choice(losses.size, 4, p=losses / losses.sum())


def refuses_other_lengths(record: Callable[[Any, Any], Any]) -> None:
    with pytest.raises(ValueError):
        record([1, 2, 3], [0.5, 0.25])


def remembers_an_epoch(left: Callable[[int, int], float]) -> None:
    """Share of a hardness left after an epoch of a million samples in batches of 512."""
    assert left(1_000_000, 512) > 0.3


def share_left(samples: int, batch: int) -> float:
    miner = HardExampleMiner(100_000, decay_rate=0.9, min_samples_before_mining=0)
    miner.record_batch([0], [1.0])
    first = miner.hardest(1)[0].hardness
    for _ in range(0, samples, 10_000):  # the same samples over and over
        miner.record_batch(np.arange(1, 10_001), np.full(10_000, 1e-3))
    return miner.hardest(1)[0].hardness / first


def finite_under_a_mask(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    logits = torch.tensor([[0.0, 1.0, -math.inf]])
    assert torch.isfinite(loss(logits, torch.tensor([[0.5, 0.5, 0.0]]))).all()


def policy_only(logits: Tensor, targets: Tensor) -> Tensor:
    zero = torch.zeros(len(logits))
    return compute_per_sample_loss(logits, targets, zero, zero)


class EvictsTheFirst:
    """Keeps losses in the order of first sight."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}

    def record(self, row: int) -> None:
        self.losses[row] = 1.0
        if len(self.losses) > 2:
            del self.losses[next(iter(self.losses))]

    def known(self, row: int) -> bool:
        return row in self.losses


class EvictsTheOldest:
    def __init__(self) -> None:
        self.tracker = PerSampleLossTracker(2)

    def record(self, row: int) -> None:
        self.tracker.record_batch([row], [1.0], 0)

    def known(self, row: int) -> bool:
        return self.tracker.get_record(row) is not None


def keeps_the_recently_touched(new: Callable[[], Any]) -> None:
    it = new()
    for row in (1, 2, 1, 3):
        it.record(row)
    assert it.known(1) and it.known(3) and not it.known(2)


def halves(freshness: Callable[[float], float]) -> None:
    assert freshness(24.0) == pytest.approx(0.5) and freshness(48.0) == pytest.approx(0.25)


def does_not_jump(length: Callable[[int], float]) -> None:
    scores = np.array([length(plies) for plies in range(1, 1200)])
    assert np.abs(np.diff(scores)).max() < 0.05


def bell_and_tail(plies: int) -> float:
    if 20 <= plies <= 500:
        return math.exp(-((plies - 100) ** 2) / (2 * 120.0**2))
    return 0.5 * plies / 20 if plies < 20 else 0.5 * 500 / plies


def proportional(weights: Callable[[np.ndarray], np.ndarray]) -> None:
    found = weights(np.array([0.2, 0.4, 0.8]))
    assert found[1] / found[0] == pytest.approx(2.0) and found[2] / found[0] == pytest.approx(4.0)


def softmax(scores: np.ndarray) -> np.ndarray:
    return np.exp(scores) / np.exp(scores).sum()


def repeats(draw: Callable[[int], Any]) -> None:
    np.random.seed(0)
    torch.manual_seed(0)
    first = list(draw(0))
    assert first == list(draw(0)) and first != list(draw(1))


def our_draw(epoch: int) -> list[int]:
    return QualityWeightedSampler(np.linspace(0.1, 1, 50), seed=3).draw(epoch).tolist()


def their_draw(epoch: int) -> list[int]:
    return torch.multinomial(torch.linspace(0.1, 1, 50), 50, replacement=True).tolist()


def weighs_the_new_more(average: Callable[[list[float]], float]) -> None:
    assert average([0.0] * 30 + [1.0] * 10) > 0.4  # a uniform mean reads 0.25


def one_number(value: float) -> nn.Module:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def our_average(weights: list[float]) -> float:
    averager = CheckpointAverager(half_life_samples=5.0, warmup_fraction=1.0)
    for weight in weights:
        averager.update(one_number(weight), 1)
    return float(averager.get_averaged_state_dict("ema")["weight"])


def both_are_there(files_of: Callable[[Path], Any], folder: Path) -> None:
    files_of(folder)
    assert len(list(folder.iterdir())) == 2


def add_two(folder: Path) -> None:
    averager = CheckpointAverager(3, folder)
    for value in (1.0, 2.0):
        averager.add_checkpoint(one_number(value).state_dict(), epoch=4)


def name_by_epoch(folder: Path) -> None:
    for value in (1.0, 2.0):
        torch.save(one_number(value).state_dict(), folder / "checkpoint-4.pt")


class Heads(nn.Module):
    """A policy over three actions and a value, of one feature."""

    def __init__(self) -> None:
        super().__init__()
        self.policy, self.value = nn.Linear(1, 3), nn.Linear(1, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.policy(x), self.value(x)


def the_same_for_any_batch(trace: Callable[[int], float]) -> None:
    assert trace(64) == pytest.approx(trace(1), rel=1e-3)


def our_fisher(batch: int) -> float:
    torch.manual_seed(0)
    ewc = EWCRegularizer(Heads(), normalize_fisher=False)
    ewc.compute_fisher(list(torch.randn(256, 1).split(batch)))
    return sum(float(tensor.sum()) for tensor in ewc.fisher.values())


def squared_mean_gradient(batch: int) -> float:
    torch.manual_seed(0)
    model, total = Heads(), 0.0
    features = torch.randn(256, 1)
    labels = torch.randint(3, (256,))
    for x, y in zip(features.split(batch), labels.split(batch), strict=True):
        model.zero_grad()
        nn.functional.cross_entropy(model(x)[0], y).backward()
        total += float(model.policy.weight.grad.square().sum()) * len(x) / 256
    return total


def survives_nan(clip: Callable[[Tensor], Any]) -> None:
    """`clip` takes a parameter with its gradient and clips it in place."""
    parameter = nn.Parameter(torch.zeros(3))
    for step in range(30):
        parameter.grad = torch.full((3,), math.nan if step == 5 else 1.0)
        clip(parameter)
    assert parameter.grad is not None and torch.isfinite(parameter.grad).all()


class PercentileOfAll:
    """Total norms, NaN included, bound the next one."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def __call__(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self.norms.append(float(parameter.grad.norm()))
        nn.utils.clip_grad_norm_([parameter], float(np.percentile(self.norms, 90)))


def leaves_others_alone(clip: Callable[[list[Any]], Any]) -> None:
    parameters = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    for step in range(20):
        for parameter in parameters:
            parameter.grad = torch.full((2,), 0.5)
        if step == 19:
            parameters[0].grad = torch.full((2,), 500.0)
        clip(parameters)
    assert parameters[0].grad is not None and parameters[1].grad is not None
    assert float(parameters[0].grad.norm()) < 5.0
    assert torch.equal(parameters[1].grad, torch.full((2,), 0.5))


def restarts_after_3_9_21(rates_by_epoch: Callable[[int], list[float]]) -> None:
    rates = rates_by_epoch(30)
    rises = [epoch for epoch in range(1, 30) if rates[epoch] > rates[epoch - 1] * 1.5]
    assert rises == [3, 9, 21]


def our_rates(epochs: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = WarmRestartsScheduler(optimizer, T_0=3, T_mult=2, eta_min=0.0)
    return [1.0, *(schedule.step_epoch() for _ in range(epochs - 1))]


def position_is_the_epoch(epochs: int) -> list[float]:
    rates, period = [1.0], 3
    for epoch in range(1, epochs):
        position = epoch  # not counted from the restart
        if position >= period:
            position, period = 0, 2 * period
        rates.append((1 + math.cos(math.pi * position / period)) / 2)
    return rates


def rate_stays(rate_after: Callable[[list[float]], float]) -> None:
    assert rate_after([3.0 * 0.7**i for i in range(12)]) >= 0.01


def our_rate(losses: list[float]) -> float:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
    schedule = AdaptiveLRScheduler(optimizer, 0.01, warmup_epochs=0)
    return [schedule.step(loss) for loss in losses][-1]


def variance_is_oscillation(losses: list[float]) -> float:
    recent = np.array(losses[-10:])
    return 0.005 if recent.var() / recent.mean() ** 2 > 0.1 else 0.01


def seeds_a_worker(seed_worker: Callable[[int, int], Any]) -> None:
    seed_worker(2**32 - 1, 1)


def seed_plus_worker(seed: int, worker: int) -> None:
    np.random.seed(seed + worker)


def differ(draws: Callable[[], tuple[float, float]]) -> None:
    fork, worker = draws()
    assert fork != worker


def our_fork_and_worker() -> tuple[float, float]:
    SeedManager(7).fork(1).set_global_seed()
    fork = random.random()
    SeedManager(7).get_worker_init_fn()(1)
    return fork, random.random()


def offsets_alike() -> tuple[float, float]:
    return random.Random(7 + 1).random(), random.Random(7 + 1).random()


def their_losses(logits: Tensor, targets: Tensor) -> Tensor:
    return -(targets * torch.log_softmax(logits, dim=1)).sum(dim=1)


def capped_miner() -> Callable[[int], Any]:
    miner = HardExampleMiner(
        8, loss_threshold_percentile=0, min_samples_before_mining=0, max_times_sampled=3
    )
    return in_training(miner, np.arange(1.0, 6.0)).get_hard_indices


PROOFS: dict[str, Proof] = {
    "a mixed batch is full before warm-up": Proof(
        mixed_batch_is_full,
        lambda batch, rows: HardExampleMiner().create_mixed_batch_indices(batch, rows),
        lambda batch, rows: np.random.default_rng(0).choice(rows, batch - int(batch * 0.3)),
    ),
    "max_times_sampled is a cap": Proof(
        cap_holds, capped_miner(), hard_by_weight(np.arange(1.0, 6.0))
    ),
    "one NaN loss silences nothing": Proof(finds_the_hard_one, hard_indices, above_percentile),
    "losses of zero can be drawn from": Proof(draws_from_zeros, hard_indices, drawn_in_proportion),
    "lengths that differ are refused": Proof(
        refuses_other_lengths,
        HardExampleMiner().record_batch,
        lambda rows, losses: dict(zip(rows, losses, strict=False)),
    ),
    "an epoch is not forgotten within itself": Proof(
        remembers_an_epoch, share_left, lambda samples, batch: 0.99 ** (samples / batch)
    ),
    "-inf with target 0 is finite": Proof(finite_under_a_mask, policy_only, their_losses),
    "the least recently seen is evicted": Proof(
        keeps_the_recently_touched, EvictsTheOldest, EvictsTheFirst
    ),
    "a half-life halves": Proof(
        halves,
        lambda hours: DataQualityScorer().compute_freshness_score(0.0, 3600.0 * hours),
        lambda hours: math.exp(-hours / 24.0),
    ),
    "the length score does not jump": Proof(
        does_not_jump,
        lambda plies: DataQualityScorer().score_game("g", plies).length_score,
        bell_and_tail,
    ),
    "twice as good is drawn twice as often": Proof(
        proportional, DataQualityScorer().compute_sample_weights, softmax
    ),
    "a draw depends on seed and epoch alone": Proof(repeats, our_draw, their_draw),
    "an exponential average is no mean": Proof(
        weighs_the_new_more, our_average, lambda weights: float(np.mean(weights))
    ),
    "Fisher does not depend on the batch size": Proof(
        the_same_for_any_batch, our_fisher, squared_mean_gradient
    ),
    "one NaN gradient poisons nothing": Proof(
        survives_nan,
        AdaptiveGradientClipper(mode="global").update_and_clip,
        PercentileOfAll(),
    ),
    "a spike in one parameter leaves the others alone": Proof(
        leaves_others_alone,
        AdaptiveGradientClipper().update_and_clip,
        lambda parameters: nn.utils.clip_grad_norm_(parameters, 1.0),
    ),
    "restarts by epoch are in their places": Proof(
        restarts_after_3_9_21, our_rates, position_is_the_epoch
    ),
    "a falling loss does not oscillate": Proof(rate_stays, our_rate, variance_is_oscillation),
    "workers of the largest 32-bit seed can be seeded": Proof(
        seeds_a_worker,
        lambda seed, worker: SeedManager(seed).get_worker_init_fn()(worker),
        seed_plus_worker,
    ),
    "a fork is no worker": Proof(differ, our_fork_and_worker, offsets_alike),
}
