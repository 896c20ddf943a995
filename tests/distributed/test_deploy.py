"""The files of ``deploy/``: that they fit what they are for, as far as that can be seen without it."""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from dagster import DagsterInstance
from dagster._config import process_config, resolve_to_config_type
from dagster._core.instance.config import dagster_instance_config

from ringrift_pipeline.enhancements import TrainingConfig
from ringrift_pipeline.orchestration import celery_settings, pools
from tests.waiting import until

from .cluster import ROOT, free_port

DEPLOY = ROOT / "deploy"
GUIDE = (DEPLOY / "celery" / "README.md").read_text()
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


def mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping of a YAML file, those in lists too."""
    if isinstance(value, dict):
        yield value
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from mappings(inner)


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "celery" / "compose.yaml").read_text())
    return found


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


@pytest.mark.parametrize(
    "path", sorted((DEPLOY / "k8s").glob("*.yaml")), ids=lambda path: path.name
)
def test_kubernetes_is_told_where_a_secret_is_and_never_what(path: Path) -> None:
    """In a list of variables a secret's name is no key but a value itself."""
    secret = re.compile(r"(?i)password|secret|token|broker|backend|access_key")
    for variable in mappings(list(yaml.safe_load_all(path.read_text()))):
        if secret.search(str(variable.get("name", ""))) and (
            {"value", "valueFrom"} & set(variable)
        ):
            assert "value" not in variable and "secretKeyRef" in variable["valueFrom"], variable
        if isinstance(plain := variable.get("env"), dict):
            assert not [name for name in plain if secret.search(name)]


def test_dagster_takes_the_instance_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (DEPLOY / "celery" / "dagster.yaml").read_text()
    (tmp_path / "dagster.yaml").write_text(text)
    config, _ = dagster_instance_config(str(tmp_path))  # raises for what it does not know
    database = config["storage"]["custom"]["config"]["postgres_db"]
    asked = {value["env"] for value in database.values() if isinstance(value, dict)}
    file = compose()
    assert asked <= set(file["x-environment"])
    for name in ("BROKER", "BACKEND", "NO_WORKER_AFTER", "LOST_AFTER", "OUTAGE"):
        assert f"`RINGRIFT_CELERY_{name}`" in GUIDE
    for name in asked:
        assert f"_{name.rpartition('_')[2]}`" in GUIDE, name


def test_compose_hands_on_what_the_guide_names_and_no_other_queue() -> None:
    file = compose()
    named = set(re.findall(r"^\| `(RINGRIFT_(?:CELERY|BUCKET|CACHE)\w*)`", GUIDE, re.MULTILINE))
    assert len(named) >= 6 and named <= set(file["x-environment"])
    asked = file["services"]["daemon"]["environment"]["RINGRIFT_GPU_QUEUE"]
    default = asked.removeprefix("${RINGRIFT_GPU_QUEUE-").removesuffix("}")
    assert set(default.split(",")) == pools.ON_THE_GPU_QUEUE


# What the package is told by the environment and no container needs: the image says it, it is about the
# pools of a single machine, or between two processes of one.
NOT_FOR_CONTAINERS = {
    "RINGRIFT_DATA",
    "RINGRIFT_KERNEL_CACHE",
    "RINGRIFT_POOL",
    "RINGRIFT_GPU_STEPS",
    "RINGRIFT_OWNER",
    "RINGRIFT_UI_TOKEN",
}


def test_what_the_package_reads_arrives_in_the_containers() -> None:
    text = (DEPLOY / "celery" / "compose.yaml").read_text()
    file = yaml.safe_load(text)
    ours = {
        name: service
        for name, service in file["services"].items()
        if "ringrift" in service["image"].lower()
    }
    assert set(ours) == {"daemon", "selfplay", "gpu"}
    modules = (ROOT / "ringrift_pipeline").rglob("*.py")
    read = set(re.findall(r'"(RINGRIFT_[A-Z_]+)"', "".join(path.read_text() for path in modules)))
    settings = {f"RINGRIFT_{name.upper()}" for name in TrainingConfig().to_dict()}
    assert "RINGRIFT_BUCKET" in read and read >= NOT_FOR_CONTAINERS
    assert read - NOT_FOR_CONTAINERS - settings <= set(ours["daemon"]["environment"])
    asked = set(re.findall(r"\$\{(\w+)", text))
    TrainingConfig.load(environ=dict.fromkeys(asked, "1"))  # none is taken for a setting
    for name in asked | set(file["x-environment"]):
        assert name in GUIDE or name.startswith("RINGRIFT_POSTGRES_"), name
    for service in ours.values():
        assert service["env_file"] == [{"path": ".env", "required": False}]  # settings, any of them
        # An empty bundle would be no check of certificates, or an error: not there where it is not set.
        assert service["environment"]["AWS_CA_BUNDLE"] is None
        assert service["environment"]["AWS_SESSION_TOKEN"] is None


