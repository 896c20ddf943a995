"""Progress files of running steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringrift_pipeline.orchestration import progress
from ringrift_pipeline.orchestration.places import progress_folder
from ringrift_pipeline.orchestration.progress import ProgressFile, read_progress


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
