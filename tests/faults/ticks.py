"""Ticks of the sensor that starts generations, under the daemon's own code, on a real instance."""

from __future__ import annotations

import os
from pathlib import Path

from dagster import DagsterInstance, materialize
from orchestration.landing import fake_evaluation, landing
from orchestration.ticking import daemon, sensor_tick

from ringrift_pipeline.enhancements import TrainingConfig
from ringrift_pipeline.orchestration import names
from ringrift_pipeline.orchestration.instance import open_instance, own_instance
from ringrift_pipeline.orchestration.settings import run_config, settings_resource
from ringrift_pipeline.store import Store

TWO = ("square8_2p", "hex8_3p")


def work(root: Path, what: str, generation: int) -> None:
    """``land``: evaluations of that generation land for two configs; ``tick``: the sensor looks;
    ``tick beside another``: the newest tick may be another daemon's; ``start``: as `tick`, once what
    the last one's end has left is tidied up.
    """
    os.environ["RINGRIFT_DATA"] = str(root)
    os.environ.pop("DAGSTER_HOME", None)
    with (own_instance if what == "start" else open_instance)(root) as instance:
        if what == "land":
            for config in TWO:
                _land(instance, Store(root), config, generation)
        else:
            with daemon(instance) as workspace:
                sensor_tick(workspace)
            if what != "tick beside another":
                _check_tick(instance)


def _check_tick(instance: DagsterInstance) -> None:
    """The daemon swallows what goes wrong in a tick."""
    (state,) = [
        one for one in instance.all_instigator_state() if one.instigator_name == names.SENSOR
    ]
    (tick,) = instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1)
    assert tick.status.value in ("SUCCESS", "SKIPPED"), tick


def _land(instance: DagsterInstance, store: Store, config: str, generation: int) -> None:
    evaluation = fake_evaluation(store, config, generation, True, None)
    key = names.generation_key(generation)
    if not instance.has_dynamic_partition(names.partitions_name(config), key):
        instance.add_dynamic_partitions(names.partitions_name(config), [key])
    result = materialize(
        [landing(config, names.ASSETS, {}, evaluation)],
        instance=instance,
        partition_key=key,
        resources={"settings": settings_resource},
        run_config=run_config(TrainingConfig.preset("smoke")),
    )
    assert result.success


def prepare() -> None:
    """Build the definitions, which every fork then has."""
    from ringrift_pipeline.definitions import defs

    defs.get_repository_def()
