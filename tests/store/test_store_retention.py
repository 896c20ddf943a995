"""What may be deleted, what never is, and deletions that are cut off at any moment."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringrift_pipeline.store import Artefact, CorruptArtefactError, Store, StoreError, retention
from ringrift_pipeline.store.kinds import shard_kind
from ringrift_pipeline.store.retention import (
    LEFT_OVER,
    QUARANTINED,
    REBUILT,
    STATE,
    SUPERSEDED,
    UNREAD,
    Stored,
    Survey,
    delete,
    survey,
    used_bytes,
)

CONFIG = "hex8_3p"


pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "data")


def put(
    store: Store, generation: int, kind: str, size: int = 100, config: str = CONFIG
) -> Artefact:
    with store.create(config, generation, kind) as draft:
        text = f"{config} {generation} {kind} {os.urandom(4).hex()} "
        (draft / "a").write_text(text.ljust(size, "."))
        (draft / "b").write_text("small")
    return draft.artefact


def named(store: Store, artefact: Artefact) -> dict[str, Any]:
    path = artefact.path.relative_to(store.root).as_posix()
    return {"generation": artefact.generation, "digest": artefact.digest, "path": path}


def play(
    store: Store, generation: int, window: list[Artefact], shards: int = 2, **more: Any
) -> list[Artefact]:
    """A generation's plan and everything that is made in it; its shards."""
    config = more.pop("config", CONFIG)
    entries = [
        {"generation": one.generation, "shard": int(one.kind[-4:]), "digest": one.digest}
        for one in window
    ]
    own = [{"index": index, "games": 1} for index in range(shards)]
    store.write_plan(config, generation, {"window": entries, "shards": own, **more})
    made = [put(store, generation, shard_kind(index), config=config) for index in range(shards)]
    for kind in ("selfplay_shards", "window", "checkpoint", "ema_model", "evaluation", "gauntlet"):
        put(store, generation, kind, config=config)
    return made


def kinds(items: Any) -> list[tuple[int | None, str, str]]:
    return [(item.generation, item.kind, item.why) for item in items]


def three(store: Store) -> dict[int, list[Artefact]]:
    """Three generations, each with the one before it in its window."""
    shards: dict[int, list[Artefact]] = {}
    for generation in range(3):
        shards[generation] = play(store, generation, shards.get(generation - 1, []))
    return shards


def test_what_may_go_and_in_which_order(store: Store) -> None:
    three(store)
    old = put(store, 0, "ema_model")
    put(store, 0, "ema_model")
    put(store, 0, "training_state")
    put(store, 0, "evaluation-part-0003")
    broken = put(store, 0, "evaluation")
    (broken.path / "a").write_text("other bytes")
    with pytest.raises(CorruptArtefactError):
        store.require(CONFIG, 0, "evaluation")
    put(store, 0, "evaluation")
    found = survey(store, keep_generations=1)
    assert kinds(found.candidates) == [
        (0, "ema_model", SUPERSEDED),
        (0, "ema_model", SUPERSEDED),
        (0, "training_state", LEFT_OVER),
        (0, "evaluation-part-0003", LEFT_OVER),
        (0, "window", REBUILT),
        (1, "window", REBUILT),
        (None, "quarantine", QUARANTINED),
        (0, "checkpoint", STATE),
        (1, "checkpoint", STATE),
        (0, "selfplay-shard-0000", UNREAD),
        (0, "selfplay-shard-0001", UNREAD),
    ]
    assert found.candidates[1].path == old.path
    why = {(item.generation, item.kind): item.why for item in found.protected}
    assert why[1, "selfplay-shard-0000"] == f"in the window of the plan of {CONFIG} 0002"
    assert why[2, "window"] == "of the newest generations"
    listed = {item.kind for item in (*found.candidates, *found.protected)}
    assert not listed & {"evaluation", "gauntlet", "selfplay_shards"}  # never, so not even listed
    assert found.bytes == used_bytes(store.root)


def test_no_more_goes_than_the_budget_asks_for(store: Store) -> None:
    three(store)
    found = survey(store, keep_generations=1)
    assert found.surplus(found.bytes) == []
    (first,) = found.surplus(found.bytes - 1)
    assert first == found.candidates[0]
    assert found.surplus(0) == list(found.candidates)
    gone = delete(store, found, found.surplus(found.bytes - 2 * first.bytes))
    assert len(gone) == 2
    again = survey(store, keep_generations=1)
    assert again.bytes < found.bytes - 2 * first.bytes
    assert kinds(again.candidates) == kinds(found.candidates)[2:]


