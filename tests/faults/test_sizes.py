"""Sizes that would take all memory are refused before it is asked for: of files, of what they claim to
hold, of settings, of what comes in through pipes. Each reader runs with 1 GiB to spare.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from ringrift_pipeline.enhancements import ConfigError, TrainingConfig
from ringrift_pipeline.game import get_rules
from ringrift_pipeline.search import SearchError
from ringrift_pipeline.search.pool import SearchPool
from ringrift_pipeline.selfplay import plan_generation, play_shards
from ringrift_pipeline.selfplay.arrow_sizes import batch_sizes
from ringrift_pipeline.selfplay.shards import largest_batch, read_shard
from ringrift_pipeline.store import Store
from ringrift_pipeline.store.manifest import sealed
from ringrift_pipeline.training.state import save_state

from .aliased import aliased
from .limited import CONFIG, ROOM, TESTS, Limited, Said

TERABYTE = 1 << 40
OURS = {
    "StoreError", "ModelError", "ShardError", "WindowError", "TableError", "StateError", "PlanError",
    "ConfigError", "RecordError", "QueryError", "PlayerSpecError", "ValueError",
}  # fmt: skip
SETTINGS = {
    "seed": 7,
    "selfplay.games": 2,
    "selfplay.games_per_shard": 2,
    "selfplay.parallel_games": 2,
    "selfplay.workers": 1,
}


Refused = Callable[[list[tuple[str, Path]]], list[Said]]


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Limited]:
    made = Limited(tmp_path_factory.mktemp("limited") / "log")
    yield made
    made.close()


@pytest.fixture
def refused(limited: Limited) -> Refused:
    """``refused(cases)``: by errors of ours, with hardly any memory, before memory ran out."""

    def check(cases: list[tuple[str, Path]]) -> list[Said]:
        found = limited.read(cases)
        for what, said in zip(cases, found, strict=True):
            assert said.kinds, f"{what}: was accepted"
            assert "MemoryError" not in said.kinds, f"{what}: {said}"
            assert OURS & set(said.kinds), f"{what}: {said}"
            assert said.grown < ROOM // 4, f"{what}: {said}"
        return found

    return check


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a shard of two games, a model, its champion, switches, a training state."""
    from ringrift_pipeline.network import NetworkConfig, RingRiftNetwork, save_model

    store = Store(tmp_path_factory.mktemp("sizes") / "data")
    settings = TrainingConfig().with_overrides(SETTINGS)
    now = datetime(2026, 1, 2, tzinfo=UTC)
    play_shards(store, plan_generation(store, CONFIG, 0, settings, now), workers=1)
    with store.create(CONFIG, 0, "ema_model") as draft:
        save_model(draft, RingRiftNetwork(NetworkConfig(1, 8, 8)), {})
    store.promote(CONFIG, 0, draft.artefact, {})
    store.set_switches(CONFIG, loop=False)
    with store.create(CONFIG, 0, "training_state") as draft:
        save_state(draft, {"array": np.arange(6), "rate": 0.5})
    return store.root


def readers_of(path: Path) -> list[str]:
    """Who reads a file, by its name."""
    if path.name in ("manifest.json", "current.json"):
        return ["current", "unhashed", *(["open"] if path.name == "manifest.json" else [])]
    known = {
        "plan.json": ["plan"],
        "champion.json": ["champion"],
        "champions.jsonl": ["champions", "jsonl"],
        "switches.json": ["switches"],
        "shard.arrow": ["current", "open", "shard", "shard's batches", "shard's metadata"],
        "model.json": ["current", "open", "model", "model's metadata", "player"],
        "model.safetensors": ["current", "open", "model", "player"],
        "state.json": ["current", "open", "state"],
        "state.safetensors": ["current", "open", "state"],
        "window.json": ["window"],
        "games.txt": ["window"],
    }
    by_suffix = {".npy": ["window"], ".parquet": ["table"]}
    return known.get(path.name) or by_suffix.get(path.suffix, [])


def copies(whole: Path, folder: Path, path: Path, number: int, manifest: bool = True) -> Path:
    """A file's place in a copy of the data root, with no manifest beside it if it shall have none."""
    root = folder / str(number) / "data"
    shutil.copytree(whole, root)
    place = root / path.relative_to(whole)
    if not manifest:
        (place.parent / "manifest.json").unlink()
    return place


