"""A daemon or a code server is stopped (SIGSTOP): whoever started it kills it and starts it again."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from orchestration import toy
from waiting import until

from ringrift_pipeline.orchestration import silent_services
from ringrift_pipeline.orchestration.backend import Backend
from ringrift_pipeline.orchestration.instance import own_instance

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("number", [0, 1])
def test_a_service_that_is_stopped_is_started_again(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RINGRIFT_DATA", str(tmp_path))
    paths = [str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))
    monkeypatch.setattr(silent_services, "SILENCE", 75.0)  # heartbeats come every 30 s
    monkeypatch.setattr(silent_services, "LOOK", 1.0)
    with own_instance(tmp_path) as instance:
        backend = Backend(tmp_path, instance, module=toy.MODULE)
        try:
            backend.begin()
            until(lambda: instance.get_daemon_heartbeats(), "the daemon works", 120)
            stopped = backend.services[number].pid
            os.kill(stopped, signal.SIGSTOP)

            def another() -> bool:
                backend.check()
                return backend.services[number].pid != stopped

            until(another, "it is started again", 240)
            beaten = max(one.timestamp for one in instance.get_daemon_heartbeats().values())

            def works() -> bool:
                backend.check()
                backend._ping()
                newest = instance.get_daemon_heartbeats().values()
                return max(one.timestamp for one in newest) > beaten

            until(works, "both work", 120)
            assert "it hung" in backend.services[1].log.read_text()
        finally:
            backend.stop()
