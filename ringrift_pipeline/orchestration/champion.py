"""The champion's asset events: they mirror the store's pointer, which is the truth."""

from __future__ import annotations

import logging
from typing import Any

from dagster import AssetMaterialization, DagsterInstance, MetadataValue
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from ringrift_pipeline.orchestration.damage import DAMAGED
from ringrift_pipeline.orchestration.launchable import add_partitions
from ringrift_pipeline.orchestration.metadata import FIRST, numbers
from ringrift_pipeline.orchestration.names import CHAMPION, CONFIGS, asset_key, generation_key
from ringrift_pipeline.orchestration.notify import Alert
from ringrift_pipeline.orchestration.outbox import Outbox
from ringrift_pipeline.store import Champion, Store, StoreError

_log = logging.getLogger(__name__)


def last_reported(instance: DagsterInstance, config: str) -> str | None:
    """Digest of the champion in the newest asset event, None before the first."""
    event = instance.get_latest_materialization_event(asset_key(config, CHAMPION))
    if event is None or event.asset_materialization is None:
        return None
    value = event.asset_materialization.metadata.get("digest")
    return str(value.value) if value is not None else None


def _plotted(champion: Champion) -> dict[str, Any]:
    """Its rating with interval, Elo, and the log likelihood ratio that it was promoted by, where
    the promotion noted them.
    """
    rating = champion.reason.get("rating") or {}
    test = champion.reason.get("gate", {}).get("sprt") or {}
    names = {"elo": "rating", "elo_low": "low", "elo_high": "high"}
    shown = {name: rating[key] for name, key in names.items() if key in rating}
    return shown | ({"sprt_llr": test["llr"]} if "llr" in test else {})


def champion_event(instance: DagsterInstance, champion: Champion) -> AssetMaterialization | None:
    """The event that says who is champion, or None if the newest event already says so."""
    if last_reported(instance, champion.config) == champion.digest:
        return None
    gate = champion.reason.get("gate", {})
    return AssetMaterialization(
        asset_key=asset_key(champion.config, CHAMPION),
        description=f"{champion.config}: generation {generation_key(champion.generation)} "
        "is champion",
        metadata={
            "generation": generation_key(champion.generation),  # a number would be plotted
            "digest": champion.digest,
            "path": MetadataValue.path(champion.path),
            "promoted_at": champion.promoted_at,
            "why": "; ".join(map(str, gate.get("reasons", []))) or _other_reason(champion),
            **numbers({"eval": _plotted(champion)}, FIRST[CHAMPION]),
        },
        tags={DATA_VERSION_TAG: champion.digest[:16]},
    )


def _other_reason(champion: Champion) -> str:
    lost = champion.stands_in_for
    return f"in the place of {lost}" if lost is not None else "see the store's history"


def reconcile(instance: DagsterInstance, store: Store) -> list[str]:
    """Bring the instance up to what the store holds, after a crash or work done without Dagster.

    Adds the partitions that are missing, and reports champions that have no event. Of a config whose
    files cannot be read people are told; the others go on without it. Returns what was done.
    """
    done = []
    for config in CONFIGS:
        try:
            done += reconcile_config(instance, store, config)
        except (StoreError, OSError) as error:
            _tell(store, config, error)
            done.append(f"{config}: {error}")
    return done


def reconcile_config(instance: DagsterInstance, store: Store, config: str) -> list[str]:
    """`reconcile` of one config. Raises StoreError."""
    done = []
    added = add_partitions(instance, store, config)
    if added:
        done.append(f"{config}: partitions {', '.join(added)} added")
    champion = store.champion(config)
    event = None if champion is None else champion_event(instance, champion)
    if champion is not None and event is not None:
        instance.report_runless_asset_event(event)
        done.append(f"{config}: champion of generation {champion.generation:04d} reported")
    return done


def _tell(store: Store, config: str, error: Exception) -> None:
    what = f"{type(error).__name__}: {error}"
    _log.error("%s: %s", config, what)
    alert = Alert(
        kind=DAMAGED,
        key=f"{config}/{what}",
        title=f"{config}: its champion or its generations cannot be read",
        text=f"{what}\nThe other configs go on.",
        config=config,
    )
    try:
        Outbox(store).put(alert)
    except (OSError, StoreError) as unwritten:
        _log.error("%s: nobody is told, %s", config, unwritten)
