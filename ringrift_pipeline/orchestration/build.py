"""All definitions, for some configs or for all twelve."""

from __future__ import annotations

from collections.abc import Sequence

from dagster import Definitions

from ringrift_pipeline.orchestration.ablation import ablation
from ringrift_pipeline.orchestration.assets import family
from ringrift_pipeline.orchestration.checks import checks_of
from ringrift_pipeline.orchestration.gauntlet import champion_gauntlet
from ringrift_pipeline.orchestration.io_managers import JsonIOManager, ParquetIOManager
from ringrift_pipeline.orchestration.jobs import executor, generation_job
from ringrift_pipeline.orchestration.names import CONFIGS
from ringrift_pipeline.orchestration.resources import StoreResource
from ringrift_pipeline.orchestration.schedules import nightly_selfplay, weekly_gauntlet
from ringrift_pipeline.orchestration.sensor import evaluation_sensor
from ringrift_pipeline.orchestration.settings import settings_resource


def build_definitions(configs: Sequence[str] = CONFIGS) -> Definitions:
    """Assets, checks, jobs, the sensor and the schedules of ``configs``."""
    jobs = [generation_job(config) for config in configs]
    return Definitions(
        assets=[asset for config in configs for asset in family(config)],
        asset_checks=[check for config in configs for check in checks_of(config)],
        jobs=[*jobs, champion_gauntlet, ablation],
        sensors=[evaluation_sensor(jobs)],
        schedules=[nightly_selfplay, weekly_gauntlet],
        executor=executor(),
        resources={
            "settings": settings_resource,
            "store": StoreResource(),
            "io_manager": JsonIOManager(),
            "tables": ParquetIOManager(),
        },
    )
