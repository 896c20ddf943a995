"""The readers that are fuzzed, and good inputs for each."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import fuzz_records, fuzz_rooms, stages
from .fuzzing import Target

# Share of the executions; readers that take long have few.
SHARES = {
    "analysis line": 20,
    "play request": 12,
    "state record": 16,
    "trace": 6,
    "settings json": 8,
    "settings toml": 4,
    "settings yaml": 3,
    "settings dictionary": 4,
    "sealed file": 8,
    "manifest": 8,
    "plan": 6,
    "model sidecar": 3,
    "weights": 3,
    "training state": 3,
    "shard": 4,
    "recorded game": 4,
    "table": 4,
    "window": 2,
    "web routes": 6,
    "analysis engine": 6,
    "terminal line": 4,
    "promotions": 6,
    "alert": 4,
    "progress file": 2,
    "instance file": 2,
    "handed-on value": 4,
    "loose checkpoint": 4,
    "report": 2,
}

# Those that read no file of a finished generation: their inputs need no preparing.
LIGHT = (
    "analysis line",
    "play request",
    "state record",
    "trace",
    "settings json",
    "settings toml",
    "settings yaml",
    "settings dictionary",
    "sealed file",
    "manifest",
    "training state",
    "web routes",
    "analysis engine",
    "terminal line",
    "promotions",
    "alert",
    "progress file",
    "instance file",
    "handed-on value",
    "loose checkpoint",
)


def executions(names: list[str], count: int) -> dict[str, int]:
    """``count`` executions divided among targets by their shares; they add up to it."""
    total, before, done, found = sum(SHARES[name] for name in names), 0, 0, {}
    for name in names:
        before += SHARES[name]
        found[name] = count * before // total - done
        done += found[name]
    return found


def prepare(folder: Path) -> None:
    """A generation on tiny games, whose files are the good inputs."""
    stages.prepare()
    for stage in stages.NAMES:
        stages.work(folder / "data", stage, 0)


def target(name: str, folder: Path) -> Target:
    """The target of that name, over what :func:`prepare` made."""
    return _TARGETS[name](folder)


def _artefact(folder: Path, kind: str) -> Path:
    from ringrift_pipeline.store import Store

    return Store(folder / "data").require(stages.CONFIG, 0, kind).path


def _copy(folder: Path, kind: str, place: str) -> Path:
    """An artefact's files in a folder of their own, with no manifest beside them."""
    target = folder / place
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(_artefact(folder, kind), target)
    (target / "manifest.json").unlink()
    return target


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _analysis_line(folder: Path) -> Target:
    from ringrift_pipeline.analysis.protocol import QueryError, read_line, read_query, warnings_of

    def run(data: bytes) -> None:
        raw = read_line(data)
        warnings_of(raw)
        read_query(raw)

    move = {"type": "place_ring", "to": [3, 3], "count": 1}
    return Target(
        (
            _json({"id": "a", "config": "square8_2p", "moves": [move], "maxVisits": 8}),
            _json(
                {"id": "b", "moves": [move, move], "analyzeTurns": [0, 1], "includePolicy": True}
            ),
            _json({"id": "c", "action": "terminate", "terminateId": "a", "turnNumbers": [0]}),
            _json({"id": "d", "initialState": {"cells": {}}, "priority": 3, "maxMoves": 2}),
        ),
        run,
        (QueryError,),
        text=True,
    )


def _play_request(folder: Path) -> Target:
    from ringrift_pipeline.game import new_game
    from ringrift_pipeline.web.errors import RequestError
    from ringrift_pipeline.web.positions import read_game

    state, codes = new_game("square8_2p"), []
    for _ in range(12):
        codes.append(int(state.legal_codes()[0]))
        state = state.apply_code(codes[-1])

    def run(data: bytes) -> None:
        try:
            body = json.loads(data)
        except (ValueError, RecursionError):
            return
        if isinstance(body, dict):
            read_game(body)

    return Target(
        (
            _json({"config": "square8_2p", "moves": codes, "swap_rule": False}),
            _json({"config": "hex8_3p", "moves": []}),
        ),
        run,
        (RequestError,),
        text=True,
    )


