"""Everything that writes below a data root beside the stages of a generation: small, and quick.

Each has a data root of its own that is prepared first. What can be read of it afterwards, by `read`,
is what was there before or what the writer makes, whatever happens to it in between; and doing it
again makes the latter.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ringrift_pipeline.store import CorruptArtefactError, Store
from ringrift_pipeline.store.artefacts import folders, remove_landed
from ringrift_pipeline.store.manifest import sealed_bytes

CONFIG, KIND = "hex8_3p", "ema_model"
PLAN = {"text": "old" * 100}


@dataclass(frozen=True)
class Writer:
    """``prepare`` and ``write`` on a data root; ``read`` says what is there, for comparison.

    ``between`` says whether something that is neither the old nor the new may be met between two
    steps; it is right whenever `write` ended, by itself or repeated.
    """

    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    prepare: Callable[[Path], Any]
    between: Callable[[Any, Any, Any], bool] = lambda before, found, after: False


def old(root: Path) -> None:
    """Two generations with a plan, two models of the first, a champion and a report."""
    store = Store(root)
    store.write_plan(CONFIG, 0, PLAN)
    for text in ("older", "old"):
        with store.create(CONFIG, 0, KIND) as draft:
            (draft / "weights").write_text(text)
    store.promote(CONFIG, 0, store.artefacts(CONFIG, 0, KIND)[0], {"why": "it is the first"})
    with store.create(CONFIG, 0, "evaluation", {"eval/elo": 1.0}) as draft:
        (draft / "report.json").write_text("{}")


# -- what can be read -----------------------------------------------------------------------------


def everything(root: Path) -> Any:
    """Champion, history, plans, switches, and every artefact of every kind that verifies."""
    store = Store(root)
    store.sweep()
    found: dict[str, Any] = {}
    for config in store.configs():
        champion = store.champion(config)
        found[f"{config} champion"] = champion and store.open(champion.path).digest
        found[f"{config} history"] = [one.digest for one in store.champions(config)]
        switches = store.switches(config)
        found[f"{config} switches"] = list(switches.paused)
        for generation in store.generations(config):
            found[f"{config} {generation} plan"] = str(store.read_plan(config, generation))
            for folder in sorted((root / config / "generations" / f"{generation:04d}").iterdir()):
                if not folder.is_dir() or folder.name.startswith("."):
                    continue
                try:
                    current = store.current(config, generation, folder.name)
                except CorruptArtefactError:
                    current = store.last_good(config, generation, folder.name)
                landed = set()
                for one in store.artefacts(config, generation, folder.name):
                    with contextlib.suppress(CorruptArtefactError):  # it is in quarantine now
                        landed.add(store.open(one.path).digest)
                if current is not None or landed:
                    found[f"{config} {generation} {folder.name}"] = (
                        current and (current.digest, str(current.metadata)),
                        tuple(sorted(landed)),
                    )
    return found


def landed_but_not_current(before: Any, found: Any, after: Any) -> bool:
    """A new artefact has landed and its pointer has not moved yet, or the other way round, where
    one is removed; everything else is as it was or will be.
    """
    for name in found.keys() | before.keys() | after.keys():
        one, old, new = found.get(name), before.get(name), after.get(name)
        if one in (old, new):
            continue
        if not isinstance(one, tuple):
            return False
        olds, news = old or (None, ()), new or (None, ())
        if one[0] not in (olds[0], news[0], None) or one[1] not in (olds[1], news[1]):
            return False
    return True


def promoted_but_not_listed(before: Any, found: Any, after: Any) -> bool:
    return all(one in (before[name], after[name]) for name, one in found.items())


# -- the writers ----------------------------------------------------------------------------------


def _artefact(root: Path) -> None:
    with Store(root).create(CONFIG, 0, KIND) as draft:
        (draft / "weights").write_bytes(b"new" * 30_000)
        (draft / "sub/more").write_text("new")


def _promotion(root: Path) -> None:
    store = Store(root)
    store.promote(CONFIG, 0, store.artefacts(CONFIG, 0, KIND)[1], {"why": "better"})


def _unsealed_history(root: Path) -> None:
    """As the first versions wrote it."""
    old(root)
    folder = root / CONFIG
    record = json.loads((folder / "champion.json").read_text())
    plain = {name: value for name, value in record.items() if name not in ("seal", "promotion")}
    (folder / "champion.json").write_bytes(sealed_bytes(plain, "champion"))
    (folder / "champions.jsonl").write_text(json.dumps(plain) + "\n")


def _remove(root: Path) -> None:
    for folder in folders(root / CONFIG / "generations" / "0000" / KIND)[1:]:
        remove_landed(folder)


def _damaged(root: Path) -> None:
    old(root)
    store = Store(root)
    newest = store.artefacts(CONFIG, 0, KIND)[-1]
    (newest.path / "weights").write_text("0ld")


def _fall_back(root: Path) -> None:
    assert Store(root).last_good(CONFIG, 0, KIND) is not None


def _damaged_champion(root: Path) -> None:
    old(root)
    (root / CONFIG / "champion.json").write_text("{}")


def _restore(root: Path) -> None:
    assert Store(root).champion(CONFIG) is not None


def _lock(root: Path) -> None:
    with Store(root).lock(CONFIG, "generation-0000"):
        pass


def _is_free(root: Path) -> Any:
    with Store(root).lock(CONFIG, "generation-0000"):
        return everything(root)


def _superseded(root: Path) -> None:
    """Two versions of a window and of a checkpoint, a plan after them, something in quarantine."""
    old(root)
    store = Store(root)
    for number in range(4):
        if number:
            store.write_plan(CONFIG, number, PLAN)
        for kind in ("window", "checkpoint"):
            for text in ("older", "old"):
                with store.create(CONFIG, number, kind) as draft:
                    (draft / "rows").write_text(f"{number} {text}")
    path = store.artefacts(CONFIG, 3, "window")[0].path
    (path / "rows").write_text("0ther")
    try:
        store.open(path)
    except CorruptArtefactError:
        return
    raise AssertionError("it was to be damaged")


def _retain(root: Path) -> None:
    from ringrift_pipeline.store import retention

    store = Store(root)
    found = retention.survey(store, keep_generations=1)
    retention.delete(store, found, found.surplus(0))


def _kept(root: Path) -> Any:
    return everything(root), len(list((root / CONFIG).glob("quarantine/*")))


def _fewer(before: Any, found: Any, after: Any) -> bool:
    """Some of what may go has gone, and nothing else."""
    if not after[1] <= found[1] <= before[1]:
        return False
    for name, one in found[0].items():
        old, new = before[0][name], after[0].get(name)
        if isinstance(one, tuple):
            gone = set(old[1]) - set(new[1] if new else [])
            if not set(old[1]) - set(one[1]) <= gone or not set(one[1]) <= set(old[1]):
                return False
        elif one not in (old, new):
            return False
    return True


# -- Dagster's side -------------------------------------------------------------------------------


def _record() -> Any:
    from dagster import EventLogEntry, EventLogRecord

    entry = EventLogEntry(None, 10, "", "5f0c", 0.0)
    return EventLogRecord(storage_id=7, event_log_entry=entry)


def _decision(root: Path) -> None:
    from ringrift_pipeline.orchestration.decisions import keep_decision

    keep_decision(Store(root), CONFIG, 0, _record(), promoted=True, reasons=["beats everybody"])


def _alert() -> Any:
    from ringrift_pipeline.orchestration.notify import Alert

    return Alert("run_failed", "a run", "It failed", "Look at it", time="2026-01-02T03:04:05")


def _put(root: Path) -> None:
    from ringrift_pipeline.orchestration.outbox import Outbox

    Outbox(Store(root)).put(_alert())


def _deliver(root: Path) -> None:
    from ringrift_pipeline.orchestration.notify import LogNotifier
    from ringrift_pipeline.orchestration.outbox import Outbox

    logging.disable(logging.CRITICAL)
    Outbox(Store(root)).deliver(LogNotifier())


def _alerts(root: Path) -> Any:
    """Where each alert is, and that it can be read."""
    found = {}
    for state in ("waiting", "told", "refused"):
        for path in (root / "dagster" / "alerts" / state).glob("*.json"):
            found[f"{state}/{path.name}"] = json.loads(path.read_text())
    return found


def _announce(root: Path) -> None:
    import os

    from ringrift_pipeline.orchestration.presence import announce

    os.environ["RINGRIFT_DATA"] = str(root)
    announce("daemon", [])


def _present(root: Path) -> Any:
    from ringrift_pipeline.orchestration.presence import present

    return [one.kind for one in present(root)]


def _home(root: Path) -> None:
    from ringrift_pipeline.orchestration.instance import prepare_home

    prepare_home(root)


def _home_file(root: Path) -> Any:
    path = root / "dagster" / "dagster.yaml"
    return path.read_text() if path.exists() else None


def _earlier_home(root: Path) -> None:
    """Of a version that left the queue to Dagster."""
    old(root)
    path = root / "dagster" / "dagster.yaml"
    path.parent.mkdir()
    path.write_text("# mine\nrun_queue: {dequeue_interval_seconds: 1}\n")


def _bring_up_to_date(root: Path) -> None:
    from ringrift_pipeline.orchestration.instance import _bring_up_to_date

    _bring_up_to_date(root)


def _value(root: Path) -> None:
    from dagster import build_output_context

    from ringrift_pipeline.orchestration.io_managers import JsonIOManager

    context = build_output_context(step_key="play", name="shard", run_id="5f0c")
    JsonIOManager(root=str(root)).handle_output(context, {"shard": 3})


def _read_value(root: Path) -> Any:
    found = list((root / "dagster" / "values").rglob("*.json"))
    return [json.loads(path.read_text()) for path in found]


def _table(root: Path) -> None:
    import polars
    from dagster import build_output_context

    from ringrift_pipeline.orchestration.io_managers import ParquetIOManager

    context = build_output_context(
        step_key="scores", name="result", run_id="5f0c",
        asset_key=[CONFIG, "quality_scores"], partition_key="0000",
    )  # fmt: skip
    frame = polars.DataFrame({"score": [0.5, 0.25]})
    if Store(root).current(CONFIG, 0, "quality_scores") is None:
        ParquetIOManager(root=str(root)).handle_output(context, frame)


def _progress(root: Path) -> None:
    from ringrift_pipeline.orchestration.progress import ProgressFile

    with ProgressFile(root, "5f0c", "play", CONFIG, "0000") as told:
        told(3, 3, "games")


def _read_progress(root: Path) -> Any:
    """What is there can be read; that it is left by the dead does not matter."""
    from ringrift_pipeline.orchestration.progress import read_progress

    return all(one.total in (0, 3) for one in read_progress(root, "5f0c"))


def _loose_checkpoint(root: Path) -> None:
    import torch

    from ringrift_pipeline.enhancements.checkpoint_files import write_checkpoint

    write_checkpoint(root / "loose.safetensors", {"weights": torch.arange(9000.0)})


def _read_checkpoint(root: Path) -> Any:
    from ringrift_pipeline.enhancements.checkpoint_files import CheckpointReader

    path = root / "loose.safetensors"
    if not path.exists():
        return None
    return {name: tensor.sum().item() for name, tensor in CheckpointReader(path).copies().items()}


def _empty(root: Path) -> None:
    root.mkdir(parents=True)


def _waiting(root: Path) -> None:
    old(root)
    _put(root)


WRITERS: dict[str, Writer] = {
    "an artefact": Writer(_artefact, everything, old, landed_but_not_current),
    "a plan": Writer(
        lambda root: Store(root).write_plan(CONFIG, 1, {"text": "new" * 3000}), everything, old
    ),
    "a promotion": Writer(_promotion, everything, old, promoted_but_not_listed),
    "an older history": Writer(
        lambda root: Store(root).champions(CONFIG), everything, _unsealed_history
    ),
    "a removal": Writer(_remove, everything, old, landed_but_not_current),
    "a kind's removal": Writer(
        lambda root: Store(root).remove(CONFIG, 0, "evaluation"), everything, old
    ),
    "a switch": Writer(lambda root: Store(root).set_switches(CONFIG, loop=False), everything, old),
    "a damaged champion": Writer(_restore, everything, _damaged_champion),
    "a quarantine": Writer(_fall_back, everything, _damaged, landed_but_not_current),
    "a lock": Writer(_lock, _is_free, old),
    "retention": Writer(_retain, _kept, _superseded, _fewer),
    "a decision": Writer(_decision, everything, old, landed_but_not_current),
    "an alert": Writer(_put, _alerts, old),
    "an alert's delivery": Writer(_deliver, _alerts, _waiting),
    "a presence": Writer(_announce, _present, old),
    "the home": Writer(_home, _home_file, old),
    "an earlier home": Writer(_bring_up_to_date, _home_file, _earlier_home),
    "a value": Writer(_value, _read_value, old),
    "a table": Writer(_table, everything, old, landed_but_not_current),
    "progress": Writer(_progress, _read_progress, old),
    "a loose checkpoint": Writer(_loose_checkpoint, _read_checkpoint, _empty),
}


def load() -> None:
    """Import what they import."""
    import dagster  # noqa: F401

    from ringrift_pipeline.orchestration import (  # noqa: F401
        decisions,
        instance,
        io_managers,
        outbox,
        presence,
        progress,
    )
