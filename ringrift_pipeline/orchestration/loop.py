"""The loop as the command line runs it: the real daemon, one generation submitted, the others
started by the sensor, watched to the last one's decision, then everything stopped.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from dagster import (
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    RunRecord,
    RunsFilter,
)
from dagster._core.errors import DagsterRunNotFoundError
from dagster._core.storage.tags import RUN_FAILURE_REASON_TAG

from ringrift_pipeline.enhancements.training_config import TrainingConfig
from ringrift_pipeline.evaluation.feedback import next_settings
from ringrift_pipeline.orchestration.backend import Backend
from ringrift_pipeline.orchestration.decisions import CHECKS, FAULTS, read_decision
from ringrift_pipeline.orchestration.failure_sensor import first_failure
from ringrift_pipeline.orchestration.instance import no_retry, own_instance
from ringrift_pipeline.orchestration.names import (
    ASSETS,
    CONFIG_TAG,
    PARTITION_TAG,
    backfill_in,
    generation_key,
    job_name,
)
from ringrift_pipeline.orchestration.one_daemon import is_ours
from ringrift_pipeline.orchestration.places import home_folder
from ringrift_pipeline.orchestration.pools import pools_for
from ringrift_pipeline.orchestration.progress import StepProgress, read_progress
from ringrift_pipeline.orchestration.reexecution import (
    RETRY_TAG,
    is_retried,
    retry_noted,
    standing_run,
)
from ringrift_pipeline.orchestration.sensor import decide
from ringrift_pipeline.orchestration.services import Service, Stopping, never, start_webserver
from ringrift_pipeline.orchestration.settings import run_config
from ringrift_pipeline.orchestration.silent_services import SILENCE
from ringrift_pipeline.orchestration.submit import submit_generation
from ringrift_pipeline.orchestration.summary import GenerationSummary, listed, summarize
from ringrift_pipeline.orchestration.switches import (
    paused_note,
    refuse_paused,
    refuse_turned_off,
    turned_off_note,
)
from ringrift_pipeline.store import Store

LOOK = 2.0  # seconds between two looks at the instance, which cost it a tenth of a core at one
DECISION_PATIENCE = 180.0  # seconds the sensor may take after a run has succeeded
PAUSE_PATIENCE = 10.0  # seconds after which an undecided run of what is paused waits in vain
RETRY_PATIENCE = 120.0  # seconds the daemon may take to retry a run it said it would
MOST_HEALING = 3 * SILENCE  # seconds after the end of a run in which services may be started again
# Reasons of a failure that would come again, Dagster's words.
ERRORS = ("RUN_EXCEPTION", "JOB_INITIALIZATION_FAILURE", "STEP_FAILURE")
MOST_LOST = 3  # times that a generation is begun again whose run was lost and will not be retried


class LoopError(RuntimeError):
    """A generation could not be finished; the message says which step failed and why."""


@dataclass(frozen=True)
class LoopRequest:
    """What ``ringrift loop`` was asked for."""

    config: str
    data: Path
    settings: TrainingConfig
    generations: int
    resume: str = "auto"
    ui_port: int | None = None


@dataclass
class GenerationState:
    """How far one generation is. ``assets`` maps an asset to waiting, running, done or failed;
    ``decision`` is what was last read of the one on it, None before.
    """

    generation: int
    run_id: str | None = None
    status: str = "waiting"
    decided: bool = False
    decision: dict[str, Any] | None = None
    assets: dict[str, str] = field(default_factory=lambda: dict.fromkeys(ASSETS, "waiting"))
    seconds: dict[str, float] = field(default_factory=dict)
    steps: list[StepProgress] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Zero-padded."""
        return generation_key(self.generation)

    @property
    def settled(self) -> bool:
        """Is there nothing about it that a look could change?"""
        return self.decided and self.status == "success"


@dataclass(frozen=True)
class Snapshot:
    """The loop at one moment, for whoever draws it."""

    config: str
    generations: list[GenerationState]
    elapsed: float


