"""What was decided on a generation's evaluation, kept beside it: an artefact ``decision``.

Its metadata: ``promoted``, ``reasons``, ``next`` (the generation that was started, else None),
``end`` (why none was, one of the names below, else None), ``feedback``, and of which evaluation
(``run``, ``storage_id``). The command line waits for it, the schedules and the watch over stalled
configs read it.
"""

from __future__ import annotations

from typing import Any

from dagster import EventLogRecord

from ringrift_pipeline.store import CorruptArtefactError, Store

KIND = "decision"

LIMIT = "limit"  # the last generation that was asked for
STARTED = "started"  # somebody else has started the next one
CHECKS = "checks"  # a blocking check failed, or a file it rests on is damaged
PLAN = "plan"  # no settings for the next one can be made from its plan

FAULTS = (CHECKS, PLAN)  # what somebody has to put right before the loop can go on


def keep_decision(
    store: Store,
    config: str,
    generation: int,
    record: EventLogRecord,
    *,
    promoted: bool,
    reasons: list[str],
    following: int | None = None,
    end: str | None = None,
    feedback: dict[str, Any] | None = None,
) -> None:
    """Write it. Raises what `Store.create` raises."""
    decision = {
        "promoted": promoted,
        "reasons": reasons,
        "next": following,
        "end": end,
        "feedback": feedback,
        "run": record.run_id,
        "storage_id": record.storage_id,
    }
    with store.create(config, generation, KIND, decision):
        pass


def read_decision(store: Store, config: str, generation: int) -> dict[str, Any] | None:
    """The newest decision on a generation, None if there is none or it is damaged."""
    try:
        artefact = store.current(config, generation, KIND)
    except CorruptArtefactError:
        return None
    return artefact.metadata if artefact is not None else None


def newest_decision(store: Store, config: str) -> tuple[int, dict[str, Any]] | None:
    """The newest generation that has been decided, with what was decided; None if none has."""
    for generation in reversed(store.generations(config)):
        decision = read_decision(store, config, generation)
        if decision is not None:
            return generation, decision
    return None
