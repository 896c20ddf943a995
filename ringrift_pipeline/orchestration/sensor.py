"""``evaluation_landed``: promotes what the gate lets through and starts the next generation.

A plain cursor sensor over all configs, because an asset sensor loses events when several land in
one tick. The cursor is JSON: for each config the storage id of the last evaluation handled. The
run key is ``config/generation``, so that a repeated event or a restarted daemon starts a
generation once and only once.

What goes wrong with one config stays with it: the error is logged and reported, its cursor stays
where it was, and the others go on.
"""

import json
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dagster import (
    AddDynamicPartitionsRequest,
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

from ringrift_pipeline.enhancements.training_config import TrainingConfig
from ringrift_pipeline.evaluation.feedback import NextSettings, next_settings
from ringrift_pipeline.orchestration.champion import champion_event
from ringrift_pipeline.orchestration.decisions import (
    CHECKS,
    LIMIT,
    PLAN,
    STARTED,
    keep_decision,
    promote,
)
from ringrift_pipeline.orchestration.names import (
    BACKFILL_TAG,
    CONFIG_TAG,
    CONFIGS,
    FACTORS_TAG,
    PARTITION_TAG,
    SENSOR,
    TREND_TAG,
    asset_key,
    generation_key,
    job_name,
    partitions_name,
)
from ringrift_pipeline.orchestration.notify import Alert
from ringrift_pipeline.orchestration.outbox import Outbox
from ringrift_pipeline.orchestration.places import data_folder
from ringrift_pipeline.orchestration.settings import carried_on, run_values
from ringrift_pipeline.orchestration.switches import is_on
from ringrift_pipeline.orchestration.verdicts import (
    State,
    generation_verdict,
    newest_materialization,
)
from ringrift_pipeline.store import Store, StoreError

INTERVAL = 2  # seconds between two looks at the event log
RECORDS = 25  # evaluations of one config looked at in one tick
HELD = "held"  # the cursor's entry of evaluations that wait for their config to be resumed


@dataclass
class Outcome:
    """What one tick has decided.

    ``held``: by config the storage id of the evaluation that waits for the config to be resumed;
    it has been promoted already, if the gate said so.
    """

    cursor: dict[str, int]
    held: dict[str, int] = field(default_factory=dict)
    requests: list[RunRequest] = field(default_factory=list)
    partitions: list[Any] = field(default_factory=list)
    events: list[AssetMaterialization] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The cursor of the next tick."""
        held = {HELD: self.held} if self.held else {}
        return json.dumps({**self.cursor, **held}, sort_keys=True)


@dataclass(frozen=True)
class Following:
    """The next generation: its run, or why there is none (``end``, as in `decisions`)."""

    generation: int
    note: str
    feedback: dict[str, Any] | None
    request: RunRequest | None = None
    end: str | None = None


def read_cursor(text: str | None) -> dict[str, int]:
    """The cursor's JSON; unknown configs are dropped, nonsense starts over (run keys protect)."""
    return _storage_ids(_loaded(text))


def _loaded(text: str | None) -> Any:
    try:
        return json.loads(text) if text else {}
    except ValueError:
        return {}


def _storage_ids(loaded: Any) -> dict[str, int]:
    """What may be storage ids, by config."""
    if not isinstance(loaded, dict):
        return {}
    found = {config: loaded[config] for config in CONFIGS if config in loaded}
    return {config: value for config, value in found.items() if type(value) is int and value >= 0}


def _begin(text: str | None) -> Outcome:
    loaded = _loaded(text)
    held = loaded.get(HELD) if isinstance(loaded, dict) else None
    return Outcome(cursor=_storage_ids(loaded), held=_storage_ids(held))


def evaluation_sensor(jobs: Sequence[Any]) -> SensorDefinition:
    """The sensor over all configs; ``jobs`` are the ``<config>_generation`` jobs."""

    @sensor(
        name=SENSOR,
        jobs=jobs,
        minimum_interval_seconds=INTERVAL,
        default_status=DefaultSensorStatus.RUNNING,
        description="An evaluation landed and every blocking check of its generation has spoken: "
        "promote the candidate if the gate says so, then start the next generation, up to the "
        "run's last_generation. Turn it off to stop the loop after the running generation, or "
        "pause one config with the job set_switches (ringrift pause).",
    )
    def evaluation_landed(context: SensorEvaluationContext) -> SensorResult | SkipReason:
        opened = Store(data_folder())
        outcome = _begin(context.cursor)
        for config in CONFIGS:
            try:
                _look(context.instance, opened, config, outcome)
            except Exception as error:  # whatever it is, the other configs go on
                context.log.error(f"{config}: {traceback.format_exc()}")
                _report(opened, config, outcome, error)
        for note in outcome.notes:
            context.log.info(note)
        if not (outcome.requests or outcome.events):
            context.update_cursor(outcome.text)
            return SkipReason("; ".join(outcome.notes) or "no new evaluation")
        return SensorResult(
            run_requests=outcome.requests,
            dynamic_partitions_requests=outcome.partitions,
            asset_events=outcome.events,
            cursor=outcome.text,
        )

    return evaluation_landed


def _report(store: Store, config: str, outcome: Outcome, error: Exception) -> None:
    """Tell of an error once, however often the tick meets it."""
    what = f"{type(error).__name__}: {error}"
    outcome.notes.append(f"{config}: {what}; its loop waits until that is put right")
    alert = Alert(
        kind="sensor_failed",
        key=f"{config}/{outcome.cursor.get(config, 0)}/{what}",
        title=f"{config}: an evaluation cannot be handled, its loop waits",
        text=f"{what}. The sensor {SENSOR} looks again every {INTERVAL} s and goes on by itself "
        "once that is put right; the whole trace is in its tick's log.",
        config=config,
    )
    try:
        Outbox(store).put(alert)
    except (OSError, StoreError) as unwritten:  # a full disk must not stop the others either
        outcome.notes.append(f"{config}: not reported, {unwritten}")


def _look(instance: DagsterInstance, store: Store, config: str, outcome: Outcome) -> None:
    """Handle the new evaluations of one config, in order, up to the first that is pending."""
    after = outcome.cursor.get(config)
    records = instance.fetch_materializations(
        AssetRecordsFilter(asset_key=asset_key(config, "evaluation"), after_storage_id=after),
        limit=RECORDS,
        ascending=True,
    ).records
    for record in records:
        if not _handle(instance, store, config, record, outcome):
            return
        outcome.cursor[config] = record.storage_id
        outcome.held.pop(config, None)


def _handle(
    instance: DagsterInstance, store: Store, config: str, record: EventLogRecord, outcome: Outcome
) -> bool:
    """Handle one evaluation. False: not decided yet, ask again in the next tick.

    What is to be requested is added to the outcome last, once nothing can fail any more.
    """
    if record.partition_key is None or not record.partition_key.isdigit():
        outcome.notes.append(f"{config}: an evaluation without a generation was passed over")
        return True
    generation = int(record.partition_key)
    where = f"{config} generation {generation_key(generation)}"
    run = _run_of(instance, record)
    if run is not None and BACKFILL_TAG in run.tags:
        outcome.notes.append(f"{where}: evaluated by a backfill, which starts nothing")
        return True
    if _replaced(instance, config, record):
        outcome.notes.append(f"{where}: evaluated again since, the newer evaluation decides")
        return True
    paused = not is_on(instance, store, config, "loop")
    if paused and outcome.held.get(config) == record.storage_id:
        outcome.notes.append(f"{where}: decided once the loop of {config} is resumed")
        return False
    checked = generation_verdict(instance, config, record)
    if checked.state is State.PENDING:
        outcome.notes.append(f"{where}: {', '.join(checked.reasons)}")
        return False
    if checked.state is State.FAILED:
        return _stop(store, config, generation, record, checked.reasons, outcome)
    try:
        promoted, reasons = promote(store, config, generation, record)
    except StoreError as error:
        return _stop(store, config, generation, record, (str(error),), outcome)
    event = champion_event(instance, promoted) if promoted is not None else None
    following = _following(instance, store, config, generation, run)
    request = following.request
    waits = request is not None and paused
    if waits:
        outcome.held[config] = record.storage_id
        outcome.notes.append(f"{where}: the loop of {config} is paused, the next waits")
    else:
        said = [*reasons, following.note] if following.end == PLAN else reasons
        keep_decision(
            store,
            config,
            generation,
            record,
            promoted=promoted is not None,
            reasons=said,
            following=following.generation if request is not None else None,
            end=following.end,
            feedback=following.feedback,
        )
        outcome.notes.append(following.note)
        outcome.notes.append(
            f"{where}: {'promoted' if promoted else 'not promoted'} ({'; '.join(said)})"
        )
        if request is not None:
            _request(instance, config, request, outcome)
    if event is not None:
        outcome.events.append(event)
    return not waits


def _run_of(instance: DagsterInstance, record: EventLogRecord) -> DagsterRun | None:
    return instance.get_run_by_id(record.run_id) if record.run_id else None


def _replaced(instance: DagsterInstance, config: str, record: EventLogRecord) -> bool:
    """Has the generation been evaluated again, by a run that may decide?"""
    key = asset_key(config, "evaluation")
    newest = newest_materialization(instance, key, record.partition_key)
    if newest is None or newest.storage_id == record.storage_id:
        return False
    run = _run_of(instance, newest)
    return run is None or BACKFILL_TAG not in run.tags


def _stop(
    store: Store,
    config: str,
    generation: int,
    record: EventLogRecord,
    reasons: Sequence[str],
    outcome: Outcome,
) -> bool:
    """Decide that nothing is promoted and nothing started."""
    keep_decision(
        store, config, generation, record, promoted=False, reasons=list(reasons), end=CHECKS
    )
    where = f"{config} generation {generation_key(generation)}"
    outcome.notes.append(f"{where}: not promoted, {', '.join(reasons)}; the loop stops")
    return True


def _following(
    instance: DagsterInstance, store: Store, config: str, generation: int, run: DagsterRun | None
) -> Following:
    """The next generation, unless the loop ends here.

    Its settings are this generation's, changed as the trend of the ratings asks for.
    """
    values = run_values(run.run_config) if run is not None else {}
    last = values.get("last_generation")
    following = generation + 1
    key = generation_key(following)
    try:
        planned = TrainingConfig.from_dict(store.read_plan(config, generation)["settings"])
        changed = next_settings(store, config, following, carried_on(planned, values, config))
    except (StoreError, ValueError) as error:  # its plan cannot be used
        return Following(following, f"no next generation: {error}", None, end=PLAN)
    feedback = _feedback(changed)
    if last is not None and following > last:
        note = f"{config}: generation {generation_key(last)} was the last asked for"
        return Following(following, note, feedback, end=LIMIT)
    if _has_run(instance, config, key):
        note = f"{config}: generation {key} has been started already"
        return Following(following, note, feedback, end=STARTED)
    carried = {name: values[name] for name in ("last_generation",) if values.get(name) is not None}
    config_of_run = {**changed.settings.to_dict(), **carried}
    request = RunRequest(
        run_key=f"{config}/{key}",
        job_name=job_name(config),
        partition_key=key,
        run_config={"resources": {"settings": {"config": config_of_run}}},
        tags={
            CONFIG_TAG: config,
            PARTITION_TAG: key,
            TREND_TAG: feedback["trend"],
            FACTORS_TAG: feedback["factors"],
        },
    )
    note = f"{config} generation {key}: {changed.note}; {feedback['factors']}"
    return Following(following, note, feedback, request)


def _request(instance: DagsterInstance, config: str, request: RunRequest, outcome: Outcome) -> None:
    """Ask for the run, and for its partition where there is none; once a tick."""
    if any(asked.run_key == request.run_key for asked in outcome.requests):
        return  # the generation before was evaluated twice
    name, key = partitions_name(config), request.partition_key
    assert key is not None
    if not instance.has_dynamic_partition(name, key):
        outcome.partitions.append(AddDynamicPartitionsRequest(name, [key]))
    outcome.requests.append(request)


def _feedback(changed: NextSettings) -> dict[str, Any]:
    """What the feedback saw and came to, for the decision artefact and the run's tags."""
    factors = changed.settings.feedback
    decision = changed.decision.to_dict() if changed.decision is not None else {}
    return {
        **decision,
        "trend": decision.get("trend", "undecided"),
        "reason": changed.note,
        "factors": f"rate x{factors.rate_factor:.3g}, "
        f"exploration x{factors.exploration_factor:.3g}, "
        f"selfplay x{factors.selfplay_factor:.3g}",
        "learning_rate": changed.settings.effective_learning_rate,
        "temperature": changed.settings.effective_temperature,
        "games": changed.settings.effective_games,
    }


def _has_run(instance: DagsterInstance, config: str, key: str) -> bool:
    """Has the generation job of this partition been run, by whomever?"""
    filters = RunsFilter(job_name=job_name(config), tags={PARTITION_TAG: key})
    return bool(instance.get_run_records(filters, limit=1))
