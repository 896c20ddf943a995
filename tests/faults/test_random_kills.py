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
    cases = Cases("random kills in process", "a loop", tally.total(KILLS))
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
            lambda: killed_loop(zygote, place, LAST, wanted, rng, 1.0),  # noqa: B023
            ours=True,
        )
        number += 1
    cases.keep("# loops", len(cases.noted()))
    cases.settle()


def killed_training(
    zygote: Zygote, root: Path, wanted: Any, steps: tuple[int, ...], saved: bool = True
) -> int:
    """A training that is killed after those steps, each counted from its beginning, and then comes to
    its end. Returns the step that it went on from last: the last one saved before the last kill,
    where the kills wait until it was ``saved``.
    """
    for step in steps:
        status = zygote.run(root, f"train until step {step}{', saved' * saved}", NOW)
        assert status == -9, zygote.log.read_text()
    last = stages.landed_step(Store(root), NOW)
    assert zygote.run(root, "train", NOW) == 0, zygote.log.read_text()
    made = Store(root).require(stages.CONFIG, NOW, "checkpoint")
    assert made.metadata["resumed_from_step"] == last
    assert contents(made) == wanted
    return last


@pytest.mark.bounded
def test_a_training_killed_twice_makes_the_same_weights(
    zygote: Zygote, roots: Roots, copy_of: Copy
) -> None:
    wanted = contents(Store(roots["end"]).require(stages.CONFIG, NOW, "checkpoint"))
    assert killed_training(zygote, copy_of("train"), wanted, (3, 6)) == 4


def test_a_training_killed_at_any_step_makes_the_same_weights(
    zygote: Zygote, roots: Roots, tmp_path: Path
) -> None:
    cases = Cases("bit-exact resume", "training", tally.total(TRIALS))
    before, root = tmp_path / "before", tmp_path / "root"
    shutil.copytree(roots["plan"], before, symlinks=True)
    for stage in ("plan a long training", "selfplay", "score_games", "mine_hard_examples"):
        assert zygote.run(before, stage, NOW) == 0, zygote.log.read_text()
    shutil.copytree(before, root, symlinks=True)
    assert zygote.run(root, "train", NOW) == 0, zygote.log.read_text()
    whole = Store(root).require(stages.CONFIG, NOW, "checkpoint")
    assert whole.metadata["train/steps"] == stages.LONG_TRAINING["training.max_steps"]
    wanted = contents(whole)

    def one(number: int) -> dict[str, int]:
        shutil.rmtree(root)
        shutil.copytree(before, root, symlinks=True)
        rng = random.Random(f"{tally.seed()} {number}")
        first, second = sorted(rng.sample(range(2, whole.metadata["train/steps"]), 2))
        saved = number % 4 != 3  # every fourth is killed while a state may be landing
        last = killed_training(zygote, root, wanted, (first, second), saved)
        assert last == second - 1 if saved else last < second
        return {f"resumed from step {last}" if last else "begun anew": 1}

    for number in range(tally.total(TRIALS)):
        cases.run(f"training {number}", lambda n=number: one(n))  # type: ignore[misc]
    cases.settle()
