"""The whole loop, killed at moments that chance picks, until it has come to its end.

No game is lost or played twice, no generation is made twice, the champion always loads, and what is
there in the end is what an undisturbed loop makes.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from ringrift_pipeline.selfplay import load_plan
from ringrift_pipeline.selfplay.shards import column, read_shard
from ringrift_pipeline.store import Store

from . import stages
from .test_kills import FOLDER, contents
from .tracing import Zygote

LAST = 2  # generation
KILLS = (pytest.param(6, id="some"), pytest.param(1000, id="all", marks=pytest.mark.faults))
STEPS = (pytest.param(3, id="some"), pytest.param(100, id="all", marks=pytest.mark.faults))


def everything(root: Path) -> dict[str, Any]:
    """What a finished loop has made, but for what tells of time."""
    store = Store(root)
    found: dict[str, Any] = {}
    for generation in range(LAST + 1):
        plan = store.read_plan(stages.CONFIG, generation)
        if plan["ensemble"] is not None:
            plan["ensemble"]["digest"] = "*"  # its list of members names folders
        found[f"{generation} plan"] = FOLDER.sub(b"*", json.dumps(plan, sort_keys=True).encode())
        for kind in store.kinds(stages.CONFIG, generation):
            artefact = store.current(stages.CONFIG, generation, kind)
            if artefact is not None:
                found[f"{generation} {kind}"] = contents(artefact)
        games: list[str] = []
        for index in range(len(load_plan(store, stages.CONFIG, generation).shards)):
            shard = store.require(stages.CONFIG, generation, f"selfplay-shard-{index:04d}")
            games += dict.fromkeys(column(read_shard(shard.file("shard.arrow")), "game_id"))
        assert len(games) == len(set(games)) == stages.TINY["selfplay.games"]
        found[f"{generation} games"] = sorted(games)
    found["promotions"] = [one.generation for one in store.champions(stages.CONFIG)]
    return found


@pytest.fixture(scope="module")
def undisturbed(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("undisturbed") / "data"
    assert zygote.run(root, "loop", LAST) == 0, zygote.log.read_text()
    return everything(root)


@pytest.mark.parametrize("kills", KILLS)
def test_a_loop_killed_again_and_again(
    kills: int, zygote: Zygote, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    rng = random.Random(kills)
    survived, loops = 0, 0
    while survived < kills:
        root = tmp_path / f"data-{loops}"
        loops += 1
        while True:
            status = zygote.killed_after(root, "loop", LAST, rng.expovariate(1 / 4.0))
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
        assert everything(root) == undisturbed
    print(f"{survived} kills over {loops} loops")


@pytest.mark.parametrize("trials", STEPS)
def test_a_training_killed_at_any_step_makes_the_same_weights(
    trials: int, zygote: Zygote, copy_of: Any
) -> None:
    root = copy_of("train")
    assert zygote.run(root, "train", 1) == 0
    store = Store(root)
    wanted = contents(store.require(stages.CONFIG, 1, "checkpoint"))
    rng = random.Random(0)
    for _ in range(trials):
        root = copy_of("train")
        for step in sorted(rng.sample(range(1, stages.TINY["training.max_steps"]), 2)):
            assert zygote.run(root, f"train until step {step}", 1) == -9, zygote.log.read_text()
        assert zygote.run(root, "train", 1) == 0, zygote.log.read_text()
        assert contents(Store(root).require(stages.CONFIG, 1, "checkpoint")) == wanted
