"""The presets: what each changes in the defaults of the settings, and for which config."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

# A test that accepts one model in twenty 20 Elo weaker and nine in ten 70 Elo stronger; the default
# of 600 games does with less luck (benchmarks/gate.py).
_SHORT_GATE = {"evaluation.elo1": 50.0, "evaluation.alpha": 0.1, "evaluation.max_games": 400}
# Where a game takes long, a smoke test's few games prove big steps only: these are the gates that take
# a model 70 Elo stronger in fewer than nine cases of ten (the tests of the gate's power name them).
_BIG_STEPS = {"evaluation.elo1": 150.0}

# Each preset is what differs from the defaults.
PRESETS: dict[str, dict[str, Any]] = {
    # two generations in minutes on two cores
    "smoke": {
        "selfplay.games": 320,
        "selfplay.games_per_shard": 80,
        "selfplay.parallel_games": 80,
        "selfplay.full_search_fraction": 0.3,
        "search.simulations": 32,
        "search.cheap_simulations": 8,
        "network.blocks": 2,
        "network.channels": 32,
        "training.checkpoint_every": 50,
        "schedule.warmup_steps": 5,
        "evaluation.games": 96,
        "evaluation.simulations": 32,
        **_SHORT_GATE,
    },
    # about an hour on two cores
    "hour": {
        "selfplay.games": 1600,
        "selfplay.games_per_shard": 200,
        "selfplay.parallel_games": 100,
        "search.simulations": 48,
        "search.cheap_simulations": 12,
        "network.blocks": 4,
        "network.channels": 32,
        "training.sample_reuse": 5.0,
        "training.window_games": 3200,
        "training.checkpoint_every": 500,
        "mining.buffer_size": 40_000,
        "averaging.decay_half_life_samples": 50_000.0,
        "evaluation.games": 64,
        "evaluation.simulations": 48,
        **_SHORT_GATE,
    },
    # a day on a workstation
    "day": {
        "selfplay.games": 4096,
        "selfplay.games_per_shard": 256,
        "selfplay.parallel_games": 128,
        "search.simulations": 96,
        "search.cheap_simulations": 16,
        "network.blocks": 6,
        "network.channels": 64,
        "training.window_games": 16_384,
        "mining.buffer_size": 100_000,
        "averaging.decay_half_life_samples": 100_000.0,
        "evaluation.games": 200,
        "evaluation.simulations": 96,
    },
}

# Generations that a loop begun with the preset plays, unless told otherwise: what its words promise.
GENERATIONS = {"smoke": 2, "hour": 13, "day": 24}
# The same where a pattern matches the config: nine generations of hex8 take 65 minutes (measured), one
# of square19 some ten (reckoned from generations with fewer games), one of hexagonal a quarter more
# (reckoned from its cells).
GENERATIONS_BY_CONFIG = {"hour": {"hex8_*": 9, "square19_*": 6, "hexagonal_*": 5}}

# What a preset changes further for the configs that a pattern matches; later entries beat earlier
# ones. A random game of square19 has 4 times the plies of one of square8 on 6 times the cells, one
# of hexagonal 8 times the plies on 7 times the cells.
BY_CONFIG: dict[str, dict[str, dict[str, Any]]] = {
    "smoke": {
        "square19_*": {
            "selfplay.games": 32,
            "selfplay.games_per_shard": 8,
            "selfplay.parallel_games": 8,
            "selfplay.max_plies": 1_500,
            "search.simulations": 16,
            "search.cheap_simulations": 4,
            "evaluation.games": 24,
            "evaluation.simulations": 16,
            "evaluation.max_games": 48,
            **_BIG_STEPS,
        },
        "hexagonal_*": {
            "selfplay.games": 16,
            "selfplay.games_per_shard": 4,
            "selfplay.parallel_games": 4,
            "selfplay.max_plies": 2_500,
            "search.simulations": 16,
            "search.cheap_simulations": 4,
            "evaluation.games": 12,
            "evaluation.simulations": 16,
            "evaluation.max_games": 24,
            **_BIG_STEPS,
        },
    },
    "hour": {
        # Three generations in the window at the end, where 0.4 has six. Two had better losses than six,
        # and the later models of a loop with 0.1 won against those of one with 0.4 (docs/learning.md).
        "square8_2p": {"training.window_growth": 0.1},
        "square19_*": {
            "selfplay.games": 64,
            "selfplay.games_per_shard": 8,
            "selfplay.parallel_games": 8,
            "selfplay.max_plies": 1_500,
            "search.simulations": 24,
            "search.cheap_simulations": 6,
            "evaluation.games": 24,
            "evaluation.simulations": 24,
            "evaluation.max_games": 500,
            "training.window_games": 256,
        },
        "hexagonal_*": {
            "selfplay.games": 32,
            "selfplay.games_per_shard": 4,
            "selfplay.parallel_games": 4,
            "selfplay.max_plies": 2_500,
            "search.simulations": 24,
            "search.cheap_simulations": 6,
            "evaluation.games": 12,
            "evaluation.simulations": 24,
            "evaluation.max_games": 500,
            "training.window_games": 128,
        },
    },
    "day": {
        "square19_*": {
            "selfplay.games": 256,
            "selfplay.games_per_shard": 16,
            "selfplay.parallel_games": 16,
            "selfplay.max_plies": 1_500,
            "search.simulations": 48,
            "search.cheap_simulations": 8,
            "evaluation.games": 96,
            "evaluation.simulations": 48,
            "training.window_games": 512,
        },
        "hexagonal_*": {
            "selfplay.games": 128,
            "selfplay.games_per_shard": 8,
            "selfplay.parallel_games": 8,
            "selfplay.max_plies": 2_500,
            "search.simulations": 48,
            "search.cheap_simulations": 8,
            "evaluation.games": 48,
            "evaluation.simulations": 48,
            "training.window_games": 256,
        },
    },
}


def generations_for(preset: str, config: str) -> int:
    """Generations that a loop of ``config`` begun with ``preset`` plays; 1 without a preset ("")."""
    count = GENERATIONS.get(preset, 1)
    for pattern, other in GENERATIONS_BY_CONFIG.get(preset, {}).items():
        if fnmatchcase(config, pattern):
            count = other
    return count


def preset_for(name: str, config: str | None = None) -> dict[str, Any]:
    """What preset ``name`` changes in the defaults, by dotted setting.

    With ``config`` (``square19_2p``) what it changes for that config: the entries of
    :data:`BY_CONFIG` whose pattern matches, over those of :data:`PRESETS`.

    Raises:
        ValueError: there is no such preset; the message lists those there are.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
    changes = dict(PRESETS[name])
    if config is not None:
        for pattern, further in BY_CONFIG.get(name, {}).items():
            if fnmatchcase(config, pattern):
                changes |= further
    return changes
