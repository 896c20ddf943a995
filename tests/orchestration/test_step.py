"""What every step has around it, as the run's log shows it."""

import os
from typing import Any

import pytest
from dagster import DagsterEventType, DagsterInstance, OpExecutionContext, job, op

from ringrift_pipeline.orchestration import progress
from ringrift_pipeline.orchestration.resources import StoreResource
from ringrift_pipeline.orchestration.step import (
    BEGAN,
    SECONDS,
    running_step,
)
from ringrift_pipeline.store import Store
from ringrift_pipeline.store.atomic import TEMPORARY


@op(required_resource_keys={"store"})
def play(context: OpExecutionContext) -> None:
    with running_step(context, "hex8_2p", 3) as step:
        assert step.key == "hex8_2p generation 0003"
        step.progress(3, 7, "3/7 games")


@job
def playing() -> None:
    play()


def run_it(data: Any) -> Any:
    instance = DagsterInstance.ephemeral()
    result = playing.execute_in_process(
        instance=instance, resources={"store": StoreResource(root=str(data))}
    )
    return instance.all_logs(result.run_id)


def test_the_ui_sees_how_far_it_is(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "TELL_INTERVAL", 0.0)
    told = [entry for entry in run_it(data) if entry.user_message == "3 of 7: 3/7 games"]
    assert [entry.step_key for entry in told] == ["play"]


def test_its_own_time_is_noted(data: Any) -> None:
    (noted,) = [
        entry.dagster_event.engine_event_data.metadata
        for entry in run_it(data)
        if entry.dagster_event is not None
        and entry.dagster_event.event_type == DagsterEventType.ENGINE_EVENT
        and SECONDS in entry.dagster_event.engine_event_data.metadata
    ]
    assert 0 <= noted[SECONDS].value < 60 and noted[BEGAN].value > 1e9


def test_only_what_this_process_was_writing_is_removed(store: Store) -> None:
    kind = store.root / "hex8_2p" / "generations" / "0003" / "checkpoint"
    mine = kind / f"{TEMPORARY}{os.getpid()}-aa"
    file = kind.parent / f"{TEMPORARY}{os.getpid()}-bb"
    others = kind / f"{TEMPORARY}{os.getpid() + 1}-cc"
    for folder in (mine / "best", others):
        folder.mkdir(parents=True)
    (mine / "best" / "model.safetensors").touch()
    file.touch()
    store.remove_own("hex8_2p")
    assert not mine.exists() and not file.exists() and others.exists()
