"""What may happen to workers and servers in the middle of a run, done to real ones."""

from __future__ import annotations

import base64
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterEventType, DagsterRunStatus

from ringrift_pipeline.orchestration.instance import own_instance
from ringrift_pipeline.orchestration.progress import read_progress
from ringrift_pipeline.store import LockedError
from ringrift_pipeline.store.kinds import CODE_VERSIONS
from tests.drafts import Writer
from tests.orchestration.served import Served, is_gone
from tests.waiting import until

from . import toy
from .cluster import Cluster, cluster
from .conftest import go, own_folder

pytestmark = [pytest.mark.services, pytest.mark.slow]

AGAIN = DagsterEventType.STEP_UP_FOR_RETRY
FAILED = DagsterEventType.STEP_FAILURE
STARTED = DagsterEventType.STEP_START


def worker(servers: Cluster, name: str, queues: str = "selfplay", **more: Any) -> Any:
    return servers.worker(name, queues, own_folder(servers, name), **more)


def in_worker(toys: Served, run_id: str) -> list[str]:
    """Names of the workers in which steps of a run were begun, in order."""
    names = []
    for event in toys.instance.all_logs(run_id, of_type=DagsterEventType.ENGINE_EVENT):
        data = event.dagster_event.engine_event_data if event.dagster_event else None
        if data is not None and "Celery worker" in data.metadata:
            names.append(str(data.metadata["Celery worker"].value).partition("@")[0])
    return names


def test_steps_come_to_the_workers_of_their_queue(servers: Cluster, toys: Served) -> None:
    worker(servers, "player"), worker(servers, "device", "gpu")
    servers.ready()
    run = toys.launch("one", {})
    until(lambda: toy.begun(run, "one"), "the step begins")
    # How far it is can be read where the run is, as of a step on this machine; and it is nobody's there.
    told = until(
        lambda: [one for one in read_progress(toys.data, run) if one.total], "its progress is known"
    )
    (progress,) = told
    assert (progress.done, progress.total, progress.pid) == (1, 2, 0)
    assert progress.message.startswith("waiting, on player@") and progress.silence is None
    go(run)
    assert toys.finished(run) == DagsterRunStatus.SUCCESS, toys.errors(run)
    assert read_progress(toys.data, run) == []
    assert not list(own_folder(servers, "player").iterdir())

    run = toys.launch("device", {})
    assert toys.finished(run) == DagsterRunStatus.SUCCESS, toys.errors(run)
    assert in_worker(toys, run) == ["device"]


def test_a_killed_workers_step_is_done_again_elsewhere(servers: Cluster, toys: Served) -> None:
    first = worker(servers, "first")
    servers.ready()
    run = toys.launch("one", {})
    until(lambda: toy.begun(run, "one"), "the step begins")
    worker(servers, "second")
    first.kill()
    until(lambda: len(toy.begun(run, "one")) == 2, "the step begins again")
    go(run)
    assert toys.finished(run) == DagsterRunStatus.SUCCESS, toys.errors(run)
    assert toys.steps(run, AGAIN) == ["one"]
    assert in_worker(toys, run) == ["first", "second"]
    assert len(toy.begun(run, "one")) == 2
    assert "no sign of life" in said(toys, run, AGAIN)


def test_a_killed_process_of_a_step_is_replaced(servers: Cluster, toys: Served) -> None:
    worker(servers, "only")
    servers.ready()
    run = toys.launch("one", {})
    (pid,) = until(lambda: toy.begun(run, "one"), "the step begins")
    os.kill(pid, signal.SIGKILL)
    until(lambda: len(toy.begun(run, "one")) == 2, "the step begins again")
    go(run)
    assert toys.finished(run) == DagsterRunStatus.SUCCESS, toys.errors(run)
    assert toys.steps(run, AGAIN) == ["one"] and "SIGKILL" in said(toys, run, AGAIN)


def test_a_worker_that_is_told_to_stop_ends_when_its_step_has(
    servers: Cluster, toys: Served
) -> None:
    first = worker(servers, "first")
    servers.ready()
    run = toys.launch("two", {})  # one of them waits in the queue
    until(lambda: toy.begun(run, "one") or toy.begun(run, "another"), "a step begins")
    first.process.send_signal(signal.SIGTERM)
    worker(servers, "second")
    until(lambda: toy.begun(run, "one") and toy.begun(run, "another"), "another takes the other")
    assert first.process.poll() is None
    go(run)
    assert toys.finished(run) == DagsterRunStatus.SUCCESS, toys.errors(run)
    assert toys.steps(run, AGAIN) == [] and in_worker(toys, run) == ["first", "second"]
    assert first.process.wait(60.0) == 0


