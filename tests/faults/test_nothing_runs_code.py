"""Nothing that is loaded can execute code: no reader of ours unpickles or evaluates anything."""

from __future__ import annotations

import ast
import os
import pickle
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ringrift_pipeline
from ringrift_pipeline.store import Artefact, Store
from tests.syntax import tree_of

from . import stages
from .code_walk import offences
from .conftest import BEFORE, NOW, Roots
from .test_corruption import Reader, readers_of, sealed_file

PACKAGE = Path(ringrift_pipeline.__file__).parent
KNOWN = {
    "enhancements/checkpoint_files.py": "torch as a value",  # a type by its name, checked to be one
    "enhancements/facade_parts.py": "torch as a value",  # a type by its name: float16, bfloat16
    "enhancements/parameter_uses.py": "torch as a value",  # sums and products, by a list of names
}
# How a package imports its own modules when a name of theirs is first asked for.
LOADER = "import importlib\ndef __getattr__(name):\n    return importlib.import_module({})"


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, tree_of(path.read_text(), str(path))


@pytest.mark.bounded
def test_no_module_unpickles_or_evaluates() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {what}"
        for path, tree in sources()
        for line, what in offences(tree)
        if KNOWN.get(path.relative_to(PACKAGE).as_posix()) != what
    ]
    assert not found, "\n".join(found)


@pytest.mark.bounded
@pytest.mark.parametrize(
    "text",
    (
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "import builtins",
        "from builtins import eval",
        "from builtins import eval as e\ne(x)",
        "import torch\ntorch.load(x)",
        "import torch as t\nt.load(x)",
        "import torch\nf = torch.load",
        "import torch\nt = torch\nt.load(x)",
        "import torch\nf(torch)",
        "import torch\ntorch.serialization.load(x)",
        'import torch\ngetattr(torch, "load")',
        "import torch\ngetattr(torch, name)",
        "from torch import load\nload(x)",
        "from torch import load",
        "from torch import *",
        "from torch import export\nexport.load(x)",
        "from torch.package import PackageImporter",
        "eval(x)",
        "f = exec",
        "map(eval, x)",
        "from re import compile\ncompile(x)",
        "builtins.eval(x)",
        '__builtins__["eval"](x)',
        'globals()["__builtins__"]',
        'import sys\nsys.modules["pickle"]',
        'import sys\nsys.modules.get("pickle")',
        'import sys\nsys.modules["torch"].load(x)',
        "import sys\nsys.modules[name].load(x)",
        'import sys\nsys.modules.get("torch").load(x)',
        'from operator import attrgetter\nattrgetter("serialization.load")',
        "import numpy as np\nnp.load(x)",
        "import numpy as np\nmap(np.load, x)",
        "import numpy as np\nf = np.load",
        "import numpy as np\nnp.load(x, allow_pickle=True)",
        "import numpy as np\nnp.load(x, allow_pickle=y)",
        "import numpy as np\nnp.load(x, **y)",
        "f(x, allow_pickle=True)",
        "import polars as pl\npl.DataFrame.deserialize(x)",
        "import polars as pl\npl.LazyFrame.deserialize",
        "frame.deserialize(x)",
        "import pandas\npandas.read_pickle",
        "import yaml\nyaml.load(x)",
        "import yaml\nyaml.load_all(x, yaml.FullLoader)",
        "import subprocess\nsubprocess.run(x, shell=True)",
        "import os\nf = os.system",
        "from dagster import FilesystemIOManager",
        "import dagster\ndagster.fs_io_manager",
        "import importlib\nimportlib.import_module(x)",
        "import importlib\nf = importlib.import_module",
        "from importlib import import_module\nimport_module(x)",
        "from ringrift_pipeline.search import import_module",
        LOADER.format("name"),
        LOADER.format("_HOME[name]"),
        LOADER.format("f'{name}.{module}'"),
        LOADER.format("f'{__name__}{module}'"),
        LOADER.format("f'{__name__}.{module}', x"),
        "from importlib import import_module\nimport_module(f'{__name__}.{module}')",
        "from runpy import run_path\nrun_path(x)",
    ),
)
def test_the_walk_would_find_it(text: str) -> None:
    assert list(offences(tree_of(text)))


