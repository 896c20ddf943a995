"""What several machines need of this package, without any of their servers: choices, refusals, locks."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dagster import AssetsDefinition, DagsterEvent, DagsterEventType, DagsterInstance
from dagster._core.execution.plan.objects import StepFailureData, StepRetryData
from dagster._core.test_utils import create_run_for_test
from dagster._utils.error import SerializableErrorInfo

from ringrift_pipeline.orchestration import celery_settings, one_daemon, pools, remote, watchdog
from ringrift_pipeline.orchestration.assets import family
from ringrift_pipeline.orchestration.build import build_definitions
from ringrift_pipeline.orchestration.celery_requests import Requests, UnansweredError
from ringrift_pipeline.orchestration.celery_settings import (
    CelerySettings,
    CelerySettingsError,
    OtherBucketError,
    WorkerVersionError,
    refuse_other_versions,
    refuse_others,
    start_line,
    terms,
    versions,
)
from ringrift_pipeline.orchestration.jobs import executor
from ringrift_pipeline.orchestration.names import ASSETS, CHAMPION, CONFIGS, node_name
from ringrift_pipeline.orchestration.progress import (
    ProgressFile,
    forget_progress,
    note_progress,
    read_progress,
)

CONFIG = "hex8_2p"
LOST = SerializableErrorInfo("lost", [], None)


@pytest.fixture
def celery(monkeypatch: pytest.MonkeyPatch) -> None:
    """``RINGRIFT_EXECUTOR=celery``, with or without the packages."""
    for name in ("RINGRIFT_POOL", "RINGRIFT_DEVICE", "RINGRIFT_GPU_QUEUE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RINGRIFT_EXECUTOR", "celery")
    monkeypatch.setattr(pools.importlib.util, "find_spec", lambda _: object())


def queues() -> dict[str, str | None]:
    """The queue of every step of a config's assets; none may have a pool, which Celery knows not."""
    found = {}
    for made in family(CONFIG):
        if isinstance(made, AssetsDefinition):
            for op in made.node_def.iterate_op_defs():
                assert op.pool is None and pools.POOL_TAG not in op.tags
                found[op.name] = op.tags.get(pools.QUEUE_TAG)
    return found


def test_games_are_for_the_processors_and_models_for_the_devices(celery: None) -> None:
    found = queues()
    gpu = {name for name, queue in found.items() if queue == "gpu"}
    trained = ("hard_examples", "checkpoint", "ema_model", "ensemble", "calibration_report")
    assert gpu == {node_name(CONFIG, name) for name in trained}
    assert {queue for name, queue in found.items() if name not in gpu} == {"selfplay"}
    assert found[f"{CONFIG}_play"] == found[node_name(CONFIG, "evaluation")] == "selfplay"
    assert {node_name(CONFIG, name) for name in ASSETS[1:]} <= set(found)
    assert pools.limits() == {} and pools.limits_in_a_run() == []
    assert executor().name == "celery"


