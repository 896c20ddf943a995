"""What the code location holds, what loading it costs, what launching refuses."""

from __future__ import annotations

import multiprocessing
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dagster import AssetKey, DagsterInstance
from dagster._core.errors import DagsterInvalidConfigError

import ringrift_pipeline.definitions as definitions
from ringrift_pipeline.definitions import defs
from ringrift_pipeline.orchestration import names
from ringrift_pipeline.orchestration.checks import CHECKS
from ringrift_pipeline.orchestration.metadata import FIRST, MOST_NUMBERS, numbers
from ringrift_pipeline.orchestration.settings import LaunchRefusedError
from ringrift_pipeline.store.kinds import CODE_VERSIONS

NINE = (*names.ASSETS, "champion")
RETENTION = AssetKey(["retention"])  # the one asset that is nobody's generation


def test_configs_are_those_of_the_rules() -> None:
    from ringrift_pipeline.game import CONFIGS

    assert tuple(CONFIGS) == names.CONFIGS


def test_nine_assets_a_config_in_a_group_of_its_own() -> None:
    graph = defs.get_repository_def().asset_graph
    wanted = {AssetKey([config, name]) for config in names.CONFIGS for name in NINE}
    assert set(graph.get_all_asset_keys()) == wanted | {RETENTION}
    for key in wanted:
        node = graph.get(key)
        config, name = key.path
        assert node.group_name == config
        assert node.description and node.owners and node.kinds
        if name == "champion":
            assert node.is_external and node.partitions_def is None
        else:
            assert node.partitions_def == names.partitions(config)
            assert node.code_version == CODE_VERSIONS[name]
    disk = graph.get(RETENTION)
    assert disk.group_name == "disk" and disk.description and disk.owners and disk.kinds
    assert disk.code_version == CODE_VERSIONS["retention"]


def test_each_config_has_partitions_of_its_own() -> None:
    assert len({names.partitions(config).name for config in names.CONFIGS}) == 12


def test_the_flow_is_the_architectures() -> None:
    graph = defs.get_repository_def().asset_graph
    parents = {
        name: {key.path[-1] for key in graph.get(AssetKey(["hex8_3p", name])).parent_keys}
        for name in NINE
    }
    assert parents["selfplay_shards"] == {"champion"}
    assert "selfplay_shards" in parents["quality_scores"]
    assert "quality_scores" in parents["hard_examples"]
    assert {"hard_examples", "quality_scores"} <= parents["checkpoint"]
    assert parents["ema_model"] == {"checkpoint"}
    assert "ema_model" in parents["ensemble"]
    assert {"ema_model", "ensemble"} <= parents["calibration_report"]
    assert {"ema_model", "calibration_report"} <= parents["evaluation"]
    assert parents["champion"] == set()


def test_every_asset_has_a_check_and_promotion_a_blocking_one() -> None:
    graph = defs.get_repository_def().asset_graph
    checked = {key.asset_key for key in graph.asset_check_keys}
    assert checked == set(graph.get_all_asset_keys())
    assert {check.name for check in CHECKS if check.blocking} == {
        "champion_verifies", "shards_complete", "shards_sound", "window_fresh", "scores_schema",
        "scores_sound", "examples_schema", "examples_sound", "losses_finite", "training_learned",
        "no_leakage", "average_fits", "bins_schema", "calibration_sound", "games_schema",
        "evaluation_sound", "gate_sound",
    }  # fmt: skip
    for check in CHECKS:
        assert check.judge.__doc__, check.name


@pytest.mark.parametrize("job", ["champion_gauntlet", "ablation", "disk_retention"])
def test_the_launchpad_names_the_bounds_of_every_number(job: str) -> None:
    graph = defs.get_repository_def().get_job(job).graph
    numbers = 0
    for node in graph.nodes:
        schema = node.definition.config_schema
        fields = getattr(schema.config_type if schema else None, "fields", {})  # a check has none
        for name, field in fields.items():
            if "Int" in field.config_type.key or "Float" in field.config_type.key:
                numbers += 1
                low, high = (any(s in field.description for s in signs) for signs in (">", "<"))
                assert low and high, (job, name, field.description)
    assert numbers


