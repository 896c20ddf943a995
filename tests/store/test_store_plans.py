"""Plans and champions."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringrift_pipeline.store import (
    Artefact,
    CorruptArtefactError,
    MissingArtefactError,
    SerializationError,
    Store,
    StoreError,
    quarantined,
    reason_of,
    serving_champion,
)
from ringrift_pipeline.store import champion as champion_module
from ringrift_pipeline.store.manifest import ManifestMismatch, sealed_bytes, unsealed
from tests.bad_disk import unreadable

CONFIG = "square19_4p"


pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def put(store: Store, generation: int, text: str = "weights") -> Artefact:
    with store.create(CONFIG, generation, "ema_model") as draft:
        (draft / "model.json").write_text(f"{text} {generation}")
    return draft.artefact


# --- plans --------------------------------------------------------------------------------------


def test_the_first_plan_wins(store: Store) -> None:
    first = store.write_plan(CONFIG, 0, {"seed": 1, "shards": ({"index": 0},), 5: None})
    assert first == {"seed": 1, "shards": [{"index": 0}], "5": None}
    assert store.write_plan(CONFIG, 0, {"seed": 2}) == first
    assert store.read_plan(CONFIG, 0) == first
    with pytest.raises(MissingArtefactError, match="0001.*ringrift selfplay"):
        store.read_plan(CONFIG, 1)


def test_bad_plans_are_refused(store: Store) -> None:
    for bad in ({"x": float("inf")}, {"x": {1, 2}}, {("a", "b"): 1}):
        with pytest.raises(SerializationError):
            store.write_plan(CONFIG, 0, bad)
    with pytest.raises(StoreError, match="dictionary"):
        store.write_plan(CONFIG, 0, [1])  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="seal"):
        store.write_plan(CONFIG, 0, {"seal": 1})
    assert store.generations(CONFIG) == []


PLANNER = """
import sys
from ringrift_pipeline.store import Store
store = Store(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for generation in range(20):
    plan = store.write_plan("square19_4p", generation, {"writer": sys.argv[2], "pad": "x" * 20000})
    print(plan["writer"], len(plan["pad"]), flush=True)
"""


def test_concurrent_planners_agree(store: Store) -> None:
    planners = [
        subprocess.Popen(
            [sys.executable, "-c", PLANNER, str(store.root), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    for planner in planners:
        assert planner.stdout.readline() == "ready\n"
    for planner in planners:
        planner.stdin.write("go\n")
        planner.stdin.flush()
    seen = [planner.communicate()[0] for planner in planners]
    assert all(planner.returncode == 0 for planner in planners)
    assert len(set(seen)) == 1  # every process was told the same winner for every generation
    stored = [store.read_plan(CONFIG, generation) for generation in range(20)]
    assert seen[0].splitlines() == [f"{plan['writer']} 20000" for plan in stored]
    assert not list(store.root.rglob(".ringrift-tmp-*"))


def test_plans_without_hard_links(store: Store, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    assert store.write_plan(CONFIG, 0, {"seed": 1}) == {"seed": 1}
    monkeypatch.setattr("pathlib.Path.exists", lambda self: False)
    with pytest.MonkeyPatch.context() as patch:  # lost the race: the file appears under the lock
        patch.setattr("pathlib.Path.exists", lambda self: self.name == "plan.json" and racing.pop())
        racing = [True, False]
        assert store.write_plan(CONFIG, 0, {"seed": 2}) == {"seed": 1}


@settings(max_examples=60)
@given(position=st.integers(0, 10_000), mask=st.integers(1, 255))
def test_a_changed_plan_is_found(tmp_path_factory, position: int, mask: int) -> None:
    store = Store(tmp_path_factory.mktemp("plan"))
    store.write_plan(CONFIG, 0, {"seed": 123456, "window": [{"shard": 0, "digest": "ab"}]})
    path = store.root / CONFIG / "generations" / "0000" / "plan.json"
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= mask
    path.write_bytes(content)
    with pytest.raises(CorruptArtefactError, match="plan.json"):
        store.read_plan(CONFIG, 0)
    with pytest.raises(CorruptArtefactError):
        store.write_plan(CONFIG, 0, {"seed": 1})
    assert path.read_bytes() == content  # shards may hang on it: never moved, never rewritten


def test_a_plan_that_means_the_same_in_other_words_is_not_the_same(store: Store) -> None:
    store.write_plan(CONFIG, 0, {"seed": 1})
    path = store.root / CONFIG / "generations" / "0000" / "plan.json"
    path.write_bytes(path.read_bytes().replace(b"\n", b" ", 1))
    with pytest.raises(CorruptArtefactError, match="text was changed"):
        store.read_plan(CONFIG, 0)


def test_generations_and_configs_are_those_with_a_plan(store: Store) -> None:
    for generation in (10, 2, 0, 12345):
        store.write_plan(CONFIG, generation, {})
    put(store, 3)
    (store.root / CONFIG / "generations" / "00001").mkdir()
    (store.root / CONFIG / "generations" / "00001" / "plan.json").touch()
    (store.root / "dagster_home").mkdir()
    assert store.generations(CONFIG) == [0, 2, 10, 12345]
    assert store.configs() == [CONFIG]


# --- champions ----------------------------------------------------------------------------------


def history_lines(store: Store) -> int:
    return len((store.root / CONFIG / "champions.jsonl").read_text().splitlines())


def test_promotion_is_idempotent(store: Store) -> None:
    artefact = put(store, 0)
    champion = store.promote(CONFIG, 0, artefact, {"floor": True, "bound": 0.93})
    assert (champion.generation, champion.digest, champion.path) == (
        0,
        artefact.digest,
        artefact.path,
    )
    assert champion.kind == "ema_model" and champion.reason == {"floor": True, "bound": 0.93}
    pointer = (store.root / CONFIG / "champion.json").read_bytes()
    assert store.promote(CONFIG, 0, artefact, {"other": 1}) == champion
    assert store.champion(CONFIG) == champion
    assert (store.root / CONFIG / "champion.json").read_bytes() == pointer
    assert history_lines(store) == 1


def test_a_late_repeat_does_not_dethrone_but_again_does(store: Store) -> None:
    old, new = put(store, 0), put(store, 1)
    store.promote(CONFIG, 0, old, {})
    store.promote(CONFIG, 1, new, {})
    assert store.promote(CONFIG, 0, old, {}).generation == 1
    assert history_lines(store) == 2
    for _ in range(2):
        assert store.promote(CONFIG, 0, old, {"why": "rollback"}, again=True).generation == 0
    assert [c.generation for c in store.champions(CONFIG)] == [0, 1, 0]


def test_a_lost_history_line_is_restored(store: Store) -> None:
    store.promote(CONFIG, 0, put(store, 0), {})
    store.promote(CONFIG, 1, put(store, 1), {})
    path = store.root / CONFIG / "champions.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:40])  # torn by a crash
    assert [c.generation for c in store.champions(CONFIG)] == [0, 1]
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == [
        json.loads(line) for line in lines
    ]


def test_what_is_nested_too_deeply_for_its_seal_does_not_match_it() -> None:
    """A line of the history that can just be read may have no text any more."""
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(ManifestMismatch, match="does not match its seal"):
        unsealed({"seal": "", "reason": {"why": nested}})


def test_every_change_of_the_history_is_noticed(store: Store) -> None:
    for generation in range(3):
        store.promote(CONFIG, generation, put(store, generation), {"bound": "as it was"})
    path = store.root / CONFIG / "champions.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    damaged = {
        "line 2: its content does not match": whole.replace(b"as it was", b"as it is.", 2).replace(
            b"as it is.", b"as it was", 1
        ),
        "line 2: it has no seal": lines[0] + lines[1].replace(b'"seal"', b'"sezl"') + lines[2],
        "line 2: it is promotion 3": lines[0] + lines[2],
        "line 1: it is promotion 2": lines[1] + lines[0] + lines[2],
        "ends with promotion 1, champion.json names promotion 3": lines[0],
        "ends with promotion 0": b"",
    }
    for reason, content in damaged.items():
        path.write_bytes(content)
        with pytest.raises(CorruptArtefactError, match=reason):
            store.champions(CONFIG)
        with pytest.raises(CorruptArtefactError, match=reason):
            store.promote(CONFIG, 3, put(store, 3), {})
        assert store.champion(CONFIG).generation == 2
    path.unlink()  # as the error says
    assert [champion.generation for champion in store.champions(CONFIG)] == [2]
    store.promote(CONFIG, 3, put(store, 3), {})
    assert [champion.generation for champion in store.champions(CONFIG)] == [2, 3]


@pytest.mark.parametrize("killed", (False, True))
def test_a_history_without_seals_is_given_them(store: Store, killed: bool) -> None:
    for generation in range(2):
        store.promote(CONFIG, generation, put(store, generation), {})
    before = store.champions(CONFIG)
    folder = store.root / CONFIG
    lines = [json.loads(line) for line in (folder / "champions.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seal"], line["promotion"]
    if not killed:  # in between, the history is new and the pointer old
        texts = [json.dumps(line) + "\n" for line in lines]
        (folder / "champions.jsonl").write_text("".join(texts))
    (folder / "champion.json").write_bytes(sealed_bytes(lines[-1], "champion"))
    assert store.champions(CONFIG) == before
    content = (folder / "champions.jsonl").read_bytes()
    assert content.count(b'"seal"') == 2
    assert store.champions(CONFIG) == before
    assert (folder / "champions.jsonl").read_bytes() == content


def test_a_champion_made_again_after_its_folder_was_lost(store: Store) -> None:
    first = put(store, 0)
    store.promote(CONFIG, 0, first, {})
    first.file("model.json").write_text("rotten")
    with pytest.raises(CorruptArtefactError):
        store.open(store.champion(CONFIG).path)
    second = put(store, 0)
    assert second.digest == first.digest
    assert store.promote(CONFIG, 0, second, {}).path == second.path
    assert store.open(store.champion(CONFIG).path) == second


def test_what_must_not_be_promoted(store: Store, tmp_path_factory) -> None:
    artefact = put(store, 1)
    with pytest.raises(StoreError, match="generation 2"):
        store.promote(CONFIG, 2, artefact, {})
    with pytest.raises(StoreError, match="hex8_2p"):
        store.promote("hex8_2p", 1, artefact, {})
    with pytest.raises(SerializationError, match=r"\['elo'\] is nan"):
        store.promote(CONFIG, 1, artefact, {"elo": float("nan")})
    stranger = put(Store(tmp_path_factory.mktemp("other")), 1)
    with pytest.raises(StoreError, match="outside"):
        store.promote(CONFIG, 1, stranger, {})
    artefact.file("model.json").write_text("rotten")
    with pytest.raises(CorruptArtefactError):
        store.promote(CONFIG, 1, artefact, {})
    assert store.champion(CONFIG) is None


@pytest.mark.parametrize("how", ["changed", "cut short", "gone"])
def test_a_lost_champion_pointer_is_written_again_as_the_history_says(
    store: Store, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    for generation in range(2):
        store.promote(CONFIG, generation, put(store, generation), {"bound": generation})
    champion = store.champion(CONFIG)
    path = store.root / CONFIG / "champion.json"
    whole = path.read_bytes()
    damaged = {"changed": whole.replace(b'"generation": 1', b'"generation": 0'), "cut short": b"{"}
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(damaged[how])
    assert store.champion(CONFIG) == champion and champion.generation == 1
    assert path.read_bytes() == whole
    assert "generation 0001 is champion" in caplog.text
    kept = quarantined(store, CONFIG)
    if how == "gone":
        assert kept == []
    else:
        (one,) = kept
        assert (store.root / CONFIG / "quarantine" / one.name).read_bytes() == damaged[how]
        assert reason_of(store, CONFIG, one.name)["found_at"] == str(path)
    path.write_bytes(b"")  # the next promotion finds it so, and goes on from there
    assert store.promote(CONFIG, 2, put(store, 2), {}).generation == 2
    assert [one.generation for one in store.champions(CONFIG)] == [0, 1, 2]


def test_a_pointer_that_nothing_can_restore_says_what_to_do(store: Store) -> None:
    artefact = put(store, 0)
    store.promote(CONFIG, 0, artefact, {})
    pointer, history = (store.root / CONFIG / n for n in ("champion.json", "champions.jsonl"))
    for content in (history.read_bytes().replace(b"ema", b"emb"), b""):
        pointer.write_bytes(b"{")
        history.write_bytes(content)
        with pytest.raises(
            CorruptArtefactError, match=r"champions\.jsonl.*damaged as well or gone"
        ):
            store.champion(CONFIG)
        assert pointer.read_bytes() == b"{"
    for path in (pointer, history):  # the advice
        path.unlink()
    assert store.champion(CONFIG) is None
    assert store.promote(CONFIG, 0, artefact, {}).generation == 0


# --- damaged champions --------------------------------------------------------------------------


def promoted(store: Store, count: int) -> list[Artefact]:
    """Models of so many generations, each of which was made champion."""
    models = [put(store, generation) for generation in range(count)]
    for generation, model in enumerate(models):
        store.promote(CONFIG, generation, model, {})
    return models


def test_a_champion_whose_files_are_damaged_is_followed_by_the_one_before(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    models = promoted(store, 3)
    assert serving_champion(store, CONFIG) == store.champion(CONFIG)
    assert len(store.champions(CONFIG)) == 3  # nothing is promoted where nothing is damaged
    for lost, serves in ((2, 1), (1, 0)):
        models[lost].file("model.json").write_text("rotten")
        champion = serving_champion(store, CONFIG)
        assert champion is not None and champion == store.champion(CONFIG)
        assert (champion.generation, champion.digest) == (serves, models[serves].digest)
        assert champion.stands_in_for is not None and "rotten" not in champion.stands_in_for
        assert f"generation {lost:04d}: " in champion.stands_in_for
        assert f"generation {serves:04d} serves as champion" in caplog.text
        assert serving_champion(store, CONFIG) == champion  # once
    assert [one.generation for one in store.champions(CONFIG)] == [0, 1, 2, 1, 0]
    store.promote(CONFIG, 2, put(store, 2), {})  # a late repeat does not dethrone it
    assert store.champion(CONFIG).generation == 0
    models[0].file("model.json").write_text("rotten")
    store.open(put(store, 1).path).file("model.json").write_text("rotten too")
    champion = serving_champion(store, CONFIG)  # made again since, with the same bytes
    assert champion is not None and champion.generation == 2


def test_a_copy_of_a_damaged_champion_serves_before_any_other(store: Store) -> None:
    store.promote(CONFIG, 0, put(store, 0), {})
    first, second = put(store, 1), put(store, 1)
    store.promote(CONFIG, 1, first, {"bound": 3})
    first.file("model.json").write_text("rotten")
    champion = serving_champion(store, CONFIG)
    assert champion is not None and champion.path == second.path
    assert champion.stands_in_for is None and champion.reason == {"bound": 3}
    assert [one.generation for one in store.champions(CONFIG)] == [0, 1, 1]


def test_a_champion_that_the_disk_cannot_read_is_followed_and_not_moved(store: Store) -> None:
    models = promoted(store, 2)
    with unreadable(models[1].path / "model.json"):
        with pytest.raises(CorruptArtefactError, match="'model.json' cannot be read: Input/output"):
            store.require(CONFIG, 1, models[1].kind)
        assert store.last_good(CONFIG, 1, models[1].kind) is None
        champion = serving_champion(store, CONFIG)
        assert champion is not None and champion.generation == 0
    assert store.require(CONFIG, 1, models[1].kind).digest == models[1].digest


def test_a_champion_that_cannot_be_written_again_says_why(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.promote(CONFIG, 0, put(store, 0), {})
    (store.root / CONFIG / "champion.json").write_text("rotten")

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(champion_module, "write_bytes_atomic", full)
    with pytest.raises(CorruptArtefactError, match=r"cannot be written again .* No space left"):
        store.champion(CONFIG)
    monkeypatch.undo()
    champion = store.champion(CONFIG)
    assert champion is not None and champion.generation == 0


def test_a_plan_that_is_gone_is_told_of_once(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    for generation in range(3):
        store.write_plan(CONFIG, generation, {})
    put(store, 1)
    assert store.generations(CONFIG) == [0, 1, 2] and not caplog.text
    for generation in (1, 2):
        (store.root / CONFIG / "generations" / f"000{generation}" / "plan.json").unlink()
    for _ in range(2):
        assert store.generations(CONFIG) == [0]
    (said,) = [record.getMessage() for record in caplog.records]
    assert "0001/plan.json is gone: restore it" in said  # there is nothing else of the other


def test_the_only_champion_is_not_replaced_by_nothing(store: Store) -> None:
    assert serving_champion(store, CONFIG) is None
    model = put(store, 0)
    store.promote(CONFIG, 0, model, {})
    model.file("model.json").write_text("rotten")
    with pytest.raises(CorruptArtefactError, match="model.json"):
        serving_champion(store, CONFIG)
    with pytest.raises(MissingArtefactError, match=str(model.path)):  # it is in quarantine now
        serving_champion(store, CONFIG)
    assert store.champion(CONFIG).generation == 0


def test_a_promotion_that_lands_meanwhile_stands(store: Store) -> None:
    old, new = put(store, 0), put(store, 1)
    store.promote(CONFIG, 0, old, {})
    store.promote(CONFIG, 1, new, {})
    newest = store.promote(CONFIG, 2, put(store, 2), {})
    assert store.promote(CONFIG, 0, old, {}, again=True, after=2) == newest
    assert store.promote(CONFIG, 0, old, {}, again=True, after=3).generation == 0


PROMOTER = """
import sys
from ringrift_pipeline.store import Store
store = Store(sys.argv[1])
artefact = store.current("square19_4p", int(sys.argv[2]), "ema_model")
for _ in range(5):
    store.promote("square19_4p", int(sys.argv[2]), artefact, {})
"""


def test_concurrent_promotions_make_one_line_each(store: Store) -> None:
    for generation in range(3):
        put(store, generation)
    processes = [
        subprocess.Popen([sys.executable, "-c", PROMOTER, str(store.root), str(number % 3)])
        for number in range(6)
    ]
    assert [process.wait() for process in processes] == [0] * 6
    history = store.champions(CONFIG)
    assert sorted(c.generation for c in history) == [0, 1, 2]
    assert history[-1] == store.champion(CONFIG)


def test_more_values_than_would_be_read_again_are_not_written(store: Store) -> None:
    with pytest.raises(StoreError, match="cannot be kept: it holds more than"):
        store.write_plan("hex8_2p", 0, {"made": [[]] * 1_000_000})
    with pytest.raises(StoreError, match="cannot be kept: it has"):
        store.write_plan("hex8_2p", 0, {"made": "x" * (17 << 20)})


def test_a_small_text_of_many_values_is_not_parsed(store: Store) -> None:
    store.write_plan("hex8_2p", 0, {"made": 1})
    text = b'{"seal": "", "made": [' + b"[]," * 1_000_000 + b"0]}"
    (store.root / "hex8_2p/generations/0000/plan.json").write_bytes(text)
    with pytest.raises(CorruptArtefactError, match="more than 750000 values"):
        store.read_plan("hex8_2p", 0)
