"""The pool of each step: the GPU's where there is one and the step works on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dagster import AssetsDefinition

from ringrift_pipeline.orchestration import names, pools
from ringrift_pipeline.orchestration.assets import family
from ringrift_pipeline.orchestration.instance import own_instance
from ringrift_pipeline.orchestration.jobs import executor
from ringrift_pipeline.selfplay.workers import cores

CONFIG = "hex8_2p"


@pytest.fixture(autouse=True)
def no_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without a GPU; the folder that its devices would be in."""
    for name in ("RINGRIFT_POOL", "RINGRIFT_DEVICE", "RINGRIFT_GPU_STEPS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pools, "DEVICES", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def steps() -> dict[str, tuple[str | None, str | None]]:
    """Pool and tag of every step of a config's assets, as the definitions have them."""
    found = {}
    for made in family(CONFIG):
        if isinstance(made, AssetsDefinition):
            for op in made.node_def.iterate_op_defs():
                found[op.name] = (op.pool, op.tags.get(pools.POOL_TAG))
    return found


def node(name: str) -> str:
    return names.node_name(CONFIG, name)


def test_without_a_gpu_all_steps_share_the_cores() -> None:
    found = steps()
    assert {pool for pool, _ in found.values()} == {"cpu", None}
    for name in ("checkpoint", "evaluation", "quality_scores"):
        assert found[node(name)] == ("cpu", "cpu")
    assert found[f"{CONFIG}_play"] == ("cpu", "cpu")
    assert pools.limits() == {"cpu": cores()}
    assert pools.limits_in_a_run() == []


def test_with_a_gpu_what_works_on_it_has_a_pool_of_one(
    no_device: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (no_device / "nvidia0").touch()
    found = steps()
    for name in ("hard_examples", "checkpoint", "ema_model", "ensemble", "calibration_report"):
        assert found[node(name)] == ("gpu", "gpu"), name
    assert found[node("evaluation")] == found[f"{CONFIG}_play"] == ("gpu", "gpu")
    assert found[node("quality_scores")] == ("cpu", "cpu")
    limit = {"key": pools.POOL_TAG, "value": "gpu", "limit": 1}
    settings: Any = executor().apply_config_mapping({"config": {}}).value
    assert settings["config"]["tag_concurrency_limits"] == [limit]
    with own_instance(data) as instance:
        storage = instance.event_log_storage
        assert {each.name: each.limit for each in storage.get_pool_limits()} == {
            "cpu": cores(),
            "gpu": 1,
        }
        storage.set_concurrency_slots("gpu", 2)
        storage.set_concurrency_slots("cpu", 1)
    with own_instance(data) as instance:  # what somebody set in the UI stays
        limits = {each.name: each.limit for each in instance.event_log_storage.get_pool_limits()}
        assert limits == {"cpu": 1, "gpu": 2}
    # unless the variable says otherwise, as it does to the executor of each run
    monkeypatch.setenv("RINGRIFT_GPU_STEPS", "3")
    assert [one["limit"] for one in pools.limits_in_a_run()] == [3]
    with own_instance(data) as instance:
        limits = {each.name: each.limit for each in instance.event_log_storage.get_pool_limits()}
        assert limits == {"cpu": 1, "gpu": 3}


@pytest.mark.parametrize(
    ("variables", "pool"),
    [
        ({"RINGRIFT_DEVICE": "cpu"}, "cpu"),
        ({"RINGRIFT_POOL": "cpu"}, "cpu"),
        ({"RINGRIFT_POOL": "cpu", "RINGRIFT_DEVICE": "cuda"}, "cpu"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "cpu"),
        ({"CUDA_VISIBLE_DEVICES": "0"}, "gpu"),
        ({"RINGRIFT_DEVICE": "auto"}, "gpu"),
    ],
)
def test_the_environment_decides(
    variables: dict[str, str], pool: str, no_device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (no_device / "nvidia0").touch()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert pools.pool_of("checkpoint") == pool


def test_the_environment_can_name_a_gpu_that_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGRIFT_DEVICE", "cuda:1")
    monkeypatch.setenv("RINGRIFT_GPU_STEPS", "3")
    assert pools.pool_of("checkpoint") == "gpu" and pools.limits()["gpu"] == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [("RINGRIFT_POOL", "tpu"), ("RINGRIFT_GPU_STEPS", "0"), ("RINGRIFT_GPU_STEPS", "²")],
)
def test_nonsense_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGRIFT_DEVICE", "cuda")
    monkeypatch.setenv(name, value)
    with pytest.raises(pools.PoolError, match=f"{name} is '{value}'"):
        pools.pool_of("checkpoint")
        pools.limits()


def test_a_loop_on_the_cpu_waits_for_no_gpu() -> None:
    assert pools.pools_for("cpu") == {"RINGRIFT_POOL": "cpu"}
    assert pools.pools_for("auto") == pools.pools_for("cuda") == {}


def test_the_variables_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    from ringrift_pipeline.enhancements.training_config import TrainingConfig

    monkeypatch.setenv("RINGRIFT_POOL", "gpu")
    monkeypatch.setenv("RINGRIFT_GPU_STEPS", "2")
    assert TrainingConfig.load() == TrainingConfig()
