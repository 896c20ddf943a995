"""Paired games between two ways to run one model: does the difference cost strength?

    python benchmarks/paired.py --model FOLDER [--first KEY=VALUE ...] [--second KEY=VALUE ...]
        [--games 1000] [--config square8_2p] [--simulations 64] [--other-model FOLDER] [--seed 0]
        [--json]
    python benchmarks/paired.py --quick [--blocks 6 --channels 64] ...

Both sides play the same model (the folder of an ``ema_model`` or checkpoint), unless the second is
given another. Random weights say nothing of what a trained model loses: only the quick form, which
tries the arrangement, takes them. A key is a setting of the evaluator (``precision``, ``backend``,
``value_temperature``) or of the search (``simulations``, ``max_considered``, ``c_visit``,
``c_scale``). By default the first is bfloat16 by the fastest backend there is, the second float32 by
torch. Every opening is played once for each rotation of the seats, with the same seeds; games of one
opening are one piece of evidence. The claim is the first side's share of the wins with its 95%
interval; its ratio is the interval's upper end over the equal share, so that below 1 a loss of
strength is shown; then the exit code is 1. With equal settings every pair is split, whatever the
weights: a check of the whole arrangement.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from ringrift_pipeline.evaluation.matches import play_sets, set_scores
from ringrift_pipeline.game import CONFIGS, get_rules
from ringrift_pipeline.network import Evaluator, NetworkConfig, RingRiftNetwork, load_model
from ringrift_pipeline.search import NetworkPlayer, SearchSettings

EVALUATOR_KEYS = {"precision": str, "backend": str, "value_temperature": float}
SEARCH_KEYS = {"max_considered": int, "c_visit": float, "c_scale": float}
AT_ONCE = 128  # openings whose games go on side by side


def settings_of(pairs: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` strings as typed settings; exits with a line on one that means nothing."""
    kinds = {**EVALUATOR_KEYS, **SEARCH_KEYS, "simulations": int}
    found: dict[str, Any] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if key not in kinds or not sign:
            raise SystemExit(f"{pair!r} is not KEY=VALUE with a key of {', '.join(kinds)}")
        try:
            found[key] = kinds[key](value)
        except ValueError:
            raise SystemExit(f"{key} must be {kinds[key].__name__}, got {value!r}") from None
    return found


def player(
    config: str, model: RingRiftNetwork, settings: dict[str, Any], name: str, simulations: int
) -> NetworkPlayer:
    """A player of ``model`` with ``settings``."""
    evaluator = Evaluator(
        model,
        get_rules(config),
        "cpu",
        threads=1,
        **{key: settings[key] for key in EVALUATOR_KEYS if key in settings},
    )
    return NetworkPlayer(
        config,
        evaluator,
        simulations=settings.get("simulations", simulations),
        settings=SearchSettings(**{key: settings[key] for key in SEARCH_KEYS if key in settings}),
        name=name,
    )


def interval(scores: Sequence[float]) -> tuple[float, float, float]:
    """Mean of the scores of independent sets, and its 95% interval (normal)."""
    mean = statistics.fmean(scores)
    error = statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else float("inf")
    return mean, mean - 1.96 * error, mean + 1.96 * error


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--first", nargs="*", default=["precision=bfloat16", "backend=auto"], metavar="KEY=VALUE"
    )
    parser.add_argument("--second", nargs="*", default=["precision=float32"], metavar="KEY=VALUE")
    parser.add_argument("--games", type=int, default=1000, help="games in all, rounded up")
    parser.add_argument("--config", choices=CONFIGS, default="square8_2p")
    parser.add_argument(
        "--model", type=Path, help="folder of a model; with --quick: random weights"
    )
    parser.add_argument("--other-model", type=Path, help="the second side's, if it differs")
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--simulations", type=int, default=64, help="a decision")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="20 games of 8 simulations")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args()
    if options.model is None and not options.quick:
        parser.error(
            "--model is missing: random weights do not tell what a trained model loses; name a "
            "model's folder, or try the arrangement with --quick"
        )
    torch.set_num_threads(1)
    games, simulations = options.games, options.simulations
    if options.quick:
        games, simulations = 20, 8
    rules = get_rules(options.config)
    if options.model:
        model = load_model(options.model)
    else:
        shape = NetworkConfig(
            options.blocks, options.channels, geometry=rules.geometry, players=rules.players
        )
        model = RingRiftNetwork(shape, seed=options.seed)
    other = load_model(options.other_model) if options.other_model else model
    sides = {
        "first": player(options.config, model, settings_of(options.first), "first", simulations),
        "second": player(options.config, other, settings_of(options.second), "second", simulations),
    }
    line_up = ["first"] + ["second"] * (rules.players - 1)
    sets = -(-games // rules.players)
    scores: list[float] = []
    for start in range(0, sets, AT_ONCE):
        numbers = range(start, min(start + AT_ONCE, sets))
        scores += set_scores(
            play_sets(options.config, sides, line_up, numbers, options.seed), "first"
        ).tolist()
    mean, low, high = interval(scores)
    fair = 1.0 / rules.players
    shown = {
        "claim": f"{' '.join(options.first) or 'as it stands'} against "
        f"{' '.join(options.second) or 'as it stands'}, {options.config}, "
        f"{sets * rules.players} paired games, share of the wins "
        f"{mean:.4f} ({low:.4f} to {high:.4f})",
        "value": round(mean, 5),
        "unit": "share of the wins",
        "reference": fair,
        "ratio": round(high / fair, 4),
        "target": 1.0,
    }
    lost = high < fair
    if options.json:
        print(json.dumps(shown), flush=True)
    else:
        print(f"{shown['claim']}: {'A LOSS IS SHOWN' if lost else 'no loss shown'}", flush=True)
    return int(lost)


if __name__ == "__main__":
    sys.exit(main())
