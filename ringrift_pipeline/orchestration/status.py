"""What runs, what is next, and how strong each config is: read, never changed."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dagster import (
    DagsterInstance,
    DagsterRunStatus,
    DefaultScheduleStatus,
    RunRecord,
    RunsFilter,
    ScheduleDefinition,
)
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus
from dagster._core.scheduler.instigation import InstigatorStatus

from ringrift_pipeline.orchestration.decisions import FAULTS, newest_decision
from ringrift_pipeline.orchestration.following import not_followed
from ringrift_pipeline.orchestration.generation_runs import makes_a_generation
from ringrift_pipeline.orchestration.instance import IN_PROGRESS, open_instance
from ringrift_pipeline.orchestration.jobs import configs_meant, configs_of
from ringrift_pipeline.orchestration.names import (
    CONFIGS,
    backfill_in,
    config_in,
    generation_in,
    generation_key,
    job_name,
)
from ringrift_pipeline.orchestration.outbox import AlertState, Outbox
from ringrift_pipeline.orchestration.places import home_folder
from ringrift_pipeline.orchestration.presence import Presence, present
from ringrift_pipeline.orchestration.progress import StepProgress, read_progress
from ringrift_pipeline.orchestration.reexecution import cancelled_run
from ringrift_pipeline.orchestration.schedules import schedules
from ringrift_pipeline.orchestration.settings import run_values
from ringrift_pipeline.orchestration.summary import Listed, listed, summarize
from ringrift_pipeline.orchestration.switches import is_turned_off
from ringrift_pipeline.store import SWITCHES, CorruptArtefactError, Store

LOOKED_THROUGH = 100  # newest runs among which a failed one is looked for
DAY = 86_400.0  # seconds
RECENT_ALERTS = 10


@dataclass(frozen=True)
class RunState:
    """A run that is worked on or waits. ``since``: seconds since the epoch."""

    run_id: str
    job: str
    status: str
    config: str | None
    generation: int | None
    since: float
    steps: list[StepProgress] = field(default_factory=list)


@dataclass(frozen=True)
class Next:
    """Something that will happen: what, and when or after what."""

    what: str
    when: str


@dataclass(frozen=True)
class Rated:
    """A generation and its rating with its interval, heuristic 1200.

    ``at``: when its evaluation landed (of the champion: when it was promoted), ISO 8601. The rating
    is that of the newest list of all ratings, of the generation's own evaluation where it is on no
    list, and None where neither is there.
    """

    generation: int
    at: str
    rating: float | None
    rating_low: float | None
    rating_high: float | None


@dataclass(frozen=True)
class Stopped:
    """The generation at which a loop stands still until somebody puts something right, and why."""

    generation: int
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Strength:
    """How far a config has come; ``evaluated`` is the newest generation that has been.

    ``paused``: what does not start by itself (``loop``, ``nightly``, ``gauntlet``). ``stopped``: a
    failed check or a plan that cannot be used, of the newest generation that was decided, or what
    became of the one that was to follow it.
    """

    config: str
    newest: int
    games: int
    evaluated: Rated | None
    champion: Rated | None
    paused: tuple[str, ...]
    stopped: Stopped | None
    bytes: int


@dataclass(frozen=True)
class Status:
    """A data root at one moment.

    ``by_hand``: (config, generation) that verbs of the command line work at, on this machine.
    ``failed``: runs that nothing newer has made up for. ``cancelled``: of every config the run
    at which its loop stands since (``since``) it was cancelled. ``sensor_off``: the sensor that decides
    and starts generations is turned off. ``alerts``: those not delivered yet.
    ``recent_alerts``: the newest of a day.
    ``history_bytes`` are Dagster's own.
    """

    data: str
    running: list[RunState]
    by_hand: list[tuple[str, int]]
    waiting: list[RunState]
    following: list[Next]
    configs: list[Strength]
    services: list[Presence]
    failed: list[RunState]
    cancelled: list[RunState]
    sensor_off: bool
    alerts: int
    recent_alerts: list[AlertState]
    bytes: int
    history_bytes: int
    free_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def status_of(data: Path) -> Status:
    """Read a data root. Nothing is made where there is nothing."""
    store = Store(data)
    running: list[RunState] = []
    waiting: list[RunState] = []
    following: list[Next] = []
    failed: list[RunState] = []
    cancelled: list[RunState] = []
    sensor_off = False
    unfollowed: dict[str, str | None] = {}
    outbox = Outbox(store)
    decided = {config: newest_decision(store, config) for config in store.configs()}
    if (home_folder(data) / "dagster.yaml").exists():
        with open_instance(data) as instance:
            working = instance.get_run_records(RunsFilter(statuses=IN_PROGRESS), ascending=True)
            by_hand = _by_hand(store, [*working])
            queued = instance.get_run_records(
                RunsFilter(statuses=[DagsterRunStatus.QUEUED]), ascending=True
            )
            running = [_run(record, read_progress(data, _id(record))) for record in working]
            waiting = [_run(record) for record in queued]
            sensor_off = is_turned_off(instance)
            following = list(_following(instance, store, [*working, *queued], sensor_off))
            failed = list(_failed(instance))
            cancelled = list(_cancelled(instance, store))
            unfollowed = {
                config: not_followed(instance, config, newest) for config, newest in decided.items()
            }
    else:
        by_hand = _by_hand(store, [])
    there = next((folder for folder in (data, *data.parents) if folder.exists()), data)
    usage = usage_below(data)
    return Status(
        data=str(data),
        running=running,
        by_hand=by_hand,
        waiting=waiting,
        following=following,
        configs=[
            _strength(store, config, usage.get(config, 0), _stopped(newest, unfollowed.get(config)))
            for config, newest in decided.items()
        ],
        services=present(data),
        failed=failed,
        cancelled=cancelled,
        sensor_off=sensor_off,
        alerts=outbox.waiting(),
        recent_alerts=outbox.recent(DAY, RECENT_ALERTS),
        bytes=sum(usage.values()),
        history_bytes=usage.get(home_folder(data).name, 0),
        free_bytes=shutil.disk_usage(there).free,
    )


def _id(record: RunRecord) -> str:
    return record.dagster_run.run_id


def _run(record: RunRecord, steps: list[StepProgress] | None = None) -> RunState:
    run = record.dagster_run
    config, generation = _where(record)
    return RunState(
        run_id=run.run_id,
        job=run.job_name,
        status=run.status.value.lower(),
        config=config,
        generation=generation,
        since=record.start_time or record.create_timestamp.timestamp(),
        steps=steps or [],
    )


def _where(record: RunRecord) -> tuple[str | None, int | None]:
    tags = record.dagster_run.tags
    return config_in(tags), generation_in(tags)


def _failed(instance: DagsterInstance) -> Iterator[RunState]:
    """The runs that failed and that nothing newer has made up for.

    What makes a generation, or assets of one, counts until a newer run makes that generation or a
    later one, to its evaluation; assets alone also until a newer run makes some of that generation;
    checks alone, and a job of another kind (which the launchpad gives no tag), until they are run
    again for the same config.
    """
    looked_at: set[tuple[object, ...]] = set()
    made: dict[str, int] = {}  # the latest generation that a newer run makes
    for record in instance.get_run_records(limit=LOOKED_THROUGH):
        run = record.dagster_run
        config, generation = _where(record)
        whole = config is not None and makes_a_generation(run, config)
        whose = frozenset({config}) if config else configs_meant(run)
        subject: tuple[object, ...] = (whose, run.job_name)
        if config is not None and generation is not None:
            checks_alone = bool(run.asset_check_selection) and not run.asset_selection
            subject = (config, generation, checks_alone)
            if generation <= made.get(config, -1):
                continue
            if whole:
                made[config] = generation
        if subject in looked_at and not whole:
            continue
        looked_at.add(subject)
        if run.status == DagsterRunStatus.FAILURE:
            yield _run(record)


def _cancelled(instance: DagsterInstance, store: Store) -> Iterator[RunState]:
    for config in CONFIGS:
        record = cancelled_run(instance, store, config)
        if record is not None:
            state = _run(record)
            yield replace(state, since=record.end_time or state.since)


def _by_hand(store: Store, records: list[RunRecord]) -> list[tuple[str, int]]:
    """What is worked at, but for what runs of Dagster's do; one of an ablation does not say at what."""
    runs = [record.dagster_run for record in records]
    if any(generation_in(run.tags) is None for run in runs):
        return []
    theirs = {(config, generation_in(run.tags)) for run in runs for config in configs_of(run)}
    found = {(config, number) for config in CONFIGS for number in store.at_work(config)}
    return sorted(found - theirs)


