"""A training step that lost one of its processes, killed for real."""

from pathlib import Path

import pytest
from dagster import OpExecutionContext, in_process_executor, job, op

from ringrift_pipeline.orchestration.resources import StoreResource
from ringrift_pipeline.orchestration.step import LOST, once, running_step
from ringrift_pipeline.training.processes import run_together

from .dying import the_second_dies


@pytest.mark.whole
def test_a_step_one_of_whose_training_processes_is_killed_is_begun_again(tmp_path: Path) -> None:
    tries = []

    @op(required_resource_keys={"store"}, retry_policy=LOST)
    def trains(context: OpExecutionContext) -> None:
        with once(), running_step(context, "hex8_2p", 3) as step:
            tries.append(1)
            together = run_together(2, the_second_dies, str(tmp_path / "died"), **step.hooks())
            assert together == 2

    @job(executor_def=in_process_executor)
    def training() -> None:
        trains()

    store = StoreResource(root=str(tmp_path / "data"))
    assert training.execute_in_process(resources={"store": store}).success
    assert len(tries) == 2
