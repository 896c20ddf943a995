"""What the run's process makes of what it hears of its steps: with Celery, and queues in its memory."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from dagster._core.definitions.reconstruct import reconstructable
from dagster._grpc.types import ExecuteStepArgs

from ringrift_pipeline.orchestration.celery_settings import PROGRESS, CelerySettings

from . import toy

pytestmark = pytest.mark.services

KEY, QUEUE = "one", "selfplay"
SIGN = {"worker": "player@far", "pid": 7, "sign": 1, "progress": None}


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    monkeypatch.setenv("RINGRIFT_CELERY_BROKER", "memory://")
    monkeypatch.setenv("RINGRIFT_EXECUTOR", "celery")  # the import says so, for all that follows
    monkeypatch.setenv("RINGRIFT_DATA", str(tmp_path))
    from ringrift_pipeline.orchestration.celery_steps import CelerySteps

    return CelerySteps(CelerySettings("memory://", "cache+memory://"))


def context() -> Any:
    """What Dagster's executor says of the first step of a run."""
    job = reconstructable(toy.one)
    arguments = ExecuteStepArgs(job.get_python_origin(), "run", [KEY], None)
    return SimpleNamespace(
        execute_step_args=arguments,
        step_tags={KEY: {}},
        get_step_context=lambda key: SimpleNamespace(reconstructable_job=job),
    )


def waiting(steps: Any) -> int:
    """Steps in the queue."""
    with steps._app.connection_for_read() as connection:
        return int(connection.default_channel._size(QUEUE))


def test_a_step_that_was_slow_to_begin_is_not_handed_out_anew(steps: Any) -> None:
    """It counted as forgotten, and has begun since: it must not come to be begun twice."""
    from ringrift_pipeline.orchestration.celery_steps import Handed

    asked = context()
    handed = steps._handed[KEY] = Handed(f"run/{KEY}/0", QUEUE, time.monotonic())
    assert steps.check_step_health(asked).is_healthy and waiting(steps) == 1 and handed.sent
    handed.sent = False
    steps._app.backend.store_result(handed.task_id, SIGN, PROGRESS)
    assert steps.check_step_health(asked).is_healthy and waiting(steps) == 1
    told = steps._app.backend.get_task_meta(handed.task_id, cache=False)
    assert told["status"] == PROGRESS and told["result"] == SIGN
    assert handed.sent  # and not again when Redis has lost what it was told
