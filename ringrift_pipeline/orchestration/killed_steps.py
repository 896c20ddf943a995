"""Why a step has ended that could not say so itself, as its process was killed. Dagster records an error
without a text then.
"""

from __future__ import annotations

import re

from dagster import DagsterEventType, DagsterInstance
from dagster._core.events import EngineEventData
from dagster._core.executor.child_process_executor import ChildProcessCrashException
from dagster._utils.error import SerializableErrorInfo

from ringrift_pipeline.orchestration.progress import StepProgress

HUNG = "step/hung"  # metadata of the event that says so: seconds for which it had told nothing

# As Dagster's executor says it of a step's process.
_SIGNAL = re.compile(r"child process for step .* was terminated by signal \d+ \((\w+)\)")
_CODE = re.compile(r"child process for step .* unexpectedly exited with code (\d+)")
_ADVICE = (
    "if memory is short, lower training.batch_size, selfplay.parallel_games or selfplay.workers, or "
    "the limit of the pool cpu, for fewer steps at once"
)


def report_hung(instance: DagsterInstance, step: StepProgress) -> None:
    """Say in its run's log that a step hangs; to be called before it is killed, as it is read in order."""
    run = instance.get_run_by_id(step.run_id)
    silence = step.silence or 0.0
    if run is not None:
        instance.report_engine_event(
            f"it hung: it had told nothing for {silence:.0f} s, and its process {step.pid} was "
            "killed",
            run,
            EngineEventData({HUNG: silence}),
            step_key=step.step,
        )


def was_killed(error: SerializableErrorInfo) -> bool:
    """Is it the error of a step whose process was killed, or ended without a word?"""
    return error.cls_name == ChildProcessCrashException.__name__


def why_killed(instance: DagsterInstance, run_id: str, step: str | None) -> str:
    """What is known of such a step's end, the last if it was tried several times."""
    unknown = f"its process was killed, perhaps for want of memory; {_ADVICE}"
    why, hung = unknown, False
    kinds = {DagsterEventType.ENGINE_EVENT, DagsterEventType.STEP_UP_FOR_RETRY}
    for event in instance.all_logs(run_id, of_type=kinds):
        told = event.dagster_event
        if told is None or event.step_key != step:
            continue
        if told.event_type == DagsterEventType.STEP_UP_FOR_RETRY:
            why, hung = unknown, False
        elif HUNG in told.engine_event_data.metadata:
            why, hung = told.message or "it hung", True
        elif not hung and (ended := _end(told.message or "")):
            why = ended
    return why


def _end(told: str) -> str | None:
    if (found := _SIGNAL.search(told)) is not None:
        memory = f", perhaps for want of memory; {_ADVICE}" if found[1] == "SIGKILL" else ""
        return f"its process was killed ({found[1]}){memory}"
    if (found := _CODE.search(told)) is not None:
        return f"its process ended with exit code {found[1]}, without a word"
    return None
