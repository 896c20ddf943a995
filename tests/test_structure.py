"""One way through the house: which room may import which, read from the code itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ringrift_pipeline
from tests.syntax import tree_of

ROOT = Path(ringrift_pipeline.__file__).parent
# from the top: a room imports from itself and from the rooms before it
ROOMS = (
    "libraries",
    "store",
    "game",
    "drawing",
    "network",
    "search",
    "selfplay",
    "training",
    "evaluation",
    "analysis",
    "web",
    "orchestration",
    "definitions",
    "commands",
    "cli",
    "__main__",
)
LEAF = "enhancements"  # imports nothing of ours; all but the first four rooms may import it
# what a run's fork server loads ahead of its steps is the code location itself
LOADS_THE_CODE_LOCATION = ("orchestration/preload.py", "ringrift_pipeline.definitions")
FILES = sorted(ROOT.rglob("*.py"))


def room(file: Path) -> str:
    first = file.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, those inside functions and for types included."""
    package = ["ringrift_pipeline", *file.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(tree_of(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            yield node.lineno, module
            if module == "ringrift_pipeline":
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def ours(module: str) -> str | None:
    parts = module.split(".")
    known = {*ROOMS, LEAF}
    return (
        parts[1] if parts[0] == "ringrift_pipeline" and parts[1:2] and parts[1] in known else None
    )


def test_every_file_belongs_to_a_room() -> None:
    known = {*ROOMS, LEAF, "__init__"}
    assert {room(file) for file in FILES} <= known
    assert len(FILES) > 100


@pytest.mark.parametrize("name", [*ROOMS, LEAF])
def test_no_import_goes_back_up(name: str) -> None:
    allowed = {name}
    if name != LEAF:
        allowed |= set(ROOMS[: ROOMS.index(name)])
        if name not in ROOMS[:4]:
            allowed.add(LEAF)
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {module}"
        for file in FILES
        if room(file) == name
        for line, module in imports(file)
        if (target := ours(module)) is not None and target not in allowed
        if (str(file.relative_to(ROOT)), module) != LOADS_THE_CODE_LOCATION
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("library", "rooms"),
    [
        ("dagster", {"orchestration", "definitions"}),
        (
            "torch",
            {"network", "search", "selfplay", "enhancements", "training", "evaluation"}
            | {"orchestration"},
        ),
        ("starlette", {"web"}),
        ("uvicorn", {"web"}),
        # elsewhere they would take settings from files of the current folder
        ("numba", {"libraries"}),
        ("matplotlib", {"libraries", "enhancements"}),
    ],
)
def test_a_library_is_only_used_where_it_belongs(library: str, rooms: set[str]) -> None:
    wrong = [
        f"{file.relative_to(ROOT)}:{line}"
        for file in FILES
        if room(file) not in rooms
        for line, module in imports(file)
        if module.split(".")[0].startswith(library)
    ]
    assert not wrong


def test_drawing_knows_only_the_game_and_what_it_draws_with() -> None:
    found = {ours(m) for file in FILES if room(file) == "drawing" for _, m in imports(file)}
    assert found - {None} == {"drawing", "game", "libraries"}


def test_no_room_is_called_utils_or_common() -> None:
    vague = {"utils", "util", "common", "helpers", "misc"}
    assert not [file for file in FILES if file.stem in vague or file.parent.name in vague]