def test_what_goes_to_the_devices_can_be_said(
    celery: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RINGRIFT_GPU_QUEUE", "checkpoint, evaluation")
    gpu = {name for name, queue in queues().items() if queue == "gpu"}
    assert gpu == {node_name(CONFIG, "checkpoint"), node_name(CONFIG, "evaluation")}
    monkeypatch.setenv("RINGRIFT_GPU_QUEUE", "chekpoint")
    with pytest.raises(pools.PoolError, match="names chekpoint: choose from .*checkpoint"):
        pools.queue_of("checkpoint")


@pytest.mark.parametrize(("gpu", "configs"), [(None, CONFIGS), ("evaluation, gauntlet", (CONFIG,))])
def test_checks_are_made_where_what_they_check_was(
    celery: None, monkeypatch: pytest.MonkeyPatch, gpu: str | None, configs: tuple[str, ...]
) -> None:
    """It was made of files that are there and perhaps nowhere else: a worker's own cache."""
    if gpu is not None:
        monkeypatch.setenv("RINGRIFT_GPU_QUEUE", gpu)
    defs = build_definitions(configs)
    made, checked = {}, {}
    for assets in defs.assets or ():
        if isinstance(assets, AssetsDefinition):
            (queue,) = {op.tags.get(pools.QUEUE_TAG) for op in assets.node_def.iterate_op_defs()}
            made |= dict.fromkeys(assets.keys, queue)
    for checks in defs.asset_checks or ():
        (queue,) = {op.tags.get(pools.QUEUE_TAG) for op in checks.node_def.iterate_op_defs()}
        checked |= dict.fromkeys(checks.check_keys, queue)
    elsewhere = {
        f"{check.asset_key.to_user_string()}: {check.name}": queue
        for check, queue in checked.items()
        if queue != made.get(check.asset_key, queue)
    }
    assert not elsewhere
    kinds = {check.asset_key.path[-1]: queue for check, queue in checked.items()}
    assert {*ASSETS, CHAMPION, "retention"} == set(kinds)
    on_devices = {"evaluation"} if gpu else {*kinds} & pools.ON_THE_GPU_QUEUE
    assert {name for name, queue in kinds.items() if queue == "gpu"} == on_devices


def test_without_it_everything_is_as_on_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RINGRIFT_EXECUTOR", raising=False)
    for made in family(CONFIG):
        if isinstance(made, AssetsDefinition):
            assert all(pools.QUEUE_TAG not in op.tags for op in made.node_def.iterate_op_defs())
    assert executor().name == "multiprocess"


def test_an_executor_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGRIFT_EXECUTOR", "ray")
    with pytest.raises(pools.PoolError, match="RINGRIFT_EXECUTOR is 'ray': set it to local or"):
        executor()


def test_what_celery_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGRIFT_EXECUTOR", "celery")
    monkeypatch.setattr(pools.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(pools.PoolError, match=r"pip install 'ringrift-pipeline\[celery\]'"):
        executor()


LOADS_NOTHING = """
import sys
import ringrift_pipeline.definitions
import ringrift_pipeline.orchestration.celery_executor
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"celery", "kombu", "redis", "dagster_celery", "dagster_postgres", "psycopg2"}
"""


def test_nothing_of_celerys_is_loaded_where_it_is_not_used() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", LOADS_NOTHING], check=True)


# --- settings and versions ----------------------------------------------------------------------


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGRIFT_CELERY_BROKER", "redis://:secret@keeper:6380/2")
    monkeypatch.delenv("RINGRIFT_CELERY_BACKEND", raising=False)
    monkeypatch.setenv("RINGRIFT_CELERY_LOST_AFTER", "90")
    settings = CelerySettings.from_environment()
    assert settings.backend == settings.broker and settings.lost_after == 90.0
    assert settings.place == "keeper:6380"
    monkeypatch.delenv("RINGRIFT_CELERY_BROKER")
    with pytest.raises(CelerySettingsError, match="RINGRIFT_CELERY_BROKER is not set"):
        CelerySettings.from_environment()


@pytest.mark.parametrize(
    ("address", "asked"),
    [
        ("redis://:s@keeper/0", "redis://:s@keeper/0"),
        ("rediss://:s@keeper:6380/0", "rediss://:s@keeper:6380/0?ssl_cert_reqs=CERT_REQUIRED"),
        (
            "rediss://keeper?ssl_ca_certs=/ca",
            "rediss://keeper?ssl_ca_certs=/ca&ssl_cert_reqs=CERT_REQUIRED",
        ),
        ("rediss://keeper?ssl_cert_reqs=none", "rediss://keeper?ssl_cert_reqs=none"),
    ],
)
def test_with_tls_certificates_are_looked_at_unless_it_is_said_how(
    address: str, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RINGRIFT_CELERY_BROKER", address)
    monkeypatch.delenv("RINGRIFT_CELERY_BACKEND", raising=False)
    settings = CelerySettings.from_environment()
    assert settings.broker == settings.backend == asked


def test_out_of_the_box_a_missing_worker_is_told_within_a_minute() -> None:
    assert CelerySettings("", "").no_worker_after <= 45.0


@pytest.mark.parametrize("text", ["0", "soon", "-3", "nan", "1e9"])
def test_seconds_that_are_none_are_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGRIFT_CELERY_BROKER", "redis://keeper")
    monkeypatch.setenv("RINGRIFT_CELERY_NO_WORKER_AFTER", text)
    with pytest.raises(CelerySettingsError, match="RINGRIFT_CELERY_NO_WORKER_AFTER is"):
        CelerySettings.from_environment()


PASSWORD = "s/cret"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("WRONGPASS invalid username-password pair"), "ValueError: WRONGPASS invalid"),
        (ValueError(f"AUTH failed: {PASSWORD}, s%2Fcret"), "ValueError: AUTH failed: ***, ***"),
        (
            OSError("no route to redis://who:other@far\n:6380/0"),
            "OSError: no route to redis://far :6380/0",
        ),
        (ConnectionResetError(), "ConnectionResetError)"),
        (ValueError("x" * 10_000), f"ValueError: {'x' * 300})"),
    ],
)
def test_what_redis_says_in_place_of_an_answer_is_told_without_passwords(
    error: Exception, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    requests = Requests("redis://:s%2Fcret@keeper:6380/0")

    def refused() -> None:
        raise error

    for _ in range(2):  # the second one is not made
        with pytest.raises(UnansweredError) as caught:
            requests.make(refused)
        said = str(caught.value)
        assert said.startswith(f"Redis at keeper:6380 has not answered for 0 s ({told}")
        assert not any(secret in said for secret in (PASSWORD, "s%2Fcret", "other"))
    assert told.rstrip(")") in caplog.text and PASSWORD not in caplog.text


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"package": "9.9"}, "run was made by ringrift-pipeline 9.9 with"),
        ({"dagster": "1.99.1"}, "made by ringrift-pipeline .* with Dagster 1.99.1"),
        ({"code": {"checkpoint": "7"}}, r"and checkpoint \d+.*made by .* and checkpoint 7"),
        (None, "made by a version that does not say which it is"),
    ],
)
def test_another_version_is_refused_by_name(asked: dict[str, Any] | None, told: str) -> None:
    wanted = versions()
    if asked is not None:
        wanted["code"] = {**wanted["code"], **asked.pop("code", {})}
        wanted |= asked
    with pytest.raises(WorkerVersionError, match=f"the worker on .* has ringrift-pipeline.*{told}"):
        refuse_other_versions(wanted if asked is not None else None)
    refuse_other_versions(versions())


