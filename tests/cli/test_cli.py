"""The command line: help, one line and exit code 2 on bad input, results on standard output."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ringrift_pipeline.cli import run
from ringrift_pipeline.enhancements import TrainingConfig
from ringrift_pipeline.store import Store

VERBS = (
    "loop",
    "selfplay",
    "train",
    "evaluate",
    "ablate",
    "play",
    "analyze",
    "replay",
    "export",
    "ui",
    "status",
    "pause",
    "resume",
)
FLAGS = ("--config", "--data", "--preset", "--seed", "--device", "--resume", "--json")


@pytest.fixture(autouse=True)
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGRIFT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_the_same_flags_on_every_verb(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Usage: ringrift" in text
    for flag in FLAGS:
        assert flag in text, flag


def settings_of_help(verb: str, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What a verb's help says of each setting, line breaks taken out."""
    assert run([verb, "--help"]) == 0
    text = capsys.readouterr().out.split("Every setting, with its default", 1)[1]
    said: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        words = line.strip("│ ").split()
        if not line.startswith("│"):
            name = ""
        elif line.startswith("│ ") and not line.startswith("│  "):
            name, words = words[0], words[1:]
        if name:
            said[name] = " ".join([*said.get(name, "").split(), *words])
    return said


@pytest.mark.parametrize("verb", ["train", "selfplay", "evaluate", "loop"])
def test_help_shows_every_setting_with_default_and_bounds(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from ringrift_pipeline.enhancements import TrainingConfig

    said = settings_of_help(verb, capsys)
    fields = {field.name: field for field in TrainingConfig.fields()}
    assert list(said) == list(fields)
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "min_length": "entries >="}
    for name, field in fields.items():
        text = said[name]
        assert text.startswith(field.description + " ("), name
        limits = text.removeprefix(field.description + " (").removesuffix(")").split("; ")
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        assert limits[0] == f"default {default}", name
        for bound, value in field.bounds.items():
            if bound == "choices":
                assert "one of " + ", ".join(value) in limits, name
            elif bound != "pattern":  # the device's description says it in words
                assert f"{signs[bound]} {value}" in limits, name


@pytest.mark.parametrize("verb", ["ablate", "play", "analyze", "replay", "ui", "status"])
def test_verbs_that_plan_nothing_show_no_settings(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([verb, "--help"]) == 0
    assert "training.batch_size" not in capsys.readouterr().out


def test_help_fits_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ringrift_pipeline.commands.console import output

    wide = settings_of_help("train", capsys)
    monkeypatch.setattr(output, "width", 80)
    assert settings_of_help("train", capsys) == wide


def test_top_level_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in VERBS)
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ringrift ")