def test_a_step_that_is_interrupted_with_its_worker_is_done_again_at_once(
    servers: Cluster, toys: Served
) -> None:
    """As a terminal does it with Ctrl-C, and systemd with SIGTERM: all processes are told."""
    first = worker(servers, "first")
    servers.ready()
    run = toys.launch("one", {})
    until(lambda: toy.begun(run, "one"), "the step begins")
    worker(servers, "second")
    os.killpg(first.process.pid, signal.SIGINT)
    until(lambda: len(toy.begun(run, "one")) == 2, "the step begins again")
    go(run)
    assert toys.finished(run) == DagsterRunStatus.SUCCESS, toys.errors(run)
    assert toys.steps(run, AGAIN) == ["one"] and in_worker(toys, run) == ["first", "second"]
    assert "no sign of life" not in said(toys, run, AGAIN)


@pytest.mark.parametrize(
    ("job", "step", "why"),
    [("stopping", "stops", "no sign of life"), ("silent", "says_nothing", "told nothing")],
)
def test_a_step_that_hangs_is_killed_and_done_again(
    job: str, step: str, why: str, servers: Cluster, toys: Served
) -> None:
    worker(servers, "only")
    servers.ready()
    run = toys.launch(job, {})
    assert toys.finished(run) == DagsterRunStatus.SUCCESS, toys.errors(run)
    assert toys.steps(run, AGAIN) == [step] and why in said(toys, run, AGAIN)
    assert len(toy.begun(run, step)) == 2
    until(lambda: all(is_gone(pid) for pid in toy.begun(run, step)), "both processes are gone")


@pytest.mark.parametrize("how", ["restarted", "killed and restarted", "emptied"])
def test_redis_goes_in_the_middle_of_a_run(how: str, servers: Cluster, toys: Served) -> None:
    worker(servers, "only")
    servers.ready()
    run = toys.launch("two", {})  # one of them waits in the queue
    until(lambda: toy.begun(run, "one") or toy.begun(run, "another"), "a step begins")
    until(lambda: len(toys.steps(run, DagsterEventType.STEP_WORKER_STARTING)) == 2, "both are out")
    time.sleep(3.0)
    if how == "emptied":
        servers.redis.client().flushall()
    else:
        servers.redis.stop() if how == "restarted" else servers.redis.kill()
        time.sleep(5.0)
        servers.redis.start()
    go(run)
    assert toys.finished(run) == DagsterRunStatus.SUCCESS, toys.errors(run)
    assert toys.steps(run, AGAIN) == []
    assert toys.steps(run, STARTED) == ["another", "one"]
    assert [len(toy.begun(run, name)) for name in ("one", "another")] == [1, 1]


def test_postgresql_is_restarted_in_the_middle_of_a_run(servers: Cluster, toys: Served) -> None:
    worker(servers, "only")
    servers.ready()
    run = toys.launch("two", {})
    until(lambda: toy.begun(run, "one") or toy.begun(run, "another"), "a step begins")
    servers.postgres.stop()
    go(run)  # the one that runs comes to its end meanwhile
    time.sleep(20.0)  # Dagster itself tries for some six
    servers.postgres.start()
    assert toys.finished(run) == DagsterRunStatus.SUCCESS, toys.errors(run)
    assert toys.steps(run, AGAIN) == []
    assert [len(toy.begun(run, name)) for name in ("one", "another")] == [1, 1]


@pytest.mark.parametrize(
    ("when", "again"),
    [
        ("asks", ["is_cut_off"]),
        (DagsterEventType.ENGINE_EVENT.value, []),
        (DagsterEventType.STEP_OUTPUT.value, ["is_cut_off"]),
    ],
)
def test_postgresql_is_restarted_at_the_end_of_a_step(
    when: str, again: list[str], servers: Cluster, toys: Served
) -> None:
    worker(servers, "only")
    servers.ready()
    run = toys.launch("cut_off", {"ops": {"is_cut_off": {"config": {"when": when}}}})
    assert toys.finished(run) == DagsterRunStatus.SUCCESS, toys.errors(run)
    assert toys.steps(run, AGAIN) == again
    assert len(toy.begun(run, "is_cut_off")) == 1 + len(again)


