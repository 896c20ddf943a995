"""How strong the champion of a data folder is: against random, the heuristic and rollout search.

    python benchmarks/strength.py [--data DIR] [--config square8_2p] [--player champion] [--games 1000]
        [--simulations 64] [--playouts N] [--seed 20260101] [--workers 0] [--only NAME,...]
        [--keep DIR] [--quick] [--json]

Without ``--data`` a loop is run in an empty folder first: the ``hour`` preset (``--quick``: two tiny
generations). The player (``champion``, ``generation:0007``, a model's folder or a baseline, which needs no data) searches with ``--simulations`` a
move and meets random play, the heuristic, rollout search with N playouts and with 10 N: ``--games``
each, seats rotated, every rotation of a set from the same opening of six random decisions, seeds
fixed. With three or four players the other seats are all held by the opponent.

N is what one core plays out in the time in which it searches ``--simulations`` for one position of
one game, both measured here in processor time on positions of random games (or given by
``--playouts``). The claim of a match is the lower end of the 95% interval of the share of the win
(Wilson, with the design effect of the sets); its reference is what the ``hour`` preset must reach.
With ``--keep`` finished games stay in that folder, with N, and the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from anchors import QUICK_GENERATIONS, run_loop
from long_matches import Kept, Told

from ringrift_pipeline.enhancements.presets import generations_for
from ringrift_pipeline.evaluation import Entrant, Match, play_matches, set_interval, set_scores
from ringrift_pipeline.game import CONFIGS, get_rules, kernels
from ringrift_pipeline.search import RolloutPlayer, load_player
from ringrift_pipeline.selfplay import load_plan
from ringrift_pipeline.store import Store, write_bytes_atomic

SEED = 20_260_101
GAMES, QUICK_GAMES = 1000, 12
SIMULATIONS, QUICK_SIMULATIONS = 64, 8
#: Least lower bounds of the share of the win, by opponent; two players.
LEAST = {"random": 0.98, "heuristic": 0.93, "rollout N": 0.70, "rollout 10N": 0.55}
#: With more players: times the fair share, against heuristics.
LEAST_TIMES_FAIR = 2.0
BASELINES = ("random", "heuristic", "rollout")  # as --player they need no data

Claim = dict[str, Any]


def model_of(name: str, config: str, data: Path | None) -> str:
    """What decides how a player plays: the digest of a champion's or a generation's model."""
    if name == "champion" and data is not None:
        champion = Store(data).champion(config)
        return champion.digest if champion is not None else name
    if name.startswith("generation:") and data is not None:
        return Store(data).require(config, int(name.split(":")[1]), "ema_model").digest
    return name


def decisions(config: str, count: int) -> np.ndarray:
    """Positions with a choice from random games, (count, S)."""
    rules = get_rules(config)
    rng = np.zeros(1, dtype=np.uint64)
    rows: list[np.ndarray] = []
    buffer = np.empty(rules.max_moves, dtype=np.int64)
    state = np.zeros(rules.state_size, dtype=np.int64)
    while len(rows) < 8 * count:
        kernels.initial_state(rules.constants, state, False)
        while (legal := kernels.legal_moves(rules.constants, state, buffer)) > 0:
            if legal > 1:
                rows.append(state.copy())
            move = buffer[kernels.random_below(rng, legal)]
            kernels.apply_move(rules.constants, state, move)
    return np.array(rows[: 8 * count : 8])


def seconds_a_move(player: Any, rows: np.ndarray, repeats: int = 3) -> float:
    """Mean processor time of a decision, one position at a time; the median of ``repeats``."""
    seeds = np.arange(len(rows), dtype=np.uint64)
    player.choose_batch(rows[:1], seeds[:1])
    taken = []
    for _ in range(repeats):
        started = time.process_time()
        for i in range(len(rows)):
            player.choose_batch(rows[i : i + 1], seeds[i : i + 1])
        taken.append((time.process_time() - started) / len(rows))
    return statistics.median(taken)


def equal_time(config: str, player: Any, quick: bool) -> tuple[float, float]:
    """(Seconds a move of the player, playouts a second of rollout search), one core."""
    rows = decisions(config, 8 if quick else 48)
    playouts = 100 if quick else 400
    each = seconds_a_move(player, rows)
    return each, playouts / seconds_a_move(RolloutPlayer(config, playouts=playouts), rows)


def least(opponent: str, seats: int) -> float | None:
    """The lower bound asked for; None where nothing is asked."""
    if seats == 2:
        return LEAST[opponent]
    return LEAST_TIMES_FAIR / seats if opponent == "heuristic" else None


def measure(arguments: argparse.Namespace) -> Iterator[Claim]:
    config, quick, name = arguments.config, arguments.quick, arguments.player
    settings = None
    if name not in BASELINES:
        store = Store(arguments.data)
        generation = max(store.generations(config), default=None)
        if generation is None:
            raise SystemExit(f"{arguments.data} has no generation of {config}: run a loop first")
        settings = load_plan(store, config, generation).settings.search
    seats = get_rules(config).players
    games = arguments.games or (QUICK_GAMES if quick else GAMES)
    simulations = arguments.simulations or (QUICK_SIMULATIONS if quick else SIMULATIONS)
    shared = {"simulations": simulations, "data": str(arguments.data), "settings": settings}

    wanted = arguments.only or list(LEAST)
    if unknown := [one for one in wanted if one not in LEAST]:
        raise SystemExit(f"no opponent {unknown[0]!r} among {', '.join(LEAST)}")
    who = (config, model_of(name, config, arguments.data), simulations, settings, arguments.seed)
    known = Kept(arguments.keep, "N", *who).folder / "playouts" if arguments.keep else None
    playouts = arguments.playouts or 1
    timed = any(one.startswith("rollout") for one in wanted)
    if timed and arguments.playouts is None and known is not None and known.exists():
        playouts = int(known.read_text())
    elif timed and arguments.playouts is None:
        torch.set_num_threads(1)
        player = load_player(name, config, **shared)
        each, rate = equal_time(config, player, quick)
        playouts = max(1, round(each * rate))
        yield information(f"{config} {name}: {simulations} simulations a move", each * 1e3, "ms")
        yield information(f"{config}: rollout search, one core", rate, "playouts/s")
        if known is not None:
            write_bytes_atomic(known, str(playouts).encode())
    if timed:
        yield information(f"{config}: N, playouts in the time of such a move", playouts, "playouts")

    opponents = {
        "random": Entrant("random", "random", seed=arguments.seed),
        "heuristic": Entrant("heuristic", "heuristic", seed=arguments.seed),
        "rollout N": Entrant("rollout N", "rollout", playouts, seed=arguments.seed),
        "rollout 10N": Entrant("rollout 10N", "rollout", 10 * playouts, seed=arguments.seed),
    }
    ours = Entrant(name, name, seed=arguments.seed, **shared)
    for opponent in wanted:
        match = Match(opponent, (name, *[opponent] * (seats - 1)), max(1, games // seats))
        began, told = time.monotonic(), Told()
        table = play_matches(
            config,
            [ours, opponents[opponent]],
            [match],
            seed=arguments.seed,
            workers=arguments.workers,
            played=Kept(arguments.keep, *who, opponents[opponent], match)
            if arguments.keep
            else None,
            progress=None if arguments.json else told.progress,
        )
        scores = set_scores(table, name)
        low, high = set_interval(scores, seats)
        asked = None if name in BASELINES else least(opponent, seats)
        yield {
            "claim": f"{config} {name}, {simulations} simulations, against {opponent}, "
            f"{table.height} games, share of the win, lower bound",
            "value": round(low, 4),
            "unit": "share of the win",
            "reference": asked,
            "ratio": None if asked is None or quick else round(low / asked, 4),
            "target": None if asked is None or quick else 1.0,
            "share": round(float(scores.mean()), 4),
            "low": round(low, 4),
            "high": round(high, 4),
            "seconds": round(time.monotonic() - began, 1),
        }


def information(name: str, value: float, unit: str) -> Claim:
    """A figure without a target."""
    return {
        "claim": name,
        "value": round(value, 3),
        "unit": unit,
        "reference": None,
        "ratio": None,
        "target": None,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="measure what lies there; run no loop")
    parser.add_argument("--config", choices=CONFIGS, default="square8_2p")
    parser.add_argument("--player", default="champion", help="as load_player takes it")
    parser.add_argument("--games", type=int, help=f"against each opponent (default {GAMES})")
    parser.add_argument("--simulations", type=int, help=f"a move (default {SIMULATIONS})")
    parser.add_argument("--playouts", type=int, help="N; default: measured")
    parser.add_argument("--seed", type=int, default=SEED, help="of openings and decisions")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 means one a core")
    parser.add_argument(
        "--only", type=lambda text: text.split(","), default=[], help="opponents, comma-separated"
    )
    parser.add_argument("--keep", type=Path, help="folder for finished games, to go on from")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_GAMES} games each")
    parser.add_argument("--json", action="store_true", help="only the JSON lines")
    arguments = parser.parse_args()
    quick = arguments.quick
    with tempfile.TemporaryDirectory() as folder:
        if arguments.data is None and arguments.player not in BASELINES:
            arguments.data = Path(folder)
            preset = "smoke" if quick else "hour"
            generations = QUICK_GENERATIONS if quick else generations_for(preset, arguments.config)
            run_loop(arguments.config, arguments.data, generations, preset, quick)
            if quick:  # two tiny generations need not have a champion
                arguments.player = "generation:0000"
        missed = 0
        for made in measure(arguments):
            print(json.dumps(made), flush=True)
            missed += made["target"] is not None and made["ratio"] < made["target"]
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()