def test_a_survey_changes_nothing(store: Store) -> None:
    three(store)
    before = sorted(store.root.rglob("*"))
    survey(store).surplus(0)
    assert sorted(store.root.rglob("*")) == before


def test_generations_that_somebody_works_on_stay_with_their_windows(store: Store) -> None:
    three(store)
    play(store, 3, [])
    alone = survey(store, keep_generations=1)
    assert (1, "selfplay-shard-0000", UNREAD) in kinds(alone.candidates)
    worked = survey(store, keep_generations=1, working=[(CONFIG, 2)])
    left = kinds(worked.candidates)
    assert not [entry for entry in left if entry[0] == 2]
    assert (1, "selfplay-shard-0000", UNREAD) not in left
    assert (0, "selfplay-shard-0000", UNREAD) in left
    with store.lock(CONFIG, "training-0000"):
        gone = delete(store, alone, alone.candidates)
    assert gone and all(item.generation != 0 for item in gone)


def test_champions_parents_members_and_opponents_stay(store: Store) -> None:
    for generation in range(2):
        play(store, generation, [])
    first = store.require(CONFIG, 0, "ema_model")
    store.promote(CONFIG, 0, first, {})
    opponent, parent, member = (put(store, 0, "ema_model") for _ in range(3))
    last = store.require(CONFIG, 0, "checkpoint")
    with store.create(CONFIG, 1, "ensemble") as draft:
        members = [{"name": "x", "weight": 1.0, **named(store, one)} for one in (member, last)]
        (draft / "members.json").write_text(json.dumps(members))
    play(
        store,
        2,
        [],
        champion=named(store, first),
        parent=named(store, parent),
        ensemble=named(store, draft.artefact),
    )
    shard = {"index": 0, "games": 1, "opponent": named(store, opponent)}
    store.write_plan(CONFIG, 3, {"shards": [shard]})
    newest = put(store, 0, "ema_model")
    found = survey(store, keep_generations=1)
    why = {item.path: item.why for item in found.protected}
    assert why[first.path] == f"was champion of {CONFIG}"
    assert "parent" in why[parent.path] and "member" in why[member.path]
    assert "member" in why[last.path] and "opponent" in why[opponent.path]
    delete(store, found, found.candidates)
    for artefact in (first, opponent, parent, member, last, newest):
        assert store.open(artefact.path).digest == artefact.digest
    assert [one.path for one in store.champions(CONFIG)] == [first.path]


def test_the_data_of_the_model_that_another_config_began_with_stays(store: Store) -> None:
    shards = three(store)
    play(store, 3, [])
    play(store, 4, [])
    source = {"config": CONFIG, **named(store, store.require(CONFIG, 1, "ema_model"))}
    play(store, 0, [], config="hex8_4p", finetune={"source": source, "generation": 0})
    found = survey(store, keep_generations=1)
    delete(store, found, found.candidates)
    for artefact in (*shards[0], *shards[1]):  # generation 1's own and those in its window
        assert store.open(artefact.path).digest == artefact.digest
    assert store.current(CONFIG, 1, "window") is not None
    assert store.current(CONFIG, 2, shard_kind(0)) is None


def test_the_data_of_the_reigning_champion_stays(store: Store) -> None:
    """Another config may begin with it, and measure on it what fine-tuning costs."""
    shards = three(store)
    for generation in (3, 4):
        play(store, generation, [])
    for generation in (0, 1):
        store.promote(CONFIG, generation, store.require(CONFIG, generation, "ema_model"), {})
    found = survey(store, keep_generations=1)
    delete(store, found, found.candidates)
    for artefact in (*shards[0], *shards[1]):  # generation 1's own and those in its window
        assert store.open(artefact.path).digest == artefact.digest
    assert store.current(CONFIG, 2, shard_kind(0)) is None
    assert store.current(CONFIG, 0, "window") is None


def test_a_damaged_plan_or_list_of_members_stops_everything(store: Store) -> None:
    three(store)
    with store.create(CONFIG, 0, "ensemble") as draft:
        (draft / "members.json").write_text("[")
    with pytest.raises(CorruptArtefactError, match="nothing can be deleted"):
        survey(store)
    with store.create(CONFIG, 0, "ensemble") as again:
        (again / "members.json").write_text("[]")
    os.rename(draft.artefact.path, store.root / "elsewhere")
    survey(store)
    path = store.root / CONFIG / "generations" / "0001" / "plan.json"
    path.write_text(path.read_text().replace("shard", "shart"))
    with pytest.raises(CorruptArtefactError, match="plan"):
        survey(store)


