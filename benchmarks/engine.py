"""How fast the rules are: random play, cost a ply by phase, scaling over threads, first move.

    python benchmarks/engine.py [--quick] [--json]

Reference figures are measured constants, not re-created here: uniformly random play of the
reference Python engine (``synaptent/RingRift``, ``ai-service``) on one core of a 2-core x86 VM,
two players; square8 4.9 games/s and 663 plies/s, hex8 4.1 games/s and 663 plies/s, square19 141
plies/s, hexagonal 112 plies/s. It was not measured with three and four players; there the board's
figure for two players stands in. Every ratio is "how many times better than the reference";
``target`` is the least ratio we accept. Claims without a reference carry null.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ringrift_pipeline.game import CONFIGS, get_rules, kernels, layout
from ringrift_pipeline.game.compile import kernel
from ringrift_pipeline.game.playout import random_games
from ringrift_pipeline.game.turn import apply_move, legal_moves

#: Plies and games a second of the reference engine, two players.
REFERENCE_PLIES = {"square8": 663.0, "hex8": 663.0, "square19": 141.0, "hexagonal": 112.0}
REFERENCE_GAMES = {"square8": 4.9, "hex8": 4.1}
#: Least acceptable figures.
LEAST_GAMES = {"square8_2p": 4000.0, "hex8_2p": 2500.0}
LEAST_PLIES = {
    "square8": 300_000.0,
    "hex8": 300_000.0,
    "square19": 200_000.0,
    "hexagonal": 200_000.0,
}
COLD_SECONDS, WARM_SECONDS = 60.0, 3.0
#: Games a timed run, chosen to take about half a second each.
GAMES = {"square8": 3000, "hex8": 3000, "square19": 300, "hexagonal": 200}

Claim = dict[str, Any]


def claim(
    name: str,
    value: float,
    unit: str,
    reference: float | None = None,
    least: float | None = None,
    smaller_is_better: bool = False,
) -> Claim:
    """One claim; ``least`` is the least acceptable value in the claim's own unit."""

    def ratio(figure: float) -> float | None:
        if reference is None:
            return None
        return reference / figure if smaller_is_better else figure / reference

    return {
        "claim": name,
        "value": float(f"{value:.5g}"),
        "unit": unit,
        "reference": reference,
        "ratio": ratio(value),
        "target": None if least is None else ratio(least),
    }


# --- random play ---------------------------------------------------------------------------------
class Player:
    """Plays batches of random games of one config with buffers of its own."""

    def __init__(self, config: str) -> None:
        self.rules = get_rules(config)
        self.row = np.zeros(self.rules.state_size, dtype=np.int64)
        self.out = np.empty(self.rules.max_moves, dtype=np.int64)

    def __call__(self, games: int, seed: int = 0) -> int:
        """Play ``games`` games; returns the plies played."""
        seeds = np.arange(seed, seed + games, dtype=np.uint64)
        plies, winners, reasons = (np.zeros(games, dtype=np.int64) for _ in range(3))
        random_games(self.rules.constants, self.row, seeds, self.out, 0, plies, winners, reasons)
        return int(plies.sum())