def _state_record(folder: Path) -> Target:
    from ringrift_pipeline.game import RecordError, State, new_game

    records = []
    for config, plies in (("square8_2p", 25), ("hex8_3p", 40)):
        state = new_game(config)
        for ply in range(plies):
            codes = state.legal_codes()
            state = state.apply_code(int(codes[(7 * ply) % len(codes)]))
        records.append(_json(state.to_record()))

    def run(data: bytes) -> None:
        try:
            record = json.loads(data)
        except (ValueError, RecursionError):
            return
        state = State.from_record(record)
        for code in list(state.legal_codes())[:3]:  # what is accepted can be played on
            state.apply_code(int(code)).to_record()

    return Target(tuple(records), run, (RecordError,), text=True)


def _trace(folder: Path) -> Target:
    from ringrift_pipeline.game import RecordError, new_game
    from ringrift_pipeline.game.replay import FORMAT, replay_file

    state = new_game("square8_2p")
    initial, plies = state.to_record(), []
    for ply in range(6):
        moves = state.legal_moves()
        chosen = (5 * ply) % len(moves)
        after = state.apply(moves[chosen])
        plies.append(
            {
                "player": state.current_player,
                "phase": state.phase,
                "legal": [move.to_record() for move in moves],
                "chosen": chosen,
                "after": after.to_record(),
            }
        )
        state = after
    trace = {
        "format": FORMAT,
        "config": "square8_2p",
        "initial": initial,
        "plies": plies,
        "winner": None,
        "reason": None,
    }
    place = folder / "trace.jsonl"

    def run(data: bytes) -> None:
        place.write_bytes(data)
        try:
            replay_file(place)
        except RecordError as error:
            if "truncated" in str(error) and data == good:
                return  # six plies are no whole game
            raise

    good = _json(trace)
    return Target((good,), run, (RecordError,), text=True)


def _settings(suffix: str, seeds: tuple[bytes, ...]) -> Callable[[Path], Target]:
    def make(folder: Path) -> Target:
        from ringrift_pipeline.enhancements import ConfigError, TrainingConfig

        place = folder / f"settings.{suffix}"

        def run(data: bytes) -> None:
            place.write_bytes(data)
            TrainingConfig.load(file=place, environ={})

        return Target(seeds, run, (ConfigError,), text=suffix == "json")

    return make


def _settings_dictionary(folder: Path) -> Target:
    from ringrift_pipeline.enhancements import ConfigError, TrainingConfig

    def run(data: bytes) -> None:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            return
        TrainingConfig.from_dict(value)

    return Target((_json(TrainingConfig().to_dict()),), run, (ConfigError,), text=True)


def _sealed_file(folder: Path) -> Target:
    from ringrift_pipeline.store.manifest import ManifestMismatch, open_seal, sealed_bytes

    return Target(
        (sealed_bytes({"artefact": "x", "digest": "0" * 64, "list": [1, 2.5, None]}, "a test"),),
        open_seal,
        (ManifestMismatch,),
        text=True,
    )


def _manifest(folder: Path) -> Target:
    """Manifests and pointers whose seals somebody has made anew after changing them."""
    from ringrift_pipeline.store import Store, StoreError
    from ringrift_pipeline.store.manifest import sealed_bytes

    root = folder / "sealed"
    shutil.rmtree(root, ignore_errors=True)
    store = Store(root)
    with store.create(stages.CONFIG, 0, "kind") as draft:
        (draft / "a").write_text("x")
    path = draft.artefact.path
    pointer = path.parent / "current.json"
    texts = {}
    for place in (path / "manifest.json", pointer):
        content = json.loads(place.read_bytes())
        del content["seal"]
        texts[place.name] = content

    def run(data: bytes) -> None:
        try:
            value = json.loads(data)
            parts = {name: sealed_bytes(value[name], "a test") for name in texts}
        except (ValueError, RecursionError, KeyError, TypeError, StoreError):
            return
        shutil.rmtree(root / stages.CONFIG / "quarantine", ignore_errors=True)
        path.mkdir(exist_ok=True)
        (path / "a").write_text("x")
        (path / "manifest.json").write_bytes(parts["manifest.json"])
        pointer.write_bytes(parts["current.json"])
        try:
            store.current(stages.CONFIG, 0, "kind")
            store.artefacts(stages.CONFIG, 0, "kind")
        finally:
            outside = [entry for entry in folder.iterdir() if entry.name == "stolen"]
            assert not outside and (root / stages.CONFIG).is_dir()

    return Target((_json(texts),), run, (StoreError,), text=True)


