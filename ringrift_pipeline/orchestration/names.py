"""The names of the pipeline: configs, asset keys, partitions, jobs, tags."""

from __future__ import annotations

from collections.abc import Mapping

from dagster import AssetKey, DynamicPartitionsDefinition

from ringrift_pipeline.orchestration.configs import CONFIGS as CONFIGS
from ringrift_pipeline.store.layout import parse_generation

# What a generation makes, in the order in which it is made.
ASSETS = (
    "selfplay_shards",
    "quality_scores",
    "hard_examples",
    "checkpoint",
    "ema_model",
    "ensemble",
    "calibration_report",
    "evaluation",
)
CHAMPION = "champion"

MODULE = "ringrift_pipeline.definitions"
PRELOAD = "ringrift_pipeline.orchestration.preload"
CPU_POOL = "cpu"
GPU_POOL = "gpu"
SENSOR = "evaluation_landed"
OWNERS = ["team:ringrift"]
FAILURE_SENSOR = "run_failed"
STALLED_SENSOR = "config_stalled"

# Tags of every run of ours; Dagster's own partition tag says which generation it is.
CONFIG_TAG = "ringrift/config"
PARTITION_TAG = "dagster/partition"
BACKFILL_TAG = "dagster/backfill"
FILLED_TAG = "ringrift/backfill"  # the same, on whatever executes a run of a backfill again as well
ORDER_TAG = "ringrift/in_order"  # runs of one value follow each other: a config's generations
TREND_TAG = "ringrift/trend"  # what the evaluation feedback saw: rising, plateau, …
FACTORS_TAG = "ringrift/factors"  # what it has come to: rate x0.9, exploration x1.1, …


class GenerationKeyError(ValueError):
    """A partition key that names no generation; the message says what one looks like."""


def asset_key(config: str, name: str) -> AssetKey:
    """``[config, name]``."""
    return AssetKey([config, name])


def node_name(config: str, name: str) -> str:
    """The step that makes an asset, as Dagster names it from the key: ``config__name``."""
    return f"{config}__{name}"


def partitions_name(config: str) -> str:
    """The name of a config's dynamic partitions."""
    return f"{config}_generation"


def partitions(config: str) -> DynamicPartitionsDefinition:
    """The generations of one config, zero-padded keys (``0007``)."""
    return DynamicPartitionsDefinition(name=partitions_name(config))


def job_name(config: str) -> str:
    """The job that makes one generation of a config."""
    return f"{config}_generation"


def generation_key(generation: int) -> str:
    """7 -> ``0007``."""
    return f"{generation:04d}"


def config_in(tags: Mapping[str, str]) -> str | None:
    """The config that a run's tags name. Whoever launches a run writes its tags: what is none of
    ours becomes no path, no question and no text.
    """
    config = tags.get(CONFIG_TAG)
    return config if config in CONFIGS else None


def generation_in(tags: Mapping[str, str]) -> int | None:
    """The generation that a run's tags name, None where there is none or what is no key of one."""
    return parse_generation(tags.get(PARTITION_TAG, ""))


def backfill_in(tags: Mapping[str, str]) -> str | None:
    """The backfill that a run's tags name, None where it is of none. Dagster takes its own tag off a
    run that is executed again once the backfill is over; ours stays.
    """
    return tags.get(BACKFILL_TAG) or tags.get(FILLED_TAG)


def generation_of(key: str, config: str) -> int:
    """``0007`` -> 7.

    Raises:
        GenerationKeyError: anything else; ``7`` would be generation 7 under a second key.
    """
    generation = parse_generation(key)
    if generation is None:
        raise GenerationKeyError(
            f"{key!r} is no generation of {config}: a generation's key is its number in four "
            f"digits (or more, from 10000 on), {generation_key(3)} for generation 3; delete the "
            f"partition {key!r} of {partitions_name(config)} in the UI, and launch under such a key"
        )
    return generation
