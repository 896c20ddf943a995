"""The daemon's own code around the sensors and the schedules, in this process."""

from __future__ import annotations

import datetime
import logging
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from dagster import DagsterInstance
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.test_utils import (
    InProcessTestWorkspaceLoadTarget,
    create_test_daemon_workspace_context,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._daemon.sensor import execute_sensor_iteration
from dagster._scheduler.scheduler import launch_scheduled_runs

from ringrift_pipeline.orchestration import names


@contextmanager
def daemon(instance: DagsterInstance) -> Iterator[Any]:
    """A daemon's view of the code location; leaving it is the daemon's end."""
    origin = InProcessCodeLocationOrigin(
        LoadableTargetOrigin(executable_path=sys.executable, module_name=names.MODULE),
        container_image=None,
        entry_point=None,
        container_context=None,
        location_name=names.MODULE,
    )
    target = InProcessTestWorkspaceLoadTarget(origin)
    with create_test_daemon_workspace_context(target, instance) as workspace:
        yield workspace


def sensor_tick(workspace: Any) -> None:
    with ThreadPoolExecutor(1) as pool:
        futures: dict[str, Any] = {}
        list(
            execute_sensor_iteration(
                workspace,
                logging.getLogger("test"),
                threadpool_executor=pool,
                submit_threadpool_executor=None,
                sensor_tick_futures=futures,
            )
        )
        for future in futures.values():
            future.result()


def turn_on(workspace: Any, schedule: str) -> None:
    """Start a schedule as the UI does."""
    location = workspace.create_request_context().get_code_location(names.MODULE)
    (repository,) = location.get_repositories().values()
    workspace.instance.start_schedule(repository.get_schedule(schedule))


def turn_off(workspace: Any, sensor: str) -> None:
    """Stop a sensor as the UI does."""
    location = workspace.create_request_context().get_code_location(names.MODULE)
    (repository,) = location.get_repositories().values()
    found = repository.get_sensor(sensor)
    workspace.instance.stop_sensor(found.get_remote_origin_id(), found.selector_id, found)


def schedule_tick(workspace: Any, when: datetime.datetime) -> None:
    """Let the scheduler look once, at a time, as one does that has just been started."""
    errors = launch_scheduled_runs(workspace, logging.getLogger("test"), when, iteration_times={})
    assert [error for error in errors if error] == []
