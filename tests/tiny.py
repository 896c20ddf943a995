"""Settings of generations that take seconds; a room adds its seed and its numbers of games."""

from __future__ import annotations

from typing import Any

PLAYED: dict[str, Any] = {
    "device": "cpu",
    "selfplay.workers": 1,
    "selfplay.full_search_fraction": 0.5,
    "search.simulations": 4,
    "search.cheap_simulations": 2,
    "search.max_considered": 4,
    "network.blocks": 1,
    "network.channels": 8,
    "network.value_channels": 8,
}
TRAINED: dict[str, Any] = {
    **PLAYED,
    "selfplay.games": 12,
    "selfplay.games_per_shard": 6,
    "selfplay.parallel_games": 6,
    "training.batch_size": 32,
    "training.sample_reuse": 1.0,
    "training.checkpoint_every": 4,
    "training.holdout_fraction": 0.3,
    "training.threads": 1,
    "training.precision": "float32",
    "quality.enabled": True,
    "gradients.clipping": True,
    "mining.enabled": True,
    "mining.min_samples_before_mining": 64,
    "schedule.warmup_steps": 2,
    "calibration.min_games": 2,
    "calibration.bootstrap": 20,
    "calibration.bins": 5,
}
