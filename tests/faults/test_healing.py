"""A file of a finished generation is damaged: the next generation is made all the same, with nobody
repairing anything by hand, and what serves in its place is said.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from ringrift_pipeline.selfplay import load_plan
from ringrift_pipeline.store import Store, quarantined

from . import stages
from .conftest import BEFORE, NOW
from .test_corruption import THERE, flipped
from .tracing import Zygote

CONFIG, NEXT = stages.CONFIG, 2

# What the next generation says of it; the others it makes nothing of, or finds only damaged.
SAID = {
    "ema_model": "generation 0000 serves as champion, for that of generation 0001 cannot",
    "selfplay-shard-": "of square8_2p generation 0001 is damaged",
    "champion.json": "the last line of champions.jsonl says: generation 0001 is champion",
}
SOME = tuple(SAID)
LATER = ("gauntlet", "ablation")  # made of a finished generation
OTHERS = [
    *((kind, NOW) for kind in (*THERE, *LATER) if kind not in SOME),
    *((kind, BEFORE) for kind in (*THERE, "anchor_games")),
]


def damage(root: Path, kind: str, generation: int = NOW) -> None:
    """Change every file of what a finished generation has of a kind."""
    store, rng = Store(root), random.Random(kind)
    if kind == "champion.json":
        files = [root / CONFIG / kind]
    else:
        names = [name for name in store.kinds(CONFIG, generation) if name.startswith(kind)]
        found = [store.require(CONFIG, generation, name) for name in names]
        files = [one.path / name for one in found for name in one.files]
    assert files
    for path in files:
        if path.stat().st_size:
            path.write_bytes(flipped(path.read_bytes(), rng))


def the_next_is_made(kind: str, zygote: Zygote, root: Path, generation: int = NOW) -> None:
    whole = {one: Store(root).current(CONFIG, NOW, one) for one in Store(root).kinds(CONFIG, NOW)}
    if kind in LATER:
        assert zygote.run(root, stages.KINDS[kind], generation) == 0, zygote.log.read_text()
    damage(root, kind, generation)
    said = ""
    for stage in stages.NAMES:
        assert zygote.run(root, stage, NEXT) == 0, f"{stage}: {zygote.log.read_text()}"
        said += zygote.log.read_text()
    store, plan = Store(root), load_plan(Store(root), CONFIG, NEXT)
    made = set(store.kinds(CONFIG, NEXT))
    assert made >= {one for one in whole if not one.startswith("anchor")}
    champion = store.champion(CONFIG)
    assert champion is not None and champion.generation == NEXT
    before = 0 if (kind, generation) == ("ema_model", NOW) else 1
    assert [model and model["generation"] for model in (plan.champion, plan.parent)] == [before] * 2
    assert [entry["digest"] for entry in plan.window if entry["generation"] == NOW] == [
        artefact.digest
        for name, artefact in sorted(whole.items())
        if artefact is not None and name.startswith("selfplay-shard-")
    ]
    if generation == NOW:
        assert SAID.get(kind, "") in said, said
    aside = quarantined(store, CONFIG)
    assert ("is corrupt" in said) is bool(aside)  # what was noticed is said, and to be alerted of
    if kind in SAID:
        assert all((one.kind or one.name).startswith(kind) for one in aside) and aside


@pytest.mark.bounded
@pytest.mark.parametrize("kind", SOME)
def test_the_next_generation_is_made(
    kind: str, zygote: Zygote, copy_of: Callable[[str], Path]
) -> None:
    the_next_is_made(kind, zygote, copy_of("end"))


@pytest.mark.parametrize(("kind", "generation"), OTHERS)
def test_the_next_generation_is_made_whatever_is_damaged(
    kind: str, generation: int, zygote: Zygote, copy_of: Callable[[str], Path]
) -> None:
    the_next_is_made(kind, zygote, copy_of("end"), generation)
