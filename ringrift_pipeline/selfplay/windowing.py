"""Which earlier shards a generation trains on beside its own, and how many of their games it may
hold out.

What it costs to find out grows with the window, not with the history behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from ringrift_pipeline.selfplay.plan import load_plan
from ringrift_pipeline.store.kinds import SHARD_PREFIX, shard_kind

if TYPE_CHECKING:
    from ringrift_pipeline.enhancements.training_config import TrainingConfig
    from ringrift_pipeline.selfplay.plan import Plan
    from ringrift_pipeline.store import Artefact, Store

__all__ = ["window_games", "window_of"]


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
    store: Store, config: str, generation: int, own: int, settings: TrainingConfig
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
    return _entries(store, config, earlier, room), played, _holdout(earlier, plan_of)


def _entries(store: Store, config: str, earlier: list[int], room: int) -> list[dict[str, Any]]:
    """The shards of earlier generations that hold ``room`` games, whole shards, newest first until
    there are enough; listed oldest generation first.
    """
    entries: list[dict[str, Any]] = []
    for generation in reversed(earlier):
        if room <= 0:
            break
        for index, artefact in reversed(_landed_shards(store, config, generation)):
            if room <= 0:
                break
            entries.append({"generation": generation, "shard": index, "digest": artefact.digest})
            games = artefact.metadata.get("games")
            if games is None:
                games = load_plan(store, config, generation).shard(index)["games"]
            room -= int(games)
    return entries[::-1]


def _landed_shards(store: Store, config: str, generation: int) -> list[tuple[int, Artefact]]:
    """Number and artefact of every shard of a generation that is there, ascending."""
    found = []
    for kind in store.kinds(config, generation):
        number = kind.removeprefix(SHARD_PREFIX)
        # people put copies beside what is ours: only the name that we give counts
        if number.isascii() and number.isdecimal() and shard_kind(int(number)) == kind:
            artefact = store.current(config, generation, kind, verify=False)
            if artefact is not None:
                found.append((int(number), artefact))
    return sorted(found, key=lambda one: one[0])


def _played(store: Store, config: str, earlier: list[int], plan_of: Callable[[int], Plan]) -> int:
    """Games that these generations have played, those included that retention has deleted since.

    The newest plan that notes how many there were before it ends the count.
    """
    games = 0
    for generation in reversed(earlier):
        plan = plan_of(generation)
        collected = store.current(config, generation, "selfplay_shards", verify=False) is not None
        for shard in plan.shards:
            kind = shard_kind(shard["index"])
            if collected or store.current(config, generation, kind, verify=False) is not None:
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
