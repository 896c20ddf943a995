"""A config begun with another config's weights, against the same from scratch: strength by games.

    python benchmarks/finetuning.py --data DIR [--source square8_2p] [--config square19_2p]
        [--generations 4] [--preset hour] [--set NAME=VALUE ...] [--games N] [--simulations N]
        [--seed N] [--out FOLDER] [--quick] [--json]

``--data`` holds the source config and its model. Two loops of ``--config`` run in folders of
their own (kept in ``--out``, where a second call goes on), same settings, same seeds: one begins
with the champion's weights (``finetune.source``), one with fresh weights. Then every generation's
model of both plays the heuristic and random play from the same openings with the same seeds.

The claims: rating of each generation and games played for it; and games to a given strength. That
strength is the best of the loop from scratch; the figure is the fewest games after which the
fine-tuned loop had it beyond doubt (the lower end of the 95% interval of the difference is above
0), the reference those of the loop from scratch: fewer games are a ratio above 1. A picture of
both curves, ``finetuning.png``, goes to ``--out``. ``--quick`` makes a tiny source and two tiny
generations.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
from anchors import run_loop, with_bars
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ringrift_pipeline.evaluation import Entrant, Match, play_matches
from ringrift_pipeline.evaluation.ratings import ANCHOR, Ratings, fit_ratings
from ringrift_pipeline.game import get_rules
from ringrift_pipeline.selfplay import load_plan
from ringrift_pipeline.store import Store

SEED = 20_260_101
ARMS = ("fine-tuned", "from scratch")
Claim = dict[str, Any]


def arm_folder(out: Path, arm: str) -> Path:
    return out / arm.replace(" ", "-")


def run_arms(options: argparse.Namespace, source_data: Path, out: Path) -> None:
    """Both loops, as far as they are not done yet."""
    for arm in ARMS:
        folder = arm_folder(out, arm)
        folder.mkdir(parents=True, exist_ok=True)
        changes = [f"seed={options.seed}", *options.set]
        if arm == "fine-tuned":
            own = options.source.partition("/")[0]
            if not (folder / own).exists():
                shutil.copytree(source_data / own, folder / own)
            changes.append(f"finetune.source={options.source}")
        done = sum(
            Store(folder).current(options.config, number, "evaluation", verify=False) is not None
            for number in Store(folder).generations(options.config)
        )
        if done >= options.generations:
            continue
        missing = options.generations - done
        run_loop(options.config, folder, missing, options.preset, options.quick, changes)


def games_before(store: Store, config: str, generation: int) -> int:
    """Games of selfplay that generation's model has learned from."""
    return sum(
        load_plan(store, config, number).games
        for number in store.generations(config)
        if number <= generation
    )


