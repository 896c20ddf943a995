"""A step that outlives its run leaves by itself.

Terminating a run raises in the step's Python code, but a compiled kernel or a long numpy call
computes on, and a step whose run worker was killed goes on as an orphan whose success would land
in a failed run. So a thread beside each step watches the run and the parent process.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable

from dagster import DagsterEventType, DagsterInstance, DagsterRunStatus

from ringrift_pipeline.orchestration import remote

INTERVAL = 2.0  # seconds between two looks
INTERVAL_FAR = 5.0  # the same of many workers at one database
GRACE = 4.0  # seconds the step has to end by itself, once it should
EXIT_CODE = 130


def run_is_finished(instance: DagsterInstance, run_id: str) -> bool:
    """Is the run finished or deleted?"""
    run = instance.get_run_by_id(run_id)
    return run is None or run.is_finished


def run_is_over(instance: DagsterInstance, run_id: str) -> bool:
    """Is the run finished, on its way to be cancelled, or deleted?"""
    run = instance.get_run_by_id(run_id)
    return run is None or run.is_finished or run.status == DagsterRunStatus.CANCELING


def is_given_up(instance: DagsterInstance, run_id: str, step_key: str, attempt: int) -> bool:
    """Is a step, begun again after ``attempt`` times, done once more by somebody else, or has it failed
    for good? Its worker was taken for lost.
    """
    ends = {DagsterEventType.STEP_UP_FOR_RETRY, DagsterEventType.STEP_FAILURE}
    events = [
        record.event_log_entry.dagster_event
        for record in instance.get_records_for_run(run_id, of_type=ends).records
        if record.event_log_entry.step_key == step_key
    ]
    failed = any(event is not None and event.is_step_failure for event in events)
    return failed or len(events) > attempt


class Watchdog:
    """Watches one step: ``with Watchdog(...) as dog`` around its work.

    ``dog.stopping()`` turns true when the step should end (the rooms poll it); ``GRACE`` seconds
    later the process is left with ``os._exit``. In the main process of a program (a test, a
    notebook) it only asks and never leaves.

    Args:
        over: says whether the run is over; an exception counts as "not known, ask again". Who ends a
            step elsewhere that nobody answers any more is `celery_app`.
        finished: says whether it has ended for good. Asked when the step is done: the success of a
            step whose run has ended must not land.
        leave: what ends the process; default ``os._exit``, None never.
    """

    def __init__(
        self,
        over: Callable[[], bool],
        *,
        finished: Callable[[], bool] = lambda: False,
        interval: float = INTERVAL,
        grace: float = GRACE,
        leave: Callable[[int], object] | None = os._exit,
    ) -> None:
        self._over = over
        self._finished = finished
        self._interval = interval
        self._grace = grace
        self._leave = leave
        self._parent = os.getppid()
        self._should_stop = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="step-watchdog", daemon=True)

    @classmethod
    def of_run(
        cls,
        instance: DagsterInstance,
        run_id: str,
        leave: Callable[[int], object] = os._exit,
        step_key: str = "",
        attempt: int = 0,
    ) -> Watchdog:
        """The watchdog of a step of ``run_id``, armed only where the process is the step's own."""
        far = remote.current() is not None
        own_process = far or multiprocessing.parent_process() is not None

        def ended(of_run: Callable[[DagsterInstance, str], bool]) -> bool:
            ended = of_run(instance, run_id) or (
                far and is_given_up(instance, run_id, step_key, attempt)
            )
            remote.note_answer()
            return ended

        return cls(
            lambda: ended(run_is_over),
            finished=lambda: ended(run_is_finished),
            leave=leave if own_process else None,
            interval=INTERVAL_FAR if far else INTERVAL,
        )

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=self._interval + 1.0)
        if self._leave is not None and self._asks(self._finished):
            self._leave(EXIT_CODE)

    def stopping(self) -> bool:
        """Should the step end? Cheap: polled from inner loops."""
        return self._should_stop.is_set()

    def _asks(self, question: Callable[[], bool]) -> bool:
        if os.getppid() != self._parent:
            return True  # the run worker died, and somebody else adopted this process
        try:
            return question()
        except Exception:  # a database busy for a moment must not end a step
            return False

    def _watch(self) -> None:
        while not self._done.wait(self._interval):
            if self._asks(self._over):
                self._should_stop.set()
                if self._leave is not None and not self._done.wait(self._grace):
                    self._leave(EXIT_CODE)
                return
