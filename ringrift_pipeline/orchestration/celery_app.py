"""Celery's side of the steps: the application that workers are started with, and the task.

``celery -A ringrift_pipeline.orchestration.celery_app worker -Q selfplay`` is a worker. Each step has a
process of its own, forked from one that has torch and the definitions loaded, as on a single machine.
The task is dagster-celery's; around it are the terms of the run, and signs of life that say how far it is.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing.process
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from celery import Celery, Task
from celery.bootsteps import StartStopStep
from celery.signals import worker_init
from celery.worker.components import Pool
from celery.worker.control import control_command
from dagster import DagsterInstance
from dagster._grpc.types import ExecuteStepArgs
from dagster._serdes import unpack_value
from dagster_celery.make_app import make_app
from dagster_celery.tasks import create_task

from ringrift_pipeline.orchestration import remote
from ringrift_pipeline.orchestration.celery_settings import (
    HEADER,
    PROGRESS,
    CelerySettings,
    OtherHistoryError,
    RefusalError,
    refuse_others,
)
from ringrift_pipeline.orchestration.leftovers import sweep_apart
from ringrift_pipeline.orchestration.places import data_folder
from ringrift_pipeline.orchestration.pools import CELERY, EXECUTOR_VARIABLE, SELFPLAY_QUEUE
from ringrift_pipeline.orchestration.postgres import patience
from ringrift_pipeline.orchestration.watchdog import EXIT_CODE, run_is_over

SIGN = 2.0  # seconds between two signs of life
REPLACED = 0.2  # seconds between two looks whether a step's process is gone
RESTS = 60.0  # seconds that a worker takes nothing from a queue whose run it has refused
CLAIMED = 30  # seconds after the last one that a task is nobody else's to begin
STRIDE = 5.0  # seconds at most that count between two looks: a computer at rest proves nothing
_PROCESS = multiprocessing.process.current_process()  # before Celery replaces it

# What nobody acknowledges goes back into its queue after so many seconds. A step is acknowledged when
# it begins, so this is about those that a worker took with it on the way there.
_VISIBILITY = 120

_WAITING = {"max_retries": 2, "interval_start": 0, "interval_step": 0.5, "interval_max": 0.5}


def make_celery(settings: CelerySettings) -> Celery:
    """The application, for a worker as for whoever hands it steps."""
    source = {
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,  # Redis may be away for longer than a worker lives
        "broker_transport_options": {
            "visibility_timeout": _VISIBILITY,
            "socket_timeout": 20,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
        },
        "redis_socket_timeout": 20,
        "redis_socket_connect_timeout": 5,
        "redis_socket_keepalive": True,
        "result_backend_transport_options": {"retry_policy": _WAITING},
        "task_publish_retry_policy": _WAITING,
        "result_expires": 86_400,
        "task_default_queue": SELFPLAY_QUEUE,
        # One takes no more than it works on: what waits is for whoever is free first.
        "worker_disable_prefetch": True,
        "worker_prefetch_multiplier": 1,
        "worker_max_tasks_per_child": 1,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_send_task_events": False,
        "worker_redirect_stdouts": False,
        "task_acks_late": False,
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
    }
    made = make_app({"broker": settings.broker, "backend": settings.backend})
    made.conf.update(source)
    made.steps["worker"].add(Replacement)
    return made


def alone() -> float:
    """Seconds after which a step's process that nobody has answered leaves: it is lost to its run, which has
    begun it again elsewhere or will. So long PostgreSQL is waited for, and then a sign of life.
    """
    return patience() + CelerySettings.from_environment().lost_after


def _leave(silent: float) -> None:
    logging.getLogger(__name__).error(
        "neither PostgreSQL nor Redis has answered for %.0f s: the step is another's by now, and this "
        "process leaves",
        silent,
    )
    os._exit(EXIT_CODE)


class StepTask(Task):
    """dagster-celery's task with what a step needs around it.

    Raises:
        WorkerVersionError, OtherBucketError: the run was made by another version, or keeps what it
            makes elsewhere; the worker takes no more from that queue for `RESTS` seconds.
        OtherHistoryError: nothing is known of the run here.
    """

    # A step's result is what it tells Dagster; here only what kept it from telling is kept.
    ignore_result = True
    store_errors_even_if_ignored = True

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        try:
            refuse_others((self.request.headers or {}).get(HEADER))
        except RefusalError:
            self._rest()
            raise
        arguments = unpack_value(kwargs["execute_step_args_packed"], as_type=ExecuteStepArgs)
        if arguments.instance_ref is None or self._is_begun():
            return
        with self._signs():  # before PostgreSQL is asked, which may take longer than silence may
            with DagsterInstance.from_ref(arguments.instance_ref) as instance:
                if instance.get_run_by_id(arguments.run_id) is None:
                    raise OtherHistoryError(
                        f"the worker on {socket.gethostname()} knows no run {arguments.run_id}: it "
                        "was deleted, or runs are kept in a file of one machine; copy "
                        "deploy/celery/dagster.yaml to $RINGRIFT_DATA/dagster/, which keeps them in "
                        "PostgreSQL"
                    )
                if run_is_over(instance, arguments.run_id):
                    return  # it was cancelled while this waited
            self.run(*args, **kwargs)

    def _rest(self) -> None:
        """Have this worker take no more from the queue for a while."""
        queue = (self.request.delivery_info or {}).get("routing_key")
        with contextlib.suppress(Exception):
            told = {"queue": queue, "seconds": RESTS}
            here = [self.request.hostname]
            self.app.control.broadcast(rest.__name__, arguments=told, destination=here)

    def _is_begun(self) -> bool:
        """Has somebody begun this very task, or does so at this moment? It can come twice, where Redis
        forgot that it went, or seemed to have. Who asks first has it from then on, and where that one's
        process died it is begun again under another id.
        """
        with contextlib.suppress(Exception):  # Redis is away: nobody is given anything
            told = self.backend.get_task_meta(self.request.id, cache=False)
            if told["status"] in (PROGRESS, "FAILURE"):
                return True
            return not self._client().set(self._claim(), os.getpid(), nx=True, ex=CLAIMED)
        return False

    def _client(self) -> Any:
        return self.backend.client

    def _claim(self) -> str:
        return f"ringrift-begun-{self.request.id}"

    @contextmanager
    def _signs(self) -> Iterator[None]:
        """A thread that tells every `SIGN` seconds that this process lives, and how far it is.

        Another one ends the process once neither Redis has taken that nor PostgreSQL has answered the step's
        watchdog for long: both may wait for an answer that never comes. What is left half written goes when
        the step is begun again, or the worker started.
        """
        step = remote.begin()
        # Matches are played by processes of the step. Celery has put itself in the place of the standard
        # library's process, as a daemon that may have no children, and whose key cannot be handed on.
        multiprocessing.process._current_process = _PROCESS  # type: ignore[attr-defined]
        done = threading.Event()
        who = {"pid": os.getpid(), "worker": self.request.hostname}
        task_id, claim, number = self.request.id, self._claim(), 0
        limit = alone()

        def sign() -> None:
            nonlocal number
            number += 1
            progress = asdict(step.progress) if step.progress is not None else None
            told = {**who, "sign": number, "progress": progress}
            with contextlib.suppress(Exception):  # Redis is away: the next one will tell
                self.update_state(task_id=task_id, state=PROGRESS, meta=told)
                self._client().expire(claim, CLAIMED)
                remote.note_answer()

        def tell() -> None:
            while not done.wait(SIGN):
                sign()

        def fence() -> None:
            silent, looked = 0.0, time.monotonic()
            while not done.wait(SIGN):
                before, looked = looked, time.monotonic()
                silent += min(looked - before, STRIDE)
                if step.answered:
                    step.answered, silent = False, 0.0
                elif silent > limit:
                    _leave(silent)

        threading.Thread(target=fence, name="fence", daemon=True).start()
        sign()
        thread = threading.Thread(target=tell, name="signs-of-life", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(SIGN)  # no sign comes behind what Celery writes next: how the step ended
            remote.end()


@control_command(args=[("queue", str), ("seconds", float)])
def rest(state: Any, queue: str, seconds: float) -> dict[str, str]:
    """Takes nothing from a queue for so many seconds: who refuses is free first every time, and would
    refuse all there is. In the worker's own process.
    """
    consumer = state.consumer
    if consumer.task_consumer.consuming_from(queue):
        consumer.call_soon(consumer.cancel_task_queue, queue)
        consumer.timer.call_after(seconds, consumer.add_task_queue, (queue,))
    return {"ok": f"rests for {seconds:.0f} s"}


class Replacement(StartStopStep):
    """Replaces a step's process as soon as it is gone. Celery looks for its end once, at the moment its
    pipe closes, when it may not be quite over, and then every five seconds.
    """

    requires = (Pool,)

    def register_with_event_loop(self, worker: Any, hub: Any) -> None:
        """Celery's; nothing is registered with a pool that has no such processes."""
        pool = getattr(worker.pool, "_pool", None)
        if pool is not None:
            hub.call_repeatedly(REPLACED, pool.maintain_pool)


@worker_init.connect
def _load(**_: object) -> None:
    """What every step needs, once, before the processes of the steps are forked.

    Before that what killed steps have left behind goes.
    """
    sweep_apart(data_folder())
    import ringrift_pipeline.orchestration.preload  # noqa: F401


# Queues and pools are part of the definitions: a worker's are those of its runs.
os.environ[EXECUTOR_VARIABLE] = CELERY
app = make_celery(CelerySettings.from_environment())
execute_step = create_task(app, base=StepTask)
