"""The presets: what each changes in the defaults of the settings."""

from __future__ import annotations

from typing import Any

# Each preset is what differs from the defaults.
PRESETS: dict[str, dict[str, Any]] = {
    # two generations in minutes on two cores
    "smoke": {
        "selfplay.games": 320,
        "selfplay.games_per_shard": 40,
        "selfplay.parallel_games": 40,
        "selfplay.full_search_fraction": 0.3,
        "search.simulations": 32,
        "search.cheap_simulations": 8,
        "network.blocks": 2,
        "network.channels": 32,
        "training.checkpoint_every": 50,
        "schedule.warmup_steps": 5,
        "evaluation.games": 96,
        "evaluation.simulations": 32,
        "evaluation.max_games": 240,
    },
    # a few generations in an hour on two cores
    "hour": {
        "selfplay.games": 320,
        "selfplay.games_per_shard": 40,
        "selfplay.parallel_games": 40,
        "search.simulations": 48,
        "search.cheap_simulations": 12,
        "network.blocks": 4,
        "network.channels": 48,
        "evaluation.games": 96,
        "evaluation.simulations": 48,
        "evaluation.max_games": 240,
    },
    # a day on a workstation
    "day": {
        "selfplay.games": 1024,
        "search.simulations": 96,
        "search.cheap_simulations": 16,
        "network.blocks": 8,
        "network.channels": 96,
        "mining.buffer_size": 50_000,
        "averaging.decay_half_life_samples": 100_000.0,
        "evaluation.games": 200,
        "evaluation.simulations": 96,
    },
}
