"""What serves in the place of something whose files are damaged or gone."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from ringrift_pipeline.store.champion import STANDS_IN, Champion
from ringrift_pipeline.store.errors import CorruptArtefactError, MissingArtefactError

if TYPE_CHECKING:
    from ringrift_pipeline.store.manifest import Artefact
    from ringrift_pipeline.store.store import Store

_log = logging.getLogger(__name__)


def copy_of(store: Store, config: str, generation: int, kind: str, digest: str) -> Artefact | None:
    """The newest landed artefact of a kind that has this digest and verifies, current or not; None
    if there is none.
    """
    for artefact in reversed(store.artefacts(config, generation, kind)):
        if artefact.digest == digest:
            with contextlib.suppress(CorruptArtefactError, MissingArtefactError):
                return store.open(artefact.path)
    return None


def serving_champion(store: Store, config: str) -> Champion | None:
    """The champion, its files verified; None before the first promotion.

    Where they are damaged or gone a copy of them that verifies takes their place, else the newest
    champion before it that verifies is promoted again, with `Champion.stands_in_for`. Raises
    CorruptArtefactError or MissingArtefactError where nothing is left to fall back to.
    """
    champion = store.champion(config)
    if champion is None:
        return None
    try:
        return _verified(store, champion)
    except (CorruptArtefactError, MissingArtefactError) as error:
        damage = error
    history = store.champions(config)
    for past in reversed(history):
        found = copy_of(store, config, past.generation, past.kind, past.digest)
        if found is None:
            continue
        reason = dict(past.reason)
        if past.digest != champion.digest:
            reason = {STANDS_IN: f"generation {champion.generation:04d}: {damage}"}
        _log.warning(
            "%s: generation %04d serves as champion, for that of generation %04d cannot: %s",
            config,
            past.generation,
            champion.generation,
            damage,
        )
        # a promotion that lands meanwhile stands
        serves = store.promote(
            config, past.generation, found, reason, again=True, after=len(history)
        )
        return _verified(store, serves)
    raise damage


def _verified(store: Store, champion: Champion) -> Champion:
    if store.open(champion.path).digest != champion.digest:
        raise CorruptArtefactError(
            champion.path,
            "it is not the model that was promoted",
            "restore that from a backup, or promote another generation",
        )
    return champion
