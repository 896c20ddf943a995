"""The same seed makes the same files, from selfplay to evaluation and promotion."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from faults import stages
from faults.outcomes import contents

from ringrift_pipeline.store import Store

pytestmark = pytest.mark.slow


def files(root: Path) -> dict[str, dict[str, str]]:
    """Kind -> names and hashes of the files of generation 0, but for those that tell of time."""
    store = Store(root)
    found = {}
    for kind in store.kinds(stages.CONFIG, 0):
        artefact = store.current(stages.CONFIG, 0, kind)
        if artefact is not None:
            found[kind] = contents(artefact)
    champion = store.champion(stages.CONFIG)
    found["champion"] = {"digest": champion.digest} if champion else {}
    return found


@pytest.mark.whole
def test_two_loops_of_one_seed_make_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for name in ("one", "other"):
        for stage in stages.NAMES:
            stages.work(tmp_path / name, stage, 0)
        made.append(files(tmp_path / name))
    assert made[0] == made[1]
    assert sum(map(len, made[0].values())) > 20 and len(made[0]["champion"]["digest"]) == 64
    monkeypatch.setitem(stages.TINY, "seed", 8)
    for stage in ("plan", "selfplay"):
        stages.work(tmp_path / "third", stage, 0)
    shard = "selfplay-shard-0000"
    assert files(tmp_path / "third")[shard] != made[0][shard]


def test_hashes_tell_a_byte(tmp_path: Path) -> None:
    """What the comparison above rests on."""
    store = Store(tmp_path)
    found = []
    for text in ("a", "b"):
        with store.create(stages.CONFIG, 0, "thing") as draft:
            (draft.path / "file.txt").write_text(text)
        found.append(contents(draft.artefact))
    assert found[0] == {"file.txt": hashlib.sha256(b"a").hexdigest()} != found[1]