def first_generation(store: Store, config: str, resume: str) -> int:
    """Where the loop goes on: the newest generation if it is not finished, or stopped at a failed
    check, else the next one.

    With ``resume="never"`` such a generation is left as it is.
    """
    generations = store.generations(config)
    if not generations:
        return 0
    newest = generations[-1]
    if resume == "never" or is_decided(store, config, newest):
        return newest + 1
    return newest


def is_decided(store: Store, config: str, generation: int) -> bool:
    """Has the sensor decided on this generation for good? On whichever evaluation of it; one that
    stopped at a failed check has to be put right first.
    """
    decision = read_decision(store, config, generation)
    return decision is not None and decision.get("end") not in FAULTS


class Loop:
    """Use as a context manager; ``watch`` yields snapshots until the last generation is decided.

    Args:
        stopping: asked between two looks; ``watch`` then raises KeyboardInterrupt. An exception
            raised by a signal handler would come up anywhere, also where a library drops it.

    Raises:
        PausedError: the config's loop is paused.
        SensorOffError: on entering, if the sensor that decides is turned off.
        LockedError: on entering, if another process runs this data root's daemon.
        KeyboardInterrupt: on entering, if ``stopping`` says so meanwhile.
    """

    def __init__(self, request: LoopRequest, stopping: Stopping = never) -> None:
        self.request = request
        self.store = Store(request.data)
        refuse_paused(self.store, request.config)
        self.first = first_generation(self.store, request.config, request.resume)
        self.last = self.first + request.generations - 1
        self.states: dict[int, GenerationState] = {
            number: GenerationState(number) for number in range(self.first, self.last + 1)
        }
        self._stopping = stopping
        self._backend: Backend | None = None
        self._services: list[Backend | Service] = []
        self._stack = contextlib.ExitStack()
        self._instance: DagsterInstance | None = None
        self._began = time.monotonic()
        self._newest_before = 0  # number of the newest run that was there already
        self._before: dict[int, str | None] = {}
        self._finished_at: dict[int, float] = {}
        self._lost: Counter[int] = Counter()

    @property
    def planned(self) -> TrainingConfig | None:
        """The settings that the first generation was planned with, None if it has no plan yet."""
        if self.first not in self.store.generations(self.request.config):
            return None
        plan = self.store.read_plan(self.request.config, self.first)
        return TrainingConfig.from_dict(plan["settings"])

    @property
    def instance(self) -> DagsterInstance:
        """The open instance. Only inside the ``with`` block."""
        assert self._instance is not None, "the loop has not been entered"
        return self._instance

    def __enter__(self) -> Loop:
        with contextlib.ExitStack() as stack:
            self._instance = stack.enter_context(own_instance(self.request.data))
            refuse_turned_off(self.instance)
            self._replace_old_runs()
            for record in self.instance.get_run_records(limit=1):
                self._newest_before = record.storage_id
            for number in self.states:
                known = read_decision(self.store, self.request.config, number)
                self._before[number] = known["run"] if known else None
            stack.callback(self._stop)
            made, waits = self._take_up()
            following = self.first + 1 if made else self.first
            if not waits and following > self.last:
                self._stack = stack.pop_all()
                return self
            backend = Backend(
                self.request.data,
                self.instance,
                stopping=self._stopping,
                more=pools_for(self.request.settings.device),
            )
            self._backend = backend
            self._services.append(backend)  # it loads meanwhile
            if not waits:
                self._submit(following)  # before there is a sensor that would start it as well
            backend.begin()
            if self.request.ui_port is not None:
                self._services.append(
                    start_webserver(
                        self.request.data,
                        "127.0.0.1",
                        self.request.ui_port,
                        backend.workspace,
                        stopping=self._stopping,
                    )
                )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _submit(self, generation: int) -> None:
        settings = next_settings(
            self.store, self.request.config, generation, self.request.settings
        ).settings
        submit_generation(
            self.instance,
            self.request.config,
            generation,
            run_config(settings, last_generation=self.last, resume=self.request.resume),
        )

    def _take_up(self) -> tuple[bool, bool]:
        """Has a run made the first generation already, which nobody had decided on when the daemon
        ended? That is done now, or is still to be waited for; it is not run again. Nor is one that the
        daemon of a loop that was killed has decided on meanwhile.
        """
        config = self.request.config
        record = standing_run(self.instance, config, self._runs(self.first))
        if record is None:
            return False, False
        waits = False
        if record.dagster_run.status == DagsterRunStatus.SUCCESS:
            waits = not decide(self.instance, self.store, config, self.first, last=self.last)
        made = is_decided(self.store, config, self.first)
        # One without a plan has lost its files, or never had any, and is begun anew.
        made = made and self.first in self.store.generations(config)
        if made or waits:
            self._newest_before = record.storage_id - 1
            self._before[self.first] = None if made else self._before[self.first]
        return made, waits

    def _replace_old_runs(self) -> None:
        """Runs of this config that were queued, or lost and due for a retry, are ours now."""
        self._cancel_waiting("Replaced by a new ringrift loop.")
        for record in self._records(limit=100, statuses=[DagsterRunStatus.FAILURE]):
            if record.dagster_run.tags.get(RETRY_TAG) != "false":
                no_retry(self.instance, record.dagster_run.run_id)

    # --- watching -------------------------------------------------------------------------------

    def watch(self) -> Iterator[Snapshot]:
        """A snapshot every `LOOK` seconds, the last one when the last generation is decided.

        Raises:
            LoopError: a run failed or was cancelled, a blocking check failed, or a decision does not
                come.
            ServiceError: the daemon, the code server or the web server ended again and again.
            KeyboardInterrupt: ``stopping`` says so.
        """
        while True:
            if self._stopping():
                raise KeyboardInterrupt
            for service in self._services:
                service.check()
            self._look()
            yield Snapshot(
                self.request.config, list(self.states.values()), time.monotonic() - self._began
            )
            self._stop_at_faults()
            if all(state.decided for state in self.states.values()):
                return
            self._judge()
            time.sleep(LOOK)

    def _look(self) -> None:
        """Bring the states up to date."""
        for state in self.states.values():
            if state.settled:
                continue
            run = self._own_run(state.generation)
            if run is None:
                break  # nor has a later one: each is started by the one before
            state.run_id, state.status = run.run_id, run.status.value.lower()
            self._look_at_steps(state)
            state.steps = read_progress(self.request.data, run.run_id)
            if not state.decided and self._is_decided(state, run):
                state.decided = True
            if state.decided and run.is_finished:
                state.steps = []

    def _is_decided(self, state: GenerationState, run: DagsterRun) -> bool:
        """Is there a decision on a run of the generation that is over?"""
        if not run.is_finished:
            return False
        known = state.decision = read_decision(self.store, self.request.config, state.generation)
        # A decision on an older run of the same generation does not count.
        fresh = known is not None and known["run"] != self._before[state.generation]
        return fresh and not self._is_of_a_lost_run(state, run, known)

    def _runs(self, generation: int) -> Sequence[RunRecord]:
        """Runs of a generation, whoever started them and when, newest first."""
        tags = {CONFIG_TAG: self.request.config, PARTITION_TAG: generation_key(generation)}
        return self._records(tags=tags)

    def _records(self, limit: int | None = None, **wanted: Any) -> list[RunRecord]:
        """Runs of the config's generations, newest first; not a backfill's, which decide nothing."""
        filters = RunsFilter(job_name=job_name(self.request.config), **wanted)
        records = self.instance.get_run_records(filters, limit=limit)
        return [one for one in records if backfill_in(one.dagster_run.tags) is None]

    def _own_run(self, generation: int) -> DagsterRun | None:
        """The run at which a generation stands, of those that came after this loop had begun."""
        # By number, for a clock may be turned on or back.
        runs = [one for one in self._runs(generation) if one.storage_id > self._newest_before]
        record = standing_run(self.instance, self.request.config, runs)
        return record.dagster_run if record is not None else None

    def _look_at_steps(self, state: GenerationState) -> None:
        assert state.run_id is not None
        spans: dict[str, list[tuple[float, float | None]]] = {}
        failed = set()
        for step in self.instance.get_run_step_stats(state.run_id):
            asset = asset_of_step(self.request.config, step.step_key)
            if asset is None or step.start_time is None:
                continue
            spans.setdefault(asset, []).append((step.start_time, step.end_time))
            if step.status is not None and step.status.value == "FAILURE":
                failed.add(asset)
        order = [asset for asset in ASSETS if asset in spans]
        for asset in order:
            starts = [start for start, _ in spans[asset]]
            ends = [end for _, end in spans[asset]]
            over = all(end is not None for end in ends)
            # selfplay is many steps: it is over once something after it has begun
            following = ASSETS[ASSETS.index(asset) + 1 :]
            if asset == "selfplay_shards" and state.status == "started":
                over = over and any(name in spans for name in following)
            state.assets[asset] = "failed" if asset in failed else "done" if over else "running"
            latest = max((end for end in ends if end is not None), default=None)
            until = latest if over and latest else time.time()
            state.seconds[asset] = max(0.0, until - min(starts))

    def _stop_at_faults(self) -> None:
        """Raise LoopError for a generation at which somebody has to put something right.

        The decision on the newest one is read again: there may be another one since. Those before it
        have been followed.
        """
        decided = [state for state in self.states.values() if state.decided]
        for state in decided[-1:]:
            state.decision = read_decision(self.store, self.request.config, state.generation)
        for state in decided:
            known = state.decision
            if known is not None and known.get("end") in FAULTS:
                raise LoopError(
                    f"{self.request.config} generation {state.key}: {'; '.join(known['reasons'])}. "
                    "Once that is put right, ringrift loop goes on from here; with --resume never it "
                    "leaves the generation as it is"
                )

    def _judge(self) -> None:
        """Raise LoopError for what will not get better by waiting. Services that hang are healed, and
        waited for.
        """
        now = time.monotonic()
        well_since = self._backend.well_since if self._backend is not None else 0.0
        for state in self.states.values():
            if state.decided or state.run_id is None:
                continue
            if state.status not in ("success", "failure", "canceled"):
                self._finished_at.pop(state.generation, None)
                continue
            finished_at = self._finished_at.setdefault(state.generation, now)
            waited = now - finished_at
            # What makes them hang once more, or end, is not waited for without end.
            since = waited if waited > MOST_HEALING else now - max(finished_at, well_since)
            name = f"{self.request.config} generation {state.key}"
            if state.status == "canceled":
                raise LoopError(f"{name}: its run was cancelled; ringrift loop goes on from there")
            if state.status == "failure":
                retried = self._may_be_retried(state.run_id)
                if not retried and self._begin_again(state):
                    continue
                if since > RETRY_PATIENCE or not retried:
                    raise LoopError(f"{name}: {self.failure(state.run_id)}")
            elif since > PAUSE_PATIENCE and (note := self._waits_in_vain()):
                raise LoopError(f"{name}: {note}")
            elif since > DECISION_PATIENCE:
                raise LoopError(
                    f"{name}: the run succeeded but the sensor decided nothing for "
                    f"{waited:.0f} s; see {home_folder(self.request.data) / 'services'}"
                )
        for before, after in pairwise(self.states.values()):
            known = before.decision
            if before.decided and after.run_id is None and known and known["next"] is None:
                name = f"{self.request.config} generation {after.key}"
                if self._runs(after.generation):
                    raise LoopError(
                        f"{name} was started before and is not started twice: the run history in "
                        f"{home_folder(self.request.data)} knows a run of it that was cancelled "
                        "before it made anything, or whose files are gone; restore them, or run "
                        "ringrift loop again, which begins it anew"
                    )
                raise LoopError(f"{name} was not started: {'; '.join(known['reasons'])}")

    def _waits_in_vain(self) -> str | None:
        """Why no decision comes, and what to do, where somebody has seen to that."""
        return paused_note(self.store, self.request.config) or turned_off_note(self.instance)

    def _may_be_retried(self, run_id: str) -> bool:
        """Will Dagster retry a failed run, or has it not noted yet whether it will?"""
        record = self.instance.get_run_record_by_id(run_id)
        if record is None:
            return False
        run = record.dagster_run
        noted = retry_noted(self.instance, run, record.end_time or time.time())
        return not noted or is_retried(self.instance, run)

    def _begin_again(self, state: GenerationState) -> bool:
        """Ask once more for a generation whose run was lost: no step of it failed, and Dagster does not
        retry it, as where the code server was gone at that moment. Not for ever.
        """
        assert state.run_id is not None
        if not self._is_lost(state.run_id) or self._lost[state.generation] >= MOST_LOST:
            return False
        self._lost[state.generation] += 1
        self._submit(state.generation)
        return True

    def _is_lost(self, run_id: str) -> bool:
        """Did a failed run end without an error of its own?"""
        run = self.instance.get_run_by_id(run_id)
        if run is None or run.tags.get(RUN_FAILURE_REASON_TAG) in ERRORS:
            return False
        return first_failure(self.instance, run_id)[0] is None

    def _is_of_a_lost_run(
        self, state: GenerationState, run: DagsterRun, known: dict[str, Any] | None
    ) -> bool:
        """Has a generation been found at fault only because its run was lost before its checks? It is
        made once more then, and decided on anew.
        """
        if known is None or known.get("end") != CHECKS:
            return False
        its_own = {run.run_id, run.parent_run_id, run.root_run_id}
        with contextlib.suppress(DagsterRunNotFoundError):  # somebody has deleted the first one
            group = self.instance.get_run_group(run.run_id)
            its_own |= {one.run_id for one in group[1]} if group else set()
        if known["run"] not in its_own:
            return True  # this run is the newer one
        lost = run.status == DagsterRunStatus.FAILURE and self._is_lost(run.run_id)
        return lost and self._lost[state.generation] < MOST_LOST

    def failure(self, run_id: str) -> str:
        """The first failed step of a run and its error, in one line."""
        step, why = first_failure(self.instance, run_id)
        return f"step {step} failed: {why}" if step else f"the run failed: {why}"

    # --- the end --------------------------------------------------------------------------------

    def summaries(self) -> list[GenerationSummary]:
        """One summary for every generation that this loop worked on."""
        config = self.request.config
        ratings = listed(self.store, config)
        return [
            summarize(self.store, config, state.generation, state.seconds, ratings)
            for state in self.states.values()
            if state.run_id is not None
        ]

    def kill(self) -> None:
        """End everything at once, from a signal handler, before the process leaves. The next loop
        takes up what was finished.
        """
        for service in reversed(self._services):
            service.kill()

    def _stop(self) -> None:
        """Stop the services, and with them what runs; what waits is this loop's to take back."""
        for service in reversed(self._services):
            service.stop()
        if is_ours(self.instance):
            self._cancel_waiting("Stopped with the loop that asked for it.")

    def _cancel_waiting(self, why: str) -> None:
        for record in self._records(statuses=[DagsterRunStatus.QUEUED]):
            self.instance.report_run_canceled(record.dagster_run, message=why)


def asset_of_step(config: str, step_key: str) -> str | None:
    """``square8_2p__selfplay_shards.play[0001]`` -> ``selfplay_shards``; None for a check's step."""
    name = step_key.removeprefix(f"{config}__").split(".")[0].split("[")[0]
    return name if name in ASSETS else None
