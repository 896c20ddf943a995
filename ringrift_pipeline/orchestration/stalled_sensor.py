"""``config_stalled``: tells people of a config for which nothing has landed for hours, and of what
was found damaged.

A failed run is told of at once by ``run_failed``. This one sees what fails nowhere: a sensor that
was turned off, a daemon that runs but launches nothing, a run that is under way and makes nothing,
a config's first run that waits in the queue behind another's for ever.

How old a sign of life was when the sensor first saw it, the computer's clock says; from there on a
clock counts that nobody can turn. So one that is turned on raises no alarm, and one that is turned
back hides no standstill.
"""

import json
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from dagster import (
    DagsterInstance,
    DefaultSensorStatus,
    ResourceParam,
    RunRecord,
    RunsFilter,
    SensorDefinition,
    SensorEvaluationContext,
    SkipReason,
    sensor,
)
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES

from ringrift_pipeline.enhancements.training_config import TrainingConfig
from ringrift_pipeline.orchestration.damage import tell_damage
from ringrift_pipeline.orchestration.decisions import FAULTS, LIMIT, newest_decision
from ringrift_pipeline.orchestration.following import not_followed
from ringrift_pipeline.orchestration.generation_runs import makes_a_generation
from ringrift_pipeline.orchestration.names import (
    CONFIG_TAG,
    CONFIGS,
    PARTITION_TAG,
    SENSOR,
    STALLED_SENSOR,
    config_in,
    generation_in,
    generation_key,
    job_name,
)
from ringrift_pipeline.orchestration.notify import Alert, Notifier
from ringrift_pipeline.orchestration.outbox import Outbox, deadline
from ringrift_pipeline.orchestration.places import TICK, data_folder
from ringrift_pipeline.orchestration.reexecution import cancelled_run, standing_run
from ringrift_pipeline.orchestration.tick_log import TickLog, mark_of
from ringrift_pipeline.store import BucketError, Store, StoreError

INTERVAL = 120  # seconds between two looks at the store
RUNS = 20  # newest of a config that are looked at

# What a run's state says about a standstill.
_STATES = {
    "QUEUED": "its run {run} waits in the queue: look what is before it",
    "NOT_STARTED": "its run {run} was never launched: is the daemon well?",
    "STARTING": "its run {run} does not get started: look at its log in the UI",
    "STARTED": "its run {run} is under way and lands nothing: look at its log in the UI, terminate "
    "it if it hangs",
    "CANCELING": "its run {run} is being cancelled and does not end: look at its log in the UI",
    "CANCELED": "its newest run {run} was cancelled: re-execute it in the UI",
    "FAILURE": "its newest run {run} failed: re-execute it from failure in the UI",
    "SUCCESS": f"its newest run {{run}} succeeded, but {SENSOR} started no other: is that sensor on?",
}


@dataclass(frozen=True)
class Stall:
    """A config at a standstill since ``since``, for ``hours``, and why as far as can be seen."""

    config: str
    generation: int
    since: datetime
    hours: float
    allowed: float
    why: str
    run_id: str | None

    def alert(self) -> Alert:
        """What people are told; once, for the key is the moment it began."""
        return Alert(
            kind="config_stalled",
            key=f"{self.config}/{self.since.isoformat()}",
            title=f"{self.config} is at a standstill: nothing has landed for {self.hours:.1f} hours",
            text=f"Its newest generation is {generation_key(self.generation)}; {self.why}. "
            f"`ringrift loop --config {self.config}` goes on from there; if it is meant to rest, "
            f"`ringrift pause --config {self.config}` (the job set_switches) says so. "
            f"watch.stalled_hours is {self.allowed:g}.",
            config=self.config,
            generation=generation_key(self.generation),
            run_id=self.run_id,
            details={"since": self.since.isoformat(), "hours": round(self.hours, 3)},
        )


@dataclass(frozen=True)
class Sign:
    """A sign of life: when it was, by what else it is told from the one before, how old when the
    sensor first saw it (hours), and when that was (seconds since the computer was started).
    """

    since: str
    mark: str
    age: float
    seen: float


