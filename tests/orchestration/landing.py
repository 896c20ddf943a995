"""Artefacts that look like a landed evaluation, as far as the sensor reads them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dagster import (
    AssetCheckResult,
    AssetCheckSpec,
    AssetsDefinition,
    AssetSpec,
    MaterializeResult,
    PreviewWarning,
    multi_asset,
)

from ringrift_pipeline.enhancements.training_config import TrainingConfig
from ringrift_pipeline.orchestration import names
from ringrift_pipeline.orchestration.checks import blocking_checks
from ringrift_pipeline.store import Artefact, Store

PLAN = {"settings": TrainingConfig.preset("smoke").to_dict()}


def fake_model(store: Store, config: str, generation: int) -> Any:
    """An ``ema_model`` artefact whose bytes differ from every other one's."""
    with store.create(config, generation, "ema_model") as draft:
        (draft / "model.safetensors").write_bytes(f"{config}/{generation}".encode())
    return draft.artefact


def fake_evaluation(
    store: Store, config: str, generation: int, promote: bool, rating: tuple[float, float] | None
) -> Artefact:
    """Plan, model and evaluation report of a generation, as far as the sensor reads them.

    ``rating`` is the candidate's, with half the width of its interval, Elo.
    """
    store.write_plan(config, generation, PLAN)
    model = store.current(config, generation, "ema_model") or fake_model(store, config, generation)
    report = {
        "candidate": {"digest": model.digest},
        "champion": _champion_before(store, config, generation),
        "gate": {"promote": promote, "reasons": ["beats everybody" if promote else "too weak"]},
    }
    numbers = {}
    if rating is not None:
        elo, half = rating
        numbers = {"eval/elo": elo, "eval/elo_low": elo - half, "eval/elo_high": elo + half}
    with store.create(config, generation, "evaluation", numbers) as draft:
        (draft / "report.json").write_text(json.dumps(report))
    return draft.artefact


def _champion_before(store: Store, config: str, generation: int) -> dict[str, Any] | None:
    """The model that is champion once all earlier generations have been decided."""
    for number in range(generation - 1, -1, -1):
        evaluation = store.current(config, number, "evaluation")
        if evaluation is not None and evaluation.read_json("report.json")["gate"]["promote"]:
            return {"digest": store.require(config, number, "ema_model").digest}
    return None


def landing(
    config: str, made: Sequence[str], says: Mapping[str, bool | None], evaluation: Artefact
) -> AssetsDefinition:
    """One step that materializes the assets ``made`` of a generation, each with its blocking checks.

    ``says`` is what a check says, by its name; True if it is not named, None: it is not run.
    ``evaluation`` is the artefact that the materialization of evaluation tells of.
    """
    run = {
        name: [check for check in blocking_checks(name) if says.get(check, True) is not None]
        for name in made
    }
    partitions = names.partitions(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PreviewWarning)  # of partitioned checks
        specs = [
            AssetCheckSpec(
                check, asset=names.asset_key(config, name), blocking=True, partitions_def=partitions
            )
            for name, checks in run.items()
            for check in checks
        ]

    @multi_asset(
        name=f"{config}_landing",
        specs=[
            AssetSpec(names.asset_key(config, name), partitions_def=partitions) for name in made
        ],
        check_specs=specs,
        required_resource_keys={"settings"},
    )
    def landed() -> Iterator[MaterializeResult]:
        for name in made:
            results = [
                AssetCheckResult(
                    passed=bool(says.get(check, True)),
                    asset_key=names.asset_key(config, name),
                    check_name=check,
                    description="as asked",
                )
                for check in run[name]
            ]
            yield MaterializeResult(
                asset_key=names.asset_key(config, name),
                metadata={"digest": evaluation.digest} if name == "evaluation" else {},
                check_results=results,
            )

    return landed


Land = Callable[..., Any]
