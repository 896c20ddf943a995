"""What the enhancement modules cost, beside the reference project's algorithms and torch's own.

Run ``python benchmarks/enhancements.py [--quick] [--json]``. One JSON object a claim; a bigger
ratio is better, ``target`` is the least acceptable one, and the exit status is 1 when one is
missed. One thread; processor times, the compared calls alternating, medians (of mining the mean, so
that its rare passes over the buffer count). The reference's algorithms are those of
``reference_enhancements.py``; where a claim leans on one, ``note`` says how its time compares with
the reference's own figure, scaled to this machine, and the last line lists those that are far from
theirs.
"""

from __future__ import annotations

import os

os.environ.setdefault("POLARS_MAX_THREADS", "1")  # read when polars is imported

import argparse
import functools
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import reference_enhancements as reference
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ringrift_pipeline.enhancements import (
    AdaptiveGradientClipper,
    CheckpointAverager,
    DataQualityScorer,
    HardExampleMiner,
    PerSampleLossTracker,
    QualityWeightedSampler,
    compute_per_sample_loss,
)
from ringrift_pipeline.enhancements.calibration import calibration_report
from ringrift_pipeline.enhancements.checkpoint_averaging import average_checkpoints
from ringrift_pipeline.enhancements.checkpoint_files import write_checkpoint

NOW = 1_700_000_000.0
MILLION = 1_000_000
Claim = dict[str, Any]


def milliseconds(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return (time.process_time() - start) * 1e3


def alternating(repeats: int, *calls: Callable[[], Any]) -> list[float]:
    """Median processor time of each call, ms, after one round that is not read.

    They take turns in an order drawn anew each round: each leaves its data in the cache.
    """
    for call in calls:
        call()
    times = np.zeros((repeats, len(calls)))
    rng = np.random.default_rng(0)
    gc.collect()
    gc.disable()  # a million records would have it count them over and over
    for turn in range(repeats):
        for number in rng.permutation(len(calls)):
            times[turn, number] = milliseconds(calls[number])
    gc.enable()
    return [float(value) for value in np.median(times, axis=0)]


def claim(
    text: str, value: float, against: float, target: float, unit: str = "ms", note: str = ""
) -> Claim:
    """``against`` over ``value`` is the ratio."""
    made: Claim = {
        "claim": text,
        "value": round(value, 4),
        "unit": unit,
        "reference": round(against, 4),
        "ratio": round(against / value, 3),
        "target": round(target, 3),
    }
    return made | ({"note": note} if note else {})


@functools.cache
def yardstick() -> reference.Yardstick:
    return reference.Yardstick()


def beside_figure(name: str, measured: float) -> str:
    """How a re-creation's time compares with what the reference itself took."""
    return yardstick().beside(name, measured)


def mining(quick: bool) -> Iterator[Claim]:
    """Record 512, draw 256 hard ones, mix a batch of 512: 1M rows, 100k tracked."""
    rng = np.random.default_rng(0)
    rows = np.arange(MILLION)
    miner = HardExampleMiner(buffer_size=100_000, min_samples_before_mining=1000)
    for start in range(0, MILLION, 5000):
        miner.record_batch(rows[start : start + 5000], rng.exponential(size=5000))
    other = reference.Miner(100_000)
    for start in range(0, 100_000, 5000):
        other.record_batch(rows[start : start + 5000], rng.exponential(size=5000))
    batches = [(rng.integers(0, MILLION, 512), rng.exponential(size=512)) for _ in range(400)]

    def timed(which: HardExampleMiner | reference.Miner, batch: tuple) -> list[float]:
        return [
            milliseconds(lambda: which.record_batch(*batch)),
            milliseconds(lambda: which.get_hard_indices(256)),
            milliseconds(lambda: which.create_mixed_batch_indices(512, rows)),
        ]

    np.random.seed(0)
    for batch in batches[:50]:
        timed(miner, batch)
    ours, theirs = [], []
    for number, batch in enumerate(batches[50 : 150 if quick else 400]):
        ours.append(timed(miner, batch))
        if number % (10 if quick else 35) == 0:
            theirs.append(timed(other, batch))
    mine = np.mean(ours, axis=0)
    apart = np.median(theirs, axis=0)
    names = (
        "record a batch of 512, buffer 100k",
        "hard indices, 256 of 100k tracked",
        "mixed batch of 512, 1M rows",
    )
    notes = "; ".join(beside_figure(n, t) for n, t in zip(names, apart, strict=True))
    yield claim(
        "hard examples: record_batch + get_hard_indices + create_mixed_batch_indices, batch 512, "
        "1M rows, 100k tracked (mean of ours, its passes over the buffer included)",
        mine.sum(),
        apart.sum(),
        300.0,
        note=notes,
    )
    for name, value, against in zip(names, mine, apart, strict=True):
        yield claim(f"hard examples: {name}", value, against, 100.0)


def games(number: int) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "length": rng.integers(10, 600, number),
            "winner": rng.integers(0, 3, number),
            "elo_p1": rng.normal(1500, 100, number),
            "elo_p2": rng.normal(1500, 100, number),
            "policy_entropy": 4 * rng.random(number),
            "timestamp": NOW - 1e6 * rng.random(number),
        }
    )


