"""What each choice of the learning buys: the same shards, the same small budget, paired seeds.

Run ``python benchmarks/learning.py [--quick] [--json] [--data DIR] [--seeds N] [--only NAME,…]
[--fresh]``.
One JSON object a choice and measure; a bigger ratio is better, ``target`` 1 is "no worse".

The data are made once (kept in ``--data``): games of the heuristic, a first network trained on
them, and games that this network plays by search. Every choice then trains that network further on
a third of the window, with nothing else on, and is judged on the held-out games of the newest
generation by the search's policy and the games' outcomes. ``--fresh`` trains fresh weights instead.
A choice is compared with the same seeds without it; the interval (95%) is that of the mean
difference, over games and over seeds (``evaluation/paired_differences.py``).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ringrift_pipeline.enhancements import TrainingConfig
from ringrift_pipeline.evaluation.paired_differences import difference_of_means
from ringrift_pipeline.network import load_model
from ringrift_pipeline.selfplay import Plan, load_plan, plan_generation, play_shards
from ringrift_pipeline.store import Store
from ringrift_pipeline.training import (
    Window,
    WindowDataset,
    average,
    build_window,
    open_window,
    train,
)
from ringrift_pipeline.training.judging import by_game, by_network, row_losses
from ringrift_pipeline.training.trial import train_trial

CONFIG = "square8_2p"
NOW = datetime(2026, 1, 1, tzinfo=UTC)

# Everything under test is off.
PLAIN: dict[str, Any] = {
    "device": "cpu",
    "quality.enabled": False,
    "mining.enabled": False,
    "training.threads": 1,
    "training.precision": "bfloat16",
    "training.window_games": 100_000,
    "training.early_stopping_patience": 0,
    "training.sample_reuse": 4.0,
    "training.augmentation": False,
    "training.surprise_share": 0.0,
    "training.search_value_share": 0.0,
    "training.territory_weight": 0.0,
    "training.margin_weight": 0.0,
}
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
    "training.max_steps": 20,
}
CHOICES: dict[str, dict[str, Any]] = {
    "symmetries, a random one a row": {"training.augmentation": True},
    "policy half by surprise": {"training.surprise_share": 0.5},
    "value 1/2 by search": {"training.search_value_share": 0.5},
    "territory head, 0.5": {"training.territory_weight": 0.5},
    "margin head, 0.5": {"training.margin_weight": 0.5},
    "sample reuse 2 (of 4)": {"training.sample_reuse": 2.0},
    "sample reuse 8 (of 4)": {"training.sample_reuse": 8.0},
    "symmetries and sample reuse 8": {
        "training.augmentation": True,
        "training.sample_reuse": 8.0,
    },
    "float32 (for bfloat16)": {"training.precision": "float32"},
}
HELD_OUT = 0.7
"""Share of the games that judge: few are trained on, so that a run is short and repeats them."""
MEASURES = ("policy loss", "value log loss")


def prepared(store: Store, sizes: dict[str, Any]) -> Plan:
    """The plan of generation 1, its games played; what is there already is used."""
    settings = TrainingConfig().with_overrides({**PLAIN, **sizes, "training.augmentation": True})
    first = plan_generation(store, CONFIG, 0, settings, NOW)
    play_shards(store, first)
    train(store, first)
    candidate = average(store, first)
    store.promote(CONFIG, 0, candidate, {"benchmark": True})
    second = plan_generation(store, CONFIG, 1, settings, NOW + timedelta(hours=1))
    play_shards(store, second)
    plan = load_plan(store, CONFIG, 1)
    judging = plan.settings.with_overrides({"training.holdout_fraction": HELD_OUT})
    return Plan.from_dict({**plan.raw, "settings": judging.to_dict()})


def trained(
    plan: Plan, window: Window, parent: Path | None, changes: dict[str, Any], seed: int
) -> Any:
    """(best averaged network, seconds of processor time, rows trained on)."""
    began = time.process_time()
    run = train_trial(
        plan,
        window,
        {**PLAIN, **changes},
        seed,
        parent=None if parent is None else load_model(parent),
        validation=window.holdout_rows[seed::8],  # chooses the best of a run's averages
    )
    return run.best_model(), time.process_time() - began, run.samples


def judged(
    model: torch.nn.Module, dataset: WindowDataset, rows: NDArray[np.int64], symmetries: int = 1
) -> NDArray[np.float64]:
    """(2, G) mean policy loss and value log loss of each game's rows."""
    losses = row_losses(by_network(model), dataset, rows, symmetries)
    games = dataset.window.game[rows]
    return np.stack([by_game(losses.policy, games), by_game(losses.value, games)])


