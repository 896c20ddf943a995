"""Readers accept what they are given, or refuse it with an error of their own (``fuzzing.py``)."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from .fuzz_targets import LIGHT, SHARES, prepare, target
from .fuzzing import CORPUS, LARGEST_CORPUS, LARGEST_KEPT, Outcome, corpus, fuzz, processes

EXECUTIONS = 20_000  # over all targets; `python -m faults.fuzzing` does a million


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    made = processes().Process(target=prepare, args=(folder,))
    made.start()
    made.join()
    assert made.exitcode == 0
    return folder


@pytest.mark.parametrize("name", SHARES)
def test_a_reader_refuses_in_its_own_words(name: str, inputs: Path) -> None:
    outcome: Outcome = fuzz(name, inputs, 1, EXECUTIONS * SHARES[name] // sum(SHARES.values()))
    assert not outcome.faults, "\n".join(outcome.faults)
    assert outcome.places, "nothing was refused"


def replay(name: str, folder: Path) -> int:
    """Run what was kept of a target; how many there are."""
    made = target(name, folder)
    inputs = [*made.seeds, *corpus(name)]
    for data in inputs:
        with contextlib.suppress(*made.errors):
            made.run(data)
    return len(inputs)


@pytest.mark.bounded
@pytest.mark.parametrize("name", LIGHT)
def test_the_corpus_is_refused_or_accepted(name: str, tmp_path: Path) -> None:
    assert replay(name, tmp_path) > 0


@pytest.mark.parametrize("name", sorted(set(SHARES) - set(LIGHT)))
def test_the_corpus_of_files_is_refused_or_accepted(name: str, inputs: Path) -> None:
    assert replay(name, inputs) > 0


@pytest.mark.bounded
def test_the_corpus_is_small_and_of_targets_that_there_are() -> None:
    folders = {path.name.replace("_", " ") for path in CORPUS.iterdir()}
    assert folders and folders <= set(SHARES)
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < LARGEST_CORPUS
    assert all(path.stat().st_size <= LARGEST_KEPT for path in files)