def test_a_damaged_pointer_and_a_damaged_manifest_are_left_alone(store: Store) -> None:
    three(store)
    window = store.root / CONFIG / "generations" / "0000" / "window"
    (window / "current.json").write_text("{}")
    checkpoint = store.require(CONFIG, 0, "checkpoint").path
    (checkpoint / "manifest.json").write_text("{}")
    found = survey(store, keep_generations=1)
    assert not {(0, "window"), (0, "checkpoint")} & {
        (item.generation, item.kind) for item in found.candidates
    }


def test_nothing_more_goes_once_there_is_a_new_plan_or_champion(store: Store) -> None:
    three(store)
    found = survey(store, keep_generations=1)
    store.promote(CONFIG, 0, store.require(CONFIG, 0, "ema_model"), {})
    assert delete(store, found, found.candidates) == []
    found = survey(store, keep_generations=1)
    store.write_plan(CONFIG, 3, {})
    assert delete(store, found, found.candidates) == []


@pytest.mark.parametrize("what", ["plan", "promotion"])
def test_one_that_comes_in_the_middle_of_a_deletion_ends_it(
    what: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though not all is looked at again before each."""
    three(store)
    found = survey(store, keep_generations=1)
    remove = retention._remove

    def then(store: Store, item: Stored) -> bool:
        removed = remove(store, item)
        if what == "plan":
            store.write_plan(CONFIG, 3, {})
        else:
            store.promote(CONFIG, 0, store.require(CONFIG, 0, "ema_model"), {})
        return removed

    monkeypatch.setattr(retention, "_remove", then)
    assert delete(store, found, found.candidates) == list(found.candidates[:1])


def test_one_that_comes_while_it_is_surveyed_keeps_everything(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it needs may not have been looked for."""
    three(store)

    def late(store: Store) -> int:
        store.write_plan(CONFIG, 3, {})
        return used_bytes(store.root)

    monkeypatch.setattr(retention, "stored_bytes", late)
    found = survey(store, keep_generations=1)
    assert found.candidates and delete(store, found, found.candidates) == []


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("every", [3600.0, -1.0])
def test_what_somebody_works_on_is_asked_for_now_and_then_and_when_somebody_begins(
    every: float, begins: bool, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    three(store)
    monkeypatch.setattr(retention, "LOOK_AGAIN", every)
    found = survey(store, keep_generations=1)
    looks: list[int] = []

    def outdated() -> bool:
        looks.append(1)
        return False

    gone = delete(store, found, found.candidates, outdated, lambda: begins)
    assert len(gone) == len(found.candidates) > 1
    assert len(looks) == (1 if every > 0 and not begins else len(gone))


def test_one_generation_at_least_is_kept(store: Store) -> None:
    with pytest.raises(StoreError, match="keep_generations"):
        survey(store, keep_generations=0)


def test_a_reader_that_meets_a_deletion_finds_nothing_rather_than_something_corrupt(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ringrift_pipeline.store import artefacts

    three(store)
    found = survey(store, keep_generations=1)
    load = artefacts.load_folder

    def deleted_before(path: Path, *, verify: bool) -> Artefact:
        monkeypatch.setattr(artefacts, "load_folder", load)
        delete(store, found, [item for item in found.candidates if item.path == path])
        return load(path, verify=verify)

    monkeypatch.setattr(artefacts, "load_folder", deleted_before)
    assert store.current(CONFIG, 0, "window") is None
    assert not (store.root / CONFIG / "quarantine").exists()


# --- cut off at any moment ----------------------------------------------------------------------


class Killed(BaseException):
    """The process is gone: nothing it would still have done is done."""


class Mortal:
    """Lets so many changes to the disk pass, then none."""

    NAMES = ("rename", "replace", "unlink", "rmdir", "remove", "link", "mkdir")

    def __init__(self, patch: pytest.MonkeyPatch, operations: int) -> None:
        self._left = operations
        for name in self.NAMES:
            patch.setattr(os, name, self._wrapped(getattr(os, name)))

    def _wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left < 0:
                raise Killed
            return function(*args, **kwargs)

        return call


@st.composite
def histories(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Generations: how many earlier shards their window reaches back to, what else happened."""
    return draw(
        st.lists(
            st.fixed_dictionaries(
                {
                    "reach": st.integers(0, 5),
                    "promoted": st.booleans(),
                    "again": st.lists(
                        st.sampled_from(["window", "checkpoint", "ema_model", shard_kind(0)]),
                        max_size=2,
                    ),
                    "left": st.booleans(),
                    "ensemble": st.booleans(),
                }
            ),
            min_size=1,
            max_size=5,
        )
    )


def build(store: Store, history: list[dict[str, Any]]) -> None:
    shards: list[Artefact] = []
    for generation, one in enumerate(history):
        champion = store.champion(CONFIG)
        parent = store.current(CONFIG, generation - 1, "ema_model") if generation else None
        window = shards[len(shards) - min(one["reach"], len(shards)) :]
        more = {"parent": named(store, parent)} if parent else {}
        if champion is not None:
            path = champion.path.relative_to(store.root).as_posix()
            more["champion"] = {"digest": champion.digest, "path": path}
        shards += play(store, generation, window, **more)
        if one["ensemble"] and parent is not None:
            last = store.require(CONFIG, generation - 1, "checkpoint")
            with store.create(CONFIG, generation, "ensemble") as draft:
                members = [named(store, parent), named(store, last)]
                (draft / "members.json").write_text(json.dumps(members))
        if one["promoted"]:
            model = store.require(CONFIG, generation, "ema_model")
            store.promote(CONFIG, generation, model, {}, again=True)
        for kind in one["again"]:
            put(store, generation, kind)
        if one["left"]:
            put(store, generation, "training_state")


def check(store: Store, keep: int) -> None:
    """What must hold whatever was deleted and wherever that was cut off."""
    for generation in store.generations(CONFIG):
        for kind in store.kinds(CONFIG, generation):
            assert store.require(CONFIG, generation, kind).files  # hashed, every file of it
        plan = store.read_plan(CONFIG, generation)
        for name in ("parent", "champion"):
            if name in plan:
                assert store.open(store.root / plan[name]["path"]).digest == plan[name]["digest"]
        for ensemble in store.artefacts(CONFIG, generation, "ensemble"):
            for member in ensemble.read_json("members.json"):
                assert store.open(store.root / member["path"]).digest == member["digest"]
    for champion in store.champions(CONFIG):
        assert store.open(champion.path).digest == champion.digest
    for generation in store.generations(CONFIG)[-keep:]:
        plan = store.read_plan(CONFIG, generation)
        for entry in plan["window"]:
            versions = store.artefacts(CONFIG, entry["generation"], shard_kind(entry["shard"]))
            assert any(store.open(v.path).digest == entry["digest"] for v in versions)
        for shard in plan["shards"]:
            assert store.current(CONFIG, generation, shard_kind(shard["index"])) is not None


def delete_mortally(store: Store, found: Survey, chosen: list[Stored], operations: int) -> bool:
    """Whether it was killed. Locks, which are others' concern, would be most of what it does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "lock", lambda *_: contextlib.nullcontext())
        Mortal(patch, operations)
        try:
            delete(store, found, chosen)
        except Killed:
            return True
    return False


def test_every_single_moment_of_a_deletion(store: Store, tmp_path: Path) -> None:
    three(store)
    put(store, 0, "ema_model")
    number = 0
    while True:
        copy = Store(tmp_path / str(number))
        shutil.copytree(store.root, copy.root)
        found = survey(copy, keep_generations=1)
        killed = delete_mortally(copy, found, found.surplus(0), number)
        check(copy, keep=1)
        copy.sweep()
        assert not list(copy.root.rglob(".ringrift-tmp-*"))
        check(copy, keep=1)
        if not killed:
            break
        number += 1
    assert number > 3 * len(found.candidates)


@settings(max_examples=40)
@given(
    history=histories(),
    keep=st.integers(1, 3),
    share=st.floats(0.0, 1.0),
    operations=st.integers(0, 60),
)
def test_a_deletion_cut_off_anywhere_leaves_nothing_half_there(
    tmp_path_factory: pytest.TempPathFactory,
    history: list[dict[str, Any]],
    keep: int,
    share: float,
    operations: int,
) -> None:
    store = Store(tmp_path_factory.mktemp("retention") / "data")
    build(store, history)
    found = survey(store, keep)
    chosen = found.surplus(int(found.bytes * share))
    delete_mortally(store, found, chosen, operations)
    again = Store(store.root)
    check(again, keep)
    again.sweep()
    assert not list(again.root.rglob(".ringrift-tmp-*"))
    check(again, keep)
    # and the next one finishes what this one began
    rest = survey(again, keep)
    gone = delete(again, rest, rest.candidates)
    assert len(gone) == len(rest.candidates)
    assert survey(again, keep).candidates == ()
    check(again, keep)


def test_the_property_is_not_empty(store: Store) -> None:
    """Some deletions in the property above do delete what would have been missed."""
    three(store)
    found = survey(store, keep_generations=1)
    assert len(found.candidates) > 5
    everything: list[Stored] = [*found.candidates, *found.protected]
    delete(store, found, everything)
    with pytest.raises((AssertionError, CorruptArtefactError, LookupError)):
        check(store, 1)
