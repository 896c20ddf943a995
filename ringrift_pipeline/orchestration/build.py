"""All definitions, for some configs or for all twelve."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from dagster import BetaWarning, Definitions

from ringrift_pipeline.orchestration.ablation import ablation
from ringrift_pipeline.orchestration.assets import family
from ringrift_pipeline.orchestration.checks import checks_of
from ringrift_pipeline.orchestration.failure_sensor import failure_sensor
from ringrift_pipeline.orchestration.gauntlet import champion_gauntlet
from ringrift_pipeline.orchestration.io_managers import JsonIOManager, ParquetIOManager
from ringrift_pipeline.orchestration.jobs import executor, generation_job
from ringrift_pipeline.orchestration.names import CONFIGS
from ringrift_pipeline.orchestration.notify import NotifierResource
from ringrift_pipeline.orchestration.resources import StoreResource, fixed
from ringrift_pipeline.orchestration.retention import (
    disk_retention,
    retention_asset,
    within_budget,
)
from ringrift_pipeline.orchestration.schedules import schedules
from ringrift_pipeline.orchestration.sensor import evaluation_sensor
from ringrift_pipeline.orchestration.stalled_sensor import stalled_sensor
from ringrift_pipeline.orchestration.switches import set_switches


def build_definitions(configs: Sequence[str] = CONFIGS) -> Definitions:
    """Assets, checks, jobs, sensors and schedules of ``configs``."""
    jobs = [generation_job(config) for config in configs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BetaWarning)  # assets that bring a resource
        assets = [asset for config in configs for asset in family(config)]
    return Definitions(
        assets=[*assets, retention_asset()],
        asset_checks=[
            *(check for config in configs for check in checks_of(config)),
            within_budget,
        ],
        jobs=[*jobs, champion_gauntlet, ablation, set_switches, disk_retention],
        sensors=[evaluation_sensor(jobs), failure_sensor(), stalled_sensor()],
        schedules=schedules(),
        executor=executor(),
        resources={
            "store": fixed(StoreResource()),
            "notifier": NotifierResource(),
            "io_manager": fixed(JsonIOManager()),
            "tables": fixed(ParquetIOManager()),
        },
    )
