"""``evaluation_landed``: promotes what the gate lets through and starts the next generation.

A plain cursor sensor over all configs, because an asset sensor loses events when several land in
one tick. The cursor is JSON: for each config the storage id of the last evaluation handled. The
run key is ``config/generation``, so that a repeated event or a restarted daemon starts a
generation once and only once.
"""

import json
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
from ringrift_pipeline.orchestration.checks import blocking_checks
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
from ringrift_pipeline.orchestration.places import data_folder
from ringrift_pipeline.orchestration.settings import carried_on, run_values
from ringrift_pipeline.orchestration.verdicts import State, verdict
from ringrift_pipeline.store import Champion, Store, StoreError

INTERVAL = 2  # seconds between two looks at the event log
RECORDS = 25  # evaluations of one config looked at in one tick
DECISION = "decision"  # the artefact kind that keeps what was decided


@dataclass
class Outcome:
    """What one tick has decided."""

    cursor: dict[str, int]
    requests: list[RunRequest] = field(default_factory=list)
    partitions: list[Any] = field(default_factory=list)
    events: list[AssetMaterialization] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_cursor(text: str | None) -> dict[str, int]:
    """The cursor's JSON; unknown configs are dropped, nonsense starts over (run keys protect)."""
    try:
        loaded = json.loads(text) if text else {}
    except ValueError:
        return {}
    if not isinstance(loaded, dict):
        return {}
    return {config: int(loaded[config]) for config in CONFIGS if config in loaded}


def evaluation_sensor(jobs: Sequence[Any]) -> SensorDefinition:
    """The sensor over all configs; ``jobs`` are the ``<config>_generation`` jobs."""

    @sensor(
        name=SENSOR,
        jobs=jobs,
        minimum_interval_seconds=INTERVAL,
        default_status=DefaultSensorStatus.RUNNING,
        description="An evaluation landed and its blocking checks have spoken: promote the "
        "candidate if the gate says so, then start the next generation, up to the run's "
        "last_generation. Turn it off to stop the loop after the running generation.",
    )
    def evaluation_landed(context: SensorEvaluationContext) -> SensorResult | SkipReason:
        opened = Store(data_folder())
        outcome = Outcome(cursor=read_cursor(context.cursor))
        for config in CONFIGS:
            _look(context.instance, opened, config, outcome)
        for note in outcome.notes:
            context.log.info(note)
        cursor = json.dumps(outcome.cursor, sort_keys=True)
        if not (outcome.requests or outcome.events):
            context.update_cursor(cursor)
            return SkipReason("; ".join(outcome.notes) or "no new evaluation")
        return SensorResult(
            run_requests=outcome.requests,
            dynamic_partitions_requests=outcome.partitions,
            asset_events=outcome.events,
            cursor=cursor,
        )

    return evaluation_landed


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


def _handle(
    instance: DagsterInstance, store: Store, config: str, record: EventLogRecord, outcome: Outcome
) -> bool:
    """Handle one evaluation. False: not decided yet, ask again in the next tick."""
    if record.partition_key is None or not record.partition_key.isdigit():
        outcome.notes.append(f"{config}: an evaluation without a generation was passed over")
        return True
    generation = int(record.partition_key)
    where = f"{config} generation {generation_key(generation)}"
    run = instance.get_run_by_id(record.run_id) if record.run_id else None
    if run is not None and BACKFILL_TAG in run.tags:
        outcome.notes.append(f"{where}: evaluated by a backfill, which starts nothing")
        return True
    checked = verdict(instance, record, blocking_checks("evaluation"), run)
    if checked.state is State.PENDING:
        outcome.notes.append(f"{where}: {', '.join(checked.reasons)}")
        return False
    if checked.state is State.FAILED:
        _decide(store, config, generation, record, False, list(checked.reasons), None)
        outcome.notes.append(f"{where}: not promoted, {', '.join(checked.reasons)}; the loop stops")
        return True
    try:
        promoted, reasons = _promote(store, config, generation, record)
    except StoreError as error:
        _decide(store, config, generation, record, False, [str(error)], None)
        outcome.notes.append(f"{where}: not promoted, {error}; the loop stops")
        return True
    if promoted is not None:
        event = champion_event(instance, promoted)
        if event is not None:
            outcome.events.append(event)
    try:
        following, feedback = _next(instance, store, config, generation, run, outcome)
    except (StoreError, ValueError) as error:  # its plan cannot be used; other configs go on
        reasons = [*reasons, f"no next generation: {error}"]
        following, feedback = None, None
    _decide(store, config, generation, record, promoted is not None, reasons, following, feedback)
    outcome.notes.append(
        f"{where}: {'promoted' if promoted else 'not promoted'} ({'; '.join(reasons)})"
    )
    return True


