"""The gate's error rates, and that they are seen to go wrong when the gate is made careless."""

from __future__ import annotations

import itertools
from fnmatch import fnmatch

import numpy as np
import pytest

from ringrift_pipeline.enhancements import TrainingConfig
from ringrift_pipeline.enhancements.config_stages import EvaluationConfig
from ringrift_pipeline.enhancements.training_config import PRESETS
from ringrift_pipeline.evaluation import gate
from ringrift_pipeline.evaluation.power import Scenario, simulate_gate, simulate_sets
from ringrift_pipeline.evaluation.tournament import job_edges
from ringrift_pipeline.game import CONFIGS

# Rates are judged by the end of their 95% interval that is against us. By 500 runs one gate in fifty
# that takes 5% of the weaker would pass, and of those that take 8% none of a hundred thousand.
RUNS = 500
MOST, LEAST = 0.05, 0.90
SHORT = {"smoke": ("square19_*", "hexagonal_*")}
"""Gates with too few games to know a model 70 Elo stronger: of a smoke test where games take long."""


def evaluation(preset: str | None, config: str | None = None) -> EvaluationConfig:
    found = TrainingConfig.load(preset=preset, config=config, environ={}).evaluation
    return found.model_copy(update={"simulations": 1, "anchor_games": 0})  # no matter to the gate


def gates(short: bool | None = None) -> list[tuple[EvaluationConfig, int]]:
    """The different gates of the defaults and of the presets of all configs, and their seats.

    ``short``: only those that :data:`SHORT` names, or only the others.
    """
    found = [] if short else [(evaluation(None), players) for players in (2, 3, 4)]
    for preset, config in itertools.product(PRESETS, CONFIGS):
        if short not in (None, any(fnmatch(config, board) for board in SHORT.get(preset, ()))):
            continue
        gate = evaluation(preset, config), int(config[-2])
        if gate not in found:
            found.append(gate)
    return found


@pytest.mark.parametrize(("settings", "players"), gates())
def test_a_weaker_model_is_seldom_accepted(settings: EvaluationConfig, players: int) -> None:
    scenario = Scenario(players, draws=0.1, opening=0.2)
    assert simulate_gate(settings, -20.0, scenario, runs=RUNS, seed=1).high < MOST


@pytest.mark.parametrize(("settings", "players"), gates(short=False))
def test_a_stronger_model_is_nearly_always_accepted(
    settings: EvaluationConfig, players: int
) -> None:
    assert simulate_gate(settings, 70.0, Scenario(players), runs=RUNS, seed=2).low > LEAST


@pytest.mark.parametrize(("settings", "players"), gates(short=True))
def test_what_a_short_gate_cannot_tell(settings: EvaluationConfig, players: int) -> None:
    """Else it would be no exception: its games are too few for 70 Elo, by far."""
    assert simulate_gate(settings, 70.0, Scenario(players), runs=RUNS, seed=2).high < 0.5


@pytest.mark.parametrize(("settings", "players"), gates())
def test_much_stronger_is_enough_everywhere(settings: EvaluationConfig, players: int) -> None:
    """A smoke test of a large board may take few games, but not so few that none can win."""
    power = simulate_gate(settings, 400.0, Scenario(players), runs=50, seed=3)
    assert power.rate > 0.5


def by_the_mean(scores: object, *_: object, **__: object) -> gate.SprtResult:
    """The gate that takes 200 games and asks for half of them."""
    values = np.asarray(scores)
    enough = values.size >= 100
    good = enough and values.mean() >= 0.5
    verdict = "accept" if good else "reject" if enough else "continue"
    return gate.SprtResult(0.0, -1.0, 1.0, verdict, values.size, 0.5, 0.0, 35.0, 0.05, 0.05)


def test_a_careless_gate_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "sprt", by_the_mean)
    power = simulate_gate(evaluation(None), -20.0, runs=RUNS, seed=1)
    assert power.low > MOST  # 23% by theory
    assert power.low < 0.23 < power.high


@pytest.mark.parametrize(
    "change", [{"alpha": 0.45, "beta": 0.45}, {"elo0": -60.0, "elo1": -25.0}, {"elo0": -200.0}]
)
def test_careless_settings_are_found_out(change: dict[str, float]) -> None:
    careless = evaluation(None).model_copy(update=change)
    assert simulate_gate(careless, -20.0, runs=RUNS, seed=1).low > MOST


def test_too_few_games_are_found_out() -> None:
    short = evaluation(None).model_copy(update={"max_games": 120})
    assert simulate_gate(short, 70.0, runs=RUNS, seed=2).high < LEAST


def test_floors_are_part_of_the_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the test takes everybody, a baseline that the champion beats still refuses."""

    def easy(scores: object, *_: object, **__: object) -> gate.SprtResult:
        return gate.SprtResult(9.0, -1.0, 1.0, "accept", 1, 0.5, 0.0, 35.0, 0.05, 0.05)

    monkeypatch.setattr(gate, "sprt", easy)
    with_floors = evaluation(None)
    without = with_floors.model_copy(update={"opponents": ("champion",)})
    scenario = Scenario(over_heuristic=100.0)
    assert simulate_gate(with_floors, -300.0, scenario, runs=50).rate < 0.05
    assert simulate_gate(without, -300.0, scenario, runs=50).rate == 1.0


@pytest.mark.parametrize("players", [2, 3, 4])
@pytest.mark.parametrize(("draws", "opening"), [(0.0, 0.0), (0.3, 0.0), (0.1, 0.3)])
def test_simulated_games_have_the_strength_asked_for(
    players: int, draws: float, opening: float
) -> None:
    rng = np.random.default_rng(players)
    for elo in (-20.0, 70.0, 500.0):
        scores = simulate_sets(rng, 40_000, elo, Scenario(players, draws, opening))
        strength = 10 ** (elo / 400)
        expected = strength / (strength + players - 1)  # Bradley-Terry, Plackett-Luce
        assert scores.mean() == pytest.approx(expected, abs=0.005)
        assert scores.min() >= 0.0 and scores.max() <= 1.0
    if draws and not opening:
        rare = simulate_sets(rng, 40_000, 0.0, Scenario(players, draws))
        plain = simulate_sets(rng, 40_000, 0.0, Scenario(players))
        assert rare.var() < plain.var()


def test_the_test_is_looked_at_where_the_loop_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = gate.sprt

    def seen(scores: object, *more: object, **named: object) -> gate.SprtResult:
        asked.append(len(scores))  # type: ignore[arg-type]
        return real(scores, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(gate, "sprt", seen)
    simulate_gate(evaluation(None), 35.0, runs=3, seed=0)
    edges = job_edges(300, 2)
    assert edges[0] == 0 and edges[-1] == 300 and max(np.diff(edges)) <= 16
    assert set(asked) <= set(edges) and edges[1] in asked


def test_no_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="runs"):
        simulate_gate(evaluation(None), 0.0, runs=0)
