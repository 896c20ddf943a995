"""What another version has written is refused by name, read as it was meant, or made anew; every
constant that names a format, a version or a protocol is on one of the lists here.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import ringrift_pipeline
from ringrift_pipeline.enhancements import FacadeConfig, TrainingEnhancementsFacade
from ringrift_pipeline.enhancements.ewc_regularization import EWCRegularizer
from ringrift_pipeline.game import RecordError
from ringrift_pipeline.game.replay import replay_trace
from ringrift_pipeline.network import NetworkConfig, RingRiftNetwork, load_model, save_model
from ringrift_pipeline.network.checkpoint import ModelMismatchError
from ringrift_pipeline.search.value_temperature import value_temperature
from ringrift_pipeline.selfplay import load_plan, play_shards
from ringrift_pipeline.selfplay.plan import PlanError
from ringrift_pipeline.selfplay.shards import ShardError, read_metadata, read_shard
from ringrift_pipeline.store import Store, StoreError
from ringrift_pipeline.training import build_window, open_window
from ringrift_pipeline.training.inputs import reuse
from ringrift_pipeline.training.state import StateError, load_state, save_state
from ringrift_pipeline.training.window import WindowError
from tests.syntax import tree_of

from . import stages

ROOT = Path(ringrift_pipeline.__file__).parent
CONFIG = stages.CONFIG
pytestmark = pytest.mark.bounded


@dataclass(frozen=True)
class Format:
    """How something of a format is written, below a folder; and read, which refuses another one."""

    write: Callable[[Path], Any]
    read: Callable[[Path, Any], Any]
    error: type[Exception]
    others: tuple[Any, ...]  # the one before ours, and the one to come


def _artefact(folder: Path) -> Path:
    with Store(folder).create(CONFIG, 0, "quality_scores") as draft:
        (draft / "rows").write_text("some")
    return draft.artefact.path


def _shard(folder: Path) -> Path:
    store = Store(folder)
    (artefact, *_) = play_shards(store, stages.plan(store, 0), workers=1)
    return artefact.file("shard.arrow")


def _model(folder: Path) -> Path:
    return save_model(folder, RingRiftNetwork(NetworkConfig(1, 8, 8)))


def _state(folder: Path) -> None:
    folder.mkdir()
    save_state(folder, {"step": 3, "weights": torch.zeros(2)})


def _linear() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(2, 2)


def _ewc(folder: Path) -> Path:
    folder.mkdir()
    path = folder / "ewc.safetensors"
    ewc = EWCRegularizer(_linear())
    ones = {name: torch.ones_like(weight) for name, weight in ewc.model.named_parameters()}
    ewc.load_state_dict(ewc.state_dict() | {"fisher": ones, "anchors": ones, "tasks": 1})
    ewc.save_state(path)
    return path


def _facade() -> TrainingEnhancementsFacade:
    model = _linear()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return TrainingEnhancementsFacade(model=model, optimizer=optimizer, config=FacadeConfig())


def _window(folder: Path) -> Path:
    store = Store(folder)
    plan = stages.plan(store, 0)
    play_shards(store, plan, workers=1)
    return build_window(store, plan).path


def _trace(folder: Path) -> dict[str, Any]:
    from ringrift_pipeline.game import replay

    return {"format": replay.FORMAT}


def _replay(folder: Path, trace: dict[str, Any]) -> None:
    """The format is looked at before all that this trace lacks."""
    try:
        replay_trace(trace)
    except RecordError as error:
        if "'config' is missing" not in str(error):
            raise


FORMATS: dict[str, Format] = {
    "store/manifest.py:FORMAT": Format(
        _artefact, lambda folder, path: Store(folder).open(path), StoreError, (0, 2)
    ),
    "selfplay/plan.py:PLAN_FORMAT": Format(
        lambda folder: stages.plan(Store(folder), 0),
        lambda folder, _: load_plan(Store(folder), CONFIG, 0),
        PlanError,
        (0, 2),
    ),
    "selfplay/shards.py:SHARD_FORMAT": Format(  # 1 and 2 are read: tests/selfplay/test_shards.py
        _shard, lambda _, path: read_shard(path), ShardError, (0, 4)
    ),
    "game/__init__.py:ENGINE_VERSION": Format(
        _shard, lambda _, path: read_metadata(path), ShardError, ("0", "2")
    ),
    "network/encoding.py:ENCODING_VERSION": Format(
        _shard, lambda _, path: read_shard(path), ShardError, (0, 2)
    ),
    "network/checkpoint.py:_FORMAT": Format(
        _model,
        lambda folder, _: load_model(folder),
        ModelMismatchError,
        ("ringrift-network/0", "ringrift-network/2"),
    ),
    "network/checkpoint.py:ENCODING_VERSION": Format(
        _model, lambda folder, _: load_model(folder), ModelMismatchError, (0, 2)
    ),
    "training/state.py:_FORMAT": Format(
        _state,
        lambda folder, _: load_state(folder),
        StateError,
        ("ringrift-state/0", "ringrift-state/2"),
    ),
    "training/window.py:WINDOW_FORMAT": Format(
        _window, lambda _, path: open_window(path), WindowError, (1, 3)
    ),
    "enhancements/ewc_regularization.py:STATE_FORMAT": Format(
        _ewc, lambda _, path: EWCRegularizer(_linear()).load_state(path), ValueError, ("ewc/0", "ewc/2")
    ),
    "enhancements/training_facade.py:STATE_FORMAT": Format(
        lambda _: _facade().state_dict(),
        lambda _, state: _facade().load_state_dict(state),
        ValueError,
        (1, 3),
    ),
    "game/replay.py:FORMAT": Format(
        _trace,
        _replay,
        RecordError,
        ("ringrift-trace/0", "ringrift-trace/2"),
    ),
}  # fmt: skip
ELSEWHERE = {
    "store/kinds.py:CALIBRATION_FORMAT": "a report of another format sets no temperature (below)",
    "evaluation/ablation.py:FORMAT": "one of another format is made anew (below)",
    "orchestration/notify.py:VERSION": "of what a web hook is sent; nothing of ours reads it",
    "analysis/protocol.py:PROTOCOL": "told to whoever speaks to the engine; nothing is kept",
}


@pytest.mark.parametrize("which", [0, 1], ids=["older", "newer"])
@pytest.mark.parametrize("name", FORMATS)
def test_another_format_is_refused_by_name(
    name: str, which: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = FORMATS[name]
    module, _, constant = name.partition(":")
    where = "ringrift_pipeline." + module.removesuffix(".py").removesuffix("/__init__").replace(
        "/", "."
    )
    other = made.others[which]
    made.read(tmp_path / "ours", made.write(tmp_path / "ours"))
    if constant == "ENCODING_VERSION" and module == "network/encoding.py":
        monkeypatch.setattr("ringrift_pipeline.network.ENCODING_VERSION", other, raising=False)
    monkeypatch.setattr(f"{where}.{constant}", other)
    written = made.write(tmp_path / "theirs")
    monkeypatch.undo()
    said = rf"(?s)(format|version).*?(?<![\w/]){other}(?!\w)"
    with pytest.raises(made.error, match=said):
        made.read(tmp_path / "theirs", written)


@pytest.mark.parametrize("other", [0, 2])
def test_a_calibration_report_of_another_format_sets_no_temperature(
    other: int, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    with store.create(CONFIG, 0, "ema_model") as model:
        _model(model)

    def temperature(written: int) -> Any:
        of = {"model": model.artefact.digest}
        with store.create(CONFIG, 0, "calibration_report", metadata=of) as draft:
            text = json.dumps({"format": written, "temperature": 2.5})
            (draft / "report.json").write_text(text)
        return value_temperature(store, model.artefact, CONFIG)

    assert temperature(1).temperature == 2.5
    found = temperature(other)
    assert found.temperature == 1.0 and f"has format {other}" in found.reason


@pytest.mark.parametrize("older", [1, 3])
def test_a_window_or_an_ablation_of_another_format_is_made_anew(
    older: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    plan = stages.plan(store, 0)
    play_shards(store, plan, workers=1)
    monkeypatch.setattr("ringrift_pipeline.training.window.WINDOW_FORMAT", older)
    theirs = build_window(store, plan)
    monkeypatch.undo()
    ours = build_window(store, plan)
    assert ours.path != theirs.path and open_window(ours.path)
    assert build_window(store, plan) == ours

    from ringrift_pipeline.evaluation import ablation

    inputs = {"code_version": "1", "format": ablation.FORMAT}
    with store.create(CONFIG, 0, ablation.KIND, {"inputs": inputs | {"format": older}}):
        pass
    assert reuse(store, plan, ablation.KIND, inputs) is None


NAMES = re.compile(r"_?(?:[A-Z]+_)*(?:FORMAT|VERSION|PROTOCOL)")


def test_no_format_is_forgotten() -> None:
    found = set()
    for path in ROOT.rglob("*.py"):
        for node in tree_of(path.read_text()).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                for target in node.targets:
                    if isinstance(target, ast.Name) and NAMES.fullmatch(target.id):
                        found.add(f"{path.relative_to(ROOT).as_posix()}:{target.id}")
    imported = {"network/checkpoint.py:ENCODING_VERSION"}
    assert found == (FORMATS.keys() | ELSEWHERE.keys()) - imported