def _plan(folder: Path) -> Target:
    from ringrift_pipeline.enhancements import ConfigError
    from ringrift_pipeline.selfplay import Plan, PlanError, load_plan
    from ringrift_pipeline.store import Store

    raw = load_plan(Store(folder / "data"), stages.CONFIG, 0).raw

    def run(data: bytes) -> None:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            return
        if isinstance(value, dict):
            plan = Plan.from_dict(value)
            assert plan.settings and plan.digest and plan.games and plan.created_at

    return Target((_json(raw),), run, (PlanError, ConfigError), text=True)


def _model_sidecar(folder: Path) -> Target:
    from ringrift_pipeline.network import ModelError, load_model

    place = _copy(folder, "ema_model", "model-sidecar")
    sidecar = place / "model.json"

    def run(data: bytes) -> None:
        sidecar.write_bytes(data)
        load_model(place)

    return Target((sidecar.read_bytes(),), run, (ModelError,), text=True)


def _weights(folder: Path) -> Target:
    """Weights whose hash somebody has noted anew."""
    from ringrift_pipeline.network import ModelError, load_model

    place = _copy(folder, "ema_model", "model-weights")
    weights, sidecar = place / "model.safetensors", place / "model.json"
    about = json.loads(sidecar.read_bytes())

    def run(data: bytes) -> None:
        weights.write_bytes(data)
        about["weights"]["sha256"] = hashlib.sha256(data).hexdigest()
        sidecar.write_bytes(_json(about))
        load_model(place)

    return Target((weights.read_bytes(),), run, (ModelError,))


def _training_state(folder: Path) -> Target:
    import numpy as np
    import torch

    from ringrift_pipeline.training.state import StateError, load_state, save_state

    place = folder / "state"
    place.mkdir(exist_ok=True)
    state = {
        "step": 3,
        "rates": [0.1, float("inf")],
        "model": {"weight": torch.arange(6.0).reshape(2, 3)},
        "miner": {1: np.arange(4, dtype=np.int32), "pair": (1, b"ab")},
        "scalar": np.float32(2.5),
    }
    save_state(place, state)
    tree, tensors = place / "state.json", place / "state.safetensors"
    weights = tensors.read_bytes()

    def run(data: bytes) -> None:
        text, _, binary = data.partition(b"\n\n")
        tree.write_bytes(text)
        tensors.write_bytes(binary or weights)
        load_state(place)

    whole = tree.read_bytes()
    return Target((whole, whole + b"\n\n" + weights), run, (StateError,), text=True)


def _few_rows(path: Path) -> bytes:
    """The first rows of a shard, its buffers not packed: a changed byte is a changed value."""
    import pyarrow as pa

    from ringrift_pipeline.selfplay.shards import read_shard

    table = read_shard(path).slice(0, 3)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as out:
        out.write_table(table.combine_chunks())
    return bytes(sink.getvalue())


