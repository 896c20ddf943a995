"""What goes wrong in a case is counted, and a ledger tells whole parts from what is left to do."""

from __future__ import annotations

import ast
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from ringrift_pipeline.store import Store
from tests.syntax import tree_of

from . import tally
from .__main__ import HERE, PARTS
from .tally import MOST_BAD, Cases, LedgerError
from .test_corruption import CHANGES, spoil

pytestmark = pytest.mark.bounded


@pytest.fixture
def again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Begins a session on one ledger: of which share, seed and commit."""

    def session(share: str = "1/1", seed: int = 0, commit: str = "0c0ffee") -> None:
        monkeypatch.setenv("RINGRIFT_FAULTS_LEDGER", str(tmp_path / "ledger"))
        monkeypatch.setenv("RINGRIFT_FAULTS_SHARE", share)
        monkeypatch.setenv("RINGRIFT_FAULTS_SEED", str(seed))
        monkeypatch.setattr(tally, "commit", lambda: commit)
        monkeypatch.setattr(tally, "records", {})

    session()
    return session


def test_a_reader_that_notices_nothing_is_bad(again: Callable[..., None], tmp_path: Path) -> None:
    with Store(tmp_path / "data").create("square8_2p", 0, "thing") as draft:
        (draft / "file").write_bytes(b"whole")
    path = draft.artefact.path / "file"
    cases = Cases("changed bytes", "thing")
    for number, change in enumerate(CHANGES):
        content = change(b"whole", random.Random(number))
        cases.run(
            change.__name__,
            lambda c=content: spoil(draft.artefact, path, c, {"deaf": lambda _: None}, "so"),  # type: ignore[misc]
        )
        assert path.read_bytes() == b"whole"
    with pytest.raises(AssertionError, match="deaf did not notice"):
        cases.settle()
    assert "0 of 4 cases over 1 parts, 4 bad" in tally.figures()[0]


def test_what_pytest_raises_itself_is_bad(again: Callable[..., None]) -> None:
    def nothing_raised() -> None:
        with pytest.raises(ValueError):
            pass

    cases = Cases("a harness", "a part")
    cases.run("good", lambda: None)
    cases.run("deaf", nothing_raised)
    with pytest.raises(AssertionError, match="DID NOT RAISE"):
        cases.settle()
    assert "1 of 2 cases over 1 parts, 1 bad" in tally.figures()[0]


def test_a_test_gives_up_after_some_bad_cases(again: Callable[..., None]) -> None:
    cases, begun = Cases("a harness", "a part"), []

    def wrong() -> None:
        begun.append(1)
        raise ValueError

    with pytest.raises(AssertionError, match=f"{MOST_BAD} bad"):
        for number in range(100):
            cases.run(str(number), wrong)
    assert len(begun) == MOST_BAD
    assert "NOT FINISHED: a part" in tally.figures()[0]


def all_of(part: str, count: int) -> list[int]:
    cases, done = Cases("a harness", part), []
    for number in range(count):
        cases.run(f"case {number}", lambda n=number: done.append(n))  # type: ignore[misc]
    cases.settle()
    return done


def test_shares_make_a_whole_and_nothing_is_done_twice(again: Callable[..., None]) -> None:
    for share, mine in (("1/3", [0, 3, 6]), ("2/3", [1, 4])):
        again(share)
        assert all_of("a part", 7) == mine
    assert tally.figures()[0].startswith("a harness: 5 of 7 cases over 1 parts")
    assert tally.figures()[0].endswith("0 bad, NOT FINISHED: a part")
    again("1/1")
    assert all_of("a part", 7) == [2, 5]
    assert tally.figures() == [
        "a harness: 7 of 7 cases over 1 parts, 0 bad",
        "7 records of 0c0ffee, seed 0",
    ]
    assert all_of("a part", 7) == []


def test_an_interrupted_part_is_not_finished(again: Callable[..., None]) -> None:
    all_of("whole", 2)
    cases = Cases("a harness", "cut off")
    cases.run("first", lambda: None)
    again()
    tally.recall()
    assert "3 cases over 2 parts, 0 bad, NOT FINISHED: cut off" in tally.figures()[0]


def test_another_seed_is_refused_and_another_commit_told_of(
    again: Callable[..., None], tmp_path: Path
) -> None:
    all_of("one", 2)
    again(seed=1)
    with pytest.raises(LedgerError, match=r"ledger holds cases of seed 0, .* has seed 1"):
        Cases("a harness", "one")
    again(commit="ba5e")
    all_of("other", 1)
    assert tally.figures()[1:] == [
        "MIXED: 2 records of 0c0ffee, seed 0",
        "MIXED: 1 records of ba5e, seed 0",
    ]
    for line in (tmp_path / "ledger").read_text().splitlines():
        assert {"commit", "seed", "share"} <= json.loads(line).keys()


def test_kinds_of_cases_are_added_up(again: Callable[..., None]) -> None:
    for _ in range(2):
        again()
        cases = Cases("a harness", "a part", wanted=4, each={"of a run": 2})
        cases.run("one", lambda: {"of a run": 1, "of a step": 2}, ours=True)
        cases.run("none", lambda: {}, ours=True)
        for step in (3, 5, 9):
            cases.run(f"step {step}", lambda s=step: {f"resumed from step {s}": 1})  # type: ignore[misc]
        cases.keep("# events traced", 12)
        cases.settle()
    (line, _) = tally.figures()
    assert "1 of 2 of a run, 2 of a step, resumed from step: 3 different, 12 events traced" in line
    assert "1 in vain" in line and cases.counted == 6


def test_every_long_test_belongs_to_a_part() -> None:
    """``python -m faults`` without a part runs all that ``make test`` leaves out."""
    named = {place.partition("::")[0] for places in PARTS.values() for place in places}
    for path in sorted(HERE.glob("test_*.py")):
        text = path.read_text()
        whole = "pytestmark = pytest.mark.bounded" in text
        tests = [
            node
            for node in tree_of(text).body
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        ]
        long = [
            node.name
            for node in tests
            if not any("mark.bounded" in ast.unparse(one) for one in node.decorator_list)
        ]
        assert whole or not long or path.name in named, f"{path.name}: {', '.join(long)}"
    for places in PARTS.values():
        for place in places:
            name, _, test = place.partition("::")
            assert f"def {test or 'test_'}" in (HERE / name).read_text(), place
