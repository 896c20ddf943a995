"""Promoting what the gate lets through, and what was decided on a generation's evaluation.

A decision is kept beside the evaluation: an artefact ``decision``. Its metadata: ``promoted``,
``reasons``, ``next`` (the generation that was started, else None), ``end`` (why none was, one of the
names below, else None), ``last_generation`` (the limit that held, else None), ``feedback``, and of
which evaluation (``run``, ``storage_id``). The command line waits for it, the schedules and the watch
over stalled configs read it.
"""

from __future__ import annotations

from typing import Any

from dagster import EventLogRecord

from ringrift_pipeline.orchestration.names import generation_key
from ringrift_pipeline.store import (
    Artefact,
    CorruptArtefactError,
    MissingArtefactError,
    Store,
    StoreError,
)
from ringrift_pipeline.store.kinds import RATING

KIND = "decision"

LIMIT = "limit"  # the last generation that was asked for
STARTED = "started"  # somebody else has started the next one
CHECKS = "checks"  # a blocking check failed, or a file it rests on is damaged
PLAN = "plan"  # no settings for the next one can be made from its plan

FAULTS = (CHECKS, PLAN)  # what somebody has to put right before the loop can go on


def _evaluation(store: Store, config: str, generation: int, record: EventLogRecord) -> Artefact:
    """The very evaluation that the record tells of and its checks have judged; the command line may
    have made another one current. Raises MissingArtefactError, CorruptArtefactError.
    """
    current = store.require(config, generation, "evaluation")
    landed = record.asset_materialization
    digest = landed.metadata.get("digest") if landed is not None else None
    if digest is None or digest.value == current.digest:
        return current
    for earlier in store.artefacts(config, generation, "evaluation"):
        if earlier.digest == digest.value:
            return store.open(earlier.path)
    where = f"{config} generation {generation_key(generation)}"
    raise MissingArtefactError(
        f"the evaluation {digest.value} of {where}", "another has taken its place since"
    )


def promote(
    store: Store, config: str, generation: int, record: EventLogRecord
) -> tuple[bool, list[str]]:
    """As `promote_evaluated`, by the very evaluation that the record tells of."""
    evaluation = _evaluation(store, config, generation, record)
    return promote_evaluated(store, evaluation, record.run_id)


def promote_evaluated(
    store: Store, evaluation: Artefact, run_id: str | None
) -> tuple[bool, list[str]]:
    """Ask the gate's report; promote if it says so. Is or was the generation champion, and why.

    The report must be of a match with the champion of this moment: an old generation that is made
    anew, or an evaluation that waited for its checks, has met an earlier one, or none.

    Raises:
        StoreError: a file that this rests on is not there, or damaged.
    """
    config, generation = evaluation.config, evaluation.generation
    report = evaluation.read_json("report.json")
    gate = report["gate"]
    reasons = [str(reason) for reason in gate["reasons"]]
    before = was_promoted(store, config, generation)
    if not gate["promote"]:
        return before, [*reasons, "but it was made champion before"] if before else reasons
    model = store.require(config, generation, "ema_model")
    if report["candidate"]["digest"] != model.digest:
        return before, [*reasons, "but the model was made anew since: materialize evaluation again"]
    history = store.champions(config)
    now = store.champion(config)
    met = (report.get("champion") or {}).get("digest")
    if now is not None and now.digest not in (met, model.digest):
        since = f"generation {generation_key(now.generation)} is champion since, and was not met"
        return before, [*reasons, since]
    rating = report.get("ratings", {}).get(report["candidate"].get("name"))
    reason = {
        "gate": gate,
        "rating": rating if RATING in evaluation.metadata else None,  # else of another scale
        "evaluation": evaluation.digest,
        "run": run_id,
    }
    # whoever is promoted meanwhile was not met either
    champion = store.promote(config, generation, model, reason, after=len(history))
    if (champion.generation, champion.digest) != (generation, model.digest):
        # A repeat of an old event: somebody newer has been promoted since.
        return before, [*reasons, f"generation {champion.generation:04d} is champion since"]
    return True, reasons


def was_promoted(store: Store, config: str, generation: int) -> bool:
    """Has the generation's model ever been made champion? Where that cannot be read, no."""
    try:
        model = store.current(config, generation, "ema_model", verify=False)
        history = store.champions(config)
    except StoreError:
        return False
    known = {(champion.generation, champion.digest) for champion in history}
    return model is not None and (generation, model.digest) in known


def is_about(decision: dict[str, Any] | None, record: EventLogRecord) -> bool:
    """Is it a decision on the very evaluation that the record tells of?"""
    of = (record.run_id, record.storage_id)
    return decision is not None and (decision["run"], decision.get("storage_id")) == of


def limit_before(store: Store, config: str, generation: int) -> int | None:
    """The last generation asked for, as it was noted earlier: in the generation's own decision,
    else in the one that started it. None where there is none.
    """
    known = read_decision(store, config, generation)
    if known is None and generation > 0:
        before = read_decision(store, config, generation - 1)
        known = before if before is not None and before["next"] == generation else None
    return known.get("last_generation") if known is not None else None


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
    last: int | None = None,
    feedback: dict[str, Any] | None = None,
) -> None:
    """Write it, unless the newest says just that. Raises what `Store.create` raises."""
    decision = {
        "promoted": promoted,
        "reasons": reasons,
        "next": following,
        "end": end,
        "last_generation": last,
        "feedback": feedback,
        "run": record.run_id,
        "storage_id": record.storage_id,
    }
    if read_decision(store, config, generation) == decision:
        return
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
