"""Switches: their default, changes by several at once, a damaged file."""

import threading
from pathlib import Path

import pytest

from ringrift_pipeline.store import SWITCHES, CorruptArtefactError, InvalidNameError, Store

CONFIG = "hex8_3p"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "data")


def test_everything_is_on_and_nothing_written_until_somebody_pauses(store: Store) -> None:
    found = store.switches(CONFIG)
    assert found.loop and found.nightly and found.gauntlet
    assert found.paused == () and found.changed_at is None
    assert not store.root.exists()


def test_what_is_not_named_stays(store: Store) -> None:
    store.set_switches(CONFIG, loop=False, gauntlet=False)
    store.set_switches(CONFIG, gauntlet=True)
    found = Store(store.root).switches(CONFIG)
    assert found.paused == ("loop",)
    assert store.switches("square8_2p").paused == ()
    assert store.configs() == []  # a config that is only paused has not been begun


def test_the_time_of_change_moves_only_with_a_change(store: Store) -> None:
    first = store.set_switches(CONFIG, nightly=False)
    assert store.set_switches(CONFIG, nightly=False) == first
    again = store.set_switches(CONFIG, nightly=True)
    assert again.changed_at is not None and first.changed_at is not None
    assert again.changed_at > first.changed_at


def test_changes_made_at_once_are_all_kept(store: Store) -> None:
    def turn_off(name: str) -> None:
        Store(store.root).set_switches(CONFIG, **{name: False})

    threads = [threading.Thread(target=turn_off, args=(name,)) for name in SWITCHES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.switches(CONFIG).paused == SWITCHES


def test_a_damaged_file_is_named_and_can_be_set_anew(store: Store) -> None:
    store.set_switches(CONFIG, loop=False)
    path = store.root / CONFIG / "switches.json"
    path.write_bytes(path.read_bytes().replace(b"false", b"true "))
    with pytest.raises(CorruptArtefactError, match=r"switches\.json.*ringrift resume"):
        store.switches(CONFIG)
    assert store.set_switches(CONFIG, loop=True).paused == ()
    assert store.switches(CONFIG).paused == ()


@pytest.mark.parametrize("changes", [{"loops": True}, {"loop": 1}, {"nightly": None}])
def test_what_is_no_switch_is_refused(store: Store, changes: dict) -> None:
    with pytest.raises(InvalidNameError, match=next(iter(changes))):
        store.set_switches(CONFIG, **changes)
