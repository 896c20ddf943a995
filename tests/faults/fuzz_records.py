"""Fuzz targets that are small files of the data root, and checkpoints that lie outside of it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import stages
from .fuzzing import Target

GENERATION = 0


def promotions(folder: Path) -> Target:
    """The champion, the history of promotions and the switches, with seals that somebody has made
    anew after changing them.
    """
    from ringrift_pipeline.store import Store, StoreError
    from ringrift_pipeline.store.manifest import sealed, sealed_bytes

    root = folder / "promotions"
    shutil.rmtree(root, ignore_errors=True)
    store = Store(root)
    for generation in range(2):
        with store.create(stages.CONFIG, generation, "ema_model") as draft:
            (draft / "a").write_text(f"model {generation}")
        store.promote(stages.CONFIG, generation, draft.artefact, {"why": ["a", 1.5, None]})
    store.set_switches(stages.CONFIG, nightly=False)
    home = root / stages.CONFIG
    one, several = ("champion.json", "switches.json"), "champions.jsonl"
    whole: dict[str, Any] = {name: _unsealed((home / name).read_text()) for name in one}
    whole[several] = [_unsealed(line) for line in (home / several).read_text().splitlines()]

    def run(data: bytes) -> None:
        try:
            value = json.loads(data)
            texts = {name: sealed_bytes(value[name], "a test") for name in one}
            lines = [json.dumps(sealed(line, "a test")) for line in value[several]]
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError, StoreError):
            return
        for name, text in texts.items():
            (home / name).write_bytes(text)
        (home / several).write_text("".join(f"{line}\n" for line in lines))
        found = store.champion(stages.CONFIG), *store.champions(stages.CONFIG)
        store.switches(stages.CONFIG)
        for champion in found:
            if champion is not None:
                assert champion.path.resolve().is_relative_to(root.resolve()), champion
                store.open(champion.path)

    return Target((json.dumps(whole).encode(),), run, (StoreError,), text=True)


def _unsealed(text: str) -> dict[str, Any]:
    return {name: item for name, item in json.loads(text).items() if name != "seal"}


def alert(folder: Path) -> Target:
    """A file among the alerts that wait."""
    from ringrift_pipeline.orchestration.notify import Alert
    from ringrift_pipeline.orchestration.outbox import read_alert

    known = Alert(
        "config_stalled",
        "square8_2p 3",
        "it stalls",
        "nothing has landed",
        config="square8_2p",
        details={"hours": 4.5},
        time="2026-01-02T03:04:05+00:00",
    )
    place = folder / f"{known.id}.json"

    def run(data: bytes) -> None:
        place.write_bytes(data)
        read_alert(place).payload()

    return Target((json.dumps(asdict(known)).encode(),), run, (ValueError,), text=True)


def progress_file(folder: Path) -> Target:
    """How far a step is, and those who watch it."""
    from ringrift_pipeline.orchestration.places import progress_folder
    from ringrift_pipeline.orchestration.progress import StepProgress, read_progress
    from ringrift_pipeline.orchestration.silent_steps import SilentSteps

    good = StepProgress("run", "step", stages.CONFIG, "0000", 1, 2, "", 1.0, 2.0, 7, 5.0)
    place = progress_folder(folder, "run") / "step.json"
    place.parent.mkdir(parents=True, exist_ok=True)

    def run(data: bytes) -> None:
        place.write_bytes(data)
        read_progress(folder, "run")
        SilentSteps(folder, 0).look()

    return Target((json.dumps(asdict(good)).encode(),), run, (), text=True)


def instance_file(folder: Path) -> Target:
    """``dagster.yaml``, before Dagster is shown it."""
    from ringrift_pipeline.orchestration import instance_file as files

    def run(data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        files.refuse_foreign_code(text)
        files.brought_up_to_date(text)

    earlier = b"run_queue: {max_concurrent_runs: 2}\nconcurrency: {pools: {default_limit: 1}}\n"
    seeds = (files.instance_file().encode(), earlier)
    return Target(seeds, run, (files.InstanceFileError,), text=True)


def handed_on_value(folder: Path) -> Target:
    """What one step has handed on to the next."""
    from dagster import build_input_context, build_output_context

    from ringrift_pipeline.orchestration.io_managers import JsonIOManager
    from ringrift_pipeline.store import StoreError

    said: dict[str, Any] = {"step_key": "play", "name": "shard", "run_id": "5f0c"}
    context = build_output_context(**said)
    asked = build_input_context(upstream_output=context)
    manager = JsonIOManager(root=str(folder / "handed"))
    manager.handle_output(context, {"shard": 3, "path": "somewhere/else", "games": [1, None]})
    (place,) = (folder / "handed").rglob("*.json")

    def run(data: bytes) -> None:
        place.write_bytes(data)
        manager.load_input(asked)

    return Target((place.read_bytes(),), run, (StoreError,), text=True)


def loose_checkpoint(folder: Path) -> Target:
    """A checkpoint wherever somebody has put it, with its hash and without one."""
    import torch
    from safetensors.torch import save

    from ringrift_pipeline.enhancements.checkpoint_averaging import average_checkpoints
    from ringrift_pipeline.enhancements.checkpoint_files import write_checkpoint

    logging.getLogger("ringrift_pipeline.enhancements.checkpoint_files").setLevel(logging.ERROR)
    place = folder / "loose.safetensors"
    tensors = {
        "weights": torch.arange(6.0).reshape(2, 3),
        "half": torch.ones(4, dtype=torch.bfloat16),
        "steps": torch.tensor(3),
    }
    write_checkpoint(place, tensors, {"said": "by a test"})

    def run(data: bytes) -> None:
        place.write_bytes(data)
        average_checkpoints([place])

    return Target((place.read_bytes(), save(tensors)), run, (ValueError,))


def report(folder: Path) -> Target:
    """Reports of an evaluation and a calibration, and an ensemble's members, under their manifests;
    which of them, the first byte says. None that was changed is read.
    """
    from ringrift_pipeline.search.value_temperature import value_temperature
    from ringrift_pipeline.selfplay.opponents import ensemble_members
    from ringrift_pipeline.store import Artefact, Store, StoreError

    root, kept = folder / "reports", folder / "reports-kept"
    for place in (root, kept):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder / "data", place, symlinks=True)
    store = Store(root)
    model = store.require(stages.CONFIG, GENERATION, "ema_model")

    def plain(artefact: Artefact) -> Any:
        return artefact.read_json("report.json")

    def calibrated(artefact: Artefact) -> Any:
        assert value_temperature(store, model, stages.CONFIG).temperature > 0.0
        return artefact.read_json("report.json")

    readers: list[tuple[str, str, Callable[[Artefact], Any]]] = [
        ("evaluation", "report.json", plain),
        ("calibration_report", "report.json", calibrated),
        ("ensemble", "members.json", lambda artefact: ensemble_members(store, artefact)),
    ]
    files = [
        store.require(stages.CONFIG, GENERATION, kind).path / name for kind, name, _ in readers
    ]
    good = [path.read_bytes() for path in files]

    def run(data: bytes) -> None:
        if not data:
            return
        number = data[0] % len(files)
        (kind, name, read), path = readers[number], files[number]
        path.write_bytes(data[1:])
        try:
            read(store.require(stages.CONFIG, GENERATION, kind))
            assert data[1:] == good[number], f"a changed {name} of {kind} was read"
        finally:
            again = kept / path.parent.relative_to(root)
            shutil.copytree(again, path.parent, dirs_exist_ok=True)
            shutil.copy(again.parent / "current.json", path.parent.parent / "current.json")
            shutil.rmtree(root / stages.CONFIG / "quarantine", ignore_errors=True)

    seeds = tuple(bytes([number]) + text for number, text in enumerate(good))
    return Target(seeds, run, (StoreError,))
