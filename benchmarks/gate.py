"""The promotion gate's error rates: candidates of known strength, the decision code of the loop.

    python benchmarks/gate.py [--quick] [--json] [--runs N] [--players 2 3 4] [--set NAME=VALUE]

For the default settings and each preset of every config and for three kinds of games, a
candidate 20 Elo weaker than the champion and one 70 Elo stronger are evaluated 2,000 times each
(``--quick``: 200). Only the games are simulated (`ringrift_pipeline.evaluation.power`); the
sequential test, its looks, the floors and all their settings are those of the loop. The ratio
compares the end of the 95% interval of the rate that is against us with what is allowed. The
smoke test's gates of square19 and hexagonal miss the second: their 48 and 24 games are too few.

``--set evaluation.max_games=400`` and the like change all of them, to see what a setting would do.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from typing import Any

from ringrift_pipeline.enhancements import TrainingConfig
from ringrift_pipeline.enhancements.config_stages import EvaluationConfig
from ringrift_pipeline.enhancements.training_config import PRESETS
from ringrift_pipeline.evaluation.power import Scenario, simulate_gate
from ringrift_pipeline.orchestration.configs import BOARDS, CONFIGS

WEAKER, STRONGER = -20.0, 70.0
MOST_ACCEPTED, LEAST_ACCEPTED = 0.05, 0.90
SEED = 20_260_101
RUNS, QUICK_RUNS = 2_000, 200
KINDS: dict[str, dict[str, float]] = {
    "no draws": {},
    "10% draws, openings of up to 20%": {"draws": 0.1, "opening": 0.2},
    "champion level with the heuristic": {"over_heuristic": 0.0, "over_random": 300.0},
}


def gates(players: int, changes: dict[str, str]) -> dict[str, EvaluationConfig]:
    """Different evaluation settings of the configs of so many players, by the presets and boards
    that have them.
    """
    found: dict[str, dict[str, list[str]]] = {}
    settings: dict[str, EvaluationConfig] = {}
    for preset, config in itertools.product((None, *PRESETS), CONFIGS):
        board, _, seats = config.rpartition("_")
        if seats != f"{players}p":
            continue
        own = TrainingConfig.load(
            preset=preset, environ={}, overrides=changes, config=config
        ).evaluation
        key = own.model_copy(update={"simulations": 1, "anchor_games": 0}).model_dump_json()
        found.setdefault(key, {}).setdefault(preset or "default", []).append(board)
        settings[key] = own
    every = len(BOARDS)
    return {
        "; ".join(
            preset if len(boards) == every else f"{preset} {' '.join(boards)}"
            for preset, boards in names.items()
        ): settings[key]
        for key, names in found.items()
    }


def claims(
    name: str, settings: EvaluationConfig, players: int, kind: str, runs: int
) -> Iterator[dict[str, Any]]:
    """Both claims of one gate in one kind of games."""
    scenario = Scenario(players, **KINDS[kind])
    for elo in (WEAKER, STRONGER):
        power = simulate_gate(settings, elo, scenario, runs=runs, seed=SEED)
        weaker = elo < 0
        ratio = (
            MOST_ACCEPTED / max(power.high, 1e-9) if weaker else power.low / LEAST_ACCEPTED
        )  # judged by the unlucky end of the interval
        yield {
            "claim": f"gate ({name}), {players} players, {kind}: "
            f"{abs(elo):.0f} Elo {'weaker' if weaker else 'stronger'} accepted",
            "value": round(power.rate, 4),
            "unit": "share of runs",
            "reference": MOST_ACCEPTED if weaker else LEAST_ACCEPTED,
            "ratio": round(ratio, 3),
            "target": 1.0,
            "low": round(power.low, 4),
            "high": round(power.high, 4),
            "runs": runs,
            "games": round(power.games, 1),
        }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_RUNS} runs a rate")
    parser.add_argument("--json", action="store_true", help="only the JSON lines")
    parser.add_argument("--runs", type=int, help="runs a rate")
    parser.add_argument("--players", type=int, nargs="+", default=[2, 3, 4], choices=[2, 3, 4])
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="changes")
    arguments = parser.parse_args()
    runs = arguments.runs or (QUICK_RUNS if arguments.quick else RUNS)
    changes = dict(change.split("=", 1) for change in arguments.changes)
    for players in arguments.players:
        for name, settings in gates(players, changes).items():
            if not arguments.json:
                print(
                    f"{name}, {players} players: SPRT [{settings.elo0:g}, {settings.elo1:g}] Elo, "
                    f"alpha {settings.alpha:g}, beta {settings.beta:g}, at most "
                    f"{settings.max_games} games"
                )
            for kind in KINDS:
                for line in claims(name, settings, players, kind, runs):
                    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