def line_of(service: str, places: dict[str, Path] | None = None) -> list[str]:
    """What compose starts a service with, its folders put elsewhere."""
    shell, option, script = compose()["services"][service]["command"]
    script = script.replace("$$", "$")
    for folder, place in (places or {}).items():
        script = script.replace(folder, f"{place}/")
    return [shell, option, script]


def stand_in(folder: Path, program: str, more: str = "") -> dict[str, str]:
    """An environment in which ``program`` notes what it is started with, then does ``more``."""
    path = folder / program
    path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >"{folder}/arguments"\n{more}\n')
    path.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


def test_compose_writes_the_instance_file_once(tmp_path: Path) -> None:
    environment = stand_in(tmp_path, "ringrift")
    data, written = tmp_path / "data", (DEPLOY / "celery" / "dagster.yaml").read_text()
    line = line_of("daemon", {"/data/": data, "/opt/ringrift/": DEPLOY / "celery"})
    for text in (written, "mine\n"):
        subprocess.run(line, env=environment, check=True)
        assert (tmp_path / "arguments").read_text().split()[0] == "ui"
        assert (data / "dagster" / "dagster.yaml").read_text() == text
        (data / "dagster" / "dagster.yaml").write_text("mine\n")


@pytest.mark.services
def test_redis_is_told_its_password_where_nobody_else_reads_it(tmp_path: Path) -> None:
    import redis

    port, password = free_port(), "abc123"
    real = f'exec {shutil.which("redis-server")} --port {port} --bind 127.0.0.1 "$@"'
    environment = {**stand_in(tmp_path, "redis-server", real), "REDIS_PASSWORD": password}
    line = line_of("redis")
    assert password not in "".join(line)
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(line, env=environment, cwd=tmp_path, stdout=log, stderr=log)

    def answers() -> bool:
        assert process.poll() is None, (tmp_path / "log").read_text()
        try:
            return bool(redis.Redis("127.0.0.1", port, password=password).ping())
        except redis.ConnectionError:
            return False

    try:
        until(answers, "Redis answers")
        with pytest.raises(redis.AuthenticationError):
            redis.Redis("127.0.0.1", port).ping()
        client = redis.Redis("127.0.0.1", port, password=password, decode_responses=True)
        assert client.config_get("appendonly") == {"appendonly": "yes"}
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / "arguments").read_text() == "-\n"


Line = tuple[dict[str, str], list[str]]  # what starts a worker: more of its environment, the words


def shell_line(text: str) -> Line:
    words = shlex.split(text)
    begin = words.index("celery")
    return dict(word.split("=", 1) for word in words[:begin]), words[begin:]


def start_lines() -> dict[str, dict[str, Line]]:
    """Every line that starts a worker: by queue, then by where it is from."""
    found: dict[str, dict[str, Line]] = {queue: {} for queue in QUEUES}

    def note(where: str, line: Line) -> None:
        queue = line[1][line[1].index("-Q") + 1]
        assert where not in found[queue]
        found[queue][where] = line

    for service in compose()["services"].values():
        if "celery" in service.get("command", []):
            note("compose", (service["environment"], service["command"]))
    for document in workers():
        (container,) = document["spec"]["template"]["spec"]["containers"]
        told = {one["name"]: one.get("value", "") for one in container["env"]}
        note("k8s", (told, [*container["command"], *container["args"]]))
    for line in GUIDE.splitlines():
        if "celery -A" in line:
            note("guide", shell_line(line))
    for queue in sorted(QUEUES):
        note("error", shell_line(celery_settings.start_line(queue)))
    return found


