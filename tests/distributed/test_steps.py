"""What the run's process makes of what it hears of its steps: with Celery, and queues in its memory."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from dagster._core.definitions.reconstruct import reconstructable
from dagster._core.execution.plan.outputs import StepOutputHandle
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._grpc.types import ExecuteStepArgs
from dagster._serdes import pack_value

from ringrift_pipeline.orchestration.celery_settings import (
    PROGRESS,
    CelerySettings,
    OtherBucketError,
    OtherHistoryError,
    WorkerVersionError,
)
from ringrift_pipeline.orchestration.pools import QUEUE_TAG

from . import toy

pytestmark = pytest.mark.services

KEY, QUEUE = "one", "selfplay"
SIGN = {"worker": "player@far", "pid": 7, "sign": 1, "progress": None}
LOOK = 2.0  # seconds between two looks of the executor
NUMBERS = itertools.count()


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[Any]:
    monkeypatch.setenv("RINGRIFT_CELERY_BROKER", "memory://")
    monkeypatch.setenv("RINGRIFT_EXECUTOR", "celery")  # the import says so, for all that follows
    monkeypatch.setenv("RINGRIFT_DATA", str(tmp_path))
    from ringrift_pipeline.orchestration import celery_steps
    from ringrift_pipeline.orchestration.celery_steps import CelerySteps

    def tasks_in(channel: Any, queue: str) -> set[str]:
        return {message["headers"]["id"] for message in channel._queue_for(queue).queue}

    monkeypatch.setattr(celery_steps, "tasks_in", tasks_in)
    made = CelerySteps(CelerySettings("memory://", "cache+memory://"))
    yield made
    with made._app.connection_for_read() as connection:  # the memory is the process's
        for queue in (QUEUE, "gpu"):
            connection.default_channel._purge(queue)


def context(key: str = KEY, queue: str = QUEUE, run: str = "run") -> Any:
    """What Dagster's executor says of a step, of the first one of a run unless it is said."""
    job = reconstructable(toy.one)
    arguments = ExecuteStepArgs(job.get_python_origin(), run, [key], None)
    return SimpleNamespace(
        execute_step_args=arguments,
        step_tags={key: {QUEUE_TAG: queue}},
        get_step_context=lambda key: SimpleNamespace(reconstructable_job=job),
    )


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(steps: Any, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The one that steps are watched by."""
    from ringrift_pipeline.orchestration import celery_requests, celery_steps

    made = Clock()
    monkeypatch.setattr(celery_steps, "time", made)
    monkeypatch.setattr(celery_requests, "time", made)
    return made


@pytest.fixture
def failures(steps: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the steps that have failed for good say, in place of the event log."""
    from ringrift_pipeline.orchestration import celery_steps

    told: list[str] = []

    def note(step_context: Any, step_failure_data: Any) -> None:
        told.append(step_failure_data.error.message)

    monkeypatch.setattr(celery_steps.DagsterEvent, "step_failure_event", staticmethod(note))
    return told


def a_run(steps: Any, queues: dict[str, str]) -> list[Any]:
    """What the executor says of the steps of a run of its own: with their queues, and on their way.

    The next look finds that they were not sent, and sends them.
    """
    run = f"run-{next(NUMBERS)}"
    asked = [context(key, queue, run) for key, queue in queues.items()]
    for each in asked:
        key, handed = steps._of(each)
        steps._handed[key] = handed
    return asked


def look(steps: Any, asked: list[Any]) -> list[Any]:
    """What the executor hears when it looks after the steps once."""
    steps.begin_look()
    return [steps.check_step_health(each) for each in asked]


def waiting(steps: Any) -> int:
    """Steps in the queue."""
    with steps._app.connection_for_read() as connection:
        return int(connection.default_channel._size(QUEUE))


@pytest.mark.parametrize(("key", "most"), [("play[0007]", 1), ("collect", 1000), ("plan", 1000)])
def test_a_shards_step_is_told_of_no_other_shard(steps: Any, key: str, most: int) -> None:
    """Else the square of their number would lie in Redis: 0.2 GB for a thousand."""
    from ringrift_pipeline.orchestration.celery_steps import its_own

    shards = [f"{index:04d}" for index in range(1000)]
    ready = {StepOutputHandle("plan", "result", shard) for shard in shards}
    ready.add(StepOutputHandle("before", "result"))
    state = KnownExecutionState({"plan": 1}, {"plan": {"result": shards}}, {}, ready, None)
    origin = reconstructable(toy.one).get_python_origin()
    told = its_own(ExecuteStepArgs(origin, "run", [key], None, known_state=state))
    assert told.step_keys_to_execute == [key] and told.run_id == "run"
    known = told.known_state
    assert known is not None and known.get_retry_state().get_attempt_count("plan") == 1
    assert len(known.dynamic_mappings["plan"]["result"] or ()) == most
    assert len(known.ready_outputs) == most + 1
    if most == 1:
        assert known.dynamic_mappings == {"plan": {"result": ["0007"]}}
        assert StepOutputHandle("plan", "result", "0007") in known.ready_outputs
        assert len(json.dumps(pack_value(told))) < 2000


def test_a_step_that_was_slow_to_begin_is_not_handed_out_anew(steps: Any) -> None:
    """It counted as forgotten, and has begun since: it must not come to be begun twice."""
    from ringrift_pipeline.orchestration.celery_steps import Handed

    asked = context()
    handed = steps._handed[KEY] = Handed(f"run/{KEY}/0", QUEUE, time.monotonic())
    assert steps.check_step_health(asked).is_healthy and waiting(steps) == 1 and handed.sent
    handed.sent = False
    steps._app.backend.store_result(handed.task_id, SIGN, PROGRESS)
    assert steps.check_step_health(asked).is_healthy and waiting(steps) == 1
    told = steps._app.backend.get_task_meta(handed.task_id, cache=False)
    assert told["status"] == PROGRESS and told["result"] == SIGN
    assert handed.sent  # and not again when Redis has lost what it was told


# --- Redis does not answer ----------------------------------------------------------------------


class Dead:
    """A host that nothing comes back from: who asks it waits for as long as a connection may take."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.requests = clock, 0

    def __call__(self, *_: Any, **__: Any) -> Any:
        self.requests += 1
        self.clock.now += 5.0
        raise ConnectionError("timed out")


def test_redis_that_is_gone_is_waited_for_once_whatever_the_number_of_steps(
    steps: Any, clock: Clock, failures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = [f"play[{index:04d}]" for index in range(50)]
    dead, asked = Dead(clock), a_run(steps, dict.fromkeys(shards, QUEUE))
    look(steps, asked)  # it answers
    began = clock.now
    monkeypatch.setattr(steps._app.backend, "get_task_meta", dead)
    while not failures and clock.now < began + 3000.0:
        before = dead.requests
        assert all(health.is_healthy for health in look(steps, asked))
        assert dead.requests == before + 1  # the others wait for the next look
        clock.now += LOOK
    assert 300.0 <= clock.now - began <= 315.0
    assert len(failures) == 50
    assert all("BrokerAwayError: Redis at" in failure for failure in failures)
    assert "has not answered for 30" in failures[0] and "Start it, and execute" in failures[0]


def test_redis_that_never_answered_is_no_outage(
    steps: Any, clock: Clock, failures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slip in its address: nobody waits five minutes for that."""
    from ringrift_pipeline.orchestration import celery_steps

    said: list[str] = []
    starting = staticmethod(lambda *_, **__: None)
    monkeypatch.setattr(celery_steps.DagsterEvent, "step_worker_starting", starting)
    engine = staticmethod(lambda _, message, __: said.append(message))
    monkeypatch.setattr(celery_steps.DagsterEvent, "engine_event", engine)
    asked, began = a_run(steps, {"one": QUEUE, "another": QUEUE}), clock.now
    for name in ("_send", "_revoke"):
        monkeypatch.setattr(steps, name, Dead(clock))
    monkeypatch.setattr(steps._app.backend, "get_task_meta", Dead(clock))
    for each in asked:
        list(steps.launch_step(each))
    assert len(said) == 1 and "steps wait for it, for 40 s" in said[0]
    while not failures and clock.now < began + 3000.0:
        look(steps, asked)
        clock.now += LOOK
    assert clock.now - began <= 60.0
    assert "nor ever for this run: look after its address" in failures[0]


# --- workers of other versions and buckets --------------------------------------------------------


def test_a_step_that_a_worker_refuses_is_another_workers(
    steps: Any, clock: Clock, failures: list[str]
) -> None:
    (asked,) = a_run(steps, {"one": QUEUE})
    look(steps, [asked])
    task = f"{asked.execute_step_args.run_id}/one/0"
    for number in range(3):
        steps._app.backend.store_result(task, WorkerVersionError(f"old {number}"), "FAILURE")
        clock.now += LOOK
        (health,) = look(steps, [asked])
        assert health.is_healthy and waiting(steps) == number + 2  # nobody takes them here
        assert steps._app.backend.get_task_meta(task, cache=False)["status"] == "SENT"
    steps._app.backend.store_result(task, SIGN, PROGRESS)
    clock.now += LOOK
    look(steps, [asked])
    assert not failures


def test_a_refusal_that_could_not_be_answered_counts_once(
    steps: Any, clock: Clock, failures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Redis that is full is read from as ever: the step's state stays what it was."""
    (asked,) = a_run(steps, {"one": QUEUE})
    look(steps, [asked])
    task = f"{asked.execute_step_args.run_id}/one/0"
    steps._app.backend.store_result(task, WorkerVersionError("old"), "FAILURE")
    with monkeypatch.context() as patch:
        patch.setattr(steps, "_send", Dead(clock))
        for _ in range(30):
            clock.now += LOOK
            look(steps, [asked])
    assert not failures and steps._handed["one"].refusals == 1
    clock.now += LOOK
    look(steps, [asked])
    assert steps._app.backend.get_task_meta(task, cache=False)["status"] == "SENT"


def test_a_refused_step_is_not_waited_for_for_ever_where_redis_takes_no_more(
    steps: Any, clock: Clock, failures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (asked,) = a_run(steps, {"one": QUEUE})
    look(steps, [asked])
    task, began = f"{asked.execute_step_args.run_id}/one/0", clock.now
    steps._app.backend.store_result(task, OtherBucketError("another"), "FAILURE")
    monkeypatch.setattr(steps, "_send", Dead(clock))
    while not failures and clock.now < began + 3000.0:
        clock.now += LOOK
        look(steps, [asked])
    assert len(failures) == 1 and failures[0].startswith("BrokerAwayError")


@pytest.mark.parametrize("kind", [WorkerVersionError, OtherBucketError])
def test_refused_by_all_it_fails_for_good(
    kind: type[Exception], steps: Any, clock: Clock, failures: list[str]
) -> None:
    (asked,) = a_run(steps, {"one": QUEUE})
    look(steps, [asked])
    task = f"{asked.execute_step_args.run_id}/one/0"
    looks = 0
    while not failures and looks < 100:
        steps._app.backend.store_result(task, kind("old"), "FAILURE")
        clock.now, looks = clock.now + LOOK, looks + 1
        look(steps, [asked])
    assert looks == 21 and failures[0].startswith(f"{kind.__name__}: old")


def test_redis_that_comes_back_is_away_no_more(
    steps: Any, clock: Clock, failures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = a_run(steps, {"one": QUEUE})
    steps._app.backend.store_result(f"{asked[0].execute_step_args.run_id}/one/0", SIGN, PROGRESS)
    look(steps, asked)
    for _ in range(3):  # each time for less than it is waited for
        with monkeypatch.context() as patch:
            patch.setattr(steps._app.backend, "get_task_meta", Dead(clock))
            for _ in range(35):
                look(steps, asked)
                clock.now += LOOK
        look(steps, asked)
        clock.now += LOOK
    # Nor does a computer at rest count.
    monkeypatch.setattr(steps._app.backend, "get_task_meta", Dead(clock))
    for _ in range(3):
        look(steps, asked)
        clock.now += 3600.0
    assert not failures


@pytest.mark.parametrize("kind", ["reads", "takes"])
def test_each_kind_of_request_has_its_own_clock(
    kind: str, steps: Any, clock: Clock, failures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Redis that is full is read from as ever, and takes no step: that is no answer either."""
    works, waits = a_run(steps, {"one": QUEUE, "another": QUEUE})
    run = works.execute_step_args.run_id
    steps._app.backend.store_result(f"{run}/one/0", SIGN, PROGRESS)
    look(steps, [works])  # it has answered before
    if kind == "takes":
        monkeypatch.setattr(steps, "_send", Dead(clock))
    else:
        monkeypatch.setattr(steps._app.backend, "get_task_meta", Dead(clock))
    for number in range(50):
        if kind == "takes":
            steps._app.backend.store_result(f"{run}/one/0", {**SIGN, "sign": number}, PROGRESS)
        look(steps, [works, waits])
        clock.now += LOOK
    assert len(failures) == (1 if kind == "takes" else 2)


def test_a_step_is_not_handed_out_while_redis_is_gone(
    steps: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is tried, and one is taken back when the run is cancelled: each costs seconds."""
    from ringrift_pipeline.orchestration import celery_steps

    for event in ("step_worker_starting", "engine_event"):
        monkeypatch.setattr(celery_steps.DagsterEvent, event, staticmethod(lambda *_, **__: None))
    asked = a_run(steps, dict.fromkeys(["one", "another", "third"], QUEUE))
    send, revoke = Dead(clock), Dead(clock)
    monkeypatch.setattr(steps, "_send", send)
    monkeypatch.setattr(steps._app.control, "revoke", revoke)
    for each in asked:
        each.dagster_run = SimpleNamespace(run_id="run")
        list(steps.launch_step(each))
    assert send.requests == 1
    assert not any(handed.sent for handed in steps._handed.values())
    for each in asked:
        list(steps.terminate_step(each))
    assert revoke.requests == 1


# --- steps that are given up --------------------------------------------------------------------


@pytest.mark.parametrize("for_good", [False, True])
def test_what_the_event_log_did_not_take_is_told_again(
    for_good: bool, steps: Any, clock: Clock, failures: list[str]
) -> None:
    """Dagster only notes that it could not write that a step is given up, and asks again."""
    (asked,) = a_run(steps, {"one": QUEUE})
    error = OtherHistoryError("another history") if for_good else RuntimeError("killed")
    task = f"{asked.execute_step_args.run_id}/one/0"
    steps._app.backend.store_result(task, error, "FAILURE")
    reasons, times = [], []
    for _ in range(40):
        before = len(failures)
        (health,) = look(steps, [asked])
        if health.unhealthy_reason is not None:
            reasons.append(health.unhealthy_reason)
        if not health.is_healthy or len(failures) > before:
            times.append(clock.now - 1000.0)
        clock.now += LOOK
    assert times == [0.0, 32.0, 64.0]
    told = failures if for_good else reasons
    assert len(told) == 3 and len(set(told)) == 1
    assert ("another history" if for_good else "killed") in told[0]
    assert len(failures) + len(reasons) == 3


@pytest.mark.parametrize("before", [False, True], ids=["waiting", "taken over"])
def test_what_somebody_else_has_revoked_is_given_up(
    before: bool, steps: Any, clock: Clock, failures: list[str]
) -> None:
    """Celery would not begin it again, however often it is handed out."""
    (asked,) = a_run(steps, {"one": QUEUE})
    if before:  # by the run's process before this one, which died before it could say so
        steps._handed.clear()
    else:
        look(steps, [asked])
    handed_out = waiting(steps)
    steps._app.backend.mark_as_revoked(f"{asked.execute_step_args.run_id}/one/0", "revoked")
    reasons = []
    for _ in range(20):
        (health,) = look(steps, [asked])
        clock.now += LOOK
        if not health.is_healthy:
            reasons.append(health.unhealthy_reason)
    assert reasons == ["Celery was told to end it, or not to begin it (revoked)"]
    assert waiting(steps) == handed_out and not failures


def test_a_revoked_step_that_works_on_is_left_to_itself(
    steps: Any, clock: Clock, failures: list[str]
) -> None:
    """It was asked to end, not killed, and its last words must not count for the one after it."""
    (asked,) = a_run(steps, {"one": QUEUE})
    task = f"{asked.execute_step_args.run_id}/one/0"
    for number in range(10):
        steps._app.backend.mark_as_revoked(task, "terminated")
        for _ in range(3):
            assert look(steps, [asked])[0].is_healthy
            clock.now += LOOK
        steps._app.backend.store_result(task, {**SIGN, "sign": number}, PROGRESS)
        assert look(steps, [asked])[0].is_healthy
        clock.now += LOOK
    assert not failures


# --- steps of the run's process before this one -------------------------------------------------


@pytest.mark.parametrize("known", [None, "SENT", PROGRESS])
def test_what_was_not_handed_out_before_is_told_to_dagster(
    known: str | None, steps: Any, clock: Clock
) -> None:
    """It hands that out then; what waits in a queue, or is worked on, it leaves alone."""
    (asked,) = a_run(steps, {"one": QUEUE})
    steps._handed.clear()
    if known is not None:
        sign = SIGN if known == PROGRESS else None
        steps._app.backend.store_result(f"{asked.execute_step_args.run_id}/one/0", sign, known)
    (health,) = look(steps, [asked])
    assert health.is_healthy == (known is not None)
    assert ("one" in steps._handed) == health.is_healthy
    assert waiting(steps) == 0


def test_what_redis_cannot_tell_of_is_handed_out(
    steps: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    (asked,) = a_run(steps, {"one": QUEUE})
    steps._handed.clear()
    monkeypatch.setattr(steps._app.backend, "get_task_meta", Dead(clock))
    (health,) = look(steps, [asked])
    assert not health.is_healthy and "Redis at" in health.unhealthy_reason


# --- queues that nobody takes from --------------------------------------------------------------


class Workers:
    """All workers, as they answer what they take from; nobody is waited for."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.queues = clock, list[str]()

    def inspect(self, timeout: float) -> Any:
        if not self.queues:
            self.clock.now += timeout
            return SimpleNamespace(active_queues=lambda: None)
        answer = {"worker@far": [{"name": queue} for queue in self.queues]}
        return SimpleNamespace(active_queues=lambda: answer)


@pytest.fixture
def workers(steps: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Workers:
    """Nobody, until a test says otherwise."""
    made = Workers(clock)
    monkeypatch.setattr(steps._app.control, "inspect", made.inspect)
    return made


def waited(steps: Any, asked: list[Any], clock: Clock, failures: list[str]) -> float:
    """Seconds until a step has failed for good."""
    began = clock.now
    while not failures and clock.now < began + 3000.0:
        look(steps, asked)
        clock.now += LOOK
    return clock.now - began


def test_out_of_the_box_a_queue_without_workers_is_told_within_a_minute(
    steps: Any, clock: Clock, workers: Workers, failures: list[str]
) -> None:
    asked = a_run(steps, {"train": "gpu"})
    workers.queues = [QUEUE]  # of another one
    assert 40.0 <= waited(steps, asked, clock, failures) <= 60.0
    (failure,) = failures
    assert "NoWorkerError: no worker takes from the queue 'gpu'" in failure
    assert "worker -Q gpu --concurrency 1" in failure


def test_workers_that_were_there_are_waited_for(
    steps: Any, clock: Clock, workers: Workers, failures: list[str]
) -> None:
    """A restart or an upgrade of all of them is no failure, for as long as an outage may last."""
    asked = a_run(steps, {"one": QUEUE})
    workers.queues = [QUEUE]
    look(steps, asked)
    workers.queues = []
    assert 300.0 <= waited(steps, asked, clock, failures) <= 330.0
    assert "NoWorkerError: no worker takes from the queue 'selfplay'" in failures[0]


@pytest.mark.parametrize("kind", [WorkerVersionError, OtherBucketError])
def test_a_queue_that_is_left_to_who_refuses_says_what_that_one_said(
    kind: type[Exception], steps: Any, clock: Clock, workers: Workers, failures: list[str]
) -> None:
    (asked,) = a_run(steps, {"one": QUEUE})
    look(steps, [asked])
    task = f"{asked.execute_step_args.run_id}/one/0"
    steps._app.backend.store_result(task, kind("not mine"), "FAILURE")
    assert waited(steps, [asked], clock, failures) <= 60.0
    assert failures[0].startswith(f"{kind.__name__}: not mine; no worker takes from")


def test_every_queue_is_looked_at_whichever_step_comes_first(
    steps: Any, clock: Clock, workers: Workers, failures: list[str]
) -> None:
    """One that is served needs no question, and must not keep another one from being asked about."""
    works, waits, trains = a_run(steps, {"one": QUEUE, "another": QUEUE, "train": "gpu"})
    run = works.execute_step_args.run_id
    workers.queues = [QUEUE, "gpu"]
    for number in range(250):
        steps._app.backend.store_result(f"{run}/one/0", {**SIGN, "sign": number}, PROGRESS)
        assert all(health.is_healthy for health in look(steps, [works, waits, trains]))
        clock.now += LOOK
    assert not failures


# --- steps that are in no queue -----------------------------------------------------------------


def queued(steps: Any) -> list[str]:
    """Names of the steps in the queue, the next one first."""
    with steps._app.connection_for_read() as connection:
        messages = list(connection.default_channel._queue_for(QUEUE).queue)
    return [message["headers"]["id"].split("/")[1] for message in messages]


def lose(steps: Any, key: str) -> None:
    """Redis forgets a step, or who took it is gone before it began."""
    with steps._app.connection_for_read() as connection:
        waits = connection.default_channel._queue_for(QUEUE).queue
        (lost,) = [one for one in waits if one["headers"]["id"].split("/")[1] == key]
        waits.remove(lost)


def test_a_step_that_is_lost_is_handed_out_again_whoever_else_waits(
    steps: Any, clock: Clock, workers: Workers, failures: list[str]
) -> None:
    """One step at a time is worked on there, for long, and those behind it are not sent twice."""
    asked = a_run(steps, dict.fromkeys(["one", "another", "third"], QUEUE))
    workers.queues = [QUEUE]
    look(steps, asked)
    lose(steps, "another")
    lost, again = clock.now, None
    while clock.now < lost + 1800.0:
        clock.now += LOOK
        assert all(health.is_healthy for health in look(steps, asked))
        if again is None and "another" in queued(steps):
            again = clock.now - lost
    assert again is not None and 60.0 < again < 90.0
    assert queued(steps) == ["one", "third", "another"] and not failures


def test_a_lost_step_is_not_looked_for_in_an_endless_queue(
    steps: Any, clock: Clock, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ringrift_pipeline.orchestration import celery_steps

    asked = a_run(steps, {"one": QUEUE, "another": QUEUE})
    workers.queues = [QUEUE]
    monkeypatch.setattr(celery_steps, "tasks_in", lambda *_: None)
    for _ in range(200):
        look(steps, asked)
        clock.now += LOOK
    assert queued(steps) == ["one", "another"]


@pytest.mark.parametrize(
    ("status", "begun"), [("SENT", False), (PROGRESS, True), ("FAILURE", True)]
)
def test_a_step_that_comes_again_is_not_begun_where_it_was(
    status: str, begun: bool, steps: Any
) -> None:
    """Also where its process died since: then it is begun under another id, by somebody else."""
    from ringrift_pipeline.orchestration.celery_app import StepTask

    class Task(StepTask):
        name = "a test"
        backend = steps._app.backend
        request = SimpleNamespace(id="run/one/0")

        def _client(self) -> Any:
            return SimpleNamespace(set=lambda *_, **__: True)

    error = RuntimeError("killed") if status == "FAILURE" else None
    steps._app.backend.store_result("run/one/0", error, status)
    assert Task()._is_begun() == begun