def rated(options: argparse.Namespace, out: Path) -> tuple[Ratings, dict[str, tuple[str, int]]]:
    """Ratings of every model, the heuristic at 1200; by name, its loop and its games."""
    config = options.config
    seats = get_rules(config).players
    entrants = [Entrant(name, name, seed=options.seed) for name in (ANCHOR, "random")]
    about: dict[str, tuple[str, int]] = {}
    for arm in ARMS:
        store = Store(arm_folder(out, arm))
        for number in store.generations(config):
            model = store.current(config, number, "ema_model")
            if model is None or number >= options.generations:
                continue
            name = f"{arm} {number:04d}"
            about[name] = arm, games_before(store, config, number)
            entrants.append(
                Entrant(
                    name,
                    str(model.path),
                    simulations=options.simulations,
                    seed=options.seed,
                    data=str(store.root),
                    settings=load_plan(store, config, number).settings.search,
                )
            )
    sets = max(1, options.games // seats)
    pairs = [(name, other) for name in about for other in (ANCHOR, "random")]
    pairs.append((ANCHOR, "random"))
    matches = [Match(f"{a}/{b}", (a, *[b] * (seats - 1)), sets) for a, b in pairs]
    games = play_matches(config, entrants, matches, seed=options.seed, workers=options.workers)
    names = pl.format("{}/{}", "match", "set").alias("set")
    fit = fit_ratings(
        games.with_columns(names).select("players", "ranks", "set"), anchor=ANCHOR, depth=1
    )
    return fit, about


def claims(
    options: argparse.Namespace, fit: Ratings, about: dict[str, tuple[str, int]]
) -> Iterator[Claim]:
    title = f"finetuning: {options.config} from {options.source}"
    for name, (_, games) in about.items():
        low, high = fit.interval(name)
        yield {
            "claim": f"{title}, {name}",
            "value": round(fit[name], 1),
            "unit": "Elo, heuristic = 1200",
            "reference": None,
            "ratio": None,
            "target": None,
            "low": round(low, 1),
            "high": round(high, 1),
            "games": games,
        }
    scratch = {name: games for name, (arm, games) in about.items() if arm == ARMS[1]}
    best = max(scratch, key=lambda name: fit[name])
    reached = [
        games
        for name, (arm, games) in about.items()
        if arm == ARMS[0] and fit.difference(name, best)[1] > 0.0
    ]
    yield {
        "claim": f"{title}: games to {fit[best]:.0f} Elo, the best from scratch",
        "value": min(reached, default=None),
        "unit": "games of selfplay",
        "reference": scratch[best],
        "ratio": round(scratch[best] / min(reached), 3) if reached else 0.0,
        "target": None if options.quick else 1.0,
    }


def draw(
    path: Path, config: str, source: str, fit: Ratings, about: dict[str, tuple[str, int]]
) -> None:
    """Rating by games of both loops, with intervals."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for arm in ARMS:
        names = [name for name, (whose, _) in about.items() if whose == arm]
        ratings, bars = with_bars(fit, names)
        axes.errorbar(
            [about[name][1] for name in names], ratings, bars, marker="o", capsize=2, label=arm
        )
    axes.axhline(1200, color="grey", linewidth=1, linestyle="--", label="heuristic")
    axes.set(
        xlabel="games of selfplay",
        ylabel="rating, Elo (95% intervals)",
        title=f"{config} begun from {source} and from scratch",
    )
    axes.set_xlim(left=0)
    axes.legend(fontsize=8)
    figure.savefig(path, format="png", dpi=90, metadata={"Software": None})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="data folder with the source's champion")
    parser.add_argument("--source", default="square8_2p", help="as finetune.source takes it")
    parser.add_argument("--config", default="square19_2p", help="config to train")
    parser.add_argument("--generations", type=int, help="of each loop (default 4)")
    parser.add_argument("--preset", default="hour", help="of both loops")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--games", type=int, help="of each model and opponent (default 200)")
    parser.add_argument("--simulations", type=int, help="of each model, a decision (default 24)")
    parser.add_argument("--seed", type=int, default=SEED, help="of loops, openings and decisions")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 means one a core")
    parser.add_argument("--out", type=Path, help="where both loops and the picture are kept")
    parser.add_argument("--quick", action="store_true", help="tiny loops and few games")
    parser.add_argument("--json", action="store_true", help="only the JSON lines")
    options = parser.parse_args()
    quick = options.quick
    options.generations = options.generations or (2 if quick else 4)
    options.games = options.games or (4 if quick else 200)
    options.simulations = options.simulations or (2 if quick else 24)
    with tempfile.TemporaryDirectory() as scratch:
        out = options.out or Path(scratch) / "loops"
        source = options.data
        if source is None:
            if not quick:
                parser.error("--data is needed: the folder of a ringrift loop of the source")
            source = Path(scratch) / "source"
            run_loop(options.source, source, 1, "smoke", quick)
            options.config, options.preset = "square8_3p", "smoke"
            options.source += "/0000"  # a tiny generation need not become champion
            options.set.append("training.max_steps=4")
        run_arms(options, source, out)
        fit, about = rated(options, out)
        draw(out / "finetuning.png", options.config, options.source, fit, about)
        missed = 0
        for made in claims(options, fit, about):
            print(json.dumps(made), flush=True)
            missed += made["target"] is not None and made["ratio"] <= made["target"]
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()
