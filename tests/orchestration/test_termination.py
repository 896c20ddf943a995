"""Terminating a run as the UI does, in its selfplay, its training and its evaluation."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from dagster import DagsterEventType, DagsterRunStatus

from ringrift_pipeline.orchestration import names
from ringrift_pipeline.orchestration.progress import StepProgress
from ringrift_pipeline.store import Store
from ringrift_pipeline.store.atomic import TEMPORARY
from tests.waiting import until

from . import light
from .served import Served, is_gone, served

MADE = ("selfplay_shards", "checkpoint", "ema_model", "evaluation")
SETTINGS = {  # of every step enough that it is in the middle of it when it is terminated
    "preset": "smoke",
    "device": "cpu",
    "selfplay": {"games": 2400, "games_per_shard": 1200, "parallel_games": 4, "workers": 2},
    "network": {"blocks": 1, "channels": 8, "value_channels": 4},
    "training": {"max_steps": 2000, "batch_size": 32, "holdout_fraction": 0.05, "threads": 1},
    "quality": {"enabled": False},
    "mining": {"enabled": False},
    "evaluation": {"games": 96, "max_games": 96, "simulations": 4, "anchor_games": 0},
    "last_generation": 0,
}
SOON = 30.0  # seconds from terminating to a cancelled run without processes; it takes a few


@pytest.mark.whole
def test_work_stops_and_what_is_finished_is_not_done_again(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="ringrift-test-"))  # a socket's path must be short
    try:
        with served(tmp_path, light.MODULE, folder / "code.sock") as ui:
            for step, seconds in stop_three_times(ui).items():
                record_property(f"seconds from terminating {step} to its end", seconds)
                print(f"{step} ended {seconds:.1f} s after it was terminated")
                assert seconds < SOON, step
    finally:
        shutil.rmtree(folder)


def stop_three_times(ui: Served) -> dict[str, float]:
    """How long each step took to end, seconds."""
    took: dict[str, float] = {}
    store = Store(ui.data)
    ui.instance.add_dynamic_partitions(names.partitions_name(light.CONFIG), ["0000"])
    run_id = ui.launch(
        names.job_name(light.CONFIG),
        {"resources": {"settings": {"config": SETTINGS}}},
        [[light.CONFIG, name] for name in MADE],
    )
    done: list[str] = []
    for asset, kind, at_once in (
        ("selfplay_shards.play[0000]", "selfplay-shard-0000", 0),
        ("checkpoint", "checkpoint", 0),
        ("evaluation", "evaluation", 2),
    ):
        step = names.node_name(light.CONFIG, asset)
        working = at_work(ui, run_id, step)
        workers = workers_of(working.pid)
        assert len(workers) == at_once
        began = time.monotonic()
        ui.terminate(run_id)
        assert ui.finished(run_id) == DagsterRunStatus.CANCELED
        for pid in [working.pid, *workers]:
            until(lambda pid=pid: is_gone(pid), f"{asset} stops")  # type: ignore[misc]
        took[asset] = round(time.monotonic() - began, 1)
        # it ended because it was asked to, in the middle of what it did
        assert ui.steps(run_id, DagsterEventType.RUN_CANCELING)
        assert step not in ui.steps(run_id, DagsterEventType.STEP_SUCCESS)
        assert store.current(light.CONFIG, 0, kind) is None
        assert half_written(ui.data) == []
        for made in store.kinds(light.CONFIG, 0):
            store.require(light.CONFIG, 0, made)
        done += ui.steps(run_id, DagsterEventType.STEP_SUCCESS)
        run_id = ui.again(run_id)
    assert ui.finished(run_id) == DagsterRunStatus.SUCCESS, ui.errors(run_id)
    assert ui.steps(run_id, DagsterEventType.STEP_SUCCESS) == [
        names.node_name(light.CONFIG, "evaluation")
    ]
    assert len(done) == len(set(done))  # no step was done twice
    for name in MADE:
        assert store.require(light.CONFIG, 0, name).files
    return took


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


def workers_of(pid: int) -> list[int]:
    """Process ids of a process's own workers, as `multiprocessing` spawns them."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == pid and "spawn_main" in (entry / "cmdline").read_text():
                found.append(int(entry.name))
        except OSError:  # it has ended meanwhile
            continue
    return found
