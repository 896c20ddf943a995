"""What a worker clears away when it starts: what the dead have left, and nothing of the living."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ringrift_pipeline.orchestration.leftovers import sweep_apart
from ringrift_pipeline.store import Store
from ringrift_pipeline.store.atomic import TEMPORARY
from tests.drafts import Writer

CONFIG = "hex8_2p"


@pytest.fixture(autouse=True)
def no_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RINGRIFT_BUCKET", raising=False)


def renumbered(draft: Path, pid: int) -> Path:
    """The draft, as if a process of that number wrote it: in another container one may."""
    rest = draft.name.removeprefix(TEMPORARY).partition("-")[2]
    return draft.rename(draft.with_name(f"{TEMPORARY}{pid}-{rest}"))


def test_what_killed_steps_have_left_goes_and_what_others_are_writing_stays(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path)
    with store.create(CONFIG, 0, "shard-0000") as landed:
        (landed / "games").write_text("all of them")
    marks = tmp_path / ".bucket" / "pending"
    marks.mkdir(parents=True)
    (marks / f"{TEMPORARY}1-00-00").touch()
    (tmp_path / CONFIG / "generations" / "0000" / f"{TEMPORARY}1-00-01").write_text("half a plan")
    with (
        Writer(tmp_path, CONFIG, "shard-0001") as dead,
        Writer(tmp_path, CONFIG, "shard-0002") as alive,
        Writer(tmp_path, "square8_2p", "checkpoint") as far,
    ):
        dead.kill()
        # Whose number a draft has says nothing of its writer: containers have like numbers.
        left, kept = renumbered(dead.draft, os.getpid()), renumbered(far.draft, dead.pid)
        assert {left.is_dir(), kept.is_dir(), alive.draft.is_dir()} == {True}
        sweep_apart(tmp_path)
        assert {alive.draft, kept} == set(tmp_path.rglob(f"{TEMPORARY}*"))
        assert len((kept / "games").read_bytes()) == 1000
    sweep_apart(tmp_path)
    assert not list(tmp_path.rglob(f"{TEMPORARY}*"))
    assert store.current(CONFIG, 0, "shard-0000") == landed.artefact


def test_an_empty_data_root_stays_empty(tmp_path: Path) -> None:
    sweep_apart(tmp_path)
    sweep_apart(tmp_path / "none")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_swept_is_told_and_stops_nobody(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RINGRIFT_BUCKET", "no bucket")
    (tmp_path / CONFIG).mkdir()
    sweep_apart(tmp_path)
    told = capfd.readouterr().err
    assert "is not all cleared away: 'no bucket' names no bucket" in told
    assert "Traceback" not in told