def scoring(quick: bool) -> Iterator[Claim]:
    """The same six facts a game: one call each, against one expression."""
    million = games(MILLION)
    scorer, other = DataQualityScorer(), reference.Scorer()
    some = MILLION // 10  # its time does not depend on what came before
    columns = [million[name].head(some).to_list() for name in million.columns]

    def one_by_one() -> list[reference.Score]:
        return [other.score_game("g", *facts, NOW) for facts in zip(*columns, strict=True)]

    ours, tenth = alternating(
        5 if quick else 9, lambda: scorer.score_frame(million, NOW), one_by_one
    )
    theirs = tenth * 10
    yield claim(
        "quality: scoring a million games",
        ours,
        theirs,
        30.0,
        note=beside_figure("score a million games", theirs),
    )
    if quick:
        return
    sizes = (2, 5, 20)
    frames = [games(size * MILLION) for size in sizes]
    spent = alternating(3, *(lambda f=frame: scorer.score_frame(f, NOW) for frame in frames))
    each = {size: milli / size for size, milli in zip(sizes, spent, strict=True)}
    # the scores of a single million fit into memory that the process has already touched
    yield claim(
        "quality: time a game at 20 million games, against that at two million (linear)",
        each[20],
        each[2],
        0.8,  # at most 1.25 times; a gigabyte of scores is memory yet to be handed out
        unit="ns",
        note=f"{ours:.0f} ns at one million, {each[5]:.0f} ns at five",
    )


def sampling(quick: bool) -> Iterator[Claim]:
    """Build, draw and shuffle as many as there are, against torch.multinomial alone."""
    rng = np.random.default_rng(0)
    for number, repeats in ((MILLION, 7), (16 * MILLION, 3)):
        if quick and number > MILLION:
            return
        weights = rng.random(number)
        double = torch.from_numpy(weights)
        single = double.float()
        ours, faster, slower = alternating(
            repeats,
            lambda w=weights: QualityWeightedSampler(None, weights=w).draw(),
            lambda w=single, n=number: torch.multinomial(w, n, replacement=True),
            lambda w=double, n=number: torch.multinomial(w, n, replacement=True),
        )
        yield claim(
            f"quality sampler: build, draw and shuffle {number // MILLION} million of as many, "
            "against torch.multinomial in float32",
            ours,
            faster,
            4.0,
            note=f"in float64 {slower / ours:.2f} times",
        )


