"""What the run's process makes of what it hears of its steps: with Celery, and queues in its memory."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
from dagster._core.definitions.reconstruct import reconstructable
from dagster._core.execution.plan.outputs import StepOutputHandle
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._grpc.types import ExecuteStepArgs
from dagster._serdes import pack_value

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


@pytest.mark.parametrize(("key", "most"), [("play[0007]", 1), ("collect", 1000), ("plan", 1000)])
def test_a_shards_step_is_told_of_no_other_shard(steps: Any, key: str, most: int) -> None:
    """Else the square of their number would lie in Redis: 0.2 GB for a thousand."""
    from ringrift_pipeline.orchestration.celery_steps import its_own

    shards = [f"{index:04d}" for index in range(1000)]
    ready = {StepOutputHandle("plan", "result", shard) for shard in shards}
    ready.add(StepOutputHandle("before", "result"))
    state = KnownExecutionState({"plan": 1}, {"plan": {"result": shards}}, {}, ready, None)
    origin = reconstructable(toy.one).get_python_origin()
    told = its_own(ExecuteStepArgs(origin, "run", [key], None, known_state=state))
    assert told.step_keys_to_execute == [key] and told.run_id == "run"
    known = told.known_state
    assert known is not None and known.get_retry_state().get_attempt_count("plan") == 1
    assert len(known.dynamic_mappings["plan"]["result"] or ()) == most
    assert len(known.ready_outputs) == most + 1
    if most == 1:
        assert known.dynamic_mappings == {"plan": {"result": ["0007"]}}
        assert StepOutputHandle("plan", "result", "0007") in known.ready_outputs
        assert len(json.dumps(pack_value(told))) < 2000


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