def claims(
    store: Store, quick: bool, seeds: int, only: list[str], fresh: bool, say: Any
) -> Iterator[dict[str, Any]]:
    sizes = SIZES | (QUICK if quick else {})
    began = time.monotonic()
    plan = prepared(store, sizes)
    window = open_window(build_window(store, plan).path)
    assert plan.parent is not None
    parent = None if fresh else store.root / plan.parent["path"]
    dataset = WindowDataset(window)
    rows = np.flatnonzero(window.holdout & (window.generation == 1))
    say(
        f"data: {len(window.training_rows):,} rows to train on, {len(rows):,} of "
        f"{len(np.unique(window.game[rows]))} held-out games, {time.monotonic() - began:.0f} s"
    )
    shrunk = {"training.max_steps": QUICK["training.max_steps"]} if quick else {}

    def measured(name: str, changes: dict[str, Any]) -> tuple[NDArray, float]:
        results, spent, samples = [], 0.0, 0
        for seed in range(seeds):
            model, seconds, seen = trained(plan, window, parent, {**shrunk, **changes}, seed)
            results.append(judged(model, dataset, rows))
            spent, samples = spent + seconds, samples + seen
            last.append(model)
        say(f"{name}: {spent / seeds:.0f} s a run, {samples / spent:.0f} rows/s")
        return np.stack(results, axis=1), samples / spent  # (2, seeds, games)

    last: list[Any] = []
    base, speed = measured("nothing on", {})
    plain_models = list(last)

    def compared(name: str, ours: NDArray, rate: float) -> Iterator[dict[str, Any]]:
        for number, measure in enumerate(MEASURES):
            difference = difference_of_means(ours[number], base[number])
            low, high = difference.interval()
            reference, value = float(np.nanmean(base[number])), float(np.nanmean(ours[number]))
            verdict = "better" if high < 0 else "worse" if low > 0 else "undecided"
            yield {
                "claim": f"{name}: held-out {measure}",
                "value": round(value, 4),
                "unit": "nats",
                "reference": round(reference, 4),
                "ratio": round(reference / value, 4),
                "target": 1.0,
                "difference": round(difference.mean, 4),
                "interval": [round(low, 4), round(high, 4)],
                "verdict": verdict,
                "speed": round(rate / speed, 2),
            }

    for name, changes in CHOICES.items():
        if any(part in name for part in only):
            yield from compared(name, *measured(name, changes))
    if any(part in "evaluation" for part in only):
        turned = [judged(model, dataset, rows, 8) for model in plain_models]
        yield from compared(
            "evaluation averaged over 8 symmetries", np.stack(turned, axis=1), speed / 8
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="40 games, 20 steps, 2 seeds")
    parser.add_argument("--json", action="store_true", help="only the JSON lines")
    parser.add_argument("--data", type=Path, help="where the games are kept; default: nowhere")
    parser.add_argument("--seeds", type=int, default=3, help="paired seeds of each choice")
    parser.add_argument("--only", default="", help="only choices whose names contain one of these")
    parser.add_argument("--fresh", action="store_true", help="from fresh weights")
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error("--seeds must be at least 2: one seed tells nothing of how seeds differ")
    torch.set_num_threads(1)

    def say(text: str) -> None:
        if not arguments.json:
            print(text, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        store = Store(arguments.data or Path(scratch) / "data")
        only = arguments.only.split(",")
        seeds = 2 if arguments.quick else arguments.seeds
        for claim in claims(store, arguments.quick, seeds, only, arguments.fresh, say):
            print(json.dumps(claim), flush=True)


if __name__ == "__main__":
    main()
