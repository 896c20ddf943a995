"""Selfplay of one generation: plan the shards, play each that is missing in a step of its own, collect
them all.

The steps hand each other nothing: which shard to play a step knows by its own key, what the shard is
by the plan, and what was played the store knows. So they need no place in common but the store.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dagster import (
    AssetIn,
    AssetsDefinition,
    Backoff,
    DataVersion,
    DynamicOut,
    DynamicOutput,
    In,
    Jitter,
    MetadataValue,
    Nothing,
    OpExecutionContext,
    Out,
    Output,
    RetryPolicy,
    TableColumn,
    TableColumnConstraints,
    TableSchema,
    TableSchemaMetadataValue,
    graph_asset,
    op,
)
from dagster._core.execution.plan.resume_retry import ReexecutionStrategy
from dagster._core.storage.tags import RETRY_STRATEGY_TAG

from ringrift_pipeline.orchestration.metadata import of_artefact
from ringrift_pipeline.orchestration.names import CHAMPION, OWNERS, asset_key, partitions
from ringrift_pipeline.orchestration.pools import pool_of, tags_of
from ringrift_pipeline.orchestration.settings import settings_of
from ringrift_pipeline.orchestration.step import LOST, Step, once, running_step
from ringrift_pipeline.selfplay.workers import SILENCE
from ringrift_pipeline.store.kinds import CODE_VERSIONS

if TYPE_CHECKING:
    from ringrift_pipeline.selfplay import Plan

# A shard may meet a full disk, or a process that is killed or hangs; what has landed is kept.
SHARD_RETRIES = RetryPolicy(
    max_retries=2, delay=1.0, backoff=Backoff.EXPONENTIAL, jitter=Jitter.PLUS_MINUS
)


def columns_of_a_shard(config: str) -> TableSchemaMetadataValue:
    """The columns of the shards' tables, for the UI: what a shard file must have."""
    from ringrift_pipeline.selfplay.shards import MEANINGS, SHARD_SCHEMA

    return MetadataValue.table_schema(
        TableSchema(
            columns=[
                TableColumn(
                    field.name,
                    str(field.type).replace("item: ", "").replace(" not null", ""),
                    MEANINGS[field.name],
                    TableColumnConstraints(nullable=field.nullable),
                )
                for field in SHARD_SCHEMA(config)
            ]
        )
    )


def _play_forgotten(context: OpExecutionContext, step: Step, plan: "Plan") -> None:
    """Play the shards that are not there. A run that re-executes another from its failure, as the UI
    offers, begins the mapped steps again that the other had begun, and none of those it had not
    (Dagster 1.13, `_derive_state_of_past_run`).
    """
    from ringrift_pipeline.selfplay import missing_shards, play_shards

    forgotten = missing_shards(step.store, plan, **step.hooks())
    if forgotten:
        context.log.warning(
            f"{step.key}: {len(forgotten)} of {len(plan.shards)} shards are missing, as where this "
            "run re-executes one that was lost before it came to them; they are played here"
        )
        play_shards(step.store, plan, **step.hooks())


def selfplay_shards(config: str) -> AssetsDefinition:
    """The graph-backed asset ``[config, selfplay_shards]``: plan -> play, one a shard -> collect."""

    @op(
        name=f"{config}_plan",
        ins={CHAMPION: In(Nothing)},
        out=DynamicOut(Nothing),
        required_resource_keys={"store", "settings"},
        retry_policy=LOST,
        tags=tags_of("plan"),
        description="Writes the generation's plan, which all that follows reads, and one output "
        "for each shard that is still to be played; what exists is verified.",
    )
    def plan(context: OpExecutionContext) -> Iterator[DynamicOutput[None]]:
        from ringrift_pipeline.selfplay import missing_shards, plan_generation

        with once(), running_step(context, config) as step:
            settings = context.resources.settings.of(step.store, config, step.generation)
            made = plan_generation(step.store, config, step.generation, settings, **step.hooks())
            if made.settings != settings:
                context.log.warning(
                    f"{step.key} was planned before with other settings; its plan stands"
                )
            missing = missing_shards(step.store, made, **step.hooks())
            if len(missing) < len(made.shards):
                context.log.info(
                    f"{step.key}: {len(made.shards) - len(missing)} of {len(made.shards)} shards "
                    "are there and verify; no step plays them"
                )
            for index in missing:
                yield DynamicOutput(None, mapping_key=f"{index:04d}")

    @op(
        name=f"{config}_play",
        ins={"planned": In(Nothing)},
        out=Out(Nothing),
        required_resource_keys={"store"},
        retry_policy=SHARD_RETRIES,
        pool=pool_of("selfplay_shards"),
        tags=tags_of("selfplay_shards"),
        description="Plays one shard's games; a shard that exists and verifies is not played "
        "again.",
    )
    def play(context: OpExecutionContext) -> None:
        from ringrift_pipeline.selfplay import play_shard

        with running_step(context, config, silence=SILENCE) as step:
            index = int(str(context.get_mapping_key()))
            play_shard(step.store, step.plan(), index, **step.hooks())

    @op(
        name=f"{config}_collect",
        ins={"played": In(Nothing)},
        out=Out(Nothing),
        required_resource_keys={"store"},
        retry_policy=LOST,
        tags=tags_of("collect"),
        description="The index of the generation's shards, with what was played; plays shards that "
        "no step has played.",
    )
    def collect(context: OpExecutionContext) -> Output[None]:
        from ringrift_pipeline.selfplay import collect as collect_shards

        with once(), running_step(context, config) as step:
            made = step.plan()
            _play_forgotten(context, step, made)
            artefact = collect_shards(step.store, made)
            again = {RETRY_STRATEGY_TAG: ReexecutionStrategy.FROM_FAILURE.value}
            context.instance.add_run_tags(context.run_id, again)
            context.log.info(f"{step.key}: {len(made.shards)} shards collected")
            return Output(
                None,
                metadata={
                    **of_artefact(artefact),
                    "dagster/column_schema": columns_of_a_shard(config),
                },
                data_version=DataVersion(artefact.digest[:16]),
            )

    @graph_asset(
        name="selfplay_shards",
        key_prefix=config,
        resource_defs={"settings": settings_of(config)},
        group_name=config,
        partitions_def=partitions(config),
        ins={CHAMPION: AssetIn(asset_key(config, CHAMPION), dagster_type=Nothing)},
        description=f"Games of {config} that the champion (the heuristic, before there is one) "
        "plays against itself, and some against an earlier model of the last ensemble; one Arrow "
        "file a shard, with search policies and outcomes. Entropy and surprise are in nats, of the "
        "champion's full searches; `win_rate_opponent` is the champion's against the earlier model; "
        "games that `max_plies` cut short are no draws; rates are of the seconds in which some shard "
        "was being played.",
        owners=OWNERS,
        kinds={"numba", "arrow"},
        code_version=CODE_VERSIONS["selfplay_shards"],
    )
    def shards(champion: Any) -> Any:
        # `champion` orders nothing at run time: the plan reads the store's pointer.
        planned = plan.alias("plan")(champion)
        return collect.alias("collect")(planned.map(play.alias("play")).collect())

    return shards
