"""Which generation a verb works on, with which settings, on which device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ringrift_pipeline.cli import run
from ringrift_pipeline.selfplay import load_plan
from ringrift_pipeline.store import Store

CONFIG = "square8_2p"
TINY = ["--set", "selfplay.games=2", "--set", "selfplay.games_per_shard=2"]


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("RINGRIFT_DATA", str(tmp_path / "data"))
    return Store(tmp_path / "data")


def selfplay(*arguments: str) -> None:
    assert run(["selfplay", "--json", "--workers", "1", *arguments]) == 0


def test_a_new_generation_has_the_settings_of_the_last_unless_told_otherwise(store: Store) -> None:
    selfplay(*TINY, "--seed", "5")
    selfplay()
    selfplay("--set", "selfplay.games=3")
    assert store.generations(CONFIG) == [0, 1, 2]
    assert [load_plan(store, CONFIG, number).games for number in range(3)] == [2, 2, 3]
    assert load_plan(store, CONFIG, 2).settings.seed == 5


def test_what_is_in_force_is_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    selfplay(*TINY)
    capsys.readouterr()
    assert run(["selfplay", "--show-settings", "--set", "search.simulations=99"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["selfplay"]["games"] == 2 and shown["search"]["simulations"] == 99
    assert run(["selfplay", "--show-settings", "--preset", "smoke"]) == 0
    assert json.loads(capsys.readouterr().out)["selfplay"]["games"] != 2


def test_a_damaged_shard_is_played_again_in_its_own_generation(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    selfplay(*TINY)
    shard = store.require(CONFIG, 0, "selfplay-shard-0000")
    file = next(path for path in shard.path.iterdir() if path.suffix == ".arrow")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert run(["train"]) == 0
    assert "is played again" in caplog.text
    assert store.generations(CONFIG) == [0]
    again = store.require(CONFIG, 0, "selfplay-shard-0000")
    assert again.file(file.name).read_bytes() == whole


def test_settings_that_cannot_be_followed_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    selfplay(*TINY)
    capsys.readouterr()
    selfplay("--generation", "0", "--set", "selfplay.games=7")
    assert "keeps the settings of its plan" in capsys.readouterr().err


def test_a_verb_takes_the_newest_generation_that_is_ready_for_it(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    from ringrift_pipeline.commands.generation import planned
    from ringrift_pipeline.commands.options import Common

    selfplay(*TINY)
    plan = store.read_plan(CONFIG, 0)
    store.write_plan(CONFIG, 1, {**plan, "generation": 1})
    assert planned(Common(), None, "selfplay_shards")[1].generation == 0
    assert planned(Common(), 1, "selfplay_shards")[1].generation == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is present")
def test_a_device_that_is_not_there_is_refused_before_anything_isplanned(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["selfplay", *TINY, "--device", "cuda"]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert store.generations(CONFIG) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is present")
def test_a_plan_made_for_another_device_is_carried_out_on_the_one_named(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    from ringrift_pipeline.commands.generation import planned
    from ringrift_pipeline.commands.options import Common

    selfplay(*TINY)
    plan = store.read_plan(CONFIG, 0)
    settings = {**plan["settings"], "device": "cuda"}
    store.write_plan(CONFIG, 1, {**plan, "generation": 1, "settings": settings})
    assert run(["train", "--generation", "1"]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    moved = planned(Common(device="cpu"), 1, "selfplay_shards")[1]
    assert moved.settings.device == "cpu"
    assert moved.digest == load_plan(store, CONFIG, 1).digest


@pytest.mark.parametrize("verb", ["replay", "play", "ui", "train"])
def test_settings_are_checked_on_every_verb(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "games.jsonl").write_text("{}")
    more = [str(tmp_path / "games.jsonl")] if verb == "replay" else []
    assert run([verb, "--set", "nonsense=1", *more]) == 2
    assert "nonsense" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "last"),
    [
        (["--preset", "smoke"], 1),
        (["--preset", "hour"], 12),
        (["--preset", "hour", "-n", "3"], 2),
        ([], 0),
    ],
)
def test_a_loop_plays_as_many_generations_as_its_preset_promises(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], last: int
) -> None:
    announced: list[tuple[int, int]] = []

    def announce(_: object, first: int, last: int) -> None:
        announced.append((first, last))
        raise KeyboardInterrupt  # before the daemon starts

    monkeypatch.setattr("ringrift_pipeline.commands.loop._announce", announce)
    assert run(["loop", *arguments]) != 0
    assert announced == [(0, last)]


def test_a_backend_that_is_not_installed_is_one_line(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ringrift_pipeline.network import devices

    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    assert run(["selfplay", *TINY, "--set", "search.backend=openvino"]) == 2
    told = capsys.readouterr().err
    assert "search.backend" in told and "ringrift-pipeline[openvino]" in told
    assert "Traceback" not in told and store.generations(CONFIG) == []
