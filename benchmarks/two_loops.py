"""Does a setting make a loop stronger? The same generations of two loops play each other.

    python benchmarks/two_loops.py [--data DIR] [--against DIR] [--set NAME=VALUE ...]
        [--config square8_2p] [--preset hour] [--generations N] [--only 3,6,9] [--games 1000]
        [--simulations 64] [--seed 20260101] [--keep DIR] [--quick] [--json]

``--data`` and ``--against`` are the folders of two loops. A folder that is not named is played first:
the preset's generations, in ``--data`` with what ``--set`` changes. Then each of the generations
(``--only``; without it every third and the last) of one loop plays that of the other with
``--simulations`` a move: seats rotated, every rotation of a set from the same opening of six random
decisions, seeds fixed. With three or four players the other seats are all held by the second loop's.

The claim of a match is the share of the win of the first loop's model with its 95% interval (Wilson,
with the design effect of the sets); the reference is a fair share. It says of these two loops which is
stronger, and of the setting only as much as one run each can. With ``--keep`` finished games stay in
that folder, and the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anchors import QUICK_GENERATIONS, run_loop
from long_matches import Kept, Told

from ringrift_pipeline.enhancements.presets import generations_for
from ringrift_pipeline.evaluation import Entrant, Match, play_matches, set_interval, set_scores
from ringrift_pipeline.game import CONFIGS, get_rules
from ringrift_pipeline.selfplay import load_plan
from ringrift_pipeline.store import Store

SEED = 20_260_101
GAMES, QUICK_GAMES = 1000, 12
SIMULATIONS, QUICK_SIMULATIONS = 64, 8

Claim = dict[str, Any]


def finished(folder: Path, config: str) -> set[int]:
    """The generations that have a model."""
    store = Store(folder)
    known = store.generations(config)
    return {one for one in known if store.current(config, one, "ema_model") is not None}


def compare(arguments: argparse.Namespace) -> Iterator[Claim]:
    config, folders = arguments.config, (arguments.data, arguments.against)
    seats = get_rules(config).players
    games = arguments.games or (QUICK_GAMES if arguments.quick else GAMES)
    simulations = arguments.simulations or (QUICK_SIMULATIONS if arguments.quick else SIMULATIONS)
    both = sorted(finished(folders[0], config) & finished(folders[1], config))
    if not both:
        raise SystemExit(f"no generation of {config} has a model in both loops: run them first")
    if missing := sorted(set(arguments.only) - set(both)):
        raise SystemExit(f"generation {missing[0]} has no model in both loops; these have: {both}")
    for generation in arguments.only or sorted({*both[::3], both[-1]}):
        entrants, digests = [], []
        for name, folder in zip(("first", "second"), folders, strict=True):
            store = Store(folder)
            digests.append(store.require(config, generation, "ema_model").digest)
            entrants.append(
                Entrant(
                    name,
                    f"generation:{generation:04d}",
                    simulations,
                    arguments.seed,
                    str(folder),
                    settings=load_plan(store, config, generation).settings.search,
                )
            )
        first, second = entrants
        match = Match("first against second", ("first", *["second"] * (seats - 1)), games // seats)
        decisive = (config, simulations, arguments.seed, digests, first.settings, second.settings)
        told = None if arguments.json else Told()
        table = play_matches(
            config,
            entrants,
            [match],
            seed=arguments.seed,
            workers=0,
            played=Kept(arguments.keep, *decisive, match) if arguments.keep else None,
            progress=told.progress if told else None,
        )
        scores = set_scores(table, "first")
        low, high = set_interval(scores, seats)
        yield {
            "claim": f"{config}: generation {generation} of the first loop against the second's, "
            f"{simulations} simulations, {table.height} games, share of the win",
            "value": round(float(scores.mean()), 4),
            "unit": "share of the win",
            "reference": round(1.0 / seats, 4),
            "ratio": round(float(scores.mean()) * seats, 4),
            "target": None,
            "low": round(low, 4),
            "high": round(high, 4),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="the first loop's folder")
    parser.add_argument("--against", type=Path, help="the second loop's folder")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="of a first loop to play"
    )
    parser.add_argument("--config", choices=CONFIGS, default="square8_2p")
    parser.add_argument("--preset", help="of loops to play (default hour)")
    parser.add_argument("--generations", type=int, help="of loops to play (default: the preset's)")
    parser.add_argument(
        "--only",
        type=lambda text: [int(one) for one in text.split(",")],
        default=[],
        help="generations to compare, comma-separated",
    )
    parser.add_argument("--games", type=int, help=f"a generation (default {GAMES})")
    parser.add_argument("--simulations", type=int, help=f"a move (default {SIMULATIONS})")
    parser.add_argument("--seed", type=int, default=SEED, help="of openings and decisions")
    parser.add_argument("--keep", type=Path, help="folder for finished games, to go on from")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_GAMES} games, tiny loops")
    parser.add_argument("--json", action="store_true", help="only the JSON lines")
    arguments = parser.parse_args()
    quick = arguments.quick
    if arguments.set and arguments.data is not None:
        raise SystemExit("--set changes a loop that is yet to be played: leave out --data")
    preset = arguments.preset or ("smoke" if quick else "hour")
    generations = arguments.generations or (
        QUICK_GENERATIONS if quick else generations_for(preset, arguments.config)
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, changes in (("data", arguments.set), ("against", [])):
            if getattr(arguments, name) is None:
                setattr(arguments, name, Path(folder) / name)
                run_loop(
                    arguments.config,
                    getattr(arguments, name),
                    generations,
                    preset,
                    quick,
                    changes,
                )
        for made in compare(arguments):
            print(json.dumps(made), flush=True)


if __name__ == "__main__":
    main()
