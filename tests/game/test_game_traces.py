"""Every game of the reference traces: the same legal moves and the same state at every ply."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ringrift_pipeline.game import read_traces, replay_file, replay_trace

TRACES = Path(__file__).resolve().parents[3] / "shared" / "traces"
FILES = sorted(TRACES.glob("*.jsonl.gz"))
#: Large files first, so that workers finish together.
FILES.sort(key=lambda path: -path.stat().st_size)
pytestmark = pytest.mark.skipif(
    not FILES, reason=f"no reference traces in {TRACES}: they are not part of this repository"
)


@pytest.mark.parametrize(
    "path", FILES or [TRACES / "absent"], ids=lambda path: path.name.split(".")[0]
)
def test_trace_file_replays(path: Path, record_property: Callable[[str, object], None]) -> None:
    reports = replay_file(path)
    wrong = [
        f"game {i}: ply {r.ply}, {r.field}: {r.detail}"
        for i, r in enumerate(reports, start=1)
        if not r.ok
    ]
    assert not wrong, f"{len(wrong)} of {len(reports)} games differ\n" + "\n".join(wrong[:5])
    plies = sum(report.plies for report in reports)
    record_property("games", len(reports))
    record_property("plies", plies)
    print(f"{path.name}: {len(reports)} games, {plies} plies")
    assert plies > 50 * len(reports)


def test_all_traces_are_there() -> None:
    assert len(FILES) >= 22
    configs = {
        path.name.split(".")[0].removesuffix("_rare").removesuffix("_swap") for path in FILES
    }
    assert len(configs) == 12


def test_a_changed_trace_is_noticed() -> None:
    """The replay can fail: one changed figure deep in a real game is found where it is."""
    path = next(p for p in FILES if p.name == "square8_2p.jsonl.gz")
    text = json.dumps(next(iter(read_traces(path))))
    trace = json.loads(text)
    assert replay_trace(trace).ok
    trace["plies"][60]["after"]["eliminated"][0] += 1
    report = replay_trace(trace)
    assert (report.ply, report.field, report.plies) == (60, "after.eliminated", 60)
    trace = json.loads(text)
    del trace["plies"][41]["legal"][-1]
    assert (replay_trace(trace).ply, replay_trace(trace).field) == (41, "legal")
