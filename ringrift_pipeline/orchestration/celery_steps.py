"""The steps of one run on Celery's workers: handed out, asked after, taken back."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from dagster import DagsterEvent
from dagster._core.events import EngineEventData
from dagster._core.execution.plan.handle import ResolvedFromDynamicStepHandle, StepHandle
from dagster._core.execution.plan.objects import StepFailureData
from dagster._core.executor.step_delegating.step_handler.base import (
    CheckStepHealthResult,
    StepHandler,
    StepHandlerContext,
)
from dagster._grpc.types import ExecuteStepArgs
from dagster._serdes import pack_value
from dagster._utils.error import SerializableErrorInfo
from dagster_celery.config import TASK_EXECUTE_PLAN_NAME
from dagster_shared.record import copy

from ringrift_pipeline.orchestration.celery_app import make_celery
from ringrift_pipeline.orchestration.celery_requests import Requests, UnansweredError, tasks_in
from ringrift_pipeline.orchestration.celery_settings import (
    HEADER,
    PROGRESS,
    BrokerAwayError,
    CelerySettings,
    NoWorkerError,
    OtherBucketError,
    OtherHistoryError,
    RefusalError,
    WorkerVersionError,
    start_line,
    terms,
)
from ringrift_pipeline.orchestration.places import data_folder
from ringrift_pipeline.orchestration.pools import QUEUE_TAG, SELFPLAY_QUEUE
from ringrift_pipeline.orchestration.progress import (
    StepProgress,
    forget_progress,
    note_progress,
)

SENT = "SENT"  # state of a task that was handed out and has not begun
REVOKED = "REVOKED"  # state of one that Celery does not begin any more, or that it was told to end
STRIDE = 5.0  # seconds at most that count between two looks: a computer at rest proves nothing
ASK = 5.0  # seconds between two looks at the queues
LIST = 10.0  # seconds between two looks at what waits in them
ANSWER = 1.5  # seconds that all workers are given to say what they take from
SERVED = 12.0  # seconds for which that they have said so, or worked, holds
REFUSALS = 20  # by workers of another version or bucket, that a step is handed out again
ENDING = 10.0  # seconds that the process of a revoked task has to say itself that it ends
HEARD = 30.0  # seconds within which the event log says what Dagster was told of a step
_REFUSALS = {kind.__name__: kind for kind in (WorkerVersionError, OtherBucketError)}

_HEALTHY = CheckStepHealthResult.healthy()


@dataclass
class Handed:
    """A step that was handed out. Times are seconds, counted while Redis answers."""

    task_id: str
    queue: str
    looked: float
    sent: bool = False
    # Why, as Dagster was told, which hands it out again if it is to be done again; an error: for good.
    given_up: str | Exception | None = None
    unheard: float = 0.0  # since then, that the event log does not say so
    refused: RefusalError | None = None  # what a worker said that is none for this run
    refusals: int = 0
    revoked: float = 0.0  # since then, by somebody else
    sign: Any = None  # the last one
    still: float = 0.0  # since then
    told: float | None = None  # when it last told how far it is, by its own clock
    silent: float = 0.0  # since then
    unserved: float = 0.0  # that nobody takes from the queue
    missing: float = 0.0  # that it is not in the queue, and still nobody has begun


def its_own(arguments: ExecuteStepArgs) -> ExecuteStepArgs:
    """What a step has to know of its run; of a shard's step that is no other shard.

    Dagster tells each of all of them, so that with their number the square of it lies in Redis.
    """
    state, (key,) = arguments.known_state, arguments.step_keys_to_execute or ()
    handle = StepHandle.parse_from_key(key)
    if state is None or not isinstance(handle, ResolvedFromDynamicStepHandle):
        return arguments
    mine = handle.mapping_key
    mappings = {
        step: {
            name: keys if keys is None else [one for one in keys if one == mine]
            for name, keys in outputs.items()
        }
        for step, outputs in state.dynamic_mappings.items()
    }
    ready = {output for output in state.ready_outputs if output.mapping_key in (None, mine)}
    known = state._replace(dynamic_mappings=mappings, ready_outputs=ready)
    return copy(arguments, known_state=known)


class CelerySteps(StepHandler):
    """What Dagster's executor asks about steps, answered by Celery; one object a run."""

    def __init__(self, settings: CelerySettings) -> None:
        super().__init__()
        self._settings = settings
        self._app = make_celery(settings)
        self._terms = terms()
        # Each kind by itself: a Redis that takes no more may still be read from.
        self._reading = Requests(settings.backend)
        self._sending = Requests(settings.broker)
        self._looking = Requests(settings.broker)
        self._revoking = Requests(settings.broker)
        self._requests = (self._reading, self._sending, self._looking, self._revoking)
        self._warned = False  # that Redis is away
        self._handed: dict[str, Handed] = {}
        self._served: dict[str, float] = {}  # by queue, when somebody was seen to take from it
        self._waiting: dict[
            str, set[str] | None
        ] = {}  # by queue, the tasks in it, if that is known
        self._asked: dict[str, float] = {}  # by queue, when it was looked at
        self._listed: dict[str, float] = {}  # by queue, when these were read

    @property
    def name(self) -> str:
        """For the run's log."""
        return f"Celery, Redis at {self._settings.place}"

    @property
    def _answered(self) -> bool:
        return any(requests.answered for requests in self._requests)

    @property
    def _patience(self) -> float:
        """Seconds that Redis may be away: one that never answered is no outage."""
        return self._settings.outage if self._answered else self._settings.no_worker_after

    # --- what the executor calls ----------------------------------------------------------------

    def begin_look(self) -> None:
        """The executor is about to ask after all steps."""
        for requests in self._requests:
            requests.begin_look()

    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[DagsterEvent]:
        """Hand a step out; what Redis does not take now it is given at the next look."""
        key, handed = self._of(step_handler_context)
        self._handed[key] = handed
        yield DagsterEvent.step_worker_starting(
            step_handler_context.get_step_context(key),
            f"For the queue {handed.queue}, as task {handed.task_id}.",
            metadata={},
        )
        try:
            self._sending.make(lambda: self._send(step_handler_context, handed))
        except UnansweredError as error:
            if not self._warned:
                self._warned = True
                yield DagsterEvent.engine_event(
                    step_handler_context.get_step_context(key),
                    f"{error}: steps wait for it, for {self._patience:.0f} s.",
                    EngineEventData({}),
                )

    def terminate_step(self, step_handler_context: StepHandlerContext) -> Iterator[DagsterEvent]:
        """Take a step back, or end it. A worker that does not hear of it leaves by itself."""
        key, handed = self._of(step_handler_context)
        self._revoke(self._handed.get(key, handed))
        self.end(step_handler_context.dagster_run.run_id, key)
        yield from ()

    def check_step_health(self, step_handler_context: StepHandlerContext) -> CheckStepHealthResult:
        """Is somebody working on the step, or can somebody begin? If not, why not."""
        key, new = self._of(step_handler_context)
        handed = self._handed.get(key)
        if handed is None:
            return self._take_over(key, new)
        now = time.monotonic()
        passed, handed.looked = min(now - handed.looked, STRIDE), now
        if handed.given_up is not None:
            return self._given_up(step_handler_context, handed, handed.given_up, passed)
        why: str | None = None
        try:
            told = self._told(handed)
            if told["status"] not in (PROGRESS, "FAILURE", REVOKED):
                if not handed.sent:
                    self._sending.make(lambda: self._send(step_handler_context, handed))
                if now - self._asked.get(handed.queue, -ASK) > ASK:
                    self._looking.make(lambda: self._look_at(handed.queue))
            if told["status"] == "FAILURE":
                why = self._failed(step_handler_context, handed, told["result"])
        except UnansweredError as error:
            if error.away > self._patience:
                first = "" if self._answered else ", nor ever for this run: look after its address"
                text = f"{error}{first}. Start it, and execute the run again from failure"
                self._fail(step_handler_context, BrokerAwayError(text))
            return _HEALTHY
        if told["status"] == PROGRESS:
            why = self._worked_on(handed, told["result"], passed)
        elif told["status"] == REVOKED:
            why = self._revoked(handed, told["result"], passed)
        elif told["status"] != "FAILURE":
            why = self._waits(step_handler_context, handed, passed)
        if why is None:
            return _HEALTHY
        handed.given_up = why
        return CheckStepHealthResult.unhealthy(why)

    def end(self, run_id: str, key: str) -> None:
        """A step has ended, for now or for good."""
        self._handed.pop(key, None)
        forget_progress(data_folder(), run_id, key)

    # --- the tasks ------------------------------------------------------------------------------

    def _take_over(self, key: str, handed: Handed) -> CheckStepHealthResult:
        """A step of the run's process before this one. What that may not have handed out, Dagster does
        when it is told so: who has begun with it does not begin again.
        """
        try:
            status = self._told(handed)["status"]
        except UnansweredError as error:
            return CheckStepHealthResult.unhealthy(str(error))
        if status == "PENDING":  # Celery's word for a task that it does not know
            return CheckStepHealthResult.unhealthy("it was not handed out")
        self._handed[key] = replace(handed, sent=True)
        return _HEALTHY

    def _told(self, handed: Handed) -> dict[str, Any]:
        """What Redis has been told of a task. Raises UnansweredError."""
        read = self._app.backend.get_task_meta
        told: dict[str, Any] = self._reading.make(lambda: read(handed.task_id, cache=False))
        return told

    def _of(self, context: StepHandlerContext) -> tuple[str, Handed]:
        arguments = context.execute_step_args
        (key,) = arguments.step_keys_to_execute or ()
        attempt = 0
        if arguments.known_state is not None:
            attempt = arguments.known_state.get_retry_state().get_attempt_count(key)
        queue = context.step_tags[key].get(QUEUE_TAG, SELFPLAY_QUEUE)
        return key, Handed(f"{arguments.run_id}/{key}/{attempt}", queue, time.monotonic())

    def _send(self, context: StepHandlerContext, handed: Handed) -> None:
        job: Any = context.get_step_context(self._of(context)[0])
        # Said before it is so: who begins at once says more, and must have the last word.
        self._app.backend.store_result(handed.task_id, None, SENT)
        self._app.send_task(
            TASK_EXECUTE_PLAN_NAME,
            kwargs={
                "execute_step_args_packed": pack_value(its_own(context.execute_step_args)),
                "executable_dict": job.reconstructable_job.to_dict(),
            },
            task_id=handed.task_id,
            queue=handed.queue,
            headers={HEADER: self._terms},
            ignore_result=True,
        )
        handed.sent = True
        if (waiting := self._waiting.get(handed.queue)) is not None:
            waiting.add(handed.task_id)

    def _revoke(self, handed: Handed) -> None:
        revoke = self._app.control.revoke
        with contextlib.suppress(UnansweredError):  # the step's watchdog ends it
            self._revoking.make(lambda: revoke(handed.task_id, terminate=True, signal="SIGKILL"))

    # --- what may be with them ------------------------------------------------------------------

    # Each says why the step is not worked on any more, None if it is, or has failed for good.

    def _failed(self, context: StepHandlerContext, handed: Handed, error: Any) -> str | None:
        """Raises UnansweredError where what a worker has refused cannot be handed out again."""
        name = type(error).__name__
        if name in _REFUSALS and handed.refusals < REFUSALS:
            handed.refusals += handed.sent  # not if it could not be handed out since
            handed.refused = _REFUSALS[name](str(error))
            handed.sent = False  # that worker rests; another may take it
            self._sending.make(lambda: self._send(context, handed))
            return None
        for kind in (*_REFUSALS.values(), OtherHistoryError):
            if name == kind.__name__:
                self._fail(context, kind(str(error)))
                return None
        return f"the worker's process ended: {name}: {error}"

    def _worked_on(self, handed: Handed, sign: Any, passed: float) -> str | None:
        self._served[handed.queue] = time.monotonic()
        handed.sent = True  # also if it was to be handed out anew: who had taken it was only slow
        handed.unserved = handed.missing = handed.revoked = 0.0
        handed.still = 0.0 if sign != handed.sign else handed.still + passed
        handed.sign = sign
        where = f"{sign['worker']}, process {sign['pid']}"
        if handed.still > self._settings.lost_after:
            self._revoke(handed)
            return f"the worker {where} has given no sign of life for {handed.still:.0f} s"
        if sign["progress"] is None:
            return None
        progress = StepProgress(**sign["progress"])
        handed.silent = 0.0 if progress.updated != handed.told else handed.silent + passed
        handed.told = progress.updated
        note_progress(data_folder(), progress, sign["worker"])
        if progress.silence is not None and handed.silent > progress.silence:
            self._revoke(handed)
            return (
                f"it has told nothing for {handed.silent:.0f} s on {where}, and was killed: it hung"
            )
        return None

    def _revoked(self, handed: Handed, how: Any, passed: float) -> str | None:
        """By somebody at Celery, or by the run's process before this one: what this one takes back it has
        given up. Workers remember that, and would not begin it if it was handed out again.
        """
        handed.revoked += passed
        if handed.revoked <= ENDING:
            return None
        return f"Celery was told to end it, or not to begin it ({how})"

    def _waits(self, context: StepHandlerContext, handed: Handed, passed: float) -> str | None:
        """Nobody has begun. That is as it should be, while there are workers and they are busy."""
        served = self._is_served(handed.queue)
        handed.unserved = 0.0 if served else handed.unserved + passed
        waiting = self._waiting.get(handed.queue)
        gone = served and waiting is not None and handed.task_id not in waiting
        handed.missing = handed.missing + passed if gone else 0.0
        known = handed.queue in self._served and not handed.refused
        # They will be back (a restart, an upgrade), unless the last ones were none for this run.
        patience = self._settings.outage if known else self._settings.no_worker_after
        if handed.unserved > patience:
            text = (
                f"no worker takes from the queue {handed.queue!r} of the Redis at "
                f"{self._settings.place}, for {handed.unserved:.0f} s now. Start one: "
                f"{start_line(handed.queue)}"
            )
            self._fail(
                context,
                type(handed.refused)(f"{handed.refused}; {text}")
                if handed.refused
                else NoWorkerError(text),
            )
            self._revoke(handed)  # not before that is written: a revoked task never begins
        elif handed.missing > self._settings.lost_after:
            # Redis has forgotten it, or who took it was gone before it began.
            handed.sent, handed.missing = False, 0.0
        return None

    def _fail(self, context: StepHandlerContext, error: Exception) -> None:
        """The step fails for good: what is wrong would be so again."""
        (key,) = context.execute_step_args.step_keys_to_execute or ()
        name = type(error).__name__
        DagsterEvent.step_failure_event(
            step_context=context.get_step_context(key),
            step_failure_data=StepFailureData(
                error=SerializableErrorInfo(f"{name}: {error}\n", stack=[], cls_name=name),
                user_failure_data=None,
            ),
        )
        self._handed[key].given_up = error

    def _given_up(
        self, context: StepHandlerContext, handed: Handed, why: str | Exception, passed: float
    ) -> CheckStepHealthResult:
        """Dagster was told. If the database did not take it, nobody but this knows: it is told again.

        Should both have come through, the executor takes the first.
        """
        handed.unheard += passed
        if handed.unheard <= HEARD:
            return _HEALTHY
        handed.unheard = 0.0
        if isinstance(why, str):
            return CheckStepHealthResult.unhealthy(why)
        self._fail(context, why)
        return _HEALTHY

    # --- the queues -----------------------------------------------------------------------------

    def _is_served(self, queue: str) -> bool:
        return time.monotonic() - self._served.get(queue, -SERVED) < SERVED

    def _look_at(self, queue: str) -> None:
        """Which steps wait in a queue, and who takes from it."""
        if not self._is_served(queue):
            answers = self._app.control.inspect(timeout=ANSWER).active_queues() or {}
            now = time.monotonic()
            for answer in answers.values():
                self._served |= {str(one["name"]): now for one in answer}
        with self._app.connection_for_read() as connection:
            channel: Any = connection.default_channel
            if not channel._size(queue):
                self._waiting[queue] = set()
            elif time.monotonic() - self._listed.get(queue, -LIST) > LIST:
                self._waiting[queue] = tasks_in(channel, queue)
                self._listed[queue] = time.monotonic()
        self._asked[queue] = time.monotonic()