def test_what_to_do_can_work() -> None:
    """Settings change with the next generation only: a plan freezes its own."""
    from ringrift_pipeline.enhancements import TrainingConfig

    settings = {field.name for field in TrainingConfig.fields()}
    for check in CHECKS:
        named = re.findall(r"\b[a-z]+\.[a-z_]+", check.todo)
        assert set(named) <= settings, check.name
        assert not named or "Launch the next generation with" in check.todo, check.name
        assert "resume" not in check.todo, check.name
        assert "Materialize" not in check.todo or "remove" in check.todo, check.name


def test_jobs_sensor_and_schedules() -> None:
    repository = defs.get_repository_def()
    jobs = {job.name for job in repository.get_all_jobs()}
    assert {f"{config}_generation" for config in names.CONFIGS} <= jobs
    assert {"champion_gauntlet", "ablation", "set_switches", "disk_retention"} <= jobs
    sensors = {sensor.name for sensor in repository.sensor_defs}
    assert sensors == {"evaluation_landed", "run_failed", "config_stalled"}
    for name in ("nightly_selfplay", "weekly_gauntlet", "nightly_retention"):
        assert repository.get_schedule_def(name).default_status.value == "STOPPED"


def test_loading_imports_nothing_heavy() -> None:
    code = (
        "import sys, ringrift_pipeline.definitions as d; "
        "d.defs.get_repository_def().load_all_definitions(); "
        "print([m for m in ('torch', 'numba', 'pandas', 'polars', 'pandera') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_definitions_stay_short() -> None:
    assert len(Path(str(definitions.__file__)).read_text().splitlines()) <= 25


def launch(config: str, values: dict[str, Any]) -> str:
    """Make a run as a launch does, before any step; its id."""
    with DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(names.partitions_name(config), ["0000"])
        run = instance.create_run_for_job(
            defs.get_repository_def().get_job(names.job_name(config)),
            run_config={"resources": {"settings": {"config": values}}},
            tags={names.PARTITION_TAG: "0000"},
        )
        return run.run_id


def test_a_launch_takes_good_settings() -> None:
    assert launch("square8_2p", {"preset": "smoke", "selfplay": {"games": 8}})
    assert launch(
        "square8_2p", {"optimizer": {"betas": [0.9, 0.95]}, "schedule": {"name": "constant"}}
    )
    assert launch("square8_2p", {})


@pytest.mark.parametrize(
    ("values", "field", "bound"),
    [
        ({"training": {"batch_size": -4}}, "training.batch_size", "greater than or equal to 1 "),
        ({"selfplay": {"full_search_fraction": 2.0}}, "full_search_fraction", "or equal to 1 "),
        ({"search": {"simulations": 4, "cheap_simulations": 8}}, "cheap_simulations", "(4)"),
        ({"last_generation": -1}, "last_generation", "from 0"),
        ({"seed": -1}, "seed", "greater than or equal to 0 "),
    ],
)
def test_a_launch_refuses_values_out_of_bounds(
    values: dict[str, Any], field: str, bound: str
) -> None:
    with pytest.raises(LaunchRefusedError) as caught:
        launch("hex8_2p", values)
    said = str(caught.value)
    assert field in said and bound in said


@pytest.mark.parametrize(
    "values",
    [{"selfplay": {"gamess": 8}}, {"schedule": {"name": "odd"}}, {"preset": "huge"}, {"x": 1}],
)
def test_a_launch_refuses_unknown_names(values: dict[str, Any]) -> None:
    with pytest.raises(DagsterInvalidConfigError):
        launch("hex8_2p", values)


def test_what_resume_names_is_looked_for_at_launch_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that goes on from a state uses it up, and the steps after it read the same."""
    values = {"resume": str(tmp_path / "state")}
    with pytest.raises(LaunchRefusedError, match="resume: .*nor a folder"):
        launch("hex8_2p", values)
    (tmp_path / "state").mkdir()
    assert launch("hex8_2p", values)
    (tmp_path / "state").rmdir()
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object())  # as in a step
    assert launch("hex8_2p", values)


def test_the_launchpad_has_the_settings_and_no_others() -> None:
    """The same names, descriptions, defaults and bounds as on the command line."""
    from ringrift_pipeline.enhancements import TrainingConfig
    from ringrift_pipeline.orchestration.settings import RUN_FIELDS, settings_resource

    shape: Any = settings_resource.config_schema.config_type
    shown = {}
    for name, field in shape.fields.items():
        inner = getattr(field.config_type, "fields", None)
        if inner is None:
            shown[name] = field.description
        else:
            shown |= {f"{name}.{leaf}": each.description for leaf, each in inner.items()}
    for name in RUN_FIELDS:
        assert shown.pop(name)
    wanted = {f.name: f"{f.description} ({f.limits})" for f in TrainingConfig.fields()}
    assert shown == wanted
    for group in TrainingConfig.groups():
        if group.name:
            assert shape.fields[group.name].description == group.description


def test_at_most_fifteen_numbers_are_shown() -> None:
    many = {f"train/n{i}": float(i) for i in range(40)} | {"val/loss": 0.5, "steps": 3}
    shown = numbers(many, first=("val/loss",))
    assert len(shown) == MOST_NUMBERS and next(iter(shown)) == "val/loss"
    assert "steps" not in shown
    assert numbers({"train/x": float("nan"), "train/ok": True, "train/y": 1}) == {"train/y": 1}


def test_a_further_opponent_hides_no_verdict() -> None:
    played = [f"eval/win_rate_{one}" for one in ("random", "heuristic", "rollout", "champion")]
    rates = [f"{name}{end}" for name in played for end in ("", "_low", "_high")]
    many = dict.fromkeys(["eval/elo", *rates, "eval/sprt_llr", "eval/games", "eval/promote"], 1.0)
    shown = numbers(many, FIRST["evaluation"])
    assert {"eval/elo", "eval/sprt_llr", "eval/promote", "eval/win_rate_champion"} <= set(shown)


UNITS = {
    "selfplay_shards": ("nats", "seconds"),
    "quality_scores": ("[0, 1]",),
    "hard_examples": ("nats",),
    "checkpoint": ("nats", "`val/gain`"),
    "ema_model": ("nats",),
    "ensemble": ("nats", "share of the win"),
    "calibration_report": ("nats", "share of the win"),
    "evaluation": ("Elo", "1200"),
    names.CHAMPION: ("Elo", "1200"),
}


@pytest.mark.parametrize("name", [names.CHAMPION, *names.ASSETS])
def test_descriptions_say_the_units_of_what_is_plotted(name: str) -> None:
    description = defs.get_repository_def().asset_graph.get(AssetKey(["hex8_2p", name])).description
    for unit in UNITS[name]:
        assert unit in str(description)


def test_descriptions_have_nothing_that_the_ui_takes_for_html() -> None:
    from ringrift_pipeline.selfplay.shards import MEANINGS

    repository = defs.get_repository_def()
    graph = repository.asset_graph
    texts = [*MEANINGS.values()]
    for key in graph.get_all_asset_keys():
        texts.append(str(graph.get(key).description))
        schema = graph.get(key).metadata.get("dagster/column_schema")
        texts += [str(column.description) for column in (schema.columns if schema else ())]
    texts += [str(graph.get(check).description) for check in graph.asset_check_keys]
    for one in (*repository.get_all_jobs(), *repository.sensor_defs, *repository.schedule_defs):
        texts.append(str(one.description))
    assert [text for text in texts if re.search(r"<\w", text)] == []


def test_descriptions_say_what_the_defaults_leave_off() -> None:
    from ringrift_pipeline.training.hard_examples import GLANCE

    graph = defs.get_repository_def().asset_graph
    scores, examples = (
        str(graph.get(AssetKey(["hex8_2p", name])).description)
        for name in ("quality_scores", "hard_examples")
    )
    assert "where `quality.enabled` says so" in scores
    assert "Where `mining.enabled` says so" in examples and f"{GLANCE} of them" in examples
