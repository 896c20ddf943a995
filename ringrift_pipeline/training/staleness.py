"""Whether a training window is fresh enough to be trained on."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ringrift_pipeline.selfplay.plan import Plan
    from ringrift_pipeline.store import Artefact, Champion, Store

__all__ = ["Freshness", "StaleWindowError", "judge_window", "require_fresh"]


class StaleWindowError(RuntimeError):
    """The window is stale; the message says how, and how to get a fresh one."""


@dataclass(frozen=True)
class Freshness:
    """``fresh``, one sentence why, and the numbers it rests on."""

    fresh: bool
    why: str
    numbers: dict[str, float | int | str] = field(default_factory=dict)


def judge_window(store: Store, plan: Plan, now: datetime | None = None) -> Freshness:
    """Whether the plan's window, the generation's own shards included, may be trained on.

    It may if the champion played one of its shards at most ``watch.champion_age`` generations ago
    (the heuristic, as long as no generation before this one was promoted) and its newest shard
    landed at most ``watch.shard_hours`` ago. The champion is the newest promotion of an earlier
    generation, so that a generation that is run again is judged as it was the first time; hours
    count to its training where that has been done, to ``now`` where not. Who played a shard is
    read from its file.

    Raises
    ------
    MissingArtefactError, CorruptArtefactError, ShardError
        if a shard is not there or cannot be read.
    """
    watch = plan.settings.watch
    champion = _champion(store, plan)
    shards = _shards(store, plan)
    newest = max(
        datetime.fromisoformat(shard.metadata.get("first_played", shard.created))
        for shard in shards
    )
    hours = max(0.0, (_trained(store, plan, now) - newest).total_seconds() / 3600.0)
    played = [shard for shard in shards if _player(store, shard) == (champion and champion.digest)]
    numbers: dict[str, float | int | str] = {
        "window/shards": len(shards),
        "window/champions_shards": len(played),
        "window/newest_hours": round(hours, 3),
    }
    who = "the heuristic" if champion is None else f"the champion (generation {_key(champion)})"
    advice = (
        "play a new generation with today's champion: ringrift loop --config "
        f"{plan.config} --resume never"
    )
    if not played:
        return Freshness(
            False,
            f"none of the window's {len(shards)} shards was played by {who}: {advice}",
            numbers,
        )
    age = plan.generation - max(shard.generation for shard in played)
    numbers["window/champion_age"] = age
    if age > watch.champion_age:
        return Freshness(
            False,
            f"the newest shard of {who} is {age} generations old, watch.champion_age allows "
            f"{watch.champion_age}: {advice}",
            numbers,
        )
    if hours > watch.shard_hours:
        return Freshness(
            False,
            f"the newest shard is {hours:.1f} hours old, watch.shard_hours allows "
            f"{watch.shard_hours:g}: {advice}",
            numbers,
        )
    return Freshness(
        True,
        f"{len(played)} of {len(shards)} shards were played by {who}, the newest of all is "
        f"{hours:.1f} hours old",
        numbers,
    )


def require_fresh(store: Store, plan: Plan, now: datetime | None = None) -> None:
    """Raises StaleWindowError unless the window may be trained on (see :func:`judge_window`)."""
    judged = judge_window(store, plan, now)
    if not judged.fresh:
        raise StaleWindowError(judged.why)


def _key(champion: Champion) -> str:
    return f"{champion.generation:04d}"


def _champion(store: Store, plan: Plan) -> Champion | None:
    earlier = [one for one in store.champions(plan.config) if one.generation < plan.generation]
    return earlier[-1] if earlier else None


def _shards(store: Store, plan: Plan) -> list[Artefact]:
    """The window's shards, unhashed: the check of the shards and the window hash them."""
    from ringrift_pipeline.selfplay import iter_shards

    return list(iter_shards(store, plan, verify=False))


def _player(store: Store, shard: Artefact) -> str | None:
    """Digest of the model that played a shard, None for the heuristic."""
    from ringrift_pipeline.selfplay.shards import SHARD_FILE, ShardError, read_metadata

    if "model" in shard.metadata:  # not of every version's
        named: str | None = shard.metadata["model"]
        return named
    if not shard.path.is_dir():  # in a bucket still
        store.open(shard.path)
    try:
        model: str | None = read_metadata(shard.path / SHARD_FILE)["model"]
    except ShardError:
        store.open(shard.path, verify=True)  # says so, and moves it away, if its bytes changed
        raise
    return model


def _trained(store: Store, plan: Plan, now: datetime | None) -> datetime:
    """When the plan's training was done, ``now`` if it has not been."""
    found = store.current(plan.config, plan.generation, "checkpoint", verify=False)
    if found is not None and found.metadata.get("inputs", {}).get("plan") == plan.digest:
        return datetime.fromisoformat(found.created)
    return now or datetime.now(UTC)
