"""The whole loop, killed at moments that chance picks, until it has come to its end.

No game is lost or played twice, no generation is made twice, the champion always loads, and what is
there in the end is what an undisturbed loop makes.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ringrift_pipeline.store import Store

from . import stages, tally
from .conftest import NOW, Roots
from .outcomes import contents, everything
from .tally import Cases
from .tracing import Zygote

LAST = 2  # generation
KILLS = 1000
LONG = 24 * 3600.0  # seconds
TRIALS = 100  # trainings that are killed twice
Copy = Callable[[str], Path]


def result(root: Path, last: int = LAST) -> dict[str, Any]:
    return everything(root, stages.CONFIG, last, int(str(stages.TINY["selfplay.games"])))


def killed_loop(
    zygote: Zygote,
    root: Path,
    last: int,
    wanted: dict[str, Any],
    rng: random.Random,
    mean: float,
    most: int = 10**6,
) -> int:
    """A loop that goes on, kill after kill, to its end. Returns how often it was killed.

    ``mean`` seconds between two kills at first, more with each, as the machine may be a slow one;
    after ``most`` kills it is left alone.
    """
    survived = 0
    while True:
        seconds = rng.expovariate(1 / mean) * (1 + survived / 20)
        status = zygote.killed_after(root, "loop", last, seconds if survived < most else LONG)
        if status == 0:
            break
        assert status == -9, zygote.log.read_text()
        survived += 1
        champion = Store(root).champion(stages.CONFIG) if root.exists() else None
        if champion is not None:
            Store(root).open(champion.path)
    Store(root).sweep()
    assert not list(root.rglob(".ringrift-tmp-*"))
    assert not list(root.rglob("quarantine/*"))
    assert result(root, last) == wanted
    return survived


@pytest.mark.bounded
def test_a_generation_killed_a_few_times(zygote: Zygote, roots: Roots, copy_of: Copy) -> None:
    wanted = result(roots["end"], NOW)
    assert killed_loop(zygote, copy_of("selfplay"), NOW, wanted, random.Random(1), 1.0, most=3)


def test_a_loop_killed_again_and_again(zygote: Zygote, tmp_path: Path) -> None:
    cases = Cases("random kills in process", f"share {tally.share()[0] + 1}/{tally.share()[1]}")
    root = tmp_path / "undisturbed"
    assert zygote.run(root, "loop", LAST) == 0, zygote.log.read_text()
    wanted = result(root)
    number = 0
    while cases.counted < tally.wanted(KILLS):
        place = tmp_path / "data"
        shutil.rmtree(place, ignore_errors=True)
        rng = random.Random(f"{tally.seed()} {tally.share()} {number}")
        cases.run(
            f"loop {number}",
            lambda: killed_loop(zygote, place, LAST, wanted, rng, 4.0),  # noqa: B023
            ours=True,
        )
        number += 1
    cases.keep("# loops", number)
    cases.settle()


def killed_training(zygote: Zygote, copy_of: Copy, wanted: Any, rng: random.Random) -> int:
    root = copy_of("train")
    steps = sorted(rng.sample(range(1, int(str(stages.TINY["training.max_steps"]))), 2))
    for step in steps:
        status = zygote.run(root, f"train until step {step}", NOW)
        assert status == -9, zygote.log.read_text()
    assert zygote.run(root, "train", NOW) == 0, zygote.log.read_text()
    assert contents(Store(root).require(stages.CONFIG, NOW, "checkpoint")) == wanted
    return len(steps)


@pytest.mark.bounded
def test_a_training_killed_twice_makes_the_same_weights(
    zygote: Zygote, roots: Roots, copy_of: Copy
) -> None:
    wanted = contents(Store(roots["end"]).require(stages.CONFIG, NOW, "checkpoint"))
    assert killed_training(zygote, copy_of, wanted, random.Random(0)) == 2


def test_a_training_killed_at_any_step_makes_the_same_weights(
    zygote: Zygote, roots: Roots, copy_of: Copy
) -> None:
    cases = Cases("bit-exact resume", "training")
    wanted = contents(Store(roots["end"]).require(stages.CONFIG, NOW, "checkpoint"))
    for number in range(tally.wanted(TRIALS) * tally.share()[1]):
        rng = random.Random(f"{tally.seed()} {number}")
        cases.run(
            f"training {number}",
            lambda r=rng: killed_training(zygote, copy_of, wanted, r),  # type: ignore[misc]
        )
    cases.settle()
