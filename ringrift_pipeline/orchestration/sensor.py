"""``evaluation_landed``: promotes what the gate lets through and starts the next generation.

A plain cursor sensor over all configs, because an asset sensor loses events when several land in
one tick; what it remembers is in `cursor`. The run key is ``config/generation``, so that a repeated
event or a restarted daemon starts a generation once and only once.

An evaluation that failed its checks is decided, and looked at again once something was run for its
generation since: a retry, a re-execution, or the checks alone.

Two daemons by mistake evaluate one after the other; what both ask for, `run_order` starts once, and what
somebody else has started since not at all.

A config that it has not seen before gets its first partition, so that its first generation can be launched.

What goes wrong with one config stays with it: the error is logged and reported, its cursor stays
where it was, and the others go on.
"""

import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dagster import (
    AssetMaterialization,
    AssetRecordsFilter,
    DagsterInstance,
    DagsterRun,
    DefaultSensorStatus,
    EventLogRecord,
    RunRequest,
    RunsFilter,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    sensor,
)

from ringrift_pipeline.orchestration.champion import champion_event
from ringrift_pipeline.orchestration.cursor import Cursor, Stopped, read_cursor
from ringrift_pipeline.orchestration.decisions import (
    CHECKS,
    FAULTS,
    PLAN,
    is_about,
    keep_decision,
    limit_before,
    newest_decision,
    promote,
    read_decision,
    was_promoted,
)
from ringrift_pipeline.orchestration.following import following_run
from ringrift_pipeline.orchestration.launchable import add_partitions
from ringrift_pipeline.orchestration.loop_alerts import checks_failed, not_handled, plan_unusable
from ringrift_pipeline.orchestration.names import (
    CONFIG_TAG,
    CONFIGS,
    PARTITION_TAG,
    SENSOR,
    GenerationKeyError,
    asset_key,
    backfill_in,
    generation_key,
    generation_of,
)
from ringrift_pipeline.orchestration.outbox import Outbox
from ringrift_pipeline.orchestration.places import TICK, data_folder, home_folder
from ringrift_pipeline.orchestration.settings import run_values
from ringrift_pipeline.orchestration.switches import is_on
from ringrift_pipeline.orchestration.tick_log import TickLog, mark_of
from ringrift_pipeline.orchestration.verdicts import (
    State,
    generation_verdict,
    newest_materialization,
)
from ringrift_pipeline.store import BucketError, Store, StoreError, VanishedFileError
from ringrift_pipeline.store.atomic import ensure_folder
from ringrift_pipeline.store.locks import folder_lock

INTERVAL = 2  # seconds between two looks at the event log
RECORDS = 25  # evaluations of one config looked at in one tick


@dataclass
class Outcome:
    """What one tick has decided; ``cursor`` is that of the next tick."""

    cursor: Cursor
    requests: list[RunRequest] = field(default_factory=list)
    events: list[AssetMaterialization] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    marks: dict[str, str] = field(default_factory=dict)  # of notes of errors, for `TickLog`

    def note_error(self, before: str, error: Exception, after: str = "") -> None:
        """Note an error between two texts."""
        note = f"{before}{type(error).__name__}: {error}{after}"
        self.notes.append(note)
        self.marks[note] = f"{before}{mark_of(error)}{after}"


def evaluation_sensor(jobs: Sequence[Any]) -> SensorDefinition:
    """The sensor over all configs; ``jobs`` are the ``<config>_generation`` jobs."""

    @sensor(
        name=SENSOR,
        jobs=jobs,
        minimum_interval_seconds=INTERVAL,
        default_status=DefaultSensorStatus.RUNNING,
        description="An evaluation landed and every blocking check of its generation has spoken: "
        "promote the candidate if the gate says so, then start the next generation, up to the "
        "run's last_generation. Where a check failed the loop waits, and goes on by itself once what "
        "was run since has passed it. Turn it off to stop the loop after the running generation, or "
        "pause one config with the job set_switches (ringrift pause).",
    )
    def evaluation_landed(context: SensorEvaluationContext) -> SensorResult | SkipReason:
        opened = Store(data_folder(), within=TICK)
        outcome = Outcome(read_cursor(context.cursor))
        outcome.cursor.go_back(context.instance.event_log_storage.get_maximum_record_id() or 0)
        home = home_folder(opened.root)
        ensure_folder(home)
        with TickLog(context, opened.root, SENSOR) as log:
            with folder_lock(home):
                for config in CONFIGS:
                    try:
                        _look(context.instance, opened, config, outcome)
                    except Exception as error:  # whatever it is, the other configs go on
                        log.error(
                            f"{config}: {traceback.format_exc()}", f"{config}, {mark_of(error)}"
                        )
                        _report(opened, config, outcome, error)
                _offer(context.instance, opened, outcome)
            for note in outcome.notes:
                log.info(note, outcome.marks.get(note, ""))
        if not (outcome.requests or outcome.events):
            context.update_cursor(outcome.cursor.text)
            return SkipReason("; ".join(outcome.notes) or "no new evaluation")
        return SensorResult(
            run_requests=outcome.requests,
            asset_events=outcome.events,
            cursor=outcome.cursor.text,
        )

    return evaluation_landed


