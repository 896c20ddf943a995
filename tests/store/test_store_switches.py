"""Switches: their default, changes by several at once, a damaged file."""

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ringrift_pipeline.store import SWITCHES, CorruptArtefactError, InvalidNameError, Store
from ringrift_pipeline.store.manifest import sealed_bytes

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


def test_what_was_asked_for_later_stays(store: Store) -> None:
    """A job that waited in a queue does not undo what somebody did meanwhile."""
    launched = datetime.now(UTC)
    store.set_switches(CONFIG, loop=True)  # as it is: that it was asked for counts
    found = store.set_switches(CONFIG, asked_at=launched, loop=False, nightly=False)
    assert found.paused == Store(store.root).switches(CONFIG).paused == ("nightly",)
    assert store.switches(CONFIG).asked_since("loop", launched)
    assert not store.switches(CONFIG).asked_since("nightly", launched)
    assert not store.switches(CONFIG).asked_since("gauntlet", launched)
    store.set_switches(CONFIG, asked_at=launched + timedelta(minutes=1), loop=False)
    assert store.switches(CONFIG).paused == ("loop", "nightly")


def test_a_clock_that_ran_ahead_stops_nobody(store: Store) -> None:
    """It was put right since: until the time comes that it told, nothing could be turned."""
    path = store.root / CONFIG / "switches.json"
    store.set_switches(CONFIG, loop=False)
    ahead = (datetime.now(UTC) + timedelta(hours=3)).isoformat()
    for asked_at in (None, datetime.now(UTC)):  # a command, a job
        path.write_bytes(sealed_bytes({"loop": False, "asked_at": {"loop": ahead}}, "switches"))
        assert not store.switches(CONFIG).asked_since("loop", datetime.now(UTC))
        assert store.set_switches(CONFIG, asked_at=asked_at, loop=True).paused == ()


def test_a_command_has_the_last_word(store: Store) -> None:
    moment = datetime.now(UTC) + timedelta(seconds=30)  # by another machine's clock
    store.set_switches(CONFIG, asked_at=moment, loop=False)
    assert store.set_switches(CONFIG, loop=True).paused == ()


@pytest.mark.parametrize("asked", [{"loop": "soon"}, {"loop": 3}, {"loop": "2026-01-01"}, ["loop"]])
def test_times_that_are_none_are_damage(store: Store, asked: object) -> None:
    path = store.root / CONFIG / "switches.json"
    store.set_switches(CONFIG, loop=False)
    path.write_bytes(sealed_bytes({"loop": False, "asked_at": asked}, "switches"))
    with pytest.raises(CorruptArtefactError, match="asked_at"):
        store.switches(CONFIG)


def test_switches_of_an_older_version_are_read(store: Store) -> None:
    store.set_switches(CONFIG, loop=False)
    path = store.root / CONFIG / "switches.json"
    path.write_bytes(sealed_bytes({"loop": False, "changed_at": None}, "switches"))
    assert store.switches(CONFIG).paused == ("loop",)
    assert not store.switches(CONFIG).asked_since("loop", datetime(2026, 1, 1, tzinfo=UTC))


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