def _promote(
    store: Store, config: str, generation: int, record: EventLogRecord
) -> tuple[Champion | None, list[str]]:
    """Ask the gate's report; promote if it says so. The champion that was made, and the reasons."""
    evaluation = store.require(config, generation, "evaluation")
    gate = evaluation.read_json("report.json")["gate"]
    reasons = [str(reason) for reason in gate["reasons"]]
    if not gate["promote"]:
        return None, reasons
    model = store.require(config, generation, "ema_model")
    reason = {"gate": gate, "evaluation": evaluation.digest, "run": record.run_id}
    champion = store.promote(config, generation, model, reason)
    if (champion.generation, champion.digest) != (generation, model.digest):
        # A repeat of an old event: somebody newer has been promoted since.
        return None, [*reasons, f"generation {champion.generation:04d} is champion since"]
    return champion, reasons


def _next(
    instance: DagsterInstance,
    store: Store,
    config: str,
    generation: int,
    run: DagsterRun | None,
    outcome: Outcome,
) -> tuple[int | None, dict[str, Any] | None]:
    """Request the run of the next generation, unless the loop ends here.

    Its settings are this generation's, changed as the trend of the ratings asks for. Returns its
    number, None where it is not started, and what the feedback came to.
    """
    values = run_values(run.run_config) if run is not None else {}
    last = values.get("last_generation")
    following = generation + 1
    key = generation_key(following)
    planned = TrainingConfig.from_dict(store.read_plan(config, generation)["settings"])
    changed = next_settings(store, config, following, carried_on(planned, values, config))
    feedback = _feedback(changed)
    if last is not None and following > last:
        outcome.notes.append(f"{config}: generation {generation_key(last)} was the last asked for")
        return None, feedback
    if _has_run(instance, config, key):
        outcome.notes.append(f"{config}: generation {key} has been started already")
        return None, feedback
    settings = changed.settings.to_dict()
    carried = {name: values[name] for name in ("last_generation",) if values.get(name) is not None}
    if not instance.has_dynamic_partition(partitions_name(config), key):
        outcome.partitions.append(AddDynamicPartitionsRequest(partitions_name(config), [key]))
    outcome.requests.append(
        RunRequest(
            run_key=f"{config}/{key}",
            job_name=job_name(config),
            partition_key=key,
            run_config={"resources": {"settings": {"config": {**settings, **carried}}}},
            tags={
                CONFIG_TAG: config,
                PARTITION_TAG: key,
                TREND_TAG: feedback["trend"],
                FACTORS_TAG: feedback["factors"],
            },
        )
    )
    outcome.notes.append(f"{config} generation {key}: {changed.note}; {feedback['factors']}")
    return following, feedback


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


def _decide(
    store: Store,
    config: str,
    generation: int,
    record: EventLogRecord,
    promoted: bool,
    reasons: list[str],
    following: int | None,
    feedback: dict[str, Any] | None = None,
) -> None:
    """Keep what was decided beside what it was decided on; the command line waits for it."""
    decision = {
        "promoted": promoted,
        "reasons": reasons,
        "next": following,
        "feedback": feedback,
        "run": record.run_id,
        "storage_id": record.storage_id,
    }
    with store.create(config, generation, DECISION, decision):
        pass
