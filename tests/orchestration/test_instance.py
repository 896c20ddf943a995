"""The instance folder: its file, its lock, what a crash left in it."""

from __future__ import annotations

import contextlib
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from dagster import DagsterRunStatus
from dagster._core.test_utils import create_run_for_test

from ringrift_pipeline.orchestration import instance as instance_module
from ringrift_pipeline.orchestration import names
from ringrift_pipeline.orchestration.champion import last_reported
from ringrift_pipeline.orchestration.instance import (
    open_instance,
    own_instance,
    prepare_home,
    sweep_lost_runs,
)
from ringrift_pipeline.orchestration.instance_file import (
    LOGGING,
    STREAMS,
    TRUSTED,
    InstanceFileError,
    brought_up_to_date,
    instance_file,
    refuse_foreign_code,
)
from ringrift_pipeline.orchestration.jobs import cores
from ringrift_pipeline.orchestration.outbox import WAITING, Outbox, read_alert
from ringrift_pipeline.orchestration.places import (
    HERE,
    OWNER,
    SERVICE,
    data_folder,
    home_folder,
    progress_folder,
)
from ringrift_pipeline.orchestration.presence import present
from ringrift_pipeline.orchestration.run_order import GenerationsInOrder
from ringrift_pipeline.orchestration.services import MOST_ENDS, Service, ServiceError
from ringrift_pipeline.store import LockedError, Store
from ringrift_pipeline.store.atomic import TEMPORARY
from tests.waiting import until


def test_the_file_is_written_once_and_then_left_alone(data: Path) -> None:
    home = prepare_home(data)
    assert yaml.safe_load((home / "dagster.yaml").read_text())["telemetry"] == {"enabled": False}
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    prepare_home(data)
    assert (home / "dagster.yaml").read_text() == "telemetry: {enabled: false}\n"


