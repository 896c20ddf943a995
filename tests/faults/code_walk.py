"""A walk over a module's syntax tree for what may run code that was loaded."""

from __future__ import annotations

import ast
from collections.abc import Iterator

# Modules that unpickle or evaluate, and those through which every other one could be reached.
MODULES = {
    *("pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"),
    *("jsonpickle", "builtins", "code", "codeop", "runpy", "imp"),
}
BUILTINS = {"eval", "exec", "compile", "__import__", "__builtins__", "__loader__", "builtins"}
# Names that load what can run code, by their first and last parts, whatever lies between.
LOADERS = {
    "torch": {"load", "PackageImporter"},
    "numpy": {"load", "read_array", "NpzFile"},
    "yaml": {
        *("load", "load_all", "unsafe_load", "unsafe_load_all", "full_load", "full_load_all"),
        *("Loader", "CLoader", "FullLoader", "CFullLoader", "UnsafeLoader", "CUnsafeLoader"),
    },
    "os": {"system", "popen"},
    "numba": {"loads"},
    "importlib": {"__import__", "reload"},
}
# Names that do so under anything: a method's, or that of a module that came in by another way.
ANYWHERE = {
    *("read_pickle", "deserialize", "unsafe_load", "full_load", "import_module", "__import__"),
    *("spec_from_file_location", "exec_module", "load_module", "run_path", "run_module"),
    *("PackageImporter",),
    # Dagster's own pickling IO managers and in-memory ones, which would be used where none is named.
    *("FilesystemIOManager", "fs_io_manager", "mem_io_manager", "InMemoryIOManager"),
    *("PickledObjectFilesystemIOManager", "UPathIOManager"),
}
# A module as a value might be asked for anything, under another name.
NO_VALUES = {"torch", "numpy", "yaml", "os", "importlib"}
# Names that must not be looked up by a text, as in getattr(torch, "load").
BY_TEXT = {name for names in LOADERS.values() for name in names} | ANYWHERE | BUILTINS | MODULES
BY_TEXT -= {"code"}  # a plain word
WITHOUT_PICKLES = {"numpy.load", "numpy.lib.format.read_array"}
LAZY = "importlib.import_module"


def offences(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Lines and what is wrong in each.

    References count, not calls alone. ``numpy.load`` may be called with ``allow_pickle=False``
    spelled out; `LAZY` may be called by a package's ``__getattr__`` for a module of its own, in one
    form (`is_lazy`).
    """
    names: dict[str, str] = {}  # what a name was imported as -> its dotted name
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
                if top in MODULES:
                    yield node.lineno, f"import {alias.name}"
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            for alias in node.names:
                full = f"{module}.{alias.name}".lstrip(".")
                names[alias.asname or alias.name] = full
                taken = alias.name == "*" or module.split(".")[0] in MODULES
                if (taken or is_loader(full)) and full != LAZY:
                    yield node.lineno, f"from {module} import {alias.name}"
    allowed = {id(node) for node in sound_calls(tree, names)}
    bases = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    bases |= {id(node.args[0]) for node in ast.walk(tree) if is_constant_getattr(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and id(node) not in allowed:
            full = dotted(node, names)
            named = node.id if isinstance(node, ast.Name) else full
            if named in BUILTINS or is_loader(full):
                yield node.lineno, full
            elif full in NO_VALUES and id(node) not in bases:
                yield node.lineno, f"{full} as a value"
        elif isinstance(node, ast.Call):
            for word in node.keywords:
                sound = isinstance(word.value, ast.Constant) and word.value.value is False
                if word.arg in ("allow_pickle", "shell") and not sound:
                    yield node.lineno, f"{word.arg} that is not False"
            called = dotted(node.func, names)
            asked = called.rpartition(".")[2]
            if called == "sys.modules.get" and isinstance(node.args[0], ast.Constant):
                yield node.lineno, "a module out of sys.modules"
            if asked in ("getattr", "attrgetter", "methodcaller", "__getattribute__", "get"):
                for argument in node.args:
                    yield from looked_up(argument)
        elif isinstance(node, ast.Subscript):
            yield from looked_up(node.slice)
            if dotted(node.value, names) == "sys.modules":
                yield node.lineno, "a module out of sys.modules"


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """``a.b.c`` with its first part as it was imported; what is no name is "()"."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else "()"


def is_loader(full: str) -> bool:
    first, _, rest = full.partition(".")
    last = rest.rpartition(".")[2]
    return last in ANYWHERE or last in LOADERS.get(first, ())


def is_constant_getattr(node: ast.AST) -> bool:
    """Is it ``getattr(…, "name")``, whose name `looked_up` judges?"""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "getattr"
        and len(node.args) > 1
        and isinstance(node.args[1], ast.Constant)
    )


def looked_up(node: ast.expr) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        for part in node.value.split("."):
            if part in BY_TEXT:
                yield node.lineno, f"{part!r} looked up by a text"


def sound_calls(tree: ast.Module, names: dict[str, str]) -> Iterator[ast.expr]:
    """What is called in a form that is allowed."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and dotted(node.func, names) in WITHOUT_PICKLES:
            words = {word.arg: word.value for word in node.keywords}
            told = words.get("allow_pickle")
            if isinstance(told, ast.Constant) and told.value is False:
                yield node.func
    for function in tree.body:
        if isinstance(function, ast.FunctionDef) and function.name == "__getattr__":
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and is_lazy(node, names):
                    yield node.func


def is_lazy(call: ast.Call, names: dict[str, str]) -> bool:
    """Is it ``import_module(f"{__name__}.{...}")``, which stays below the package that asks?"""
    if dotted(call.func, names) != LAZY or call.keywords or len(call.args) != 1:
        return False
    asked = call.args[0]
    if not (isinstance(asked, ast.JoinedStr) and len(asked.values) == 3):
        return False
    own, dot, _ = asked.values
    return (
        isinstance(own, ast.FormattedValue)
        and isinstance(own.value, ast.Name)
        and own.value.id == "__name__"
        and isinstance(dot, ast.Constant)
        and dot.value == "."
    )
