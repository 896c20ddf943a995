"""What is refused at launch, before there is a run: through GraphQL, as the launchpad does it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.test_utils import InProcessTestWorkspaceLoadTarget
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster_graphql.schema import create_schema

from ringrift_pipeline.enhancements.training_config import TrainingConfig
from ringrift_pipeline.orchestration import names
from ringrift_pipeline.orchestration.instance import open_instance
from ringrift_pipeline.orchestration.places import data_folder
from ringrift_pipeline.selfplay import plan_generation
from ringrift_pipeline.store import Store

LAUNCH = """
mutation ($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on RunConfigValidationInvalid { errors { message } }
    ... on PythonError { message causes { message } }
    ... on InvalidSubsetError { message }
    ... on PipelineNotFoundError { message }
  }
}
"""


class Launchpad:
    """The web server's view of the code location, without the web."""

    def __init__(self, context: WorkspaceProcessContext, instance: DagsterInstance) -> None:
        self._context, self.instance = context, instance
        self._schema = create_schema()

    def launch(
        self, job: str, run_config: dict[str, Any], partition: str = "", assets: Any = None
    ) -> tuple[str, str]:
        """What became of it, and everything that was said."""
        location = names.MODULE
        selector: dict[str, Any] = {
            "repositoryLocationName": location,
            "repositoryName": "__repository__",
            "jobName": job,
        }
        if assets is not None:
            selector["assetSelection"] = [{"path": path} for path in assets]
        tags = [{"key": names.PARTITION_TAG, "value": partition}] if partition else []
        params = {
            "selector": selector,
            "runConfigData": run_config,
            "mode": "default",
            "executionMetadata": {"tags": tags},
        }
        result = asyncio.run(
            self._schema.execute_async(
                LAUNCH,
                variable_values={"params": params},
                context_value=self._context.create_request_context(),
            )
        )
        assert result.errors is None, result.errors
        answer = result.data["launchRun"]
        said = [answer.get("message", "")]
        said += [cause["message"] for cause in answer.get("causes") or ()]
        said += [error["message"] for error in answer.get("errors") or ()]
        return answer["__typename"], "\n".join(said)


@pytest.fixture(scope="module")
def launchpad(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launchpad]:
    data = tmp_path_factory.mktemp("launched")
    origin = InProcessCodeLocationOrigin(
        LoadableTargetOrigin(executable_path=sys.executable, module_name=names.MODULE),
        location_name=names.MODULE,
    )
    target = InProcessTestWorkspaceLoadTarget(origin)
    with (
        pytest.MonkeyPatch.context() as patch,
        open_instance(data) as instance,
        WorkspaceProcessContext(instance, target, version="", read_only=False) as context,
    ):
        patch.setenv("RINGRIFT_DATA", str(data))
        for config in ("square8_2p", "hexagonal_2p", "hex8_2p"):
            instance.add_dynamic_partitions(names.partitions_name(config), ["0000", "0001"])
        yield Launchpad(context, instance)


def settings(**values: Any) -> dict[str, Any]:
    return {"resources": {"settings": {"config": values}}}


def op(name: str, **values: Any) -> dict[str, Any]:
    return {"ops": {name: {"config": values}}}


def test_the_launchpad_refuses_by_field_and_bound(launchpad: Launchpad) -> None:
    generation = "square8_2p_generation"
    refused = [
        (generation, settings(training={"batch_size": -4}), "training.batch_size", "equal to 1 "),
        (generation, settings(watch={"stalled_hours": 0.0}), "watch.stalled_hours", "than 0 "),
        (generation, settings(last_generation=-1), "last_generation", "from 0"),
        (generation, settings(resume="nevr"), "resume", "neither auto nor never nor a folder"),
        (generation, settings(evaluation={"opponents": ["bob"]}), "evaluation.opponents", "bob"),
        ("champion_gauntlet", op("gauntlet", config="square8_2p", games=-1), "games", "equal to 2"),
        ("champion_gauntlet", op("gauntlet", config="square8_9p"), "config", "square8_9p"),
        (
            "champion_gauntlet",
            op("gauntlet", config="hex8_2p", baselines=["nobody"]),
            "baselines",
            "nobody",
        ),
        ("ablation", op("ablate", config="hex8_3p", seeds=1), "seeds", "equal to 2"),
        ("ablation", op("ablate", config="hex8_3p", generation=-1), "generation", "equal to 0"),
        ("set_switches", op("switches", config="all"), "loop, nightly, gauntlet", "at least one"),
    ]
    for job, run_config, field, bound in refused:
        what, said = launchpad.launch(job, run_config, "0000" if job == generation else "")
        assert what != "LaunchRunSuccess", (job, run_config)
        assert field in said and bound in said, said
    assert launchpad.instance.get_runs() == []