class Wide(nn.Module):
    """9.7 million parameters in 52 tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(432, 432) for _ in range(51))
        self.weights.append(torch.randn(9_700_000 - 51 * 432 * 432))


def averaging(quick: bool) -> Iterator[Claim]:
    torch.manual_seed(0)
    model = Wide()
    averager = CheckpointAverager(num_checkpoints=5, keep_on_disk=False)
    copies = [p.detach().clone() for p in model.parameters()]
    values = [p.detach() for p in model.parameters()]
    plain = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99), use_buffers=True)

    def checked() -> None:
        if torch.isfinite(torch.nn.utils.get_total_norm(values)):
            plain.update_parameters(model)

    unchecked, torchs, safe, torchs_safe, bare = alternating(
        40 if quick else 100,
        lambda: averager.update(model, 256, check_finite=False),
        lambda: plain.update_parameters(model),
        lambda: averager.update(model, 256),
        checked,
        lambda: torch._foreach_lerp_(copies, values, 0.01),
    )
    yield claim(
        "averaging: update() of 9.7M parameters as it is by default, refusing weights that are not "
        "finite, against torch's AveragedModel, foreach, which lets them in (0.9 is not reached: "
        "all weights have to be read before the first is averaged)",
        safe,
        torchs,
        0.5,
        note=f"torch._foreach_lerp_ alone {bare:.2f} ms",
    )
    yield claim(
        "averaging: update() of 9.7M parameters as it is by default, against AveragedModel behind "
        "torch's total norm of the weights",
        safe,
        torchs_safe,
        0.9,
    )
    yield claim(
        "averaging: update(check_finite=False) of 9.7M parameters, against torch's AveragedModel, "
        "foreach",
        unchecked,
        torchs,
        0.9,
    )
    checkpoints = []
    for _ in range(5):
        for p in values:
            p.add_(torch.randn_like(p), alpha=0.01)
        averager.add_checkpoint(model.state_dict())
        checkpoints.append({name: value.clone() for name, value in model.state_dict().items()})
    ours, theirs = alternating(
        5 if quick else 15,
        lambda: averager.get_averaged_state_dict("mean"),
        lambda: reference.mean_of_checkpoints(checkpoints),
    )
    yield claim(
        "averaging: mean of five checkpoints of 9.7M parameters in memory, against the reference's",
        ours,
        theirs,
        0.9,
        note=beside_figure("mean of five checkpoints, 9.7M parameters", theirs),
    )
    if sys.platform != "linux":
        return
    size = 4 * 9.7
    for what, text in (
        ("files", "the mean of five checkpoint files of 9.7M parameters"),
        ("ema", "the EMA of 9.7M parameters, ten updates"),
    ):
        peak = memory_of(what)
        yield claim(
            f"averaging: peak memory of {text}, against one copy of the weights",
            peak,
            size,
            1 / 1.1,
            unit="MB",
        )


def memory_of(what: str) -> float:
    """Most memory (MB, resident) that a fresh process takes on while it averages."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(5 if what == "files" else 0):
            write_checkpoint(Path(folder) / f"wide{number}.safetensors", dict(Wide().state_dict()))
        command = [sys.executable, __file__, "--memory-of", what, folder]
        found = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(found.stdout)