def _offer(instance: DagsterInstance, store: Store, outcome: Outcome) -> None:
    """Once for each config, make launchable what there is of it, and what comes next: the first
    generation, in a history whose daemon is Dagster's own and tidies nothing up. What cannot be read
    now is asked for again in the next tick.
    """
    for config in CONFIGS:
        if config in outcome.cursor.offered:
            continue
        try:
            add_partitions(instance, store, config)
        except Exception as error:  # it must not undo what was decided
            outcome.note_error(f"{config}: no generation of it can be offered, ", error)
            if isinstance(error, BucketError):
                return  # nor of the others, and each would be waited for
        else:
            outcome.cursor.offered.add(config)


def _report(store: Store, config: str, outcome: Outcome, error: Exception) -> None:
    """Tell of an error once, however often the tick meets it."""
    what = f"{type(error).__name__}: {error}"
    outcome.note_error(f"{config}: ", error, "; its loop waits until that is put right")
    handled = outcome.cursor.handled.get(config, 0)
    try:
        Outbox(store).put(not_handled(config, handled, what, INTERVAL, mark_of(error)))
    except (OSError, StoreError) as unwritten:  # a full disk must not stop the others either
        outcome.note_error(f"{config}: not reported, ", unwritten)


def _look(instance: DagsterInstance, store: Store, config: str, outcome: Outcome) -> None:
    """Handle the new evaluations of one config, in order, up to the first that is pending; then,
    once more, the one that has failed its checks.
    """
    cursor = outcome.cursor
    if cursor.earlier:
        _adopt(store, config, cursor)
    records = instance.fetch_materializations(
        AssetRecordsFilter(
            asset_key=asset_key(config, "evaluation"), after_storage_id=cursor.handled.get(config)
        ),
        limit=RECORDS,
        ascending=True,
    ).records
    for record in records:
        if not _handle(instance, store, config, record, outcome):
            return
        cursor.handled[config] = record.storage_id
        cursor.held.pop(config, None)
    _look_again(instance, store, config, outcome)


def _adopt(store: Store, config: str, cursor: Cursor) -> None:
    """Look again at the evaluation that an earlier version stopped at, as if it had kept it."""
    newest = newest_decision(store, config) if config in cursor.handled else None
    if newest is None:
        return
    generation, decision = newest
    storage_id = decision.get("storage_id")
    if decision.get("end") == CHECKS and isinstance(storage_id, int):
        cursor.stop(config, Stopped(storage_id, generation, run=None))


def _look_again(instance: DagsterInstance, store: Store, config: str, outcome: Outcome) -> None:
    """Handle an evaluation that failed its checks once more, if a run of its generation is over
    that was not when it was last handled.
    """
    cursor = outcome.cursor
    stopped = cursor.failed.get(config)
    if stopped is None:
        return
    waits = cursor.held.get(config) == stopped.storage_id
    if not waits and _newest_over(instance, config, stopped.generation) in (None, stopped.run):
        return
    wanted = AssetRecordsFilter(asset_key(config, "evaluation"), storage_ids=[stopped.storage_id])
    for record in instance.fetch_materializations(wanted, limit=1).records:
        if not _handle(instance, store, config, record, outcome):
            return
    cursor.held.pop(config, None)
    if cursor.failed.get(config) is stopped:  # it has not failed again
        del cursor.failed[config]


def _newest_over(instance: DagsterInstance, config: str, generation: int) -> str | None:
    """Id of the newest run of a generation, whatever it makes or checks; None while it works."""
    tags = {CONFIG_TAG: config, PARTITION_TAG: generation_key(generation)}
    for run in instance.get_runs(RunsFilter(tags=tags), limit=1):
        if run.is_finished:
            return run.run_id
    return None