def test_a_step_that_nothing_answers_leaves_and_is_done_again(
    servers: Cluster, toys: Served
) -> None:
    """Servers that are stopped take connections, and say nothing: as behind a cable that was cut."""
    worker(servers, "only", RINGRIFT_POSTGRES_PATIENCE="5")
    servers.ready()
    run = toys.launch("one", {})
    (pid,) = until(lambda: toy.begun(run, "one"), "the step begins")
    with servers.redis.paused(), servers.postgres.paused():
        until(lambda: is_gone(pid), "its process is gone")
    until(lambda: len(toy.begun(run, "one")) == 2, "the step begins again")
    go(run)
    assert toys.finished(run) == DagsterRunStatus.SUCCESS, toys.errors(run)
    assert toys.steps(run, AGAIN) == ["one"]


def test_no_test_leaves_a_server_down(servers: Cluster) -> None:
    """It would fail all that follow, each after minutes."""
    only = worker(servers, "only")
    servers.redis.kill()
    servers.postgres.stop()
    servers.tidy_up()
    assert servers.redis.answers() and servers.postgres.answers()
    assert only.process.poll() is not None and not servers.workers


def test_a_worker_of_an_older_version_is_refused_by_name(servers: Cluster, toys: Served) -> None:
    worker(servers, "old", app="tests.distributed.older")
    servers.ready()
    run = toys.launch("one", {})
    assert toys.finished(run) == DagsterRunStatus.FAILURE
    assert toys.steps(run, FAILED) == ["one"] and toys.steps(run, AGAIN) == []
    error = said(toys, run, FAILED)
    assert error.count("WorkerVersionError: ") == 1
    assert f"the worker on {os.uname().nodename} has ringrift-pipeline" in error
    assert "checkpoint 0.9" in error and f"checkpoint {CODE_VERSIONS['checkpoint']}" in error
    assert toy.begun(run, "one") == []


@pytest.mark.parametrize("url", ["", "s3://ringrift/test"])
def test_a_worker_with_another_bucket_is_refused_by_name(
    url: str, servers: Cluster, toys: Served
) -> None:
    """It would make everything where nobody looks for it, and say that all is well."""
    if servers.bucket is None:
        pytest.skip("moto or s3fs is not installed")
    servers.redis.client().delete("selfplay")  # steps of runs that ended before they were taken
    worker(servers, f"astray{len(url)}", RINGRIFT_BUCKET=url)
    servers.ready()
    run = toys.launch("one", {})
    assert toys.finished(run) == DagsterRunStatus.FAILURE
    assert toys.steps(run, FAILED) == ["one"] and toys.steps(run, AGAIN) == []
    error = said(toys, run, FAILED)
    assert error.count("OtherBucketError: ") == 1
    told = f"the worker on {os.uname().nodename} keeps what it makes in {url or 'no bucket'}"
    assert told in error and f"the run in {servers.bucket.url}: " in error
    assert toy.begun(run, "one") == []


def broker(servers: Cluster) -> Any:
    """Celery, as somebody asks it who is no worker."""
    from celery import Celery

    return Celery(broker=servers.redis.url("127.0.0.1"))


def takers(servers: Cluster, queue: str) -> list[str]:
    """Names of the workers that take from a queue."""
    told = broker(servers).control.inspect(timeout=2.0).active_queues() or {}
    return [name for name, queues in told.items() if queue in [one["name"] for one in queues]]


def test_a_worker_of_an_older_version_takes_no_step_from_the_others(
    servers: Cluster, toys: Served
) -> None:
    """One that refuses is free first every time: it would fail every step of every run."""
    worker(servers, "old", app="tests.distributed.older")
    worker(servers, "new", "another")
    servers.ready()
    run = toys.launch("two", {})
    until(lambda: not takers(servers, "selfplay"), "the older one has refused, and rests")
    broker(servers).control.add_consumer("selfplay")  # the new one; the old one too, once more
    go(run)
    assert toys.finished(run) == DagsterRunStatus.SUCCESS, toys.errors(run)
    assert toys.steps(run, AGAIN) == [] and in_worker(toys, run) == ["new", "new"]


def test_a_step_that_comes_twice_is_begun_once(servers: Cluster, toys: Served) -> None:
    """Redis seemed to have forgotten it: who took it was waiting for PostgreSQL, and said nothing."""
    worker(servers, "busy")
    for name in ("first", "second"):
        worker(servers, name, "another")
    servers.ready()
    before = toys.launch("one", {})
    until(lambda: toy.begun(before, "one"), "one is busy")
    run = toys.launch("one", {})
    redis = servers.redis.client()
    until(lambda: redis.llen("selfplay") == 1, "the step is handed out")
    redis.lpush("selfplay", redis.lindex("selfplay", 0))
    broker(servers).control.add_consumer("selfplay")  # both take one at the same moment
    until(lambda: toy.begun(run, "one") or toys.errors(run), "the step begins")
    until(lambda: redis.llen("selfplay") == 0, "both are taken")
    time.sleep(5.0)
    assert len(toy.begun(run, "one")) == 1
    (claim,) = redis.keys(f"ringrift-begun-{run}/*")
    assert 20 < redis.ttl(claim) <= 30  # as long as it gives signs of life
    for one in (before, run):
        go(one)
        assert toys.finished(one) == DagsterRunStatus.SUCCESS, toys.errors(one)
    assert len(toy.begun(run, "one")) == 1 and toys.steps(run, AGAIN) == []