class Signs:
    """The newest sign of each config, from one tick to the next; ``text`` is the sensor's cursor.
    A cursor that is nonsense, or of before the computer was started, starts over.
    """

    def __init__(self, text: str | None = None) -> None:
        self._known: dict[str, Sign] = {}
        try:
            for config, values in json.loads(text or "{}").items():
                words = str(values["since"]), str(values["mark"])
                sign = Sign(*words, float(values["age"]), float(values["seen"]))
                if sign.age >= 0.0 and sign.seen <= time.monotonic():
                    self._known[config] = sign
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
            self._known = {}

    def hours(self, config: str, since: datetime, mark: str, now: datetime) -> float:
        """How long ago the newest sign of a config was. ``mark`` differs for every sign: what comes
        after the clock was turned back is not the latest.
        """
        sign = self._known.get(config)
        if sign is None or (sign.since, sign.mark) != (since.isoformat(), mark):
            age = max(0.0, (now - since).total_seconds() / 3600.0)
            if sign is not None:  # it came after the one before was seen, whatever the time says
                age = min(age, (time.monotonic() - sign.seen) / 3600.0)
            sign = self._known[config] = Sign(since.isoformat(), mark, age, time.monotonic())
        return sign.age + (time.monotonic() - sign.seen) / 3600.0

    @property
    def text(self) -> str:
        """As the next tick gets it."""
        return json.dumps({config: asdict(sign) for config, sign in self._known.items()})


def stalled_sensor() -> SensorDefinition:
    """The sensor; it takes the resource ``notifier``."""

    @sensor(
        name=STALLED_SENSOR,
        minimum_interval_seconds=INTERVAL,
        default_status=DefaultSensorStatus.RUNNING,
        description="Tells, once, of a config for which nothing has landed for its "
        "watch.stalled_hours, though it is neither paused nor through with the generations that "
        "were asked for; and of every file that was found damaged and put aside.",
    )
    def config_stalled(
        context: SensorEvaluationContext, notifier: ResourceParam[Notifier]
    ) -> SkipReason:
        until = deadline()
        store = Store(data_folder(), within=TICK)
        outbox = Outbox(store)
        with TickLog(context, store.root, STALLED_SENSOR) as log:
            outbox.deliver(notifier, log.info, until)  # a bucket may hold up what follows
            watched: set[str] = set()
            try:
                watched.update(store.configs())
                watched |= _asked_for(context.instance)
            except Exception as error:  # as below
                what = f"{type(error).__name__}: {error}"
                log.error(
                    f"some config cannot be watched, {what}", f"some config, {mark_of(error)}"
                )
            stalled = []
            signs = Signs(context.cursor)
            for config in CONFIGS:
                if config not in watched:
                    continue
                try:
                    stall = _look(context.instance, store, outbox, config, signs)
                    if stall is not None:
                        outbox.put(stall.alert())
                        stalled.append(f"{config} for {stall.hours:.1f} hours")
                except Exception as error:  # whatever it is, it must not hide another's standstill
                    what = f"{type(error).__name__}: {error}"
                    log.error(f"{config}: cannot be watched, {what}", f"{config}, {mark_of(error)}")
            outbox.deliver(notifier, log.info, until)
        context.update_cursor(signs.text)
        return SkipReason("; ".join(stalled) or "no config is at a standstill")

    return config_stalled


def _look(
    instance: DagsterInstance, store: Store, outbox: Outbox, config: str, signs: Signs
) -> Stall | None:
    """The standstill of a config, if it is at one. People are told of what was damaged, and of what
    keeps it from being watched where that is theirs to mend.
    """
    try:
        tell_damage(store, outbox, config)
        return find_stall(instance, store, config, datetime.now(UTC), signs)
    except BucketError:  # may pass, as errors of disk and database may
        raise
    except (StoreError, ValueError) as error:
        outbox.put(_unwatched(config, f"{type(error).__name__}: {error}"))
        raise


def _unwatched(config: str, what: str) -> Alert:
    """What people are told, once a day, where a config's plan or switches cannot be read."""
    return Alert(
        kind="sensor_failed",
        key=f"{STALLED_SENSOR}/{config}/{datetime.now(UTC).date()}/{what}",
        title=f"{config} cannot be watched: nobody would be told of a standstill",
        text=f"{what}\nThe sensor {STALLED_SENSOR} looks again every {INTERVAL} s, and watches it "
        "once that is put right.",
        config=config,
    )


def _asked_for(instance: DagsterInstance) -> set[str]:
    """Configs of which a generation's run is not finished; they may have no plan yet."""
    unfinished = instance.get_runs(RunsFilter(statuses=[*NOT_FINISHED_STATUSES]))
    named = {config_in(run.tags) for run in unfinished if generation_in(run.tags) is not None}
    return {config for config in named if config is not None}


