"""Shards of a window that were damaged or lost: played again, byte for byte, or refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from ringrift_pipeline.selfplay import (
    Interrupted,
    Plan,
    ShardError,
    collect,
    iter_shards,
    plan_generation,
    shard_kind,
)
from ringrift_pipeline.store import Artefact, MissingArtefactError, Store, quarantined
from ringrift_pipeline.store.kinds import CODE_VERSIONS

from .conftest import CONFIG, NOW, settings

Damage = Callable[[Artefact], object]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


DAMAGES: dict[str, Damage] = {
    "games": lambda shard: flip(shard.path / "shard.arrow"),
    "manifest": lambda shard: flip(shard.path / "manifest.json"),
    "pointer": lambda shard: flip(shard.path.parent / "current.json"),
    "all of it": lambda shard: shutil.rmtree(shard.path.parent),
}


@pytest.fixture
def store(searched: tuple[Store, Plan], tmp_path: Path) -> Store:
    """Generation 1, played by a network and collected, to be damaged."""
    shutil.copytree(searched[0].root, tmp_path / "data")
    own = Store(tmp_path / "data")
    collect(own, searched[1])
    return own


def planned(store: Store) -> Plan:
    return plan_generation(store, CONFIG, 2, settings(), NOW + timedelta(days=1))


def earlier(store: Store, plan: Plan) -> list[Artefact]:
    """The shards of the window that are of earlier generations."""
    shards = iter_shards(store, plan)
    return [next(shards) for _ in plan.window]


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_shard_of_the_window_is_played_again(
    store: Store, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    plan = planned(store)
    before = earlier(store, plan)
    assert len(before) == 3 and "played again" not in caplog.text
    games = before[1].file("shard.arrow").read_bytes()
    DAMAGES[what](before[1])
    after = earlier(store, plan)
    assert [shard.digest for shard in after] == [shard.digest for shard in before]
    assert after[1].file("shard.arrow").read_bytes() == games
    if what != "pointer":  # without it the shard itself is sound, and found
        assert after[1].path != before[1].path
        assert "shard 1 of square8_2p generation 0001 is damaged" in caplog.text
        assert after[1].metadata["first_played"] == NOW.isoformat(timespec="seconds")
    assert [one.kind for one in quarantined(store, CONFIG)] == (
        [] if what == "all of it" else [shard_kind(1)]
    )
    caplog.clear()
    assert earlier(store, plan) == after and not caplog.text


@pytest.mark.parametrize("what", ["manifest", "pointer"])
def test_a_plan_does_without_no_shard_that_can_be_played_again(
    store: Store, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = store.require(CONFIG, 1, shard_kind(2))
    DAMAGES[what](whole)
    plan = planned(store)
    assert [entry["shard"] for entry in plan.window] == [0, 1, 2]
    assert plan.window[2]["digest"] == whole.digest
    assert f"{shard_kind(2)}" in caplog.text and "is corrupt" in caplog.text


def test_a_shard_that_was_found_damaged_before_is_played_again_by_the_plan(store: Store) -> None:
    whole = store.require(CONFIG, 1, shard_kind(0))
    DAMAGES["games"](whole)
    assert store.last_good(CONFIG, 1, shard_kind(0)) is None  # somebody looked at it
    plan = planned(store)
    assert [entry["digest"] for entry in plan.window][0] == whole.digest
    assert earlier(store, plan)[0].path != whole.path


def test_what_cannot_be_played_again_is_an_error_and_the_next_plan_does_without(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    plan = planned(store)
    shard, champion = earlier(store, plan)[0], store.champion(CONFIG)
    assert champion is not None
    DAMAGES["games"](shard)
    flip(champion.path / "model.safetensors")
    for _ in range(2):
        with pytest.raises(
            ShardError, match=r"shard 0 of square8_2p generation 0001.*--resume never"
        ):
            earlier(store, plan)
    store.promote(CONFIG, 0, _another_model(store), {})
    following = plan_generation(store, CONFIG, 3, settings(), NOW + timedelta(days=2))
    assert [(e["generation"], e["shard"]) for e in following.window] == [(1, 1), (1, 2)]
    assert "shard 0 of square8_2p generation 0001 is left out of the window" in caplog.text
    # nor is one whose bytes this version does not give
    assert store.current(CONFIG, 1, shard_kind(0)) is None


def _another_model(store: Store) -> Artefact:
    from .conftest import save_model_of

    return save_model_of(store, 0)


def test_a_shard_that_comes_out_otherwise_does_not_land(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(store)
    (shard, *_) = earlier(store, plan)
    DAMAGES["games"](shard)
    from ringrift_pipeline.selfplay import shards

    made = shards.shard_metadata
    monkeypatch.setattr(shards, "shard_metadata", lambda *a: {**made(*a), "engine_version": 99})
    with pytest.raises(ShardError, match="this version, or this machine, plays other games"):
        earlier(store, plan)
    assert store.artefacts(CONFIG, 1, shard_kind(0)) == []
    monkeypatch.undo()
    # a version of the code that gives the same bytes does
    monkeypatch.setitem(CODE_VERSIONS, "selfplay_shards", "99")
    assert earlier(store, plan)[0].digest == shard.digest


def test_own_shards_are_played_again_once_they_were_collected(
    store: Store, searched: tuple[Store, Plan]
) -> None:
    plan = searched[1]
    before = list(iter_shards(store, plan))
    DAMAGES["games"](before[2])
    after = list(iter_shards(store, plan))
    assert [shard.digest for shard in after] == [shard.digest for shard in before]
    with pytest.raises(MissingArtefactError, match=r"selfplay-shard-0000.*ringrift selfplay"):
        list(iter_shards(store, planned(store)))  # nobody has played these


def test_playing_again_can_be_stopped(store: Store) -> None:
    plan = planned(store)
    (shard, *_) = earlier(store, plan)
    DAMAGES["games"](shard)
    with pytest.raises(Interrupted):
        list(iter_shards(store, plan, should_stop=lambda: True))
    with pytest.raises(Interrupted):  # the plan of the next generation plays it again as well
        plan_generation(
            store, plan.config, plan.generation + 1, plan.settings, should_stop=lambda: True
        )
