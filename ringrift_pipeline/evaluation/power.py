"""What the gate would decide of a candidate of known strength: its error rates by simulation.

Only the games are simulated. When a match is looked at, when it ends and what is decided are the
code that the loop runs: `tournament.job_edges`, `gate.sprt`, `gate.decide`, with the settings of an
evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ringrift_pipeline.evaluation import gate
from ringrift_pipeline.evaluation.ratings import expected_share
from ringrift_pipeline.evaluation.tournament import job_edges

if TYPE_CHECKING:
    from ringrift_pipeline.enhancements.config_stages import EvaluationConfig

__all__ = ["GatePower", "Scenario", "simulate_gate", "simulate_sets"]


@dataclass(frozen=True)
class Scenario:
    """The games a candidate is judged by.

    Attributes:
        players: seats of the game; the candidate holds one of them in turn.
        draws: chance that a game is shared by all seats.
        opening: most that a set's opening moves the first seat's share of the win, the other
            seats' in the other direction; games of a set then depend on each other.
        over_heuristic: the champion's rating over the heuristic, Elo.
        over_random: over random play, Elo.
    """

    players: int = 2
    draws: float = 0.0
    opening: float = 0.0
    over_heuristic: float = 200.0
    over_random: float = 500.0


@dataclass(frozen=True)
class GatePower:
    """How often the gate took a candidate.

    Attributes:
        runs: simulated evaluations.
        accepted: those that ended in a promotion.
        rate: their share; ``low`` and ``high`` its 95% Wilson interval.
        games: mean games against the champion.
    """

    runs: int
    accepted: int
    rate: float
    low: float
    high: float
    games: float


def simulate_sets(
    rng: np.random.Generator, sets: int, elo: float, scenario: Scenario
) -> NDArray[np.float64]:
    """Scores (sets,) of rotated sets of a candidate `elo` above each of its opponents.

    The mean is `expected_share` whatever the draws and the openings. Draws are as many as
    `scenario.draws` says or as that mean allows.
    """
    players = scenario.players
    mean = expected_share(elo, players)
    drawn = min(scenario.draws, players * mean, players * (1.0 - mean) / (players - 1))
    win = mean - drawn / players
    room = min(win, 1.0 - drawn - win)  # no chance leaves [0, 1]
    bias = rng.uniform(-1.0, 1.0, sets) * min(scenario.opening, room)
    score = np.zeros(sets)
    for seat in range(players):
        wins = win + (bias if seat == 0 else -bias / (players - 1))
        luck = rng.random(sets)
        score += np.where(luck < wins, 1.0, np.where(luck < wins + drawn, 1.0 / players, 0.0))
    return score / players


def simulate_gate(
    settings: EvaluationConfig,
    elo: float,
    scenario: Scenario | None = None,
    *,
    runs: int = 1000,
    seed: int = 0,
) -> GatePower:
    """Evaluate a candidate `elo` above the champion `runs` times, and count the promotions.

    Raises:
        ValueError: for runs < 1, or what the gate itself refuses.
    """
    if runs < 1:
        raise ValueError(f"runs must be at least 1, got {runs}")
    scenario = scenario or Scenario()
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(scenario.players,)))
    seats = scenario.players
    fixed = max(1, settings.games // seats)
    edges = job_edges(max(1, settings.max_games // seats), seats)
    over = {"random": scenario.over_random, "heuristic": scenario.over_heuristic}
    baselines = {name: elo for name, elo in over.items() if name in settings.opponents}
    verdict = _Verdicts(settings, seats)
    accepted = games = 0
    for _ in range(runs):
        scores = simulate_sets(rng, edges[-1], elo, scenario)
        played = next((end for end in edges[1:] if verdict(scores[:end])), edges[-1])
        games += played * seats
        accepted += gate.decide(
            {
                name: simulate_sets(rng, fixed, above + elo, scenario)
                for name, above in baselines.items()
            },
            scores[:played],
            {
                name: float(simulate_sets(rng, fixed, above, scenario).mean())
                for name, above in baselines.items()
            },
            players=seats,
            confidence=settings.confidence,
            **gate.sequential_test(settings),
        ).promote
    low, high = gate.wilson_interval(accepted, runs)
    return GatePower(runs, accepted, accepted / runs, low, high, games / runs)


class _Verdicts:
    """Whether the sequential test has ended; asked once for each tally of scores.

    The test is a function of the tally (a test of the gate says so), and few tallies make up most
    of what is seen.
    """

    def __init__(self, settings: EvaluationConfig, players: int) -> None:
        self._parameters, self._players = gate.sequential_test(settings), players
        self._known: dict[tuple[tuple[float, int], ...], bool] = {}

    def __call__(self, scores: Sequence[float] | NDArray[np.float64]) -> bool:
        values, counts = np.unique(np.round(scores, 9), return_counts=True)
        key = tuple(zip(values.tolist(), counts.tolist(), strict=True))
        if key not in self._known:
            test = gate.sprt(scores, players=self._players, **self._parameters)
            self._known[key] = test.verdict != "continue"
        return self._known[key]
