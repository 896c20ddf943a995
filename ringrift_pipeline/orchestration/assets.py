"""The nine assets of a config, made by one factory: [config, name], one group a config."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dagster import (
    AssetExecutionContext,
    AssetsDefinition,
    AssetSpec,
    Failure,
    MaterializeResult,
    TableColumn,
    TableColumnConstraints,
    TableSchema,
    asset,
)

from ringrift_pipeline.evaluation.tables import RATINGS
from ringrift_pipeline.orchestration.metadata import materialized
from ringrift_pipeline.orchestration.names import CHAMPION, OWNERS, asset_key, partitions
from ringrift_pipeline.orchestration.pools import pool_of, tags_of
from ringrift_pipeline.orchestration.selfplay_asset import selfplay_shards
from ringrift_pipeline.orchestration.settings import settings_of
from ringrift_pipeline.orchestration.step import LOST, Step, once, running_step
from ringrift_pipeline.orchestration.verdicts import standing_failures
from ringrift_pipeline.store import Artefact
from ringrift_pipeline.store.kinds import CODE_VERSIONS
from ringrift_pipeline.training.tables import (
    CALIBRATION_BINS,
    HARD_EXAMPLES,
    QUALITY_SCORES,
    Column,
)


@dataclass(frozen=True)
class Recipe:
    """One asset after selfplay: what it is made from, and the room function that makes it.

    ``make`` imports its room inside, so that loading the definitions stays cheap.
    """

    name: str
    deps: tuple[str, ...]
    make: Callable[[Step, str], Artefact]  # (step, the run's `resume`)
    description: str
    kinds: frozenset[str]
    columns: tuple[Column, ...] = ()  # of its Parquet table, if it has one
    read_as_table: bool = False  # whoever depends on it gets the table
    beside: Callable[[Step], Artefact] | None = None  # shown with it, and no asset of its own


def _score(step: Step, _: str) -> Artefact:
    from ringrift_pipeline.training import score_games

    return score_games(step.store, step.plan(), **step.hooks())


def _mine(step: Step, _: str) -> Artefact:
    from ringrift_pipeline.training import mine_hard_examples

    return mine_hard_examples(step.store, step.plan(), **step.hooks())


def _train(step: Step, resume: str) -> Artefact:
    from ringrift_pipeline.training import StaleWindowError, require_fresh, train

    plan = step.plan()
    try:  # what was fresh when the check of the shards looked may not be so any more
        require_fresh(step.store, plan)
    except StaleWindowError as error:
        raise Failure(str(error), allow_retries=False) from None
    return train(step.store, plan, resume=resume, **step.hooks())


def _average(step: Step, _: str) -> Artefact:
    from ringrift_pipeline.training import average

    return average(step.store, step.plan(), **step.hooks())


def _ensemble(step: Step, _: str) -> Artefact:
    from ringrift_pipeline.training import build_ensemble

    return build_ensemble(step.store, step.plan(), **step.hooks())


def _calibrate(step: Step, _: str) -> Artefact:
    from ringrift_pipeline.training import calibrate

    return calibrate(step.store, step.plan(), **step.hooks())


def _evaluate(step: Step, _: str) -> Artefact:
    from ringrift_pipeline.evaluation import evaluate

    return evaluate(step.store, step.plan(), **step.hooks())


def _rate(step: Step) -> Artefact:
    from ringrift_pipeline.evaluation.rating_list import play_anchors, rate_all

    play_anchors(step.store, step.plan(), **step.hooks())
    return rate_all(step.store, step.config, step.generation)


RECIPES: tuple[Recipe, ...] = (
    Recipe(
        "quality_scores",
        ("selfplay_shards",),
        _score,
        "A score in [0, 1] for every game of the generation: length, balance, diversity, "
        "decisiveness, freshness, search surprise. Training draws games by it where "
        "`quality.enabled` says so.",
        frozenset({"polars", "parquet"}),
        QUALITY_SCORES,
        read_as_table=True,
    ),
    Recipe(
        "hard_examples",
        ("selfplay_shards", "quality_scores"),
        _mine,
        "Positions that the parent model judges worst, or that the last ensemble's members judge "
        "least alike, with the reason. Where `mining.enabled` says so all decisions are scored and "
        "the training starts its miner from them; elsewhere 4096 of them are, to look at. Hardness "
        "is in nats.",
        frozenset({"polars", "parquet"}),
        HARD_EXAMPLES,
        read_as_table=True,
    ),
    Recipe(
        "checkpoint",
        ("selfplay_shards", "quality_scores", "hard_examples"),
        _train,
        "The network trained on the window of generations, with optimizer, sampler and random "
        "state: training goes on from it bit for bit. Losses are in nats: `train/` of the newest steps, "
        "`val/` of the held-out games; the policy's over the rows that have one, which cheap searches "
        "have not; `val/gain` is by how much the parent's loss was higher.",
        frozenset({"torch", "safetensors"}),
    ),
    Recipe(
        "ema_model",
        ("checkpoint",),
        _average,
        "The exponential moving average of the training's weights, or where `averaging.enabled` is off "
        "the last ones: the candidate that is evaluated and, promoted, plays the next selfplay. "
        "`val/loss` is in nats, of held-out games, and so is `val/precision_policy_kl`: how far the "
        "policy in the arithmetic that search uses is from that in float32.",
        frozenset({"torch", "safetensors"}),
    ),
    Recipe(
        "ensemble",
        ("checkpoint", "ema_model"),
        _ensemble,
        "The newest generations' models as one predictor, with how far they disagree: about the "
        "policy by Jensen-Shannon divergence, in nats, about the value by the standard deviation of "
        "a seat's share of the win.",
        frozenset({"torch"}),
    ),
    Recipe(
        "calibration_report",
        ("ema_model", "ensemble"),
        _calibrate,
        "How far the value head's win probabilities can be trusted: calibration error before and "
        "after temperature scaling, with the reliability diagram: `val/ece` on all games held out, the "
        "others on the half that judges the temperature, where one was fitted. The error is a "
        "share of the win, debiased: it lies around 0, on both sides, where the model is calibrated; "
        "log losses are in nats.",
        frozenset({"torch", "parquet", "matplotlib"}),
        CALIBRATION_BINS,
    ),
    Recipe(
        "evaluation",
        ("ema_model", "calibration_report"),
        _evaluate,
        "Seat-rotated matches of the candidate against random, heuristic and champion, ratings "
        "with intervals, and what the promotion gate says of them. With it the list and the curve "
        "of all ratings so far: random, heuristic, rollouts and the newest generations in one fit. "
        "Ratings are Elo, the heuristic has 1200: `eval/elo` by this evaluation's games alone, the "
        "list's by those of all; an evaluation without the heuristic shows none of its own. A win rate "
        "counts games, a draw in equal shares. The match with the champion ends when the gate has "
        "decided, which flatters those it promotes; the weekly gauntlet does not.",
        frozenset({"numba", "torch", "parquet", "matplotlib"}),
        RATINGS,
        beside=_rate,
    ),
)


def recipe(config: str, made: Recipe) -> AssetsDefinition:
    """The asset ``[config, made.name]``."""
    metadata: dict[str, Any] = {}
    if made.columns:
        metadata["dagster/column_schema"] = TableSchema(
            columns=[
                TableColumn(
                    column.name,
                    column.dtype.lower(),
                    column.description,
                    TableColumnConstraints(nullable=column.nullable, unique=column.unique),
                )
                for column in made.columns
            ]
        )

    @asset(
        name=made.name,
        key_prefix=config,
        resource_defs={"settings": settings_of(config)},
        group_name=config,
        partitions_def=partitions(config),
        deps=[asset_key(config, name) for name in made.deps],
        description=made.description,
        owners=OWNERS,
        kinds=set(made.kinds),
        code_version=CODE_VERSIONS[made.name],
        metadata=metadata,
        required_resource_keys={"store", "settings"},
        io_manager_key="tables" if made.read_as_table else None,
        pool=pool_of(made.name),
        op_tags=tags_of(made.name),
        retry_policy=LOST,
    )
    def body(context: AssetExecutionContext) -> MaterializeResult:
        with once(), running_step(context, config) as step:
            _refuse_failed(context, config, made)
            artefact = made.make(step, context.resources.settings.resume)
            return materialized(artefact, made.beside(step) if made.beside else None)

    return body


def _refuse_failed(context: AssetExecutionContext, config: str, made: Recipe) -> None:
    """Failure if a blocking check has failed on what the asset is made from. Dagster sees to that
    within a run only, not where later assets are materialized alone.
    """
    failed = standing_failures(context.instance, config, made.deps, context.partition_key)
    if failed:
        raise Failure(
            f"{made.name} is not made from what has failed a blocking check: {'; '.join(failed)} "
            "Once that is mended, materialize what the check is of, or execute the check, again.",
            allow_retries=False,
        )


def champion(config: str) -> AssetSpec:
    """The external asset ``[config, champion]``: the store's pointer, whose events the sensor
    reports when it promotes.
    """
    return AssetSpec(
        asset_key(config, CHAMPION),
        group_name=config,
        description=f"The model that plays {config} best so far: what the gate promoted last. "
        "Selfplay of the next generation plays it. Its rating is Elo, the heuristic has 1200.",
        owners=OWNERS,
        kinds={"safetensors"},
    )


def family(config: str) -> list[AssetsDefinition | AssetSpec]:
    """All nine assets of a config."""
    return [
        champion(config),
        selfplay_shards(config),
        *(recipe(config, made) for made in RECIPES),
    ]