@pytest.mark.bounded
@pytest.mark.parametrize(
    "text",
    (
        "import numpy as np\nnp.load(x, allow_pickle=False)",
        "import yaml\nyaml.safe_load(x)",
        "import re\nre.compile(x)",
        "model.eval()",
        "import safetensors.torch\nsafetensors.torch.load(x)",
        "Settings.load(x)",
        "import json\njson.loads(x)",
        LOADER.format("f'{__name__}.{module}'"),
        LOADER.format("f'{__name__}.{_HOME[name]}'"),
    ),
)
def test_the_walk_lets_the_rest_be(text: str) -> None:
    assert not list(offences(tree_of(text)))


@pytest.mark.bounded
def test_every_op_and_asset_names_an_io_manager_of_ours() -> None:
    """Dagster pickles what an op returns where none is named."""
    from ringrift_pipeline.definitions import defs
    from ringrift_pipeline.orchestration import io_managers

    repository = defs.get_repository_def()
    resources = set()
    for job in repository.get_all_jobs():
        for node in job.all_node_defs:
            for output in node.output_defs:
                assert output.io_manager_key in job.resource_defs, (job.name, node.name)
                key = output.io_manager_key
                resources.add((job.name, key, job.resource_defs[key]))
    assert resources
    ours = [
        value
        for value in vars(io_managers).values()
        if isinstance(value, type) and value.__module__ == io_managers.__name__
    ]
    for job_name, name, resource in resources:
        made = type(resource.resource_fn(None))
        assert made in ours, f"{job_name}: {name} is {made}"


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def traps(sprung: Path) -> Iterator[bytes]:
    trap = Trap(sprung)
    yield pickle.dumps(trap)
    yield pickle.dumps(trap, protocol=0)
    array = np.empty(1, object)
    array[0] = trap
    path = sprung.with_name("trap.npy")
    np.save(path, array, allow_pickle=True)
    yield path.read_bytes()
    np.savez(sprung.with_name("trap.npz"), games=array)
    yield sprung.with_name("trap.npz").read_bytes()
    torch_like = sprung.with_name("trap.zip")
    with zipfile.ZipFile(torch_like, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(trap))
        file.writestr("archive/version", "3")
    yield torch_like.read_bytes()
    yield f"__import__('os').mkdir({str(sprung)!r})".encode()
    yield f"!!python/object/apply:os.mkdir [{str(sprung)!r}]".encode()


@pytest.fixture
def sprung(tmp_path: Path) -> Path:
    """The folder that a trap makes when it is unpickled."""
    path = tmp_path / "sprung"
    pickle.loads(pickle.dumps(Trap(path)))  # it is one
    path.rmdir()
    return path


@pytest.fixture
def store(roots: Roots, tmp_path: Path) -> Store:
    return Store(shutil.copytree(roots["end"], tmp_path / "data"))


def set_in_artefacts(
    store: Store, kind: str, sprung: Path, folder: Path, most: int | None = None
) -> None:
    """A trap in the place of each file of an artefact, or of the first ``most``, read with no manifest
    to warn of it, and landed with one that vouches for it, as somebody who means harm would.
    """
    artefact = store.require(stages.CONFIG, NOW, kind)
    whole, plain = folder / "whole", folder / "unguarded"
    shutil.rmtree(whole, ignore_errors=True)
    shutil.copytree(artefact.path, whole, ignore=lambda *_: ["manifest.json"])

    def land(name: str, content: bytes) -> Artefact:
        with store.create(stages.CONFIG, NOW, kind, artefact.metadata) as draft:
            for each in artefact.files:
                shutil.copyfile(whole / each, draft / each)
            (draft / name).write_bytes(content)
        return draft.artefact

    for content in traps(sprung):
        for name in [*artefact.files][:most]:
            landed = land(name, content)
            assert store.require(stages.CONFIG, NOW, kind) == landed
            shutil.rmtree(plain, ignore_errors=True)
            shutil.copytree(landed.path, plain, ignore=lambda *_: ["manifest.json"])
            for reader, read in readers_of(kind, store).items():
                refused(read, landed.path / name)
                if not reader.startswith("Store"):
                    refused(read, plain / name)
            assert not sprung.exists(), (kind, name)
            store.remove(stages.CONFIG, NOW, kind, landed.path)
    name = next(iter(artefact.files))
    land(name, (whole / name).read_bytes())


