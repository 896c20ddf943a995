"""Which generations the browser offers for launching: those that have a partition."""

from __future__ import annotations

from dagster import DagsterInstance

from ringrift_pipeline.orchestration.names import generation_key, partitions_name
from ringrift_pipeline.store import Store


def next_generation(store: Store, config: str) -> int:
    """The one after the newest that has a plan, 0 where none has."""
    generations = store.generations(config)
    return generations[-1] + 1 if generations else 0


def add_partitions(instance: DagsterInstance, store: Store, config: str) -> list[str]:
    """Add the missing partitions of generations that have a plan, and of the one after each;
    return their keys.

    The next one's is there whether or not the loop goes on: at its end, and after a generation that
    failed, launching the next is how people go on, with other settings if they like. Ascending:
    generations are plotted in the order in which their partitions were made.
    """
    planned = store.generations(config)
    wanted = {*planned, *(generation + 1 for generation in planned)} or {0}
    known = set(instance.get_dynamic_partitions(partitions_name(config)))
    missing = [key for key in map(generation_key, sorted(wanted)) if key not in known]
    if missing:
        instance.add_dynamic_partitions(partitions_name(config), missing)
    return missing
