"""A generation by two machines that take turns and share nothing but a bucket."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from s3_server import S3Server
from tiny import TRAINED

from ringrift_pipeline import evaluation, training
from ringrift_pipeline.enhancements import TrainingConfig
from ringrift_pipeline.evaluation.rating_list import rate_all
from ringrift_pipeline.search import load_player
from ringrift_pipeline.selfplay import Plan, collect, load_plan, plan_generation, play_shard
from ringrift_pipeline.store import Store

pytestmark = [pytest.mark.services, pytest.mark.slow]

CONFIG = "square8_2p"
SETTINGS = {
    **TRAINED,
    "seed": 7,
    "training.max_steps": 6,
    "evaluation.games": 4,
    "evaluation.max_games": 4,
    "evaluation.simulations": 2,
    "evaluation.anchor_games": 2,
}


def plan(store: Store, generation: int) -> Plan:
    settings = TrainingConfig().with_overrides(SETTINGS)
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    return plan_generation(store, CONFIG, generation, settings, now)


def promote(store: Store, plan: Plan) -> None:
    model = store.require(CONFIG, plan.generation, "ema_model")
    store.promote(CONFIG, plan.generation, model, {"why": "a test"})


STAGES: tuple[Callable[[Store, Plan], Any], ...] = (
    lambda store, plan: play_shard(store, plan, 0),
    lambda store, plan: play_shard(store, plan, 1),
    collect,
    training.score_games,
    training.mine_hard_examples,
    training.train,
    training.average,
    training.build_ensemble,
    training.calibrate,
    evaluation.evaluate,
    lambda store, plan: rate_all(store, plan.config, plan.generation),
    promote,
)


def test_two_machines_make_what_one_makes(
    tmp_path: Path, s3: S3Server, bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = Store(tmp_path / "alone")
    plan(alone, 0)
    for stage in STAGES[:7]:
        stage(alone, load_plan(alone, CONFIG, 0))
    monkeypatch.setenv("RINGRIFT_BUCKET", bucket_url)  # for the stores that are opened on the way
    machines = [Store(tmp_path / "here"), Store(tmp_path / "there")]
    plan(machines[0], 0)
    for turn, stage in enumerate(STAGES):
        store = machines[turn % 2]
        stage(store, load_plan(store, CONFIG, 0))
    here, there = machines
    for kind in ("selfplay-shard-0000", "selfplay-shard-0001", "ema_model"):
        assert there.require(CONFIG, 0, kind).digest == alone.require(CONFIG, 0, kind).digest
    champion = here.champion(CONFIG)
    assert champion is not None and champion == here.champions(CONFIG)[-1]
    assert here.open(champion.path).digest == champion.digest
    # the next generation is planned by whoever has not played: its window is in the bucket alone
    fresh = Store(tmp_path / "fresh")
    following = plan(fresh, 1)
    assert [entry["digest"] for entry in following.window] == [
        alone.require(CONFIG, 0, f"selfplay-shard-000{n}").digest for n in range(2)
    ]
    assert not list(fresh.root.rglob("shard.arrow"))  # manifests say enough for a plan
    play_shard(fresh, following, 0)
    play_shard(there, load_plan(there, CONFIG, 1), 1)
    collect(here, load_plan(here, CONFIG, 1))
    s3.requests.clear()
    training.build_window(fresh, following)
    training.build_window(fresh, following)
    shards = [key for key in s3.asked("GET") if key.endswith("shard.arrow")]
    assert len(shards) == len(set(shards)) == 3  # its own it has
    assert not s3.asked("PUT")
    # who meets a model by its folder gets it from there, as a gauntlet's workers do
    last = Store(tmp_path / "last")
    elsewhere = last.champion(CONFIG)
    assert elsewhere is not None and not elsewhere.path.exists()
    player = load_player(str(elsewhere.path), CONFIG, simulations=2, data=str(last.root))
    assert player.name and elsewhere.path.is_dir()