def loose_files(root: Path) -> Iterator[tuple[Path, Reader]]:
    """What is in no artefact's folder, or in one that is passing, and who reads it."""
    from ringrift_pipeline.evaluation.ablation_runs import Figures, TrialResult
    from ringrift_pipeline.orchestration.instance import open_instance, prepare_home
    from ringrift_pipeline.orchestration.instance_file import brought_up_to_date
    from ringrift_pipeline.orchestration.notify import Alert, LogNotifier
    from ringrift_pipeline.orchestration.outbox import Outbox, read_alert

    def instance(path: Path) -> None:
        brought_up_to_date(path.read_text("utf-8", "replace"))
        with open_instance(root):
            pass

    yield prepare_home(root) / "dagster.yaml", instance
    yield sealed_file("value", root)
    outbox = Outbox(Store(root))
    alert = Alert("run_failed", "a run", "It failed", "Look at it", time="2026-01-02T03:04:05")
    outbox.put(alert)

    def delivered(path: Path) -> None:
        try:
            read_alert(path)
        finally:
            outbox.deliver(LogNotifier(), lambda _: None)

    yield outbox.folder / "waiting" / f"{alert.id}.json", delivered
    figures = Figures(np.zeros(3), np.zeros(3), 0.5, np.zeros(2))
    result, path = TrialResult({"last": figures}, 1, 2, "", 3.0), root / "figures.npz"
    facts = result.save(path)
    yield path, lambda path: TrialResult.load(path, facts)


def set_in_loose_files(root: Path, sprung: Path) -> None:
    for path, read in loose_files(root):
        read(path)
        for content in traps(sprung):
            path.write_bytes(content)
            refused(read, path)
            assert not sprung.exists(), path
        path.unlink(missing_ok=True)


def set_in_json(store: Store, sprung: Path) -> None:
    for path in store.root.rglob("*.json*"):
        before = path.read_bytes()
        for content in traps(sprung):
            path.write_bytes(content)
            for generation in (BEFORE, NOW):
                refused(lambda _, g=generation: store.read_plan(stages.CONFIG, g), path)
            refused(lambda _: store.champion(stages.CONFIG), path)
            refused(lambda _: store.champions(stages.CONFIG), path)
            refused(lambda _: store.switches(stages.CONFIG), path)
            assert not sprung.exists(), path
        path.write_bytes(before)


@pytest.mark.bounded
@pytest.mark.parametrize(
    "kind", ["ema_model", "hard_examples", "evaluation", "window", "checkpoint"]
)
def test_a_trap_in_the_place_of_some_files_is_not_sprung(
    kind: str, store: Store, sprung: Path, tmp_path: Path
) -> None:
    set_in_artefacts(store, kind, sprung, tmp_path, most=3)


@pytest.mark.bounded
def test_a_trap_in_no_artefacts_folder_is_not_sprung(sprung: Path, tmp_path: Path) -> None:
    set_in_loose_files(tmp_path / "loose", sprung)


def test_a_trap_in_the_place_of_any_file_is_not_sprung(
    store: Store, sprung: Path, tmp_path: Path
) -> None:
    for kind in store.kinds(stages.CONFIG, NOW):
        if store.current(stages.CONFIG, NOW, kind) is not None:
            set_in_artefacts(store, kind, sprung, tmp_path)
    set_in_loose_files(store.root, sprung)
    set_in_json(store, sprung)


def refused(read: object, path: Path) -> None:
    try:
        read(path)  # type: ignore[operator]
    except Exception:  # noqa: BLE001 - whatever it says, it must not run
        return