def test_a_worker_is_started_with_the_same_line_everywhere() -> None:
    """But for the number of slots, where a queue is worked on by more than one."""
    for queue, lines in start_lines().items():
        assert set(lines) == {"compose", "k8s", "guide", "error"}
        assert lines["guide"] == lines["error"]
        threads = {where: told.get("OMP_NUM_THREADS") for where, (told, _) in lines.items()}
        assert set(threads.values()) == {None if queue == pools.GPU_QUEUE else "1"}, threads
        for where, (_, words) in lines.items():
            slots = words.index("--concurrency") + 1
            if queue == pools.GPU_QUEUE:
                assert words[slots] == "1", where  # a device has one
            said = [*words[:slots], *words[slots + 1 :]]
            options = ["-Q", queue, "--concurrency", "-n", f"{queue}@%h"]
            assert said == ["celery", "-A", celery_settings.APP, "worker", *options], where


def test_workers_are_given_the_same_time_to_end_everywhere() -> None:
    services = compose()["services"]
    for document, name in zip(workers(), ("selfplay", "gpu"), strict=True):
        seconds = document["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        assert document["metadata"]["labels"]["queue"] == name
        assert services[name]["stop_grace_period"] == f"{seconds}s" == "600s"
    assert "give it ten minutes" in GUIDE
    told = (ROOT / "docs" / "reliability.md").read_text()
    (longest,) = re.findall(r"^\| `loop`, `ui` \|.* (\d+) s if every part", told, re.MULTILINE)
    assert services["daemon"]["stop_grace_period"] == f"{longest}s"
    assert f"compose gives it {longest} s" in GUIDE


def test_the_chart_asks_the_web_server_where_it_listens() -> None:
    """Its own probe asks at port 80, whatever the service's is: the UI would never be ready."""
    values = yaml.safe_load((DEPLOY / "k8s" / "values.yaml").read_text())["dagsterWebserver"]
    probe = values["readinessProbe"]["httpGet"]
    assert probe == {"path": "/server_info", "port": values["service"]["port"]}


def test_the_guide_of_kubernetes_names_what_the_files_make() -> None:
    guide = (DEPLOY / "k8s" / "README.md").read_text()
    values = yaml.safe_load((DEPLOY / "k8s" / "values.yaml").read_text())
    (release,) = re.findall(r"helm install (\S+) dagster/dagster", guide)
    (port,) = re.findall(rf"port-forward service/{release}-dagster-webserver 3000:(\d+)", guide)
    assert int(port) == values["dagsterWebserver"]["service"]["port"]
    made = {document["metadata"]["name"] for document in workers()}
    assert set(re.findall(r"deployment/(\S+)", guide)) <= made


def test_the_variables_of_the_charts_services_are_no_settings() -> None:
    """Kubernetes puts them into every container, and the services' names begin as ours do."""
    services = {"RINGRIFT": "3030", "RINGRIFT_DAGSTER_WEBSERVER": "3000"}
    told = {}
    for name, port in services.items():
        base = f"{name}_PORT_{port}_TCP"
        told |= {
            f"{name}_SERVICE_{end}": "10.0.0.1"
            for end in ("HOST", "PORT", "PORT_HTTP", "PORT_GRPC")
        }
        told |= {f"{name}_PORT": "tcp://10.0.0.1", base: "tcp://10.0.0.1"}
        told |= {f"{base}_{end}": "tcp" for end in ("PROTO", "PORT", "ADDR")}
    assert TrainingConfig.load(environ=told) == TrainingConfig()


def test_the_chart_gets_a_run_queue_that_is_there() -> None:
    values = yaml.safe_load((DEPLOY / "k8s" / "values.yaml").read_text())
    given = values["dagsterDaemon"]["runCoordinator"]["config"]["customRunCoordinator"]
    made = getattr(importlib.import_module(given["module"]), given["class"])
    schema = resolve_to_config_type(made.config_type())
    assert process_config(schema, given["config"]).success  # type: ignore[arg-type]


PLAIN = {"str": str, "int": int, "bool": bool, "float": (int, float), "object": object}


def strangers(given: Any, kind: str, where: str) -> Iterator[str]:
    """What of a manifest the model ``kind`` of Kubernetes has no field for, or one of another type."""
    models = importlib.import_module("kubernetes.client.models")
    inner = re.fullmatch(r"(list|dict)\[(?:str, )?(.+)\]", kind)
    model = getattr(models, kind, None)
    wanted = {"list": list, "dict": dict}[inner[1]] if inner else dict if model else PLAIN[kind]
    if not isinstance(given, wanted):
        yield f"{where} is {given!r}, not {kind}"
    elif inner:
        items = given.items() if wanted is dict else enumerate(given)
        for name, value in items:
            yield from strangers(value, inner[2], f"{where}.{name}")
    elif model:
        fields = {model.attribute_map[name]: inside for name, inside in model.openapi_types.items()}
        for name, value in given.items():
            if name in fields:
                yield from strangers(value, fields[name], f"{where}.{name}")
            else:
                yield f"{where}.{name} is no field of {kind}"


def workers() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "k8s" / "workers.yaml").read_text()))


