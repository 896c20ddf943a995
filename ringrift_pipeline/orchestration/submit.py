"""Putting a run of ours into the queue, from the command line."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from dagster import DagsterInstance
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.origin import (
    DEFAULT_DAGSTER_ENTRY_POINT,
    JobPythonOrigin,
    RepositoryPythonOrigin,
)
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from ringrift_pipeline.orchestration.build import build_definitions
from ringrift_pipeline.orchestration.jobs import RETRIED_WHOLE
from ringrift_pipeline.orchestration.names import (
    CONFIG_TAG,
    MODULE,
    PARTITION_TAG,
    generation_key,
    job_name,
    partitions_name,
)


def submit_generation(
    instance: DagsterInstance, config: str, generation: int, run_config: Mapping[str, Any]
) -> str:
    """Queue ``<config>_generation`` for a generation, adding its partition; the run's id.

    The run is made here, from the definitions themselves, and executed by whatever daemon works
    on the instance.

    Raises:
        DagsterInvalidConfigError, LaunchRefusedError: a value is out of bounds.
    """
    key = generation_key(generation)
    if not instance.has_dynamic_partition(partitions_name(config), key):
        instance.add_dynamic_partitions(partitions_name(config), [key])
    name = job_name(config)
    repository = build_definitions().get_repository_def()
    location = ManagedGrpcPythonEnvCodeLocationOrigin(
        LoadableTargetOrigin(executable_path=sys.executable, module_name=MODULE), MODULE
    )
    run = instance.create_run_for_job(
        job_def=repository.get_job(name),
        run_config=run_config,
        tags={CONFIG_TAG: config, PARTITION_TAG: key, **RETRIED_WHOLE},
        remote_job_origin=RemoteJobOrigin(RemoteRepositoryOrigin(location, repository.name), name),
        job_code_origin=JobPythonOrigin(
            job_name=name,
            repository_origin=RepositoryPythonOrigin(
                executable_path=sys.executable,
                code_pointer=ModuleCodePointer(MODULE, "defs", None),
                entry_point=DEFAULT_DAGSTER_ENTRY_POINT,
            ),
        ),
    )
    # The queue only notes the run; it needs no workspace.
    return instance.submit_run(run.run_id, workspace=None).run_id  # type: ignore[arg-type]
