"""How far a config is: its plans and promotions, and whether one has come to them since."""

from __future__ import annotations

from typing import NamedTuple

from ringrift_pipeline.store.champion import Champion
from ringrift_pipeline.store.layout import Layout
from ringrift_pipeline.store.store import Store


class Standing(NamedTuple):
    """Generations that have a plan, ascending; what is another with every promotion: with a bucket their
    number, else the champion.
    """

    generations: tuple[int, ...]
    promoted: int | Champion | None


def standing(store: Store, config: str) -> Standing:
    """How far a config is. In a bucket a request for each thousand plans, and promotions.

    Raises CorruptArtefactError.
    """
    generations = tuple(store.generations(config))
    if remote := store.remote:
        return Standing(generations, remote.records.promotions(config))
    return Standing(generations, store.champion(config))


def has_gone_on(store: Store, config: str, before: Standing) -> bool:
    """Whether there is a plan of the next generation, or another promotion: two requests, however many
    there are. A plan that leaves a number out is not seen. Raises CorruptArtefactError.
    """
    following = before.generations[-1] + 1 if before.generations else 0
    if remote := store.remote:
        promotions = before.promoted if isinstance(before.promoted, int) else 0
        return remote.records.has(config, following, promotions + 1)
    planned = Layout(store.root).plan(config, following).exists()
    return planned or store.champion(config) != before.promoted
