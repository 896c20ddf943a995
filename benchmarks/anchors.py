"""Every candidate and every champion of a small config, rated anew against fixed anchors.

    python benchmarks/anchors.py [--quick] [--json] [--data DIR] [--config CONFIG]
        [--generations N] [--preset NAME] [--games N] [--simulations N] [--playouts N] [--seed N]
        [--plot FILE] [--keep DIR]

Without ``--data`` a loop is run in an empty folder first: ten generations of the ``smoke`` preset
through the real daemon (``--quick``: two tiny ones). Then each generation's model plays random, the
heuristic, rollout search with a fixed number of playouts, generation 0 and, of five and more, the
one in the middle, from the same openings
with the same seeds; one maximum-likelihood fit rates them all, the heuristic at 1200. The list is
printed with intervals, the gate's verdicts and every fall beyond its interval: a model that is
weaker than an earlier one of its list (candidates, champions) at 95%, all comparisons together.

``--plot`` draws the ratings against hours of the loop (from a generation's plan to its decision,
summed: what lies between two runs does not count) and against games of selfplay.

With ``--keep`` finished games stay in that folder, and the same command goes on from there.

The claim that counts is that no champion is weaker than an earlier one. Candidates may fall: that
is what the gate is for.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from long_matches import Kept, Told
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ringrift_pipeline.evaluation.anchors import AnchoredRatings, Fall, rate_against_anchors
from ringrift_pipeline.evaluation.ratings import Ratings
from ringrift_pipeline.selfplay import load_plan
from ringrift_pipeline.store import Store

GAMES, QUICK_GAMES = 200, 4
SIMULATIONS, PLAYOUTS = 64, 64
SEED = 20_260_101
GENERATIONS, QUICK_GENERATIONS = 10, 2
QUICK = (
    "selfplay.games=16",
    "selfplay.games_per_shard=8",
    "search.simulations=4",
    "search.cheap_simulations=2",
    "network.blocks=1",
    "network.channels=8",
    "training.max_steps=10",
    "training.holdout_fraction=0.3",
    "calibration.min_games=2",
    "calibration.bootstrap=20",
    "evaluation.games=8",
    "evaluation.max_games=8",
    "evaluation.simulations=4",
    "evaluation.anchor_games=4",
)


def run_loop(
    config: str,
    data: Path,
    generations: int,
    preset: str,
    quick: bool,
    changes: Sequence[str] = (),
) -> None:
    """Generations in ``data``, through the daemon, with ``changes`` (NAME=VALUE) of settings."""
    command = [sys.executable, "-m", "ringrift_pipeline", "loop", "--config", config]
    command += ["--generations", str(generations), "--preset", preset]
    command += ["--data", str(data), "--json"]
    for setting in (*(QUICK if quick else ()), *changes):
        command += ["--set", setting]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def with_bars(fit: Ratings, names: Sequence[str]) -> tuple[list[float], list[list[float]]]:
    """Ratings of ``names``, and their intervals as matplotlib's error bars."""
    ratings = [fit[name] for name in names]
    spans = [fit.interval(name) for name in names]
    below = [rating - low for rating, (low, _) in zip(ratings, spans, strict=True)]
    above = [high - rating for rating, (_, high) in zip(ratings, spans, strict=True)]
    return ratings, [below, above]


def told(fall: Fall) -> str:
    """A fall as one sentence."""
    return (
        f"{fall.model} is {-fall.difference:.0f} Elo weaker than {fall.earlier} "
        f"({-fall.high:.0f} to {-fall.low:.0f})"
    )


def text(rated: AnchoredRatings) -> str:
    """The list as Markdown."""
    fit = rated.fit
    others = [anchor for anchor in rated.anchors if anchor not in {m.name for m in rated.models}]
    columns = rated.anchors
    lines = [
        "| player | rating (95%) | " + " | ".join(f"against {c}" for c in columns) + " | gate |",
        "|---|---|" + "---:|" * len(columns) + "---|",
    ]
    for anchor in others:
        low, high = fit.interval(anchor)
        given = "given" if anchor == fit.anchor else f"{low:.0f} to {high:.0f}"
        lines.append(f"| {anchor} | {fit[anchor]:.0f} ({given}) |" + " |" * (len(columns) + 1))
    for model in rated.models:
        low, high = fit.interval(model.name)
        name = f"**{model.name}**, champion" if model.champion else model.name
        shares = [f"{model.shares[c]:.0%}" if c in model.shares else "" for c in columns]
        lines.append(
            f"| {name} | {fit[model.name]:.0f} ({low:.0f} to {high:.0f}) | "
            + " | ".join(shares)
            + f" | {model.verdict} |"
        )
    for what, falls in (
        ("champion", rated.champion_falls),
        ("candidate", rated.candidate_falls),
    ):
        lines += ["", f"Falls of a {what} beyond the interval: {len(falls) or 'none'}"]
        lines += [f"- {told(fall)}" for fall in falls]
    return "\n".join(lines)


