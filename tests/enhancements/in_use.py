"""Every stateful enhancement with a use of its own, for the tests of bad input and of resuming.

A `Use` makes the things that a run consists of (the enhancement, and the model and optimizer it
works on) and drives them from one step to another. What happens in a step depends on its number
and on the things' state alone, so a run that was saved, loaded and driven on must leave the same
trail as one that never stopped.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ringrift_pipeline.enhancements import (
    AdaptiveGradientClipper,
    AdaptiveLRScheduler,
    CalibrationAutomation,
    CheckpointAverager,
    DataQualityScorer,
    EvaluationFeedbackHandler,
    EWCRegularizer,
    FacadeConfig,
    GradientAccumulator,
    HardExampleMiner,
    ModelEnsemble,
    PerSampleLossTracker,
    QualityWeightedSampler,
    SeedManager,
    TrainingConfig,
    TrainingEnhancementsFacade,
    WarmRestartsScheduler,
)
from ringrift_pipeline.enhancements.batch_measures import read_measures
from ringrift_pipeline.enhancements.draw_counts import DrawCounts
from ringrift_pipeline.enhancements.facade_recovery import Recovery
from ringrift_pipeline.enhancements.learning_rate_scheduling import ConstantScheduler
from ringrift_pipeline.enhancements.sample_slots import SampleSlots
from ringrift_pipeline.enhancements.tracked_examples import TrackedExamples
from ringrift_pipeline.enhancements.training_stability import LossMonitor, Snapshot
from ringrift_pipeline.enhancements.training_statistics import TrainingProgress

from .small_training import (
    BATCH,
    ROWS,
    Net,
    Things,
    Trail,
    adam,
    make_batch,
    model_and_optimizer,
    plain_loss,
    weights_of,
)

# One pair of functions a use: what there is, and what a step does with it. `seed` changes what a
# state has to bring along (weights, generators), `folder` is for files.


class Gradients:
    """The gradients of an unfinished group, which are the caller's to keep."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def state_dict(self) -> dict[str, Any]:
        gradients = {n: p.grad for n, p in self.model.named_parameters()}
        return {n: None if g is None else g.clone() for n, g in gradients.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.grad = None if state[name] is None else state[name].clone()


def new_accumulator(seed: int, folder: Path) -> Things:
    things = model_and_optimizer(seed)
    it = GradientAccumulator(3, 0.5, batch_size=BATCH)
    return {"it": it, **things, "gradients": Gradients(things["model"])}


def drive_accumulator(things: Things, step: int) -> Any:
    """A batch a step; groups of three, but for those that a batch 6, 13 or 20 ends early."""
    it, model = things["it"], things["model"]
    it.scale_loss(plain_loss(model, step), BATCH + step % 4).backward()
    if step == 8:
        model.body.weight.grad[0, 0] = torch.nan
    stepped = it.should_step() or step % 7 == 6
    norm = it.step(things["optimizer"], model) if stepped else None
    return norm, it.pending_batches, it.steps, it.skipped_steps, weights_of(model)


def new_clipper(mode: Any) -> Callable[[int, Path], Things]:
    def new(seed: int, folder: Path) -> Things:
        it = AdaptiveGradientClipper(0.3, 60.0, 6, 0.01, 5.0, mode=mode, clip_factor=1.1)
        return {"it": it, **model_and_optimizer(seed)}

    return new


def drive_clipper(things: Things, step: int) -> Any:
    model, optimizer = things["model"], things["optimizer"]
    optimizer.zero_grad()
    (plain_loss(model, step) * (1.0 + step % 4)).backward()
    if step == 9:
        model.body.weight.grad[0, 0] = torch.inf
    norm = things["it"].update_and_clip(model.parameters())
    optimizer.step()
    return norm, things["it"].get_stats()


def new_adaptive(seed: int, folder: Path) -> Things:
    things = model_and_optimizer(seed)
    it = AdaptiveLRScheduler(things["optimizer"], 0.01, 1e-5, 0.1, 3, 4, warmup_epochs=2)
    return {"it": it, **things}


def drive_adaptive(things: Things, step: int) -> Any:
    loss = 1.0 + 0.5 * (step % 2) if step > 8 else 1.0 / (step + 1)
    if step == 10:
        things["it"].scale_lr(0.5)
    if step == 18:
        things["it"].warm_restart(0.7)
    things["it"].step(loss, 1200.0 + 9.0 * (step % 5), 0.8 + 0.01 * step)
    return things["it"].get_last_lr(), things["it"].last_reason


def new_warm(seed: int, folder: Path) -> Things:
    things = model_and_optimizer(seed)
    return {"it": WarmRestartsScheduler(things["optimizer"], 5, 2, 1e-5, warmup_steps=3), **things}


def new_constant(seed: int, folder: Path) -> Things:
    things = model_and_optimizer(seed)
    return {"it": ConstantScheduler(things["optimizer"], warmup_steps=15), **things}


def drive_schedule(things: Things, step: int) -> Any:
    if step == 4:
        things["it"].scale_lr(0.3)
    things["it"].on_optimizer_step()
    things["optimizer"].zero_grad()
    plain_loss(things["model"], step).backward()
    things["optimizer"].step()
    return things["it"].get_last_lr(), weights_of(things["model"])


def new_calibration(seed: int, folder: Path) -> Things:
    it = CalibrationAutomation(0.02, 3, 20, 60, min_games=2, bins=5, bootstrap=20)
    return {"it": it, "model": Net(seed)}


def drive_calibration(things: Things, step: int) -> Any:
    it = things["it"]
    rng = np.random.default_rng([step, 3])
    p = rng.random(10)
    y = (rng.random(10) < p**3).astype(float)
    it.add_samples(
        p, y, rng.integers(4, size=10), np.array(["open", "end"])[rng.integers(2, size=10)]
    )
    if step == 4:
        logits = np.log(p / (1 - p))
        it.compute_optimal_temperature(logits, y, games=np.arange(10) // 2)
    called = it.should_recalibrate()
    fit = None if it.temperature_fit is None else it.temperature_fit.to_dict()
    return called, it.get_calibration_history(), it.num_samples, fit


def new_averager(on_disk: bool) -> Callable[[int, Path], Things]:
    def new(seed: int, folder: Path) -> Things:
        it = CheckpointAverager(3, folder if on_disk else None, on_disk, half_life_samples=40.0)
        return {"it": it, **model_and_optimizer(seed)}

    return new


def drive_averager(things: Things, step: int) -> Any:
    it, model = things["it"], things["model"]
    things["optimizer"].zero_grad()
    plain_loss(model, step).backward()
    things["optimizer"].step()
    it.update(model, BATCH)
    if step % 2 == 0 or it.num_stored == 0:
        it.add_checkpoint(model.state_dict(), step)
    mean = it.get_averaged_state_dict("mean")
    return it.samples_seen, it.num_stored, it.get_averaged_state_dict("ema"), mean


def new_scorer(seed: int, folder: Path) -> Things:
    ours = {
        "min_game_length": 10.0,
        "max_elo_diff": 200.0,
        "weights": {"length": 1.0, "balance": 3.0},
    }
    return {"it": DataQualityScorer(**(ours if seed == 0 else {}))}


def drive_scorer(things: Things, step: int) -> Any:
    score = things["it"].score_game(f"g{step}", 30 + 9 * step, 1, 1200.0, 1210.0 + step, 1.5, 0.0)
    return score.to_dict() | {"game_id": "", "freshness_score": 0.0, "total_score": 0.0}


class SamplerWalk:
    """Takes a few indices of a sampler a step, epoch after epoch, and knows how many."""

    def __init__(self, sampler: QualityWeightedSampler) -> None:
        self.sampler = sampler
        self.taken = 0
        self.rest = iter(sampler)

    def take(self, number: int) -> list[int]:
        found: list[int] = []
        while len(found) < number:
            index = next(self.rest, None)
            if index is None:
                self.sampler.set_epoch(self.sampler.epoch + 1)
                self.rest, self.taken = iter(self.sampler), 0
            else:
                found.append(index)
                self.taken += 1
        return found

    def state_dict(self) -> dict[str, Any]:
        return self.sampler.state_dict(self.taken)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state)
        self.taken = int(state["offset"])
        self.rest = iter(self.sampler)


def new_sampler(seed: int, folder: Path) -> Things:
    scores = np.linspace(0.1, 1.0, 20)
    return {"it": SamplerWalk(QualityWeightedSampler(scores, 30, seed=seed, world_size=2))}


def drive_sampler(things: Things, step: int) -> Any:
    return things["it"].take(7)


def new_miner(seed: int, folder: Path) -> Things:
    it = HardExampleMiner(
        16, 0.5, 50.0, 0.3, 0.9, 16, 4, surprise_weight=0.2, max_game_share=0.5, seed=seed
    )
    return {"it": it}


def drive_miner(things: Things, step: int) -> Any:
    it, rng = things["it"], np.random.default_rng([step, 5])
    rows = rng.choice(ROWS, BATCH, replace=False)
    if step == 3:
        it.load_examples(rows, rng.random(BATCH), rows // 4)
    losses = rng.random(BATCH)
    losses[0] = np.nan if step % 5 == 0 else losses[0]
    it.record_batch(
        rows, losses, rng.random(BATCH), surprises=rng.random(BATCH), reference_losses=losses / 2,
        games=rows // 4,
    )  # fmt: skip
    return (
        it.get_hard_indices(3, return_scores=True),
        it.create_mixed_batch_indices(6, ROWS),
        it.get_sample_weights(rows, count=True),
        it.hardest(4),
        it.get_statistics(),
    )


def new_tracker(seed: int, folder: Path) -> Things:
    return {"it": PerSampleLossTracker(20, 3, 80.0)}


def drive_tracker(things: Things, step: int) -> Any:
    it, rng = things["it"], np.random.default_rng([step, 6])
    rows = rng.choice(40, BATCH, replace=False)
    losses = rng.random(BATCH) / (1 + step % 7)
    it.record_batch(
        rows, losses, step // 4, step % 4, policy_losses=losses / 2, value_losses=losses
    )
    if step % 4 == 3:
        it.reset_epoch()
    seen = [(it.get_sample_history(row), it.get_record(row)) for row in range(40)]
    return seen, it.get_statistics(), it.get_hardest_samples(5), it.learning_curves()


def new_ensemble(seed: int, folder: Path) -> Things:
    it = ModelEnsemble(Net, device="cpu", seed=seed)
    for member in range(3):
        it.add_model(Net(seed + member), 1.0 + member, f"m{member}")
    return {"it": it}


def drive_ensemble(things: Things, step: int) -> Any:
    it = things["it"]
    _, name = it.sample_model(mode="pfsp" if step % 2 else "weight")
    it.record_result(name, 0.5 + 0.5 * (step % 2))
    it.update_weight("m1", 1.0 + step % 3)
    predicted = it.predict(make_batch(step)["features"])
    return name, predicted.policy_log_probs, predicted.value, it.pfsp_priorities(), it.weights


def new_ewc(seed: int, folder: Path) -> Things:
    things = model_and_optimizer(seed)
    return {"it": EWCRegularizer(things["model"], 3.0, gamma=0.8, seed=seed), **things}


def drive_ewc(things: Things, step: int) -> Any:
    it, model = things["it"], things["model"]
    if step in (2, 5, 15):
        it.compute_fisher([make_batch(step)], num_samples=BATCH)
    things["optimizer"].zero_grad()
    loss = plain_loss(model, step) + it.penalty(model)
    loss.backward()
    things["optimizer"].step()
    return loss, it.tasks, it.fisher, it.anchors


def new_feedback(seed: int, folder: Path) -> Things:
    things = model_and_optimizer(seed)
    it = EvaluationFeedbackHandler(things["optimizer"], "square8_2p", 1e-5, 0.1, 4)
    return {"it": it, **things}


def drive_feedback(things: Things, step: int) -> Any:
    it = things["it"]
    elo = 1200.0 + 40.0 * abs(step % 12 - 6)  # falls and rises
    it.on_evaluation(f"e{step}", elo, elo - 15.0, elo + 15.0)
    again = it.on_evaluation(f"e{step // 2}", 0.0, -1.0, 1.0)
    return it.apply_lr_adjustment(step), again, it.get_status()


def new_tracked(seed: int, folder: Path) -> Things:
    return {"it": TrackedExamples(20, 0.5, 0.3, 0.2)}


def drive_tracked(things: Things, step: int) -> Any:
    it, rng = things["it"], np.random.default_rng(step)
    rows = rng.choice(ROWS, BATCH, replace=False)
    slots, _ = it.claim(rows)
    losses = rng.random(BATCH)
    shown = read_measures(rows, losses, losses / 2, rows // 4, {2: (rng.random(BATCH), "values")})
    it.record(slots, shown, step, 0.01 * step)
    return it.kept(), it.slots.index_of[it.kept()], it.measures[slots], it.facts[slots]


def new_counts(seed: int, folder: Path) -> Things:
    return {"it": DrawCounts()}


def drive_counts(things: Things, step: int) -> Any:
    rows = np.random.default_rng(step).integers(0, 3 * ROWS, BATCH)
    things["it"].add(rows)
    return things["it"].of(np.arange(3 * ROWS))


def new_seeds(seed: int, folder: Path) -> Things:
    it = SeedManager(11 + seed).fork(2)
    it.set_global_seed()
    return {"it": it}


def drive_seeds(things: Things, step: int) -> Any:
    it = things["it"]
    it.advance()
    drawn = (random.random(), np.random.normal(), torch.rand(2))
    return drawn, it.get_numpy_generator(step).random(), torch.rand(2, generator=it.get_generator())


def new_monitor(seed: int, folder: Path) -> Things:
    return {"it": LossMonitor(2.0, 6, 2)}


def drive_monitor(things: Things, step: int) -> Any:
    loss = {7: 50.0, 11: float("nan"), 12: 60.0}.get(step, 1.0 + 0.1 * (step % 3))
    return things["it"].judge(loss), things["it"].median, things["it"].healthy


def new_snapshot(seed: int, folder: Path) -> Things:
    things = model_and_optimizer(seed)
    return {"it": Snapshot(things["model"], things["optimizer"]), **things}


def drive_snapshot(things: Things, step: int) -> Any:
    if step == 4:
        things["it"].take()
    if step == 13 and things["it"].taken:
        things["it"].restore()
    things["optimizer"].zero_grad()
    plain_loss(things["model"], step).backward()
    things["optimizer"].step()
    return weights_of(things["model"])


def new_recovery(seed: int, folder: Path) -> Things:
    things = model_and_optimizer(seed)
    monitor = LossMonitor(window=5)
    snapshot = Snapshot(things["model"], things["optimizer"])
    return {"it": Recovery(snapshot, None, monitor, 4), "monitor": monitor, **things}


def drive_recovery(things: Things, step: int) -> Any:
    recovery = things["it"]
    things["monitor"].judge(1.0 + 0.1 * step)
    back = None
    if step in (7, 13) and recovery.ready:
        back = recovery.restore()
    recovery.keep_if_due(step, [step, 8 * step])
    things["optimizer"].zero_grad()
    plain_loss(things["model"], step).backward()
    things["optimizer"].step()
    recovery.count_step()
    return back, weights_of(things["model"])


def new_progress(seed: int, folder: Path) -> Things:
    return {"it": TrainingProgress()}


def drive_progress(things: Things, step: int) -> Any:
    it = things["it"]
    it.add_step(np.random.default_rng(step).random((4, BATCH)))
    if step % 4 == 3:
        it.add_skip()
        it.add_validation(1.0 / (1 + step % 6), 2, 0.0)
        it.begin_epoch()
    return repr(it.statistics())


def new_slots(seed: int, folder: Path) -> Things:
    return {"it": SampleSlots(8)}


def drive_slots(things: Things, step: int) -> Any:
    it = things["it"]
    if it.room == 0:
        it.release(it.used()[:: 2 + step % 3])
    return it.assign(np.array([100 * step])), it.lookup(np.arange(0, 3000, 100)), it.used()


EVERYTHING: dict[str, Any] = {
    "gradient_accumulation_steps": 2,
    "max_grad_norm": 0.5,
    "enable_curriculum_lr": True,
    "total_steps": 40,
    "hard_min_samples_before_mining": 16,
    "hard_buffer_size": 20,
    "hard_max_times_sampled": 5,
    "hard_max_game_share": 0.5,
    "loss_tracker_max_samples": 30,
    "averaging_half_life_samples": 64.0,
    "averaging_interval": 3,
    "anomaly_window": 5,
    "divergence_patience": 2,
    "snapshot_every": 3,
    "early_stopping_patience": 3,
}


def new_facade(seed: int, folder: Path) -> Things:
    model = Net(seed, dropout=0.2)
    schedule = TrainingConfig.from_dict({"schedule.T_0": 7, "schedule.warmup_steps": 3}).schedule
    ewc = EWCRegularizer(model, 0.5)
    ewc.compute_fisher([make_batch(99 + seed)], num_samples=BATCH)
    facade = TrainingEnhancementsFacade(
        model=model,
        optimizer=adam(model),
        config=FacadeConfig(schedule=schedule, seed=seed, **EVERYTHING),
        ewc=ewc,
    )
    facade.set_quality_scores(np.linspace(0.2, 1.0, ROWS))
    torch.manual_seed(seed)
    return {"it": facade}


def drive_facade(things: Things, step: int) -> Any:
    facade = things["it"]
    rows = facade.create_mixed_batch_indices(BATCH, ROWS)
    batch = make_batch(step) | {"indices": rows, "games": rows // 4}
    if step in (12, 13, 14, 15):  # two bad steps in a row: a divergence
        batch["features"] = batch["features"] * torch.nan
    stats = facade.train_step(batch).as_dict()
    epoch = repr(facade.on_epoch_end(1.0 / (step + 1))) if step % 6 == 5 else None
    return rows, stats, epoch, facade.get_hard_indices(2), facade.get_hardest_samples(3)


@dataclass(frozen=True)
class Use:
    """How an enhancement is used; `things["it"]` is the enhancement, of class `owner`."""

    owner: str
    new: Callable[[int, Path], Things]
    step: Callable[[Things, int], Any]

    def drive(self, things: Things, start: int, stop: int) -> Trail:
        return [self.step(things, step) for step in range(start, stop)]


USES: dict[str, Use] = {
    "accumulator": Use("GradientAccumulator", new_accumulator, drive_accumulator),
    "clipper-parameter": Use("AdaptiveGradientClipper", new_clipper("parameter"), drive_clipper),
    "clipper-agc": Use("AdaptiveGradientClipper", new_clipper("agc"), drive_clipper),
    "clipper-global": Use("AdaptiveGradientClipper", new_clipper("global"), drive_clipper),
    "adaptive": Use("AdaptiveLRScheduler", new_adaptive, drive_adaptive),
    "warm-restarts": Use("WarmRestartsScheduler", new_warm, drive_schedule),
    "constant": Use("ConstantScheduler", new_constant, drive_schedule),
    "calibration": Use("CalibrationAutomation", new_calibration, drive_calibration),
    "averager-memory": Use("CheckpointAverager", new_averager(False), drive_averager),
    "averager-disk": Use("CheckpointAverager", new_averager(True), drive_averager),
    "scorer": Use("DataQualityScorer", new_scorer, drive_scorer),
    "sampler": Use("QualityWeightedSampler", new_sampler, drive_sampler),
    "miner": Use("HardExampleMiner", new_miner, drive_miner),
    "tracker": Use("PerSampleLossTracker", new_tracker, drive_tracker),
    "ensemble": Use("ModelEnsemble", new_ensemble, drive_ensemble),
    "ewc": Use("EWCRegularizer", new_ewc, drive_ewc),
    "feedback": Use("EvaluationFeedbackHandler", new_feedback, drive_feedback),
    "tracked": Use("TrackedExamples", new_tracked, drive_tracked),
    "counts": Use("DrawCounts", new_counts, drive_counts),
    "seeds": Use("SeedManager", new_seeds, drive_seeds),
    "monitor": Use("LossMonitor", new_monitor, drive_monitor),
    "snapshot": Use("Snapshot", new_snapshot, drive_snapshot),
    "recovery": Use("Recovery", new_recovery, drive_recovery),
    "progress": Use("TrainingProgress", new_progress, drive_progress),
    "slots": Use("SampleSlots", new_slots, drive_slots),
    "facade": Use("TrainingEnhancementsFacade", new_facade, drive_facade),
}