def terabytes(whole: Path, folder: Path) -> list[tuple[str, Path]]:
    """Cases: every file of a data root as large as a terabyte, with a manifest and without."""
    cases = []
    for path in sorted(whole.rglob("*")):
        for reader in readers_of(path) if path.is_file() else []:
            beside = (path.parent / "manifest.json").exists() and path.name != "manifest.json"
            hashed = reader in ("current", "open", "unhashed", "plan")
            for manifest in (True, False) if beside and not hashed else (True,):
                place = copies(whole, folder, path, len(cases), manifest)
                if path.name == "champion.json":  # which would be written again as that says
                    (place.parent / "champions.jsonl").unlink()
                os.truncate(place, TERABYTE)
                cases.append((reader, place))
    return cases


@pytest.mark.bounded
def test_a_file_of_a_terabyte(refused: Refused, whole: Path, tmp_path: Path) -> None:
    cases = terabytes(whole, tmp_path)
    assert len(cases) > 30
    refused(cases)


@pytest.mark.faults
def test_every_file_of_a_finished_generation(
    refused: Refused, roots: dict[str, Path], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(roots["end"], data)
    cases = terabytes(data, tmp_path / "cases")
    assert len(cases) > 100
    refused(cases)


# --- what a file claims to hold -------------------------------------------------------------------


def shard_of(whole: Path) -> Path:
    return Store(whole).require(CONFIG, 0, "selfplay-shard-0000").path / "shard.arrow"


@pytest.mark.bounded
def test_a_shards_size_is_known_before_it_is_read(whole: Path) -> None:
    path = shard_of(whole)
    sizes = list(batch_sizes(memoryview(path.read_bytes())))
    table = read_shard(path)
    assert [size.rows for size in sizes] == [len(batch) for batch in table.to_batches()]
    for size, batch in zip(sizes, table.to_batches(), strict=True):
        assert 0.95 * batch.nbytes <= size.bytes <= 1.2 * batch.nbytes + 4096
        assert size.bytes < largest_batch(CONFIG)


def claims(data: bytes) -> list[int]:
    """Where packed buffers say how long they are: a little number before a frame of zstd."""
    found, at = [], data.find(b"\x28\xb5\x2f\xfd")
    while at >= 0:
        found.append(at - 8)
        at = data.find(b"\x28\xb5\x2f\xfd", at + 1)
    return found


@pytest.mark.bounded
def test_buffers_that_claim_to_be_large(refused: Refused, whole: Path, tmp_path: Path) -> None:
    data = shard_of(whole).read_bytes()
    places = claims(data)
    assert len(places) > 10
    cases = []
    for claimed in (TERABYTE, 1 << 62, 5 << 30, -5):
        for place in places:
            path = tmp_path / str(len(cases)) / "shard.arrow"
            path.parent.mkdir()
            path.write_bytes(data[:place] + struct.pack("<q", claimed) + data[place + 8 :])
            cases += [("shard", path), ("shard's batches", path)]
    refused(cases)


@pytest.mark.bounded
def test_a_shard_of_many_sound_batches(refused: Refused, whole: Path, tmp_path: Path) -> None:
    """Each is no larger than it may be, and packs well; all of them come to 1.2 GB."""
    table = read_shard(shard_of(whole))
    row = table.slice(0, 1).to_pylist()[0] | {"moves": [0] * 8000}
    batch = pa.RecordBatch.from_pylist([row] * 1024, table.schema)
    path = tmp_path / "shard.arrow"
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with (
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_file(sink, table.schema, options=options) as out,
    ):
        for _ in range(18):
            out.write_batch(batch)
    assert path.stat().st_size < 20_000_000
    [said] = refused([("shard", path)])
    assert "more than" in said.message
    assert read_shard(path, ("game", "ply")).num_rows == 18 * 1024  # which take little


@pytest.mark.bounded
def test_metadata_that_is_named_often(refused: Refused, whole: Path, tmp_path: Path) -> None:
    data = shard_of(whole).read_bytes()
    cases = []
    for count, size in ((1000, 400_000), (50_000, 8000), (1, 2_000_000)):
        path = written(
            tmp_path / str(count) / "shard.arrow", aliased(data, b"k", b" " * size, count)
        )
        assert path.stat().st_size < len(data) + 2_500_000
        cases += [("shard", path), ("shard's metadata", path)]
    for said in refused(cases):
        assert "more names and metadata" in said.message


def written(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def tensors(header: dict[str, Any], length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(64)


def tensor(shape: list[int], end: int) -> dict[str, Any]:
    return {"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}


TENSORS = {
    "a header of exabytes": tensors({}, 1 << 62),
    "a header beyond the file": tensors({}, 1 << 20),
    "a tensor beyond the file": tensors(tensor([1 << 38], TERABYTE)),
    "a shape that is not its data's": tensors(tensor([1 << 38], 64)),
    "a shape that overflows": tensors(tensor([1 << 32, 1 << 32], 64)),
    "no data in a large shape": tensors(tensor([1 << 40, 0], 64)),
}


def hashed(whole: Path, folder: Path, weights: bytes, **network: int) -> Path:
    """A model's folder whose sidecar has the right hash of the weights, and another network."""
    shutil.copytree(Store(whole).require(CONFIG, 0, "ema_model").path, folder)
    (folder / "manifest.json").unlink()
    about = json.loads((folder / "model.json").read_bytes())
    about["network"].update(network)
    about["weights"]["sha256"] = hashlib.sha256(weights).hexdigest()
    (folder / "model.json").write_text(json.dumps(about))
    return written(folder / "model.safetensors", weights)


@pytest.mark.bounded
def test_tensors_that_claim_to_be_large(refused: Refused, whole: Path, tmp_path: Path) -> None:
    cases = []
    state = Store(whole).require(CONFIG, 0, "training_state").path / "state.json"
    for name, data in TENSORS.items():
        cases.append(("model", hashed(whole, tmp_path / "models" / name, data)))
        place = written(tmp_path / "states" / name / "state.safetensors", data)
        shutil.copy(state, place.parent)
        cases.append(("state", place))
    good = (Store(whole).require(CONFIG, 0, "ema_model").path / "model.safetensors").read_bytes()
    large = {"blocks": 64, "channels": 1024, "value_channels": 1024}
    cases.append(("model", hashed(whole, tmp_path / "large", good, **large)))
    sparse = hashed(whole, tmp_path / "sparse", good, **large)
    os.truncate(sparse, 600 << 20)  # which such a network could well have
    refused([*cases, ("model", sparse)])


@pytest.mark.bounded
def test_a_state_that_names_one_array_often(refused: Refused, tmp_path: Path) -> None:
    """Two small files would come to 100 GB."""
    folder = tmp_path / "state"
    folder.mkdir()
    save_state(folder, {"array": np.zeros(10_000_000)})
    content = json.loads((folder / "state.json").read_text())
    [[key, array]] = content["state"]["items"]
    content["state"]["items"] = [[f"{key}{number}", array] for number in range(1250)]
    (folder / "state.json").write_text(json.dumps(content))
    refused([("state", folder / "state.json")])


@pytest.mark.bounded
def test_a_state_with_an_array_of_much_nothing(refused: Refused, tmp_path: Path) -> None:
    size = 400 << 20
    folder = tmp_path / "state"
    folder.mkdir()
    save_state(folder, {"array": np.zeros(6, np.uint8)})
    header = {"00000": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    place = written(folder / "state.safetensors", tensors(header)[:-64])
    os.truncate(place, place.stat().st_size + size)
    text = (folder / "state.json").read_text()
    (folder / "state.json").write_text(text.replace('"shape": [6]', f'"shape": [{size}]'))
    refused([("state", place)])


@pytest.mark.bounded
def test_arrays_of_a_window_that_claim_to_be_large(refused: Refused, tmp_path: Path) -> None:
    cases = []
    for number, shape in enumerate(
        ["(1099511627776,)", "(4294967296, 4294967296)", "(9223372036854775807,)", "(-1,)"]
        + ["(1" + "0" * 5000 + ",)", "(" * 5000]
    ):
        data = npy(shape, bytes(64))
        folder = tmp_path / str(number)
        written(
            folder / "window.json",
            json.dumps({"format": 2, "columns": ["planes"], "config": CONFIG}),
        )
        written(folder / "games.txt", "")
        cases.append(("window", written(folder / "planes.npy", data)))
    refused(cases)


def npy(shape: str, data: bytes = b"") -> bytes:
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header = header.ljust(8192)[:8191] + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


@pytest.mark.bounded
def test_names_of_games_that_there_are_not(refused: Refused, tmp_path: Path) -> None:
    folder = tmp_path / "window"
    header = {"format": 2, "columns": ["owners"], "config": CONFIG}
    written(folder / "window.json", json.dumps(header))
    written(folder / "owners.npy", npy("(8,)", bytes(64)))
    place = written(folder / "games.txt", "a b c d e f g h")
    os.truncate(place, 120 << 20)
    [said] = refused([("window", place)])
    assert "at most 512" in said.message


@pytest.mark.bounded
def test_figures_of_a_run_that_unpack_to_much(refused: Refused, tmp_path: Path) -> None:
    entry = "averaged.policy_loss.npy"
    cases = []
    for number, (packing, content) in enumerate(
        [
            (zipfile.ZIP_DEFLATED, npy("(16000000,)", bytes(128_000_000))),
            (zipfile.ZIP_STORED, npy("(1099511627776,)")),
            (zipfile.ZIP_STORED, npy("(4294967296, 4294967296)")),
            (zipfile.ZIP_STORED, npy("(-1,)")),
        ]
    ):
        place = written(tmp_path / str(number) / "figures.npz", b"")
        with zipfile.ZipFile(place, "w", packing) as archive:
            archive.writestr(entry, content)
        assert place.stat().st_size < 1_000_000
        cases.append(("figures", place))
    large = written(tmp_path / "large" / "figures.npz", b"")
    os.truncate(large, TERABYTE)
    refused([*cases, ("figures", large)])


@pytest.mark.bounded
def test_tables_that_unpack_to_much(refused: Refused, tmp_path: Path) -> None:
    rows = tmp_path / "rows" / "hard_examples.parquet"
    rows.parent.mkdir()
    parquet.write_table(
        pa.table({"row": pa.nulls(25_000_000, pa.int8())}), rows, compression="zstd"
    )
    texts = tmp_path / "texts" / "hard_examples.parquet"
    texts.parent.mkdir()
    once = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(100_000, np.int32)), pa.array(["x" * 100_000])
    )
    parquet.write_table(pa.table({"game_id": once}), texts, compression="zstd")
    values = tmp_path / "values" / "hard_examples.parquet"
    values.parent.mkdir()
    nothing = pa.nulls(12_000_000, pa.int8())
    parquet.write_table(pa.table({name: nothing for name in "abcdef"}), values, compression="zstd")
    assert rows.stat().st_size < 100_000 and texts.stat().st_size < 200_000
    cases = [("table", rows), ("table", texts), ("table", values)]
    for said in refused(cases):
        assert "values" in said.message or "rows" in said.message or "texts" in said.message


# --- text -----------------------------------------------------------------------------------------

SEALED = ("manifest.json", "current.json", "plan.json", "champion.json", "switches.json")


def texts(size: int) -> dict[str, bytes]:
    """Texts of about so many bytes that unfold to more, or take a reader beyond its depth."""
    names = [b"n%d" % number for number in range(40)]
    lists = zip(names, names[1:], strict=False)
    return {
        "nesting": b"[" * size,
        "objects": b'{"a":' * (size // 5),
        "many values": b'{"seal": "", "a": [' + b"[],0," * (size // 5) + b"0]}",
        "a number": b"1" * size,
        "a float": b"1e" + b"9" * size,
        "a name": b'{"' + b"x" * size + b'": 1}',
        "a table of tables": b"[" + b"a." * (size // 2) + b"a]\n",
        "names for lists": b"n0: &n0 [x]\n"
        + b"".join(
            b"%s: &%s [%s]\n" % (name, name, b", ".join([b"*" + before] * 9))
            for before, name in lists
        ),
    }


@pytest.mark.bounded
def test_text_that_would_unfold(refused: Refused, whole: Path, tmp_path: Path) -> None:
    cases = []
    for size in (5_000, 5_000_000):
        for data in texts(size).values():
            here = tmp_path / str(len(cases))
            for suffix in ("json", "toml", "yaml"):
                cases.append(("settings", written(here / f"settings.{suffix}", data)))
            for reader, name in (
                ("trace", "trace.jsonl"),
                ("query", "query"),
                ("alert", "alert.json"),
                ("state", "state/state.json"),
                ("window", "window/window.json"),
                ("model", "model/model.json"),
            ):
                cases.append((reader, written(here / name, data + b"\n")))
    for data in (texts(5_000_000)["nesting"], texts(15_000_000)["many values"], indented()):
        for path in sorted(whole.rglob("*.json*")):
            for reader in readers_of(path) if path.name in SEALED else []:
                place = copies(whole, tmp_path, path, len(cases))
                if path.name == "champion.json":  # the history would restore it
                    place.with_name("champions.jsonl").unlink()
                cases.append((reader, written(place, data)))
    refused(cases)


def indented() -> bytes:
    """A sealed text that is not indented: if it were, it would have 300 times as many bytes."""
    value: Any = [0] * 600_000
    for _ in range(200):
        value = [value]
    return json.dumps(sealed({"a": value}, "a test")).encode()


@pytest.mark.bounded
def test_files_that_never_end(refused: Refused, tmp_path: Path) -> None:
    cases = []
    for suffix in ("json", "toml", "yaml"):
        place = written(tmp_path / f"large.{suffix}", "")
        os.truncate(place, TERABYTE)
        cases.append(("settings", place))
    line = written(tmp_path / "trace.jsonl", "")
    os.truncate(line, TERABYTE)
    packed = tmp_path / "trace.jsonl.gz"
    piece = gzip.compress(bytes(64 << 20))
    written(packed, piece * 64)  # 4 GiB of one line in 4 MB
    cases += [("trace", line), ("trace", packed)]
    alert = written(tmp_path / "alert.json", "")
    os.truncate(alert, TERABYTE)
    cases.append(("alert", alert))
    progress = written(tmp_path / "data" / "dagster" / "progress" / "run" / "step.json", "")
    os.truncate(progress, TERABYTE)
    cases.append(("progress", progress))
    refused(cases)


# --- settings and pipes ---------------------------------------------------------------------------


@pytest.mark.bounded
def test_every_whole_number_of_the_settings_has_bounds() -> None:
    for field in TrainingConfig.fields():
        if field.type is int:
            assert {"le", "lt"} & set(field.bounds), field.name
            for value in (10**12, 2**63, 10**400):
                if value >= field.bounds.get("le", field.bounds.get("lt")):
                    with pytest.raises(ConfigError, match=field.name):
                        TrainingConfig().with_overrides({field.name: value + 1})


@pytest.mark.bounded
def test_settings_that_only_together_are_too_much() -> None:
    with pytest.raises(ConfigError, match="more than 100000 shards"):
        TrainingConfig().with_overrides(
            {"selfplay.games": 10_000_000, "selfplay.games_per_shard": 1}
        )
    with pytest.raises(SearchError, match=r"GB, this machine has .*selfplay\.parallel_games"):
        SearchPool(get_rules("hexagonal_4p"), None, slots=65_536, simulations=1_000_000)  # type: ignore[arg-type]


FEED = """
import sys
piece = b"x" * (1 << 20)
for _ in range(2048):
    sys.stdout.buffer.write(piece)
sys.stdout.buffer.write(b"\\n" + sys.argv[1].encode() + b"\\n")
"""
LIMITED = """
import resource, runpy, sys
import numba, torch  # their own room does not count
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), resource.RLIM_INFINITY))
sys.argv = ["ringrift", *sys.argv[1:]]
runpy.run_module("ringrift_pipeline", run_name="__main__")
"""


def fed(last: str, *words: str) -> subprocess.CompletedProcess[str]:
    """What a verb says to a line of 2 GiB, and another."""
    feed = subprocess.Popen([sys.executable, "-c", FEED, last], stdout=subprocess.PIPE)
    assert feed.stdout is not None
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *words],
        stdin=feed.stdout,
        capture_output=True,
        text=True,
        cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
    )
    feed.stdout.close()
    feed.wait()
    return done


@pytest.mark.bounded
def test_a_line_of_gigabytes_is_no_query(tmp_path: Path) -> None:
    query = json.dumps({"id": "after", "action": "query_version"})
    done = fed(query, "analyze", "--player", "random", "--data", str(tmp_path))
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert "more than" in first["error"] and second["id"] == "after"


@pytest.mark.bounded
def test_a_line_of_gigabytes_is_no_move(tmp_path: Path) -> None:
    done = fed("q", "play", "--terminal", "--data", str(tmp_path))
    assert done.returncode == 130, done.stderr
    assert "no move has so long a text" in done.stdout