def spent(store: Store, config: str, generations: Sequence[int]) -> dict[int, tuple[float, int]]:
    """Hours and games of selfplay up to the decision on each generation."""
    hours, games = 0.0, 0
    found = {}
    for number in generations:
        plan = load_plan(store, config, number)
        decided = store.require(config, number, "decision")
        hours += (datetime.fromisoformat(decided.created) - plan.created_at).total_seconds() / 3600
        games += plan.games
        found[number] = hours, games
    return found


def draw(
    path: Path, config: str, rated: AnchoredRatings, used: dict[int, tuple[float, int]]
) -> None:
    """Two panels: rating against hours and against games, champions filled, anchors as lines."""
    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    fit = rated.fit
    y, bars = with_bars(fit, [model.name for model in rated.models])
    panels = figure.subplots(1, 2, sharey=True)
    for axes, unit, column in zip(panels, ("hours", "games of selfplay"), (0, 1), strict=True):
        x = [used[model.generation][column] for model in rated.models]
        axes.errorbar(x, y, bars, color="C0", linewidth=1, capsize=2)
        for at, model in enumerate(rated.models):
            face = "C0" if model.champion else "white"
            axes.plot(x[at], y[at], "o", markerfacecolor=face, markeredgecolor="C0")
        models = {model.name for model in rated.models}
        anchors = [anchor for anchor in rated.anchors if anchor not in models]
        for number, anchor in enumerate(anchors, start=1):
            axes.axhline(fit[anchor], color=f"C{number}", linestyle="--", linewidth=1, label=anchor)
        axes.set(xlabel=unit)
        axes.set_xlim(left=0)
    panels[0].set(ylabel="rating, Elo (95% intervals)")
    panels[0].legend(fontsize=8)
    figure.suptitle(f"{config}: every generation against fixed anchors, champions filled")
    figure.savefig(path, format="png", dpi=90, metadata={"Software": None})


def claims(config: str, rated: AnchoredRatings, quick: bool) -> Iterator[dict[str, Any]]:
    """One claim a model, and how many fell."""
    for model in rated.models:
        low, high = rated.fit.interval(model.name)
        yield {
            "claim": f"anchors: {config} {model.name}" + (", champion" if model.champion else ""),
            "value": round(rated.fit[model.name], 1),
            "unit": "Elo, heuristic = 1200",
            "reference": None,
            "ratio": None,
            "target": None,
            "low": round(low, 1),
            "high": round(high, 1),
            "shares": {name: round(share, 4) for name, share in model.shares.items()},
            "gate": model.verdict,
        }
    for what, falls in (
        ("champions", rated.champion_falls),
        ("candidates", rated.candidate_falls),
    ):
        counts = what == "champions" and not quick
        yield {
            "claim": f"anchors: {config} {what} weaker than an earlier one beyond the interval",
            "value": len(falls),
            "unit": what,
            "reference": 0 if counts else None,
            "ratio": 1.0 / (1.0 + len(falls)) if counts else None,
            "target": 1.0 if counts else None,
            "falls": [told(fall) for fall in falls],
        }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny loop and few games")
    parser.add_argument("--json", action="store_true", help="only the JSON lines")
    parser.add_argument("--data", type=Path, help="rate what lies there; run no loop")
    parser.add_argument("--plot", type=Path, help="PNG of the ratings against hours and games")
    parser.add_argument("--keep", type=Path, help="folder of finished games, to go on from")
    parser.add_argument("--config", default="square8_2p", help="board and player count")
    parser.add_argument("--generations", type=int, help="of the loop that is run")
    parser.add_argument("--preset", default="smoke", help="of the loop that is run")
    parser.add_argument("--games", type=int, help="of each model against each anchor")
    parser.add_argument("--simulations", type=int, help="of each model, a decision")
    parser.add_argument("--playouts", type=int, help="of the rollout search, a decision")
    parser.add_argument("--seed", type=int, default=SEED, help="of openings and decisions")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 means one a core")
    arguments = parser.parse_args()
    quick = arguments.quick
    few = 4 if quick else None

    def report(data: Path) -> None:
        store, config = Store(data), arguments.config
        decisive = {
            "games": arguments.games or (QUICK_GAMES if quick else GAMES),
            "simulations": arguments.simulations or few or SIMULATIONS,
            "playouts": arguments.playouts or few or PLAYOUTS,
            "seed": arguments.seed,
        }
        models = [
            store.current(config, number, "ema_model") for number in store.generations(config)
        ]
        digests = [model.digest for model in models if model is not None]
        rated = rate_against_anchors(
            store,
            config,
            **decisive,
            workers=arguments.workers,
            played=Kept(arguments.keep, config, digests, decisive) if arguments.keep else None,
            progress=None if arguments.json else Told().progress,
        )
        if arguments.plot is not None:
            used = spent(Store(data), arguments.config, [m.generation for m in rated.models])
            draw(arguments.plot, arguments.config, rated, used)
        if not arguments.json:
            print(text(rated) + "\n")
        for line in claims(arguments.config, rated, quick):
            print(json.dumps(line), flush=True)

    if arguments.data is not None:
        report(arguments.data)
        return
    generations = arguments.generations or (QUICK_GENERATIONS if quick else GENERATIONS)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        run_loop(arguments.config, data, generations, arguments.preset, quick)
        report(data)


if __name__ == "__main__":
    main()
