"""Run configuration: from and to TrainingConfig."""

from __future__ import annotations

from typing import Any

import pytest

from ringrift_pipeline.enhancements.training_config import (
    ConfigError,
    ConfigField,
    TrainingConfig,
)
from ringrift_pipeline.orchestration.settings import (
    RunSettings,
    carried_on,
    given,
    resolve,
    run_config,
    run_values,
)


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


def test_a_preset_has_the_sizes_of_the_config_that_is_planned() -> None:
    values = {"preset": "smoke", "selfplay": {"workers": 1}}
    for config in ("square8_2p", "square19_2p"):
        expected = TrainingConfig.preset("smoke", config).with_overrides({"selfplay.workers": 1})
        assert resolve(values, config) == expected
        kept = {"preset": "smoke", **given(values)}
        assert RunSettings(kept, None, "auto").of(config) == expected
        assert carried_on(TrainingConfig(), values, config) == expected
    assert resolve(values, "square8_2p") != resolve(values, "square19_2p")
    planned = resolve(values, "square19_2p")
    assert carried_on(planned, {"seed": 4}, "square19_2p") == planned.with_overrides({"seed": 4})


def test_nothing_given_is_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve({}) == TrainingConfig.load(environ={})
    monkeypatch.setenv("RINGRIFT_SELFPLAY__GAMES", "12")
    assert resolve({}).selfplay.games == 12


def test_bad_values_are_named() -> None:
    with pytest.raises(ConfigError, match=r"batch_size .*\(got -4, from run configuration\)"):
        resolve({"training": {"batch_size": -4}})


def test_runs_of_other_jobs_say_nothing() -> None:
    assert run_values({}) == {}
    assert run_values({"ops": {"gauntlet": {}}}) == {}


def just_outside(field: ConfigField) -> list[Any]:
    """Values that the field's bounds forbid."""
    step = {"ge": -1, "gt": 0, "le": 1, "lt": 0}
    values = [field.type(bound + step[b]) for b, bound in field.bounds.items() if b in step]
    return values + (["no such choice"] if "choices" in field.bounds else [])


BOUNDED = [field for field in TrainingConfig.fields() if just_outside(field)]


@pytest.mark.parametrize("field", BOUNDED, ids=lambda field: field.name)
def test_every_bound_is_enforced_where_a_run_is_configured(field: ConfigField) -> None:
    group, _, name = field.name.rpartition(".")
    for value in just_outside(field):
        with pytest.raises(ConfigError, match=name):
            resolve({group: {name: value}} if group else {name: value})
