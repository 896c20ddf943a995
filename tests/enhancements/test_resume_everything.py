"""Trained k steps, saved, loaded into fresh objects in a fresh process, trained on: the same bits.

The states go through the files that the pipeline keeps them in (safetensors and JSON).
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ringrift_pipeline.enhancements as enhancements
from ringrift_pipeline.training.state import load_state, save_state

from .in_use import USES
from .small_training import Things, fingerprint

STOP, END = 11, 24  # the facade and the accumulator are within an accumulation at STOP


def states(things: Things) -> dict[str, Any]:
    return {name: thing.state_dict() for name, thing in things.items()}


def go_on(name: str, folder: Path) -> dict[str, Any]:
    """What the second process does: fresh objects of another seed, loaded and driven on."""
    things = USES[name].new(1, folder / "files")
    state = load_state(folder)
    # a schedule sets its optimizer's rates when it is loaded, so the optimizer goes first
    for part in sorted(things, key="it".__eq__):
        things[part].load_state_dict(state[part])
    trail = USES[name].drive(things, STOP, END)
    return {"trail": fingerprint(trail), "states": fingerprint(states(things))}


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By name, what a second process made of every use that was stopped and saved here."""
    root = tmp_path_factory.mktemp("resume")
    for name, use in USES.items():
        (root / name / "files").mkdir(parents=True)
        things = use.new(0, root / name / "files")
        use.drive(things, 0, STOP)
        save_state(root / name, states(things))
        use.drive(things, STOP, STOP + 8)  # what was saved is a copy, of files too
    script = (
        "import json, sys; from pathlib import Path;"
        "from enhancements.test_resume_everything import go_on; from enhancements.in_use import USES;"
        "root = Path(sys.argv[1]);"
        "print(json.dumps({name: go_on(name, root / name) for name in USES}))"
    )
    tests = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", script, str(root)],
        env={**os.environ, "PYTHONPATH": tests, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", USES)
def test_resumed_equals_uninterrupted(name: str, resumed: dict[str, Any], tmp_path: Path) -> None:
    use = USES[name]
    things = use.new(0, tmp_path)
    use.drive(things, 0, STOP)
    trail = use.drive(things, STOP, END)
    assert json.loads(json.dumps(fingerprint(trail))) == resumed[name]["trail"]
    assert json.loads(json.dumps(fingerprint(states(things)))) == resumed[name]["states"]


@pytest.mark.parametrize("name", USES)
def test_a_run_that_is_not_loaded_differs(name: str, tmp_path: Path) -> None:
    """Or else the test above would show nothing."""
    use = USES[name]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    driven, fresh = use.new(0, tmp_path / "a"), use.new(1, tmp_path / "b")
    use.drive(driven, 0, STOP)
    assert fingerprint(use.drive(driven, STOP, END)) != fingerprint(use.drive(fresh, STOP, END))


def test_every_class_with_a_state_is_here() -> None:
    stateful = set()
    for module in pkgutil.iter_modules(enhancements.__path__):
        loaded = importlib.import_module(f"{enhancements.__name__}.{module.name}")
        for name, value in vars(loaded).items():
            ours = inspect.isclass(value) and value.__module__ == loaded.__name__
            if ours and hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
                stateful.add(name)
    stateful.remove("LearningRateSchedule")  # what the schedules share
    stateful.remove("_LossModule")  # the model's
    assert stateful == {use.owner for use in USES.values()}
