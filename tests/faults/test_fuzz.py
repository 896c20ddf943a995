"""Readers accept what they are given, or refuse it with an error of their own (``fuzzing.py``)."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from .fuzz_targets import SHARES, prepare, target
from .fuzzing import Outcome, corpus, fuzz, processes

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


@pytest.mark.parametrize("name", SHARES)
def test_the_corpus_is_refused_or_accepted(name: str, inputs: Path) -> None:
    made = target(name, inputs)
    for data in corpus(name):
        with contextlib.suppress(made.errors):
            made.run(data)