def test_a_version_of_one_asset_alone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = versions()
    monkeypatch.setitem(celery_settings.CODE_VERSIONS, "ensemble", "99")
    with pytest.raises(WorkerVersionError) as refused:
        refuse_other_versions(asked)
    assert "ensemble 99" in str(refused.value) and "checkpoint" not in str(refused.value)


@pytest.mark.parametrize(
    ("own", "theirs"),
    [(None, "s3://ours/runs"), ("s3://ours/rums", "s3://ours/runs"), ("s3://ours/runs", None)],
)
def test_a_worker_with_another_bucket_is_refused_by_name(
    own: str | None, theirs: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def set_to(url: str | None) -> None:
        monkeypatch.setenv("RINGRIFT_BUCKET", url or "")

    set_to(theirs)
    asked = json.loads(json.dumps(terms()))
    refuse_others(asked)
    set_to(own)
    with pytest.raises(OtherBucketError, match="the same on both") as refused:
        refuse_others(asked)
    for url in (own, theirs):
        assert (url or "no bucket (RINGRIFT_BUCKET is not set)") in str(refused.value)
    with pytest.raises(OtherBucketError, match="a bucket that it does not name"):
        refuse_others(versions())
    with pytest.raises(WorkerVersionError):  # the version is said first
        refuse_others({**asked, "package": "9.9"})


def test_the_same_bucket_may_be_spelt_with_a_slash_and_have_another_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RINGRIFT_BUCKET", "s3://ours/runs")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://10.0.0.1:9000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    asked = terms()
    assert "hidden" not in str(asked) and "9000" not in str(asked)
    monkeypatch.setenv("RINGRIFT_BUCKET", " s3://ours/runs/ ")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio:9000")
    refuse_others(asked)


@pytest.mark.parametrize("url", ["ours/runs", "s3://key:hidden@ours/runs"])
def test_what_names_no_bucket_ends_a_worker_before_it_takes_anything(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RINGRIFT_CELERY_BROKER", "redis://keeper")
    monkeypatch.setenv("RINGRIFT_BUCKET", url)
    with pytest.raises(CelerySettingsError, match="names no bucket") as refused:
        CelerySettings.from_environment()
    assert "hidden" not in str(refused.value)


def test_a_device_has_one_slot() -> None:
    assert "-Q gpu --concurrency 1" in start_line("gpu")
    assert "-Q selfplay --concurrency $(nproc)" in start_line("selfplay")


# --- progress and watchdog of a step on another machine -----------------------------------------


@pytest.fixture
def far() -> Any:
    yield remote.begin()
    remote.end()


def test_a_remote_steps_progress_is_told_and_not_written(far: Any, tmp_path: Path) -> None:
    with ProgressFile(tmp_path, "run", "step", CONFIG, "0000", silence=5.0) as progress:
        progress(3, 3, "games")
        assert (far.progress.done, far.progress.message) == (3, "games")
    assert not list(tmp_path.iterdir())


def test_where_the_run_is_its_progress_can_be_read(far: Any, tmp_path: Path) -> None:
    with ProgressFile(tmp_path, "run", "play[0001]", CONFIG, "0000", silence=5.0) as progress:
        progress(3, 3, "games")
    note_progress(tmp_path, far.progress, "player@far")
    (found,) = read_progress(tmp_path, "run")
    assert found == replace(far.progress, message="games, on player@far", pid=0, silence=None)
    forget_progress(tmp_path, "run", "play[0001]")
    assert read_progress(tmp_path, "run") == []


def test_a_step_that_is_done_again_elsewhere_leaves(
    far: Any, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create_run_for_test(instance, status=watchdog.DagsterRunStatus.STARTED)
    left: list[int] = []

    def dog(attempt: int) -> watchdog.Watchdog:
        return watchdog.Watchdog.of_run(
            instance, run.run_id, left.append, step_key="play", attempt=attempt
        )

    with dog(0):
        pass
    assert left == []
    for step in ("other", "play"):
        event = DagsterEvent(
            DagsterEventType.STEP_UP_FOR_RETRY.value,
            run.job_name,
            step_key=step,
            event_specific_data=StepRetryData(LOST),
        )
        instance.report_dagster_event(event, run.run_id)
    with dog(1):
        pass
    assert left == []
    with dog(0):
        pass
    assert left == [watchdog.EXIT_CODE]


def test_a_step_that_has_failed_for_good_leaves(
    far: Any, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last worker was taken for lost: the run may still be at work on other steps."""
    run = create_run_for_test(instance, status=watchdog.DagsterRunStatus.STARTED)
    for step in ("other", "play"):
        given_up = watchdog.is_given_up(instance, run.run_id, "play", 2)
        assert not given_up
        event = DagsterEvent(
            DagsterEventType.STEP_FAILURE.value,
            run.job_name,
            step_key=step,
            event_specific_data=StepFailureData(LOST, None),
        )
        instance.report_dagster_event(event, run.run_id)
    assert watchdog.is_given_up(instance, run.run_id, "play", 2)


# --- one daemon a history -----------------------------------------------------------------------


class JustFreed:
    """PostgreSQL, as it answers when a lock is freed between who asks for it and who asks whose it is."""

    tries = 0

    def connect(self) -> Any:
        return self

    def execution_options(self, **_: Any) -> Any:
        return self

    def detach(self) -> None:
        pass

    def execute(self, query: Any, _: Any) -> Any:
        asks = "pg_try_advisory_lock" in str(query)
        self.tries += asks
        return SimpleNamespace(scalar=lambda: asks and self.tries > 1, first=lambda: None)

    def close(self) -> None:
        pass


def test_a_lock_that_is_just_being_freed_is_taken() -> None:
    server = JustFreed()
    assert one_daemon._Lock(server).take() is None and server.tries == 2


class PowerLost(JustFreed):
    """PostgreSQL, whose session with another machine has heard nothing for ``silent`` seconds."""

    def __init__(self, silent: float) -> None:
        self.silent, self.ended = silent, False

    def execute(self, query: Any, _: Any) -> Any:
        self.ended |= "pg_terminate_backend" in str(query)
        holder = SimpleNamespace(pid=7, silent=self.silent)
        fields = ("ringrift 1-a on away", "10.0.0.9", datetime(2026, 1, 1))
        row = type("Row", (), {"__getitem__": lambda _, i: fields[i], **vars(holder)})()
        return SimpleNamespace(scalar=lambda: self.ended, first=lambda: row)


def test_the_lock_of_a_machine_without_power_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL would keep it for two hours."""
    server = PowerLost(one_daemon.GONE - 10.0)
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        server.silent += seconds

    monkeypatch.setattr(one_daemon.time, "sleep", sleep)
    assert one_daemon._Lock(server).take() is None
    assert server.ended and 10.0 <= sum(waited) <= 12.0


def test_the_lock_of_one_that_looks_is_left() -> None:
    server = PowerLost(one_daemon.LOOK)
    assert "ringrift 1-a on away" in str(one_daemon._Lock(server).take())
    assert not server.ended
