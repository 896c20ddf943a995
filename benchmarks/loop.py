"""What the loop makes of an empty folder: wall time by asset, and the strength of the result.

    python benchmarks/loop.py [--quick] [--json] [--data DIR] [--config CONFIG]

Runs ``ringrift loop`` with the ``smoke`` preset and two generations in an empty folder, through the
real Dagster daemon, then plays the newest generation's model, 32 simulations a decision, against
uniformly random play: 400 games, seats rotated, seeds fixed below. With ``--data`` no loop is run
and the newest generation of that folder is measured; ``--quick`` plays a smaller loop and 40 games,
which says that everything works and nothing about the targets.

The reference of the wall time is the limit it must keep (12 minutes on two cores, packages
installed and kernels compiled). The reference of the strength is the lower bound that the model
must reach; the figure is the lower end of its Wilson interval, as the ratio's numerator.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 720.0
LEAST_LOW = 0.90  # Wilson lower bound against random
SIMULATIONS = 32
GAMES = 400
SEED = 20_260_101
QUICK = (
    "selfplay.games=24",
    "training.sample_reuse=2.0",
    "evaluation.games=8",
    "evaluation.max_games=8",
)


def claim(name: str, value: float, unit: str, reference: float | None, ratio: float | None) -> Any:
    """One claim; a bigger ratio is better, 1 is the least acceptable."""
    return {
        "claim": name,
        "value": round(value, 4),
        "unit": unit,
        "reference": reference,
        "ratio": None if ratio is None else round(ratio, 3),
        "target": None if ratio is None else 1.0,
    }


def run_loop(config: str, data: Path, quick: bool) -> Iterator[dict[str, Any]]:
    """Two generations in ``data``; claims of the wall time, whole and by asset."""
    command = [sys.executable, "-m", "ringrift_pipeline", "loop", "--config", config]
    command += ["--generations", "2", "--preset", "smoke", "--data", str(data), "--json"]
    for setting in QUICK if quick else ():
        command += ["--set", setting]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    summary = json.loads(done.stdout)
    seconds = summary["seconds"]
    name = f"loop: two generations of {config}, smoke preset{', reduced' if quick else ''}"
    yield claim(name, seconds, "s", LIMIT_SECONDS, None if quick else LIMIT_SECONDS / seconds)
    for generation in summary["generations"]:
        for asset, took in generation["seconds"].items():
            which = f"generation {generation['generation']:04d}, {asset}"
            yield claim(f"loop: {which}", took, "s", None, None)


def strength(config: str, data: Path, games: int, quick: bool) -> dict[str, Any]:
    """The newest evaluated generation's model against random play."""
    from ringrift_pipeline.evaluation import Entrant, Match, play_matches, set_scores
    from ringrift_pipeline.evaluation.gate import wilson_interval
    from ringrift_pipeline.game import get_rules
    from ringrift_pipeline.store import Store

    store = Store(data)
    evaluated = [
        number
        for number in store.generations(config)
        if store.current(config, number, "evaluation", verify=False) is not None
    ]
    if not evaluated:
        sys.exit(f"{data} has no evaluated generation of {config}: run ringrift loop first")
    name = f"generation:{evaluated[-1]:04d}"
    entrants = [
        Entrant(name, name, simulations=SIMULATIONS, seed=SEED, data=str(data)),
        Entrant("random", "random", seed=SEED + 1),
    ]
    seats = get_rules(config).players
    line_up = (name, *["random"] * (seats - 1))
    match = Match("strength", line_up, max(1, games // seats))
    table = play_matches(config, entrants, [match], seed=SEED)
    scores = set_scores(table, name)
    wins = float(scores.sum() * seats)
    low, high = wilson_interval(wins, table.height)
    result = claim(
        f"loop: {config} {name}, {SIMULATIONS} simulations, against random, {table.height} games, "
        "Wilson lower bound",
        low,
        "share of wins",
        LEAST_LOW,
        None if quick else low / LEAST_LOW,
    )
    return result | {"wins": wins, "rate": wins / table.height, "low": low, "high": high}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller loop, 40 games")
    parser.add_argument("--json", action="store_true", help="only the JSON lines")
    parser.add_argument("--data", type=Path, help="measure what lies there; run no loop")
    parser.add_argument("--config", default="square8_2p", help="board and player count")
    arguments = parser.parse_args()
    games = 40 if arguments.quick else GAMES

    def report(data: Path, loop: bool) -> None:
        for line in run_loop(arguments.config, data, arguments.quick) if loop else ():
            print(json.dumps(line), flush=True)
        print(json.dumps(strength(arguments.config, data, games, arguments.quick)), flush=True)

    if arguments.data is not None:
        report(arguments.data, loop=False)
        return
    with tempfile.TemporaryDirectory() as folder:
        report(Path(folder), loop=True)


if __name__ == "__main__":
    main()
