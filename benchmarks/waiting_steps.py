"""Steps that wait and do nothing else, on Celery's workers: the code location of ``workers.py``."""

import time
from collections.abc import Iterator
from typing import Any

from dagster import (
    Definitions,
    DynamicOut,
    DynamicOutput,
    In,
    Nothing,
    OpExecutionContext,
    Out,
    job,
    op,
)

from ringrift_pipeline.orchestration.celery_executor import celery_executor
from ringrift_pipeline.orchestration.io_managers import JsonIOManager
from ringrift_pipeline.orchestration.resources import StoreResource
from ringrift_pipeline.orchestration.step import running_step

CONFIG = "square8_2p"


@op(out=DynamicOut(Nothing), config_schema={"steps": int})
def plan(context: OpExecutionContext) -> Iterator[DynamicOutput[None]]:
    """As many outputs as steps are asked for."""
    for index in range(context.op_config["steps"]):
        yield DynamicOutput(None, mapping_key=f"{index:05d}")


@op(
    ins={"planned": In(Nothing)},
    out=Out(Nothing),
    config_schema={"seconds": float},
    required_resource_keys={"store"},
)
def wait(context: OpExecutionContext) -> None:
    """A step with all that a real one has around it."""
    with running_step(context, CONFIG, 0):
        time.sleep(context.op_config["seconds"])


@op(ins={"waited": In(Nothing)})
def collect(context: OpExecutionContext) -> None:
    """After all of them."""


@job(executor_def=celery_executor)
def waiting() -> None:
    """Plan, wait, one step an output, collect."""
    planned: Any = plan()
    collect(planned.map(wait).collect())


defs = Definitions(
    jobs=[waiting], resources={"store": StoreResource(), "io_manager": JsonIOManager()}
)
