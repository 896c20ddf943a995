"""The same seed makes the same files, from selfplay to evaluation and promotion."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from faults import stages
from faults.outcomes import contents

import ringrift_pipeline
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


TESTS = Path(__file__).parents[1]
LOOP = """
import sys
from pathlib import Path
from faults import stages
for stage in stages.NAMES:
    stages.work(Path(sys.argv[1]), stage, 0)
print(hash("a text"))
"""


def loop_apart(root: Path, hash_seed: int) -> str:
    """A loop in a fresh process, and what a text's hash is there, as the order in sets depends on."""
    package = Path(ringrift_pipeline.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", LOOP, root],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (package, TESTS))),
            "PYTHONHASHSEED": str(hash_seed),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.whole
def test_two_loops_of_one_seed_make_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert loop_apart(tmp_path / "one", 1) != loop_apart(tmp_path / "other", 2)
    made = [files(tmp_path / "one"), files(tmp_path / "other")]
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
            (draft / "file.txt").write_text(text)
        found.append(contents(draft.artefact))
    assert found[0] == {"file.txt": hashlib.sha256(b"a").hexdigest()} != found[1]