def test_dagster_takes_the_file_and_parallelism_stays_within_the_cores(data: Path) -> None:
    with open_instance(data) as instance:
        assert instance.run_monitoring_enabled and instance.run_retries_enabled
        assert not instance.telemetry_enabled
        assert instance.run_retries_max_retries == 3
        assert instance.run_retries_retry_on_asset_or_op_failure is False
        runs = instance.get_concurrency_config().run_queue_config.max_concurrent_runs  # type: ignore[union-attr]
        assert 1 <= runs <= max(1, cores() // 2)
        assert instance.get_concurrency_config().pool_config.default_pool_limit == cores()
    assert str(home_folder(data)) not in instance_file()


# What earlier versions wrote, on a machine of so many cores.
EARLIER = """\
# Written once; yours to edit. Made for a machine with {cores} cores.
telemetry: {{enabled: false}}
concurrency:
  runs: {{max_concurrent_runs: {runs}}}
  pools: {{granularity: op, default_limit: {cores}}}
run_queue: {{dequeue_interval_seconds: 1}}
run_monitoring:
  enabled: true
  poll_interval_seconds: 3
  start_timeout_seconds: 60
  cancel_timeout_seconds: 15
  free_slots_after_run_end_seconds: 5  # slots leak when a run worker is killed
run_retries:
  enabled: true
  max_retries: 1
  retry_on_asset_or_op_failure: false  # a lost worker is retried, a failed step is not
nux: {{enabled: false}}
"""


def write_file(data: Path, text: str) -> Path:
    path = home_folder(data) / "dagster.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_an_earlier_versions_file_becomes_todays(data: Path) -> None:
    earlier = EARLIER.format(cores=cores(), runs=max(1, cores() // 2))
    path = write_file(data, earlier)
    with open_instance(data) as instance:  # whoever only looks changes nothing
        assert not isinstance(instance.run_coordinator, GenerationsInOrder)
    assert path.read_text() == earlier
    with own_instance(data) as instance:
        assert isinstance(instance.run_coordinator, GenerationsInOrder)
        assert instance.run_coordinator.dequeue_interval_seconds == 1
    wanted = yaml.safe_load(instance_file())
    wanted["run_retries"]["max_retries"] = 1  # a number that somebody may have chosen
    assert yaml.safe_load(path.read_text()) == wanted
    assert "# slots leak when" in path.read_text()
    assert path.with_name("dagster.yaml.before").read_text() == earlier
    now = path.read_text()
    with own_instance(data):
        assert path.read_text() == now


def test_what_people_changed_in_it_stays(data: Path) -> None:
    mine = (
        EARLIER.format(cores=8, runs=3)
        .replace("{max_concurrent_runs: 3}", "\n    max_concurrent_runs: 3\n    # Größe: not more")
        .replace("run_queue: {", "# of the office\nrun_queue: {dequeue_use_threads: true, ")
        .replace("start_timeout_seconds: 60", "start_timeout_seconds: 300  # slow disks")
        + "python_logs: {python_log_level: INFO}\n# end"
    )
    path = write_file(data, mine)
    with own_instance(data) as instance:
        queue = instance.get_concurrency_config().run_queue_config
        assert queue is not None and queue.max_concurrent_runs == 3
        assert [limit["key"] for limit in queue.tag_concurrency_limits] == ["ringrift/in_order"]
        coordinator = instance.run_coordinator
        assert isinstance(coordinator, GenerationsInOrder) and coordinator.dequeue_use_threads
        assert instance.run_monitoring_start_timeout_seconds == 300
        assert instance.python_log_level == "INFO"
    now = path.read_text(encoding="utf-8")
    for said in ("# of the office", "# Größe: not more", "# slow disks", "# end"):
        assert said in now


def test_limits_that_people_gave_the_queue_count_beside_ours(data: Path) -> None:
    theirs = {"key": "big", "limit": 2}
    queue = {"max_concurrent_runs": 5, "tag_concurrency_limits": [theirs]}
    write_file(data, yaml.safe_dump({"run_queue": queue}, default_flow_style=True))
    with own_instance(data) as instance:
        found = instance.get_concurrency_config().run_queue_config
        assert found is not None and found.max_concurrent_runs == 5
        assert [limit["key"] for limit in found.tag_concurrency_limits] == [
            "big",
            "ringrift/in_order",
        ]


@pytest.mark.parametrize(
    "text",
    [
        "telemetry: {enabled: false}\n",
        "run_queue: {}\nrun_coordinator: {module: mine, class: Mine}\n",
        "run_queue: [1]\n",
        "run_queue: {}\nconcurrency: 3\n",
        "run_queue: {}\nconcurrency: {runs: 3}\n",
        "run_queue: {",
        "- run_queue\n",
        "",
    ],
)
def test_what_is_none_of_ours_is_left(text: str) -> None:
    assert brought_up_to_date(text) is None


def test_what_is_up_to_date_is_left() -> None:
    assert brought_up_to_date(instance_file()) is None


FOREIGN = {
    "a coordinator": "run_coordinator: {module: data.evil, class: X}",
    "a launcher": "run_launcher: {custom: {module: evil, class: X}}",
    "as if ours": "run_launcher: {module: ringrift_pipeline_evil, class: X}",
    "a log handler": "python_logs: {dagster_handler_config: {handlers: {h: {class: evil.H}}}}",
    "a factory": "python_logs: {dagster_handler_config: {handlers: {h: {(): evil.make}}}}",
    "a stream": "python_logs: {dagster_handler_config: {handlers: {h: {stream: 'ext://evil.x'}}}}",
    "in a list": "x: [{module: evil}]",
    "a package called like one of Dagster's": "run_launcher: {module: dagster_evil, class: X}",
    "through a module of logging's": "python_logs: {h: {(): logging.os.system, command: 'touch x'}}",
    "any function of logging's": "python_logs: {h: {(): logging.FileHandler, filename: x}}",
    "a log to any file": "python_logs: {h: {class: logging.FileHandler, filename: evil.pth}}",
    "a log to any host": "python_logs: {h: {class: logging.handlers.HTTPHandler, host: evil}}",
    "a stream that is none": "python_logs: {h: {stream: 'ext://logging.StreamHandler'}}",
    "a class that is none": "python_logs: {h: {class: 'ext://sys.stdout'}}",
    "one of Dagster's that reads .env": "secrets: {custom: {module: dagster._core.secrets.env_file, "
    "class: EnvFileLoader, config: {base_dir: .}}}",
    "one of Dagster's that imports others": "storage: {custom: {module: dagster._core.storage."
    "legacy_storage, class: CompositeStorage, config: {run_storage: {module_name: evil}}}}",
    "one of Dagster's that runs commands": "run_launcher: {module: dagster_k8s, class: "
    "K8sRunLauncher, config: {kubeconfig_file: evil}}",
    "one that starts containers": "run_launcher: {module: dagster_docker, class: DockerRunLauncher}",
    "another class of a module that is known": "run_launcher: {module: dagster, class: OpDefinition}",
    "no class": "run_launcher: {module: dagster}",
    "any of ours": "run_launcher: {module: ringrift_pipeline.__main__, class: main}",
    "by an anchor": "a: &a {h: {class: evil.H}}\npython_logs: *a",
    "no date": "a: 2026-13-45",
    "no time": "a: !!timestamp x",
    "half": "{",
    "too deep": "[" * 100_000,
    "no UTF-8": "# \xe9",
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_file_that_names_foreign_code_is_refused(
    data: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster would import it, from the current folder too: a data root that somebody has sent."""
    (data / "evil").mkdir(parents=True)
    (data / "evil" / "__init__.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(str(data))
    (prepare_home(data) / "dagster.yaml").write_text(FOREIGN[what] + "\n", encoding="latin-1")
    with pytest.raises(InstanceFileError, match=r"^dagster.yaml"), open_instance(data):
        pass
    assert "evil" not in sys.modules


SERVICES = {
    "daemon": ("run", "-m", names.MODULE),
    "code-server": ("api", "grpc", "--socket", "{socket}", "-m", names.MODULE),
    "webserver": ("-m", names.MODULE, "--host", "127.0.0.1", "--port", "3999"),
}


@pytest.mark.parametrize("kind", SERVICES)
def test_no_service_starts_on_such_a_file(
    data: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reads it again, and whenever one is started again: it may have been fine before."""
    write_file(data, "storage: {custom: {module: evil, class: X}}")
    ran = data / "ran"
    (data / "evil.py").write_text(f"open({str(ran)!r}, 'w')")
    monkeypatch.setenv("PYTHONPATH", str(data), prepend=os.pathsep)
    arguments = [part.format(socket=tmp_path / "socket") for part in SERVICES[kind]]
    service = Service(data, kind, *arguments)
    try:
        until(lambda: service.has_ended or ran.exists(), "it has ended")
        assert not ran.exists()
        assert "InstanceFileError: dagster.yaml: storage.custom names" in service.last_lines()[-1]
    finally:
        service.stop()


def test_a_file_that_dagster_would_not_find_is_refused(tmp_path: Path) -> None:
    """It looks by a pattern: for ``sent[1]`` it would take what is in ``sent1``."""
    home = home_folder(tmp_path / "sent[1]")
    with pytest.raises(InstanceFileError, match=r"sent\[1\](.|\n)*rename the folder"):
        prepare_home(home.parent)


def test_code_of_ones_own_is_named_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "run_launcher: {module: company.launching, class: X}"
    with pytest.raises(InstanceFileError, match="run_launcher names 'company.launching.X'"):
        refuse_foreign_code(text)
    monkeypatch.setenv("RINGRIFT_INSTANCE_MODULES", "other, company")
    refuse_foreign_code(text)


def test_what_could_write_or_start_anything_is_named_there_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RINGRIFT_INSTANCE_MODULES", "dagster_k8s,logging.FileHandler")
    refuse_foreign_code("run_launcher: {module: dagster_k8s, class: K8sRunLauncher}")
    handlers = "python_logs: {{dagster_handler_config: {{handlers: {{h: {{class: {} }}}}}}}}"
    refuse_foreign_code(handlers.format("logging.FileHandler"))
    with pytest.raises(InstanceFileError, match="RINGRIFT_INSTANCE_MODULES=logging.handlers.Sys"):
        refuse_foreign_code(handlers.format("logging.handlers.SysLogHandler"))


@pytest.mark.parametrize(
    "text",
    [
        instance_file(),
        (Path(__file__).parents[2] / "deploy" / "celery" / "dagster.yaml").read_text(),
        "storage: {postgres: {postgres_url: {env: URL}}}",
        "run_coordinator: {module: dagster.core.run_coordinator, class: QueuedRunCoordinator}",
        "compute_logs: {module: dagster_aws.s3, class: S3ComputeLogManager, config: {bucket: b}}",
        "python_logs: {dagster_handler_config: {handlers: {h: {class: logging.StreamHandler}}}}",
        "python_logs: {dagster_handler_config: {handlers: {h: {stream: 'ext://sys.stdout'}}}}",
        "a: &a [*a]",
    ],
)
def test_what_is_dagsters_or_ours_is_not_refused(text: str) -> None:
    refuse_foreign_code(text)


@pytest.mark.parametrize("name", sorted(TRUSTED | LOGGING | STREAMS))
def test_what_any_file_may_name_is_there(name: str) -> None:
    package = name.partition(".")[0]
    pytest.importorskip("dagster_postgres" if "postgres" in name else package)
    assert pkgutil.resolve_name(name)


def test_the_owner_limits_the_pool(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGRIFT_POOL", "cpu")
    with own_instance(data) as instance:
        limits = {limit.name: limit.limit for limit in instance.event_log_storage.get_pool_limits()}
    assert limits == {"cpu": cores()}


HOLDER = """
import sys
from pathlib import Path
from ringrift_pipeline.orchestration.instance import own_instance
with own_instance(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_daemon_is_refused(data: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", HOLDER, str(data)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout and holder.stdin
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LockedError, match=str(holder.pid)), own_instance(data):
            pass
    finally:
        holder.stdin.close()
        holder.stdout.close()
        holder.wait(timeout=60)
    with own_instance(data):
        pass


ORPHAN = """
import sys
from ringrift_pipeline.orchestration.presence import announce
announce("code-server", [])
print("up", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def orphan(data: Path, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """A code server, by what it says of itself, whose owner is gone; it ends when its input does."""
    process = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "RINGRIFT_DATA": str(data)},
        start_new_session=True,
    )
    assert process.stdout and process.stdin
    try:
        assert process.stdout.readline() == b"up\n"
        yield process
    finally:
        process.kill()
        process.stdin.close()
        process.stdout.close()
        process.wait(timeout=60)


def test_the_services_of_a_killed_owner_are_outlived(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with orphan(data) as process:
        with monkeypatch.context() as patch:
            patch.setattr(instance_module, "ORPHANS", 0.3)
            patch.setattr(instance_module, "KILLED", 0.3)
            with pytest.raises(LockedError, match=f"process {process.pid} "), own_instance(data):
                pass
        assert process.stdin is not None
        threading.Timer(0.5, process.stdin.close).start()
        with own_instance(data):
            assert present(data) == []


def test_a_service_of_a_killed_owner_that_hangs_is_killed(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with orphan(data, SERVICE) as process:
        os.kill(process.pid, signal.SIGSTOP)
        monkeypatch.setattr(instance_module, "ORPHANS", 0.3)
        with own_instance(data):
            assert present(data) == []
        assert process.wait(timeout=60) == -signal.SIGKILL


def test_a_service_whose_owner_is_gone_before_it_can_look_ends(data: Path) -> None:
    owner = subprocess.Popen(["true"])
    owner.wait()
    with socket.create_server((HERE, 0)) as listening:
        place = ("--host", HERE, "--port", "0", "--socket", str(listening.fileno()))
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", SERVICE, "play", *place],
            env={**os.environ, "RINGRIFT_DATA": str(data), OWNER: str(owner.pid)},
            pass_fds=(listening.fileno(),),
            start_new_session=True,
        )
        try:
            process.wait(timeout=60)  # asked to, or killed where it takes long to load
        finally:
            process.kill()


def test_lost_runs_are_reported_at_the_start(data: Path) -> None:
    with open_instance(data) as instance:
        lost = [
            create_run_for_test(instance, status=status).run_id
            for status in (DagsterRunStatus.STARTED, DagsterRunStatus.STARTING)
        ]
        cancelling = create_run_for_test(instance, status=DagsterRunStatus.CANCELING).run_id
        done = create_run_for_test(instance, status=DagsterRunStatus.SUCCESS).run_id
        assert set(sweep_lost_runs(instance)) == {*lost, cancelling}

        def status(run_id: str) -> DagsterRunStatus:
            run = instance.get_run_by_id(run_id)
            assert run is not None
            return run.status

        assert {status(run_id) for run_id in lost} == {DagsterRunStatus.FAILURE}
        assert status(cancelling) == DagsterRunStatus.CANCELED
        assert status(done) == DagsterRunStatus.SUCCESS
        assert sweep_lost_runs(instance) == []


def test_the_owner_begins_by_tidying_up(data: Path) -> None:
    store = Store(data)
    with open_instance(data) as instance:
        lost = create_run_for_test(instance, status=DagsterRunStatus.STARTED).run_id
        half = data / "hex8_2p" / f"{TEMPORARY}1-aa"
        half.mkdir(parents=True)
        (progress_folder(data, lost)).mkdir(parents=True)
        store.write_plan("hex8_2p", 0, {})
    with own_instance(data) as instance:
        run = instance.get_run_by_id(lost)
        assert run is not None and run.status == DagsterRunStatus.FAILURE
        assert not half.exists() and not progress_folder(data).exists()
        assert instance.get_dynamic_partitions("hex8_2p_generation") == ["0000", "0001"]


def test_one_configs_damaged_champion_keeps_no_other_from_starting(data: Path) -> None:
    store = Store(data)
    for config in ("square8_2p", "hex8_3p"):
        with store.create(config, 0, "ema_model") as draft:
            (draft / "model.json").write_text(config)
        store.promote(config, 0, draft.artefact, {})
    for name in ("champion.json", "champions.jsonl"):
        path = data / "square8_2p" / name
        path.write_bytes(path.read_bytes().replace(b"ema", b"emb"))
    waiting = Outbox(store).folder / WAITING
    for _ in range(2):  # told once, however often it starts
        with own_instance(data) as instance:
            assert last_reported(instance, "square8_2p") is None
            assert last_reported(instance, "hex8_3p") == draft.artefact.digest
        (alert,) = map(read_alert, waiting.glob("*.json"))
        assert (alert.kind, alert.config) == ("damaged", "square8_2p")
        assert "champion.json is corrupt" in alert.text and "What to do: " in alert.text


def test_where_the_data_root_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RINGRIFT_DATA", raising=False)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert data_folder() == tmp_path / "data"
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "there" / "dagster"))
    assert data_folder() == tmp_path / "there"
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "somebody-elses"))
    assert data_folder() == tmp_path / "data"
    monkeypatch.setenv("RINGRIFT_DATA", str(tmp_path / "set"))
    assert data_folder() == tmp_path / "set"
    assert data_folder(tmp_path / "given") == tmp_path / "given"


def test_a_service_is_started_again_unless_it_ends_again_and_again(tmp_path: Path) -> None:
    service = Service(tmp_path, "nonsense")  # which ends as soon as it has begun
    begun = {service.pid}
    with pytest.raises(ServiceError, match="ended with code 1"):
        ended(service)
        service.check()
    service.again = True
    with pytest.raises(ServiceError, match="no service is called 'nonsense'"):
        while len(begun) < 20:
            ended(service)
            service.check()
            begun.add(service.pid)
    assert len(begun) == MOST_ENDS - 1
    assert service.log.read_text().count("is started again") == MOST_ENDS - 2


def test_a_service_that_is_killed_while_it_starts_is_started_again(tmp_path: Path) -> None:
    service = Service(tmp_path, "nonsense")
    first = service.pid
    service.kill()
    ended(service)
    service.check()
    assert service.pid != first
    with pytest.raises(ServiceError, match="ended with code 1"):
        ended(service)
        service.check()


def ended(service: Service) -> None:
    deadline = time.monotonic() + 120
    while service._process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
