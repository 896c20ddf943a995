"""What people are told of a loop that waits for them."""

from __future__ import annotations

from collections.abc import Sequence

from dagster import EventLogRecord

from ringrift_pipeline.orchestration.names import SENSOR, generation_key
from ringrift_pipeline.orchestration.notify import Alert


def not_handled(config: str, handled: int, what: str, interval: int, which: str) -> Alert:
    """An evaluation after ``handled`` cannot be handled; the sensor looks again every ``interval``
    seconds. Told once for each ``which``.
    """
    return Alert(
        kind="sensor_failed",
        key=f"{config}/{handled}/{which}",
        title=f"{config}: an evaluation cannot be handled, its loop waits",
        text=f"{what}. The sensor {SENSOR} looks again every {interval} s and goes on by itself "
        "once that is put right; the whole trace is in its tick's log.",
        config=config,
    )


def checks_failed(
    config: str, generation: int, record: EventLogRecord, reasons: Sequence[str]
) -> Alert:
    """An evaluation has failed its checks, or rests on something damaged."""
    return Alert(
        kind="checks_failed",
        key=f"{config}/{record.storage_id}",
        title=f"{config} generation {generation_key(generation)} cannot be promoted, the loop of "
        f"{config} waits",
        text="\n".join(reasons) + "\nOnce the failed steps have been re-executed, or the checks "
        f"executed, the sensor {SENSOR} looks again by itself and goes on if they pass; to go on "
        f"without that, launch generation {generation_key(generation + 1)}.",
        config=config,
        generation=generation_key(generation),
        run_id=record.run_id,
        details={"reasons": list(reasons)},
    )


def plan_unusable(config: str, generation: int, record: EventLogRecord, why: str) -> Alert:
    """No settings for the next generation can be made from this one's plan."""
    return Alert(
        kind="plan_unusable",
        key=f"{config}/{record.storage_id}",
        title=f"{config} generation {generation_key(generation)} is the last for now, the loop of "
        f"{config} waits",
        text=f"{why}\nOnce that is put right, `ringrift loop --config {config}` goes on from there; "
        "nothing does by itself.",
        config=config,
        generation=generation_key(generation),
        run_id=record.run_id,
    )
