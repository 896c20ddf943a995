"""What each choice of the learning buys: the same shards, the same small budget, paired seeds.

    python benchmarks/learning.py [--quick] [--json] [--data DIR] [--config square8_2p] [--seeds N]
        [--steps N] [--only NAME,…] [--fresh] [--workers 0]

One JSON object a choice and measure; a bigger ratio is better, ``target`` 1 is "no worse".

``--data`` names the folder of a loop, whose newest generation is trained once more; without it
two small generations are played first. As in an ablation, every run starts from the generation's
parent (``--fresh``: from fresh weights) and reads its window less some games that judge, by the
search's policy and by the games' outcomes. A run with a choice is compared with that of the same
seed without; the interval (95%) is that of the mean difference, over games and over seeds
(``evaluation/paired_differences.py``). A verdict is beyond doubt among all differences of the call
(Holm). Everything that is not under test is off. "The window" is here whole generations, from the oldest
that the plan's window has a shard of. The generation's window in ``--data`` is one of all games
afterwards; a training makes its own anew.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from numpy.typing import NDArray

from ringrift_pipeline.enhancements import TrainingConfig
from ringrift_pipeline.evaluation.ablation_runs import split_window
from ringrift_pipeline.evaluation.paired_differences import difference_of_means, holm
from ringrift_pipeline.evaluation.processes import work_through
from ringrift_pipeline.game import CONFIGS
from ringrift_pipeline.network import load_model
from ringrift_pipeline.selfplay import Plan, load_plan, plan_generation, play_shards
from ringrift_pipeline.selfplay.windowing import window_of
from ringrift_pipeline.store import Store
from ringrift_pipeline.training import WindowDataset, average, build_window, open_window, train
from ringrift_pipeline.training.judging import by_game, by_network, row_losses
from ringrift_pipeline.training.run import TrainingRun
from ringrift_pipeline.training.trial import train_trial

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STEPS, QUICK_STEPS = 800, 20
ENOUGH = 1e6  # sample reuse that leaves the number of steps to ``training.max_steps``

# Everything under test is off.
PLAIN: dict[str, Any] = {
    "quality.enabled": False,
    "mining.enabled": False,
    "training.threads": 1,
    "training.precision": "bfloat16",
    "training.early_stopping_patience": 0,
    "training.sample_reuse": ENOUGH,
    "training.augmentation": False,
    "training.surprise_share": 0.0,
    "training.search_value_share": 0.0,
    "training.territory_weight": 0.0,
    "training.margin_weight": 0.0,
    "finetune.ewc_weight": 0.0,
    "feedback.rate_factor": 1.0,
}
# Of the two generations that are played where there is no data.
SIZES: dict[str, Any] = {
    "selfplay.games": 400,
    "selfplay.games_per_shard": 50,
    "selfplay.parallel_games": 50,
    "selfplay.full_search_fraction": 0.4,
    "search.simulations": 32,
    "search.cheap_simulations": 8,
    "network.blocks": 4,
    "network.channels": 32,
}
QUICK: dict[str, Any] = {
    "selfplay.games": 40,
    "selfplay.games_per_shard": 20,
    "selfplay.parallel_games": 20,
    "search.simulations": 8,
    "search.cheap_simulations": 4,
    "network.blocks": 2,
    "network.channels": 16,
}


@dataclasses.dataclass(frozen=True)
class Choice:
    """Settings to change, times the steps, and how many of the newest generations to read; 0 is
    what the plan's window holds, `EVERY` all there are.
    """

    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    steps: float = 1.0
    generations: int = 0


EVERY = 1_000_000
TURNED = {"training.augmentation": True}
CHOICES: dict[str, Choice] = {
    "symmetries, a random one a row": Choice(TURNED),
    "newest generation alone": Choice(generations=1),
    "newest two generations": Choice(generations=2),
    "every generation": Choice(generations=EVERY),
    "half the steps": Choice(steps=0.5),
    "twice the steps": Choice(steps=2.0),
    "symmetries and twice the steps": Choice(TURNED, steps=2.0),
    "half the learning rate": Choice({"feedback.rate_factor": 0.5}),
    "twice the learning rate": Choice({"feedback.rate_factor": 2.0}),
    "batches of 512, half the steps": Choice({"training.batch_size": 512}, steps=0.5),
    "policy weighs four times": Choice({"training.policy_weight": 4.0}),
    "policy half by surprise": Choice({"training.surprise_share": 0.5}),
    "value 1/2 by search": Choice({"training.search_value_share": 0.5}),
    "territory head, 0.5": Choice({"training.territory_weight": 0.5}),
    "margin head, 0.5": Choice({"training.margin_weight": 0.5}),
    "float32 (for bfloat16)": Choice({"training.precision": "float32"}),
}
NOTHING = "nothing on"
MEASURES = ("policy loss", "value log loss")
SYMMETRIC = "evaluation averaged over symmetries"


@dataclasses.dataclass(frozen=True)
class Job:
    """One run."""

    name: str
    seed: int
    steps: int
    symmetric: bool  # judge it averaged over the symmetries, too


@dataclasses.dataclass(frozen=True)
class Result:
    """(2, G) losses of the games that judge, and the speed."""

    losses: NDArray[np.float64]
    turned: NDArray[np.float64] | None
    rows_per_s: float


class Results:
    """Where the runs come back to; ``more`` is what is said of a result besides."""

    def __init__(self, runs: int, say: Any, more: Any = lambda _: "") -> None:
        self.runs, self.say, self.more = runs, say, more
        self.of: dict[Any, Any] = {}

    def wanted(self, job: Any) -> bool:
        return True

    def land(self, job: Any, result: Any) -> None:
        self.of[job] = result
        done = f"{len(self.of)}/{self.runs}: {job.name}, seed {job.seed}"
        self.say(f"{done}{self.more(result)}")

    def hear(self, message: Any) -> None:
        pass

    def check(self) -> None:
        pass


def prepared(store: Store, config: str, sizes: dict[str, Any]) -> None:
    """Two small generations: the heuristic's games, a network trained on them, its own games."""
    settings = TrainingConfig().with_overrides(
        {**PLAIN, **TURNED, **sizes, "training.sample_reuse": 4.0, "device": "cpu"}
    )
    first = plan_generation(store, config, 0, settings, NOW)
    play_shards(store, first)
    train(store, first)
    candidate = average(store, first)
    store.promote(config, 0, candidate, {"benchmark": True})
    play_shards(store, plan_generation(store, config, 1, settings, NOW + timedelta(hours=1)))


