"""Data roots as they are before each stage of a generation, and a process that does the stages."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from . import stages
from .tracing import Zygote, tracer

BEFORE, NOW = 0, 1  # generations: the one that is whole, the one that is worked on


QUICK = ("test_nothing_runs_code.py::test_no_", "test_nothing_runs_code.py::test_the_walk")
QUICK += ("test_fuzz.py::test_the_corpus_is_", "test_sizes.py::test_")
QUICK += ("test_nothing_runs_code.py::test_every_op", "test_the_model_of_a_disk")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """All but the quickest run only where they are asked for: ``pytest -m faults tests/faults``."""
    asked = "faults" in (config.getoption("-m") or "").replace("not faults", "")
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and not any(name in item.nodeid for name in QUICK):
            item.add_marker(pytest.mark.faults)
            if not asked:
                item.add_marker(pytest.mark.skip(reason="takes minutes to hours: pytest -m faults"))


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    tracer()
    made = Zygote(tmp_path_factory.mktemp("zygote"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def roots(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stage -> data root as it is when that stage of generation 1 begins; "end": after all."""
    folder = tmp_path_factory.mktemp("roots")
    root = folder / "data"
    for stage in stages.NAMES:
        assert zygote.run(root, stage, BEFORE) == 0, zygote.log.read_text()
    found = {}
    for stage in stages.NAMES:
        found[stage] = folder / stage
        shutil.copytree(root, found[stage], symlinks=True)
        assert zygote.run(root, stage, NOW) == 0, zygote.log.read_text()
    found["end"] = root
    return found


@pytest.fixture
def copy_of(roots: dict[str, Path], tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """``copy_of("train")`` is a data root of one's own as that stage finds it."""
    made: list[Path] = []

    def copy(stage: str) -> Path:
        for old in made:
            shutil.rmtree(old)
        made[:] = [tmp_path / f"data-{stage}"]
        shutil.copytree(roots[stage], made[0], symlinks=True)
        return made[0]

    yield copy