def test_a_launch_cannot_send_a_run_to_another_folder(launchpad: Launchpad, tmp_path: Path) -> None:
    """It would delete and write there with this instance's locks."""
    before = launchpad.instance.get_runs_count()
    elsewhere = {"config": {"root": str(tmp_path / "elsewhere")}}
    jobs = {
        "disk_retention": op("retention", dry_run=False),
        "set_switches": op("switches", config="hex8_2p", loop=False),
        "square8_2p_generation": settings(preset="smoke"),
    }
    for job, run_config in jobs.items():
        key = "0000" if job == "square8_2p_generation" else ""
        for resource in ("store", "io_manager", "tables"):
            resources = {**run_config.get("resources", {}), resource: elsewhere}
            what, said = launchpad.launch(job, {**run_config, "resources": resources}, key)
            assert what != "LaunchRunSuccess" and resource in said, (job, resource, said)
    assert launchpad.instance.get_runs_count() == before


def test_every_bound_of_the_other_jobs_is_held_at_launch(launchpad: Launchpad) -> None:
    before = launchpad.instance.get_runs_count()
    for job, name, good in (
        ("champion_gauntlet", "gauntlet", {"config": "hex8_2p", "predecessors": -1}),
        ("champion_gauntlet", "gauntlet", {"config": "hex8_2p", "baselines": []}),
        ("champion_gauntlet", "gauntlet", {"config": "hex8_2p", "seed": 2**32}),
        ("ablation", "ablate", {"config": "hex8_2p", "steps": 0}),
        ("disk_retention", "retention", {"budget_gb": 0.0}),
        ("disk_retention", "retention", {"keep_generations": 0}),
        ("disk_retention", "retention", {"keep_days": 0}),
    ):
        what, said = launchpad.launch(job, op(name, **good))
        field = list(good)[-1]
        assert what == "PythonError" and f"{field} " in said and "(got " in said, said
    assert launchpad.instance.get_runs_count() == before


def test_a_bound_that_the_board_decides_is_refused_at_launch(launchpad: Launchpad) -> None:
    """The preset gives big boards fewer simulations, which cheap ones must not exceed."""
    before = launchpad.instance.get_runs_count()
    values = settings(preset="smoke", search={"cheap_simulations": 20})
    assert launchpad.launch("square8_2p_generation", values, "0000")[0] == "LaunchRunSuccess"
    for assets in (None, [["hexagonal_2p", "checkpoint"]]):
        what, said = launchpad.launch("hexagonal_2p_generation", values, "0000", assets)
        assert what == "PythonError"
        assert "cheap_simulations (20) must not exceed simulations" in said
    # some assets picked on their page, without any job
    what, said = launchpad.launch(
        "__ASSET_JOB", values, "0000", [["hexagonal_2p", "selfplay_shards"]]
    )
    assert what == "PythonError" and "cheap_simulations (20) must not exceed" in said
    assert launchpad.instance.get_runs_count() == before + 1


def test_bounds_are_those_of_what_will_be_planned(launchpad: Launchpad) -> None:
    """What is not given is the generation's before, not the defaults."""
    config, job = "hex8_2p", "hex8_2p_generation"
    store = Store(data_folder())
    few = {"simulations": 4, "cheap_simulations": 2, "max_considered": 4}
    planned = TrainingConfig.preset("smoke", config).with_overrides({"search": few})
    plan_generation(store, config, 0, planned)
    fewer, more = settings(search={"simulations": 5}), settings(search={"cheap_simulations": 6})
    what, said = launchpad.launch(job, fewer, "0001")
    assert what == "LaunchRunSuccess", said
    before = launchpad.instance.get_runs_count()
    what, said = launchpad.launch(job, more, "0001")
    assert what == "PythonError" and "cheap_simulations (6) must not exceed simulations" in said
    path = store.root / config / "generations" / "0000" / "plan.json"
    path.write_bytes(path.read_bytes()[:-9])
    what, said = launchpad.launch(job, fewer, "0001")
    assert what == "PythonError" and "settings of hex8_2p so far cannot be read" in said
    assert launchpad.instance.get_runs_count() == before
    # a preset, and all settings as the loop gives them, ask for no plan
    for alone in (settings(preset="smoke"), settings(**planned.to_dict())):
        what, said = launchpad.launch(job, alone, "0001")
        assert what == "LaunchRunSuccess", said


def test_good_values_are_launched(launchpad: Launchpad) -> None:
    before = launchpad.instance.get_runs_count()
    for job, run_config in (
        ("champion_gauntlet", op("gauntlet", config="square8_2p", games=2, baselines=["random"])),
        ("ablation", op("ablate", config="hex8_3p", seeds=2)),
        ("set_switches", op("switches", config="hex8_3p", loop=False)),
    ):
        what, said = launchpad.launch(job, run_config)
        assert what == "LaunchRunSuccess", said
    assert launchpad.instance.get_runs_count() == before + 3