def shortest(repeats: int, run: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Shortest time in seconds of several runs, and the last run's result."""
    best, result = float("inf"), None
    for _ in range(repeats):
        started = time.perf_counter()
        result = run(*arguments)
        best = min(best, time.perf_counter() - started)
    return best, result


def random_play(quick: bool) -> Iterator[Claim]:
    """Games and plies a second of uniformly random play, one core, every config."""
    for config in CONFIGS:
        board = config.rsplit("_", 1)[0]
        play = Player(config)
        play(2)
        games = GAMES[board] // (6 if quick else 1)
        seconds, plies = shortest(2 if quick else 5, play, games)
        yield claim(
            f"random play, {config}",
            games / seconds,
            "games/s",
            REFERENCE_GAMES.get(board) if config.endswith("2p") else None,
            LEAST_GAMES.get(config),
        )
        yield claim(
            f"random play, {config}",
            plies / seconds,
            "plies/s",
            REFERENCE_PLIES[board],
            LEAST_PLIES[board],
        )


# --- cost a ply ----------------------------------------------------------------------------------
@kernel
def _record(b, s, seeds, out, rows, moves):
    """Play games and keep every third position with the move made there; returns how many."""
    rng = np.empty(1, dtype=np.uint64)
    kept = 0
    for game in range(len(seeds)):
        rng[0] = seeds[game]
        kernels.initial_state(b, s, 0)
        ply = game
        while s[layout.PHASE] != layout.OVER:
            move = out[kernels.random_below(rng, legal_moves(b, s, out))]
            if ply % 3 == 0 and kept < len(rows):
                rows[kept] = s
                moves[kept] = move
                kept += 1
            apply_move(b, s, move)
            ply += 1
    return kept


@kernel
def _list_all(b, rows, out):
    """List the legal moves of every row; returns their number, so that nothing is left out."""
    total = 0
    for i in range(len(rows)):
        total += legal_moves(b, rows[i], out)
    return total


@kernel
def _apply_all(b, rows, moves, scratch):
    """Copy every row and make its move in the copy."""
    for i in range(len(rows)):
        scratch[:] = rows[i]
        apply_move(b, scratch, moves[i])
    return scratch[layout.PLY]


@kernel
def _copy_all(b, rows, moves, scratch):
    """What :func:`_apply_all` does beside the moves."""
    total = 0
    for i in range(len(rows)):
        scratch[:] = rows[i]
        total += scratch[moves[i] & 7]
    return total


def cost_by_phase(quick: bool) -> Iterator[Claim]:
    """Microseconds of listing the legal moves and of making one, by board and phase."""
    for board in ("square8", "hex8", "square19", "hexagonal"):
        rules = get_rules(f"{board}_2p")
        small = rules.num_cells < 100
        capacity = (12_000 if small else 2_000) // (4 if quick else 1)
        rows = np.zeros((capacity, rules.state_size), dtype=np.int64)
        moves = np.zeros(capacity, dtype=np.int64)
        out = np.empty(rules.max_moves, dtype=np.int64)
        scratch = np.zeros(rules.state_size, dtype=np.int64)
        seeds = np.arange(capacity // (35 if small else 200) + 2, dtype=np.uint64)
        kept = int(_record(rules.constants, scratch, seeds, out, rows, moves))
        rows, moves = rows[:kept], moves[:kept]
        phases = rows[:, layout.PHASE]
        groups = [("whole ply", np.ones(kept, dtype=bool))]
        groups += [(layout.PHASE_NAMES[p], phases == p) for p in range(layout.OVER)]
        for name, chosen in groups:
            if not chosen.any():
                continue
            # Few positions are repeated, so that calling the kernel does not weigh.
            indices = np.resize(np.flatnonzero(chosen), max(2000, int(chosen.sum())))
            some, made = rows[indices], moves[indices]
            repeats = 5 if quick else 40
            listing, _ = shortest(repeats, _list_all, rules.constants, some, out)
            making, _ = shortest(repeats, _apply_all, rules.constants, some, made, scratch)
            copying, _ = shortest(repeats, _copy_all, rules.constants, some, made, scratch)
            scale = 1e6 / len(some)
            making = max(making - copying, 0.0)
            if name == "whole ply":
                yield claim(
                    f"cost of a ply, {board}",
                    (listing + making) * scale,
                    "us",
                    1e6 / REFERENCE_PLIES[board],
                    1e6 / LEAST_PLIES[board],
                    smaller_is_better=True,
                )
            else:
                yield claim(f"legal moves, {board}, {name}", listing * scale, "us")
                yield claim(f"apply, {board}, {name}", making * scale, "us")


# --- threads -------------------------------------------------------------------------------------
def scaling(quick: bool) -> Iterator[Claim]:
    """Throughput of two threads against one, batched play without the GIL."""
    games = 1500 if quick else 6000
    players = [Player("square8_2p"), Player("square8_2p")]
    for play in players:
        play(2)
    one = two = float("inf")
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3 if quick else 6):
            started = time.perf_counter()
            players[0](games)
            one = min(one, time.perf_counter() - started)
            started = time.perf_counter()
            jobs = [pool.submit(play, games, seed) for seed, play in enumerate(players)]
            for job in jobs:
                job.result()
            two = min(two, time.perf_counter() - started)
    yield claim("two threads against one, square8_2p", 2 * one / two, "times", 1.0, 1.6)


# --- first move ----------------------------------------------------------------------------------
FIRST_MOVE = (
    "from ringrift_pipeline.game import new_game; "
    "state = new_game('square8_2p'); state.apply(state.legal_moves()[0])"
)


def _first_move(environment: dict[str, str]) -> None:
    subprocess.run(
        [sys.executable, "-c", FIRST_MOVE],
        env=environment,
        check=True,
        stderr=subprocess.DEVNULL,
    )


def first_move() -> Iterator[Claim]:
    """Seconds from the start of a process to its first move, with and without compiled kernels."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "RINGRIFT_KERNEL_CACHE": folder}
        for name, limit, repeats in (("cold", COLD_SECONDS, 1), ("warm", WARM_SECONDS, 3)):
            seconds, _ = shortest(repeats, _first_move, environment)
            yield claim(
                f"first move, {name} kernel cache",
                seconds,
                "s",
                limit,
                limit,
                smaller_is_better=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats, no cold start")
    parser.add_argument("--json", action="store_true", help="one JSON object a claim")
    options = parser.parse_args()
    parts = [random_play(options.quick), cost_by_phase(options.quick), scaling(options.quick)]
    if not options.quick:
        parts.append(first_move())
    for part in parts:
        for result in part:
            if options.json:
                print(json.dumps(result), flush=True)
                continue
            line = f"{result['claim']:44s} {result['value']:14,.2f} {result['unit']:8s}"
            if result["ratio"] is not None:
                line += f" {result['ratio']:10,.1f} x reference"
            if result["target"] is not None:
                met = "met" if result["ratio"] >= result["target"] else "MISSED"
                line += f"  (target {result['target']:,.1f} x: {met})"
            print(line, flush=True)


if __name__ == "__main__":
    main()
