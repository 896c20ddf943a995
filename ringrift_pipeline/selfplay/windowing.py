"""Which earlier shards a generation trains on beside its own, how many of their games it may hold
out, and those shards.

What it costs to find out grows with the window, not with the history behind it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from ringrift_pipeline.selfplay.plan import load_plan
from ringrift_pipeline.selfplay.stopping import Interrupted, Progress, Reporter, ShouldStop
from ringrift_pipeline.store import (
    CorruptArtefactError,
    MissingArtefactError,
    StoreError,
    copy_of,
    quarantined,
)
from ringrift_pipeline.store.kinds import SHARD_PREFIX, shard_kind

if TYPE_CHECKING:
    from ringrift_pipeline.enhancements.training_config import TrainingConfig
    from ringrift_pipeline.selfplay.plan import Plan
    from ringrift_pipeline.store import Artefact, Store

__all__ = ["iter_shards", "window_games", "window_of"]

_log = logging.getLogger(__name__)


def window_games(games: int, settings: TrainingConfig) -> int:
    """How many of the newest of so many games the training window holds.

    All up to ``N0 = training.window_games``; of N games beyond it
    ``N0 * (1 + growth * ((N / N0) ** exponent - 1) / exponent)``, at least N0 and at most N, with
    ``training.window_growth`` and ``training.window_exponent`` (the window of KataGo, Wu 2019,
    appendix C). A growth of 0 keeps N0.
    """
    training = settings.training
    first = training.window_games
    if games <= first:
        return games
    grown = ((games / first) ** training.window_exponent - 1.0) / training.window_exponent
    return min(games, round(first * (1.0 + training.window_growth * grown)))


def window_of(
    store: Store,
    config: str,
    generation: int,
    own: int,
    settings: TrainingConfig,
    reporter: Reporter | None = None,
) -> tuple[list[dict[str, Any]], int, list[dict[str, Any]]]:
    """The earlier shards that the window of a generation holds beside its ``own`` games, as in
    `Plan.window`, how many games the earlier generations have played (`Plan.played`), and
    `Plan.holdout`.
    """
    earlier = [number for number in store.generations(config) if number < generation]

    @cache
    def plan_of(number: int) -> Plan:
        return load_plan(store, config, number)

    played = _played(store, config, earlier, plan_of)
    room = window_games(own + played, settings) - own
    return _entries(store, config, earlier, room, reporter), played, _holdout(earlier, plan_of)


def _entries(
    store: Store, config: str, earlier: list[int], room: int, reporter: Reporter | None
) -> list[dict[str, Any]]:
    """The shards of earlier generations that hold ``room`` games, whole shards, newest first until
    there are enough; listed oldest generation first.
    """
    entries: list[dict[str, Any]] = []
    aside = quarantined(store, config)
    for generation in reversed(earlier):
        if room <= 0:
            break
        damaged = {one.kind for one in aside if one.generation == generation and one.kind}
        landed = _landed_shards(store, config, generation, damaged, reporter)
        for index, artefact in reversed(landed):
            if room <= 0:
                break
            entries.append({"generation": generation, "shard": index, "digest": artefact.digest})
            games = artefact.metadata.get("games")
            if games is None:
                games = load_plan(store, config, generation).shard(index)["games"]
            room -= int(games)
    return entries[::-1]


def _landed_shards(
    store: Store, config: str, generation: int, damaged: set[str], reporter: Reporter | None
) -> list[tuple[int, Artefact]]:
    """Number and artefact of every shard of a generation that is there, ascending.

    One that is damaged, or of a kind that was found ``damaged`` before and is not there, is played
    again; where it cannot be, it is left out, and the log says so.
    """
    found: dict[int, Artefact] = {}
    for kind in damaged.union(store.kinds(config, generation)):
        number = kind.removeprefix(SHARD_PREFIX)
        # people put copies beside what is ours: only the name that we give counts
        if not (number.isascii() and number.isdecimal() and shard_kind(int(number)) == kind):
            continue
        try:
            artefact = store.current(config, generation, kind, verify=False)
            if artefact is None and kind in damaged:
                artefact = _healed(store, config, generation, int(number), reporter)
        except CorruptArtefactError:
            artefact = _healed(store, config, generation, int(number), reporter)
        if artefact is not None:
            found[int(number)] = artefact
    return sorted(found.items())


def _healed(
    store: Store, config: str, generation: int, index: int, reporter: Reporter | None
) -> Artefact | None:
    from ringrift_pipeline.selfplay.shards import ShardError

    digests = _collected(store, config, generation)
    why = "how its bytes were is not known any more"
    if index < len(digests):
        try:
            return _recorded(store, config, generation, index, digests[index], reporter=reporter)
        except ShardError as error:
            why = str(error)
    _log.warning(
        "shard %d of %s generation %04d is left out of the window: %s",
        index,
        config,
        generation,
        why,
    )
    return None


def _collected(store: Store, config: str, generation: int) -> list[str]:
    """Digests of a generation's shards as they were collected, by index; empty if they were not."""
    try:
        index = store.current(config, generation, "selfplay_shards", verify=False)
    except CorruptArtefactError:
        return []
    return [] if index is None else list(index.metadata.get("shards", []))


