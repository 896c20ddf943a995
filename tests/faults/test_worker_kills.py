"""One of the worker processes of selfplay, of an evaluation or of an ablation is killed at a moment
that chance picks, while the process that gave it work lives on.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from . import stages, tally
from .conftest import NOW
from .outcomes import made
from .tally import Cases
from .test_kills import undisturbed
from .tracing import Zygote

TRIALS = 50
Copy = Callable[[str], Path]


@pytest.mark.parametrize("stage", stages.MULTI)
def test_a_killed_worker_changes_nothing(stage: str, zygote: Zygote, copy_of: Copy) -> None:
    cases = Cases("killed workers", stage)
    alone = stage.removesuffix(" by two")
    _, wanted = undisturbed(zygote, copy_of, alone)
    root = copy_of(stage)
    assert zygote.run(root, stage, NOW) == 0, zygote.log.read_text()
    assert made(root) == wanted, "two workers make something else than one"
    for number in range(tally.wanted(TRIALS) * tally.share()[1]):
        rng = random.Random(f"{tally.seed()} {stage} {number}")
        cases.run(
            f"kill {number}",
            lambda r=rng: check(zygote, copy_of, wanted, stage, r),  # type: ignore[misc]
        )
    cases.settle()


def check(zygote: Zygote, copy_of: Copy, wanted: Any, stage: str, rng: random.Random) -> int:
    root = copy_of(stage)
    status, killed = zygote.worker_killed(root, stage, NOW, rng)
    said = zygote.log.read_text()
    if status and stage == "evaluate by two":  # it says so, and goes on where it was
        assert "a worker" in said and "died" in said, said
        assert zygote.run(root, stage, NOW) == 0, zygote.log.read_text()
    else:
        assert status == 0, said  # another worker takes its place
    assert not list(root.rglob("quarantine/*"))
    assert made(root) == wanted
    return int(killed)