def _shard(folder: Path) -> Target:
    from ringrift_pipeline.selfplay.shards import (
        SHARD_SCHEMA,
        ShardError,
        column,
        ragged_column,
        read_metadata,
        read_shard,
        shard_batches,
    )

    place = _copy(folder, "selfplay-shard-0000", "shard") / "shard.arrow"
    ragged = ("moves", "policy", "move_kind", "move_cells", "move_rank")

    def run(data: bytes) -> None:
        place.write_bytes(data)
        read_metadata(place)
        table = read_shard(place)
        for name in SHARD_SCHEMA(stages.CONFIG).names:
            if name in ragged:
                ragged_column(table, name)
            else:
                column(table, name)
        for _ in shard_batches(place, ("game", "moves")):
            pass

    return Target((place.read_bytes(), _few_rows(place)), run, (ShardError,))


def _recorded_game(folder: Path) -> Target:
    """What the page shows of a shard: its games, and the first of them played again."""
    from ringrift_pipeline.web.errors import RequestError
    from ringrift_pipeline.web.games import RecordedGames

    place = _copy(folder, "selfplay-shard-0000", "recorded") / "shard.arrow"
    seeds = (place.read_bytes(), _few_rows(place))
    games = RecordedGames(folder / "data")

    def run(data: bytes) -> None:
        place.write_bytes(data)
        games._shard.cache_clear()
        games._game.cache_clear()
        shard = games._shard(place)
        for number in list(shard.starts)[:2]:
            games._summary(shard, number)
            games._game(place, number)

    return Target(seeds, run, (RequestError,))


def _table(folder: Path) -> Target:
    from ringrift_pipeline.training import QUALITY_SCORES, TableError, read_table

    place = next(_copy(folder, "quality_scores", "table").glob("*.parquet"))

    def run(data: bytes) -> None:
        place.write_bytes(data)
        read_table(place, QUALITY_SCORES)

    return Target((place.read_bytes(),), run, (TableError,))


def _window(folder: Path) -> Target:
    """One of the window's files at a time; which one, the first byte says."""
    from ringrift_pipeline.training import open_window
    from ringrift_pipeline.training.window import WindowError

    place = _copy(folder, "window", "window")
    files = sorted(path for path in place.iterdir() if path.stat().st_size < 100_000)
    good = {path: path.read_bytes() for path in files}

    def run(data: bytes) -> None:
        if not data:
            return
        path = files[data[0] % len(files)]
        path.write_bytes(data[1:])
        try:
            open_window(place)
        finally:
            path.write_bytes(good[path])

    seeds = tuple(bytes([number]) + good[path] for number, path in enumerate(files))
    return Target(seeds, run, (WindowError,))


_TARGETS: dict[str, Callable[[Path], Target]] = {
    "analysis line": _analysis_line,
    "play request": _play_request,
    "state record": _state_record,
    "trace": _trace,
    "settings json": _settings(
        "json",
        (
            _json({"selfplay": {"games": 4}, "optimizer.betas": [0.9, 0.99], "seed": 3}),
            _json({"search.simulations": 80, "device": "cpu", "quality": {"enabled": True}}),
        ),
    ),
    "settings toml": _settings(
        "toml", (b"seed = 3\n[selfplay]\ngames = 4\n[optimizer]\nbetas = [0.9, 0.99]\n",)
    ),
    "settings yaml": _settings(
        "yaml",
        (
            b"seed: 3\nselfplay:\n  games: 4\noptimizer: {betas: [0.9, 0.99]}\n",
            b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n",
        )[:1],
    ),
    "settings dictionary": _settings_dictionary,
    "sealed file": _sealed_file,
    "manifest": _manifest,
    "plan": _plan,
    "model sidecar": _model_sidecar,
    "weights": _weights,
    "training state": _training_state,
    "shard": _shard,
    "recorded game": _recorded_game,
    "table": _table,
    "window": _window,
    "web routes": fuzz_rooms.web_routes,
    "analysis engine": fuzz_rooms.analysis_engine,
    "terminal line": fuzz_rooms.terminal_line,
    "promotions": fuzz_records.promotions,
    "alert": fuzz_records.alert,
    "progress file": fuzz_records.progress_file,
    "instance file": fuzz_records.instance_file,
    "handed-on value": fuzz_records.handed_on_value,
    "loose checkpoint": fuzz_records.loose_checkpoint,
    "report": fuzz_records.report,
}
