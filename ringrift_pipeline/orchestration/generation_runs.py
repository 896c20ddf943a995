"""Runs that make a generation, whoever asked for them."""

from __future__ import annotations

from dagster import DagsterInstance, DagsterRun, RunsFilter

from ringrift_pipeline.orchestration.names import (
    PARTITION_TAG,
    asset_key,
    backfill_in,
    generation_in,
    generation_key,
    job_name,
)


def makes_a_generation(run: DagsterRun, config: str) -> bool:
    """Does a run bring a generation to its evaluation, as the loop's do? A backfill's decides
    nothing, whatever it makes.
    """
    if generation_in(run.tags) is None or backfill_in(run.tags):
        return False
    if run.asset_selection:
        return asset_key(config, "evaluation") in run.asset_selection
    return not run.asset_check_selection  # the job as it is


def generation_runs(instance: DagsterInstance, config: str, generation: int) -> list[DagsterRun]:
    """Runs of the config's job that make a generation, newest first; not a backfill's, nor those of
    some assets alone.
    """
    tags = {PARTITION_TAG: generation_key(generation)}
    found = instance.get_runs(RunsFilter(job_name=job_name(config), tags=tags))
    return [run for run in found if makes_a_generation(run, config)]
