"""Run configuration: from and to TrainingConfig."""

from __future__ import annotations

import pytest

from ringrift_pipeline.enhancements.training_config import ConfigError, TrainingConfig
from ringrift_pipeline.orchestration.settings import resolve, run_config, run_values


@pytest.mark.parametrize("preset", ["smoke", "hour", "day"])
def test_a_resolved_config_survives_the_way_there_and_back(preset: str) -> None:
    config = TrainingConfig.load(preset=preset, environ={}, overrides={"seed": 7})
    values = run_values(run_config(config, last_generation=3, resume="never"))
    assert resolve(values) == config
    assert values["last_generation"] == 3 and values["resume"] == "never"


def test_what_is_given_beats_the_preset() -> None:
    config = resolve({"preset": "smoke", "selfplay": {"games": 4, "workers": None}, "seed": None})
    assert config.selfplay.games == 4
    assert (
        config.selfplay.games_per_shard == TrainingConfig.preset("smoke").selfplay.games_per_shard
    )


def test_nothing_given_is_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve({}) == TrainingConfig.load(environ={})
    monkeypatch.setenv("RINGRIFT_SELFPLAY__GAMES", "12")
    assert resolve({}).selfplay.games == 12


def test_bad_values_are_named() -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        resolve({"training": {"batch_size": -4}})


def test_runs_of_other_jobs_say_nothing() -> None:
    assert run_values({}) == {}
    assert run_values({"ops": {"gauntlet": {}}}) == {}
