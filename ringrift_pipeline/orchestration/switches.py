"""Pausing and resuming configs: a job for the launchpad, and what others ask before they go on, also
whether the sensor that starts generations is on.
"""

from typing import Any

from dagster import (
    Config,
    DagsterInstance,
    DagsterRunStatus,
    OpExecutionContext,
    RunsFilter,
    in_process_executor,
    job,
    op,
)
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import InstigatorStatus
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES
from pydantic import Field

from ringrift_pipeline.enhancements.training_config import ConfigError
from ringrift_pipeline.orchestration.names import CONFIGS, MODULE, SENSOR
from ringrift_pipeline.orchestration.settings import ALL, ConfigOrAll, refusing
from ringrift_pipeline.store import SWITCHES, Store, StoreError

JOB = "set_switches"
OP = "switches"


class PausedError(StoreError):
    """A loop was asked to go on whose config is paused; the message says how to resume it."""


class SensorOffError(StoreError):
    """A loop was asked to go on while its sensor is turned off; the message says how to turn it on."""


def is_turned_off(instance: DagsterInstance, location: str | None = None) -> bool:
    """Has somebody turned off the sensor that starts generations? As long as nobody has touched it, no
    state of it is kept, or one that says what the code says: it is on.

    Args:
        location: the code location that is asked about, None for any.
    """
    stopped = instance.all_instigator_state(
        instigator_type=InstigatorType.SENSOR, instigator_statuses={InstigatorStatus.STOPPED}
    )
    return any(
        one.instigator_name == SENSOR and location in (None, one.origin.location_name)
        for one in stopped
    )


def turned_off_note(instance: DagsterInstance) -> str | None:
    """What to tell whoever waits for the sensor of our own code location, None where it is on."""
    if not is_turned_off(instance, MODULE):
        return None
    return (
        f"the sensor {SENSOR} is turned off, so that no generation is decided and none follows "
        "another: turn it on under Automation in the UI (ringrift ui)"
    )


def refuse_turned_off(instance: DagsterInstance) -> None:
    """Raises SensorOffError if the sensor that starts generations is turned off."""
    note = turned_off_note(instance)
    if note is not None:
        raise SensorOffError(note)


def paused_note(store: Store, config: str) -> str | None:
    """What to tell whoever waits for the loop of a paused config, None where it is not paused.

    Raises:
        CorruptArtefactError: its switches are damaged.
    """
    switches = store.switches(config)
    if switches.loop:
        return None
    return (
        f"the loop of {config} is paused since {switches.changed_at}: no generation follows "
        f"another until `ringrift resume --config {config}`"
    )


def refuse_paused(store: Store, config: str) -> None:
    """Raises PausedError if the loop of ``config`` is paused, CorruptArtefactError."""
    note = paused_note(store, config)
    if note is not None:
        raise PausedError(note)


def is_on(instance: DagsterInstance, store: Store, config: str, name: str) -> bool:
    """Is a switch of ``config`` on?

    A run of the job `set_switches` counts from the moment it is launched, over what was asked for
    before: it may have to wait in the queue for the very generation after which the loop is to
    pause.

    Raises:
        CorruptArtefactError: its switches are damaged.
    """
    waiting = RunsFilter(job_name=JOB, statuses=[*NOT_FINISHED_STATUSES])
    switches = store.switches(config)
    for record in instance.get_run_records(waiting):  # newest first
        run = record.dagster_run
        if run.status == DagsterRunStatus.CANCELING:
            continue
        asked = _asked(run.run_config)
        if asked.get("config") in (ALL, config) and isinstance(asked.get(name), bool):
            if not switches.asked_since(name, record.create_timestamp):
                return bool(asked[name])
            break
    return bool(getattr(switches, name))


def _asked(run_config: Any) -> dict[str, Any]:
    """What a run of the job was launched with."""
    try:
        return dict(run_config["ops"][OP]["config"])
    except (KeyError, TypeError, ValueError):
        return {}


class SwitchesConfig(Config):
    """Which switches to turn, of which config; what is left out stays as it is."""

    config: ConfigOrAll = Field(description="Whose: square8_2p, …, hexagonal_4p, or all of them.")
    loop: bool | None = Field(
        default=None, description="The next generation starts when an evaluation has landed."
    )
    nightly: bool | None = Field(default=None, description="nightly_selfplay plays games for it.")
    gauntlet: bool | None = Field(
        default=None, description="weekly_gauntlet plays its champion's gauntlet."
    )


def _given(config: SwitchesConfig) -> dict[str, bool]:
    values = {name: getattr(config, name) for name in SWITCHES}
    return {name: value for name, value in values.items() if value is not None}


def _some(config: SwitchesConfig) -> None:
    if not _given(config):
        raise ConfigError(f"nothing is to be changed: give at least one of {', '.join(SWITCHES)}")


@op(
    name=OP,
    required_resource_keys={"store"},
    description="Turns what a config does by itself on or off.",
)
def turn(context: OpExecutionContext, config: SwitchesConfig) -> None:
    """Write the switches and say how they are; what was asked for since the launch stays."""
    store = context.resources.store.open()
    record = context.instance.get_run_record_by_id(context.run_id)
    asked_at = None if record is None else record.create_timestamp
    chosen = CONFIGS if config.config == ALL else (str(config.config),)
    for name in chosen:
        found = store.set_switches(name, asked_at=asked_at, **_given(config))
        said = ", ".join(f"{one} {'on' if getattr(found, one) else 'off'}" for one in SWITCHES)
        context.log.info(f"{name}: {said}")


@job(
    name=JOB,
    executor_def=in_process_executor,
    tags={"dagster/priority": "10"},
    description="Pauses or resumes a config: its loop (the running generation is finished, the "
    "next is not started), its part in nightly_selfplay, in weekly_gauntlet. The same as ringrift "
    "pause and ringrift resume.",
)
def set_switches() -> None:
    """One op."""
    refusing(turn, SwitchesConfig, _some)()
