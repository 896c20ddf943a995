"""Dagster's chart with our values, where somebody has it: ``helm pull dagster/dagster --untar``, then

pip install helm-python-sdk kubernetes-validate
DAGSTER_CHART=dagster pytest -m services tests/distributed/test_chart.py
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster._config import process_config, resolve_to_config_type
from dagster._core.instance.config import dagster_instance_config

pytestmark = pytest.mark.services

DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "k8s"


@pytest.fixture(scope="module")
def rendered() -> list[dict[str, Any]]:
    """What the chart makes of the values; it has looked at them by its own schema."""
    chart = os.environ.get("DAGSTER_CHART")
    if not chart:
        pytest.skip("DAGSTER_CHART names no folder with Dagster's chart")
    helm = pytest.importorskip("helm_python", reason="helm-python-sdk is not installed")
    values = yaml.safe_load((DEPLOY / "values.yaml").read_text())
    with helm.Chart.load(chart) as loaded:
        loaded.validate_schema(values)
        made = loaded.render(values, name="ringrift", namespace="default")
    return [
        document
        for name, text in made.items()
        if name.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document
    ]


def named(rendered: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = [one for one in rendered if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def test_kubernetes_takes_all_of_it(rendered: list[dict[str, Any]]) -> None:
    check = pytest.importorskip("kubernetes_validate", reason="it is not installed")
    workers = yaml.safe_load_all((DEPLOY / "workers.yaml").read_text())
    for document in (*rendered, *workers):
        check.validate(document, check.latest_version(), strict=True)


def test_dagster_takes_the_instance_that_it_writes(
    rendered: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_PG_PASSWORD", "secret")
    instance = named(rendered, "ConfigMap", "ringrift-dagster-instance")
    (tmp_path / "dagster.yaml").write_text(instance["data"]["dagster.yaml"])
    config, _ = dagster_instance_config(str(tmp_path))
    for name in ("run_coordinator", "run_launcher", "run_storage", "event_log_storage"):
        given = config[name]
        assert isinstance(given, dict)
        made = getattr(importlib.import_module(given["module"]), given["class"])
        schema = resolve_to_config_type(made.config_type())
        assert process_config(schema, given["config"]).success, name  # type: ignore[arg-type]
    assert config["run_coordinator"]["class"] == "GenerationsInOrder"


def test_the_guide_names_what_there_is(rendered: list[dict[str, Any]]) -> None:
    guide = (DEPLOY / "README.md").read_text()
    service = named(rendered, "Service", "ringrift-dagster-webserver")
    assert [port["port"] for port in service["spec"]["ports"]] == [3000]
    assert "port-forward service/ringrift-dagster-webserver 3000:3000" in guide
    code = named(rendered, "Deployment", "ringrift-dagster-user-deployments-ringrift")
    (container,) = code["spec"]["template"]["spec"]["containers"]
    assert container["args"][-2:] == ["-m", "ringrift_pipeline.definitions"]
    assert {"secretRef": {"name": "ringrift"}} in container["envFrom"]
