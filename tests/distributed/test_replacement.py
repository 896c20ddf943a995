"""How soon a worker has another process for the next step."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.services


def test_a_worker_looks_often_whether_the_process_of_a_step_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery itself looks every five seconds, and a shard would wait for that long."""
    monkeypatch.setenv("RINGRIFT_CELERY_BROKER", "memory://")
    monkeypatch.setenv("RINGRIFT_EXECUTOR", "celery")  # the import says so, for all that follows
    monkeypatch.setenv("RINGRIFT_DATA", str(tmp_path))
    from celery.concurrency.asynpool import AsynPool

    from ringrift_pipeline.orchestration.celery_app import REPLACED, Replacement, app

    assert Replacement in app.steps["worker"]
    looks: list[tuple[float, Any]] = []
    hub = SimpleNamespace(call_repeatedly=lambda *asked: looks.append(asked))
    pool = object.__new__(AsynPool)
    step = Replacement(None)
    step.register_with_event_loop(SimpleNamespace(pool=SimpleNamespace(_pool=pool)), hub)
    assert looks == [(REPLACED, pool.maintain_pool)] and REPLACED < 1.0
    step.register_with_event_loop(SimpleNamespace(pool=SimpleNamespace()), hub)  # no processes
    assert len(looks) == 1