# --- what is next -------------------------------------------------------------------------------


def _following(
    instance: DagsterInstance, store: Store, records: list[RunRecord], sensor_off: bool
) -> Iterator[Next]:
    """What nobody has queued yet: the sensor's next generations, backfills, schedules."""
    states = {
        (state.instigator_type, state.instigator_name): state.status
        for state in instance.all_instigator_state()
    }
    if not sensor_off:
        for record in records:
            config, generation = _where(record)
            if config is None or generation is None or "loop" in _paused(store, config):
                continue
            run = record.dagster_run  # a backfill's starts no other
            if run.job_name != job_name(config) or backfill_in(run.tags):
                continue
            last = run_values(run.run_config).get("last_generation")
            if last is None or generation < last:
                until = f", up to {generation_key(last)}" if last is not None else ""
                yield Next(
                    f"{config} generation {generation_key(generation + 1)}",
                    f"when {generation_key(generation)} has been evaluated{until}",
                )
    filters = BulkActionsFilter(statuses=[BulkActionStatus.REQUESTED])
    for backfill in instance.get_backfills(filters):
        yield Next(f"backfill {backfill.backfill_id}", "its runs are being asked for")
    for schedule in schedules():
        if _is_on(schedule, states.get((InstigatorType.SCHEDULE, schedule.name))):
            when = next(schedule_times(schedule))
            yield Next(schedule.name, f"{when:%Y-%m-%d %H:%M} {when.tzname()}")


