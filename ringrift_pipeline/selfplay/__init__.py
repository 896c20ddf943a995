"""Playing many games at once: plans, shards and the workers that play them.

Names load on first use: importing this room costs neither numba nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ringrift_pipeline.selfplay.collecting import collect
    from ringrift_pipeline.selfplay.plan import Plan, PlanError, load_plan, plan_generation
    from ringrift_pipeline.selfplay.playing import missing_shards, play_shard
    from ringrift_pipeline.selfplay.shards import (
        SHARD_SCHEMA,
        ShardError,
        read_metadata,
        read_shard,
        shard_kind,
    )
    from ringrift_pipeline.selfplay.stopping import Interrupted
    from ringrift_pipeline.selfplay.windowing import iter_shards
    from ringrift_pipeline.selfplay.workers import SelfplayError, play_shards

_MODULES = {
    "collecting": ("collect",),
    "plan": ("Plan", "PlanError", "load_plan", "plan_generation"),
    "playing": ("missing_shards", "play_shard"),
    "shards": (
        "SHARD_SCHEMA",
        "ShardError",
        "read_metadata",
        "read_shard",
        "shard_kind",
    ),
    "stopping": ("Interrupted",),
    "windowing": ("iter_shards",),
    "workers": ("SelfplayError", "play_shards"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "SHARD_SCHEMA",
    "Interrupted",
    "Plan",
    "PlanError",
    "SelfplayError",
    "ShardError",
    "collect",
    "iter_shards",
    "load_plan",
    "missing_shards",
    "plan_generation",
    "play_shard",
    "play_shards",
    "read_metadata",
    "read_shard",
    "shard_kind",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
