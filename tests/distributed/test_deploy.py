"""The files of ``deploy/``: that they fit what they are for, as far as that can be seen without it."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster._config import process_config, resolve_to_config_type
from dagster._core.instance.config import dagster_instance_config

from ringrift_pipeline.orchestration import celery_settings, pools

from .cluster import ROOT

DEPLOY = ROOT / "deploy"
QUEUES = {pools.SELFPLAY_QUEUE, pools.GPU_QUEUE}


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a YAML file with the names that lead to it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{name}.{key}")
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, name)
    else:
        yield name, value


def files() -> list[Path]:
    return sorted(DEPLOY.rglob("*.yaml"))


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_no_file_has_a_secret(path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        for name, value in leaves(document):
            last = name.rpartition(".")[2]
            if re.search(r"(?i)password$|secret_access_key$", last):
                assert str(value).startswith("${") and re.search(r":[?-]\}$", str(value)), name
            for hidden in re.findall(r"://[^/@\s:]*:([^/@\s]+)@", str(value)):
                assert hidden.startswith("${"), name
    assert len(files()) >= 5


def test_dagster_takes_the_instance_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (DEPLOY / "celery" / "dagster.yaml").read_text()
    (tmp_path / "dagster.yaml").write_text(text)
    config, _ = dagster_instance_config(str(tmp_path))  # raises for what it does not know
    database = config["storage"]["custom"]["config"]["postgres_db"]
    asked = {value["env"] for value in database.values() if isinstance(value, dict)}
    compose = yaml.safe_load((DEPLOY / "celery" / "compose.yaml").read_text())
    assert asked <= set(compose["x-environment"])
    guide = (DEPLOY / "celery" / "README.md").read_text()
    for name in ("BROKER", "BACKEND", "NO_WORKER_AFTER", "LOST_AFTER", "OUTAGE"):
        assert f"`RINGRIFT_CELERY_{name}`" in guide
    for name in asked:
        assert f"_{name.rpartition('_')[2]}`" in guide, name


def test_compose_hands_on_what_the_guide_names_and_no_other_queue() -> None:
    compose = yaml.safe_load((DEPLOY / "celery" / "compose.yaml").read_text())
    guide = (DEPLOY / "celery" / "README.md").read_text()
    named = set(re.findall(r"^\| `(RINGRIFT_(?:CELERY|BUCKET|CACHE)\w*)`", guide, re.MULTILINE))
    assert len(named) >= 6 and named <= set(compose["x-environment"])
    asked = compose["services"]["daemon"]["environment"]["RINGRIFT_GPU_QUEUE"]
    default = asked.removeprefix("${RINGRIFT_GPU_QUEUE-").removesuffix("}")
    assert set(default.split(",")) == pools.ON_THE_GPU_QUEUE


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every line that starts a worker, with where it is from."""
    compose = yaml.safe_load((DEPLOY / "celery" / "compose.yaml").read_text())
    for name, service in compose["services"].items():
        if "celery" in service.get("command", []):
            yield f"compose {name}", service["command"]
    for document in yaml.safe_load_all((DEPLOY / "k8s" / "workers.yaml").read_text()):
        (container,) = document["spec"]["template"]["spec"]["containers"]
        yield f"k8s {document['metadata']['name']}", [*container["command"], *container["args"]]
    for line in (DEPLOY / "celery" / "README.md").read_text().splitlines():
        if line.strip().startswith("celery -A"):
            yield "README", line.split()
    for queue in sorted(QUEUES):
        yield f"error {queue}", celery_settings.start_line(queue).split()


def test_every_start_line_is_for_our_queues_and_a_device_has_one_slot() -> None:
    seen: dict[str, set[str]] = {}
    for where, words in commands():
        assert words[:4] == ["celery", "-A", celery_settings.APP, "worker"], where
        queue = words[words.index("-Q") + 1]
        seen.setdefault(where.partition(" ")[0], set()).add(queue)
        if queue == pools.GPU_QUEUE:
            assert words[words.index("--concurrency") + 1] == "1", where
    assert seen == dict.fromkeys(("compose", "k8s", "README", "error"), QUEUES)


def test_the_chart_gets_a_run_queue_that_is_there() -> None:
    values = yaml.safe_load((DEPLOY / "k8s" / "values.yaml").read_text())
    given = values["dagsterDaemon"]["runCoordinator"]["config"]["customRunCoordinator"]
    made = getattr(importlib.import_module(given["module"]), given["class"])
    schema = resolve_to_config_type(made.config_type())
    assert process_config(schema, given["config"]).success  # type: ignore[arg-type]


@pytest.mark.services
def test_the_run_launcher_takes_what_the_chart_makes_of_the_values() -> None:
    launcher = pytest.importorskip("dagster_k8s", reason="dagster-k8s is not installed")
    values = yaml.safe_load((DEPLOY / "k8s" / "values.yaml").read_text())["runLauncher"]
    assert values["type"] == "K8sRunLauncher"
    given = values["config"]["k8sRunLauncher"]
    config = {
        "image_pull_policy": given["imagePullPolicy"],
        "load_incluster_config": given["loadInclusterConfig"],
        "run_k8s_config": {"container_config": given["runK8sConfig"]["containerConfig"]},
        "service_account_name": "ringrift",
        "instance_config_map": "ringrift-instance",
        "postgres_password_secret": "ringrift-postgresql",
        "dagster_home": "/opt/dagster/dagster_home",
    }
    schema = resolve_to_config_type(launcher.K8sRunLauncher.config_type())
    assert process_config(schema, config).success  # type: ignore[arg-type]
