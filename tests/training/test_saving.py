"""States that land while the training goes on."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from ringrift_pipeline.selfplay import Plan
from ringrift_pipeline.store import Store
from ringrift_pipeline.training import build_window, open_window
from ringrift_pipeline.training import saving as room
from ringrift_pipeline.training.run import TrainingRun
from ringrift_pipeline.training.saving import StateSaver
from ringrift_pipeline.training.state import load_state, pack_state

from .conftest import CONFIG
from .test_learning import changed


@pytest.fixture()
def run(store: Store, second: Plan) -> TrainingRun:
    plan = changed(second, quality__enabled=False)
    made = TrainingRun(plan, open_window(build_window(store, second).path))
    for _ in range(made.validate_every):
        made.step()
    return made


class Gate:
    """Holds what is being written until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened, self.reached = threading.Event(), threading.Event()
        write = room.write_state

        def held(folder: Path, packed: Any) -> None:
            self.reached.set()
            assert self.opened.wait(60)
            write(folder, packed)

        monkeypatch.setattr(room, "write_state", held)


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal in every bit."""
    packed = [pack_state(state) for state in (one, other)]
    tensors = [{k: v.numpy().tobytes() for k, v in p.tensors.items()} for p in packed]
    return packed[0].tree == packed[1].tree and tensors[0] == tensors[1]


def test_what_lands_is_the_state_when_it_was_saved(
    store: Store, second: Plan, run: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    with StateSaver(store, second, {"made": "of this"}) as saver:
        wanted, step = run.state_dict(), run.iteration
        packed = pack_state(wanted)
        saver.save(run, 0.0)
        assert gate.reached.wait(60)
        while not run.finished:  # the training goes on
            run.step()
        assert not store.artefacts(CONFIG, 1, "training_state")
        gate.opened.set()
    state = store.require(CONFIG, 1, "training_state")
    assert state.metadata["step"] == step < run.iteration
    assert state.metadata["inputs"] == {"made": "of this"}
    landed = load_state(state.path)
    assert pack_state(landed).tree == packed.tree
    assert all(
        landed_bytes.numpy().tobytes() == packed.tensors[name].numpy().tobytes()
        for name, landed_bytes in pack_state(landed).tensors.items()
    )
    assert not same(landed, run.state_dict())


def test_states_land_one_after_the_other_and_the_last_stays(
    store: Store, second: Plan, run: TrainingRun
) -> None:
    with StateSaver(store, second, {}) as saver:
        for _ in range(3):
            run.step()
            saver.save(run, 0.0)
    (state,) = store.artefacts(CONFIG, 1, "training_state")
    assert state.metadata["step"] == run.iteration


def failing(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_state_that_cannot_be_written_is_heard_of_at_the_next_save(
    store: Store, second: Plan, run: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StateSaver(store, second, {}) as saver:
        saver.save(run, 0.0)
        saver.wait()
        before = store.require(CONFIG, 1, "training_state")
        monkeypatch.setattr(room, "write_state", failing)
        saver.save(run, 0.0)
        with pytest.raises(OSError, match="No space left"):
            saver.save(run, 0.0)
    assert store.artefacts(CONFIG, 1, "training_state") == [before]
    with pytest.raises(OSError, match="No space left"), StateSaver(store, second, {}) as saver:
        saver.save(run, 0.0)


def test_the_trainings_own_error_is_the_one_to_hear_of(
    store: Store, second: Plan, run: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ZeroDivisionError), StateSaver(store, second, {}) as saver:
        saver.save(run, 0.0)
        raise ZeroDivisionError  # what is about to land lands all the same
    assert store.require(CONFIG, 1, "training_state").metadata["step"] == run.iteration
    monkeypatch.setattr(room, "write_state", failing)
    with pytest.raises(ZeroDivisionError), StateSaver(store, second, {}) as saver:
        saver.save(run, 0.0)
        raise ZeroDivisionError
    assert not [t for t in threading.enumerate() if t.name.startswith("saving")]