def find_stall(
    instance: DagsterInstance, store: Store, config: str, now: datetime, signs: Signs | None = None
) -> Stall | None:
    """The standstill of a config that has been begun or asked for, None if there is none.

    It began when something last landed, a generation's run was last asked for or cancelled, or the
    switches were last changed, whichever is the latest: a config that is taken up again is given its
    time. One without a plan is watched with the default settings while a run of it is not finished.

    Args:
        now: what the computer's clock says, for a sign that ``signs`` do not know.
        signs: what was seen of the config before.

    Raises:
        StoreError: a plan or the switches are damaged.
        ConfigError: the newest plan's settings cannot be read.
    """
    switches = store.switches(config)
    if not switches.loop:
        return None
    decided = newest_decision(store, config)
    known = _newest_runs(instance, config)
    runs = [record for record in known if _asks_for_more(record, config)]
    planned = store.generations(config)
    if not planned:
        runs = [record for record in runs if not record.dagster_run.is_finished]
    if decided is None and (known or not planned) and not runs:
        return None  # made by hand or by a backfill, or not begun: nobody has asked for more
    newest = standing_run(instance, config, _of_one_generation(runs))
    more = decided is not None and any(_is_later(record, decided[0]) for record in runs)
    if decided is not None and decided[1].get("end") == LIMIT and not more:
        return None
    if planned:
        generation = planned[-1]
        settings = TrainingConfig.from_dict(store.read_plan(config, generation)["settings"])
    else:
        generation = generation_in(runs[0].dagster_run.tags) or 0
        settings = TrainingConfig()
    last, landed = store.signs(config)
    times, mark = [last], [str(landed)]
    if newest is not None:
        times.append(newest.create_timestamp)
        mark.append(newest.dagster_run.run_id)
    cancelled = cancelled_run(instance, store, config)
    if cancelled is not None and cancelled.end_time is not None:
        times.append(datetime.fromtimestamp(cancelled.end_time, UTC))
        mark.append(f"{cancelled.dagster_run.run_id} cancelled")
    if switches.changed_at is not None:
        times.append(datetime.fromisoformat(switches.changed_at))
        mark.append(switches.changed_at)
    since = max(one for one in times if one is not None)
    hours = (signs or Signs()).hours(config, since, " ".join(mark), now)
    if hours <= settings.watch.stalled_hours:
        return None
    standing = None if more else decided
    return Stall(
        config=config,
        generation=generation,
        since=since,
        hours=hours,
        allowed=settings.watch.stalled_hours,
        why=_why(newest, standing, cancelled, not_followed(instance, config, standing)),
        run_id=told_of.dagster_run.run_id if (told_of := cancelled or newest) is not None else None,
    )


def _newest_runs(instance: DagsterInstance, config: str) -> list[RunRecord]:
    """The newest runs of generations, newest first: of the job, or of some of its assets, as a
    backfill's and the night's are.
    """
    found = [
        *instance.get_run_records(RunsFilter(job_name=job_name(config)), limit=RUNS),
        *(
            record
            for record in instance.get_run_records(
                RunsFilter(tags={CONFIG_TAG: config}), limit=RUNS
            )
            if generation_in(record.dagster_run.tags) is not None
        ),
    ]
    return sorted(found, key=lambda record: record.storage_id, reverse=True)


def _asks_for_more(record: RunRecord, config: str) -> bool:
    """Is a run at work, or one after which the loop goes on? A backfill's, and one of some assets
    alone, as the night's, end where they end.
    """
    run = record.dagster_run
    return not run.is_finished or makes_a_generation(run, config)


def _of_one_generation(records: list[RunRecord]) -> list[RunRecord]:
    """Those of the generation that the first one is of."""
    which = [generation_in(record.dagster_run.tags) for record in records]
    return [record for record, one in zip(records, which, strict=True) if one == which[0]]


def _is_later(record: RunRecord, generation: int) -> bool:
    asked = generation_in(record.dagster_run.tags)
    return asked is not None and asked > generation


def _why(
    newest: RunRecord | None,
    decided: tuple[int, dict[str, Any]] | None,
    cancelled: RunRecord | None,
    unfollowed: str | None,
) -> str:
    """What can be seen from here of the reason; ``decided`` is the newest decision, unless more has
    been asked for since, ``unfollowed`` why none follows it.
    """
    if cancelled is not None:
        key = cancelled.dagster_run.tags[PARTITION_TAG]
        return (
            f"the run {cancelled.dagster_run.run_id} of generation {key} was cancelled, and is not "
            "started again by itself: re-execute it in the UI"
        )
    if decided is not None and decided[1].get("end") in FAULTS:
        reasons = "; ".join(map(str, decided[1]["reasons"]))
        return f"the loop stopped at generation {generation_key(decided[0])}: {reasons}"
    if unfollowed is not None:
        return unfollowed
    if newest is None:
        return "no run of its generations is known here"
    status = newest.dagster_run.status.value
    return _STATES.get(status, f"its newest run {{run}} is {status}").format(
        run=newest.dagster_run.run_id
    )
