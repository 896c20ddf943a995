"""Progress files of running steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ringrift_pipeline.orchestration import progress
from ringrift_pipeline.orchestration.places import progress_folder
from ringrift_pipeline.orchestration.progress import ProgressFile, read_progress
from ringrift_pipeline.orchestration.silent_steps import SilentSteps


def test_a_running_step_is_seen_and_gone_afterwards(tmp_path: Path) -> None:
    step = "square8_2p__selfplay_shards.play[0003]"
    with ProgressFile(tmp_path, "run", step, "square8_2p", "0001") as report:
        (state,) = read_progress(tmp_path, "run")
        assert (state.step, state.generation, state.total) == (step, "0001", 0)
        report(40, 40, "40 games")
        (state,) = read_progress(tmp_path, "run")
        assert (state.done, state.total, state.message) == (40, 40, "40 games")
    assert read_progress(tmp_path, "run") == []
    assert not progress_folder(tmp_path, "run").exists()


def test_reports_are_thinned_but_the_last_one_lands(tmp_path: Path) -> None:
    with ProgressFile(tmp_path, "run", "step", "hex8_2p", "0000") as report:
        report(1, 1000, "first")
        for done in range(2, 1000):
            report(done, 1000, "between")
        (state,) = read_progress(tmp_path, "run")
        assert state.done < 1000
        report(1000, 1000, "last")
        assert read_progress(tmp_path, "run")[0].message == "last"


def test_a_step_that_fails_leaves_no_progress(tmp_path: Path) -> None:
    try:
        with ProgressFile(tmp_path, "run", "step", "hex8_2p", "0000"):
            raise RuntimeError
    except RuntimeError:
        pass
    assert read_progress(tmp_path, "run") == []


def test_damaged_files_are_passed_over(tmp_path: Path) -> None:
    with ProgressFile(tmp_path, "run", "step", "hex8_2p", "0000"):
        (progress_folder(tmp_path, "run") / "odd.json").write_text("{")
        assert len(read_progress(tmp_path, "run")) == 1
    assert read_progress(tmp_path, "never") == []


GOOD = {
    "run_id": "run", "step": "step", "config": "hex8_2p", "generation": "0000", "done": 1,
    "total": 2, "message": "", "started": 1.0, "updated": 2.0, "pid": 7, "silence": None,
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"silence": "a"}, {"pid": 10**30}, {"pid": -1}, {"pid": True}, {"done": 1e3},
        {"total": 10**30}, {"started": "soon"}, {"updated": None}, {"message": 3}, {"step": ["x"]},
        {"started": float("nan")}, {"silence": 1e300}, {"more": 1},
    ],
    ids=str,
)  # fmt: skip
def test_what_lies_there_cannot_end_those_who_watch(tmp_path: Path, change: dict) -> None:
    """`SilentSteps` computes with the times and asks the system about the process."""
    folder = progress_folder(tmp_path, "run")
    folder.mkdir(parents=True)
    (folder / "good.json").write_text(json.dumps(GOOD))
    (folder / "odd.json").write_text(json.dumps({**GOOD, **change}))
    (folder / "deep.json").write_text("[" * 100_000)
    assert [state.pid for state in read_progress(tmp_path, "run")] == [7]
    assert SilentSteps(tmp_path, 0).look() == []


def test_the_log_is_told_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    told: list[str] = []
    with ProgressFile(tmp_path, "run", "step", "hex8_2p", "0000", told.append) as report:
        for second in range(25):
            clock[0] += 1.0
            report(second, 100, f"{second} games")
    assert told == ["9 of 100: 9 games", "19 of 100: 19 games"]


def test_a_log_that_cannot_be_written_fails_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(line: str) -> None:
        raise OSError("database is locked")

    monkeypatch.setattr(progress, "TELL_INTERVAL", 0.0)
    with ProgressFile(tmp_path, "run", "step", "hex8_2p", "0000", locked) as report:
        report(1, 1, "done")


def test_what_is_not_known_is_left_out() -> None:
    assert progress.describe(0, 0, "compiling") == "compiling"
    assert progress.describe(3, 7) == "3 of 7"
    assert progress.describe(0, 0) == "working"