def _is_on(schedule: ScheduleDefinition, state: InstigatorStatus | None) -> bool:
    if state in (None, InstigatorStatus.DECLARED_IN_CODE):
        return schedule.default_status == DefaultScheduleStatus.RUNNING
    return state == InstigatorStatus.RUNNING


def schedule_times(schedule: ScheduleDefinition) -> Iterator[Any]:
    """The times at which a schedule ticks from now on, in its own time zone."""
    from dagster._utils.schedules import schedule_execution_time_iterator

    yield from schedule_execution_time_iterator(
        time.time(), schedule.cron_schedule, schedule.execution_timezone or "UTC"
    )


# --- how strong ---------------------------------------------------------------------------------


def _strength(store: Store, config: str, used: int, stopped: Stopped | None) -> Strength:
    generations = store.generations(config)
    ratings = listed(store, config)
    return Strength(
        config=config,
        newest=generations[-1],
        games=_games(store, config, generations),
        evaluated=_evaluated(store, config, ratings),
        champion=_champion(store, config, ratings),
        paused=_paused(store, config),
        stopped=stopped,
        bytes=used,
    )


def _stopped(newest: tuple[int, dict[str, Any]] | None, unfollowed: str | None) -> Stopped | None:
    """What the newest decision says of a standstill, and why nothing follows it where it does not."""
    if newest is None:
        return None
    generation, decision = newest
    if decision.get("end") in FAULTS:
        return Stopped(generation, tuple(decision["reasons"]))
    return Stopped(generation, (unfollowed,)) if unfollowed is not None else None


def _paused(store: Store, config: str) -> tuple[str, ...]:
    """Damaged switches stop everything."""
    try:
        return store.switches(config).paused
    except CorruptArtefactError:
        return SWITCHES


def _evaluated(store: Store, config: str, ratings: Listed) -> Rated | None:
    try:
        newest = store.newest(config, "evaluation")
        found = newest is not None and store.current(config, newest, "evaluation", verify=False)
    except CorruptArtefactError:
        return None
    return _rated(store, config, found.generation, found.created, ratings) if found else None


def _champion(store: Store, config: str, ratings: Listed) -> Rated | None:
    try:
        champion = store.champion(config)
    except CorruptArtefactError:
        return None
    if champion is None:
        return None
    return _rated(store, config, champion.generation, champion.promoted_at, ratings)


def _rated(store: Store, config: str, generation: int, at: str, ratings: Listed) -> Rated:
    summary = summarize(store, config, generation, ratings=ratings)
    return Rated(generation, at, summary.rating, summary.rating_low, summary.rating_high)


def _games(store: Store, config: str, generations: list[int]) -> int:
    """Games of the generations whose selfplay has been collected. The newest plan that notes how
    many there were before it ends the count.
    """
    games = 0
    for generation in reversed(generations):
        with contextlib.suppress(CorruptArtefactError):
            shards = store.current(config, generation, "selfplay_shards", verify=False)
            games += int(shards.metadata.get("selfplay/games", 0)) if shards is not None else 0
        with contextlib.suppress(CorruptArtefactError):
            played = store.read_plan(config, generation).get("played")
            if isinstance(played, int):
                return games + played
    return games


def usage_below(folder: Path) -> dict[str, int]:
    """Bytes on the disk of every file in a folder, and of every folder in it, by name."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        return {entry.name: _bytes(entry) for entry in entries}
    return {}


def disk_usage(folder: Path) -> int:
    """Bytes that a folder takes on the disk; what vanishes meanwhile is not counted."""
    return sum(usage_below(folder).values())


def _bytes(entry: os.DirEntry[str]) -> int:
    total, left = 0, [entry]
    while left:
        one = left.pop()
        with contextlib.suppress(OSError):
            if one.is_dir(follow_symlinks=False):
                with os.scandir(one) as entries:
                    left += entries
            else:
                total += one.stat(follow_symlinks=False).st_blocks * 512
    return total