def _played(store: Store, config: str, earlier: list[int], plan_of: Callable[[int], Plan]) -> int:
    """Games that these generations have played, those included that retention has deleted since.

    The newest plan that notes how many there were before it ends the count.
    """
    games = 0
    for generation in reversed(earlier):
        plan = plan_of(generation)
        collected = _was_there(store, config, generation, "selfplay_shards")
        for shard in plan.shards:
            if collected or _was_there(store, config, generation, shard_kind(shard["index"])):
                games += int(shard["games"])
        if plan.played is not None:
            return games + plan.played
    return games


def _holdout(earlier: list[int], plan_of: Callable[[int], Plan]) -> list[dict[str, Any]]:
    """Of each of these generations' games the smallest share that was held out since, as in
    `Plan.holdout`. The newest plan that notes those before it ends the search.
    """
    since: dict[float, int] = {}  # share -> the first generation that it holds for, newest first
    fraction = 1.0
    for generation in reversed(earlier):
        plan = plan_of(generation)
        fraction = min(fraction, plan.settings.training.holdout_fraction)
        since[fraction] = generation
        if plan.holdout is not None:
            for one in reversed(plan.holdout):
                since[min(fraction, one["fraction"])] = one["generation"]
            break
    return [{"generation": first, "fraction": share} for share, first in reversed(since.items())]


def _was_there(store: Store, config: str, generation: int, kind: str) -> bool:
    try:
        return store.current(config, generation, kind, verify=False) is not None
    except CorruptArtefactError:
        return True


# -- the shards themselves -------------------------------------------------------------------------


def iter_shards(
    store: Store,
    plan: Plan,
    *,
    verify: bool = True,
    progress: Progress | None = None,
    should_stop: ShouldStop | None = None,
) -> Iterator[Artefact]:
    """Artefacts of the training window, oldest generation first, own shards last; each has one file,
    ``shard.arrow``. With ``verify`` it is hashed.

    A shard that is damaged or gone is played again from its generation's plan, if that gives the
    bytes that were recorded.

    Raises
    ------
    MissingArtefactError
        from the store, if a shard of this generation has not been played.
    ShardError
        if an earlier shard is no longer the one that the plan names, or one that is damaged cannot
        be played again: its model is gone, or this version or machine plays other games.
    Interrupted
        if ``should_stop`` says so while a shard is played again.
    """
    reporter = Reporter(progress, should_stop)
    for entry in plan.window:
        where = (plan.config, entry["generation"], entry["shard"])
        yield _recorded(store, *where, entry["digest"], verify, reporter)
    for shard in plan.shards:
        index = shard["index"]
        try:
            yield store.require(plan.config, plan.generation, shard_kind(index), verify)
        except (CorruptArtefactError, MissingArtefactError):
            digests = _collected(store, plan.config, plan.generation)
            if index >= len(digests):
                raise
            where = (plan.config, plan.generation, index)
            yield _recorded(store, *where, digests[index], verify, reporter)


def _recorded(
    store: Store,
    config: str,
    generation: int,
    index: int,
    digest: str,
    verify: bool = True,
    reporter: Reporter | None = None,
) -> Artefact:
    """The shard whose digest was recorded, played again where it is damaged or gone."""
    from ringrift_pipeline.selfplay.playing import play_with
    from ringrift_pipeline.selfplay.shards import ShardError

    kind, name = shard_kind(index), f"shard {index} of {config} generation {generation:04d}"
    why = "it is gone"
    try:
        current = store.current(config, generation, kind, verify)
    except CorruptArtefactError as error:
        current, why = None, error.reason
    good = current or store.last_good(config, generation, kind)  # if only the pointer is damaged
    if good is not None and good.digest == digest:
        return good
    copy = copy_of(store, config, generation, kind, digest)
    if copy is not None:
        return copy
    again = f"start a new generation: ringrift loop --config {config} --resume never"
    if current is not None:
        raise ShardError(
            f"{name} is not the one that was recorded ({digest[:12]}): restore it, or {again}"
        )
    _log.warning("%s is damaged (%s): it is played again", name, why)
    try:
        plan = load_plan(store, config, generation)
        return play_with(store, plan, index, reporter or Reporter(), digest)
    except Interrupted:
        raise
    except (StoreError, ValueError, RuntimeError, ImportError) as error:
        raise ShardError(
            f"{name} is damaged ({why}) and cannot be played again: {error}. Restore it, or {again}"
        ) from error
