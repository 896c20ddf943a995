"""``ringrift pause`` and ``ringrift resume``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ringrift_pipeline.cli import run
from ringrift_pipeline.orchestration.configs import CONFIGS
from ringrift_pipeline.store import SWITCHES, Store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("RINGRIFT_DATA", str(tmp_path / "data"))
    return Store(tmp_path / "data")


def test_one_config_is_paused_and_resumed(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pause", "--config", "hex8_3p"]) == 0
    assert store.switches("hex8_3p").paused == SWITCHES
    assert store.switches("square8_2p").paused == ()
    assert "hex8_3p: paused: loop, nightly, gauntlet" in capsys.readouterr().err
    assert run(["resume", "--config", "hex8_3p", "--only", "loop, gauntlet"]) == 0
    assert store.switches("hex8_3p").paused == ("nightly",)


def test_all_are_resumed_where_one_was_paused(store: Store) -> None:
    assert run(["pause", "--config", "hex8_3p"]) == 0
    assert run(["resume", "--all"]) == 0
    assert store.switches("hex8_3p").paused == ()
    assert [one.name for one in store.root.iterdir() if one.is_dir()] == ["hex8_3p"]


def test_all_are_paused_and_told_as_json(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pause", "--all", "--only", "nightly", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == set(CONFIGS)
    assert told["hex8_3p"] == {"loop": True, "nightly": False, "gauntlet": True}
    assert run(["resume", "--all"]) == 0
    assert all(store.switches(config).paused == () for config in CONFIGS)


def test_a_loop_on_a_paused_config_is_refused_in_one_line(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ringrift_pipeline.selfplay import warm_up

    monkeypatch.setattr(warm_up, "warm_up", lambda config: None)
    store.set_switches("hex8_3p", loop=False)
    assert run(["loop", "--config", "hex8_3p", "--preset", "smoke"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("ringrift: the loop of hex8_3p is paused since ")
    assert said.endswith("`ringrift resume --config hex8_3p`")
    assert not (store.root / "dagster").exists()
