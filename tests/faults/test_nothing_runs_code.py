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
from ringrift_pipeline.store import Store
from tests.syntax import tree_of

from . import stages
from .conftest import BEFORE, NOW, Roots
from .test_corruption import readers_of

PACKAGE = Path(ringrift_pipeline.__file__).parent
MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle"}
CALLS = {  # dotted names that load what can run code, whatever the module is called by
    "torch.load",
    "torch.export.load",
    "torch.jit.load",
    "torch.package.PackageImporter",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "numba.core.serialize.loads",
    "pandas.read_pickle",
    "pd.read_pickle",
    "os.system",
    "os.popen",
    "runpy.run_path",
    "runpy.run_module",
    "importlib.import_module",
    "importlib.util.spec_from_file_location",
}
# Rooms that import their own modules when a name is first asked for, by a table in their source.
LAZY = "importlib.import_module"
BUILTINS = {"eval", "exec", "compile", "__import__"}
# Dagster's own pickling IO managers and in-memory ones, which would be used where none is named.
IO_MANAGERS = {
    "FilesystemIOManager",
    "fs_io_manager",
    "mem_io_manager",
    "InMemoryIOManager",
    "PickledObjectFilesystemIOManager",
    "UPathIOManager",
}


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, tree_of(path.read_text(), str(path))


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def offences(tree: ast.Module) -> Iterator[tuple[int, str]]:
    names: dict[str, str] = {}  # what a name was imported as -> its dotted name
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
                if alias.name.split(".")[0] in MODULES:
                    yield node.lineno, f"import {alias.name}"
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                if node.module.split(".")[0] in MODULES or alias.name in IO_MANAGERS:
                    yield node.lineno, f"from {node.module} import {alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in BUILTINS and node.id not in names:
            yield node.lineno, node.id
        if isinstance(node, ast.Attribute) and node.attr in IO_MANAGERS:
            yield node.lineno, node.attr
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        first, _, rest = name.partition(".")
        full = f"{names.get(first, first)}.{rest}".rstrip(".")
        if full in CALLS:
            yield node.lineno, full
        options = {word.arg: word.value for word in node.keywords}
        if full in ("numpy.load", "numpy.lib.format.read_array"):
            allowed = options.get("allow_pickle")
            if not (isinstance(allowed, ast.Constant) and allowed.value is False):
                yield node.lineno, f"{full} without allow_pickle=False"
        shell = options.get("shell")
        if shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False):
            yield node.lineno, f"{full} with a shell"


@pytest.mark.bounded
def test_no_module_unpickles_or_evaluates() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {what}"
        for path, tree in sources()
        for line, what in offences(tree)
        if not (what == LAZY and path.name == "__init__.py")
    ]
    assert not found, "\n".join(found)


@pytest.mark.bounded
@pytest.mark.parametrize(
    "text",
    (
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "import torch\ntorch.load(x)",
        "import torch as t\nt.load(x)",
        "from torch import load\nload(x)",
        "from torch import export\nexport.load(x)",
        "eval(x)",
        "f = exec",
        "import numpy as np\nnp.load(x)",
        "import numpy as np\nnp.load(x, allow_pickle=True)",
        "import yaml\nyaml.load(x)",
        "import subprocess\nsubprocess.run(x, shell=True)",
        "from dagster import FilesystemIOManager",
        "import dagster\ndagster.fs_io_manager",
        "import importlib\nimportlib.import_module(x)",
        "from runpy import run_path\nrun_path(x)",
    ),
)
def test_the_walk_would_find_it(text: str) -> None:
    assert list(offences(tree_of(text)))


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


def test_a_trap_in_the_place_of_any_file_is_not_sprung(roots: Roots, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    pickle.loads(pickle.dumps(Trap(sprung)))  # it is one
    sprung.rmdir()
    root = tmp_path / "data"
    shutil.copytree(roots["end"], root)
    store = Store(root)
    plain = tmp_path / "unguarded"  # the same files with no manifest to warn of them
    for content in traps(sprung):
        for kind in store.kinds(stages.CONFIG, NOW):
            artefact = store.current(stages.CONFIG, NOW, kind)
            if artefact is None:
                continue
            for name in artefact.files:
                shutil.rmtree(plain, ignore_errors=True)
                shutil.copytree(artefact.path, plain)
                (plain / "manifest.json").unlink()
                (plain / name).write_bytes(content)
                for reader, read in readers_of(kind, store).items():
                    if not reader.startswith("Store"):
                        refused(read, plain / name)
                assert not sprung.exists(), (kind, name)
        for path in root.rglob("*.json*"):
            before = path.read_bytes()
            path.write_bytes(content)
            for generation in (BEFORE, NOW):
                refused(lambda _, g=generation: store.read_plan(stages.CONFIG, g), path)
            refused(lambda _: store.champion(stages.CONFIG), path)
            refused(lambda _: store.champions(stages.CONFIG), path)
            refused(lambda _: store.switches(stages.CONFIG), path)
            path.write_bytes(before)
            assert not sprung.exists(), path


def refused(read: object, path: Path) -> None:
    try:
        read(path)  # type: ignore[operator]
    except Exception:  # noqa: BLE001 - whatever it says, it must not run
        return
