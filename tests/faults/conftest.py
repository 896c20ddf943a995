"""Data roots as they are before each stage of a generation, and a process that does the stages."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from . import stages, tally
from .tracing import Zygote, tracer

BEFORE, NOW = 0, 1  # generations: the one that is whole, the one that is worked on


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is not ``bounded`` runs only where it is asked for: ``pytest -m faults tests/faults``."""
    asked = "faults" in (config.getoption("-m") or "").replace("not faults", "")
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and not item.get_closest_marker("bounded"):
            item.add_marker(pytest.mark.faults)
            if not asked:
                item.add_marker(pytest.mark.skip(reason="takes minutes to hours: pytest -m faults"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The figures of the long sets, where any were asked for."""
    if tally.records and "not faults" not in (terminalreporter.config.getoption("-m") or ""):
        terminalreporter.section("faults")
        for line in tally.figures():
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    tracer()
    made = Zygote(tmp_path_factory.mktemp("zygote"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def ticker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """A process that does ticks of the sensor."""
    tracer()
    made = Zygote(tmp_path_factory.mktemp("ticker"), "ticks")
    yield made
    made.close()


@pytest.fixture(scope="session")
def landed(ticker: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root in which two evaluations have landed that the sensor has not seen."""
    root = tmp_path_factory.mktemp("landed") / "data"
    assert ticker.run(root, "land", 0) == 0, ticker.log.read_text()
    return root


class Roots:
    """Stage -> data root as it is when that stage of generation 1 begins; "end": after all.

    Not to be written to. What is before a later stage is made when it is first asked for.
    """

    def __init__(self, folder: Path, zygote: Zygote) -> None:
        self._folder, self._zygote = folder, zygote

    def __getitem__(self, stage: str) -> Path:
        found = self._folder / stage
        with FileLock(self._folder / "lock"):
            if stage in stages.LATER and not found.exists():
                making = self._folder / "making"
                shutil.rmtree(making, ignore_errors=True)
                shutil.copytree(self._folder / stages.LATER[stage].after, making, symlinks=True)
                self._work(making, f"before {stage}", NOW)
                making.rename(found)
        return found

    def make(self) -> None:
        """Make those before the stages of the loop, unless another process has."""
        with FileLock(self._folder / "lock"):
            if (self._folder / "end").exists():
                return
            root = self._folder / "data"
            for stage in stages.NAMES:
                self._work(root, stage, BEFORE)
            for stage in stages.NAMES:
                shutil.copytree(root, self._folder / stage, symlinks=True)
                self._work(root, stage, NOW)
            root.rename(self._folder / "end")

    def _work(self, root: Path, stage: str, generation: int) -> None:
        assert self._zygote.run(root, stage, generation) == 0, self._zygote.log.read_text()


@pytest.fixture(scope="session")
def roots(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Roots:
    base = tmp_path_factory.getbasetemp()
    # Several workers of one run share them.
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "roots"
    folder.mkdir(exist_ok=True)
    made = Roots(folder, zygote)
    made.make()
    return made


@pytest.fixture
def copy_of(roots: Roots, tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """``copy_of("train")`` is a data root of one's own as that stage finds it."""
    made: list[Path] = []

    def copy(stage: str) -> Path:
        for old in made:
            shutil.rmtree(old)
        made[:] = [tmp_path / f"data-{stage}".replace(" ", "-")]
        shutil.copytree(roots[stage], made[0], symlinks=True)
        return made[0]

    yield copy
    with contextlib.suppress(FileNotFoundError):
        for old in made:
            shutil.rmtree(old)