BAD = [
    (["loop", "--config", "square9_2p"], "square8_2p"),
    (["loop", "--generations", "0"], "--generations"),
    (["pause", "--only", "loop,weekly"], "loop, nightly, gauntlet"),
    (["resume", "--only", ","], "loop, nightly, gauntlet"),
    (["loop", "--generations", "two"], "--generations"),
    (["loop", "--preset", "huge"], "smoke"),
    (["loop", "--set", "training.batch_size=-4"], "training.batch_size"),
    (["loop", "--set", "training.batch_sise=4"], "batch_size"),
    (["loop", "--set", "nonsense"], "NAME=VALUE"),
    (["loop", "--seed", "-1"], "--seed"),
    (["loop", "--device", "abacus"], "device"),
    (["loop", "--resume", "/no/such/folder"], "--resume"),
    (["loop", "--settings", "/no/such/file.toml"], "--settings"),
    (["loop", "--foo"], "--foo"),
    (["odd"], "odd"),
    (["selfplay", "--workers", "-1"], "--workers"),
    (["train"], "ringrift selfplay"),
    (["evaluate"], "ringrift selfplay"),
    (["evaluate", "--generation", "7"], "ringrift selfplay"),
    (["ablate"], "ringrift selfplay"),
    (["ablate", "--seeds", "1"], "--seeds"),
    (["ablate", "--steps", "0"], "--steps"),
    (["play", "--player", "nobody"], "nobody"),
    (["play", "--player", "human", "--player", "nobody", "--port", "0"], "nobody"),
    (["play", "--port", "-1"], "--port"),
    (["play", "--host", "999.1.1.1", "--port", "0"], "999.1.1.1"),
    (["play", *["--player", "random"] * 3], "2 seats"),
    (["play", "--config", "square8_3p", "--swap-rule", "--player", "random"], "two players"),
    (["analyze", "--player", "nobody"], "nobody"),
    (["analyze", "--simulations", "0"], "--simulations"),
    (["analyze", "--simulations", "99999"], "10000"),
    (["replay"], "FILE"),
    (["replay", "/no/such/trace.jsonl"], "/no/such/trace.jsonl"),
    (["ui", "--port", "99999"], "--port"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if not line.startswith("Compil")]
    assert len(lines) == 1 and words in lines[0], lines


@pytest.mark.parametrize("verb", ["loop", "ui"])
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("RINGRIFT_POOL", "tpu"),
        ("RINGRIFT_TIMEZONE", "Middle/Earth"),
        ("RINGRIFT_WEBHOOK_URL", "host/path"),
        ("RINGRIFT_DISK_BUDGET_GB", "50GB"),
        ("RINGRIFT_CELERY_BROKER", ""),
    ],
)
def test_what_the_environment_says_to_servers_is_looked_at_before_they_start(
    verb: str,
    variable: str,
    value: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    if "CELERY" in variable:
        pytest.importorskip("dagster_celery", reason="the extra `celery` is not installed")
        monkeypatch.setenv("RINGRIFT_EXECUTOR", "celery")
    monkeypatch.setenv(variable, value)
    assert run([verb]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert variable in line
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO]
)
def test_what_the_disk_refuses_is_one_line_and_exit_code_1(
    code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def refusing(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code), str(tmp_path / "shard.arrow"))

    monkeypatch.setattr(Store, "set_switches", refusing)
    assert run(["pause", "--data", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert os.strerror(code) in line and "shard.arrow" in line and "goes on from there" in line


def test_other_errors_of_the_system_are_shown_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refusing(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "a mistake of ours")

    monkeypatch.setattr(Store, "set_switches", refusing)
    with pytest.raises(OSError, match="a mistake of ours"):
        run(["pause", "--data", str(tmp_path)])


def test_weights_that_cannot_be_begun_with_are_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = ["loop", "--config", "hex8_2p", "--data", str(tmp_path / "data")]
    for source, why in (
        ("square8_2p", "has square cells"),
        ("hex8_3p", "no champion in this store"),
    ):
        assert run([*loop, "--set", f"finetune.source={source}"]) == 2
        assert why in capsys.readouterr().err
    assert not (tmp_path / "data" / "dagster").exists()


def test_a_bad_data_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert run(["train", "--data", str(tmp_path / "file")]) == 2
    assert "--data" in capsys.readouterr().err


def test_settings_are_printed_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[selfplay]\ngames = 20\nworkers = 3\n[training]\nsample_reuse = 2.0\n")
    monkeypatch.setenv("RINGRIFT_SELFPLAY__WORKERS", "2")
    arguments = ["loop", "--preset", "smoke", "--settings", str(file), "--show-settings"]
    assert run([*arguments, "--set", "training.sample_reuse=3", "--seed", "5"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["selfplay"]["games"] == 20  # file over preset
    assert shown["selfplay"]["workers"] == 2  # environment over file
    assert shown["training"]["sample_reuse"] == 3  # flags over all
    assert shown["selfplay"]["games_per_shard"] == 80  # preset over defaults
    assert shown["seed"] == 5
    assert not (tmp_path / "data").exists()


def test_settings_shown_are_those_that_the_ratings_ask_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A falling rating lowers the next generation's rate, and says so before it is planned."""
    store = Store(tmp_path / "data")
    for generation, elo in enumerate((1500.0, 1440.0, 1380.0)):
        store.write_plan("square8_2p", generation, {"settings": TrainingConfig().to_dict()})
        numbers = {"eval/elo": elo, "eval/elo_low": elo - 15, "eval/elo_high": elo + 15}
        with store.create("square8_2p", generation, "evaluation", numbers):
            pass
    for more, rate in (([], 0.7), (["--preset", "smoke"], 0.7)):
        assert run(["loop", "--show-settings", *more]) == 0
        shown = json.loads(capsys.readouterr().out)["feedback"]
        assert shown["rate_factor"] == pytest.approx(rate)
        assert shown["selfplay_factor"] == pytest.approx(1.25)


def test_the_settings_shown_are_those_of_the_config(capsys: pytest.CaptureFixture[str]) -> None:
    games = []
    for config in ("square8_2p", "hexagonal_3p"):
        assert run(["loop", "--config", config, "--preset", "smoke", "--show-settings"]) == 0
        games.append(json.loads(capsys.readouterr().out)["selfplay"]["games"])
    assert games == [
        TrainingConfig.preset("smoke", config).selfplay.games
        for config in ("square8_2p", "hexagonal_3p")
    ]
    assert games[0] != games[1]


def game_record(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert run(["play", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_players_play_a_whole_game_and_the_seed_repeats_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pair = ["--player", "random", "--player", "heuristic", "--seed", "3"]
    first = game_record(pair, capsys)
    assert first["winner"] in (1, 2) and first["plies"] == len(first["moves"])
    assert first["players"] == ["random", "heuristic"]
    assert game_record(pair, capsys) == first


def test_a_person_plays_by_number_and_gives_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = ["?", "no such thing", "h", "9999", "0", "0", "q"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{answer}\n" for answer in answers)))
    assert run(["play", "--terminal", "--player", "human", "--player", "random"]) == 130
    text = capsys.readouterr().out
    assert "place_ring" in text and "seat 1 to move" in text and "18 rings in hand" in text
    assert "no move contains that" in text and "there are moves 0 to" in text


def trace(config: str = "square8_2p", seed: int = 0) -> dict[str, Any]:
    """A short game in the trace format, as the rules play it."""
    import random

    from ringrift_pipeline.game import new_game

    rng = random.Random(seed)
    state = new_game(config)
    initial = state.to_record()
    plies = []
    while not state.is_terminal:
        legal = state.legal_moves()
        chosen = rng.randrange(len(legal))
        after = state.apply(legal[chosen])
        plies.append(
            {
                "phase": state.phase,
                "player": state.current_player,
                "legal": [move.to_record() for move in legal],
                "chosen": chosen,
                "after": after.to_record(),
            }
        )
        state = after
    return {
        "format": "ringrift-trace/1",
        "config": config,
        "swap_rule": False,
        "initial": initial,
        "plies": plies,
        "winner": state.winner,
        "reason": state.reason,
    }


def test_replay_agrees_and_names_the_first_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = trace(seed=1), trace(seed=2)
    path = tmp_path / "games.jsonl.gz"
    path.write_bytes(gzip.compress((json.dumps(good) + "\n").encode()))
    assert run(["replay", str(path)]) == 0
    assert "1 of 1 games agree" in capsys.readouterr().err
    bad["plies"][5]["after"]["hand"][0] += 1
    plain = tmp_path / "games.jsonl"
    plain.write_text(json.dumps(good) + "\n" + json.dumps(bad) + "\n")
    assert run(["replay", str(plain)]) == 1
    shown = capsys.readouterr().out
    assert "game 2" in shown and "ply 5" in shown and "hand" in shown
    assert run(["replay", str(plain), "--json"]) == 1
    summary = json.loads(capsys.readouterr().out)
    assert (summary["games"], summary["different"]) == (2, 1)
    assert summary["differences"][0]["ply"] == 5


@pytest.mark.parametrize("text", ["", "{", "[]\n", '{"format": "ringrift-trace/9"}\n'])
def test_replay_refuses_what_is_no_trace(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text(text)
    assert run(["replay", str(path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_help_is_quick_to_load() -> None:
    code = (
        "import sys; from ringrift_pipeline.cli import run; run(['loop', '--help']); "
        "bad = [m for m in ('torch', 'numba', 'dagster', 'pandas') if m in sys.modules]; "
        "sys.exit(9 if bad else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_python_dash_m(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "ringrift_pipeline", "train", "--data", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("ringrift: square8_2p has no games")