def test_a_step_that_is_forgotten_while_others_wait_is_handed_out_again(
    servers: Cluster, toys: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ringrift_pipeline.orchestration import celery_requests

    worker(servers, "busy")
    servers.ready()
    redis = servers.redis.client()
    redis.delete("selfplay")  # steps of runs that ended before they were taken
    before = toys.launch("one", {})
    until(lambda: toy.begun(before, "one"), "one is busy")
    run = toys.launch("two", {})
    until(lambda: redis.llen("selfplay") == 2, "both are handed out")
    monkeypatch.setattr(celery_requests, "PAGE", 1)

    def waiting() -> list[str]:
        with broker(servers).connection_for_read() as connection:
            found = celery_requests.tasks_in(connection.default_channel, "selfplay")
        return sorted(found or [])

    both = [f"{run}/another/0", f"{run}/one/0"]
    assert waiting() == both
    with monkeypatch.context() as patch:
        patch.setattr(celery_requests, "LONGEST", 1)
        assert waiting() == []  # not looked for
    redis.lpush("selfplay", "no task", "{}", "[1]")  # somebody else's
    assert waiting() == both
    redis.ltrim("selfplay", 3, -1)
    redis.rpop("selfplay")
    assert len(waiting()) == 1
    until(lambda: waiting() == both, "it is handed out again")
    for one in (before, run):
        go(one)
        assert toys.finished(one) == DagsterRunStatus.SUCCESS, toys.errors(one)
    assert [len(toy.begun(run, name)) for name in ("one", "another")] == [1, 1]
    assert toys.steps(run, AGAIN) == []


def test_without_a_worker_there_is_one_clear_error(servers: Cluster, toys: Served) -> None:
    worker(servers, "player")  # of another queue
    servers.ready()
    run = toys.launch("device", {})
    assert toys.finished(run) == DagsterRunStatus.FAILURE
    assert toys.steps(run, FAILED) == ["on_a_device"] and toys.steps(run, AGAIN) == []
    error = said(toys, run, FAILED)
    assert error.count("NoWorkerError: ") == 1
    assert "no worker takes from the queue 'gpu'" in error
    assert "celery -A ringrift_pipeline.orchestration.celery_app worker -Q gpu" in error
    assert servers.redis.password not in error
    # Nor has what waits in Redis a password in it: every process has them from its own environment.
    import redis

    keeper = redis.Redis("127.0.0.1", servers.redis.port, password=servers.redis.password)
    told = [
        base64.b64decode(json.loads(each)["body"]).decode() for each in keeper.lrange("gpu", 0, -1)
    ]
    assert any("PatientPostgresStorage" in each and run in each for each in told)
    assert not any(
        server.password in each for each in told for server in (servers.redis, servers.postgres)
    )


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGKILL"])
def test_a_step_that_somebody_ends_at_celery_is_done_again(
    signal_name: str, servers: Cluster, toys: Served
) -> None:
    worker(servers, "only")
    servers.ready()
    run = toys.launch("one", {})
    (pid,) = until(lambda: toy.begun(run, "one"), "the step begins")
    task = f"{run}/one/0"
    broker(servers).control.revoke(task, terminate=True, signal=signal_name)
    until(lambda: len(toy.begun(run, "one")) == 2, "the step begins again")
    go(run)
    assert toys.finished(run) == DagsterRunStatus.SUCCESS, toys.errors(run)
    assert toys.steps(run, AGAIN) == ["one"] and is_gone(pid)


def test_a_step_that_somebody_revokes_while_it_waits_is_handed_out_anew(
    servers: Cluster, toys: Served
) -> None:
    worker(servers, "only")
    servers.ready()
    run = toys.launch("two", {})
    begun = until(lambda: toy.begun(run, "one") or toy.begun(run, "another"), "a step begins")
    waits = "another" if toy.begun(run, "one") else "one"
    started = DagsterEventType.STEP_WORKER_STARTING
    until(lambda: len(toys.steps(run, started)) == 2, "both are out")
    answers = broker(servers).control.revoke(f"{run}/{waits}/0", reply=True, timeout=10.0)
    assert len(answers) == 1 and len(begun) == 1
    go(run)
    assert toys.finished(run) == DagsterRunStatus.SUCCESS, toys.errors(run)
    assert toys.steps(run, AGAIN) == [waits] and "Celery was told" in said(toys, run, AGAIN)
    assert len(toy.begun(run, waits)) == 1


def test_a_cancelled_run_leaves_nothing_behind(servers: Cluster, toys: Served) -> None:
    worker(servers, "only")
    servers.ready()
    run = toys.launch("two", {})
    (pid,) = until(lambda: toy.begun(run, "one") or toy.begun(run, "another"), "a step begins")
    toys.terminate(run)
    assert toys.finished(run) == DagsterRunStatus.CANCELED
    until(lambda: is_gone(pid), "its process is gone")
    after = toys.launch("one", {})  # the worker is there for the next one, and the other has gone
    go(after)
    assert toys.finished(after) == DagsterRunStatus.SUCCESS, toys.errors(after)
    assert len(toy.begun(run, "one") + toy.begun(run, "another")) == 1


def test_a_cancelled_step_that_hears_nothing_is_killed(servers: Cluster, toys: Served) -> None:
    worker(servers, "only")
    servers.ready()
    run = toys.launch("stopping", {})
    (pid,) = until(lambda: toy.begun(run, "stops"), "the step begins")
    toys.terminate(run)
    assert toys.finished(run) == DagsterRunStatus.CANCELED
    until(lambda: is_gone(pid), "its process is gone", 60.0)


def test_the_steps_of_a_run_whose_process_dies_leave(servers: Cluster, toys: Served) -> None:
    worker(servers, "only")
    servers.ready()
    run = toys.launch("one", {})
    (pid,) = until(lambda: toy.begun(run, "one"), "the step begins")
    os.kill(toys.worker(run), signal.SIGKILL)
    assert toys.finished(run) == DagsterRunStatus.FAILURE
    until(lambda: is_gone(pid), "its process is gone", 60.0)
    again = toys.again(run)
    go(again)
    assert toys.finished(again) == DagsterRunStatus.SUCCESS, toys.errors(again)


def test_what_killed_steps_left_goes_when_a_worker_starts(servers: Cluster, toys: Served) -> None:
    folder = own_folder(servers, "starting")
    with (
        Writer(folder, toy.CONFIG, "checkpoint") as dead,
        Writer(folder, toy.CONFIG, "ensemble") as alive,
    ):
        dead.kill()
        assert dead.draft.is_dir()
        worker(servers, "starting")
        servers.ready()
        assert not dead.draft.exists() and alive.draft.is_dir()


def test_a_worker_whose_history_has_no_such_run_says_so(servers: Cluster, toys: Served) -> None:
    worker(servers, "only")
    servers.ready()
    first = toys.launch("one", {})
    until(lambda: toy.begun(first, "one"), "the step begins")
    run = toys.launch("two", {})  # both steps wait in the queue
    until(lambda: len(toys.steps(run, DagsterEventType.STEP_WORKER_STARTING)) == 2, "both are out")
    time.sleep(3.0)
    toys.instance.delete_run(run)
    go(first)
    said = until(lambda: "OtherHistoryError" in servers.workers[0].says(), "it is told")
    assert said and "copy deploy/celery/dagster.yaml" in servers.workers[0].says()
    assert toy.begun(run, "one") + toy.begun(run, "another") == []


def test_one_daemon_a_history_wherever_its_data_root_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cluster(separate=False) as servers:
        for name, value in servers.environment().items():
            monkeypatch.setenv(name, value)
        first, second = (servers.prepare(tmp_path / name) for name in ("first", "second"))
        with own_instance(first):
            refused = pytest.raises(LockedError, match="has a daemon already: ringrift")
            with refused as told, own_instance(second):
                pass
            assert str(os.getpid()) in str(told.value)
            with servers.postgres.connect("dagster") as connection:  # as a restart does
                connection.autocommit = True
                held = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted"
                cursor = connection.cursor()
                cursor.execute(held)
                (before,) = cursor.fetchall()
                cursor.execute("SELECT pg_terminate_backend(%s)", before)

                def taken_again() -> bool:
                    cursor.execute(held)
                    return bool([pid for pid in cursor.fetchall() if pid != before])

                until(taken_again, "the lock is taken again", 30.0)
            connection.close()
        with own_instance(second):
            pass


def said(toys: Served, run: str, kind: DagsterEventType) -> str:
    """What the events of a kind say, all together."""
    return " ".join(
        str(event.dagster_event.event_specific_data)
        for event in toys.instance.all_logs(run, of_type=kind)
        if event.dagster_event is not None
    )
