"""Raising the version of an asset's code makes its artefact anew; as long as it stays, none is."""

from __future__ import annotations

from typing import Any

import pytest

from ringrift_pipeline import evaluation, selfplay, training
from ringrift_pipeline.orchestration import names
from ringrift_pipeline.store import Artefact, Store
from ringrift_pipeline.store.kinds import CODE_VERSIONS

pytestmark = pytest.mark.slow

CONFIG = "square8_2p"


def play(store: Store, plan: Any) -> Artefact:
    for shard in plan.shards:
        selfplay.play_shard(store, plan, shard["index"])
    return selfplay.collect(store, plan)


MAKERS = {
    "selfplay_shards": play,
    "quality_scores": training.score_games,
    "hard_examples": training.mine_hard_examples,
    "checkpoint": training.train,
    "ema_model": training.average,
    "ensemble": training.build_ensemble,
    "calibration_report": training.calibrate,
    "evaluation": evaluation.evaluate,
}


def test_every_asset_has_a_version() -> None:
    assert set(MAKERS) == set(names.ASSETS)
    assert set(CODE_VERSIONS) == {*names.ASSETS, "retention"}


@pytest.mark.parametrize("kind", names.ASSETS)
def test_a_raised_version_makes_it_anew(
    kind: str, copied: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = selfplay.load_plan(copied, CONFIG, 0)
    shard = copied.require(CONFIG, 0, "selfplay-shard-0001").path
    before = copied.require(CONFIG, 0, kind).path
    assert MAKERS[kind](copied, plan).path == before
    monkeypatch.setitem(CODE_VERSIONS, kind, f"{int(CODE_VERSIONS[kind]) + 1}")
    anew = MAKERS[kind](copied, plan)
    assert anew.path != before
    assert MAKERS[kind](copied, plan).path == anew.path
    replayed = copied.require(CONFIG, 0, "selfplay-shard-0001").path != shard
    assert replayed is (kind == "selfplay_shards")
