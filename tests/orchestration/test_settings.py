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
    settings_for,
)
from ringrift_pipeline.selfplay import plan_generation
from ringrift_pipeline.store import Store

from .landing import fake_evaluation


@pytest.mark.parametrize("preset", ["smoke", "hour", "day"])
def test_a_resolved_config_survives_the_way_there_and_back(preset: str) -> None:
    config = TrainingConfig.load(preset=preset, environ={}, overrides={"seed": 7})
    values = run_values(run_config(config, last_generation=3, resume="never"))
    assert resolve(values) == config
    assert values["last_generation"] == 3 and values["resume"] == "never"


CONFIG = "square8_2p"


def test_what_is_given_beats_the_preset() -> None:
    config = resolve({"preset": "smoke", "selfplay": {"games": 4, "workers": None}, "seed": None})
    assert config.selfplay.games == 4
    assert (
        config.selfplay.games_per_shard == TrainingConfig.preset("smoke").selfplay.games_per_shard
    )


def test_a_preset_has_the_sizes_of_the_config_that_is_planned(store: Store) -> None:
    values = {"preset": "smoke", "selfplay": {"workers": 1}}
    for config in ("square8_2p", "square19_2p"):
        expected = TrainingConfig.preset("smoke", config).with_overrides({"selfplay.workers": 1})
        assert resolve(values, config) == expected
        kept = {"preset": "smoke", **given(values)}
        assert RunSettings(kept, None, "auto").of(store, config, 0) == expected
        assert carried_on(TrainingConfig(), values, config) == expected
    assert resolve(values, "square8_2p") != resolve(values, "square19_2p")
    planned = resolve(values, "square19_2p")
    assert carried_on(planned, {"seed": 4}, "square19_2p") == planned.with_overrides({"seed": 4})


def test_a_new_generation_has_the_settings_of_the_one_before(store: Store) -> None:
    hour = TrainingConfig.preset("hour", CONFIG).with_overrides({"seed": 5})
    lower = {"optimizer": {"learning_rate": 1e-4}}
    assert settings_for(store, CONFIG, 0, lower) == TrainingConfig().with_overrides(lower)
    plan_generation(store, CONFIG, 0, hour)
    assert settings_for(store, CONFIG, 1, {}) == hour
    assert settings_for(store, CONFIG, 1, lower) == hour.with_overrides(lower)
    of_preset = {"preset": "smoke", **lower}
    assert settings_for(store, CONFIG, 1, of_preset) == resolve(of_preset, CONFIG)
    # one that has a plan keeps it, and a gap has what came before it
    plan_generation(store, CONFIG, 1, hour.with_overrides(lower))
    plan_generation(store, CONFIG, 3, TrainingConfig.preset("smoke"))
    for generation in (1, 2):
        assert settings_for(store, CONFIG, generation, {}) == hour.with_overrides(lower)
    assert settings_for(store, CONFIG, 0, {}) == hour


def test_the_factors_of_the_trend_are_asked_for_once(store: Store) -> None:
    for generation, elo in enumerate((1500, 1440, 1380)):
        fake_evaluation(store, CONFIG, generation, True, (elo, 15.0))
    typed = settings_for(store, CONFIG, 3, {"seed": 4})
    assert typed.seed == 4 and typed.network == TrainingConfig.preset("smoke").network
    assert typed.effective_games == 400 and typed.feedback.rate_factor == pytest.approx(0.7)
    # the sensor's runs have them already, and those that somebody gives stand
    assert settings_for(store, CONFIG, 3, run_values(run_config(typed))) == typed
    given_one = settings_for(store, CONFIG, 3, {"feedback": {"rate_factor": 1.0}}).feedback
    assert given_one.rate_factor == 1.0 and given_one.selfplay_factor == pytest.approx(1.25)
    # what was planned with them is not given them again
    store.write_plan(CONFIG, 3, {"settings": typed.to_dict()})
    assert settings_for(store, CONFIG, 3, {}) == typed


def test_the_first_generation_has_the_defaults(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings_for(store, CONFIG, 0, {}) == TrainingConfig.load(environ={})
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
