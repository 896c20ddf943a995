"""Precedence, refusals and round trips of the configuration; the package's lazy names."""

from __future__ import annotations

import fnmatch
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import ringrift_pipeline.enhancements as enhancements
from ringrift_pipeline.enhancements.training_config import (
    PRESETS,
    ConfigError,
    ConfigField,
    TrainingConfig,
)

NUMBERS = [f for f in TrainingConfig.fields() if f.type in (int, float) and f.bounds]


def load(**given: Any) -> TrainingConfig:
    given.setdefault("environ", {})
    return TrainingConfig.load(**given)


def test_importing_config_and_package_brings_no_heavy_module() -> None:
    code = (
        "import sys; import ringrift_pipeline.enhancements as e; e.TrainingConfig.preset('smoke');"
        "heavy = {'torch', 'numba', 'pandas', 'polars', 'dagster'} & set(sys.modules);"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_loads_and_unknown_ones_do_not() -> None:
    for name in enhancements.__all__:
        assert getattr(enhancements, name).__name__ == name
    with pytest.raises(AttributeError, match="Nothing"):
        enhancements.Nothing  # noqa: B018
    assert set(enhancements.__all__) <= set(dir(enhancements))


def test_precedence_each_layer_beats_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[selfplay]\ngames = 11\ngames_per_shard = 12\nparallel_games = 13\n")
    environ = {"RINGRIFT_SELFPLAY__GAMES_PER_SHARD": "22", "RINGRIFT_SELFPLAY__PARALLEL_GAMES": "3"}
    config = load(
        preset="smoke", file=file, environ=environ, overrides={"selfplay.parallel_games": "33"}
    )
    assert TrainingConfig().selfplay.full_search_fraction == 0.25  # default
    assert config.selfplay.full_search_fraction == 0.3  # preset
    assert config.selfplay.games == 11  # file
    assert config.selfplay.games_per_shard == 22  # environment
    assert config.selfplay.parallel_games == 33  # command line
    assert config.evaluation.opponents == ("random", "heuristic", "champion")


def test_process_environment_is_read_unless_another_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RINGRIFT_SEED", "41")
    monkeypatch.setenv("RINGRIFT_SCHEDULE__T_0", "7")
    monkeypatch.setenv("RINGRIFT_DATA", "/elsewhere")  # no setting of ours, no business of ours
    assert TrainingConfig.load().seed == 41
    assert TrainingConfig.load().schedule.T_0 == 7
    assert load().seed == 0


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_and_round_trip_through_json(name: Any) -> None:
    config = TrainingConfig.preset(name)
    assert TrainingConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config != TrainingConfig()
    for key, value in PRESETS[name].items():
        group, field = key.split(".")
        assert getattr(getattr(config, group), field) == value


@pytest.mark.parametrize("suffix", ["toml", "yaml", "yml", "json"])
def test_file_formats_agree(tmp_path: Path, suffix: str) -> None:
    text = {
        "toml": "seed = 3\n[optimizer]\nlearning_rate = 1e-3\nbetas = [0.8, 0.9]\n",
        "json": '{"seed": 3, "optimizer": {"learning_rate": 1e-3, "betas": [0.8, 0.9]}}',
    }.get(suffix, "seed: 3\noptimizer:\n  learning_rate: 1e-3\n  betas: [0.8, 0.9]\n")
    file = tmp_path / f"c.{suffix}"
    file.write_text(text)
    config = load(file=file)
    assert (config.seed, config.optimizer.learning_rate) == (3, 1e-3)
    assert config.optimizer.betas == (0.8, 0.9)


@pytest.mark.parametrize(
    ("overrides", "pattern"),
    [
        ({"training.batch_siz": 4}, "training.batch_siz.*did you mean 'training.batch_size'"),
        ({"batch_size": 4}, "did you mean 'training.batch_size'"),
        ({"trainig": {"epochs": 1}}, "did you mean 'training'"),
        ({"training": {"thread": 1}}, "did you mean 'training.threads'"),
        ({"training": 3}, "training is a group"),
        ({"training.batch_size": -4}, r"training.batch_size .*1 \(got -4, from command line\)"),
        ({"training.batch_size": "many"}, "training.batch_size must be a whole number"),
        ({"training.batch_size": 2.5}, "training.batch_size"),
        ({"training.batch_size": True}, "training.batch_size"),
        ({"optimizer.learning_rate": float("nan")}, "optimizer.learning_rate"),
        ({"optimizer.learning_rate": "inf"}, "optimizer.learning_rate"),
        ({"optimizer.betas": "0.9"}, "optimizer.betas"),
        ({"optimizer.betas": "0.9,1.0"}, "betas must be"),
        ({"feedback.min_evaluations": 9}, r"min_evaluations \(9\) .* window \(8\)"),
        ({"gradients.clip_mode": "agcc"}, "gradients.clip_mode"),
        ({"gradients.min_clip": 50.0}, "min_clip .* must not exceed max_clip"),
        ({"search.cheap_simulations": 100}, "cheap_simulations .* must not exceed"),
        ({"evaluation.elo1": -1.0}, "elo0 .* must be below elo1"),
        ({"evaluation.opponents": ""}, "evaluation.opponents"),
        ({"evaluation.opponents": "random,bob"}, "evaluation.opponents has 'bob': opponents are"),
        ({"evaluation.opponents": ["random", "generation:x"]}, "opponents has 'generation:x'"),
        ({"evaluation.opponents": "champion,rollout"}, "has neither heuristic nor random"),
        ({"quality.enabled": "perhaps"}, "quality.enabled must be true or false"),
        ({"device": "tpu"}, "device"),
    ],
)
def test_bad_settings_are_refused_in_one_line(overrides: dict[str, Any], pattern: str) -> None:
    with pytest.raises(ConfigError, match=pattern) as caught:
        load(overrides=overrides)
    assert "\n" not in str(caught.value)


def test_bad_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="RINGRIFT_TRAINING__BATCH_SIZE"):
        load(environ={"RINGRIFT_TRAINING__BATCHSIZE": "4"})
    for slip in ("RINGRIFT_SEDE", "RINGRIFT_SEEDS", "RINGRIFT_SELFPLAY_GAMES"):
        with pytest.raises(ConfigError, match=f"{slip}; did you mean RINGRIFT_SE"):
            load(environ={slip: "4"})
    with pytest.raises(ConfigError, match="environment variable RINGRIFT_SEED"):
        load(environ={"RINGRIFT_SEED": "-1"})
    with pytest.raises(ConfigError, match="smoke, hour, day"):
        load(preset="smok")
    with pytest.raises(ConfigError, match="cannot read"):
        load(file=tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("seed = = 3")
    with pytest.raises(ConfigError, match="not valid toml"):
        load(file=tmp_path / "bad.toml")
    (tmp_path / "bad.yaml").write_text("seed: [3")
    with pytest.raises(ConfigError, match="not valid yaml"):
        load(file=tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 3")
    with pytest.raises(ConfigError, match="table of settings"):
        load(file=tmp_path / "list.yaml")
    (tmp_path / "config.ini").write_text("")
    with pytest.raises(ConfigError, match="must end in"):
        load(file=tmp_path / "config.ini")


def test_constructor_refuses_too_and_is_frozen() -> None:
    with pytest.raises(ValueError, match="did you mean 'seed'"):
        TrainingConfig(sede=3)  # type: ignore[call-arg]
    config = TrainingConfig()
    with pytest.raises(ValidationError):
        config.seed = 3
    with pytest.raises(ValidationError):
        config.training.batch_size = 3
    assert hash(config) == hash(TrainingConfig())


def test_effective_batch_size_and_overrides_copy() -> None:
    config = TrainingConfig().with_overrides(
        {"training.batch_size": 96, "gradients": {"accumulation_steps": 4}}
    )
    assert config.effective_batch_size == 384
    assert TrainingConfig().effective_batch_size == 256


def test_every_field_is_described_and_its_default_valid() -> None:
    fields = TrainingConfig.fields()
    assert len({f.name for f in fields}) == len(fields) > 60
    for field in fields:
        assert len(field.description) > 10, field.name
        assert load(overrides={field.name: field.default}) == TrainingConfig()


@pytest.mark.parametrize("field", TrainingConfig.fields(), ids=lambda field: field.name)
def test_every_setting_is_bounded(field: ConfigField) -> None:
    """A number by a least or greatest value, text by a pattern or choices, a list by its length."""
    if field.type is bool:
        return
    if field.name == "optimizer.betas":  # by a rule of its own
        for betas in ((-0.1, 0.5), (0.5, 1.0), (0.5,), (0.5, 0.5, 0.5), (0.5, math.nan)):
            with pytest.raises(ConfigError, match="betas"):
                load(overrides={"optimizer.betas": betas})
        return
    if field.type is str or get_origin(field.type) is Literal:
        assert field.bounds.keys() & {"pattern", "choices"}
    elif get_origin(field.type) is tuple:
        assert "min_length" in field.bounds
    else:
        assert field.type in (int, float)
        assert field.bounds.keys() & {"ge", "gt", "le", "lt"}


@pytest.mark.parametrize("name", ["evaluation.elo0", "evaluation.elo1"])
def test_the_hypotheses_of_the_gate_are_elo(name: str) -> None:
    for value in (-1001.0, 1001.0, 1e300):
        with pytest.raises(ConfigError, match=name):
            load(overrides={name: value})
    assert load(overrides={"evaluation": {"elo0": -1000.0, "elo1": 1000.0}}).evaluation.elo1 == 1e3


def other_value(field: ConfigField) -> Any:
    """A good value that is not the default."""
    if field.type is bool:
        return not field.default
    if "choices" in field.bounds:
        return next(choice for choice in field.bounds["choices"] if choice != field.default)
    if field.name == "device":
        return "cpu"
    if field.name == "finetune.source":
        return "square8_2p"
    if field.name == "optimizer.betas":
        return [0.5, 0.75]
    if get_origin(field.type) is tuple:
        return ["random"]
    near = [field.default * 1.01, field.default + 1]
    tries = [*near, field.default - 1, field.default * 2, field.default / 2]
    for value in map(field.type, tries):
        try:
            if value != field.default:
                load(overrides={field.name: value})
                return value
        except ConfigError:
            continue
    raise AssertionError(f"no other value of {field.name} was found")


@pytest.mark.parametrize("field", TrainingConfig.fields(), ids=lambda field: field.name)
def test_every_setting_can_be_given_in_every_way(field: ConfigField, tmp_path: Path) -> None:
    group, _, name = field.name.rpartition(".")
    value = other_value(field)
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    nested = {group: {name: value}} if group else {name: value}
    wanted = TrainingConfig.from_dict(nested)
    assert wanted != TrainingConfig()
    file = tmp_path / "run.json"
    file.write_text(json.dumps(nested))
    (tmp_path / "run.toml").write_text(f"{field.name} = {json.dumps(value)}\n")
    variable = f"RINGRIFT_{field.name.replace('.', '__').upper()}"
    assert load(overrides={field.name: text}) == wanted
    assert load(environ={variable: text}) == wanted
    assert load(file=file) == wanted
    assert load(file=tmp_path / "run.toml") == wanted


def test_effective_values_have_the_factors_of_the_feedback() -> None:
    config = load(
        overrides={
            "feedback.rate_factor": 0.5,
            "feedback.exploration_factor": 1.5,
            "feedback.selfplay_factor": 1.25,
        }
    )
    assert config.effective_learning_rate == config.optimizer.learning_rate / 2 == 1e-3
    assert config.effective_temperature == 1.5
    assert config.effective_games == 640
    plain = TrainingConfig()
    assert plain.effective_learning_rate == plain.optimizer.learning_rate
    assert plain.effective_temperature == plain.selfplay.temperature
    assert plain.effective_games == plain.selfplay.games


@given(data=st.data())
@settings(max_examples=60)
def test_bounds_are_enforced_on_both_sides(data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(NUMBERS))
    bounds = field.bounds
    outside = []
    if "ge" in bounds:
        outside.append(bounds["ge"] - 1)
    if "gt" in bounds:
        outside.append(bounds["gt"])
    if "le" in bounds:
        outside.append(bounds["le"] + 1)
    if "lt" in bounds:
        outside.append(bounds["lt"])
    value = field.type(data.draw(st.sampled_from(outside)))
    with pytest.raises(ConfigError, match=field.name):
        load(overrides={field.name: value})
    with pytest.raises(ConfigError, match=field.name):
        load(overrides={field.name: str(value)})


def test_a_preset_has_sizes_of_its_own_for_a_config(monkeypatch: pytest.MonkeyPatch) -> None:
    from ringrift_pipeline.enhancements import presets

    further = {"*_3p": {"selfplay.games": 7, "network.blocks": 3}, "hex*": {"selfplay.games": 9}}
    monkeypatch.setitem(presets.BY_CONFIG, "smoke", further)
    plain = TrainingConfig.preset("smoke")
    assert TrainingConfig.preset("smoke", "square8_2p") == plain
    third = TrainingConfig.preset("smoke", "square8_3p")
    assert (third.selfplay.games, third.network.blocks) == (7, 3)
    assert third.with_overrides({"selfplay.games": 320, "network.blocks": 2}) == plain
    both = TrainingConfig.preset("smoke", "hex8_3p")  # the later entry beats the earlier one
    assert (both.selfplay.games, both.network.blocks) == (9, 3)
    assert TrainingConfig.preset("hour", "hex8_3p") == TrainingConfig.preset("hour")
    given = load(preset="smoke", config="hex8_3p", overrides={"selfplay.games": 2})
    assert (given.selfplay.games, given.network.blocks) == (2, 3)
    assert load(config="hex8_3p") == TrainingConfig()  # no preset, no sizes
    with pytest.raises(ConfigError, match="config must be a name"):
        load(preset="smoke", config=3)
    with pytest.raises(ConfigError, match="unknown preset"):
        load(preset="hours", config="hex8_3p")


def test_what_the_ablation_left_undecided_is_off() -> None:
    """README, "Does each enhancement help?"."""
    for config in (None, "square8_2p", "hex8_2p", "square19_4p"):
        for name in PRESETS:
            settings = TrainingConfig.preset(name, config)  # type: ignore[arg-type]
            assert not settings.mining.enabled and not settings.quality.enabled
            assert not settings.gradients.clipping
            assert settings.schedule.name == "warm_restarts"
            assert settings.averaging.enabled


def test_a_preset_has_as_many_generations_as_fit_its_name() -> None:
    from ringrift_pipeline.enhancements.presets import generations_for

    assert [generations_for(name, "square8_2p") for name in ("smoke", "hour", "")] == [2, 13, 1]
    assert [generations_for("hour", f"hex8_{players}p") for players in (2, 3, 4)] == [9] * 3
    assert [generations_for("hour", f"{board}_2p") for board in ("square19", "hexagonal")] == [
        6,
        5,
    ]
    assert generations_for("smoke", "hex8_2p") == 2


def test_every_preset_of_every_config_is_valid() -> None:
    from ringrift_pipeline.enhancements.presets import BY_CONFIG, preset_for
    from ringrift_pipeline.game import CONFIGS

    assert set(BY_CONFIG) <= set(PRESETS)
    for name in PRESETS:
        for config in CONFIGS:
            changes = preset_for(name, config)
            settings = TrainingConfig.preset(name, config)  # type: ignore[arg-type]
            assert settings == TrainingConfig().with_overrides(changes)
    for patterns in BY_CONFIG.values():
        for pattern in patterns:
            assert any(fnmatch.fnmatchcase(config, pattern) for config in CONFIGS), pattern


def test_settings_of_earlier_plans_are_left_out() -> None:
    old = TrainingConfig().to_dict()
    old["training"] |= {"epochs": 4.0, "window_generations": 8}
    assert TrainingConfig.from_dict(old) == TrainingConfig()
    old["calibration"] |= {"bootstrap": 10}  # of which 20 were taken
    assert TrainingConfig.from_dict(old) == load(overrides={"calibration.bootstrap": 20})
    with pytest.raises(ConfigError, match="calibration.bootstrap"):
        TrainingConfig.from_dict({"calibration": {"bootstrap": 9}})
    with pytest.raises(ConfigError, match="unknown setting 'training.epochs'"):
        load(overrides={"training.epochs": 4.0})