def deployment(document: dict[str, Any]) -> Any:
    """As Kubernetes' client reads it. Raises ValueError for a field that must be there and is not."""
    client = pytest.importorskip("kubernetes.client", reason="dagster-k8s is not installed")
    answer = SimpleNamespace(data=json.dumps(document))
    return client.ApiClient().deserialize(answer, "V1Deployment")


@pytest.mark.services
def test_kubernetes_knows_all_that_is_said_of_the_workers() -> None:
    for document in workers():
        assert (document["apiVersion"], document["kind"]) == ("apps/v1", "Deployment")
        spec = deployment(document).spec
        assert list(strangers(document, "V1Deployment", "it")) == []
        assert spec.selector.match_labels.items() <= spec.template.metadata.labels.items()
        (container,) = spec.template.spec.containers
        mounted = {mount.name for mount in container.volume_mounts}
        assert mounted == {volume.name for volume in spec.template.spec.volumes}


@pytest.mark.services
def test_a_slip_in_the_workers_would_be_found() -> None:
    document = workers()[0]
    deployment(document)
    wrong = copy.deepcopy(document)
    del wrong["spec"]["selector"]
    with pytest.raises(ValueError, match="selector"):
        deployment(wrong)
    wrong["spec"]["replicas"] = "8"
    (container,) = wrong["spec"]["template"]["spec"]["containers"]
    container["envfrom"] = container.pop("envFrom")
    container["env"][0]["value"] = 12
    container["command"] = "celery"
    assert set(strangers(wrong, "V1Deployment", "it")) == {
        "it.spec.replicas is '8', not int",
        "it.spec.template.spec.containers.0.envfrom is no field of V1Container",
        "it.spec.template.spec.containers.0.env.0.value is 12, not str",
        "it.spec.template.spec.containers.0.command is 'celery', not list[str]",
    }


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


def test_workers_have_the_token_that_the_run_launcher_wants() -> None:
    """Else every step would fail where the service account has none mounted."""
    values = yaml.safe_load((DEPLOY / "k8s" / "values.yaml").read_text())["dagsterDaemon"]
    assert values["runMonitoring"]["maxResumeRunAttempts"]  # with 0 nobody makes the launcher
    for document in workers():
        assert document["spec"]["template"]["spec"]["automountServiceAccountToken"] is True
    assert "automountServiceAccountToken" in (DEPLOY / "k8s" / "README.md").read_text()


@pytest.mark.services
@pytest.mark.parametrize("attempts", [0, 3])
def test_dagster_makes_the_run_launcher_wherever_runs_are_resumed(
    attempts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dagster_k8s", reason="dagster-k8s is not installed")
    config = importlib.import_module("kubernetes.config")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    launcher = {
        "service_account_name": "ringrift",
        "instance_config_map": "ringrift-instance",
        "dagster_home": str(tmp_path),
    }
    told = {
        "run_launcher": {
            "module": "dagster_k8s",
            "class": "K8sRunLauncher",
            "config": launcher,
        },
        "run_monitoring": {"enabled": True, "max_resume_run_attempts": attempts},
        "telemetry": {"enabled": False},
    }
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(told))
    opened = contextlib.ExitStack()
    if attempts:
        opened.enter_context(pytest.raises(config.ConfigException))
    with opened, DagsterInstance.from_config(str(tmp_path)):
        pass
