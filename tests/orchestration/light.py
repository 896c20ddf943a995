"""The pipeline of one config as a code location of its own: the real assets and resources, and an
executor whose fork server loads nothing ahead, which pays where a run has a step or two.
"""

from dagster import AssetSelection, Definitions, define_asset_job, multiprocess_executor

from ringrift_pipeline.orchestration import names
from ringrift_pipeline.orchestration.assets import family
from ringrift_pipeline.orchestration.build import build_definitions

MODULE = "tests.orchestration.light"
CONFIG = "square8_2p"

defs = Definitions(
    assets=family(CONFIG),
    jobs=[define_asset_job(names.job_name(CONFIG), selection=AssetSelection.groups(CONFIG))],
    executor=multiprocess_executor.configured(
        {"start_method": {"forkserver": {"preload_modules": []}}}
    ),
    resources=build_definitions(()).resources,
)