def newest(store: Store, config: str) -> Plan:
    """The plan of the newest generation that was played to its end."""
    for generation in sorted(store.generations(config), reverse=True):
        plan = load_plan(store, config, generation)
        kinds = (f"selfplay-shard-{index:04d}" for index in range(len(plan.shards)))
        if all(store.current(config, generation, kind) is not None for kind in kinds):
            return plan
    raise SystemExit(f"{store.root} has no generation of {config} that was played to its end")


def everything(store: Store, plan: Plan) -> Plan:
    """The plan, with all earlier games in its window."""
    settings = plan.settings.with_overrides({"training.window_games": EVERY})
    window, *_ = window_of(store, plan.config, plan.generation, plan.games, settings)
    return Plan.from_dict({**plan.raw, "window": window})


def work(root: Path, config: str, fresh: bool, job: Job) -> Result:
    """Train and judge one run, in one thread."""
    torch.set_num_threads(1)
    store = Store(root)
    plan = newest(store, config)
    window = open_window(build_window(store, everything(store, plan)).path)
    split = split_window(window, plan)
    choice = CHOICES.get(job.name, Choice())
    usual = min([plan.generation, *(entry["generation"] for entry in plan.window)])
    oldest = plan.generation - choice.generations + 1 if choice.generations else usual
    too_old = window.generation < oldest
    trained_on = dataclasses.replace(split.window, holdout=split.window.holdout | too_old)
    validation = split.validation[window.generation[split.validation] >= usual]
    parent = None if fresh or plan.parent is None else load_model(store.root / plan.parent["path"])
    steps = max(1, round(choice.steps * job.steps))
    began = 0.0, 0

    def before(run: TrainingRun) -> None:
        """Speed is that after a quarter of the run: what a process does once is then done."""
        nonlocal began
        if run.iteration == steps // 4:
            began = time.process_time(), run.samples

    changes = {**PLAIN, **choice.changes, "training.max_steps": steps}
    run = train_trial(
        plan,
        trained_on,
        changes,
        job.seed,
        parent=parent,
        validation=validation,
        before_step=before,
    )
    rate = (run.samples - began[1]) / (time.process_time() - began[0])
    model, dataset = run.best_model(), WindowDataset(split.window)
    games = window.game[split.judges]

    def judged(symmetries: int) -> NDArray[np.float64]:
        losses = row_losses(by_network(model), dataset, split.judges, symmetries)
        return np.stack([by_game(losses.policy, games), by_game(losses.value, games)])

    turned = judged(dataset.symmetries) if job.symmetric else None
    return Result(judged(1), turned, rate)


