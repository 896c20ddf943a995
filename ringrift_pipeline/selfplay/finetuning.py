"""Which model of another config a config begins with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringrift_pipeline.selfplay.plan import PlanError

if TYPE_CHECKING:
    from ringrift_pipeline.enhancements.training_config import TrainingConfig
    from ringrift_pipeline.store import Artefact, Store


def source_model(store: Store, config: str, settings: TrainingConfig) -> Artefact:
    """The verified model that ``finetune.source`` names, fit to be trained on ``config``.

    Raises
    ------
    PlanError
        if there is no such model, or it has another cell geometry than the config or another
        network shape than the settings ask for. Board size and player count may differ.
    """
    from ringrift_pipeline.game import get_rules
    from ringrift_pipeline.network import NetworkConfig, load_model

    name = settings.finetune.source
    try:
        theirs = get_rules(name.split("/")[0])
    except ValueError as error:
        raise PlanError(f"finetune.source {name!r}: {error}") from error
    rules = get_rules(config)
    if theirs.geometry != rules.geometry:
        raise PlanError(
            f"finetune.source {name!r} has {theirs.geometry} cells, {config} {rules.geometry}: "
            "name a config of the same geometry"
        )
    artefact = _find(store, name)
    shape = settings.network
    wanted = NetworkConfig(
        shape.blocks, shape.channels, shape.value_channels, rules.geometry, rules.players
    ).to_dict()
    have = load_model(artefact.path).config.to_dict()
    odd = [key for key in wanted if key != "players" and wanted[key] != have[key]]
    if odd:
        raise PlanError(
            f"finetune.source {name!r} is another network than the settings ask for: "
            + ", ".join(f"network.{key} {have[key]}, not {wanted[key]}" for key in odd)
        )
    return artefact


def check_start(store: Store, config: str, settings: TrainingConfig) -> None:
    """Refuse, before anything is started, a ``finetune.source`` that no generation of ``config`` could
    be begun with; one that has a plan already asks for none. Raises PlanError as `source_model`.
    """
    if settings.finetune.source and not store.generations(config):
        source_model(store, config, settings)


def _find(store: Store, name: str) -> Artefact:
    config, _, generation = name.partition("/")
    if generation:
        artefact = store.current(config, int(generation), "ema_model")
        if artefact is None:
            raise PlanError(f"finetune.source {name!r}: that generation has no model in this store")
        return artefact
    champion = store.champion(config)
    if champion is None:
        raise PlanError(
            f"finetune.source {name!r}: {config} has no champion in this store; train it first, "
            f"or name a generation of it ({config}/0000)"
        )
    return store.open(champion.path, verify=True)


__all__ = ["check_start", "source_model"]