def _handle(
    instance: DagsterInstance,
    store: Store,
    config: str,
    record: EventLogRecord,
    outcome: Outcome,
    last: int | None = None,
) -> bool:
    """Handle one evaluation. False: not decided yet, ask again in the next tick. ``last``: the last
    generation asked for, if not that of the run which made it.

    What is to be requested is added to the outcome last, once nothing can fail any more.
    """
    try:
        generation = generation_of(record.partition_key or "", config)
    except GenerationKeyError:
        outcome.notes.append(f"{config}: an evaluation without a generation was passed over")
        return True
    where = f"{config} generation {generation_key(generation)}"
    run = _run_of(instance, record)
    passed_over = _passed_over(instance, config, record, run)
    if passed_over is not None:
        outcome.notes.append(f"{where}: {passed_over}")
        return True
    paused = not is_on(instance, store, config, "loop")
    if paused and outcome.cursor.held.get(config) == record.storage_id:
        outcome.notes.append(_waiting(where, config))
        return False
    values = run_values(run.run_config) if run is not None else {}
    if last is None:
        last = values.get("last_generation")
    if last is None:
        last = limit_before(store, config, generation)
    known = read_decision(store, config, generation)
    if known is not None and (not is_about(known, record) or known.get("end") in FAULTS):
        known = None  # what was decided on this very evaluation, and for good, stands
    if known is None:
        over = _newest_over(instance, config, generation)  # before the checks are looked at
        checked = generation_verdict(instance, config, record)
        if checked.state is State.PENDING:
            outcome.notes.append(f"{where}: {', '.join(checked.reasons)}")
            return False
        stopped = Stopped(record.storage_id, generation, over)
        if checked.state is State.FAILED:
            return _stop(instance, store, config, record, stopped, checked.reasons, last, outcome)
        try:
            promoted, reasons = promote(store, config, generation, record)
        except VanishedFileError:
            raise  # while it was fetched: nothing is damaged, and the next tick looks again
        except StoreError as error:
            return _stop(instance, store, config, record, stopped, (str(error),), last, outcome)
    event = _champion_event(instance, store, config, generation)
    request = None
    if known is None or known["next"] is not None:
        following = following_run(instance, store, config, generation, values, last)
        request = following.request
    waits = request is not None and paused
    if waits:
        outcome.cursor.held[config] = record.storage_id
        outcome.notes.append(_waiting(where, config))
    elif known is not None:
        outcome.notes.append(f"{where}: decided before, which stands")
    else:
        said = reasons
        if following.end == PLAN:
            said = [*reasons, following.note]
            Outbox(store).put(plan_unusable(config, generation, record, following.note))
        keep_decision(
            store,
            config,
            generation,
            record,
            promoted=promoted,
            reasons=said,
            following=following.generation if request is not None else None,
            end=following.end,
            last=last,
            feedback=following.feedback,
        )
        outcome.notes.append(following.note)
        outcome.notes.append(
            f"{where}: {'promoted' if promoted else 'not promoted'} ({'; '.join(said)})"
        )
    add_partitions(instance, store, config)
    if event is not None:
        outcome.events.append(event)
    if waits:
        return False
    outcome.cursor.go_on(config, generation)
    # Once a tick: the generation before may have been evaluated twice.
    if request is not None and request.run_key not in {one.run_key for one in outcome.requests}:
        outcome.requests.append(request)
    return True


def _waiting(where: str, config: str) -> str:
    return f"{where}: decided once the loop of {config}, which is paused, is resumed"


def decide(
    instance: DagsterInstance, store: Store, config: str, generation: int, last: int
) -> bool:
    """Decide on a generation's newest evaluation as a tick does, for a caller without a daemon who
    starts the next generation himself, up to ``last``. False: that has to wait, as for the result of a
    check.

    A tick that meets this evaluation later finds it decided.
    """
    key = asset_key(config, "evaluation")
    record = newest_materialization(instance, key, generation_key(generation))
    if record is None:
        return True
    outcome = Outcome(Cursor())
    with folder_lock(home_folder(store.root)):
        decided = _handle(instance, store, config, record, outcome, last)
    for event in outcome.events:
        instance.report_runless_asset_event(event)
    return decided


def _run_of(instance: DagsterInstance, record: EventLogRecord) -> DagsterRun | None:
    return instance.get_run_by_id(record.run_id) if record.run_id else None


def _passed_over(
    instance: DagsterInstance, config: str, record: EventLogRecord, run: DagsterRun | None
) -> str | None:
    """Why an evaluation decides nothing, None where it may decide."""
    if run is not None and backfill_in(run.tags):
        return "evaluated by a backfill, which starts nothing"
    key = asset_key(config, "evaluation")
    newest = newest_materialization(instance, key, record.partition_key)
    if newest is None or newest.storage_id == record.storage_id:
        return None
    by = _run_of(instance, newest)
    if by is not None and backfill_in(by.tags):
        return None
    return "evaluated again since, the newer evaluation decides"


def _champion_event(
    instance: DagsterInstance, store: Store, config: str, generation: int
) -> AssetMaterialization | None:
    """The event that the generation is champion, where it is and no event says so."""
    champion = store.champion(config)
    if champion is None or champion.generation != generation:
        return None
    return champion_event(instance, champion)


def _stop(
    instance: DagsterInstance,
    store: Store,
    config: str,
    record: EventLogRecord,
    stopped: Stopped,
    reasons: Sequence[str],
    last: int | None,
    outcome: Outcome,
) -> bool:
    """Decide that nothing is promoted and nothing started, tell people, and remember to look again.

    They are told first: after a crash in between an alert is not put twice.
    """
    generation = stopped.generation
    where = f"{config} generation {generation_key(generation)}"
    if not is_about(read_decision(store, config, generation), record):
        Outbox(store).put(checks_failed(config, generation, record, reasons))
    keep_decision(
        store,
        config,
        generation,
        record,
        promoted=was_promoted(store, config, generation),
        reasons=list(reasons),
        end=CHECKS,
        last=last,
    )
    add_partitions(instance, store, config)
    outcome.cursor.stop(config, stopped)
    outcome.notes.append(f"{where}: not promoted, {', '.join(reasons)}; the loop stops")
    return True
