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

TRIALS = 50  # in which a worker was killed
MOST = 10  # trials for each of them
Copy = Callable[[str], Path]


@pytest.mark.parametrize("stage", stages.MULTI)
def test_a_killed_worker_changes_nothing(stage: str, zygote: Zygote, copy_of: Copy) -> None:
    cases = Cases("killed workers", stage, tally.total(TRIALS))
    alone = stage.removesuffix(" by two")
    _, wanted = undisturbed(zygote, copy_of, alone)
    root = copy_of(stage)
    assert zygote.run(root, stage, NOW) == 0, zygote.log.read_text()
    assert made(root) == wanted, "two workers make something else than one"
    number = 0
    while cases.counted < tally.wanted(TRIALS):  # a trial may end before anybody is killed
        assert number < MOST * tally.wanted(TRIALS), f"{cases.counted} kills in {number} trials"
        rng = random.Random(f"{tally.seed()} {tally.share()} {stage} {number}")
        cases.run(
            f"trial {number}",
            lambda r=rng: check(zygote, copy_of, wanted, stage, r),  # type: ignore[misc]
            ours=True,
        )
        number += 1
    cases.settle()


def check(zygote: Zygote, copy_of: Copy, wanted: Any, stage: str, rng: random.Random) -> int:
    root = copy_of(stage)
    status, killed = zygote.worker_killed(root, stage, NOW, rng)
    said = zygote.log.read_text()
    if status and stage != "selfplay by two":  # it says so, and goes on where it was
        assert "a worker" in said and "died" in said, said
        assert zygote.run(root, stage, NOW) == 0, zygote.log.read_text()
    else:
        assert status == 0, said  # another worker takes its place
    assert not list(root.rglob("quarantine/*"))
    assert made(root) == wanted
    return int(killed)
