"""Terminating a run as the UI does, in its selfplay, its training and its evaluation."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import pytest
from dagster import DagsterEventType, DagsterRunStatus

from ringrift_pipeline.orchestration import names
from ringrift_pipeline.orchestration.progress import StepProgress
from ringrift_pipeline.store import Store
from ringrift_pipeline.store.atomic import TEMPORARY

from . import light
from .served import Served, is_gone, served, wait_for

MADE = ("selfplay_shards", "checkpoint", "ema_model", "evaluation")
SETTINGS = {
    "preset": "smoke",
    "device": "cpu",
    "selfplay": {"games": 600, "games_per_shard": 300, "parallel_games": 4, "workers": 1},
    "network": {"blocks": 1, "channels": 8, "value_channels": 4},
    "training": {"max_steps": 500, "batch_size": 32, "holdout_fraction": 0.05, "threads": 1},
    "quality": {"enabled": False},
    "mining": {"enabled": False},
    "evaluation": {"games": 96, "max_games": 96, "simulations": 4, "anchor_games": 0},
    "last_generation": 0,
}
SOON = 60.0  # seconds; a machine with other work makes few of them many


@pytest.mark.slow
def test_work_stops_and_what_is_finished_is_not_done_again(tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="ringrift-test-"))  # a socket's path must be short
    try:
        with served(tmp_path, light.MODULE, folder / "code.sock") as ui:
            stop_three_times(ui)
    finally:
        shutil.rmtree(folder)


def stop_three_times(ui: Served) -> None:
    store = Store(ui.data)
    ui.instance.add_dynamic_partitions(names.partitions_name(light.CONFIG), ["0000"])
    run_id = ui.launch(
        names.job_name(light.CONFIG),
        {"resources": {"settings": {"config": SETTINGS}}},
        [[light.CONFIG, name] for name in MADE],
    )
    done: list[str] = []
    for step in ("selfplay_shards.play[0000]", "checkpoint", "evaluation"):
        working = at_work(ui, run_id, names.node_name(light.CONFIG, step))
        ui.terminate(run_id)
        wait_for(lambda working=working: is_gone(working.pid), SOON, f"{step} stops")  # type: ignore[misc]
        assert ui.finished(run_id, SOON) == DagsterRunStatus.CANCELED
        assert half_written(ui.data) == []
        for kind in store.kinds(light.CONFIG, 0):
            store.require(light.CONFIG, 0, kind)
        done += ui.steps(run_id, DagsterEventType.STEP_SUCCESS)
        run_id = ui.again(run_id)
    assert ui.finished(run_id) == DagsterRunStatus.SUCCESS, ui.errors(run_id)
    assert ui.steps(run_id, DagsterEventType.STEP_SUCCESS) == [
        names.node_name(light.CONFIG, "evaluation")
    ]
    assert len(done) == len(set(done))  # no step was done twice
    for name in MADE:
        assert store.require(light.CONFIG, 0, name).files


def at_work(ui: Served, run_id: str, step: str) -> StepProgress:
    """The step, once it has done a part of its work and has some before it."""
    began = time.monotonic()
    while time.monotonic() - began < 180:
        state = ui.step(run_id, step)
        if 0 < state.done < state.total:
            return state
        time.sleep(0.05)
    raise AssertionError(f"{step} does nothing: {state}")


def half_written(data: Path) -> list[Path]:
    """Temporary files and folders of the store."""
    return [*data.rglob(f"{TEMPORARY}*")]