def resident(field: str) -> float:
    """A line of /proc/self/status, MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1000 * 1.024
    raise RuntimeError(f"/proc/self/status has no {field}")


def measure_memory(what: str, folder: Path) -> float:
    """Runs in a process of its own; see ``memory_of``."""
    torch.set_num_threads(1)
    small = nn.Linear(4, 4)  # what is loaded at first use does not count
    CheckpointAverager(keep_on_disk=False).update(small, 1)
    write_checkpoint(folder / "small.safetensors", dict(small.state_dict()))
    average_checkpoints([folder / "small.safetensors"] * 2)
    if what == "ema":
        model = Wide()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = resident("VmRSS")
    if what == "files":
        kept: Any = average_checkpoints(sorted(folder.glob("wide*")))
    else:
        kept = CheckpointAverager()
        for _ in range(10):
            kept.update(model, 256)
    peak = resident("VmHWM") - before
    del kept
    return peak


def calibration(quick: bool) -> Iterator[Claim]:
    rng = np.random.default_rng(0)
    predictions = rng.random(MILLION)
    outcomes = (rng.random(MILLION) < predictions).astype(np.float64)
    games_of = np.repeat(np.arange(25_000), 40)
    signed = 2 * predictions - 1, 2 * outcomes - 1
    ours, theirs = alternating(
        3 if quick else 9,
        lambda: calibration_report(predictions, outcomes, games_of, bootstrap=200),
        lambda: reference.calibration_error(*signed),
    )
    yield claim(
        "calibration: report of 25,000 games x 40 positions with a bootstrap of 200 over games "
        "(error, Brier, log loss, each with interval), against the bare error",
        ours,
        theirs,
        1 / 3,
        note=beside_figure("calibration error, 1M predictions", theirs),
    )


def clipping(quick: bool) -> Iterator[Claim]:
    """With nothing to clip, where torch multiplies all the same, and with every tensor clipped."""
    torch.manual_seed(0)
    parameters: list[Tensor] = list(Wide().parameters())
    sizes = [1e-3 * torch.randn_like(parameter) for parameter in parameters]
    about = "9.7M parameters in 52 tensors"
    for all_over in (False, True):
        # bounds of a thousandth of the norms, or of many times them
        bound = 1e-4 if all_over else 10.0
        clipper = AdaptiveGradientClipper(bound, min_clip=1e-6, max_clip=bound)
        other = reference.Clipper()
        calls: tuple[Callable[[], Any], ...] = (
            lambda c=clipper: c.update_and_clip(parameters),
            lambda b=bound: torch.nn.utils.clip_grad_norm_(parameters, b),
            lambda c=other: c.update_and_clip(parameters),
        )
        ours, bare, theirs = fresh_each_time(30 if quick else 100, parameters, sizes, *calls)
        fraction = clipper.get_stats()["clipped_fraction"]
        if fraction != all_over:
            raise RuntimeError(f"{fraction} of the steps were clipped, {float(all_over)} meant")
        which = "every tensor clipped" if all_over else "none clipped"
        yield claim(
            f"clipping: per parameter, {about}, {which}, against torch.nn.utils.clip_grad_norm_",
            ours,
            bare,
            1 / 1.2,
            note="" if all_over else beside_figure(f"clip_grad_norm_, {about}", bare),
        )
        yield claim(
            f"clipping: per parameter, {about}, {which}, against the reference's adaptive clipper",
            ours,
            theirs,
            1.0,
            note="" if all_over else beside_figure(f"clipper, {about}", theirs),
        )


def fresh_each_time(
    repeats: int, parameters: list[Tensor], sizes: list[Tensor], *calls: Callable[[], Any]
) -> list[float]:
    """As ``alternating``, every call on gradients put back to ``sizes``, which is not timed."""
    for parameter, size in zip(parameters, sizes, strict=True):
        parameter.grad = size.clone()
    gradients = [parameter.grad for parameter in parameters]
    times = np.zeros((repeats + 1, len(calls)))
    rng = np.random.default_rng(0)
    for turn in range(repeats + 1):
        for number in rng.permutation(len(calls)):
            torch._foreach_copy_(gradients, sizes)
            times[turn, number] = milliseconds(calls[number])
    return [float(value) for value in np.median(times[1:], axis=0)]


def losses(quick: bool) -> Iterator[Claim]:
    torch.manual_seed(0)
    logits, value = torch.randn(512, 7000), torch.randn(512)
    targets, outcome = torch.randn(512, 7000).softmax(dim=1), 2 * torch.rand(512) - 1
    arguments = logits, targets, value, outcome
    ours, theirs = alternating(
        10 if quick else 40,
        lambda: compute_per_sample_loss(*arguments),
        lambda: reference.per_sample_loss(*arguments),
    )
    yield claim(
        "per-sample loss: 512 x 7,000 dense targets, checked and safe for masked logits",
        ours,
        theirs,
        0.6,
        note=beside_figure("per-sample loss, 512 x 7,000", theirs),
    )
    rng = np.random.default_rng(0)
    batches = [torch.from_numpy(rng.integers(0, MILLION, 512)) for _ in range(64)]
    numbers = torch.rand(512)
    tracker, other = PerSampleLossTracker(10_000), reference.Tracker(10_000)
    turn = iter(range(10**9))

    def record(which: PerSampleLossTracker | reference.Tracker) -> None:
        which.record_batch(batches[next(turn) % 64], numbers, 0)

    for _ in range(50):
        record(tracker)
        record(other)
    ours, theirs = alternating(300, lambda: record(tracker), lambda: record(other))
    yield claim(
        "loss tracker: record 512 of 1M rows, history and learning curves kept",
        ours,
        theirs,
        1.0,
        note=beside_figure("tracker, record 512", theirs),
    )


PARTS = (mining, scoring, sampling, averaging, calibration, clipping, losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats, no large sets")
    parser.add_argument("--json", action="store_true", help="only the JSON lines")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(measure_memory(arguments.memory_of[0], Path(arguments.memory_of[1])))
        return
    torch.set_num_threads(1)
    if not arguments.json:
        print("processor time of one thread; compared calls alternate; medians")
    missed = 0
    for part in PARTS:
        for made in part(arguments.quick):
            print(json.dumps(made), flush=True)
            missed += made["ratio"] < made["target"]
    print(json.dumps({"check": yardstick().verdict()}) if arguments.json else yardstick().verdict())
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()
