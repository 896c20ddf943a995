"""A clock that is turned on and back while artefacts land: their order is that of landing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringrift_pipeline.store import Store, artefacts
from ringrift_pipeline.store import draft as drafting

CONFIG = "square8_2p"
pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")

# seconds between a landing and the next, as the clock has it: an hour back, a day on, and the like
STEPS = st.lists(
    st.sampled_from([-86_400.0, -3_600.0, -1.0, 0.0, 1e-6, 1.0, 86_400.0]), min_size=1, max_size=6
)


class Clock(datetime):
    """Stands where it was put."""

    stands = datetime(2026, 3, 1, 2, 30, tzinfo=UTC)

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        return cls.stands


def put(store: Store, number: int, kind: str = "training_state") -> None:
    with store.create(CONFIG, 0, kind, {"number": number}) as draft:
        (draft / "state").write_bytes(bytes([number]) * 100)


@given(STEPS)
@settings(max_examples=10)
def test_what_landed_last_is_last_whatever_the_clock_said(steps: list[float]) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(drafting, "datetime", Clock)
        patch.setattr(Clock, "stands", Clock.stands)
        store = Store(folder)
        for number, step in enumerate([0.0, *steps]):
            Clock.stands += timedelta(seconds=step)
            put(store, number)
        numbers = list(range(len(steps) + 1))
        found = store.artefacts(CONFIG, 0, "training_state")
        assert [one.metadata["number"] for one in found] == numbers
        current = store.require(CONFIG, 0, "training_state")
        assert current.metadata["number"] == numbers[-1]
        # the newest is damaged: the one before it takes its place, not the one of the latest time
        current.file("state").write_bytes(b"spoilt")
        good = store.last_good(CONFIG, 0, "training_state")
        assert good is not None and good.metadata["number"] == numbers[-2]


def test_every_landing_is_a_sign_though_the_clock_was_turned_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drafting, "datetime", Clock)
    store = Store(tmp_path)
    store.write_plan(CONFIG, 0, {"seed": 1})
    put(store, 0)
    before = store.signs(CONFIG)
    monkeypatch.setattr(Clock, "stands", Clock.stands - timedelta(hours=1))
    put(store, 1, "checkpoint")
    after = store.signs(CONFIG)
    assert after[0] == before[0] and after[1] != before[1]


def test_what_is_begun_or_goes_is_no_sign(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_plan(CONFIG, 0, {"seed": 1})
    put(store, 0)
    put(store, 1)
    before = store.signs(CONFIG)
    with pytest.raises(KeyError), store.create(CONFIG, 0, "training_state"):
        assert store.signs(CONFIG) == before
        raise KeyError
    superseded = store.artefacts(CONFIG, 0, "training_state")[0]
    artefacts.remove_landed(superseded.path)
    store.sweep()
    assert store.signs(CONFIG) == before