def claims(arguments: argparse.Namespace, root: Path, say: Any) -> Iterator[dict[str, Any]]:
    config, seeds = arguments.config, 2 if arguments.quick else arguments.seeds
    store = Store(root)
    if not store.generations(config):
        prepared(store, config, SIZES | (QUICK if arguments.quick else {}))
    plan = newest(store, config)
    build_window(store, everything(store, plan))
    steps = arguments.steps or (QUICK_STEPS if arguments.quick else STEPS)
    wanted = [name for name in CHOICES if any(part in name for part in arguments.only)]
    symmetric = any(part in SYMMETRIC for part in arguments.only)
    jobs = [
        Job(name, seed, steps, symmetric and name == NOTHING)
        for name in (NOTHING, *wanted)
        for seed in range(seeds)
    ]
    say(f"{config} generation {plan.generation:04d}: {len(jobs)} runs of {steps} steps")
    desk = Results(len(jobs), say, lambda result: f", {result.rows_per_s:.0f} rows/s")
    workers = arguments.workers or os.cpu_count() or 1
    once = partial(work, root, config, arguments.fresh)
    work_through(jobs, once, workers, desk, silence=math.inf)  # it tells nothing before it is done
    results = desk.of

    def losses(name: str) -> NDArray[np.float64]:
        return np.stack([results[job].losses for job in jobs if job.name == name], axis=1)

    def speed(name: str) -> float:
        return float(np.mean([results[job].rows_per_s for job in jobs if job.name == name]))

    base = losses(NOTHING)  # (2, seeds, games)
    found: list[dict[str, Any]] = []
    for name in wanted:
        found += compared(name, losses(name), base, speed(name) / speed(NOTHING))
    if symmetric:
        turned = [results[job].turned for job in jobs if job.name == NOTHING]
        found += compared(SYMMETRIC, np.stack([t for t in turned if t is not None], 1), base)
    yield from with_verdicts(found)


def with_verdicts(found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The claims of a call with their verdicts, corrected for how many there are."""
    for claim, p in zip(found, holm([claim["p"] for claim in found]), strict=True):
        better = "better" if claim["difference"] < 0 else "worse"
        yield claim | {"p_corrected": p, "verdict": better if p < 0.05 else "undecided"}


def compared(
    name: str, ours: NDArray[np.float64], base: NDArray[np.float64], speed: float | None = None
) -> Iterator[dict[str, Any]]:
    """A claim for each measure, yet without a verdict; arrays are (2, seeds, games)."""
    for number, measure in enumerate(MEASURES):
        difference = difference_of_means(ours[number], base[number])
        low, high = difference.interval()
        reference, value = float(np.nanmean(base[number])), float(np.nanmean(ours[number]))
        made = {
            "claim": f"{name}: held-out {measure}",
            "value": round(value, 4),
            "unit": "nats",
            "reference": round(reference, 4),
            "ratio": round(reference / value, 4),
            "target": 1.0,
            "difference": round(difference.mean, 4),
            "interval": [round(low, 4), round(high, 4)],
            "p": difference.p,
        }
        yield made if speed is None else made | {"speed": round(speed, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps, 2 seeds")
    parser.add_argument("--json", action="store_true", help="only the JSON lines")
    parser.add_argument("--data", type=Path, help="folder of a loop; default: games made for this")
    parser.add_argument("--config", choices=CONFIGS, default="square8_2p")
    parser.add_argument("--seeds", type=int, default=3, help="paired seeds of each choice")
    parser.add_argument("--steps", type=int, help=f"optimizer steps a run (default {STEPS})")
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=[""],
        help="only choices whose names contain one of these",
    )
    parser.add_argument("--fresh", action="store_true", help="from fresh weights")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 means one a core")
    told(parser, lambda given, scratch, say: claims(given, given.data or scratch / "data", say))


def told(parser: argparse.ArgumentParser, measured: Any) -> None:
    """Print ``measured(arguments, scratch folder, say)``, a claim a line."""
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error("--seeds must be at least 2: one seed tells nothing of how seeds differ")

    def say(text: str) -> None:
        if not arguments.json:
            print(text, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        for claim in measured(arguments, Path(scratch), say):
            print(json.dumps(claim), flush=True)


if __name__ == "__main__":
    main()
