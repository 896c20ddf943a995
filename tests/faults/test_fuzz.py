"""Readers accept what they are given, or refuse it with an error of their own (``fuzzing.py``).

Those of `LIGHT` are also driven by Hypothesis, a few inputs each, which makes those that fail small.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .fuzz_targets import LIGHT, SHARES, executions, prepare, target
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
    outcome: Outcome = fuzz(name, inputs, 1, executions(list(SHARES), EXECUTIONS)[name])
    assert not outcome.faults, "\n".join(outcome.faults)
    assert outcome.places, "nothing was refused"


Change = tuple[int, int, bytes]


def changed(seed: bytes, changes: list[Change]) -> bytes:
    """Bytes with some of them replaced: where, how many, by what."""
    data = bytearray(seed)
    for place, count, new in changes:
        start = place % (len(data) + 1)
        data[start : start + count] = new
    return bytes(data)


CHANGE = st.tuples(st.integers(0, 1 << 16), st.integers(0, 16), st.binary(max_size=8))


@pytest.mark.bounded
@pytest.mark.parametrize("name", LIGHT)
def test_hypothesis_finds_no_other_error(name: str, tmp_path: Path) -> None:
    made = target(name, tmp_path)

    @settings(
        max_examples=30,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from([*made.seeds, *corpus(name)]), st.lists(CHANGE, min_size=1, max_size=6))
    def refused_or_accepted(seed: bytes, changes: list[Change]) -> None:
        with contextlib.suppress(*made.errors):
            made.run(changed(seed, changes))

    refused_or_accepted()


@pytest.mark.bounded
def test_the_shares_of_the_targets_add_up() -> None:
    assert sum(executions(list(SHARES), 1_000_000).values()) == 1_000_000
    assert executions(["plan", "trace"], 13) == {"plan": 6, "trace": 7}
    assert set(LIGHT) < set(SHARES)


def replay(name: str, folder: Path) -> int:
    """Run what is good, which must be accepted, and what was kept of a target; how many there are."""
    made = target(name, folder)
    for data in made.seeds:
        made.run(data)
    kept = corpus(name)
    for data in kept:
        with contextlib.suppress(*made.errors):
            made.run(data)
    return len(made.seeds) + len(kept)


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
